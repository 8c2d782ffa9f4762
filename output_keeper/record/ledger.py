"""The server's table beside a record: what is settled, and where each execution's cell was last seen.

A file of its own, not a table in the record's: SQLite has one write lock per file, and a server that is
stopped in the middle of a transaction (a debugger, a frozen container) would stop the keeper's recording with
it. It also stays readable when a record is set aside.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from output_keeper.record.database import Database, Kind

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from types import TracebackType

LEDGER = Kind(
    name="ledger",
    application_id=0x4F4B_4C47,  # "OKLG"
    version=1,
    schema=(
        """CREATE TABLE settled (msg_id TEXT PRIMARY KEY, how TEXT NOT NULL, path TEXT, at TEXT NOT NULL)
               WITHOUT ROWID""",
        """CREATE TABLE places (msg_id TEXT PRIMARY KEY, path TEXT NOT NULL, file_id TEXT)
               WITHOUT ROWID""",
        "CREATE TABLE served (id INTEGER PRIMARY KEY CHECK (id = 0), root TEXT NOT NULL)",
    ),
)

_PATIENCE = 2.0


class Ledger:
    """An open ledger, for the thread that opened it.

    Several processes may have it open; each call is one transaction.
    Every method raises StoreUnavailable when the storage refuses (nothing is changed then; the ledger can be
    used again) and StoreCorrupted when the file is damaged.
    """

    def __init__(self, database: Database) -> None:
        """Use :meth:`open`."""
        self.path = database.path
        self._database = database

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Ledger:
        """Open the ledger at ``path`` (see paths.ledger_path), made when there is none.

        The folder has to exist. Raises StoreVersion, StoreCorrupted, StoreUnavailable.
        """
        # Synced on every commit: a settlement that a power loss takes back would overwrite a person's edit.
        return cls(Database.open(Path(path), LEDGER, sync="full", patience=_PATIENCE))

    def settle(self, msg_id: str, how: str, path: str | None) -> None:
        """Note that the execution's final outputs were seen where they belong: never project it again.

        ``how`` says what settled it, ``path`` in which file. The first settlement of an execution stands.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO settled (msg_id, how, path, at) VALUES (?, ?, ?, ?) ON CONFLICT (msg_id) DO NOTHING",
                (msg_id, how, path, now),
            )

    def settled(self) -> set[str]:
        """Return the msg_ids of all settled executions."""
        return {msg_id.decode() for (msg_id,) in self._database.run("SELECT msg_id FROM settled")}

    def settlement(self, msg_id: str) -> tuple[str, str | None, str] | None:
        """Return (how, path, ISO time) of a settled execution, None of any other."""
        rows = self._database.run("SELECT how, path, at FROM settled WHERE msg_id = ?", (msg_id,))
        return None if not rows else (rows[0][0].decode(), _text(rows[0][1]), rows[0][2].decode())

    def place(self, msg_id: str, path: str, file_id: str | None) -> None:
        """Note where the execution's cell was last projected; replaces what was noted before."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO places (msg_id, path, file_id) VALUES (?, ?, ?)"
                " ON CONFLICT (msg_id) DO UPDATE SET path = excluded.path, file_id = excluded.file_id",
                (msg_id, path, file_id),
            )

    def places(self) -> dict[str, tuple[str, str | None]]:
        """Return msg_id → (path, file_id) of every execution that has been projected."""
        rows = self._database.run("SELECT msg_id, path, file_id FROM places")
        return {msg_id.decode(): (path.decode(), _text(file_id)) for msg_id, path, file_id in rows}

    def serve(self, root: str) -> None:
        """Note the folder whose server projects this record: the paths in it are below that."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO served (id, root) VALUES (0, ?) ON CONFLICT (id) DO UPDATE SET root = excluded.root",
                (root,),
            )

    def unsettled(self, root: str) -> bool:
        """Tell whether the server of ``root`` placed an execution that is not settled."""
        rows = self._database.run(
            "SELECT 1 FROM places, served WHERE served.root = ?"
            " AND places.msg_id NOT IN (SELECT msg_id FROM settled) LIMIT 1",
            (root,),
        )
        return bool(rows)

    def forget(self, msg_ids: Iterable[str]) -> None:
        """Drop everything noted about these executions: the record let them go, or they are wanted again."""
        rows = [(msg_id,) for msg_id in msg_ids]
        with self._database.transaction() as connection:
            connection.executemany("DELETE FROM settled WHERE msg_id = ?", rows)
            connection.executemany("DELETE FROM places WHERE msg_id = ?", rows)

    def close(self) -> None:
        """Close the file. Calling it twice is fine."""
        self._database.close()

    def __enter__(self) -> Ledger:
        """Return the ledger; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the ledger."""
        self.close()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
