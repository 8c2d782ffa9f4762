"""Switched off by config: plain Jupyter, kernels without a keeper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil
from harness import Server, write

if TYPE_CHECKING:
    from conftest import OpenPage

SERVER_OPTIONS: dict[str, Any] = {"keeper": False}


def test_kernels_are_the_servers_own_children(server: Server, notebook: str, open_page: OpenPage) -> None:
    """Kernelspecs are listed, a page runs a cell, and between server and kernel there is nothing."""
    assert "python3" in server.api("GET", "kernelspecs")["kernelspecs"]
    write(server.path(notebook), "import os\nprint(os.getpid())")
    page = open_page(notebook)
    page.run_cell()
    (kernel,) = page.wait_for_prompt("[1]").lines
    assert psutil.Process(int(kernel)).ppid() == server.pid
    assert sorted(process.pid for process in server.environment.processes()) == sorted([server.pid, int(kernel)])
