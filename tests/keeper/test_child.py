"""child: the kernel's process starts as asked, ends as told, and never outlives the keeper."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest

from output_keeper.errors import LaunchFailed
from output_keeper.keeper.child import Child, describe_exit, exit_status, kernel_argv

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX processes")

LIMIT = 60


def launch(code: str, *argv: str, **settings: object) -> Child:
    arguments: dict[str, object] = {
        "env": dict(os.environ),
        "connection_file": "front.json",
        "private_file": "private.json",
        **settings,
    }
    return Child([sys.executable, "-c", code, *argv], **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "becomes"),
    [
        ("{connection_file}", "/p/k.json"),
        ("--f={connection_file}", "--f=/p/k.json"),
        ("/run/kernel-1.json", "/p/k.json"),
        ("--f=/run/kernel-1.json", "--f=/p/k.json"),
        ("run('/run/kernel-1.json')", "run('/p/k.json')"),
        ("/run/kernel-1.json:/run/kernel-1.json", "/p/k.json:/p/k.json"),
        ("/run/kernel-2.json", "/run/kernel-2.json"),
        ("kernel-1.json", "kernel-1.json"),
    ],
)
def test_the_private_file_replaces_the_front_one(argument: str, becomes: str) -> None:
    assert kernel_argv(["k", argument], "/run/kernel-1.json", "/p/k.json") == ["k", becomes]


def test_a_link_and_its_target_are_both_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "real.json", tmp_path / "link.json"
    target.touch()
    link.symlink_to(target)
    argv = [str(link), f"--x={target}"]
    assert kernel_argv(argv, link, "/p/k.json") == ["/p/k.json", "--x=/p/k.json"]


@pytest.mark.parametrize(
    ("argument", "becomes"),
    [("k.json", "/p/k.json"), ("-f=k.json", "-f=/p/k.json"), ("/other/k.json", "/other/k.json")],
)
def test_a_relative_name_is_replaced_as_a_whole_path(argument: str, becomes: str) -> None:
    assert kernel_argv([argument], "k.json", "/p/k.json") == [becomes]


def test_the_kernel_gets_its_surroundings(tmp_path: Path) -> None:
    code = """
import json, os, sys
json.dump({
    "argv": sys.argv[1:],
    "cwd": os.getcwd(),
    "parent": os.environ["JPY_PARENT_PID"],
    "extra": os.environ["EXTRA"],
    "home": os.environ.get("HOME"),
    "ppid": os.getppid(),
    "leader": [os.getpgid(0), os.getsid(0)],
    "pid": os.getpid(),
    "stdin": sys.stdin.read(),
}, open(sys.argv[1], "w"))
"""
    said = tmp_path / "said.json"
    env = {"EXTRA": "1", "PATH": os.environ["PATH"]}
    child = launch(code, str(said), "-f", "/front.json", connection_file="/front.json", cwd=tmp_path, env=env)
    assert child.wait(LIMIT) == 0
    facts = json.loads(said.read_text())
    assert facts == {
        "argv": [str(said), "-f", "private.json"],
        "cwd": str(tmp_path.resolve()),
        "parent": str(os.getpid()),
        "extra": "1",
        "ppid": os.getpid(),
        "leader": [child.pid, child.pid],
        "pid": child.pid,
        "stdin": "",
        "home": None,
    }


@contextmanager
def stdout_read(started: list[Child], code: str, *, guarded: bool) -> Iterator[IO[bytes]]:
    """Start a child that inherits a pipe as stdout; at its end of file every process that held it is gone."""
    read, write = os.pipe()
    saved = os.dup(1)
    os.dup2(write, 1)
    try:
        started.append(launch(code, guarded=guarded))
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(write)
    with os.fdopen(read, "rb") as pipe:
        yield pipe


@pytest.mark.parametrize(
    ("act", "returncode"),
    [("interrupt", -signal.SIGINT), ("terminate", -signal.SIGTERM), ("kill", -signal.SIGKILL)],
)
@pytest.mark.parametrize("guarded", [False, True])
def test_signals_reach_the_whole_group(act: str, returncode: int, guarded: bool) -> None:
    code = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
if os.fork():
    signal.pause()
os.write(1, b"up")
signal.pause()
"""
    started: list[Child] = []
    with stdout_read(started, code, guarded=guarded) as pipe:
        (child,) = started
        assert pipe.read(2) == b"up"
        assert child.poll() is None
        getattr(child, act)()
        assert child.wait(LIMIT) == returncode
        assert pipe.read() == b""
    assert child.poll() == returncode
    getattr(child, act)()


def test_on_exit_is_called_once_with_the_return_code() -> None:
    calls: list[int] = []
    called = threading.Event()

    def on_exit(returncode: int) -> None:
        calls.append(returncode)
        called.set()

    child = launch("raise SystemExit(3)", on_exit=on_exit)
    assert called.wait(LIMIT)
    assert (child.wait(LIMIT), child.poll(), calls) == (3, 3, [3])


def test_wait_has_a_limit() -> None:
    child = launch("import signal; signal.pause()")
    with pytest.raises(TimeoutError):
        child.wait(0)
    child.kill()
    assert child.wait(LIMIT) == -signal.SIGKILL


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize(
    ("argv", "cwd", "names"),
    [
        (["/nowhere/kernel"], None, "/nowhere/kernel"),
        (["no-such-kernel-command"], None, "no-such-kernel-command"),
        ([sys.executable], "/nowhere/at all", "/nowhere/at all"),
        ([os.getcwd()], None, os.getcwd()),
        (["a\0b"], None, "null byte"),
        ([], None, "empty"),
    ],
)
def test_what_cannot_start_says_so(argv: list[str], cwd: str | None, names: str, guarded: bool) -> None:
    with pytest.raises(LaunchFailed, match=names):
        Child(
            argv,
            env=dict(os.environ),
            cwd=cwd,
            connection_file="/front.json",
            private_file="/private.json",
            guarded=guarded,
        )


KEEPER = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from output_keeper.keeper.child import Child
Child([sys.executable, "-c", sys.argv[1]], env=dict(os.environ), connection_file="/f", private_file="/p",
      guarded=sys.argv[2] == "guarded")
sys.stdin.read()
"""


def kill_a_keeper(kernel: str, guarded: bool) -> bytes:
    """What kernel and grandchildren wrote until the last of them was gone: they hold the pipe open."""
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEPER, kernel, "guarded" if guarded else ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert keeper.stdout is not None
    assert keeper.stdin is not None
    try:
        assert keeper.stdout.read(2) == b"up"
        keeper.kill()
        return keeper.stdout.read()
    finally:
        keeper.stdin.close()
        keeper.stdout.close()
        keeper.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_a_killed_keeper_takes_the_kernel_with_it() -> None:
    kernel = "import os, signal; os.write(1, b'up'); [signal.pause() for _ in iter(int, 1)]"
    assert kill_a_keeper(kernel, guarded=False) == b""


def test_the_guard_takes_the_whole_group_with_a_killed_keeper() -> None:
    # The grandchild has no death signal of its own: only the guard can end it.
    kernel = "import os, signal; os.fork() or os.write(1, b'up'); [signal.pause() for _ in iter(int, 1)]"
    assert kill_a_keeper(kernel, guarded=True) == b""


def test_the_guard_leaves_what_a_kernel_left_running() -> None:
    code = """
import os, signal
read, write = os.pipe()
if os.fork():
    os.read(read, 1)
    os._exit(0)
signal.signal(signal.SIGUSR1, lambda *_: (os.write(1, b"alive"), os._exit(0)))
os.write(1, b"up")
os.write(write, b"x")
signal.pause()
"""
    started: list[Child] = []
    with stdout_read(started, code, guarded=True) as pipe:
        (child,) = started
        assert pipe.read(2) == b"up"
        assert child.wait(LIMIT) == 0
        os.killpg(child.pid, signal.SIGUSR1)
        assert pipe.read() == b"alive"


@pytest.mark.parametrize(
    ("returncode", "words", "status"),
    [
        (0, "exited with code 0", 0),
        (3, "exited with code 3", 3),
        (-9, "was killed by signal 9 (SIGKILL)", 137),
        (-11, "was killed by signal 11 (SIGSEGV)", 139),
        (-100, "was killed by signal 100", 228),
    ],
)
def test_how_an_exit_is_told(returncode: int, words: str, status: int) -> None:
    assert describe_exit(returncode) == words
    assert exit_status(returncode) == status
