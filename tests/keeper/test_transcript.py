"""Sequences of messages, as kernels and clients send them, and what the record says of them."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from output_keeper.keeper.transcript import RUNS_WITHOUT_CELL, Transcript
from output_keeper.protocol.messages import OUTPUT_TYPES, Message, Signer, build, serialize
from output_keeper.record.document import CHUNK, ExecutionView, RecordDocument

SIGNER = Signer(b"the connection's key")
START = "2024-05-01T10:00:00Z"
END = "2024-05-01T11:00:00Z"


@dataclass
class Kernel:
    """A record, and the messages of a kernel that write it."""

    record: RecordDocument = field(default_factory=lambda: RecordDocument("k"))
    runs_per_cell: int = 10
    expect_grants: bool = False
    began: str = START
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.transcript = Transcript(
            self.record, SIGNER, runs_per_cell=self.runs_per_cell, expect_grants=self.expect_grants
        )
        with self.record.transaction():
            self.transcript.begin(self.began)

    def send(self, channel: str, direction: str, message: Message) -> bool:
        return self.transcript.message(channel, direction, serialize(message, SIGNER))

    def request(
        self, msg_id: str, code: str = "code", cell: str | None = "cell", *, channel: str = "shell", **content: Any
    ) -> bool:
        metadata = {} if cell is None else {"cellId": cell}
        message = build(
            "execute_request",
            {"code": code, "silent": False, "store_history": True, **content},
            msg_id=msg_id,
            session="client",
            date="2024-05-01T10:00:01Z",
            metadata=metadata,
            idents=[b"client"],
        )
        return self.send(channel, "to_kernel", message)

    def say(
        self,
        parent: str | None,
        msg_type: str,
        channel: str = "iopub",
        date: str = "2024-05-01T10:00:02Z",
        **content: Any,
    ) -> bool:
        message = build(
            msg_type,
            content,
            msg_id=f"kernel-{next(self.numbers)}",
            session="kernel",
            date=date,
            parent_header={} if parent is None else {"msg_id": parent, "session": "client"},
        )
        return self.send(channel, "to_client", message)

    def status(self, parent: str | None, state: str) -> bool:
        return self.say(parent, "status", execution_state=state)

    def reply(self, parent: str, status: str = "ok", **content: Any) -> bool:
        return self.say(parent, "execute_reply", "shell", status=status, **content)

    def prints(self, parent: str, text: str, name: str = "stdout") -> bool:
        return self.say(parent, "stream", name=name, text=text)

    def shows(self, parent: str | None, text: str, display_id: str = "", update: bool = False) -> bool:
        transient = {"display_id": display_id} if display_id else {}
        msg_type = "update_display_data" if update else "display_data"
        return self.say(parent, msg_type, data={"text/plain": text}, metadata={}, transient=transient)

    def starts(self, msg_id: str, cell: str | None = "cell", count: int = 1) -> None:
        self.request(msg_id, cell=cell)
        self.status(msg_id, "busy")
        self.say(msg_id, "execute_input", code="code", execution_count=count)

    def ends(self, msg_id: str, status: str = "ok", count: int = 1, **content: Any) -> None:
        self.reply(msg_id, status, execution_count=count, **content)
        self.status(msg_id, "idle")

    def runs(self, msg_id: str, cell: str | None = "cell", count: int = 1) -> None:
        self.starts(msg_id, cell, count)
        self.ends(msg_id, count=count)

    def flush(self) -> None:
        with self.record.transaction():
            self.transcript.flush()

    def end(self, how: str = "the kernel exited with code 1", *, died: bool = True) -> None:
        with self.record.transaction():
            self.transcript.flush()
            self.transcript.end(END, how, died=died)

    def view(self, msg_id: str) -> ExecutionView:
        self.flush()
        return self.record.view(msg_id)

    def state(self, msg_id: str) -> str:
        return self.view(msg_id).state.value

    def outputs(self, msg_id: str) -> list[dict[str, Any]]:
        self.flush()
        return self.record.outputs(msg_id)

    def text(self, msg_id: str) -> str:
        return "".join(output.get("text", "") for output in self.outputs(msg_id))


def stream(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": text}


def display(text: str) -> dict[str, Any]:
    return {"output_type": "display_data", "data": {"text/plain": text}, "metadata": {}}


def the_death(kernel: Kernel, msg_id: str) -> str:
    (output,) = [output for output in kernel.outputs(msg_id) if output["output_type"] == "error"]
    assert output["ename"] == "KernelDied"
    assert output["evalue"] in output["traceback"][0]
    return str(output["evalue"])


# -- the life of an execution


def test_an_execution_from_request_to_idle() -> None:
    kernel = Kernel()
    assert kernel.request("a", "6 * 7")
    view = kernel.view("a")
    assert (view.state.value, view.code, view.cell_id, view.session, view.start) == (
        "queued",
        "6 * 7",
        "cell",
        "client",
        0,
    )
    assert (view.requested, view.started, view.execution_count) == ("2024-05-01T10:00:01Z", None, None)
    assert kernel.say("a", "status", execution_state="busy", date="2024-05-01T10:00:03Z")
    assert (kernel.state("a"), kernel.view("a").started) == ("running", "2024-05-01T10:00:03Z")
    kernel.say("a", "execute_input", execution_count=7)
    assert kernel.view("a").execution_count == 7
    assert not kernel.prints("a", "42\n")
    assert kernel.outputs("a") == [stream("42\n")]
    kernel.reply("a", execution_count=7)
    assert kernel.state("a") == "running"
    assert kernel.say("a", "status", execution_state="idle", date="2024-05-01T10:00:09Z")
    view = kernel.view("a")
    assert (view.state.value, view.ended, view.started, view.reason) == (
        "ok",
        "2024-05-01T10:00:09Z",
        "2024-05-01T10:00:03Z",
        "",
    )


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        ({"status": "ok"}, "ok"),
        ({"status": "error", "ename": "ValueError"}, "error"),
        ({"status": "error", "ename": "KeyboardInterrupt"}, "interrupted"),
        ({"status": "aborted"}, "aborted"),
        ({"status": "abort"}, "aborted"),
    ],
)
def test_the_reply_says_how_it_ended(reply: dict[str, Any], state: str) -> None:
    kernel = Kernel()
    kernel.starts("a")
    kernel.ends("a", **reply)
    assert kernel.state("a") == state


def test_an_aborted_request_has_not_run() -> None:
    kernel = Kernel()
    kernel.request("a")
    assert kernel.reply("a", "aborted")
    assert (kernel.state("a"), kernel.view("a").started) == ("aborted", None)


def test_a_second_busy_does_not_move_the_start() -> None:
    kernel = Kernel()
    kernel.request("a")
    kernel.say("a", "status", execution_state="busy", date="2024-05-01T10:00:03Z")
    kernel.say("a", "status", execution_state="busy", date="2024-05-01T10:00:04Z")
    assert kernel.view("a").started == "2024-05-01T10:00:03Z"


def test_a_lost_idle_is_made_up_for_when_the_next_one_starts() -> None:
    kernel = Kernel()
    kernel.starts("a")
    kernel.reply("a", "error", ename="E")
    kernel.request("b")
    assert kernel.state("a") == "running"
    kernel.status("b", "busy")
    assert (kernel.state("a"), kernel.state("b")) == ("error", "running")


def test_a_silent_execution_leaves_no_trace() -> None:
    kernel = Kernel(expect_grants=True)
    assert not kernel.request("a", silent=True)
    kernel.status("a", "busy")
    kernel.prints("a", "x")
    kernel.ends("a")
    kernel.transcript.decided("a", "released")
    kernel.flush()
    assert "a" not in kernel.record
    assert kernel.transcript.counts["executions"] == 0
    assert kernel.record.kernel_state == "idle"


def test_an_execution_without_history_belongs_to_no_cell() -> None:
    kernel = Kernel(expect_grants=True)
    kernel.request("a", store_history=False)
    assert (kernel.view("a").cell_id, kernel.view("a").owner) == (None, "released")


def test_only_shell_executes() -> None:
    kernel = Kernel()
    kernel.request("a", channel="control")
    kernel.flush()
    assert "a" not in kernel.record


def test_a_request_that_is_repeated_changes_nothing() -> None:
    kernel = Kernel()
    kernel.runs("a")
    assert not kernel.request("a", code="other")
    kernel.end(died=False)
    again = Kernel(record=kernel.record)
    assert not again.request("a", code="other")
    assert (again.view("a").code, again.state("a")) == ("code", "ok")


def test_messages_of_unknown_parents_belong_to_no_cell() -> None:
    kernel = Kernel()
    kernel.starts("a")
    for parent in ("unknown", None):
        kernel.status(parent, "busy")
        kernel.prints(parent, "x")  # type: ignore[arg-type]
        kernel.shows(parent, "x")
        kernel.status(parent, "idle")
    kernel.reply("unknown")
    assert kernel.outputs("a") == []
    assert kernel.record.msg_ids() == ["a"]
    assert kernel.state("a") == "running"


# -- outputs


def test_late_output_goes_to_the_cell_it_came_from() -> None:
    kernel = Kernel()
    kernel.runs("a", "one")
    kernel.flush()
    kernel.starts("b", "two")
    kernel.prints("a", "from a thread")
    kernel.prints("b", "now")
    assert kernel.outputs("a") == [stream("from a thread")]
    assert kernel.outputs("b") == [stream("now")]
    assert kernel.state("a") == "ok"


def test_a_display_is_updated_wherever_it_is_shown() -> None:
    kernel = Kernel()
    kernel.starts("a", "one")
    kernel.shows("a", "0 %", "bar")
    kernel.prints("a", "text")
    kernel.ends("a")
    kernel.flush()
    kernel.starts("b", "two")
    kernel.shows("b", "50 %", "bar")
    assert kernel.outputs("a") == [display("50 %"), stream("text")]
    kernel.shows("b", "100 %", "bar", update=True)
    assert kernel.outputs("a") == [display("100 %"), stream("text")]
    assert kernel.outputs("b") == [display("100 %")]
    kernel.shows("unknown", "by a comm", "bar", update=True)
    assert kernel.outputs("a")[0] == display("by a comm")
    kernel.shows(None, "by nobody", "bar", update=True)
    assert kernel.outputs("a")[0] == display("by nobody")


def test_cleared_output_waits_for_the_next() -> None:
    kernel = Kernel()
    kernel.starts("a")
    kernel.prints("a", "old")
    assert kernel.text("a") == "old"
    kernel.say("a", "clear_output", wait=True)
    assert kernel.text("a") == "old"
    kernel.prints("a", "new")
    assert kernel.text("a") == "new"
    kernel.say("a", "clear_output", wait=False)
    assert kernel.outputs("a") == []


def test_the_document_has_one_change_for_many_messages() -> None:
    kernel = Kernel()
    kernel.starts("a")
    kernel.flush()
    updates: list[bytes] = []
    kernel.record.observe_updates(updates.append)
    for percent in range(1000):
        kernel.prints("a", f"\r{percent / 10} %", "stderr")
    kernel.flush()
    assert len(updates) == 1
    assert len(updates[0]) < 200
    assert kernel.text("a") == "99.9 %"
    assert not kernel.transcript.dirty
    kernel.flush()
    assert len(updates) == 1


def test_a_long_text_is_whole() -> None:
    kernel = Kernel()
    kernel.starts("a")
    for number in range(50):
        kernel.prints("a", f"{number} " + "ß😀" * CHUNK + "\n")
        if number % 7 == 0:
            kernel.flush()
    assert kernel.text("a") == "".join(f"{number} " + "ß😀" * CHUNK + "\n" for number in range(50))


def test_what_an_output_widget_captures_is_not_in_the_cell() -> None:
    kernel = Kernel()
    kernel.starts("a")
    state = {"_model_name": "OutputModel", "msg_id": "", "outputs": []}
    kernel.say("a", "comm_open", comm_id="w", target_name="jupyter.widget", data={"state": state})
    kernel.prints("a", "before\n")
    kernel.say("a", "comm_msg", comm_id="w", data={"method": "update", "state": {"msg_id": "a"}})
    kernel.prints("a", "captured\n")
    kernel.shows("a", "captured")
    kernel.say("a", "comm_msg", comm_id="w", data={"method": "update", "state": {"msg_id": ""}})
    kernel.prints("a", "after\n")
    assert kernel.text("a") == "before\nafter\n"
    assert len(kernel.outputs("a")) == 1


def test_a_page_of_help_is_an_output() -> None:
    kernel = Kernel()
    kernel.starts("a")
    kernel.ends("a", payload=[{"source": "page", "data": {"text/plain": "help"}}])
    assert kernel.outputs("a") == [display("help")]
    assert kernel.view("a").pager
    kernel.runs("b")
    assert not kernel.view("b").pager


def test_an_error_is_shown_at_once() -> None:
    kernel = Kernel()
    kernel.starts("a")
    assert kernel.say("a", "error", ename="E", evalue="v", traceback=["1", "2"])
    assert kernel.outputs("a") == [{"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["1", "2"]}]


# -- who shows it


@pytest.mark.parametrize(
    ("expects", "cell", "owner"), [(True, "c", "open"), (True, None, "released"), (False, "c", "released")]
)
def test_an_execution_of_a_cell_is_open_where_somebody_may_ask_for_it(
    expects: bool, cell: str | None, owner: str
) -> None:
    kernel = Kernel(expect_grants=expects)
    kernel.request("a", cell=cell)
    assert kernel.view("a").owner == owner


@pytest.mark.parametrize("flushed", [True, False])
@pytest.mark.parametrize("owner", ["granted", "released"])
def test_a_decision_is_noted(owner: str, flushed: bool) -> None:
    kernel = Kernel(expect_grants=True)
    kernel.request("a")
    if flushed:
        kernel.flush()
    kernel.transcript.decided("a", owner)
    assert kernel.transcript.dirty
    assert kernel.view("a").owner == owner


def test_decisions_on_what_is_not_recorded_leave_nothing_behind() -> None:
    kernel = Kernel(expect_grants=True)
    for number in range(100):
        kernel.transcript.decided(f"silent-{number}", "released")
    assert not kernel.transcript.dirty


# -- the kernel asks, and tells about itself


def test_a_request_for_input_is_there_until_it_is_answered() -> None:
    kernel = Kernel()
    kernel.starts("a")
    assert kernel.say("a", "input_request", "stdin", prompt="Name? ", password=False)
    kernel.flush()
    pending = kernel.record.pending_input
    assert pending is not None
    assert (pending["parent_id"], pending["prompt"], pending["password"]) == ("a", "Name? ", False)
    answer = build("input_reply", {"value": "secret"}, msg_id="r", session="client", date=START)
    assert kernel.send("stdin", "to_kernel", answer)
    kernel.flush()
    assert kernel.record.pending_input is None
    assert b"secret" not in kernel.record.doc.get_update()


def test_a_request_for_input_goes_with_the_execution_that_asked() -> None:
    kernel = Kernel()
    kernel.starts("a")
    kernel.say("a", "input_request", "stdin", prompt="?")
    kernel.flush()
    kernel.status("other", "idle")
    kernel.flush()
    assert kernel.record.pending_input is not None
    kernel.ends("a", "error", ename="KeyboardInterrupt")
    kernel.flush()
    assert kernel.record.pending_input is None


def test_a_request_for_input_goes_with_the_kernel() -> None:
    kernel = Kernel()
    kernel.starts("a")
    kernel.say("a", "input_request", "stdin", prompt="?")
    kernel.end()
    assert kernel.record.pending_input is None


def test_the_kernels_state_and_info_are_the_last_ones() -> None:
    kernel = Kernel()
    assert kernel.record.kernel_state == "starting"
    kernel.status(None, "busy")
    kernel.say("i", "kernel_info_reply", "shell", status="ok", implementation="x", banner="b")
    kernel.flush()
    assert kernel.record.kernel_state == "busy"
    assert kernel.record.kernel_info == {"status": "ok", "implementation": "x", "banner": "b"}
    kernel.status(None, "idle")
    kernel.end()
    assert kernel.record.kernel_state == "dead"


# -- messages that cannot be read


def test_what_cannot_be_read_is_counted_and_changes_nothing() -> None:
    kernel = Kernel()
    kernel.starts("a")
    kernel.flush()
    message = build(
        "stream",
        {"name": "stdout", "text": "forged"},
        msg_id="f",
        session="x",
        date=START,
        parent_header={"msg_id": "a"},
    )
    forged = serialize(message, Signer(b"another key"))
    assert not kernel.transcript.message("iopub", "to_client", forged)
    for broken in ([], [b"x"], serialize(message, SIGNER)[:-2], [*serialize(message, SIGNER)[:-1], b"\xff{"]):
        assert not kernel.transcript.message("iopub", "to_client", broken)
    assert kernel.transcript.counts == {
        "messages": 8,
        "malformed": 3,
        "bad_signature": 2,
        "unexpected": 0,
        "executions": 1,
    }
    assert kernel.outputs("a") == []


def test_a_second_reply_is_counted_and_changes_nothing() -> None:
    kernel = Kernel()
    kernel.starts("a")
    kernel.reply("a", "error", ename="E")
    kernel.reply("a", "ok")
    kernel.status("a", "idle")
    assert kernel.state("a") == "error"
    assert kernel.transcript.counts["unexpected"] == 1


def test_heartbeats_and_subscriptions_are_no_messages() -> None:
    kernel = Kernel()
    assert not kernel.transcript.message("hb", "to_kernel", [b"ping"])
    assert not kernel.transcript.message("iopub", "to_kernel", [b"\1"])
    assert kernel.transcript.counts["messages"] == 0


# -- the end of the kernel


@pytest.mark.parametrize("how", ["the kernel exited with code 3", "the kernel was killed by signal 9 (SIGKILL)"])
def test_a_cell_whose_kernel_dies_says_how_and_what_waited_is_aborted(how: str) -> None:
    kernel = Kernel()
    kernel.runs("done", "one")
    kernel.starts("running", "two")
    kernel.prints("running", "printed before\n")
    kernel.request("queued", cell="three")
    kernel.end(how)
    assert [kernel.state(each) for each in ("done", "running", "queued")] == ["ok", "died", "aborted"]
    assert how[1:] in the_death(kernel, "running")
    assert kernel.text("running") == "printed before\n"
    assert (kernel.view("running").ended, kernel.view("running").reason) == (END, how)
    assert (kernel.outputs("queued"), kernel.outputs("done")) == ([], [])
    assert kernel.view("done").reason == ""
    assert kernel.record.starts == [{"started": START, "ended": END, "how": how}]


def test_a_cell_whose_kernel_was_asked_to_end_is_interrupted_without_an_error() -> None:
    kernel = Kernel()
    kernel.starts("running")
    kernel.prints("running", "x")
    kernel.request("queued")
    kernel.end("the kernel was restarted", died=False)
    assert (kernel.state("running"), kernel.state("queued")) == ("interrupted", "aborted")
    assert kernel.outputs("running") == [stream("x")]
    assert kernel.view("running").reason == "the kernel was restarted"


def test_a_cell_that_kills_its_kernel_before_it_can_say_anything_has_died() -> None:
    kernel = Kernel()
    kernel.status(None, "idle")
    kernel.request("killer", cell="one")
    kernel.request("queued", cell="two")
    kernel.end("the kernel was killed by signal 9 (SIGKILL)")
    assert (kernel.state("killer"), kernel.state("queued")) == ("died", "aborted")
    assert "SIGKILL" in the_death(kernel, "killer")


def test_a_kernel_that_dies_before_it_ran_took_no_cell_with_it() -> None:
    kernel = Kernel()
    kernel.request("waiting")
    kernel.end()
    assert (kernel.state("waiting"), kernel.outputs("waiting")) == ("aborted", [])


def test_an_execution_that_was_over_but_for_a_lost_message_ends_as_it_would_have() -> None:
    kernel = Kernel()
    kernel.starts("replied", "one")
    kernel.reply("replied")
    kernel.end()
    assert (kernel.state("replied"), kernel.outputs("replied"), kernel.view("replied").reason) == ("ok", [], "")


def test_a_new_start_ends_what_a_killed_keeper_left() -> None:
    killed = Kernel(expect_grants=True)
    killed.runs("done", "one")
    killed.starts("running", "two")
    killed.prints("running", "printed\n")
    killed.request("queued", cell="three")
    killed.say("running", "input_request", "stdin", prompt="?")
    killed.transcript.decided("done", "released")
    killed.flush()
    kernel = Kernel(record=killed.record, began=END, expect_grants=True)
    assert [kernel.state(each) for each in ("done", "running", "queued")] == ["ok", "died", "aborted"]
    assert "killed" in the_death(kernel, "running")
    assert kernel.text("running") == "printed\n"
    assert kernel.record.pending_input is None
    # Nobody will be asked any more, and no client was shown what was held.
    assert [kernel.view(each).owner for each in ("done", "running", "queued")] == ["released", "granted", "granted"]
    first, second = kernel.record.starts
    assert (first["ended"], second["ended"]) == (END, None)
    assert "killed" in first["how"]
    kernel.starts("next", "one")
    assert (kernel.view("next").seq, kernel.view("next").start) == (3, 1)
    assert kernel.record.msg_ids() == ["done", "running", "queued", "next"]


def test_an_earlier_record_that_turns_up_late_comes_before() -> None:
    earlier = Kernel()
    earlier.runs("one", "c")
    earlier.starts("two", "c")
    earlier.prints("two", "x")
    earlier.flush()
    kernel = Kernel(began=END, runs_per_cell=2)
    kernel.starts("three", "c")
    kernel.prints("three", "y")
    kernel.flush()
    kernel.record.apply(earlier.record.doc.get_update())
    with kernel.record.transaction():
        kernel.transcript.merged("2024-05-01T12:00:00Z")
    assert kernel.record.msg_ids() == ["one", "two", "three"]
    assert [kernel.state(each) for each in ("one", "two", "three")] == ["ok", "died", "running"]
    assert [kernel.view(each).start for each in ("one", "two", "three")] == [0, 0, 1]
    assert [start["ended"] for start in kernel.record.starts] == ["2024-05-01T12:00:00Z", None]
    assert kernel.record.kernel_state == "busy"
    kernel.prints("three", "z")
    kernel.runs("four", "c")
    kernel.flush()
    assert kernel.record.msg_ids() == ["three", "four"]
    assert kernel.text("three") == "yz"
    kernel.end(died=False)
    assert [start["how"] for start in kernel.record.starts][1] == "the kernel exited with code 1"


def test_a_record_that_was_known_already_changes_nothing_when_it_is_merged() -> None:
    kernel = Kernel()
    kernel.runs("one")
    kernel.starts("two")
    kernel.flush()
    before = [kernel.view(msg_id) for msg_id in kernel.record.msg_ids()]
    with kernel.record.transaction():
        kernel.transcript.merged(END)
    assert [kernel.view(msg_id) for msg_id in kernel.record.msg_ids()] == before
    kernel.request("three")
    assert kernel.view("three").seq == 2


# -- retention


def test_of_a_cell_the_last_runs_are_kept() -> None:
    kernel = Kernel(runs_per_cell=3)
    for number in range(6):
        kernel.runs(f"a{number}", "one")
        kernel.flush()
    kernel.runs("b", "two")
    kernel.flush()
    assert kernel.record.msg_ids() == ["a3", "a4", "a5", "b"]


def test_runs_of_earlier_starts_count_and_unfinished_ones_stay() -> None:
    first = Kernel(runs_per_cell=2)
    for number in range(2):
        first.runs(f"a{number}", "one")
    first.end(died=False)
    kernel = Kernel(record=first.record, began=END, runs_per_cell=2)
    kernel.starts("a2", "one")
    for number in range(3, 6):
        kernel.request(f"a{number}", cell="one")
    kernel.flush()
    assert kernel.record.msg_ids() == ["a2", "a3", "a4", "a5"]
    kernel.ends("a2")
    kernel.runs("a6", "one")
    kernel.flush()
    assert "a2" not in kernel.record


def test_of_what_belongs_to_no_cell_the_last_are_kept() -> None:
    kernel = Kernel(runs_per_cell=1)
    for number in range(RUNS_WITHOUT_CELL + 5):
        kernel.runs(f"m{number}", None)
    kernel.flush()
    assert kernel.record.msg_ids() == [f"m{number}" for number in range(5, RUNS_WITHOUT_CELL + 5)]


def test_late_output_of_a_run_that_was_dropped_is_nobodys() -> None:
    kernel = Kernel(runs_per_cell=1)
    kernel.starts("a")
    kernel.shows("a", "bar", "id")
    kernel.ends("a")
    kernel.runs("b")
    kernel.prints("a", "late")
    kernel.flush()
    kernel.prints("a", "later")
    kernel.shows("b", "x", "id", update=True)
    kernel.reply("a")
    kernel.flush()
    assert kernel.record.msg_ids() == ["b"]
    assert kernel.outputs("b") == []


# -- anything at all

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["a", "b", "busy", "idle", "ok", "error", "aborted", "stdout", "bar", "\r", "\b\b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["data", "text", "name", "source", "state", "method", "msg_id", "display_id", "text/plain"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
CONTENT = """execution_state status text name data metadata transient wait payload ename traceback execution_count
code silent store_history prompt password comm_id target_name"""
contents = st.dictionaries(st.sampled_from(CONTENT.split()), json_values, max_size=6)
messages = st.tuples(
    st.sampled_from(["shell", "iopub", "stdin", "control"]),
    st.sampled_from(["to_kernel", "to_client"]),
    st.sampled_from(
        [*sorted(OUTPUT_TYPES), "status", "execute_input", "execute_request", "execute_reply", "input_request"]
    )
    | st.sampled_from(["input_reply", "kernel_info_reply", "comm_open", "comm_msg", "comm_close", "other"]),
    st.sampled_from(["a", "b", "c"]),  # its id
    st.sampled_from(["a", "b", None, 7, ""]),  # its parent's
    contents,
    json_values,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(messages | st.booleans(), max_size=25))
def test_no_content_raises_and_the_record_can_always_be_read(steps: list[Any]) -> None:
    """A bool flushes; True also decides."""
    kernel = Kernel(runs_per_cell=2, expect_grants=True)
    for step in steps:
        if isinstance(step, bool):
            if step:
                kernel.transcript.decided("a", "granted")
            kernel.flush()
            continue
        channel, direction, msg_type, msg_id, parent, content, odd = step
        metadata = {"cellId": odd} if isinstance(odd, (str, list)) else {}
        header = {"msg_id": parent} if parent is not None else {}
        message = build(
            msg_type, content, msg_id=msg_id, session="s", date=START, metadata=metadata, parent_header=header
        )
        kernel.transcript.message(channel, direction, _json(message))
    kernel.end()
    follower = RecordDocument()
    follower.apply(kernel.record.doc.get_update())
    for view in follower.views():
        assert view.state.ended
        assert follower.outputs(view.msg_id) == kernel.record.outputs(view.msg_id)
    assert kernel.transcript.counts["malformed"] == 0


def _json(message: Message) -> list[bytes]:
    """Frames as a kernel that does not care may write them: NaN, lone surrogates, huge integers."""
    parts = [message.header, message.parent_header, message.metadata, message.content]
    signed = [json.dumps(part).encode() for part in parts]
    return [b"<IDS|MSG>", SIGNER.sign(signed), *signed]


def test_a_kernel_stays_busy_while_the_control_channel_is_served() -> None:
    """A server that nudges a kernel asks for its info on control, and is answered while a cell runs."""
    kernel = Kernel()
    kernel.request("a")
    for parent, state in [("a", "busy"), ("info", "busy"), ("info", "idle")]:
        kernel.status(parent, state)
        kernel.flush()
        assert kernel.record.kernel_state == "busy"
    assert kernel.transcript.busy
    kernel.status("a", "idle")
    kernel.flush()
    assert kernel.record.kernel_state == "idle"


def test_a_lost_idle_of_a_cell_does_not_keep_the_kernel_busy() -> None:
    kernel = Kernel()
    kernel.request("a")
    kernel.status("a", "busy")
    kernel.say("a", "execute_reply", "shell", status="ok", execution_count=1)
    kernel.request("b")
    kernel.status("b", "busy")
    kernel.status("b", "idle")
    kernel.flush()
    assert kernel.record.kernel_state == "idle"
