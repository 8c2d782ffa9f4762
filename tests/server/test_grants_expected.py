"""Whether a server tells its keepers to expect grants: only where notebooks can have rooms."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness import KernelClient, Server, write
from harness.notebooks import cell_id


@pytest.mark.parametrize(
    ("collaboration", "config", "expected"),
    [
        (True, {}, True),
        (True, {"YDocExtension": {"disable_rtc": True}}, False),
        (True, {"OutputKeeper": {"project": False}}, False),
        (False, {}, False),
    ],
)
def test_only_a_server_with_rooms_expects_grants(collaboration: bool, config: dict[str, Any], expected: bool) -> None:
    with Server(collaboration=collaboration, config=config) as server:
        write(server.path("nb.ipynb"), "print('at once')")
        session = server.start_session("nb.ipynb")
        kernel_id = session["kernel"]["id"]
        (run_file,) = server.environment.base.rglob("output-keeper/*/run.json")
        assert json.loads(run_file.read_text())["grants"] is expected
        with KernelClient(server, kernel_id) as client:
            msg_id = client.execute("print('at once')", cell_id=cell_id(0))
            client.wait_for_idle(msg_id)
            assert client.text(msg_id) == "at once\n"
        server.shutdown_kernels()
        server.stop()
