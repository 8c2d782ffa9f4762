"""Who shows the outputs of an execution: the client that asked for it, or the server (design, "One writer").

A stock browser writes the outputs it receives into the document, and so does a server that was granted an
execution. So each execution has one owner, decided once:

    OPEN ──grant──▶ GRANTED     output messages are withheld from clients for ever
      └──release─▶ RELEASED     everything is forwarded

While it is open its outputs are held. No sockets and no clock in here: the proxy calls, passes ``now``, and
sends what comes back. Not thread-safe: one thread, the proxy's, uses it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeVar

from output_keeper.protocol.messages import OUTPUT_TYPES

Frames = list[bytes]
_Value = TypeVar("_Value")

HELD_LIMIT: Final = 64 * 1024 * 1024
"""Bytes held for all open executions together; the execution that goes beyond is released."""

REMEMBERED: Final = 20_000
"""Decided executions and released sessions that are remembered; the oldest is forgotten first."""


class Owner(str, Enum):
    """Who shows an execution's outputs."""

    OPEN = "open"
    GRANTED = "granted"
    RELEASED = "released"


@dataclass(slots=True)
class _Held:
    """One held message; ``output`` when a grant withholds it."""

    frames: Frames
    output: bool
    size: int


@dataclass(slots=True)
class _Open:
    """An execution that waits for its decision."""

    session: str
    since: float
    held: list[_Held] = field(default_factory=list)
    size: int = 0


class Grants:
    """The owners of all executions of one kernel, and what is held meanwhile.

    ``expect`` says whether a server that asks for grants is there at all: without one nothing is ever held.
    ``hold_for`` is how long an execution stays open, in seconds.
    """

    def __init__(
        self, expect: bool, hold_for: float, *, held_limit: int = HELD_LIMIT, remembered: int = REMEMBERED
    ) -> None:
        self.expect = expect
        self.hold_for = hold_for
        self.held_bytes = 0
        self.held_count = 0
        self.withheld_count = 0
        self._held_limit = held_limit
        self._remembered = remembered
        self._open: dict[str, _Open] = {}
        self._decided: OrderedDict[str, Owner] = OrderedDict()
        self._released_sessions: OrderedDict[str, None] = OrderedDict()
        self._untold: list[tuple[str, Owner]] = []

    def requested(self, msg_id: str, session: str, cell_id: str | None, now: float) -> Owner:
        """Note an execute_request, before the kernel can see it.

        It is open if somebody is expected to ask for it, it names its cell, and nothing of this client
        session was released before; else it is released at once. A msg_id seen before keeps its owner.
        """
        if msg_id in self._open or msg_id in self._decided:
            return self.owner(msg_id)
        if not self.expect or cell_id is None or session in self._released_sessions:
            self._decide(msg_id, Owner.RELEASED)
            return Owner.RELEASED
        self._open[msg_id] = _Open(session, now)
        return Owner.OPEN

    def on_iopub(self, parent_id: str | None, msg_type: str, frames: Frames, *, captured: bool = False) -> list[Frames]:
        """Give what to forward now, in order, because of this message of the kernel.

        ``captured``: an Output widget takes this parent's outputs, which its manager in the browser
        consumes from the messages themselves. Such a message is no output here; it only stays behind what
        is already held.
        """
        if parent_id is None:
            return [frames]
        output = msg_type in OUTPUT_TYPES and not captured
        execution = self._open.get(parent_id)
        if execution is None:
            if output and self._decided.get(parent_id) is Owner.GRANTED:
                self.withheld_count += 1
                return []
            return [frames]
        if not output and not execution.held:
            return [frames]
        size = sum(map(len, frames))
        execution.held.append(_Held(frames, output, size))
        execution.size += size
        self.held_bytes += size
        self.held_count += 1
        if self.held_bytes > self._held_limit:
            return self._release(parent_id)
        return []

    def grant(self, msg_id: str) -> tuple[Owner, list[Frames]]:
        """Withhold an open execution's outputs for ever; give its owner and what to forward now, in order.

        Decided once: for an execution that is not open this changes nothing. One that is not known here was
        not held, so its owner is RELEASED.
        """
        if msg_id not in self._open:
            return self.owner(msg_id), []
        held = self._take(msg_id)
        self._decide(msg_id, Owner.GRANTED)
        passed = [each.frames for each in held if not each.output]
        self.withheld_count += len(held) - len(passed)
        return Owner.GRANTED, passed

    def release(self, msg_id: str) -> tuple[Owner, list[Frames]]:
        """Forward all of an open execution; give its owner and what was held, in order.

        Its client session's later executions are not held. Decided once, as `grant`.
        """
        if msg_id not in self._open:
            return self.owner(msg_id), []
        return Owner.RELEASED, self._release(msg_id)

    def expire(self, now: float) -> list[Frames]:
        """Release the executions that were open for ``hold_for``; give what to forward now, in order."""
        # In the order of their requests; one hold_for for all makes that the order of their deadlines.
        due = []
        for msg_id, execution in self._open.items():
            if execution.since + self.hold_for > now:
                break
            due.append(msg_id)
        return [frames for msg_id in due for frames in self._release(msg_id)]

    def release_all(self) -> list[Frames]:
        """Release whatever is open: the kernel has ended, nobody will ask any more."""
        return [frames for msg_id in list(self._open) for frames in self._release(msg_id)]

    def abandon(self) -> list[Frames]:
        """Hold and withhold nothing any more, because nobody records: what comes now goes to the clients.

        Gives what to forward now. Told owners stay as they were told.
        """
        self.expect = False
        held = self.release_all()
        self._decided.clear()
        return held

    def next_deadline(self) -> float | None:
        """Tell when `expire` has something to do, on the clock of ``now``; None when nothing is open."""
        for execution in self._open.values():
            return execution.since + self.hold_for
        return None

    def owner(self, msg_id: str) -> Owner:
        """Give the owner of an execution; RELEASED when it is not known, because nothing of it is held."""
        if msg_id in self._open:
            return Owner.OPEN
        return self._decided.get(msg_id, Owner.RELEASED)

    def forget(self, msg_id: str) -> None:
        """Drop a decided execution long after its end. An open one stays: something of it may be held."""
        self._decided.pop(msg_id, None)

    def take_decided(self) -> list[tuple[str, Owner]]:
        """Give the executions decided since the last call, each of them exactly once, in order."""
        untold, self._untold = self._untold, []
        return untold

    def _release(self, msg_id: str) -> list[Frames]:
        _remember(self._released_sessions, self._open[msg_id].session, None, self._remembered)
        held = self._take(msg_id)
        self._decide(msg_id, Owner.RELEASED)
        return [each.frames for each in held]

    def _take(self, msg_id: str) -> list[_Held]:
        execution = self._open.pop(msg_id)
        self.held_bytes -= execution.size
        self.held_count -= len(execution.held)
        return execution.held

    def _decide(self, msg_id: str, owner: Owner) -> None:
        _remember(self._decided, msg_id, owner, self._remembered)
        self._untold.append((msg_id, owner))


def _remember(known: OrderedDict[str, _Value], key: str, value: _Value, limit: int) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > limit:
        known.popitem(last=False)
