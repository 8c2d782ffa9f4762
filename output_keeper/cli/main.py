"""The ``output-keeper`` command: one verb per module, imported only when it runs.

Exit codes: 0 what was asked is so; 1 it is not; 2 the command line is wrong; 130 interrupted. ``kernel`` ends
with its kernel's.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from output_keeper._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:  # `… | head` has read enough; what Python still wants to flush has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(given: list[str]) -> int:
    if given[:1] == ["kernel"]:  # first, because it is on the way of every kernel's start
        from output_keeper.cli.kernel import run_kernel

        return run_kernel(given[1:])
    options = _parser().parse_args(given)
    if options.verb == "status":
        from output_keeper.cli.status import run_status

        return run_status(as_json=options.json)
    from output_keeper.cli.demo import run_demo

    return run_demo()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="output-keeper", description="Jupyter keeps every output while nobody looks.")
    parser.add_argument("--version", action="version", version=f"output-keeper {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("kernel", help="run a kernel under a keeper (what the provisioner, or a kernelspec, calls)")
    status = verbs.add_parser("status", help="is recording on here, which kernels are kept, and if not, why")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    verbs.add_parser("demo", help="see it work: a client leaves a running cell, another finds all of it")
    return parser
