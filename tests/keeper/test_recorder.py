"""The recorder: durable before it is seen, going on whatever the storage does, and never in the proxy's way."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from harness import LIMIT, wait_until
from pycrdt import Map, create_sync_message, handle_sync_message

from output_keeper.errors import StoreError, StoreUnavailable
from output_keeper.keeper import recorder as recorder_module
from output_keeper.keeper.recorder import Recorder, RecorderSettings
from output_keeper.keeper.spool import MEMORY_LIMIT
from output_keeper.keeper.transcript import Transcript
from output_keeper.protocol.messages import Message, Signer, build, serialize
from output_keeper.record import store
from output_keeper.record.document import VERSION, RecordDocument
from output_keeper.record.paths import private_folder
from output_keeper.record.store import Store
from output_keeper.record.sync import FOLLOWER, Conversation

KEY = b"the connection's key"
SIGNER = Signer(KEY)
KERNEL = "a-kernel"
DATE = "2024-05-01T10:00:00Z"

Context = zmq.Context[zmq.Socket[bytes]]


class Forwarding:
    """In place of the proxy: notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def grant(self, msg_id: str) -> None:
        self.asked.append(("grant", msg_id))

    def release(self, msg_id: str) -> None:
        self.asked.append(("release", msg_id))

    def abandon(self) -> None:
        self.asked.append(("abandon", ""))

    def stats(self) -> dict[str, Any]:
        return {"malformed": 3}


class Follower:
    """Reads the endpoint in the test's thread."""

    def __init__(self, context: Context, recorder: Recorder) -> None:
        assert recorder.endpoint_address is not None
        self.record = RecordDocument()
        self.answers: list[dict[str, Any]] = []
        self.left = False
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(recorder.endpoint_address)
        self.conversation = Conversation(KEY, FOLLOWER)
        self.socket.send_multipart(self.conversation.hello())
        assert self.socket.poll(LIMIT * 1000)
        self.conversation.accept(self.socket.recv_multipart())
        self.say("sync", create_sync_message(self.record.doc))

    def say(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        self.socket.send_multipart(self.conversation.seal(kind, payload, **fields))

    def read(self) -> None:
        while self.socket.poll(0):
            header, payload = self.conversation.open(self.socket.recv_multipart())
            if header["type"] == "update":
                handle_sync_message(payload[1:], self.record.doc)
                self.say("ack")
            elif header["type"] == "status":
                self.answers.append(header["status"])
            elif header["type"] == "bye":
                self.left = True

    def until(self, condition: Callable[[], object]) -> None:
        wait_until(lambda: (self.read(), condition())[1], every=0.001)

    def text(self, msg_id: str) -> str:
        return text_of(self.record, msg_id)


def text_of(record: RecordDocument, msg_id: str) -> str:
    return "".join(output.get("text", "") for output in record.outputs(msg_id)) if msg_id in record else ""


class Kept:
    """Recorders of one kernel, one after the other, and everything to talk to them."""

    def __init__(self, folder: Path) -> None:
        self.path = private_folder(folder / "records") / f"{KERNEL}.sqlite"
        self.context: Context = zmq.Context()
        self.clients: Context = zmq.Context()
        self.proxy = Forwarding()
        self.recorders: list[Recorder] = []
        self.followers: list[Follower] = []
        self.numbers = itertools.count()

    def start(self, **settings: Any) -> Recorder:
        made = Recorder(
            self.context,
            kernel_id=KERNEL,
            signer=SIGNER,
            key=KEY,
            endpoint_address="tcp://127.0.0.1:*",
            settings=RecorderSettings(path=self.path, **{"flush_interval": 0.001, **settings}),
            proxy=self.proxy,
            log=logging.getLogger("output_keeper.test"),
        )
        self.recorders.append(made)
        made.start()
        return made

    @property
    def recorder(self) -> Recorder:
        return self.recorders[-1]

    def follower(self) -> Follower:
        made = Follower(self.clients, self.recorder)
        self.followers.append(made)
        return made

    def tap(self, channel: str, direction: str, message: Message) -> None:
        self.recorder.tap(channel, direction, serialize(message, SIGNER))

    def say(self, parent: str, msg_type: str, channel: str = "iopub", **content: Any) -> None:
        msg_id = f"kernel-{next(self.numbers)}"
        header = {"msg_id": parent}
        message = build(msg_type, content, msg_id=msg_id, session="kernel", date=DATE, parent_header=header)
        self.tap(channel, "to_client", message)

    def begins(self, msg_id: str) -> None:
        request = {"code": "code", "silent": False}
        message = build(
            "execute_request", request, msg_id=msg_id, session="client", date=DATE, metadata={"cellId": msg_id}
        )
        self.tap("shell", "to_kernel", message)
        self.say(msg_id, "status", execution_state="busy")

    def prints(self, msg_id: str, text: str) -> None:
        self.say(msg_id, "stream", name="stdout", text=text)

    def ends(self, msg_id: str) -> None:
        self.say(msg_id, "execute_reply", "shell", status="ok", execution_count=1)
        self.say(msg_id, "status", execution_state="idle")

    def finish(self, *, died: bool = False) -> None:
        self.recorder.finish("the kernel exited with code 1" if died else "the kernel was shut down", died=died)
        self.recorder.join(LIMIT)
        assert not self.recorder.is_alive()

    def until(self, condition: Callable[[dict[str, Any]], object]) -> None:
        wait_until(lambda: condition(self.recorder.status()), state=self.recorder.status, every=0.001)

    def stored(self) -> RecordDocument:
        """What a reader finds on disk now."""
        record = RecordDocument()
        for update in store.read(self.path) if self.path.exists() else []:
            record.apply(update)
        return record

    def close(self) -> None:
        for recorder in self.recorders:
            if recorder.is_alive():
                recorder.finish("the test ended", died=False)
                recorder.join(LIMIT)
        for follower in self.followers:
            follower.socket.close()
        self.clients.destroy(linger=0)
        self.context.destroy(linger=0)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    yield made
    made.close()


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a full disk, for this process: writes beyond are refused."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    script = """
        import sys
        from output_keeper.record.store import Store
        with Store.open(sys.argv[1]):
            print("locked", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        process.communicate(timeout=LIMIT)


# -- durable, then seen


def test_what_a_follower_sees_is_on_disk_already(kept: Kept) -> None:
    kept.start()
    follower = kept.follower()
    kept.begins("a")
    for number in range(100):
        kept.prints("a", f"{number}\n")
        follower.until(lambda number=number: f"{number}\n" in follower.text("a"))  # type: ignore[misc]
        assert follower.text("a") == text_of(kept.stored(), "a")


def test_everything_is_on_disk_when_it_has_finished(kept: Kept) -> None:
    kept.start(flush_interval=3600)
    follower = kept.follower()
    kept.begins("a")
    for number in range(3000):
        kept.prints("a", f"{number}\n")
    kept.finish(died=True)
    record = kept.stored()
    assert text_of(record, "a") == "".join(f"{number}\n" for number in range(3000))
    assert (record.view("a").state.value, record.view("a").reason) == ("died", "the kernel exited with code 1")
    assert record.starts[0]["how"] == "the kernel exited with code 1"
    follower.until(lambda: follower.left)
    assert follower.record.outputs("a") == record.outputs("a")


def test_a_flush_comes_at_once_when_a_cell_starts_and_ends(kept: Kept) -> None:
    kept.start(flush_interval=3600)
    follower = kept.follower()
    kept.begins("a")
    follower.until(lambda: "a" in follower.record)
    kept.prints("a", "x")
    kept.ends("a")
    follower.until(lambda: follower.record.view("a").state.ended)
    assert text_of(kept.stored(), "a") == "x"


def test_the_next_start_continues_the_record(kept: Kept) -> None:
    kept.start()
    kept.begins("a")
    kept.prints("a", "one")
    kept.finish()
    kept.start()
    follower = kept.follower()
    follower.until(lambda: len(follower.record.starts) == 2)
    assert follower.text("a") == "one"
    kept.begins("b")
    kept.finish()
    record = kept.stored()
    assert [(view.msg_id, view.seq, view.start) for view in record.views()] == [("a", 0, 0), ("b", 1, 1)]


def test_updates_are_compacted_when_they_outgrow_the_record(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "COMPACT_BYTES", 10_000)
    kept.start()
    follower = kept.follower()
    kept.begins("a")
    for number in range(300):
        kept.prints("a", f"\r{number:05}" + "x" * 1000)
        follower.until(lambda number=number: f"{number:05}" in follower.text("a"))  # type: ignore[misc]
    kept.finish()
    assert sum(map(len, store.read(kept.path))) < 50_000
    assert text_of(kept.stored(), "a") == "00299" + "x" * 1000


# -- from other threads


def test_no_wake_up_is_lost(kept: Kept) -> None:
    """An idle recorder takes each message; if one were missed, nothing would come after it."""
    kept.start()
    for number in range(1, 500):
        kept.say("nobody", "status", execution_state="busy")
        kept.until(lambda status, number=number: status["messages"] == number)  # type: ignore[misc]


def test_a_message_that_comes_while_it_goes_to_sleep_is_taken(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = Recorder._timeout
    late = iter([True])

    def timeout(self: Recorder, dirty_since: float | None) -> int | None:
        given = timeouts(self, dirty_since)
        if given is None and next(late, False):
            kept.begins("a")  # after the last look at what waits, before it says that it sleeps
        return given

    kept.start()
    follower = kept.follower()
    follower.until(lambda: follower.record.starts)
    monkeypatch.setattr(Recorder, "_timeout", timeout)
    kept.say("nobody", "status", execution_state="idle")
    wait_until(lambda: "a" in kept.stored())


def test_many_producers_lose_nothing(kept: Kept) -> None:
    kept.start()
    kept.begins("a")
    kept.until(lambda status: status["messages"] == 2)

    def produce(producer: int) -> None:
        for number in range(200):
            kept.prints("a", f"{producer}:{number}\n")

    threads = [threading.Thread(target=produce, args=(producer,)) for producer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    kept.until(lambda status: status["messages"] == 1602)
    kept.finish()
    lines = text_of(kept.stored(), "a").split()
    for producer in range(8):
        assert [line for line in lines if line.startswith(f"{producer}:")] == [f"{producer}:{n}" for n in range(200)]


def test_an_idle_recorder_sleeps_until_it_is_woken(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int | None] = []

    class Poller(zmq.Poller):
        def poll(self, timeout: int | None = None) -> list[tuple[Any, int]]:
            waits.append(timeout)
            return super().poll(timeout)

    monkeypatch.setattr(zmq, "Poller", Poller)
    kept.start()
    kept.begins("a")
    kept.prints("a", "x")
    wait_until(lambda: text_of(kept.stored(), "a") == "x")
    wait_until(lambda: waits[-1:] == [None])
    done = len(waits)
    kept.prints("a", "y")
    wait_until(lambda: text_of(kept.stored(), "a") == "xy")
    wait_until(lambda: waits[-1:] == [None] and len(waits) > done)


def test_decisions_keep_their_place_among_the_messages(kept: Kept) -> None:
    kept.start(expect_grants=True, flush_interval=3600)
    follower = kept.follower()
    for number in range(20):
        kept.begins(f"m{number}")
        kept.recorder.decided(f"m{number}", "granted" if number % 2 else "released")
    follower.until(
        lambda: len(follower.record.msg_ids()) == 20 and "open" not in {v.owner for v in follower.record.views()}
    )
    assert [view.owner for view in follower.record.views()] == ["released", "granted"] * 10


def test_while_it_is_held_up_memory_is_bounded_and_nothing_is_lost(kept: Kept) -> None:
    size = MEMORY_LIMIT // 32
    with locked_by_another_process(kept.path):
        kept.start()
        kept.begins("a")
        for number in range(48):
            kept.prints("a", f"{number}:" + "x" * size + "\n")
        assert kept.recorder._spool.bytes_in_memory <= MEMORY_LIMIT
        assert kept.recorder._spool.bytes_on_disk > 0
    kept.finish()
    lines = text_of(kept.stored(), "a").splitlines()
    assert [line.split(":")[0] for line in lines] == [str(number) for number in range(48)]
    assert kept.recorder.status()["dropped"] == 0


# -- the storage


def test_a_full_disk_is_told_and_nothing_is_missing_when_there_is_room_again(kept: Kept) -> None:
    kept.start()
    follower = kept.follower()
    kept.begins("a")
    kept.until(lambda status: status["messages"] == 2)
    wait_until(lambda: "a" in kept.stored())
    with files_no_larger_than(200_000):
        for number in range(100):
            kept.prints("a", f"{number}:" + "x" * 5000 + "\n")
        kept.until(lambda status: not status["recording"])
        follower.until(lambda: follower.text("a").count("\n") == 100)  # it is shown, if it cannot be kept
        assert kept.recorder.status()["error"]
    kept.until(lambda status: status["recording"])
    assert kept.recorder.status()["error"] == ""
    assert text_of(kept.stored(), "a") == follower.text("a")
    kept.prints("a", "and on")
    follower.until(lambda: follower.text("a").endswith("and on"))
    assert text_of(kept.stored(), "a") == follower.text("a")


def test_the_end_is_tried_once_more_when_the_disk_was_full(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "RETRY", 1000.0)
    kept.start()
    kept.begins("a")
    wait_until(lambda: "a" in kept.stored())
    with files_no_larger_than(100_000):
        kept.prints("a", "x" * 300_000)
        kept.until(lambda status: not status["recording"])
    kept.finish()
    assert text_of(kept.stored(), "a") == "x" * 300_000


def test_a_disk_that_stays_full_does_not_keep_it_from_ending(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder_module, "FINISH_LIMIT", 0.1)
    kept.start()
    kept.begins("a")
    wait_until(lambda: "a" in kept.stored())
    with files_no_larger_than(100_000):
        kept.prints("a", "x" * 300_000)
        kept.finish()
    assert "the end of the record is not on disk" in caplog.text
    assert "a" in kept.stored()


def garbage(path: Path) -> None:
    path.write_bytes(b"not a record at all" * 1000)


def another_kernels(path: Path) -> None:
    other = RecordDocument("another-kernel")
    with other.transaction():
        other.begin(DATE)
    new = path.with_name("other.sqlite")
    with Store.open(new) as writer:
        writer.append(other.doc.get_update())
    new.replace(path)


@pytest.mark.parametrize("replace", [Path.unlink, garbage, another_kernels])
def test_a_file_that_is_taken_away_or_replaced_is_written_anew(kept: Kept, replace: Callable[[Path], object]) -> None:
    kept.start()
    follower = kept.follower()
    kept.begins("a")
    kept.prints("a", "before\n")
    follower.until(lambda: follower.text("a") == "before\n")
    new = kept.path.with_name("new")
    new.touch(mode=0o600)
    replace(new)
    if new.exists():
        new.replace(kept.path)
    else:
        kept.path.unlink()
    for suffix in ("-wal", "-shm"):
        Path(f"{kept.path}{suffix}").unlink(missing_ok=True)
    kept.prints("a", "after\n")
    follower.until(lambda: follower.text("a") == "before\nafter\n")
    wait_until(lambda: kept.path.exists() and kept.recorder.status()["recording"])
    kept.finish()
    assert text_of(kept.stored(), "a") == "before\nafter\n"
    aside = list(kept.path.parent.glob("*.corrupt-1"))
    assert len(aside) == (0 if replace is Path.unlink else 1)
    assert kept.stored().kernel_id == KERNEL


def test_a_folder_that_is_taken_away_is_made_again(kept: Kept) -> None:
    kept.start()
    follower = kept.follower()
    kept.begins("a")
    follower.until(lambda: "a" in follower.record)
    shutil.rmtree(kept.path.parent)
    kept.prints("a", "x")
    kept.finish()
    assert text_of(kept.stored(), "a") == "x"
    assert kept.path.parent.stat().st_mode & 0o777 == 0o700 or os.name == "nt"


def test_a_damaged_record_is_set_aside_and_what_is_sound_is_saved(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    kept.start()
    follower = kept.follower()
    kept.begins("a")
    for line in ("one\n", "two\n", "three\n"):
        kept.prints("a", line)
        follower.until(lambda line=line: follower.text("a").endswith(line))  # type: ignore[misc]
    kept.finish()
    with contextlib.closing(sqlite3.connect(kept.path)) as connection:
        connection.execute("UPDATE updates SET data = X'00' WHERE seq = (SELECT max(seq) - 1 FROM updates)")
        connection.commit()
    kept.start()
    kept.begins("b")
    kept.finish()
    record = kept.stored()
    assert record.msg_ids() == ["a", "b"]
    assert record.outputs("a")[0]["text"] == "one\ntwo\n"
    assert record.view("a").state.value == "died"
    assert len(list(kept.path.parent.glob("*.corrupt-1"))) == 1
    assert "set aside as" in caplog.text


def test_a_newer_record_is_left_alone_and_said(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FINISH_LIMIT", 0.1)
    newer = RecordDocument(KERNEL)
    with newer.transaction():
        newer.begin(DATE)
        newer.doc.get("meta", type=Map)["version"] = VERSION + 1
    with Store.open(kept.path) as writer:
        writer.append(newer.doc.get_update())
    before = store.read(kept.path)
    kept.start()
    follower = kept.follower()
    kept.begins("a")
    follower.until(lambda: "a" in follower.record)
    assert not kept.recorder.status()["recording"]
    assert "upgrade" in kept.recorder.status()["error"]
    kept.finish()
    assert store.read(kept.path) == before
    assert list(kept.path.parent.glob("*.corrupt-*")) == []


def test_a_record_that_another_process_writes_is_waited_for(kept: Kept) -> None:
    kept.start()
    kept.begins("old")
    kept.finish()
    with locked_by_another_process(kept.path):
        kept.start()
        kept.begins("a")
        kept.prints("a", "x")
        assert kept.recorder.status()["recording"]
        assert "a" not in kept.stored()
    follower = kept.follower()
    follower.until(lambda: follower.text("a") == "x")
    assert follower.record.msg_ids() == ["old", "a"]
    kept.finish()
    assert text_of(kept.stored(), "a") == "x"


def test_a_record_that_stays_locked_does_not_keep_it_from_ending(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder_module, "FINISH_LIMIT", 0.1)
    with locked_by_another_process(kept.path):
        kept.start()
        kept.begins("a")
        kept.finish()
    assert "the end of the record is not on disk" in caplog.text


@pytest.mark.parametrize("readable", [True, False])
def test_a_record_that_cannot_be_opened_at_first_is_continued(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    """Read-only, say, or on a file system that fails: permissions do not hold for everybody who runs the tests."""
    kept.start()
    kept.begins("one")
    kept.prints("one", "old")
    kept.finish(died=True)
    opens = Store.open

    def refuse(path: Path, *_: Any, **__: Any) -> Any:
        raise StoreUnavailable("attempt to write a readonly database", path=str(path))

    with monkeypatch.context() as failing:
        failing.setattr(Store, "open", refuse)
        if not readable:
            failing.setattr(recorder_module, "read", refuse)
        kept.start()
        follower = kept.follower()
        kept.begins("two")
        kept.prints("two", "new")
        follower.until(lambda: follower.text("two") == "new")
        assert ("one" in follower.record) == readable
        assert not kept.recorder.status()["recording"]
        assert "readonly" in kept.recorder.status()["error"]
    assert Store.open == opens
    kept.until(lambda status: status["recording"])
    follower.until(lambda: follower.record.msg_ids() == ["one", "two"])
    kept.ends("two")
    kept.finish()
    record = kept.stored()
    assert [(view.msg_id, view.start, view.state.value) for view in record.views()] == [
        ("one", 0, "died"),
        ("two", 1, "ok"),
    ]
    assert [start["how"] for start in record.starts] == ["the kernel exited with code 1", "the kernel was shut down"]


# -- what goes wrong inside


def test_a_message_that_fails_is_counted_and_the_next_is_recorded(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    folds = Transcript.message

    def fails(self: Transcript, channel: str, direction: str, frames: list[bytes]) -> bool:
        if any(b"poison" in frame for frame in frames):
            raise RuntimeError("a mistake of ours")
        return folds(self, channel, direction, frames)

    monkeypatch.setattr(Transcript, "message", fails)
    kept.start()
    kept.begins("a")
    kept.prints("a", "poison")
    kept.prints("a", "x")
    wait_until(lambda: text_of(kept.stored(), "a") == "x")
    assert kept.recorder.status()["errors"] == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_recorder_that_stopped_is_in_nobodys_way(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Transcript) -> None:
        raise RuntimeError("a mistake of ours")

    kept.start()
    follower = kept.follower()
    follower.until(lambda: follower.record.starts)
    monkeypatch.setattr(Transcript, "flush", fails)
    kept.begins("a")
    kept.recorder.join(LIMIT)
    assert "the recorder stopped" in caplog.text
    assert kept.proxy.asked == [("abandon", "")]  # pages show by themselves what nobody will bring them
    for _ in range(1000):
        kept.prints("a", "x" * 1000)
    assert kept.recorder.status()["waiting"] == 0
    kept.recorder.finish("the kernel exited", died=True)
    follower.read()
    assert not follower.left  # nobody is told that the kernel has ended
    with pytest.raises(StoreError):  # and nobody else takes the record over
        Store.open(kept.path)
    kept.recorder._store = None  # its connection belongs to a thread that is no more: Python complains when it goes
    gc.collect()


# -- followers' requests


def test_followers_reach_the_proxy_and_get_its_counters(kept: Kept) -> None:
    kept.start()
    follower = kept.follower()
    kept.recorder.tap("iopub", "to_client", [b"no message"])
    kept.begins("a")
    kept.until(lambda status: status["messages"] == 3)
    follower.say("grant", msg_id="a")
    follower.say("release", msg_id="b")
    follower.say("grant", msg_id=7)
    follower.say("status")
    follower.until(lambda: follower.answers)
    assert kept.proxy.asked == [("grant", "a"), ("release", "b")]
    (status,) = follower.answers
    assert status == {
        "recording": True,
        "error": "",
        "waiting": 0,
        "dropped": 0,
        "followers": 1,
        "refused": 0,
        "errors": 0,
        "messages": 3,
        "malformed": 1,
        "bad_signature": 0,
        "unexpected": 0,
        "executions": 1,
        "proxy": {"malformed": 3},
    }


def test_without_a_key_it_records_and_has_no_endpoint(kept: Kept) -> None:
    recorder = Recorder(
        kept.context,
        kernel_id=KERNEL,
        signer=Signer(b""),
        key=b"",
        endpoint_address=None,
        settings=RecorderSettings(path=kept.path),
        proxy=kept.proxy,
        log=logging.getLogger("output_keeper.test"),
    )
    kept.recorders.append(recorder)
    recorder.start()
    assert recorder.endpoint_address is None
    kept.begins("a")
    kept.prints("a", "x")
    kept.finish()
    assert text_of(kept.stored(), "a") == "x"
