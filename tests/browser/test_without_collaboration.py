"""Without jupyter-collaboration: everything works as ever, and a page that left finds its file complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness import (
    Server,
    Trace,
    build,
    cell_on_disk,
    comparable,
    expected_lines,
    lines_on_disk,
    nbclient_outputs,
    wait_until,
    write,
)

if TYPE_CHECKING:
    from conftest import OpenPage

SERVER_OPTIONS: dict[str, Any] = {"collaboration": False}


def test_the_file_is_completed_after_the_page_is_gone(
    server: Server, notebook: str, trace: Trace, open_page: OpenPage
) -> None:
    """200 lines over 10 s, closed at 2 s without saving."""
    write(server.path(notebook), trace.printing(lines=200, seconds=10))
    page = open_page(notebook)
    page.run_cell()
    trace.wait(40)
    page.close()
    trace.wait_for("end")
    wait_until(lambda: cell_on_disk(server.path(notebook))["execution_count"] == 1, what="[1] on disk")
    assert lines_on_disk(server.path(notebook)) == expected_lines(200)
    open_page(notebook).wait_for_lines("[1]", expected_lines(200))


def test_an_open_page_shows_and_saves_what_it_always_does(server: Server, notebook: str, open_page: OpenPage) -> None:
    """The page's outputs and the saved file are nbclient's; nothing is doubled, nothing asked when saving."""
    cells = [
        "for i in range(3): print(i, flush=True)",
        "'result'",
        "import sys\nprint('err', file=sys.stderr)",
        "1 / 0",
    ]
    write(server.path(notebook), *cells)
    expected = [comparable(outputs) for outputs in nbclient_outputs(build(*cells))]
    page = open_page(notebook)
    page.run_all()
    page.wait_for_prompt("[4]", 3)

    def in_page() -> list[list[dict[str, Any]]]:
        return [comparable(view.outputs) for view in page.cells()]

    wait_until(lambda: in_page() == expected, what="nbclient's outputs", state=in_page)
    page.save()
    assert page.dialogs() == []
    on_disk = [comparable(cell_on_disk(server.path(notebook), index)["outputs"]) for index in range(4)]
    assert on_disk == expected
