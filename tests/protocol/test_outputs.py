"""The output rules, and that any cut of takes gives the same outputs."""

from __future__ import annotations

import copy
import gc
import sys
import tracemalloc
from itertools import pairwise
from typing import Any

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbclient import NotebookClient
from nbformat import NotebookNode

from output_keeper.protocol.outputs import (
    AddOutput,
    Change,
    EditStream,
    KeepOutputs,
    Output,
    OutputRules,
    SetOutput,
    apply_changes,
)
from output_keeper.protocol.terminal import CurrentLine

# A slow machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

Step = tuple[str, str, dict[str, Any]]
"""parent_id, msg_type, content."""


# --- messages and outputs, in short


def stream(text: str, name: str = "stdout") -> tuple[str, dict[str, Any]]:
    return "stream", {"name": name, "text": text}


def display(value: str, display_id: str | None = None) -> tuple[str, dict[str, Any]]:
    return "display_data", _shown(value, display_id)


def result(value: str, display_id: str | None = None) -> tuple[str, dict[str, Any]]:
    return "execute_result", {**_shown(value, display_id), "execution_count": 1}


def update(value: str, display_id: str | None) -> tuple[str, dict[str, Any]]:
    return "update_display_data", _shown(value, display_id)


def clear(*, wait: bool = False) -> tuple[str, dict[str, Any]]:
    return "clear_output", {"wait": wait}


def error(ename: str = "ValueError") -> tuple[str, dict[str, Any]]:
    return "error", {"ename": ename, "evalue": "v", "traceback": ["t"]}


def _shown(value: str, display_id: str | None) -> dict[str, Any]:
    transient = {} if display_id is None else {"display_id": display_id}
    return {"data": {"text/plain": value}, "metadata": {}, "transient": transient}


def stream_output(text: str, name: str = "stdout") -> Output:
    return {"output_type": "stream", "name": name, "text": text}


def display_output(value: str) -> Output:
    return {"output_type": "display_data", "data": {"text/plain": value}, "metadata": {}}


def result_output(value: str) -> Output:
    return {**display_output(value), "output_type": "execute_result", "execution_count": 1}


ERROR_OUTPUT = {"output_type": "error", "ename": "ValueError", "evalue": "v", "traceback": ["t"]}


class Taker:
    """Holds every execution's outputs as the taken changes make them."""

    def __init__(self) -> None:
        self.rules = OutputRules()
        self.outputs: dict[str, list[Output]] = {}

    def take(self) -> dict[str, list[Change]]:
        taken = self.rules.take_changes()
        for parent_id, changes in taken.items():
            assert changes
            before = copy.deepcopy(self.outputs.setdefault(parent_id, []))
            after = apply_changes(self.outputs[parent_id], changes)
            assert self.outputs[parent_id] == before
            self.outputs[parent_id] = after
            assert self.rules.count(parent_id) == len(after)
        return taken


def fold(*messages: tuple[str, dict[str, Any]], parent_id: str = "a") -> list[Output]:
    taker = Taker()
    for msg_type, content in messages:
        taker.rules.apply(parent_id, msg_type, content)
    taker.take()
    return taker.outputs.get(parent_id, [])


# --- streams


def test_adjacent_streams_of_one_name_are_one_output() -> None:
    assert fold(stream("a"), stream("b\n"), stream("c")) == [stream_output("ab\nc")]


def test_interleaved_streams_stay_in_order() -> None:
    assert fold(stream("a"), stream("b", "stderr"), stream("c")) == [
        stream_output("a"),
        stream_output("b", "stderr"),
        stream_output("c"),
    ]


def test_a_display_ends_a_stream() -> None:
    expected = [stream_output("a"), display_output("x"), stream_output("b")]
    assert fold(stream("a"), display("x"), stream("b")) == expected


def test_an_update_of_an_earlier_display_does_not_end_a_stream() -> None:
    expected = [display_output("y"), stream_output("ab")]
    assert fold(display("x", "id"), stream("a"), update("y", "id"), stream("b")) == expected


def test_carriage_returns_work_across_messages_and_not_across_outputs() -> None:
    assert fold(stream("1%"), stream("\r2%"), stream("\r"), stream("3")) == [stream_output("3%")]
    assert fold(stream("ab"), stream("x", "stderr"), stream("\rc")) == [
        stream_output("ab"),
        stream_output("x", "stderr"),
        stream_output("c"),
    ]


# --- clear_output


def test_clear_drops_everything_at_once() -> None:
    assert fold(stream("a"), display("x"), clear()) == []
    assert fold(stream("a"), clear(), stream("b")) == [stream_output("b")]


def test_a_waiting_clear_happens_with_the_next_output() -> None:
    assert fold(stream("a"), clear(wait=True)) == [stream_output("a")]
    assert fold(stream("a"), clear(wait=True), stream("b")) == [stream_output("b")]
    assert fold(stream("a"), clear(wait=True), clear(wait=True), error()) == [ERROR_OUTPUT]


def test_a_clear_takes_back_a_waiting_one() -> None:
    assert fold(stream("a"), clear(wait=True), clear(), stream("b"), stream("c")) == [stream_output("bc")]


def test_an_update_does_not_trigger_a_waiting_clear() -> None:
    steps = [display("x", "id"), clear(wait=True), update("y", "id")]
    assert fold(*steps) == [display_output("y")]
    assert fold(*steps, stream("a")) == [stream_output("a")]


def test_clearing_one_execution_leaves_the_others() -> None:
    taker = Taker()
    for parent_id in ("a", "b"):
        taker.rules.apply(parent_id, *display("x", "id"))
    taker.rules.apply("a", *clear())
    taker.rules.apply("a", *update("y", "id"))
    taker.take()
    assert taker.outputs == {"b": [display_output("y")]}


# --- display ids


def test_an_update_reaches_every_output_of_that_id_in_every_execution() -> None:
    taker = Taker()
    taker.rules.apply("a", *display("x", "id"))
    taker.rules.apply("a", *display("other", "id2"))
    taker.rules.apply("b", *stream("s"))
    taker.rules.apply("b", *display("x", "id"))
    taker.take()
    taker.rules.apply("c", *update("y", "id"))
    assert taker.take() == {
        "a": [SetOutput(0, display_output("y"))],
        "b": [SetOutput(1, display_output("y"))],
    }
    assert taker.outputs["a"] == [display_output("y"), display_output("other")]


def test_an_id_shown_again_updates_the_earlier_outputs_too() -> None:
    assert fold(display("x", "id"), display("y", "id"), update("z", "id")) == [display_output("z")] * 2
    assert fold(display("x", "id"), display("y", "id")) == [display_output("y")] * 2


def test_an_update_of_an_unknown_id_or_without_one_is_ignored() -> None:
    assert fold(update("y", "id")) == []
    assert fold(update("y", "id"), display("x", "id")) == [display_output("x")]
    assert fold(display("x"), update("y", None)) == [display_output("x")]


def test_a_cleared_display_is_not_found_again() -> None:
    assert fold(display("x", "id"), clear(), stream("a"), update("y", "id")) == [stream_output("a")]


def test_a_display_shown_by_the_output_that_clears_is_found() -> None:
    steps = [stream("a"), display("x", "id"), clear(wait=True), display("y", "id"), update("z", "id")]
    assert fold(*steps) == [display_output("z")]


def test_an_execute_result_with_an_id_updates_displays_and_is_not_updated_itself() -> None:
    steps = [display("x", "id"), result("r", "id")]
    assert fold(*steps) == [display_output("r"), result_output("r")]
    assert fold(*steps, update("y", "id")) == [display_output("y"), result_output("r")]


@pytest.mark.parametrize("transient", [None, [], "x", {"display_id": None}, {"display_id": ""}, {"display_id": []}])
def test_a_display_without_a_usable_id_is_plain(transient: object) -> None:
    shown = {"data": {"text/plain": "x"}, "metadata": {}, "transient": transient}
    changed = {**shown, "data": {"text/plain": "y"}}
    assert fold(("display_data", shown), ("update_display_data", changed)) == [display_output("x")]


# --- contents that are not what the spec says


@pytest.mark.parametrize(
    ("msg_type", "content", "expected"),
    [
        ("stream", {}, stream_output("")),
        ("stream", {"name": 3, "text": ["a", "b"]}, stream_output("ab")),
        ("stream", {"name": "log", "text": 1}, stream_output("1", "log")),
        ("display_data", {}, {"output_type": "display_data", "data": {}, "metadata": {}}),
        (
            "display_data",
            {
                "data": {"text/plain": None, "a/b": {"k": 1}, "text/html": ["a"], "application/x+json": None},
                "metadata": [],
            },
            {
                "output_type": "display_data",
                "data": {"a/b": '{"k": 1}', "text/html": ["a"], "application/x+json": None},
                "metadata": {},
            },
        ),
        (
            "execute_result",
            {"data": "text", "execution_count": True},
            {"output_type": "execute_result", "execution_count": None, "data": {}, "metadata": {}},
        ),
        ("error", {}, {"output_type": "error", "ename": "", "evalue": "", "traceback": []}),
        (
            "error",
            {"ename": 1, "evalue": None, "traceback": "line"},
            {"output_type": "error", "ename": "1", "evalue": "", "traceback": ["line"]},
        ),
    ],
)
def test_missing_and_wrong_fields_get_safe_values(msg_type: str, content: dict[str, Any], expected: Output) -> None:
    assert fold((msg_type, content)) == [expected]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["display_id", "text/plain", "application/json", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = ["name", "text", "data", "metadata", "transient", "wait", "ename", "evalue", "traceback"]
contents = st.dictionaries(st.sampled_from([*FIELDS, "execution_count", "status", "payload"]), json_values, max_size=5)
MSG_TYPES = [
    "stream",
    "display_data",
    "execute_result",
    "error",
    "update_display_data",
    "clear_output",
    "execute_reply",
    "status",
]


@CALM
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(MSG_TYPES), contents), max_size=5))
def test_no_content_raises_and_every_output_is_valid_nbformat(steps: list[Step]) -> None:
    taker = Taker()
    for step in steps:
        taker.rules.apply(*step)
    taker.take()
    for outputs in taker.outputs.values():
        cell = nbformat.v4.new_code_cell(outputs=[nbformat.from_dict(output) for output in outputs])
        nbformat.validate(nbformat.v4.new_notebook(cells=[cell]))


# --- the pager


def test_the_first_page_of_a_reply_is_shown_as_a_display() -> None:
    page = {"source": "page", "data": {"text/plain": "help"}, "start": 0}
    reply = {"status": "ok", "payload": [{"source": "set_next_input"}, page, page]}
    assert fold(stream("a"), ("execute_reply", reply)) == [stream_output("a"), display_output("help")]
    assert fold(("execute_reply", {"status": "ok", "payload": []})) == []
    assert fold(("execute_reply", {**reply, "status": "error"})) == []


# --- any cut of takes


ids = st.sampled_from([None, "i", "j"])
values = st.text("xy", max_size=2)
messages = st.one_of(
    st.builds(stream, st.text("ab\r\n\b", max_size=6), st.sampled_from(["stdout", "stderr"])),
    st.builds(display, values, ids),
    st.builds(result, values, ids),
    st.builds(update, values, ids),
    st.builds(lambda wait: clear(wait=wait), st.booleans()),
    st.builds(error),
)
steps_and_takes = st.lists(st.tuples(st.sampled_from("ab"), messages, st.booleans()), max_size=30)


def by_hand(steps: list[tuple[str, tuple[str, dict[str, Any]]]]) -> dict[str, list[Output]]:
    """The rules on whole outputs, with nothing folded and nothing forgotten."""
    cells: dict[str, dict[str, Any]] = {}
    for parent_id, (msg_type, content) in steps:
        cell = cells.setdefault(parent_id, {"outputs": [], "ids": [], "joins": None, "wait": False})
        if msg_type == "clear_output":
            cell["joins"], cell["wait"] = None, content["wait"]
            if not content["wait"]:
                cell["outputs"], cell["ids"] = [], []
            continue
        display_id = content.get("transient", {}).get("display_id")
        if display_id:
            for other in cells.values():
                for index, known in enumerate(other["ids"]):
                    if known == display_id:
                        other["outputs"][index] = display_output(content["data"]["text/plain"])
        if msg_type == "update_display_data":
            continue
        if cell["wait"]:
            cell["outputs"], cell["ids"], cell["wait"] = [], [], False
        if msg_type == "stream" and cell["joins"] == content["name"]:
            cell["outputs"][-1]["raw"] += content["text"]
            continue
        if msg_type == "stream":
            output = {"output_type": "stream", "name": content["name"], "raw": content["text"]}
        else:
            output = {"output_type": msg_type, **{k: v for k, v in content.items() if k != "transient"}}
        cell["outputs"].append(output)
        cell["ids"].append(display_id if msg_type == "display_data" else None)
        cell["joins"] = content["name"] if msg_type == "stream" else None
    return {
        parent_id: [
            stream_output(CurrentLine().feed(output["raw"]).text, output["name"]) if "raw" in output else output
            for output in cell["outputs"]
        ]
        for parent_id, cell in cells.items()
        if cell["outputs"]
    }


@CALM
@given(steps_and_takes)
def test_any_cut_of_takes_gives_the_outputs_of_the_rules(
    steps: list[tuple[str, tuple[str, dict[str, Any]], bool]],
) -> None:
    cut, at_once = Taker(), Taker()
    for parent_id, message, take in steps:
        for taker in (cut, at_once):
            taker.rules.apply(parent_id, *message)
        if take:
            cut.take()
    for taker in (cut, at_once):
        taker.take()
        assert taker.take() == {}
        assert not taker.rules.has_changes
    expected = by_hand([(parent_id, message) for parent_id, message, _ in steps])
    for taker in (cut, at_once):
        assert {parent_id: outputs for parent_id, outputs in taker.outputs.items() if outputs} == expected


@CALM
@given(steps_and_takes, steps_and_takes)
def test_adopted_outputs_are_continued(
    before: list[tuple[str, tuple[str, dict[str, Any]], bool]],
    later: list[tuple[str, tuple[str, dict[str, Any]], bool]],
) -> None:
    """Without what an output does not tell: display ids, a waiting clear, a cursor that was moved."""
    first = [message for _, message, _ in before if "\r" not in str(message) and message[0] != "clear_output"]
    then = [message for _, message, _ in later if "display_id" not in str(message)]
    whole, continued = Taker(), Taker()
    for message in [*first, *then]:
        whole.rules.apply("a", *message)
    whole.take()
    continued.outputs["a"] = fold(*first)
    continued.rules.adopt("a", continued.outputs["a"])
    assert continued.take() == {}
    for message, (_, _, take) in zip(then, later, strict=False):
        continued.rules.apply("a", *message)
        if take:
            continued.take()
    continued.take()
    assert continued.outputs.get("a", []) == whole.outputs.get("a", [])


def test_the_last_line_of_an_adopted_stream_is_the_current_line() -> None:
    taker = Taker()
    taker.outputs["a"] = [display_output("x"), stream_output("one\n10%")]
    taker.rules.adopt("a", taker.outputs["a"])
    taker.rules.apply("a", *stream("\r2"))
    assert taker.take() == {"a": [EditStream(1, 3, "20%")]}
    taker.rules.apply("a", *clear())
    assert taker.take() == {"a": [KeepOutputs(0)]}


# --- what a take costs


def test_ten_thousand_ticks_are_one_change() -> None:
    taker = Taker()
    for tick in range(10_000):
        taker.rules.apply("a", *stream(f"\r{tick}"))
    assert taker.take() == {"a": [AddOutput(stream_output("9999"))]}
    for tick in range(10_000, 20_000):
        taker.rules.apply("a", *stream(f"\r{tick}"))
    assert taker.take() == {"a": [EditStream(0, 4, "19999")]}


def test_a_thousand_cleared_pictures_are_the_last_one() -> None:
    taker = Taker()
    taker.rules.apply("a", *stream("start"))
    taker.take()
    for number in range(1000):
        taker.rules.apply("a", *clear(wait=number % 2 == 0))
        taker.rules.apply("a", *display(f"png {number}"))
    assert taker.take() == {"a": [KeepOutputs(0), AddOutput(display_output("png 999"))]}


def test_an_output_updated_before_it_was_taken_is_one_change() -> None:
    taker = Taker()
    taker.rules.apply("a", *display("x", "id"))
    for value in ("y", "z"):
        taker.rules.apply("b", *update(value, "id"))
    assert taker.take() == {"a": [AddOutput(display_output("z"))]}
    for value in ("1", "2"):
        taker.rules.apply("b", *update(value, "id"))
    assert taker.take() == {"a": [SetOutput(0, display_output("2"))]}


def test_what_comes_and_goes_between_two_takes_is_no_change() -> None:
    taker = Taker()
    taker.rules.apply("a", *stream("x"))
    taker.rules.apply("a", *clear())
    assert taker.take() == {}


def test_edits_after_a_long_text_do_not_copy_it() -> None:
    rules = OutputRules()
    rules.apply("a", *stream("line\n" * 2_000_000 + "x" * 100))
    tracemalloc.start()
    try:
        for _ in range(100):
            rules.apply("a", *stream("\b"))
        for tick in range(1000):
            rules.apply("a", *stream(f"\r{tick}"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert rules.take_changes() == {"a": [AddOutput(stream_output("line\n" * 2_000_000 + "999"))]}


def test_nothing_of_an_output_is_kept_after_it_was_taken() -> None:
    class Body(str):
        __slots__ = ()

    rules = OutputRules()
    body = Body("png" * 1000)
    rules.apply("a", "display_data", {"data": {"image/png": body}, "transient": {"display_id": "id"}})
    rules.apply("a", *stream("x\n" * 1000))
    for parent_id in ("a", "b"):
        rules.apply(parent_id, "update_display_data", {"data": {"image/png": body}, "transient": {"display_id": "id"}})
    assert len(rules.take_changes()["a"]) == 2
    gc.collect()
    assert sys.getrefcount(body) == 2


def test_a_forgotten_execution_leaves_nothing() -> None:
    rules = OutputRules()
    for parent_id in ("a", "b"):
        rules.apply(parent_id, *display("x", "id"))
    rules.forget("a")
    rules.forget("never-seen")
    rules.apply("c", *update("y", "id"))
    assert rules.take_changes() == {"b": [AddOutput(display_output("y"))]}
    rules.forget("b")
    assert len(rules) == 0
    assert not rules._shown


@CALM
@given(steps_and_takes)
def test_the_display_index_knows_exactly_what_is_shown(
    steps: list[tuple[str, tuple[str, dict[str, Any]], bool]],
) -> None:
    rules = OutputRules()
    for parent_id, message, _ in steps:
        rules.apply(parent_id, *message)
        for shown in rules._shown.values():
            for owner, indexes in shown.items():
                assert indexes
                assert indexes[-1] < rules.count(owner)
                assert all(one < other for one, other in pairwise(indexes))
    for parent_id in "ab":
        rules.forget(parent_id)
    assert not rules._shown
    assert not rules.has_changes


# --- nbclient for the same messages


@CALM
@given(st.lists(messages, max_size=12))
def test_nbclient_makes_the_same_outputs(messages: list[tuple[str, dict[str, Any]]]) -> None:
    """Where both follow the spec: nbclient does not join streams, and updates results by their id as well."""
    mine = [m for m in messages if m[0] != "execute_result" or not m[1]["transient"]]
    mine = [m for m in mine if not any(control in str(m) for control in ("\\r", "\\x08"))]
    cell = nbformat.v4.new_code_cell()
    client = NotebookClient(nbformat.v4.new_notebook(cells=[cell]))
    client.reset_execution_trackers()
    client.clear_before_next_output = False
    for msg_type, content in mine:
        header = {"msg_type": msg_type}
        message = {
            "msg_type": msg_type,
            "header": header,
            "parent_header": {"msg_id": "a"},
            "content": content,
        }
        client.process_message(copy.deepcopy(message), client.nb.cells[0], 0)
    assert fold(*mine) == joined(client.nb.cells[0].outputs)


def joined(outputs: list[NotebookNode]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    for output in outputs:
        plain = dict(output)
        if plain["output_type"] == "stream" and result and result[-1].get("name") == plain["name"]:
            result[-1]["text"] += plain["text"]
        else:
            result.append(plain)
    return result
