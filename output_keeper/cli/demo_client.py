"""A client of a notebook without a browser: in the room of its document, and on the websocket of its kernel.

It does what a JupyterLab page does to run a cell and to see its outputs, and it can leave as abruptly as a
laptop that is closed.
"""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from jupyter_ydoc import YNotebook
from pycrdt import YMessageType, create_sync_message, handle_sync_message
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from output_keeper.cli.demo_server import DemoServer


class NotebookClient:
    """One page's worth of connections to one notebook. `open` and `run` need a running event loop."""

    def __init__(self, server: DemoServer, path: str) -> None:
        self._server = server
        self._path = path
        self._notebook = YNotebook()
        self._session = uuid.uuid4().hex
        self._room: WebSocketClientConnection | None = None
        self._kernel: WebSocketClientConnection | None = None

    async def open(self) -> None:
        """Join the notebook's room; the document arrives some time later."""
        answer = await self._server.api(
            "PUT", f"collaboration/session/{self._path}", {"format": "json", "type": "notebook"}
        )
        room = f"json:notebook:{answer['fileId']}?sessionId={answer['sessionId']}"
        self._room = await self._connect(f"api/collaboration/room/{room}", self._from_room)
        await self._room.write_message(create_sync_message(self._notebook.ydoc), binary=True)

    async def run(self) -> None:
        """Start a kernel for the notebook and ask it to execute the first cell, like a page's Run button."""
        body = {"path": self._path, "name": self._path, "type": "notebook", "kernel": {"name": "python3"}}
        session = await self._server.api("POST", "sessions", body)
        path = f"api/kernels/{session['kernel']['id']}/channels?session_id={self._session}"
        self._kernel = await self._connect(path, lambda _message: None)
        cell = self.cell
        message = {
            "channel": "shell",
            "header": {
                "msg_id": uuid.uuid4().hex,
                "msg_type": "execute_request",
                "session": self._session,
                "username": "demo",
                "version": "5.3",
                "date": datetime.now(timezone.utc).isoformat(),
            },
            "parent_header": {},
            "metadata": {"cellId": cell["id"], "trusted": True, "deletedCells": [], "recordTiming": False},
            "content": {
                "code": cell["source"],
                "silent": False,
                "store_history": True,
                "user_expressions": {},
                "allow_stdin": True,
                "stop_on_error": True,
            },
        }
        await self._kernel.write_message(json.dumps(message))

    @property
    def loaded(self) -> bool:
        """Whether the document has arrived."""
        return len(self._notebook.ycells) > 0

    @property
    def cell(self) -> dict[str, Any]:
        """The first cell as this client sees it now, in the notebook format plus ``execution_state``."""
        return cast("dict[str, Any]", self._notebook.ycells[0].to_py())

    @property
    def count(self) -> int | None:
        """The cell's execution_count; None while it runs."""
        count = self.cell["execution_count"]
        return None if count is None else int(count)  # a shared document knows only floats

    @property
    def lines(self) -> list[str]:
        """What this client sees under the cell, line by line."""
        return stream_lines(self.cell)

    def leave(self) -> None:
        """Go without a word: the TCP connections end in the middle of things."""
        for connection in (self._room, self._kernel):
            if connection is not None and connection.protocol is not None:
                stream = getattr(connection.protocol, "stream", None)
                if stream is not None:
                    stream.close()
                connection.close()

    async def _connect(self, path: str, received: Callable[[str | bytes | None], None]) -> WebSocketClientConnection:
        request = HTTPRequest(f"ws://127.0.0.1:{self._server.port}/{path}", headers=self._server.headers)
        return await websocket_connect(request, on_message_callback=received)

    def _from_room(self, message: str | bytes | None) -> None:
        if not isinstance(message, bytes) or message[:1] != bytes([YMessageType.SYNC]):
            return  # somebody's cursor, or the end of the connection
        reply = handle_sync_message(message[1:], self._notebook.ydoc)
        if reply is not None and self._room is not None:
            self._room.write_message(reply, binary=True)


def stream_lines(cell: dict[str, Any]) -> list[str]:
    """Give the lines of a cell's stream outputs; the text may be a string or, in a file, a list of lines."""
    return "".join(
        text if isinstance(text, str) else "".join(text)
        for text in (output.get("text", "") for output in cell["outputs"])
    ).splitlines()
