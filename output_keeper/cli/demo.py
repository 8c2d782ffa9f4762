"""``output-keeper demo``: a client leaves a running cell, and another one finds all of it.

Everything in it is real: a Jupyter server with jupyter-collaboration, a kernel, websocket clients that are
cut off. What it says at the end is what it found, and the exit code says the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from output_keeper.cli.demo_server import START_LIMIT, DemoError, DemoServer, demo_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import FrameType

NEEDED = ("jupyter_server_ydoc", "jupyter_server_fileid", "jupyter_ydoc", "ipykernel")
NOTEBOOK = "demo.ipynb"
LINES = 60
PAUSE = 0.2  # s between two lines
LEAVE_AFTER = 2.0  # s that the first client stays after the first line
RETURN_AT = 46  # lines that are printed when the second client comes; by then the file was saved once
SEES_LIMIT = 60.0  # s for the first line to be seen; a kernel starts in about two
END_LIMIT = 30.0  # s for the last line to be seen and saved; a save takes about one
INTERRUPTED = 130  # the exit code of what was ended by Ctrl-C

CELL = """\
import pathlib, time
for number in range(1, {lines} + 1):
    print(f"line {{number}} of {lines}", flush=True)
    with pathlib.Path({trace!r}).open("a") as trace:  # tells the demo what is printed while nobody looks
        trace.write(f"{{number}}\\n")
    time.sleep({pause})
"""


TRY_IT = """
To see it in a browser:
  1. jupyter lab
  2. In a new notebook, run a cell that takes its time:
         import time
         for i in range(300): print(i, flush=True); time.sleep(0.2)
  3. Close the browser. Open the notebook again, here or in another browser."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody has of the cell: its lines and its prompt number (None while it runs)."""

    lines: list[str]
    count: int | None

    def compare(self, expected: Sequence[str]) -> dict[str, int]:
        """Count what is wrong with the lines."""
        place = {line: number for number, line in enumerate(expected)}
        places = [place[line] for line in dict.fromkeys(self.lines) if line in place]
        return {
            "missing": len(place) - len(places),
            "doubled": len(self.lines) - len(set(self.lines)),
            "out of order": sum(one > next_one for one, next_one in itertools.pairwise(places)),
            "unknown": len(set(self.lines) - place.keys()),
        }

    def is_whole(self, expected: Sequence[str]) -> bool:
        """Whether every line is there, once, in order, under the prompt ``[1]``."""
        return self.lines == list(expected) and self.count == 1


@dataclass(frozen=True, slots=True)
class Result:
    """What happened: how many lines the first client left with and the second found, and the end."""

    left_with: int
    found: int
    client: Seen
    file: Seen

    def verdict(self, expected: Sequence[str]) -> tuple[bool, str]:
        """Tell whether the demo showed what it is for, in a sentence that is true either way."""
        total = len(expected)
        wrong = [
            name
            for name, seen in (("the open notebook", self.client), ("the file", self.file))
            if not seen.is_whole(expected)
        ]
        if wrong:
            return False, f"It did not work: what the cell printed is not whole in {' and in '.join(wrong)}."
        if not self.left_with < self.found:
            return False, "Nothing was printed while nobody looked, so this run shows nothing: try again."
        rest = "saw the rest appear" if self.found < total else "all of them were there"
        return True, (
            f"All {total} lines are in the notebook and in its file, once and in order: the client that ran\n"
            f"the cell left after {self.left_with} of them; the next one found {self.found} when it came, "
            f"and {rest}."
        )


class Teller:
    """Says what happens: on a terminal progress rewrites its line, elsewhere every line stays."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._live = sys.stdout.isatty()
        self._open = False
        self._said = ""
        self._at = 0.0

    def say(self, text: str) -> None:
        """Say something that happened."""
        if self._open:
            print()
            self._open = False
        print(f"{time.monotonic() - self._start:5.1f} s  {text}", flush=True)

    def progress(self, text: str) -> None:
        """Say how far it is: at each call on a terminal, about every two seconds elsewhere."""
        if self._live:
            room = shutil.get_terminal_size().columns - 1
            line = f"{time.monotonic() - self._start:5.1f} s    {text}"
            print(f"\r{line[:room]:<{room}}", end="", flush=True)
            self._open = True
        elif text != self._said and time.monotonic() - self._at >= 2:
            self._said, self._at = text, time.monotonic()
            self.say(f"  {text}")


def run_demo() -> int:
    """Run the demo; gives 0 when the notebook kept everything, 1 when not or when it cannot run here."""
    if sys.platform == "win32":
        print("The demo needs what keepers need, and Windows does not have it: run it in WSL.", file=sys.stderr)
        return 1
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"The demo needs {', '.join(missing)}, which this environment does not have.\n"
            'Install what it needs with:  pip install "output-keeper[lab]"',
            file=sys.stderr,
        )
        return 1
    try:
        with _terminated_is_interrupted(), demo_server() as server:
            return _play(server)
    except KeyboardInterrupt:
        print("\nInterrupted; everything the demo started is gone.", file=sys.stderr)
        return INTERRUPTED
    except DemoError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1


def _play(server: DemoServer) -> int:
    from tornado.httpclient import HTTPError
    from tornado.websocket import WebSocketError

    try:
        result = asyncio.run(_story(server))
    except (DemoError, OSError, HTTPError, WebSocketError) as error:
        print(f"\nThe demo failed: {error}\n{_log(server)}", file=sys.stderr)
        return 1
    expected = [f"line {number} of {LINES}" for number in range(1, LINES + 1)]
    print("", *side_by_side(result.client, result.file, expected), "", sep="\n")
    worked, verdict = result.verdict(expected)
    print(verdict)
    print(TRY_IT if worked else f"`output-keeper status` may say why. {_log(server)}")
    return 0 if worked else 1


def _log(server: DemoServer) -> str:
    return "\n".join(["The end of the server's log:", *server.log(20)])


async def _story(server: DemoServer) -> Result:
    """Play it."""
    teller = Teller()
    teller.say("starting a Jupyter server with jupyter-collaboration and output-keeper")
    from output_keeper.cli.demo_client import NotebookClient

    trace = server.work / "trace"
    _write_notebook(server.work / NOTEBOOK, CELL.format(lines=LINES, pause=PAUSE, trace=str(trace)))
    await _until(server, lambda: _answers(server), START_LIMIT, "the server answers")

    first = NotebookClient(server, NOTEBOOK)
    second = NotebookClient(server, NOTEBOOK)
    try:
        await first.open()
        await _until(server, lambda: first.loaded, START_LIMIT, "the client has the notebook")
        await first.run()
        teller.say(f"a client runs a cell that prints {LINES} lines over {LINES * PAUSE:.0f} s")
        await _until(server, lambda: first.lines, SEES_LIMIT, "the client sees a line")
        await asyncio.sleep(LEAVE_AFTER)
        left_with = len(first.lines)
        first.leave()
        teller.say(f"it has seen {left_with} lines; now its connections are cut, and nobody looks")

        def progress() -> int:
            printed = _printed(trace)
            teller.progress(f"the kernel has printed {printed} lines, the .ipynb has {len(_on_disk(server).lines)}")
            return printed

        await _until(
            server,
            lambda: progress() >= RETURN_AT,
            LINES * PAUSE + END_LIMIT,
            "the cell prints on",
            every=0.2,
        )
        await second.open()
        await _until(server, lambda: second.loaded, START_LIMIT, "the second client has the notebook")
        found = len(second.lines)
        teller.say(f"another client opens the notebook: it finds {found} lines, {_printed(trace)} are printed so far")

        def ended() -> bool:
            teller.progress(f"it sees {len(second.lines)} lines, the kernel has printed {_printed(trace)}")
            return second.count is not None and _on_disk(server).count is not None

        with contextlib.suppress(DemoError):  # then what is missing is shown
            await _until(server, ended, LINES * PAUSE + END_LIMIT, "the cell ends", every=0.2)
        teller.say("the cell has ended" if second.count is not None else "the cell does not end")
        return Result(left_with, found, Seen(second.lines, second.count), _on_disk(server))
    finally:
        first.leave()
        second.leave()


def side_by_side(client: Seen, file: Seen, expected: Sequence[str]) -> list[str]:
    """Give the table of what the client sees and what the file has."""
    columns = []
    for title, seen in (("that client sees", client), ("the .ipynb has", file)):
        rows = {
            "": title,
            "lines": len(seen.lines),
            "first": seen.lines[0] if seen.lines else "-",
            "last": seen.lines[-1] if seen.lines else "-",
            **seen.compare(expected),
            "prompt": f"[{seen.count if seen.count is not None else '*'}]",
        }
        columns.append(rows)
    return [f"  {name:<12}  {columns[0][name]!s:<20}  {columns[1][name]!s}" for name in columns[0]]


async def _until(
    server: DemoServer, condition: Callable[[], Any], limit: float, what: str, *, every: float = 0.05
) -> None:
    """Wait until a condition (which may be awaited) is true.

    Raises `DemoError` after ``limit`` s, and when the server ends.
    """
    deadline = time.monotonic() + limit
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return
        if server.ended:
            raise DemoError(f"the server ended (exit code {server.process.returncode}) before {what}")
        if time.monotonic() > deadline:
            raise DemoError(f"not within {limit:.0f} s: {what}")
        await asyncio.sleep(every)


async def _answers(server: DemoServer) -> bool:
    from tornado.httpclient import HTTPError

    try:
        await server.api("GET", "status")
    except (OSError, HTTPError):
        return False
    return True


def _write_notebook(path: Path, source: str) -> None:
    import nbformat.v4

    cell = nbformat.v4.new_code_cell(source)  # type: ignore[no-untyped-call]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(  # type: ignore[no-untyped-call]
        cells=[cell], metadata={"kernelspec": kernelspec}
    )
    path.write_text(json.dumps(notebook))


def _printed(trace: Path) -> int:
    return len(trace.read_text().splitlines()) if trace.exists() else 0


def _on_disk(server: DemoServer) -> Seen:
    from output_keeper.cli.demo_client import stream_lines

    try:
        cell = json.loads((server.work / NOTEBOOK).read_text())["cells"][0]
    except (ValueError, OSError):  # the server is writing it
        return Seen([], None)
    return Seen(stream_lines(cell), cell["execution_count"])


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Clean up on SIGTERM and SIGHUP as on Ctrl-C."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signals = (signal.SIGTERM, signal.SIGHUP)
    old = [signal.signal(each, interrupt) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, old, strict=True):
            signal.signal(each, handler)
