"""The run file: what a live keeper tells whoever wants to find it, and whether it is alive and belongs here.

One folder per keeper (paths.run_dir) with ``run.json``, readable by its owner only because it holds the
connection's key, and a lock file that the keeper holds for life.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from output_keeper.errors import StoreCorrupted, StoreError, StoreLocked, StoreUnavailable, StoreVersion
from output_keeper.record.paths import (
    LOCK_FILE,
    RUN_FILE,
    escape,
    hold,
    private_folder,
    runs_dir,
    unavailable,
    unescape,
    write_atomic,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    import filelock

FORMAT = 1

# The same start read twice differs at most by the rounding of a clock tick; a pid does not come round that
# fast.
_ROUNDING = 0.05

# A probe of `locked` holds the lock for an instant; a keeper that starts then waits it out.
_PROBE = 1.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process, never taken for a later one with its pid; ``create_time`` as :func:`create_time` says."""

    pid: int
    create_time: float

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process that has this pid now, None when there is none."""
        started = create_time(pid)
        return None if started is None else cls(pid, started)

    def alive(self) -> bool:
        """Tell whether it still runs (a zombie does not). Ask on its boot and in its pid namespace only."""
        started = create_time(self.pid)
        return started is not None and abs(started - self.create_time) < _ROUNDING


@dataclass(frozen=True, slots=True)
class Identity:
    """A process and where it runs, so that a run file on a shared home or volume is not taken for ours.

    ``boot_id`` and the namespaces are "" where the system has none. ``uid`` is -1 on Windows.
    """

    pid: int
    create_time: float
    boot_id: str
    pid_namespace: str
    network_namespace: str
    uid: int

    def here(self) -> bool:
        """Tell whether it is on this boot of this machine, in our namespaces, with our uid."""
        return self == dataclasses.replace(identity(), pid=self.pid, create_time=self.create_time)

    def alive(self) -> bool:
        """Tell whether that very process runs here."""
        return self.here() and Process(self.pid, self.create_time).alive()


@dataclass(frozen=True, slots=True)
class Run:
    """What a run file says. ``connection``, ``sessions`` and ``env`` are plain JSON (a key is text).

    ``connection``: the front connection info with its key, as in a connection file. ``endpoint``: the address
    of the record endpoint, None when there is none. ``record``: the path of the record. ``grants``: whether
    the server said to expect grants. ``server``: whose kernel this is. ``root``: the folder that server serves,
    "" when there is none; session rows hold paths below it. ``started``: ISO 8601 with offset.
    """

    kernel_id: str
    kernel_name: str
    cwd: str
    argv: list[str]
    env: dict[str, str]
    extra_arguments: list[str]
    connection: dict[str, Any]
    endpoint: str | None
    record: str
    keeper: Identity
    kernel: Process | None
    grants: bool
    server: Process | None
    sessions: list[dict[str, Any]]
    started: str
    root: str = ""

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the run file into ``folder``, made private when it is missing; replaces the old one whole.

        Raises StoreError (the folder is not private), StoreUnavailable; TypeError for a value that is not
        JSON.
        """
        # Not orjson: a path or a variable may hold bytes that are no UTF-8, as lone surrogates.
        data = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2)
        write_atomic(private_folder(folder) / RUN_FILE, data.encode())

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Run:
        """Read the run file in ``folder``.

        Raises StoreVersion (newer), StoreCorrupted (not what :meth:`write` writes, or of another kernel_id
        than the folder is for), StoreError (no file, a link, somebody else's, or writable by others).
        """
        path = Path(folder) / RUN_FILE
        content = _read_own(path)
        try:
            fields = json.loads(content)
            version = _of_type("format", fields, int)
            if version > FORMAT:
                raise StoreVersion(
                    f"this run file has format {version}, newer than {FORMAT}",
                    path=str(path),
                    hint="update output-keeper",
                )
            run = _run(fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreCorrupted(f"this is no run file: {error}", path=str(path)) from error
        if escape(run.kernel_id) != Path(folder).absolute().name:
            raise StoreCorrupted(f"this run file is of kernel {run.kernel_id}", path=str(path))
        return run

    def here(self) -> bool:
        """Tell whether the keeper belongs to this boot, these namespaces and this user."""
        return self.keeper.here()

    def alive(self) -> bool:
        """Tell whether the keeper runs, here."""
        return self.keeper.alive()

    def kernel_alive(self) -> bool:
        """Tell whether the kernel's process runs, here."""
        return self.here() and self.kernel is not None and self.kernel.alive()


def change(folder: str | os.PathLike[str], **fields: Any) -> Run:
    """Replace some fields of the run file in ``folder`` and return the new Run.

    Keeper and server both change run files; a lock makes sure that neither undoes what the other wrote.
    Raises as :meth:`Run.read` and :meth:`Run.write` do, StoreLocked after 5 s.
    """
    lock = hold(Path(folder) / f"{RUN_FILE}.lock", timeout=5.0)
    try:
        run = dataclasses.replace(Run.read(folder), **fields)
        run.write(folder)
    finally:
        lock.release()
    return run


def claim(folder: str | os.PathLike[str], root: str) -> Run | None:
    """Make this process the server of a keeper whose server is gone; None when it is somebody else's.

    A keeper is ours when it runs here, served the same root, and its last server does not live any more. Of several
    servers that claim it at once one gets it. Raises as :func:`change` does.
    """
    own = Process.of(os.getpid())
    lock = hold(Path(folder) / f"{RUN_FILE}.lock", timeout=5.0)
    try:
        run = Run.read(folder)
        if not run.alive() or run.root != root or (run.server is not None and run.server.alive()):
            return None
        run = dataclasses.replace(run, server=own)
        run.write(folder)
    finally:
        lock.release()
    return run


def runs(report: Callable[[Path, StoreError], None], base: str | os.PathLike[str] | None = None) -> Iterator[Run]:
    """Yield the Run of every run folder (alive or not), by name; ``base`` as in paths.runs_dir.

    A run file that cannot be read goes to ``report(folder, error)``. A folder without one yields nothing: its
    keeper is only starting.
    """
    directory = runs_dir(base)
    if not directory.is_dir():
        return
    for folder in sorted(directory.iterdir()):
        if unescape(folder.name) is None or not os.path.lexists(folder / RUN_FILE):
            continue
        try:
            run = Run.read(folder)
        except StoreError as error:
            report(folder, error)
        else:
            yield run


class RunLock:
    """The lock a keeper holds on its run folder for life. It is free again however the keeper ends."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """``folder``: the run folder; made private by :meth:`acquire` when it is missing."""
        self.folder = Path(folder)
        self._lock: filelock.BaseFileLock | None = None

    def acquire(self, timeout: float = _PROBE) -> None:
        """Take the lock, waiting at most ``timeout`` seconds.

        Raises StoreLocked (another keeper lives there), StoreError (the folder is not private),
        StoreUnavailable.
        """
        while True:
            private_folder(self.folder)
            try:
                lock = hold(self.folder / LOCK_FILE, timeout)
            except StoreUnavailable:
                if self.folder.exists():
                    raise
                continue  # its last keeper removed it while we waited
            if (self.folder / LOCK_FILE).exists():
                self._lock = lock
                return
            lock.release()  # removed in that instant: what we hold has no name any more

    def release(self) -> None:
        """Give the lock up. Calling it twice is fine."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    def __enter__(self) -> RunLock:
        """Take the lock; leaving the block gives it up."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock up."""
        self.release()


def locked(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a keeper lives in this run folder. Makes nothing. Raises StoreUnavailable."""
    path = Path(folder) / LOCK_FILE
    if not path.exists():
        return False
    try:
        hold(path).release()
    except StoreLocked:
        return True
    return False


def remove(folder: str | os.PathLike[str], held: RunLock | None = None) -> None:
    """Delete a run folder whose keeper is gone; a missing one is fine.

    A keeper that leaves passes the lock it holds, and it is given up at the end. Raises StoreLocked when a
    keeper lives there, StoreError when the folder is a link or not ours, StoreUnavailable.
    """
    folder = Path(folder)
    if not os.path.lexists(folder):
        return
    private_folder(folder)
    lock = held or RunLock(folder)
    if not lock.held:
        lock.acquire()
    try:
        for entry in list(folder.iterdir()):
            if entry.name == LOCK_FILE:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        # Last, while it is held: who waits for it finds its name gone and starts over with a new folder.
        (folder / LOCK_FILE).unlink()
        _remove_if_empty(folder)
    except OSError as error:
        raise unavailable(error, folder) from error
    finally:
        lock.release()


def identity() -> Identity:
    """Return the identity of this process."""
    own = Process.of(os.getpid())
    if own is None:
        raise StoreError("this process cannot see itself", path="/proc", hint="mount /proc in this container")
    return Identity(own.pid, own.create_time, _boot_id(), _namespace("pid"), _namespace("net"), _uid())


def create_time(pid: int) -> float | None:
    """Return when the process with this pid started, None when there is none or it is a zombie.

    Linux: seconds since boot, because the time of day that psutil derives from it moves with every correction
    of the clock and a keeper would seem dead. Elsewhere: psutil's seconds since the epoch. Only compare it
    with itself.
    """
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # proc_pid_stat(5): field 3 is the state, field 22 the start in clock ticks; field 2 ends with the
        # ")".
        return None if fields[0] in {b"Z", b"X"} else int(fields[19]) / os.sysconf("SC_CLK_TCK")
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None  # gone, or of another user and so not one of ours


_NONE = type(None)
_RUN_TYPES: dict[str, type | tuple[type, ...]] = {
    "kernel_id": str,
    "kernel_name": str,
    "cwd": str,
    "argv": list,
    "env": dict,
    "extra_arguments": list,
    "connection": dict,
    "endpoint": (str, _NONE),
    "record": str,
    "keeper": dict,
    "kernel": (dict, _NONE),
    "grants": bool,
    "server": (dict, _NONE),
    "sessions": list,
    "started": str,
    "root": str,
}
_PROCESS_TYPES: dict[str, type | tuple[type, ...]] = {"pid": int, "create_time": (int, float)}
_IDENTITY_TYPES: dict[str, type | tuple[type, ...]] = {
    **_PROCESS_TYPES,
    "boot_id": str,
    "pid_namespace": str,
    "network_namespace": str,
    "uid": int,
}


def _run(fields: dict[str, Any]) -> Run:
    """Build a Run from JSON; unknown fields are dropped. Raises KeyError, TypeError."""
    values = _typed(fields, _RUN_TYPES)
    values["keeper"] = Identity(**_typed(values["keeper"], _IDENTITY_TYPES))
    for name in ("kernel", "server"):
        if values[name] is not None:
            values[name] = Process(**_typed(values[name], _PROCESS_TYPES))
    return Run(**values)


def _typed(fields: dict[str, Any], types: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    return {name: _of_type(name, fields, kinds) for name, kinds in types.items()}


def _of_type(name: str, fields: dict[str, Any], kinds: type | tuple[type, ...]) -> Any:
    value = fields[name]
    if not isinstance(value, kinds):
        raise TypeError(f"{name} is a {type(value).__name__}")
    return value


def _read_own(path: Path) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if path.is_symlink():
            raise StoreError("this is a link, not a run file", path=str(path)) from error
        raise unavailable(error, path) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError("this is not a file", path=str(path))
        if sys.platform != "win32" and status.st_uid != os.geteuid():
            raise StoreError(f"this run file belongs to user {status.st_uid}", path=str(path))
        if sys.platform != "win32" and status.st_mode & 0o022:
            raise StoreError("other users can write this run file", path=str(path), hint="remove it")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):  # else a new keeper has moved in
        folder.rmdir()


@functools.cache
def _boot_id() -> str:
    if sys.platform == "linux":
        path = Path("/proc/sys/kernel/random/boot_id")
        return path.read_text().strip() if path.exists() else ""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    return ""


def _namespace(kind: str) -> str:
    """Return e.g. "pid:[4026531836]", namespaces(7); "" where there are none."""
    path = Path(f"/proc/self/ns/{kind}")
    return str(path.readlink()) if path.is_symlink() else ""


def _uid() -> int:
    if sys.platform == "win32":
        return -1
    return os.geteuid()
