"""A notebook page of stock JupyterLab in headless Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Browser, ConsoleMessage, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from .notebooks import stream_text
from .wait import LIMIT, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .server import Server

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

_PANEL = """
const app = window.jupyterapp;
const panel = app && [...app.shell.widgets('main')].find(w => w.context && w.context.path === path);
"""


def chromium_path() -> str:
    """The Chromium to drive: ``$CHROMIUM``, else ``chromium`` or ``chrome`` on the PATH.

    Raises AssertionError saying what to install: a missing browser fails the tests, it never skips them.
    """
    names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
    wanted = os.environ.get("CHROMIUM")
    found = shutil.which(wanted) if wanted else next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise AssertionError(
            "the browser tests need Chromium and found none: install it (Debian and Ubuntu: "
            "`apt-get install chromium`, macOS: `brew install --cask chromium`) or set CHROMIUM to its path"
        )
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class CellView:
    """What a page has for one cell: ``prompt`` and ``shown`` are the DOM's, the rest the shared model's."""

    prompt: str
    shown: tuple[str, ...]
    outputs: list[dict[str, Any]]
    execution_count: int | None
    execution_state: str
    trusted: bool

    @property
    def shown_lines(self) -> list[str]:
        """All text in the cell's output area, as lines."""
        return "\n".join(text.rstrip("\n") for text in self.shown).splitlines()

    @property
    def lines(self) -> list[str]:
        """What the shared model has on stdout, as lines."""
        return stream_text(self.outputs).splitlines()


class Page:
    """One notebook in a browser context of its own: as another person, or another computer, would open it.

    ``base_url`` replaces the server's address (a proxy's). ``problems`` collects the console's errors.
    """

    def __init__(self, browser: Browser, server: Server, path: str, *, base_url: str | None = None) -> None:
        self.path = path
        self.problems: list[str] = []
        self._server = server
        self._base = base_url or server.url
        self._context = browser.new_context(viewport={"width": 1280, "height": 3000})
        self._context.set_default_timeout(LIMIT * 1000)
        self.playwright = self._context.new_page()
        self.playwright.on("console", self._console)
        self.playwright.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    # -- opening and closing -----------------------------------------------------------------------------

    def load(self, *, kernel: bool = True) -> None:
        """Open (or reload) the notebook; wait until it is complete and, with ``kernel``, connected."""
        url = f"{self._base}lab/tree/{self.path}?reset&token={self._server.token}"
        self.playwright.goto(url, wait_until="commit")
        self._wait(
            "return !!panel && panel.context.isReady && panel.content.widgets.length > 0 &&"
            " panel.content.widgets.length === panel.content.model.sharedModel.cells.length",
            "the notebook is open",
        )
        self._panel("app.shell.activateById(panel.id); return true")
        if kernel:
            self.wait_for_kernel()

    def wait_for_kernel(self) -> None:
        """Until the page's websocket to the kernel is connected."""
        self._wait(
            "return panel.sessionContext.session?.kernel?.connectionStatus === 'connected'",
            "the page is connected to its kernel",
        )

    def wait_for_disconnection(self) -> None:
        """Until the page has noticed that its websocket to the kernel is gone."""
        self._wait(
            "return panel.sessionContext.session?.kernel?.connectionStatus !== 'connected'",
            "the page has lost its kernel's connection",
        )

    def close(self) -> None:
        """End the browser context at once, as closing a laptop's lid for good does."""
        with contextlib.suppress(PlaywrightError):
            self._context.close()

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def screenshot(self, target: Path) -> None:
        """Write what the page shows as a PNG."""
        self.playwright.screenshot(path=target, timeout=20_000)

    # -- commands ----------------------------------------------------------------------------------------

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        """Start a JupyterLab command; does not wait for its end."""
        self._panel(
            "app.shell.activateById(panel.id); window.commandEnded = false;"
            "app.commands.execute(name, args).finally(() => { window.commandEnded = true; }); return true",
            name=name,
            args=arguments or {},
        )

    def run_cell(self, index: int = 0) -> None:
        """Run one cell; does not wait for its end."""
        self._panel("panel.content.deselectAll(); panel.content.activeCellIndex = index; return true", index=index)
        self.command("notebook:run-cell")

    def run_all(self) -> None:
        """Run All; does not wait for its end."""
        self.command("notebook:run-all-cells")

    def save(self) -> None:
        """Save, and wait until the page takes the notebook for saved."""
        self.command("docmanager:save")
        self._wait("return !panel.context.model.dirty", "the page has saved")

    def interrupt(self) -> None:
        """Kernel menu, Interrupt."""
        self.command("kernelmenu:interrupt")

    def restart(self) -> None:
        """Kernel menu, Restart, and yes; returns when the page is connected to the new kernel."""
        self.command("kernelmenu:restart")
        self.accept_dialog()
        self._wait(
            "const k = panel.sessionContext.session?.kernel;"
            "return window.commandEnded && k?.connectionStatus === 'connected' && k.status === 'idle'",
            "the page is connected to the restarted kernel",
        )

    def shut_down(self) -> None:
        """Kernel menu, Shut Down; returns when the server has no session for this notebook any more."""
        self.command("kernelmenu:shutdown")
        wait_until(
            lambda: all(session["path"] != self.path for session in self._server.sessions()),
            what="the kernel is shut down",
            state=self._server.sessions,
        )

    def accept_dialog(self) -> None:
        """Press the default button of the dialog that is open or about to open."""
        self.playwright.locator(".jp-Dialog .jp-mod-accept").first.click()

    def dialogs(self) -> list[str]:
        """The texts of the open dialogs."""
        return self.playwright.locator(".jp-Dialog .jp-Dialog-content").all_inner_texts()

    def answer_input(self, value: str, index: int = 0) -> None:
        """Type an answer into the input box that a cell shows, and Enter."""
        box = self._node(index).locator(".jp-Stdin-input")
        box.wait_for()
        box.fill(value)
        box.press("Enter")

    # -- reading -----------------------------------------------------------------------------------------

    def _node(self, index: int) -> Any:
        return self.playwright.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(index)

    def cells(self) -> list[CellView]:
        """Every cell as the page has it now."""
        views = self._panel(
            """return panel.content.widgets.map(cell => {
                 const shared = cell.model.sharedModel.toJSON();
                 const parts = [...cell.node.querySelectorAll('.jp-OutputArea-child .jp-OutputArea-output')];
                 return {
                   prompt: cell.node.querySelector('.jp-InputArea-prompt')?.textContent.trim() ?? '',
                   shown: parts.map(part => part.textContent),
                   outputs: JSON.stringify(shared.outputs ?? []),
                   execution_count: shared.execution_count ?? null,
                   execution_state: cell.model.sharedModel.executionState ?? '',
                   trusted: !!cell.model.trusted,
                 };
               })"""
        )
        return [
            CellView(
                prompt=view["prompt"].rstrip(":"),
                shown=tuple(view["shown"]),
                outputs=json.loads(view["outputs"]),
                execution_count=view["execution_count"],
                execution_state=view["execution_state"],
                trusted=view["trusted"],
            )
            for view in views
        ]

    def cell(self, index: int = 0) -> CellView:
        """One cell as the page has it now."""
        return self.cells()[index]

    def wait(self, predicate: Callable[[CellView], object], index: int = 0, *, what: str) -> CellView:
        """Wait until the predicate is true for a cell; returns that view of it."""

        def look() -> CellView | None:
            view = self.cell(index)
            return view if predicate(view) else None

        view = wait_until(look, what=what, state=lambda: (self.cell(index), self.dialogs(), self.problems[-5:]))
        assert view is not None
        return view

    def wait_for_prompt(self, prompt: str, index: int = 0) -> CellView:
        """Wait until a cell's prompt reads ``[1]``, ``[*]`` …; returns the cell."""
        return self.wait(lambda view: view.prompt == prompt, index, what=f"cell {index} shows {prompt}")

    def wait_for_lines(self, prompt: str, lines: list[str], index: int = 0) -> CellView:
        """Wait until a cell has that prompt and exactly these lines, in the model and shown.

        The prompt may come a moment before the outputs: it by the kernel's reply, they by the document.
        """
        return self.wait(
            lambda view: view.prompt == prompt and view.lines == view.shown_lines == lines,
            index,
            what=f"cell {index} shows {prompt} and exactly {len(lines)} lines",
        )

    def element_text(self, selector: str, index: int = 0) -> str | None:
        """The text of an element inside a cell's outputs, None when there is none."""
        found = self._node(index).locator(f".jp-OutputArea-output {selector}")
        return found.first.text_content() if found.count() else None

    def image_width(self, index: int = 0) -> int:
        """The natural width of the image that a cell shows; 0 when none is shown or it cannot be decoded."""
        found = self._node(index).locator(".jp-OutputArea-output img")
        return found.first.evaluate("image => image.complete ? image.naturalWidth : 0") if found.count() else 0

    # -- inside ------------------------------------------------------------------------------------------

    def _panel(self, body: str, **values: Any) -> Any:
        """Run a function body in the page, with ``app``, ``panel`` (this notebook's) and the given values."""
        names = ", ".join(["path", *values])
        return self.playwright.evaluate(f"({{{names}}}) => {{ {_PANEL} {body} }}", {"path": self.path, **values})

    def _wait(self, body: str, what: str) -> None:
        def holds() -> bool:
            # A page on its way to another address has no execution context: it is simply not there yet.
            try:
                return bool(self._panel(body))
            except PlaywrightError as error:
                if "context was destroyed" in str(error) or "undefined" in str(error) or "null" in str(error):
                    return False
                raise

        wait_until(holds, what=what, state=lambda: (self.playwright.url, self.dialogs(), self.problems[-10:]))
