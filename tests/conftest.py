"""Fixtures of all tests, and the root of ``from harness import …``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness import Server, Trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """The file in which this test's cells tell how far they are."""
    return Trace(tmp_path / "trace")


@pytest.fixture(scope="module")
def module_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One server for a module; its ``SERVER_OPTIONS``, if any, are the arguments of ``Server``."""
    with Server(**getattr(request.module, "SERVER_OPTIONS", {})) as server:
        yield server
        server.stop()
        server.environment.assert_no_processes()


@pytest.fixture
def server(module_server: Server) -> Iterator[Server]:
    """The module's server; after each test its kernels are shut down and must leave no process behind."""
    yield module_server
    module_server.shutdown_kernels()
