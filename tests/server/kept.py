"""What a server's records and ledgers say, read from disk as any other process may."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import wait_until

from output_keeper.record import paths, store
from output_keeper.record.document import ExecutionView, RecordDocument
from output_keeper.record.ledger import Ledger

if TYPE_CHECKING:
    from harness import Server

PROBE = {
    "env": {"PYTHONPATH": str(Path(__file__).parent / "extension")},
    "config": {"ServerApp": {"jpserver_extensions": {"server_probe": True}}},
}
"""Arguments of a `Server` with the probe (see extension/server_probe.py)."""


def rooms(server: Server) -> dict[str, int]:
    """The collaboration rooms that the server has now, by id, and the bytes of their state; needs the probe."""
    return server.api("GET", "probe/rooms")


class Kept:
    """A kept kernel's record and ledger."""

    def __init__(self, server: Server, kernel_id: str) -> None:
        self.folder = server.environment.data / "output-keeper" / "records"
        self.kernel_id = kernel_id

    def record(self) -> RecordDocument:
        """The record as its store has it now."""
        record = RecordDocument()
        path = paths.record_path(self.kernel_id, self.folder)
        for update in store.read(path) if path.exists() else []:
            record.apply(update)
        return record

    def view(self, msg_id: str) -> ExecutionView:
        """One execution; waits until it is in the record."""
        return wait_until(
            lambda: (record := self.record()) and msg_id in record and record.view(msg_id),
            what=f"{msg_id} is recorded",
        )

    def outputs(self, msg_id: str) -> list[dict[str, Any]]:
        """What an execution showed, as recorded."""
        return self.record().outputs(msg_id)

    def owner(self, msg_id: str) -> str:
        """Who writes the execution; waits for the decision."""
        return wait_until(lambda: (owner := self.view(msg_id).owner) != "open" and owner, what=f"{msg_id} is decided")

    def wait_for_end(self, msg_id: str) -> ExecutionView:
        """The execution once it has ended in the record."""
        return wait_until(
            lambda: (view := self.view(msg_id)).state.ended and view,
            what=f"{msg_id} has ended",
            state=lambda: self.view(msg_id),
        )

    def settlement(self, msg_id: str) -> str:
        """How an execution was settled, in words; empty while it is not."""
        with Ledger.open(paths.ledger_path(self.kernel_id, self.folder)) as ledger:
            found = ledger.settlement(msg_id)
        return found[0] if found else ""

    def wait_until_settled(self, msg_id: str) -> str:
        """How an execution was settled, once it is."""
        return wait_until(lambda: self.settlement(msg_id), what=f"{msg_id} is settled", state=lambda: self.view(msg_id))
