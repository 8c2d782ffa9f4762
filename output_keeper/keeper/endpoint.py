"""The record endpoint: the keeper's sixth socket, where followers get the record and ask for grants.

It belongs to the recorder's thread. A follower that reads slowly never holds the keeper up: past ``UNACKED_BYTES`` or
``UNACKED_MESSAGES`` nothing more is sent to it until it asks for what it is missing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq
from pycrdt import YMessageType, YSyncMessageType, create_update_message, handle_sync_message

from output_keeper.errors import LaunchFailed, SyncError
from output_keeper.record.document import RecordDocument
from output_keeper.record.sync import ENDPOINT, Conversation

UNACKED_BYTES = 8 * 1024 * 1024  # that a follower may leave unacknowledged
UNACKED_MESSAGES = 1000
FOLLOWERS_LIMIT = 64  # conversations kept; one that only asked makes room first, else the one silent longest
BATCH = 256  # messages taken before the recorder has its turn


@dataclass
class _Follower:
    conversation: Conversation
    synced: bool = False
    behind: bool = False
    unacked: deque[int] = field(default_factory=deque)
    """The sizes of the updates that were sent and not acknowledged."""


class Endpoint:
    """Serve one record on a ROUTER socket.

    ``request`` is called with a message's type and header for everything that is not about syncing (``grant``,
    ``release``, ``status``); what it returns, if anything, is sent back under the same type.

    Raises `SyncError` for an empty key, `LaunchFailed` when the address cannot be bound.
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
        Conversation(key, ENDPOINT)  # refuses an empty key
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
        self.socket.sndhwm = 0  # a full queue would lose an update in the middle; UNACKED_* bound it
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            self.socket.close()
            raise LaunchFailed(f"cannot bind the record endpoint at {address}: {error.strerror}") from error
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def followers(self) -> int:
        """How many followers have the record."""
        return sum(follower.synced for follower in self._followers.values())

    def receive(self) -> None:
        """Take what has arrived, at most ``BATCH`` messages. Nothing a peer sends raises out of here."""
        for _ in range(BATCH):
            try:
                identity, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._message(identity, frames)
            except SyncError as error:
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
            self._followers.pop(identity, None)
            if len(self._followers) >= FOLLOWERS_LIMIT:
                del self._followers[min(self._followers, key=lambda each: self._followers[each].synced)]
            self._followers[identity] = _Follower(conversation)
            self._route(identity, answer)
            return
        header, payload = follower.conversation.open(frames)
        self._followers[identity] = self._followers.pop(identity)  # in the order in which they were last heard
        kind = str(header.get("type"))
        if kind == "sync":
            self._sync(identity, follower, payload)
        elif kind == "ack":
            if follower.unacked:
                follower.unacked.popleft()
        elif kind == "ping":
            self._send(identity, follower, "ping")
        else:
            answer_fields = self._request(kind, header)
            if answer_fields is not None:
                self._send(identity, follower, kind, **answer_fields)

    def _sync(self, identity: bytes, follower: _Follower, payload: bytes) -> None:
        """Answer a follower's state vector with what it is missing; from here on it gets every update."""
        if payload[:2] != bytes([YMessageType.SYNC, YSyncMessageType.SYNC_STEP1]):
            raise SyncError("a follower asks with its state vector and changes nothing")
        try:
            reply = handle_sync_message(payload[1:], self._record.doc)
        except (ValueError, IndexError, AssertionError) as error:  # what pycrdt makes of a cut or garbled one
            raise SyncError(f"this is not a state vector: {error}") from error
        follower.synced, follower.behind = True, False
        assert reply is not None
        self._push(identity, follower, reply)

    def _push(self, identity: bytes, follower: _Follower, message: bytes) -> None:
        if len(follower.unacked) >= UNACKED_MESSAGES or sum(follower.unacked) > UNACKED_BYTES:
            follower.behind = True
            self._send(identity, follower, "behind")
            return
        follower.unacked.append(len(message))
        self._send(identity, follower, "update", message)

    def _send(self, identity: bytes, follower: _Follower, kind: str, payload: bytes = b"", **fields: Any) -> None:
        self._route(identity, follower.conversation.seal(kind, payload, **fields))

    def _route(self, identity: bytes, frames: list[bytes]) -> None:
        try:
            self.socket.send_multipart([identity, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._followers.pop(identity, None)  # gone


def _is_hello(frames: list[bytes]) -> bool:
    """Tell a greeting from the rest without trusting it: `Conversation.welcome` verifies it."""
    return len(frames) == 3 and b'"type":"hello"' in frames[1]
