"""
Feed: the history of all jobs as events, which any process can read and follow.

It touches the tables only when the file changed, and in short transactions: a
reader that stayed in one would keep the write-ahead log from being truncated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

from jobcore import history
from jobcore.arguments import checked_patience
from jobcore.database import Database
from jobcore.errors import ArgumentError, DatabaseCorrupt
from jobcore.history import Entry, Filter
from jobcore.models import Event

#: Entries read in one transaction, which takes some 6 ms on a busy machine.
PAGE = 500
#: Seconds of rest between two looks at the tables, however fast commits follow each other.
LOOK_PAUSE = 0.005


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
        with self._database.read() as connection:
            newest = history.newest(connection)
        if after is None:
            after = newest
        if after > newest:
            # Events of this file that get a smaller id would be left out in silence.
            raise ArgumentError(f"no event has had the id {after} yet: the last one is {newest}")
        found = self._events(after, wanted, last=None if follow else newest, timeout=timeout)
        return islice(found, limit)

    def _events(
        self, after: int, wanted: Filter, *, last: int | None, timeout: float | None
    ) -> Iterator[Event]:
        deadline = time.monotonic() + checked_patience(timeout)
        while True:
            seen = self._database.version()
            with self._database.read() as connection:
                damaged: dict[int, Exception] = {}
                page = history.entries_after(
                    connection, after, PAGE, wanted.pipeline_id, damaged.__setitem__
                )
            for number, error in damaged.items():
                self._failed(number, error)
            for entry in page:
                if last is not None and entry.id > last:
                    return
                after = entry.id
                event = self._event(entry, wanted)
                if event is not None:
                    yield event
            more, now = len(page) + len(damaged) == PAGE, time.monotonic()
            after = max([after, *damaged])
            if now > deadline or (last is not None and not more):
                return
            if not more:
                self._database.wait_for_change(seen, deadline - now)
                time.sleep(LOOK_PAUSE)

    def _event(self, entry: Entry, wanted: Filter) -> Event | None:
        if entry.hidden or not wanted.takes(entry):
            return None
        try:
            return Event.from_entry(entry)
        except DatabaseCorrupt as error:
            self._failed(entry.id, error)
            return None
