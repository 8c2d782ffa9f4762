"""One SQLite file of ours: how it is made, opened, verified, written and refused.

Shared by the store and the ledger, which differ in their tables (:class:`Kind`).
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from output_keeper._version import __version__
from output_keeper.errors import StoreCorrupted, StoreError, StoreUnavailable, StoreVersion
from output_keeper.record.paths import create, sync_folder, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Sync = Literal["full", "normal"]

# What SQLite says when the storage refuses, and what to do. Every other message about a file that once was
# ours ("malformed", "not a database", "no such table") means that it does not hold what was written. The
# texts are those of sqlite3_errstr(); error codes are not available before Python 3.11.
_REFUSALS = {
    "disk is full": "free some space; what was stored before is safe",
    "disk I/O error": "check the disk and its quota",
    "is locked": "another process is writing; try again",
    "readonly database": "check the permissions of the file and its folder",
    "unable to open": "check the permissions of the file and its folder",
    "locking protocol": "another process is writing; try again",
    "out of memory": "free some memory",
}
_TOO_BIG = "too big"

# A message that quotes a damaged schema may not be UTF-8, and sqlite3 then fails to make it text.
FAILURES = (sqlite3.Error, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes a file one of ours: the name people read, application_id, format version and tables."""

    name: str
    application_id: int
    version: int
    schema: tuple[str, ...]


class Database:
    """An open file of one :class:`Kind`, for the thread that opened it (SQLite checks that).

    ``journal`` is SQLite's journal mode: "wal", or "delete" where the file system has no shared memory.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, journal: str) -> None:
        self.path = path
        self.journal = journal
        self._connection = connection

    @classmethod
    def open(cls, path: Path, kind: Kind, *, sync: Sync, patience: float) -> Database:
        """Open ``path``, made first when there is none; wait ``patience`` seconds for SQLite's own locks.

        Raises StoreVersion, StoreCorrupted, StoreUnavailable.
        """
        if path.is_symlink():
            raise StoreError("this is a link, not a file of ours", path=str(path), hint="remove it")
        if not path.exists():
            _make(path, kind)
        if path.stat().st_size == 0:  # SQLite would take it for a new database
            raise StoreCorrupted(f"this {kind.name} is empty", path=str(path), hint="set it aside")
        connection = None
        try:
            connection = connect(path, "mode=rw", patience)
            understand(connection, kind, path)
            verify(connection, kind, path)
            journal = _journal(connection, sync)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, FAILURES):
                raise refused(error, path) from error
            raise
        return cls(path, connection, journal)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write in the block: all of it on leaving, or nothing when it raises. Raises as :func:`refused`."""
        try:
            self._roll_back()  # left over when an earlier ROLLBACK itself failed
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException as error:
            with self.reading():
                self._roll_back()
            if isinstance(error, FAILURES):
                raise refused(error, self.path) from error
            raise

    def run(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Execute one statement to its end and return its rows. Raises as :func:`refused` says."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except FAILURES as error:
            raise refused(error, self.path) from error

    def run_script(self, script: str) -> None:
        """Execute statements that return nothing. Raises as :func:`refused` says.

        Unlike :meth:`run`: sqlite3 takes a single step of a statement without columns, and
        ``incremental_vacuum`` frees one page per step.
        """
        with self.reading() as connection:
            connection.executescript(script)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read in the block. Raises as :func:`refused` says."""
        try:
            yield self._connection
        except FAILURES as error:
            raise refused(error, self.path) from error

    def close(self) -> None:
        """Close the file. Calling it twice is fine. Raises StoreUnavailable."""
        try:
            self._connection.close()
        except FAILURES as error:
            raise refused(error, self.path) from error

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def connect(path: Path, query: str, patience: float) -> sqlite3.Connection:
    """Open a raw connection to ``path`` with SQLite's URI parameters ``query``. Raises sqlite3.Error."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}", uri=True, timeout=patience, isolation_level=None
    )
    connection.text_factory = bytes  # damaged text is then a value to compare, not a decoding error
    return connection


def understand(connection: sqlite3.Connection, kind: Kind, path: Path) -> None:
    """Check that this is a file of ``kind`` in a format we know.

    Raises StoreVersion, StoreCorrupted, sqlite3.Error.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != kind.application_id:
        raise StoreCorrupted(f"this is no {kind.name} of output-keeper", path=str(path), hint="set it aside")
    declared = connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchall()
    if declared != [(str(version).encode(),)] or version < 1:
        raise StoreCorrupted(
            f"this {kind.name} contradicts itself about its format", path=str(path), hint="set it aside"
        )
    if version > kind.version:
        raise StoreVersion(
            f"this {kind.name} has format {version}, newer than {kind.version}",
            path=str(path),
            hint="update output-keeper",
        )


def verify(connection: sqlite3.Connection, kind: Kind, path: Path) -> None:
    """Check that the pages of the file fit together: reads all. Raises StoreCorrupted, sqlite3.Error."""
    complaints = connection.execute("PRAGMA quick_check(1)").fetchall()
    if complaints != [(b"ok",)]:
        told = complaints[0][0].decode(errors="replace")
        raise StoreCorrupted(f"this {kind.name} is damaged: {told}", path=str(path), hint="set it aside")


def refused(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> StoreError:
    """Return what SQLite refused as an error of this package.

    StoreUnavailable when the storage is at fault, StoreCorrupted when the content is, StoreError for an
    update that SQLite cannot hold. ``ProgrammingError`` is a mistake in this package and is raised as it is.
    """
    if isinstance(error, sqlite3.ProgrammingError):
        raise error
    message = str(error)
    for text, hint in _REFUSALS.items():
        if text in message:
            return StoreUnavailable(message, path=str(path), hint=hint)
    if _TOO_BIG in message:
        return StoreError("an update of more than 1 GB cannot be stored", path=str(path))
    return StoreCorrupted(message, path=str(path), hint="set it aside")


@contextlib.contextmanager
def read_only(path: Path, kind: Kind, patience: float, *, damaged: bool = False) -> Iterator[sqlite3.Connection]:
    """Open ``path`` for one consistent look, without any lock of ours, while others may write.

    In WAL mode a reader needs the ``-shm`` file, which it cannot make in a folder it may not write to. There
    is then no writer on this side of the permissions either, so a file without ``-wal`` is opened as
    immutable; one with a ``-wal`` that nobody has merged yet is copied with it into a private temporary
    folder and read there.

    ``damaged``: the file is known to be, do not refuse it for that.

    Raises StoreVersion, StoreCorrupted, StoreUnavailable.
    """
    if not path.is_file() or path.is_symlink():
        raise StoreError(f"there is no {kind.name} here", path=str(path))
    with contextlib.ExitStack() as stack:
        try:
            connection = _look(stack, path, "mode=ro", patience)
            if connection is None:
                connection = _look_in_a_read_only_folder(stack, path, patience)
            understand(connection, kind, path)
            if not damaged:
                verify(connection, kind, path)
            yield connection
        except FAILURES as error:
            raise refused(error, path) from error
        except OSError as error:
            raise unavailable(error, path) from error


def _look(stack: contextlib.ExitStack, path: Path, query: str, patience: float) -> sqlite3.Connection | None:
    connection = stack.enter_context(contextlib.closing(connect(path, query, patience)))
    try:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.OperationalError as error:
        if "unable to open" in str(error) or "readonly database" in str(error):
            return None
        raise
    return connection


def _look_in_a_read_only_folder(stack: contextlib.ExitStack, path: Path, patience: float) -> sqlite3.Connection:
    wal = beside(path, "-wal")
    if not wal.exists() or wal.stat().st_size == 0:
        query = "mode=ro&immutable=1"
    else:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="output-keeper-")))
        for source in (path, wal):
            shutil.copyfile(source, folder / source.name)
        path = folder / path.name
        query = "mode=rw"
    connection = _look(stack, path, query, patience)
    if connection is None:
        raise StoreUnavailable("this cannot be opened", path=str(path), hint="check the permissions of the file")
    return connection


def beside(path: Path, suffix: str) -> Path:
    """Return the file that SQLite keeps beside ``path`` under this suffix ("-wal", "-shm", "-journal")."""
    return path.with_name(path.name + suffix)


def _make(path: Path, kind: Kind) -> None:
    # Made under another name and renamed when complete, so that a file at `path` always has its tables.
    new = beside(path, ".new")
    try:
        for left_over in (new, beside(new, "-journal")):
            left_over.unlink(missing_ok=True)
        create(new)
        with contextlib.closing(connect(new, "mode=rw", 0.0)) as connection:
            for statement in _creation(kind):
                connection.execute(statement)
            connection.executemany(
                "INSERT INTO meta (key, value) VALUES (?, ?)",
                [("format", str(kind.version)), ("made_by", f"output-keeper {__version__}")],
            )
            connection.execute("COMMIT")
        new.replace(path)
        sync_folder(path.parent)
    except FAILURES as error:
        raise refused(error, path) from error
    except OSError as error:
        raise unavailable(error, path) from error


def _creation(kind: Kind) -> Iterable[str]:
    yield "PRAGMA auto_vacuum = INCREMENTAL"  # before the first table, or it has no effect
    yield "PRAGMA synchronous = FULL"
    yield "BEGIN"
    yield f"PRAGMA application_id = {kind.application_id}"
    yield f"PRAGMA user_version = {kind.version}"
    yield "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
    yield from kind.schema


def _journal(connection: sqlite3.Connection, sync: Sync) -> str:
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    except sqlite3.OperationalError as error:
        if "is locked" in str(error):
            raise
        (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    wal = mode == b"wal"
    # In WAL mode NORMAL commits without fsync: a kill loses nothing, a power loss what was not yet synced,
    # and the file stays whole either way. A rollback journal keeps the file whole only with FULL, and a
    # commit durable only with EXTRA (sqlite.org/pragma.html#pragma_synchronous).
    level = {
        ("normal", True): "NORMAL",
        ("full", True): "FULL",
        ("normal", False): "FULL",
        ("full", False): "EXTRA",
    }
    connection.execute(f"PRAGMA synchronous = {level[sync, wal]}")
    connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone leaves data in the drive's cache
    connection.execute("PRAGMA checkpoint_fullfsync = ON")
    connection.execute(f"PRAGMA journal_size_limit = {16 << 20}")
    return bytes(mode).decode()
