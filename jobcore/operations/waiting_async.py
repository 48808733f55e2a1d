"""
Waits for jobs and reads their logs in an event loop.

It is made of the same steps. Each runs in a worker thread, and only when there
may be something to see; in between the caller's framework sleeps, so a waiter
holds no thread, however many there are.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial

from jobcore.errors import JobDeleted
from jobcore.models import LogLine
from jobcore.operations.async_backend import Answer, in_thread, sleep
from jobcore.operations.deadline import Patience
from jobcore.operations.waiting import NOT_DRAINED, Cursor, Follower
from jobcore.storage import log_segments
from jobcore.storage.change_counter import LOOK_FIRST, LOOK_LONGEST
from jobcore.storage.transitions import Run

#: Lines after which a reader lets the loop's other tasks run. A guess between
#: many detours and a loop that stands still: they take about a millisecond.
BREATH = 256
#: Seconds that a look may take before another task looks, too.
LOOK_PATIENCE = 0.25


class Awaiter:
    """
    Waits in event loops.

    Args:
        follower: Takes the steps.
    """

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        #: Until when one task looks for all, by the monotonic clock. It ends by itself: a
        #: loop may stand still in the middle of a look, and a child is forked there.
        self._refreshing = 0.0

    async def wait(
        self,
        begin: Callable[[], Run],
        timeout: float | Patience | None,
        check: Callable[[Run], None],
        end: Callable[[Run], Answer],
    ) -> Answer:
        """
        Return, when the job is final, what `end` makes of it.

        Args:
            begin: Finds the job; it is called in a thread, as `end` is.
            check: Called at every look at a job that goes on; raises what should end the waiting.

        Raises:
            JobDeleted: The job was deleted in between.
            WaitTimeout: `timeout` seconds were over.
        """
        patience = Patience.of(timeout)
        cursor = self._follower.waiting(await in_thread(begin))
        while not (cursor := await self.look(cursor)).run.final:
            check(cursor.run)
            await _rest(cursor, patience)
        return await in_thread(end, cursor.run)

    async def wait_all(
        self,
        begin: Callable[[], Sequence[Run]],
        timeout: float | None,
        check: Callable[[Run], None],
        end: Callable[[Run], Answer],
    ) -> list[Answer]:
        """
        Return, when all jobs that `begin` finds are final, what `end` makes of each.

        Raises:
            JobDeleted: One of them was deleted in between.
            WaitTimeout: `timeout` seconds were over.
        """
        patience = Patience(timeout)
        found = await in_thread(begin)
        return [await self.wait(partial(_itself, run), patience, check, end) for run in found]

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
            unfinished: As for `Follower.follow`.
        """
        cursor = partial(self._follower.following, sequence=sequence, unfinished=unfinished)
        return Lines(self, self._follower, begin, cursor, timeout, check)

    async def drain(
        self,
        is_empty: Callable[[], bool],
        running: Callable[[], Sequence[Run]],
        timeout: float | None,
    ) -> None:
        """
        Return when the queue `is_empty` and what is `running` elsewhere is final.

        Raises:
            WaitTimeout: `timeout` seconds were over.
        """
        patience = Patience(timeout)
        while True:
            await self.wait_for(is_empty, patience, NOT_DRAINED)
            found = await in_thread(running)
            if not found:
                return
            for run in found:
                try:
                    await self.wait(partial(_itself, run), patience, _let_be, _let_be)
                except JobDeleted:
                    continue

    async def wait_for(
        self, condition: Callable[[], bool], timeout: float | Patience | None, what: str
    ) -> None:
        """
        Return when `condition` is true, which is asked in a thread, now and then.

        Raises:
            WaitTimeout: `timeout` seconds were over.
        """
        patience = Patience.of(timeout)
        pause = LOOK_FIRST
        while not await in_thread(condition):
            if patience.over:
                raise patience.error(what)
            await sleep(min(pause, patience.left))
            pause = min(pause * 2, LOOK_LONGEST)

    async def look(self, cursor: Cursor) -> Cursor:
        """
        Return the cursor with the job as it is now, without a thread where nothing happened.

        Raises:
            JobDeleted: The job was deleted in between.
        """
        if time.monotonic() >= self._refreshing and self._follower.is_stale(cursor):
            self._refreshing = mine = time.monotonic() + LOOK_PATIENCE
            try:
                await in_thread(self._follower.refresh, cursor)
            finally:
                if self._refreshing == mine:
                    self._refreshing = 0.0
        cursor = cursor.moved()
        if not cursor.due:
            return cursor
        cursor.sight.visited = time.monotonic()  # or all others would follow it there
        return await in_thread(self._follower.visit, cursor)


class Lines(AsyncIterator[LogLine]):
    """
    The lines of a job as they come.

    A call of `anext()` that is cancelled has taken nothing: the next one goes on
    at the same line. An error ends it, as it ends a generator: a loop that takes each
    WaitTimeout for a pause comes to its end. Between two calls it holds nothing that is
    to be closed.

    Args:
        awaiter: Looks.
        follower: Reads.
        begin: Finds the job; it is called in a thread, at the first `anext()`.
        at: Returns the cursor of a reader of that job.
        timeout: Seconds for the whole of it, from the first `anext()` on.
        check: Called at every look at a job that goes on; raises what should end the waiting.
    """

    def __init__(
        self,
        awaiter: Awaiter,
        follower: Follower,
        begin: Callable[[], Run],
        at: Callable[[Run], Cursor],
        timeout: float | None,
        check: Callable[[Run], None],
    ) -> None:
        self._check = check
        self._awaiter = awaiter
        self._follower = follower
        self._begin = begin
        self._at = at
        self._timeout = timeout
        self._patience: Patience | None = None
        self._cursor: Cursor | None = None
        self._ready: Iterator[LogLine] = iter(())
        self._taken = 0
        self._reading = False
        self._ended = False

    def __aiter__(self) -> Lines:
        """Return itself."""
        return self

    async def __anext__(self) -> LogLine:
        """Return the next line."""
        if self._reading:
            raise RuntimeError("another task waits for the next line of the same iterator")
        if self._ended:
            raise StopAsyncIteration
        self._reading = True
        try:
            return await self._next()
        except Exception:
            self._ended = True
            raise
        finally:
            self._reading = False

    async def _next(self) -> LogLine:
        if self._patience is None:
            self._patience = Patience(self._timeout)
        if self._taken % BREATH == BREATH - 1:
            await sleep(0)
        if self._cursor is not None and self._taken and self._patience.over:
            raise self._patience.error(self._cursor.in_words())
        while (line := next(self._ready, None)) is None:
            self._ready = await self._more(self._patience)
        self._taken += 1
        return line

    async def _more(self, patience: Patience) -> Iterator[LogLine]:
        """
        Return the next lines, as soon as there are some.

        Only what is assigned has happened: what a cancelled step returns is dropped.

        Raises:
            StopAsyncIteration: There will be no more.
        """
        cursor = self._cursor
        if cursor is None:
            cursor = self._at(await in_thread(self._begin))
        while True:
            if not cursor.behind:
                cursor = await self._awaiter.look(cursor)
            if cursor.behind:
                segments, self._cursor = await in_thread(self._follower.read, cursor)
                return itertools.chain.from_iterable(
                    log_segments.lines(segment, cursor.sequence) for segment in segments
                )
            self._cursor = cursor
            if cursor.run.final:
                raise StopAsyncIteration
            lines, self._cursor = cursor.unfinished()
            if lines:
                return iter(lines)
            self._check(cursor.run)
            await _rest(cursor, patience)


def _itself(run: Run) -> Run:
    return run


def _let_be(_run: Run) -> None:
    """Say nothing of a job that is waited for, and make nothing of one that has ended."""


async def _rest(cursor: Cursor, patience: Patience) -> None:
    """
    Sleep until the next look.

    Raises:
        WaitTimeout: The time is over.
    """
    if patience.over:
        raise patience.error(cursor.in_words())
    await sleep(min(cursor.pause, patience.left))
