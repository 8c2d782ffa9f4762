"""A notebook's file, when no room shows it: projecting executions through the ContentsManager."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jupyter_server.utils import ensure_async
from tornado.web import HTTPError

from output_keeper.errors import NotebookError
from output_keeper.record.document import ExecutionView, RecordDocument
from output_keeper.record.projection import plan


@dataclass(frozen=True, slots=True)
class Target:
    """An execution and the record it is in."""

    record: RecordDocument
    view: ExecutionView


class Files:
    """Read and complete notebooks through the server's configured ContentsManager, never behind its back."""

    def __init__(self, contents_manager: Any) -> None:
        self._contents = contents_manager

    async def modified(self, path: str) -> datetime | None:
        """When the file was last written; None when there is none."""
        try:
            model = await ensure_async(self._contents.get(path, content=False))
        except HTTPError as error:
            if error.status_code == 404:
                return None
            raise NotebookError(f"{path}: {error}") from error
        except OSError as error:
            raise NotebookError(f"{path}: {error}") from error
        modified: datetime = model["last_modified"]
        return modified

    async def showing(self, path: str, targets: Sequence[Target]) -> set[str]:
        """The msg_ids of the executions that the saved file shows as the record has them."""
        model = await self._read(path)
        cells = [(target, find_cell(model["content"], target.view)) for target in targets]
        return {target.view.msg_id for target, cell in cells if cell is not None and _shows(cell, target)}

    async def has_cell(self, path: str, view: ExecutionView) -> bool:
        """Tell whether the saved notebook has the cell of this execution."""
        return find_cell((await self._read(path))["content"], view) is not None

    async def project(self, path: str, targets: Sequence[Target]) -> set[str]:
        """Bring the cells of these executions to what their records say, and save if that changes the file.

        Gives the msg_ids whose cell the notebook has. Raises `NotebookError` when the file cannot be read or written,
        or was written by somebody else meanwhile; nothing is changed then.
        """
        model = await self._read(path)
        notebook = model["content"]
        found: set[str] = set()
        changed = False
        for target in targets:
            cell = find_cell(notebook, target.view)
            if cell is None:
                continue
            found.add(target.view.msg_id)
            changed = _complete(cell, target) or changed
        if changed:
            if await self.modified(path) != model["last_modified"]:
                raise NotebookError(f"{path} was written by somebody else just now")
            try:
                await ensure_async(
                    self._contents.save({"type": "notebook", "format": "json", "content": notebook}, path)
                )
            except (HTTPError, OSError) as error:
                raise NotebookError(f"{path} cannot be saved: {error}") from error
        return found

    async def _read(self, path: str) -> dict[str, Any]:
        try:
            model: dict[str, Any] = await ensure_async(self._contents.get(path, content=True, type="notebook"))
        except (HTTPError, OSError) as error:
            raise NotebookError(f"{path} cannot be read: {error}") from error
        return model


def find_cell(notebook: Any, view: ExecutionView) -> Any | None:
    """The code cell of an execution in an nbformat notebook.

    By id; in a notebook without cell ids (nbformat < 4.5), the one code cell whose source is what was executed.
    """
    code_cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in code_cells:
        if cell.get("id") == view.cell_id:
            return cell
    if (notebook["nbformat"], notebook["nbformat_minor"]) < (4, 5):
        same = [cell for cell in code_cells if "".join(cell.get("source", "")) == view.code]
        if len(same) == 1:
            return same[0]
    return None


def _shows(cell: Any, target: Target) -> bool:
    count = target.view.execution_count if target.view.state.ended else None
    outputs = target.record.outputs(target.view.msg_id)
    return cell.get("execution_count") == count and plan(cell.get("outputs", []), outputs) is None


def _complete(cell: Any, target: Target) -> bool:
    """Bring a cell to what the record says; tell whether anything changed."""
    if _shows(cell, target):
        return False
    cell["outputs"] = target.record.outputs(target.view.msg_id)
    cell["execution_count"] = target.view.execution_count if target.view.state.ended else None
    # As the page that ran it would have; the contents manager signs it and takes it off.
    cell.setdefault("metadata", {})["trusted"] = True
    return True
