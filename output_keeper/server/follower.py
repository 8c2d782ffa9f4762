"""A follower: this server's replica of one kernel's record, kept up to date while the keeper lives.

While there is a keeper the replica follows its record endpoint; when there is none, it is read from the store. Yjs
updates can be applied twice and in any order, so the two sources never disagree.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import zmq
import zmq.asyncio
from pycrdt import create_sync_message, handle_sync_message

from output_keeper.errors import StoreError, SyncError
from output_keeper.record import store
from output_keeper.record.adoption import adopt
from output_keeper.record.document import RecordDocument
from output_keeper.record.paths import RUN_FILE, record_path, run_dir
from output_keeper.record.runs import Identity, Run
from output_keeper.record.sync import FOLLOWER, Conversation

ANSWER_TIMEOUT = 5.0  # s until a greeting is said again
PING = 2.0  # s of silence until we look whether the keeper lives
RETRY = 0.1  # s between looks for a keeper that is starting
ADOPT_RETRY = 60.0  # s until a record that could not be written is tried again
LOOK = 5.0  # s between looks into the store of a keeper without an endpoint


class Follower:
    """Follow the record of ``kernel_id``. `run` does it until cancelled; `touched` is told which executions changed."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        kernel_id: str,
        record_dir: Path,
        touched: Callable[[set[str]], None],
        log: logging.Logger,
    ) -> None:
        self.kernel_id = kernel_id
        self.path = record_path(kernel_id, record_dir)
        self.record = RecordDocument()
        self.connected = False
        self.run_file: Run | None = None
        self._context = context
        self._log = log
        self._poke = asyncio.Event()
        self._synced = asyncio.Event()
        self._conversation: Conversation | None = None
        self._pinged = False  # whether the keeper still owes the answer to a ping
        self._socket: zmq.asyncio.Socket | None = None
        self._gone: Identity | None = None  # the keeper that said goodbye: its process may take a moment to end
        self.record.observe_touched(touched)

    def poke(self) -> None:
        """Say that a keeper was started, so that it is looked for now."""
        self._poke.set()

    @property
    def alive(self) -> bool:
        """Whether the keeper that wrote the run file lives."""
        return self.run_file is not None and self.run_file.keeper != self._gone and self.run_file.alive()

    async def wait_synced(self, timeout: float) -> bool:
        """Wait at most ``timeout`` s until the record has been received once; tell whether it was."""
        try:
            await asyncio.wait_for(self._synced.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Follow until cancelled. A keeper that ended leaves the record as its store has it."""
        while True:
            self._poke.clear()
            self.run_file = self._find_run()
            if self.run_file is None:
                await self._read_store()
                self._synced.set()
                await self._poked()
            elif self.run_file.endpoint and self.run_file.connection.get("key"):
                try:
                    await self._follow(self.run_file)
                except SyncError as error:
                    self._log.warning("output-keeper: kernel %s: %s", self.kernel_id, error)
                    await asyncio.sleep(RETRY)
            else:  # a connection without a key has no endpoint, because it could not be trusted
                await self._read_store()
                await asyncio.sleep(LOOK)

    async def _poked(self) -> None:
        """Wait for the next keeper. If none comes soon, end what the last one left unfinished."""
        patience = PING
        while not self._poke.is_set():
            unfinished = any(not view.state.ended for view in self.record.views())
            try:
                await asyncio.wait_for(self._poke.wait(), patience if unfinished else None)
            except asyncio.TimeoutError:
                patience = PING if await self._adopt() else ADOPT_RETRY

    async def _adopt(self) -> bool:
        """Write what nobody writes any more; False when the record cannot be written."""
        try:
            adopted = await asyncio.to_thread(adopt, self.path)
        except StoreError as error:
            self._log.error("output-keeper: %s", error)
            return False
        if adopted:
            await self._read_store()
        return True

    async def _read_store(self) -> None:
        """Merge what the store has: the last word of a keeper that ended before we heard it."""
        if not self.path.exists():
            return
        try:
            updates = await asyncio.to_thread(store.read, self.path)
            for update in updates:
                self.record.apply(update)
            self.record.check_version(str(self.path))
        except StoreError as error:
            self._log.error("output-keeper: %s", error)

    def grant(self, msg_id: str) -> None:
        """Ask the keeper to withhold an execution's outputs, because we will bring them into the notebook."""
        self._say("grant", msg_id)

    def release(self, msg_id: str) -> None:
        """Tell the keeper that the client shows the outputs of this execution by itself."""
        self._say("release", msg_id)

    def _say(self, kind: str, msg_id: str) -> None:
        if self._socket is not None and self._conversation is not None and self._conversation.established:
            self._socket.send_multipart(self._conversation.seal(kind, msg_id=msg_id))

    def _find_run(self) -> Run | None:
        folder = run_dir(self.kernel_id)
        if not (folder / RUN_FILE).exists():
            return None
        try:
            run = Run.read(folder)
        except StoreError as error:  # another version's, or gone in that instant
            self._log.warning("output-keeper: %s", error)
            return None
        return run if run.keeper != self._gone and run.alive() else None

    async def _follow(self, run: Run) -> None:
        """Greet, ask for what is missing, and apply updates until the keeper says goodbye or is gone."""
        key = str(run.connection["key"]).encode()
        conversation = Conversation(key, FOLLOWER)
        self._pinged = False
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        try:
            socket.connect(str(run.endpoint))
            await socket.send_multipart(conversation.hello())
            if not await socket.poll(ANSWER_TIMEOUT * 1000):
                raise SyncError("the keeper does not answer")
            conversation.accept(await socket.recv_multipart())
            self._socket, self._conversation = socket, conversation
            await socket.send_multipart(conversation.seal("sync", create_sync_message(self.record.doc)))
            self.connected = True
            while await self._next(socket, conversation, run):
                pass
        finally:
            self.connected = False
            self._socket = self._conversation = None
            socket.close()

    async def _next(self, socket: zmq.asyncio.Socket, conversation: Conversation, run: Run) -> bool:
        """Take one message; False when there is nobody to hear from any more."""
        if not await socket.poll(PING * 1000):
            if not run.alive():
                return False
            if self._pinged:
                raise SyncError("the keeper does not answer")
            self._pinged = True
            await socket.send_multipart(conversation.seal("ping"))
            return True
        self._pinged = False
        header, payload = conversation.open(await socket.recv_multipart())
        kind = header.get("type")
        if kind == "update":
            handle_sync_message(payload[1:], self.record.doc)
            self._synced.set()
            await socket.send_multipart(conversation.seal("ack"))
        elif kind == "behind":
            await socket.send_multipart(conversation.seal("sync", create_sync_message(self.record.doc)))
        if kind == "bye":
            self._gone = run.keeper
        return kind != "bye"
