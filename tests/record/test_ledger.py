"""What is settled stays settled, across processes and kills, and never holds up the keeper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from output_keeper.errors import StoreCorrupted, StoreVersion
from output_keeper.record import paths
from output_keeper.record.database import Database
from output_keeper.record.ledger import LEDGER, Ledger
from output_keeper.record.store import Store, read, set_aside

if TYPE_CHECKING:
    from pathlib import Path

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return paths.private_folder(tmp_path / "records")


@pytest.fixture
def path(folder: Path) -> Path:
    return paths.ledger_path("k", folder)


def python(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_settled_is_remembered_and_the_first_settlement_stands(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger.settled() == set()
        ledger.settle("m1", "saved", "a/b é.ipynb")
        ledger.settle("m2", "released", None)
        ledger.settle("m1", "later", "other")
    with Ledger.open(path) as ledger:
        assert ledger.settled() == {"m1", "m2"}
        first, second = ledger.settlement("m1"), ledger.settlement("m2")
        assert first is not None
        assert second is not None
        assert first[:2] == ("saved", "a/b é.ipynb")
        assert second[:2] == ("released", None)
        assert ledger.settlement("m3") is None


def test_the_last_place_counts(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.place("m1", "old.ipynb", "7")
        ledger.place("m1", "new.ipynb", None)
        ledger.place("m2", "x.ipynb", "8")
        assert ledger.places() == {"m1": ("new.ipynb", None), "m2": ("x.ipynb", "8")}


def test_what_is_forgotten_can_be_settled_again(path: Path) -> None:
    with Ledger.open(path) as ledger:
        for msg_id in ("m1", "m2"):
            ledger.settle(msg_id, "saved", "p")
            ledger.place(msg_id, "p", None)
        ledger.forget(["m1", "unknown"])
        assert ledger.settled() == {"m2"} == set(ledger.places())
        ledger.settle("m1", "again", "q")
        assert ledger.settled() == {"m1", "m2"}


def test_two_servers_see_what_the_other_noted(path: Path) -> None:
    with Ledger.open(path) as one, Ledger.open(path) as two:
        one.settle("m1", "saved", "p")
        two.settle("m2", "saved", "p")
        assert one.settled() == two.settled() == {"m1", "m2"}


@posix
def test_what_was_noted_survives_kill_9(path: Path) -> None:
    server = python(
        """
        import sys
        from output_keeper.record.ledger import Ledger
        ledger = Ledger.open(sys.argv[1])
        number = 0
        while True:
            ledger.settle(f"m{number}", "saved", "p")
            print(number, flush=True)
            number += 1
        """,
        path,
    )
    assert server.stdout is not None
    for _ in range(20):
        server.stdout.readline()
    server.kill()
    last = 19 + len(server.communicate(timeout=60)[0].split(b"\n")[:-1])
    with Ledger.open(path) as ledger:
        settled = ledger.settled()
    assert {f"m{number}" for number in range(last + 1)} <= settled
    assert len(settled) <= last + 2


@posix
def test_a_server_stopped_in_a_transaction_does_not_hold_up_the_keeper(folder: Path, path: Path) -> None:
    server = python(
        """
        import sys
        from output_keeper.record.ledger import Ledger
        ledger = Ledger.open(sys.argv[1])
        with ledger._database.transaction() as connection:
            connection.execute("INSERT INTO places VALUES ('m', 'p', NULL)")
            print("inside", flush=True)
            sys.stdin.read()
        """,
        path,
    )
    assert server.stdout is not None
    server.stdout.readline()
    server.send_signal(signal.SIGSTOP)
    try:
        with Store.open(paths.record_path("k", folder)) as writer:
            writer._database.run("PRAGMA busy_timeout = 0")  # any wait for the server would be an error
            for _ in range(100):
                writer.append(b"x" * 1000)
            writer.checkpoint(b"s", 50)
    finally:
        server.kill()
        server.communicate(timeout=60)
    with Ledger.open(path) as ledger:
        assert ledger.places() == {}


def test_a_ledger_outlives_a_record_that_is_set_aside(folder: Path, path: Path) -> None:
    record = paths.record_path("k", folder)
    Store.open(record).close()
    with Ledger.open(path) as ledger:
        ledger.settle("m1", "saved", "p")
        set_aside(record)
        assert ledger.settled() == {"m1"}


def test_a_record_is_not_a_ledger_nor_the_other_way_round(folder: Path, path: Path) -> None:
    record = paths.record_path("k", folder)
    Store.open(record).close()
    with pytest.raises(StoreCorrupted, match="no ledger"):
        Ledger.open(record)
    Ledger.open(path).close()
    with pytest.raises(StoreCorrupted, match="no record"):
        read(path)


def test_a_newer_or_broken_ledger_is_refused_and_can_be_set_aside(path: Path) -> None:
    Ledger.open(path).close()
    database = Database.open(path, LEDGER, sync="full", patience=1.0)
    database.run("PRAGMA user_version = 2")
    database.run("UPDATE meta SET value = '2' WHERE key = 'format'")
    database.close()
    with pytest.raises(StoreVersion):
        Ledger.open(path)
    path.write_bytes(os.urandom(9000))
    with pytest.raises(StoreCorrupted):
        Ledger.open(path)
    assert set_aside(path).exists()
    with Ledger.open(path) as ledger:
        assert ledger.settled() == set()
