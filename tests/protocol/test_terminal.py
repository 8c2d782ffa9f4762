r"""JupyterLab's \r, \b and \n rules, applied at the end of a text that is not kept."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from output_keeper.protocol.terminal import CurrentLine

# A slow machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def shown(*messages: str, start: str = "") -> str:
    """Apply the edits of each message to the whole text, as a reader of the record does."""
    line, text = CurrentLine(start), start
    for message in messages:
        edit = line.feed(message)
        assert edit.drop <= len(text)
        text = text[: len(text) - edit.drop] + edit.text
        assert text.endswith(line.text)
    return text


def in_full(*messages: str) -> str:
    """The rules on the whole text, one character after the other."""
    text: list[str] = []
    cursor = 0
    for character in "".join(messages):
        if character == "\n":
            text.append("\n")
            cursor = len(text)
        elif character == "\r":
            while cursor and text[cursor - 1] != "\n":
                cursor -= 1
        elif character == "\b":
            if cursor and text[cursor - 1] != "\n":
                del text[cursor - 1 : cursor + 1]
                cursor -= 1
        else:
            text[cursor : cursor + 1] = [character]
            cursor += 1
    return "".join(text)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (["a\n", "b\n"], "a\nb\n"),
        (["10%", "\r20%", "\r100%"], "100%"),
        (["long text\rxy"], "xyng text"),
        (["abc\r", "x"], "xbc"),
        (["abc\r\ndef"], "abc\ndef"),
        (["abc\r", "\n", "d"], "abc\nd"),
        (["one\ntwo\rT"], "one\nTwo"),
        (["ab\b\b\b\bc"], "c"),
        (["a\n\b\bb"], "a\nb"),
        (["a", "b", "\b", "c"], "ac"),
        (["abcd\rx\b"], "cd"),
        (["abcd\rxy\bz"], "xz"),
        (["bar\r"], "bar"),
        (["\r\r\b"], ""),
        (["\x1b[31mred\x1b[0m\rb"], "b[31mred\x1b[0m"),
        (["😀é\r中"], "中é"),
        (["", "a", ""], "a"),
    ],
)
def test_the_text_is_what_jupyterlab_shows(messages: list[str], expected: str) -> None:
    assert shown(*messages) == expected
    assert in_full(*messages) == expected


TEXTS = st.lists(st.text("ab\r\b\n😀", max_size=12), max_size=8)


@CALM
@given(TEXTS)
def test_edits_at_the_end_give_the_rules_on_the_whole_text(messages: list[str]) -> None:
    assert shown(*messages) == in_full(*messages)


@CALM
@given(TEXTS)
def test_how_text_is_cut_into_messages_does_not_matter(messages: list[str]) -> None:
    assert shown(*messages) == shown("".join(messages))


@CALM
@given(st.text("ab\n"), TEXTS)
def test_a_text_is_continued_at_the_end_of_its_last_line(start: str, messages: list[str]) -> None:
    assert shown(*messages, start=start) == in_full(start, *messages)


def test_an_edit_drops_only_from_the_first_character_that_changed() -> None:
    line = CurrentLine("step 10 of 99")
    edit = line.feed("\rstep 11 of 99")
    assert (edit.drop, edit.text) == (7, "1 of 99")
    edit = line.feed("\rstep 11 of 99")
    assert (edit.drop, edit.text) == (0, "")


def test_only_the_current_line_is_kept() -> None:
    line = CurrentLine()
    line.feed("x\n" * 1000 + "tail")
    assert line.text == "tail"


def test_appending_to_a_long_line_does_not_copy_it() -> None:
    line = CurrentLine()
    line.feed("x" * 10_000_000)
    tracemalloc.start()
    try:
        for _ in range(1000):
            line.feed("y")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert line.text == "x" * 10_000_000 + "y" * 1000


def test_many_controls_in_one_message_cost_its_length() -> None:
    # Quadratic work on this input would take hours.
    width, rounds = 2_000_000, 300_000
    line = CurrentLine("x" * width)
    edit = line.feed("\ra\b" * rounds)
    assert line.text == "x" * (width - 2 * rounds)
    assert edit.drop == 2 * rounds
