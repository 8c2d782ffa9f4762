"""``output-keeper status``: what it says is what a server would do, and what keepers are."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jupyter_server
import psutil
import pytest
from harness import LIMIT, Environment, Server, wait_until, write
from jupyter_server.serverapp import ServerApp

from output_keeper.cli.checks import EXTENSION, Check, Level, ServerConfig, check_all, mode
from output_keeper.cli.kept import KernelStatus, State
from output_keeper.cli.status import Status, render
from output_keeper.record.paths import runs_dir

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    """This process looks at an environment's folders instead of the user's."""
    made = Environment()
    for name in [name for name in os.environ if name.startswith(("JUPYTER", "OUTPUT_KEEPER"))]:
        monkeypatch.delenv(name)
    for name, value in made.variables().items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


def check(name: str, config: ServerConfig | None = None) -> Check:
    (found,) = [each for each in check_all(config or ServerConfig.load()) if each.name == name]
    return found


def run_status(environment: Environment, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "output_keeper", "status", *options],
        env=environment.variables(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )


def kernels(environment: Environment) -> list[dict[str, Any]]:
    return json.loads(run_status(environment, "--json").stdout)["kernels"]


# -- is recording on ------------------------------------------------------------------------------------------------


def test_it_is_on_where_it_is_installed(environment: Environment) -> None:
    ended = run_status(environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[0].endswith("recording is on")
    assert ended.stderr == ""


def test_every_field_of_the_json_object_is_documented(environment: Environment) -> None:
    ended = run_status(environment, "--json")
    found = json.loads(ended.stdout)
    assert found["recording"] is True
    assert found["format"] == 1
    documented = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    kernel = KernelStatus("id", "python3", State.GONE).to_json()
    fields = {*found, *found["checks"][0], *kernel, *kernel["refused"]}
    assert [name for name in sorted(fields) if f"`{name}`" not in documented] == []
    assert [state.value for state in State if f"`{state.value}`" not in documented] == []
    assert [each["name"] for each in found["checks"] if f"`{each['name']}`" not in documented] == []


FALSE = {"ServerApp": {"jpserver_extensions": {EXTENSION: False}}}
TRUE = {"ServerApp": {"jpserver_extensions": {EXTENSION: True}}}
UNRELATED = {"ServerApp": {"jpserver_extensions": {"something_else": False}}}


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"jupyter_server_config.json": FALSE},
        {"jupyter_server_config.json": TRUE},
        {"jupyter_server_config.json": UNRELATED},
        {"jupyter_server_config.d/output_keeper.json": FALSE},
        {"jupyter_server_config.d/output_keeper.json": FALSE, "jupyter_server_config.json": TRUE},
        {"jupyter_server_config.py": f"c.ServerApp.jpserver_extensions = {{'{EXTENSION}': False}}"},
        {"jupyter_server_config.py": f"c.ServerApp.jpserver_extensions.update({{'{EXTENSION}': False}})"},
        {"jupyter_config.py": f"c.ServerApp.jpserver_extensions = {{'{EXTENSION}': False}}"},
        {
            "jupyter_server_config.py": f"c.ServerApp.jpserver_extensions = {{'{EXTENSION}': True}}",
            "jupyter_server_config.json": FALSE,
        },
        {"jupyter_server_config.json": "{not json"},
    ],
    ids=str,
)
@pytest.mark.parametrize("user_first", ["0", "1"])
def test_it_says_of_a_config_what_a_server_makes_of_it(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, files: dict[str, Any], user_first: str
) -> None:
    """Jupyter's own server reads the same files."""
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0" if user_first == "1" else "1")
    for name, content in files.items():
        path = environment.config / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    server = ServerApp(log_level="CRITICAL")
    server.load_config_file()
    server.find_server_extensions()
    config = ServerConfig.load()
    assert bool(config.extensions.get(EXTENSION)) is bool(server.jpserver_extensions.get(EXTENSION))
    assert (check("extension", config).level is Level.OK) is bool(server.jpserver_extensions.get(EXTENSION))
    assert bool(config.error) is ("{not json" in files.values())


def test_switched_off_by_a_config_file_names_the_file(environment: Environment) -> None:
    file = environment.config / "jupyter_server_config.json"
    file.write_text(json.dumps(FALSE))
    ended = run_status(environment)
    assert ended.returncode == 1
    assert "RECORDING IS OFF" in ended.stdout
    assert f"switched off by {file}" in ended.stdout
    assert "jupyter server extension enable output_keeper" in ended.stdout


def test_no_config_file_at_all(environment: Environment) -> None:
    nothing = ServerConfig(values={}, extensions={}, folders=[str(environment.config)])
    found = check("extension", nothing)
    assert found.level is Level.PROBLEM
    assert str(environment.config) in found.says


def test_a_config_file_that_fails_is_named_and_nothing_is_hidden(environment: Environment) -> None:
    (environment.config / "jupyter_server_config.py").write_text("1 / 0")
    ended = run_status(environment)
    assert ended.returncode == 0
    assert "jupyter_server_config.py: ZeroDivisionError" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_another_default_provisioner_in_the_environment(environment: Environment) -> None:
    ended = run_status(environment, JUPYTER_DEFAULT_PROVISIONER_NAME="local-provisioner")
    assert ended.returncode == 1
    assert "JUPYTER_DEFAULT_PROVISIONER_NAME is 'local-provisioner'" in ended.stdout


def test_another_default_provisioner_in_a_config_file(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = "c.KernelProvisionerFactory.default_provisioner_name = "
    file = environment.config / "jupyter_server_config.py"
    file.write_text(setting + "'local-provisioner'")
    assert check("default provisioner").level is Level.PROBLEM
    file.write_text(setting + "'output-keeper'")
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "local-provisioner")  # config wins
    assert check("default provisioner").level is Level.OK


def test_a_kernelspec_with_a_provisioner_of_its_own_is_named(environment: Environment) -> None:
    folder = environment.data / "kernels" / "remote"
    folder.mkdir(parents=True)
    metadata = {"kernel_provisioner": {"provisioner_name": "somewhere-else"}}
    spec = {"argv": ["x"], "display_name": "Remote", "language": "python", "metadata": metadata}
    (folder / "kernel.json").write_text(json.dumps(spec))
    found = check("kernelspecs")
    assert found.level is Level.NOTE
    assert "remote (somewhere-else)" in found.says
    assert "kept: python3" in found.says


def test_a_record_folder_that_cannot_be_one(environment: Environment) -> None:
    file = environment.base / "a file"
    file.touch()
    (environment.config / "jupyter_server_config.py").write_text(f"c.OutputKeeper.record_dir = {str(file)!r}")
    assert check("records").level is Level.PROBLEM
    assert str(file) in check("records").says


def test_a_record_folder_that_others_can_enter(environment: Environment) -> None:
    folder = environment.base / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    (environment.config / "jupyter_server_config.py").write_text(f"c.OutputKeeper.record_dir = {str(folder)!r}")
    found = check("records")
    assert found.level is Level.PROBLEM
    assert "chmod 700" in found.do


def test_looking_makes_no_folder(environment: Environment) -> None:
    assert run_status(environment).returncode == 0
    assert not (environment.data / "output-keeper").exists()
    assert not runs_dir().exists()


@pytest.mark.parametrize(
    ("line", "how"),
    [
        ("", "collaboration"),
        ("c.YDocExtension.disable_rtc = True", "plain"),
        ("c.ServerApp.jpserver_extensions = {'jupyter_server_ydoc': False}", "plain"),
        ("c.OutputKeeper.project = False", "off"),
    ],
)
def test_the_mode_follows_collaboration_and_config(environment: Environment, line: str, how: str) -> None:
    (environment.config / "jupyter_server_config.py").write_text(line)
    assert mode(ServerConfig.load()) == how
    assert check("notebooks").level is (Level.OK if how == "collaboration" else Level.NOTE)


def test_a_jupyter_server_that_is_too_old(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jupyter_server, "version_info", (2, 13, 9))
    found = check("jupyter_server")
    assert found.level is Level.PROBLEM
    assert found.do == 'pip install --upgrade "jupyter_server>=2.14"'


def test_a_copy_that_was_not_installed(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: importlib.metadata.EntryPoints())
    assert check("provisioner").level is Level.PROBLEM


# -- which kernels are kept -----------------------------------------------------------------------------------------


def test_a_kept_kernel_its_notebook_and_how_its_keeper_is() -> None:
    """Recording; then the keeper is stopped and does not answer; then it is killed."""
    with Server(collaboration=False) as server:
        write(server.path("a b.ipynb"), "print(1)")
        kernel_id = server.start_session("a b.ipynb")["kernel"]["id"]
        (kernel,) = kernels(server.environment)
        assert kernel["kernel_id"] == kernel_id
        assert kernel["kernel_name"] == "python3"
        assert kernel["notebooks"] == ["a b.ipynb"]
        assert kernel["state"] == "recording"
        assert kernel["execution_state"] in {"starting", "idle", "busy"}
        assert (kernel["executions"], kernel["error"]) == (0, "")
        assert Path(kernel["record"]).stat().st_size <= kernel["record_bytes"]

        keeper = psutil.Process(kernel["pid"])
        keeper.send_signal(signal.SIGSTOP)
        try:
            (kernel,) = kernels(server.environment)
            text = run_status(server.environment).stdout
        finally:
            keeper.send_signal(signal.SIGCONT)
        assert kernel["state"] == "unresponsive"
        assert "did not answer" in kernel["error"]
        assert "keeper does not answer" in text
        assert "a b.ipynb" in text

        server.kill()
        keeper.kill()
        wait_until(lambda: not keeper.is_running() or keeper.status() == psutil.STATUS_ZOMBIE, what="it is dead")
        (kernel,) = kernels(server.environment)
        assert kernel["state"] == "gone"
        assert Path(kernel["record"]).exists()


def test_a_kernel_of_a_server_without_a_keeper_is_shown_as_not_kept() -> None:
    with Server(collaboration=False, keeper=False) as server:
        write(server.path("n.ipynb"), "print(1)")
        kernel_id = server.start_session("n.ipynb")["kernel"]["id"]
        ended = run_status(server.environment)
        assert ended.returncode == 1
        assert f"python3 {kernel_id}  NOT KEPT  n.ipynb" in ended.stdout
        (kernel,) = kernels(server.environment)
        assert (kernel["state"], kernel["record"]) == ("not kept", None)


def test_a_server_that_does_not_let_us_in_is_named(environment: Environment) -> None:
    info = {"pid": os.getpid(), "url": "http://127.0.0.1:9/", "token": "x"}
    (environment.runtime / "jpserver-1.json").write_text(json.dumps(info))
    ended = run_status(environment)
    assert ended.returncode == 0
    assert "server cannot be asked  http://127.0.0.1:9/" in ended.stdout


def test_a_run_file_that_is_none_is_named(environment: Environment) -> None:
    folder = runs_dir() / "abc"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "run.json").write_text("{}")
    found = json.loads(run_status(environment, "--json").stdout)
    assert found["kernels"] == []
    (problem,) = found["unreadable_run_files"]
    assert str(folder / "run.json") in problem


# -- how it is shown ------------------------------------------------------------------------------------------------


def status_of(*found: KernelStatus) -> Status:
    checks = [Check("extension", Level.OK, "fine"), Check("records", Level.PROBLEM, "bad", "do this")]
    return Status(checks, "plain", "/records", list(found), [], [])


def test_names_from_outside_cannot_steer_the_terminal() -> None:
    kernel = KernelStatus("id", "python3", State.RECORDING, notebooks=["\x1b[2Jü\n.ipynb"])
    lines = list(render(status_of(kernel), colours=False))
    assert "\\x1b[2Jü\\n.ipynb" in "\n".join(lines)
    assert all(line.isprintable() for line in lines)


def test_messages_that_were_not_recorded_are_counted() -> None:
    answer = {"recording": True, "executions": 1, "waiting": 2, "bad_signature": 3, "malformed": 1}
    kernel = KernelStatus("id", "python3", State.RECORDING, answer=answer, record="/r", record_bytes=2048)
    text = "\n".join(render(status_of(kernel), colours=False))
    assert "1 execution, 2 messages waiting, 4 messages not recorded, 2.0 KB in /r" in text


def on_a_terminal(environment: Environment, **variables: str) -> str:
    """What the command prints when its output is a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "output_keeper", "status"],
        env=environment.variables(**variables),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ):
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while chunk := os.read(ours, 4096):
                text += chunk
    os.close(ours)
    return text.decode()


def test_colours_on_a_terminal_only_and_not_against_NO_COLOR(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in on_a_terminal(environment, TERM="xterm")
    assert "\x1b[" not in on_a_terminal(environment, TERM="xterm", NO_COLOR="1")
    assert "\x1b[" not in on_a_terminal(environment, TERM="dumb")
    assert "\x1b[" not in run_status(environment, TERM="xterm").stdout


def test_a_terminal_that_cannot_show_a_name_gets_its_escape(environment: Environment) -> None:
    folder = environment.data / "kernels" / "x"
    folder.mkdir(parents=True)
    metadata = {"kernel_provisioner": {"provisioner_name": "größe"}}
    spec = {"argv": ["x"], "display_name": "X", "language": "x", "metadata": metadata}
    (folder / "kernel.json").write_text(json.dumps(spec))
    ended = run_status(environment, PYTHONIOENCODING="ascii")
    assert ended.returncode == 0, ended.stderr
    assert "x (gr\\xf6\\xdfe)" in ended.stdout
