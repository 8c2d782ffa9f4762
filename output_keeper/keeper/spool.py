"""What waits between the proxy and the recorder: a queue in order, bounded in memory, that spills to disk.

The proxy's thread puts, the recorder's thread takes. Beyond ``limit`` bytes in memory messages go to an unnamed
temporary file until the recorder has caught up, so a flood costs disk and not the machine's memory.
"""

from __future__ import annotations

import pickle
import tempfile
import threading
from collections import deque
from typing import IO, Any

MEMORY_LIMIT = 64 * 1024 * 1024  # bytes of frames; 20,000 small messages take about twice their frames


class Spool:
    """A FIFO of ``(item, size)``. `put` never waits for the taker; when the disk is full it drops and counts."""

    def __init__(self, folder: str | None = None, limit: int = MEMORY_LIMIT) -> None:
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._memory: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._on_disk = 0
        self._read_at = 0
        self.dropped = 0

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._memory) + self._on_disk

    @property
    def bytes_in_memory(self) -> int:
        """How many bytes of frames wait in memory."""
        return self._bytes

    def put(self, item: Any, size: int) -> None:
        """Add an item of ``size`` bytes."""
        with self._lock:
            if not self._on_disk and self._bytes + size <= self._limit:
                self._memory.append((item, size))
                self._bytes += size
                return
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  lives until drained
                end = self._file.seek(0, 2)
                try:
                    pickle.dump((item, size), self._file, pickle.HIGHEST_PROTOCOL)
                    self._file.flush()
                except OSError:
                    self._file.truncate(end)
                    raise
                self._on_disk += 1
            except OSError:  # disk full: reported by `dropped`, and shown as a loss
                self.dropped += 1

    def take(self) -> Any | None:
        """The oldest item, or None when nothing waits."""
        with self._lock:
            if self._memory:
                item, size = self._memory.popleft()
                self._bytes -= size
                return item
            if not self._on_disk or self._file is None:
                return None
            self._file.seek(self._read_at)
            item, _ = pickle.load(self._file)  # noqa: S301  our own unnamed file
            self._read_at = self._file.tell()
            self._on_disk -= 1
            if not self._on_disk:
                self._file.close()
                self._file, self._read_at = None, 0
            return item
