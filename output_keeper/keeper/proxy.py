"""The thread that moves messages between the clients and the kernel, and does nothing else.

What it moves it does not change: identities, order and every frame stay as they are. Clients reach the
kernel through two hops, front ROUTER and back DEALER: the front puts the client's identity before a
request, the kernel's own socket puts the keeper's before that, and a reply finds its way back by the same
two.

Whoever wants to know gets each message through a *tap*. The thread never waits for the tap's owner, a disk,
or a client; only for a kernel that does not take requests, and then with that one channel alone.

Debug log, one mark per line: ``>`` to the kernel, ``<`` from the kernel, ``=`` state, ``!`` trouble.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from output_keeper.errors import BadSignature, MalformedMessage, WireError
from output_keeper.keeper.welcome import Welcomes, header_part
from output_keeper.protocol.comms import OutputCapture
from output_keeper.protocol.messages import envelope, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from output_keeper.keeper.grants import Frames, Grants, Owner
    from output_keeper.keeper.sockets import BackSockets, FrontSockets
    from output_keeper.protocol.messages import Signer

BATCH_MESSAGES: Final = 128
BATCH_BYTES: Final = 8 * 1024 * 1024
"""What one channel may move before the others have their turn: a flood on iopub must not starve shell."""

DRAIN_SILENCE: Final = 3.0
"""Seconds. A process that the kernel forked can hold its connections open; nothing comes by them."""

_COMM_TYPES: Final = ("comm_open", "comm_msg", "comm_close")

_log = logging.getLogger(__name__)


class Channel(str, Enum):
    """A kernel's channels (messaging spec)."""

    SHELL = "shell"
    IOPUB = "iopub"
    STDIN = "stdin"
    CONTROL = "control"
    HB = "hb"


class Direction(str, Enum):
    """Which way a message goes."""

    TO_KERNEL = "to_kernel"
    TO_CLIENT = "to_client"


class Proxy(threading.Thread):
    """Forwards all five channels until the kernel has ended and everything it said has gone out.

    The thread owns both sets of sockets from ``start()`` on and closes them at its end.

    ``tap(channel, direction, frames)`` is called in this thread, in the order in which messages are
    handled: a request before it is sent to the kernel, a kernel's message after it was forwarded (or held,
    or withheld). Frames are whole messages: on shell, control and stdin the first one is the client's
    identity in both directions. Heartbeats, subscriptions and the welcomes that are made here are not
    tapped. Neither ``tap`` nor ``decided`` may block; an exception in them is counted and logged.

    ``decided(msg_id, owner)`` is called in this thread, once for each execute_request on shell, if
    ``grants`` expects to be asked. If not, messages are not even looked into: bytes in, bytes out.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        front: FrontSockets,
        back: BackSockets,
        *,
        signer: Signer,
        grants: Grants,
        tap: Callable[[Channel, Direction, list[bytes]], None],
        decided: Callable[[str, Owner], None],
    ) -> None:
        super().__init__(name="proxy", daemon=True)
        self.finished = threading.Event()
        """Set when the thread has closed its sockets: nothing more will be forwarded or tapped."""
        self.shutdown_requested = ""
        """"shut down" or "restarted" once a client has asked the kernel for it; ``""`` before."""

        self._front = front
        self._back = back
        self._signer = signer
        self._grants = grants
        self._tap = tap
        self._decided = decided
        self._capture = OutputCapture()

        self._counts = {(channel, direction): _Count() for channel in Channel for direction in Direction}
        self._malformed = 0
        self._bad_signatures = 0
        self._errors = 0
        self._tap_errors = 0

        self._welcomes = Welcomes(signer, lambda frames: front.iopub.send_multipart(frames, zmq.NOBLOCK))

        self._stalled: dict[Channel, Frames] = {}
        self._connected: set[str] = set()
        self._draining_for: float | None = None
        self._last_arrival = 0.0
        self._stopping = False

        # Any thread may post a command; the PUSH socket is used under the lock only.
        self._commands: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._accepting = True
        address = f"inproc://proxy-{uuid.uuid4().hex}"
        self._woken: zmq.Socket[bytes] = context.socket(zmq.PULL)
        self._woken.bind(address)
        self._waker: zmq.Socket[bytes] = context.socket(zmq.PUSH)
        self._waker.linger = 0
        self._waker.connect(address)

        self._poller = zmq.Poller()
        self._readers: dict[zmq.Socket[bytes], Callable[[], object]] = {}

    # The following may be called from any thread; they return at once.

    def grant(self, msg_id: str) -> None:
        """Withhold this execution's outputs from clients from now on, unless it was released already."""
        self._post(lambda: self._send_iopub(self._grants.grant(msg_id)[1]))

    def release(self, msg_id: str) -> None:
        """Forward what was held of this execution, unless it was decided already."""
        self._post(lambda: self._send_iopub(self._grants.release(msg_id)[1]))

    def abandon(self) -> None:
        """Hold and withhold nothing any more: the recorder has stopped, and a failure of ours leaves plain Jupyter."""
        self._post(lambda: self._send_iopub(self._grants.abandon()))

    def forget(self, msg_id: str) -> None:
        """Drop what is remembered of an execution that ended long ago."""
        self._post(lambda: self._grants.forget(msg_id))

    def stop_when_drained(self, silence: float = DRAIN_SILENCE) -> None:
        """Forward what the ended kernel left on the way, then finish.

        To be called when the kernel's process has ended. All has arrived when its end of each connection is
        closed; if some other process still holds one open, when nothing came for ``silence`` seconds. What
        is still open then is released.
        """

        def drain() -> None:
            self._read_monitors()
            self._last_arrival = time.monotonic()
            self._draining_for = silence

        self._post(drain)

    def stop(self) -> None:
        """Finish without waiting for anything more from the kernel."""

        def now() -> None:
            self._stopping = True

        self._post(now)

    def stats(self) -> dict[str, Any]:
        """Give counters: by channel and direction, and of what was unusual. Cheap."""
        return {
            "messages": {
                channel.value: {direction.value: self._counts[channel, direction].messages for direction in Direction}
                for channel in Channel
            },
            "bytes": {
                channel.value: {direction.value: self._counts[channel, direction].bytes for direction in Direction}
                for channel in Channel
            },
            "malformed": self._malformed,
            "bad_signatures": self._bad_signatures,
            "errors": self._errors,
            "tap_errors": self._tap_errors,
            "held": self._grants.held_count,
            "held_bytes": self._grants.held_bytes,
            "withheld": self._grants.withheld_count,
        }

    def run(self) -> None:
        """Move messages until told to stop, or until the ZMQ context is terminated."""
        try:
            self._register()
            while not self._stopping:
                self._turn()
            self._send_iopub(self._grants.release_all())
        except zmq.ContextTerminated:
            _log.debug("= the context was terminated")
        finally:
            with self._lock:
                self._accepting = False
                self._waker.close()
            self._woken.close()
            self._front.close()
            self._back.close()
            self.finished.set()

    def _post(self, command: Callable[[], None]) -> None:
        with self._lock:
            if self._accepting:
                self._commands.append(command)
                # A full queue means that a wake-up is on its way already.
                with suppress(zmq.Again, zmq.ContextTerminated):
                    self._waker.send(b"", zmq.NOBLOCK)

    def _register(self) -> None:
        """Tell the poller what to watch. The order is that of service: what people wait for comes first."""
        readers: list[tuple[zmq.Socket[bytes], Callable[[], object]]] = [(self._woken, self._run_commands)]
        readers += [(monitor, self._read_monitors) for monitor in self._back.monitors.values()]
        for channel in (Channel.CONTROL, Channel.SHELL, Channel.STDIN, Channel.HB):
            readers.append((getattr(self._back, channel.value), _bind(self._from_kernel, channel)))
            readers.append((getattr(self._front, channel.value), _bind(self._from_clients, channel)))
        readers.append((self._front.iopub, self._subscriptions))
        readers.append((self._back.iopub, self._from_iopub))
        for socket, reader in readers:
            self._readers[socket] = reader
            self._poller.register(socket, zmq.POLLIN)

    def _turn(self) -> None:
        for socket, event in self._poller.poll(self._timeout()):
            if event & zmq.POLLOUT:
                self._resume(socket)
            if event & zmq.POLLIN:
                self._readers[socket]()
        if self._grants.next_deadline() is not None:
            self._send_iopub(self._grants.expire(time.monotonic()))
        if self._draining_for is not None and self._drained(self._draining_for):
            self._stopping = True

    def _timeout(self) -> int | None:
        """Milliseconds until there is something to do without a message; None for no limit."""
        deadline = self._grants.next_deadline()
        if self._draining_for is not None:
            if not self._connected:
                return 0
            silent = self._last_arrival + self._draining_for
            deadline = silent if deadline is None else min(silent, deadline)
        return None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000) + 1)

    def _received(self, socket: zmq.Socket[bytes], count: _Count) -> Iterator[Frames]:
        """One turn's messages of a socket, counted."""
        moved = 0
        for _ in range(BATCH_MESSAGES):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            size = sum(map(len, frames))
            count.messages += 1
            count.bytes += size
            yield frames
            moved += size
            if moved > BATCH_BYTES:
                return

    def _guard(self, move: Callable[..., object], *args: object) -> None:
        """Handle one message; what goes wrong with it must not end the forwarding of the others."""
        try:
            move(*args)
        except zmq.ContextTerminated:
            raise
        except Exception:  # noqa: BLE001  border: one message's failure is not another's
            self._errors += 1
            _log.exception("! a message could not be handled")

    def _show(self, channel: Channel, direction: Direction, frames: Frames) -> None:
        try:
            self._tap(channel, direction, frames)
        except Exception:  # noqa: BLE001  border: forwarding survives whoever listens
            self._tap_errors += 1
            _log.exception("! the tap failed")

    def _tell_decided(self) -> None:
        for msg_id, owner in self._grants.take_decided():
            _log.debug("= %s is %s", msg_id, owner.value)
            try:
                self._decided(msg_id, owner)
            except Exception:  # noqa: BLE001  border: forwarding survives whoever listens
                self._tap_errors += 1
                _log.exception("! the listener for decisions failed")

    # Clients → kernel

    def _from_clients(self, channel: Channel) -> None:
        front: zmq.Socket[bytes] = getattr(self._front, channel.value)
        for frames in self._received(front, self._counts[channel, Direction.TO_KERNEL]):
            self._guard(self._request, channel, frames)
            if channel in self._stalled:
                return

    def _request(self, channel: Channel, frames: Frames) -> None:
        back: zmq.Socket[bytes] = getattr(self._back, channel.value)
        if channel is not Channel.HB:
            self._show(channel, Direction.TO_KERNEL, frames)
            if channel is not Channel.STDIN:
                self._look_for_shutdown(frames)
            if channel is Channel.SHELL and self._grants.expect:
                self._look_for_execution(frames)
        try:
            back.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            if channel is Channel.HB:
                return
            # The kernel takes no more: neither do we, so that its clients feel it as they would without us.
            _log.debug("= %s waits for the kernel", channel.value)
            self._stalled[channel] = frames
            self._poller.unregister(getattr(self._front, channel.value))
            self._poller.modify(back, zmq.POLLIN | zmq.POLLOUT)

    def _resume(self, back: zmq.Socket[bytes]) -> None:
        """Send what waited for the kernel, and listen to the clients again."""
        channel = next(each for each in self._stalled if getattr(self._back, each.value) is back)
        with suppress(zmq.Again):
            back.send_multipart(self._stalled[channel], zmq.NOBLOCK, copy=False)
            del self._stalled[channel]
            self._poller.modify(back, zmq.POLLIN)
            self._poller.register(getattr(self._front, channel.value), zmq.POLLIN)

    def _look_for_shutdown(self, frames: Frames) -> None:
        if b'"shutdown_request"' not in header_part(frames):
            return
        with suppress(WireError):
            message = parse(frames, self._signer)
            if message.msg_type == "shutdown_request":
                self.shutdown_requested = "restarted" if message.content.get("restart") else "shut down"
                _log.debug("> the kernel is to be %s", self.shutdown_requested)

    def _look_for_execution(self, frames: Frames) -> None:
        try:
            if envelope(frames).msg_type != "execute_request":
                return
            # With its signature: the kernel ignores a request without, and so nothing is to be held for it.
            request = parse(frames, self._signer)
        except BadSignature:
            self._bad_signatures += 1
            return
        except MalformedMessage:
            self._malformed += 1
            return
        cell_id = request.metadata.get("cellId")
        self._grants.requested(
            request.msg_id, request.session, cell_id if isinstance(cell_id, str) else None, time.monotonic()
        )
        self._tell_decided()

    # Kernel → clients

    def _from_kernel(self, channel: Channel) -> int:
        back: zmq.Socket[bytes] = getattr(self._back, channel.value)
        moved = 0
        for frames in self._received(back, self._counts[channel, Direction.TO_CLIENT]):
            self._guard(self._reply, channel, frames)
            moved += 1
        return self._arrived(moved)

    def _reply(self, channel: Channel, frames: Frames) -> None:
        front: zmq.Socket[bytes] = getattr(self._front, channel.value)
        # Never blocks: a ROUTER drops what is for a client that is gone.
        front.send_multipart(frames, zmq.NOBLOCK, copy=False)
        if channel is not Channel.HB:
            self._show(channel, Direction.TO_CLIENT, frames)

    def _from_iopub(self) -> int:
        moved = 0
        for frames in self._received(self._back.iopub, self._counts[Channel.IOPUB, Direction.TO_CLIENT]):
            self._guard(self._published, frames)
            moved += 1
        return self._arrived(moved)

    def _arrived(self, moved: int) -> int:
        if moved and self._draining_for is not None:
            self._last_arrival = time.monotonic()
        return moved

    def _published(self, frames: Frames) -> None:
        self._welcomes.published(frames)
        if self._grants.expect:
            self._send_iopub(self._unheld(frames))
        else:
            self._front.iopub.send_multipart(frames, zmq.NOBLOCK, copy=False)
        self._show(Channel.IOPUB, Direction.TO_CLIENT, frames)

    def _unheld(self, frames: Frames) -> list[Frames]:
        try:
            head = envelope(frames)
            if head.msg_type in _COMM_TYPES:
                self._capture.observe(head.msg_type, parse(frames, self._signer).content)
        except BadSignature:
            self._bad_signatures += 1
            return [frames]
        except MalformedMessage:
            self._malformed += 1
            return [frames]
        captured = head.parent_id is not None and self._capture.captures(head.parent_id)
        return self._grants.on_iopub(head.parent_id, head.msg_type, frames, captured=captured)

    def _send_iopub(self, messages: list[Frames]) -> None:
        for frames in messages:
            # Never blocks: an XPUB drops for the subscriber that is slow, and for that one only.
            self._front.iopub.send_multipart(frames, zmq.NOBLOCK, copy=False)
        self._tell_decided()

    # Subscriptions

    def _subscriptions(self) -> None:
        for frames in self._received(self._front.iopub, self._counts[Channel.IOPUB, Direction.TO_KERNEL]):
            self._guard(self._welcomes.subscription, frames)

    # Commands and the end

    def _run_commands(self) -> None:
        with suppress(zmq.Again):
            while True:
                self._woken.recv(zmq.NOBLOCK)
        while self._commands:
            self._guard(self._commands.popleft())

    def _read_monitors(self) -> None:
        for channel, monitor in self._back.monitors.items():
            with suppress(zmq.Again):
                while True:
                    event = recv_monitor_message(monitor, zmq.NOBLOCK)["event"]
                    if event == zmq.EVENT_DISCONNECTED:
                        self._connected.discard(channel)
                    elif self._draining_for is None:
                        # The kernel has not ended yet; after that, whoever answers on its port is not the
                        # kernel.
                        self._connected.add(channel)

    def _drained(self, silence: float) -> bool:
        if self._connected and time.monotonic() < self._last_arrival + silence:
            return False
        # libzmq tells of a disconnect after it has queued the last message: what is there now is all.
        while self._from_iopub() or any(
            self._from_kernel(channel) for channel in (Channel.SHELL, Channel.STDIN, Channel.CONTROL)
        ):
            pass
        _log.debug("= the kernel's connections are drained")
        return True


class _Count:
    """What went one way through one channel."""

    __slots__ = ("bytes", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0


def _bind(read: Callable[[Channel], object], channel: Channel) -> Callable[[], object]:
    return lambda: read(channel)
