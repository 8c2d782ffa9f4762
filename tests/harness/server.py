"""A real Jupyter server in its own process and folders."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import os
import secrets
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import psutil

from .environment import Environment, free_port
from .wait import LIMIT, wait_until

if TYPE_CHECKING:
    from pathlib import Path

STOCK = os.environ.get("OUTPUT_KEEPER_TEST_STOCK") == "1"
"""``OUTPUT_KEEPER_TEST_STOCK=1`` switches output-keeper off in every server: what fails then, we add."""

_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_COLLABORATION_PAGE = (
    "@jupyter/collaboration-extension",
    "@jupyter/docprovider-extension",
)
_COLLABORATION_SERVER = ("jupyter_server_ydoc", "jupyter_server_fileid")


def _merge(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in more.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


class Server:
    """``jupyter lab`` on a free port, with a token.

    ``collaboration=False`` gives the server and page that jupyter-collaboration's absence gives;
    ``keeper=False`` switches output-keeper off by config. ``config`` is merged into the server's JSON config
    file (``{"YDocExtension": {"document_cleanup_delay": 2}}``), ``env`` into the process's variables.

    A server that was stopped or killed can be started again: same folders, port and token.
    """

    def __init__(
        self,
        *,
        collaboration: bool = True,
        keeper: bool = True,
        config: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.environment = Environment()
        self.root = self.environment.work
        self.collaboration = collaboration
        self.keeper = keeper and not STOCK
        self.port = free_port()
        self.token = secrets.token_hex(16)
        self.log_file = self.environment.base / "server.log"
        self._env = env or {}
        self._process: subprocess.Popen[bytes] | None = None
        if self.keeper and not importlib.metadata.entry_points(
            group="jupyter_client.kernel_provisioners", name="output-keeper"
        ):
            raise RuntimeError('output-keeper is not installed here: pip install -e ".[test]"')
        self._write_config(config or {})

    def _write_config(self, config: dict[str, Any]) -> None:
        folder = self.environment.config
        extensions: dict[str, bool] = {"output_keeper": self.keeper}
        page: dict[str, bool] = {"@jupyterlab/apputils-extension:announcements": True}
        if not self.collaboration:
            extensions.update(dict.fromkeys(_COLLABORATION_SERVER, False))
            page.update(dict.fromkeys(_COLLABORATION_PAGE, True))
        settings = {
            "ServerApp": {
                "jpserver_extensions": extensions,
                "ip": "127.0.0.1",
                "port": self.port,
                "port_retries": 0,
                "open_browser": False,
                "root_dir": str(self.root),
                "allow_origin": "*",
                "log_level": "INFO",
            },
            "IdentityProvider": {"token": self.token},
            "LabApp": {
                "expose_app_in_browser": True,
                "news_url": None,
                "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
            },
        }
        (folder / "jupyter_server_config.json").write_text(json.dumps(_merge(settings, config), indent=1))
        (folder / "labconfig").mkdir(exist_ok=True)
        (folder / "labconfig" / "page_config.json").write_text(json.dumps({"disabledExtensions": page}))

    # -- the process -------------------------------------------------------------------------------------

    def start(self) -> Server:
        """Start the process and wait until it answers; AssertionError with the log's end if it does not."""
        command = [sys.executable, "-X", "faulthandler", "-m", "jupyterlab"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--allow-root")
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment.variables(**self._env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._answers, what="the server answers", state=lambda: self.log()[-3000:])
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the server ended with {self._process.returncode}:\n{self.log()[-3000:]}")
        try:
            self.api("GET", "status")
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError):
            return False
        return True

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End the server in order (SIGTERM) and wait for its end; AssertionError with its stacks if it hangs.

        Its clients have to be gone: jupyter-collaboration reads a room's file in a thread that lives as long as the
        websocket which opened the room, and one that is still open at the end keeps the process for ever, also
        without output-keeper.
        """
        assert self._process is not None
        wait_until(lambda: not self._clients(), what="no client is connected", state=self._clients)
        self._process.terminate()
        try:
            self._process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)
            self._process.wait(LIMIT)
            raise AssertionError(f"the server did not stop:\n{self.log()[-8000:]}") from None

    def _clients(self) -> list[str]:
        connections = psutil.Process(self.pid).net_connections("tcp")
        return [
            str(each.raddr)
            for each in connections
            if each.laddr.port == self.port and each.status in {psutil.CONN_ESTABLISHED, psutil.CONN_CLOSE_WAIT}
        ]

    def kill(self) -> None:
        """Kill the server (SIGKILL): it can do nothing more."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(60)

    def close(self) -> None:
        """Kill everything that runs here and remove the folders."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        self.environment.close()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def log(self) -> str:
        """All the server wrote so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def assert_no_kernels_left(self) -> None:
        """Fail unless every process but the server itself ends: after an orderly shutdown of all kernels."""
        self.environment.assert_no_processes(but=self.pid)

    # -- REST --------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The base address, ending with a slash."""
        return f"http://127.0.0.1:{self.port}/"

    def api(self, method: str, path: str, body: object = None) -> Any:
        """One REST call under ``/api/``; the decoded JSON answer, None when it has no body."""
        request = urllib.request.Request(
            f"{self.url}api/{urllib.parse.quote(path, safe='/?&=:')}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
        )
        with _HTTP.open(request, timeout=60) as answer:
            data = answer.read()
        return json.loads(data) if data else None

    def kernels(self) -> list[dict[str, Any]]:
        """``GET /api/kernels``."""
        return self.api("GET", "kernels")

    def sessions(self) -> list[dict[str, Any]]:
        """``GET /api/sessions``."""
        return self.api("GET", "sessions")

    def session(self, path: str) -> dict[str, Any]:
        """The notebook session of ``path``; there must be one."""
        (found,) = [session for session in self.sessions() if session["path"] == path]
        return found

    def start_session(self, path: str, kernel_name: str = "python3") -> dict[str, Any]:
        """A new session with a kernel for the notebook ``path``, as a page makes one."""
        body = {"path": path, "name": path, "type": "notebook", "kernel": {"name": kernel_name}}
        return self.api("POST", "sessions", body)

    def room_id(self, path: str) -> str:
        """The id that the collaboration room of a notebook has, whether there is one now or not."""
        answer = self.api("PUT", f"collaboration/session/{path}", {"format": "json", "type": "notebook"})
        return f"{answer['format']}:{answer['type']}:{answer['fileId']}"

    def shutdown_kernels(self) -> None:
        """Shut down every session and kernel through the REST API; wait until their processes are gone."""
        while sessions := self.sessions():  # several may share a kernel, and go with it
            self.api("DELETE", f"sessions/{sessions[0]['id']}")
        for kernel in self.kernels():
            self.api("DELETE", f"kernels/{kernel['id']}")
        self.assert_no_kernels_left()

    # -- files -------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Where a notebook of this server lies on disk."""
        return self.root / name
