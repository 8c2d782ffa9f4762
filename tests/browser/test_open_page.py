"""A page stays open throughout: it shows what Jupyter always shows, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness import (
    Server,
    Trace,
    build,
    cell_on_disk,
    comparable,
    lines_on_disk,
    nbclient_outputs,
    wait_until,
    write,
)

if TYPE_CHECKING:
    from conftest import OpenPage
    from harness.page import Page

CELLS = [
    (
        "import sys, time\n"
        "for i in range(5):\n"
        "    print('out', i, flush=True); time.sleep(0.02)\n"
        "    print('err', i, file=sys.stderr, flush=True); time.sleep(0.02)"
    ),
    "from IPython.display import HTML, Image, clear_output, display\ndisplay('first', [1, 2])\n'the result'",
    (
        "shown = display('before', display_id='shown')\nprint('between')\n"
        "other = display('other', display_id=True)\n"
        "shown.update('after')"
    ),
    "for i in range(20):\n    clear_output(wait=True); print('round', i); display(i); time.sleep(0.01)",
    (
        "for i in range(0, 101, 5):\n    print(f'\\r{i:3d} % ' + '#' * (i // 10), end='', flush=True)\n"
        "    time.sleep(0.01)\n"
        "print('\\nfinished')"
    ),
    (
        "display(HTML('<b>bold</b>'))\n"
        "import base64\n"
        "Image(base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGNgYPiPFZEoTLKOAQB/wD/B"
        "p9u2ZQAAAABJRU5ErkJggg=='))"
    ),
    "shown.update('from another cell')\nprint('cleared'); clear_output(); print('kept')",
    "print('then it fails')\n1 / 0",
]


def outputs(page: Page) -> list[list[dict[str, Any]]]:
    """The comparable outputs of every cell of a page."""
    return [comparable(view.outputs) for view in page.cells()]


def test_outputs_are_those_of_nbclient_in_two_browsers_and_on_disk(
    server: Server, notebook: str, open_page: OpenPage
) -> None:
    """Streams, displays, updates by display_id, clear_output, a progress bar, HTML, an image, an error."""
    write(server.path(notebook), *CELLS)
    expected = [comparable(of_cell) for of_cell in nbclient_outputs(build(*CELLS))]
    first, second = open_page(notebook), open_page(notebook)
    first.run_all()

    last = len(CELLS) - 1
    for page in (first, second):
        page.wait_for_prompt(f"[{len(CELLS)}]", last)
        wait_until(
            lambda page=page: outputs(page) == expected,
            what="nbclient's outputs",
            state=lambda page=page: outputs(page),
        )
        for view, of_cell in zip(page.cells(), expected, strict=True):
            assert len(view.shown) == len(of_cell)
    assert [view.prompt for view in first.cells()] == [f"[{count}]" for count in range(1, len(CELLS) + 1)]
    assert [view.prompt for view in second.cells()] == [f"[{count}]" for count in range(1, len(CELLS) + 1)]
    assert [view.shown for view in first.cells()] == [view.shown for view in second.cells()]

    def on_disk() -> list[list[dict[str, Any]]]:
        return [comparable(cell_on_disk(server.path(notebook), index)["outputs"]) for index in range(len(CELLS))]

    wait_until(lambda: on_disk() == expected, what="nbclient's outputs on disk", state=on_disk)


def test_lines_appear_while_the_cell_runs(server: Server, long_cell: str, trace: Trace, open_page: OpenPage) -> None:
    """Live in the page that runs the cell and in another one, each line once."""
    first, second = open_page(long_cell), open_page(long_cell)
    first.run_cell()
    trace.wait(10)
    for page in (first, second):
        view = page.wait(lambda view: len(view.shown_lines) >= 10, what="lines are shown live")
        assert view.prompt == "[*]"
    trace.open_gate("finish")
    trace.wait_for("end")
    for page in (first, second):
        page.wait_for_lines("[1]", trace.printed())
    wait_until(lambda: lines_on_disk(server.path(long_cell)) == trace.printed(), what="all lines on disk")
    for page in (first, second):
        page.wait_for_lines("[1]", trace.printed())


def test_running_a_cell_again_replaces_its_outputs(
    server: Server, notebook: str, trace: Trace, open_page: OpenPage
) -> None:
    """The second run's lines are there alone, under ``[2]``."""
    write(
        server.path(notebook),
        "try: runs += 1\nexcept NameError: runs = 1\nfor i in range(3): print('run', runs, i)",
    )
    page = open_page(notebook)
    for run in (1, 2):
        page.run_cell()
        page.wait_for_lines(f"[{run}]", [f"run {run} {i}" for i in range(3)])


def test_input_is_asked_and_answered_in_the_page(server: Server, notebook: str, open_page: OpenPage) -> None:
    """``input()`` shows its box in the page that runs the cell, and the kernel gets what is typed."""
    write(server.path(notebook), "name = input('who? ')\nprint('hello', name)")
    page = open_page(notebook)
    page.run_cell()
    page.answer_input("Ada")
    page.wait_for_prompt("[1]")
    page.wait(lambda view: "hello Ada" in view.shown_lines, what="the kernel's answer")
    wait_until(lambda: "hello Ada" in lines_on_disk(server.path(notebook)), what="the answer on disk")
    view = page.cell()
    assert view.shown_lines.count("hello Ada") == view.lines.count("hello Ada") == 1
    assert view.shown_lines.count("who? Ada") <= 1
