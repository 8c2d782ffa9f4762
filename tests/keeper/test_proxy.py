"""proxy: what goes in comes out, to the right one, in order; and nothing stops it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from jupyter_client import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from jupyter_client.session import Session

from output_keeper.keeper.child import Child
from output_keeper.keeper.grants import Grants, Owner
from output_keeper.keeper.proxy import Channel, Direction, Proxy
from output_keeper.keeper.sockets import (
    CHANNELS,
    BackSockets,
    ConnectionInfo,
    FrontSockets,
    PrivateConnection,
    bind_front,
    connect_back,
    private_connection,
)
from output_keeper.protocol.messages import DELIMITER, OUTPUT_TYPES, Signer, envelope, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIMIT = 60
LIMIT_MS = LIMIT * 1000
KEY = b"the key of this connection"

Context = zmq.Context[zmq.Socket[bytes]]
Frames = list[bytes]


@pytest.fixture
def context() -> Iterator[Context]:
    made: Context = zmq.Context()
    yield made
    ended = threading.Thread(target=made.term, daemon=True)
    ended.start()
    ended.join(30)
    if ended.is_alive():
        made.destroy(linger=0)
        pytest.fail("the ZMQ context does not terminate: a socket was left open")


@dataclass
class Keeper:
    """A proxy with what its listeners heard, and clients in a context of their own."""

    context: Context
    front: ConnectionInfo
    back: PrivateConnection
    grants: Grants
    folder: Path
    heard: threading.Condition = field(default_factory=threading.Condition)
    taps: list[tuple[Channel, Direction, Frames]] = field(default_factory=list)
    decisions: list[tuple[str, Owner]] = field(default_factory=list)
    sockets: list[zmq.Socket[bytes]] = field(default_factory=list)
    clients: list[BlockingKernelClient] = field(default_factory=list)
    kernels: list[BareKernel] = field(default_factory=list)
    child: Child | None = None
    proxy: Proxy = field(init=False)
    front_sockets: FrontSockets = field(init=False)
    back_sockets: BackSockets = field(init=False)

    def start(self) -> None:
        self.front_sockets = bind_front(self.context, self.front)
        self.back_sockets = connect_back(self.context, self.back)
        self.proxy = Proxy(
            self.context,
            self.front_sockets,
            self.back_sockets,
            signer=Signer(self.front.key, self.front.signature_scheme),
            grants=self.grants,
            tap=self.tap,
            decided=self.decided,
        )
        self.proxy.start()

    def launch(self, *argv: str) -> Child:
        front_file, private_file = self.folder / "front.json", self.folder / "private.json"
        self.front.write(front_file)
        self.back.write(private_file)
        self.back.release()
        self.child = Child(
            argv or [sys.executable, "-m", "ipykernel_launcher", "-f", str(front_file)],
            env=dict(os.environ),
            connection_file=front_file,
            private_file=private_file,
            on_exit=lambda _: self.proxy.stop_when_drained(),
        )
        return self.child

    def tap(self, channel: Channel, direction: Direction, frames: Frames) -> None:
        with self.heard:
            self.taps.append((channel, direction, frames))
            self.heard.notify_all()

    def decided(self, msg_id: str, owner: Owner) -> None:
        with self.heard:
            self.decisions.append((msg_id, owner))
            self.heard.notify_all()

    def tapped(self, channel: Channel, direction: Direction) -> list[Frames]:
        return [frames for each, way, frames in list(self.taps) if (each, way) == (channel, direction)]

    def wait_for(self, condition: Callable[[], object]) -> None:
        with self.heard:
            assert self.heard.wait_for(condition, LIMIT), "what was waited for did not happen"

    def wait_for_idle(self, msg_id: str) -> None:
        """Wait until the kernel's idle for a request has come by."""

        def idle() -> bool:
            return any(
                envelope(frames).parent_id == msg_id and b'"idle"' in frames[-1]
                for frames in self.tapped(Channel.IOPUB, Direction.TO_CLIENT)
            )

        self.wait_for(idle)

    def socket(self, channel: str, kind: int, *, identity: bytes = b"", topic: bytes = b"") -> zmq.Socket[bytes]:
        """A raw client socket on the front."""
        made = self.context.socket(kind)
        self.sockets.append(made)
        made.linger = 0
        made.rcvhwm = made.sndhwm = 0
        if self.front.curve_publickey is not None and self.front.curve_secretkey is not None:
            made.curve_publickey = made.curve_serverkey = self.front.curve_publickey
            made.curve_secretkey = self.front.curve_secretkey
        if identity:
            made.routing_id = identity
        if kind == zmq.SUB:
            made.subscribe(topic)
        made.connect(self.front.url(channel))
        return made

    def subscriber(self, topic: bytes = b"") -> zmq.Socket[bytes]:
        """A raw iopub subscriber whose subscription has arrived."""
        before = self.subscriptions()
        made = self.socket("iopub", zmq.SUB, topic=topic)
        until(lambda: self.subscriptions() > before)
        return made

    def subscriptions(self) -> int:
        count: int = self.proxy.stats()["messages"]["iopub"]["to_kernel"]
        return count

    def client(self) -> BlockingKernelClient:
        """A client whose kernel has answered.

        Not by ``wait_for_ready``: without a KernelManager it calls a kernel dead that takes over a second to start.
        """
        client = BlockingKernelClient()
        client.load_connection_info(self.front.to_dict())
        self.clients.append(client)
        before = self.subscriptions()
        client.start_channels()
        until(lambda: self.subscriptions() > before)
        msg_id = client.kernel_info()
        while client.get_shell_msg(timeout=LIMIT)["parent_header"].get("msg_id") != msg_id:
            pass
        return client

    def close(self) -> None:
        for client in self.clients:
            client.stop_channels()
            client.context.term()
        for each in self.sockets:
            each.close()
        for kernel in self.kernels:
            kernel.sockets.close()
        if self.child is not None:
            self.child.kill()
            self.child.wait(LIMIT)
        self.back.release()
        self.proxy.stop()
        self.proxy.join(LIMIT)
        assert not self.proxy.is_alive()


@pytest.fixture
def keepers(context: Context, tmp_path: Path) -> Iterator[Callable[..., Keeper]]:
    made: list[Keeper] = []

    def make(*, expect: bool = False, hold_for: float = LIMIT, transport: str = "tcp", **extra: Any) -> Keeper:
        path = tmp_path / "launcher.json"
        ip = str(tmp_path / "k") if transport == "ipc" else "127.0.0.1"
        write_connection_file(str(path), ip=ip, transport=transport, key=KEY, **extra)
        front = ConnectionInfo.load(path)
        # All ports are held until they are bound: other tests choose from the same ones.
        ports, back = private_connection(front), private_connection(front)
        if transport == "tcp":
            front = ConnectionInfo(**{**ports.to_dict(), "key": KEY, **extra})
        ports.release()
        keeper = Keeper(context, front, back, Grants(expect, hold_for), tmp_path)
        keeper.start()
        made.append(keeper)
        return keeper

    yield make
    for keeper in made:
        keeper.close()


class BareKernel:
    """A kernel's five sockets and nothing behind them: the test says what it does."""

    def __init__(self, keeper: Keeper) -> None:
        keeper.back.release()
        self.sockets = bind_front(keeper.context, keeper.back)
        keeper.kernels.append(self)
        assert self.sockets.iopub.poll(LIMIT_MS)
        assert self.sockets.iopub.recv() == b"\x01"

    def take(self, channel: str) -> Frames:
        """Receive a request as the kernel sees it: keeper's identity, client's identity, message."""
        return receive(getattr(self.sockets, channel))


@pytest.fixture
def bare(keepers: Callable[..., Keeper]) -> tuple[Keeper, BareKernel]:
    keeper = keepers()
    return keeper, BareKernel(keeper)


def receive(socket: zmq.Socket[bytes]) -> Frames:
    assert socket.poll(LIMIT_MS), "no message came"
    return socket.recv_multipart()


def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody tells of; the limit is for a broken program, not for a slow machine."""
    ticks = threading.Event()
    for _ in range(LIMIT * 100):
        if condition():
            return
        ticks.wait(0.01)
    pytest.fail("what was waited for did not happen")


def everything(socket: zmq.Socket[bytes], last: Callable[[Frames], bool]) -> list[Frames]:
    """All that a socket receives, up to and with the first message for which ``last`` is true."""
    received = [receive(socket)]
    while not last(received[-1]):
        received.append(receive(socket))
    return received


def is_idle_of(msg_id: str) -> Callable[[Frames], bool]:
    return lambda frames: b'"idle"' in frames[-1] and envelope(frames).parent_id == msg_id


def request(session: Session, msg_type: str, content: dict[str, Any], **parts: Any) -> tuple[str, Frames]:
    """A signed request's msg_id and frames."""
    message = session.msg(msg_type, content, metadata=parts.get("metadata"))
    frames = session.serialize(message) + list(parts.get("buffers", []))
    return message["header"]["msg_id"], frames


def execute(session: Session, code: str, cell_id: str | None = None) -> tuple[str, Frames]:
    content = {
        "code": code,
        "silent": False,
        "store_history": True,
        "user_expressions": {},
        "allow_stdin": True,
        "stop_on_error": True,
    }
    return request(session, "execute_request", content, metadata={"cellId": cell_id} if cell_id else {})


def signed(*parts: bytes, buffers: Frames | None = None) -> Frames:
    return [DELIMITER, Signer(KEY).sign(parts), *parts, *(buffers or [])]


def header(msg_type: str, session: str = "s", msg_id: str | None = None) -> bytes:
    return json.dumps(
        {"msg_id": msg_id or uuid.uuid4().hex, "msg_type": msg_type, "session": session, "version": "5.3"}
    ).encode()


# Frames a proxy must not touch, whatever they are.
CORPUS: dict[str, Frames] = {
    "a message": signed(header("stream"), b"{}", b"{}", b'{"name":"stdout","text":"x"}'),
    "binary buffers": signed(
        header("comm_msg"), b"{}", b"{}", b"{}", buffers=[bytes(range(256)) * 400, b"", b"\0", DELIMITER]
    ),
    "several idents": [b"a", b"", b"b", *signed(header("stream"), b"{}", b"{}", b"{}")],
    "a bad signature": [DELIMITER, b"0" * 64, header("execute_request"), b"{}", b'{"cellId":"c"}', b"{}"],
    "truncated": [DELIMITER, b"0" * 64, header("execute_request")],
    "only a delimiter": [DELIMITER],
    "no delimiter": [b"one", b"two"],
    "one empty frame": [b""],
    "not UTF-8": signed(b"\xff\xfe", b"\xc3", b"\x80", b"\xff"),
    "not JSON": signed(b"{", b"[", b"}", b"nul"),
    "not objects": signed(b"[]", b"3", b'"x"', b"true"),
    "an execute_request without content": signed(header("execute_request"), b"{}", b"[]", b"null"),
    "deep JSON": signed(header("execute_request"), b"{}", b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b"{}"),
    "many frames": [str(number).encode() for number in range(2000)],
}


@pytest.mark.parametrize("expect", [False, True])
def test_every_frame_arrives_as_it_was_sent(keepers: Callable[..., Keeper], expect: bool) -> None:
    keeper = keepers(expect=expect)
    kernel = BareKernel(keeper)
    subscriber = keeper.subscriber()
    identity = b"client \x01\xff"
    for channel in (Channel.SHELL, Channel.CONTROL, Channel.STDIN):
        client = keeper.socket(channel.value, zmq.DEALER, identity=identity)
        for name, frames in CORPUS.items():
            client.send_multipart(frames)
            seen = kernel.take(channel.value)
            assert seen[1:] == [identity, *frames], name
            getattr(kernel.sockets, channel.value).send_multipart([seen[0], identity, *frames])
            assert receive(client) == frames, name
        keeper.wait_for(lambda channel=channel: len(keeper.tapped(channel, Direction.TO_CLIENT)) == len(CORPUS))
        for direction in Direction:
            assert keeper.tapped(channel, direction) == [[identity, *frames] for frames in CORPUS.values()]
    for name, frames in CORPUS.items():
        kernel.sockets.iopub.send_multipart(frames)
        assert receive(subscriber) == frames, name
    keeper.wait_for(lambda: len(keeper.tapped(Channel.IOPUB, Direction.TO_CLIENT)) == len(CORPUS))
    assert keeper.tapped(Channel.IOPUB, Direction.TO_CLIENT) == list(CORPUS.values())
    stats = keeper.proxy.stats()
    assert (stats["errors"], stats["tap_errors"]) == (0, 0)
    assert stats["messages"]["shell"] == {"to_kernel": len(CORPUS), "to_client": len(CORPUS)}
    assert stats["bytes"]["iopub"]["to_client"] == sum(len(b"".join(frames)) for frames in CORPUS.values())
    assert (stats["malformed"] > 0, stats["bad_signatures"] > 0) == (expect, expect)


def test_a_hundred_megabytes_pass_on_every_channel(bare: tuple[Keeper, BareKernel]) -> None:
    keeper, kernel = bare
    payload = os.urandom(1024) * 1024 * 100
    frames = signed(header("comm_msg"), b"{}", b"{}", b"{}", buffers=[payload])
    for channel in ("shell", "control", "stdin"):
        client = keeper.socket(channel, zmq.DEALER, identity=b"client")
        client.send_multipart(frames, copy=False)
        route, identity, *seen = kernel.take(channel)
        assert seen == frames
        getattr(kernel.sockets, channel).send_multipart([route, identity, *frames], copy=False)
        assert receive(client) == frames
        keeper.taps.clear()
    subscriber = keeper.subscriber()
    kernel.sockets.iopub.send_multipart(frames, copy=False)
    assert receive(subscriber) == frames


def test_a_heartbeat_is_the_kernels_own(bare: tuple[Keeper, BareKernel]) -> None:
    keeper, kernel = bare
    client = keeper.socket("hb", zmq.REQ)
    client.send(b"ping")
    assert not client.poll(0)
    kernel.sockets.hb.send_multipart(kernel.take("hb"))
    assert receive(client) == [b"ping"]
    assert keeper.taps == []
    assert keeper.proxy.stats()["messages"]["hb"] == {"to_kernel": 1, "to_client": 1}


def test_replies_go_to_who_asked(bare: tuple[Keeper, BareKernel]) -> None:
    keeper, kernel = bare
    clients = {name: keeper.socket("shell", zmq.DEALER, identity=name) for name in (b"a", b"b")}
    asked = []
    for name, client in clients.items():
        client.send_multipart([DELIMITER, b"from " + name])
        asked.append(kernel.take("shell"))
    for route in reversed(asked):
        kernel.sockets.shell.send_multipart(route)
    for name, client in clients.items():
        assert receive(client) == [DELIMITER, b"from " + name]


def test_a_request_is_tapped_before_the_kernel_has_it(keepers: Callable[..., Keeper]) -> None:
    keeper = keepers()
    kernel = BareKernel(keeper)
    client = keeper.socket("shell", zmq.DEALER, identity=b"client")
    for number in range(200):
        client.send_multipart([str(number).encode()])
        kernel.take("shell")
        assert keeper.taps[-1] == (Channel.SHELL, Direction.TO_KERNEL, [b"client", str(number).encode()])


def test_a_failing_listener_does_not_stop_the_forwarding(
    keepers: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keepers(expect=True)
    kernel = BareKernel(keeper)

    def fail(*_: object) -> None:
        raise RuntimeError("the listener is broken")

    monkeypatch.setattr(keeper.proxy, "_tap", fail)
    monkeypatch.setattr(keeper.proxy, "_decided", fail)
    client = keeper.socket("shell", zmq.DEALER, identity=b"client")
    frames = signed(header("execute_request"), b"{}", b"{}", b"{}")
    client.send_multipart(frames)
    seen = kernel.take("shell")
    assert seen[2:] == frames
    kernel.sockets.shell.send_multipart(seen)
    assert receive(client) == frames
    until(lambda: keeper.proxy.stats()["tap_errors"] == 3)


def test_a_kernel_that_takes_nothing_holds_up_its_channel_alone(bare: tuple[Keeper, BareKernel]) -> None:
    keeper, kernel = bare
    shell = keeper.socket("shell", zmq.DEALER, identity=b"client")
    control = keeper.socket("control", zmq.DEALER, identity=b"client")
    total = 4000
    payload = bytes(20_000)
    for number in range(total):
        shell.send_multipart([str(number).encode(), payload])
    until(lambda: keeper.proxy._stalled)
    stalled_at = keeper.proxy.stats()["messages"]["shell"]["to_kernel"]
    for number in range(20):
        control.send_multipart([b"control", str(number).encode()])
        kernel.sockets.control.send_multipart(kernel.take("control"))
        assert receive(control) == [b"control", str(number).encode()]
    assert keeper.proxy.stats()["messages"]["shell"]["to_kernel"] == stalled_at < total
    assert [kernel.take("shell")[2] for _ in range(total)] == [str(number).encode() for number in range(total)]
    assert len(keeper.tapped(Channel.SHELL, Direction.TO_KERNEL)) == total
    assert not keeper.proxy._stalled


def test_a_flood_on_iopub_does_not_starve_shell(keepers: Callable[..., Keeper], monkeypatch: Any) -> None:
    keeper = keepers()
    kernel = BareKernel(keeper)
    monkeypatch.setattr(keeper.proxy, "_tap", lambda *_: None)
    client = keeper.socket("shell", zmq.DEALER, identity=b"client")
    enough = threading.Event()

    def flood() -> None:
        frames = signed(header("stream"), b"{}", b"{}", b"{}")
        while not enough.is_set():
            kernel.sockets.iopub.send_multipart(frames)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        for number in range(50):
            client.send_multipart([b"ask", str(number).encode()])
            kernel.sockets.shell.send_multipart(kernel.take("shell"))
            assert receive(client) == [b"ask", str(number).encode()]
    finally:
        enough.set()
        flooding.join()


class TestWelcome:
    def test_none_from_a_kernel_without(self, bare: tuple[Keeper, BareKernel]) -> None:
        keeper, kernel = bare
        subscriber = keeper.subscriber()
        frames = signed(header("status"), b"{}", b"{}", b'{"note":"\\"iopub_welcome\\""}')
        kernel.sockets.iopub.send_multipart(frames)
        assert receive(subscriber) == frames

    def test_who_came_before_the_kernel_gets_its_own(self, bare: tuple[Keeper, BareKernel]) -> None:
        keeper, kernel = bare
        subscriber, picky = keeper.subscriber(), keeper.subscriber(b"stream")
        welcome = signed(header("iopub_welcome", "kernel"), b"{}", b"{}", b'{"subscription":""}')
        kernel.sockets.iopub.send_multipart(welcome)
        topic, *rest = receive(picky)
        assert topic == b"stream"
        assert parse(rest, Signer(KEY)).content == {"subscription": "stream"}
        assert {tuple(receive(subscriber)) for _ in range(2)} == {tuple(welcome), (topic, *rest)}

    def test_who_comes_late_gets_one_like_it(self, bare: tuple[Keeper, BareKernel]) -> None:
        keeper, kernel = bare
        own = signed(header("iopub_welcome", "kernel", "id"), b"{}", b"{}", b'{"subscription":""}')
        kernel.sockets.iopub.send_multipart(own)
        keeper.wait_for(lambda: keeper.tapped(Channel.IOPUB, Direction.TO_CLIENT))
        keeper.subscriber(b"\xff")
        msg_ids = {"id"}
        for topic in (b"", b"", b"stream", b"stream"):
            frames = receive(keeper.socket("iopub", zmq.SUB, topic=topic))
            assert frames[: frames.index(DELIMITER)] == ([topic] if topic else [])
            message = parse(frames, Signer(KEY))
            assert (message.msg_type, message.session) == ("iopub_welcome", "kernel")
            assert (message.parent_header, message.content) == ({}, {"subscription": topic.decode()})
            msg_ids.add(message.msg_id)
        assert len(msg_ids) == 5
        assert keeper.proxy.stats()["errors"] == 0

    def test_a_forged_one_starts_nothing(self, bare: tuple[Keeper, BareKernel]) -> None:
        keeper, kernel = bare
        forged = [DELIMITER, b"0" * 64, header("iopub_welcome"), b"{}", b"{}", b"{}"]
        kernel.sockets.iopub.send_multipart(forged)
        keeper.wait_for(lambda: keeper.tapped(Channel.IOPUB, Direction.TO_CLIENT))
        subscriber = keeper.subscriber()
        kernel.sockets.iopub.send(b"next")
        assert receive(subscriber) == [b"next"]


class TestGrants:
    """Through real sockets and a real kernel."""

    OUTPUTS = (
        "import sys\n"
        "from IPython.display import display, clear_output\n"
        "print('one', flush=True)\n"
        "display({'text/plain': 'two'}, raw=True)\n"
        "clear_output()\n"
        "print('three', file=sys.stderr, flush=True)\n"
        "4"
    )

    @staticmethod
    def of(keeper: Keeper, msg_id: str) -> list[Frames]:
        return [
            frames
            for frames in keeper.tapped(Channel.IOPUB, Direction.TO_CLIENT)
            if envelope(frames).parent_id == msg_id
        ]

    def run(self, keeper: Keeper, cell_id: str | None) -> tuple[str, zmq.Socket[bytes], Session]:
        subscriber = keeper.subscriber()
        keeper.launch()
        keeper.client()
        session = Session(key=KEY)
        shell = keeper.socket("shell", zmq.DEALER, identity=session.bsession)
        msg_id, frames = execute(session, self.OUTPUTS, cell_id)
        shell.send_multipart(frames)
        keeper.wait_for_idle(msg_id)
        assert parse(receive(shell), Signer(KEY)).content["status"] == "ok"
        return msg_id, subscriber, session

    def received(self, subscriber: zmq.Socket[bytes], msg_id: str) -> list[Frames]:
        return [frames for frames in everything(subscriber, is_idle_of(msg_id)) if envelope(frames).parent_id == msg_id]

    def test_granted_outputs_never_reach_a_client(self, keepers: Callable[..., Keeper]) -> None:
        keeper = keepers(expect=True)
        msg_id, subscriber, _ = self.run(keeper, "cell")
        assert (msg_id, Owner.GRANTED) not in keeper.decisions
        assert keeper.proxy.stats()["held"] > 0
        keeper.proxy.grant(msg_id)
        keeper.proxy.grant(msg_id)
        keeper.proxy.release(msg_id)
        said = self.of(keeper, msg_id)
        others = [frames for frames in said if envelope(frames).msg_type not in OUTPUT_TYPES]
        assert self.received(subscriber, msg_id) == others
        assert [each for each in keeper.decisions if each[0] == msg_id] == [(msg_id, Owner.GRANTED)]
        stats = keeper.proxy.stats()
        assert (stats["held"], stats["held_bytes"]) == (0, 0)
        assert stats["withheld"] == len(said) - len(others) == 5

    def test_released_outputs_come_whole_and_in_order(self, keepers: Callable[..., Keeper]) -> None:
        keeper = keepers(expect=True)
        msg_id, subscriber, _ = self.run(keeper, "cell")
        keeper.proxy.release(msg_id)
        assert self.received(subscriber, msg_id) == self.of(keeper, msg_id)
        assert keeper.decisions[-1] == (msg_id, Owner.RELEASED)

    def test_nobody_asking_is_a_release(self, keepers: Callable[..., Keeper]) -> None:
        keeper = keepers(expect=True, hold_for=0.05)
        msg_id, subscriber, session = self.run(keeper, "cell")
        assert self.received(subscriber, msg_id) == self.of(keeper, msg_id)
        again, frames = execute(session, "5", "cell")
        keeper.socket("shell", zmq.DEALER, identity=b"again").send_multipart(frames)
        keeper.wait_for(lambda: (again, Owner.RELEASED) in keeper.decisions)
        keeper.wait_for_idle(again)
        assert self.received(subscriber, again) == self.of(keeper, again)

    @pytest.mark.parametrize(("expect", "cell_id"), [(True, None), (False, "cell")])
    def test_nothing_is_held_without_cell_or_room(
        self, keepers: Callable[..., Keeper], expect: bool, cell_id: str | None
    ) -> None:
        keeper = keepers(expect=expect)
        msg_id, subscriber, _ = self.run(keeper, cell_id)
        assert self.received(subscriber, msg_id) == self.of(keeper, msg_id)
        assert ((msg_id, Owner.RELEASED) in keeper.decisions) == expect

    def test_what_an_output_widget_captures_is_not_held(self, keepers: Callable[..., Keeper]) -> None:
        keeper = keepers(expect=True)
        kernel = BareKernel(keeper)
        subscriber = keeper.subscriber()
        shell = keeper.socket("shell", zmq.DEALER, identity=b"client")
        shell.send_multipart(signed(header("execute_request", msg_id="run"), b"{}", b'{"cellId":"c"}', b'{"code":""}'))
        kernel.take("shell")
        parent = header("execute_request", msg_id="run")
        widget = {
            "comm_id": "w",
            "target_name": "jupyter.widget",
            "data": {"state": {"_model_name": "OutputModel", "msg_id": "run"}},
        }
        captured = [
            signed(header("comm_open"), parent, b"{}", json.dumps(widget).encode()),
            signed(header("stream"), parent, b"{}", b'{"name":"stdout","text":"captured"}'),
        ]
        for frames in captured:
            kernel.sockets.iopub.send_multipart(frames)
        assert [receive(subscriber) for _ in captured] == captured

    def test_what_is_open_at_the_end_is_released(self, keepers: Callable[..., Keeper]) -> None:
        keeper = keepers(expect=True)
        msg_id, subscriber, _ = self.run(keeper, "cell")
        assert keeper.child is not None
        keeper.child.kill()
        assert keeper.proxy.finished.wait(LIMIT)
        assert self.received(subscriber, msg_id) == self.of(keeper, msg_id)
        assert keeper.decisions[-1] == (msg_id, Owner.RELEASED)
        assert keeper.proxy.stats()["held"] == 0


CURVE_KEYS = dict(zip(("curve_publickey", "curve_secretkey"), zmq.curve_keypair(), strict=True))


@pytest.mark.parametrize("connection", [{}, CURVE_KEYS, {"transport": "ipc"}], ids=["tcp", "curve", "ipc"])
def test_a_real_kernel_through_every_transport(keepers: Callable[..., Keeper], connection: dict[str, Any]) -> None:
    if connection.get("transport") == "ipc" and not zmq.has("ipc"):
        pytest.skip("no ipc on this system")
    keeper = keepers(**connection)
    subscriber = keeper.subscriber()
    keeper.launch()
    client = keeper.client()
    code = (
        "from ipykernel.comm import Comm\n"
        "comm = Comm(target_name='t', data={'a': 1}, buffers=[bytes(range(256)) * 1000, b''])\n"
        "comm.send({'b': 2}, buffers=[memoryview(b'xyz')])\n"
        "print('out', flush=True)\n"
        "comm.close()\n"
        "1/0"
    )
    reply = client.execute_interactive(code, timeout=LIMIT, output_hook=lambda _: None)
    assert reply["content"]["ename"] == "ZeroDivisionError"
    msg_id = reply["parent_header"]["msg_id"]
    received = everything(subscriber, is_idle_of(msg_id))
    keeper.wait_for_idle(msg_id)
    assert received == keeper.tapped(Channel.IOPUB, Direction.TO_CLIENT)[: len(received)]
    assert envelope(received[0]).msg_type == "iopub_welcome"
    assert {"comm_open", "comm_msg", "comm_close", "stream", "error"} <= {
        envelope(frames).msg_type for frames in received
    }
    until(client.hb_channel.is_beating)
    until(lambda: keeper.proxy.stats()["messages"]["hb"]["to_client"] > 0)
    late = keeper.socket("iopub", zmq.SUB)
    assert parse(receive(late), Signer(KEY)).msg_type == "iopub_welcome"
    assert keeper.proxy.shutdown_requested == ""
    client.shutdown()
    assert keeper.child is not None
    assert keeper.child.wait(LIMIT) == 0
    assert keeper.proxy.finished.wait(LIMIT)
    assert keeper.proxy.shutdown_requested == "shut down"
    assert keeper.proxy.stats()["errors"] == 0
    if keeper.front.transport == "ipc":
        assert not any(path.exists() for path in map(keeper.front.ipc_path, CHANNELS) if path)


def test_two_clients_at_once(keepers: Callable[..., Keeper]) -> None:
    keeper = keepers()
    keeper.launch()
    first, second = keeper.client(), keeper.client()
    asked = {client: [client.execute(f"print({n})\n{n}") for n in range(5)] for client in (first, second)}
    for client, msg_ids in asked.items():
        replies = [client.get_shell_msg(timeout=LIMIT)["parent_header"]["msg_id"] for _ in msg_ids]
        assert replies == msg_ids
        # Both see what the kernel publishes for either of them.
        busy = {msg_id for each in asked.values() for msg_id in each}
        while busy:
            message = client.get_iopub_msg(timeout=LIMIT)
            if message["content"].get("execution_state") == "idle":
                busy.discard(message["parent_header"]["msg_id"])


def test_the_client_that_asks_is_asked_for_input(keepers: Callable[..., Keeper]) -> None:
    keeper = keepers()
    keeper.launch()
    clients = [keeper.client(), keeper.client()]
    for client in (*clients, clients[0]):
        msg_id = client.execute("print('got ' + input('say: '))")
        question = client.get_stdin_msg(timeout=LIMIT)
        # For the second client this is also the proof that the first one's question did not come to it.
        assert question["parent_header"]["msg_id"] == msg_id
        assert question["content"]["prompt"] == "say: "
        client.input("this")
        message = client.get_iopub_msg(timeout=LIMIT)
        while (message["msg_type"], message["parent_header"].get("msg_id")) != ("stream", msg_id):
            message = client.get_iopub_msg(timeout=LIMIT)
        assert message["content"]["text"].startswith("got this")
        assert client.get_shell_msg(timeout=LIMIT)["content"]["status"] == "ok"


@pytest.mark.parametrize("expect", [False, True])
@pytest.mark.parametrize("channel", [Channel.SHELL, Channel.CONTROL, Channel.STDIN])
def test_a_real_kernel_survives_bad_messages(keepers: Callable[..., Keeper], channel: Channel, expect: bool) -> None:
    keeper = keepers(expect=expect)
    keeper.launch()
    client = keeper.client()
    stranger = keeper.socket(channel.value, zmq.DEALER, identity=b"stranger")
    bad = [CORPUS[name] for name in ("a bad signature", "truncated", "not UTF-8", "no delimiter")]
    for frames in bad:
        stranger.send_multipart(frames)
    keeper.wait_for(
        lambda: (
            [frames for frames in keeper.tapped(channel, Direction.TO_KERNEL) if frames[0] == b"stranger"]
            == [[b"stranger", *frames] for frames in bad]
        )
    )
    assert client.execute_interactive("1", timeout=LIMIT, output_hook=lambda _: None)["content"]["status"] == "ok"
    stats = keeper.proxy.stats()
    judged = expect and channel is Channel.SHELL
    assert (stats["bad_signatures"], stats["malformed"]) == ((1, 3) if judged else (0, 0))


class TestTheEnd:
    # A kernel that says much and ends: everything was written to its connections, and by far not read yet.
    TALKER = """
import json, os, sys, zmq
info = json.load(open(sys.argv[1]))
context = zmq.Context()
sockets = {}
for name, kind in {"shell": zmq.ROUTER, "control": zmq.ROUTER, "stdin": zmq.ROUTER, "iopub": zmq.XPUB}.items():
    sockets[name] = made = context.socket(kind)
    made.sndhwm = 0
    made.bind("tcp://%s:%s" % (info["ip"], info[name + "_port"]))
sockets["iopub"].recv()
request = sockets["shell"].recv_multipart()
for number in range(20_000):
    sockets["iopub"].send_multipart([b"topic", str(number).encode()])
sockets["shell"].send_multipart(request)
if sys.argv[2] == "orphan" and not os.fork():
    open(sys.argv[3]).read()
    os._exit(0)
for each in sockets.values():
    each.close(linger=-1)
context.term()
os._exit(7)
"""

    def talk(self, keeper: Keeper, *argv: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        subscriber = keeper.subscriber()
        shell = keeper.socket("shell", zmq.DEALER, identity=b"client")
        keeper.launch(sys.executable, "-c", self.TALKER, "{connection_file}", *argv)
        shell.send_multipart([b"say it"])
        assert keeper.child is not None
        assert keeper.child.wait(LIMIT) == 7
        assert keeper.proxy.finished.wait(LIMIT)
        return subscriber, shell

    def test_all_that_an_ended_kernel_said_is_forwarded_first(self, keepers: Callable[..., Keeper]) -> None:
        keeper = keepers()
        subscriber, shell = self.talk(keeper, "alone")
        said = keeper.tapped(Channel.IOPUB, Direction.TO_CLIENT)
        assert not keeper.proxy._connected
        assert said == [[b"topic", str(number).encode()] for number in range(20_000)]
        assert receive(shell) == [b"say it"]
        # The front's own limit for a subscriber that does not read is not the matter here.
        assert receive(subscriber) == said[0]

    @pytest.mark.skipif(sys.platform == "win32", reason="fork")
    def test_a_fork_that_holds_the_connections_is_not_waited_for(
        self, keepers: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        keeper = keepers()
        real = keeper.proxy.stop_when_drained
        monkeypatch.setattr(keeper.proxy, "stop_when_drained", lambda: real(silence=0.2))
        held_until = tmp_path / "fifo"
        os.mkfifo(held_until)
        self.talk(keeper, "orphan", str(held_until))
        assert keeper.proxy._connected
        assert len(keeper.tapped(Channel.IOPUB, Direction.TO_CLIENT)) == 20_000
        # Opens only if somebody reads: the fork was there all the time, and ends now.
        os.close(os.open(held_until, os.O_WRONLY))

    def test_a_killed_kernel_ends_it(self, keepers: Callable[..., Keeper]) -> None:
        keeper = keepers()
        subscriber = keeper.subscriber()
        keeper.launch()
        client = keeper.client()
        client.execute(
            "import os, signal\nfor n in range(200): print(n, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
        )
        assert keeper.child is not None
        assert keeper.child.wait(LIMIT) == -signal.SIGKILL
        assert keeper.proxy.finished.wait(LIMIT)
        said = keeper.tapped(Channel.IOPUB, Direction.TO_CLIENT)
        assert [receive(subscriber) for _ in said] == said
        keeper.proxy.grant("too late")
        keeper.proxy.stop()

    def test_a_kernel_that_never_came_ends_it(self, keepers: Callable[..., Keeper]) -> None:
        keeper = keepers()
        keeper.launch(sys.executable, "-c", "raise SystemExit(1)")
        assert keeper.proxy.finished.wait(LIMIT)

    def test_a_terminated_context_ends_it(self, tmp_path: Path) -> None:
        context: Context = zmq.Context()
        path = tmp_path / "front.json"
        write_connection_file(str(path), ip="127.0.0.1", key=KEY)
        front = private_connection(ConnectionInfo.load(path))
        back = private_connection(front)
        front.release()
        keeper = Keeper(context, front, back, Grants(False, 1.0), tmp_path)
        keeper.start()
        back.release()
        context.term()
        assert keeper.proxy.finished.wait(LIMIT)
        keeper.proxy.join(LIMIT)
        assert keeper.proxy.stats()["errors"] == 0
