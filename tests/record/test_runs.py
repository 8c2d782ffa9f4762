"""A run file finds the keeper it was written for, and no other process, machine or user."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from output_keeper.errors import StoreCorrupted, StoreError, StoreLocked, StoreVersion
from output_keeper.record import paths, runs
from output_keeper.record.runs import Process, Run, RunLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes and permissions")


def a_run(**fields: Any) -> Run:
    run = Run(
        kernel_id="k-1",
        kernel_name="python3",
        cwd="/home/é",
        argv=["python", "-m", "ipykernel_launcher"],
        env={"JPY_SESSION_NAME": "a.ipynb"},
        extra_arguments=[],
        connection={"key": "secret", "transport": "tcp", "shell_port": 5001},
        endpoint="tcp://127.0.0.1:5010",
        record="/data/k-1.sqlite",
        keeper=runs.identity(),
        kernel=Process.of(os.getpid()),
        grants=True,
        server=None,
        sessions=[{"id": "s", "path": "a.ipynb", "name": "a", "type": "notebook"}],
        started="2026-01-02T03:04:05+00:00",
    )
    return dataclasses.replace(run, **fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return paths.run_dir("k-1", tmp_path)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate(timeout=60)


def python(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def refuse(path: Path, error: StoreError) -> None:
    raise error


# -- the file


def test_what_is_written_is_read(folder: Path) -> None:
    for run in (
        a_run(),
        a_run(endpoint=None, kernel=None, server=Process(7, 1.25), grants=False),
        a_run(cwd="/home/\udcff", env={"BYTES": "\udc80"}),  # what os.fsdecode makes of other encodings
    ):
        run.write(folder)
        assert Run.read(folder) == run


@posix
def test_the_key_is_readable_by_its_owner_only(folder: Path) -> None:
    previous = os.umask(0)
    try:
        a_run().write(folder)
    finally:
        os.umask(previous)
    assert (folder / "run.json").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_newer_format_is_refused_and_unknown_fields_are_not(folder: Path) -> None:
    run = a_run()
    run.write(folder)
    content = json.loads((folder / "run.json").read_bytes())
    paths.write_atomic(folder / "run.json", json.dumps({**content, "comment": 1}).encode())
    assert Run.read(folder) == run
    paths.write_atomic(folder / "run.json", json.dumps({**content, "format": 2}).encode())
    with pytest.raises(StoreVersion):
        Run.read(folder)


@pytest.mark.parametrize("field", [*(field.name for field in dataclasses.fields(Run)), "format"])
def test_a_field_that_is_missing_or_of_another_type_is_refused(folder: Path, field: str) -> None:
    a_run().write(folder)
    content = json.loads((folder / "run.json").read_bytes())
    right = content.pop(field)
    wrong: Any = {} if isinstance(right, str | int) else 3.5
    for damaged in (content, {**content, field: wrong}):
        paths.write_atomic(folder / "run.json", json.dumps(damaged).encode())
        with pytest.raises(StoreCorrupted):
            Run.read(folder)


@pytest.mark.parametrize("field", ["pid", "create_time", "boot_id", "pid_namespace", "network_namespace", "uid"])
def test_a_keeper_without_a_whole_identity_is_refused(folder: Path, field: str) -> None:
    a_run().write(folder)
    content = json.loads((folder / "run.json").read_bytes())
    for value in (None, []):
        content["keeper"][field] = value
        paths.write_atomic(folder / "run.json", json.dumps(content).encode())
        with pytest.raises(StoreCorrupted, match=field):
            Run.read(folder)


def test_every_cut_of_a_run_file_is_refused(folder: Path) -> None:
    a_run().write(folder)
    content = (folder / "run.json").read_bytes()
    for length in range(len(content)):
        (folder / "run.json").write_bytes(content[:length])
        with pytest.raises(StoreCorrupted):
            Run.read(folder)


def test_the_run_file_of_another_kernel_is_refused(folder: Path) -> None:
    a_run(kernel_id="k-2").write(folder)
    with pytest.raises(StoreCorrupted, match="k-2"):
        Run.read(folder)


@posix
def test_somebody_elses_run_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run().write(folder)
    if os.geteuid() == 0:
        os.chown(folder / "run.json", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StoreError, match="belongs to user"):
        Run.read(folder)


@posix
@pytest.mark.parametrize("trick", ["link", "writable", "fifo", "folder", "none"])
def test_what_others_could_have_put_there_is_refused(folder: Path, tmp_path: Path, trick: str) -> None:
    a_run().write(folder)
    file = folder / "run.json"
    if trick == "writable":
        file.chmod(0o622)
    else:
        file.rename(tmp_path / "real.json")
    if trick == "link":
        file.symlink_to(tmp_path / "real.json")
    elif trick == "fifo":
        os.mkfifo(file, 0o600)
    elif trick == "folder":
        file.mkdir()
    with pytest.raises(StoreError):
        Run.read(folder)


def test_a_value_that_is_not_json_is_refused_and_the_old_file_stays(folder: Path) -> None:
    a_run().write(folder)
    with pytest.raises(TypeError):
        a_run(connection={"key": b"bytes"}).write(folder)
    assert Run.read(folder) == a_run()


def test_runs_lists_what_can_be_read_and_reports_the_rest(tmp_path: Path) -> None:
    for kernel_id in ("b", "A"):
        a_run(kernel_id=kernel_id).write(paths.run_dir(kernel_id, tmp_path))
    broken = paths.private_folder(paths.run_dir("broken", tmp_path))
    (broken / "run.json").write_text("{")
    paths.private_folder(paths.run_dir("starting", tmp_path))
    (paths.runs_dir(tmp_path) / "stray file").touch()
    reported: list[tuple[Path, type]] = []
    found = [run.kernel_id for run in runs.runs(lambda path, error: reported.append((path, type(error))), tmp_path)]
    assert sorted(found) == ["A", "b"]
    assert reported == [(broken, StoreCorrupted)]
    assert list(runs.runs(refuse, tmp_path / "missing")) == []


def test_keeper_and_server_do_not_undo_each_others_changes(folder: Path) -> None:
    a_run().write(folder)
    script = """
        import sys
        from output_keeper.record.runs import Process, change
        for number in range(100):
            mine = {"server": {"sessions": [{"n": number}]}, "keeper": {"kernel": Process(number, 0.0)}}
            change(sys.argv[1], **mine[sys.argv[2]])
    """
    writers = [python(script, folder, who) for who in ("server", "keeper")]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    run = Run.read(folder)
    assert run.sessions == [{"n": 99}]
    assert run.kernel == Process(99, 0.0)


# -- alive


def test_this_process_is_alive_and_here() -> None:
    run = a_run()
    assert run.here()
    assert run.alive()
    assert run.kernel_alive()


def test_rounding_does_not_kill_and_another_start_time_does() -> None:
    run = a_run()
    for delta, alive in ((0.001, True), (-0.01, True), (1.0, False), (-1.0, False)):
        keeper = dataclasses.replace(run.keeper, create_time=run.keeper.create_time + delta)
        assert dataclasses.replace(run, keeper=keeper).alive() is alive


@pytest.mark.parametrize("field", ["boot_id", "pid_namespace", "network_namespace", "uid"])
def test_another_machine_boot_container_or_user_is_not_here(field: str) -> None:
    run = a_run()
    keeper = dataclasses.replace(run.keeper, **{field: 4711 if field == "uid" else "another"})
    other = dataclasses.replace(run, keeper=keeper)
    assert not other.here()
    assert not other.alive()
    assert not other.kernel_alive()


@posix
def test_a_killed_process_is_dead_even_while_nobody_has_waited_for_it(child: subprocess.Popen[bytes]) -> None:
    process = Process.of(child.pid)
    assert process is not None
    assert process.alive()
    run = a_run(kernel=process)
    assert run.kernel_alive()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie
    assert not process.alive()
    assert not run.kernel_alive()
    assert Process.of(child.pid) is None


def test_no_process_is_not_alive() -> None:
    assert Process.of(2**22 + 1) is None
    assert not Process(2**22 + 1, 0.0).alive()
    assert not a_run(kernel=None).kernel_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces and boot id are Linux's")
def test_the_identity_names_boot_and_namespaces() -> None:
    own = runs.identity()
    assert own.boot_id
    assert own.pid_namespace.startswith("pid:[")
    assert own.network_namespace.startswith("net:[")
    assert own.pid == os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_process_in_another_network_namespace_is_not_here(folder: Path) -> None:
    script = """
        import sys
        from output_keeper.record.runs import Run
        run = Run.read(sys.argv[1])
        print(run.here(), run.alive())
    """
    a_run().write(folder)
    command = ["unshare", "-n", sys.executable, "-c", textwrap.dedent(script), str(folder)]
    if os.geteuid() != 0:
        command.insert(1, "-r")
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode and "unshare" in result.stderr:
        pytest.skip(f"no namespaces here: {result.stderr}")
    assert result.stdout == "False False\n"


# -- the lock and the end


@posix
def test_the_lock_is_held_for_life_and_freed_by_a_kill(folder: Path) -> None:
    assert not runs.locked(folder)
    keeper = python(
        """
        import sys
        from output_keeper.record.runs import RunLock
        lock = RunLock(sys.argv[1])
        lock.acquire()
        print("held", flush=True)
        sys.stdin.read()
        """,
        folder,
    )
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == b"held\n"
    assert runs.locked(folder)
    with pytest.raises(StoreLocked):
        RunLock(folder).acquire(timeout=0)
    with pytest.raises(StoreLocked):
        runs.remove(folder)
    assert folder.exists()
    keeper.kill()
    keeper.communicate(timeout=60)
    assert not runs.locked(folder)
    runs.remove(folder)
    assert not folder.exists()


def test_a_keeper_that_leaves_takes_its_folder_with_it(folder: Path) -> None:
    with RunLock(folder) as lock:
        a_run().write(folder)
        (folder / "keeper.log").touch()
        (folder / "sub").mkdir()
        (folder / "sub" / "file").touch()
        runs.remove(folder, lock)
        assert not lock.held
    assert not folder.exists()
    runs.remove(folder)


@posix
def test_removing_follows_no_link(folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    a_run().write(folder)
    (folder / "link").symlink_to(precious)
    runs.remove(folder)
    assert (precious / "file").exists()
    folder.symlink_to(precious)
    with pytest.raises(StoreError):
        runs.remove(folder)
    assert (precious / "file").exists()


@posix
def test_a_keeper_that_waits_while_the_last_one_removes_the_folder_gets_a_new_one(folder: Path) -> None:
    with RunLock(folder) as lock:
        successor = python(
            """
            import sys
            from output_keeper.record.runs import RunLock, locked
            print("waiting", flush=True)
            lock = RunLock(sys.argv[1])
            lock.acquire(timeout=60)
            print("held", flush=True)
            sys.stdin.read()
            """,
            folder,
        )
        assert successor.stdout is not None
        assert successor.stdout.readline() == b"waiting\n"
        runs.remove(folder, lock)
    try:
        assert successor.stdout.readline() == b"held\n"
        assert runs.locked(folder)
    finally:
        successor.kill()
        successor.communicate(timeout=60)
