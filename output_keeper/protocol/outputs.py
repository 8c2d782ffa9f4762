"""From output messages to the outputs of each execution, as the smallest changes since the last take.

The rules are those of JupyterLab's live page (``OutputArea``, ``OutputAreaModel`` and the display-id
routing of its kernel connection, 4.6):

- A stream message joins the last output if that is a stream of the same name, else it starts an output.
- ``clear_output`` empties the execution's outputs, with ``wait`` just before its next new output. Either
  way the next stream message starts an output, and cleared displays are no longer found by their id.
- ``update_display_data`` replaces every output shown under its display_id, in all executions of the
  kernel. It adds no output and triggers no waiting clear. Without such an output it is ignored.
- A ``display_data`` or ``execute_result`` whose display_id is already shown does the same and is
  then added.
- Only ``display_data`` is found again by its id; an ``execute_result`` is not.
- The first pager page of an ``execute_reply`` (``?`` in IPython) is added as a display.

No output is kept here once it was taken: only how many there are, which of them have a display_id, and
the current line of a last stream. Contents may hold anything JSON can hold: missing or wrong fields get
the nearest value that nbformat 4.5 allows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from output_keeper.protocol.terminal import CurrentLine

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Output = dict[str, Any]
"""An nbformat 4.5 output. Shared with the message it came from below its first level: not to be changed."""


@dataclass(frozen=True, slots=True)
class KeepOutputs:
    """Drop every output from index ``count`` on."""

    count: int


@dataclass(frozen=True, slots=True)
class AddOutput:
    """Append an output; a stream's ``text`` is one str."""

    output: Output


@dataclass(frozen=True, slots=True)
class SetOutput:
    """Replace the output at ``index``, which is no stream, in place."""

    index: int
    output: Output


@dataclass(frozen=True, slots=True)
class EditStream:
    """Drop the last ``drop`` code points of the stream at ``index``, then append ``text``."""

    index: int
    drop: int
    text: str


Change = KeepOutputs | AddOutput | SetOutput | EditStream


class OutputRules:
    """Folds the output messages of one kernel.

    Memory follows the outputs not yet taken, not the traffic: what a later message overwrites, clears or
    updates before the next `take_changes` leaves nothing.
    """

    def __init__(self) -> None:
        self._executions: dict[str, _Execution] = {}
        self._pending: dict[str, _Pending] = {}
        self._shown: dict[str | int, dict[str, list[int]]] = {}

    def __len__(self) -> int:
        """How many executions are followed."""
        return len(self._executions)

    @property
    def has_changes(self) -> bool:
        """Whether `take_changes` may have something to give."""
        return bool(self._pending)

    def count(self, parent_id: str) -> int:
        """Return how many outputs the execution shows now."""
        execution = self._executions.get(parent_id)
        return execution.count if execution else 0

    def adopt(self, parent_id: str, outputs: Sequence[Output]) -> None:
        """Continue an execution that already shows ``outputs``; what was pending for it is dropped.

        Display ids are not part of an output, so adopted outputs cannot be found by one.
        """
        self.forget(parent_id)
        execution = self._executions[parent_id] = _Execution(count=len(outputs))
        if outputs and outputs[-1].get("output_type") == "stream":
            execution.stream = _stream_name(outputs[-1])
            execution.line = CurrentLine(_text(outputs[-1].get("text")))

    def forget(self, parent_id: str) -> None:
        """Free everything about an execution, changes not yet taken included.

        Updates of its displays are ignored from now on. Should it print again, `adopt` it first.
        """
        execution = self._executions.pop(parent_id, None)
        self._pending.pop(parent_id, None)
        if execution:
            self._hide_displays(parent_id, execution)

    def apply(self, parent_id: str, msg_type: str, content: dict[str, Any]) -> None:
        """Fold one message of the execution ``parent_id``; other types change nothing. Never raises."""
        match msg_type:
            case "stream":
                self._add_stream(parent_id, _stream_name(content), _text(content.get("text")))
            case "display_data" | "execute_result":
                display_id = _display_id(content)
                if display_id is not None:
                    self._update_display(display_id, content)
                self._add(parent_id, _OUTPUT_OF[msg_type](content))
                if display_id is not None and msg_type == "display_data":
                    self._show_display(parent_id, display_id)
            case "error":
                self._add(parent_id, _error(content))
            case "update_display_data":
                display_id = _display_id(content)
                if display_id is not None:
                    self._update_display(display_id, content)
            case "clear_output":
                self._clear(parent_id, wait=bool(content.get("wait")))
            case "execute_reply":
                page = _pager_page(content)
                if page is not None:
                    self._add(parent_id, page)

    def take_changes(self) -> dict[str, list[Change]]:
        """Return what changed since the last take, per execution, to be applied in order."""
        taken = {parent_id: pending.changes() for parent_id, pending in self._pending.items()}
        self._pending = {}
        return {parent_id: changes for parent_id, changes in taken.items() if changes}

    def _execution(self, parent_id: str) -> _Execution:
        return self._executions.setdefault(parent_id, _Execution())

    def _pending_of(self, parent_id: str, execution: _Execution) -> _Pending:
        pending = self._pending.get(parent_id)
        if pending is None:
            pending = self._pending[parent_id] = _Pending(execution.count)
        return pending

    def _add_stream(self, parent_id: str, name: str, text: str) -> None:
        execution = self._execution(parent_id)
        if name == execution.stream:
            edit = execution.line.feed(text)
            if edit.drop or edit.text:
                self._pending_of(parent_id, execution).edit_last(edit.drop, edit.text)
            return
        self._make_room(parent_id, execution)
        execution.line = CurrentLine()
        self._pending_of(parent_id, execution).add_stream(name, execution.line.feed(text).text)
        execution.count += 1
        execution.stream = name

    def _add(self, parent_id: str, output: Output) -> None:
        execution = self._execution(parent_id)
        self._make_room(parent_id, execution)
        self._pending_of(parent_id, execution).add(output)
        execution.count += 1
        execution.end_stream()

    def _clear(self, parent_id: str, *, wait: bool) -> None:
        execution = self._execution(parent_id)
        execution.end_stream()
        execution.clear_next = wait
        if not wait:
            self._drop_all(parent_id, execution)

    def _make_room(self, parent_id: str, execution: _Execution) -> None:
        if execution.clear_next:
            execution.clear_next = False
            self._drop_all(parent_id, execution)

    def _drop_all(self, parent_id: str, execution: _Execution) -> None:
        if execution.count:
            self._pending_of(parent_id, execution).clear()
            execution.count = 0
            self._hide_displays(parent_id, execution)

    def _update_display(self, display_id: str | int, content: dict[str, Any]) -> None:
        for parent_id, indexes in self._shown.get(display_id, {}).items():
            pending = self._pending_of(parent_id, self._executions[parent_id])
            for index in indexes:
                pending.set(index, _display_data(content))

    def _show_display(self, parent_id: str, display_id: str | int) -> None:
        execution = self._executions[parent_id]
        execution.display_ids.add(display_id)
        self._shown.setdefault(display_id, {}).setdefault(parent_id, []).append(execution.count - 1)

    def _hide_displays(self, parent_id: str, execution: _Execution) -> None:
        for display_id in execution.display_ids:
            shown = self._shown[display_id]
            del shown[parent_id]
            if not shown:
                del self._shown[display_id]
        execution.display_ids.clear()


def apply_changes(outputs: Sequence[Output], changes: Iterable[Change]) -> list[Output]:
    """Return what ``outputs``, itself left alone, becomes by ``changes``: the meaning of each change."""
    result = list(outputs)
    for change in changes:
        match change:
            case KeepOutputs(count):
                del result[count:]
            case AddOutput(output):
                result.append(output)
            case SetOutput(index, output):
                result[index] = output
            case EditStream(index, drop, text):
                before = result[index]["text"]
                result[index] = {**result[index], "text": before[: len(before) - drop] + text}
    return result


class _Execution:
    """What must be known of an execution to place its next output."""

    __slots__ = ("clear_next", "count", "display_ids", "line", "stream")

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.clear_next = False
        self.display_ids: set[str | int] = set()
        self.stream: str | None = None
        """The name of the last output if it is a stream that may still grow."""
        self.line = CurrentLine()

    def end_stream(self) -> None:
        """Let the next stream message start an output."""
        self.stream = None
        self.line = CurrentLine()


class _Text:
    """Text that grows and is cut at its end, in pieces."""

    __slots__ = ("_pieces", "overdrawn")

    def __init__(self, text: str = "") -> None:
        self._pieces: list[str] = []
        self.overdrawn = 0
        """How many code points were dropped beyond the beginning."""
        self.edit(0, text)

    def edit(self, drop: int, text: str) -> None:
        while drop and self._pieces:
            piece = self._pieces.pop()
            if len(piece) > drop:
                self._pieces.append(piece[:-drop])
                drop = 0
            else:
                drop -= len(piece)
        self.overdrawn += drop
        # Only the last line is ever cut: kept as a piece of its own, a cut never copies the lines before it.
        start_of_line = text.rfind("\n") + 1
        self._pieces.extend(piece for piece in (text[:start_of_line], text[start_of_line:]) if piece)

    def __str__(self) -> str:
        return "".join(self._pieces)


class _Pending:
    """The changes of one execution since the last take, folded into what they come to."""

    __slots__ = ("_added", "_base", "_edit", "_kept", "_set")

    def __init__(self, base: int) -> None:
        self._base = base
        """How many outputs the taker has."""
        self._kept = base
        self._set: dict[int, Output] = {}
        self._edit = _Text()
        """Of the last of the taker's outputs."""
        self._added: list[Output] = []

    def clear(self) -> None:
        self._kept = 0
        self._set = {}
        self._edit = _Text()
        self._added = []

    def add(self, output: Output) -> None:
        self._added.append(output)

    def add_stream(self, name: str, text: str) -> None:
        self._added.append({"output_type": "stream", "name": name, "text": _Text(text)})

    def edit_last(self, drop: int, text: str) -> None:
        last: _Text = self._added[-1]["text"] if self._added else self._edit
        last.edit(drop, text)

    def set(self, index: int, output: Output) -> None:
        if index < self._kept:
            self._set[index] = output
        else:
            self._added[index - self._kept] = output

    def changes(self) -> list[Change]:
        changes: list[Change] = []
        if self._kept < self._base:
            changes.append(KeepOutputs(self._kept))
        changes.extend(SetOutput(index, self._set[index]) for index in sorted(self._set))
        drop, text = self._edit.overdrawn, str(self._edit)
        if drop or text:
            changes.append(EditStream(self._kept - 1, drop, text))
        for output in self._added:
            if output["output_type"] == "stream":
                output["text"] = str(output["text"])
            changes.append(AddOutput(output))
        return changes


def _display_data(content: dict[str, Any]) -> Output:
    return {
        "output_type": "display_data",
        "data": _mime_bundle(content.get("data")),
        "metadata": _object(content.get("metadata")),
    }


def _execute_result(content: dict[str, Any]) -> Output:
    count = content.get("execution_count")
    return {
        "output_type": "execute_result",
        "execution_count": count if type(count) is int and count >= 0 else None,
        "data": _mime_bundle(content.get("data")),
        "metadata": _object(content.get("metadata")),
    }


def _error(content: dict[str, Any]) -> Output:
    traceback = content.get("traceback")
    lines = traceback if isinstance(traceback, list) else [traceback]
    return {
        "output_type": "error",
        "ename": _text(content.get("ename")),
        "evalue": _text(content.get("evalue")),
        "traceback": [_text(line) for line in lines if line is not None],
    }


_OUTPUT_OF = {"display_data": _display_data, "execute_result": _execute_result}


def _pager_page(reply: dict[str, Any]) -> Output | None:
    """Return the first ``page`` payload of a successful execute_reply, as JupyterLab shows it: a display."""
    payload = reply.get("payload")
    if reply.get("status") != "ok" or not isinstance(payload, list):
        return None
    for item in payload:
        if isinstance(item, dict) and item.get("source") == "page":
            return _display_data({"data": item.get("data")})
    return None


def _mime_bundle(value: Any) -> dict[str, Any]:
    """Return the bundle with every value of a type its mime type may have in nbformat; nulls are left out."""
    return {
        mime: item if isinstance(item, str) or is_json_mime(mime) or _is_multiline(item) else json.dumps(item)
        for mime, item in _object(value).items()
        if item is not None or is_json_mime(mime)
    }


def is_json_mime(mime: str) -> bool:
    """Tell whether values of this mime type are JSON and not text, as nbformat tells it."""
    return mime == "application/json" or (mime.startswith("application/") and mime.endswith("+json"))


def _is_multiline(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _display_id(content: dict[str, Any]) -> str | int | None:
    display_id = _object(content.get("transient")).get("display_id")
    return display_id if isinstance(display_id, (str, int)) and display_id else None


def _stream_name(content: dict[str, Any]) -> str:
    name = content.get("name")
    return name if isinstance(name, str) and name else "stdout"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if _is_multiline(value):
        return "".join(value)
    return "" if value is None else json.dumps(value)
