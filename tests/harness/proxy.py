"""A TCP forwarder that can be cut: the only way to really drop a browser's connections."""

from __future__ import annotations

import contextlib
import socket
import threading

from .environment import free_port


class CuttableProxy:
    """Forwards ``127.0.0.1:port`` to a local server's port.

    ``cut()`` ends every connection and closes new ones at once; ``restore()`` forwards again.
    """

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self._target = target_port
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._start(self._accept)

    @property
    def url(self) -> str:
        """The address to give to the browser, ending with a slash."""
        return f"http://127.0.0.1:{self.port}/"

    def cut(self) -> int:
        """End every connection and close new ones at once; returns how many there were."""
        with self._lock:
            self._is_cut = True
            ended = list(self._open)
        for end in ended:
            _end(end)
        return len(ended) // 2

    def restore(self) -> None:
        """Forward new connections again."""
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        """Cut, and stop listening."""
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> CuttableProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
                late = self._is_cut
            if late:
                _end(client)
                _end(server)
            self._start(self._pump, client, server)
            self._start(self._pump, server, client)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            _end(end)
        with self._lock:
            gone = source in self._open
            self._open -= {source, target}
        if gone:
            source.close()
            target.close()


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
