"""The live document of a notebook, while one exists: finding it, and projecting an execution into its cell.

jupyter-collaboration keeps a room per open notebook. Rooms are looked up anew each time and never created or kept:
a room is freed some time after its last client leaves, and what is written to a freed one is lost. Everything here runs
in one step of the event loop, so nothing changes between looking and writing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pycrdt import Array, Map, Text

from output_keeper.errors import RoomBusy
from output_keeper.record.document import CHUNK, ExecutionView, RecordDocument
from output_keeper.record.projection import Edit, common_prefix, plan

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

COLLABORATION = "jupyter_server_ydoc"
ROOM_SAVE = "FileLoader._save_content"  # what jupyter-collaboration runs, shielded, to write a room's file
SAVE_LIMIT = 30.0  # s

ORIGIN = "output-keeper"
"""The origin of our transactions: no undo manager tracks it, so a person's undo never undoes an output and what is
deleted is not kept in memory."""


@dataclass
class Cursor:
    """Where the last projection of an execution into a room left off; lets the next one cost only what is new."""

    document: Any = None
    index: int = 0
    edits: int = -1
    outputs: int = 0
    chunk: int = 0
    chunk_text: str = ""
    text_bytes: int = 0
    unbroken: int = 0


class Room:
    """A room that exists now. Do not keep it across an await."""

    def __init__(self, document_room: Any) -> None:
        self._room = document_room
        self.notebook = document_room._document  # noqa: SLF001  no public call gives it without waiting
        self.doc = self.notebook.ydoc

    @property
    def clients(self) -> int:
        """How many pages are connected."""
        return len(self._room.clients)

    @property
    def busy(self) -> bool:
        """Whether the room is loading or being overwritten: an edit now would be lost."""
        room = self._room
        loading = room._document_load_progressively and not room._document_progressively_loaded.done()  # noqa: SLF001
        return not room.ready or room._update_lock.locked() or loading  # noqa: SLF001

    @property
    def autosave(self) -> bool:
        """Whether the room may be saved unasked: a connected client has autosave on, or nobody is connected."""
        if not self._room.clients:
            return True
        states = [state for state in self.notebook.awareness.states.values() if state]
        return not states or any(state.get("autosave", True) for state in states)

    def save(self) -> asyncio.Task[None] | None:
        """Save now, not when the document has been quiet for a while; None while the room is busy."""
        return self._room._save_to_disc()  # type: ignore[no-any-return]  # noqa: SLF001  what the Save button does

    def cell(self, cell_id: str, code: str, cursor: Cursor | None = None) -> Map[Any] | None:
        """The code cell with this id; a cursor says where to look first.

        A notebook without ids in its file (nbformat < 4.5) gets new ones with each load: there, it is the one cell
        whose source is what was executed.
        """
        cells = self.notebook.ycells
        if cursor is not None and cursor.index < len(cells) and cells[cursor.index].get("id") == cell_id:
            found: Map[Any] = cells[cursor.index]
            return found if found.get("cell_type") == "code" else None
        by_source = []
        without_ids = float(self.notebook._ymeta.get("nbformat_minor", 5)) < 5  # noqa: SLF001
        for index, cell in enumerate(cells):
            if cell.get("id") == cell_id:
                if cursor is not None:
                    cursor.index = index
                return cell if cell.get("cell_type") == "code" else None
            if without_ids and cell.get("cell_type") == "code" and str(cell["source"]) == code:
                by_source.append(cell)
        return by_source[0] if len(by_source) == 1 else None

    def runs(self, cell_id: str, code: str) -> bool:
        """Tell whether the cell is there with this code, and a page says that it runs."""
        cell = self.cell(cell_id, code)
        return cell is not None and cell.get("execution_state") == "running" and str(cell["source"]) == code

    def shows(self, record: RecordDocument, view: ExecutionView) -> bool:
        """Tell whether the cell is there and shows what the record says."""
        cell = self.cell(view.cell_id or "", view.code)
        return cell is not None and plan(_outputs(cell).to_py() or [], record.outputs(view.msg_id)) is None

    def project(self, record: RecordDocument, view: ExecutionView, cursor: Cursor) -> bool:
        """Bring the cell to what the record says; False when the notebook has no such cell.

        Raises `RoomBusy` when the room cannot be changed now. With a cursor that still fits, the cost is that of what
        is new; else outputs are compared by value.
        """
        if self.busy:
            raise RoomBusy("the room is loading or being overwritten")
        cell = self.cell(view.cell_id or "", view.code, cursor)
        if cell is None:
            return False
        with self.doc.transaction(origin=ORIGIN):
            outputs = _outputs(cell)
            if view.state.ended or not self._continues(record, view, cursor, outputs):
                edit = plan(outputs.to_py() or [], record.outputs(view.msg_id))
                if edit is not None:
                    _apply(outputs, edit)
            self._state(cell, view)
        self._remember(record, view, cursor, _outputs(cell))
        return True

    def cost_is_flat(self, record: RecordDocument, view: ExecutionView, cursor: Cursor) -> bool:
        """Tell whether the next projection can go on where the last one left off."""
        cell = self.cell(view.cell_id or "", view.code, cursor)
        return cell is not None and self._fits(record, view, cursor, _outputs(cell))

    def _fits(self, record: RecordDocument, view: ExecutionView, cursor: Cursor, outputs: Array[Any]) -> bool:
        if cursor.document is not self.doc or cursor.edits != view.edits or len(outputs) != cursor.outputs:
            return False
        if cursor.outputs == 0 or not record.is_stream(view.msg_id, cursor.outputs - 1):
            return True
        last = outputs[cursor.outputs - 1]
        return isinstance(last, Map) and isinstance(last.get("text"), Text) and len(last["text"]) == cursor.text_bytes

    def _continues(self, record: RecordDocument, view: ExecutionView, cursor: Cursor, outputs: Array[Any]) -> bool:
        """Append what is new since the cursor, if the cursor still fits."""
        if not self._fits(record, view, cursor, outputs):
            return False
        msg_id, last = view.msg_id, cursor.outputs - 1
        if last >= 0 and record.is_stream(msg_id, last):
            first, *rest = record.chunks(msg_id, last, cursor.chunk)
            text: Text = outputs[last]["text"]
            kept = common_prefix(cursor.chunk_text, first)
            cut = len(cursor.chunk_text[kept:].encode())
            if cut:
                del text[len(text) - cut : len(text)]
            new = first[kept:] + "".join(rest)
            if new:
                text += new
                cursor.unbroken += len(new)
                self._break(cursor)
        for output in record.outputs_from(msg_id, cursor.outputs):
            outputs.append(_shared(output))
        return True

    def _break(self, cursor: Cursor) -> None:
        """Keep a growing Text flat: neighbouring insertions merge into one block, and appending to it costs its whole
        length. An operation elsewhere in between keeps them apart.
        """
        if cursor.unbroken >= CHUNK:
            cursor.unbroken = 0
            apart: Map[Any] = self.doc.get("output_keeper", type=Map)
            apart["n"] = int(apart.get("n", 0)) + 1

    def _state(self, cell: Map[Any], view: ExecutionView) -> None:
        """Write prompt and state together: a count alone makes pages show the cell as idle."""
        ended = view.state.ended
        count = view.execution_count if ended else None
        if cell.get("execution_count") != count:
            cell["execution_count"] = count
        state = "idle" if ended else "running"
        if cell.get("execution_state") != state:
            cell["execution_state"] = state
        metadata = cell.get("metadata")
        if isinstance(metadata, Map) and metadata.get("trusted") is not True:
            metadata["trusted"] = True  # as the page that ran it would have

    def _remember(self, record: RecordDocument, view: ExecutionView, cursor: Cursor, outputs: Array[Any]) -> None:
        cursor.document, cursor.edits, cursor.outputs = self.doc, view.edits, len(outputs)
        cursor.chunk, cursor.chunk_text, cursor.text_bytes = 0, "", 0
        last = cursor.outputs - 1
        if last >= 0 and record.is_stream(view.msg_id, last):
            cursor.chunk = record.chunk_count(view.msg_id, last) - 1
            cursor.chunk_text = record.chunks(view.msg_id, last, cursor.chunk)[0]
            cursor.text_bytes = len(outputs[last]["text"])


class Rooms:
    """The rooms of this server's jupyter-collaboration, if there is one."""

    def __init__(self, serverapp: ServerApp) -> None:
        self._serverapp = serverapp

    @property
    def available(self) -> bool:
        """Whether notebooks can have rooms here at all (``disable_rtc`` counts as no collaboration).

        Known as soon as the server has linked its extensions, before it loads them.
        """
        package = self._serverapp.extension_manager.extensions.get(COLLABORATION)
        enabled = package is not None and package.enabled
        return enabled and any(not getattr(app, "disable_rtc", True) for app in self._apps())

    def find(self, path: str) -> Room | None:
        """The room of the notebook at ``path``, if there is one now."""
        room_id = self.room_id(path)
        app = self._app()
        if room_id is None or app is None:
            return None
        room = app.ywebsocket_server.rooms.get(room_id)
        return Room(room) if room is not None and hasattr(room, "_document") else None

    def paths(self) -> list[str]:
        """The paths of the notebooks that have a room now."""
        app = self._app()
        rooms = {} if app is None else app.ywebsocket_server.rooms
        file_ids = [room_id.split(":", 2)[2] for room_id in rooms if room_id.startswith("json:notebook:")]
        return [path for path in map(self.path_of, file_ids) if path is not None]

    def room_id(self, path: str) -> str | None:
        """The id that a room of this notebook has or would have; None when its file has no id yet."""
        file_id = self.file_id(path)
        return None if file_id is None else f"json:notebook:{file_id}"

    def file_id(self, path: str, *, assign: bool = False) -> str | None:
        """The id that stays with a file when it is renamed; ``assign`` gives one to an existing file without."""
        file_ids = self._serverapp.web_app.settings.get("file_id_manager")
        if file_ids is None:
            return None
        file_id = file_ids.index(path) if assign else file_ids.get_id(path)
        return None if file_id is None else str(file_id)

    def path_of(self, file_id: str) -> str | None:
        """Where the file with this id is now, relative to the server's root."""
        file_ids = self._serverapp.web_app.settings.get("file_id_manager")
        path = None if file_ids is None else file_ids.get_path(file_id)
        return None if path is None else str(path)

    @staticmethod
    async def saves_done() -> None:
        """Wait for saves of rooms that are under way, when the server stops: jupyter-collaboration does not, and a save
        whose thread outlives the event loop keeps the process from ending.
        """
        saves = {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == ROOM_SAVE}
        if saves:
            await asyncio.wait(saves, timeout=SAVE_LIMIT)

    def _app(self) -> Any:
        return next((app for app in self._apps() if hasattr(app, "ywebsocket_server")), None)

    def _apps(self) -> set[Any]:
        apps: set[Any] = self._serverapp.extension_manager.extension_apps.get(COLLABORATION, set())
        return apps


def _outputs(cell: Map[Any]) -> Array[Any]:
    if not isinstance(cell.get("outputs"), Array):
        cell["outputs"] = Array()
    outputs: Array[Any] = cell["outputs"]
    return outputs


def _apply(outputs: Array[Any], edit: Edit) -> None:
    if edit.keep < len(outputs):
        del outputs[edit.keep : len(outputs)]
    if edit.text is not None:
        last = outputs[edit.keep - 1]
        text = last.get("text") if isinstance(last, Map) else None
        if isinstance(text, Text):
            kept = len(str(text)[: edit.keep_text].encode())
            if kept < len(text):
                del text[kept : len(text)]
            text += edit.text
        else:  # somebody stored a stream as a plain value: it becomes one that can grow
            old = "".join(last["text"])[: edit.keep_text]
            name = last["name"]
            del outputs[edit.keep - 1]
            outputs.append(_shared({"output_type": "stream", "name": name, "text": old + edit.text}))
    for output in edit.outputs:
        outputs.append(_shared(output))


def _shared(output: Mapping[str, Any]) -> Any:
    """Give an output as stock clients share it: a stream is a Map with a Text, the rest are plain values."""
    if output.get("output_type") == "stream":
        return Map({**output, "text": Text(output["text"])})
    return dict(output)
