"""A page is closed while its cells run: what they print is there, once, when the notebook is opened again."""

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

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGNgYPiPFZEoTLKOAQB/wD/Bp9u2ZQAAAABJRU5ErkJggg=="


def test_every_line_is_there_once_when_reopened_after_the_end(
    server: Server, notebook: str, trace: Trace, open_page: OpenPage
) -> None:
    """200 lines over 10 s, closed at 2 s."""
    write(server.path(notebook), trace.printing(lines=200, seconds=10))
    page = open_page(notebook)
    page.run_cell()
    trace.wait(40)
    page.close()
    trace.wait_for("end")

    page = open_page(notebook)
    page.wait_for_lines("[1]", expected_lines(200))
    wait_until(lambda: cell_on_disk(server.path(notebook))["execution_count"] == 1, what="[1] on disk")
    assert lines_on_disk(server.path(notebook)) == expected_lines(200)
    page.wait_for_lines("[1]", expected_lines(200))


def test_reopened_while_it_runs_shows_all_so_far_and_goes_on_live(
    server: Server, long_cell: str, trace: Trace, open_page: OpenPage
) -> None:
    """All so far at once, ``[*]``, the rest without a reload, then ``[1]``."""
    page = open_page(long_cell)
    page.run_cell()
    trace.wait(40)
    page.close()
    trace.wait(100)
    so_far = trace.printed()

    page = open_page(long_cell)
    page.playwright.evaluate("window.firstLoad = true")
    first = page.cell()
    assert first.lines[: len(so_far)] == so_far
    running = page.wait(lambda view: len(view.shown_lines) >= len(so_far), what="all so far is shown")
    assert running.prompt == "[*]"

    shown = len(running.shown_lines)
    live = page.wait(lambda view: len(view.shown_lines) >= shown + 20, what="20 more lines are shown live")
    assert live.prompt == "[*]"

    trace.open_gate("finish")
    trace.wait_for("end")
    page.wait_for_lines("[1]", trace.printed())
    wait_until(lambda: lines_on_disk(server.path(long_cell)) == trace.printed(), what="all lines on disk")
    page.wait_for_lines("[1]", trace.printed())
    assert page.playwright.evaluate("window.firstLoad")


def test_cells_of_run_all_that_start_after_the_page_is_gone(
    server: Server, notebook: str, trace: Trace, open_page: OpenPage
) -> None:
    """Run All of four 3-second cells, closed after 1 s: four outputs, counts 1 to 4."""
    cell = "print('begin {0}')\ntime.sleep(1); note('one {0}'); time.sleep(2)\nprint('done {0}'); note('done {0}')"
    write(server.path(notebook), *[trace.prelude() + cell.format(number) for number in range(4)])
    page = open_page(notebook)
    page.run_all()
    trace.wait_for("one 0")
    page.close()
    trace.wait_for("done 3")

    page = open_page(notebook)
    for number in range(4):
        view = page.wait_for_lines(f"[{number + 1}]", [f"begin {number}", f"done {number}"], number)
        assert view.execution_count == number + 1
    wait_until(lambda: cell_on_disk(server.path(notebook), 3)["execution_count"] == 4, what="[4] on disk")
    for number in range(4):
        assert cell_on_disk(server.path(notebook), number)["execution_count"] == number + 1
        assert lines_on_disk(server.path(notebook), number) == [f"begin {number}", f"done {number}"]


def rich_cells(trace: Trace) -> list[str]:
    """Cells that wait for the gate ``closed`` then show an image, HTML with a script, a result, an error."""
    html = (
        "<p id='proof'>the script has not run</p>"
        "<script>document.getElementById('proof').textContent = 'the script has run'</script>"
    )
    return [
        trace.prelude() + "note('waiting'); gate('closed')",
        f"import base64\nfrom IPython.display import Image\nImage(base64.b64decode({PNG!r}))",
        f"from IPython.display import HTML, display\ndisplay(HTML({html!r}))",
        "{'answer': 6 * 7}",
        "note('end')\nraise ValueError('raised while closed')",
    ]


def test_images_html_results_and_tracebacks_made_while_closed(
    server: Server, notebook: str, trace: Trace, open_page: OpenPage
) -> None:
    """They are on disk as nbclient has them, and the reopened page renders them, HTML as trusted."""
    cells = rich_cells(trace)
    write(server.path(notebook), *cells)
    page = open_page(notebook)
    page.run_all()
    trace.wait_for("waiting")
    page.close()
    trace.open_gate("closed")
    trace.wait_for("end")

    page = open_page(notebook)
    page.wait_for_prompt("[5]", 4)
    wait_until(lambda: page.image_width(1) == 8, what="the image is shown")
    wait_until(lambda: page.element_text("#proof", 2) == "the script has run", what="the HTML is rendered")
    page.wait(lambda view: view.shown == ("{'answer': 42}",), 3, what="the result is shown")
    page.wait(lambda view: "raised while closed" in "".join(view.shown), 4, what="the traceback is shown")
    assert all(view.trusted for view in page.cells())

    expected = [comparable(outputs) for outputs in nbclient_outputs(build(*cells))]

    def on_disk() -> list[list[dict[str, Any]]]:
        return [comparable(cell_on_disk(server.path(notebook), i)["outputs"]) for i in range(len(cells))]

    wait_until(lambda: on_disk() == expected, what="the file has the same outputs", state=on_disk)
    assert [comparable(view.outputs) for view in page.cells()] == expected
