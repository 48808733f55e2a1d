"""
The history of all jobs as events, which any process can read and follow.

It touches the tables only when the file changed, and in short transactions: a
reader that stayed in one would keep the write-ahead log from being truncated.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import NamedTuple

from jobcore.errors import ArgumentError, DatabaseCorrupt
from jobcore.models import Event
from jobcore.operations.arguments import checked_patience
from jobcore.operations.async_backend import in_thread, sleep
from jobcore.storage import history
from jobcore.storage.change_counter import LOOK_FIRST, LOOK_LONGEST
from jobcore.storage.database import Database
from jobcore.storage.history import Entry, Filter

#: Entries read in one transaction, which takes some 6 ms on a busy machine.
PAGE = 500
#: Seconds of rest between two looks at the tables, however fast commits follow each other.
LOOK_PAUSE = 0.005


#: Seconds for which an event loop trusts what a thread has seen of commits.
TRUST = LOOK_LONGEST / 2


class Page(NamedTuple):
    """
    What one look at the feed has found.

    Attributes:
        events: Those that are wanted and can be read.
        after: The id of the last one that was looked at.
        more: Whether there may be further ones by now.
        seen: The version of the file before the look.
    """

    events: list[Event]
    after: int
    more: bool
    seen: int


class Feed:
    """
    Reads events.

    Args:
        database: Where they are.
        failed: Called with the id of each event that cannot be read, and is left out.
    """

    def __init__(self, database: Database, failed: Callable[[int, Exception], None]) -> None:
        self._database = database
        self._failed = failed

    def read(
        self,
        after: int | None,
        wanted: Filter,
        *,
        limit: int | None,
        follow: bool,
        timeout: float | None,
    ) -> Iterator[Event]:
        """
        Return an iterator of the events behind the id `after`; None: behind all there are.

        Args:
            limit: Events at the most.
            follow: Go on as they come; else up to the last one that there is at this call.
            timeout: Seconds until it ends all the same.

        Raises:
            ArgumentError: No event has had the id `after` yet, so it is from another file.
        """
        first, newest = self.begin(after)
        found = self._events(first, wanted, last=None if follow else newest, timeout=timeout)
        return islice(found, limit)

    def begin(self, after: int | None) -> tuple[int, int]:
        """
        Return the id to go on from, and the last one there is.

        Raises:
            ArgumentError: No event has had the id `after` yet, so it is from another file.
        """
        with self._database.read() as connection:
            newest = history.newest(connection)
        if after is None:
            return newest, newest
        if after > newest:
            # Events of this file that get a smaller id would be left out in silence.
            raise ArgumentError(f"no event has had the id {after} yet: the last one is {newest}")
        return after, newest

    def _events(
        self, after: int, wanted: Filter, *, last: int | None, timeout: float | None
    ) -> Iterator[Event]:
        deadline = time.monotonic() + checked_patience(timeout)
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

    def _event(self, entry: Entry, wanted: Filter) -> Event | None:
        if entry.hidden or not wanted.takes(entry):
            return None
        try:
            return Event.from_entry(entry)
        except DatabaseCorrupt as error:
            self._failed(entry.id, error)
            return None

    def look(self, after: int, wanted: Filter, last: int | None) -> Page:
        """Return the next events after the id `after`, up to the id `last`."""
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
        """Return a number that differs after every commit to the file."""
        return self._database.version(LOOK_FIRST)

    def is_stale(self, seen: int) -> bool:
        """Tell, without any lock or file, whether there may have been a commit since."""
        return seen != self._database.known_version(TRUST)


class Events(AsyncIterator[Event]):
    """
    The events as they come, for an event loop.

    A call of `anext()` that is cancelled has taken nothing. An error ends it. Between two
    calls it holds nothing that is to be closed.

    Args:
        feed: Looks, in threads.
        begin: Checks the filters that need the database, and returns them; in a thread.
        after, limit, follow, timeout: As for `Feed.read`.
    """

    def __init__(
        self,
        feed: Feed,
        begin: Callable[[], Filter],
        after: int | None,
        *,
        limit: int | None,
        follow: bool,
        timeout: float | None,
    ) -> None:
        self._feed = feed
        self._begin = begin
        self._from = after
        self._left = limit
        self._follow = follow
        self._timeout = timeout
        self._deadline: float | None = None
        self._wanted: Filter | None = None
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
        Have some events ready, if there are any by now; wait a little for them first.

        Only what is assigned has happened: what a cancelled step returns is dropped.

        Raises:
            StopAsyncIteration: There will be no more.
        """
        if self._deadline is None:
            self._deadline = time.monotonic() + checked_patience(self._timeout)
        if self._wanted is None:
            wanted, (after, newest) = await in_thread(self._start)
            self._wanted, self._after = wanted, after
            self._last = None if self._follow else newest
        page = self._page
        if page is not None and not page.more:
            await self._rest(page)
        self._page = page = await in_thread(self._feed.look, self._after, self._wanted, self._last)
        self._after = page.after
        self._ready.extend(page.events)

    def _start(self) -> tuple[Filter, tuple[int, int]]:
        return self._begin(), self._feed.begin(self._from)

    async def _rest(self, page: Page) -> None:
        """
        Sleep until there may have been a commit since this page.

        Raises:
            StopAsyncIteration: The time is over, or all is read that was to be.
        """
        assert self._deadline is not None  # noqa: S101 - for the type checker alone
        pause = LOOK_FIRST
        while True:
            left = self._deadline - time.monotonic()
            if left < 0 or self._last is not None:
                raise StopAsyncIteration
            await sleep(min(pause, left))
            pause = min(pause * 2, LOOK_LONGEST)
            if self._feed.is_stale(page.seen):
                version = await in_thread(self._feed.version)
                if version != page.seen:
                    return
