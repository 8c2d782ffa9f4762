"""Until an execution is settled its notebook is brought to what the record says; from then on people have the word."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import nbformat
from harness import KernelClient, cell_on_disk, lines_on_disk, read, wait_until, write
from harness.page_like import PageLikeClient
from harness.room_client import RoomClient
from kept import PROBE, Kept
from nbformat.sign import NotebookNotary

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Server, Trace

SERVER_OPTIONS = {
    "env": PROBE["env"],
    "config": {**PROBE["config"], "OutputKeeper": {"save_interval": 2.0}, "YDocExtension": {"file_poll_interval": 0.5}},
}


def clear(room: RoomClient, index: int = 0) -> None:
    """As the menu's Clear Cell Outputs does."""
    cell = room.notebook.ycells[index]
    with room.notebook.ydoc.transaction():
        cell["outputs"].clear()
        cell["execution_count"] = None


def edit_from_outside(path: Path, source: str, index: int) -> None:
    """Write the file as a git checkout does: without any outputs, and with one cell's source changed."""
    node = read(path)
    for cell in node["cells"]:
        cell["outputs"], cell["execution_count"] = [], None
    node["cells"][index]["source"] = source
    nbformat.write(node, path)


def test_a_room_overwritten_during_the_run_is_brought_back(server: Server, notebook: str, trace: Trace) -> None:
    path = write(server.path(notebook), trace.printing_until("finish"), "old")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with PageLikeClient(server, notebook, kernel_id) as page:
        msg_id = page.execute()
        page.wait(lambda cell: len(cell["outputs"]), what="the cell prints")
        wait_until(lambda: lines_on_disk(path), what="some lines are on disk")
        edit_from_outside(path, "new", 1)
        page.wait(lambda cell: cell["source"] == "new", 1, what="the room is overwritten")
        page.wait(
            lambda cell: "".join(o["text"] for o in cell["outputs"]).startswith("line 0\n"), what="all lines again"
        )
        trace.open_gate("finish")
        page.wait_for_lines(trace.printed)
        assert page.room.cell(1)["source"] == "new"
        assert page.wrote == 0
        assert Kept(server, kernel_id).owner(msg_id) == "granted"
    wait_until(lambda: lines_on_disk(path) == trace.printed(), what="each line once on disk")
    assert cell_on_disk(path, 1)["source"] == "new"


def test_a_room_overwritten_while_its_cell_is_silent_is_brought_back(
    server: Server, notebook: str, trace: Trace
) -> None:
    """No new output follows that would bring the old ones along."""
    source = trace.prelude() + "print('before', flush=True); note('ran'); gate('go'); print('after')"
    path = write(server.path(notebook), source, "old")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with PageLikeClient(server, notebook, kernel_id) as page:
        page.execute()
        page.wait(lambda cell: cell["outputs"], what="the cell prints")
        wait_until(lambda: lines_on_disk(path), what="the line is on disk")
        edit_from_outside(path, "new", 1)
        page.wait(lambda cell: cell["source"] == "new", 1, what="the room is overwritten")
        page.wait(lambda cell: cell["outputs"], what="the line is back")
        wait_until(lambda: lines_on_disk(path), what="the line is on disk again")
        trace.open_gate("go")
        page.wait_for_lines(lambda: ["before", "after"])


def test_a_file_overwritten_during_the_run_is_brought_back(server: Server, notebook: str, trace: Trace) -> None:
    path = write(server.path(notebook), trace.printing_until("finish"), "old")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    client = KernelClient(server, kernel_id)
    client.execute(trace.printing_until("finish"), cell_id="cell-0")
    trace.wait(1)
    client.leave()
    wait_until(lambda: lines_on_disk(path), what="some lines are on disk")
    edit_from_outside(path, "new", 1)
    trace.open_gate("finish")
    trace.wait_for("end")
    wait_until(lambda: cell_on_disk(path)["execution_count"] == 1, what="the cell has ended on disk")
    assert lines_on_disk(path) == trace.printed()
    assert cell_on_disk(path, 1)["source"] == "new"


def test_outputs_cleared_after_settling_stay_cleared(server: Server, notebook: str, trace: Trace) -> None:
    path = write(server.path(notebook), "print('settled')", "print('still here')", trace.prelude() + "gate('go')")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    kept = Kept(server, kernel_id)
    with PageLikeClient(server, notebook, kernel_id) as page:
        msg_ids = [page.execute(0), page.execute(1)]
        last = page.execute(2)
        page.wait_for_lines(lambda: ["settled"])
        page.wait_for_lines(lambda: ["still here"], 1)
        assert {kept.wait_until_settled(msg_id) for msg_id in msg_ids} == {"seen in the saved file"}
        clear(page.room)
        wait_until(lambda: cell_on_disk(path)["outputs"] == [], what="the cleared cell is saved")
        trace.open_gate("go")
        page.wait(lambda cell: cell["execution_count"] == 3, 2, what="the last cell has ended")
        kept.wait_until_settled(last)
        assert page.room.cell()["outputs"] == []
        assert cell_on_disk(path)["outputs"] == []
        assert lines_on_disk(path, 1) == ["still here"]
        # an edit from outside of what is settled stays as it is, too
        edit_from_outside(path, "new", 2)
        page.wait(lambda cell: cell["source"] == "new", 2, what="the room is overwritten")
        assert page.room.cell(1)["outputs"] == []


def test_outputs_cleared_right_after_the_end_stay_cleared(server: Server, notebook: str) -> None:
    path = write(server.path(notebook), "print('shown for a moment')")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with PageLikeClient(server, notebook, kernel_id) as page:
        msg_id = page.execute()
        page.wait(lambda cell: cell["execution_count"] == 1 and cell["outputs"], what="the cell has ended")
        clear(page.room)
        assert Kept(server, kernel_id).wait_until_settled(msg_id) == "changed by a person after its end"
        wait_until(lambda: cell_on_disk(path)["source"] and page.room.cell()["outputs"] == [], what="it is cleared")
    with RoomClient(server, notebook) as again:
        assert again.cell()["outputs"] == []
    assert cell_on_disk(path)["outputs"] == []


def test_a_deleted_notebook_is_not_made_again(server: Server, notebook: str, trace: Trace) -> None:
    path = write(server.path(notebook), trace.printing_until("finish"))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    client = KernelClient(server, kernel_id)
    msg_id = client.execute(trace.printing_until("finish"), cell_id="cell-0")
    trace.wait(1)
    client.leave()
    wait_until(lambda: lines_on_disk(path), what="some lines are on disk")
    server.api("DELETE", f"contents/{notebook}")
    trace.open_gate("finish")
    Kept(server, kernel_id).wait_for_end(msg_id)
    # by the time that another notebook of this kernel is completed, this one had its turn
    other = write(server.path(f"other-{notebook}"), "print('other')")
    body = {"path": other.name, "name": other.name, "type": "notebook", "kernel": {"id": kernel_id}}
    server.api("POST", "sessions", body)
    client = KernelClient(server, kernel_id)
    client.wait_for_idle(client.execute("print('other')", cell_id="cell-0"))
    client.leave()
    wait_until(lambda: lines_on_disk(other) == ["other"], what="the other notebook is completed")
    assert not path.exists()


def test_only_cells_that_ran_are_written(server: Server, notebook: str, trace: Trace) -> None:
    """What another tool put into the file stays byte for byte, in every other cell."""
    node = nbformat.from_dict(read(write(server.path(notebook), "print('new')", "never", "# note")))
    node.cells[1].outputs = [
        nbformat.v4.new_output("stream", text="kept\rfrom before\n"),
        nbformat.v4.new_output("display_data", {"application/json": ["a", "b"], "text/html": "<b>x</b>"}),
    ]
    node.cells[1].execution_count = 41
    node.cells[1].metadata["mine"] = {"deep": [1, 2.5, None]}
    node.cells[2].cell_type = "markdown"
    node.cells[2] = nbformat.v4.new_markdown_cell("# note", id="cell-2")
    nbformat.write(node, server.path(notebook))
    before = json.loads(server.path(notebook).read_text())
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    client = KernelClient(server, kernel_id)
    msg_id = client.execute("print('new')", cell_id="cell-0")
    client.wait_for_idle(msg_id)
    client.leave()
    Kept(server, kernel_id).wait_until_settled(msg_id)
    after = json.loads(server.path(notebook).read_text())
    assert after["cells"][0]["outputs"] == [{"name": "stdout", "output_type": "stream", "text": ["new\n"]}]
    assert after["cells"][1:] == before["cells"][1:]
    assert {**after, "cells": []} == {**before, "cells": []}


def test_a_cell_that_is_no_valid_cell_is_completed(server: Server, notebook: str) -> None:
    """Hand-made notebooks lack this and that; Jupyter opens them all the same."""
    node = read(write(server.path(notebook), "print('whole')"))
    del node["cells"][0]["outputs"], node["cells"][0]["execution_count"]
    server.path(notebook).write_text(json.dumps(node))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    client = KernelClient(server, kernel_id)
    client.wait_for_idle(client.execute("print('whole')", cell_id="cell-0"))
    client.leave()
    wait_until(lambda: "whole\\n" in server.path(notebook).read_text(), what="the cell is completed")


def test_nothing_is_written_when_nothing_changed(server: Server, notebook: str, trace: Trace) -> None:
    """A run that gives what the file has already, a run of no cell, and one of a cell that is not in the notebook."""
    path = write(server.path(notebook), "print('same')")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    kept = Kept(server, kernel_id)

    def run(code: str, cell_id: str | None) -> str:
        client = KernelClient(server, kernel_id)
        msg_id = client.execute(code, cell_id=cell_id)
        client.wait_for_idle(msg_id)
        client.leave()
        return msg_id

    kept.wait_until_settled(run("print('same')", "cell-0"))
    server.api("POST", f"kernels/{kernel_id}/restart")  # the count starts at 1 again
    before = path.stat()
    kept.wait_for_end(run("print('no cell')", None))
    kept.wait_for_end(run("print('another cell')", "cell-7"))
    server.api("POST", f"kernels/{kernel_id}/restart")
    kept.wait_until_settled(run("print('same')", "cell-0"))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


def test_a_person_who_saves_by_hand_decides_when_the_file_is_written(
    server: Server, notebook: str, trace: Trace
) -> None:
    """Autosave is off in every connected page: the file waits until they are gone."""
    path = write(server.path(notebook), trace.printing_until("finish"))
    before = path.read_bytes()
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    page = PageLikeClient(server, notebook, kernel_id)
    page.room.say(autosave=False)
    msg_id = page.execute()
    page.wait(lambda cell: cell["outputs"], what="the cell prints")
    assert Kept(server, kernel_id).owner(msg_id) == "granted"
    page.wait(lambda _: len(trace.steps()) > 120, what="three times the save interval of steady output")
    assert path.read_bytes() == before
    page.leave()
    wait_until(lambda: lines_on_disk(path), what="the file is saved when the page is gone")
    assert "end" not in trace.steps()
    trace.open_gate("finish")
    wait_until(lambda: lines_on_disk(path) == trace.printed() and "end" in trace.steps(), what="each line once")


def test_a_room_is_not_saved_again_when_nothing_changes(server: Server, notebook: str, trace: Trace) -> None:
    """Although it was saved, for printing without pause, while its cell ran."""
    path = write(server.path(notebook), trace.printing_until("finish"))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with PageLikeClient(server, notebook, kernel_id) as page:
        msg_id = page.execute()
        page.wait(lambda _: lines_on_disk(path), what="the file is saved during the run")
        trace.open_gate("finish")
        page.wait_for_lines(trace.printed)
        Kept(server, kernel_id).wait_until_settled(msg_id)
        wait_until(lambda: lines_on_disk(path) == trace.printed(), what="each line is on disk")
        before, ended = path.stat().st_mtime_ns, len(trace.steps())
        with KernelClient(server, kernel_id) as client:
            client.execute(trace.printing(100, 5))  # no cell: only the time of two save intervals
            trace.wait(ended + 100)
        assert path.stat().st_mtime_ns == before


def trusted(server: Server, notebook: str) -> list[Any]:
    """Which cells the server gives to a page as trusted."""
    model = server.api("GET", f"contents/{notebook}?content=1&type=notebook")
    return [cell["metadata"].get("trusted") for cell in model["content"]["cells"]]


def signed(server: Server, notebook: str) -> bool:
    """Whether this user's signatures cover the file."""
    data = server.environment.data
    notary = NotebookNotary(data_dir=str(data), config=None)
    try:
        return bool(notary.check_signature(nbformat.read(server.path(notebook), 4)))
    finally:
        notary.store.close()


HTML = "from IPython.display import HTML; HTML('<script>1</script>')"


def test_a_cell_completed_in_its_file_is_trusted(server: Server, notebook: str) -> None:
    write(server.path(notebook), HTML, "2")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    client = KernelClient(server, kernel_id)
    msg_id = client.execute(HTML, cell_id="cell-0")
    client.wait_for_idle(msg_id)
    client.leave()
    Kept(server, kernel_id).wait_until_settled(msg_id)
    assert cell_on_disk(server.path(notebook))["outputs"]
    assert "trusted" not in cell_on_disk(server.path(notebook))["metadata"]
    assert signed(server, notebook)
    assert trusted(server, notebook) == [True, True]


def test_a_cell_completed_in_its_room_is_trusted(server: Server, notebook: str) -> None:
    write(server.path(notebook), HTML, "2")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with RoomClient(server, notebook) as room, KernelClient(server, kernel_id) as client:
        msg_id = client.execute(HTML, cell_id="cell-0")
        room.wait(lambda cell: cell["execution_count"] == 1, what="the cell has ended")
        assert room.cell()["metadata"]["trusted"] is True
        assert Kept(server, kernel_id).owner(msg_id) == "granted"
        Kept(server, kernel_id).wait_until_settled(msg_id)
    assert signed(server, notebook)
    assert trusted(server, notebook) == [True, True]


def test_foreign_outputs_in_other_cells_do_not_become_trusted(server: Server, notebook: str) -> None:
    """As in a browser: running one cell of a downloaded notebook does not vouch for the others."""
    node = read(write(server.path(notebook), HTML, "2"))
    node["cells"][1]["outputs"] = [nbformat.v4.new_output("display_data", {"text/html": "<script>2</script>"})]
    nbformat.write(node, server.path(notebook))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    client = KernelClient(server, kernel_id)
    msg_id = client.execute(HTML, cell_id="cell-0")
    client.wait_for_idle(msg_id)
    client.leave()
    Kept(server, kernel_id).wait_until_settled(msg_id)
    assert not signed(server, notebook)
    assert trusted(server, notebook)[1] is not True
