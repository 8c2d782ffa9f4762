"""The projection driver of one kernel: brings what its record says into the notebook people look at.

For each execution of a cell that is not settled: decide once who writes it (see docs/design.md, "One writer per
execution"), project it into the live room or else the file, and settle it when its final state was seen in the saved
file. One task per kernel; nothing here waits for a person.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable
from datetime import datetime, timezone
from typing import Protocol

from output_keeper.errors import NotebookError, RoomBusy, StoreError
from output_keeper.record.document import ExecutionView, RecordDocument
from output_keeper.record.ledger import Ledger
from output_keeper.server.files import Files, Target
from output_keeper.server.pages import Pages
from output_keeper.server.places import LOOK, Pending, Places
from output_keeper.server.rooms import Cursor, Room, Rooms
from output_keeper.server.saver import Saver

TICK = 0.05  # s between projections of one kernel: 20 transactions a second, a fifth of what a room's store manages
BUSY_RETRY = 0.1  # s until a room that is loading is tried again
LOOK_LIMIT = 30.0  # s between looks at something that does not change
MISSING = 30.0  # s that the cell of an ended execution may be missing before it is given up
UNCLEAR = 1.0  # s that an execution may be undecided because two notebooks have its cell; less than a keeper holds it
OVERWRITING = 10.0  # s a room may take to read what was changed on disk, after it said that it would
DEAR = 20  # times its own cost that a comparison by value, or a write of the file, is not repeated


class Asker(Protocol):
    """The part of a follower that asks the keeper."""

    record: RecordDocument

    def grant(self, msg_id: str) -> None:
        """Ask to withhold an execution's outputs from its client."""

    def release(self, msg_id: str) -> None:
        """Leave an execution's outputs to its client."""


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
        self._places = Places(kernel_id, rooms=rooms, files=files, pages=pages, ledger=ledger)
        self._pending: dict[str, Pending] = {}
        self._latest: dict[tuple[str, str], int] = {}  # (place, cell id) → seq of the last run there
        self._touched: set[str] = set()
        self._wake = asyncio.Event()
        self._saver = Saver(rooms, save_interval)
        # path → monotonic times before which its file is not written: for what runs, for what ended
        self._write_at: dict[str, tuple[float, float]] = {}

    def touch(self, msg_ids: set[str]) -> None:
        """Note that these executions changed in the record."""
        self._touched |= msg_ids
        self._wake.set()

    def overwritten(self, path: str) -> None:
        """Note that the room of this notebook is overwritten from disk: what is not settled is projected again.

        The news comes before the room has even read the file, and nothing tells the end: see `_bring`.
        """
        for pending in self._pending.values():
            if pending.path == path:
                pending.overwritten_until = time.monotonic() + OVERWRITING
        self._wake.set()

    def saved(self, path: str) -> None:
        """Note that the room of this notebook was saved."""
        self._saver.saved(path)
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
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout)
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
        again: list[float | None] = []
        to_file: dict[str, list[Pending]] = {}
        for pending in sorted(self._pending.values(), key=lambda each: each.seq):
            if pending.msg_id not in self._pending or pending.msg_id not in self._record:
                continue  # settled or let go while we waited for another
            if time.monotonic() >= pending.not_before:
                view = self._record.view(pending.msg_id)
                again.append(await self._guarded([pending], self._step(pending, view, to_file)))
        for path, group in to_file.items():
            again.append(await self._guarded(group, self._bring_to_file(path, group)))
        wait, gone = await self._saver.save_due()
        for pending in self._pending.values():
            if pending.path in gone:  # it goes into the file
                pending.dirty = True
                wait = TICK
        return min((each for each in (*again, wait) if each is not None), default=None)

    async def _guarded(self, group: list[Pending], work: Awaitable[float | None]) -> float | None:
        """Do some work for these executions; what goes wrong with them must not take the others along."""
        try:
            return await work
        except StoreError:
            raise
        except Exception:  # noqa: BLE001  border: notebooks hold what any program or person put there
            msg_ids = ", ".join(pending.msg_id for pending in group)
            self._log.exception("output-keeper: cannot project %s", msg_ids)
            for pending in group:
                pending.not_before = time.monotonic() + LOOK_LIMIT
            return LOOK_LIMIT

    async def _step(self, pending: Pending, view: ExecutionView, to_file: dict[str, list[Pending]]) -> float | None:
        """Do what one execution needs now; give the time in s after which it needs more, if that is known."""
        if view.owner == "open":
            return await self._decide(pending, view)
        if view.owner == "released" and self._page_shows(view):
            if pending.path is None:  # now, while a session tells: the server may be stopped before the page is gone
                await self._locate(pending, view)
            await self._look_at_page(pending, view)
            return LOOK
        if not pending.dirty and pending.complete_since is None and not pending.overwritten_until:
            return None
        path = await self._locate(pending, view)
        if pending.msg_id not in self._pending:
            return None
        if path is None:
            return self._missing(pending, view)
        return await self._bring(pending, view, path, to_file)

    # -- which executions -----------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Take in what was touched."""
        touched, self._touched = self._touched, set()
        for msg_id in touched:
            if msg_id in self._pending:
                self._pending[msg_id].dirty = True
                if msg_id not in self._record:
                    self._drop(msg_id)
            elif msg_id in self._record and msg_id not in self._settled:
                view = self._record.view(msg_id)
                if view.cell_id is not None:
                    self._pending[msg_id] = self._places.enter(view)

    async def _locate(self, pending: Pending, view: ExecutionView) -> str | None:
        """The path of the notebook with the cell. Of a cell's runs only the latest is projected, the others settle."""
        path = await self._places.locate(pending, view, self._pending.values())
        place = pending.place
        if place is not None:
            key = (place, pending.cell_id)
            self._latest[key] = max(pending.seq, self._latest.get(key, -1))
            for other in list(self._pending.values()):
                if (other.place, other.cell_id) == key and other.seq < self._latest[key]:
                    self._supersede(other)
        return path

    def _supersede(self, pending: Pending) -> None:
        if pending.msg_id in self._record and self._record.view(pending.msg_id).owner == "open":
            # In a room its page shows nothing of it any more. A release would leave all of that page's cells to it.
            room = self._rooms.find(pending.path) if pending.path is not None and self._rooms.available else None
            if room is not None and room.clients:
                self._follower.grant(pending.msg_id)
            else:
                self._follower.release(pending.msg_id)
        self._settle(pending, "superseded by a later run of the cell")

    def _settle(self, pending: Pending, how: str) -> None:
        self._ledger.settle(pending.msg_id, how, pending.path)
        self._settled.add(pending.msg_id)
        self._drop(pending.msg_id)
        self._log.debug("output-keeper: execution %s settled: %s", pending.msg_id, how)

    def _drop(self, msg_id: str) -> None:
        self._pending.pop(msg_id, None)

    # -- one writer -----------------------------------------------------------------------------------------------

    async def _decide(self, pending: Pending, view: ExecutionView) -> float | None:
        """Ask for the execution if its notebook's room has a client; else leave it to the page that runs it.

        Where it is not clear which notebook's cell it is, the page's note there that it runs may be on its way.
        """
        if pending.asked:
            return None
        path = await self._locate(pending, view)
        now = time.monotonic()
        if path is None and await self._places.unclear(view):
            pending.open_since = pending.open_since or now
            if now - pending.open_since < UNCLEAR:
                return TICK
        pending.asked = True
        room = self._rooms.find(path) if path is not None and self._rooms.available else None
        if room is not None and room.clients and room.cell(pending.cell_id, view.code) is not None:
            self._follower.grant(view.msg_id)
        else:
            self._follower.release(view.msg_id)
        return None

    def _page_shows(self, view: ExecutionView) -> bool:
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

    # -- bringing it there ----------------------------------------------------------------------------------------

    async def _bring(
        self, pending: Pending, view: ExecutionView, path: str, to_file: dict[str, list[Pending]]
    ) -> float | None:
        """Project into the room, or put it down for the file; then see to settling. Gives when to come again."""
        now = time.monotonic()
        room = self._rooms.find(path)
        if pending.overwritten_until:
            # The room says that it will be overwritten, not that it was: compare by value until it must have been.
            if now > pending.overwritten_until:
                pending.overwritten_until = 0.0
            pending.dirty, pending.cursor = True, Cursor()
        if pending.complete_since is not None and not pending.dirty:
            return await self._look(pending, view, path, room)
        if room is None:
            to_file.setdefault(path, []).append(pending)
            return None
        flat = not room.busy and room.cost_is_flat(self._record, view, pending.cursor)
        ended_anew = view.state.ended and pending.complete_since is None
        if not flat and not ended_anew and now < pending.compare_at:
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
        self._saver.changed(path, now)
        self._brought(pending, view)
        return LOOK if pending.overwritten_until else None

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
        any_ended = any(view.state.ended for view in views.values())
        wait = self._write_at.get(path, (0.0, 0.0))[any_ended] - now
        if wait > 0:
            return wait
        try:
            found = await self._files.project(path, [Target(self._record, view) for view in views.values()])
        except NotebookError as error:
            if await self._gone(path):
                for pending in group:
                    self._places.lost(pending)
                    self._missing(pending, views[pending.msg_id])
                return LOOK
            self._log.warning("output-keeper: %s; trying again", error)
            self._write_at[path] = (now + self._save_interval,) * 2
            return self._save_interval
        done = time.monotonic()
        dear = done + DEAR * (done - now)
        self._write_at[path] = (max(dear, done + self._save_interval), dear)
        for pending in group:
            if pending.msg_id in found:
                self._places.confirm(pending, path)
                self._brought(pending, views[pending.msg_id])
            else:
                self._missing(pending, views[pending.msg_id])
        return LOOK

    async def _gone(self, path: str) -> bool:
        try:
            return await self._files.modified(path) is None
        except NotebookError:
            return False

    # -- settling -------------------------------------------------------------------------------------------------

    async def _look(self, pending: Pending, view: ExecutionView, path: str, room: Room | None) -> float:
        """See whether the final state is in the saved file. If the room shows something else, a person changed it."""
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
            self._saver.changed(path, pending.complete_since or now)
        return LOOK

    def _look_later(self, pending: Pending, now: float) -> None:
        pending.look_at = now + pending.look_after
        pending.look_after = min(LOOK_LIMIT, pending.look_after * 2)
