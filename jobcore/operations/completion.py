"""
Waits for many jobs at once, each until its last attempt has ended.

A look reads the history entries since the last one, so its cost depends on what has happened and
not on how many jobs are waited for. The jobs themselves are examined from time to time: the
history of a deleted job is deleted with it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row

from jobcore.errors import JobDeleted, JobNotFound
from jobcore.lifecycle import ACTIVE, Status
from jobcore.models import Job
from jobcore.operations.async_backend import OneReader, in_thread, sleep
from jobcore.operations.lookup import Id, parse_id, public
from jobcore.operations.waiting import VERSION_MAX_AGE, WAIT_PAUSE, Cursor, Deadline, Waiter
from jobcore.storage import attempts, history, transitions
from jobcore.storage.database import Database
from jobcore.storage.transitions import Run
from jobcore.tuning import LOOK_FIRST, LOOK_LONGEST

#: Jobs returned by one step, so that the first ones come soon.
PAGE = 256
#: History entries that one look examines.
MOST_ENTRIES = 2000
#: Up to this many jobs are examined at each look, as that costs no more than the history.
ALWAYS_EXAMINED = 100
#: Of more jobs, each is examined once in this many seconds, and in a second more per this many.
EXAMINE_PAUSE, EXAMINED_PER_SECOND = 1.0, 5000
#: Job directories that one step visits.
MOST_VISITS = 50

Check = Callable[[Run], None]


class Step(NamedTuple):
    """
    What a step has found.

    Attributes:
        seen: The version of the file before the look; None: it did not look.
        after: The last history entry that was examined.
        ended: The numbers of jobs that may have ended.
        examined: When all jobs were examined, by the monotonic clock; None: they were not.
        queued: The first QUEUED job, if all were examined; None: there is none.
        taken: How many of the numbers in `Waited.ended` were decided.
        jobs: The jobs that ended, by the number of the attempt.
        retried: The numbers of the next attempts, by those of the attempts before.
        error: Why the wait cannot go on after `jobs`.
    """

    seen: int | None = None
    after: int | None = None
    ended: Sequence[int] = ()
    examined: float | None = None
    queued: Run | None = None
    taken: int = 0
    jobs: Sequence[tuple[int, Job]] = ()
    retried: Sequence[tuple[int, int]] = ()
    error: Exception | None = None


class Waited:
    """
    The jobs that one caller waits for.

    Only `apply` changes which jobs are waited for. So a step that is cancelled, whose result
    is dropped, loses nothing.

    Args:
        ids: The ids of the jobs, as they were given.
        places: The places of each job among these ids, by job number.
        after: The newest history entry before the jobs are examined.
    """

    def __init__(self, ids: Sequence[Id], places: dict[int, list[int]], after: int) -> None:
        self.ids = ids
        self.pending = places
        self.after = after
        self.seen = -1
        self.examined = 0.0
        self.has_changed = True  # since they were examined
        self.ended: list[int] = []
        self.cursors: dict[int, Cursor] = {}
        self.queued: Run | None = None
        self.visited = 0.0

    @property
    def examination_is_due(self) -> bool:
        """Whether the next look examines all jobs."""
        count = len(self.pending)
        pause = EXAMINE_PAUSE + count / EXAMINED_PER_SECOND
        return count <= ALWAYS_EXAMINED or time.monotonic() >= self.examined + pause

    @property
    def is_overdue(self) -> bool:
        """Whether to look even if nothing was committed since the last look."""
        return self.has_changed and self.examination_is_due

    @property
    def visit_at(self) -> float:
        """When to look at the files of the active jobs, by the monotonic clock."""
        return self.visited + WAIT_PAUSE

    def apply(self, step: Step) -> list[tuple[Job, list[int]]]:
        """
        Take over what a step has found.

        Returns:
            The jobs that ended, each with its places among the ids that were given.
        """
        del self.ended[: step.taken]
        self.ended += (number for number in step.ended if number in self.pending)
        for number, following in step.retried:
            self.pending.setdefault(following, []).extend(self.pending.pop(number))
            self.ended.append(following)  # it may have ended, too
            self.cursors.pop(number, None)
        if step.seen is not None:
            self.seen, self.has_changed = step.seen, step.examined is None
        if step.after is not None:
            self.after = step.after
        if step.examined is not None:
            self.examined, self.queued = step.examined, step.queued
        found = []
        for number, job in step.jobs:
            found.append((job, self.pending.pop(number)))
            self.cursors.pop(number, None)
        return found

    def in_words(self, run: Run | None) -> str:
        """Return what is waited for, for a WaitTimeout."""
        one = "" if run is None else f"job {run.id} is {run.status}"
        if len(self.ids) == 1 and one:
            return one
        return f"{len(self.pending)} of {len(self.ids)} jobs are not final" + (one and f": {one}")


class CompletionWaiter:
    """Waits for many jobs at once."""

    def __init__(self, database: Database, waiter: Waiter) -> None:
        self._database = database
        self._waiter = waiter

    def begin(self, ids: Sequence[Id]) -> Waited:
        """
        Begin to wait for jobs.

        Raises:
            JobNotFound: One of the ids is unknown.
        """
        parsed = [parse_id(one) for one in ids]
        known = [one for one in parsed if one is not None]
        with self._database.read() as connection:
            after = history.newest(connection)
            numbers = attempts.numbers_of(connection, list(dict.fromkeys(known)))
        places: dict[int, list[int]] = {}
        for place, one in enumerate(parsed):
            number = None if one is None else numbers.get(one)
            if number is None:
                raise JobNotFound(ids[place])
            places.setdefault(number, []).append(place)
        return Waited(ids, places, after)

    # --- the steps ----------------------------------------------------------------

    def step(self, waited: Waited, check: Check) -> Step:
        """
        Do what is due: decide which jobs have ended, look for news, or visit directories.

        It blocks no longer than a few transactions. It finds nothing if nothing is due.

        Raises:
            SpawnError, StoreError: See `Liveness.require`.
        """
        if waited.ended:
            return self._decide(waited, waited.ended[:PAGE])
        # Visits go first: where commits never pause, there is always something to look at.
        if waited.examined and time.monotonic() >= waited.visit_at:
            return self._visit(waited, check)
        version = self._database.version(LOOK_FIRST)
        if version == waited.seen and not waited.is_overdue:
            return Step()
        return self._look(waited, version)

    def has_something_to_do(self, waited: Waited) -> bool:
        """Tell, without locks or I/O, whether a step may find anything."""
        return (
            bool(waited.ended)
            or waited.seen != self._database.known_version(VERSION_MAX_AGE)
            or waited.is_overdue
            or time.monotonic() >= waited.visit_at
        )

    def _look(self, waited: Waited, version: int) -> Step:
        with self._database.read() as connection:
            ended, after, count = attempts.ended_since(connection, waited.after, MOST_ENTRIES)
            step = Step(
                # If there may be more entries, the next step looks again.
                seen=version if count < MOST_ENTRIES else -1,
                after=after,
                ended=[number for number in ended if number in waited.pending],
            )
            return self._examine(connection, waited, step) if waited.examination_is_due else step

    def _examine(self, connection: Connection, waited: Waited, step: Step) -> Step:
        """Examine all jobs, and note those whose files have to be looked at."""
        pending = list(waited.pending)
        statuses = attempts.statuses_of(connection, pending)
        first = next((one for one in pending if statuses.get(one) == Status.QUEUED), None)
        active = [*transitions.supervised(connection), *transitions.owned(connection)]
        before = waited.cursors
        waited.cursors = {
            run.number: before[run.number]._replace(run=run)
            if run.number in before
            else self._waiter.waiting(run)
            for run in active
            if run.number in waited.pending
        }
        return step._replace(
            # All others: final, gone, or of an unknown status, which is damage.
            ended=[number for number in pending if statuses.get(number) not in ACTIVE],
            examined=time.monotonic(),
            queued=None if first is None else transitions.find(connection, first),
        )

    def _visit(self, waited: Waited, check: Check) -> Step:
        """Import what running jobs have written, and find out whether they have ended."""
        waited.visited = time.monotonic()
        if waited.queued is not None:
            check(waited.queued)
        cursors = [one for number, one in list(waited.cursors.items()) if number in waited.pending]
        ended = []
        for cursor in sorted(cursors, key=lambda one: one.watched.visited)[:MOST_VISITS]:
            number = cursor.run.number
            check(cursor.run)
            if not cursor.due:
                continue
            try:
                waited.cursors[number] = self._waiter.visit(cursor)
            except JobDeleted:
                ended.append(number)  # deciding finds out whether this is so
                continue
            if waited.cursors[number].run.final:
                ended.append(number)
        return Step(ended=ended)

    def _decide(self, waited: Waited, numbers: Sequence[int]) -> Step:
        """Return which of these jobs have ended, and which have been retried."""
        with self._database.read() as connection:
            rows = attempts.rows_of(connection, numbers)
            over = [
                row.id
                for row in rows.values()
                if not isinstance(row, Exception) and row.end_time is not None
            ]
            retries = attempts.retries_of(connection, over)
        jobs: list[tuple[int, Job]] = []
        retried: list[tuple[int, int]] = []
        error: Exception | None = None
        for number in dict.fromkeys(numbers):
            try:
                decided = self._decided(waited, number, rows.get(number), retries)
            except Exception as failure:  # noqa: BLE001 - raised after the jobs before it
                error = failure
                break
            if isinstance(decided, int):
                retried.append((number, decided))
            elif decided is not None:
                jobs.append((number, decided))
        return Step(taken=len(numbers), jobs=jobs, retried=retried, error=error)

    def _decided(
        self,
        waited: Waited,
        number: int,
        row: Row[Any] | Exception | None,
        retries: dict[UUID, int],
    ) -> Job | int | None:
        """
        Return the job if it has ended, the number of its retry, or None.

        Raises:
            JobDeleted: The job is gone, or another caller is deleting it.
            DatabaseCorrupt: The row holds an invalid value.
        """
        if isinstance(row, Exception):
            raise row
        if row is None or row.deleted_at is not None:
            raise JobDeleted(waited.ids[waited.pending[number][0]])
        if row.id in retries:
            return retries[row.id]
        if row.end_time is not None:
            return public(Job, row)
        if row.status not in ACTIVE:
            with self._database.read() as connection:
                transitions.find(connection, number)  # raises: the status is unknown
        return None

    def first(self, waited: Waited) -> Run | None:
        """Return a job that has not ended, for a WaitTimeout."""
        number = next(iter(waited.pending), None)
        if number is None:
            return None
        with self._database.read() as connection:
            return transitions.find(connection, number)

    # --- in the caller's thread -----------------------------------------------------

    def completed(
        self, waited: Waited, timeout: float | None, check: Check
    ) -> Iterator[tuple[Job, list[int]]]:
        """
        Yield the jobs as they end, each with its places among the ids that were given.

        Raises:
            JobDeleted: One of them was deleted meanwhile.
            WaitTimeout: `timeout` seconds are over.
        """
        deadline = Deadline(timeout)
        pause = LOOK_FIRST
        while waited.pending:
            step = self.step(waited, check)
            yield from waited.apply(step)
            if step.error is not None:
                raise step.error
            if waited.ended:
                continue
            if waited.visited and deadline.over:
                raise deadline.error(waited.in_words(self.first(waited)))
            if step != Step():
                pause = LOOK_FIRST
                if waited.visited and step.seen is not None:
                    time.sleep(LOOK_FIRST)  # limits the looks while others commit often
                continue
            left = max(waited.visit_at - time.monotonic(), 0.0)
            self._database.wait_for_change(waited.seen, min(left, deadline.left), pause)
            pause = min(pause * 2, LOOK_LONGEST)


class Completions(OneReader[tuple[Job, list[int]]], AsyncIterator[Job]):
    """
    Jobs in the order in which they end: `completed` in an event loop.

    A cancelled `anext()` has consumed no job. An error ends the iterator. Between two calls
    nothing is held that must be closed.

    Args:
        begin: Finds the jobs; it is called in a thread, at the first `anext()`.
        timeout: Seconds for the whole iteration, from the first `anext()` on.
        check: Called with jobs that are not final. It raises an error to end the iteration.
    """

    def __init__(
        self,
        waiter: CompletionWaiter,
        begin: Callable[[], Waited],
        timeout: float | None,
        check: Check,
    ) -> None:
        super().__init__("job")
        self._waiter = waiter
        self._begin = begin
        self._timeout = timeout
        self._check = check
        self._deadline: Deadline | None = None
        self._waited: Waited | None = None
        self._ready: list[tuple[Job, list[int]]] = []
        self._error: Exception | None = None

    def __aiter__(self) -> Completions:
        """Return itself."""
        return self

    async def __anext__(self) -> Job:
        """Return the next job that has ended."""
        job, _ = await self.next()
        return job

    async def all(self, count: int) -> list[Job]:
        """Return the jobs for all ids, in the order in which they were given."""
        jobs: dict[int, Job] = {}
        while len(jobs) < count:
            job, places = await self.next()
            jobs.update(dict.fromkeys(places, job))
        return [jobs[place] for place in range(count)]

    async def _next(self) -> tuple[Job, list[int]]:
        """Return the next job with its places among the ids that were given."""
        if self._deadline is None:
            self._deadline = Deadline(self._timeout)
        if self._waited is None:
            self._waited = await in_thread(self._begin)
        waited, pause = self._waited, LOOK_FIRST
        while not self._ready:
            if self._error is not None:
                raise self._error
            if not waited.pending:
                raise StopAsyncIteration
            step = Step()
            if self._waiter.has_something_to_do(waited):
                step = await in_thread(self._waiter.step, waited, self._check)
                self._ready = waited.apply(step)[::-1]  # taken from its end
                self._error = step.error
            if self._ready or self._error is not None or waited.ended:
                continue
            if waited.visited and self._deadline.over:
                run = await in_thread(self._waiter.first, waited)
                raise self._deadline.error(waited.in_words(run))
            if waited.visited:
                pause = LOOK_FIRST if step != Step() else min(pause * 2, LOOK_LONGEST)
                await sleep(min(pause, self._deadline.left))
        return self._ready.pop()
