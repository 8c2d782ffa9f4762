"""The document says what the changes say, costs what they cost, and tells when more than the end has changed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycrdt import Array, Map, Text

from output_keeper.errors import StoreVersion
from output_keeper.protocol.execution import ExecutionState
from output_keeper.protocol.messages import MAX_DEPTH, well_formed
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
from output_keeper.record.document import CHUNK, VERSION, RecordDocument, as_json

SOME_TEXT = st.text(st.sampled_from("aß€😀\n\0"), max_size=12) | st.builds(
    lambda unit, times: unit * times, st.sampled_from(["x", "é", "😀", "ab\n"]), st.integers(0, 3 * CHUNK)
)


class Written(RecordDocument):
    """A record that keeps the updates of its transactions."""

    def __init__(self) -> None:
        super().__init__("k")
        self.updates: list[bytes] = []
        self.observe_updates(self.updates.append)


def record(msg_id: str = "m", **fields: Any) -> Written:
    made = Written()
    with made.transaction():
        made.begin("2024-01-01T00:00:00Z")
        add(made, msg_id, **fields)
    return made


def add(document: RecordDocument, msg_id: str, **fields: Any) -> None:
    entry = {
        "seq": 0,
        "start": 0,
        "cell_id": "c",
        "code": "",
        "session": "s",
        "owner": "open",
        "requested": None,
    }
    document.add(msg_id, **{**entry, **fields})


def change(document: Written, *changes: Change) -> bytes:
    """Apply in one transaction; return its update."""
    with document.transaction():
        document.change("m", changes)
    return document.updates[-1]


def stream(text: str, name: str = "stdout") -> Output:
    return {"output_type": "stream", "name": name, "text": text}


def display(data: Any) -> Output:
    return {"output_type": "display_data", "data": {"application/json": data}, "metadata": {}}


@st.composite
def histories(draw: st.DrawFn) -> list[list[Change]]:
    """Flushes of changes as `OutputRules` makes them: edits are of the last output, at its end."""
    shown: list[Output] = []
    flushes = []
    for _ in range(draw(st.integers(1, 6))):
        flush: list[Change] = []
        for kind in draw(st.lists(st.sampled_from(["keep", "add", "text", "set", "edit"]), max_size=6)):
            made: Change | None = None
            if kind == "keep" and shown:
                made = KeepOutputs(draw(st.integers(0, len(shown))))
            elif kind == "add":
                made = AddOutput(display(draw(st.integers(0, 9))))
            elif kind == "text":
                made = AddOutput(stream(draw(SOME_TEXT)))
            elif kind == "set":
                places = [i for i, output in enumerate(shown) if output["output_type"] != "stream"]
                if places:
                    made = SetOutput(draw(st.sampled_from(places)), display(draw(st.integers(10, 19))))
            elif shown and shown[-1]["output_type"] == "stream":
                length = len(shown[-1]["text"])
                drop = draw(st.one_of(st.integers(0, min(length, 5)), st.integers(0, length)))
                made = EditStream(len(shown) - 1, drop, draw(SOME_TEXT))
            if made is not None:
                flush.append(made)
                shown = apply_changes(shown, [made])
        flushes.append(flush)
    return flushes


@dataclass
class Cursor:
    """What a projection into a live room remembers; see server/rooms.py."""

    edits: int = -1
    outputs: int = 0
    chunk: int = 0
    chunk_text: str = ""

    def read(self, document: RecordDocument, copy: list[Output]) -> bool:
        """Bring the copy up to date; tell whether going on where it left off was enough."""
        edits = document.view("m").edits
        goes_on = edits == self.edits
        if goes_on:
            last = self.outputs - 1
            if last >= 0 and document.is_stream("m", last):
                text = "".join(document.chunks("m", last, self.chunk))
                before = copy[last]["text"]
                copy[last] = {**copy[last], "text": before[: len(before) - len(self.chunk_text)] + text}
            copy += document.outputs_from("m", self.outputs)
        else:
            copy[:] = document.outputs("m")
        self.edits, self.outputs, self.chunk, self.chunk_text = edits, len(copy), 0, ""
        if copy and document.is_stream("m", len(copy) - 1):
            self.chunk = document.chunk_count("m", len(copy) - 1) - 1
            (self.chunk_text,) = document.chunks("m", len(copy) - 1, self.chunk)
        return goes_on


# -- changes


@settings(max_examples=60, deadline=None)
@given(histories())
def test_changes_mean_what_they_mean_on_lists_and_a_follower_sees_the_same(
    flushes: list[list[Change]],
) -> None:
    writer, follower = record(), RecordDocument()
    follower.apply(writer.doc.get_update())
    expected: list[Output] = []
    for flush in flushes:
        writer.updates.clear()
        with writer.transaction():
            writer.change("m", flush)
        for update in writer.updates:
            follower.apply(update)
        expected = apply_changes(expected, flush)
        assert writer.outputs("m") == expected
        assert follower.outputs("m") == expected
        assert follower.outputs_from("m", len(expected) // 2) == expected[len(expected) // 2 :]
    late = RecordDocument()
    late.apply(writer.doc.get_update())
    assert late.outputs("m") == expected


@settings(max_examples=60, deadline=None)
@given(histories(), st.data())
def test_who_goes_on_while_edits_stays_equal_ends_with_the_same_outputs(
    flushes: list[list[Change]], data: st.DataObject
) -> None:
    document, cursor, copy = record(), Cursor(), list[Output]()
    for flush in flushes:
        with document.transaction():
            document.change("m", flush)
        if data.draw(st.booleans()):
            cursor.read(document, copy)
    cursor.read(document, copy)
    assert copy == document.outputs("m")


def test_appending_and_rewriting_the_last_line_leave_edits_alone() -> None:
    document, cursor, copy = record(), Cursor(), list[Output]()
    change(document, AddOutput(stream("x" * CHUNK)))
    cursor.read(document, copy)
    bar = ""
    for percent in range(100):
        change(document, EditStream(0, len(bar), f"{percent} %"))
        bar = f"{percent} %"
        assert cursor.read(document, copy)
        assert copy == document.outputs("m")
    change(document, EditStream(0, 0, "\n"), AddOutput(display(1)))
    assert cursor.read(document, copy)


@pytest.mark.parametrize(
    "what",
    [
        [KeepOutputs(0)],
        [SetOutput(1, display(2))],
        [EditStream(2, 5, "x")],
        [EditStream(0, 0, "x")],
        [KeepOutputs(2), AddOutput(stream("end"))],
    ],
)
def test_what_is_no_appending_changes_edits(what: list[Change]) -> None:
    document = record()
    end = "x" * CHUNK
    change(document, AddOutput(stream("a")), AddOutput(display(1)), AddOutput(stream(end)), EditStream(2, 0, "end"))
    before = document.view("m").edits
    change(document, *what)
    assert document.view("m").edits != before


def test_dropping_nothing_is_no_edit() -> None:
    document = record()
    change(document, AddOutput(display(1)))
    before = document.view("m").edits
    change(document, KeepOutputs(1), KeepOutputs(7))
    assert document.view("m").edits == before


# -- cost


def texts(document: RecordDocument, index: int = 0) -> list[Text]:
    outputs: Array[Any] = document.doc.get("executions", type=Map)["m"]["outputs"]
    return list(outputs[index]["text"])


def test_no_text_grows_beyond_a_few_chunks() -> None:
    document = record()
    change(document, AddOutput(stream("😀" * 10 * CHUNK)))
    for _ in range(500):
        change(document, EditStream(0, 0, "line\n" * 100))
    change(document, EditStream(0, 0, "ß" * 7 * CHUNK))
    assert max(len(text) for text in texts(document)) < 5 * CHUNK
    assert document.outputs("m")[0]["text"] == "😀" * 10 * CHUNK + "line\n" * 50_000 + "ß" * 7 * CHUNK


def test_the_update_of_an_append_is_as_large_as_what_is_appended() -> None:
    document = record()
    change(document, AddOutput(stream("")))
    sizes = [len(change(document, EditStream(0, 0, "x" * 1000))) for _ in range(2000)]
    assert max(sizes) < 1200


def test_a_progress_bar_leaves_next_to_nothing_behind() -> None:
    document = record()
    change(document, AddOutput(stream("0 %")))
    for percent in range(5000):
        change(document, EditStream(0, len(document.outputs("m")[0]["text"]), f"{percent % 100} %"))
    assert len(document.doc.get_update()) < 2000


def test_a_display_that_is_set_again_and_again_leaves_next_to_nothing_behind() -> None:
    document = record()
    change(document, AddOutput(display("")))
    for number in range(500):
        change(document, SetOutput(0, display(f"{number:03}" * 1000)))
    assert len(document.doc.get_update()) < 3000 + 500 * 40


def test_a_dropped_execution_leaves_next_to_nothing_behind() -> None:
    document = record("kept")
    before = len(document.doc.get_update())
    for number in range(100):
        with document.transaction():
            add(document, f"gone-{number}", code="x" * 1000)
            document.change(
                f"gone-{number}", [AddOutput(stream("y" * 5 * CHUNK))] + [AddOutput(display("z" * 1000))] * 20
            )
    with document.transaction():
        for number in range(100):
            document.drop(f"gone-{number}")
    assert document.msg_ids() == ["kept"]
    assert len(document.doc.get_update()) - before < 100 * 100


# -- values

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(json_values, st.text(st.characters()))
def test_any_well_formed_value_comes_back_from_a_follower_as_a_browser_would_write_it(value: Any, text: str) -> None:
    output, said = well_formed(display(value)), well_formed(stream(text))
    document, follower = record(), RecordDocument()
    change(document, AddOutput(output), AddOutput(said))
    follower.apply(document.doc.get_update())
    assert follower.outputs("m") == [as_json(output), said]
    # 1 and 1.0 are equal, and not the same.
    assert json.dumps(follower.outputs("m"), sort_keys=True) == json.dumps([as_json(output), said], sort_keys=True)


def test_nesting_up_to_the_limit_of_messages_is_held() -> None:
    value: Any = 1
    for level in range(MAX_DEPTH):
        value = [value] if level % 2 else {"a": value}
    document, follower = record(), RecordDocument()
    change(document, AddOutput(display(value)))
    follower.apply(document.doc.get_update())
    assert follower.outputs("m") == [display(value)]


@pytest.mark.parametrize("number", [2**31, 1_700_000_000_123, 2**53, -(2**53)])
def test_a_large_integer_is_still_one_after_a_restart(number: int) -> None:
    document, follower = record(), RecordDocument()
    change(document, AddOutput(display(number)))
    follower.apply(document.doc.get_update())
    assert isinstance(follower.outputs("m")[0]["data"]["application/json"], int)


def test_a_huge_float_does_not_become_hundreds_of_digits() -> None:
    assert isinstance(as_json(1e300), float)


# -- replicas


def test_two_writers_one_after_the_other_continue_one_record() -> None:
    first = record("one")
    with first.transaction():
        first.change("one", [AddOutput(stream("a"))])
        first.finish("2024-01-01T00:00:01Z", "the kernel was restarted")
    second = RecordDocument("k")
    second.apply(first.doc.get_update())
    with second.transaction():
        assert second.begin("2024-01-01T00:00:02Z") == 1
        add(second, "two", seq=1, start=1)
        second.change("one", [EditStream(0, 0, "b")])
    first.apply(second.doc.get_update())
    assert first.msg_ids() == ["one", "two"]
    assert first.outputs("one") == [stream("ab")]
    assert first.starts == [
        {"started": "2024-01-01T00:00:00Z", "ended": "2024-01-01T00:00:01Z", "how": "the kernel was restarted"},
        {"started": "2024-01-01T00:00:02Z", "ended": None, "how": ""},
    ]
    assert first.kernel_id == "k"


def test_updates_can_be_applied_twice_and_in_any_order() -> None:
    document = record()
    for number in range(5):
        with document.transaction():
            document.change("m", [AddOutput(display(number)), AddOutput(stream(str(number)))])
    updates = document.updates
    for order in (updates[::-1], [*updates, *updates], [*updates[3:], *updates[:4]]):
        replica = RecordDocument()
        for update in order:
            replica.apply(update)
        assert replica.outputs("m") == document.outputs("m")


def test_records_of_two_starts_that_never_met_keep_what_each_of_them_has() -> None:
    one, other = record("one"), RecordDocument("k")
    with other.transaction():
        other.begin("2025-01-01T00:00:00Z")
        add(other, "two", seq=1)
    one.apply(other.doc.get_update())
    assert one.msg_ids() == ["one", "two"]
    assert [start["started"] for start in one.starts] == ["2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"]


def test_touched_tells_every_execution_that_a_transaction_changed() -> None:
    document = record("a")
    touched: list[set[str]] = []
    document.observe_touched(touched.append)
    with document.transaction():
        add(document, "b")
    with document.transaction():
        document.set("a", state="running")
        document.change("b", [AddOutput(stream("x"))])
    with document.transaction():
        document.change("b", [EditStream(0, 0, "y")])
    with document.transaction():
        document.drop("a")
    with document.transaction():
        document.set_kernel(state="busy")
    assert touched == [{"b"}, {"a", "b"}, {"b"}, {"a"}]


def test_a_field_that_has_its_value_already_costs_nothing() -> None:
    document = record()
    with document.transaction():
        document.set("m", state="running", execution_count=3)
        document.set_kernel(state="busy", info={"banner": "x", "version": 3})
        document.set_pending_input(None)
    document.updates.clear()
    with document.transaction():
        document.set("m", state="running", execution_count=3)
        document.set_kernel(state="busy", info={"banner": "x", "version": 3})
        document.set_pending_input(None)
    assert document.updates == []


def test_a_newer_schema_is_refused() -> None:
    document = record()
    document.check_version("k.sqlite")
    with document.transaction():
        document.doc.get("meta", type=Map)["version"] = VERSION + 1
    with pytest.raises(StoreVersion, match=r"k\.sqlite.*upgrade"):
        document.check_version("k.sqlite")


def test_an_execution_reads_as_it_was_entered() -> None:
    document = record(code="1 + 1", requested="2024-01-01T00:00:03Z")
    view = document.view("m")
    assert (view.code, view.cell_id, view.session, view.owner, view.seq) == ("1 + 1", "c", "s", "open", 0)
    assert (view.state, view.requested, view.started, view.ended) == (
        ExecutionState.QUEUED,
        "2024-01-01T00:00:03Z",
        None,
        None,
    )
    assert (view.execution_count, view.reason, view.length, view.pager) == (None, "", 0, False)
    with pytest.raises(KeyError):
        document.view("none")


# -- the description


def full_record() -> RecordDocument:
    document, rules = record(), OutputRules()
    rules.apply("m", "stream", {"name": "stdout", "text": "x"})
    rules.apply("m", "display_data", {"data": {"text/plain": "x"}})
    with document.transaction():
        document.set(
            "m", started="t", ended="t", execution_count=1, reason="r", pager=True, state="died", owner="granted"
        )
        document.change("m", rules.take_changes()["m"])
        document.set_kernel(state="idle", info={})
        document.set_pending_input({"msg_id": "i", "parent_id": "m", "prompt": "?", "password": False})
        document.finish("t", "h")
    return document


def roots_of(document: RecordDocument) -> dict[str, Any]:
    doc = RecordDocument().doc
    doc.apply_update(document.doc.get_update())
    names = {"meta": Map, "executions": Map, "kernel": Map, "starts": Array, "stdin": Map}
    assert set(doc.keys()) == set(names)
    return {name: doc.get(name, type=kind).to_py() for name, kind in names.items()}


def described(section: str) -> set[str]:
    """The keys in the first column of the table under a heading of the document's description."""
    text = (Path(__file__).parents[2] / "docs" / "record-format.md").read_text()
    found = re.search(rf"\*\*{re.escape(section)}\*\*(.*?)(?=\n\*\*|\n##)", text, re.DOTALL)
    assert found is not None, section
    rows = [line.split("|")[1] for line in found[1].splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def test_the_description_names_every_key_and_no_other() -> None:
    roots = roots_of(full_record())
    assert described("Root types") == set(roots)
    for root in ("meta", "kernel"):
        assert described(f"`{root}`") == set(roots[root])
    assert described("`starts`") == set(roots["starts"][0])
    assert described("`stdin`") == set(roots["stdin"]["pending"])
    assert described("`executions`") == set(roots["executions"]["m"])
    assert described("A stream output") == set(roots["executions"]["m"]["outputs"][0])


def test_the_worked_example_of_the_description_is_what_it_prints(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "record-format.md").read_text()
    section = text[text.index("## The document") : text.index("## The ledger")]
    script, printed = re.findall(r"```(?:python|text)\n(.*?)```", section, re.DOTALL)[-2:]
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == printed
