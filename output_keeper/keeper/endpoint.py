"""The record endpoint: the keeper's sixth socket, where followers get the record and ask for grants.

It belongs to the recorder's thread. A follower that reads slowly never holds the keeper up: past ``UNACKED_LIMIT``
bytes nothing more is sent to it until it asks for what it is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq
from pycrdt import YMessageType, YSyncMessageType, create_update_message, handle_sync_message

from output_keeper.errors import SyncError
from output_keeper.record.document import RecordDocument
from output_keeper.record.sync import ENDPOINT, Conversation

UNACKED_LIMIT = 8 * 1024 * 1024  # bytes a follower may leave unacknowledged
FOLLOWERS_LIMIT = 64  # conversations kept; the one that was silent longest makes room


@dataclass
class _Follower:
    conversation: Conversation
    synced: bool = False
    behind: bool = False
    unacked: int = 0


class Endpoint:
    """Serve one record on a ROUTER socket.

    ``request`` is called with a message's type and header for everything that is not about syncing (``grant``,
    ``release``, ``status``); what it returns, if anything, is sent back under the same type.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        key: bytes,
        record: RecordDocument,
        request: Callable[[str, dict[str, Any]], dict[str, Any] | None],
        log: logging.Logger,
    ) -> None:
        self._key = key
        self._record = record
        self._request = request
        self._log = log
        self._followers: dict[bytes, _Follower] = {}
        self.refused = 0  # messages that could not be trusted
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 1000  # ms: the last update after the kernel's end
        self.socket.set(zmq.ROUTER_MANDATORY, 1)
        self.socket.set(zmq.MAXMSGSIZE, 64 * 1024 * 1024)
        self.socket.bind(address)
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def followers(self) -> int:
        """How many followers have the record."""
        return sum(follower.synced for follower in self._followers.values())

    def receive(self) -> None:
        """Take every message that has arrived. Nothing a peer sends raises out of here."""
        while True:
            try:
                identity, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._message(identity, frames)
            except (SyncError, ValueError) as error:  # ValueError: not JSON, not a Y message
                self.refused += 1
                self._log.warning("! record endpoint: %s", error)

    def publish(self, update: bytes) -> None:
        """Send an update to every follower that has the record so far."""
        message = create_update_message(update)
        for identity, follower in list(self._followers.items()):
            if follower.synced and not follower.behind:
                self._push(identity, follower, message)

    def close(self) -> None:
        """Say goodbye and close; what is queued is sent for at most the socket's linger."""
        for identity, follower in list(self._followers.items()):
            self._send(identity, follower, "bye")
        self.socket.close()

    def _message(self, identity: bytes, frames: list[bytes]) -> None:
        follower = self._followers.get(identity)
        if follower is None or not follower.conversation.established or _is_hello(frames):
            conversation = Conversation(self._key, ENDPOINT)
            answer = conversation.welcome(frames)
            if len(self._followers) >= FOLLOWERS_LIMIT:
                del self._followers[next(iter(self._followers))]
            self._followers[identity] = _Follower(conversation)
            self._route(identity, answer)
            return
        header, payload = follower.conversation.open(frames)
        kind = str(header.get("type"))
        if kind == "sync":
            self._sync(identity, follower, payload)
        elif kind == "ack":
            follower.unacked = max(0, follower.unacked - int(header.get("bytes", 0)))
        elif kind != "ping":
            answer_fields = self._request(kind, header)
            if answer_fields is not None:
                self._send(identity, follower, kind, **answer_fields)

    def _sync(self, identity: bytes, follower: _Follower, payload: bytes) -> None:
        """Answer a follower's state vector with what it is missing; from here on it gets every update."""
        if payload[:2] != bytes([YMessageType.SYNC, YSyncMessageType.SYNC_STEP1]):
            raise SyncError("a follower asks with its state vector and changes nothing")
        reply = handle_sync_message(payload[1:], self._record.doc)
        follower.synced, follower.behind, follower.unacked = True, False, 0
        if reply is not None:
            self._push(identity, follower, reply)

    def _push(self, identity: bytes, follower: _Follower, message: bytes) -> None:
        if follower.unacked > UNACKED_LIMIT:
            follower.behind = True
            self._send(identity, follower, "behind")
            return
        follower.unacked += len(message)
        self._send(identity, follower, "update", message)

    def _send(
        self, identity: bytes, follower: _Follower, kind: str, payload: bytes = b"", **fields: Any
    ) -> None:
        self._route(identity, follower.conversation.seal(kind, payload, **fields))

    def _route(self, identity: bytes, frames: list[bytes]) -> None:
        try:
            self.socket.send_multipart([identity, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            # Gone, or so far behind that its queue is full: it starts over with a hello.
            self._followers.pop(identity, None)
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise


def _is_hello(frames: list[bytes]) -> bool:
    """Tell a greeting from the rest without trusting it: `Conversation.welcome` verifies it."""
    return len(frames) == 3 and b'"type":"hello"' in frames[1]
