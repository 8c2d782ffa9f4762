"""The table of an execution's life."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from output_keeper.errors import UnexpectedMessage
from output_keeper.protocol.execution import (
    STATES,
    TRANSITIONS,
    Event,
    Execution,
    ExecutionState,
    Phase,
    event_of,
)

# A slow machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ENDS = {
    Event.REPLY_OK: ExecutionState.OK,
    Event.REPLY_ERROR: ExecutionState.ERROR,
    Event.REPLY_INTERRUPTED: ExecutionState.INTERRUPTED,
    Event.REPLY_ABORTED: ExecutionState.ABORTED,
}
KERNEL_ENDS = (Event.KERNEL_RESTARTED, Event.KERNEL_DIED)


def after(*events: Event) -> ExecutionState:
    execution = Execution()
    for event in events:
        assert execution.on(event) is execution.state
    return execution.state


@CALM
@given(st.sampled_from(list(ENDS)), st.integers(0, 4), st.booleans(), st.integers(0, 2))
def test_any_interleaving_of_shell_and_iopub_ends_the_same(
    reply: Event, position: int, error: bool, extra_busy: int
) -> None:
    iopub = [Event.BUSY, Event.EXECUTE_INPUT, *[Event.ERROR_OUTPUT] * error, Event.IDLE]
    iopub[1:1] = [Event.BUSY] * extra_busy
    position = min(position, len(iopub))
    assert after(*iopub[:position], reply, *iopub[position:]) is ENDS[reply]


@pytest.mark.parametrize("reply", [reply for reply in ENDS if reply is not Event.REPLY_ABORTED])
def test_it_runs_until_both_reply_and_idle_were_seen(reply: Event) -> None:
    assert after() is ExecutionState.QUEUED
    assert after(Event.BUSY) is ExecutionState.RUNNING
    assert after(Event.BUSY, reply) is ExecutionState.RUNNING
    assert after(Event.BUSY, Event.IDLE) is ExecutionState.RUNNING
    assert after(reply) is ExecutionState.RUNNING
    assert after(reply, Event.IDLE) is ENDS[reply]


def test_an_aborted_request_needs_no_status() -> None:
    assert after(Event.REPLY_ABORTED) is ExecutionState.ABORTED
    assert after(Event.REPLY_ABORTED, Event.BUSY, Event.IDLE) is ExecutionState.ABORTED


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([], ExecutionState.QUEUED),
        ([Event.BUSY], ExecutionState.RUNNING),
        ([Event.BUSY, Event.IDLE], ExecutionState.OK),
        ([Event.BUSY, Event.ERROR_OUTPUT, Event.IDLE], ExecutionState.ERROR),
        ([Event.BUSY, Event.IDLE, Event.ERROR_OUTPUT], ExecutionState.ERROR),
        ([Event.BUSY, Event.REPLY_INTERRUPTED], ExecutionState.INTERRUPTED),
        ([Event.REPLY_OK], ExecutionState.OK),
    ],
)
def test_the_start_of_the_next_ends_one_whose_reply_or_idle_was_lost(
    seen: list[Event], expected: ExecutionState
) -> None:
    assert after(*seen, Event.NEXT_STARTED) is expected


@pytest.mark.parametrize(
    ("seen", "restarted", "died"),
    [
        ([], ExecutionState.ABORTED, ExecutionState.ABORTED),
        ([Event.BUSY], ExecutionState.INTERRUPTED, ExecutionState.DIED),
        ([Event.BUSY, Event.ERROR_OUTPUT], ExecutionState.INTERRUPTED, ExecutionState.DIED),
        ([Event.BUSY, Event.IDLE], ExecutionState.OK, ExecutionState.OK),
        ([Event.BUSY, Event.ERROR_OUTPUT, Event.IDLE], ExecutionState.ERROR, ExecutionState.ERROR),
        ([Event.BUSY, Event.REPLY_ERROR], ExecutionState.ERROR, ExecutionState.ERROR),
    ],
)
def test_the_end_of_the_kernel_ends_everything_truthfully(
    seen: list[Event], restarted: ExecutionState, died: ExecutionState
) -> None:
    assert after(*seen, Event.KERNEL_RESTARTED) is restarted
    assert after(*seen, Event.KERNEL_DIED) is died


@CALM
@given(st.lists(st.sampled_from(Event)))
def test_nothing_changes_an_ended_execution(events: list[Event]) -> None:
    execution, end = Execution(), None
    for event in events:
        if (execution._phase, event) not in TRANSITIONS:
            continue
        execution.on(event)
        if end is not None:
            assert execution.state is end
        elif execution.ended:
            end = execution.state
    for event in KERNEL_ENDS:
        execution.on(event)
        assert execution.ended
        assert end is None or execution.state is end


def test_a_second_reply_is_unexpected_and_changes_nothing() -> None:
    execution = Execution()
    execution.on(Event.REPLY_ERROR)
    with pytest.raises(UnexpectedMessage) as caught:
        execution.on(Event.REPLY_OK)
    assert caught.value.event is Event.REPLY_OK
    assert execution.on(Event.IDLE) is ExecutionState.ERROR


def test_only_a_second_reply_is_missing_from_the_table() -> None:
    missing = {pair for pair in product(Phase, Event) if pair not in TRANSITIONS}
    replied = (Phase.REPLIED_OK, Phase.REPLIED_ERROR, Phase.REPLIED_INTERRUPTED)
    assert missing == set(product(replied, ENDS))


def test_every_phase_has_a_state_and_is_reached() -> None:
    assert set(STATES) == set(Phase)
    assert set(TRANSITIONS.values()) == set(Phase)
    assert {STATES[phase] for phase in Phase} == set(ExecutionState)


@pytest.mark.parametrize(
    ("msg_type", "content", "expected"),
    [
        ("status", {"execution_state": "busy"}, Event.BUSY),
        ("status", {"execution_state": "idle"}, Event.IDLE),
        ("status", {"execution_state": "starting"}, None),
        ("status", {"execution_state": ["busy"]}, None),
        ("status", {}, None),
        ("execute_input", {}, Event.EXECUTE_INPUT),
        ("error", {}, Event.ERROR_OUTPUT),
        ("stream", {"name": "stderr"}, None),
        ("execute_reply", {"status": "ok"}, Event.REPLY_OK),
        ("execute_reply", {"status": "error", "ename": "ValueError"}, Event.REPLY_ERROR),
        ("execute_reply", {"status": "error", "ename": "KeyboardInterrupt"}, Event.REPLY_INTERRUPTED),
        ("execute_reply", {"status": "error", "ename": "InterruptException"}, Event.REPLY_INTERRUPTED),
        ("execute_reply", {"status": "aborted"}, Event.REPLY_ABORTED),
        ("execute_reply", {"status": "abort"}, Event.REPLY_ABORTED),
        ("execute_reply", {"status": {}, "ename": {}}, Event.REPLY_ERROR),
        ("execute_reply", {}, Event.REPLY_ERROR),
    ],
)
def test_a_message_is_an_event(msg_type: str, content: dict[str, Any], expected: Event | None) -> None:
    assert event_of(msg_type, content) is expected
