"""A real websocket client of a kernel, as a browser is one, without a browser."""

from __future__ import annotations

import itertools
import json
import struct
import time
import urllib.parse
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .wait import LIMIT
from .websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from .server import Server

_SUBPROTOCOL = "v1.kernel.websocket.jupyter.org"
_OUTPUTS = {"stream", "display_data", "execute_result", "error", "clear_output", "update_display_data"}


def _pack(channel: str, message: dict[str, Any]) -> bytes:
    """A message of the v1 subprotocol: number of offsets, offsets (uint64, little endian), parts."""
    parts = [channel.encode()]
    parts += [json.dumps(message[name]).encode() for name in ("header", "parent_header", "metadata", "content")]
    parts += message.get("buffers", [])
    offsets = [8 * (len(parts) + 2)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)


def _unpack(data: bytes) -> dict[str, Any]:
    (count,) = struct.unpack_from("<Q", data)
    offsets = struct.unpack_from(f"<{count}Q", data, 8)
    channel, header, parent, metadata, content, *buffers = (
        data[start:end] for start, end in itertools.pairwise(offsets)
    )
    return {
        "channel": channel.decode(),
        "header": json.loads(header),
        "parent_header": json.loads(parent),
        "metadata": json.loads(metadata),
        "content": json.loads(content),
        "buffers": buffers,
    }


class KernelClient:
    """The channels websocket of one kernel, with a session id of its own.

    ``messages`` holds everything received, in order; the methods here take over what has arrived.
    """

    def __init__(self, server: Server, kernel_id: str, *, session_id: str | None = None) -> None:
        self.session_id = session_id or uuid.uuid4().hex
        self.messages: list[dict[str, Any]] = []
        query = urllib.parse.urlencode({"session_id": self.session_id})
        self._socket = WebSocket(server, f"api/kernels/{kernel_id}/channels?{query}", subprotocol=_SUBPROTOCOL)

    # -- sending -----------------------------------------------------------------------------------------

    def send(
        self,
        channel: str,
        msg_type: str,
        content: dict[str, Any],
        *,
        metadata: dict[str, Any] | None = None,
        parent: dict[str, Any] | None = None,
        buffers: list[bytes] | None = None,
    ) -> str:
        """Send one message; returns its msg_id."""
        msg_id = uuid.uuid4().hex
        header = {
            "msg_id": msg_id,
            "msg_type": msg_type,
            "session": self.session_id,
            "username": "test",
            "version": "5.3",
            "date": datetime.now(timezone.utc).isoformat(),
        }
        message = {
            "header": header,
            "parent_header": parent or {},
            "metadata": metadata or {},
            "content": content,
            "buffers": buffers or [],
        }
        self._socket.send(_pack(channel, message))
        return msg_id

    def execute(self, code: str, *, cell_id: str | None = None, allow_stdin: bool = False, silent: bool = False) -> str:
        """Send an execute_request, for a notebook cell when ``cell_id`` is given; returns its msg_id."""
        content = {
            "code": code,
            "silent": silent,
            "store_history": not silent,
            "user_expressions": {},
            "allow_stdin": allow_stdin,
            "stop_on_error": True,
        }
        metadata = (
            {} if cell_id is None else {"cellId": cell_id, "trusted": True, "deletedCells": [], "recordTiming": False}
        )
        return self.send("shell", "execute_request", content, metadata=metadata)

    def answer(self, request: dict[str, Any], value: str) -> None:
        """Answer an ``input_request``."""
        self.send("stdin", "input_reply", {"status": "ok", "value": value}, parent=request["header"])

    # -- receiving ---------------------------------------------------------------------------------------

    def receive(self, timeout: float = 0.0) -> list[dict[str, Any]]:
        """Take over what has arrived, waiting at most ``timeout`` seconds for the first; returns the new."""
        new = [_unpack(frame) for frame in self._socket.received(timeout)]
        self.messages += new
        return new

    def wait_for(
        self, predicate: Callable[[dict[str, Any]], bool], *, what: str, timeout: float = LIMIT
    ) -> dict[str, Any]:
        """The first message received so far or later that the predicate is true for."""
        deadline = time.monotonic() + timeout
        seen = 0
        while True:
            for message in self.messages[seen:]:
                if predicate(message):
                    return message
            seen = len(self.messages)
            if time.monotonic() > deadline:
                last = [(m["channel"], m["header"]["msg_type"], m["content"]) for m in self.messages[-5:]]
                raise AssertionError(f"not within {timeout:g} s: {what}; last messages: {last!r}")
            self.receive(timeout=0.5)

    def wait_for_reply(self, msg_id: str) -> dict[str, Any]:
        """The shell or control reply to a request."""
        return self.wait_for(
            lambda m: m["channel"] in {"shell", "control"} and m["parent_header"].get("msg_id") == msg_id,
            what=f"a reply to {msg_id}",
        )

    def wait_for_idle(self, msg_id: str) -> None:
        """Until the kernel says it is idle after a request: all its outputs have been received."""
        self.wait_for(
            lambda m: (
                m["header"]["msg_type"] == "status"
                and m["content"]["execution_state"] == "idle"
                and m["parent_header"].get("msg_id") == msg_id
            ),
            what=f"idle after {msg_id}",
        )

    def wait_for_input_request(self, msg_id: str) -> dict[str, Any]:
        """The kernel's question to this client for a running request."""
        return self.wait_for(
            lambda m: m["header"]["msg_type"] == "input_request" and m["parent_header"].get("msg_id") == msg_id,
            what=f"an input_request for {msg_id}",
        )

    def outputs(self, msg_id: str) -> list[dict[str, Any]]:
        """The output messages received for a request, in order."""
        self.receive()
        return [
            m
            for m in self.messages
            if m["header"]["msg_type"] in _OUTPUTS and m["parent_header"].get("msg_id") == msg_id
        ]

    def text(self, msg_id: str, name: str = "stdout") -> str:
        """The stream text received for a request."""
        return "".join(
            m["content"]["text"]
            for m in self.outputs(msg_id)
            if m["header"]["msg_type"] == "stream" and m["content"]["name"] == name
        )

    # -- leaving -----------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Go abruptly: the TCP connection ends without a websocket close frame."""
        self._socket.leave()

    def close(self) -> None:
        """Close in order."""
        self._socket.close()

    def __enter__(self) -> KernelClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
