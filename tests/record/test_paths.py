"""No kernel id leaves its folder, no folder is somebody else's, no file is ever half there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from output_keeper.errors import StoreError, StoreLocked
from output_keeper.record import paths

HOSTILE = [
    "../x",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "nul\0byte",
    "C:\\x",
    "a b",
    "é",
    "\ud800",
    "%2e%2e",
    "-x\n",
    ".",
]

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")


@pytest.mark.parametrize("kernel_id", HOSTILE)
def test_no_kernel_id_leaves_the_folder(tmp_path: Path, kernel_id: str) -> None:
    for path in (
        paths.record_path(kernel_id, tmp_path),
        paths.ledger_path(kernel_id, tmp_path),
        paths.run_dir(kernel_id, tmp_path),
    ):
        assert path.resolve().is_relative_to(tmp_path.resolve())
        assert ".." not in path.parts
    assert paths.record_path(kernel_id, tmp_path).parent == tmp_path


@pytest.mark.parametrize("kernel_id", ["", "x" * 151, "\0" * 60])
def test_an_id_that_is_no_file_name_is_refused(kernel_id: str) -> None:
    with pytest.raises(StoreError, match="kernel id"):
        paths.escape(kernel_id)


@given(st.text(min_size=1, max_size=20))
def test_unescape_is_the_inverse_and_case_does_not_matter_to_the_file_system(kernel_id: str) -> None:
    name = paths.escape(kernel_id)
    assert name == name.lower()
    assert paths.unescape(name) == kernel_id


@given(st.text(alphabet="ab%0f1ABX.", min_size=1, max_size=12))
def test_a_name_that_no_id_has_is_no_id(name: str) -> None:
    kernel_id = paths.unescape(name)
    assert kernel_id is None or paths.escape(kernel_id) == name


def test_a_uuid_is_its_own_name() -> None:
    kernel_id = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
    assert paths.escape(kernel_id) == kernel_id


def test_records_are_listed_and_nothing_else(tmp_path: Path) -> None:
    for kernel_id in ("b-2", "A 1"):
        paths.record_path(kernel_id, tmp_path).touch()
        paths.ledger_path(kernel_id, tmp_path).touch()
        Path(f"{paths.record_path(kernel_id, tmp_path)}.corrupt-1").touch()
        Path(f"{paths.record_path(kernel_id, tmp_path)}-wal").touch()
    assert dict(paths.records(tmp_path)) == {
        kernel_id: paths.record_path(kernel_id, tmp_path) for kernel_id in ("A 1", "b-2")
    }
    assert list(paths.records(tmp_path / "missing")) == []


def test_the_folders_are_below_what_jupyter_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "run"))
    assert paths.record_path("k") == tmp_path / "data" / "output-keeper" / "records" / "k.sqlite"
    assert paths.run_dir("k") == tmp_path / "run" / "output-keeper" / "k"


@posix
def test_a_private_folder_is_made_with_all_above_it(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        folder = paths.private_folder(tmp_path / "a" / "output-keeper" / "k")
    finally:
        os.umask(previous)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert paths.private_folder(folder) == folder


@posix
@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777])
def test_a_folder_open_to_others_is_refused_and_left_alone(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(StoreError, match="other users"):
        paths.private_folder(folder)
    assert folder.stat().st_mode & 0o777 == mode


@posix
def test_a_folder_of_ours_that_became_too_open_is_tightened(tmp_path: Path) -> None:
    folder = paths.private_folder(tmp_path / "output-keeper" / "k")
    for path in (folder, folder.parent):
        path.chmod(0o2770)
    paths.private_folder(folder)
    for path in (folder, folder.parent):
        assert path.stat().st_mode & 0o777 == 0o700


@posix
@pytest.mark.parametrize("level", ["output-keeper", "output-keeper/k"])
def test_a_link_in_place_of_a_folder_of_ours_is_refused(tmp_path: Path, level: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "k").mkdir(parents=True, mode=0o700)
    elsewhere.chmod(0o700)
    link = tmp_path / level
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(StoreError, match="link"):
        paths.private_folder(tmp_path / "output-keeper" / "k")


@posix
@pytest.mark.parametrize("kind", ["dangling", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "k"
    path.symlink_to(tmp_path / "nowhere") if kind == "dangling" else path.write_text("")
    with pytest.raises(StoreError, match="link or a file"):
        paths.private_folder(path)
    assert not (tmp_path / "nowhere").exists()


@posix
def test_somebody_elses_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = paths.private_folder(tmp_path / "k")
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StoreError, match="belongs to user"):
        paths.private_folder(folder)


@posix
def test_an_ipc_address_is_given_up_to_the_last_byte_that_fits(tmp_path: Path) -> None:
    limit = 107 if sys.platform == "linux" else 103
    room = limit - len("/record.sock")
    fits = "/" + "r" * (room - 1)
    assert paths.endpoint_address(fits) == f"ipc://{fits}/record.sock"
    assert paths.endpoint_address(fits + "r") is None
    umlauts = "/" + "ü" * (room // 2 + 1)  # characters would fit, bytes do not
    assert len(umlauts) < room < len(umlauts.encode())
    assert paths.endpoint_address(umlauts) is None


@posix
def test_zmq_binds_the_longest_address_we_give_and_not_a_longer_one() -> None:
    import tempfile

    import zmq

    limit = 107 if sys.platform == "linux" else 103
    with tempfile.TemporaryDirectory(dir="/tmp") as base, zmq.Context() as context:
        folder = Path(base) / ("r" * (limit - len(base) - 1 - len("/record.sock")))
        folder.mkdir()
        address = paths.endpoint_address(folder)
        assert address is not None
        with context.socket(zmq.ROUTER) as socket:
            socket.bind(address)
            with pytest.raises(zmq.ZMQError):
                socket.bind(address + "k")


@posix
def test_write_atomic_replaces_whole_with_its_mode_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "f"
    previous = os.umask(0o777)
    try:
        paths.write_atomic(path, b"old")
        paths.write_atomic(path, b"new" * 100_000)
    finally:
        os.umask(previous)
    assert path.read_bytes() == b"new" * 100_000
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    paths.write_atomic(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)  # a real full disk cannot be made here
    with pytest.raises(paths.StoreUnavailable, match="no space left") as caught:
        paths.write_atomic(path, b"new")
    assert caught.value.heals
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_write_atomic_replaces_a_link_and_never_follows_it(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    link = tmp_path / "f"
    link.symlink_to(target)
    paths.write_atomic(link, b"new")
    assert target.read_bytes() == b"precious"
    assert not link.is_symlink()


def test_a_lock_is_exclusive_and_says_so(tmp_path: Path) -> None:
    lock = paths.hold(tmp_path / "lock")
    with pytest.raises(StoreLocked):
        paths.hold(tmp_path / "lock", timeout=0.05)
    lock.release()
    paths.hold(tmp_path / "lock").release()


def test_a_lock_in_a_folder_that_cannot_be_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(paths.StoreUnavailable):
        paths.hold(tmp_path / "file" / "lock")
