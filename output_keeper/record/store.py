"""The record's updates on disk: one SQLite file per kernel_id, one writer, any number of readers.

docs/record-format.md describes the tables. An update is an opaque byte string here; what it means is the
Doc's affair. Order is ``seq``: 1, 2, 3 … without gaps over the life of the file.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from output_keeper.errors import StoreCorrupted
from output_keeper.record.database import Database, Kind, Sync, beside, read_only
from output_keeper.record.paths import hold, sync_folder, unavailable, writer_lock

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Iterable
    from types import TracebackType

    import filelock

FORMAT = 1
RECORD = Kind(
    name="record",
    application_id=0x4F4B_5243,  # "OKRC"
    version=FORMAT,
    schema=(
        "CREATE TABLE updates (seq INTEGER PRIMARY KEY, digest BLOB NOT NULL, data BLOB NOT NULL)",
        """CREATE TABLE checkpoint (part INTEGER PRIMARY KEY, parts INTEGER NOT NULL, upto INTEGER NOT NULL,
               digest BLOB NOT NULL, data BLOB NOT NULL)""",
    ),
)

# SQLite refuses values over 1 GB; a snapshot may be larger than that.
PART_SIZE = 64 << 20

_PATIENCE = 5.0
_COMPANIONS = ("-wal", "-journal", "-shm")


@dataclass(slots=True)
class _Content:
    """What a scan found: checkpoint and updates that can be trusted; ``torn`` counts what came after."""

    upto: int = 0
    snapshot: bytes | None = None
    updates: list[bytes] = field(default_factory=list)
    torn: int = 0

    @property
    def last(self) -> int:
        return self.upto + len(self.updates)

    def all(self) -> list[bytes]:
        return [*([] if self.snapshot is None else [self.snapshot]), *self.updates]


class Store:
    """The writer's side of one record file. Open, use and close it in one thread.

    ``torn`` counts the updates at the end of the file that were unusable when it was opened, and were
    dropped. ``bytes_since_checkpoint`` is the size of the updates a reader has to apply after the checkpoint:
    checkpoint when it outgrows the snapshot. ``journal`` is "wal" or, where the file system has no shared
    memory, "delete".
    """

    def __init__(self, database: Database, lock: filelock.BaseFileLock, content: _Content) -> None:
        """Use :meth:`open`."""
        self.path = database.path
        self.journal = database.journal
        self.torn = content.torn
        self.bytes_since_checkpoint = sum(map(len, content.updates))
        self._database = database
        self._lock = lock
        self._upto = content.upto
        self._last = content.last

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, sync: Sync = "normal", timeout: float = 0.0) -> Store:
        """Take the writer's lock, open the record at ``path`` (made when there is none) and verify all of it.

        ``sync``: "normal" survives the kill of any process and may lose the last moments in a power loss;
        "full" syncs every append. ``timeout``: seconds to wait for another writer to go. The folder has to
        exist.

        Raises StoreLocked, StoreVersion, StoreUnavailable, and StoreCorrupted (then the caller decides:
        :func:`set_aside` and open again, :func:`salvage` for what came before the damage).
        """
        path = Path(path)
        lock = hold(writer_lock(path), timeout)
        try:
            database = Database.open(path, RECORD, sync=sync, patience=_PATIENCE)
            try:
                with database.reading() as connection:
                    content = _scan(connection, path)
                if content.torn:
                    with database.transaction() as connection:
                        # A damaged number may also lie before the first.
                        trusted = (content.upto, content.last)
                        connection.execute("DELETE FROM updates WHERE seq <= ? OR seq > ?", trusted)
            except BaseException:
                database.close()
                raise
        except BaseException:
            lock.release()
            raise
        return cls(database, lock, content)

    @property
    def last(self) -> int:
        """The seq of the newest update, 0 when there is none yet."""
        return self._last

    @property
    def size(self) -> int:
        """Bytes on disk, SQLite's companion files included."""
        total = 0
        for suffix in ("", *_COMPANIONS):
            with suppress(FileNotFoundError):  # companions come and go
                total += beside(self.path, suffix).stat().st_size
        return total

    def append(self, update: bytes) -> int:
        """Store one update and return its seq; it is durable then, as far as ``sync`` says.

        Raises StoreUnavailable: nothing of it is stored, and the store can be used again.
        """
        return self.append_many((update,))

    def append_many(self, updates: Iterable[bytes]) -> int:
        """Store several updates, all or none, and return the seq of the last. Raises as :meth:`append`."""
        rows = [(seq, _digest(update, seq), update) for seq, update in enumerate(updates, self._last + 1)]
        if rows:
            with self._database.transaction() as connection:
                connection.executemany("INSERT INTO updates (seq, digest, data) VALUES (?, ?, ?)", rows)
            self._last = rows[-1][0]
            self.bytes_since_checkpoint += sum(len(update) for _, _, update in rows)
        return self._last

    def load(self) -> list[bytes]:
        """Return the checkpoint (when there is one) and every update after it, in order.

        Raises StoreCorrupted when the file changed under us, StoreUnavailable.
        """
        with self._database.reading() as connection:
            content = _scan(connection, self.path)
        if content.last != self._last:
            raise StoreCorrupted(
                "updates that were stored cannot be used any more",
                path=str(self.path),
                dropped=self._last - content.last,
            )
        return content.all()

    def checkpoint(self, snapshot: bytes, upto: int) -> None:
        """Replace every update up to and including ``upto`` by ``snapshot``; then shrink the file.

        The snapshot has to contain them. One transaction: killed at any moment, the file holds the updates or
        the snapshot. Raises StoreUnavailable: the record is whole, as before or as after, and a later
        checkpoint heals it. ValueError: ``upto`` is not the seq of a stored update.
        """
        if not self._upto <= upto <= self._last:
            raise ValueError(f"upto is {upto}, not between {self._upto} and {self._last}")
        pieces = [snapshot[start : start + PART_SIZE] for start in range(0, len(snapshot) or 1, PART_SIZE)]
        parts = len(pieces)
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM checkpoint")
            connection.executemany(
                "INSERT INTO checkpoint (part, parts, upto, digest, data) VALUES (?, ?, ?, ?, ?)",
                ((part, parts, upto, _digest(data, part, parts, upto), data) for part, data in enumerate(pieces)),
            )
            connection.execute("DELETE FROM updates WHERE seq <= ?", (upto,))
            (left,) = connection.execute("SELECT coalesce(sum(length(data)), 0) FROM updates").fetchone()
        self._upto = upto
        self.bytes_since_checkpoint = left
        self._shrink()

    def close(self) -> None:
        """Close the file, then give up the lock. Calling it twice is fine. Raises StoreUnavailable."""
        try:
            self._database.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Store:
        """Return the store; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()

    def _shrink(self) -> None:
        # Incremental, because VACUUM would write the whole file a second time and lock readers out meanwhile:
        # this moves only what lies behind the freed pages. The WAL is emptied last, or it keeps what the file
        # gave up.
        self._database.run_script("PRAGMA incremental_vacuum")
        # A reader in the middle of its look makes TRUNCATE wait. It is not worth waiting for: the next one
        # gets it.
        self._database.run("PRAGMA busy_timeout = 0")
        try:
            self._database.run("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._database.run(f"PRAGMA busy_timeout = {int(_PATIENCE * 1000)}")


def read(path: str | os.PathLike[str]) -> list[bytes]:
    """Return what :meth:`Store.load` would, without the writer's lock and while a writer is active.

    One consistent moment of the record, also from a folder that cannot be written to. Raises StoreError when
    there is no record, StoreVersion, StoreCorrupted, StoreUnavailable.
    """
    path = Path(path)
    with read_only(path, RECORD, _PATIENCE) as connection:
        return _scan(connection, path).all()


def salvage(path: str | os.PathLike[str]) -> list[bytes]:
    """Return what can still be trusted of a damaged record.

    That is the checkpoint and the updates before the first damage. A damaged beginning leaves nothing: an
    empty list. Changes nothing on disk. Raises StoreError when there is no file, StoreVersion,
    StoreUnavailable.
    """
    path = Path(path)
    content = _Content()
    with suppress(StoreCorrupted), read_only(path, RECORD, _PATIENCE, damaged=True) as connection:
        _fill(content, connection, path)
    return content.all()


def set_aside(path: str | os.PathLike[str]) -> Path:
    """Rename a damaged file, and what SQLite keeps beside it, to ``<name>.corrupt-<n>``; return the new path.

    Nothing is deleted. Raises StoreLocked when a live process writes it, StoreUnavailable.
    """
    path = Path(path)
    lock = hold(writer_lock(path))
    try:
        number = 1
        while any(beside(path, f".corrupt-{number}{suffix}").exists() for suffix in ("", *_COMPANIONS)):
            number += 1
        aside = beside(path, f".corrupt-{number}")
        # The log goes first: beside a new file of this name it would be taken for that file's log.
        for suffix in (*_COMPANIONS, ""):
            with suppress(FileNotFoundError):  # companions exist or not
                beside(path, suffix).rename(beside(aside, suffix))
        sync_folder(path.parent)
    except OSError as error:
        raise unavailable(error, path) from error
    finally:
        lock.release()
    return aside


def _scan(connection: sqlite3.Connection, path: Path) -> _Content:
    content = _Content()
    _fill(content, connection, path)
    return content


def _fill(content: _Content, connection: sqlite3.Connection, path: Path) -> None:
    """Read everything that can be trusted into ``content``.

    Raises StoreCorrupted when damage is followed by something sound: that is not the end of an interrupted
    write.
    """
    _fill_checkpoint(content, connection, path)
    sound_after_damage = False
    for seq, digest, data in connection.execute("SELECT seq, digest, data FROM updates ORDER BY seq"):
        sound = _sound(digest, data, seq)
        if sound and not content.torn and seq == content.last + 1:
            content.updates.append(data)
        else:
            content.torn += 1
            sound_after_damage |= sound
    if sound_after_damage:
        raise StoreCorrupted(
            f"{content.torn} updates after number {content.last} cannot be used",
            path=str(path),
            dropped=content.torn,
            hint="set it aside",
        )


def _fill_checkpoint(content: _Content, connection: sqlite3.Connection, path: Path) -> None:
    rows = connection.execute("SELECT part, parts, upto, digest, data FROM checkpoint ORDER BY part").fetchall()
    if not rows:
        return
    _, parts, upto, _, _ = rows[0]
    whole = parts == len(rows) and all(row[:3] == (part, parts, upto) for part, row in enumerate(rows))
    if not whole or any(not _sound(digest, data, part, parts, upto) for part, parts, upto, digest, data in rows):
        (updates,) = connection.execute("SELECT count(*) FROM updates").fetchone()
        raise StoreCorrupted("the checkpoint is damaged", path=str(path), dropped=updates + 1, hint="set it aside")
    content.upto = upto
    content.snapshot = b"".join(row[4] for row in rows)


def _digest(data: bytes, *numbers: int) -> bytes:
    """Return BLAKE2b (8 bytes) over the row's numbers and its data.

    Eight bytes, because a CRC of four lets one damaged row in four billion through, at the same speed. The
    numbers are part of it, so that a row that moved is noticed.
    """
    digest = hashlib.blake2b(b"".join(number.to_bytes(8, "big", signed=True) for number in numbers), digest_size=8)
    digest.update(data)
    return digest.digest()


def _sound(digest: object, data: object, *numbers: object) -> bool:
    """Tell whether a row is what was written. Damage can also change the type of a value."""
    integers = [number for number in numbers if isinstance(number, int)]
    return isinstance(data, bytes) and len(integers) == len(numbers) and digest == _digest(data, *integers)
