"""An execution has one writer: the page that ran it, or us. Decided once, and right also when the server is late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import expected_lines, lines_on_disk, wait_until, write
from harness.notebooks import stream_text
from harness.page_like import PageLikeClient
from harness.room_client import RoomClient
from kept import PROBE, Kept

if TYPE_CHECKING:
    from harness import Server, Trace

SERVER_OPTIONS = {**PROBE, "config": {**PROBE["config"], "OutputKeeper": {"hold_timeout": 2.0}}}


def test_a_page_in_a_room_leaves_its_outputs_to_us(server: Server, notebook: str, trace: Trace) -> None:
    write(server.path(notebook), trace.printing(20, 1))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with PageLikeClient(server, notebook, kernel_id) as page:
        msg_id = page.execute()
        page.wait(lambda cell: cell["execution_count"] == 1, what="the cell has ended")
        page.wait(lambda cell: stream_text(cell["outputs"]).splitlines() == expected_lines(20), what="all lines")
        assert Kept(server, kernel_id).owner(msg_id) == "granted"
        assert page.wrote == 0


def test_a_stalled_event_loop_while_a_granted_execution_prints(server: Server, notebook: str, trace: Trace) -> None:
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


def test_a_released_execution_is_completed_when_its_page_is_gone(server: Server, notebook: str, trace: Trace) -> None:
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


def test_of_a_cell_that_is_run_again_while_it_runs_the_last_run_is_shown(
    server: Server, notebook: str, trace: Trace
) -> None:
    source = trace.prelude() + "n = globals().get('n', 0) + 1; print(n, flush=True); note(n); gate(f'go-{n}'); print(n)"
    path = write(server.path(notebook), source)
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    kept = Kept(server, kernel_id)
    with PageLikeClient(server, notebook, kernel_id) as page:
        first = page.execute()
        page.wait(lambda cell: cell["outputs"], what="the first run prints")
        second = page.execute()
        assert kept.owner(second) == "granted"
        trace.open_gate("go-1")
        trace.open_gate("go-2")
        page.wait(lambda cell: cell["execution_count"] == 2, what="the second run has ended")
        page.wait_for_lines(lambda: ["2", "2"])
        assert page.wrote == 0
        kept.wait_until_settled(second)
    assert lines_on_disk(path) == ["2", "2"]
    assert kept.settlement(first) == "superseded by a later run of the cell"
