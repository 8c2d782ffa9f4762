"""A conversation takes what was sealed for it, here and now, and nothing else."""

from __future__ import annotations

import hmac
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from output_keeper.errors import SyncError
from output_keeper.record.sync import ENDPOINT, FOLLOWER, MESSAGES, PROTOCOL, Conversation

KEY = b"the connection's key"

Frames = list[bytes]


def conversation(key: bytes = KEY) -> tuple[Conversation, Conversation]:
    follower, endpoint = Conversation(key, FOLLOWER), Conversation(key, ENDPOINT)
    follower.accept(endpoint.welcome(follower.hello()))
    return follower, endpoint


def sealed(header: bytes, payload: bytes = b"", *, side: bytes = FOLLOWER, key: bytes = KEY) -> Frames:
    """As docs/record-format.md says, without the code under test."""
    return [
        hmac.digest(key, side + len(header).to_bytes(8, "big") + header + payload, "sha256"),
        header,
        payload,
    ]


def test_what_one_side_seals_the_other_opens() -> None:
    follower, endpoint = conversation()
    for number in range(3):
        assert endpoint.open(follower.seal("grant", b"\0payload", msg_id="ü")) == (
            {"type": "grant", "msg_id": "ü", "n": number + 1},
            b"\0payload",
        )
        assert follower.open(endpoint.seal("update"))[0]["type"] == "update"


def test_a_seal_is_what_the_description_says() -> None:
    follower = Conversation(KEY, FOLLOWER)
    hello = follower.hello()
    assert hello == sealed(hello[1])
    endpoint = Conversation(KEY, ENDPOINT)
    welcome = endpoint.welcome(hello)
    assert welcome == sealed(welcome[1], side=ENDPOINT)
    follower.accept(welcome)
    nonces = json.loads(hello[1])["nonce"] + json.loads(welcome[1])["nonce"]
    said = follower.seal("sync", b"payload")
    assert said == sealed(said[1], b"payload", key=hmac.digest(KEY, nonces.encode(), "sha256"))


def test_an_empty_key_is_refused() -> None:
    for side in (FOLLOWER, ENDPOINT):
        with pytest.raises(SyncError, match="without a key"):
            Conversation(b"", side)


def test_another_key_is_refused() -> None:
    endpoint = Conversation(KEY, ENDPOINT)
    with pytest.raises(SyncError):
        endpoint.welcome(Conversation(b"another", FOLLOWER).hello())
    assert not endpoint.established


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_message_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    follower, endpoint = conversation()
    said = follower.seal("grant", b"some payload", msg_id="m")
    frame = data.draw(st.integers(0, 2))
    place = data.draw(st.integers(0, len(said[frame]) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(said[frame])
    changed[place] ^= flip
    with pytest.raises(SyncError):
        endpoint.open([*said[:frame], bytes(changed), *said[frame + 1 :]])
    assert endpoint.open(said)[1] == b"some payload"  # what was refused left no trace


def test_bytes_cannot_move_between_header_and_payload() -> None:
    follower, endpoint = conversation()
    seal, header, payload = follower.seal("grant", b"payload")
    for cut in range(len(header)):
        with pytest.raises(SyncError):
            endpoint.open([seal, header[:cut], header[cut:] + payload])


def test_a_message_comes_once() -> None:
    follower, endpoint = conversation()
    said = follower.seal("grant")
    endpoint.open(said)
    with pytest.raises(SyncError, match="repeated or lost"):
        endpoint.open(said)


def test_messages_come_in_their_order_and_none_is_left_out() -> None:
    follower, endpoint = conversation()
    first, second, third = (follower.seal("grant", bytes([number])) for number in range(3))
    for early in (second, third):
        with pytest.raises(SyncError, match="repeated or lost"):
            endpoint.open(early)
    assert [endpoint.open(said)[1] for said in (first, second, third)] == [b"\0", b"\1", b"\2"]


def test_a_message_of_another_conversation_is_refused() -> None:
    follower, endpoint = conversation()
    other_follower, other_endpoint = conversation()
    with pytest.raises(SyncError, match="seal"):
        endpoint.open(other_follower.seal("grant"))
    with pytest.raises(SyncError, match="seal"):
        follower.open(other_endpoint.seal("update"))


def test_a_message_cannot_be_sent_back_to_who_sent_it() -> None:
    follower, endpoint = conversation()
    with pytest.raises(SyncError, match="seal"):
        follower.open(follower.seal("grant"))
    with pytest.raises(SyncError, match="seal"):
        endpoint.open(endpoint.seal("update"))


def test_a_welcome_answers_one_hello_only() -> None:
    follower, other = Conversation(KEY, FOLLOWER), Conversation(KEY, FOLLOWER)
    welcome = Conversation(KEY, ENDPOINT).welcome(follower.hello())
    with pytest.raises(SyncError, match="not the answer"):
        other.accept(welcome)
    with pytest.raises(SyncError):
        follower.accept(other.hello())
    assert not other.established


def test_who_repeats_a_hello_learns_no_key() -> None:
    follower = Conversation(KEY, FOLLOWER)
    hello = follower.hello()
    follower.accept(Conversation(KEY, ENDPOINT).welcome(hello))
    endpoint = Conversation(KEY, ENDPOINT)
    endpoint.welcome(hello)  # somebody listened and says it again
    with pytest.raises(SyncError, match="seal"):
        endpoint.open(follower.seal("grant"))


def test_nothing_is_said_or_heard_before_the_greeting() -> None:
    follower, endpoint = Conversation(KEY, FOLLOWER), Conversation(KEY, ENDPOINT)
    for side in (follower, endpoint):
        with pytest.raises(SyncError, match="no conversation"):
            side.seal("grant")
        with pytest.raises(SyncError, match="no conversation"):
            side.open(sealed(b"{}"))


def test_another_protocol_is_told_apart() -> None:
    hello = json.dumps({"type": "hello", "protocol": PROTOCOL + 1, "nonce": "x", "n": 1}).encode()
    with pytest.raises(SyncError, match=rf"speaks protocol {PROTOCOL + 1}.*restart the kernel"):
        Conversation(KEY, ENDPOINT).welcome(sealed(hello))


@settings(max_examples=200, deadline=None)
@given(st.binary() | st.sampled_from([b"[]", b"null", b"1e999", b"[" * 5000, b'"n"', b'{"n": "1"}', b'{"n":1}']))
def test_a_header_of_any_bytes_raises_nothing_else(header: bytes) -> None:
    """Only who has the key can send one; a mistake there must not end anything here."""
    with pytest.raises(SyncError):
        Conversation(KEY, ENDPOINT).welcome(sealed(header))
    with pytest.raises(SyncError):
        Conversation(KEY, FOLLOWER).accept(sealed(header, side=ENDPOINT))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_frames_raise_nothing_else(frames: Frames) -> None:
    _, endpoint = conversation()
    for side in (Conversation(KEY, ENDPOINT).welcome, endpoint.open):
        with pytest.raises(SyncError):
            side(frames)


def test_a_nonce_that_is_no_text_is_refused_and_an_odd_one_is_none_of_our_business() -> None:
    for nonce in (1, None, [], {}):
        hello = json.dumps({"type": "hello", "protocol": PROTOCOL, "nonce": nonce, "n": 1}).encode()
        with pytest.raises(SyncError):
            Conversation(KEY, ENDPOINT).welcome(sealed(hello))
    odd = b'{"type":"hello","protocol":1,"nonce":"\\ud800","n":1}'
    assert Conversation(KEY, ENDPOINT).welcome(sealed(odd))


def test_text_that_is_no_unicode_goes_through() -> None:
    """A path in an error message can have bytes that are no UTF-8."""
    follower, endpoint = conversation()
    header, _ = follower.open(endpoint.seal("status", error="/tmp/\udcff"))
    assert header["error"] == "/tmp/\udcff"


def test_a_side_says_only_its_own_messages() -> None:
    follower, endpoint = conversation()
    for side, kind in ((follower, "update"), (endpoint, "grant"), (follower, "unheard of")):
        with pytest.raises(SyncError, match="does not say"):
            side.seal(kind)
    assert endpoint.open(follower.seal("ping"))[0]["n"] == 1  # what was not said was not counted


def test_the_description_names_every_message() -> None:
    text = (Path(__file__).parents[2] / "docs" / "record-format.md").read_text()
    table = text[text.index("| type | from | fields |") :].split("\n\n")[0]
    described: dict[bytes, set[str]] = {FOLLOWER: set(), ENDPOINT: set()}
    for row in table.splitlines()[2:]:
        kinds, sender = row.split("|")[1:3]
        for side in (FOLLOWER, ENDPOINT):
            if sender.strip() in ("both", side.decode()):
                described[side] |= set(re.findall(r"`(\w+)`", kinds))
    assert described == MESSAGES
