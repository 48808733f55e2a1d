"""Turns: rests between the transactions of a long chore, so that others get theirs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds of rest at the most: a transaction that itself had to wait is no reason for more.
LONGEST_REST = 0.1


class Turns:
    """
    Rests before each transaction as long as the last one took.

    The write lock is not a queue. Other threads, and SQLite's busy handler in
    other processes, which sleeps for up to 100 ms between two tries, hardly ever
    meet the gap between two transactions that follow each other at once: without
    a rest they would wait for the whole chore, not for one of its steps.
    """

    def __init__(self) -> None:
        self._rest = 0.0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Rest, and then have a turn."""
        time.sleep(self._rest)
        begun = time.monotonic()
        try:
            yield
        finally:
            self._rest = min(time.monotonic() - begun, LONGEST_REST)
