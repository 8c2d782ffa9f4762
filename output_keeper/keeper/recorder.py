"""The recorder's thread: takes what the proxy forwarded, folds it, and writes the record.

Messages are parsed and folded into plain state by `Transcript`; at each flush (``flush_interval`` after the first
change, or at once when a cell starts, ends or asks) the change goes into the record's document in one transaction,
its update into the store, and then to the followers. Nothing here can hold the proxy up.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import zmq

from output_keeper.errors import StoreCorrupted, StoreError, StoreLocked
from output_keeper.keeper.endpoint import Endpoint
from output_keeper.keeper.spool import Spool
from output_keeper.keeper.transcript import Transcript
from output_keeper.protocol.messages import Signer
from output_keeper.record.database import Sync
from output_keeper.record.document import RecordDocument
from output_keeper.record.store import Store, salvage, set_aside

COMPACT_BYTES = (
    4 * 1024 * 1024
)  # updates since the last checkpoint after which, at the next idle, one is made
COMPACT_RATIO = 2  # … but never before the updates are this many times the checkpoint
RETRY = 1.0  # s between tries to open or to write a store that failed
BATCH = 500  # messages folded before the endpoint is looked at again


class Decide(Protocol):
    """The proxy's side of grants: both may be called from any thread and return at once."""

    def grant(self, msg_id: str) -> None:
        """Withhold this execution's outputs from now on, unless it was released already."""

    def release(self, msg_id: str) -> None:
        """Forward what was held of this execution."""


@dataclass(frozen=True, slots=True)
class RecorderSettings:
    """Where and how a record is kept. ``sync`` is the store's: ``normal`` or ``full``."""

    path: Path
    sync: Sync = "normal"
    flush_interval: float = 0.03  # s
    runs_per_cell: int = 10
    expect_grants: bool = False


class Recorder(threading.Thread):
    """Write the record of one kernel start. `tap`, `decided` and `finish` may be called from any thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        kernel_id: str,
        signer: Signer,
        key: bytes,
        endpoint_address: str | None,
        settings: RecorderSettings,
        proxy: Decide,
        log: logging.Logger,
    ) -> None:
        super().__init__(name="recorder", daemon=True)
        self._settings = settings
        self._proxy = proxy
        self._log = log
        self._spool = Spool()
        self._record = RecordDocument(kernel_id)
        self._transcript = Transcript(
            self._record, signer, runs_per_cell=settings.runs_per_cell, expect_grants=settings.expect_grants
        )
        self._store: Store | None = None
        self._error = ""
        self._retry_at = 0.0  # monotonic
        self._checkpoint_bytes = 0
        self._unwritten = False  # the store lacks something: the next write is a whole checkpoint
        self._updates: list[bytes] = []
        self._wake_address = f"inproc://recorder-{id(self)}"
        self._context = context
        self._wake_receiver = context.socket(zmq.PULL)
        self._wake_receiver.bind(self._wake_address)
        self._wake_lock = threading.Lock()
        self._wake_sender = context.socket(zmq.PUSH)
        self._wake_sender.connect(self._wake_address)
        self._asleep = True
        self._ending: tuple[str, bool] | None = None
        self._endpoint: Endpoint | None = None
        if endpoint_address is not None:
            self._endpoint = Endpoint(context, endpoint_address, key, self._record, self._request, log)

    @property
    def path(self) -> Path:
        """The record's file."""
        return self._settings.path

    @property
    def endpoint_address(self) -> str | None:
        """The address followers connect to; None when there is no endpoint (an empty key)."""
        return self._endpoint.address if self._endpoint else None

    # -- from other threads ---------------------------------------------------------------------------------------

    def tap(self, channel: str, direction: str, frames: list[bytes]) -> None:
        """Take a copy of what the proxy forwarded (see `Proxy`). Never waits for the recorder."""
        self._spool.put(("message", channel, direction, frames), sum(map(len, frames)))
        self._wake()

    def decided(self, msg_id: str, owner: str) -> None:
        """Note, in order with the messages, who owns an execution."""
        self._spool.put(("decided", msg_id, owner, None), 0)
        self._wake()

    def finish(self, how: str, *, died: bool) -> None:
        """The kernel has ended and everything it said was tapped: record its end, flush, close, and end the thread."""
        self._spool.put(("finish", how, died, None), 0)
        self._wake()

    def _wake(self) -> None:
        if self._asleep:
            with self._wake_lock:  # a ZMQ socket belongs to one thread at a time
                if self._asleep:
                    self._asleep = False
                    self._wake_sender.send(b"")

    # -- the thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Open the record, then fold and flush until `finish`."""
        try:
            self._open()
            with self._record.transaction():
                self._transcript.begin(_now())
            self._record.observe_updates(self._updates.append)
            self._unwritten = True
            self._flush()
            self._loop()
            self._close()
        except (
            Exception
        ):  # border: recording must not take forwarding down with it; the log and status say so
            self._log.exception("! the recorder stopped")
            self._error = "the recorder stopped, see the keeper's log"
            raise
        finally:
            self._wake_receiver.close()
            if self._endpoint is not None:
                self._endpoint.close()
            if self._store is not None:
                self._store.close()

    def _open(self) -> None:
        """Get the writer's lock and what earlier starts of this kernel recorded; without a disk, go on in memory."""
        waited = False
        while self._store is None:
            try:
                self._attach(RETRY)
            except StoreLocked:
                if not waited:
                    self._log.info("= waiting for the record's lock, held by the kernel's last keeper")
                waited = True
            except StoreError as error:
                self._failed(error)
                return

    def _attach(self, timeout: float) -> None:
        """Open the store and merge what it holds. A corrupt one is set aside, never deleted; what is sound is kept."""
        path = self._settings.path
        try:
            store = Store.open(path, sync=self._settings.sync, timeout=timeout)
            updates = store.load()
        except StoreCorrupted as error:
            updates = salvage(path)
            self._log.error(
                "! %s; set aside as %s, %d updates saved from it", error, set_aside(path), len(updates)
            )
            store = Store.open(path, sync=self._settings.sync, timeout=timeout)
        try:
            for update in updates:
                self._record.apply(update)
            self._record.check_version(str(path))
        except StoreError:
            store.close()
            raise
        self._store = store

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_receiver, zmq.POLLIN)
        if self._endpoint is not None:
            poller.register(self._endpoint.socket, zmq.POLLIN)
        dirty_since: float | None = None
        while self._ending is None:
            if self._endpoint is not None:
                self._endpoint.receive()
            urgent, taken = self._fold()
            now = time.monotonic()
            if dirty_since is None and self._transcript.dirty:
                dirty_since = now
            if dirty_since is not None and (urgent or now - dirty_since >= self._settings.flush_interval):
                self._flush()
                dirty_since = None
            elif self._unwritten and now >= self._retry_at:
                self._flush()
            if self._ending is None and taken < BATCH and not self._spool:
                timeout = self._timeout(dirty_since)
                self._asleep = True
                if not self._spool:  # put before we said we were asleep: nobody would wake us
                    poller.poll(timeout)
                self._asleep = False
                while self._wake_receiver.poll(0):
                    self._wake_receiver.recv()

    def _timeout(self, dirty_since: float | None) -> int | None:
        """Give the time in ms until there is something to do without being told; None for ever."""
        if dirty_since is not None:
            due = dirty_since + self._settings.flush_interval - time.monotonic()
            return max(0, math.ceil(due * 1000))
        return int(RETRY * 1000) if self._unwritten else None

    def _fold(self) -> tuple[bool, int]:
        """Fold what waits, at most a batch. Tell whether to flush at once, and how much was taken."""
        urgent = False
        for taken in range(BATCH):
            item = self._spool.take()
            if item is None:
                return urgent, taken
            kind, first, second, frames = item
            if kind == "message":
                urgent = self._transcript.message(first, second, frames) or urgent
            elif kind == "decided":
                self._transcript.decided(first, second)
                urgent = True
            else:
                self._ending = (first, second)
                return True, taken + 1
        return urgent, BATCH

    def _flush(self) -> None:
        if self._transcript.dirty:
            with self._record.transaction():
                self._transcript.flush()
        self._write()
        if self._endpoint is not None:
            for update in self._updates:
                self._endpoint.publish(update)
        self._updates.clear()

    def _write(self) -> None:
        """Make the updates durable. A store that failed gets everything as a checkpoint as soon as it works again."""
        if self._unwritten and time.monotonic() < self._retry_at:
            return
        try:
            if self._store is None:
                self._attach(0.0)
            assert self._store is not None
            if self._unwritten:
                self._checkpoint(self._store)
            elif self._updates:
                self._store.append_many(self._updates)
                since = self._store.bytes_since_checkpoint
                if since > COMPACT_BYTES and since > COMPACT_RATIO * self._checkpoint_bytes:
                    self._checkpoint(self._store)
            if self._error:
                self._log.info("= recording to disk again")
            self._error = ""
            self._unwritten = False
        except StoreError as error:
            self._failed(error)

    def _failed(self, error: StoreError) -> None:
        self._unwritten = True
        self._retry_at = time.monotonic() + RETRY
        if str(error) != self._error:
            self._log.error("! not recording to disk: %s", error)
        self._error = str(error)

    def _checkpoint(self, store: Store) -> None:
        snapshot = self._record.doc.get_update()
        store.checkpoint(snapshot, store.last)
        self._checkpoint_bytes = len(snapshot)

    def _close(self) -> None:
        """Record the kernel's end, with everything that was still waiting before it."""
        assert self._ending is not None
        how, died = self._ending
        with self._record.transaction():
            self._transcript.flush()
            self._transcript.end(_now(), how, died=died)
        self._flush()

    # -- the endpoint's questions ---------------------------------------------------------------------------------

    def _request(self, kind: str, header: dict[str, Any]) -> dict[str, Any] | None:
        msg_id = header.get("msg_id")
        if kind == "grant" and isinstance(msg_id, str):
            self._proxy.grant(msg_id)
        elif kind == "release" and isinstance(msg_id, str):
            self._proxy.release(msg_id)
        elif kind == "status":
            return {"status": self.status()}
        else:
            self._log.warning("! record endpoint: unknown request %r", kind)
        return None

    def status(self) -> dict[str, Any]:
        """What `output-keeper status` shows of this keeper. Read without a lock: each value is true by itself."""
        return {
            "recording": not self._error,
            "error": self._error,
            "waiting": len(self._spool),
            "dropped": self._spool.dropped,
            "followers": self._endpoint.followers if self._endpoint else 0,
            "refused": self._endpoint.refused if self._endpoint else 0,
            **self._transcript.counts,
        }


def _now() -> str:
    """Give the time as message headers do: ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
