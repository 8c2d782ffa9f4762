"""After a server's death: its keepers and kernels went on, and the next server of the same folder takes them back.

Everything here happens before the server answers its first request, because a page that misses its kernel in one
answer gives it up for good.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_client.kernelspec import NoSuchKernel
from jupyter_server.utils import ensure_async

from output_keeper.errors import OutputKeeperError, StoreError
from output_keeper.record import paths, runs
from output_keeper.record.ledger import Ledger
from output_keeper.record.paths import run_dir
from output_keeper.server.provisioner import KeeperProvisioner

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

    from output_keeper.server.follower import Follower

SYNC_LIMIT = 5.0  # s a keeper gets to send its record; without it the kernel is asked for its info, when it is idle


class Restorer:
    """Take back the kernels and sessions of keepers whose server is gone, and write down those of ours."""

    def __init__(self, serverapp: ServerApp, root: str, follower: Callable[[str], Follower | None]) -> None:
        self._serverapp = serverapp
        self._root = root
        self._follower = follower
        self._written: dict[str, list[dict[str, Any]]] = {}

    async def restore(self) -> None:
        """Attach to every keeper that belongs here and has no living server."""
        found = [run for run in runs.runs(self._unreadable) if run.root == self._root]
        await asyncio.gather(*(self._restore(run.kernel_id) for run in found))

    def watch_sessions(self) -> None:
        """From now on write the session rows of a kernel into its run file whenever a session changes."""
        manager = self._serverapp.session_manager
        for name in ("save_session", "update_session", "delete_session"):
            setattr(manager, name, self._then_write(getattr(manager, name)))

    async def launched(self, kernel_id: str) -> None:
        """Write the session rows into the run file of a keeper that has just started: after a restart it has none."""
        self._written.pop(kernel_id, None)
        await self._write_sessions()

    async def _restore(self, kernel_id: str) -> None:
        log = self._serverapp.log
        try:
            run = runs.claim(run_dir(kernel_id), self._root)
        except StoreError as error:
            log.warning("output-keeper: kernel %s is not restored: %s", kernel_id, error)
            return
        if run is None:
            return
        manager: Any = self._serverapp.kernel_manager
        KeeperProvisioner.attach[kernel_id] = run
        names = [row["path"] for row in run.sessions if row.get("path")]
        env = {**os.environ, **({"JPY_SESSION_NAME": str(Path(self._root) / names[0])} if names else {})}
        try:
            await ensure_async(
                manager.start_kernel(kernel_id=kernel_id, kernel_name=run.kernel_name, cwd=run.cwd, env=env)
            )
        except (NoSuchKernel, OutputKeeperError, OSError, RuntimeError) as error:
            KeeperProvisioner.attach.pop(kernel_id, None)
            log.error("output-keeper: kernel %s is not restored: %s", kernel_id, error)
            return
        await self._seed(kernel_id)
        for row in run.sessions:
            await self._restore_session(kernel_id, row)
        log.info("output-keeper: restored kernel %s with %d session(s)", kernel_id, len(run.sessions))

    async def _seed(self, kernel_id: str) -> None:
        """Say what the kernel said before: a busy one cannot be asked, and a page would wait for its answer."""
        follower = self._follower(kernel_id)
        if follower is None or not await follower.wait_synced(SYNC_LIMIT):
            return
        kernel: Any = self._serverapp.kernel_manager.get_kernel(kernel_id)
        kernel.execution_state = follower.record.kernel_state
        info = follower.record.kernel_info
        if info is not None:
            future: Future[Any] = Future()
            future.set_result(info)
            kernel._kernel_info_future = future  # noqa: SLF001  where the server looks for an answer it has

    async def _restore_session(self, kernel_id: str, row: dict[str, Any]) -> None:
        manager = self._serverapp.session_manager
        if not await manager.session_exists(path=row["path"]):
            await manager.save_session(
                row["id"], path=row["path"], name=row["name"], type=row["type"], kernel_id=kernel_id
            )

    def _then_write(self, method: Any) -> Any:
        async def changed(*arguments: Any, **keywords: Any) -> Any:
            result = await ensure_async(method(*arguments, **keywords))
            await self._write_sessions()
            return result

        return changed

    async def _write_sessions(self) -> None:
        """Bring the run files of our kernels to what the session manager says."""
        rows: dict[str, list[dict[str, Any]]] = {kernel_id: [] for kernel_id in self._written}
        for model in await ensure_async(self._serverapp.session_manager.list_sessions()):
            kernel_id = (model.get("kernel") or {}).get("id")
            if kernel_id is not None:
                rows.setdefault(kernel_id, []).append({key: model[key] for key in ("id", "path", "name", "type")})
        for kernel_id, sessions in rows.items():
            if self._written.get(kernel_id) == sessions or not run_dir(kernel_id).exists():
                continue
            try:
                await asyncio.to_thread(runs.change, run_dir(kernel_id), sessions=sessions)
            except StoreError as error:
                self._serverapp.log.debug("output-keeper: %s", error)  # its keeper has just ended
            else:
                self._written[kernel_id] = sessions

    def _unreadable(self, folder: Path, error: StoreError) -> None:
        self._serverapp.log.warning("output-keeper: %s: %s", folder, error)


def unsettled_records(record_dir: Path, root: str, log: logging.Logger) -> list[str]:
    """The kernel_ids of the records that the server of ``root`` has to settle, and whose keeper does not live.

    Reads every ledger: to be called in a thread.
    """
    found = []
    for kernel_id, _ in paths.records(record_dir):
        ledger_path = paths.ledger_path(kernel_id, record_dir)
        try:
            if not ledger_path.exists() or runs.locked(run_dir(kernel_id)):
                continue
            with Ledger.open(ledger_path) as ledger:
                if ledger.unsettled(root):
                    found.append(kernel_id)
        except StoreError as error:
            log.warning("output-keeper: %s", error)
    return found
