"""The server is killed while a cell runs in an open page, and started again: the page goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import Server, Trace, cell_on_disk, lines_on_disk, wait_until, write

if TYPE_CHECKING:
    from conftest import OpenPage


def test_the_open_page_finds_its_kernel_and_every_line(
    server: Server, notebook: str, trace: Trace, open_page: OpenPage
) -> None:
    """SIGKILL mid-run: no dialog about a dead kernel, all lines once, live, then ``[1]``."""
    write(server.path(notebook), trace.printing_until("finish"))
    page = open_page(notebook)
    page.run_cell()
    trace.wait(20)
    (kernel,) = server.kernels()
    server.kill()
    trace.wait(len(trace.steps()) + 40)
    server.start()
    assert [each["id"] for each in server.kernels()] == [kernel["id"]]

    so_far = trace.printed()
    page.wait(lambda view: view.lines[: len(so_far)] == so_far, what="all printed meanwhile is in the page")
    # What JupyterLab says of any lost connection may stand there; nothing may be said about the kernel.
    assert all("Server Connection Error" in dialog for dialog in page.dialogs())
    trace.wait(len(trace.steps()) + 20)
    trace.open_gate("finish")
    page.wait_for_prompt("[1]")
    page.wait(lambda view: view.lines == view.shown_lines == trace.printed(), what="every line once")
    wait_until(lambda: lines_on_disk(server.path(notebook)) == trace.printed(), what="all on disk")
    assert cell_on_disk(server.path(notebook))["execution_count"] == 1

    new = open_page(notebook).wait_for_prompt("[1]")
    assert new.lines == new.shown_lines == trace.printed()
