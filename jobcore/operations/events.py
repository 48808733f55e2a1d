"""
Reads and follows the history of all jobs, as events.

It reads the tables only when the file has changed, and in short transactions: a long read
transaction would keep the write-ahead log from being truncated.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

from jobcore.errors import ArgumentError, DatabaseCorrupt
from jobcore.models import Event
from jobcore.operations.arguments import checked_timeout
from jobcore.operations.async_backend import OneReader, in_thread, sleep
from jobcore.storage import history
from jobcore.storage.database import Database
from jobcore.storage.history import Entry
from jobcore.storage.job_rows import JobFilter
from jobcore.tuning import LOOK_FIRST, LOOK_LONGEST

#: Entries read in one transaction, which takes about 6 ms on a busy machine.
PAGE = 500
#: The least seconds between two reads of the tables, however frequent commits are.
LOOK_PAUSE = 0.005


#: Seconds for which an event loop trusts the file version that a thread has seen last.
VERSION_MAX_AGE = LOOK_LONGEST / 2


class Page(NamedTuple):
    """
    The result of one read of the history.

    Attributes:
        events: The events that match the filter and can be read.
        after: The id of the last entry that was examined.
        examined: How many entries were examined.
        more: Whether there may be further entries now.
        seen: The version of the file before the read.
    """

    events: list[Event]
    after: int
    examined: int
    more: bool
    seen: int


class EventReader:
    """
    Reads events.

    Args:
        failed: Called with the id and the error of each event that cannot be read. Such
            events are left out.
    """

    def __init__(self, database: Database, failed: Callable[[int, Exception], None]) -> None:
        self._database = database
        self._failed = failed

    def begin(self, after: int | None) -> tuple[int, int]:
        """
        Return the id after which to begin, and the last id that exists.

        Raises:
            ArgumentError: No event has had the id `after` yet: it is from another file.
        """
        with self._database.read() as connection:
            newest = history.newest(connection)
        if after is None:
            return newest, newest
        if after > newest:
            # The events of this file up to this id would be skipped without notice.
            raise ArgumentError(
                f"after is {after}, and the last event is {newest}: the id is from another file"
            )
        return after, newest

    def _event(self, entry: Entry, wanted: JobFilter) -> Event | None:
        if entry.hidden or not wanted.takes(entry):
            return None
        try:
            return Event.from_entry(entry)
        except DatabaseCorrupt as error:
            self._failed(entry.id, error)
            return None

    def look(self, after: int, wanted: JobFilter, last: int | None, scan_limit: int | None) -> Page:
        """Return the next events after the id `after`, up to the id `last` if it is given."""
        most = PAGE if scan_limit is None else min(PAGE, scan_limit)
        seen = self._database.version()
        damaged: dict[int, Exception] = {}
        with self._database.read() as connection:
            entries = history.entries_after(
                connection, after, most, wanted.pipeline_id, damaged.__setitem__
            )
        for number, error in damaged.items():
            self._failed(number, error)
        next_after = max([after, *damaged, *(entry.id for entry in entries)])
        if last is not None:
            next_after = min(next_after, last)
        examined = len(entries) + len(damaged)
        more = examined == most and (last is None or next_after < last)
        found = [
            event
            for entry in entries
            if (last is None or entry.id <= last)
            and (event := self._event(entry, wanted)) is not None
        ]
        return Page(found, next_after, examined, more, seen)

    def wait_for_change(self, seen: int, seconds: float) -> None:
        """Wait until the file has another version than `seen`, for at most `seconds`."""
        self._database.wait_for_change(seen, seconds)
        time.sleep(LOOK_PAUSE)

    def version(self) -> int:
        """Return the version of the file: a number that every commit changes."""
        return self._database.version(LOOK_FIRST)

    def is_stale(self, seen: int) -> bool:
        """Tell, without locks or I/O, whether there may have been a commit since `seen`."""
        return seen != self._database.known_version(VERSION_MAX_AGE)


class _Position:
    """
    The position of an iterator of events, and how many events it may still return and examine.

    Args:
        after: The id after which it reads on.
        last: The id at which it ends; None: it does not end there.
        limit, scan_limit: As for `Events`.
    """

    def __init__(
        self, after: int, last: int | None, limit: int | None, scan_limit: int | None
    ) -> None:
        self.read_to = self._taken = after
        self.last = last
        self.left = limit
        self.to_scan = scan_limit
        self.page: Page | None = None
        self.ready: deque[Event] = deque()

    @property
    def after(self) -> int:
        """The id up to which every event was returned or did not match."""
        return self._taken if self.ready or self.left == 0 else self.read_to

    @property
    def is_over(self) -> bool:
        """Whether a limit is reached: of returned or of examined events."""
        return self.left == 0 or (not self.ready and self.to_scan == 0)

    def add(self, page: Page) -> None:
        """Move to the end of this page, and keep its events for `take`."""
        self.page = page
        self.read_to = page.after
        if self.to_scan is not None:
            self.to_scan -= page.examined
        self.ready.extend(page.events)

    def take(self) -> Event:
        """Return the next event that was read."""
        if self.left is not None:
            self.left -= 1
        event = self.ready.popleft()
        self._taken = event.id
        return event


class _Events(Iterator[Event]):
    def __init__(
        self,
        reader: EventReader,
        wanted: JobFilter,
        after: int | None,
        *,
        limit: int | None,
        scan_limit: int | None,
        follow: bool,
        timeout: float | None,
    ) -> None:
        self._reader = reader
        self._wanted = wanted
        self._timeout = timeout
        self._deadline: float | None = None
        first, newest = reader.begin(after)
        self._position = _Position(first, None if follow else newest, limit, scan_limit)

    def __next__(self) -> Event:
        """Return the next event."""
        if self._deadline is None:
            self._deadline = time.monotonic() + checked_timeout(self._timeout)
        position = self._position
        while not position.is_over:
            if position.ready:
                return position.take()
            page, now = position.page, time.monotonic()
            if page is not None:
                if now > self._deadline or (position.last is not None and not page.more):
                    break
                if not page.more:
                    self._reader.wait_for_change(page.seen, self._deadline - now)
            position.add(
                self._reader.look(position.read_to, self._wanted, position.last, position.to_scan)
            )
        raise StopIteration


class Events(_Events):
    """The iterator that `JobManager.events` returns: events in commit order."""

    @property
    def after(self) -> int:
        """
        The id from which the next call of `events` continues.

        It is the id of the last event that was returned. When the iterator has ended, it has
        moved on past the events that did not match the filter.
        """
        return self._position.after


class _AsyncEvents(OneReader[Event], AsyncIterator[Event]):
    def __init__(
        self,
        reader: EventReader,
        begin: Callable[[], JobFilter],
        after: int | None,
        *,
        limit: int | None,
        scan_limit: int | None,
        follow: bool,
        timeout: float | None,
    ) -> None:
        super().__init__("event")
        self._reader = reader
        self._begin = begin
        self._from = after
        self._limits = limit, scan_limit
        self._follow = follow
        self._timeout = timeout
        self._deadline: float | None = None
        self._wanted = JobFilter()
        self._position: _Position | None = None
        self._ended = limit == 0

    async def __anext__(self) -> Event:
        """Return the next event."""
        return await self.next()

    async def _next(self) -> Event:
        position = await self._begun()
        while not position.is_over:
            if position.ready:
                return position.take()
            await self._look(position)
        raise StopAsyncIteration

    async def _begun(self) -> _Position:
        if self._deadline is None:
            self._deadline = time.monotonic() + checked_timeout(self._timeout)
        if self._position is None:
            self._wanted, (after, newest) = await in_thread(self._start)
            last = None if self._follow else newest
            self._position = _Position(after, last, *self._limits)
        return self._position

    async def _look(self, position: _Position) -> None:
        """
        Wait for a change if the last page was the end, then read a page of events.

        The state changes only after the last step, so a cancelled step changes nothing.

        Raises:
            StopAsyncIteration: There will be no more.
        """
        page = position.page
        if page is not None and self._deadline is not None and time.monotonic() > self._deadline:
            raise StopAsyncIteration
        if page is not None and not page.more:
            await self._rest(page, position.last)
        position.add(
            await in_thread(
                self._reader.look,
                position.read_to,
                self._wanted,
                position.last,
                position.to_scan,
            )
        )

    def _start(self) -> tuple[JobFilter, tuple[int, int]]:
        return self._begin(), self._reader.begin(self._from)

    async def _rest(self, page: Page, last: int | None) -> None:
        """
        Sleep until there may have been a commit since this page.

        Raises:
            StopAsyncIteration: The time is over, or everything up to the last id is read.
        """
        assert self._deadline is not None  # noqa: S101 - for the type checker alone
        pause = LOOK_FIRST
        while True:
            left = self._deadline - time.monotonic()
            if left < 0 or last is not None:
                raise StopAsyncIteration
            await sleep(min(pause, left))
            pause = min(pause * 2, LOOK_LONGEST)
            if self._reader.is_stale(page.seen):
                version = await in_thread(self._reader.version)
                if version != page.seen:
                    return


class AsyncEvents(_AsyncEvents):
    """
    The iterator that `JobManager.events_async` returns: events in commit order.

    A cancelled `anext()` has consumed nothing. An error ends the iterator. It holds nothing that
    must be closed.
    """

    @property
    def after(self) -> int | None:
        """The id from which the next call continues, as in `Events`; None before the first read."""
        return None if self._position is None else self._position.after
