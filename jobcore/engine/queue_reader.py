"""
Reads the queue for one manager: the jobs that may start now, in order.

It reads numbers first, and the rows only of the jobs that are about to start. If a job has
changed since, the guard of its claim notices that.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row

from jobcore.clock import Clock
from jobcore.engine.ownership import Ownership
from jobcore.engine.postponement import Postponement
from jobcore.storage import job_rows, pipelines, queue
from jobcore.storage.damage import read_each
from jobcore.storage.database import Database
from jobcore.storage.limits import UNLIMITED
from jobcore.storage.transitions import Run

#: How many jobs `first` returns.
FIRST_JOBS = 16
#: Characters of commands after which no further job is read: one command may have a mebibyte.
MOST_TEXT = 4 * 2**20
#: Seconds for which to pass over a job that another process prepares.
PASSED_OVER = 1.0
#: Up to this many own jobs, look them up each time to forget those that have left the queue.
OWN_KEPT = 100


class QueueReader:
    """
    The QUEUED jobs that a manager could claim, those of the highest priority first.

    Args:
        clock: Tells which are due.
        types: Only jobs of these types.
        ownership: Names this process, whose reserved jobs it may claim.
        postponed: The jobs that could not be started, by number; they are skipped for now.
        only_own: Only jobs that `make_own` was called for.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        types: Iterable[str],
        ownership: Ownership,
        postponed: Postponement,
        *,
        only_own: bool,
    ) -> None:
        self._database = database
        self._ownership = ownership
        self._clock = clock
        self._types = tuple(types)
        self._own: set[int] | None = set() if only_own else None
        self._own_kept = 0  # how many there were when those that have left were last forgotten
        self._passed: dict[int, float] = {}  # numbers, and until when they are passed over
        self._postponed = postponed

    def make_own(self, number: int) -> None:
        """Note that this manager created the job. Any thread may call this."""
        if self._own is not None:
            self._own.add(number)

    def takes(self, run: Run) -> bool:
        """Tell whether this manager could claim a job. Any thread may call this."""
        return run.type in self._types and (self._own is None or run.number in self._own)

    def first(self) -> list[int]:
        """
        Return the numbers of the first jobs that are claimable, now or once a limit has room.

        Any thread may call this.
        """
        return self._find(FIRST_JOBS, counted=False)

    def is_empty(self, *, counted: bool = True) -> bool:
        """
        Tell whether no job could be claimed now. Any thread may call this.

        Args:
            counted: False: ignore full limits. A paused job is never claimable.
        """
        return not self._find(1, counted=counted)

    def has_paused(self) -> bool:
        """Tell whether any job waits, even if it is paused. Any thread may call this."""
        return bool(self._find(1, room=UNLIMITED))

    def next_due(self) -> int | None:
        """Return when the next job that is not yet due becomes due. Any thread may call this."""
        with self._database.read() as connection:
            return queue.next_not_before(
                connection, types=self._types, now=self._clock.now(), only=self._only()
            )

    def look(self, wanted: int, rows: int) -> tuple[int, list[tuple[Row[Any], Row[Any] | None]]]:
        """
        Look for up to `wanted` jobs; read the first `rows` of them, each with its pipeline.

        Returns:
            How many there are, and those that were read.
        """
        now = time.monotonic()
        self._passed = {number: until for number, until in self._passed.items() if until > now}
        without = self._postponed.waiting() | self._passed.keys()
        with self._database.read() as connection:
            numbers = self._found(connection, wanted, without=without)
            jobs = self._read(connection, numbers[:rows]) if numbers else []
        if self._own is not None and len(numbers) < wanted:
            self._forget_settled(self._own)
        return len(numbers), jobs

    def _read(
        self, connection: Connection, numbers: Sequence[int]
    ) -> list[tuple[Row[Any], Row[Any] | None]]:
        def with_pipeline(number: int) -> list[tuple[Row[Any], Row[Any] | None]]:
            row = job_rows.get_job(connection, number)
            if row is None:
                return []
            if row.pipeline_id is None:
                return [(row, None)]
            return [(row, pipelines.find_pipeline(connection, row.pipeline_id))]

        found: list[tuple[Row[Any], Row[Any] | None]] = []
        length = 0
        for row, pipeline in read_each(numbers, with_pipeline, self._postpone):
            found.append((row, pipeline))
            length += len(row.command or "")
            if length >= MOST_TEXT:
                break
        return found

    def pass_over(self, number: int) -> None:
        """Leave out a job for a moment, because another process starts or changes it."""
        self._passed[number] = time.monotonic() + PASSED_OVER

    def _postpone(self, number: int, error: Exception) -> None:
        self._postponed.fail(number, error, "start postponed", job=f"number {number}")

    def _find(self, limit: int, **options: Any) -> list[int]:
        with self._database.read() as connection:
            return self._found(connection, limit, **options)

    def _found(self, connection: Connection, limit: int, **options: Any) -> list[int]:
        """Return what `queue.claimable` finds for this manager; `options` are its arguments."""
        return queue.claimable(
            connection,
            only=self._only(),
            types=self._types,
            now=self._clock.now(),
            limit=limit,
            claimant=self._ownership.current,
            **options,
        )

    def _only(self) -> Collection[int] | None:
        # A copy, because another thread may add a number meanwhile.
        return None if self._own is None else self._own.copy()

    def _forget_settled(self, own: set[int]) -> None:
        """Forget own jobs that have left the queue: they never come back."""
        if OWN_KEPT < len(own) < 2 * self._own_kept:
            return  # few can have left: do not look up all of them at each commit
        known = own.copy()  # another thread may add a number meanwhile
        with self._database.read() as connection:
            own.difference_update(known - queue.queued_numbers(connection, known))
        self._own_kept = len(own)
