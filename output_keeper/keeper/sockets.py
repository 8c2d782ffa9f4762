"""Connection files and the sockets on both sides of the keeper (messaging spec, "Connection files").

The **front** is what the launcher's connection file says and what clients connect to: the keeper binds it
as a kernel would. The **back** is a second connection, loopback tcp on ports of the keeper's choice, on
which the real kernel listens. Both have the same key, scheme and CURVE keys, so a message needs no new
signature on its way through.
"""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import tempfile
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import zmq

from output_keeper.errors import ConnectionFileError, LaunchFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHANNELS: Final = ("shell", "iopub", "stdin", "control", "hb")

CLOSE_LINGER_MS: Final = 1000
"""How long a closed front socket may still deliver; ipykernel's own value."""

IOPUB_SEND_HWM: Final = 4000
"""Messages kept for one slow iopub subscriber; beyond it that subscriber, and no other, loses messages.

Four times what a kernel's own socket has: a proxy turns a steady flow into bursts (a release of held
outputs, another thread's turn), and a client must not lose in those what it would have got directly. Not
unlimited, because a suspended client would then take all memory; what it misses is in the record.
"""

RECONNECT_MS: Final = 10
"""The back connects before the kernel listens; libzmq's 100 ms would add to every kernel's start."""

PRIVATE_PORTS: Final = range(10_000, 32_768)
"""Below every system's ephemeral ports: no outgoing connection can take a port between choice and bind, and
a back socket that retries on loopback cannot connect to itself."""

_Sockets = TypeVar("_Sockets")
_LOOPBACK: Final = "127.0.0.1"
_Z85_KEY_LENGTH: Final = 40


@dataclass(frozen=True)
class ConnectionInfo:
    """A connection file's content; ``extra`` holds the fields that are not known here.

    ``curve_publickey`` and ``curve_secretkey`` are Z85 text as bytes, both or neither: the kernel's own
    pair, which jupyter_client gives to clients as their pair too.
    """

    transport: str
    ip: str
    shell_port: int
    iopub_port: int
    stdin_port: int
    control_port: int
    hb_port: int
    key: bytes = field(repr=False)
    signature_scheme: str = "hmac-sha256"
    curve_publickey: bytes | None = None
    curve_secretkey: bytes | None = field(default=None, repr=False)
    kernel_name: str = ""
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ConnectionInfo:
        """Read a connection file. Raises ConnectionFileError naming the file and the field."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConnectionFileError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise ConnectionFileError(f"{path}: is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ConnectionFileError(f"{path}: is not a JSON object")
        return _Reader(path, content).read()

    def url(self, channel: str) -> str:
        """Give the ZMQ endpoint of ``shell``, ``iopub``, ``stdin``, ``control`` or ``hb``."""
        port: int = getattr(self, f"{channel}_port")
        if self.transport == "ipc":
            return f"ipc://{self.ip}-{port}"
        return f"tcp://{self.ip}:{port}"

    def ipc_path(self, channel: str) -> Path | None:
        """Give the socket file of a channel; None for tcp."""
        return Path(self.url(channel).removeprefix("ipc://")) if self.transport == "ipc" else None

    def to_dict(self) -> dict[str, Any]:
        """Give the file's content: keys as text, absent CURVE keys left out, unknown fields kept."""
        known = {each.name: getattr(self, each.name) for each in fields(ConnectionInfo) if each.name != "extra"}
        return self.extra | {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in known.items()
            if value is not None
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file: whole or not at all, mode 0600. Raises OSError."""
        target = Path(path)
        # mkstemp makes the file 0600; the key is never readable by anybody else.
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self.to_dict(), file, indent=2)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class PrivateConnection(ConnectionInfo):
    """The back's connection, its ports held so that nobody else takes them before the kernel is launched."""

    held: tuple[socket.socket, ...] = field(default=(), repr=False, compare=False)

    def release(self) -> None:
        """Let go of the ports, right before the kernel that will bind them is launched. Idempotent."""
        for each in self.held:
            each.close()


def private_connection(front: ConnectionInfo) -> PrivateConnection:
    """Choose five free loopback tcp ports for the kernel behind ``front``, with the same keys.

    The ports are held until ``release()``. Between that and the kernel's own bind somebody else can still
    take one: the kernel then ends at once, and the caller starts again with a new private connection.
    Raises LaunchFailed when no port is free.
    """
    held = []
    try:
        for _, reserved in zip(CHANNELS, _free_sockets(), strict=False):
            held.append(reserved)
    except LaunchFailed:
        for each in held:
            each.close()
        raise
    ports = {f"{name}_port": each.getsockname()[1] for name, each in zip(CHANNELS, held, strict=True)}
    same = {each.name: getattr(front, each.name) for each in fields(ConnectionInfo)}
    return PrivateConnection(**{**same, **ports, "transport": "tcp", "ip": _LOOPBACK, "held": tuple(held)})


@dataclass(frozen=True)
class FrontSockets:
    """The five bound sockets that clients see. Owned by whoever closes them; used by one thread at a time."""

    info: ConnectionInfo
    shell: zmq.Socket[bytes]
    iopub: zmq.Socket[bytes]
    stdin: zmq.Socket[bytes]
    control: zmq.Socket[bytes]
    hb: zmq.Socket[bytes]

    def close(self) -> None:
        """Close all and remove ipc socket files; what is queued has CLOSE_LINGER_MS to go out. Idempotent."""
        for channel in CHANNELS:
            bound: zmq.Socket[bytes] = getattr(self, channel)
            if bound.closed:
                continue
            bound.close()
            path = self.info.ipc_path(channel)
            if path is not None:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class BackSockets:
    """The five sockets connected to the kernel.

    ``monitors`` tells of connects and disconnects (zmq_socket_monitor(3)), of each channel but hb. Whoever
    uses the sockets has to read them: libzmq's I/O thread waits for a monitor that is full.
    """

    info: ConnectionInfo
    shell: zmq.Socket[bytes]
    iopub: zmq.Socket[bytes]
    stdin: zmq.Socket[bytes]
    control: zmq.Socket[bytes]
    hb: zmq.Socket[bytes]
    monitors: dict[str, zmq.Socket[bytes]]

    def close(self) -> None:
        """Close all at once; requests that the kernel did not take are dropped. Idempotent."""
        for channel in CHANNELS:
            connected: zmq.Socket[bytes] = getattr(self, channel)
            if connected.closed:
                continue
            if channel in self.monitors:
                connected.disable_monitor()
                self.monitors[channel].close(linger=0)
            connected.close(linger=0)


def bind_front(context: zmq.Context[zmq.Socket[bytes]], info: ConnectionInfo) -> FrontSockets:
    """Bind the five channels as a kernel does. Raises LaunchFailed naming the channel it fails for."""

    def bind(channel: str, kind: int) -> zmq.Socket[bytes]:
        made = context.socket(kind)
        opened.append(made)
        made.linger = CLOSE_LINGER_MS
        if info.curve_secretkey is not None and info.curve_publickey is not None:
            made.curve_secretkey = info.curve_secretkey
            made.curve_publickey = info.curve_publickey
            made.curve_server = True
        if kind == zmq.ROUTER:
            # A client that reconnects under its identity takes over from its dead connection (ipykernel
            # does so).
            made.router_handover = True
            # Replies are bounded by the client's own requests, and a lost one leaves it waiting for ever.
            made.sndhwm = 0
        else:
            # Verbose: every subscription is told to us, not only the first one of a topic, for its welcome.
            made.xpub_verbose = True
            made.sndhwm = IOPUB_SEND_HWM
        path = info.ipc_path(channel)
        if path is not None:
            _remove_stale(path)
        try:
            made.bind(info.url(channel))
        except zmq.ZMQError as error:
            raise LaunchFailed(
                f"cannot bind {channel} at {info.url(channel)}: {error.strerror}",
                hint="another kernel may use this connection file's addresses",
            ) from error
        if path is not None:
            path.chmod(0o600)
        return made

    def bind_all() -> FrontSockets:
        return FrontSockets(
            info=info,
            shell=bind("shell", zmq.ROUTER),
            iopub=bind("iopub", zmq.XPUB),
            stdin=bind("stdin", zmq.ROUTER),
            control=bind("control", zmq.ROUTER),
            hb=bind("hb", zmq.ROUTER),
        )

    opened: list[zmq.Socket[bytes]] = []
    return _all_or_none(bind_all, opened)


def connect_back(
    context: zmq.Context[zmq.Socket[bytes]], info: ConnectionInfo, identity: bytes | None = None
) -> BackSockets:
    """Connect to where the kernel will listen. Call it before the launch, or the first output is lost.

    ``identity`` (1 to 255 bytes, not starting with a zero byte; None makes one up) is the keeper's routing
    id on shell, control *and* stdin: a kernel sends an input_request to the route its execute_request came
    by, and a stdin socket under another id would never get it.
    """

    def connect(channel: str, kind: int) -> zmq.Socket[bytes]:
        made = context.socket(kind)
        opened.append(made)
        made.linger = 0
        made.reconnect_ivl = RECONNECT_MS
        if channel != "hb":
            # libzmq's I/O thread takes what the kernel sends whatever this process is doing: a kernel's
            # XPUB drops silently for a subscriber that lags.
            made.rcvhwm = 0
        if kind == zmq.SUB:
            made.subscribe(b"")
        else:
            made.routing_id = routing_id
        if info.curve_publickey is not None and info.curve_secretkey is not None:
            made.curve_secretkey = info.curve_secretkey
            made.curve_publickey = info.curve_publickey
            made.curve_serverkey = info.curve_publickey
        if channel != "hb":
            monitors[channel] = made.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)
            opened.append(monitors[channel])
        made.connect(info.url(channel))
        return made

    def connect_all() -> BackSockets:
        return BackSockets(
            info=info,
            shell=connect("shell", zmq.DEALER),
            iopub=connect("iopub", zmq.SUB),
            stdin=connect("stdin", zmq.DEALER),
            control=connect("control", zmq.DEALER),
            hb=connect("hb", zmq.DEALER),
            monitors=monitors,
        )

    routing_id = identity or f"output-keeper-{uuid.uuid4().hex}".encode()
    opened: list[zmq.Socket[bytes]] = []
    monitors: dict[str, zmq.Socket[bytes]] = {}
    return _all_or_none(connect_all, opened)


@dataclass(frozen=True)
class _Reader:
    """Checks the fields of one connection file as it takes them out."""

    path: str | os.PathLike[str]
    content: dict[str, Any]

    def read(self) -> ConnectionInfo:
        transport = self._text("transport", "tcp")
        if transport not in ("tcp", "ipc"):
            raise self._wrong("transport", f"is {transport!r}, not 'tcp' or 'ipc'")
        publickey, secretkey = self._curve_key("curve_publickey"), self._curve_key("curve_secretkey")
        if (publickey is None) != (secretkey is None):
            missing = "curve_publickey" if publickey is None else "curve_secretkey"
            raise self._wrong(missing, "is missing, but its other half is there")
        names = {each.name for each in fields(ConnectionInfo)} - {"extra"}
        return ConnectionInfo(
            transport=transport,
            ip=self._text("ip"),
            shell_port=self._port("shell_port"),
            iopub_port=self._port("iopub_port"),
            stdin_port=self._port("stdin_port"),
            control_port=self._port("control_port"),
            hb_port=self._port("hb_port"),
            key=self._text("key").encode(),
            signature_scheme=self._text("signature_scheme", "hmac-sha256"),
            curve_publickey=publickey,
            curve_secretkey=secretkey,
            kernel_name=self._text("kernel_name", ""),
            extra={name: value for name, value in self.content.items() if name not in names},
        )

    def _text(self, name: str, default: str | None = None) -> str:
        value = self.content.get(name, default)
        if value is None:
            raise self._wrong(name, "is missing")
        if not isinstance(value, str):
            raise self._wrong(name, "is not a string")
        return value

    def _port(self, name: str) -> int:
        value = self.content.get(name)
        if value is None:
            raise self._wrong(name, "is missing")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**16:
            raise self._wrong(name, f"is {value!r}, not a port")
        return value

    def _curve_key(self, name: str) -> bytes | None:
        if self.content.get(name) is None:
            return None
        value = self._text(name).encode()
        if len(value) != _Z85_KEY_LENGTH:
            raise self._wrong(name, f"is not a Z85 key of {_Z85_KEY_LENGTH} characters")
        return value

    def _wrong(self, name: str, what: str) -> ConnectionFileError:
        return ConnectionFileError(f"{self.path}: {name} {what}")


def _free_sockets() -> Iterator[socket.socket]:
    """Bound, unconnected sockets on free private ports, each held by whoever takes it."""
    for port in random.sample(PRIVATE_PORTS, len(PRIVATE_PORTS)):
        candidate = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            candidate.bind((_LOOPBACK, port))
        except OSError:
            candidate.close()
        else:
            yield candidate
    raise LaunchFailed(f"no free port on {_LOOPBACK} from {PRIVATE_PORTS.start} to {PRIVATE_PORTS.stop - 1}")


def _remove_stale(path: Path) -> None:
    """Remove the socket file of a dead process. Raises LaunchFailed when it is in use or no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise LaunchFailed(f"{path} is in the way: it is not a socket")
    if hasattr(socket, "AF_UNIX"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.connect(str(path))
            raise LaunchFailed(f"{path} is in use", hint="another kernel uses this connection file's addresses")
    path.unlink(missing_ok=True)


def _all_or_none(open_all: Callable[[], _Sockets], opened: list[zmq.Socket[bytes]]) -> _Sockets:
    try:
        return open_all()
    except BaseException:
        for each in reversed(opened):
            each.close(linger=0)
        raise
