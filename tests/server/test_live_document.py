"""What projection does to a live document: little at a time, nothing that an undo takes back, nothing left over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil
from harness import KernelClient, cell_on_disk, lines_on_disk, stream_text, wait_until, write
from harness.page_like import PageLikeClient
from harness.room_client import RoomClient
from kept import PROBE, Kept, rooms
from pycrdt import UndoManager

if TYPE_CHECKING:
    from harness import Server, Trace

SERVER_OPTIONS = PROBE
PERSON = "a person"


def undo_manager(room: RoomClient) -> UndoManager:
    """As a page has one: it tracks what this person does, and nothing else."""
    manager = UndoManager(scopes=[room.notebook.ycells], capture_timeout_millis=0)
    manager.include_origin(PERSON)
    return manager


def test_the_file_keeps_up_with_a_cell_that_prints_without_pause(server: Server, notebook: str, trace: Trace) -> None:
    """At most 10 s behind: 200 lines of a line every 50 ms, and half as much again for a busy machine."""
    path = write(server.path(notebook), trace.printing_until("finish"))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with PageLikeClient(server, notebook, kernel_id) as page:
        page.execute()
        page.wait(lambda cell: cell["outputs"], what="the cell prints")
        for _ in range(2):
            now = len(trace.steps())
            wait_until(lambda now=now: len(lines_on_disk(path)) >= now, what=f"line {now} is on disk")
            assert len(trace.steps()) < now + 300
        trace.open_gate("finish")
        page.wait_for_lines(trace.printed)
    wait_until(lambda: lines_on_disk(path) == trace.printed(), what="all lines are on disk")


def test_undo_takes_back_what_a_person_did_and_no_output(server: Server, notebook: str, trace: Trace) -> None:
    write(server.path(notebook), trace.printing_until("finish"), "first")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with PageLikeClient(server, notebook, kernel_id) as page:
        manager = undo_manager(page.room)
        notebook_document = page.room.notebook
        page.execute()
        page.wait(lambda cell: cell["outputs"], what="the cell prints")
        with notebook_document.ydoc.transaction(origin=PERSON):
            text = notebook_document.ycells[1]["source"]
            text += " and more"
        lines = len(page.room.lines())
        page.wait(lambda cell: len(page.room.lines()) > lines + 5, what="more lines")
        assert manager.undo()
        assert page.room.cell(1)["source"] == "first"
        assert not manager.can_undo()
        assert len(page.room.lines()) > lines + 5
        trace.open_gate("finish")
        page.wait_for_lines(trace.printed)


def test_a_cell_deleted_during_its_run_and_brought_back_by_undo_is_complete(
    server: Server, notebook: str, trace: Trace
) -> None:
    path = write(server.path(notebook), trace.printing_until("finish"), "another")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with PageLikeClient(server, notebook, kernel_id) as page:
        manager = undo_manager(page.room)
        page.execute()
        page.wait(lambda cell: cell["outputs"], what="the cell prints")
        with page.room.notebook.ydoc.transaction(origin=PERSON):
            del page.room.notebook.ycells[0]
        trace.wait(len(trace.steps()) + 10)
        assert manager.undo()
        page.wait(lambda cell: len(page.room.lines()) > 10, what="the cell is back and goes on")
        trace.open_gate("finish")
        page.wait_for_lines(trace.printed)
    wait_until(lambda: lines_on_disk(path) == trace.printed(), what="all lines are on disk")


PICTURE = 50_000
CLEARING = f"""
import os
from IPython.display import Image, clear_output, display
def show(rounds):
    for i in range(rounds):
        clear_output(wait=True)
        display(Image(data=b'\\x89PNG' + os.urandom({PICTURE}), format='png'))
"""


def test_pictures_that_were_replaced_leave_nothing_behind(server: Server, notebook: str, trace: Trace) -> None:
    source = trace.prelude() + CLEARING + "show(100); note('warm'); gate('go'); show(1000); note('end')"
    write(server.path(notebook), source)
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    process = psutil.Process(server.pid)
    with RoomClient(server, notebook) as room, KernelClient(server, kernel_id) as client:
        client.execute(source, cell_id="cell-0")
        trace.wait_for("warm")
        room.wait(lambda cell: cell["outputs"], what="a picture is shown")
        before, updates = process.memory_info().rss, len(room.update_sizes)
        trace.open_gate("go")
        room.wait(lambda cell: cell["execution_count"] == 1, what="the cell has ended")
        assert len(room.cell()["outputs"]) == 1
        assert len(room.update_sizes) > updates + 10  # so many pictures were in the document
        assert rooms(server)[room.room_id] < 2 * PICTURE * 4 / 3
        assert process.memory_info().rss - before < 30e6


def test_a_flush_costs_the_same_after_five_megabytes(server: Server, notebook: str, trace: Trace) -> None:
    slowly = "[(print('x' * 50, flush=True), time.sleep(0.1)) for _ in range(15)]"
    source = trace.prelude() + f"gate('first'); {slowly}; note('first')\n"
    source += "for i in range(5000): print('y' * 999)\n"
    source += f"note('much'); gate('last'); {slowly}; note('last'); gate('end')"
    write(server.path(notebook), source)
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    largest: dict[str, int] = {}
    with RoomClient(server, notebook) as room, KernelClient(server, kernel_id) as client:
        client.execute(source, cell_id="cell-0")
        client.wait_for(lambda m: m["header"]["msg_type"] == "execute_input", what="the cell runs")
        room.wait(lambda cell: cell["execution_state"] == "running", what="the room says so")
        for phase, size in (("first", 15 * 51), ("last", 5_000_000 + 2 * 15 * 51)):
            room.update_sizes.clear()
            trace.open_gate(phase)
            if phase == "first":
                room.wait(lambda cell: "x" in stream_text(cell["outputs"]), what="the first lines")
                largest[phase] = max(room.update_sizes)
                trace.wait_for("much")
                room.wait(lambda cell: len(stream_text(cell["outputs"])) == 5_000_000 + 15 * 51, what="all of it")
                continue
            room.wait(lambda cell, size=size: len(stream_text(cell["outputs"])) == size, what="the last lines")
            largest[phase] = max(room.update_sizes)
        trace.open_gate("end")
        room.wait(lambda cell: cell["execution_count"] == 1, what="the cell has ended")
    assert largest["last"] < 3 * largest["first"] + 1000
    wait_until(
        lambda: len(stream_text(cell_on_disk(server.path(notebook))["outputs"])) == 5_000_000 + 30 * 51,
        what="all of it is on disk",
    )


def test_a_flood_of_displays_is_complete_in_few_transactions(server: Server, notebook: str) -> None:
    source = "for i in range(5000): display({'text/plain': str(i)}, raw=True)"
    path = write(server.path(notebook), source)
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with RoomClient(server, notebook) as room, KernelClient(server, kernel_id) as client:
        room.update_sizes.clear()
        start = time.monotonic()
        msg_id = client.execute(source, cell_id="cell-0")

        def complete() -> bool:
            room.pump()
            cell = room.notebook.ycells[0]
            return cell.get("execution_count") is not None

        wait_until(complete, what="the cell has ended")
        assert len(room.update_sizes) < 25 * (time.monotonic() - start) + 25
        assert [shown(output) for output in room.cell()["outputs"]] == [str(i) for i in range(5000)]
        assert client.outputs(msg_id) == []
        Kept(server, kernel_id).wait_until_settled(msg_id)
    assert [shown(output) for output in cell_on_disk(path)["outputs"]] == [str(i) for i in range(5000)]


def shown(output: dict[str, Any]) -> str:
    return output["data"]["text/plain"]
