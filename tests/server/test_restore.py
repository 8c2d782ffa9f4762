"""The server is killed: keepers and kernels go on, and the next server of the same folder takes them back."""

from __future__ import annotations

import contextlib

import psutil
import pytest
from harness import KernelClient, Server, Trace, cell_on_disk, lines_on_disk, wait_until, write
from harness.notebooks import cell_id


@pytest.mark.parametrize("collaboration", [True, False])
def test_a_killed_servers_busy_kernel_is_there_in_the_next_ones_first_answer(trace: Trace, collaboration: bool) -> None:
    """Same kernel, same session, busy; its cell goes on, and the file is completed without anyone looking."""
    with Server(collaboration=collaboration) as server:
        write(server.path("nb.ipynb"), trace.printing_until("finish"), "print('next')")
        session = server.start_session("nb.ipynb")
        kernel_id = session["kernel"]["id"]
        server.api("POST", f"kernels/{kernel_id}/restart")  # its new keeper must know the session too
        client = KernelClient(server, kernel_id)
        client.execute(trace.printing_until("finish"), cell_id=cell_id(0))
        trace.wait(20)
        server.kill()
        client.close()
        trace.wait(len(trace.steps()) + 20)

        server.start()
        (kernel,) = server.kernels()
        assert (kernel["id"], kernel["execution_state"]) == (kernel_id, "busy")
        assert server.session("nb.ipynb")["id"] == session["id"]
        with KernelClient(server, kernel_id) as back:
            trace.open_gate("finish")
            wait_until(lambda: server.kernels()[0]["execution_state"] == "idle", what="the kernel is idle again")
            msg_id = back.execute("print(6 * 7)")
            back.wait_for_idle(msg_id)
            assert back.text(msg_id) == "42\n"
        path = server.path("nb.ipynb")
        wait_until(lambda: cell_on_disk(path)["execution_count"] == 1, what="[1] on disk", state=server.log)
        assert lines_on_disk(path) == trace.printed()

        server.api("POST", f"kernels/{kernel_id}/restart")
        with KernelClient(server, kernel_id) as again:
            msg_id = again.execute("import os; print(os.getcwd())")
            again.wait_for_idle(msg_id)
            assert again.text(msg_id).strip() == str(server.root)
        server.shutdown_kernels()


@pytest.mark.parametrize("collaboration", [True, False])
def test_what_was_printed_until_an_orderly_stop_is_in_the_file_after_the_next_start(
    trace: Trace, collaboration: bool
) -> None:
    """SIGTERM ends the kernels too; nobody was there to see the end."""
    with Server(collaboration=collaboration) as server:
        path = write(server.path("nb.ipynb"), trace.printing_until("never"))
        session = server.start_session("nb.ipynb")
        with KernelClient(server, session["kernel"]["id"]) as client:
            client.execute(trace.printing_until("never"), cell_id=cell_id(0))
            trace.wait(40)
        server.stop()
        server.environment.assert_no_processes()
        printed = trace.printed()

        server.start()
        wait_until(
            lambda: lines_on_disk(path)[: len(printed)] == printed, what="all lines on disk", state=lambda: server.log()
        )
        assert server.kernels() == []


def test_a_keeper_killed_with_its_server_leaves_a_truthful_cell(trace: Trace) -> None:
    """As after a reboot: the next server ends the running cell with an error output and aborts the queued one."""
    with Server() as server:
        path = write(server.path("nb.ipynb"), trace.printing_until("never"), "print('queued')")
        session = server.start_session("nb.ipynb")
        client = KernelClient(server, session["kernel"]["id"])
        client.execute(trace.printing_until("never"), cell_id=cell_id(0))
        client.execute("print('queued')", cell_id=cell_id(1))
        trace.wait(40)
        server.kill()
        for process in server.environment.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # the kernels end with their keepers
                if "output_keeper" in " ".join(process.cmdline()):
                    process.kill()
        server.environment.assert_no_processes()
        client.close()
        printed = trace.printed()

        server.start()
        assert server.kernels() == []

        def ended() -> bool:
            outputs = cell_on_disk(path)["outputs"]
            return bool(outputs) and outputs[-1].get("ename") == "KernelDied"

        wait_until(ended, what="the cell tells how it ended", state=server.log)
        # What was printed in the last moments before the kill may be missing, nothing before it.
        shown = lines_on_disk(path)
        assert shown == printed[: len(shown)]
        assert len(shown) >= len(printed) - 5
        assert cell_on_disk(path, 1)["outputs"] == []
