"""sockets: connection files are read and written whole; both sides are set up as a kernel's."""

from __future__ import annotations

import json
import socket
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from jupyter_client import BlockingKernelClient

from output_keeper.errors import ConnectionFileError, LaunchFailed
from output_keeper.keeper.sockets import (
    CHANNELS,
    IOPUB_SEND_HWM,
    PRIVATE_PORTS,
    ConnectionInfo,
    bind_front,
    connect_back,
    private_connection,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT_MS = 60_000
PUBLIC, SECRET = zmq.curve_keypair()

FILE: dict[str, Any] = {
    "transport": "tcp",
    "ip": "127.0.0.1",
    "shell_port": 20001,
    "iopub_port": 20002,
    "stdin_port": 20003,
    "control_port": 20004,
    "hb_port": 20005,
    "key": "a key, é",
    "signature_scheme": "hmac-sha256",
    "kernel_name": "python3",
}
CURVE = {"curve_publickey": PUBLIC.decode(), "curve_secretkey": SECRET.decode()}


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    ended = threading.Thread(target=made.term, daemon=True)
    ended.start()
    ended.join(30)
    if ended.is_alive():
        made.destroy(linger=0)
        pytest.fail("the ZMQ context does not terminate: a socket was left open")


@pytest.fixture
def free(tmp_path: Path) -> ConnectionInfo:
    """A connection on ports that nobody uses."""
    path = tmp_path / "free.json"
    path.write_text(json.dumps(FILE))
    found = private_connection(ConnectionInfo.load(path))
    found.release()
    return found


def written(folder: Path, content: object) -> Path:
    path = folder / "kernel-1.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("curve", [{}, CURVE])
def test_a_connection_file_comes_back_as_it_was(tmp_path: Path, curve: dict[str, str]) -> None:
    content = {**FILE, **curve, "jupyter_session": "a.ipynb", "nested": {"x": [1]}}
    info = ConnectionInfo.load(written(tmp_path, content))
    assert info.key == "a key, é".encode()
    assert info.extra == {"jupyter_session": "a.ipynb", "nested": {"x": [1]}}
    assert (info.curve_publickey, info.curve_secretkey) == ((PUBLIC, SECRET) if curve else (None, None))
    again = tmp_path / "again.json"
    info.write(again)
    assert json.loads(again.read_text()) == content == info.to_dict()
    assert ConnectionInfo.load(again) == info


def test_what_may_be_left_out(tmp_path: Path) -> None:
    optional = ("transport", "signature_scheme", "kernel_name")
    info = ConnectionInfo.load(written(tmp_path, {name: value for name, value in FILE.items() if name not in optional}))
    assert (info.transport, info.signature_scheme, info.kernel_name) == ("tcp", "hmac-sha256", "")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        *(({name: None}, name) for name in ("ip", "key", *(f"{channel}_port" for channel in CHANNELS))),
        ({"shell_port": "20001"}, "shell_port"),
        ({"hb_port": 0}, "hb_port"),
        ({"hb_port": 65536}, "hb_port"),
        ({"hb_port": True}, "hb_port"),
        ({"transport": "inproc"}, "transport"),
        ({"key": 3}, "key"),
        ({**CURVE, "curve_secretkey": None}, "curve_secretkey"),
        ({**CURVE, "curve_publickey": None}, "curve_publickey"),
        ({**CURVE, "curve_publickey": "short"}, "curve_publickey"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, Any], names: str) -> None:
    content = {name: value for name, value in {**FILE, **change}.items() if value is not None}
    path = written(tmp_path, content)
    with pytest.raises(ConnectionFileError, match=names) as raised:
        ConnectionInfo.load(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 100_000])
def test_a_file_that_is_no_object_is_named(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ConnectionFileError, match=str(path)):
        ConnectionInfo.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFileError, match=r"none\.json"):
        ConnectionInfo.load(tmp_path / "none.json")


def test_a_key_is_never_shown(tmp_path: Path) -> None:
    shown = repr(ConnectionInfo.load(written(tmp_path, {**FILE, **CURVE})))
    assert "a key" not in shown
    assert SECRET.decode() not in shown


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_a_written_file_is_private_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    info = ConnectionInfo.load(written(tmp_path, FILE))
    folder = tmp_path / "run"
    folder.mkdir()
    target = folder / "kernel.json"
    target.write_text("old")
    target.chmod(0o644)
    info.write(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(folder.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = written(tmp_path, {**FILE, "note": 1})
    info = ConnectionInfo.load(path)
    info.extra["note"] = object()
    before = path.read_bytes()
    with pytest.raises(TypeError):
        info.write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_jupyter_client_reads_what_is_written(tmp_path: Path) -> None:
    info = ConnectionInfo.load(written(tmp_path, {**FILE, **CURVE}))
    info.write(tmp_path / "out.json")
    client = BlockingKernelClient()
    client.load_connection_file(str(tmp_path / "out.json"))
    assert client.session.key == info.key
    assert (client.curve_publickey, client.curve_secretkey) == (PUBLIC, SECRET)
    assert [client._make_url(channel) for channel in CHANNELS] == [info.url(channel) for channel in CHANNELS]


def test_ipc_urls_are_jupyter_clients(tmp_path: Path) -> None:
    info = ConnectionInfo.load(written(tmp_path, {**FILE, "transport": "ipc", "ip": str(tmp_path / "k")}))
    assert info.url("shell") == f"ipc://{tmp_path}/k-20001"
    assert info.ipc_path("shell") == tmp_path / "k-20001"


def test_a_private_connection_holds_its_ports_until_released(tmp_path: Path) -> None:
    front = ConnectionInfo.load(written(tmp_path, {**FILE, **CURVE, "transport": "ipc", "note": 1}))
    private = private_connection(front)
    ports = [getattr(private, f"{channel}_port") for channel in CHANNELS]
    assert len(set(ports)) == len(CHANNELS)
    assert set(ports) <= set(PRIVATE_PORTS)
    assert (private.transport, private.ip) == ("tcp", "127.0.0.1")
    for same in ("key", "signature_scheme", "curve_publickey", "curve_secretkey", "kernel_name", "extra"):
        assert getattr(private, same) == getattr(front, same)
    for port in ports:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
    private.release()
    private.release()
    for port in ports:
        with socket.socket() as other:
            other.bind(("127.0.0.1", port))


def test_a_taken_port_is_named_and_nothing_stays_open(
    context: zmq.Context[zmq.Socket[bytes]], free: ConnectionInfo
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free.stdin_port))
        with pytest.raises(LaunchFailed, match="stdin"):
            bind_front(context, free)


@pytest.mark.skipif(not zmq.has("ipc"), reason="no ipc on this system")
class TestIpc:
    @pytest.fixture
    def info(self, tmp_path: Path) -> ConnectionInfo:
        return ConnectionInfo.load(written(tmp_path, {**FILE, "transport": "ipc", "ip": str(tmp_path / "k")}))

    def test_stale_files_are_replaced_and_none_stay(
        self, context: zmq.Context[zmq.Socket[bytes]], info: ConnectionInfo
    ) -> None:
        paths = [info.ipc_path(channel) for channel in CHANNELS]
        for path in paths:
            assert path is not None
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
        front = bind_front(context, info)
        assert [stat.S_IMODE(path.stat().st_mode) for path in paths if path] == [0o600] * 5
        front.close()
        assert not any(path.exists() for path in paths if path)

    def test_a_live_socket_is_not_taken_over(
        self, context: zmq.Context[zmq.Socket[bytes]], info: ConnectionInfo
    ) -> None:
        first = bind_front(context, info)
        with pytest.raises(LaunchFailed, match="in use"):
            bind_front(context, info)
        assert info.ipc_path("shell").exists()  # type: ignore[union-attr]
        first.close()

    def test_a_file_of_somebody_else_is_not_removed(
        self, context: zmq.Context[zmq.Socket[bytes]], info: ConnectionInfo
    ) -> None:
        path = info.ipc_path("iopub")
        assert path is not None
        path.write_text("precious")
        with pytest.raises(LaunchFailed, match="not a socket"):
            bind_front(context, info)
        assert path.read_text() == "precious"


@pytest.mark.parametrize("curve", [{}, {"curve_publickey": PUBLIC, "curve_secretkey": SECRET}])
def test_the_back_is_subscribed_before_the_kernel_speaks(
    context: zmq.Context[zmq.Socket[bytes]], free: ConnectionInfo, curve: dict[str, bytes]
) -> None:
    info = ConnectionInfo(**{**free.to_dict(), "key": free.key, **curve})
    back = connect_back(context, info, b"keeper")
    kernel = bind_front(context, info)
    assert kernel.iopub.poll(LIMIT_MS)
    assert kernel.iopub.recv() == b"\x01"
    kernel.iopub.send(b"first")
    assert back.iopub.poll(LIMIT_MS)
    assert back.iopub.recv() == b"first"
    for channel in ("shell", "stdin", "control"):
        ours, theirs = getattr(back, channel), getattr(kernel, channel)
        ours.send(b"hello")
        assert theirs.poll(LIMIT_MS)
        assert theirs.recv_multipart() == [b"keeper", b"hello"]
    back.close()
    back.close()
    kernel.close()
    kernel.close()


def test_curve_refuses_who_has_no_key(context: zmq.Context[zmq.Socket[bytes]], free: ConnectionInfo) -> None:
    info = ConnectionInfo(**{**free.to_dict(), "key": free.key, "curve_publickey": PUBLIC, "curve_secretkey": SECRET})
    front = bind_front(context, info)
    watched = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_SUCCEEDED
    monitor = front.shell.get_monitor_socket(watched)
    stranger = context.socket(zmq.DEALER)
    stranger.linger = 0
    stranger.connect(info.url("shell"))
    stranger.send(b"let me in")
    assert monitor.poll(LIMIT_MS)
    event = int.from_bytes(monitor.recv_multipart()[0][:2], sys.byteorder)
    assert event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    assert not front.shell.poll(0)
    stranger.close()
    front.shell.disable_monitor()
    monitor.close()
    front.close()


def test_a_slow_subscriber_loses_and_the_others_do_not(
    context: zmq.Context[zmq.Socket[bytes]], free: ConnectionInfo
) -> None:
    front = bind_front(context, free)
    slow, fast = context.socket(zmq.SUB), context.socket(zmq.SUB)
    slow.rcvhwm, fast.rcvhwm = 1, 0
    for each in (slow, fast):
        each.subscribe(b"")
        each.connect(free.url("iopub"))
        assert front.iopub.poll(LIMIT_MS)
        assert front.iopub.recv() == b"\x01"
    total = 2 * IOPUB_SEND_HWM
    payload = bytes(10_000)
    for number in range(total):
        front.iopub.send_multipart([str(number).encode(), payload])
        # In step with the fast one, so that only the slow one's queue fills.
        assert fast.poll(LIMIT_MS)
        assert fast.recv_multipart()[0] == str(number).encode()
    front.iopub.send(b"the end")
    assert fast.poll(LIMIT_MS)
    assert fast.recv() == b"the end"
    # The first mark that finds room in the queue comes behind everything that was kept.
    kept = 0
    while slow.poll(LIMIT_MS) and slow.recv_multipart() != [b"mark"]:
        kept += 1
        front.iopub.send(b"mark")
    assert IOPUB_SEND_HWM <= kept < total
    for each in (slow, fast):
        each.close()
    front.close()


def test_a_client_takes_over_its_own_identity(context: zmq.Context[zmq.Socket[bytes]], free: ConnectionInfo) -> None:
    front = bind_front(context, free)
    before, after = (context.socket(zmq.DEALER) for _ in range(2))
    for number, each in enumerate((before, after)):
        each.routing_id = b"client"
        each.linger = 0
        each.connect(free.url("shell"))
        each.send(str(number).encode())
        assert front.shell.poll(LIMIT_MS)
        assert front.shell.recv_multipart() == [b"client", str(number).encode()]
    front.shell.send_multipart([b"client", b"reply"])
    assert after.poll(LIMIT_MS)
    assert after.recv() == b"reply"
    before.close()
    after.close()
    front.close()
