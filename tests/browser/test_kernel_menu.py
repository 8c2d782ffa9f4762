"""Interrupt, restart and shut down from the page work as ever, and no cell stays ``[*]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import Server, Trace, lines_on_disk, wait_until, write

if TYPE_CHECKING:
    from conftest import OpenPage


def test_interrupt(server: Server, notebook: str, trace: Trace, open_page: OpenPage) -> None:
    """The running cell ends with KeyboardInterrupt under what it printed; the kernel goes on."""
    write(server.path(notebook), trace.printing_until("never"), "print('after')")
    page = open_page(notebook)
    page.run_cell(0)
    trace.wait(10)
    page.interrupt()
    page.wait_for_prompt("[1]", 0)
    view = page.wait(lambda view: len(view.outputs) > 1, what="the error under the lines")
    assert [output["output_type"] for output in view.outputs] == ["stream", "error"]
    assert view.outputs[1]["ename"] == "KeyboardInterrupt"
    assert view.lines in (trace.printed(), [*trace.printed(), f"line {len(trace.printed())}"])

    page.run_cell(1)
    page.wait_for_lines("[2]", ["after"], 1)


def test_restart_while_a_cell_runs(server: Server, long_cell: str, trace: Trace, open_page: OpenPage) -> None:
    """The cell keeps what it printed, runs nowhere any more, and can be run again."""
    page, other = open_page(long_cell), open_page(long_cell)
    page.run_cell()
    trace.wait(10)
    page.restart()
    printed = trace.printed()

    for each in (page, other, open_page(long_cell)):
        view = each.wait(
            lambda view: view.prompt != "[*]" and view.lines[: len(printed)] == printed,
            what="the cell has what it printed and does not look running",
        )
        assert len(view.lines) <= len(printed) + 1
        assert view.execution_state == "idle"
    wait_until(lambda: lines_on_disk(server.path(long_cell))[: len(printed)] == printed, what="all on disk")

    trace.open_gate("finish")
    again = len(trace.steps())
    page.run_cell()
    wait_until(lambda: trace.steps()[-1] == "end", what="the second run has ended", state=trace.steps)
    page.wait_for_lines("[1]", [f"line {step}" for step in trace.steps()[again:-1]])


def test_restart_forgets_and_counts_from_one(server: Server, notebook: str, open_page: OpenPage) -> None:
    """A restart of an idle kernel gives a fresh one to the same page."""
    write(server.path(notebook), "print('x' in globals())\nx = 1")
    page = open_page(notebook)
    page.run_cell()
    page.wait_for_lines("[1]", ["False"])
    page.run_cell()
    page.wait_for_lines("[2]", ["True"])
    (kernel,) = server.kernels()
    page.restart()
    page.run_cell()
    page.wait_for_lines("[1]", ["False"])
    assert [kernel["id"]] == [each["id"] for each in server.kernels()]


def test_shut_down_while_a_cell_runs(server: Server, long_cell: str, trace: Trace, open_page: OpenPage) -> None:
    """No kernel and no process is left, and the cell keeps what it printed and does not look running."""
    page = open_page(long_cell)
    page.run_cell()
    trace.wait(10)
    page.shut_down()
    printed = trace.printed()
    assert server.kernels() == []
    server.assert_no_kernels_left()
    page.wait(
        lambda view: view.prompt != "[*]" and view.lines[: len(printed)] == printed,
        what="the cell has what it printed and does not look running",
    )
    wait_until(lambda: lines_on_disk(server.path(long_cell))[: len(printed)] == printed, what="all on disk")
