"""Frames on a Jupyter channel ↔ messages (messaging spec, "The Wire Protocol").

A message is ``[*idents, DELIMITER, signature, header, parent_header, metadata, content, *buffers]``. The
four middle parts are JSON objects in UTF-8; the signature is the hex HMAC over them, buffers are not signed.

Whatever bytes arrive, reading ends in a value or in a `WireError`. Parts are decoded as jupyter_client does
(orjson, else the standard library with invalid UTF-8 replaced), so what its ``Session`` can read can be read
here too, down to MAX_DEPTH levels, and what comes out can be stored: see `well_formed`.
"""

from __future__ import annotations

import hmac
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from output_keeper.errors import BadSignature, ConnectionFileError, MalformedMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

DELIMITER = b"<IDS|MSG>"

OUTPUT_TYPES = frozenset({"stream", "display_data", "execute_result", "error", "clear_output", "update_display_data"})
"""The iopub messages that a client turns into outputs of a cell."""

PROTOCOL_VERSION = "5.4"
"""The version of the messaging spec that messages made here declare."""

MAX_DEPTH = 250
"""Deeper JSON is refused: orjson writes 254 levels, and recursive readers after it have limits too."""

_SIGNED_PARTS = 4
_EXACT = range(-(2**53), 2**53 + 1)
"""The integers that a JavaScript number holds exactly; Yjs makes a BigInt of a larger one, which is no JSON."""


class Signer:
    """Signs and checks message parts with the key of a connection file.

    ``scheme`` is the file's ``signature_scheme``, ``"hmac-"`` and a hashlib name; anything else raises
    ConnectionFileError. An empty key turns signing off: every signature is then accepted, as
    jupyter_client does.
    """

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        prefix, _, digest = scheme.partition("-")
        try:
            keyed = hmac.new(key, digestmod=digest)
            keyed.hexdigest()
        except (TypeError, ValueError) as error:
            raise ConnectionFileError(f"signature_scheme {scheme!r} is not supported: {error}") from error
        if prefix != "hmac":
            raise ConnectionFileError(f"signature_scheme {scheme!r} is not supported")
        # Made once and copied per message: setting up the key costs more than a small message does.
        self._keyed = keyed if key else None

    def sign(self, parts: Sequence[bytes]) -> bytes:
        """Return the hex signature of ``header, parent_header, metadata, content``; ``b""`` with no key."""
        if self._keyed is None:
            return b""
        mac = self._keyed.copy()
        for part in parts:
            mac.update(part)
        return mac.hexdigest().encode("ascii")

    def verify(self, signature: bytes, parts: Sequence[bytes]) -> bool:
        """Whether ``signature`` belongs to ``parts``, compared in constant time."""
        return self._keyed is None or hmac.compare_digest(bytes(signature), self.sign(parts))


@dataclass(frozen=True, slots=True)
class Message:
    """One message, decoded. ``parent_header`` is ``{}`` for a message that answers nothing."""

    idents: tuple[bytes, ...]
    header: dict[str, Any]
    parent_header: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any]
    buffers: tuple[bytes, ...] = ()

    @property
    def msg_id(self) -> str:
        """The message's own id."""
        return _text(self.header, "msg_id")

    @property
    def msg_type(self) -> str:
        """What kind of message it is, such as ``"stream"``."""
        return _text(self.header, "msg_type")

    @property
    def session(self) -> str:
        """The sender's session id; ``""`` when the header has none."""
        return _text(self.header, "session")

    @property
    def date(self) -> str:
        """The sender's clock in ISO 8601; ``""`` when the header has none."""
        return _text(self.header, "date")

    @property
    def parent_id(self) -> str | None:
        """The msg_id of the request this message belongs to, if any."""
        return _text(self.parent_header, "msg_id") or None


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a proxy must know of a message to route it: the two headers, unchecked."""

    msg_id: str
    msg_type: str
    session: str
    parent_id: str | None
    parent_session: str | None


def parse(frames: Sequence[bytes], signer: Signer) -> Message:
    """Decode one message and check its signature.

    Raises MalformedMessage when the frames cannot be split or a part is no JSON object (an empty
    ``parent_header`` may also be ``null``), when the header names no ``msg_id`` or ``msg_type``, or when a
    part nests deeper than MAX_DEPTH; raises BadSignature when the signature is not ours.
    """
    start = _after_delimiter(frames)
    signature, parts = frames[start], frames[start + 1 : start + 1 + _SIGNED_PARTS]
    if not signer.verify(signature, parts):
        raise BadSignature("the signature is not the HMAC of the message under this connection's key")
    return Message(
        idents=tuple(frames[: start - 1]),
        header=_with_identity(_storable(_decode(parts[0], "header"), "header")),
        parent_header=_storable(_decode(parts[1], "parent_header", nullable=True), "parent_header"),
        metadata=_storable(_decode(parts[2], "metadata"), "metadata"),
        content=_storable(_decode(parts[3], "content"), "content"),
        buffers=tuple(frames[start + 1 + _SIGNED_PARTS :]),
    )


def envelope(frames: Sequence[bytes]) -> Envelope:
    """Decode only the two headers, without looking at signature, metadata or content.

    Raises MalformedMessage as `parse` does for the parts it reads.
    """
    start = _after_delimiter(frames)
    header = _with_identity(_decode(frames[start + 1], "header"))
    parent = _decode(frames[start + 2], "parent_header", nullable=True)
    return Envelope(
        msg_id=header["msg_id"],
        msg_type=header["msg_type"],
        session=_text(header, "session"),
        parent_id=_text(parent, "msg_id") or None,
        parent_session=_text(parent, "session") or None,
    )


def build(
    msg_type: str,
    content: dict[str, Any],
    *,
    msg_id: str,
    session: str,
    date: str,
    parent_header: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    buffers: Sequence[bytes] = (),
    idents: Sequence[bytes] = (),
    username: str = "kernel",
) -> Message:
    """Make a message. ``msg_id`` and ``date`` (ISO 8601) come from the caller: this layer has no clock."""
    header = {
        "msg_id": msg_id,
        "msg_type": msg_type,
        "session": session,
        "username": username,
        "date": date,
        "version": PROTOCOL_VERSION,
    }
    return Message(
        idents=tuple(idents),
        header=header,
        parent_header=parent_header or {},
        metadata=metadata or {},
        content=content,
        buffers=tuple(buffers),
    )


def serialize(message: Message, signer: Signer) -> list[bytes]:
    """Return the signed frames. Raises MalformedMessage when a part cannot be written as JSON."""
    parts = [
        _encode(message.header, "header"),
        _encode(message.parent_header, "parent_header"),
        _encode(message.metadata, "metadata"),
        _encode(message.content, "content"),
    ]
    return [*message.idents, DELIMITER, signer.sign(parts), *parts, *message.buffers]


def well_formed(value: Any) -> Any:
    """Return the nearest value that any JSON reader and any Y document can hold; itself if it already is one.

    - A lone surrogate becomes U+FFFD, and two that form a pair become their character, as in a browser.
    - NaN and the infinities become None, as ``JSON.stringify`` does: browsers refuse a document with them.
    - An integer beyond 2**53 becomes a float, which is what a browser makes of it.

    Walks dicts and lists recursively, so the caller bounds the depth (`parse` does, by MAX_DEPTH).
    """
    kind = type(value)
    if kind is str:
        return _valid_unicode(value)
    if kind is int and value not in _EXACT:
        return _nearest_float(value)
    if kind is float and not math.isfinite(value):
        return None
    if kind is list:
        items = [well_formed(item) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if kind is dict:
        pairs = [(well_formed(key), well_formed(item)) for key, item in value.items()]
        same = all(
            new_key is key and new is item for (new_key, new), (key, item) in zip(pairs, value.items(), strict=True)
        )
        return value if same else dict(pairs)
    return value


def _after_delimiter(frames: Sequence[bytes]) -> int:
    """Return the index of the signature, with all five parts known to be there."""
    for index, frame in enumerate(frames):
        if frame == DELIMITER:
            found = len(frames) - index - 1
            if found < 1 + _SIGNED_PARTS:
                raise MalformedMessage(f"{found} parts after the delimiter, at least 5 are needed")
            return index + 1
    raise MalformedMessage(f"no delimiter in {len(frames)} frames")


def _decode(frame: bytes, part: str, *, nullable: bool = False) -> dict[str, Any]:
    """Read one part as jupyter_client does; its fallback takes NaN, lone surrogates and invalid UTF-8."""
    lenient = False
    try:
        value = orjson.loads(frame)
    except orjson.JSONDecodeError:
        lenient = True
        try:
            value = json.loads(bytes(frame).decode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:
            raise MalformedMessage(f"{part} is not JSON: {error}") from error
    if value is None and nullable:
        return {}
    if not isinstance(value, dict):
        raise MalformedMessage(f"{part} is a JSON {type(value).__name__}, not an object")
    if lenient:
        _survey(value, part)
        repaired: dict[str, Any] = well_formed(value)
        return repaired
    return value


def _storable(value: dict[str, Any], part: str) -> dict[str, Any]:
    # What orjson read has no lone surrogate and no NaN, but it may have integers up to 2**64.
    if _survey(value, part):
        return value
    repaired: dict[str, Any] = well_formed(value)
    return repaired


def _survey(value: dict[str, Any], part: str) -> bool:
    """Tell whether all integers are exact; refuse nesting deeper than MAX_DEPTH. Looks at no text."""
    exact = True
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for node in level:
            for child in node.values() if type(node) is dict else node:
                kind = type(child)
                if kind is dict or kind is list:
                    deeper.append(child)
                elif kind is int and child not in _EXACT:
                    exact = False
        if not deeper:
            return exact
        level = deeper
    raise MalformedMessage(f"{part} nests deeper than {MAX_DEPTH} levels")


def _with_identity(header: dict[str, Any]) -> dict[str, Any]:
    for key in ("msg_id", "msg_type"):
        if not _text(header, key):
            raise MalformedMessage(f"the header has no {key}")
    return header


def _text(part: dict[str, Any], key: str) -> str:
    value = part.get(key)
    return value if isinstance(value, str) else ""


def _encode(value: dict[str, Any], part: str) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        # orjson refuses lone surrogates and integers beyond 64 bits, which JSON can express.
        try:
            return json.dumps(value, allow_nan=False).encode("ascii")
        except (TypeError, ValueError, RecursionError) as error:
            raise MalformedMessage(f"{part} cannot be written as JSON: {error}") from error


def _valid_unicode(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _nearest_float(value: int) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None
