"""A websocket to the test server whose frames are taken over in the caller's thread."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from websockets.sync.client import ClientConnection, connect

from .wait import LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .server import Server


class WebSocket:
    """An authenticated websocket to ``path`` of the server. A library thread reads it without any limit.

    Reading or sending after its end raises ``websockets.ConnectionClosed``.
    """

    def __init__(self, server: Server, path: str, *, subprotocol: str | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self._connection: ClientConnection = self._stack.enter_context(
            connect(
                f"ws://127.0.0.1:{server.port}/{path}",
                additional_headers={"Authorization": f"token {server.token}"},
                subprotocols=[subprotocol] if subprotocol else None,  # type: ignore[list-item]
                compression=None,
                max_size=None,
                max_queue=None,
                open_timeout=LIMIT,
                proxy=None,
            )
        )
        assert self._connection.subprotocol == subprotocol

    def send(self, frame: bytes) -> None:
        """Send one binary frame."""
        self._connection.send(frame)

    def received(self, timeout: float = 0.0) -> Iterator[bytes]:
        """Every frame that has arrived; waits at most ``timeout`` seconds for the first."""
        with contextlib.suppress(TimeoutError):
            while True:
                yield self._connection.recv(timeout=timeout, decode=False)
                timeout = 0.0

    def leave(self) -> None:
        """Go abruptly: the TCP connection ends without a websocket close frame."""
        with contextlib.suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        """Close in order; nothing more when it has ended already."""
        self._stack.close()
