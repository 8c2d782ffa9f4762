"""Notebooks for tests: built with fixed cell ids, read back from disk; cells that tell how far they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nbformat

from .wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def cell_id(index: int) -> str:
    """The id of a built notebook's cell."""
    return f"cell-{index}"


def build(*sources: str) -> nbformat.NotebookNode:
    """An nbformat 4.5 notebook of Python code cells ``cell-0``, ``cell-1`` …; no outputs."""
    cells = [nbformat.v4.new_code_cell(source, id=cell_id(index)) for index, source in enumerate(sources)]
    kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": kernelspec, "language_info": {"name": "python"}}
    )


def write(path: Path, *sources: str) -> Path:
    """Build a notebook and write it to ``path``."""
    nbformat.write(build(*sources), path)
    return path


def read(path: Path) -> dict[str, Any]:
    """The notebook on disk with joined multi-line strings; {} while another process is writing it."""
    try:
        return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    except (nbformat.reader.NotJSONError, json.JSONDecodeError, FileNotFoundError):
        return {}


def cell_on_disk(path: Path, index: int = 0) -> dict[str, Any]:
    """One cell of the notebook on disk; an empty cell while the file is not readable."""
    cells = read(path).get("cells", [])
    return cells[index] if index < len(cells) else {"outputs": [], "execution_count": None}


def stream_text(outputs: Sequence[dict[str, Any]], name: str = "stdout") -> str:
    """The text of all stream outputs of that name, joined in order."""
    parts = [out["text"] for out in outputs if out["output_type"] == "stream" and out["name"] == name]
    return "".join(part if isinstance(part, str) else "".join(part) for part in parts)


def lines_on_disk(path: Path, index: int = 0) -> list[str]:
    """What a cell on disk printed, as lines."""
    return stream_text(cell_on_disk(path, index)["outputs"]).splitlines()


def _terminal(text: str) -> str:
    """What a terminal shows of carriage returns: each writes over its line from the left."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown)
    return "\n".join(lines)


def comparable(outputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs without what may differ between writers that show the same.

    Adjacent stream outputs of one name are one, carriage returns are applied, ``transient`` is gone and
    multi-line strings are joined.
    """
    result: list[dict[str, Any]] = []
    for original in outputs:
        output = json.loads(json.dumps(original))
        output.pop("transient", None)
        if "data" in output:
            output["data"] = {
                mime: "".join(value) if isinstance(value, list) else value for mime, value in output["data"].items()
            }
            output.setdefault("metadata", {})
        if output["output_type"] == "stream":
            text = output["text"] if isinstance(output["text"], str) else "".join(output["text"])
            last = result[-1] if result else {}
            if last.get("output_type") == "stream" and last["name"] == output["name"]:
                last["text"] += text
                continue
            output["text"] = text
        result.append(output)
    for output in result:
        if output["output_type"] == "stream":
            output["text"] = _terminal(output["text"])
    return result


@dataclass(frozen=True)
class Trace:
    """A file that cells append to from inside the kernel: tests wait on the kernel and not on a clock.

    A cell also waits for its *gates* (files that the test makes), so that a test decides how far it runs.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def file(self) -> Path:
        """The file cells append a line to, per step."""
        return self.folder / "trace"

    def steps(self) -> list[str]:
        """What the cells have noted so far; a line that is still being written is not counted."""
        if not self.file.exists():
            return []
        return self.file.read_text(encoding="utf-8").split("\n")[:-1]

    def wait(self, count: int) -> None:
        """Until at least ``count`` steps are noted."""
        wait_until(lambda: len(self.steps()) >= count, what=f"{count} steps of the kernel", state=self.steps)

    def wait_for(self, step: str) -> None:
        """Until that very step is noted."""
        wait_until(lambda: step in self.steps(), what=f"the kernel notes {step!r}", state=self.steps)

    def open_gate(self, name: str) -> None:
        """Let the cell that waits for this gate go on."""
        (self.folder / name).touch()

    # -- sources -----------------------------------------------------------------------------------------

    def prelude(self) -> str:
        """The first lines of a cell: defines ``note(step)`` and ``gate(name)``, which print nothing."""
        return (
            "import pathlib, time\n"
            f"_folder = pathlib.Path({str(self.folder)!r})\n"
            "def note(step):\n"
            "    with open(_folder / 'trace', 'a') as trace: trace.write(f'{step}\\n')\n"
            "def gate(name, limit=120):\n"
            "    end = time.monotonic() + limit\n"
            "    while not (_folder / name).exists() and time.monotonic() < end: time.sleep(0.02)\n"
        )

    def printing(self, lines: int, seconds: float, word: str = "line") -> str:
        """A cell that prints ``word 0`` … over that time, each flushed and noted, and then notes ``end``."""
        return (
            self.prelude()
            + f"for i in range({lines}):\n"
            + f"    print(f'{word} {{i}}', flush=True); note(i); time.sleep({seconds / lines})\n"
            + "note('end')"
        )

    def printing_until(self, gate: str, after: int = 20, pause: float = 0.05, word: str = "line") -> str:
        """A cell that prints lines until the gate is open, and ``after`` more; notes each and ``end``."""
        return (
            self.prelude()
            + f"i = 0\nleft = {after}\n"
            + "while left:\n"
            + f"    print(f'{word} {{i}}', flush=True); note(i); i += 1; time.sleep({pause})\n"
            + f"    if (_folder / {gate!r}).exists() or i > 5000: left -= 1\n"
            + "note('end')"
        )

    def printed(self, word: str = "line") -> list[str]:
        """The lines that the cells above have printed so far."""
        return [f"{word} {step}" for step in self.steps() if step.isdigit()]


def expected_lines(count: int, word: str = "line") -> list[str]:
    """``word 0`` … ``word count-1``."""
    return [f"{word} {i}" for i in range(count)]
