"""The Jupyter Server extension: makes the provisioner the default, follows keepers, projects their records."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import zmq.asyncio
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_server._tz import utcnow
from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Enum, Float, Int, Unicode

from output_keeper import defaults
from output_keeper._version import __version__
from output_keeper.defaults import PROVISIONER
from output_keeper.errors import OutputKeeperError
from output_keeper.record import paths
from output_keeper.server.files import Files
from output_keeper.server.follower import Follower
from output_keeper.server.kept import Kept, Surroundings, cancelled
from output_keeper.server.pages import Pages
from output_keeper.server.provisioner import KeeperProvisioner, LaunchSettings
from output_keeper.server.restore import Restorer, unsettled_records
from output_keeper.server.rooms import Rooms

LOOK = 10.0  # s between looks at the kernels; cullers count in minutes
COLLABORATION_EVENTS = "https://schema.jupyter.org/jupyter_collaboration/session/v1"


class OutputKeeper(ExtensionApp):
    """Keep what kernels print while nobody looks. Settings are ``c.OutputKeeper.…`` in a Jupyter config file."""

    name = "output_keeper"
    app_name = "output-keeper"
    description = "Notebooks keep their outputs while nobody looks."

    record_dir = Unicode("", config=True, help="The folder of the records; empty: in Jupyter's data folder.")
    hold_timeout = Float(
        defaults.HOLD_TIMEOUT,
        config=True,
        help="Seconds a cell's outputs wait for the decision who writes them, before they go to the page that ran it.",
    )
    flush_interval = Float(
        defaults.FLUSH_INTERVAL, config=True, help="Seconds between writes of a record while a kernel prints."
    )
    sync = Enum(
        ["normal", "full"],
        "normal",
        config=True,
        help=(
            "What a power loss may take: 'normal' the last moments before it, 'full' nothing that was recorded. "
            "The kill of any process takes nothing that was recorded, with either."
        ),
    )
    save_interval = Float(
        defaults.SAVE_INTERVAL,
        config=True,
        help="Seconds after which a notebook that changes without pause is saved all the same.",
    )
    runs_per_cell = Int(defaults.RUNS_PER_CELL, config=True, help="How many runs of a cell a record keeps.")
    orphan_timeout = Float(
        defaults.ORPHAN_TIMEOUT,
        config=True,
        help="Seconds without activity after which a kernel whose server is gone, and that no server took back, ends.",
    )
    project = Bool(
        True,
        config=True,
        help="Whether kept outputs are brought into notebooks; off, they are only recorded.",
    )

    def initialize_settings(self) -> None:
        """Called while the server starts, before it answers: make the provisioner the default unless one is set."""
        assert self.serverapp is not None
        self._context = zmq.asyncio.Context()
        self._kernels: dict[str, Kept] = {}
        self._unkept: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._record_dir = paths.record_dir(self.record_dir or None)
        self._root = str(self.serverapp.root_dir)
        self._rooms = Rooms(self.serverapp)
        self._server = Surroundings(
            context=self._context,
            kernels=self.serverapp.kernel_manager,
            rooms=self._rooms,
            pages=Pages(self.serverapp),
            files=Files(self.serverapp.contents_manager),
            record_dir=self._record_dir,
            root=self._root,
            save_interval=self.save_interval,
            log=self.log,
        )
        factory = KernelProvisionerFactory.instance(parent=self.serverapp)
        configured = "default_provisioner_name" in self.serverapp.config.get("KernelProvisionerFactory", {})
        if configured or os.environ.get(KernelProvisionerFactory.default_provisioner_name_env):
            self.enabled = factory.default_provisioner_name == PROVISIONER
        else:
            factory.default_provisioner_name = PROVISIONER
            self.enabled = True
        if not self.enabled:
            self.log.warning(
                "output-keeper: outputs are not kept, the default provisioner is configured as %r",
                factory.default_provisioner_name,
            )
        self.settings["output_keeper"] = self
        self._restored = False
        self._restorer = Restorer(self.serverapp, self._root, self._follower)
        KeeperProvisioner.settings = LaunchSettings(
            root=self._root,
            record_dir=self.record_dir or None,
            expect_grants=self.project and self._rooms.available,
            hold=self.hold_timeout,
            flush_interval=self.flush_interval,
            sync=self.sync,
            runs_per_cell=self.runs_per_cell,
            orphan_timeout=self.orphan_timeout,
        )
        KeeperProvisioner.listeners.append(self._launched)
        loop = self.serverapp.io_loop
        if not loop.asyncio_loop.is_running():  # type: ignore[attr-defined]
            try:
                loop.run_sync(self._restorer.restore)
            except Exception:  # border: a server that cannot take kernels back must start all the same
                self.log.exception("output-keeper: kernels could not be restored")
        else:  # embedded in a running loop: pages may ask before we are done
            self._spawn(self._restorer.restore())
        self._restored = True
        self._restorer.watch_sessions()

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:
        """Called when the event loop runs and every extension is loaded."""
        if self._rooms.available:
            serverapp.event_logger.add_listener(schema_id=COLLABORATION_EVENTS, listener=self._collaboration_event)
        self._spawn(self._watch_kernels())
        if self.project:
            self._spawn(self._recover())
        self.log.info("output-keeper %s keeps the outputs of kernels in %s", __version__, self._record_dir)

    async def stop_extension(self) -> None:
        """Called before the server shuts its kernels down."""
        KeeperProvisioner.listeners.clear()
        await cancelled(list(self._tasks))
        for kept in self._kernels.values():
            await kept.stop()
        await self._rooms.saves_done()
        self._context.destroy(linger=0)

    def _launched(self, kernel_id: str) -> None:
        """A kernel was started, or started again, or taken back, under a keeper."""
        if self._restored:
            self._spawn(self._restorer.launched(kernel_id))
        kept = self._kernels.get(kernel_id)
        if kept is not None:
            kept.follower.poke()
            return
        self._keep(kernel_id)

    def _keep(self, kernel_id: str) -> None:
        """Follow and project this kernel's record."""
        if not self.project:
            return
        try:
            kept = Kept(self._server, kernel_id)
        except OutputKeeperError as error:
            self.log.error("output-keeper: kernel %s is recorded but not projected: %s", kernel_id, error)
            return
        self._kernels[kernel_id] = kept
        kept.start(self._spawn)

    def _follower(self, kernel_id: str) -> Follower | None:
        kept = self._kernels.get(kernel_id)
        return None if kept is None else kept.follower

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.log.error("output-keeper: a task of ours ended", exc_info=task.exception())

    async def _recover(self) -> None:
        """Bring into notebooks what was recorded but never seen in a saved file, of kernels that are no more."""
        for kernel_id in await asyncio.to_thread(unsettled_records, self._record_dir, self._root, self.log):
            if kernel_id not in self._kernels:
                self.log.info("output-keeper: the record of kernel %s is not settled and is projected", kernel_id)
                self._keep(kernel_id)

    async def _collaboration_event(self, logger: Any, schema_id: str, data: dict[str, Any]) -> None:
        """Hear from jupyter-collaboration that a room was saved or overwritten from disk."""
        path, action = data.get("path"), data.get("action")
        if not isinstance(path, str):
            return
        for kept in self._kernels.values():
            if action == "save":
                kept.projector.saved(path)
            elif action == "overwrite":
                kept.projector.overwritten(path)

    async def _watch_kernels(self) -> None:
        """Every `LOOK`: what executes is active, what is over is let go, what is not kept is said once."""
        while True:
            await asyncio.sleep(LOOK)
            self._note_activity()
            self._note_unkept()
            for kernel_id, kept in list(self._kernels.items()):
                if kept.over:
                    del self._kernels[kernel_id]
                    await kept.stop()

    def _note_activity(self) -> None:
        """Say that kernels which execute are active, although what they print does not pass through the server."""
        assert self.serverapp is not None
        manager = self.serverapp.kernel_manager
        for kernel_id, kept in self._kernels.items():
            record = kept.follower.record
            if kernel_id in manager and kept.follower.connected and record.kernel_state == "busy":
                kernel: Any = manager.get_kernel(kernel_id)
                kernel.last_activity = manager.last_kernel_activity = utcnow()

    def _note_unkept(self) -> None:
        """Log the kernels whose kernelspec has a provisioner of its own."""
        assert self.serverapp is not None
        manager = self.serverapp.kernel_manager
        for kernel_id in set(manager.list_kernel_ids()) - self._kernels.keys() - self._unkept:
            kernel = manager.get_kernel(kernel_id)
            if kernel.provisioner is not None and not isinstance(kernel.provisioner, KeeperProvisioner):
                self._unkept.add(kernel_id)
                self.log.info(
                    "output-keeper: kernel %s is not kept, its kernelspec %r has a provisioner of its own",
                    kernel_id,
                    kernel.kernel_name,
                )
