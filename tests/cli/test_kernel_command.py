"""``output-keeper kernel``: a command around a kernel's argv, usable by any launcher."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from harness import LIMIT, Environment, wait_until
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

from output_keeper.record import store
from output_keeper.record.document import RecordDocument
from output_keeper.record.paths import record_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


KERNEL_ID = "5d1f1f6e-1c55-4f0a-9d0e-6c1b4f6f2a11"


@pytest.fixture
def environment() -> Iterator[Environment]:
    made = Environment()
    yield made
    made.close()


class Launched:
    """A kernel under the command, and a client of it."""

    def __init__(self, environment: Environment, *options: str, argv: list[str] | None = None) -> None:
        self.connection_file = environment.runtime / f"kernel-{KERNEL_ID}.json"
        write_connection_file(str(self.connection_file), key=b"a key")
        self.log = environment.base / "log"
        command = [sys.executable, "-m", "output_keeper", "kernel", "-f", str(self.connection_file), *options]
        kernel = [sys.executable, "-m", "ipykernel_launcher", "-f", str(self.connection_file)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--", *(argv or kernel)],
                env=environment.variables(),
                cwd=environment.work,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.client = BlockingKernelClient(connection_file=str(self.connection_file))

    def connect(self) -> Launched:
        self.client.load_connection_file()
        self.client.start_channels(hb=False)  # its beats call a kernel dead that takes a second to start
        self.client.wait_for_ready(timeout=LIMIT)
        return self

    def run(self, code: str) -> list[str]:
        texts: list[str] = []

        def output(message: dict) -> None:
            if message["msg_type"] == "stream":
                texts.append(message["content"]["text"])

        self.client.execute_interactive(code, timeout=LIMIT, output_hook=output)
        return "".join(texts).splitlines()

    def said(self) -> str:
        """What it wrote, once it has ended."""
        self.process.wait(LIMIT)
        return self.log.read_text()

    def close(self) -> None:
        if self.client.channels_running:
            self.client.stop_channels()
        self.client.context.destroy(linger=0)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT)


@pytest.fixture
def launched(environment: Environment) -> Iterator[Launched]:
    with contextlib.closing(Launched(environment, "--record-dir", str(environment.base / "records"))) as made:
        yield made.connect()


def usage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "output_keeper", *arguments], capture_output=True, text=True, check=False, timeout=LIMIT
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["kernel", "-f", "x.json"], "comes after --"),
        (["kernel", "-f", "x.json", "--"], "no kernel command line after --"),
        (["kernel", "--", "python"], "-f/--connection-file"),
        (["kernel", "-f", "x.json", "--sync", "never", "--", "python"], "--sync"),
        ([], "VERB"),
        (["keep"], "keep"),
    ],
)
def test_a_wrong_command_line_is_said_and_exits_with_2(arguments: list[str], says: str) -> None:
    ended = usage(*arguments)
    assert ended.returncode == 2
    assert says in ended.stderr


def test_a_connection_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    ended = usage("kernel", "-f", str(tmp_path / "none.json"), "--", sys.executable)
    assert ended.returncode == 70
    assert str(tmp_path / "none.json") in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_client_of_the_connection_file_runs_code_and_the_record_has_it(
    launched: Launched, environment: Environment
) -> None:
    assert launched.run("print('hello'); print('world')") == ["hello", "world"]
    launched.client.shutdown()
    assert launched.process.wait(LIMIT) == 0
    record = RecordDocument()
    for update in store.read(record_path(KERNEL_ID, environment.base / "records")):
        record.apply(update)
    (view,) = record.views()
    assert view.code == "print('hello'); print('world')"
    assert record.outputs(view.msg_id) == [{"output_type": "stream", "name": "stdout", "text": "hello\nworld\n"}]
    environment.assert_no_processes()


def test_sigint_interrupts_the_kernel_and_the_command_lives_on(launched: Launched, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    msg_id = launched.client.execute(f"import time\nopen({str(ready)!r}, 'w').close()\ntime.sleep(600)")
    wait_until(ready.exists, what="the cell runs")
    launched.process.send_signal(signal.SIGINT)
    while (reply := launched.client.get_shell_msg(timeout=LIMIT))["parent_header"]["msg_id"] != msg_id:
        pass
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert launched.run("print(1 + 1)") == ["2"]


def test_sigterm_ends_both(launched: Launched, environment: Environment) -> None:
    (pid,) = launched.run("import os; print(os.getpid())")
    launched.process.send_signal(signal.SIGTERM)
    launched.process.wait(LIMIT)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    environment.assert_no_processes()


def test_its_exit_code_is_the_kernels(launched: Launched) -> None:
    launched.client.execute("import os; os._exit(7)")
    assert launched.process.wait(LIMIT) == 7


def test_a_kernel_that_is_no_program_is_said(environment: Environment) -> None:
    with contextlib.closing(Launched(environment, argv=["/no/such/kernel"])) as launched:
        said = launched.said()
        assert launched.process.returncode == 70
        assert "/no/such/kernel" in said


def test_status_sees_it_in_the_runtime_folder(launched: Launched, environment: Environment) -> None:
    launched.run("1")
    seen = subprocess.run(
        [sys.executable, "-m", "output_keeper", "status", "--json"],
        env=environment.variables(),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    (kernel,) = json.loads(seen.stdout)["kernels"]
    assert (kernel["kernel_id"], kernel["state"]) == (KERNEL_ID, "recording")
    assert kernel["record"] == str(record_path(KERNEL_ID, environment.base / "records"))
