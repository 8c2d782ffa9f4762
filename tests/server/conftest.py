"""Fixtures of the server's tests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from harness import Server


@pytest.fixture
def notebook(request: pytest.FixtureRequest, server: Server) -> str:
    """The name of this test's notebook; it does not exist yet."""
    return re.sub(r"\W+", "-", request.node.name).strip("-") + ".ipynb"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Add the server's log to the report of a failed test."""
    report = yield
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and report.when == "call" and server is not None:
        report.sections.append(("server log, its end", server.log()[-8000:]))
    return report
