r"""What ``\r``, ``\b`` and ``\n`` do to the text of a stream output, by JupyterLab's rules.

JupyterLab's output model (``processText`` in ``@jupyterlab/outputarea``, 4.6) keeps a cursor, and text
overwrites what it meets:

- ``\r`` moves the cursor to the start of the current line and erases nothing;
- ``\b`` at the start of a line does nothing; elsewhere it removes the character before the cursor *and*
  the one under it, if there is one, so the rest of the line moves up;
- ``\n`` goes to the end of the text, wherever the cursor was, and opens a new line there.

So only the current line can still change, and only that is kept here. ANSI sequences are plain text to
these rules: they are for whoever renders.

JupyterLab counts UTF-16 units, this module counts code points. They differ only where text is overwritten
or erased next to a character beyond U+FFFF: JupyterLab may leave half of one there, this module never
does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CONTROL = re.compile("([\r\b\n])")


@dataclass(frozen=True, slots=True)
class Edit:
    """Drop the last ``drop`` code points of a text, then append ``text``."""

    drop: int
    text: str


class CurrentLine:
    r"""The last line of a stream's text with its cursor, carried from message to message.

    A message costs its own length, and the current line too if ``\r`` or ``\b`` moved the cursor in it.
    """

    __slots__ = ("_after", "_before")

    def __init__(self, text: str = "") -> None:
        """``text`` is what the output already shows; the cursor is taken to be at its end."""
        # Pieces, joined only when the cursor moves: a long line that only grows is not copied per message.
        self._before: list[str] = [text[text.rfind("\n") + 1 :]]
        self._after = ""

    @property
    def text(self) -> str:
        """The current line as it shows now."""
        return "".join(self._before) + self._after

    def feed(self, text: str) -> Edit:
        """Add a message's text; return what it changes at the end of the output's text."""
        if self._after or "\r" in text or "\b" in text:
            return self._feed_controls(text)
        newline = text.rfind("\n")
        if newline >= 0:
            self._before = [text[newline + 1 :]]
        else:
            self._before.append(text)
        return Edit(0, text)

    def _feed_controls(self, text: str) -> Edit:
        shown = self.text
        before, after = list("".join(self._before)), list(reversed(self._after))
        closed: list[str] = []
        # A gap buffer: characters before the cursor, and those after it from the end backwards. Every step
        # costs what it writes or walks over, so a hostile mix of controls stays linear.
        for piece in _CONTROL.split(text):
            if piece == "\r":
                after.extend(reversed(before))
                before.clear()
            elif piece == "\b":
                if before:
                    before.pop()
                    del after[-1:]
            elif piece == "\n":
                closed.append("".join(before) + "".join(reversed(after)) + "\n")
                before.clear()
                after.clear()
            elif piece:
                before.extend(piece)
                del after[-len(piece) :]
        self._before, self._after = ["".join(before)], "".join(reversed(after))
        now = "".join(closed) + self.text
        same = _common_prefix(shown, now)
        return Edit(len(shown) - same, now[same:])


def _common_prefix(one: str, other: str) -> int:
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    # Bisection compares slices at C speed; character by character is far slower on a long line.
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
