"""The record endpoint on real sockets: followers are current, slow ones are bounded, strangers get nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from harness import wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycrdt import create_sync_message, create_update_message, handle_sync_message

from output_keeper.errors import LaunchFailed, SyncError
from output_keeper.keeper.endpoint import FOLLOWERS_LIMIT, UNACKED_BYTES, UNACKED_MESSAGES, Endpoint
from output_keeper.protocol.outputs import AddOutput, EditStream
from output_keeper.record.document import RecordDocument
from output_keeper.record.sync import FOLLOWER, Conversation

KEY = b"the connection's key"

Context = zmq.Context[zmq.Socket[bytes]]


class Served:
    """A record and its endpoint, turned by hand: one step takes what has arrived."""

    def __init__(self, context: Context, address: str, clients: Context) -> None:
        self.record = RecordDocument("k")
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.clients = clients
        self.followers: list[Client] = []
        self.updates: list[bytes] = []
        with self.record.transaction():
            self.record.begin("2024-01-01T00:00:00Z")
            self.record.add("m", seq=0, start=0, cell_id="c", code="", session="s", owner="open", requested=None)
            self.record.change("m", [AddOutput({"output_type": "stream", "name": "stdout", "text": "begin\n"})])
        self.record.observe_updates(self.updates.append)
        self.endpoint = Endpoint(context, address, KEY, self.record, self.request, logging.getLogger("test"))

    def request(self, kind: str, header: dict[str, Any]) -> dict[str, Any] | None:
        self.requests.append((kind, header))
        return {"status": {"recording": True}} if kind == "status" else None

    def print(self, text: str) -> None:
        with self.record.transaction():
            self.record.change("m", [EditStream(0, 0, text)])
        for update in self.updates:
            self.endpoint.publish(update)
        self.updates.clear()

    def turn(self) -> None:
        self.endpoint.socket.poll(1)
        self.endpoint.receive()

    def until(self, condition: Callable[[], object]) -> None:
        def turned() -> object:
            self.turn()
            for follower in self.followers:
                if follower.reading:
                    follower.read()
            return condition()

        wait_until(turned, every=0)

    def client(self, key: bytes = KEY, *, follows: bool = True) -> Client:
        client = Client(self.clients, self.endpoint.address, key, follows=follows)
        self.followers.append(client)
        return client

    def leave(self, client: Client) -> None:
        self.followers.remove(client)
        client.socket.close()

    def close(self) -> None:
        if not self.endpoint.socket.closed:
            self.endpoint.socket.close(linger=0)
        for client in self.followers:
            client.socket.close()

    def follower(self) -> Client:
        client = self.client()
        self.until(lambda: client.record.msg_ids())
        return client


class Client:
    """A follower as server/follower.py is one, without a loop."""

    def __init__(self, context: Context, address: str, key: bytes, *, follows: bool = True) -> None:
        self.record = RecordDocument()
        self.reading = True
        self.follows = follows
        self.heard: list[str] = []
        self.largest = 0
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = 1  # what is not read piles up at the endpoint
        self.socket.connect(address)
        self.key = key
        self.greet()

    def greet(self) -> None:
        self.conversation = Conversation(self.key, FOLLOWER)
        self.socket.send_multipart(self.conversation.hello())

    def say(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        self.socket.send_multipart(self.conversation.seal(kind, payload, **fields))

    def sync(self) -> None:
        self.say("sync", create_sync_message(self.record.doc))

    def read(self) -> None:
        while self.socket.poll(0):
            frames = self.socket.recv_multipart()
            if not self.conversation.established:
                self.conversation.accept(frames)
                if self.follows:
                    self.sync()
                continue
            header, payload = self.conversation.open(frames)
            self.heard.append(header["type"])
            if header["type"] == "update":
                self.largest = max(self.largest, len(payload))
                handle_sync_message(payload[1:], self.record.doc)
                self.say("ack")
            elif header["type"] == "behind":
                self.sync()

    @property
    def text(self) -> str:
        outputs = self.record.outputs("m") if "m" in self.record else []
        return str(outputs[0]["text"]) if outputs else ""


@pytest.fixture
def clients() -> Iterator[Context]:
    made: Context = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture(params=["tcp", "ipc"])
def served(request: pytest.FixtureRequest, tmp_path: Path, clients: Context) -> Iterator[Served]:
    context: Context = zmq.Context()
    address = "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path / 's'}"
    made = Served(context, address, clients)
    yield made
    made.close()
    context.destroy(linger=0)


@pytest.fixture
def over_ipc(tmp_path: Path, clients: Context) -> Iterator[Served]:
    context: Context = zmq.Context()
    made = Served(context, f"ipc://{tmp_path / 's'}", clients)
    yield made
    made.close()
    context.destroy(linger=0)


# -- following


def test_a_follower_gets_everything_and_stays_current(served: Served) -> None:
    follower = served.follower()
    assert follower.text == "begin\n"
    for number in range(50):
        served.print(f"{number}\n")
    whole = "begin\n" + "".join(f"{number}\n" for number in range(50))
    served.until(lambda: follower.text == whole)
    late = served.follower()
    assert late.text == whole
    assert served.endpoint.followers == 2
    assert served.endpoint.refused == 0


def test_a_follower_that_comes_back_gets_what_it_missed_and_not_all_again(over_ipc: Served) -> None:
    over_ipc.print("x" * 1_000_000)
    follower = over_ipc.follower()
    follower.reading, follower.largest = False, 0
    over_ipc.print("missed\n")
    follower.greet()
    follower.reading = True
    with pytest.raises(SyncError):  # what was on the way belongs to the conversation before
        follower.read()
    over_ipc.until(lambda: follower.text.endswith("missed\n"))
    assert follower.largest < 10_000


def test_who_does_not_ask_for_the_record_gets_no_updates(over_ipc: Served) -> None:
    follower, asker = over_ipc.follower(), over_ipc.client(follows=False)
    over_ipc.until(lambda: asker.conversation.established)
    over_ipc.print("x")
    over_ipc.until(lambda: follower.text.endswith("x"))
    asker.say("status")
    over_ipc.until(lambda: asker.heard)
    assert asker.heard == ["status"]
    assert over_ipc.endpoint.followers == 1


@pytest.mark.parametrize(("size", "count"), [(1, UNACKED_MESSAGES + 200), (UNACKED_BYTES // 8, 40)])
def test_a_slow_follower_falls_behind_with_bounded_memory_and_catches_up(
    over_ipc: Served, size: int, count: int
) -> None:
    slow, quick = over_ipc.follower(), over_ipc.follower()
    over_ipc.until(lambda: slow.heard.count("update") == 1)
    over_ipc.turn()
    slow.reading = False
    slow.heard.clear()
    for _ in range(count):
        over_ipc.print("x" * size)
        over_ipc.until(lambda: quick.record.doc.get_state() == over_ipc.record.doc.get_state())
    slow.reading = True
    expected = "begin\n" + "x" * size * count
    assert quick.text == expected
    over_ipc.until(lambda: slow.text == expected)
    behind = slow.heard.index("behind")
    assert slow.heard.count("behind") == 1
    assert behind <= min(UNACKED_MESSAGES, UNACKED_BYTES // size + 2)  # no more than that was waiting for it
    assert slow.heard[behind:].count("update") == 1  # what it missed came in one piece
    assert "behind" not in quick.heard
    over_ipc.print("and on")
    over_ipc.until(lambda: slow.text.endswith("and on"))


def test_a_follower_that_vanishes_is_forgotten(served: Served) -> None:
    gone, stays = served.follower(), served.follower()
    assert served.endpoint.followers == 2
    served.leave(gone)

    def forgotten() -> bool:
        served.print("x")
        return served.endpoint.followers == 1

    served.until(forgotten)
    served.print("end")
    served.until(lambda: stays.text.endswith("end"))


def test_who_only_asks_makes_room_before_who_follows(over_ipc: Served) -> None:
    first = over_ipc.follower()
    for _ in range(FOLLOWERS_LIMIT + 10):
        asker = over_ipc.client(follows=False)
        over_ipc.until(lambda asker=asker: asker.conversation.established)  # type: ignore[misc]
        over_ipc.leave(asker)
    over_ipc.print("still here")
    over_ipc.until(lambda: first.text.endswith("still here"))


def test_of_too_many_followers_the_one_silent_longest_makes_room_and_can_greet_again(over_ipc: Served) -> None:
    followers = [over_ipc.follower() for _ in range(FOLLOWERS_LIMIT)]
    over_ipc.until(lambda: all(follower.heard.count("update") == 1 for follower in followers))
    followers[0].say("ping")
    over_ipc.until(lambda: "ping" in followers[0].heard)
    newest = over_ipc.follower()
    assert over_ipc.endpoint.followers == FOLLOWERS_LIMIT
    over_ipc.print("x")
    over_ipc.until(lambda: newest.text.endswith("x") and followers[0].text.endswith("x"))
    lost = [follower for follower in followers if not follower.text.endswith("x")]
    assert lost == [followers[1]]
    lost[0].say("ping")
    over_ipc.until(lambda: over_ipc.endpoint.refused == 1)
    lost[0].greet()
    over_ipc.until(lambda: lost[0].text.endswith("x"))


def test_a_ping_is_answered(over_ipc: Served) -> None:
    follower = over_ipc.follower()
    follower.say("ping")
    over_ipc.until(lambda: "ping" in follower.heard)


def test_a_follower_is_told_of_the_end_after_everything_else(served: Served) -> None:
    follower = served.follower()
    served.print("last words")
    served.endpoint.close()
    wait_until(lambda: (follower.read(), follower.heard[-1:] == ["bye"])[1])
    assert follower.text == "begin\nlast words"


# -- asking


def test_requests_reach_the_keeper_and_their_answer_the_asker(served: Served) -> None:
    follower, other = served.follower(), served.follower()
    follower.say("grant", msg_id="m")
    follower.say("release", msg_id="n")
    follower.say("status")
    served.until(lambda: "status" in follower.heard)
    assert [(kind, header.get("msg_id")) for kind, header in served.requests] == [
        ("grant", "m"),
        ("release", "n"),
        ("status", None),
    ]
    assert "status" not in other.heard


# -- strangers and worse


def test_without_the_key_nothing_is_answered(served: Served) -> None:
    stranger = served.client(b"another key")
    served.until(lambda: served.endpoint.refused == 1)
    served.print("secret")
    follower = served.follower()
    assert follower.text.endswith("secret")
    assert not stranger.socket.poll(0)


def test_an_empty_key_has_no_endpoint(clients: Context) -> None:
    with pytest.raises(SyncError, match="without a key"):
        Endpoint(clients, "tcp://127.0.0.1:*", b"", RecordDocument(), lambda *_: None, logging.getLogger("test"))


def test_an_address_in_use_is_said(served: Served, clients: Context, tmp_path: Path) -> None:
    taken = served.endpoint.address
    if taken.startswith(
        "ipc"
    ):  # a socket file that is there is replaced: it is left over from a keeper that was killed
        taken = f"ipc://{tmp_path / 'none' / 's'}"
    with pytest.raises(LaunchFailed, match="cannot bind the record endpoint"):
        Endpoint(clients, taken, KEY, RecordDocument(), lambda *_: None, logging.getLogger("test"))


@pytest.mark.parametrize(
    "payload",
    [
        create_update_message(RecordDocument().doc.get_update()),
        b"",
        b"\0",
        b"\1",
        b"\0\1\1\0",  # a sync step 2
        b"\0\2\2\0\0",  # an update
        b"\0\0",
        b"\0\0\x80",
        b"\0\0\xff\xff\xff\xff\x0f",
        b"\0\0\5abc",
    ],
)
def test_a_follower_cannot_write_or_break_the_record(over_ipc: Served, payload: bytes) -> None:
    follower = over_ipc.follower()
    before = over_ipc.record.doc.get_update()
    follower.say("sync", payload)
    over_ipc.until(lambda: over_ipc.endpoint.refused == 1)
    assert over_ipc.record.doc.get_update() == before
    over_ipc.print("still served")
    over_ipc.until(lambda: follower.text.endswith("still served"))


def test_an_update_that_a_follower_sends_is_not_merged(over_ipc: Served) -> None:
    forged = RecordDocument("k")
    with forged.transaction():
        forged.begin("2000-01-01T00:00:00Z")
    follower = over_ipc.follower()
    follower.say("sync", create_update_message(forged.doc.get_update()))
    over_ipc.until(lambda: over_ipc.endpoint.refused == 1)
    assert len(over_ipc.record.starts) == 1


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=2), max_leaves=3
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5))
def test_any_frames_of_a_stranger_are_counted(over_ipc: Served, frames: list[bytes]) -> None:
    before = over_ipc.endpoint.refused
    with over_ipc.clients.socket(zmq.DEALER) as socket:
        socket.connect(over_ipc.endpoint.address)
        socket.send_multipart(frames)
        over_ipc.until(lambda: over_ipc.endpoint.refused == before + 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["sync", "ack", "grant", "status", "hello", "unheard of"]),
    st.dictionaries(st.sampled_from(["msg_id", "bytes", "protocol", "nonce", "status"]), values),
    st.binary(max_size=20),
)
def test_nothing_that_the_key_seals_raises(over_ipc: Served, kind: str, fields: dict[str, Any], payload: bytes) -> None:
    """A follower of another version may say anything."""
    follower = over_ipc.follower()
    follower.conversation._sent += 1
    header = json.dumps({**fields, "type": kind, "n": follower.conversation._sent}).encode()
    follower.socket.send_multipart([follower.conversation._digest(FOLLOWER, header, payload), header, payload])
    last = over_ipc.follower()
    over_ipc.print("x")
    over_ipc.until(lambda: last.text.endswith("x"))
    over_ipc.leave(follower)
    over_ipc.leave(last)
