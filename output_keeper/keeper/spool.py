"""What waits between the proxy and the recorder: a queue in order, bounded in memory, that spills to disk.

The proxy's thread puts, the recorder's thread takes. Beyond ``limit`` bytes in memory messages go to unnamed
temporary files until the recorder has caught up, so a flood costs disk and not the machine's memory.
"""

from __future__ import annotations

import pickle
import tempfile
import threading
from collections import deque
from typing import IO, Any

MEMORY_LIMIT = 64 * 1024 * 1024  # bytes of frames; 20,000 small messages take about twice their frames
SEGMENT = 64 * 1024 * 1024  # bytes after which a new file is begun, so that what was taken frees its disk


class Spool:
    """A FIFO of ``(item, size)``, with its files in ``folder``. `put` never waits for the taker.

    When the disk is full it drops the item and counts it in ``dropped``, unless its ``size`` is 0: what says how things
    go on must not get lost, and then comes after everything that was put before it, if not before what is put later.
    """

    def __init__(self, folder: str | None = None, limit: int = MEMORY_LIMIT, segment: int = SEGMENT) -> None:
        self._folder = folder
        self._limit = limit
        self._segment = segment
        self._lock = threading.Lock()
        self._memory: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._files: deque[_File] = deque()
        self._on_disk = 0
        self._last: deque[Any] = deque()
        self._closed = False
        self.dropped = 0

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._memory) + self._on_disk + len(self._last)

    @property
    def bytes_in_memory(self) -> int:
        """How many bytes of frames wait in memory."""
        return self._bytes

    @property
    def bytes_on_disk(self) -> int:
        """How many bytes the temporary files have."""
        return sum(file.end for file in list(self._files))

    def put(self, item: Any, size: int) -> None:
        """Add an item of ``size`` bytes."""
        with self._lock:
            if self._closed:
                self.dropped += 1
                return
            if not self._on_disk and self._bytes + size <= self._limit:
                self._memory.append((item, size))
                self._bytes += size
                return
            try:
                if not self._files or self._files[-1].end >= self._segment:
                    self._files.append(_File(_unnamed_file(self._folder)))
                self._files[-1].write(item)
                self._on_disk += 1
            except OSError:  # the disk is full: told by `dropped`
                if size:
                    self.dropped += 1
                else:
                    self._last.append(item)

    def take(self) -> Any | None:
        """The oldest item, or None when nothing waits."""
        with self._lock:
            if self._memory:
                item, size = self._memory.popleft()
                self._bytes -= size
                return item
            if self._on_disk:
                while self._files[0].drained:
                    self._files.popleft().close()
                item = self._files[0].read()
                self._on_disk -= 1
                if not self._on_disk:
                    self._close_files()
                return item
            return self._last.popleft() if self._last else None

    def close(self) -> None:
        """Drop what waits and what comes, and give back the memory and disk."""
        with self._lock:
            self._closed = True
            self._memory.clear()
            self._last.clear()
            self._bytes = self._on_disk = 0
            self._close_files()

    def _close_files(self) -> None:
        while self._files:
            self._files.popleft().close()


def _unnamed_file(folder: str | None) -> IO[bytes]:
    """Open a file that goes with its last user, in ``folder`` if that can be written to.

    Unbuffered: what a full disk refuses must not lie in a buffer and be tried again.
    """
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError:
        return tempfile.TemporaryFile(buffering=0)


class _File:
    """Items one after the other, each behind its length. A failed write leaves what was there."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._read_at = 0
        self.end = 0

    @property
    def drained(self) -> bool:
        return self._read_at == self.end

    def write(self, item: Any) -> None:
        data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        left = memoryview(len(data).to_bytes(8, "big") + data)
        self._file.seek(self.end)
        size = len(left)
        while left:
            left = left[self._file.write(left) :]
        self.end += size

    def read(self) -> Any:
        self._file.seek(self._read_at)
        size = int.from_bytes(self._read(8), "big")
        item = pickle.loads(self._read(size))  # noqa: S301  our own unnamed file
        self._read_at += 8 + size
        return item

    def close(self) -> None:
        self._file.close()

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            parts.append(self._file.read(size))
            if not parts[-1]:
                raise EOFError("a temporary file was cut")
            size -= len(parts[-1])
        return b"".join(parts)
