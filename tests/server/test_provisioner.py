"""Kernels outside a Jupyter server: the provisioner by its name in the environment, and what it falls back to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from jupyter_client import KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory

from output_keeper.record import paths, store
from output_keeper.record.document import RecordDocument
from output_keeper.server.provisioner import KeeperProvisioner, LaunchSettings


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "r"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "d"))
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "output-keeper")
    KernelProvisionerFactory.clear_instance()
    yield
    KernelProvisionerFactory.clear_instance()


def run(manager: KernelManager, code: str) -> str:
    """Run code in the manager's kernel; give what it printed."""
    client = manager.client()
    client.start_channels(hb=False)
    client.wait_for_ready(timeout=60)
    printed: list[str] = []
    client.execute_interactive(
        code, timeout=60, output_hook=lambda message: printed.append(message["content"].get("text", ""))
    )
    client.stop_channels()
    return "".join(printed)


def test_a_kernel_without_a_server_is_recorded() -> None:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    assert run(manager, "print(6 * 7)") == "42\n"
    manager.shutdown_kernel()
    ((_, path),) = paths.records()
    record = RecordDocument()
    for update in store.read(path):
        record.apply(update)
    (view,) = record.views()
    assert (view.code, view.cell_id, view.state.value, view.execution_count) == ("print(6 * 7)", None, "ok", 1)
    assert record.outputs(view.msg_id) == [{"output_type": "stream", "name": "stdout", "text": "42\n"}]


def test_where_no_keeper_can_start_the_kernel_runs_without_one_and_it_is_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(KeeperProvisioner, "settings", LaunchSettings(record_dir=str(tmp_path / "file" / "records")))
    manager = KernelManager(kernel_name="python3", log=logging.getLogger("manager"))
    manager.start_kernel()
    assert manager.provisioner is not None
    assert run(manager, "print(6 * 7)") == "42\n"
    assert not [child for child in psutil.Process().children() if "output_keeper" in " ".join(child.cmdline())]
    kernel_id = manager.provisioner.kernel_id
    manager.shutdown_kernel()
    assert str(tmp_path / "file") in KeeperProvisioner.unkept.pop(kernel_id)
    assert "starts without a keeper" in caplog.text


def test_a_killed_kernel_is_gone_with_its_keeper() -> None:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    pid = int(run(manager, "import os; print(os.getpid())"))
    keeper = psutil.Process(manager.provisioner.pid)
    manager.shutdown_kernel(now=True)
    assert not psutil.pid_exists(pid)
    assert not keeper.is_running()
