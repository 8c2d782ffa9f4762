"""``output-keeper kernel -f CONNECTION_FILE [options] -- KERNEL ARGV…``: run a kernel under a keeper."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from output_keeper import defaults

if TYPE_CHECKING:
    from collections.abc import Sequence


def run_kernel(arguments: Sequence[str]) -> int:
    """Parse the command line and be the keeper until the kernel ends; gives the kernel's exit code."""
    parser = _parser()
    given = list(arguments)
    if "--" not in given:
        parser.error("the kernel's own command line comes after --")
    split = given.index("--")
    options, argv = parser.parse_args(given[:split]), given[split + 1 :]
    if not argv:
        parser.error("there is no kernel command line after --")
    from output_keeper.keeper.main import KeeperSettings, run_keeper

    env = json.load(sys.stdin)["env"] if options.env_from_stdin else None
    return run_keeper(
        KeeperSettings(
            connection_file=options.connection_file,
            argv=argv,
            kernel_id=options.kernel_id,
            kernel_name=options.kernel_name,
            cwd=options.cwd,
            env=env,
            record_dir=options.record_dir,
            expect_grants=options.expect_grants,
            hold=options.hold,
            flush_interval=options.flush_interval,
            sync=options.sync,
            runs_per_cell=options.runs_per_cell,
            ready_fd=options.ready_fd,
            root=options.root,
            independent=options.independent,
            orphan_timeout=options.orphan_timeout,
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="output-keeper kernel",
        usage="output-keeper kernel -f CONNECTION_FILE [options] -- KERNEL ARGV ...",
        description="Run a kernel, forward its five channels and record what it says.",
    )
    parser.add_argument("-f", "--connection-file", type=Path, required=True, help="the file clients connect with")
    parser.add_argument("--kernel-id", help="names the record; default: from the connection file's name")
    parser.add_argument("--kernel-name", default="", help="the kernelspec's name")
    parser.add_argument("--cwd", help="the kernel's working directory; default: this one")
    parser.add_argument("--record-dir", type=Path, help="the folder of the records; default: in Jupyter's data folder")
    parser.add_argument(
        "--expect-grants",
        action="store_true",
        help="hold a cell's outputs until it is decided who writes them",
    )
    parser.add_argument(
        "--hold",
        type=float,
        default=defaults.HOLD_TIMEOUT,
        metavar="SECONDS",
        help="for at most so long (default %(default)g)",
    )
    parser.add_argument(
        "--flush-interval",
        type=float,
        default=defaults.FLUSH_INTERVAL,
        metavar="SECONDS",
        help="between writes (default %(default)g)",
    )
    parser.add_argument("--sync", choices=["normal", "full"], default="normal", help="what a power loss may take")
    parser.add_argument(
        "--runs-per-cell",
        type=int,
        default=defaults.RUNS_PER_CELL,
        help="how many runs of a cell are kept (default %(default)d)",
    )
    parser.add_argument("--root", default="", help="the folder whose server the kernel belongs to")
    parser.add_argument("--independent", action="store_true", help="the kernel outlives the process that launched it")
    parser.add_argument(
        "--orphan-timeout",
        type=float,
        default=defaults.ORPHAN_TIMEOUT,
        metavar="SECONDS",
        help="end a kernel whose server is gone after so long without activity (default %(default)g)",
    )
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--env-from-stdin", action="store_true", help=argparse.SUPPRESS)
    return parser
