"""The edit of a projection leads from any outputs to any others, in steps that a live page shows correctly."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from output_keeper.record.projection import Edit, Output, common_prefix, normal, plan

texts = st.text(st.sampled_from("ab\nß😀"), max_size=8)
streams = st.builds(
    lambda name, text: {"output_type": "stream", "name": name, "text": text},
    st.sampled_from(["stdout", "stderr"]),
    texts,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=5,
)
bundles = st.dictionaries(
    st.sampled_from(["text/plain", "text/html", "image/png"]), texts | st.lists(texts, max_size=3)
) | (st.dictionaries(st.sampled_from(["application/json", "application/x+json"]), json_values))
displays = st.builds(
    lambda data, metadata: {"output_type": "display_data", "data": data, "metadata": metadata},
    bundles,
    st.dictionaries(texts, json_values, max_size=1),
)
results = st.builds(
    lambda data, count: {"output_type": "execute_result", "execution_count": count, "data": data, "metadata": {}},
    bundles,
    st.none() | st.integers(0, 3),
)
errors = st.builds(
    lambda lines: {"output_type": "error", "ename": "E", "evalue": "", "traceback": lines}, st.lists(texts, max_size=2)
)
outputs = st.lists(streams | displays | results | errors, max_size=5)


def applied(current: list[Output], edit: Edit) -> list[Output]:
    """What the docstring of `Edit` says, on plain lists."""
    shown = [normal(output) for output in current[: edit.keep]]
    if edit.text is not None:
        shown[-1] = {**shown[-1], "text": shown[-1]["text"][: edit.keep_text] + edit.text}
    return [*shown, *edit.outputs]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[Output], list[Output]]:
    """Two lists that often begin alike, and often end in the same stream with other text."""
    common = draw(outputs)
    one, other = common + draw(outputs), common + draw(outputs)
    if draw(st.booleans()):
        begin = draw(texts)
        one = [*common, {"output_type": "stream", "name": "stdout", "text": begin + draw(texts)}]
        other = [*common, {"output_type": "stream", "name": "stdout", "text": begin + draw(texts)}, *draw(outputs)]
    return one, other


def as_in_a_file(shown: list[Output]) -> list[Output]:
    """Write to a notebook's JSON and read it back without joining the lines."""
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.from_dict(output) for output in shown])
    written = nbformat.v4.rwbase.split_lines(nbformat.v4.new_notebook(cells=[cell]))
    split: list[Output] = written["cells"][0]["outputs"]
    return split


@settings(max_examples=300, deadline=None)
@given(pairs())
def test_the_edit_leads_to_the_target_and_then_there_is_none(pair: tuple[list[Output], list[Output]]) -> None:
    current, target = pair
    edit = plan(current, target)
    reached = current if edit is None else applied(current, edit)
    assert [normal(output) for output in reached] == [normal(output) for output in target]
    assert plan(reached, target) is None


@settings(max_examples=300, deadline=None)
@given(pairs())
def test_an_edit_is_only_of_the_kinds_that_a_page_shows(pair: tuple[list[Output], list[Output]]) -> None:
    current, target = pair
    edit = plan(current, target)
    if edit is None:
        return
    assert 0 <= edit.keep <= len(current)
    if edit.text is not None:  # only the last output's text is edited, and nothing is dropped behind it
        assert edit.keep == len(current)
        last = current[edit.keep - 1]
        assert last["output_type"] == "stream"
        assert 0 <= edit.keep_text <= len(last["text"])
    kept = edit.keep - (edit.text is not None)
    assert [normal(output) for output in current[:kept]] == [normal(output) for output in target[:kept]]


@settings(max_examples=200, deadline=None)
@given(pairs())
def test_the_edit_is_the_smallest(pair: tuple[list[Output], list[Output]]) -> None:
    current, target = [[normal(output) for output in side] for side in pair]
    edit = plan(current, target)
    if edit is None:
        return
    if edit.keep < len(current):
        assert edit.keep == len(target) or current[edit.keep] != target[edit.keep]
    if edit.text is not None:
        old, new = current[-1]["text"], target[edit.keep - 1]["text"]
        assert old[: edit.keep_text + 1] != new[: edit.keep_text + 1]


@settings(max_examples=200, deadline=None)
@given(outputs)
def test_what_a_file_splits_into_lines_is_the_same(shown: list[Output]) -> None:
    assert plan(as_in_a_file(shown), shown) is None


@given(texts, texts)
def test_a_common_prefix_is_the_longest(old: str, new: str) -> None:
    length = common_prefix(old, new)
    assert old[:length] == new[:length]
    assert old[: length + 1] != new[: length + 1] or length == len(old) == len(new)


def test_a_stream_that_grows_costs_its_new_text() -> None:
    old = {"output_type": "stream", "name": "stdout", "text": "x" * 100}
    assert plan([old], [{**old, "text": "x" * 100 + "new"}]) == Edit(1, 100, "new")


def test_a_progress_bar_is_cut_where_it_differs() -> None:
    old = {"output_type": "stream", "name": "stderr", "text": "line\n 10%|#"}
    assert plan([old], [{**old, "text": "line\n 15%|#"}]) == Edit(1, 7, "5%|#")


def test_a_stream_in_the_middle_is_replaced_with_all_that_follows() -> None:
    def stream(text: str) -> Output:
        return {"output_type": "stream", "name": "stdout", "text": text}

    after = {"output_type": "display_data", "data": {}, "metadata": {}}
    assert plan([stream("a"), after], [stream("ab"), after]) == Edit(0, outputs=[stream("ab"), after])


def test_numbers_that_went_through_a_live_document_are_the_same() -> None:
    here = {"output_type": "display_data", "data": {"application/json": {"n": [1, 2.5, 3_000_000_000]}}, "metadata": {}}
    there = {"output_type": "display_data", "data": {"application/json": {"n": [1.0, 2.5, 3e9]}}, "metadata": {}}
    assert plan([there], [here]) is None
    assert repr(normal(there)) == repr(here)


def test_json_that_is_a_list_of_strings_is_not_joined() -> None:
    for mime in ("application/json", "application/vnd.custom+json"):
        listed = {"output_type": "display_data", "data": {mime: ["a", "b"]}, "metadata": {}}
        joined = {"output_type": "display_data", "data": {mime: "ab"}, "metadata": {}}
        assert plan([listed], [joined]) == Edit(0, outputs=[joined])


def test_lines_that_a_kernel_sent_are_equal_to_the_text_they_make() -> None:
    listed = {"output_type": "display_data", "data": {"text/plain": ["a\n", "b"]}, "metadata": {}}
    joined = {"output_type": "display_data", "data": {"text/plain": "a\nb"}, "metadata": {}}
    assert plan([joined], [listed]) is None
    assert plan([], [listed]) == Edit(0, outputs=[joined])


def test_a_stream_with_more_than_its_text_is_replaced() -> None:
    ours = {"output_type": "stream", "name": "stdout", "text": "a"}
    assert plan([{**ours, "text": "", "note": 1}], [ours]) == Edit(0, outputs=[ours])


@pytest.mark.parametrize(
    "garbage",
    [
        "text",
        None,
        1,
        [],
        {},
        {"output_type": "stream"},
        {"output_type": "stream", "text": [1, None]},
        {"output_type": "stream", "text": {"a": 1}},
        {"output_type": "display_data", "data": ["x"]},
        {"output_type": ["x"], "data": {"text/plain": {"a": 1}}},
    ],
)
def test_whatever_a_notebook_holds_is_replaced(garbage: Any) -> None:
    ours = {"output_type": "stream", "name": "stdout", "text": "a"}
    assert plan([garbage], [ours]) == Edit(0, outputs=[ours])
    assert plan([ours, garbage], [ours]) == Edit(1)
