"""Outputs find their notebook: renamed, copied, on a placeholder path, without cell ids, with a console beside it."""

from __future__ import annotations

import json
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from harness import KernelClient, build, cell_on_disk, lines_on_disk, read, wait_until, write
from harness.page_like import PageLikeClient
from harness.room_client import RoomClient
from kept import PROBE, Kept, rooms

if TYPE_CHECKING:
    from harness import Server, Trace

# Held for so long that only a decision releases anything.
SERVER_OPTIONS = {
    "env": PROBE["env"],
    "config": {**PROBE["config"], "OutputKeeper": {"hold_timeout": 600.0, "save_interval": 2.0}},
}


def rename(server: Server, old: str, new: str, session: dict[str, Any] | None = None) -> None:
    """As JupyterLab renames a notebook: the file, and then the session if it is open."""
    server.api("PATCH", f"contents/{old}", {"path": new})
    if session is not None:
        server.api("PATCH", f"sessions/{session['id']}", {"path": new, "name": new})


def wait_for_lines(server: Server, notebook: str, lines: list[str], index: int = 0) -> None:
    """Until the cell on disk has ended with these lines."""
    path = server.path(notebook)
    wait_until(lambda: cell_on_disk(path, index)["execution_count"], what="the cell has ended on disk")
    assert lines_on_disk(path, index) == lines


def test_a_client_without_a_room_gets_its_outputs_at_once_and_no_room_is_made(
    server: Server, notebook: str, trace: Trace
) -> None:
    before = rooms(server)
    write(server.path(notebook), trace.printing_until("finish"))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    kept = Kept(server, kernel_id)
    client = KernelClient(server, kernel_id)
    msg_id = client.execute(trace.printing_until("finish"), cell_id="cell-0")
    client.wait_for(lambda m: m["header"]["msg_type"] == "stream", what="the first output")
    assert kept.owner(msg_id) == "released"
    assert client.text(msg_id).startswith("line 0\n")
    client.leave()
    trace.open_gate("finish")
    trace.wait_for("end")
    wait_for_lines(server, notebook, trace.printed())
    assert kept.wait_until_settled(msg_id) == "seen in the saved file"
    assert rooms(server).keys() == before.keys()


@pytest.mark.parametrize("session_too", [True, False], ids=["open", "closed"])
def test_renamed_during_a_run_without_a_room(server: Server, notebook: str, trace: Trace, session_too: bool) -> None:
    """A closed notebook's session keeps its old path."""
    write(server.path(notebook), trace.printing_until("finish"))
    session = server.start_session(notebook)
    client = KernelClient(server, session["kernel"]["id"])
    msg_id = client.execute(trace.printing_until("finish"), cell_id="cell-0")
    trace.wait(1)
    client.leave()
    wait_until(lambda: lines_on_disk(server.path(notebook)), what="some lines are on disk")
    (server.root / "deep").mkdir(exist_ok=True)
    new = f"deep/new-{notebook}"
    rename(server, notebook, new, session if session_too else None)
    trace.wait(len(trace.steps()) + 5)
    trace.open_gate("finish")
    trace.wait_for("end")
    wait_for_lines(server, new, trace.printed())
    Kept(server, session["kernel"]["id"]).wait_until_settled(msg_id)
    assert not server.path(notebook).exists()


def test_renamed_during_a_run_with_a_room(server: Server, notebook: str, trace: Trace) -> None:
    write(server.path(notebook), trace.printing_until("finish"))
    session = server.start_session(notebook)
    with PageLikeClient(server, notebook, session["kernel"]["id"]) as page:
        msg_id = page.execute()
        page.wait(lambda cell: cell["outputs"], what="the cell prints")
        new = f"new-{notebook}"
        rename(server, notebook, new, session)
        trace.wait(len(trace.steps()) + 10)
        trace.open_gate("finish")
        page.wait_for_lines(trace.printed)
        assert page.wrote == 0
        wait_for_lines(server, new, trace.printed())
        Kept(server, session["kernel"]["id"]).wait_until_settled(msg_id)
        assert not server.path(notebook).exists()


@pytest.mark.parametrize("with_room", [True, False], ids=["room", "no-room"])
def test_a_session_that_has_a_placeholder_path_at_first(
    server: Server, notebook: str, trace: Trace, with_room: bool
) -> None:
    write(server.path(notebook), trace.printing_until("finish"))
    session = server.start_session(uuid.uuid4().hex)
    kernel_id = session["kernel"]["id"]
    if not with_room:
        client = KernelClient(server, kernel_id)
        client.execute(trace.printing_until("finish"), cell_id="cell-0")
        trace.wait(3)
        server.api("PATCH", f"sessions/{session['id']}", {"path": notebook, "name": notebook})
        client.leave()
        trace.open_gate("finish")
        trace.wait_for("end")
        wait_for_lines(server, notebook, trace.printed())
        return
    with PageLikeClient(server, notebook, kernel_id) as page:
        msg_id = page.execute()
        page.wait(lambda cell: cell["outputs"], what="the cell prints")
        assert Kept(server, kernel_id).owner(msg_id) == "granted"
        server.api("PATCH", f"sessions/{session['id']}", {"path": notebook, "name": notebook})
        trace.open_gate("finish")
        page.wait_for_lines(trace.printed)
        assert page.wrote == 0
    wait_for_lines(server, notebook, trace.printed())


def second_session(server: Server, path: str, kernel_id: str, kind: str = "notebook") -> None:
    """Another session on a kernel that runs already."""
    server.api("POST", "sessions", {"path": path, "name": path, "type": kind, "kernel": {"id": kernel_id}})


def test_a_console_on_the_kernel_changes_nothing(server: Server, notebook: str, trace: Trace) -> None:
    write(server.path(notebook), trace.printing_until("finish"))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    console = f"console-{notebook}"
    second_session(server, console, kernel_id, "console")
    client = KernelClient(server, kernel_id)
    client.execute("print('from the console')")
    client.execute(trace.printing_until("finish"), cell_id="cell-0")
    trace.wait(3)
    client.leave()
    trace.open_gate("finish")
    trace.wait_for("end")
    wait_for_lines(server, notebook, trace.printed())
    assert cell_on_disk(server.path(notebook))["execution_count"] == 2
    assert not server.path(console).exists()


@pytest.mark.parametrize("copied", [False, True], ids=["different", "copy"])
def test_two_notebooks_on_one_kernel(server: Server, notebook: str, trace: Trace, copied: bool) -> None:
    """The second one's cell is queued while the first one's runs; with a copy, both have the same cell ids."""
    first, second = notebook, f"second-{notebook}"
    source = trace.prelude() + "n = globals().get('n', 0) + 1; note('ran'); gate(f'go-{n}'); print(n)"
    write(server.path(first), source)
    if copied:
        shutil.copy(server.path(first), server.path(second))
    else:
        node = read(server.path(first))
        node["cells"][0]["id"] = "another"
        nbformat.write(node, server.path(second))
    kernel_id = server.start_session(first)["kernel"]["id"]
    second_session(server, second, kernel_id)
    kept = Kept(server, kernel_id)
    with PageLikeClient(server, first, kernel_id) as one, PageLikeClient(server, second, kernel_id) as two:
        msg_ids = [one.execute()]
        trace.wait(1)
        msg_ids.append(two.execute())
        assert [kept.owner(msg_id) for msg_id in msg_ids] == ["granted", "granted"]
        trace.open_gate("go-1")
        trace.open_gate("go-2")
        one.wait_for_lines(lambda: ["1"])
        two.wait_for_lines(lambda: ["2"])
        assert one.room.lines() == ["1"]
    for number, name in enumerate((first, second)):
        kept.wait_until_settled(msg_ids[number])
        assert lines_on_disk(server.path(name)) == [str(number + 1)]


def test_a_copy_opened_beside_the_notebook_while_it_runs_is_left_alone(
    server: Server, notebook: str, trace: Trace
) -> None:
    second = f"second-{notebook}"
    write(server.path(notebook), trace.printing_until("finish"))
    shutil.copy(server.path(notebook), server.path(second))
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with PageLikeClient(server, notebook, kernel_id) as page:
        page.execute()
        page.wait(lambda cell: cell["outputs"], what="the cell prints")
        second_session(server, second, kernel_id)
        before = server.path(second).read_bytes()
        with RoomClient(server, second) as copy:
            trace.wait(len(trace.steps()) + 10)
            trace.open_gate("finish")
            page.wait_for_lines(trace.printed)
            assert copy.cell()["outputs"] == []
        assert server.path(second).read_bytes() == before


def old_notebook(server: Server, name: str, *sources: str) -> None:
    """An nbformat 4.4 notebook: cells have no ids."""
    node = build(*sources)
    for cell in node.cells:
        del cell["id"]
    node.nbformat_minor = 4
    server.path(name).write_text(json.dumps(node))


def test_a_notebook_without_cell_ids_is_completed_by_a_source_that_is_there_once(
    server: Server, notebook: str, trace: Trace
) -> None:
    once, twice = trace.prelude() + "note('ran'); gate('go'); print('once')", "print('twice')"
    old_notebook(server, notebook, twice, once, twice)
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    client = KernelClient(server, kernel_id)
    client.execute(once, cell_id="id-of-the-page-1")
    last = client.execute(twice, cell_id="id-of-the-page-2")
    trace.wait(1)
    client.leave()
    trace.open_gate("go")
    Kept(server, kernel_id).wait_for_end(last)
    wait_for_lines(server, notebook, ["once"], 1)
    node = read(server.path(notebook))
    assert [cell["outputs"] for cell in node["cells"]][::2] == [[], []]
    assert (node["nbformat"], node["nbformat_minor"]) == (4, 4)
    assert all("id" not in cell for cell in node["cells"])


def test_a_notebook_without_cell_ids_in_a_room(server: Server, notebook: str, trace: Trace) -> None:
    source = trace.printing_until("finish")
    old_notebook(server, notebook, "1 + 1", source)
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    with PageLikeClient(server, notebook, kernel_id) as page:
        page.execute(1)
        page.wait(lambda cell: cell["outputs"], 1, what="the cell prints")
        trace.open_gate("finish")
        page.wait_for_lines(trace.printed, 1)
        assert page.wrote == 0
    wait_for_lines(server, notebook, trace.printed(), 1)
