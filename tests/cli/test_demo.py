"""``output-keeper demo``: what it says is true, its exit code says the same, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from harness import LIMIT, wait_until

from output_keeper.cli import demo, demo_server
from output_keeper.cli.demo import LINES, Result, Seen

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN = "DEMO_OF_THIS_TEST"


class Demo:
    """The command as a process, and every process that comes from it."""

    def __init__(self, log: Path) -> None:
        self.mark = secrets.token_hex(8)
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "output_keeper", "demo"],
                env={**os.environ, RUN: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def says(self, text: str) -> None:
        """Wait until it has said this."""

        def said() -> bool:
            assert self.process.poll() is None or text in self.said, self.said
            return text in self.said

        wait_until(said, what=f"the demo says {text!r}", state=lambda: self.said)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(RUN) == self.mark:
                    found.append(process)
        return found

    def folder(self) -> Path:
        """The temporary folder, as long as something runs in it."""
        (folder,) = {process.environ().get(demo_server.MARKER) for process in self.processes()} - {None}
        return Path(folder)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path / "demo.log")
    yield made
    for process in made.processes():
        process.kill()
    made.process.wait(LIMIT)


def test_it_shows_a_whole_notebook_to_the_client_that_comes_back(running: Demo) -> None:
    """And tells by its exit code that it did; processes and folder are gone."""
    running.says("now its connections are cut")
    folder = running.folder()
    assert running.process.wait(2 * LIMIT) == 0, running.said
    text = running.said
    left = int(re.search(r"it has seen (\d+) lines", text)[1])
    found = int(re.search(r"it finds (\d+) lines", text)[1])
    assert left < found <= LINES
    assert re.search(rf"lines +{LINES} +{LINES}\n", text)
    for wrong in ("missing", "doubled", "out of order", "unknown"):
        assert re.search(rf"{wrong} +0 +0\n", text)
    assert re.search(r"prompt +\[1\] +\[1\]\n", text)
    assert f"All {LINES} lines are in the notebook and in its file, once and in order" in text
    assert "jupyter lab" in text
    assert "\r" not in text
    assert running.processes() == []
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(running: Demo, number: signal.Signals) -> None:
    running.says("now its connections are cut")
    folder = running.folder()
    assert len(running.processes()) >= 4  # itself, the server, the keeper, the kernel
    running.process.send_signal(number)
    assert running.process.wait(LIMIT) == demo.INTERRUPTED
    assert "Interrupted" in running.said
    assert "Traceback" not in running.said
    assert running.processes() == []
    assert not folder.exists()


WITHOUT_US = """
import sys
from output_keeper.cli import demo, demo_server
demo_server.EXTENSIONS = ("jupyter_server_ydoc", "jupyter_server_fileid")
demo.SEES_LIMIT = 10.0
sys.exit(demo.run_demo())
"""


def test_without_output_keeper_it_says_that_it_failed() -> None:
    """Plain Jupyter with collaboration writes no outputs for a client that is no page."""
    said = subprocess.run([sys.executable, "-c", WITHOUT_US], capture_output=True, text=True, check=False, timeout=150)
    assert said.returncode == 1
    assert "The demo failed: not within 10 s: the client sees a line" in said.stderr
    assert "The end of the server's log" in said.stderr
    assert "All" not in said.stdout


@pytest.mark.parametrize("name", ["jupyter_server_ydoc", "ipykernel"])
def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda each: None if each == name else find(each))
    assert demo.run_demo() == 1
    said = capsys.readouterr().err
    assert f"needs {name}" in said
    assert 'pip install "output-keeper[lab]"' in said


EXPECTED = ["a", "b", "c", "d"]
RIGHT = {"missing": 0, "doubled": 0, "out of order": 0, "unknown": 0}


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (["a", "b", "c", "d"], {}),
        (["a", "b"], {"missing": 2}),
        ([], {"missing": 4}),
        (["a", "a", "b", "c", "d", "b"], {"doubled": 2}),
        (["b", "a", "c", "d"], {"out of order": 1}),
        (["d", "c", "b", "a"], {"out of order": 3}),
        (["a", "x", "b", "c", "d"], {"unknown": 1}),
        (["c", "a", "a"], {"missing": 2, "doubled": 1, "out of order": 1}),
    ],
)
def test_what_is_wrong_with_lines_is_counted(lines: list[str], wrong: dict[str, int]) -> None:
    seen = Seen(lines, 1)
    assert seen.compare(EXPECTED) == {**RIGHT, **wrong}
    assert seen.is_whole(EXPECTED) is not bool(wrong)


WHOLE, PART = Seen(EXPECTED, 1), Seen(EXPECTED[:2], 1)


@pytest.mark.parametrize(
    ("result", "worked", "says"),
    [
        (Result(1, 2, WHOLE, WHOLE), True, "left after 1 of them; the next one found 2 when it came, and saw the rest"),
        (Result(1, 4, WHOLE, WHOLE), True, "all of them were there"),
        (Result(1, 2, PART, WHOLE), False, "not whole in the open notebook."),
        (Result(1, 2, WHOLE, PART), False, "not whole in the file."),
        (Result(1, 2, PART, PART), False, "not whole in the open notebook and in the file."),
        (Result(1, 2, WHOLE, Seen(EXPECTED, None)), False, "not whole in the file."),
        (Result(1, 2, Seen(EXPECTED, 2), WHOLE), False, "not whole in the open notebook."),
        (Result(2, 2, WHOLE, WHOLE), False, "shows nothing"),
    ],
)
def test_the_verdict_follows_what_was_found(result: Result, worked: bool, says: str) -> None:
    told, sentence = result.verdict(EXPECTED)
    assert told is worked
    assert says in " ".join(sentence.split())
