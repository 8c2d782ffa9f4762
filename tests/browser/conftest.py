"""Fixtures of the browser tests, and what a failed one says about its pages and server."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from harness import Server, Trace, write
from harness.page import Page, chromium
from playwright.sync_api import Error as PlaywrightError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

_PAGES = pytest.StashKey[list[Page]]()
_FOLDER = pytest.StashKey["Path"]()


class OpenPage(Protocol):
    """Opens a notebook in a new browser context and returns the page when it is ready."""

    def __call__(self, path: str, *, base_url: str | None = None) -> Page: ...


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One headless Chromium for all tests; fails, naming what to install, when there is none."""
    with chromium() as running:
        yield running


@pytest.fixture
def notebook(request: pytest.FixtureRequest, server: Server) -> str:
    """The name of this test's notebook; it does not exist yet."""
    return re.sub(r"\W+", "-", request.node.name) + ".ipynb"


@pytest.fixture
def open_page(request: pytest.FixtureRequest, browser: Browser, server: Server, tmp_path: Path) -> Iterator[OpenPage]:
    """Pages on the module's server; those still open at the end of the test are closed."""
    pages = request.node.stash.setdefault(_PAGES, [])
    request.node.stash[_FOLDER] = tmp_path

    def opened(path: str, *, base_url: str | None = None) -> Page:
        page = Page(browser, server, path, base_url=base_url)
        pages.append(page)
        page.load()
        return page

    yield opened
    for page in pages:
        page.close()


@pytest.fixture
def long_cell(server: Server, notebook: str, trace: Trace) -> str:
    """A notebook whose one cell prints ``line 0`` … until the gate ``finish`` is open, and 20 lines more."""
    write(server.path(notebook), trace.printing_until("finish"))
    return notebook


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Add the pages' screenshots and console errors and the server's log to the report of a failed test."""
    report = yield
    if report.failed and report.when == "call":
        for number, page in enumerate(item.stash.get(_PAGES, [])):
            lines = [*page.problems, *_picture(page, item.stash[_FOLDER] / f"page-{number}.png")]
            report.sections.append((f"page {number} ({page.path})", "\n".join(lines)))
        server = item.funcargs.get("server")
        if server is not None:
            report.sections.append(("server log, its end", server.log()[-8000:]))
    return report


def _picture(page: Page, target: Path) -> list[str]:
    try:
        page.screenshot(target)
    except PlaywrightError as error:
        return [f"no screenshot: {error.message.splitlines()[0]}"]
    return [f"screenshot: {target}"]
