"""The kernel provisioner: starts a kernel under a keeper, or attaches to a keeper that outlived its server.

It imports only the standard library, jupyter_client and constants at its top, because a default provisioner that
cannot be imported hides every kernelspec.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jupyter_client.connect import KernelConnectionInfo, LocalPortCache
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from output_keeper import defaults

if TYPE_CHECKING:
    from output_keeper.record.runs import Run

READY_TIMEOUT = 30.0  # s a keeper gets to bind and to start its kernel on a machine under load
KILL_GRACE = 4.0  # s a keeper gets, after its kernel was killed, to write the last of the record
READY = "ready"
PORTS = ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port")


@dataclass(frozen=True)
class LaunchSettings:
    """What every keeper of this process is started with; set by the server extension, else the defaults."""

    record_dir: str | None = None
    expect_grants: bool = False
    hold: float = defaults.HOLD_TIMEOUT
    flush_interval: float = defaults.FLUSH_INTERVAL
    sync: str = "normal"
    runs_per_cell: int = defaults.RUNS_PER_CELL
    orphan_timeout: float = defaults.ORPHAN_TIMEOUT
    root: str = ""


class KeeperProvisioner(LocalProvisioner):
    """Launch ``output-keeper kernel`` around the kernel's argv; the process jupyter_client polls is the keeper.

    Where a keeper cannot start, the kernel starts without one, with a warning: see `unkept`.
    """

    settings: ClassVar[LaunchSettings] = LaunchSettings()
    listeners: ClassVar[list[Callable[[str], None]]] = []
    """Called with the kernel_id after each launch under a keeper."""
    unkept: ClassVar[dict[str, str]] = {}
    """kernel_id → why this kernel runs without a keeper."""
    attach: ClassVar[dict[str, Run]] = {}
    """kernel_id → the living keeper that the next launch of this kernel attaches to, instead of starting one."""

    _kept = False
    _killed_at: float | None = None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Give the kernel manager the connection info of the keeper it will attach to, else new ports."""
        run = self.attach.get(self.kernel_id)
        manager: Any = self.parent
        if run is not None and manager is not None:
            manager.load_connection_info(run.connection)
            if manager.cache_ports and manager.transport == "tcp":
                LocalPortCache.instance().currently_used_ports.update(getattr(manager, name) for name in PORTS)
                self.ports_cached = True
        return await super().pre_launch(**kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the keeper and wait until it has bound the ports and started the kernel.

        Called by ``KernelManager._async_launch_kernel`` with the formatted argv. Raises what LocalProvisioner raises
        when neither a keeper nor a plain kernel can be started.
        """
        self._killed_at = None
        self._kept = False
        run = self.attach.pop(self.kernel_id, None)
        if run is not None:
            process: Any = AttachedProcess(run)
            self.process = process
            self.pid = self.pgid = run.keeper.pid
            self.cwd = run.cwd
            reason = None
        else:
            reason = await self._launch_keeper(cmd, kwargs)
        if reason is None:
            self._kept = True
            self.unkept.pop(self.kernel_id, None)
            for listener in self.listeners:
                listener(self.kernel_id)
            return self.connection_info
        self.log.warning(
            "output-keeper: kernel %s starts without a keeper, its outputs are not kept: %s", self.kernel_id, reason
        )
        self.unkept[self.kernel_id] = reason
        return await super().launch_kernel(cmd, **kwargs)

    async def kill(self, restart: bool = False) -> None:
        """Kill the kernel at once. Its keeper writes what is left and follows; one that hangs is killed in `wait`."""
        if self._kept and self.process is not None:
            self._killed_at = time.monotonic()
            await self.send_signal(signal.SIGQUIT)
        else:
            await super().kill(restart=restart)

    async def wait(self) -> int | None:
        """Wait for the keeper's end, which is the kernel's."""
        if self._kept:
            while self.process is not None and await self.poll() is None:
                if self._killed_at is not None and time.monotonic() - self._killed_at > KILL_GRACE:
                    self.log.warning("output-keeper: the keeper of kernel %s hangs and is killed", self.kernel_id)
                    self._killed_at = None
                    await super().kill()
                await asyncio.sleep(0.05)
        return await super().wait()

    async def _launch_keeper(self, cmd: list[str], kwargs: dict[str, Any]) -> str | None:
        """Start a keeper; give the reason when that does not work, with nothing left running."""
        if sys.platform == "win32":
            return "keepers need POSIX signals and process groups"
        from output_keeper.errors import OutputKeeperError
        from output_keeper.record.paths import private_folder, run_dir

        if self.parent is None:
            return "there is no kernel manager with a connection file"
        try:
            folder = private_folder(run_dir(self.kernel_id))
        except (OutputKeeperError, OSError) as error:
            return str(error)
        read_end, write_end = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220  as jupyter_client's launcher does
                self._argv(cmd, kwargs, write_end),
                stdin=subprocess.PIPE,
                stdout=kwargs.get("stdout"),
                stderr=kwargs.get("stderr"),
                cwd=folder,  # not the notebook's: a user's module there must not shadow ours
                pass_fds=[write_end],
                start_new_session=True,
            )
        except OSError as error:
            os.close(read_end)
            return str(error)
        finally:
            os.close(write_end)
        environment = json.dumps({"env": kwargs.get("env", dict(os.environ))})
        handed_over = asyncio.get_running_loop().run_in_executor(None, _hand_over, process, environment, read_end)
        done, _ = await asyncio.wait({handed_over}, timeout=READY_TIMEOUT)
        if done and handed_over.result() == READY:
            self.process = process
            self.pid = self.pgid = process.pid
            self.cwd = kwargs.get("cwd", Path.cwd())
            return None
        process.kill()
        reason = await handed_over  # its pipe has closed
        code = process.wait()
        return reason or f"the keeper ended with exit code {code} before the kernel ran"

    def _argv(self, cmd: list[str], kwargs: dict[str, Any], ready_fd: int) -> list[str]:
        settings = self.settings
        manager: Any = self.parent
        argv = [sys.executable, "-m", "output_keeper", "kernel"]
        argv += ["--connection-file", os.path.realpath(manager.connection_file)]
        argv += ["--kernel-id", self.kernel_id]
        argv += ["--kernel-name", manager.kernel_name or ""]
        argv += ["--cwd", str(kwargs.get("cwd") or Path.cwd())]
        argv += ["--hold", str(settings.hold), "--flush-interval", str(settings.flush_interval)]
        argv += ["--sync", settings.sync, "--runs-per-cell", str(settings.runs_per_cell)]
        argv += ["--ready-fd", str(ready_fd), "--env-from-stdin"]
        argv += ["--orphan-timeout", str(settings.orphan_timeout)]
        if kwargs.get("independent"):
            argv += ["--independent"]
        if settings.root:
            argv += ["--root", settings.root]
        if settings.record_dir:
            argv += ["--record-dir", settings.record_dir]
        if settings.expect_grants:
            argv += ["--expect-grants"]
        return [*argv, "--", *cmd]


class AttachedProcess:
    """A keeper that another process started, with the part of ``subprocess.Popen`` that jupyter_client uses.

    How it ended cannot be known to anyone but its parent: `poll` gives 0 then. The record says how the kernel ended.
    """

    stdin = stdout = stderr = None

    def __init__(self, run: Run) -> None:
        self._run = run
        self.pid = run.keeper.pid

    def poll(self) -> int | None:
        """None while it runs, else 0."""
        return None if self._run.alive() else 0

    def wait(self) -> int:
        """Called by LocalProvisioner once `poll` has said that it ended."""
        return 0

    def send_signal(self, signum: int) -> None:
        """Send a signal, if it still runs."""
        if self._run.alive():
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end its kernel and itself."""
        self.send_signal(signal.SIGTERM)


def _hand_over(process: subprocess.Popen[bytes], environment: str, read_end: int) -> str:
    """Give the keeper the kernel's environment on its stdin, then wait for `READY`, or the reason why there is none."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # ended already: it says why on the other pipe
        stdin.write(environment.encode())
    with os.fdopen(read_end, "rb") as said:
        return said.read().decode(errors="replace").strip()
