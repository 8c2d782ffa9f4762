"""How a follower and a keeper's record endpoint speak: sealed frames, no sockets.

Every message is three ZMQ frames: ``[seal, header, payload]``. The header is a JSON object with ``type`` and ``n``;
the payload carries a Y sync message or nothing. The seal is HMAC-SHA256 over direction, header and payload.

The connection's key seals the greeting only: the follower sends ``hello`` with a nonce of its own, the endpoint answers
``welcome`` with one of its own, and both derive a key for this conversation from the two. From then on ``n`` must grow
by one with every message of a direction, so a frame that is repeated, reordered or taken from another conversation
is refused. docs/record-format.md has the table of messages.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Sequence
from typing import Any

from output_keeper.errors import SyncError

PROTOCOL = 1
FOLLOWER, ENDPOINT = b"follower", b"endpoint"
MESSAGES = {
    FOLLOWER: frozenset({"hello", "sync", "ack", "grant", "release", "status", "ping"}),
    ENDPOINT: frozenset({"welcome", "update", "behind", "status", "ping", "bye"}),
}
"""What each side may say."""


class Conversation:
    """One side of a conversation. ``key`` is the kernel connection's key and must not be empty."""

    def __init__(self, key: bytes, side: bytes) -> None:
        if not key:
            raise SyncError("a connection without a key has no record endpoint", hint="give the kernel a key")
        self._key = key
        self._side = side
        self._other = ENDPOINT if side == FOLLOWER else FOLLOWER
        self._nonce = secrets.token_hex(16)
        self._sent = 0
        self._received = 0
        self.established = False

    def hello(self) -> list[bytes]:
        """Give the follower's greeting, once."""
        return self._seal({"type": "hello", "protocol": PROTOCOL, "nonce": self._nonce}, b"")

    def welcome(self, frames: Sequence[bytes]) -> list[bytes]:
        """Answer a ``hello`` (endpoint side). Raises `SyncError` when it is not one, or speaks a newer protocol."""
        header, _ = self._open(frames)
        if header.get("type") != "hello" or not isinstance(header.get("nonce"), str):
            raise SyncError("a conversation starts with hello")
        if header.get("protocol") != PROTOCOL:
            raise SyncError(
                f"the follower speaks protocol {header.get('protocol')}, this keeper {PROTOCOL}",
                hint="restart the kernel after an upgrade",
            )
        answer = self._seal({"type": "welcome", "nonce": self._nonce, "to": header["nonce"]}, b"")
        self._establish(header["nonce"] + self._nonce)
        return answer

    def accept(self, frames: Sequence[bytes]) -> None:
        """Take the ``welcome`` (follower side). Raises `SyncError` when it does not answer our ``hello``."""
        header, _ = self._open(frames)
        if header.get("type") != "welcome" or header.get("to") != self._nonce:
            raise SyncError("this is not the answer to our hello")
        self._establish(self._nonce + str(header.get("nonce")))

    def seal(self, kind: str, payload: bytes = b"", **fields: Any) -> list[bytes]:
        """Frames for one message. Raises `SyncError` before the greeting is done, and for what is not in `MESSAGES`."""
        if not self.established:
            raise SyncError("no conversation yet")
        return self._seal({"type": kind, **fields}, payload)

    def open(self, frames: Sequence[bytes]) -> tuple[dict[str, Any], bytes]:
        """Header and payload of a message. Raises `SyncError` on anything that was not sealed for here and now."""
        if not self.established:
            raise SyncError("no conversation yet")
        return self._open(frames)

    def _establish(self, nonces: str) -> None:
        self._key = hmac.digest(self._key, nonces.encode(errors="surrogatepass"), "sha256")
        self._sent = self._received = 0
        self.established = True

    def _seal(self, header: dict[str, Any], payload: bytes) -> list[bytes]:
        if header["type"] not in MESSAGES[self._side]:
            raise SyncError(f"the {self._side.decode()} does not say {header['type']!r}")
        self._sent += 1
        packed = json.dumps({**header, "n": self._sent}, separators=(",", ":")).encode()
        return [self._digest(self._side, packed, payload), packed, payload]

    def _open(self, frames: Sequence[bytes]) -> tuple[dict[str, Any], bytes]:
        if len(frames) != 3:
            raise SyncError(f"a message has three frames, this one {len(frames)}")
        seal, packed, payload = frames
        if not hmac.compare_digest(seal, self._digest(self._other, packed, payload)):
            raise SyncError("the seal is not ours")
        try:
            header = json.loads(packed)
        except (ValueError, RecursionError) as error:
            raise SyncError(f"the header is not JSON: {error}") from error
        if not isinstance(header, dict) or header.get("n") != self._received + 1:
            raise SyncError("a message was repeated or lost")
        self._received += 1
        return header, payload

    def _digest(self, side: bytes, header: bytes, payload: bytes) -> bytes:
        mac = hmac.new(self._key, side, "sha256")
        mac.update(len(header).to_bytes(8, "big"))
        mac.update(header)
        mac.update(payload)
        return mac.digest()
