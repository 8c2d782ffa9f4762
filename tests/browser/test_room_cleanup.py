"""A page stays closed for so long that the server gives up the notebook's room, while the cell is silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import Server, Trace, cell_on_disk, expected_lines, lines_on_disk, wait_until, write

if TYPE_CHECKING:
    from conftest import OpenPage

SERVER_OPTIONS = {"config": {"YDocExtension": {"document_cleanup_delay": 2}}}

HTML = "<p id='proof'>no</p><script>document.getElementById('proof').textContent = 'yes'</script>"


def leave_silent_cell(server: Server, notebook: str, trace: Trace, open_page: OpenPage) -> None:
    """Run a cell of 20 lines, silence until the gate ``speak``, 20 more; close the page; the room is gone."""
    write(
        server.path(notebook),
        trace.prelude()
        + f"from IPython.display import HTML, display\ndisplay(HTML({HTML!r}))\n"
        + "for i in range(20): print(f'line {i}', flush=True); note(i)\n"
        + "note('silent'); gate('speak')\n"
        + "for i in range(20, 40): print(f'line {i}', flush=True); note(i); time.sleep(0.05)\n"
        + "note('spoken'); gate('finish')\n",
    )
    page = open_page(notebook)
    page.run_cell()
    trace.wait_for("silent")
    page.close()
    gone = f"Room {server.room_id(notebook)} deleted"
    wait_until(lambda: gone in server.log(), what=gone, state=lambda: server.log()[-2000:])


def test_outputs_printed_after_the_room_is_gone(
    server: Server, notebook: str, trace: Trace, open_page: OpenPage
) -> None:
    """They reach the file without any room, and the page that is opened from it."""
    leave_silent_cell(server, notebook, trace, open_page)
    trace.open_gate("finish")
    trace.open_gate("speak")
    wait_until(lambda: cell_on_disk(server.path(notebook))["execution_count"] == 1, what="[1] on disk")
    assert lines_on_disk(server.path(notebook)) == expected_lines(40)

    page = open_page(notebook)
    view = page.wait(lambda view: view.prompt == "[1]" and view.lines == expected_lines(40), what="all, [1]")
    assert view.trusted
    wait_until(lambda: page.element_text("#proof") == "yes", what="the HTML is rendered as trusted")


def test_a_new_room_while_the_cell_still_runs(server: Server, notebook: str, trace: Trace, open_page: OpenPage) -> None:
    """The page in the new room shows all so far, ``[*]``, goes on live and ends with ``[1]``."""
    leave_silent_cell(server, notebook, trace, open_page)
    page = open_page(notebook)
    view = page.wait(lambda view: view.lines == expected_lines(20), what="what was printed before")
    assert view.prompt == "[*]"
    trace.open_gate("speak")
    view = page.wait(lambda view: view.lines == expected_lines(40), what="the rest, live")
    assert view.prompt == "[*]"
    trace.open_gate("finish")
    page.wait_for_prompt("[1]")
    wait_until(lambda: lines_on_disk(server.path(notebook)) == expected_lines(40), what="all lines on disk")
    wait_until(lambda: cell_on_disk(server.path(notebook))["execution_count"] == 1, what="[1] on disk")
    assert page.cell().lines == expected_lines(40)
