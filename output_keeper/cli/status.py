"""``output-keeper status [--json]``: is recording on here, which kernels are kept, and if not, why.

docs/cli.md has the shape of the JSON object and an example of the text.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from output_keeper._version import __version__
from output_keeper.cli.checks import Check, Level, ServerConfig, check_all, mode
from output_keeper.cli.kept import NOT_RECORDED, KernelStatus, State, kept_kernels
from output_keeper.cli.servers import with_servers
from output_keeper.record import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORMAT = 1  # of the JSON object; grows when a field changes its meaning or goes, not when one is added

_GREEN, _YELLOW, _RED, _BOLD, _RESET = "\033[32m", "\033[33m", "\033[31m", "\033[1m", "\033[0m"
_COLOURS = {Level.OK: _GREEN, Level.NOTE: _YELLOW, Level.PROBLEM: _RED}
_STATES = {
    State.RECORDING: (_GREEN, "recording"),
    State.FAILING: (_RED, "NOT WRITTEN TO DISK"),
    State.UNRESPONSIVE: (_RED, "keeper does not answer"),
    State.SILENT: (_YELLOW, "recording, but cannot be asked"),
    State.GONE: (_YELLOW, "its keeper was killed; the record is kept"),
    State.ELSEWHERE: (_YELLOW, "of another machine, container or boot"),
    State.NOT_KEPT: (_RED, "NOT KEPT"),
}
_WHY_NOT_KEPT = (
    "started without a keeper: its server was started before output-keeper was on, its kernelspec has a "
    "provisioner of its own, or the keeper could not start (the server's log says which)"
)


@dataclass(frozen=True, slots=True)
class Status:
    """Everything ``status`` found."""

    checks: list[Check]
    mode: str
    records: str
    kernels: list[KernelStatus]
    unreadable: list[str]
    unasked_servers: list[str]

    @classmethod
    def gather(cls) -> Status:
        """Look. Takes some seconds at most, whatever does not answer."""
        config = ServerConfig.load()
        kept, unreadable = kept_kernels()
        kernels, unasked = with_servers(kept)
        return cls(
            checks=check_all(config),
            mode=mode(config),
            records=str(paths.record_dir(config.get("OutputKeeper", "record_dir") or None)),
            kernels=kernels,
            unreadable=unreadable,
            unasked_servers=unasked,
        )

    @property
    def recording(self) -> bool:
        """Whether a kernel that a server of this environment starts now would be kept."""
        return all(check.level is not Level.PROBLEM for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Give the object that ``--json`` prints."""
        return {
            "format": FORMAT,
            "version": __version__,
            "recording": self.recording,
            "mode": self.mode,
            "records": self.records,
            "checks": [
                {"name": check.name, "level": check.level.value, "says": check.says, "do": check.do}
                for check in self.checks
            ],
            "kernels": [kernel.to_json() for kernel in self.kernels],
            "unreadable_run_files": self.unreadable,
            "unasked_servers": self.unasked_servers,
        }


def run_status(*, as_json: bool) -> int:
    """Print the status; gives 0 when recording is on, else 1."""
    status = Status.gather()
    if as_json:
        print(json.dumps(status.to_json(), indent=2))
    else:
        for line in render(status, colours=_wants_colours()):
            print(_encodable(line))
    return 0 if status.recording else 1


def render(status: Status, *, colours: bool) -> Iterator[str]:
    """Give the lines a person reads. Names from outside cannot move the cursor or set a colour."""

    def paint(colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if colours else text

    state = paint(_GREEN, "recording is on") if status.recording else paint(_RED, "RECORDING IS OFF")
    yield f"{paint(_BOLD, f'output-keeper {__version__}')}: {state}"
    yield ""
    width = max(len(check.name) for check in status.checks)
    for check in status.checks:
        level = paint(_COLOURS[check.level], f"{check.level.value:<7}")
        yield f"  {level}  {check.name:<{width}}  {_plain(check.says)}"
        if check.do:
            yield f"  {'':<7}  {'':<{width}}  -> {_plain(check.do)}"
    yield ""
    yield paint(_BOLD, "Kernels") if status.kernels else "No kernel is running under a keeper."
    for kernel in status.kernels:
        yield from _kernel(kernel, paint)
    for problem in status.unreadable:
        yield f"  {paint(_YELLOW, 'run file cannot be read')}  {_plain(problem)}"
    for address in status.unasked_servers:
        cannot = paint(_YELLOW, "server cannot be asked")
        yield f"  {cannot}  {_plain(address)}: which of its kernels have no keeper is not known"


def _kernel(kernel: KernelStatus, paint: Callable[[str, str], str]) -> Iterator[str]:
    colour, words = _STATES[kernel.state]
    notebooks = ", ".join(kernel.notebooks) or "no notebook known"
    name = _plain(f"{kernel.kernel_name or '?'} {kernel.kernel_id}")
    yield f"  {name}  {paint(colour, words)}  {_plain(notebooks)}"
    facts = []
    if kernel.execution_state:
        facts.append(kernel.execution_state)
    if kernel.answer:
        facts.append(_count(kernel.answer.get("executions", 0), "execution"))
        facts.append(f"{_count(kernel.answer.get('waiting', 0), 'message')} waiting")
        bad = sum(int(kernel.answer.get(name, 0)) for name in NOT_RECORDED if name != "unexpected")
        if bad:
            facts.append(f"{_count(bad, 'message')} not recorded")
    if kernel.record:
        facts.append(f"{_size(kernel.record_bytes)} in {kernel.record}")
    if facts:
        yield f"      {_plain(', '.join(facts))}"
    if kernel.error or kernel.state is State.NOT_KEPT:
        yield f"      {paint(_RED, _plain(kernel.error or _WHY_NOT_KEPT))}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _size(size: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GB"


def _plain(text: str) -> str:
    """Give the text with everything that is not printable shown as its escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _encodable(line: str) -> str:
    """Give the line as this terminal's or pipe's encoding can hold it."""
    encoding = sys.stdout.encoding or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def _wants_colours() -> bool:
    """Colours only on a terminal that has them, and not when NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
