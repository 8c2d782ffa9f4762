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
from pathlib import Path
from typing import Any, Protocol

import zmq

from output_keeper import defaults
from output_keeper.errors import StoreCorrupted, StoreError, StoreLocked
from output_keeper.keeper.endpoint import Endpoint
from output_keeper.keeper.spool import Spool
from output_keeper.keeper.transcript import Transcript
from output_keeper.protocol.messages import Signer
from output_keeper.record.adoption import now
from output_keeper.record.database import Sync
from output_keeper.record.document import RecordDocument
from output_keeper.record.paths import private_folder
from output_keeper.record.store import Store, read, salvage, set_aside

COMPACT_BYTES = 4 * 1024 * 1024  # updates since the last checkpoint after which one is made
COMPACT_RATIO = 2  # … but never before the updates are this many times the checkpoint
RETRY = 1.0  # s until a store that failed is tried again; twice as long after each try
RETRY_LIMIT = 30.0  # s
FINISH_LIMIT = 5.0  # s for which the end waits for a store that is locked or fails
BATCH = 500  # messages folded before the endpoint is looked at again


class Forwarding(Protocol):
    """The proxy, as far as followers have to do with it. Any thread may call, and is answered at once."""

    def grant(self, msg_id: str) -> None:
        """Withhold this execution's outputs from now on, unless it was released already."""

    def release(self, msg_id: str) -> None:
        """Forward what was held of this execution."""

    def abandon(self) -> None:
        """Hold and withhold nothing any more."""

    def stats(self) -> dict[str, Any]:
        """Give counters of what was forwarded, and of what was unusual."""


@dataclass(frozen=True, slots=True)
class RecorderSettings:
    """Where and how a record is kept. ``sync`` is the store's: ``normal`` or ``full``."""

    path: Path
    sync: Sync = "normal"
    flush_interval: float = defaults.FLUSH_INTERVAL  # s
    runs_per_cell: int = defaults.RUNS_PER_CELL
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
        proxy: Forwarding,
        log: logging.Logger,
    ) -> None:
        super().__init__(name="recorder", daemon=True)
        self._settings = settings
        self._proxy = proxy
        self._log = log
        self._spool = Spool(str(settings.path.parent))
        self._record = RecordDocument(kernel_id)
        self._transcript = Transcript(
            self._record, signer, runs_per_cell=settings.runs_per_cell, expect_grants=settings.expect_grants
        )
        self._store: Store | None = None
        self._error = ""
        self._file: tuple[int, int] | None = None  # device and inode of the store that is open
        self._begun = False
        self._heard = time.monotonic()
        self._retry_at = 0.0  # monotonic
        self._retry_in = RETRY
        self._errors = 0
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
        self._finish_by = math.inf  # monotonic
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
        self._heard = time.monotonic()
        self._spool.put(("message", channel, direction, frames), sum(map(len, frames)))
        self._wake()

    def quiet_for(self) -> float:
        """Seconds since the last message; 0 while the kernel works, although it may say nothing."""
        return 0.0 if self._transcript.busy else time.monotonic() - self._heard

    def decided(self, msg_id: str, owner: str) -> None:
        """Note, in order with the messages, who owns an execution."""
        self._spool.put(("decided", msg_id, owner, None), 0)
        self._wake()

    def finish(self, how: str, *, died: bool) -> None:
        """The kernel has ended and everything it said was tapped: record its end, flush, close, and end the thread."""
        self._finish_by = time.monotonic() + FINISH_LIMIT
        self._spool.put(("finish", how, died, None), 0)
        self._wake()

    def _wake(self) -> None:
        if self._asleep:
            with self._wake_lock:  # a ZMQ socket belongs to one thread at a time
                if self._asleep:
                    self._asleep = False
                    self._wake_sender.send(b"", zmq.NOBLOCK)  # at most one is on its way

    # -- the thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Open the record, then fold and flush until `finish`."""
        try:
            self._open()
            with self._record.transaction():
                self._transcript.begin(now())
            self._begun = True
            self._record.observe_updates(self._updates.append)
            self._unwritten = True
            self._flush()
            self._loop()
            self._close()
        except BaseException:  # what panics in pycrdt is no Exception
            # No goodbye, and the record's lock is kept: nobody is to think that the kernel has ended.
            self._log.exception("! the recorder stopped")
            self._proxy.abandon()
            raise
        else:
            if self._endpoint is not None:
                self._endpoint.close()
            self._detach()
        finally:
            self._spool.close()
            with self._wake_lock:
                self._asleep = False
                self._wake_sender.close()
            self._wake_receiver.close()

    def _open(self) -> None:
        """Get the writer's lock and what earlier starts of this kernel recorded; without a disk, go on in memory."""
        waited = False
        while self._store is None:
            try:
                self._attach(RETRY)
            except StoreLocked as error:
                if time.monotonic() > self._finish_by:
                    self._failed(error)
                    return
                if not waited:
                    self._log.info("= waiting for the record's lock, held by the kernel's last keeper")
                waited = True
            except (StoreError, OSError) as error:
                self._failed(error)
                self._look()
                return

    def _look(self) -> None:
        """Merge a record that cannot be written to: read-only, or on a full disk."""
        try:
            self._merge(read(self._settings.path))
        except (StoreError, OSError) as error:
            self._log.warning("! what earlier starts recorded is not known: %s", error)

    def _attach(self, timeout: float) -> None:
        """Open the store and merge what it holds. A corrupt one is set aside, never deleted; what is sound is kept."""
        path = private_folder(self._settings.path.parent) / self._settings.path.name
        try:
            store = Store.open(path, sync=self._settings.sync, timeout=timeout)
            try:
                self._merge(store.load())
            except BaseException:
                store.close()
                raise
        except StoreCorrupted as error:
            saved = salvage(path)
            aside = set_aside(path)
            self._log.error("! %s; set aside as %s, %d updates saved from it", error, aside, len(saved))
            store = Store.open(path, sync=self._settings.sync, timeout=timeout)
            try:
                self._merge(saved)
            except StoreError as unusable:
                self._log.error("! nothing of it can be used: %s", unusable)
        self._store = store
        self._file = self._identity()

    def _merge(self, updates: list[bytes]) -> None:
        """Bring into the record what a store holds; one that is not ours, or newer than we, is left alone."""
        path = str(self._settings.path)
        stored = RecordDocument(self._record.kernel_id)
        for update in updates:
            stored.apply(update)
        stored.check_version(path)
        if stored.kernel_id != self._record.kernel_id:
            raise StoreCorrupted(f"this is the record of kernel {stored.kernel_id}", path=path)
        self._record.apply(stored.doc.get_update())
        if self._begun and updates:
            with self._record.transaction():
                self._transcript.merged(now())

    def _detach(self) -> None:
        if self._store is not None:
            store, self._store = self._store, None
            try:
                store.close()
            except StoreError as error:
                self._log.error("! %s", error)

    def _identity(self) -> tuple[int, int] | None:
        """Tell which file has the record's name now."""
        try:
            status = self._settings.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

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
        if not self._unwritten:
            return None
        return max(0, math.ceil((self._retry_at - time.monotonic()) * 1000))

    def _fold(self) -> tuple[bool, int]:
        """Fold what waits, at most a batch. Tell whether to flush at once, and how much was taken."""
        urgent = False
        for taken in range(BATCH):
            item = self._spool.take()
            if item is None:
                return urgent, taken
            kind, first, second, frames = item
            if kind == "message":
                urgent = self._message(first, second, frames) or urgent
            elif kind == "decided":
                self._transcript.decided(first, second)
                urgent = True
            else:
                self._ending = (first, second)
                return True, taken + 1
        return urgent, BATCH

    def _message(self, channel: str, direction: str, frames: list[bytes]) -> bool:
        try:
            return self._transcript.message(channel, direction, frames)
        except Exception:  # noqa: BLE001  border: one message's failure is not another's
            self._errors += 1
            self._log.exception("! a message could not be recorded")
            return True

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
        if self._store is not None and self._identity() != self._file:
            self._log.error("! the record's file was taken away or replaced; it is written anew")
            self._detach()
            self._unwritten = True
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
            self._retry_in = RETRY
        except (StoreError, OSError) as error:
            self._failed(error)

    def _failed(self, error: StoreError | OSError) -> None:
        if isinstance(error, StoreCorrupted):  # opened anew, it is set aside
            self._detach()
        self._unwritten = True
        self._retry_at = time.monotonic() + self._retry_in
        self._retry_in = min(2 * self._retry_in, RETRY_LIMIT)
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
            self._transcript.end(now(), how, died=died)
        self._retry_at = 0.0
        self._flush()
        while self._unwritten and time.monotonic() < self._finish_by:
            time.sleep(max(0.0, min(self._retry_at, self._finish_by) - time.monotonic()))
            self._flush()
        if self._unwritten:
            self._log.error("! the end of the record is not on disk: %s", self._error)

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
            "errors": self._errors,
            **self._transcript.counts,
            "proxy": self._proxy.stats(),
        }
