"""Kernels live and die under a keeper as they do without one, and their cells say how they ended."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from harness import KernelClient, Server, Trace, build, cell_on_disk, stream_text, wait_until, write
from kept import Kept
from nbformat import write as write_notebook

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = str(Path(__file__).parent.parent / "kernels" / "tiny_kernel.py")
IPYKERNEL = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]


@pytest.fixture
def kernelspec(server: Server) -> Callable[..., str]:
    """Installs a kernelspec and returns its name."""

    def install(name: str, argv: list[str], language: str = "python", **more: Any) -> str:
        folder = server.environment.data / "kernels" / name
        folder.mkdir(parents=True)
        spec = {"argv": argv, "display_name": name, "language": language, **more}
        (folder / "kernel.json").write_text(json.dumps(spec))
        return name

    return install


def kernel_process(server: Server, kernel_id: str) -> psutil.Process:
    """The kernel itself: the child of its keeper."""
    run = json.loads((run_folder(server, kernel_id) / "run.json").read_text())
    return psutil.Process(run["kernel"]["pid"])


def run_folder(server: Server, kernel_id: str) -> Path:
    return server.environment.runtime / "output-keeper" / kernel_id


def count_on_disk(server: Server, notebook: str, index: int = 0) -> Any:
    return cell_on_disk(server.path(notebook), index)["execution_count"]


def run_and_wait(server: Server, kernel_id: str, code: str) -> str:
    """What the code prints, seen by a client without a cell."""
    with KernelClient(server, kernel_id) as client:
        msg_id = client.execute(code)
        client.wait_for_idle(msg_id)
        return client.text(msg_id)


def left_running(server: Server, notebook: str, trace: Trace, source: str) -> tuple[str, str, str]:
    """Run ``source`` and queue another cell behind it, and leave; give kernel_id and both msg_ids."""
    write(server.path(notebook), source, "print('queued')")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    client = KernelClient(server, kernel_id)
    running = client.execute(source, cell_id="cell-0")
    queued = client.execute("print('queued')", cell_id="cell-1")
    trace.wait_for("ran")
    client.leave()
    return kernel_id, running, queued


def test_a_restart_ends_the_running_cell(server: Server, notebook: str, trace: Trace) -> None:
    """Also one that does not listen to the interrupt that the server sends first."""
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    source = trace.prelude() + deaf + "print('before', flush=True); note('ran'); gate('never')"
    kernel_id, running, queued = left_running(server, notebook, trace, source)
    kept = Kept(server, kernel_id)
    server.api("POST", f"kernels/{kernel_id}/restart")
    assert kept.wait_for_end(running).state.value == "interrupted"
    assert kept.wait_for_end(queued).state.value == "aborted"
    wait_until(lambda: count_on_disk(server, notebook) == 1, what="the cell has ended on disk")
    assert stream_text(cell_on_disk(server.path(notebook))["outputs"]) == "before\n"
    assert cell_on_disk(server.path(notebook), 1)["outputs"] == []
    kept.wait_until_settled(running)
    assert run_and_wait(server, kernel_id, "print(6 * 7)") == "42\n"


def test_a_killed_kernel_is_started_again_and_its_cell_says_so(server: Server, notebook: str, trace: Trace) -> None:
    source = trace.prelude() + "print('before', flush=True); note('ran'); gate('never')"
    kernel_id, running, queued = left_running(server, notebook, trace, source)
    kept = Kept(server, kernel_id)
    first = kernel_process(server, kernel_id)
    first.send_signal(signal.SIGKILL)
    assert kept.wait_for_end(running).state.value == "died"
    assert kept.wait_for_end(queued).state.value == "aborted"
    wait_until(lambda: count_on_disk(server, notebook) == 1, what="the cell has ended on disk")
    printed, error = cell_on_disk(server.path(notebook))["outputs"]
    assert printed["text"] == "before\n"
    assert error["output_type"] == "error"
    assert "SIGKILL" in error["evalue"]
    assert cell_on_disk(server.path(notebook), 1)["outputs"] == []
    wait_until(
        lambda: (
            (run_folder(server, kernel_id) / "run.json").exists() and kernel_process(server, kernel_id).pid != first.pid
        ),
        what="the kernel is started again under a keeper",
    )
    assert run_and_wait(server, kernel_id, "print(6 * 7)") == "42\n"
    again = KernelClient(server, kernel_id)
    msg_id = again.execute("print('again')", cell_id="cell-1")
    again.wait_for_idle(msg_id)
    again.leave()
    wait_until(
        lambda: stream_text(cell_on_disk(server.path(notebook), 1)["outputs"]) == "again\n",
        what="the new kernel's outputs are kept",
    )


def test_three_restarts_in_a_row_then_nothing_is_left(server: Server, notebook: str) -> None:
    write(server.path(notebook), "print(1)")
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    pids = {kernel_process(server, kernel_id).pid}
    for _ in range(3):
        # a kernel that is only just starting dies of the interrupt that the server sends before a restart
        assert run_and_wait(server, kernel_id, "print(1)") == "1\n"
        server.api("POST", f"kernels/{kernel_id}/restart")
        pids.add(kernel_process(server, kernel_id).pid)
    assert len(pids) == 4
    client = KernelClient(server, kernel_id)
    client.wait_for_idle(client.execute("print(1)", cell_id="cell-0"))
    client.leave()
    wait_until(lambda: count_on_disk(server, notebook) == 1, what="the outputs are kept")
    assert [start["how"] for start in Kept(server, kernel_id).record().starts[:3]] == ["the kernel was restarted"] * 3
    server.shutdown_kernels()
    assert not run_folder(server, kernel_id).exists()


@pytest.mark.parametrize("mode", ["signal", "message"])
def test_interrupt_ends_the_cell_with_its_error(
    server: Server, notebook: str, trace: Trace, kernelspec: Callable[..., str], mode: str
) -> None:
    source = trace.prelude() + "print('before', flush=True); note('ran'); gate('never')"
    write(server.path(notebook), source)
    name = kernelspec(f"interrupt-by-{mode}", IPYKERNEL, interrupt_mode=mode)
    kernel_id = server.start_session(notebook, name)["kernel"]["id"]
    client = KernelClient(server, kernel_id)
    client.execute(source, cell_id="cell-0")
    trace.wait_for("ran")
    client.leave()
    server.api("POST", f"kernels/{kernel_id}/interrupt")
    wait_until(lambda: count_on_disk(server, notebook) == 1, what="the cell has ended on disk")
    printed, error = cell_on_disk(server.path(notebook))["outputs"]
    assert printed["text"] == "before\n"
    assert error["ename"] == "KeyboardInterrupt"


def tiny_notebook(server: Server, notebook: str, *sources: str) -> None:
    node = build(*sources)
    node.metadata = {"kernelspec": {"name": "tiny", "display_name": "tiny", "language": "tiny"}}
    write_notebook(node, server.path(notebook))


def test_a_kernel_in_another_language_is_kept(
    server: Server, notebook: str, tmp_path: Path, kernelspec: Callable[..., str]
) -> None:
    gate = tmp_path / "gate"
    sources = [f"say one\nwait {gate}\nsay two", "fail"]
    tiny_notebook(server, notebook, *sources)
    name = kernelspec("tiny", [sys.executable, TINY, "{connection_file}"], "tiny")
    kernel_id = server.start_session(notebook, name)["kernel"]["id"]
    kept = Kept(server, kernel_id)
    client = KernelClient(server, kernel_id)
    msg_ids = [client.execute(source, cell_id=f"cell-{index}") for index, source in enumerate(sources)]
    client.wait_for(lambda m: m["header"]["msg_type"] == "stream", what="the first output")
    client.leave()
    gate.touch()
    wait_until(lambda: count_on_disk(server, notebook, 1) == 2, what="both cells have ended on disk")
    assert stream_text(cell_on_disk(server.path(notebook))["outputs"]) == "one\ntwo\n"
    (error,) = cell_on_disk(server.path(notebook), 1)["outputs"]
    assert error["evalue"] == "fail"
    assert [kept.wait_for_end(msg_id).state.value for msg_id in msg_ids] == ["ok", "error"]


def test_a_kernel_that_does_not_listen_is_killed(
    server: Server, notebook: str, tmp_path: Path, kernelspec: Callable[..., str]
) -> None:
    source = f"say one\nwait {tmp_path / 'never'}"
    tiny_notebook(server, notebook, source)
    name = kernelspec("stubborn", [sys.executable, TINY, "{connection_file}", "--stubborn"], "tiny")
    session = server.start_session(notebook, name)
    kernel_id = session["kernel"]["id"]
    client = KernelClient(server, kernel_id)
    msg_id = client.execute(source, cell_id="cell-0")
    client.wait_for(lambda m: m["header"]["msg_type"] == "stream", what="the first output")
    client.leave()
    process = kernel_process(server, kernel_id)
    server.api("DELETE", f"kernels/{kernel_id}")
    wait_until(lambda: not process.is_running(), what="the kernel is gone")
    server.assert_no_kernels_left()
    assert not run_folder(server, kernel_id).exists()
    assert Kept(server, kernel_id).wait_for_end(msg_id).state.value == "interrupted"
    wait_until(lambda: count_on_disk(server, notebook) == 1, what="the cell has ended on disk")
    assert stream_text(cell_on_disk(server.path(notebook))["outputs"]) == "one\n"


def test_a_kernelspec_with_its_own_provisioner_keeps_it(
    server: Server, notebook: str, kernelspec: Callable[..., str]
) -> None:
    write(server.path(notebook), "print(1)")
    name = kernelspec(
        "own-provisioner", IPYKERNEL, metadata={"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
    )
    kernel_id = server.start_session(notebook, name)["kernel"]["id"]
    before = server.path(notebook).read_bytes()
    client = KernelClient(server, kernel_id)
    msg_id = client.execute("print(6 * 7)", cell_id="cell-0")
    client.wait_for_idle(msg_id)
    assert client.text(msg_id) == "42\n"
    client.leave()
    assert not run_folder(server, kernel_id).exists()
    assert not Kept(server, kernel_id).record().msg_ids()
    assert server.path(notebook).read_bytes() == before
    wait_until(lambda: f"kernel {kernel_id} is not kept" in server.log(), what="the log says so")


def test_two_kernels_do_not_mix(server: Server, notebook: str, trace: Trace) -> None:
    names = [f"one-{notebook}", f"two-{notebook}"]
    clients = []
    for number, name in enumerate(names):
        source = trace.prelude() + f"gate('go'); print({number})"
        write(server.path(name), source)
        clients.append(KernelClient(server, server.start_session(name)["kernel"]["id"]))
        clients[-1].execute(source, cell_id="cell-0")
    for client in clients:
        client.wait_for(lambda m: m["header"]["msg_type"] == "execute_input", what="the cell runs")
        client.leave()
    trace.open_gate("go")
    for number, name in enumerate(names):
        wait_until(
            lambda name=name: count_on_disk(server, name) == 1,
            what=f"{name} is completed",
        )
        assert stream_text(cell_on_disk(server.path(name))["outputs"]) == f"{number}\n"


def test_an_executing_kernel_is_active_although_nothing_passes(server: Server, notebook: str, trace: Trace) -> None:
    """What a culler reads goes on while a cell computes in silence and nobody is connected."""
    source = trace.prelude() + "note('ran'); gate('go')"
    write(server.path(notebook), source)
    kernel_id = server.start_session(notebook)["kernel"]["id"]
    client = KernelClient(server, kernel_id)
    client.execute(source, cell_id="cell-0")
    trace.wait_for("ran")
    client.wait_for(lambda m: m["header"]["msg_type"] == "execute_input", what="the cell runs")
    client.leave()

    def activity() -> tuple[str, str]:
        return server.kernels()[0]["last_activity"], server.api("GET", "status")["last_activity"]

    for _ in range(2):  # the first may be the client's going
        before = activity()
        wait_until(
            lambda before=before: all(now > then for now, then in zip(activity(), before, strict=True)),
            what="the kernel is active",
        )
    trace.open_gate("go")
    wait_until(lambda: server.kernels()[0]["execution_state"] == "idle", what="the kernel is idle")
