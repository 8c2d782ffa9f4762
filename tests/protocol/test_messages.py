"""Frames ↔ messages: what jupyter_client reads and writes, and bytes that nobody should have sent."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jupyter_client.session import Session

from output_keeper.errors import BadSignature, ConnectionFileError, MalformedMessage
from output_keeper.protocol.messages import (
    DELIMITER,
    MAX_DEPTH,
    Message,
    Signer,
    build,
    envelope,
    parse,
    serialize,
    well_formed,
)

# A slow machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

KEY = b"a-secret"
SIGNER = Signer(KEY)
HEADER = b'{"msg_id": "m1", "msg_type": "stream", "session": "s1"}'


def frames_of(*parts: bytes, signer: Signer = SIGNER, buffers: tuple[bytes, ...] = ()) -> list[bytes]:
    return [b"topic", DELIMITER, signer.sign(parts), *parts, *buffers]


def content_frames(content: bytes) -> list[bytes]:
    return frames_of(HEADER, b"{}", b"{}", content)


def message(content: dict[str, Any], **kwargs: Any) -> Message:
    return build("stream", content, msg_id="m1", session="s1", date="2026-01-02T03:04:05.678901Z", **kwargs)


# --- jupyter_client on the other side


@pytest.mark.parametrize("key", [b"", KEY])
def test_a_message_of_jupyter_client_is_read(key: bytes) -> None:
    session = Session(key=key)
    parent = session.msg("execute_request", {"code": "1"})
    sent = session.msg("stream", {"name": "stdout", "text": "é\n"}, parent=parent, metadata={"a": 1})
    frames = [b"kernel.topic", *session.serialize(sent), b"\x00\xff"]
    read = parse(frames, Signer(key))
    assert read.idents == (b"kernel.topic",)
    assert (read.msg_id, read.msg_type, read.session) == (sent["header"]["msg_id"], "stream", session.session)
    assert read.parent_id == parent["header"]["msg_id"]
    assert read.content == {"name": "stdout", "text": "é\n"}
    assert read.metadata == {"a": 1}
    assert read.buffers == (b"\x00\xff",)
    assert read.date.startswith(str(sent["header"]["date"].year))
    routed = envelope(frames)
    assert (routed.msg_id, routed.msg_type, routed.session) == (read.msg_id, read.msg_type, read.session)
    assert (routed.parent_id, routed.parent_session) == (read.parent_id, session.session)


@pytest.mark.parametrize("key", [b"", KEY])
@pytest.mark.parametrize("content", [{"text": "é\n"}, {"text": "\ud800"}, {"n": 2**70}, {"x": float("nan")}])
def test_a_message_made_here_is_read_by_jupyter_client(key: bytes, content: dict[str, Any]) -> None:
    made = message(content, parent_header={"msg_id": "p1"}, metadata={"a": 1}, buffers=[b"\x00"], idents=[b"i"])
    session = Session(key=key)
    idents, rest = session.feed_identities(serialize(made, Signer(key)))
    read = session.deserialize(rest)
    assert idents == [b"i"]
    assert (read["msg_id"], read["msg_type"]) == ("m1", "stream")
    assert read["parent_header"]["msg_id"] == "p1"
    assert read["metadata"] == {"a": 1}
    assert bytes(read["buffers"][0]) == b"\x00"
    assert read["content"].keys() == content.keys()
    if content == {"text": "é\n"}:
        assert read["content"] == content


def test_what_is_serialized_is_parsed_back_equal() -> None:
    made = message({"text": "x"}, parent_header={"msg_id": "p"}, metadata={"m": []}, buffers=[b"b"], idents=[b"i"])
    assert parse(serialize(made, SIGNER), SIGNER) == made


# --- signatures


def test_another_key_and_a_missing_signature_are_refused() -> None:
    frames = serialize(message({}), SIGNER)
    with pytest.raises(BadSignature):
        parse(frames, Signer(b"another"))
    frames[frames.index(DELIMITER) + 1] = b""
    with pytest.raises(BadSignature):
        parse(frames, SIGNER)


@pytest.mark.parametrize("part", [1, 2, 3, 4])
def test_one_changed_part_is_refused(part: int) -> None:
    frames = serialize(message({}), SIGNER)
    frames[frames.index(DELIMITER) + 1 + part] += b" "
    with pytest.raises(BadSignature):
        parse(frames, SIGNER)


def test_without_a_key_every_signature_is_accepted() -> None:
    unsigned = Signer(b"")
    frames = serialize(message({}), unsigned)
    assert frames[frames.index(DELIMITER) + 1] == b""
    frames[frames.index(DELIMITER) + 1] = b"whatever"
    assert parse(frames, unsigned) == message({})


def test_another_hash_is_used_when_the_scheme_names_it() -> None:
    sha512 = Signer(KEY, "hmac-sha512")
    assert parse(serialize(message({}), sha512), sha512) == message({})
    assert len(sha512.sign([b"x"])) == 128


@pytest.mark.parametrize("scheme", ["", "sha256", "hmac-", "hmac-nothing", "md5-sha256", "hmac-shake_128"])
@pytest.mark.parametrize("key", [b"", KEY])
def test_an_unknown_scheme_is_refused(scheme: str, key: bytes) -> None:
    with pytest.raises(ConnectionFileError, match="signature_scheme"):
        Signer(key, scheme)


# --- bytes nobody should have sent


@pytest.mark.parametrize(
    "parts",
    [
        (b"[]", b"{}", b"{}", b"{}"),
        (HEADER, b"1", b"{}", b"{}"),
        (HEADER, b"{}", b"null", b"{}"),
        (HEADER, b"{}", b"{}", b'"text"'),
        (HEADER, b"{}", b"{}", b'{"a": '),
        (HEADER, b"{}", b"{}", b""),
        (HEADER, b"{}", b"{}", b"NaN"),
        (HEADER, b"{}", b"{}", b"[NaN]"),
        (HEADER, b"NaN", b"{}", b"{}"),
        (b"{}", b"{}", b"{}", b"{}"),
        (b'{"msg_id": 1, "msg_type": "x"}', b"{}", b"{}", b"{}"),
        (HEADER, b"{}", b"{}", b'{"a":' * 100_000),
        (HEADER, b"{}", b"{}", b'{"a": ' + b"9" * 10_000 + b', "b": NaN}'),
    ],
)
def test_a_part_that_is_no_object_is_malformed(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(MalformedMessage):
        parse(frames_of(*parts), SIGNER)


@pytest.mark.parametrize("count", range(5))
def test_missing_parts_are_malformed(count: int) -> None:
    frames = [b"i", DELIMITER, b"sig", HEADER, b"{}", b"{}"][: 2 + count]
    with pytest.raises(MalformedMessage, match="parts after the delimiter"):
        parse(frames, SIGNER)
    with pytest.raises(MalformedMessage):
        envelope(frames)


def test_frames_without_a_delimiter_are_malformed() -> None:
    with pytest.raises(MalformedMessage, match="no delimiter"):
        parse([b"a", b"b"], SIGNER)


json_bytes = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())
anything = st.binary(max_size=40) | json_bytes | st.just(HEADER) | st.just(b"{}")


@CALM
@given(st.lists(anything | st.just(DELIMITER), max_size=9))
def test_arbitrary_frames_end_in_a_wire_error_or_a_value(frames: list[bytes]) -> None:
    for read in (lambda: envelope(frames), lambda: parse(frames, SIGNER), lambda: parse(frames, Signer(b""))):
        try:
            value = read()
        except (MalformedMessage, BadSignature):
            continue
        assert value.msg_id


@CALM
@given(st.tuples(anything, anything, anything))
def test_well_signed_but_arbitrary_parts_end_in_malformed_or_a_storable_message(
    parts: tuple[bytes, bytes, bytes],
) -> None:
    try:
        read = parse(frames_of(HEADER, *parts), SIGNER)
    except MalformedMessage:
        return
    assert json.loads(orjson.dumps([read.parent_header, read.metadata, read.content])) is not None
    json.dumps([read.parent_header, read.metadata, read.content], allow_nan=False).encode("utf-8")


@pytest.mark.parametrize("parent", [b"{}", b"null"])
def test_no_parent_is_none(parent: bytes) -> None:
    frames = frames_of(HEADER, parent, b"{}", b"{}")
    read = parse(frames, SIGNER)
    assert read.parent_header == {}
    assert read.parent_id is None
    assert envelope(frames).parent_id is None
    assert envelope(frames).parent_session is None


def test_optional_header_fields_have_safe_defaults() -> None:
    read = parse(frames_of(b'{"msg_id": "m", "msg_type": "t", "session": 3}', b'{"msg_id": 4}', b"{}", b"{}"), SIGNER)
    assert (read.session, read.date, read.parent_id) == ("", "", None)


def test_an_envelope_needs_no_valid_content_or_signature() -> None:
    routed = envelope([DELIMITER, b"", HEADER, b'{"msg_id": "p", "session": "s"}', b"\xff", b"\xff"])
    assert (routed.msg_id, routed.parent_id, routed.parent_session) == ("m1", "p", "s")


# --- values that could not be stored


def test_text_that_is_not_utf8_is_read_with_replacement_characters() -> None:
    assert parse(content_frames(b'{"text": "a\xffb"}'), SIGNER).content == {"text": "a\ufffdb"}


def test_lone_surrogates_are_replaced_and_pairs_become_their_character() -> None:
    raw = rb'{"lone": "a\ud800b\udc00", "pair": "\ud83d\ude00", "\udfff": ["\udbff"]}'
    expected = {"lone": "a\ufffdb\ufffd", "pair": "\U0001f600", "\ufffd": ["\ufffd"]}
    assert parse(content_frames(raw), SIGNER).content == expected
    assert parse(frames_of(HEADER, b"{}", raw, b"{}"), SIGNER).metadata == expected


def test_two_halves_next_to_each_other_are_one_character() -> None:
    assert well_formed("\ud83d" + "\ude00") == "\U0001f600"


def test_numbers_that_json_does_not_have_become_null() -> None:
    raw = b'{"a": NaN, "b": [Infinity, -Infinity, 1e999], "c": 1.5}'
    assert parse(content_frames(raw), SIGNER).content == {"a": None, "b": [None, None, None], "c": 1.5}


@pytest.mark.parametrize("number", [2**53 + 2, 2**63 - 1, 2**63, -(2**63) - 1, 2**64 - 1, 2**64, 2**70])
def test_integers_that_a_browser_cannot_hold_become_floats(number: int) -> None:
    for extra in ("", ', "x": NaN'):
        raw = f'{{"n": {number}{extra}}}'.encode()
        assert parse(content_frames(raw), SIGNER).content["n"] == pytest.approx(float(number))
        assert isinstance(parse(content_frames(raw), SIGNER).content["n"], float)


def test_exact_integers_and_booleans_stay() -> None:
    raw = f'{{"n": [{2**53}, {-(2**53)}, true]}}'.encode()
    assert parse(content_frames(raw), SIGNER).content == {"n": [2**53, -(2**53), True]}


def test_nesting_is_read_to_the_limit_and_refused_beyond() -> None:
    def nested(depth: int, end: bytes) -> bytes:
        return b'{"a":' * depth + end + b"}" * depth

    for end in (b"1", b"NaN"):
        read = parse(content_frames(nested(MAX_DEPTH, end)), SIGNER)
        assert parse(serialize(read, SIGNER), SIGNER) == read
        with pytest.raises(MalformedMessage, match="deeper"):
            parse(content_frames(nested(MAX_DEPTH + 1, end)), SIGNER)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 900, 1000, 2000])
def test_nesting_that_only_the_standard_library_reads_is_refused_too(depth: int) -> None:
    header = HEADER[:-1] + b', "a": ' + b"[" * depth + b"NaN" + b"]" * depth + b"}"
    frames = frames_of(header, b"{}", b"{}", b"{}")
    with pytest.raises(MalformedMessage):
        envelope(frames)
    with pytest.raises(MalformedMessage):
        parse(frames, SIGNER)


@CALM
@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(st.characters()), st.lists, max_leaves=6))
def test_a_well_formed_value_is_returned_itself(value: Any) -> None:
    once = well_formed(value)
    assert well_formed(once) is once
    orjson.dumps(once)


def test_an_integer_no_float_can_hold_becomes_null() -> None:
    assert well_formed(10**400) is None


def test_what_json_cannot_express_is_not_serialized() -> None:
    with pytest.raises(MalformedMessage, match="content cannot be written"):
        serialize(message({"a": object()}), SIGNER)


def test_a_message_of_100_megabytes_is_read_and_written() -> None:
    text = "x" * 100_000_000
    read = parse(serialize(message({"text": text}), SIGNER), SIGNER)
    same = read.content["text"] == text
    assert same
