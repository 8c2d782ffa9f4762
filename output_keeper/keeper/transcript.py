"""What the kernel's messages mean for the record: from parsed messages to fields and outputs of executions.

No sockets, no clock, no disk. `message` folds into plain state; `flush`, inside a transaction of the caller, writes
what changed since the last flush into the record's document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from output_keeper.errors import BadSignature, UnexpectedMessage, WireError
from output_keeper.protocol.comms import OutputCapture
from output_keeper.protocol.execution import Event, Execution, ExecutionState, event_of
from output_keeper.protocol.messages import OUTPUT_TYPES, Message, Signer, parse
from output_keeper.protocol.outputs import AddOutput, OutputRules
from output_keeper.record.adoption import KEEPER_KILLED, death_notice, end_unfinished
from output_keeper.record.document import RecordDocument

RUNS_WITHOUT_CELL = 200  # executions of consoles and scripts that are kept


class Transcript:
    """Fold one kernel start's messages into a record."""

    def __init__(self, record: RecordDocument, signer: Signer, *, runs_per_cell: int, expect_grants: bool) -> None:
        self._record = record
        self._signer = signer
        self._runs_per_cell = runs_per_cell
        self._expect_grants = expect_grants
        self._start = 0
        self._seq = self._first = 0  # the next number, and the first of this start
        self._rules = OutputRules()
        self._capture = OutputCapture()
        self._executions: dict[str, Execution] = {}
        self._unended: dict[str, None] = {}
        self._runs: dict[str | None, list[str]] = {}  # by cell, the oldest first
        self._new: dict[str, dict[str, Any]] = {}  # entries that the document does not have yet
        self._fields: dict[str, dict[str, Any]] = {}  # fields that changed since the last flush
        self._state = "starting"
        self._working: set[str | None] = set()  # the requests that the kernel is busy with
        self._kernel: dict[str, Any] = {}
        self._pending_input: dict[str, Any] | None = None
        self._input_changed = False
        self.counts = {"messages": 0, "malformed": 0, "bad_signature": 0, "unexpected": 0, "executions": 0}

    @property
    def busy(self) -> bool:
        """Whether the kernel said that it works."""
        return self._state == "busy"

    @property
    def dirty(self) -> bool:
        """Whether `flush` would write anything."""
        return bool(self._new or self._fields or self._kernel or self._input_changed or self._rules.has_changes)

    def begin(self, now: str) -> None:
        """Start: what an earlier start of this kernel left unfinished has ended. Inside a transaction."""
        views = list(self._record.views())
        self._seq = self._first = max((view.seq for view in views), default=-1) + 1
        self._record.set_pending_input(None)
        self._start = self._record.begin(now)
        self._record.finish_earlier(now, KEEPER_KILLED)
        end_unfinished(self._record, now, KEEPER_KILLED)
        for view in views:
            self._runs.setdefault(view.cell_id, []).append(view.msg_id)

    def merged(self, now: str) -> None:
        """Put this start after the earlier ones whose record was read late, when it had begun already.

        Inside a transaction, after `flush`.
        """
        self._record.finish_earlier(now, KEEPER_KILLED)
        end_unfinished(self._record, now, KEEPER_KILLED, but=self._executions)
        views = list(self._record.views())
        earlier = [view for view in views if view.msg_id not in self._executions]
        own = [view for view in views if view.msg_id in self._executions]
        self._start = len(self._record.starts) - 1
        shift = max([0, *(view.seq + 1 - self._first for view in earlier)])
        self._seq, self._first = self._seq + shift, self._first + shift
        for view in own:
            self._record.set(view.msg_id, seq=view.seq + shift, start=self._start)
        self._runs.clear()
        for view in [*earlier, *own]:
            self._runs.setdefault(view.cell_id, []).append(view.msg_id)
        self._record.set_kernel(state=self._state)
        self._record.set_pending_input(self._pending_input)

    def message(self, channel: str, direction: str, frames: list[bytes]) -> bool:
        """Fold one message; tell whether it should be flushed at once. A message that cannot be read is counted."""
        if channel == "hb" or (channel == "iopub" and direction == "to_kernel"):
            return False
        self.counts["messages"] += 1
        try:
            message = parse(frames, self._signer)
        except BadSignature:
            self.counts["bad_signature"] += 1
            return False
        except WireError:
            self.counts["malformed"] += 1
            return False
        if channel == "iopub":
            fold: Callable[[Transcript, Message], bool] | None = Transcript._published
        else:
            fold = _FOLDS.get((direction, message.msg_type))
        if fold is None or (message.msg_type == "execute_request" and channel != "shell"):
            return False
        try:
            return fold(self, message)
        except UnexpectedMessage:
            self.counts["unexpected"] += 1
            return False

    def decided(self, msg_id: str, owner: str) -> None:
        """Note who owns an execution: ``granted`` or ``released``. It comes after the request that it is about."""
        if msg_id in self._new:
            self._new[msg_id]["owner"] = owner
        elif msg_id in self._executions:
            self._set(msg_id, owner=owner)

    def flush(self) -> None:
        """Write what changed. Inside a transaction."""
        new, self._new = self._new, {}
        fields, self._fields = self._fields, {}
        kernel, self._kernel = self._kernel, {}
        for msg_id, entry in new.items():
            self._record.add(msg_id, **entry)
        for cell_id in {entry["cell_id"] for entry in new.values()}:
            self._retain(cell_id)
        for msg_id, changes in self._rules.take_changes().items():
            if msg_id in self._record:
                self._record.change(msg_id, changes)
        for msg_id, values in fields.items():
            if msg_id in self._record:
                self._record.set(msg_id, **values)
        if kernel:
            self._record.set_kernel(**kernel)
        if self._input_changed:
            self._record.set_pending_input(self._pending_input)
            self._input_changed = False

    def end(self, now: str, how: str, *, died: bool) -> None:
        """End the kernel: cells that were running end with it; one that nobody ended shows how.

        Inside a transaction, after `flush`.
        """
        states = [self._executions[msg_id].state for msg_id in self._unended]
        if states and ExecutionState.RUNNING not in states and self._state != "starting":
            # A kernel that ran takes a request at once; it died of this one before its first word came through.
            self._executions[next(iter(self._unended))].on(Event.BUSY)
        for msg_id in self._unended:
            execution = self._executions[msg_id]
            running = execution.state is ExecutionState.RUNNING
            state = execution.on(Event.KERNEL_DIED if died else Event.KERNEL_RESTARTED)
            self._record.set(msg_id, state=state.value, ended=now)
            if state not in (ExecutionState.OK, ExecutionState.ERROR):  # it was over, but for a message that got lost
                self._record.set(msg_id, reason=how)
            if running and state is ExecutionState.DIED:
                self._record.change(msg_id, [AddOutput(death_notice(how))])
        self._unended.clear()
        self._record.set_pending_input(None)
        self._record.finish(now, how)

    # -- folding --------------------------------------------------------------------------------------------------

    def _requested(self, message: Message) -> bool:
        """Enter an execution. A silent one leaves no trace, one without history belongs to no cell."""
        content, msg_id = message.content, message.msg_id
        if content.get("silent") or msg_id in self._executions or msg_id in self._record:
            return False
        cell_id = message.metadata.get("cellId")
        if not isinstance(cell_id, str) or content.get("store_history") is False:
            cell_id = None
        self._executions[msg_id] = Execution()
        self._unended[msg_id] = None
        self._runs.setdefault(cell_id, []).append(msg_id)
        self._new[msg_id] = {
            "seq": self._seq,
            "start": self._start,
            "cell_id": cell_id,
            "code": str(content.get("code", "")),
            "session": message.session,
            "owner": "open" if cell_id and self._expect_grants else "released",
            "requested": message.date,
        }
        self._seq += 1
        self.counts["executions"] += 1
        return True

    def _published(self, message: Message) -> bool:
        msg_type, content, parent = message.msg_type, message.content, message.parent_id
        if msg_type in ("comm_open", "comm_msg", "comm_close"):
            self._capture.observe(msg_type, content)
        if msg_type == "status":
            self._status(content, parent)
        if msg_type in OUTPUT_TYPES:
            if parent is not None and self._capture.captures(parent):
                return False  # an Output widget shows it
            if parent in self._executions or msg_type == "update_display_data":
                self._rules.apply(parent or "", msg_type, content)
        if parent is None or parent not in self._executions:
            return False  # the doings of a comm or a completer: they belong to no cell
        if msg_type == "execute_input":
            self._count(parent, content)
        event = event_of(msg_type, content)
        if event is None:
            return False
        if event is Event.BUSY:
            self._started(parent, message)
        return self._on(parent, event, message) or event in (Event.BUSY, Event.ERROR_OUTPUT)

    def _status(self, content: dict[str, Any], parent: str | None) -> None:
        state = str(content.get("execution_state", ""))
        if state == "busy":
            self._working.add(parent)
        elif state == "idle":
            self._working.discard(parent)
        # What is asked on the control channel ends while a cell goes on: a kernel is idle when nothing is under way.
        self._state = self._kernel["state"] = "busy" if self._working else state
        waiting = self._pending_input
        if state == "idle" and waiting is not None and waiting["parent_id"] == parent:
            self._input(None)  # interrupted: nobody answered, and nobody can any more

    def _started(self, msg_id: str, message: Message) -> None:
        for other in list(self._unended):
            if other != msg_id:
                self._on(other, Event.NEXT_STARTED, message)
        if self._executions[msg_id].state is ExecutionState.QUEUED:
            self._set(msg_id, started=message.date)

    def _replied(self, message: Message) -> bool:
        parent, content = message.parent_id, message.content
        event = event_of(message.msg_type, content)
        if parent is None or parent not in self._executions or event is None:
            return False
        self._count(parent, content)
        outputs = self._rules.count(parent)
        self._rules.apply(parent, message.msg_type, content)
        if self._rules.count(parent) != outputs:
            self._set(parent, pager=True)
        return self._on(parent, event, message)

    def _informed(self, message: Message) -> bool:
        self._kernel["info"] = message.content
        return True

    def _asked(self, message: Message) -> bool:
        return self._input(
            {
                "msg_id": message.msg_id,
                "parent_id": message.parent_id,
                "prompt": str(message.content.get("prompt", "")),
                "password": bool(message.content.get("password", False)),
            }
        )

    def _answered(self, _message: Message) -> bool:
        return self._input(None)

    def _on(self, msg_id: str, event: Event, message: Message) -> bool:
        """Fold an event; tell whether it ended the execution."""
        execution = self._executions[msg_id]
        before = execution.state
        after = execution.on(event)
        if after is not before:
            self._set(msg_id, state=after.value)
            if after.ended:
                self._set(msg_id, ended=message.date)
                del self._unended[msg_id]
                self._working.discard(msg_id)
        return after.ended and not before.ended

    def _count(self, msg_id: str, content: dict[str, Any]) -> None:
        count = content.get("execution_count")
        if isinstance(count, int) and not isinstance(count, bool):
            self._set(msg_id, execution_count=count)

    def _set(self, msg_id: str, **fields: Any) -> None:
        self._fields.setdefault(msg_id, {}).update(fields)

    def _input(self, request: dict[str, Any] | None) -> bool:
        self._pending_input = request
        self._input_changed = True
        return True

    def _retain(self, cell_id: str | None) -> None:
        """Take the oldest ended runs of a cell out of the record, beyond the limit."""
        runs = self._runs[cell_id]
        limit = RUNS_WITHOUT_CELL if cell_id is None else self._runs_per_cell
        for msg_id in runs[: max(0, len(runs) - limit)]:
            if msg_id in self._unended:
                continue
            runs.remove(msg_id)
            self._record.drop(msg_id)
            self._rules.forget(msg_id)
            self._executions.pop(msg_id, None)


_FOLDS: dict[tuple[str, str], Callable[[Transcript, Message], bool]] = {
    ("to_kernel", "execute_request"): Transcript._requested,  # noqa: SLF001  its own table
    ("to_kernel", "input_reply"): Transcript._answered,  # noqa: SLF001
    ("to_client", "execute_reply"): Transcript._replied,  # noqa: SLF001
    ("to_client", "kernel_info_reply"): Transcript._informed,  # noqa: SLF001
    ("to_client", "input_request"): Transcript._asked,  # noqa: SLF001
}
"""What is folded of the channels other than iopub."""
