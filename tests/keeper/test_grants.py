"""grants: one owner per execution, decided once; what is held comes out whole and in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from output_keeper.keeper.grants import Grants, Owner
from output_keeper.protocol.messages import OUTPUT_TYPES

OTHER_TYPES = ("status", "execute_input", "comm_open", "comm_msg", "comm_close", "debug_event")


def opened(msg_id: str = "a", **settings: int) -> Grants:
    grants = Grants(expect=True, hold_for=2.0, **settings)
    grants.requested(msg_id, f"session-{msg_id}", "cell", now=0.0)
    return grants


def message(text: str, size: int = 0) -> list[bytes]:
    return [text.encode(), b"x" * size]


@pytest.mark.parametrize(
    ("expect", "cell_id", "released_before", "owner"),
    [
        (True, "cell", False, Owner.OPEN),
        (True, "cell", True, Owner.RELEASED),
        (True, None, False, Owner.RELEASED),
        (True, None, True, Owner.RELEASED),
        (False, "cell", False, Owner.RELEASED),
        (False, None, False, Owner.RELEASED),
    ],
)
def test_who_owns_a_new_execution(expect: bool, cell_id: str | None, released_before: bool, owner: Owner) -> None:
    grants = Grants(expect=expect, hold_for=2.0)
    if released_before:
        grants.requested("earlier", "session", "cell", now=0.0)
        grants.release("earlier")
    assert grants.requested("a", "session", cell_id, now=1.0) is owner
    assert grants.owner("a") is owner


@pytest.mark.parametrize("msg_type", sorted(OUTPUT_TYPES) + list(OTHER_TYPES))
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("owner", [*Owner, None])
def test_what_happens_to_a_first_message(msg_type: str, captured: bool, owner: Owner | None) -> None:
    grants = opened()
    parent = "a"
    if owner is Owner.GRANTED:
        grants.grant("a")
    elif owner is Owner.RELEASED:
        grants.release("a")
    elif owner is None:
        parent = "unknown"
    is_output = msg_type in OUTPUT_TYPES and not captured
    stopped = is_output and owner in (Owner.OPEN, Owner.GRANTED)
    frames = message("m")
    assert grants.on_iopub(parent, msg_type, frames, captured=captured) == ([] if stopped else [frames])
    assert grants.held_count == (1 if stopped and owner is Owner.OPEN else 0)
    assert grants.withheld_count == (1 if stopped and owner is Owner.GRANTED else 0)


@pytest.mark.parametrize("msg_type", [*OTHER_TYPES, "stream"])
@pytest.mark.parametrize("captured", [False, True])
def test_nothing_overtakes_a_held_output(msg_type: str, captured: bool) -> None:
    grants = opened()
    first, second = message("1"), message("2")
    assert grants.on_iopub("a", "stream", first) == []
    assert grants.on_iopub("a", msg_type, second, captured=captured) == []
    assert grants.release("a") == (Owner.RELEASED, [first, second])


def test_a_grant_lets_all_but_outputs_through_in_order() -> None:
    grants = opened()
    grants.on_iopub("a", "stream", message("out 1"))
    grants.on_iopub("a", "comm_msg", message("comm"))
    grants.on_iopub("a", "display_data", message("captured"), captured=True)
    grants.on_iopub("a", "error", message("out 2"))
    grants.on_iopub("a", "status", message("idle"))
    assert grants.grant("a") == (Owner.GRANTED, [message("comm"), message("captured"), message("idle")])
    assert grants.withheld_count == 2
    assert (grants.held_count, grants.held_bytes) == (0, 0)


def test_a_message_without_parent_is_forwarded() -> None:
    grants = opened()
    grants.on_iopub("a", "stream", message("held"))
    assert grants.on_iopub(None, "stream", message("m")) == [message("m")]


def test_one_parents_hold_does_not_touch_another() -> None:
    grants = opened()
    grants.on_iopub("a", "stream", message("held"))
    assert grants.on_iopub("b", "stream", message("m")) == [message("m")]


@pytest.mark.parametrize("first", ["grant", "release"])
@pytest.mark.parametrize("then", ["grant", "release", "expire", "requested"])
def test_decided_once(first: str, then: str) -> None:
    grants = opened()
    grants.on_iopub("a", "stream", message("held"))
    owner, _ = getattr(grants, first)("a")
    if then == "expire":
        assert grants.expire(100.0) == []
    elif then == "requested":
        assert grants.requested("a", "another session", "cell", now=3.0) is owner
    else:
        assert getattr(grants, then)("a") == (owner, [])
    assert grants.owner("a") is owner
    assert grants.take_decided() == [("a", owner)]
    assert grants.take_decided() == []


def test_an_unknown_execution_is_released() -> None:
    grants = Grants(expect=True, hold_for=2.0)
    assert grants.grant("never seen") == (Owner.RELEASED, [])
    assert grants.release("never seen") == (Owner.RELEASED, [])
    assert grants.take_decided() == []


def test_a_grant_does_not_release_its_session() -> None:
    grants = Grants(expect=True, hold_for=2.0)
    grants.requested("a", "session", "cell", now=0.0)
    grants.grant("a")
    assert grants.requested("b", "session", "cell", now=0.0) is Owner.OPEN


def test_executions_expire_in_order_of_their_deadlines() -> None:
    grants = Grants(expect=True, hold_for=2.0)
    assert grants.next_deadline() is None
    for at, msg_id in enumerate("abc"):
        grants.requested(msg_id, f"session-{msg_id}", "cell", now=float(at))
        grants.on_iopub(msg_id, "stream", message(msg_id))
    assert grants.next_deadline() == 2.0
    assert grants.expire(1.9) == []
    assert grants.expire(3.0) == [message("a"), message("b")]
    assert grants.next_deadline() == 4.0
    assert grants.expire(4.0) == [message("c")]
    assert grants.next_deadline() is None
    assert [owner for _, owner in grants.take_decided()] == [Owner.RELEASED] * 3
    assert grants.requested("d", "session-a", "cell", now=5.0) is Owner.RELEASED


def test_beyond_the_limit_the_execution_is_released_in_order() -> None:
    grants = opened(held_limit=100)
    grants.requested("b", "session-b", "cell", now=0.0)
    grants.on_iopub("b", "stream", message("b1", 40))
    assert grants.on_iopub("a", "stream", message("a1", 40)) == []
    assert grants.on_iopub("a", "stream", message("a2", 40)) == [message("a1", 40), message("a2", 40)]
    assert grants.owner("a") is Owner.RELEASED
    assert grants.owner("b") is Owner.OPEN
    assert grants.held_bytes == 42


def test_forget_drops_what_was_decided_and_keeps_what_is_held() -> None:
    grants = opened()
    grants.on_iopub("a", "stream", message("held"))
    grants.forget("a")
    assert grants.owner("a") is Owner.OPEN
    grants.grant("a")
    grants.forget("a")
    assert grants.on_iopub("a", "stream", message("late")) == [message("late")]


def test_only_so_many_are_remembered() -> None:
    grants = Grants(expect=True, hold_for=2.0, remembered=3)
    for number in range(5):
        grants.requested(str(number), f"session-{number}", "cell", now=0.0)
        grants.grant(str(number))
    assert [grants.owner(str(number)) for number in range(5)] == [Owner.RELEASED] * 2 + [Owner.GRANTED] * 3


def test_release_all_empties_it() -> None:
    grants = opened()
    grants.requested("b", "session-b", "cell", now=0.0)
    grants.on_iopub("a", "stream", message("1"))
    grants.on_iopub("b", "stream", message("2"))
    assert grants.release_all() == [message("1"), message("2")]
    assert grants.release_all() == []
    assert grants.next_deadline() is None


parents = st.sampled_from(["a", "b", "c", "d", "unknown"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("request"), parents, st.sampled_from(["s1", "s2"]), st.booleans()),
        st.tuples(st.just("message"), parents, st.sampled_from([*sorted(OUTPUT_TYPES), *OTHER_TYPES]), st.booleans()),
        st.tuples(st.sampled_from(["grant", "release"]), parents),
        st.tuples(st.just("wait"), st.floats(0.0, 2.5)),
    ),
    max_size=60,
)


@given(steps=steps, limit=st.sampled_from([30, 10_000]))
def test_whatever_happens_each_message_comes_out_as_its_owner_says(steps: list[tuple[object, ...]], limit: int) -> None:
    grants = Grants(expect=True, hold_for=2.0, held_limit=limit)
    now = 0.0
    published: list[tuple[str, bool, list[bytes]]] = []
    forwarded: list[list[bytes]] = []
    decided: list[tuple[str, Owner]] = []
    requested: set[str] = set()
    for step in steps:
        match step:
            case ("request", str(parent), str(session), bool(has_cell)) if parent != "unknown":
                # The kernel knows of a request only after we do.
                if not any(parent == each[0] for each in published):
                    grants.requested(parent, session, "cell" if has_cell else None, now)
                    requested.add(parent)
            case ("message", str(parent), str(msg_type), bool(captured)):
                frames = [str(len(published)).encode(), parent.encode()]
                published.append((parent, msg_type in OUTPUT_TYPES and not captured, frames))
                forwarded += grants.on_iopub(parent, msg_type, frames, captured=captured)
            case ("grant" | "release" as decision, str(parent)):
                forwarded += getattr(grants, decision)(parent)[1]
            case ("wait", float(seconds)):
                now += seconds
                forwarded += grants.expire(now)
        decided += grants.take_decided()
        assert grants.held_bytes <= limit
    forwarded += grants.release_all()
    decided += grants.take_decided()

    assert sorted(msg_id for msg_id, _ in decided) == sorted(requested)
    owners = dict(decided)
    for parent in ("a", "b", "c", "d", "unknown"):
        expected = [
            frames
            for each, is_output, frames in published
            if each == parent and not (is_output and owners.get(parent) is Owner.GRANTED)
        ]
        assert [frames for frames in forwarded if frames[1] == parent.encode()] == expected
    assert (grants.held_bytes, grants.held_count) == (0, 0)


def test_abandoned_nothing_is_held_or_withheld_any_more() -> None:
    grants = Grants(expect=True, hold_for=2.0)
    grants.requested("granted", "page", "cell", now=0.0)
    grants.grant("granted")
    grants.requested("open", "page", "cell", now=0.0)
    assert grants.on_iopub("granted", "stream", [b"withheld"]) == []
    assert grants.on_iopub("open", "stream", [b"held"]) == []
    assert grants.abandon() == [[b"held"]]
    assert grants.on_iopub("granted", "stream", [b"next"]) == [[b"next"]]
    assert grants.requested("later", "page", "cell", now=1.0) is Owner.RELEASED
    assert (grants.held_bytes, grants.next_deadline()) == (0, None)
