"""A client of a notebook's collaboration room: a live replica of the shared notebook without a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from jupyter_ydoc import YNotebook
from pycrdt import (
    Awareness,
    TransactionEvent,
    YMessageType,
    create_awareness_message,
    create_sync_message,
    create_update_message,
    handle_sync_message,
)

from .notebooks import stream_text
from .wait import wait_until
from .websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from .server import Server

T = TypeVar("T")


class RoomClient:
    """Joins the room of a notebook as a page does and follows it.

    Every read first takes over the updates that have arrived, so the replica changes only there, in the
    caller's thread.
    """

    def __init__(self, server: Server, path: str) -> None:
        answer = server.api("PUT", f"collaboration/session/{path}", {"format": "json", "type": "notebook"})
        self.room_id = f"json:notebook:{answer['fileId']}"
        self.notebook = YNotebook()
        self._doc = self.notebook.ydoc
        self._applying = False
        self.update_sizes: list[int] = []  # bytes of each update that arrived
        self._socket = WebSocket(server, f"api/collaboration/room/{self.room_id}?sessionId={answer['sessionId']}")
        self._subscription = self._doc.observe(self._changed)
        self._socket.send(create_sync_message(self._doc))
        wait_until(lambda: self.cells(), what=f"{path} is loaded from its room")

    def _changed(self, event: TransactionEvent) -> None:
        if not self._applying:
            self._socket.send(create_update_message(event.update))

    def pump(self) -> None:
        """Apply what has arrived. Raises ``websockets.ConnectionClosed`` once the room has closed it."""
        for frame in self._socket.received():
            if frame[0] != YMessageType.SYNC:
                continue
            self.update_sizes.append(len(frame))
            self._applying = True
            try:
                reply = handle_sync_message(frame[1:], self._doc)
            finally:
                self._applying = False
            if reply is not None:
                self._socket.send(reply)

    def say(self, **fields: Any) -> None:
        """Tell the others of this client, as pages do (awareness): ``autosave=False``."""
        awareness = Awareness(self._doc)
        awareness.set_local_state(fields)
        self._socket.send(create_awareness_message(awareness.encode_awareness_update([self._doc.client_id])))

    def cells(self) -> list[dict[str, Any]]:
        """All cells as the room has them now, in the notebook format plus ``execution_state``."""
        self.pump()
        return self.notebook.ycells.to_py()

    def cell(self, index: int = 0) -> dict[str, Any]:
        """One cell as the room has it now."""
        return self.cells()[index]

    def lines(self, index: int = 0) -> list[str]:
        """What a cell of the room shows on stdout, as lines."""
        return stream_text(self.cell(index)["outputs"]).splitlines()

    def wait(self, predicate: Callable[[dict[str, Any]], T], index: int = 0, *, what: str) -> T:
        """Wait until the predicate is true for a cell of the room."""
        return wait_until(lambda: predicate(self.cell(index)), what=what, state=lambda: self.cell(index))

    def leave(self) -> None:
        """Go abruptly: the TCP connection ends without a websocket close frame."""
        self._doc.unobserve(self._subscription)
        self._socket.leave()

    def close(self) -> None:
        """Close in order."""
        self._doc.unobserve(self._subscription)
        self._socket.close()

    def __enter__(self) -> RoomClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
