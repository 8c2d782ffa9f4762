"""The keeper as a process: what it is told, what it tells, and what is left when it has ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from harness import LIMIT, Environment, wait_until
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

from output_keeper.cli.kept import ask
from output_keeper.keeper.main import CANNOT_START, kernel_id_from
from output_keeper.record import store
from output_keeper.record.document import RecordDocument
from output_keeper.record.paths import record_path
from output_keeper.record.runs import Run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="keepers need POSIX signals and process groups")

KERNEL_ID = "7a0c2f3e-4b1d-4c55-9e0a-1f2d3c4b5a69"
IPYKERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


def script(code: str, *arguments: str) -> list[str]:
    """The argv of a kernel that is only a process; what it prints goes to the keeper's own output."""
    return [sys.executable, "-c", textwrap.dedent(code), "{connection_file}", *arguments]


class Keeper:
    """Keepers of one kernel_id, one after the other."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.records = environment.base / "records"
        self.connection_file = environment.runtime / f"kernel-{KERNEL_ID}.json"
        self.run_dir = environment.runtime / "output-keeper" / KERNEL_ID
        self.processes: list[subprocess.Popen[str]] = []
        self.clients: list[BlockingKernelClient] = []
        write_connection_file(str(self.connection_file), key=b"a key")

    def start(self, argv: Sequence[str], *options: str, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "output_keeper", "kernel", "-f", str(self.connection_file)]
        command += ["--record-dir", str(self.records), *options, "--", *argv]
        process = subprocess.Popen(
            command,
            env=self.environment.variables(),
            cwd=self.environment.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **more,
        )
        self.processes.append(process)
        return process

    @property
    def process(self) -> subprocess.Popen[str]:
        return self.processes[-1]

    def ended(self) -> tuple[int, str]:
        """Wait for the end; its exit code and what it and the kernel said."""
        said, _ = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, said

    def run(self) -> Run:
        wait_until((self.run_dir / "run.json").exists, what="the run file")
        return Run.read(self.run_dir)

    def kernel(self) -> psutil.Process:
        kernel = self.run().kernel
        assert kernel is not None
        return psutil.Process(kernel.pid)

    def client(self) -> BlockingKernelClient:
        made = BlockingKernelClient()
        made.load_connection_file(str(self.connection_file))
        made.start_channels()
        self.clients.append(made)
        made.wait_for_ready(timeout=LIMIT)
        return made

    def record(self) -> RecordDocument:
        record = RecordDocument()
        for update in store.read(record_path(KERNEL_ID, self.records)):
            record.apply(update)
        return record

    def close(self) -> None:
        for client in self.clients:
            client.stop_channels()
            client.context.destroy(linger=0)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=LIMIT)
        self.environment.assert_no_processes()


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    environment = Environment()
    made = Keeper(environment)
    yield made
    made.close()
    environment.close()


# -- how it ends


def test_its_exit_code_is_the_kernels_and_nothing_is_left(keeper: Keeper) -> None:
    keeper.start(script("raise SystemExit(3)"))
    assert keeper.ended()[0] == 3
    assert not keeper.run_dir.exists()
    (start,) = keeper.record().starts
    assert start["how"] == "the kernel exited with code 3"


def test_a_kernel_that_is_killed_is_told_as_shells_do(keeper: Keeper) -> None:
    keeper.start(IPYKERNEL)
    client = keeper.client()
    client.execute("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert keeper.ended()[0] == 137
    record = keeper.record()
    (view,) = record.views()
    assert (view.state.value, view.reason) == ("died", "the kernel was killed by signal 9 (SIGKILL)")
    assert "SIGKILL" in record.outputs(view.msg_id)[-1]["evalue"]
    assert not keeper.run_dir.exists()


def test_a_kernel_that_is_shut_down_by_its_client_was_not_killed(keeper: Keeper) -> None:
    keeper.start(IPYKERNEL)
    keeper.client().shutdown()
    assert keeper.ended()[0] == 0
    assert keeper.record().starts[0]["how"] == "the kernel was shut down"


@pytest.mark.parametrize("ignores", [False, True])
def test_sigterm_ends_the_kernel_even_one_that_ignores_it(keeper: Keeper, ignores: bool) -> None:
    ready = keeper.environment.base / "ready"
    code = """
        import signal, sys, time
        if sys.argv[3] == "True":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[2], "w").close()
        time.sleep(600)
    """
    keeper.start(script(code, str(ready), str(ignores)))
    wait_until(ready.exists)
    kernel = keeper.kernel()
    keeper.process.send_signal(signal.SIGTERM)
    assert keeper.ended()[0] == 128 + (signal.SIGKILL if ignores else signal.SIGTERM)
    assert not kernel.is_running()
    assert keeper.record().starts[0]["how"] == "the kernel was terminated"


def test_sigquit_kills_at_once_and_what_was_said_is_kept(keeper: Keeper) -> None:
    keeper.start(IPYKERNEL)
    client = keeper.client()
    client.execute("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('said'); time.sleep(600)")
    while client.get_iopub_msg(timeout=LIMIT)["msg_type"] != "stream":
        pass
    keeper.process.send_signal(signal.SIGQUIT)
    assert keeper.ended()[0] == 137
    (view,) = keeper.record().views()
    assert (view.state.value, view.reason) == ("interrupted", "the kernel was killed on request")
    assert [output["text"] for output in keeper.record().outputs(view.msg_id)] == ["said\n"]


def test_a_signal_in_the_first_moments_still_ends_both(keeper: Keeper) -> None:
    keeper.start(script("import time; time.sleep(600)"))
    wait_until((keeper.run_dir / "kernel.json").exists, every=0.001)
    keeper.process.send_signal(signal.SIGTERM)
    code, _ = keeper.ended()
    assert code in (128 + signal.SIGTERM, -signal.SIGTERM)


def test_sigint_reaches_the_kernel(keeper: Keeper) -> None:
    ready = keeper.environment.base / "ready"
    code = """
        import sys, time
        try:
            open(sys.argv[2], "w").close()
            time.sleep(600)
        except KeyboardInterrupt:
            raise SystemExit(9)
    """
    keeper.start(script(code, str(ready)))
    wait_until(ready.exists)
    keeper.process.send_signal(signal.SIGINT)
    assert keeper.ended()[0] == 9


def test_a_hangup_does_not_end_it(keeper: Keeper) -> None:
    keeper.start(IPYKERNEL)
    client = keeper.client()
    keeper.process.send_signal(signal.SIGHUP)
    assert client.execute_interactive("1", timeout=LIMIT)["content"]["status"] == "ok"


# -- a keeper that is killed


def test_the_kernel_ends_with_a_keeper_that_is_killed_and_the_next_one_says_so(keeper: Keeper) -> None:
    keeper.start(IPYKERNEL)
    client = keeper.client()
    kernel = keeper.kernel()
    client.execute("print('said'); import time; time.sleep(600)")
    wait_until(lambda: [view for view in keeper.record().views() if view.length])
    keeper.process.kill()
    keeper.ended()
    wait_until(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    assert (keeper.run_dir / "run.json").exists()
    assert not Run.read(keeper.run_dir).alive()

    keeper.start(IPYKERNEL)  # in what the first one left, on the same ports
    again = keeper.client()
    assert (
        again.execute_interactive("print('again')", timeout=LIMIT, output_hook=lambda _: None)["content"]["status"]
        == "ok"
    )
    again.shutdown()
    assert keeper.ended()[0] == 0
    assert not keeper.run_dir.exists()
    record = keeper.record()
    first, second = record.views()
    assert (first.state.value, first.start, second.state.value, second.start) == ("died", 0, "ok", 1)
    assert [output.get("text", output.get("ename")) for output in record.outputs(first.msg_id)] == [
        "said\n",
        "KernelDied",
    ]
    assert [start["how"] for start in record.starts][1] == "the kernel was shut down"


def test_a_restart_continues_the_record(keeper: Keeper) -> None:
    for number in range(2):
        keeper.start(IPYKERNEL)
        client = keeper.client()
        client.execute_interactive(f"print({number})", timeout=LIMIT, output_hook=lambda _: None)
        client.shutdown(restart=number == 0)
        assert keeper.ended()[0] == 0
    record = keeper.record()
    assert [(view.seq, view.start) for view in record.views()] == [(0, 0), (1, 1)]
    assert [record.outputs(msg_id)[0]["text"] for msg_id in record.msg_ids()] == ["0\n", "1\n"]
    assert [start["how"] for start in record.starts] == ["the kernel was restarted", "the kernel was shut down"]


# -- what it cannot start


@contextlib.contextmanager
def port_in_use(connection_file: Path) -> Iterator[None]:
    content = json.loads(connection_file.read_text())
    with socket.socket() as taken:
        taken.bind((content["ip"], content["iopub_port"]))
        taken.listen()
        yield


def nothing_was_started(keeper: Keeper, started: Path) -> bool:
    return not started.exists() and not keeper.run_dir.exists() and not record_path(KERNEL_ID, keeper.records).exists()


def test_a_port_in_use_is_said_and_no_kernel_is_started(keeper: Keeper) -> None:
    started = keeper.environment.base / "started"
    with port_in_use(keeper.connection_file):
        keeper.start(script("import sys; open(sys.argv[2], 'w')", str(started)))
        code, said = keeper.ended()
    assert code == CANNOT_START
    assert "cannot bind iopub" in said
    assert "in use" in said
    assert "Traceback" not in said
    assert nothing_was_started(keeper, started)


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "is not JSON"), ("[]", "is not a JSON object"), ('{"ip": "127.0.0.1"}', "shell_port")],
)
def test_a_connection_file_that_cannot_be_used_is_said_and_no_kernel_is_started(
    keeper: Keeper, content: str, says: str
) -> None:
    started = keeper.environment.base / "started"
    keeper.connection_file.write_text(content)
    keeper.start(script("import sys; open(sys.argv[2], 'w')", str(started)))
    code, said = keeper.ended()
    assert code == CANNOT_START
    assert says in said
    assert str(keeper.connection_file) in said
    assert nothing_was_started(keeper, started)


def test_a_kernel_that_is_no_program_leaves_nothing_behind(keeper: Keeper) -> None:
    keeper.start(["/no/such/kernel"])
    code, said = keeper.ended()
    assert code == CANNOT_START
    assert "/no/such/kernel" in said
    assert nothing_was_started(keeper, keeper.environment.base / "started")


def test_a_second_keeper_of_a_kernel_is_refused(keeper: Keeper) -> None:
    keeper.start(script("import time; time.sleep(600)"))
    run = keeper.run()
    keeper.start(script("raise SystemExit(0)"))
    code, said = keeper.ended()
    assert code == CANNOT_START
    assert "Traceback" not in said
    assert Run.read(keeper.run_dir) == run
    keeper.processes[0].send_signal(signal.SIGQUIT)
    keeper.processes[0].communicate(timeout=LIMIT)


# -- what others see


def test_the_run_folder_is_private_and_has_what_a_server_needs(keeper: Keeper) -> None:
    keeper.start(script("import time; time.sleep(600)"), "--kernel-name", "some-kernel")
    run = keeper.run()
    assert (run.kernel_id, run.kernel_name, run.cwd) == (KERNEL_ID, "some-kernel", str(keeper.environment.work))
    assert run.keeper.pid == keeper.process.pid
    assert run.alive()
    assert run.kernel_alive()
    assert run.connection["key"] == "a key"
    assert stat.S_IMODE(keeper.run_dir.stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in keeper.run_dir.iterdir() if path.is_file()}
    assert {"keeper.log", "kernel.json", "run.json", "lock"} <= set(files)
    assert set(files.values()) == {0o600}
    assert "started" in (keeper.run_dir / "keeper.log").read_text()
    keeper.process.send_signal(signal.SIGQUIT)
    keeper.ended()


def test_its_status_has_the_recorders_and_the_proxys_counters(keeper: Keeper) -> None:
    keeper.start(IPYKERNEL, "--expect-grants")
    keeper.client()
    context = zmq.Context[zmq.Socket[bytes]]()
    try:
        status = ask(context, keeper.run())
    finally:
        context.destroy(linger=0)
    assert status["recording"]
    assert status["messages"] > 0
    assert status["proxy"]["malformed"] == 0
    assert status["proxy"]["messages"]["shell"]["to_kernel"] > 0


def test_it_tells_its_launcher_when_the_kernel_runs(keeper: Keeper) -> None:
    read_end, write_end = os.pipe()
    keeper.start(script("import time; time.sleep(600)"), "--ready-fd", str(write_end), pass_fds=[write_end])
    os.close(write_end)
    with open(read_end) as ready:
        assert ready.read() == "ready\n"  # and its end is closed, or this would wait for ever
    assert keeper.kernel().is_running()
    keeper.process.send_signal(signal.SIGQUIT)
    keeper.ended()


def test_a_launcher_that_is_gone_does_not_end_the_kernel(keeper: Keeper) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    keeper.start(script("raise SystemExit(5)"), "--ready-fd", str(write_end), pass_fds=[write_end])
    os.close(write_end)
    assert keeper.ended()[0] == 5


def test_a_kernel_in_another_folder_with_another_environment(keeper: Keeper) -> None:
    folder = keeper.environment.base / "elsewhere"
    folder.mkdir()
    keeper.start(script("import os; print(os.getcwd(), os.environ['JPY_PARENT_PID'])"), "--cwd", str(folder))
    code, said = keeper.ended()
    assert (code, said.split()) == (0, [str(folder), str(keeper.process.pid)])


def test_an_unknown_log_level_is_no_reason_not_to_run(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = keeper.environment.variables(OUTPUT_KEEPER_LOG_LEVEL="LOUD")
    monkeypatch.setattr(keeper.environment, "variables", lambda: variables)
    keeper.start(script("raise SystemExit(6)"))
    assert keeper.ended()[0] == 6


def test_a_kernel_id_is_read_from_the_connection_files_name() -> None:
    assert kernel_id_from(Path(f"/run/kernel-{KERNEL_ID}.json")) == KERNEL_ID
    one, other = kernel_id_from(Path("/run/mine.json")), kernel_id_from(Path("/run/mine.json"))
    assert one != other
