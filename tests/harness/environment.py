"""A Jupyter that shares nothing with the person running the tests: own folders, own processes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import psutil

from .wait import wait_until

MARKER = "OUTPUT_KEEPER_TEST_ROOT"
"""The variable that every process of an environment carries; its value is the environment's folder."""


def free_port() -> int:
    """A free TCP port between 20000 and 30000.

    Below 32768 on purpose: the system hands out higher ones by itself, and kernels ask it for their ports.
    """
    for _ in range(200):
        port = random.SystemRandom().randrange(20000, 30000)  # a seeded one repeats itself in every test
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no free port between 20000 and 30000")


class Environment:
    """A temporary folder with everything Jupyter reads or writes, and the processes started in it.

    Paths are short: kernels may put Unix sockets into ``runtime``.
    """

    def __init__(self) -> None:
        parent = "/tmp" if sys.platform != "win32" else None
        self.base = Path(tempfile.mkdtemp(prefix="ok-", dir=parent)).resolve()
        self.home = self._folder("h")
        self.config = self._folder("c")
        self.data = self._folder("d")
        self.runtime = self._folder("r")
        self.ipython = self._folder("i")
        self.work = self._folder("w")

    def _folder(self, name: str) -> Path:
        path = self.base / name
        path.mkdir(mode=0o700)
        return path

    def variables(self, **more: str) -> dict[str, str]:
        """Variables for a process in here: this process's own, without what is about Jupyter or a user."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JUPYTER", "IPYTHON", "XDG_", "OUTPUT_KEEPER", "JPY_"))
        }
        return {
            **kept,
            "HOME": str(self.home),
            "USERPROFILE": str(self.home),
            "JUPYTER_CONFIG_DIR": str(self.config),
            "JUPYTER_DATA_DIR": str(self.data),
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "IPYTHONDIR": str(self.ipython),
            MARKER: str(self.base),
            **more,
        }

    def processes(self) -> list[psutil.Process]:
        """Every living process started in here, however far its parents are gone."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                if process.environ().get(MARKER) == str(self.base):
                    found.append(process)
        return found

    def describe(self) -> list[str]:
        """The living processes as ``pid command line``, for messages."""
        lines = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                lines.append(f"{process.pid} {' '.join(process.cmdline())}")
        return lines

    def assert_no_processes(self, *, but: int | None = None) -> None:
        """Fail unless every process in here ends by itself; ``but`` is the pid of one that may live."""
        wait_until(
            lambda: not [process for process in self.processes() if process.pid != but],
            what="no kernel or keeper is left behind",
            state=self.describe,
        )

    def close(self) -> None:
        """Kill what still lives in here and remove the folder."""

        def kill_all() -> bool:
            alive = self.processes()
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            return not alive

        wait_until(kill_all, what="killed processes are gone", state=self.describe)
        shutil.rmtree(self.base, ignore_errors=True)
