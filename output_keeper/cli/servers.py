"""What this user's running Jupyter servers know: a kernel's notebooks, and kernels that nobody keeps."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from output_keeper.cli.kept import KernelStatus, State

if TYPE_CHECKING:
    from collections.abc import Iterable

ANSWER_TIMEOUT = 2.0  # s a server gets for an answer; its event loop may be busy


def with_servers(kernels: Iterable[KernelStatus]) -> tuple[list[KernelStatus], list[str]]:
    """Add what running servers know to ``kernels``: notebooks, execution states, kernels without a keeper.

    Gives also the addresses of servers that could not be asked (a password, a hub, no answer).
    """
    from jupyter_server.serverapp import list_running_servers

    kept = {kernel.kernel_id: kernel for kernel in kernels}
    unknown: list[str] = []
    for server in list_running_servers():
        running, sessions = _get(server, "api/kernels"), _get(server, "api/sessions")
        if running is None or sessions is None:
            unknown.append(str(server.get("url", "")))
            continue
        for model in running:
            kernel = kept.get(model["id"]) or KernelStatus(model["id"], model["name"], State.NOT_KEPT)
            kept[model["id"]] = dataclasses.replace(
                kernel,
                execution_state=model.get("execution_state"),
                notebooks=_notebooks(sessions, model["id"]) or kernel.notebooks,
            )
    return list(kept.values()), unknown


def _notebooks(sessions: Iterable[dict[str, Any]], kernel_id: str) -> list[str]:
    return sorted(
        session["path"]
        for session in sessions
        if session.get("type") == "notebook" and (session.get("kernel") or {}).get("id") == kernel_id
    )


def _get(server: dict[str, Any], path: str) -> list[dict[str, Any]] | None:
    """One REST answer of a server, None when it does not give one."""
    from tornado.httpclient import HTTPClient, HTTPError

    client = HTTPClient()
    try:
        answer = client.fetch(
            f"{server['url']}{path}",
            headers={"Authorization": f"token {server.get('token', '')}"},
            request_timeout=ANSWER_TIMEOUT,
            connect_timeout=ANSWER_TIMEOUT,
            follow_redirects=False,
            validate_cert=False,  # its certificate may be of its own making; the address is from its own file
        )
        found = json.loads(answer.body)
    except (HTTPError, OSError, ValueError, KeyError):
        return None
    finally:
        client.close()
    return found if isinstance(found, list) else None
