"""
Waits for jobs and reads their logs in an event loop.

It uses the steps of `waiting.Waiter`. Each step runs in a worker thread, and only when
something may have changed. In between, the task sleeps in the event loop, so a waiting task
holds no thread.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial

from jobcore.errors import JobDeleted
from jobcore.lifecycle import Status
from jobcore.models import LogLine
from jobcore.operations.async_backend import Answer, OneReader, in_thread, sleep
from jobcore.operations.waiting import (
    LOOK_AGAIN,
    NOT_DRAINED,
    Cursor,
    Deadline,
    Waiter,
    is_final,
)
from jobcore.storage import log_segments
from jobcore.storage.transitions import Run
from jobcore.tuning import LOOK_FIRST, LOOK_LONGEST

#: Lines after which a reader lets other tasks of the loop run: they take about a millisecond.
#: More would block the loop for longer; fewer would cost more switches.
LINES_PER_SWITCH = 256
#: Seconds that a refresh may take before another task starts one as well.
LOOK_PATIENCE = 0.25
#: Seconds between two checks whether a QUEUED job can still be started here.
CHECK_PAUSE = 1.0


class AsyncWaiter:
    """Waits for jobs in event loops."""

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter
        #: The end of a lease, by the monotonic clock, during which one task refreshes for all.
        #: It expires by itself, because the loop may block during a refresh, and a child may
        #: be forked then.
        self._refreshing = 0.0

    async def wait(
        self,
        begin: Callable[[], Run],
        timeout: float | Deadline | None,
        check: Callable[[Run], None],
        end: Callable[[Run], Answer],
        until: Callable[[Run], bool] = is_final,
    ) -> Answer:
        """
        Wait until the job is final, and return `end(job)`.

        Args:
            begin: Finds the job. It is called in a thread, and so is `end`.
            check: Called with the job at every look while it is not final. It raises an
                error to end the wait.
            until: As in `Waiter.wait`.
        """
        deadline = Deadline.of(timeout)
        cursor = self._waiter.waiting(await in_thread(begin))
        checked = 0.0
        while not until((cursor := await self.look(cursor)).run):
            checked = await _check(check, cursor.run, checked)
            await _rest(cursor, deadline)
        return await in_thread(end, cursor.run)

    def follow(
        self,
        begin: Callable[[], Run],
        sequence: int,
        timeout: float | None,
        check: Callable[[Run], None],
        *,
        unfinished: bool,
    ) -> Lines:
        """
        Return an iterator of the lines from `sequence` on as they come, until the job's end.

        Args:
            begin: Finds the job; it is called in a thread, at the first `anext()`.
            check: As for `wait`.
            unfinished: As for `Waiter.follow`.
        """
        cursor = partial(self._waiter.following, sequence=sequence, unfinished=unfinished)
        return Lines(self, self._waiter, begin, cursor, timeout, check)

    async def drain(
        self,
        is_empty: Callable[[], bool],
        running: Callable[[], Sequence[Run]],
        timeout: float | None,
    ) -> None:
        """Return when `is_empty` is true and all jobs that `running` returns are final."""
        deadline = Deadline(timeout)
        while True:
            await self.wait_for(is_empty, deadline, NOT_DRAINED)
            found = await in_thread(running)
            if not found:
                return
            for run in found:
                try:
                    await self.wait(partial(_unchanged, run), deadline, _do_nothing, _do_nothing)
                except JobDeleted:
                    continue

    async def wait_for(
        self, condition: Callable[[], bool], timeout: float | Deadline | None, what: str
    ) -> None:
        """Return when `condition` is true. It is called repeatedly, in a thread."""
        deadline = Deadline.of(timeout)
        pause = LOOK_FIRST
        while not await in_thread(condition):
            if deadline.over:
                raise deadline.error(what)
            await sleep(min(pause, deadline.left))
            pause = min(pause * 2, LOOK_LONGEST)

    async def look(self, cursor: Cursor) -> Cursor:
        """Return the cursor with the job as it is now; use no thread if nothing has happened."""
        if time.monotonic() >= self._refreshing and self._waiter.is_stale(cursor):
            self._refreshing = mine = time.monotonic() + LOOK_PATIENCE
            try:
                await in_thread(self._waiter.refresh, cursor)
            finally:
                if self._refreshing == mine:
                    self._refreshing = 0.0
        cursor = cursor.moved()
        if cursor.due:
            cursor.watched.visited = time.monotonic()  # so that other tasks do not visit it as well
            cursor = await in_thread(self._waiter.visit, cursor)
        return await in_thread(self._waiter.search, cursor) if cursor.is_unsure else cursor


class Lines(OneReader[LogLine], AsyncIterator[LogLine]):
    """
    The lines of a job as they come.

    A cancelled `anext()` has consumed nothing: the next one continues at the same line. An
    error ends the iterator, as it ends a generator, so a loop that ignores WaitTimeout
    terminates. Between two calls nothing is held that must be closed.

    Args:
        begin: Finds the job; it is called in a thread, at the first `anext()`.
        at: Returns the cursor of a reader of that job.
        timeout: Seconds for the whole iteration, from the first `anext()` on.
        check: Called with the job at every look while it is not final. It raises an error to
            end the iteration.
    """

    def __init__(
        self,
        awaiter: AsyncWaiter,
        waiter: Waiter,
        begin: Callable[[], Run],
        at: Callable[[Run], Cursor],
        timeout: float | None,
        check: Callable[[Run], None],
    ) -> None:
        super().__init__("line")
        self._check = check
        self._checked = 0.0
        self._async_waiter = awaiter
        self._waiter = waiter
        self._begin = begin
        self._at = at
        self._timeout = timeout
        self._patience: Deadline | None = None
        self._cursor: Cursor | None = None
        self._ready: Iterator[LogLine] = iter(())
        self._unfinished: list[LogLine] = []  # to be taken before the rest of `_ready`
        self._next_sequence = 0  # of `_ready`, when it was read
        self._last: LogLine | None = None  # that was taken from it
        self._next_check = 0.0  # when to look at the deadline, and for unfinished lines
        self._taken = 0

    def __aiter__(self) -> Lines:
        """Return itself."""
        return self

    async def __anext__(self) -> LogLine:
        """Return the next line."""
        return await self.next()

    async def _next(self) -> LogLine:
        if self._patience is None:
            self._patience = Deadline(self._timeout)
        if self._taken % LINES_PER_SWITCH == LINES_PER_SWITCH - 1:
            await sleep(0)
        if self._taken and self._cursor is not None and time.monotonic() > self._next_check:
            if self._patience.over:
                raise self._patience.error(self._cursor.in_words())
            await self._look_for_unfinished(self._cursor, self._patience)
        if self._unfinished:
            self._taken += 1
            return self._unfinished.pop(0)
        while (line := next(self._ready, None)) is None:
            self._ready = await self._more(self._patience)
        self._last = line
        self._taken += 1
        return line

    async def _look_for_unfinished(self, cursor: Cursor, deadline: Deadline) -> None:
        """Look for unfinished lines while there may be numbered lines to take."""
        if cursor.shown is not None and cursor.run.supervised:
            cursor = await in_thread(self._waiter.look_for_unfinished, cursor)
            last = None if self._last is None else self._last.sequence
            lines, self._cursor = cursor.unfinished(
                self._next_sequence if last is None else last + 1
            )
            self._unfinished += lines
        self._next_check = min(deadline.at, time.monotonic() + LOOK_AGAIN)

    async def _more(self, deadline: Deadline) -> Iterator[LogLine]:
        """
        Return the next lines as soon as there are some.

        The state changes only by assignment after a step, so a cancelled step changes nothing.

        Raises:
            StopAsyncIteration: There will be no more.
        """
        cursor = self._cursor
        if cursor is None:
            cursor = self._at(await in_thread(self._begin))
        while True:
            if not cursor.has_lines:
                cursor = await self._async_waiter.look(cursor)
            if cursor.has_lines:
                segments, self._cursor = await in_thread(self._waiter.read, cursor)
                self._next_sequence, self._last = cursor.sequence, None
                return itertools.chain.from_iterable(
                    log_segments.lines(segment, cursor.sequence, cursor.numbered)
                    for segment in segments
                )
            self._next_sequence, self._last = cursor.sequence, None
            self._cursor = cursor
            if cursor.run.final:
                raise StopAsyncIteration
            lines, self._cursor = cursor.unfinished()
            if lines:
                return iter(lines)
            self._checked = await _check(self._check, cursor.run, self._checked)
            await _rest(cursor, deadline)


def _unchanged(run: Run) -> Run:
    return run


def _do_nothing(_run: Run) -> None:
    """Do nothing: a `check` that never ends the wait, and an `end` without a result."""


async def _check(check: Callable[[Run], None], run: Run, checked: float) -> float:
    """
    Call `check`; return when a QUEUED job was last checked, by the monotonic clock.

    The check of a QUEUED job looks at a directory, which may take long: it is made in a thread,
    and once a second, as a loop may have a thousand waiters. That of a RUNNING job uses
    facts in memory and /proc.
    """
    if run.status != Status.QUEUED:
        check(run)
        return checked
    now = time.monotonic()
    if now < checked + CHECK_PAUSE:
        return checked
    await in_thread(check, run)
    return now


async def _rest(cursor: Cursor, deadline: Deadline) -> None:
    """Sleep until the next look."""
    if deadline.over:
        raise deadline.error(cursor.in_words())
    await sleep(min(cursor.pause, deadline.left))
