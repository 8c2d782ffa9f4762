"""The record: the CRDT document that holds what a kernel said. Its schema lives here and nowhere else.

The schema (version 1) is described in docs/record-format.md. Writers and followers share this class: a writer
folds changes in, a follower only applies updates and reads. Root types::

    meta        {version, kernel_id}
    executions  {msg_id: {seq, start, cell_id, code, session, state, owner, execution_count,
                          requested, started, ended, reason, pager, edits, outputs}}
    kernel      {state, info}
    starts      [{started, ended, how}]
    stdin       {pending: {msg_id, parent_id, prompt, password} | null}

A stream output is a Map whose ``text`` is an Array of Texts, of which only the last still changes: a Text that
grows costs O(its length) per append in yrs, so it is closed at ``CHUNK`` bytes. Every other output is a plain value.

Values have to be as `protocol.messages.well_formed` gives them, and `protocol.messages.parse` has seen to that: pycrdt
panics on integers beyond 64 bits and on lone surrogates, and overflows the stack on values that nest without end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pycrdt import Array, Doc, Map, Text, TransactionEvent

from output_keeper.errors import StoreVersion
from output_keeper.protocol.execution import ExecutionState
from output_keeper.protocol.outputs import AddOutput, Change, EditStream, KeepOutputs, SetOutput

VERSION = 1
CHUNK = 16 * 1024  # bytes of UTF-8 after which a stream's Text is closed
_EXACT = 2.0**53  # beyond it not every whole number is a float


@dataclass(frozen=True, slots=True)
class ExecutionView:
    """One execution without its outputs, as the record holds it. Dates are the kernel's or client's, in ISO 8601."""

    msg_id: str
    seq: int
    start: int
    cell_id: str | None
    code: str
    session: str
    state: ExecutionState
    owner: str
    execution_count: int | None
    requested: str | None
    started: str | None
    ended: str | None
    reason: str
    edits: int
    length: int
    pager: bool


class RecordDocument:
    """A record as a writer or a follower holds it in memory. Not thread-safe: one thread owns it."""

    def __init__(self, kernel_id: str | None = None) -> None:
        self.doc: Doc[Any] = Doc()
        self._meta: Map[Any] = self.doc.get("meta", type=Map)
        self._executions: Map[Any] = self.doc.get("executions", type=Map)
        self._kernel: Map[Any] = self.doc.get("kernel", type=Map)
        self._starts: Array[Any] = self.doc.get("starts", type=Array)
        self._stdin: Map[Any] = self.doc.get("stdin", type=Map)
        self._kernel_id = kernel_id
        self._started = ""

    # -- as a replica ---------------------------------------------------------------------------------------------

    def apply(self, update: bytes) -> None:
        """Merge a Yjs update. Applying one twice, or in any order, gives the same record."""
        self.doc.apply_update(update)

    def check_version(self, path: str) -> None:
        """Raise `StoreVersion` when the record was written with a newer schema than this program knows."""
        version = self._meta.get("version", VERSION)
        if version > VERSION:
            raise StoreVersion(
                f"the record has schema {int(version)}, this output-keeper knows {VERSION}",
                path=path,
                hint="upgrade output-keeper",
            )

    def observe_updates(self, callback: Callable[[bytes], None]) -> None:
        """Call back with the Yjs update of every transaction."""

        def updated(event: TransactionEvent) -> None:
            callback(event.update)

        self._subscription = self.doc.observe(updated)

    def observe_touched(self, callback: Callable[[set[str]], None]) -> None:
        """Call back with the msg_ids of the executions each transaction touched."""

        def touched(events: Sequence[Any], _transaction: object = None) -> None:
            ids: set[str] = set()
            for event in events:
                ids.update([event.path[0]] if event.path else event.keys)
            callback(ids)

        self._touched = self._executions.observe_deep(touched)

    # -- reading --------------------------------------------------------------------------------------------------

    def __contains__(self, msg_id: str) -> bool:
        """Tell whether this execution is in the record."""
        return msg_id in self._executions

    @property
    def kernel_id(self) -> str | None:
        """The kernel this record belongs to."""
        return self._meta.get("kernel_id", self._kernel_id)

    def msg_ids(self) -> list[str]:
        """Every execution in the order of their requests."""
        return sorted(self._executions.keys(), key=lambda msg_id: self._executions[msg_id]["seq"])

    def views(self) -> Iterator[ExecutionView]:
        """Every execution in the order of their requests."""
        return (self.view(msg_id) for msg_id in self.msg_ids())

    def view(self, msg_id: str) -> ExecutionView:
        """One execution. Raises `KeyError` when it is not in the record."""
        entry = self._executions[msg_id]
        count = entry.get("execution_count")
        return ExecutionView(
            msg_id=msg_id,
            seq=int(entry["seq"]),
            start=int(entry["start"]),
            cell_id=entry.get("cell_id"),
            code=entry["code"],
            session=entry["session"],
            state=ExecutionState(entry["state"]),
            owner=entry["owner"],
            execution_count=None if count is None else int(count),
            requested=entry.get("requested"),
            started=entry.get("started"),
            ended=entry.get("ended"),
            reason=entry.get("reason", ""),
            edits=int(entry["edits"]),
            length=len(entry["outputs"]),
            pager=bool(entry.get("pager", False)),
        )

    def outputs(self, msg_id: str) -> list[dict[str, Any]]:
        """The outputs of an execution as nbformat 4.5 dicts; a stream's text is one string. O(their size)."""
        return [_output_to_py(output) for output in self._executions[msg_id]["outputs"]]

    def outputs_from(self, msg_id: str, index: int) -> list[dict[str, Any]]:
        """The outputs from ``index`` on."""
        outputs = self._executions[msg_id]["outputs"]
        return [_output_to_py(outputs[i]) for i in range(index, len(outputs))]

    def is_stream(self, msg_id: str, index: int) -> bool:
        """Tell whether that output is a stream."""
        return isinstance(self._executions[msg_id]["outputs"][index], Map)

    def chunks(self, msg_id: str, index: int, first: int = 0) -> list[str]:
        """The texts of a stream output from chunk ``first`` on; the last one may still change."""
        texts: Array[Any] = self._executions[msg_id]["outputs"][index]["text"]
        return [str(texts[i]) for i in range(first, len(texts))]

    def chunk_count(self, msg_id: str, index: int) -> int:
        """How many chunks a stream output has."""
        return len(self._executions[msg_id]["outputs"][index]["text"])

    @property
    def kernel_info(self) -> dict[str, Any] | None:
        """The content of the kernel's last kernel_info_reply."""
        info: dict[str, Any] | None = as_json(self._kernel.get("info"))
        return info

    @property
    def kernel_state(self) -> str:
        """The kernel's last execution_state (``starting`` before it said one, ``dead`` after its end)."""
        return str(self._kernel.get("state", "starting"))

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Every start of the kernel, the oldest first: ``{started, ended, how}``; ``ended`` is None while it runs."""
        return sorted(self._starts, key=lambda start: str(start["started"]))

    @property
    def pending_input(self) -> dict[str, Any] | None:
        """The input request the kernel waits for: ``{msg_id, parent_id, prompt, password}``."""
        return self._stdin.get("pending")

    # -- writing: each inside a transaction of the caller --------------------------------------------------------

    def transaction(self) -> Any:
        """Open a transaction: what happens inside becomes one update."""
        return self.doc.transaction(origin="recorder")

    def begin(self, started: str) -> int:
        """Note a start of the kernel; returns its number, from 0."""
        if "version" not in self._meta:
            self._meta["version"] = VERSION
            self._meta["kernel_id"] = self._kernel_id
        self._started = started
        self._starts.append({"started": started, "ended": None, "how": ""})
        self._kernel["state"] = "starting"
        return len(self._starts) - 1

    def finish(self, ended: str, how: str) -> None:
        """Note how the kernel ended, in words."""
        self._finish(ended, how, but=None)
        self._kernel["state"] = "dead"

    def finish_earlier(self, ended: str, how: str) -> None:
        """Note how the starts before that of `begin` ended, where that is not known."""
        self._finish(ended, how, but=self._started)

    def _finish(self, ended: str, how: str, *, but: str | None) -> None:
        for index, start in enumerate(self._starts):
            if start["ended"] is None and start["started"] != but:
                del self._starts[index]
                self._starts.insert(index, {**start, "ended": ended, "how": how})

    def set_kernel(self, *, state: str | None = None, info: Mapping[str, Any] | None = None) -> None:
        """Note the kernel's execution_state or its kernel_info_reply."""
        if state is not None and self._kernel.get("state") != state:
            self._kernel["state"] = state
        if info is not None and self._kernel.get("info") != info:
            self._kernel["info"] = dict(info)

    def set_pending_input(self, request: Mapping[str, Any] | None) -> None:
        """Note the input request the kernel waits for, or that it waits no more."""
        if request is not None or self._stdin.get("pending") is not None:
            self._stdin["pending"] = None if request is None else dict(request)

    def add(
        self,
        msg_id: str,
        *,
        seq: int,
        start: int,
        cell_id: str | None,
        code: str,
        session: str,
        owner: str,
        requested: str | None,
    ) -> None:
        """Enter an execution, queued and without outputs."""
        self._executions[msg_id] = Map(
            {
                "seq": seq,
                "start": start,
                "cell_id": cell_id,
                "code": code,
                "session": session,
                "state": ExecutionState.QUEUED.value,
                "owner": owner,
                "requested": requested,
                "edits": 0,
                "outputs": Array(),
            }
        )

    def set(self, msg_id: str, **fields: Any) -> None:
        """Set fields of an execution; one that has that value already costs nothing."""
        entry = self._executions[msg_id]
        for key, value in fields.items():
            if entry.get(key) != value:
                entry[key] = value

    def change(self, msg_id: str, changes: Sequence[Change]) -> None:
        """Fold changes into the outputs of an execution. The cost follows the changes, not what is there."""
        entry = self._executions[msg_id]
        outputs: Array[Any] = entry["outputs"]
        rewritten = False
        for change in changes:
            match change:
                case KeepOutputs(count):
                    if count < len(outputs):
                        del outputs[count : len(outputs)]
                        rewritten = True
                case AddOutput(output):
                    outputs.append(_output_to_crdt(output))
                case SetOutput(index, output):
                    del outputs[index]
                    outputs.insert(index, _output_to_crdt(output))
                    rewritten = True
                case EditStream(index, drop, text):
                    closed_changed = _edit_stream(outputs[index]["text"], drop, text)
                    rewritten = rewritten or closed_changed or index != len(outputs) - 1
        if rewritten:
            entry["edits"] = int(entry["edits"]) + 1

    def drop(self, msg_id: str) -> None:
        """Take an execution out of the record."""
        del self._executions[msg_id]


def _edit_stream(texts: Array[Any], drop: int, text: str) -> bool:
    """Drop code points from the end, append, and tell whether anything but the last chunk was changed or deleted."""
    closed_changed = False
    while drop:
        last: Text = texts[len(texts) - 1]
        content = str(last)
        if drop <= len(content) or len(texts) == 1:
            kept = content[: max(0, len(content) - drop)]
            del last[len(kept.encode()) : len(last)]
            break
        drop -= len(content)
        del texts[len(texts) - 1]
        closed_changed = True
    for piece in _pieces(text):
        last = texts[len(texts) - 1]
        if len(last) >= CHUNK:
            texts.append(Text(piece))
        else:
            last += piece
    return closed_changed


def _pieces(text: str) -> list[str]:
    return [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]


def _output_to_crdt(output: Mapping[str, Any]) -> Any:
    if output.get("output_type") != "stream":
        return dict(output)
    chunks = [Text(piece) for piece in _pieces(output["text"])] or [Text()]
    return Map({"output_type": "stream", "name": output["name"], "text": Array(chunks)})


def _output_to_py(output: Any) -> dict[str, Any]:
    if isinstance(output, Map):
        return {
            "output_type": "stream",
            "name": output["name"],
            "text": "".join(str(text) for text in output["text"]),
        }
    value: dict[str, Any] = as_json(output)
    return value


def as_json(value: Any) -> Any:
    """Give a value that was read from a Y document as a browser would write it to a file.

    Yjs has floating numbers only, so a large integer comes back as a float: whole floats become integers, where every
    integer is a float.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return value
