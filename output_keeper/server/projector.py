"""The projection driver of one kernel: brings what its record says into the notebook people look at.

For each execution of a cell that is not settled: decide once who writes it (see docs/design.md, "One writer per
execution"), project it into the live room or else the file, and settle it when its final state was seen in the saved
file. One task per kernel; nothing here waits for a person.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Protocol

from output_keeper.errors import NotebookError, RoomBusy, StoreError
from output_keeper.record.document import ExecutionView, RecordDocument
from output_keeper.record.ledger import Ledger
from output_keeper.server.files import Files, Target
from output_keeper.server.pages import Pages
from output_keeper.server.rooms import Cursor, Room, Rooms

TICK = 0.05  # s between projections of one kernel: 20 transactions a second, a fifth of what a room's store manages
BUSY_RETRY = 0.1  # s until a room that is loading is tried again
LOOK = 1.0  # s between looks at things that nobody tells us: pages that left, files that were saved
LOOK_LIMIT = 30.0  # s between looks at something that does not change
MISSING = 30.0  # s that the cell of an ended execution may be missing before it is given up
DEAR = 20  # times its own cost that a comparison by value, or a write of the file, is not repeated


class Asker(Protocol):
    """The part of a follower that asks the keeper."""

    record: RecordDocument

    def grant(self, msg_id: str) -> None:
        """Ask to withhold an execution's outputs from its client."""

    def release(self, msg_id: str) -> None:
        """Leave an execution's outputs to its client."""


@dataclass
class Pending:
    """An execution of a cell that is not settled yet."""

    msg_id: str
    seq: int
    cell_id: str
    path: str | None = None
    file_id: str | None = None
    asked: bool = False
    dirty: bool = True
    cursor: Cursor = field(default_factory=Cursor)
    compare_at: float = 0.0  # monotonic: no comparison by value before
    complete_since: float | None = None  # monotonic: when the final state was first projected
    page_saw_end: datetime | None = None  # when it ended before the eyes of the page that ran it
    look_at: float = 0.0
    look_after: float = LOOK
    looked: bool = False
    missing_since: float | None = None


class Projector:
    """Project one kernel's record. `touch` is told what changed; `run` works until cancelled."""

    def __init__(
        self,
        kernel_id: str,
        follower: Asker,
        *,
        rooms: Rooms,
        files: Files,
        pages: Pages,
        ledger: Ledger,
        save_interval: float,
        log: logging.Logger,
    ) -> None:
        self.kernel_id = kernel_id
        self._follower = follower
        self._record = follower.record
        self._rooms = rooms
        self._files = files
        self._pages = pages
        self._ledger = ledger
        self._save_interval = save_interval
        self._log = log
        self._settled = ledger.settled()
        self._places = ledger.places()
        self._pending: dict[str, Pending] = {}
        self._latest: dict[str, tuple[int, str]] = {}
        self._touched: set[str] = set()
        self._wake = asyncio.Event()
        self._unsaved: dict[
            str, float
        ] = {}  # path → monotonic time of the oldest projection that is not saved
        self._write_at: dict[str, float] = {}  # path → monotonic time before which its file is not written

    def touch(self, msg_ids: set[str]) -> None:
        """Note that these executions changed in the record."""
        self._touched |= msg_ids
        self._wake.set()

    def overwritten(self, path: str) -> None:
        """Note that the room of this notebook was overwritten from disk: what is not settled is projected again."""
        for pending in self._pending.values():
            if pending.path == path:
                pending.dirty, pending.complete_since, pending.cursor = True, None, Cursor()
        self._wake.set()

    def saved(self, path: str) -> None:
        """Note that the room of this notebook was saved."""
        self._unsaved.pop(path, None)
        for pending in self._pending.values():
            if pending.path == path and pending.complete_since is not None:
                pending.look_at, pending.look_after = 0.0, LOOK
        self._wake.set()

    @property
    def unsettled(self) -> int:
        """How many executions of cells are not settled."""
        return len(self._pending)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            timeout = LOOK if self._pending else None
            try:
                await asyncio.wait_for(self._wake.wait(), timeout)
            except asyncio.TimeoutError:
                pass
            self._wake.clear()
            try:
                again = await self.tick()
            except StoreError as error:
                self._log.warning("output-keeper: kernel %s: %s", self.kernel_id, error)
                again = LOOK
            await asyncio.sleep(TICK)
            if again is not None:
                asyncio.get_running_loop().call_later(max(0.0, again - TICK), self._wake.set)

    async def tick(self) -> float | None:
        """Do what there is to do now; give the time in s after which there is more to do, if that is known."""
        self._admit()
        self._pages.watch(self.kernel_id)
        again: list[float] = []
        to_file: dict[str, list[Pending]] = {}
        for pending in sorted(self._pending.values(), key=lambda each: each.seq):
            if pending.msg_id not in self._pending or pending.msg_id not in self._record:
                continue  # settled or let go while we waited for another
            view = self._record.view(pending.msg_id)
            if view.owner == "open":
                await self._decide(pending, view)
                continue
            if view.owner == "released" and self._page_shows(pending, view):
                await self._look_at_page(pending, view)
                again.append(LOOK)
                continue
            if pending.dirty or pending.complete_since is not None:
                wait = await self._bring(pending, view, to_file)
                if wait is not None:
                    again.append(wait)
        for path, group in to_file.items():
            again.append(await self._bring_to_file(path, group))
        for path in list(self._unsaved):
            wait = await self._save(path)
            if wait is not None:
                again.append(wait)
        return min(again, default=None)

    # -- which executions -----------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Take in what was touched. Of a cell's runs only the latest is projected."""
        touched, self._touched = self._touched, set()
        for msg_id in touched:
            if msg_id in self._pending:
                self._pending[msg_id].dirty = True
                if msg_id not in self._record:
                    self._drop(msg_id)
            elif msg_id in self._record and msg_id not in self._settled:
                view = self._record.view(msg_id)
                if view.cell_id is not None:
                    path, file_id = self._places.get(msg_id, (None, None))
                    self._pending[msg_id] = Pending(msg_id, view.seq, view.cell_id, path, file_id)
                    self._supersede(view)

    def _supersede(self, view: ExecutionView) -> None:
        assert view.cell_id is not None
        seq, latest = self._latest.get(view.cell_id, (-1, ""))
        older, newer = (latest, view.msg_id) if view.seq >= seq else (view.msg_id, latest)
        self._latest[view.cell_id] = (max(seq, view.seq), newer)
        if older in self._pending and older != newer:
            if self._record.view(older).owner == "open":
                self._follower.release(older)
            self._settle(self._pending[older], "superseded by a later run of the cell")

    def _settle(self, pending: Pending, how: str) -> None:
        self._ledger.settle(pending.msg_id, how, pending.path)
        self._settled.add(pending.msg_id)
        self._drop(pending.msg_id)
        self._log.debug("output-keeper: execution %s settled: %s", pending.msg_id, how)

    def _drop(self, msg_id: str) -> None:
        self._pending.pop(msg_id, None)

    # -- one writer -----------------------------------------------------------------------------------------------

    async def _decide(self, pending: Pending, view: ExecutionView) -> None:
        """Ask for the execution if its notebook's room has a client; else leave it to the page that runs it."""
        if pending.asked:
            return
        pending.asked = True
        path = await self._locate(pending, view)
        room = self._rooms.find(path) if path is not None and self._rooms.available else None
        if room is not None and room.clients and room.cell(pending.cell_id, view.code) is not None:
            self._follower.grant(view.msg_id)
        else:
            self._follower.release(view.msg_id)

    def _page_shows(self, pending: Pending, view: ExecutionView) -> bool:
        """Tell whether a released execution is still shown, and will be saved, by a page."""
        if self._pages.connected(self.kernel_id, view.session):
            return True
        # Without rooms every open page has a copy of its own of the notebook, and a write of ours makes it complain.
        return not self._rooms.available and self._pages.any_connected(self.kernel_id)

    async def _look_at_page(self, pending: Pending, view: ExecutionView) -> None:
        """Settle a released execution once a page that had seen its end has saved: what it saved is a person's word."""
        if not view.state.ended:
            return
        if pending.page_saw_end is None:
            pending.page_saw_end = datetime.now(timezone.utc)
        now = time.monotonic()
        if now < pending.look_at:
            return
        self._look_later(pending, now)
        path = await self._locate(pending, view)
        if path is not None and await self._saved_after(path, pending.page_saw_end):
            self._settle(pending, "saved by the page that ran it")

    async def _saved_after(self, path: str, moment: datetime) -> bool:
        try:
            modified = await self._files.modified(path)
        except NotebookError:
            return False
        return modified is not None and modified > moment

    # -- where ----------------------------------------------------------------------------------------------------

    async def _locate(self, pending: Pending, view: ExecutionView) -> str | None:
        """The path of the notebook this execution's cell is in, now; None when that is not known."""
        if pending.file_id is not None:
            return self._placed(pending, self._rooms.path_of(pending.file_id) or pending.path)
        notebooks = await self._pages.notebooks(self.kernel_id)
        if pending.path in notebooks:
            return pending.path
        having = [path for path in notebooks if self._has_room_with(path, view)]
        if not having:
            having = await self._rooms_elsewhere(view) if len(notebooks) == 0 or self._rooms.available else []
        if not having:
            having = [
                path for path in notebooks if len(notebooks) == 1 or await self._has_file_with(path, view)
            ]
        if len(having) == 1:
            return self._placed(pending, having[0])
        return pending.path  # renamed without a file id, closed, or in two notebooks at once

    def _placed(self, pending: Pending, path: str | None) -> str | None:
        """Remember where the cell is, for the time when no session says it any more."""
        if path is not None and path != pending.path:
            pending.path, pending.file_id = path, self._rooms.file_id(path)
            self._ledger.place(pending.msg_id, path, pending.file_id)
        return path

    def _has_room_with(self, path: str, view: ExecutionView) -> bool:
        room = self._rooms.find(path)
        return room is not None and not room.busy and room.cell(view.cell_id or "", view.code) is not None

    async def _has_file_with(self, path: str, view: ExecutionView) -> bool:
        try:
            return await self._files.has_cell(path, view)
        except NotebookError:
            return False

    async def _rooms_elsewhere(self, view: ExecutionView) -> list[str]:
        """A new session has a placeholder for a path at first: look for a room with this cell and no kernel of its own."""
        taken = await self._pages.all_notebooks()
        return [path for path in self._rooms.paths() if path not in taken and self._has_room_with(path, view)]

    # -- bringing it there ----------------------------------------------------------------------------------------

    async def _bring(
        self, pending: Pending, view: ExecutionView, to_file: dict[str, list[Pending]]
    ) -> float | None:
        """Project into the room, or put it down for the file; then see to settling. Gives when to come again."""
        path = await self._locate(pending, view)
        if path is None:
            return LOOK
        room = self._rooms.find(path)
        if pending.complete_since is not None and not pending.dirty:
            return await self._look(pending, view, path, room)
        if room is None:
            to_file.setdefault(path, []).append(pending)
            return None
        now = time.monotonic()
        flat = not room.busy and room.cost_is_flat(self._record, view, pending.cursor)
        if not flat and not view.state.ended and now < pending.compare_at:
            return pending.compare_at - now
        try:
            found = room.project(self._record, view, pending.cursor)
        except RoomBusy:
            return BUSY_RETRY
        if not flat:
            pending.compare_at = time.monotonic() + DEAR * (time.monotonic() - now)
        if not found:
            return self._missing(pending, view)
        if view.owner == "released":
            self._pages.drop_buffered(self.kernel_id, view.msg_id)
        self._unsaved.setdefault(path, now)
        self._brought(pending, view)
        return None

    def _brought(self, pending: Pending, view: ExecutionView) -> None:
        pending.dirty, pending.missing_since = False, None
        if view.state.ended:
            pending.complete_since = time.monotonic()
            pending.look_at, pending.look_after = pending.complete_since + LOOK, LOOK

    def _missing(self, pending: Pending, view: ExecutionView) -> float:
        """The notebook has no such cell (deleted, cut, made markdown). It may come back for a while."""
        now = time.monotonic()
        if pending.missing_since is None:
            pending.missing_since = now
        if view.state.ended and now - pending.missing_since > MISSING:
            self._settle(pending, "the notebook has no such cell any more")
        return LOOK

    async def _bring_to_file(self, path: str, group: list[Pending]) -> float:
        """Write the file: at once when cells ended, else not more often than the save interval and its cost allow."""
        group = [pending for pending in group if pending.msg_id in self._record]
        views = {pending.msg_id: self._record.view(pending.msg_id) for pending in group}
        now = time.monotonic()
        wait = self._write_at.get(path, 0.0) - now
        if wait > 0 and not any(view.state.ended for view in views.values()):
            return wait
        try:
            found = await self._files.project(path, [Target(self._record, view) for view in views.values()])
        except NotebookError as error:
            self._log.warning("output-keeper: %s; trying again", error)
            self._write_at[path] = time.monotonic() + self._save_interval
            return self._save_interval
        took = time.monotonic() - now
        self._write_at[path] = time.monotonic() + max(self._save_interval, DEAR * took)
        for pending in group:
            if pending.msg_id in found:
                self._brought(pending, views[pending.msg_id])
            else:
                self._missing(pending, views[pending.msg_id])
        return LOOK

    # -- settling -------------------------------------------------------------------------------------------------

    async def _look(self, pending: Pending, view: ExecutionView, path: str, room: Room | None) -> float:
        """See whether the final state is in the saved file. A room that shows something else was changed by a person."""
        now = time.monotonic()
        if now < pending.look_at:
            return pending.look_at - now
        self._look_later(pending, now)
        if view.pager and not pending.looked:
            # The page that ran it adds what a pager shows by itself, and may do so after us.
            pending.looked, pending.dirty = True, True
            return TICK
        if room is not None and not room.busy and not room.shows(self._record, view):
            self._settle(pending, "changed by a person after its end")
            return LOOK
        try:
            showing = await self._files.showing(path, [Target(self._record, view)])
        except NotebookError as error:
            self._log.debug("output-keeper: %s", error)
            return pending.look_after
        if view.msg_id in showing:
            self._settle(pending, "seen in the saved file")
        elif room is None:
            pending.dirty, pending.complete_since = True, None
        else:
            self._unsaved.setdefault(path, pending.complete_since or now)
        return LOOK

    def _look_later(self, pending: Pending, now: float) -> None:
        pending.look_at = now + pending.look_after
        pending.look_after = min(LOOK_LIMIT, pending.look_after * 2)

    async def _save(self, path: str) -> float | None:
        """Save a room whose projections are older than the save interval, if it may be saved unasked.

        Nothing is projected meanwhile: the next change of the document would cancel the save.
        """
        room = self._rooms.find(path)
        if room is None:
            del self._unsaved[path]
            return None
        wait = self._unsaved[path] + self._save_interval - time.monotonic()
        if wait > 0:
            return wait
        if room.autosave:
            task = room.save()
            if task is not None:
                await asyncio.wait({task}, timeout=LOOK_LIMIT)
        self._unsaved[path] = time.monotonic()
        return self._save_interval
