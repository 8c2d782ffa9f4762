"""Waiting on conditions: the tests never sleep for a guessed time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

LIMIT = 60.0
"""Seconds before a condition counts as never coming true; far above what a slow machine needs."""


def wait_until(
    predicate: Callable[[], T],
    timeout: float = LIMIT,
    *,
    what: str = "",
    state: Callable[[], object] | None = None,
    every: float = 0.05,
) -> T:
    """Call ``predicate`` until it returns something true, and return that.

    ``what`` names the condition and ``state`` tells the last seen state in the failure message; without
    ``state`` the predicate's own last value is shown. Exceptions of the predicate are not swallowed.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            seen = state() if state else value
            raise AssertionError(f"not within {timeout:g} s: {what or predicate}; last state: {seen!r}")
        time.sleep(every)
