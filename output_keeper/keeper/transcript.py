"""What the kernel's messages mean for the record: from parsed messages to fields and outputs of executions.

No sockets, no clock, no disk. `message` folds into plain state; `flush`, inside a transaction of the caller, writes
what changed since the last flush into the record's document.
"""

from __future__ import annotations

from typing import Any

from output_keeper.errors import BadSignature, UnexpectedMessage, WireError
from output_keeper.protocol.comms import OutputCapture
from output_keeper.protocol.execution import Event, Execution, ExecutionState, event_of
from output_keeper.protocol.messages import Message, Signer, parse
from output_keeper.protocol.outputs import AddOutput, OutputRules
from output_keeper.record.document import RecordDocument

OUTPUT_TYPES = frozenset(
    {"stream", "display_data", "execute_result", "error", "clear_output", "update_display_data"}
)
RUNS_WITHOUT_CELL = 200  # executions of consoles and scripts that are kept


class Transcript:
    """Fold one kernel start's messages into a record."""

    def __init__(
        self, record: RecordDocument, signer: Signer, *, runs_per_cell: int, expect_grants: bool
    ) -> None:
        self._record = record
        self._signer = signer
        self._runs_per_cell = runs_per_cell
        self._expect_grants = expect_grants
        self._start = 0
        self._seq = 0
        self._rules = OutputRules()
        self._capture = OutputCapture()
        self._executions: dict[str, Execution] = {}
        self._new: dict[str, dict[str, Any]] = {}  # entries that the document does not have yet
        self._fields: dict[str, dict[str, Any]] = {}  # fields that changed since the last flush
        self._kernel: dict[str, Any] = {}
        self._pending_input: dict[str, Any] | None = None
        self._input_changed = False
        self._owners: dict[str, str] = {}  # decisions that came before their request
        self.counts = {"messages": 0, "malformed": 0, "bad_signature": 0, "unexpected": 0, "executions": 0}

    @property
    def dirty(self) -> bool:
        """Whether `flush` would write anything."""
        return bool(
            self._new or self._fields or self._kernel or self._input_changed or self._rules.has_changes
        )

    def begin(self, now: str) -> None:
        """Start: what an earlier start of this kernel left unfinished has ended. Inside a transaction."""
        views = list(self._record.views())
        self._seq = max((view.seq for view in views), default=-1) + 1
        for view in views:
            if not view.state.ended:
                ran = view.state is ExecutionState.RUNNING
                state = ExecutionState.DIED if ran else ExecutionState.ABORTED
                how = "the kernel's keeper was killed"
                self._record.set(view.msg_id, state=state.value, ended=now, reason=how)
                if ran:
                    self._record.change(view.msg_id, [AddOutput(_death_notice(how))])
        self._record.set_pending_input(None)
        self._start = self._record.begin(now)

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
        try:
            return self._fold(channel, direction, message)
        except UnexpectedMessage:
            self.counts["unexpected"] += 1
            return False

    def decided(self, msg_id: str, owner: str) -> None:
        """Note who owns an execution: ``granted`` or ``released``."""
        if msg_id in self._new:
            self._new[msg_id]["owner"] = owner
        elif msg_id in self._record:
            self._fields.setdefault(msg_id, {})["owner"] = owner
        else:
            self._owners[msg_id] = owner

    def flush(self) -> None:
        """Write what changed. Inside a transaction."""
        for msg_id, entry in self._new.items():
            self._record.add(msg_id, **entry)
        if self._new:
            self._retain()
        self._new.clear()
        for msg_id, changes in self._rules.take_changes().items():
            if msg_id in self._record:
                self._record.change(msg_id, changes)
        for msg_id, fields in self._fields.items():
            if msg_id in self._record:
                self._record.set(msg_id, **fields)
        self._fields.clear()
        if self._kernel:
            self._record.set_kernel(**self._kernel)
            self._kernel.clear()
        if self._input_changed:
            self._record.set_pending_input(self._pending_input)
            self._input_changed = False

    def end(self, now: str, how: str, *, died: bool) -> None:
        """End the kernel: cells that were running end with it; one that nobody ended shows how. Inside a transaction."""
        for msg_id, execution in self._executions.items():
            if execution.ended or msg_id not in self._record:
                continue
            running = execution.state is ExecutionState.RUNNING
            execution.on(Event.KERNEL_DIED if died else Event.KERNEL_RESTARTED)
            self._record.set(msg_id, state=execution.state.value, ended=now, reason=how)
            if died and running:
                self._record.change(msg_id, [AddOutput(_death_notice(how))])
        self._record.set_pending_input(None)
        self._record.finish(now, how)

    # -- folding --------------------------------------------------------------------------------------------------

    def _fold(self, channel: str, direction: str, message: Message) -> bool:
        if direction == "to_kernel":
            if message.msg_type == "execute_request" and channel == "shell":
                return self._requested(message)
            if message.msg_type == "input_reply":
                return self._input(None)
            return False
        if channel == "iopub":
            return self._published(message)
        if message.msg_type == "execute_reply":
            return self._replied(message)
        if message.msg_type == "kernel_info_reply":
            self._kernel["info"] = message.content
            return True
        if message.msg_type == "input_request":
            return self._input(
                {
                    "msg_id": message.msg_id,
                    "parent_id": message.parent_id,
                    "prompt": str(message.content.get("prompt", "")),
                    "password": bool(message.content.get("password", False)),
                }
            )
        return False

    def _requested(self, message: Message) -> bool:
        """Enter an execution. A silent one leaves no trace, one without history belongs to no cell."""
        content = message.content
        if content.get("silent") or message.msg_id in self._executions:
            return False
        cell_id = message.metadata.get("cellId")
        if not isinstance(cell_id, str) or content.get("store_history") is False:
            cell_id = None
        self._executions[message.msg_id] = Execution()
        self._new[message.msg_id] = {
            "seq": self._seq,
            "start": self._start,
            "cell_id": cell_id,
            "code": str(content.get("code", "")),
            "session": message.session,
            "owner": self._owners.pop(
                message.msg_id, "open" if cell_id and self._expect_grants else "released"
            ),
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
            self._kernel["state"] = str(content.get("execution_state", ""))
        if parent is None:
            return False
        if msg_type in OUTPUT_TYPES:
            if self._capture.captures(parent):
                return False  # an Output widget shows it
            if parent in self._executions or msg_type == "update_display_data":
                self._rules.apply(parent, msg_type, content)
        if parent not in self._executions:
            return False  # the doings of a comm or a completer: they belong to no cell
        if msg_type == "execute_input":
            self._count(parent, content)
        event = event_of(msg_type, content)
        if event is None:
            return False
        if event is Event.BUSY:
            for other, execution in self._executions.items():
                if other != parent and not execution.ended:
                    self._on(other, Event.NEXT_STARTED, message)
            self._set(parent, started=message.date)
        return self._on(parent, event, message) or event in (Event.BUSY, Event.ERROR_OUTPUT)

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

    def _on(self, msg_id: str, event: Event, message: Message) -> bool:
        """Fold an event; tell whether it ended the execution."""
        execution = self._executions[msg_id]
        before = execution.state
        after = execution.on(event)
        if after is not before:
            self._set(msg_id, state=after.value)
            if after.ended:
                self._set(msg_id, ended=message.date)
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

    def _retain(self) -> None:
        """Take the oldest ended runs of a cell out of the record, beyond the limit."""
        runs: dict[str | None, int] = {}
        for view in reversed(list(self._record.views())):
            runs[view.cell_id] = runs.get(view.cell_id, 0) + 1
            limit = RUNS_WITHOUT_CELL if view.cell_id is None else self._runs_per_cell
            if runs[view.cell_id] > limit and view.state.ended:
                self._record.drop(view.msg_id)
                self._rules.forget(view.msg_id)
                self._executions.pop(view.msg_id, None)


def _death_notice(how: str) -> dict[str, Any]:
    """Make the error output of a cell whose kernel ended without being asked to."""
    evalue = f"{how[:1].upper()}{how[1:]} while this cell was running. What it printed until then is kept."
    return {
        "output_type": "error",
        "ename": "KernelDied",
        "evalue": evalue,
        "traceback": [f"\x1b[31mKernelDied\x1b[39m: {evalue}"],
    }
