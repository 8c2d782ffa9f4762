"""Saving rooms that change without pause: jupyter-collaboration saves a document only once it has been quiet."""

from __future__ import annotations

import asyncio
import time

from output_keeper.server.rooms import Rooms

PATIENCE = 30.0  # s a save may take before projection goes on


class Saver:
    """See to it that no projection into a room is unsaved for longer than ``interval`` seconds."""

    def __init__(self, rooms: Rooms, interval: float) -> None:
        self._rooms = rooms
        self._interval = interval
        self._unsaved: dict[str, float] = {}  # path → monotonic time of the oldest projection that is not saved

    def changed(self, path: str, since: float) -> None:
        """Note that the room of this notebook has something that is not in its file since ``since`` (monotonic)."""
        self._unsaved.setdefault(path, since)

    def saved(self, path: str) -> None:
        """Note that the room of this notebook was saved."""
        self._unsaved.pop(path, None)

    async def save_due(self) -> tuple[float | None, list[str]]:
        """Save the rooms whose time has come, if that may be done unasked.

        Gives the time in s until the next is due, and the paths whose room is gone, perhaps without having been saved.
        The caller changes no document meanwhile: a change would cancel the save.
        """
        waits, gone = [], []
        for path in list(self._unsaved):
            if self._rooms.find(path) is None:
                del self._unsaved[path]
                gone.append(path)
                continue
            wait = self._unsaved[path] + self._interval - time.monotonic()
            if wait <= 0:
                await self._save(path)
                wait = self._interval
            waits.append(wait)
        return min(waits, default=None), gone

    async def _save(self, path: str) -> None:
        room = self._rooms.find(path)
        save = room.save() if room is not None and room.autosave else None
        if save is None:
            self._unsaved[path] = time.monotonic()  # not now: a person saves by hand, or the room is busy
            return
        del self._unsaved[path]
        try:
            await asyncio.wait({save}, timeout=PATIENCE)
        except asyncio.CancelledError:
            # A save that a stopping server leaves behind in its thread keeps the process from ending.
            await asyncio.wait({save}, timeout=PATIENCE)
            raise
