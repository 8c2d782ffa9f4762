"""The tab stays open and the network drops for 5 s: every TCP connection is cut, new ones are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness import CuttableProxy, Server, Trace, lines_on_disk, wait_until, write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import OpenPage


@pytest.fixture
def network(server: Server) -> Iterator[CuttableProxy]:
    """The way from the browser to the server."""
    with CuttableProxy(server.port) as proxy:
        yield proxy


def test_nothing_is_lost_or_doubled_when_the_cell_runs_on(
    server: Server, notebook: str, trace: Trace, open_page: OpenPage, network: CuttableProxy
) -> None:
    """Lines of before, during and after the drop, once each; live again after it."""
    write(server.path(notebook), trace.printing_until("finish", pause=0.1))
    page = open_page(notebook, base_url=network.url)
    page.run_cell()
    trace.wait(20)
    assert network.cut() > 0
    page.wait_for_disconnection()
    trace.wait(len(trace.steps()) + 50)
    network.restore()

    so_far = len(trace.printed())
    live = page.wait(lambda view: len(view.lines) >= so_far + 5, what="lines come again after the drop")
    assert live.prompt == "[*]"
    trace.open_gate("finish")
    trace.wait_for("end")
    page.wait_for_lines("[1]", trace.printed())
    wait_until(lambda: lines_on_disk(server.path(notebook)) == trace.printed(), what="all lines on disk")
    page.wait_for_lines("[1]", trace.printed())


def test_a_cell_that_ends_during_the_drop_is_complete_afterwards(
    server: Server, notebook: str, trace: Trace, open_page: OpenPage, network: CuttableProxy
) -> None:
    """The page did not hear the end; it shows it once the network is back."""
    write(server.path(notebook), trace.printing(lines=40, seconds=6))
    page = open_page(notebook, base_url=network.url)
    page.run_cell()
    trace.wait(5)
    assert network.cut() > 0
    page.wait_for_disconnection()
    trace.wait_for("end")
    network.restore()
    page.wait_for_lines("[1]", trace.printed())
    wait_until(lambda: lines_on_disk(server.path(notebook)) == trace.printed(), what="all lines on disk")
    page.wait_for_lines("[1]", trace.printed())
