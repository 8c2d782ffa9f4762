"""What nbclient gives for a notebook: a plain local kernel in a process and an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

if __name__ == "__main__":
    from nbclient import NotebookClient

    target = Path(sys.argv[1])
    notebook = nbformat.read(target, as_version=4)
    NotebookClient(notebook, allow_errors=True, timeout=60).execute()
    nbformat.write(notebook, target)
else:
    from .environment import Environment


def nbclient_cells(notebook: nbformat.NotebookNode) -> list[dict[str, Any]]:
    """The notebook's cells as nbclient leaves them (errors allowed)."""
    environment = Environment()
    try:
        path = environment.work / "reference.ipynb"
        nbformat.write(notebook, path)
        subprocess.run(
            [sys.executable, __file__, str(path)],
            check=True,
            timeout=120,
            cwd=environment.work,
            env=environment.variables(JUPYTER_DEFAULT_PROVISIONER_NAME="local-provisioner"),
        )
        return nbformat.read(path, as_version=4).cells
    finally:
        environment.close()


def nbclient_outputs(notebook: nbformat.NotebookNode) -> list[list[dict[str, Any]]]:
    """The outputs of each cell as nbclient leaves them."""
    return [cell["outputs"] for cell in nbclient_cells(notebook)]
