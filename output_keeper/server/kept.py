"""One kept kernel as the server sees it: its follower, its projector and its ledger, from launch to settled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq.asyncio

from output_keeper.record import paths
from output_keeper.record.ledger import Ledger
from output_keeper.server.files import Files
from output_keeper.server.follower import Follower
from output_keeper.server.pages import Pages
from output_keeper.server.projector import Projector
from output_keeper.server.rooms import Rooms


@dataclass(frozen=True)
class Surroundings:
    """What all kept kernels of a server share."""

    context: zmq.asyncio.Context
    kernels: Any
    rooms: Rooms
    pages: Pages
    files: Files
    record_dir: Path
    root: str
    save_interval: float
    log: logging.Logger


class Kept:
    """Follow and project one kernel. Raises `StoreError` when its ledger cannot be opened."""

    def __init__(self, server: Surroundings, kernel_id: str) -> None:
        self._server = server
        self._kernel_id = kernel_id
        folder = paths.private_folder(server.record_dir)
        self._ledger = Ledger.open(paths.ledger_path(kernel_id, folder))
        self._ledger.serve(server.root)
        self.follower = Follower(server.context, kernel_id, folder, self._touched, server.log)
        self.projector = Projector(
            kernel_id,
            self.follower,
            rooms=server.rooms,
            files=server.files,
            pages=server.pages,
            ledger=self._ledger,
            save_interval=server.save_interval,
            log=server.log,
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def over(self) -> bool:
        """Whether the kernel has left the server, its keeper has ended, and nothing is left to project."""
        gone = self._kernel_id not in self._server.kernels
        return gone and not self.follower.alive and not self.projector.unsettled

    def start(self, spawn: Callable[[Any], asyncio.Task[None]]) -> None:
        """Follow and project until `stop`."""
        self._tasks = [spawn(self.follower.run()), spawn(self.projector.run())]

    async def stop(self) -> None:
        """Stop both, and let go of the ledger."""
        await cancelled(self._tasks)
        self._ledger.close()

    def _touched(self, msg_ids: set[str]) -> None:
        self.projector.touch(msg_ids)


async def cancelled(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: before Python 3.12 ``asyncio.wait_for`` may swallow a cancellation that
    comes together with what it waits for.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1.0)
