"""Deletes jobs that ended long enough ago, a few at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from sqlalchemy import Row

from jobcore.clock import Clock
from jobcore.embedding import telemetry
from jobcore.engine.remover import REMOVED_AT_ONCE, SKIPS_AT_ONCE, Remover, Throttle
from jobcore.lifecycle import FINAL
from jobcore.storage import retention
from jobcore.storage.damage import Failed
from jobcore.storage.database import Database
from jobcore.storage.job_rows import JobFilter
from jobcore.storage.retention import Expired
from jobcore.tuning import PRUNED_FROM_AT_ONCE


class Pruner:
    """Removes expired jobs."""

    def __init__(self, database: Database, remover: Remover, clock: Clock) -> None:
        self._database = database
        self._remover = remover
        self._clock = clock

    def choose(self, age: float, wanted: JobFilter, keep: int | None) -> Expired:
        """
        Return the condition for expired jobs; jobs that end after this call do not meet it.

        Args:
            age: The least seconds since their end.
            wanted: Further conditions.
            keep: Keep this many of the newest matching jobs; None: keep none.
        """
        expired = Expired(self._clock.now() - round(age * 1e6), wanted)
        if keep is None:
            return expired
        with self._database.read() as connection:
            return expired.keep(connection, keep)

    def prune(self, expired: Expired) -> int:
        """
        Remove the jobs with their logs, histories and results; return how many this call removed.

        Each job is first marked as deleted, which hides it, and then removed. If this process
        dies in between, a sweep finishes the removal.
        """
        throttle = Throttle()
        count = 0
        for after, up_to in self._windows():
            with self._database.read() as connection:
                numbers = retention.find_numbers(connection, expired, after=after, up_to=up_to)
            for first in range(0, len(numbers), REMOVED_AT_ONCE):
                some = numbers[first : first + REMOVED_AT_ONCE]
                mark = partial(
                    retention.mark_deleted_if_expired,
                    expired=expired,
                    numbers=some,
                    now=self._clock.now(),
                )
                with throttle.step():
                    marked = self._database.write(mark)
                count += len(marked)
                self._remover.remove_jobs(*marked, throttle=throttle)
        statuses = expired.wanted.statuses
        # A skip has only an owner. Neither a status nor another filter could match it.
        if (statuses is None or statuses >= FINAL) and expired.wanted.is_of_owner:
            self._remove_skips(expired, throttle)
        if count:
            telemetry.event(logging.INFO, "jobs pruned", count=count)
        return count

    def _remove_skips(self, expired: Expired, throttle: Throttle) -> None:
        while True:
            with self._database.read() as connection:
                ids = retention.find_skips(connection, expired, SKIPS_AT_ONCE)
            if not ids:
                return
            with throttle.step():
                self._database.write(partial(retention.remove_skips, ids=ids))

    def preview(self, expired: Expired, failed: Failed) -> list[Row[Any]]:
        """Return the jobs that `prune` would remove now, oldest first; change nothing."""
        found: list[Row[Any]] = []
        for after, up_to in self._windows():
            with self._database.read() as connection:
                found += retention.find(
                    connection, expired, after=after, up_to=up_to, failed=failed
                )
        return found

    def _windows(self) -> Iterator[tuple[int, int]]:
        with self._database.read() as connection:
            newest = retention.newest(connection)
        after = 0
        while after < newest:
            # Begin at the next job, not at the next number: a damaged number may be far away.
            with self._database.read() as connection:
                oldest = retention.oldest_after(connection, after)
            if oldest is None or not after < oldest <= newest:
                return
            up_to = min(oldest - 1 + PRUNED_FROM_AT_ONCE, newest)
            yield oldest - 1, up_to
            after = up_to
