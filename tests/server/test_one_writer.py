"""An execution has one writer: the page that ran it, or us. Decided once, and right also when the server is late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import KernelClient, expected_lines, lines_on_disk, wait_until, write
from harness.notebooks import cell_on_disk, stream_text
from harness.page_like import PageLikeClient
from harness.room_client import RoomClient
from kept import PROBE, Kept, rooms

if TYPE_CHECKING:
    from harness import Server, Trace

SERVER_OPTIONS = {**PROBE, "config": {**PROBE["config"], "OutputKeeper": {"hold_timeout": 2.0}}}


def test_a_client_without_a_room_gets_its_outputs_and_the_file_is_completed(
    server: Server, notebook: str, trace: Trace
) -> None:
    write(server.path(notebook), trace.printing_until("finish"))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    kept = Kept(server, kernel_id)
    client = KernelClient(server, kernel_id)
    msg_id = client.execute(trace.printing_until("finish"), cell_id="cell-0")
    client.wait_for(lambda m: m["header"]["msg_type"] == "stream", what="the first output")
    assert kept.owner(msg_id) == "released"
    trace.wait(5)
    client.leave()
    trace.open_gate("finish")
    trace.wait_for("end")
    wait_until(lambda: cell_on_disk(server.path(notebook))["execution_count"] == 1, what="the file is completed")
    assert lines_on_disk(server.path(notebook)) == trace.printed()
    assert kept.wait_until_settled(msg_id) == "seen in the saved file"
    assert rooms(server) == []


def test_without_a_room_the_decision_does_not_wait_for_the_hold_to_end(server: Server, notebook: str) -> None:
    """The keeper says what the hold released: an execution released by decision is released before its end."""
    write(server.path(notebook), "print(1)")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with KernelClient(server, kernel_id) as client:
        client.wait_for_reply(client.send("shell", "kernel_info_request", {}))
        msg_id = client.execute("print(1)", cell_id="cell-0")
        client.wait_for_reply(msg_id)
        # shell is not held: the reply may come first, but the release comes with the request's own flush
        assert Kept(server, kernel_id).owner(msg_id) == "released"
        client.wait_for_idle(msg_id)
        assert client.text(msg_id) == "1\n"


def test_a_page_in_a_room_leaves_its_outputs_to_us(server: Server, notebook: str, trace: Trace) -> None:
    write(server.path(notebook), trace.printing(20, 1))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with PageLikeClient(server, notebook, kernel_id) as page:
        msg_id = page.execute()
        page.wait(lambda cell: cell["execution_count"] == 1, what="the cell has ended")
        page.wait(lambda cell: stream_text(cell["outputs"]).splitlines() == expected_lines(20), what="all lines")
        assert Kept(server, kernel_id).owner(msg_id) == "granted"
        assert page.wrote == 0


def test_a_stalled_event_loop_while_a_granted_execution_prints(
    server: Server, notebook: str, trace: Trace
) -> None:
    write(server.path(notebook), trace.printing_until("finish"))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    kept = Kept(server, kernel_id)
    with PageLikeClient(server, notebook, kernel_id) as page:
        msg_id = page.execute()
        page.wait(lambda cell: cell["outputs"], what="the cell prints")
        assert kept.owner(msg_id) == "granted"
        server.api("POST", "probe/stall/5")
        trace.open_gate("finish")
        page.wait_for_lines(trace.printed)
        assert page.wrote == 0
    kept.wait_until_settled(msg_id)
    assert lines_on_disk(server.path(notebook)) == trace.printed()


def test_a_stalled_event_loop_while_an_execution_is_open(server: Server, notebook: str, trace: Trace) -> None:
    """The hold ends while the server cannot ask: the page gets the outputs and is their only writer."""
    write(server.path(notebook), trace.printing_until("finish"))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    kept = Kept(server, kernel_id)
    server.api("POST", "probe/stall-before-grant/5")
    page = PageLikeClient(server, notebook, kernel_id)
    msg_id = page.execute()
    page.wait(lambda cell: cell["outputs"], what="the page shows outputs")
    assert kept.owner(msg_id) == "released"
    trace.open_gate("finish")
    page.wait_for_lines(trace.printed)
    assert page.wrote > 0
    page.leave()
    wait_until(lambda: lines_on_disk(server.path(notebook)) == trace.printed(), what="each line once in the file")
    kept.wait_until_settled(msg_id)
    with RoomClient(server, notebook) as room:
        assert room.lines() == trace.printed()


def test_a_released_execution_is_completed_when_its_page_is_gone(
    server: Server, notebook: str, trace: Trace
) -> None:
    """A page that was its execution's writer leaves in the middle; another one is still in the room."""
    write(server.path(notebook), trace.printing_until("finish"))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    kept = Kept(server, kernel_id)
    server.api("POST", "probe/stall-before-grant/3")
    page = PageLikeClient(server, notebook, kernel_id)
    with RoomClient(server, notebook) as other:
        msg_id = page.execute()
        page.wait(lambda cell: cell["outputs"], what="the page shows outputs")
        assert kept.owner(msg_id) == "released"
        page.leave()
        at = len(trace.steps())
        trace.wait(at + 10)
        trace.open_gate("finish")
        trace.wait_for("end")
        other.wait(lambda cell: cell["execution_count"] == 1, what="the cell has ended")
        assert other.lines() == trace.printed()
    kept.wait_until_settled(msg_id)
    assert lines_on_disk(server.path(notebook)) == trace.printed()
