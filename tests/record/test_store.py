"""What the store acknowledged is there, whole and in order: killed, full, flipped or forbidden."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from output_keeper.errors import StoreCorrupted, StoreError, StoreLocked, StoreUnavailable, StoreVersion
from output_keeper.record import database, store
from output_keeper.record.paths import private_folder
from output_keeper.record.store import Store, read, salvage, set_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UPDATES = [b"first", b"", b"third" * 2000, b"\0fourth", b"fifth"]

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and permissions")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return private_folder(tmp_path / "records") / "k.sqlite"


def filled(path: Path, updates: list[bytes] = UPDATES) -> None:
    with Store.open(path) as writer:
        for update in updates:
            writer.append(update)


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """Tamper with a closed record."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def python(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate(timeout=60)


# -- the format


def test_the_worked_example_of_the_format_document_is_what_is_written(path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "record-format.md").read_text()
    with Store.open(path) as writer:
        writer.append_many([b"hello", b"world"])
        writer.checkpoint(b"HELLO", 1)
    with raw(path) as connection:
        for query in (
            "SELECT part, parts, upto, hex(digest), data FROM checkpoint",
            "SELECT seq, hex(digest), data FROM updates",
        ):
            (row,) = connection.execute(query).fetchall()
            shown = "|".join(value.decode() if isinstance(value, bytes) else str(value) for value in row)
            assert f'{query}"\n{shown}\n' in document
    for statement in store.RECORD.schema:
        assert " ".join(statement.split()) in " ".join(document.split())


# -- order and durability


def test_updates_come_back_in_order_and_seq_counts_from_one(path: Path) -> None:
    with Store.open(path) as writer:
        assert writer.last == 0
        assert [writer.append(update) for update in UPDATES] == [1, 2, 3, 4, 5]
        assert writer.append_many([b"a", b"b"]) == 7
        assert writer.append_many([]) == 7
        assert writer.load() == [*UPDATES, b"a", b"b"]
    with Store.open(path) as writer:
        assert writer.last == 7
        assert writer.load() == [*UPDATES, b"a", b"b"] == read(path)


def test_a_checkpoint_takes_the_place_of_what_it_contains_and_nothing_else(path: Path) -> None:
    with Store.open(path) as writer:
        writer.append_many(UPDATES)
        writer.checkpoint(b"snapshot", 3)
        assert writer.load() == [b"snapshot", *UPDATES[3:]]
        assert writer.bytes_since_checkpoint == len(UPDATES[3]) + len(UPDATES[4])
        assert writer.append(b"sixth") == 6
        writer.checkpoint(b"", 6)  # an empty snapshot is one
        assert writer.load() == [b""]
        assert writer.bytes_since_checkpoint == 0
    with Store.open(path) as writer:
        assert writer.append(b"seventh") == 7
        assert writer.load() == [b"", b"seventh"] == read(path)


@pytest.mark.parametrize("upto", [-1, 2, 6])
def test_a_checkpoint_covers_stored_updates_only(path: Path, upto: int) -> None:
    with Store.open(path) as writer:
        writer.append_many(UPDATES)
        writer.checkpoint(b"s", 3)
        with pytest.raises(ValueError, match="upto"):
            writer.checkpoint(b"t", upto)
        assert writer.load() == [b"s", *UPDATES[3:]]


def test_a_snapshot_larger_than_one_part_comes_back_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART_SIZE", 1000)
    snapshot = random.Random(1).randbytes(10_500)
    with Store.open(path) as writer:
        writer.append(b"u")
        writer.checkpoint(snapshot, 1)
        writer.checkpoint(snapshot, 1)
    assert read(path) == [snapshot]
    with raw(path) as connection:
        connection.execute("DELETE FROM checkpoint WHERE part = 10")
    with pytest.raises(StoreCorrupted, match="checkpoint"):
        read(path)


def test_a_checkpoint_gives_the_space_back_to_the_disk(path: Path) -> None:
    with Store.open(path) as writer:
        for _ in range(20):
            writer.append(bytes(500_000))
        assert writer.bytes_since_checkpoint == 10_000_000
        assert writer.size > 10_000_000
        writer.checkpoint(b"s", writer.last)
        assert writer.size < 200_000


def test_real_updates_make_the_document_again(path: Path) -> None:
    from pycrdt import Array, Doc

    doc: Doc[Array[str]] = Doc()
    array = doc.get("lines", type=Array)
    with Store.open(path) as writer:
        subscription = doc.observe(lambda event: writer.append(event.update))
        for number in range(200):
            array.append(f"line {number} é")
            if number == 120:
                writer.checkpoint(doc.get_update(), writer.last)
        doc.unobserve(subscription)
    replica: Doc[Array[str]] = Doc()
    for update in read(path):
        replica.apply_update(update)
    assert list(replica.get("lines", type=Array)) == [f"line {number} é" for number in range(200)]


@posix
def test_every_file_is_private_whatever_the_umask(path: Path) -> None:
    previous = os.umask(0)
    try:
        with Store.open(path) as writer:
            writer.append(b"x")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(previous)
    assert set(modes.values()) == {0o600}
    assert {"k.sqlite", "k.sqlite-wal", "k.sqlite.writer"} <= set(modes)


def test_it_belongs_to_the_thread_that_opened_it(path: Path) -> None:
    import threading

    with Store.open(path) as writer:
        raised: list[BaseException] = []

        def elsewhere() -> None:
            try:
                writer.append(b"x")
            except sqlite3.ProgrammingError as error:
                raised.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(60)
        assert raised
        assert writer.append(b"y") == 1


# -- kill -9

APPENDING = """
    import sys
    from output_keeper.record.store import Store
    path, seed, every = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # The content of update n is a function of n, so that the parent knows it.
    def update(n): return (b"%d." % n) * (1 + (n * 7919 + seed) % 400)
    writer = Store.open(path, sync="full" if seed % 2 else "normal")
    seq = before = writer.last
    while True:
        if seq % 5 == 0:
            seq = writer.append_many([update(seq + 1), update(seq + 2)])
        else:
            seq = writer.append(update(seq + 1))
        sys.stdout.write("%d\\n" % seq)
        sys.stdout.flush()
        if every and seq % every == 0:
            upto = max(seq - seed % 3, before)
            writer.checkpoint(b"snapshot of %d," % upto + bytes(200_000), upto)
"""


def expected(number: int, seed: int) -> bytes:
    return (b"%d." % number) * (1 + (number * 7919 + seed) % 400)


@posix
@pytest.mark.parametrize("every", [0, 7], ids=["appending", "checkpointing"])
def test_what_was_acknowledged_survives_kill_9_at_any_moment(path: Path, every: int) -> None:
    acknowledged = 0
    for seed in range(24):
        randomness = random.Random(seed)
        writer = python(APPENDING, path, seed * 2 if every else seed, every)
        effective = seed * 2 if every else seed
        assert writer.stdout is not None
        mine = acknowledged
        for _ in range(randomness.randrange(1, 60)):
            mine = int(writer.stdout.readline())
        # From here the kill falls somewhere into the writer's loop: spin a random number of turns, no sleep.
        for _ in range(randomness.randrange(20_000)):
            pass
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split(b"\n")[:-1]  # acknowledged before the kill, read after it
        end(writer)
        acknowledged = int(rest[-1]) if rest else mine

        with Store.open(path) as reopened:
            assert reopened.torn == 0
            content = reopened.load()
            # At most one unacknowledged append, whole or not at all.
            assert acknowledged <= reopened.last <= acknowledged + 2
            upto = 0
            if content and content[0].startswith(b"snapshot of "):
                upto = int(content[0][12:].partition(b",")[0])
                assert content.pop(0) == b"snapshot of %d," % upto + bytes(200_000)
            assert len(content) == reopened.last - upto
            # A seed knows this round's updates only; those before are in the checkpoint made below.
            assert content == [expected(number, effective) for number in range(upto + 1, reopened.last + 1)]
            reopened.checkpoint(b"snapshot of %d," % reopened.last + bytes(200_000), reopened.last)
            acknowledged = reopened.last


# -- one writer, any reader


@posix
def test_one_writer_at_a_time_across_processes_and_a_kill_frees_the_lock(path: Path) -> None:
    holder = python(
        """
        import sys
        from output_keeper.record.store import Store
        writer = Store.open(sys.argv[1])
        writer.append(b"mine")
        print("held", flush=True)
        sys.stdin.read()
        """,
        path,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(StoreLocked) as caught:
        Store.open(path)
    assert caught.value.heals
    with pytest.raises(StoreLocked):
        set_aside(path)
    assert read(path) == [b"mine"]
    holder.kill()  # not waited for: the lock is free when the kernel says so
    with Store.open(path, timeout=60) as writer:
        assert writer.load() == [b"mine"]
    end(holder)


def test_the_lock_is_free_after_a_failed_open(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)
    for _ in range(2):
        with pytest.raises(StoreCorrupted):
            Store.open(path)


def test_readers_see_whole_moments_while_a_writer_works(path: Path) -> None:
    writer = python(
        """
        import sys
        from output_keeper.record.store import Store
        writer = Store.open(sys.argv[1])
        print("open", flush=True)
        while True:
            seq = writer.append_many([b"%d" % n for n in range(writer.last + 1, writer.last + 4)])
            if seq % 30 == 0:
                writer.checkpoint(b"%d" % seq, seq)
        """,
        path,
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    try:
        seen = 0
        for _ in range(100):
            content = [int(update) for update in read(path)]
            if content:
                assert content == list(range(content[0], content[-1] + 1))
                assert content[-1] % 3 == 0
                assert content[-1] >= seen
                seen = content[-1]
        assert seen > 30
        assert writer.poll() is None
    finally:
        end(writer)


def test_a_reader_in_the_middle_of_its_look_does_not_stop_the_writer(path: Path) -> None:
    with Store.open(path) as writer:
        writer.append(bytes(1_000_000))
        with database.read_only(path, store.RECORD, 5.0) as connection:
            writer.append(b"more")
            writer.checkpoint(b"s", 2)
            assert connection.execute("SELECT count(*) FROM updates").fetchone() == (1,)
        assert writer.load() == [b"s"]
        writer.append(b"x")
        writer.checkpoint(b"t", 3)  # now the space comes back
        assert writer.size < 200_000


READING = """
    import os, sys
    from output_keeper.record.store import read
    if len(sys.argv) > 2:
        os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
    assert not os.access(os.path.dirname(sys.argv[1]), os.W_OK)
    print(b"|".join(read(sys.argv[1])).decode())
"""


@posix
@pytest.mark.parametrize("left", ["closed", "killed", "live"])
def test_a_record_in_a_folder_that_cannot_be_written_to_is_read(left: str) -> None:
    nobody = 65534
    base = Path(tempfile.mkdtemp(dir="/tmp"))  # others have to get there
    folder = base / "records"
    folder.mkdir()
    path = folder / "k.sqlite"
    writer = python(
        """
        import sys
        from output_keeper.record.store import Store
        writer = Store.open(sys.argv[1])
        writer.append_many([b"a", b"b"])
        writer.checkpoint(b"s", 1)
        writer.append(b"c")
        if sys.argv[2] == "closed":
            writer.close()
        print("ready", flush=True)
        sys.stdin.read()
        """,
        path,
        left,
    )
    assert writer.stdout is not None
    try:
        writer.stdout.readline()
        if left != "live":
            writer.kill()
            writer.wait(60)
            path.with_name("k.sqlite-shm").unlink(missing_ok=True)  # as on a copy, or another mount
        root = os.geteuid() == 0
        if root:
            base.chmod(0o755)
            for file in folder.iterdir():
                os.chown(file, nobody, nobody)
        folder.chmod(0o555)
        reader = python(READING, path, *([nobody] if root else []))
        assert reader.stdout is not None
        assert reader.communicate(timeout=60)[0].decode().strip() == "s|b|c"
        assert reader.returncode == 0
    finally:
        end(writer)
        folder.chmod(0o700)
        shutil.rmtree(base)


def test_no_record_is_an_error_and_makes_no_file(path: Path) -> None:
    for look in (read, salvage):
        with pytest.raises(StoreError, match="no record"):
            look(path)
    assert list(path.parent.iterdir()) == []


# -- damage


@pytest.mark.parametrize("damaged", [1, 2, 3])
def test_a_torn_tail_is_dropped_counted_and_written_over(path: Path, damaged: int) -> None:
    filled(path)
    with raw(path) as connection:
        connection.execute("UPDATE updates SET data = x'00' WHERE seq > ?", (5 - damaged,))
    whole = UPDATES[: 5 - damaged]
    assert read(path) == whole
    with Store.open(path) as writer:
        assert writer.torn == damaged
        assert writer.append(b"new") == 6 - damaged
        assert writer.load() == [*whole, b"new"]
    with Store.open(path) as writer:
        assert writer.torn == 0


def test_a_torn_row_whose_number_is_damaged_too_does_not_come_back(path: Path) -> None:
    filled(path, [b"only"])
    with raw(path) as connection:
        connection.execute("UPDATE updates SET seq = -7")
    with Store.open(path) as writer:
        assert writer.torn == 1
        assert writer.append(b"new") == 1
    with Store.open(path) as writer:
        assert writer.torn == 0
        assert writer.load() == [b"new"]


@pytest.mark.parametrize(
    ("tampering", "dropped", "kept"),
    [
        ("UPDATE updates SET data = x'00' WHERE seq = 2", 4, 1),
        ("UPDATE updates SET digest = x'0011223344556677' WHERE seq = 1", 5, 0),
        ("DELETE FROM updates WHERE seq = 3", 2, 2),
        ("UPDATE updates SET seq = 9 WHERE seq = 4", 2, 3),
        ("UPDATE updates SET data = 7 WHERE seq = 3", 3, 2),
        ("UPDATE updates SET data = (SELECT data FROM updates WHERE seq = 1) WHERE seq = 2", 4, 1),
    ],
)
def test_damage_in_the_middle_is_refused_with_its_extent(path: Path, tampering: str, dropped: int, kept: int) -> None:
    filled(path)
    with raw(path) as connection:
        connection.execute(tampering)
    for look in (read, Store.open):
        with pytest.raises(StoreCorrupted) as caught:
            look(path)
        assert caught.value.dropped == dropped
        assert not caught.value.heals
    assert salvage(path) == UPDATES[:kept]


def test_a_damaged_checkpoint_is_refused(path: Path) -> None:
    with Store.open(path) as writer:
        writer.append_many(UPDATES)
        writer.checkpoint(b"snapshot", 4)
    with raw(path) as connection:
        connection.execute("UPDATE checkpoint SET upto = 3")
    with pytest.raises(StoreCorrupted, match="checkpoint") as caught:
        Store.open(path)
    assert caught.value.dropped == 2
    assert salvage(path) == []


def every_flip(path: Path, file: Path, opened: Callable[[Path], list[bytes]]) -> tuple[int, int, int]:
    """Flip a bit in every byte of ``file`` and open the record: how often was it true, short, refused?"""
    truth = read(path)
    original = {entry: entry.read_bytes() for entry in path.parent.iterdir()}
    true = short = refused = 0
    for position in range(len(original[file])):
        flipped = bytearray(original[file])
        flipped[position] ^= 1 << position * 5 % 8
        for entry in list(path.parent.iterdir()):
            entry.unlink()
        for entry, content in original.items():
            entry.write_bytes(flipped if entry == file else content)
        outcomes = [outcome(look, path) for look in (read, salvage, opened)]
        for found in outcomes:
            assert found is None or found == truth[: len(found)], position
        if outcomes[-1] is None:
            refused += 1
        elif outcomes[-1] == truth:
            true += 1
        else:
            short += 1
    return true, short, refused


def outcome(look: Callable[[Path], list[bytes]], path: Path) -> list[bytes] | None:
    try:
        return look(path)
    except StoreError:
        return None


def loaded(path: Path) -> list[bytes]:
    with Store.open(path) as writer:
        return writer.load()


def loaded_or_counted(path: Path) -> list[bytes]:
    """Four rows were written: what is not there has to be in ``torn``, or the open has to fail."""
    with Store.open(path) as writer:
        content = writer.load()
        assert len(content) + writer.torn == 4
        return content


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of 512 bytes, so that every byte of a file with all kinds of pages can be tried."""
    creation = database._creation
    monkeypatch.setattr(database, "_creation", lambda kind: ["PRAGMA page_size = 512", *creation(kind)])


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A record in a folder without a disk behind it: thousands of files are written here."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        yield private_folder(Path(folder) / "records") / "k.sqlite"


@pytest.mark.usefixtures("small_pages")
def test_no_flipped_bit_of_the_file_gives_other_content(in_memory: Path) -> None:
    with Store.open(in_memory) as writer:
        writer.append_many([b"a", b"b", b"c" * 600])
        writer.checkpoint(b"snapshot", 2)
        writer.append_many([b"fourth", b"fifth" * 30])
    true, _, refused = every_flip(in_memory, in_memory, loaded_or_counted)
    assert true  # unused bytes
    assert refused


@pytest.mark.usefixtures("small_pages")
def test_no_flipped_bit_of_the_log_gives_other_content(in_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = in_memory.parent / "copy"
    with Store.open(in_memory) as writer:
        writer.append_many([b"a", b"b"])
        writer.append_many([b"c", b"d"])
        writer.append(b"e")
        aside.mkdir(mode=0o700)
        for suffix in ("", "-wal"):  # what a killed writer leaves behind
            shutil.copy(f"{in_memory}{suffix}", f"{aside / in_memory.name}{suffix}")
    killed = aside / in_memory.name
    true, short, _ = every_flip(killed, Path(f"{killed}-wal"), loaded)
    assert not true  # its checksums cover every byte
    assert short  # SQLite ends a log at its first bad frame: a prefix, as after a power loss


@pytest.mark.parametrize("length", [0, 1, 100, 4096, 5000, -1])
def test_a_file_cut_short_is_refused(path: Path, length: int) -> None:
    filled(path)
    content = path.read_bytes()
    path.write_bytes(content[:length])
    for look in (Store.open, read):
        with pytest.raises(StoreCorrupted):
            look(path)
    assert path.read_bytes() == content[:length]


def test_setting_aside_deletes_nothing_and_makes_room(path: Path) -> None:
    for number, content in enumerate([b"first wreck" * 100, b"second wreck" * 100], 1):
        path.write_bytes(content)
        path.with_name("k.sqlite-wal").write_bytes(b"log of " + content)
        aside = set_aside(path)
        assert aside == path.with_name(f"k.sqlite.corrupt-{number}")
        assert aside.read_bytes() == content
        assert aside.with_name(aside.name + "-wal").read_bytes() == b"log of " + content
    filled(path)
    assert read(path) == UPDATES
    assert len(list(path.parent.glob("*.corrupt-*"))) == 4


def test_a_newer_format_is_refused_and_left_alone(path: Path) -> None:
    filled(path)
    with raw(path) as connection:
        connection.execute("UPDATE meta SET value = '2' WHERE key = 'format'")
        connection.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    for look in (Store.open, read, salvage):
        with pytest.raises(StoreVersion, match="update output-keeper"):
            look(path)
    assert path.read_bytes() == before


def test_somebody_elses_database_is_refused_and_left_alone(path: Path) -> None:
    with raw(path) as connection:
        connection.execute("CREATE TABLE precious (x)")
    before = path.read_bytes()
    for look in (Store.open, read):
        with pytest.raises(StoreCorrupted, match="no record"):
            look(path)
    assert path.read_bytes() == before


@posix
def test_a_link_is_not_a_record(path: Path, tmp_path: Path) -> None:
    filled(tmp_path / "other.sqlite")
    path.symlink_to(tmp_path / "other.sqlite")
    for look in (Store.open, read):
        with pytest.raises(StoreError):
            look(path)


def test_a_creation_that_was_killed_is_started_over(path: Path) -> None:
    path.with_name("k.sqlite.new").write_bytes(b"half")
    path.with_name("k.sqlite.new-journal").write_bytes(b"half")
    filled(path)
    assert {file.name for file in path.parent.iterdir()} == {"k.sqlite", "k.sqlite.writer"}
    assert read(path) == UPDATES


# -- the disk refuses


def test_a_full_disk_stores_nothing_half_and_heals(path: Path) -> None:
    with Store.open(path) as writer:
        writer.append_many(UPDATES)
        connection = writer._database._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall()
        for attempt in ([bytes(100_000)], [b"fits", bytes(100_000)]):
            with pytest.raises(StoreUnavailable, match="free some space") as caught:
                writer.append_many(attempt)
            assert caught.value.heals
        with pytest.raises(StoreUnavailable):
            writer.checkpoint(bytes(100_000), 5)
        assert writer.last == 5
        assert writer.load() == UPDATES == read(path)
        assert writer.append(b"small still fits") == 6
        connection.execute("PRAGMA max_page_count = 100000").fetchall()
        assert writer.append(bytes(100_000)) == 7
        writer.checkpoint(b"s", 6)
        assert writer.load() == [b"s", bytes(100_000)]
    assert read(path) == [b"s", bytes(100_000)]


def test_a_lock_of_sqlite_held_by_another_heals(path: Path) -> None:
    with Store.open(path) as writer:
        writer._database._connection.execute("PRAGMA busy_timeout = 50").fetchall()
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked") as caught:
                writer.append(b"x")
            assert caught.value.heals
        assert writer.append(b"y") == 1
        assert writer.load() == [b"y"]


def test_where_there_is_no_shared_memory_a_rollback_journal_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = database.connect
    monkeypatch.setattr(  # a virtual file system of SQLite that has none
        database,
        "connect",
        lambda path, query, patience: connect(path, f"{query}&vfs=unix-dotfile", patience),
    )
    with Store.open(path) as writer:
        assert writer.journal == "delete"
        writer.append_many(UPDATES)
        writer.checkpoint(b"s", 3)
        assert writer.load() == [b"s", *UPDATES[3:]]
    assert read(path) == [b"s", *UPDATES[3:]]


def test_wal_is_what_a_usual_file_system_gets(path: Path) -> None:
    with Store.open(path) as writer:
        assert writer.journal == "wal"


def test_sync_is_what_was_asked_for(path: Path) -> None:
    for sync, level in (("normal", 1), ("full", 2)):
        with Store.open(path, sync=sync) as writer:  # type: ignore[arg-type]
            assert writer._database.run("PRAGMA synchronous") == [(level,)]


def test_closing_twice_is_fine_and_leaves_one_file(path: Path) -> None:
    writer = Store.open(path)
    writer.append(b"x")
    writer.close()
    writer.close()
    assert {file.name for file in path.parent.iterdir()} == {"k.sqlite", "k.sqlite.writer"}
