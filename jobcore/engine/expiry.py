"""Cancels jobs that have not started by the time that `expires` says."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial

from sqlalchemy import Connection

from jobcore import tuning
from jobcore.clock import Clock
from jobcore.engine.postponement import Postponement
from jobcore.errors import StoreError
from jobcore.storage import queue, settlement
from jobcore.storage.database import Database

#: Jobs in one transaction, and seconds after which the dispatcher does something else first.
AT_ONCE, LOOK = 100, 0.05


class Expiry:
    """
    Cancels expired jobs, in steps.

    A claim never starts an expired job, so it does not matter how soon this is called.

    Args:
        postponed: Remembers the jobs that could not be cancelled.
    """

    def __init__(self, database: Database, clock: Clock, postponed: Postponement) -> None:
        self._database = database
        self._clock = clock
        self._postponed = postponed
        self._unfinished = False

    def is_unfinished(self) -> bool:
        """Tell whether the last call ran out of time, so that the next one should come soon."""
        return self._unfinished

    def tick(self) -> None:
        """Cancel the jobs that have expired; if there are very many, only some of them."""
        deadline = time.monotonic() + LOOK
        self._unfinished = True
        while self._cancel_some():
            if time.monotonic() > deadline:
                return
        self._unfinished = False

    def _cancel_some(self) -> bool:
        """Cancel some expired jobs; return whether there may be more."""
        now = self._clock.now()
        waiting = self._postponed.waiting()
        with self._database.read() as connection:
            numbers = queue.expired(connection, now=now, limit=AT_ONCE + len(waiting))
        wanted = [number for number in numbers if ("expiry", number) not in waiting][:AT_ONCE]
        if not wanted:
            return False
        for number, error in self._database.write(partial(self._cancel, wanted, now=now)):
            self._postponed.fail(("expiry", number), error, "job postponed", job=f"number {number}")
        return len(wanted) == AT_ONCE

    def _cancel(
        self, numbers: list[int], connection: Connection, now: int
    ) -> list[tuple[int, Exception]]:
        failed: list[tuple[int, Exception]] = []
        for number in numbers:
            with self._database.savepoint(connection, failed, number):
                settlement.cancel_if_expired(connection, number, now=now)
        return failed

    def try_to_cancel(self, number: int) -> None:
        """Cancel a job if it has expired and the file can be written."""
        cancel = partial(settlement.cancel_if_expired, number=number, now=self._clock.now())
        with suppress(StoreError):  # the job never starts, whenever it is cancelled
            self._database.write(cancel, patience=tuning.READ_PATIENCE)
