"""Projection by value: the smallest edit that brings a cell's outputs to what the record says.

The record shares no history with a notebook's live document, so updates are never merged; outputs are compared. The
edits are only of kinds that a live JupyterLab page displays correctly (seen in a browser, see docs/design.md): cut and
extend the text of the last output, drop from an output to the end, append. Pure: lists in, an edit out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from output_keeper.protocol.outputs import Output, is_json_mime
from output_keeper.record.document import as_json


@dataclass(frozen=True, slots=True)
class Edit:
    """Drop every output from ``keep`` on; if ``text`` is given, output ``keep - 1`` is a stream: keep the first
    ``keep_text`` code points of its text and append ``text``; then append ``outputs``.
    """

    keep: int
    keep_text: int = 0
    text: str | None = None
    outputs: list[Output] = field(default_factory=list)


def plan(current: Sequence[Mapping[str, Any]], target: Sequence[Output]) -> Edit | None:
    """Give the edit from ``current`` to ``target`` (nbformat outputs), or None when they show the same."""
    now, then = [normal(output) for output in current], [normal(output) for output in target]
    same = 0
    while same < len(now) and same < len(then) and now[same] == then[same]:
        same += 1
    if same == len(now) == len(then):
        return None
    if same == len(now) - 1 and same < len(then) and _is_same_stream(now[same], then[same]):
        old, new = now[same]["text"], then[same]["text"]
        kept = common_prefix(old, new)
        return Edit(same + 1, kept, new[kept:], then[same + 1 :])
    return Edit(same, outputs=then[same:])


def normal(output: Mapping[str, Any]) -> Output:
    """Give an output with multi-line strings joined and whole numbers as integers, as a dict of its own.

    Takes whatever a notebook holds; what is no object becomes ``{}``, which equals no output of a record.
    """
    if not isinstance(output, Mapping):
        return {}
    result: Output = {key: as_json(value) for key, value in output.items()}
    if result.get("output_type") == "stream":
        text = result.get("text", "")
        result["text"] = "".join(map(str, text)) if isinstance(text, list) else str(text)
    elif isinstance(result.get("data"), Mapping):
        result["data"] = {
            mime: "".join(value) if _is_lines(mime, value) else value for mime, value in result["data"].items()
        }
    return result


def common_prefix(old: str, new: str) -> int:
    """Give how many code points two strings share from their start."""
    if new.startswith(old):
        return len(old)
    low, high = 0, min(len(old), len(new))
    while low < high:  # compare halves at C speed
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _is_lines(mime: str, value: object) -> bool:
    """Tell whether this is a text that nbformat splits into lines; JSON may be a list of strings in its own right."""
    return not is_json_mime(mime) and isinstance(value, list) and all(isinstance(line, str) for line in value)


def _is_same_stream(one: Output, other: Output) -> bool:
    """Tell whether only the text differs."""
    return one.get("output_type") == "stream" and {**one, "text": ""} == {**other, "text": ""}
