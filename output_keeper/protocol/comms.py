"""Which outputs an Output widget takes for itself right now (ipywidgets, ``jupyter.widget`` comms).

An Output widget captures by setting its ``msg_id`` to the request whose outputs it wants, and stops by
setting it empty. Its model in the browser then hooks that request
(``@jupyter-widgets/jupyterlab-manager`` 5.0, ``output.js``): outputs and clear_output of the request go
into the widget instead of the cell. Of several widgets on one request the one that hooked last gets them,
and the one before it again when that one lets go.
"""

from __future__ import annotations

from typing import Any

WIDGET_TARGET = "jupyter.widget"


class OutputCapture:
    """Follows the Output widgets of one kernel from its comm messages on iopub."""

    def __init__(self) -> None:
        self._msg_ids: dict[str, str] = {}
        """By comm id of each open Output widget: what it captures, ``""`` for nothing."""
        self._hooks: dict[str, list[str]] = {}
        """By captured msg_id: the comm ids that hooked it, the innermost last."""

    def observe(self, msg_type: str, content: dict[str, Any]) -> None:
        """Take a message the kernel sent on iopub; what concerns no Output widget is ignored. Never raises.

        Both ``update`` and ``echo_update`` (the kernel confirms a state a browser sent) set the state, as the
        browser's model does: a kernel only echoes what it has taken over.
        """
        comm_id = content.get("comm_id")
        if not isinstance(comm_id, str):
            return
        if msg_type == "comm_close":
            self._hook(comm_id, "")
            self._msg_ids.pop(comm_id, None)
            return
        data = _object(content.get("data"))
        state = _object(data.get("state"))
        if msg_type == "comm_open":
            opens_output = content.get("target_name") == WIDGET_TARGET and state.get("_model_name") == "OutputModel"
            if opens_output:
                self._msg_ids.setdefault(comm_id, "")
        elif msg_type != "comm_msg" or data.get("method") not in ("update", "echo_update"):
            return
        if comm_id in self._msg_ids and "msg_id" in state:
            msg_id = state["msg_id"]
            self._hook(comm_id, msg_id if isinstance(msg_id, str) else "")

    def captures(self, parent_id: str) -> bool:
        """Whether outputs of this request go to a widget."""
        return parent_id in self._hooks

    def comm_for(self, parent_id: str) -> str | None:
        """Return the comm id of the widget that gets the outputs of this request, if one does."""
        hooks = self._hooks.get(parent_id)
        return hooks[-1] if hooks else None

    def _hook(self, comm_id: str, msg_id: str) -> None:
        before = self._msg_ids.get(comm_id, "")
        # Setting the same value is no change in the browser: it does not move the widget to the front.
        if before == msg_id:
            return
        if before:
            hooks = self._hooks[before]
            hooks.remove(comm_id)
            if not hooks:
                del self._hooks[before]
        if msg_id:
            self._hooks.setdefault(msg_id, []).append(comm_id)
        self._msg_ids[comm_id] = msg_id


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
