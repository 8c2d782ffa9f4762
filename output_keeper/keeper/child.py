"""The kernel's process: the keeper's own child, leader of its own session and process group.

A kernel must not outlive the keeper, because nobody would hear it:

- Linux: the kernel's death signal (prctl(2), PR_SET_PDEATHSIG) is SIGKILL.
- Other POSIX systems: a small guard process kills the kernel's group when the keeper's end of a pipe closes.
- Windows: nothing; a kernel that watches its parent (``JPY_PARENT_PID``) ends by itself.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

from output_keeper.errors import KernelError, LaunchFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CONNECTION_FILE: Final = "{connection_file}"

_PR_SET_PDEATHSIG: Final = 1
_SIGNAL_EXIT: Final = 128
# Reads the group's id, then waits: a second line means "not needed any more", an end of file that the
# keeper died.
_GUARD: Final = 'read -r group && { read -r done || kill -s KILL -- "-$group"; }'


class Child:
    """A running kernel. Constructing it starts the process; raises LaunchFailed.

    To be constructed in the main thread: on Linux the kernel is killed when the *thread* that started it
    ends.

    ``argv`` may name the launcher's ``connection_file`` (as given, absolute or resolved, also inside an
    argument) or ``{connection_file}``: the kernel gets ``private_file`` instead. ``env`` is the whole
    environment, to which ``JPY_PARENT_PID`` is added; stdout and stderr are inherited. ``on_exit`` is
    called once with the return code (negative: the signal's number) in a thread of its own. ``guarded``
    chooses the guard process, for tests.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | os.PathLike[str] | None = None,
        connection_file: str | os.PathLike[str],
        private_file: str | os.PathLike[str],
        on_exit: Callable[[int], None] | None = None,
        guarded: bool = os.name == "posix" and sys.platform != "linux",
    ) -> None:
        self._on_exit = on_exit
        self._guard = _start_guard() if guarded else None
        try:
            self._process = _launch(
                kernel_argv(argv, connection_file, private_file),
                {**env, "JPY_PARENT_PID": str(os.getpid())},
                cwd,
            )
        except BaseException:
            self._dismiss_guard(watched=None)
            raise
        self.pid: int = self._process.pid
        if self._guard is not None:
            _tell(self._guard, f"{self.pid}\n")
        self._ended = threading.Event()
        threading.Thread(target=self._wait, name="kernel-wait", daemon=True).start()

    def interrupt(self) -> None:
        """Send SIGINT to the kernel's group, as jupyter_client does. Nothing happens once it has ended."""
        self._signal_group("SIGINT")

    def terminate(self) -> None:
        """Send SIGTERM to the kernel's group."""
        self._signal_group("SIGTERM")

    def kill(self) -> None:
        """Send SIGKILL to the kernel's group."""
        self._signal_group("SIGKILL")

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and give the return code. Raises TimeoutError after ``timeout`` seconds."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"process {self.pid} did not end within {timeout} s")
        return int(self._process.returncode)

    def poll(self) -> int | None:
        """Give the return code, or None while it runs."""
        return self._process.returncode if self._ended.is_set() else None

    def _wait(self) -> None:
        returncode = self._process.wait()
        self._dismiss_guard(watched=self.pid)
        self._ended.set()
        if self._on_exit is not None:
            self._on_exit(returncode)

    def _signal_group(self, name: str) -> None:
        if self._ended.is_set():
            return
        if sys.platform == "win32":
            if name == "SIGINT":
                raise KernelError("a kernel cannot be interrupted by a signal on this system")
            self._process.terminate()
        else:
            try:
                os.killpg(self.pid, getattr(signal, name))
            except ProcessLookupError:
                # It ended between the check and the signal: what was wanted, or too late to matter.
                return

    def _dismiss_guard(self, *, watched: int | None) -> None:
        if self._guard is None:
            return
        _tell(self._guard, "done\n" if watched else "")
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait()


def kernel_argv(
    argv: Sequence[str], connection_file: str | os.PathLike[str], private_file: str | os.PathLike[str]
) -> list[str]:
    """Give ``argv`` with every mention of the connection file replaced by the private one.

    A relative name is replaced only where it stands as a whole path, an absolute one anywhere in an argument.
    """
    given = os.fspath(connection_file)
    absolute = {str(Path(given).absolute()), os.path.realpath(given)}
    patterns = [re.escape(path) for path in sorted(absolute, key=len, reverse=True)]
    if given not in absolute:
        patterns.append(rf"(?<![\w./-]){re.escape(given)}(?![\w./-])")
    mention = re.compile("|".join([*patterns, re.escape(CONNECTION_FILE)]))
    return [mention.sub(lambda _: os.fspath(private_file), argument) for argument in argv]


def describe_exit(returncode: int) -> str:
    """Say how a process ended: "exited with code 3", "was killed by signal 9 (SIGKILL)"."""
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        return f"was killed by signal {-returncode} ({signal.Signals(-returncode).name})"
    except ValueError:
        return f"was killed by signal {-returncode}"


def exit_status(returncode: int) -> int:
    """Give the exit status that tells the same, as shells do: 128 + n for signal n."""
    return returncode if returncode >= 0 else _SIGNAL_EXIT - returncode


def _launch(argv: list[str], env: dict[str, str], cwd: str | os.PathLike[str] | None) -> subprocess.Popen[bytes]:
    if not argv:
        raise LaunchFailed("the kernel's command is empty", hint="give it after --")
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork in a process with threads; `_die_with` takes no lock and allocates
            # nothing that another thread could hold.
            warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
            return subprocess.Popen(
                argv,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                start_new_session=os.name == "posix",
                preexec_fn=_die_with(os.getpid()) if sys.platform == "linux" else None,  # noqa: PLW1509
            )
    except FileNotFoundError as error:
        if cwd is not None and error.filename == os.fspath(cwd):
            raise LaunchFailed(f"the kernel's folder {cwd} does not exist") from error
        raise LaunchFailed(f"{argv[0]!r} was not found", hint="check argv in the kernelspec, and PATH") from error
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise LaunchFailed(f"{argv[0]!r} could not be started: {error}") from error


def _die_with(parent: int) -> Callable[[], None]:
    """Make what runs between fork and exec on Linux: die with the parent, even one that died already.

    Everything is looked up here, before the fork.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, *(4 * [ctypes.c_ulong])]
    option, sigkill = _PR_SET_PDEATHSIG, int(signal.SIGKILL)
    getpid, getppid, kill = os.getpid, os.getppid, os.kill

    def before_exec() -> None:
        prctl(option, sigkill, 0, 0, 0)
        if getppid() != parent:
            kill(getpid(), sigkill)

    return before_exec


def _start_guard() -> subprocess.Popen[bytes]:
    try:
        # A session of its own: whatever is sent to the keeper's or the kernel's group must not hit the guard.
        return subprocess.Popen(["/bin/sh", "-c", _GUARD], stdin=subprocess.PIPE, start_new_session=os.name == "posix")
    except OSError as error:
        raise LaunchFailed(f"/bin/sh could not be started: {error}") from error


def _tell(guard: subprocess.Popen[bytes], line: str) -> None:
    if guard.stdin is not None and line:
        try:
            guard.stdin.write(line.encode())
            guard.stdin.flush()
        except BrokenPipeError:
            # Somebody killed the guard; the kernel is then as unguarded as any other.
            return
