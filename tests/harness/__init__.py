"""What the tests drive real Jupyter with: servers, notebooks, pages, connections that can be cut, clients.

``tests/conftest.py`` puts ``tests/`` on the path of every test, so: ``from harness import Server``.
The page needs a browser and lives in ``harness.page``, the room's client in ``harness.room_client``: both are
imported from there, so that tests without them need neither playwright nor jupyter-collaboration.
"""

from .environment import Environment, free_port
from .kernel_client import KernelClient
from .notebooks import (
    Trace,
    build,
    cell_id,
    cell_on_disk,
    comparable,
    expected_lines,
    lines_on_disk,
    read,
    stream_text,
    write,
)
from .proxy import CuttableProxy
from .reference import nbclient_cells, nbclient_outputs
from .server import STOCK, Server
from .wait import LIMIT, wait_until

__all__ = [
    "LIMIT",
    "STOCK",
    "CuttableProxy",
    "Environment",
    "KernelClient",
    "Server",
    "Trace",
    "build",
    "cell_id",
    "cell_on_disk",
    "comparable",
    "expected_lines",
    "free_port",
    "lines_on_disk",
    "nbclient_cells",
    "nbclient_outputs",
    "read",
    "stream_text",
    "wait_until",
    "write",
]
