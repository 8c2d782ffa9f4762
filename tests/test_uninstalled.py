"""Uninstalled: kernels start as in plain Jupyter, kernelspecs are listed, nothing of ours is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PROGRAM = """
import importlib.util, json, os
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_server.extension.config import ExtensionConfigManager
from jupyter_core.paths import jupyter_config_path

manager = KernelManager(kernel_name="python3")
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
reply = client.execute_interactive("import os; assert os.getppid() == %d" % os.getpid(), timeout=60)
client.stop_channels()
manager.shutdown_kernel()
config = ExtensionConfigManager(read_config_path=jupyter_config_path())
print(json.dumps({
    "found": importlib.util.find_spec("output_keeper") is not None,
    "kernelspecs": sorted(KernelSpecManager().get_all_specs()),
    "provisioner": type(manager.provisioner).__name__,
    "status": reply["content"]["status"],
    "extensions": sorted(config.get_jpserver_extensions()),
}))
"""


def environment_without_us(folder: Path) -> Path:
    """Make a virtual environment that has every package of this one but output-keeper; give its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    libraries = next(folder.glob("[Ll]ib/**/site-packages"))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "output_keeper" not in entry.name and not (libraries / entry.name).exists():
            (libraries / entry.name).symlink_to(entry)
    return python


def test_a_kernel_is_the_clients_own_child_and_kernelspecs_are_listed(tmp_path: Path) -> None:
    python = environment_without_us(tmp_path / "venv")
    home = tmp_path / "home"
    home.mkdir()
    answer = subprocess.run(
        [python, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=150,
        cwd=home,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter")},
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    seen = json.loads(answer.stdout.splitlines()[-1])
    assert not seen["found"]
    assert (seen["provisioner"], seen["status"]) == ("LocalProvisioner", "ok")
    assert "python3" in seen["kernelspecs"]
    assert "output_keeper" not in seen["extensions"]
