"""
Reads queued jobs ahead of the free slots.

Reading the queue costs as much as claiming a job, so it reads a few more jobs than are needed
now. If a job has changed since, the guard of its claim notices that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Row

from jobcore.clock import Clock
from jobcore.engine.ownership import Ownership
from jobcore.engine.postponement import Postponement
from jobcore.storage import job_rows, pipelines
from jobcore.storage.damage import read_each
from jobcore.storage.database import Database
from jobcore.storage.transitions import Run

#: The read-ahead, in jobs. With more, managers that share a file would prepare too many jobs
#: that another one claims first.
AHEAD = 16
#: Characters of commands after which no further job is read: one command may have a mebibyte.
MOST_TEXT = 4 * 2**20
#: Numbers in one statement; every build of SQLite allows at least 32,766 values.
OWN_AT_ONCE = 1000


class QueueReader:
    """
    The QUEUED jobs that a manager could claim, oldest first.

    Args:
        database: Where they are stored.
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
        self._ahead: deque[Row[Any]] = deque()
        self._postponed = postponed

    def make_own(self, number: int) -> None:
        """Note that this manager created the job. Any thread may call this."""
        if self._own is not None:
            self._own.add(number)

    def takes(self, run: Run) -> bool:
        """Tell whether this manager could claim a job. Any thread may call this."""
        return run.type in self._types and (self._own is None or run.number in self._own)

    def first(self) -> list[int]:
        """Return the numbers of the first claimable jobs. Any thread may call this."""
        return [row.number for row in self._read(AHEAD)]

    def is_empty(self) -> bool:
        """Tell whether no job could be claimed now. Any thread may call this."""
        return not self._read(1)

    def next_due(self) -> int | None:
        """Return when the next job that is not yet due becomes due. Any thread may call this."""
        with self._database.read() as connection:
            moments = [
                job_rows.next_not_before(
                    connection, types=self._types, now=self._clock.now(), numbers=numbers
                )
                for numbers in self._own_numbers()
            ]
        return min((moment for moment in moments if moment is not None), default=None)

    def look(self, wanted: int) -> int:
        """Read ahead up to `wanted` jobs, and return how many there are."""
        if len(self._ahead) < wanted:
            self._ahead = deque(self._read(wanted + AHEAD, without=self._postponed.waiting()))
        return len(self._ahead)

    def take(self, limit: int) -> list[tuple[Row[Any], Row[Any] | None]]:
        """Take up to `limit` jobs out of the hand, each with its pipeline."""
        rows = [self._ahead.popleft() for _ in range(min(limit, len(self._ahead)))]
        if all(row.pipeline_id is None for row in rows):
            return [(row, None) for row in rows]
        found = {row.number: row for row in rows}
        with self._database.read() as connection:

            def with_pipeline(number: int) -> list[tuple[Row[Any], Row[Any] | None]]:
                row = found[number]
                return [(row, pipelines.find_pipeline(connection, row.pipeline_id))]

            return list(read_each(found, with_pipeline, self._postpone))

    def _postpone(self, number: int, error: Exception) -> None:
        self._postponed.fail(number, error, "start postponed", job=f"number {number}")

    def forget(self) -> None:
        """Drop the jobs read ahead, which are out of date. The next look reads the queue again."""
        self._ahead.clear()

    def _read(self, limit: int, without: Collection[Hashable] = ()) -> list[Row[Any]]:
        rows: list[Row[Any]] = []
        text = 0
        with self._database.read() as connection:
            for numbers in self._own_numbers():
                for row in job_rows.queued_jobs(
                    connection,
                    types=self._types,
                    now=self._clock.now(),
                    limit=limit + len(without) - len(rows),
                    numbers=numbers,
                    claimant=self._ownership.current,
                    failed=self._postpone,
                ):
                    if row.number not in without:
                        rows.append(row)
                        text += len(row.command or "")
                    if len(rows) >= limit or text >= MOST_TEXT:
                        return rows
                if numbers is not None and self._own is not None:
                    # A job that has left the queue never comes back, so forget it.
                    queued = job_rows.queued_numbers(connection, numbers)
                    self._own.difference_update(set(numbers) - queued)
        return rows

    def _own_numbers(self) -> Iterator[Sequence[int] | None]:
        """Yield this manager's own jobs in groups, oldest first; or None once, for all jobs."""
        if self._own is None:
            yield None
            return
        own = sorted(set(self._own))
        for start in range(0, len(own), OWN_AT_ONCE):
            yield own[start : start + OWN_AT_ONCE]
