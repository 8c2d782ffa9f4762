"""What a JupyterLab page does to a notebook, without a browser: a client of its kernel and of its room at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pycrdt import Map, Text

from .kernel_client import KernelClient
from .notebooks import stream_text
from .room_client import RoomClient
from .wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from .server import Server

T = TypeVar("T")
ORIGIN = "the page"


class PageLikeClient:
    """Joins a notebook's room, executes its cells over the kernel's websocket, and does what stock JupyterLab does with
    what it receives there: writes the outputs of its own requests into the shared document. Two writers of one
    execution show as doubled outputs, none as missing ones.
    """

    def __init__(self, server: Server, path: str, kernel_id: str, *, session_id: str | None = None) -> None:
        self.room = RoomClient(server, path)
        self.kernel = KernelClient(server, kernel_id, session_id=session_id)
        self._running: dict[str, str] = {}  # msg_id → cell id
        self._clear_next: set[str] = set()
        self._seen = 0
        self.wrote = 0

    def execute(self, index: int = 0) -> str:
        """Run a cell as its Run button does; returns the msg_id."""
        cell = self.room.notebook.ycells[index]
        with self.room.notebook.ydoc.transaction(origin=ORIGIN):
            cell["outputs"].clear()
            cell["execution_count"] = None
            cell["execution_state"] = "running"
            cell["metadata"]["trusted"] = True
        msg_id = self.kernel.execute(str(cell["source"]), cell_id=cell["id"])
        self._running[msg_id] = cell["id"]
        return msg_id

    def pump(self) -> None:
        """Take over what has arrived, from the room first, and write what the kernel sent to this page."""
        self.room.pump()
        self.kernel.receive()
        new, self._seen = self.kernel.messages[self._seen :], len(self.kernel.messages)
        for message in new:
            msg_id = message["parent_header"].get("msg_id")
            if msg_id in self._running:
                self._take(msg_id, message["header"]["msg_type"], message["content"])

    def wait(self, predicate: Callable[[dict[str, Any]], T], index: int = 0, *, what: str) -> T:
        """Wait until the predicate is true for a cell as this page shows it."""

        def holds() -> T:
            self.pump()
            return predicate(self.room.cell(index))

        return wait_until(holds, what=what, state=lambda: self.room.cell(index))

    def wait_for_lines(self, lines: Callable[[], list[str]], index: int = 0) -> None:
        """Wait until a cell has ended and shows exactly these lines on stdout."""
        self.wait(
            lambda cell: cell["execution_count"] is not None and stream_text(cell["outputs"]).splitlines() == lines(),
            index,
            what="the cell has ended and shows each line once",
        )

    def leave(self) -> None:
        """Go abruptly, as a closed laptop does."""
        self.kernel.leave()
        self.room.leave()

    def __enter__(self) -> PageLikeClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kernel.close()
        self.room.close()

    def _take(self, msg_id: str, msg_type: str, content: dict[str, Any]) -> None:
        cell = next((each for each in self.room.notebook.ycells if each["id"] == self._running[msg_id]), None)
        if cell is None:
            return
        with self.room.notebook.ydoc.transaction(origin=ORIGIN):
            if msg_type == "execute_reply":
                cell["execution_count"] = content["execution_count"]
                cell["execution_state"] = "idle"
            elif msg_type == "clear_output":
                if content["wait"]:
                    self._clear_next.add(msg_id)
                else:
                    cell["outputs"].clear()
            elif msg_type in ("stream", "display_data", "execute_result", "error"):
                self._write(msg_id, cell, {"output_type": msg_type, **content})

    def _write(self, msg_id: str, cell: Any, output: dict[str, Any]) -> None:
        self.wrote += 1
        output.pop("transient", None)
        outputs = cell["outputs"]
        if msg_id in self._clear_next:
            self._clear_next.discard(msg_id)
            outputs.clear()
        if output["output_type"] != "stream":
            outputs.append(output)
            return
        last = outputs[len(outputs) - 1] if len(outputs) else None
        if isinstance(last, Map) and last.get("output_type") == "stream" and last["name"] == output["name"]:
            text = last["text"]
            text += output["text"]
        else:
            outputs.append(Map({**output, "text": Text(output["text"])}))
