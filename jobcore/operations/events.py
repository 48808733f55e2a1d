"""
Reads and follows the history of all jobs, as events.

It reads the tables only when the file has changed, and in short transactions: a long read
transaction would keep the write-ahead log from being truncated.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import NamedTuple

from jobcore.errors import ArgumentError, DatabaseCorrupt
from jobcore.models import Event
from jobcore.operations.arguments import checked_timeout
from jobcore.operations.async_backend import in_thread, sleep
from jobcore.storage import history
from jobcore.storage.database import Database
from jobcore.storage.history import Entry
from jobcore.storage.job_filter import JobFilter
from jobcore.storage.tuning import LOOK_FIRST, LOOK_LONGEST

#: Entries read in one transaction, which takes about 6 ms on a busy machine.
PAGE = 500
#: The least seconds between two reads of the tables, however frequent commits are.
LOOK_PAUSE = 0.005


#: Seconds for which an event loop trusts the file version that a thread has seen last.
TRUST = LOOK_LONGEST / 2


class Page(NamedTuple):
    """
    The result of one read of the history.

    Attributes:
        events: The events that match the filter and can be read.
        after: The id of the last entry that was examined.
        more: Whether there may be further entries now.
        seen: The version of the file before the read.
    """

    events: list[Event]
    after: int
    more: bool
    seen: int


class EventReader:
    """
    Reads events.

    Args:
        database: Where the history is stored.
        failed: Called with the id and the error of each event that cannot be read. Such
            events are left out.
    """

    def __init__(self, database: Database, failed: Callable[[int, Exception], None]) -> None:
        self._database = database
        self._failed = failed

    def read(
        self,
        after: int | None,
        wanted: JobFilter,
        *,
        limit: int | None,
        follow: bool,
        timeout: float | None,
    ) -> Iterator[Event]:
        """
        Return an iterator of the events after the id `after`; None: after all existing ones.

        Args:
            limit: Most events to return.
            follow: Continue with new events. If false, end with the last one at this call.
            timeout: Seconds until the iterator ends in any case.

        Raises:
            ArgumentError: No event has had the id `after` yet: it is from another file.
        """
        first, newest = self.begin(after)
        found = self._events(first, wanted, last=None if follow else newest, timeout=timeout)
        return islice(found, limit)

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

    def _events(
        self, after: int, wanted: JobFilter, *, last: int | None, timeout: float | None
    ) -> Iterator[Event]:
        deadline = time.monotonic() + checked_timeout(timeout)
        while True:
            page = self.look(after, wanted, last)
            after = page.after
            yield from page.events
            now = time.monotonic()
            if now > deadline or (last is not None and not page.more):
                return
            if not page.more:
                self._database.wait_for_change(page.seen, deadline - now)
                time.sleep(LOOK_PAUSE)

    def _event(self, entry: Entry, wanted: JobFilter) -> Event | None:
        if entry.hidden or not wanted.takes(entry):
            return None
        try:
            return Event.from_entry(entry)
        except DatabaseCorrupt as error:
            self._failed(entry.id, error)
            return None

    def look(self, after: int, wanted: JobFilter, last: int | None) -> Page:
        """Return the next events after the id `after`, up to the id `last` if it is given."""
        seen = self._database.version()
        damaged: dict[int, Exception] = {}
        with self._database.read() as connection:
            entries = history.entries_after(
                connection, after, PAGE, wanted.pipeline_id, damaged.__setitem__
            )
        for number, error in damaged.items():
            self._failed(number, error)
        behind = max([after, *damaged, *(entry.id for entry in entries)])
        more = len(entries) + len(damaged) == PAGE and (last is None or behind < last)
        found = [
            event
            for entry in entries
            if (last is None or entry.id <= last)
            and (event := self._event(entry, wanted)) is not None
        ]
        return Page(found, behind, more, seen)

    def version(self) -> int:
        """Return the version of the file: a number that every commit changes."""
        return self._database.version(LOOK_FIRST)

    def is_stale(self, seen: int) -> bool:
        """Tell, without locks or I/O, whether there may have been a commit since `seen`."""
        return seen != self._database.known_version(TRUST)


class Events(AsyncIterator[Event]):
    """
    The events as they come, for an event loop.

    A cancelled `anext()` has consumed nothing. An error ends the iterator. Between two calls
    nothing is held that must be closed.

    Args:
        feed: Reads events, in threads.
        begin: Returns the filter, after looking up its ids in the database; called in a thread.
        after, limit, follow, timeout: As for `EventReader.read`.
    """

    def __init__(
        self,
        feed: EventReader,
        begin: Callable[[], JobFilter],
        after: int | None,
        *,
        limit: int | None,
        follow: bool,
        timeout: float | None,
    ) -> None:
        self._event_reader = feed
        self._begin = begin
        self._from = after
        self._left = limit
        self._follow = follow
        self._timeout = timeout
        self._deadline: float | None = None
        self._wanted: JobFilter | None = None
        self._after = 0
        self._last: int | None = None
        self._ready: deque[Event] = deque()
        self._page: Page | None = None
        self._reading = False
        self._ended = False

    async def __anext__(self) -> Event:
        """Return the next event."""
        if self._reading:
            raise RuntimeError("another task waits for the next event of the same iterator")
        if self._ended or self._left == 0:
            raise StopAsyncIteration
        self._reading = True
        try:
            while not self._ready:
                await self._look()
        except Exception:
            self._ended = True
            raise
        finally:
            self._reading = False
        if self._left is not None:
            self._left -= 1
        return self._ready.popleft()

    async def _look(self) -> None:
        """
        Wait for a change if the last page was the end, then read a page of events.

        The state changes only by assignment after a step, so a cancelled step changes nothing.

        Raises:
            StopAsyncIteration: There will be no more.
        """
        if self._deadline is None:
            self._deadline = time.monotonic() + checked_timeout(self._timeout)
        if self._wanted is None:
            wanted, (after, newest) = await in_thread(self._start)
            self._wanted, self._after = wanted, after
            self._last = None if self._follow else newest
        page = self._page
        if page is not None and not page.more:
            await self._rest(page)
        self._page = page = await in_thread(
            self._event_reader.look, self._after, self._wanted, self._last
        )
        self._after = page.after
        self._ready.extend(page.events)

    def _start(self) -> tuple[JobFilter, tuple[int, int]]:
        return self._begin(), self._event_reader.begin(self._from)

    async def _rest(self, page: Page) -> None:
        """
        Sleep until there may have been a commit since this page.

        Raises:
            StopAsyncIteration: The time is over, or everything up to the last id is read.
        """
        assert self._deadline is not None  # noqa: S101 - for the type checker alone
        pause = LOOK_FIRST
        while True:
            left = self._deadline - time.monotonic()
            if left < 0 or self._last is not None:
                raise StopAsyncIteration
            await sleep(min(pause, left))
            pause = min(pause * 2, LOOK_LONGEST)
            if self._event_reader.is_stale(page.seen):
                version = await in_thread(self._event_reader.version)
                if version != page.seen:
                    return
