"""Which notebooks and which pages belong to a kernel: sessions, open websockets, buffered messages.

Jupyter Server offers no public call for open websockets; what is read here is named once, in this module.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.utils import ensure_async

from output_keeper.protocol.messages import OUTPUT_TYPES

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

SESSIONS_FRESH = 0.5  # s: fifty printing kernels ask many times a second


class Pages:
    """What the server knows of the clients of its kernels."""

    def __init__(self, serverapp: ServerApp) -> None:
        self._sessions = serverapp.session_manager
        self._kernels = serverapp.kernel_manager
        self._seen: set[tuple[str, str]] = set()
        self._listed: list[tuple[str, str | None]] = []
        self._sessions_until = 0.0

    async def notebooks(self, kernel_id: str) -> list[str]:
        """The paths of the notebooks whose session has this kernel, without a drive; consoles are none."""
        return [path for path, kernel in await self._notebook_sessions() if kernel == kernel_id]

    async def all_notebooks(self) -> set[str]:
        """The paths of every notebook that has a session."""
        return {path for path, _ in await self._notebook_sessions()}

    async def _notebook_sessions(self) -> list[tuple[str, str | None]]:
        """Path and kernel_id of every notebook's session, at most `SESSIONS_FRESH` old."""
        now = time.monotonic()
        if now >= self._sessions_until:
            models = await ensure_async(self._sessions.list_sessions())
            self._listed = [
                (without_drive(model["path"]), (model.get("kernel") or {}).get("id"))
                for model in models
                if model.get("type") == "notebook"
            ]
            self._sessions_until = time.monotonic() + SESSIONS_FRESH
        return self._listed

    def connected(self, kernel_id: str, client_session: str) -> bool:
        """Tell whether a websocket of this client is open.

        Clients that name no ``session_id`` in the websocket's address cannot be told apart: for them every open
        websocket of the kernel counts, so a page that may still show and save an output is never written over.
        """
        open_sessions = self._open_sessions(kernel_id)
        self.watch(kernel_id)
        if client_session in open_sessions:
            return True
        if (kernel_id, client_session) in self._seen:
            return False
        return bool(open_sessions)

    def any_connected(self, kernel_id: str) -> bool:
        """Tell whether any websocket to this kernel is open."""
        return bool(self._open_sessions(kernel_id))

    def watch(self, kernel_id: str) -> None:
        """Remember the sessions of the websockets that are open now."""
        self._seen.update((kernel_id, session) for session in self._open_sessions(kernel_id))

    def drop_buffered(self, kernel_id: str, msg_id: str) -> None:
        """Take an execution's outputs out of what the server replays to a page that comes back: we projected them."""
        buffers = getattr(self._kernels, "_kernel_buffers", None)
        if not buffers or kernel_id not in buffers:
            return
        buffer = buffers[kernel_id]["buffer"]
        buffer[:] = [
            (channel, frames)
            for channel, frames in buffer
            if not (channel == "iopub" and _is_output_of(frames, msg_id))
        ]

    @staticmethod
    def _open_sessions(kernel_id: str) -> set[str]:
        keys = ZMQChannelsWebsocketConnection._open_sessions  # noqa: SLF001  see the module's docstring
        return {key.partition(":")[2] for key in keys if key.partition(":")[0] == kernel_id}


def _is_output_of(frames: list[bytes], msg_id: str) -> bool:
    """Read header and parent of a buffered message; the server checked its signature."""
    frames = [bytes(getattr(frame, "bytes", frame)) for frame in frames]
    try:
        at = frames.index(b"<IDS|MSG>")
        header: Any = json.loads(frames[at + 2])
        parent: Any = json.loads(frames[at + 3])
    except (ValueError, IndexError):
        return False
    return header.get("msg_type") in OUTPUT_TYPES and parent.get("msg_id") == msg_id


def without_drive(path: str) -> str:
    """Take off the drive that JupyterLab puts before a path (``RTC:notebook.ipynb``)."""
    drive, colon, rest = path.partition(":")
    return rest.lstrip("/") if colon and "/" not in drive else path.lstrip("/")
