"""Which kernels are kept here, as their run files and their keepers tell it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import zmq

from output_keeper.errors import SyncError
from output_keeper.record.runs import Run, runs
from output_keeper.record.sync import FOLLOWER, Conversation

if TYPE_CHECKING:
    from collections.abc import Iterable

ANSWER_TIMEOUT = 2.0  # s a keeper gets to answer; its recorder answers between two flushes

NOT_RECORDED = ("bad_signature", "malformed", "unexpected", "errors", "dropped")
"""What a keeper counts of messages that it forwarded and did not record; ``unexpected`` ones say nothing new."""


class State(str, Enum):
    """How it is with one kernel."""

    RECORDING = "recording"
    FAILING = "failing"  # the keeper lives and holds everything in memory, but cannot write the record
    UNRESPONSIVE = "unresponsive"  # the keeper lives and does not answer
    SILENT = "silent"  # the connection has no key, so nobody can be told anything
    GONE = "gone"  # the keeper was killed; the record has what it wrote
    ELSEWHERE = "elsewhere"  # the run file is of another machine, container or start of this machine
    NOT_KEPT = "not kept"  # a running server has this kernel, without a keeper


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """What is known of one kernel.

    ``answer`` is what its keeper said of itself (``Recorder.status``), or empty. ``notebooks`` and
    ``execution_state`` are a running server's; ``record_bytes`` is the record's size on disk.
    """

    kernel_id: str
    kernel_name: str
    state: State
    error: str = ""
    pid: int | None = None
    started: str | None = None
    record: str | None = None
    record_bytes: int = 0
    notebooks: list[str] = field(default_factory=list)
    execution_state: str | None = None
    answer: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give the object that ``status --json`` prints for a kernel."""
        return {
            "kernel_id": self.kernel_id,
            "kernel_name": self.kernel_name,
            "notebooks": self.notebooks,
            "state": self.state.value,
            "error": self.error,
            "execution_state": self.execution_state,
            "pid": self.pid,
            "started": self.started,
            "executions": self.answer.get("executions"),
            "waiting": self.answer.get("waiting"),
            "refused": {name: self.answer.get(name) for name in NOT_RECORDED},
            "record": self.record,
            "record_bytes": self.record_bytes,
        }


def kept_kernels(base: str | None = None) -> tuple[list[KernelStatus], list[str]]:
    """Ask every keeper that has a run file; also gives what is wrong with run files that cannot be read.

    ``base`` replaces Jupyter's runtime folder. Takes about ``ANSWER_TIMEOUT``, however many do not answer.
    """
    unreadable: list[str] = []
    found = list(runs(lambda _folder, error: unreadable.append(str(error)), base))
    context = zmq.Context[zmq.Socket[bytes]]()
    try:
        with ThreadPoolExecutor(max_workers=max(1, len(found))) as pool:
            return list(pool.map(lambda run: _status(context, run), found)), unreadable
    finally:
        context.destroy(linger=0)


def ask(context: zmq.Context[zmq.Socket[bytes]], run: Run) -> dict[str, Any]:
    """Ask the keeper of ``run`` for its status.

    Raises `SyncError` when it does not answer in time, or what answers does not have the connection's key.
    """
    conversation = Conversation(str(run.connection.get("key", "")).encode(), FOLLOWER)
    deadline = time.monotonic() + ANSWER_TIMEOUT
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(str(run.endpoint))
        socket.send_multipart(conversation.hello())
        conversation.accept(_receive(socket, deadline))
        socket.send_multipart(conversation.seal("status"))
        header, _ = conversation.open(_receive(socket, deadline))
    status = header.get("status")
    if not isinstance(status, dict):
        raise SyncError("the keeper's answer is not a status")
    return status


def _receive(socket: zmq.Socket[bytes], deadline: float) -> list[bytes]:
    if not socket.poll(max(0, int((deadline - time.monotonic()) * 1000))):
        raise SyncError(f"the keeper did not answer within {ANSWER_TIMEOUT:g} s")
    return socket.recv_multipart()


def _status(context: zmq.Context[zmq.Socket[bytes]], run: Run) -> KernelStatus:
    state, error, answer = State.RECORDING, "", {}
    if not run.here():
        state = State.ELSEWHERE
    elif not run.alive():
        state = State.GONE
    elif run.endpoint is None or not run.connection.get("key"):
        state, error = State.SILENT, "its connection has no key, so it can neither be asked nor followed"
    else:
        try:
            answer = ask(context, run)
        except (SyncError, orjson.JSONDecodeError) as failure:
            # It may have ended between our look and our question.
            state = State.UNRESPONSIVE if run.alive() else State.GONE
            error = str(failure) if run.alive() else ""
        else:
            if not answer.get("recording"):
                state, error = State.FAILING, str(answer.get("error"))
    return KernelStatus(
        kernel_id=run.kernel_id,
        kernel_name=run.kernel_name,
        state=state,
        error=error,
        pid=run.keeper.pid,
        started=run.started,
        record=run.record,
        record_bytes=_bytes([run.record, f"{run.record}-wal"]),
        notebooks=[str(row["path"]) for row in run.sessions if row.get("path")],
        answer=answer,
    )


def _bytes(files: Iterable[str]) -> int:
    return sum(file.stat().st_size for file in map(Path, files) if file.exists())
