"""A record whose keeper was killed: who holds its lock next says truthfully how its executions ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from output_keeper.errors import StoreError
from output_keeper.protocol.execution import ExecutionState
from output_keeper.protocol.outputs import AddOutput
from output_keeper.record.adoption import KEEPER_KILLED, adopt
from output_keeper.record.document import RecordDocument
from output_keeper.record.store import Store, read

DATE = "2024-05-01T10:00:00Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a record with a cell that ended, one that runs, one that waits."""
    record = RecordDocument("k")
    with record.transaction():
        start = record.begin(DATE)
        for seq, (msg_id, state) in enumerate([("ended", "ok"), ("runs", "running"), ("waits", "queued")]):
            record.add(
                msg_id, seq=seq, start=start, cell_id=msg_id, code="", session="s", owner="granted", requested=DATE
            )
            record.set(msg_id, state=state)
            record.change(msg_id, [AddOutput({"output_type": "stream", "name": "stdout", "text": msg_id})])
    target = tmp_path / "k.sqlite"
    with Store.open(target) as store:
        store.append(record.doc.get_update())
    return target


def stored(path: Path) -> RecordDocument:
    record = RecordDocument("k")
    for update in read(path):
        record.apply(update)
    return record


def test_what_ran_has_died_and_shows_it_and_what_waited_is_aborted(path: Path) -> None:
    assert adopt(path)
    record = stored(path)
    assert {view.msg_id: view.state for view in record.views()} == {
        "ended": ExecutionState.OK,
        "runs": ExecutionState.DIED,
        "waits": ExecutionState.ABORTED,
    }
    printed, error = record.outputs("runs")
    assert printed["text"] == "runs"
    assert (error["output_type"], error["ename"]) == ("error", "KernelDied")
    assert "killed" in error["evalue"]
    assert [len(record.outputs(msg_id)) for msg_id in ("ended", "waits")] == [1, 1]
    assert record.view("runs").reason == KEEPER_KILLED
    assert record.kernel_state == "dead"


def test_adopted_once_there_is_nothing_left_to_do(path: Path) -> None:
    assert adopt(path)
    before = read(path)
    assert not adopt(path)
    assert read(path) == before


def test_a_record_whose_keeper_lives_is_left_alone(path: Path) -> None:
    before = read(path)
    with Store.open(path):
        assert not adopt(path)
    assert read(path) == before


def test_a_record_that_cannot_be_used_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "k.sqlite"
    path.write_bytes(b"not a record" * 1000)
    with pytest.raises(StoreError):
        adopt(path)
    assert path.read_bytes() == b"not a record" * 1000
