"""Which outputs belong to an Output widget."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from output_keeper.protocol.comms import OutputCapture

# A slow machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def opened(capture: OutputCapture, comm_id: str, **state: Any) -> None:
    content = {
        "comm_id": comm_id,
        "target_name": "jupyter.widget",
        "data": {"state": {"_model_name": "OutputModel", "msg_id": "", **state}, "buffer_paths": []},
    }
    capture.observe("comm_open", content)


def updated(capture: OutputCapture, comm_id: str, method: str = "update", **state: Any) -> None:
    capture.observe("comm_msg", {"comm_id": comm_id, "data": {"method": method, "state": state}})


@pytest.fixture
def capture() -> OutputCapture:
    return OutputCapture()


def test_a_widget_captures_from_setting_msg_id_to_setting_it_empty(capture: OutputCapture) -> None:
    opened(capture, "out")
    assert not capture.captures("request")
    updated(capture, "out", msg_id="request")
    assert capture.captures("request")
    assert capture.comm_for("request") == "out"
    assert not capture.captures("another")
    updated(capture, "out", msg_id="")
    assert not capture.captures("request")
    assert capture.comm_for("request") is None


def test_a_widget_may_open_while_it_captures(capture: OutputCapture) -> None:
    opened(capture, "out", msg_id="request")
    assert capture.comm_for("request") == "out"


def test_the_innermost_of_nested_widgets_captures(capture: OutputCapture) -> None:
    opened(capture, "outer")
    opened(capture, "inner")
    updated(capture, "outer", msg_id="request")
    updated(capture, "inner", msg_id="request")
    assert capture.comm_for("request") == "inner"
    updated(capture, "inner", msg_id="")
    assert capture.comm_for("request") == "outer"
    updated(capture, "outer", msg_id="")
    assert not capture.captures("request")


def test_an_outer_widget_that_lets_go_first_leaves_the_inner_one(capture: OutputCapture) -> None:
    opened(capture, "outer", msg_id="request")
    opened(capture, "inner", msg_id="request")
    updated(capture, "outer", msg_id="")
    assert capture.comm_for("request") == "inner"


def test_setting_the_same_msg_id_again_moves_nothing(capture: OutputCapture) -> None:
    opened(capture, "outer", msg_id="request")
    opened(capture, "inner", msg_id="request")
    updated(capture, "outer", msg_id="request")
    assert capture.comm_for("request") == "inner"


def test_a_widget_moves_on_to_another_request(capture: OutputCapture) -> None:
    opened(capture, "out", msg_id="one")
    updated(capture, "out", msg_id="two")
    assert not capture.captures("one")
    assert capture.comm_for("two") == "out"


def test_a_closed_widget_captures_nothing(capture: OutputCapture) -> None:
    opened(capture, "out", msg_id="request")
    capture.observe("comm_close", {"comm_id": "out", "data": {}})
    assert not capture.captures("request")
    updated(capture, "out", msg_id="request")
    assert not capture.captures("request")


def test_an_update_of_outputs_alone_leaves_the_capture(capture: OutputCapture) -> None:
    opened(capture, "out", msg_id="request")
    updated(capture, "out", outputs=[])
    updated(capture, "out", "echo_update", outputs=[])
    assert capture.captures("request")


def test_an_echoed_msg_id_counts_and_a_custom_message_does_not(capture: OutputCapture) -> None:
    opened(capture, "out")
    updated(capture, "out", "custom", msg_id="request")
    assert not capture.captures("request")
    updated(capture, "out", "echo_update", msg_id="request")
    assert capture.captures("request")


def test_other_widgets_and_other_targets_capture_nothing(capture: OutputCapture) -> None:
    opened(capture, "slider", _model_name="IntSliderModel", msg_id="request")
    state = {"_model_name": "OutputModel", "msg_id": "request"}
    capture.observe("comm_open", {"comm_id": "x", "target_name": "mine", "data": {"state": state}})
    updated(capture, "never-opened", msg_id="request")
    assert not capture.captures("request")


@pytest.mark.parametrize("nothing", [None, "", 0, [], {}])
def test_any_empty_msg_id_lets_go(capture: OutputCapture, nothing: object) -> None:
    opened(capture, "out", msg_id="request")
    updated(capture, "out", msg_id=nothing)
    assert not capture.captures("request")


keys = st.sampled_from(["comm_id", "data", "state", "method", "msg_id", "_model_name", "target_name"])
scalars = st.none() | st.integers() | st.sampled_from(["a", "b", "", "update", "OutputModel", "jupyter.widget"])
junk = scalars | st.dictionaries(keys, scalars | st.dictionaries(keys, scalars, max_size=3), max_size=3)
msg_types = st.sampled_from(["comm_open", "comm_msg", "comm_close", "stream"])
comm_ids = st.sampled_from(["a", "b", "c"])


@CALM
@given(st.lists(st.tuples(msg_types, st.dictionaries(keys, junk, max_size=4)), max_size=8))
def test_no_content_raises(messages: list[tuple[str, dict[str, Any]]]) -> None:
    capture = OutputCapture()
    for msg_type, content in messages:
        capture.observe(msg_type, content)
    assert capture.comm_for("nobody") is None


@CALM
@given(st.lists(st.tuples(comm_ids, st.sampled_from(["open", "close", "", "r1", "r2"]))))
def test_nothing_is_left_when_every_widget_is_closed(steps: list[tuple[str, str]]) -> None:
    capture = OutputCapture()
    for comm_id, step in steps:
        if step == "open":
            opened(capture, comm_id)
        elif step == "close":
            capture.observe("comm_close", {"comm_id": comm_id})
        else:
            updated(capture, comm_id, msg_id=step)
    for comm_id in "abc":
        capture.observe("comm_close", {"comm_id": comm_id})
    assert not capture._hooks
    assert not capture._msg_ids
