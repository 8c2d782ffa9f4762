"""The life of one execution, as one table.

An execution has ended when its ``execute_reply`` (shell) and its ``idle`` status (iopub) were both seen;
the reply says how. The two channels race, so every order of theirs leads to the same end. An aborted
request never ran and ends with its reply alone: some kernels send no status for it. Where the reply or
the idle was lost, `NEXT_STARTED` or the end of the kernel closes the execution with what is known: the
reply if there was one, else its outputs.

An ended execution stays as it is whatever comes (messaging spec, "Request-Reply" and "Kernel status").
"""

from __future__ import annotations

from enum import Enum, auto
from itertools import product
from typing import Any

from output_keeper.errors import UnexpectedMessage


class ExecutionState(str, Enum):
    """What an execution is to its reader."""

    QUEUED = "queued"
    RUNNING = "running"
    OK = "ok"
    ERROR = "error"
    ABORTED = "aborted"
    INTERRUPTED = "interrupted"
    DIED = "died"

    @property
    def ended(self) -> bool:
        """Whether nothing can change it any more."""
        return self not in (ExecutionState.QUEUED, ExecutionState.RUNNING)


class Event(Enum):
    """What can happen to an execution."""

    BUSY = auto()
    EXECUTE_INPUT = auto()
    ERROR_OUTPUT = auto()
    """An ``error`` message on iopub."""
    IDLE = auto()
    REPLY_OK = auto()
    REPLY_ERROR = auto()
    REPLY_INTERRUPTED = auto()
    REPLY_ABORTED = auto()
    NEXT_STARTED = auto()
    """Another execution of the same channel became busy: what this one still waits for is lost."""
    KERNEL_RESTARTED = auto()
    KERNEL_DIED = auto()


class Phase(Enum):
    """What has been seen of an execution: the states of the table."""

    QUEUED = auto()
    RUNNING = auto()
    FAILING = auto()
    """Running, and an error output was seen."""
    IDLE = auto()
    """Only the reply is missing."""
    IDLE_FAILED = auto()
    """Only the reply is missing, and an error output was seen."""
    REPLIED_OK = auto()
    """Only the idle is missing; so in the next two."""
    REPLIED_ERROR = auto()
    REPLIED_INTERRUPTED = auto()
    OK = auto()
    ERROR = auto()
    ABORTED = auto()
    INTERRUPTED = auto()
    DIED = auto()


STATES: dict[Phase, ExecutionState] = {
    Phase.QUEUED: ExecutionState.QUEUED,
    Phase.RUNNING: ExecutionState.RUNNING,
    Phase.FAILING: ExecutionState.RUNNING,
    Phase.IDLE: ExecutionState.RUNNING,
    Phase.IDLE_FAILED: ExecutionState.RUNNING,
    Phase.REPLIED_OK: ExecutionState.RUNNING,
    Phase.REPLIED_ERROR: ExecutionState.RUNNING,
    Phase.REPLIED_INTERRUPTED: ExecutionState.RUNNING,
    Phase.OK: ExecutionState.OK,
    Phase.ERROR: ExecutionState.ERROR,
    Phase.ABORTED: ExecutionState.ABORTED,
    Phase.INTERRUPTED: ExecutionState.INTERRUPTED,
    Phase.DIED: ExecutionState.DIED,
}


def _while_running(running: Phase, failing: Phase, idle: Phase) -> dict[Event, Phase]:
    """Return the row of a phase in which neither reply nor idle was seen."""
    return {
        Event.BUSY: running,
        Event.EXECUTE_INPUT: running,
        Event.ERROR_OUTPUT: failing,
        Event.IDLE: idle,
        Event.REPLY_OK: Phase.REPLIED_OK,
        Event.REPLY_ERROR: Phase.REPLIED_ERROR,
        Event.REPLY_INTERRUPTED: Phase.REPLIED_INTERRUPTED,
        Event.REPLY_ABORTED: Phase.ABORTED,
        # With subshells several executions run at once, so another one that starts says nothing yet.
        Event.NEXT_STARTED: running,
        Event.KERNEL_RESTARTED: Phase.INTERRUPTED,
        Event.KERNEL_DIED: Phase.DIED,
    }


def _while_idle(idle: Phase, known_end: Phase) -> dict[Event, Phase]:
    """Return the row of a phase that only waits for the reply."""
    return {
        Event.BUSY: idle,
        Event.EXECUTE_INPUT: idle,
        Event.ERROR_OUTPUT: Phase.IDLE_FAILED,
        Event.IDLE: idle,
        Event.REPLY_OK: Phase.OK,
        Event.REPLY_ERROR: Phase.ERROR,
        Event.REPLY_INTERRUPTED: Phase.INTERRUPTED,
        Event.REPLY_ABORTED: Phase.ABORTED,
        Event.NEXT_STARTED: known_end,
        Event.KERNEL_RESTARTED: known_end,
        Event.KERNEL_DIED: known_end,
    }


def _while_replied(replied: Phase, end: Phase) -> dict[Event, Phase]:
    """Return the row of a phase that only waits for the idle; a second reply is not in it."""
    return {
        Event.BUSY: replied,
        Event.EXECUTE_INPUT: replied,
        Event.ERROR_OUTPUT: replied,
        Event.IDLE: end,
        Event.NEXT_STARTED: end,
        Event.KERNEL_RESTARTED: end,
        Event.KERNEL_DIED: end,
    }


_ROWS: dict[Phase, dict[Event, Phase]] = {
    Phase.QUEUED: _while_running(Phase.RUNNING, Phase.FAILING, Phase.IDLE)
    | {
        Event.NEXT_STARTED: Phase.QUEUED,
        Event.KERNEL_RESTARTED: Phase.ABORTED,
        Event.KERNEL_DIED: Phase.ABORTED,
    },
    Phase.RUNNING: _while_running(Phase.RUNNING, Phase.FAILING, Phase.IDLE),
    Phase.FAILING: _while_running(Phase.FAILING, Phase.FAILING, Phase.IDLE_FAILED),
    Phase.IDLE: _while_idle(Phase.IDLE, Phase.OK),
    Phase.IDLE_FAILED: _while_idle(Phase.IDLE_FAILED, Phase.ERROR),
    Phase.REPLIED_OK: _while_replied(Phase.REPLIED_OK, Phase.OK),
    Phase.REPLIED_ERROR: _while_replied(Phase.REPLIED_ERROR, Phase.ERROR),
    Phase.REPLIED_INTERRUPTED: _while_replied(Phase.REPLIED_INTERRUPTED, Phase.INTERRUPTED),
}

TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (phase, event): after for phase, row in _ROWS.items() for event, after in row.items()
} | {(phase, event): phase for phase, event in product(STATES, Event) if STATES[phase].ended}
"""Every transition there is."""


class Execution:
    """One execute_request, folded from what is seen of it; created queued."""

    __slots__ = ("_phase",)

    def __init__(self) -> None:
        self._phase = Phase.QUEUED

    @property
    def state(self) -> ExecutionState:
        """What it is now."""
        return STATES[self._phase]

    @property
    def ended(self) -> bool:
        """Whether nothing can change it any more."""
        return self.state.ended

    def on(self, event: Event) -> ExecutionState:
        """Take one event; return the state after it.

        Raises UnexpectedMessage, and changes nothing, for what is not in the table: a second reply.
        """
        after = TRANSITIONS.get((self._phase, event))
        if after is None:
            raise UnexpectedMessage(self._phase, event)
        self._phase = after
        return self.state


_INTERRUPTS = ("KeyboardInterrupt", "InterruptException")
"""What an interrupted cell raises, in Python and in Julia."""


def event_of(msg_type: str, content: dict[str, Any]) -> Event | None:
    """Return what a message means to the execution it belongs to, or None. Never raises."""
    match msg_type:
        case "status":
            return {"busy": Event.BUSY, "idle": Event.IDLE}.get(str(content.get("execution_state")))
        case "execute_input":
            return Event.EXECUTE_INPUT
        case "error":
            return Event.ERROR_OUTPUT
        case "execute_reply":
            return _reply_event(content)
    return None


def _reply_event(content: dict[str, Any]) -> Event:
    status = content.get("status")
    if status == "ok":
        return Event.REPLY_OK
    if status in ("aborted", "abort"):  # "abort" before version 5.1 of the spec
        return Event.REPLY_ABORTED
    if content.get("ename") in _INTERRUPTS:
        return Event.REPLY_INTERRUPTED
    return Event.REPLY_ERROR
