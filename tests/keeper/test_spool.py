"""The spool keeps order, bounds memory, frees disk, and counts what a full disk takes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from output_keeper.keeper.spool import Spool


def drained(spool: Spool) -> list[Any]:
    items = []
    while (item := spool.take()) is not None:
        items.append(item)
    return items


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60) | st.none(), max_size=60))
def test_what_goes_in_comes_out_in_order_and_memory_is_bounded(steps: list[int | None]) -> None:
    """A number puts an item of that size, None takes one."""
    spool, model = Spool(limit=100, segment=150), deque[Any]()
    for number, size in enumerate(steps):
        if size is None:
            assert spool.take() == (model.popleft() if model else None)
        else:
            item = (number, b"x" * size)
            spool.put(item, size)
            model.append(item)
        assert len(spool) == len(model)
        assert spool.bytes_in_memory <= 100
    assert drained(spool) == list(model)
    assert (spool.dropped, spool.bytes_in_memory, spool.bytes_on_disk) == (0, 0, 0)


def test_the_disk_that_is_used_follows_what_waits_and_not_what_went_through() -> None:
    spool = Spool(limit=0, segment=10_000)
    most = 0
    for number in range(2000):  # never drained: there is always one more
        spool.put((number, b"x" * 1000), 1000)
        if number:
            assert spool.take() == (number - 1, b"x" * 1000)
        most = max(most, spool.bytes_on_disk)
    assert most < 3 * 10_000
    spool.close()


def test_a_file_lies_in_the_folder_without_a_name(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), limit=0)
    spool.put(b"item", 4)
    assert list(tmp_path.iterdir()) == []
    assert drained(spool) == [b"item"]


def test_a_folder_that_is_not_there_is_replaced_by_the_systems(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "none"), limit=0)
    spool.put(b"item", 4)
    assert drained(spool) == [b"item"]


def test_items_of_producers_keep_the_order_of_each() -> None:
    spool = Spool(limit=1000, segment=2000)
    taken: list[tuple[int, int]] = []

    def produce(producer: int) -> None:
        for number in range(500):
            spool.put((producer, number), 10)

    threads = [threading.Thread(target=produce, args=(producer,)) for producer in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or len(spool):
        if (item := spool.take()) is not None:
            taken.append(item)
    assert len(taken) == 2000
    for producer in range(4):
        assert [number for who, number in taken if who == producer] == list(range(500))


def test_what_comes_after_the_end_is_dropped_and_counted() -> None:
    spool = Spool(limit=10)
    spool.put(b"a" * 8, 8)
    spool.put(b"b" * 8, 8)
    spool.close()
    spool.put(b"c", 1)
    assert (len(spool), spool.take(), spool.dropped) == (0, None, 1)
    assert (spool.bytes_in_memory, spool.bytes_on_disk) == (0, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes")
def test_a_full_disk_drops_whole_items_and_counts_them_but_keeps_what_has_no_size() -> None:
    """The limit is on the size of files: a write is first cut short, then refused, as on a full disk."""
    script = """
        import resource, signal
        from output_keeper.keeper.spool import Spool
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        spool = Spool(limit=0)
        for number in range(30):
            spool.put((number, b"x" * 3000), 3000)
        spool.put("the end", 0)
        taken = [spool.take() for _ in range(len(spool))]
        assert taken[:-1] == [(number, b"x" * 3000) for number in range(6)], taken
        assert taken[-1] == "the end"
        assert spool.dropped == 24
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        spool.put("again", 5)
        assert (spool.take(), spool.take(), spool.dropped) == ("again", None, 24)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes")
def test_what_fits_after_something_that_did_not_comes_out_whole() -> None:
    script = """
        import resource, signal
        from output_keeper.keeper.spool import Spool
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        spool = Spool(limit=0)
        sizes = [4000, 9000, 3000, 5000, 1000]
        for size in sizes:
            spool.put(b"x" * size, size)
        assert [len(spool.take()) for _ in range(len(spool))] == [4000, 3000, 1000]
        assert spool.dropped == 2
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
