"""Where everything lives on disk, and how a file or a folder of ours is made.

::

    <jupyter data dir>/output-keeper/records/<name>.sqlite          the record of one kernel_id
                                             <name>.sqlite.writer   held by the record's writer for life
                                             <name>.ledger.sqlite   the server's ledger for it
    <jupyter runtime dir>/output-keeper/<name>/run.json             the run file of a live keeper
                                               lock                 held by that keeper for life
                                               record.sock          its record endpoint (where ipc fits)

``<name>`` is the kernel_id, escaped by :func:`escape`. No other module builds or takes apart such a path.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import filelock

from output_keeper.errors import StoreError, StoreLocked, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "output-keeper"
RUN_FILE = "run.json"
LOCK_FILE = "lock"
ENDPOINT_FILE = "record.sock"

# sun_path holds 108 bytes on Linux and 104 on macOS and the BSDs, the closing NUL included (unix(7),
# unix(4)).
_SUN_PATH = 107 if sys.platform == "linux" else 103

# A file name may have 255 bytes; the longest suffix we add (".ledger.sqlite.corrupt-<n>-journal") stays far
# below 100.
_LONGEST_NAME = 150
_NAME = re.compile(r"(?:[a-z0-9_-]|%[0-9a-f]{2})+")
_RECORD = ".sqlite"
_LEDGER = ".ledger.sqlite"

_O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_O_DIRECTORY: int = getattr(os, "O_DIRECTORY", 0)


def escape(kernel_id: str) -> str:
    """Turn a kernel_id into a file name; :func:`unescape` is the inverse.

    Everything but ``a-z 0-9 _ -`` becomes ``%xx`` per UTF-8 byte. So there is no separator and no dot to
    leave a folder with, and two ids that differ only in case stay apart on file systems that ignore case. A
    uuid, which is what Jupyter uses, is its own escape.

    Raises StoreError when the id is empty or its escape has more than 150 characters.
    """
    name = "".join(
        char if _NAME.fullmatch(char) else "".join(f"%{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
        for char in kernel_id
    )
    if not name or len(name) > _LONGEST_NAME:
        raise StoreError("this cannot be a kernel id", path=repr(kernel_id[:80]), hint="it is empty or too long")
    return name


def unescape(name: str) -> str | None:
    """Return the kernel_id whose :func:`escape` is ``name``, or None when no id has it."""
    if not _NAME.fullmatch(name):
        return None
    try:
        kernel_id = unquote_to_bytes(name).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    return kernel_id if len(name) <= _LONGEST_NAME and escape(kernel_id) == name else None


def record_dir(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of all records: ``folder`` when given, else the one below the Jupyter data dir."""
    if folder is not None:
        return Path(folder)
    from jupyter_core.paths import jupyter_data_dir

    return Path(jupyter_data_dir()) / FOLDER / "records"


def record_path(kernel_id: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of the record of ``kernel_id`` in ``record_dir(folder)``. Raises as :func:`escape`."""
    return record_dir(folder) / f"{escape(kernel_id)}{_RECORD}"


def writer_lock(path: Path) -> Path:
    """Return the lock file of the writer of the record at ``path``.

    Not ``.lock``: that name is SQLite's own on file systems where it locks with dot files.
    """
    return path.with_name(f"{path.name}.writer")


def ledger_path(kernel_id: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of the ledger beside the record of ``kernel_id``. Raises as :func:`escape`."""
    return record_dir(folder) / f"{escape(kernel_id)}{_LEDGER}"


def records(folder: str | os.PathLike[str] | None = None) -> Iterator[tuple[str, Path]]:
    """Yield (kernel_id, path) of every record in ``record_dir(folder)``, by name.

    Other files there are passed over. A folder that does not exist yields nothing.
    """
    directory = record_dir(folder)
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        kernel_id = unescape(path.name[: -len(_RECORD)]) if path.name.endswith(_RECORD) else None
        if kernel_id is not None:
            yield kernel_id, path


def runs_dir(base: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of all run folders (``base`` replaces the Jupyter runtime dir)."""
    if base is None:
        from jupyter_core.paths import jupyter_runtime_dir

        base = jupyter_runtime_dir()
    return Path(base) / FOLDER


def run_dir(kernel_id: str, base: str | os.PathLike[str] | None = None) -> Path:
    """Return the run folder of the keeper of ``kernel_id``. Raises StoreError as escape does."""
    return runs_dir(base) / escape(kernel_id)


def endpoint_address(run_dir: str | os.PathLike[str]) -> str | None:
    """Return the ``ipc://`` address of the record endpoint in ``run_dir``.

    None where this ZMQ has no ipc or the path does not fit into a socket address (107 bytes on Linux, 103
    elsewhere): then use tcp on loopback.
    """
    import zmq

    path = Path(run_dir).absolute() / ENDPOINT_FILE
    if not zmq.has("ipc") or len(os.fsencode(path)) > _SUN_PATH:
        return None
    return f"ipc://{path}"


def private_folder(path: str | os.PathLike[str]) -> Path:
    """Make ``path`` (and what is missing above it) a folder that only we can enter, and check that it is.

    A folder called output-keeper directly above is checked as well. Folders of ours whose mode became too
    open (volumes that are made group-writable when mounted) are tightened; any other folder is left alone and
    refused.

    Raises StoreError when it is a link, no folder, somebody else's, or open to others.
    """
    path = Path(path)
    ours = FOLDER in (path.name, path.parent.name)
    if path.parent.name == FOLDER and path.name != FOLDER:
        private_folder(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):  # what is there is judged below
            path.mkdir(mode=0o700)
        if sys.platform == "win32":  # a profile's folders are private by inheritance, not by mode
            return path
        # One descriptor for all checks: what is judged cannot be swapped in between.
        descriptor = os.open(path, os.O_RDONLY | _O_DIRECTORY | _O_NOFOLLOW)
    except OSError as error:
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise StoreError(
                "this is not a folder but a link or a file",
                path=str(path),
                hint="remove it, or name another folder",
            ) from error
        raise unavailable(error, path) from error
    try:
        _only_ours(descriptor, path, tighten=ours)
    finally:
        os.close(descriptor)
    return path


def _only_ours(descriptor: int, path: Path, *, tighten: bool) -> None:
    if sys.platform == "win32":
        return
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise StoreError(
            f"this folder belongs to user {status.st_uid}",
            path=str(path),
            hint="remove it, or name another folder",
        )
    if tighten and status.st_mode & 0o077:
        try:
            os.fchmod(descriptor, 0o700)
        except OSError as error:
            raise unavailable(error, path) from error
        status = os.fstat(descriptor)
    if status.st_mode & 0o077:
        raise StoreError(
            f"other users can enter this folder (mode {stat.S_IMODE(status.st_mode):o})",
            path=str(path),
            hint="chmod 700 it, or name a folder on a file system with permissions",
        )


def write_atomic(path: str | os.PathLike[str], data: bytes, mode: int = 0o600) -> None:
    """Replace the file at ``path`` by ``data``: after any crash it is the old file or the new one, whole.

    The folder has to exist. Raises StoreUnavailable; then the old file is still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            create(temporary, data, mode)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise unavailable(error, path) from error


def create(path: Path, data: bytes = b"", mode: int = 0o600) -> None:
    """Write a new file and fsync it, but not its folder. Raises OSError (FileExistsError among them)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123  # pathlib cannot open a descriptor
        if sys.platform != "win32":
            os.fchmod(descriptor, mode)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable. Raises OSError. Windows has nothing of the kind."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY | _O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hold(path: str | os.PathLike[str], timeout: float = 0.0) -> filelock.BaseFileLock:
    """Take the lock file ``path`` and return the lock: call ``release()``, or let the process end.

    The lock is the operating system's, so it is free again after any kill; the file stays. ``timeout`` is in
    seconds. Raises StoreLocked when another holder has it that long, StoreUnavailable when the file system
    refuses.
    """
    lock = filelock.FileLock(path, mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=timeout, poll_interval=0.02)
    except filelock.Timeout as error:
        raise StoreLocked("another process holds this lock", path=str(path), hint="one writer at a time") from error
    except (OSError, NotImplementedError) as error:
        raise unavailable(error, Path(path)) from error
    return lock


def unavailable(error: Exception, path: Path) -> StoreUnavailable:
    """Return what the operating system refused, as an error of this package."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StoreUnavailable(reason.lower(), path=str(path), hint="check the disk, its quota and the permissions")
