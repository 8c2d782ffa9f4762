"""A Jupyter server for the demo: all it reads, writes and starts is in one temporary folder and goes with it.

The processes it starts carry the folder's name in a variable of their environment, so that those which are
not its children (keepers are detached on purpose) are found and ended, too.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
import secrets
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil

from output_keeper._version import __version__
from output_keeper.errors import OutputKeeperError

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKER = "OUTPUT_KEEPER_DEMO"
EXTENSIONS = ("jupyter_server_ydoc", "jupyter_server_fileid", "output_keeper")
START_LIMIT = 60.0  # s; a server needs about two on an idle machine
STOP_LIMIT = 10.0  # s for an orderly end
_GROUP = "jupyter_client.kernel_provisioners"
_OF_JUPYTER = ("JUPYTER", "JPY_", "IPYTHON", "XDG_", "OUTPUT_KEEPER")


class DemoError(OutputKeeperError):
    """The demo could not show what it is for; the message says what was waited for."""


@dataclass(frozen=True, slots=True)
class DemoServer:
    """A running server. ``work`` is its root folder, ``log_file`` what it writes to its terminal."""

    process: subprocess.Popen[bytes]
    work: Path
    log_file: Path
    port: int
    token: str

    async def api(self, method: str, path: str, body: object = None) -> Any:
        """Make a REST call under ``/api/``; gives the decoded answer. Raises tornado's HTTPError, OSError."""
        from tornado.httpclient import AsyncHTTPClient

        client = AsyncHTTPClient(force_instance=True)
        try:
            answer = await client.fetch(
                f"http://127.0.0.1:{self.port}/api/{quote(path)}",
                method=method,
                headers=self.headers,
                body=None if body is None else json.dumps(body),
                request_timeout=START_LIMIT,
            )
        finally:
            client.close()
        return json.loads(answer.body) if answer.body else None

    @property
    def headers(self) -> dict[str, str]:
        """What a request or a websocket has to say to be let in."""
        return {"Authorization": f"token {self.token}"}

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def log(self, lines: int) -> list[str]:
        """Give the last lines of its log."""
        return self.log_file.read_text(errors="replace").splitlines()[-lines:]


@contextlib.contextmanager
def demo_server() -> Iterator[DemoServer]:
    """Start a server with collaboration and output-keeper; leaving the block ends and removes all of it."""
    # Short, because kernels put Unix sockets there, and macOS's own temporary folder is not.
    parent = "/tmp" if Path("/tmp").is_dir() else None  # noqa: S108  # mkdtemp makes it private
    base = Path(tempfile.mkdtemp(prefix="ok-demo-", dir=parent)).resolve()
    process: subprocess.Popen[bytes] | None = None
    try:
        port, token = _free_port(), secrets.token_hex(16)
        _write_config(base, port, token)
        log_file = base / "server.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "jupyter_server"],
                cwd=base / "w",
                env=_environment(base),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to deal with
            )
        yield DemoServer(process, base / "w", log_file, port, token)
    finally:
        with _not_interrupted():
            try:
                _end(process, base)
            finally:
                shutil.rmtree(base, ignore_errors=True)


def _write_config(base: Path, port: int, token: str) -> None:
    from jupyter_core.paths import jupyter_config_path
    from jupyter_server.extension.config import ExtensionConfigManager

    for name in ("h", "c", "d", "r", "i", "w"):
        (base / name).mkdir(mode=0o700)
    # What else is installed here is left out: the server starts faster, and it is the same everywhere.
    manager = ExtensionConfigManager(read_config_path=jupyter_config_path())
    installed = manager.get_jpserver_extensions()  # type: ignore[no-untyped-call]
    config = {
        "ServerApp": {
            "jpserver_extensions": {name: name in EXTENSIONS for name in {*installed, *EXTENSIONS}},
            "ip": "127.0.0.1",
            "port": port,
            "port_retries": 0,
            "open_browser": False,
            "allow_root": True,
            "root_dir": str(base / "w"),
        },
        "IdentityProvider": {"token": token},
    }
    (base / "c" / "jupyter_server_config.json").write_text(json.dumps(config))
    kernelspec = base / "d" / "kernels" / "python3"
    kernelspec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (kernelspec / "kernel.json").write_text(json.dumps(spec))
    if not importlib.metadata.entry_points(group=_GROUP, name="output-keeper"):
        _register(base / "p")


def _register(folder: Path) -> None:
    """Make what an installation would register, for a checkout that was not installed."""
    info = folder / f"output_keeper-{__version__}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: output-keeper\nVersion: {__version__}\n")
    entry_point = "output-keeper = output_keeper.server.provisioner:KeeperProvisioner"
    (info / "entry_points.txt").write_text(f"[{_GROUP}]\n{entry_point}\n")


def _environment(base: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_JUPYTER)}
    environment = {
        **kept,
        "HOME": str(base / "h"),
        "PYTHONUSERBASE": site.getuserbase(),  # packages installed with --user are below the real home
        "JUPYTER_CONFIG_DIR": str(base / "c"),
        "JUPYTER_DATA_DIR": str(base / "d"),
        "JUPYTER_RUNTIME_DIR": str(base / "r"),
        "IPYTHONDIR": str(base / "i"),
        MARKER: str(base),
    }
    if (base / "p").exists():
        source = Path(__file__).parents[2]
        others = [kept["PYTHONPATH"]] if kept.get("PYTHONPATH") else []
        environment["PYTHONPATH"] = os.pathsep.join([str(base / "p"), str(source), *others])
    return environment


def _free_port() -> int:
    """Give a free port below 32768, where the system does not take ports for the kernels' sockets."""
    for port in random.SystemRandom().sample(range(20000, 30000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise DemoError("no free port between 20000 and 30000")


def _end(process: subprocess.Popen[bytes] | None, base: Path) -> None:
    """End the server, which ends its kernels; kill what is left."""
    if process is not None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT)
    deadline = time.monotonic() + STOP_LIMIT
    while left := _processes(base):
        if time.monotonic() > deadline:
            pids = ", ".join(str(one.pid) for one in left)
            raise DemoError(f"these processes of the demo do not end: {pids}")
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(left, timeout=0.5)


def _processes(base: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone meanwhile, or somebody else's
            if process.environ().get(MARKER) == str(base) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextlib.contextmanager
def _not_interrupted() -> Iterator[None]:
    """Finish cleaning up although somebody is impatient."""
    signals = (signal.SIGINT, signal.SIGTERM)
    old = [signal.signal(each, signal.SIG_IGN) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, old, strict=True):
            signal.signal(each, handler)
