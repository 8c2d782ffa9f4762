"""Projection by value: the smallest edit that brings a cell's outputs to what the record says.

The record shares no history with a notebook's live document, so updates are never merged; outputs are compared. The
edits are only of kinds that a live JupyterLab page displays correctly (seen in a browser, see docs/design.md): cut and
extend the text of the last output, drop from an output to the end, append. Pure: lists in, an edit out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Output = dict[str, Any]


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
    now = [normal(output) for output in current]
    same = 0
    while same < len(now) and same < len(target) and now[same] == target[same]:
        same += 1
    if same == len(now) == len(target):
        return None
    if same == len(now) - 1 and same < len(target) and _is_same_stream(now[same], target[same]):
        old, new = now[same]["text"], target[same]["text"]
        kept = common_prefix(old, new)
        return Edit(same + 1, kept, new[kept:], list(target[same + 1 :]))
    return Edit(same, outputs=list(target[same:]))


def normal(output: Mapping[str, Any]) -> Output:
    """Give an output as the record holds it: multi-line strings joined, whole numbers as integers, as a dict of its own."""
    result = {key: _whole(value) for key, value in output.items()}
    if result.get("output_type") == "stream":
        text = result.get("text", "")
        result["text"] = "".join(text) if isinstance(text, list) else str(text)
    elif isinstance(result.get("data"), Mapping):
        result["data"] = {
            mime: "".join(value) if _is_lines(mime, value) else value
            for mime, value in result["data"].items()
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
    is_json = mime == "application/json" or mime.endswith("+json")
    return not is_json and isinstance(value, list) and all(isinstance(line, str) for line in value)


def _is_same_stream(one: Output, other: Output) -> bool:
    return one.get("output_type") == other.get("output_type") == "stream" and one.get("name") == other.get(
        "name"
    )


def _whole(value: Any) -> Any:
    """Yjs has floating numbers only: 1.0 read back from a live document is the 1 that was written."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value
