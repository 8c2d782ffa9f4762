"""The keeper process: bind, start the kernel, forward and record until the kernel ends.

One keeper per kernel start. The main thread owns the kernel's process and the signals; the proxy's thread moves
messages, the recorder's thread writes the record. See docs/design.md, "Processes and their lifetimes".
"""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import re
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

import zmq

from output_keeper import defaults
from output_keeper.errors import OutputKeeperError, StoreError
from output_keeper.keeper.child import Child, describe_exit, exit_status
from output_keeper.keeper.grants import Grants
from output_keeper.keeper.proxy import Proxy
from output_keeper.keeper.recorder import Recorder, RecorderSettings
from output_keeper.keeper.sockets import ConnectionInfo, bind_front, connect_back, private_connection
from output_keeper.protocol.messages import Signer
from output_keeper.record import paths
from output_keeper.record.database import Sync
from output_keeper.record.runs import Process, Run, RunLock, identity, remove

CANNOT_START = 70  # EX_SOFTWARE: exit code when no kernel was started; the launcher may start it without a keeper
LOG_BYTES = 5 * 1024 * 1024
TERMINATE_GRACE = 5.0  # s a kernel gets after SIGTERM before it is killed
LAUNCHER_LOOK = 2.0  # s between looks whether the launcher lives
REASON_BYTES = 2000  # of the reason why there is no kernel, for the launcher; a pipe takes them without waiting
DRAIN_LIMIT = 10.0  # s for what the ended kernel left on the way

# How a kernel ended that was made to by a signal to its keeper, or by the end of who launched it.
TERMINATED, KILLED, ORPHANED = "terminated", "killed on request", "ended after its server"


@dataclass(frozen=True)
class KeeperSettings:
    """What a launcher says about a kernel start. Only the connection file and the kernel's argv are needed."""

    connection_file: Path
    argv: Sequence[str]
    kernel_id: str | None = None
    kernel_name: str = ""
    cwd: str | None = None
    env: dict[str, str] | None = None
    record_dir: Path | None = None
    expect_grants: bool = False
    hold: float = defaults.HOLD_TIMEOUT
    flush_interval: float = defaults.FLUSH_INTERVAL
    sync: Sync = "normal"
    runs_per_cell: int = defaults.RUNS_PER_CELL
    ready_fd: int | None = None
    extra_arguments: list[str] = field(default_factory=list)
    root: str = ""
    independent: bool = False
    orphan_timeout: float = defaults.ORPHAN_TIMEOUT


class Keeper:
    """Run one kernel. `run` blocks until it has ended and gives the exit code that says how."""

    def __init__(self, settings: KeeperSettings) -> None:
        self._settings = settings
        self.kernel_id = settings.kernel_id or kernel_id_from(settings.connection_file)
        self._run_dir = paths.run_dir(self.kernel_id)
        self._log = logging.getLogger("output_keeper")
        self._child: Child | None = None
        self._ended = threading.Event()
        self._returncode = 0
        self._launcher = Process.of(os.getppid())
        self._asked = ""  # who asked the kernel to end, in words

    def run(self) -> int:
        """Bind, start, forward, record, clean up. Raises `OutputKeeperError` when the kernel cannot be started."""
        front = ConnectionInfo.load(self._settings.connection_file)
        lock = RunLock(self._run_dir)
        lock.acquire()
        try:
            with _logging(self._log, self._run_dir / "keeper.log"):
                context = zmq.Context[zmq.Socket[bytes]]()
                try:
                    return self._run(context, front)
                finally:
                    context.destroy(linger=1000)
        finally:
            try:
                remove(self._run_dir, lock)
            except StoreError as error:  # the next keeper of this kernel cleans up
                print(f"output-keeper: {error}", file=sys.stderr)

    def _run(self, context: zmq.Context[zmq.Socket[bytes]], front: ConnectionInfo) -> int:
        settings = self._settings
        front_sockets = bind_front(context, front)
        private = private_connection(front)
        back_sockets = connect_back(context, private)
        private_file = self._run_dir / "kernel.json"
        private.write(private_file)

        recorder: Recorder
        proxy = Proxy(
            context,
            front_sockets,
            back_sockets,
            signer=Signer(front.key, front.signature_scheme),
            grants=Grants(expect=settings.expect_grants, hold_for=settings.hold),
            tap=lambda channel, direction, frames: recorder.tap(channel, direction, frames),  # noqa: PLW0108  not made yet
            decided=lambda msg_id, owner: recorder.decided(msg_id, owner),  # noqa: PLW0108
        )
        record_dir = paths.private_folder(settings.record_dir or paths.record_dir())
        recorder = Recorder(
            context,
            kernel_id=self.kernel_id,
            signer=Signer(front.key, front.signature_scheme),
            key=front.key,
            endpoint_address=self._endpoint_address() if front.key else None,
            settings=RecorderSettings(
                path=paths.record_path(self.kernel_id, record_dir),
                sync=settings.sync,
                flush_interval=settings.flush_interval,
                runs_per_cell=settings.runs_per_cell,
                expect_grants=settings.expect_grants,
            ),
            proxy=proxy,
            log=self._log,
        )
        self._listen()
        proxy.start()
        private.release()
        try:
            self._child = Child(
                list(settings.argv),
                env=settings.env if settings.env is not None else dict(os.environ),
                cwd=settings.cwd,
                connection_file=settings.connection_file,
                private_file=private_file,
                on_exit=self._exited,
            )
        except BaseException:
            proxy.stop()
            proxy.join()
            raise
        # From here on there is a kernel: whatever else fails, it runs and its exit code is ours.
        recorder.start()
        self._log.info("= kernel %s started, pid %s", self.kernel_id, self._child.pid)
        self._announce(front, recorder, self._child.pid)
        if self._asked:  # a signal that came before there was a kernel to pass it to
            self._end()
        while not self._ended.wait(LAUNCHER_LOOK):
            if not self._asked and self._orphaned(recorder):
                self._asked = ORPHANED
                self._log.info("= nobody wants this kernel any more")
                self._end()
        return self._finish(proxy, recorder)

    def _orphaned(self, recorder: Recorder) -> bool:
        """Tell whether the kernel is to end because its launcher has.

        As jupyter_client has it, a kernel goes with the process that launched it, unless that made it independent. That
        of a Jupyter server waits for the next server of the same folder, but not for ever while nothing happens.
        """
        if self._launcher is None or self._launcher.alive():
            return False
        if not self._settings.root:
            return not self._settings.independent
        try:
            self._launcher = Run.read(self._run_dir).server or self._launcher
        except StoreError as error:
            self._log.warning("! %s", error)
        return not self._launcher.alive() and recorder.quiet_for() > self._settings.orphan_timeout

    def _finish(self, proxy: Proxy, recorder: Recorder) -> int:
        """The kernel is gone: let everything it said through, record how it ended, and give the exit code."""
        proxy.stop_when_drained()
        if not proxy.finished.wait(DRAIN_LIMIT):
            self._log.error("! not everything that the kernel left was forwarded within %g s", DRAIN_LIMIT)
            proxy.stop()
        proxy.join()
        asked = self._asked or proxy.shutdown_requested
        how = f"the kernel {describe_exit(self._returncode)}"
        if asked:
            how = f"the kernel was {asked}"
        self._log.info("= %s (%s)", how, describe_exit(self._returncode))
        recorder.finish(how, died=not asked)
        recorder.join()
        return exit_status(self._returncode)

    def _exited(self, returncode: int) -> None:
        self._returncode = returncode
        self._ended.set()

    # -- signals --------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._terminate)
        if hasattr(signal, "SIGQUIT"):
            signal.signal(signal.SIGQUIT, self._kill)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        if self._child is not None:
            self._child.interrupt()

    def _terminate(self, _signum: int, _frame: FrameType | None) -> None:
        self._asked = self._asked or TERMINATED
        self._end()

    def _kill(self, _signum: int, _frame: FrameType | None) -> None:
        self._asked = KILLED
        self._end()

    def _end(self) -> None:
        """End the kernel in order, or at once when that was asked; one that does not go within the grace is killed."""
        if self._child is None:
            return
        if self._asked == KILLED:
            self._child.kill()
            return
        self._child.terminate()
        timer = threading.Timer(TERMINATE_GRACE, self._child.kill)
        timer.daemon = True
        timer.start()

    # -- what others see ------------------------------------------------------------------------------------------

    def _endpoint_address(self) -> str:
        return paths.endpoint_address(self._run_dir) or "tcp://127.0.0.1:*"

    def _announce(self, front: ConnectionInfo, recorder: Recorder, kernel_pid: int) -> None:
        """Write the run file, and tell the launcher that the kernel runs."""
        try:
            self._run_file(front, recorder, kernel_pid).write(self._run_dir)
            if self._settings.ready_fd is not None:
                os.write(self._settings.ready_fd, b"ready\n")
                os.close(self._settings.ready_fd)
        except (StoreError, OSError) as error:
            self._log.error("! nobody may find this kernel: %s", error)

    def _run_file(self, front: ConnectionInfo, recorder: Recorder, kernel_pid: int) -> Run:
        settings = self._settings
        return Run(
            kernel_id=self.kernel_id,
            kernel_name=settings.kernel_name or front.kernel_name,
            cwd=settings.cwd or str(Path.cwd()),
            argv=list(settings.argv),
            env={},
            extra_arguments=settings.extra_arguments,
            connection=front.to_dict(),
            endpoint=recorder.endpoint_address,
            record=str(recorder.path),
            keeper=identity(),
            kernel=Process.of(kernel_pid),
            grants=settings.expect_grants,
            server=self._launcher,
            sessions=[],
            root=settings.root,
            started=datetime.now(timezone.utc).isoformat(),
        )


def kernel_id_from(connection_file: Path) -> str:
    """Give the kernel's id as servers name connection files (``kernel-<uuid>.json``), else a new one."""
    match = re.fullmatch(r"kernel-([0-9a-fA-F-]{36})", connection_file.stem)
    return match.group(1) if match else str(uuid.uuid4())


class _PrivateLog(logging.handlers.RotatingFileHandler):
    """A log that only its owner can read, its later files included."""

    def _open(self) -> io.TextIOWrapper:
        opened = open(self.baseFilename, self.mode, encoding=self.encoding, opener=_private)  # noqa: SIM115  it stays open
        assert isinstance(opened, io.TextIOWrapper)
        return opened


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _logging(logger: logging.Logger, path: Path) -> Iterator[None]:
    """Log to ``path`` in the block."""
    handler = _PrivateLog(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    level = os.environ.get("OUTPUT_KEEPER_LOG_LEVEL", "INFO")
    try:
        logger.setLevel(level)
    except ValueError:
        logger.warning("! OUTPUT_KEEPER_LOG_LEVEL is %r, which is no level", level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def run_keeper(settings: KeeperSettings) -> int:
    """Run a keeper as this process. What stops it before there is a kernel is said on stderr."""
    try:
        return Keeper(settings).run()
    except (OutputKeeperError, OSError) as error:
        print(f"output-keeper: {error}", file=sys.stderr)
        if settings.ready_fd is not None:
            with suppress(OSError):  # the launcher has gone: stderr says it
                os.write(settings.ready_fd, str(error).encode()[:REASON_BYTES])
        return CANNOT_START
