"""The greeting of a new iopub subscription (messaging spec, "iopub_welcome").

A kernel that greets its subscribers greets only the keeper, which subscribes once to everything. So the keeper greets
in its place, if and only if the kernel does.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from output_keeper.errors import WireError
from output_keeper.protocol.messages import DELIMITER, Message, Signer, parse, serialize


class Welcomes:
    """Greet subscriptions as the kernel greeted ours; ``send`` publishes frames on the clients' side."""

    def __init__(self, signer: Signer, send: Callable[[list[bytes]], object]) -> None:
        self._signer = signer
        self._send = send
        self._kernels: dict[str, Any] | None = None  # the header of the kernel's greeting
        self._waiting: dict[bytes, None] = {}  # topics that were subscribed to before we knew whether it greets

    def subscription(self, frames: list[bytes]) -> None:
        """Take what an XPUB received: 1 and a topic for a subscription, 0 and a topic for its end."""
        event, topic = frames[0][:1], frames[0][1:]
        if event == b"\x01" and self._kernels is not None:
            self._greet(topic, self._kernels)
        elif event == b"\x01":
            self._waiting[topic] = None
        elif event == b"\x00":
            self._waiting.pop(topic, None)

    def published(self, frames: list[bytes]) -> None:
        """Look whether this message of the kernel is its greeting.

        It is forwarded like any other, and so reaches those who subscribed to everything.
        """
        if self._kernels is not None or frames[0] != DELIMITER or b'"iopub_welcome"' not in header_part(frames):
            return
        try:
            self._kernels = parse(frames, self._signer).header
        except WireError:
            return
        for topic in self._waiting:
            if topic:
                self._greet(topic, self._kernels)
        self._waiting.clear()

    def _greet(self, topic: bytes, kernel: dict[str, Any]) -> None:
        try:
            subscription = topic.decode()
        except UnicodeDecodeError:
            return
        header = kernel | {"msg_id": uuid.uuid4().hex, "date": datetime.now(timezone.utc).isoformat()}
        message = Message(
            idents=(topic,) if topic else (),
            header=header,
            parent_header={},
            metadata={},
            content={"subscription": subscription},
        )
        self._send(serialize(message, self._signer))


def header_part(frames: list[bytes]) -> bytes:
    """Give the header's frame, undecoded; empty when there is none."""
    try:
        return frames[frames.index(DELIMITER) + 2]
    except (ValueError, IndexError):
        return b""
