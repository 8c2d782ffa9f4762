"""The kernel provisioner: starts a kernel under a keeper. It imports only the standard library and jupyter_client at
its top, because a default provisioner that cannot be imported hides every kernelspec.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

READY_TIMEOUT = 30.0  # s a keeper gets to bind and to start its kernel on a machine under load
KILL_GRACE = 4.0  # s a keeper gets, after its kernel was killed, to write the last of the record


@dataclass(frozen=True)
class LaunchSettings:
    """What every keeper of this process is started with; set by the server extension, else the defaults."""

    record_dir: str | None = None
    expect_grants: bool = False
    hold: float = 2.0
    flush_interval: float = 0.03
    sync: str = "normal"
    runs_per_cell: int = 10


class KeeperProvisioner(LocalProvisioner):
    """Launch ``output-keeper kernel`` around the kernel's argv; the process jupyter_client polls is the keeper.

    Where a keeper cannot start, the kernel starts without one, with a warning: see `unkept`.
    """

    settings: ClassVar[LaunchSettings] = LaunchSettings()
    listeners: ClassVar[list[Callable[[str], None]]] = []
    """Called with the kernel_id after each launch under a keeper."""
    unkept: ClassVar[dict[str, str]] = {}
    """kernel_id → why this kernel runs without a keeper."""

    _kept = False
    _killed_at: float | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the keeper and wait until it has bound the ports and started the kernel.

        Called by ``KernelManager._async_launch_kernel`` with the formatted argv. Raises what LocalProvisioner raises
        when neither a keeper nor a plain kernel can be started.
        """
        self._killed_at = None
        self._kept = False
        reason = await self._launch_keeper(cmd, kwargs)
        if reason is None:
            self._kept = True
            self.unkept.pop(self.kernel_id, None)
            for listener in self.listeners:
                listener(self.kernel_id)
            return self.connection_info
        self.log.warning(
            "output-keeper: kernel %s starts without a keeper, its outputs are not kept: %s",
            self.kernel_id,
            reason,
        )
        self.unkept[self.kernel_id] = reason
        return await super().launch_kernel(cmd, **kwargs)

    async def kill(self, restart: bool = False) -> None:
        """Kill the kernel at once. Its keeper writes what is left and follows; one that does not is killed in `wait`."""
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
                    self.log.warning(
                        "output-keeper: the keeper of kernel %s hangs and is killed", self.kernel_id
                    )
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
            self.process = subprocess.Popen(
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
            return f"{error}"
        finally:
            os.close(write_end)
        self.pid = self.process.pid
        self.pgid = self.process.pid
        self.cwd = kwargs.get("cwd", Path.cwd())
        environment = json.dumps({"env": kwargs.get("env", dict(os.environ))})
        loop = asyncio.get_running_loop()
        try:
            ready = await asyncio.wait_for(
                loop.run_in_executor(None, _hand_over, self.process, environment, read_end), READY_TIMEOUT
            )
        except asyncio.TimeoutError:
            ready = False
        finally:
            os.close(read_end)
        if ready:
            return None
        self.process.kill()
        code = self.process.wait()
        self.process = None
        return f"the keeper ended with exit code {code} before the kernel ran, see {folder / 'keeper.log'}"

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
        if settings.record_dir:
            argv += ["--record-dir", settings.record_dir]
        if settings.expect_grants:
            argv += ["--expect-grants"]
        return [*argv, "--", *cmd]


def _hand_over(process: subprocess.Popen[bytes], environment: str, read_end: int) -> bool:
    """Give the keeper the kernel's environment on its stdin, then wait for its line; an end of file means it died."""
    assert process.stdin is not None
    try:
        with process.stdin as stdin:
            stdin.write(environment.encode())
    except BrokenPipeError:
        return False
    return os.read(read_end, 64).startswith(b"ready")
