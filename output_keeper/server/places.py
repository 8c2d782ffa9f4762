"""Where an execution's cell is: which notebook, under which path now.

An execution names its cell but not its notebook. Sessions tell which notebooks a kernel has, file ids follow a file
that is renamed, and where several notebooks have a cell of that id (a copy), the one that a page made run is meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from output_keeper.errors import NotebookError
from output_keeper.record.document import ExecutionView
from output_keeper.record.ledger import Ledger
from output_keeper.server.files import Files
from output_keeper.server.pages import Pages
from output_keeper.server.rooms import Cursor, Rooms

LOOK = 1.0  # s between looks at things that nobody tells us: pages that left, files that were saved


@dataclass
class Pending:
    """An execution of a cell that is not settled yet. Times are monotonic seconds."""

    msg_id: str
    seq: int
    cell_id: str
    path: str | None = None
    file_id: str | None = None
    asked: bool = False
    open_since: float | None = None  # since when it is not clear which notebook it belongs to
    dirty: bool = True
    cursor: Cursor = field(default_factory=Cursor)
    compare_at: float = 0.0  # no comparison by value before
    overwritten_until: float = 0.0  # until then its room may be overwritten from disk
    complete_since: float | None = None  # when the final state was first projected
    page_saw_end: datetime | None = None  # when it ended before the eyes of the page that ran it
    look_at: float = 0.0
    look_after: float = LOOK
    looked: bool = False
    not_before: float = 0.0  # after something went wrong with it
    missing_since: float | None = None

    @property
    def place(self) -> str | None:
        """What stays the same while its notebook is renamed."""
        return self.file_id or self.path


class Places:
    """Find the notebooks of one kernel's executions, and remember them for when no session tells any more."""

    def __init__(self, kernel_id: str, *, rooms: Rooms, files: Files, pages: Pages, ledger: Ledger) -> None:
        self._kernel_id = kernel_id
        self._rooms = rooms
        self._files = files
        self._pages = pages
        self._ledger = ledger
        self._known = ledger.places()

    def enter(self, view: ExecutionView) -> Pending:
        """Start to follow an execution, where it was last if it was seen before."""
        assert view.cell_id is not None
        path, file_id = self._known.get(view.msg_id, (None, None))
        return Pending(view.msg_id, view.seq, view.cell_id, path, file_id)

    async def locate(self, pending: Pending, view: ExecutionView, others: Iterable[Pending]) -> str | None:
        """The path of the notebook this execution's cell is in, now; None when that is not known.

        ``others`` are the pending executions of this kernel: a cell that runs one of them does not run this one.
        """
        if pending.file_id is not None:
            return self._placed(pending, self._rooms.path_of(pending.file_id) or pending.path)
        notebooks = await self._pages.notebooks(self._kernel_id)
        if pending.path in notebooks:
            return pending.path
        having = [path for path in notebooks if self._has_room_with(path, view)]
        if not having and self._rooms.available:
            # A new session's path is a placeholder at first, and the notebook's room has no session then.
            having = self._running(await self._rooms_elsewhere(view), pending, view, others)
        if not having:
            having = [path for path in notebooks if await self._has_file_with(path, view, only=len(notebooks) == 1)]
        if len(having) > 1:
            having = self._running(having, pending, view, others)
        if len(having) == 1:
            return self._placed(pending, having[0])
        return pending.path  # renamed without a file id, closed, or in two notebooks at once

    async def unclear(self, view: ExecutionView) -> bool:
        """Tell whether pages show rooms with this cell, of which one may say in a moment that it runs there."""
        notebooks = await self._pages.notebooks(self._kernel_id)
        having = [path for path in notebooks if self._has_room_with(path, view)]
        return bool(having or await self._rooms_elsewhere(view))

    def confirm(self, pending: Pending, path: str) -> None:
        """Note that the cell is in this file: from now on it is followed when it is renamed."""
        if pending.file_id is None:
            pending.file_id = self._rooms.file_id(path, assign=True)
            self._ledger.place(pending.msg_id, path, pending.file_id)

    def lost(self, pending: Pending) -> None:
        """Note that there is no such file: look for the cell anew."""
        pending.path = pending.file_id = None

    def _placed(self, pending: Pending, path: str | None) -> str | None:
        if path is not None and path != pending.path:
            pending.path, pending.file_id = path, self._rooms.file_id(path)
            self._ledger.place(pending.msg_id, path, pending.file_id)
        return path

    def _running(self, paths: list[str], pending: Pending, view: ExecutionView, others: Iterable[Pending]) -> list[str]:
        """Of notebooks that have this cell, the one where a page made it run."""
        taken = {other.path for other in others if other is not pending and other.cell_id == pending.cell_id}
        rooms = {path: self._rooms.find(path) for path in paths if path not in taken}
        return [path for path, room in rooms.items() if room is not None and room.runs(pending.cell_id, view.code)]

    def _has_room_with(self, path: str, view: ExecutionView, shown: bool = False) -> bool:
        room = self._rooms.find(path)
        if room is None or room.busy or (shown and not room.clients):
            return False
        return room.cell(view.cell_id or "", view.code) is not None

    async def _has_file_with(self, path: str, view: ExecutionView, *, only: bool) -> bool:
        """Tell whether the file has the cell; of the only notebook there is, that it exists is enough."""
        try:
            return await self._files.modified(path) is not None and (only or await self._files.has_cell(path, view))
        except NotebookError:
            return False

    async def _rooms_elsewhere(self, view: ExecutionView) -> list[str]:
        """Look for rooms that pages show, with this cell, in notebooks that have no session."""
        taken = await self._pages.all_notebooks()
        return [path for path in self._rooms.paths() if path not in taken and self._has_room_with(path, view, True)]
