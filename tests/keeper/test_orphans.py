"""A kernel goes with who launched it: at once, or, when that was a Jupyter server, after a time without activity."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from harness import wait_until

LAUNCHER = """
import sys, time
from jupyter_client import KernelManager
from output_keeper.server.provisioner import KeeperProvisioner, LaunchSettings

root, timeout, independent = sys.argv[1], float(sys.argv[2]), sys.argv[3] == "independent"
KeeperProvisioner.settings = LaunchSettings(root=root, orphan_timeout=timeout)
manager = KernelManager(kernel_name="python3")
manager.start_kernel(independent=independent)
client = manager.client()
client.start_channels(hb=False)
client.wait_for_ready(timeout=60)
print(manager.provisioner.pid, flush=True)
time.sleep(600)
"""


def launch(
    tmp_path: Path, root: str, timeout: float, independent: str = ""
) -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a launcher with an idle kernel under a keeper; give both processes."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, root, str(timeout), independent],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "JUPYTER_DEFAULT_PROVISIONER_NAME": "output-keeper",
            "JUPYTER_RUNTIME_DIR": str(tmp_path / "r"),
            "JUPYTER_DATA_DIR": str(tmp_path / "d"),
            "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter"),
        },
    )
    assert launcher.stdout is not None
    return launcher, psutil.Process(int(launcher.stdout.readline()))


def end(launcher: subprocess.Popen[str]) -> None:
    """Kill a launcher, which can say nothing to its kernel any more."""
    launcher.kill()
    launcher.wait()
    assert launcher.stdout is not None
    launcher.stdout.close()


@pytest.mark.parametrize("root", ["", "/srv/notebooks"])
def test_a_kernel_whose_launcher_was_killed_ends_with_its_keeper(tmp_path: Path, root: str) -> None:
    launcher, keeper = launch(tmp_path, root, timeout=0.5)
    kernels = keeper.children(recursive=True)
    assert kernels
    end(launcher)
    wait_until(lambda: not keeper.is_running(), what="the keeper has ended")
    wait_until(lambda: not any(kernel.is_running() for kernel in kernels), what="the kernel has ended")
    assert not any((tmp_path / "r" / "output-keeper").iterdir())


@pytest.mark.parametrize(("root", "independent"), [("/srv/notebooks", ""), ("", "independent")])
def test_a_servers_kernel_waits_for_the_next_server_and_an_independent_one_for_ever(
    tmp_path: Path, root: str, independent: str
) -> None:
    launcher, keeper = launch(tmp_path, root, 3600.0, independent)
    end(launcher)
    log = next((tmp_path / "r" / "output-keeper").glob("*/keeper.log"))
    with pytest.raises(psutil.TimeoutExpired):
        keeper.wait(6)  # three times as long as a keeper needs to see that its launcher is gone
    assert "nobody wants" not in log.read_text()
    keeper.terminate()
    wait_until(lambda: not keeper.is_running(), what="the keeper has ended")
