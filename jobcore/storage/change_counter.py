"""A number that changes with each commit of any process, and waiting for the next one."""

from __future__ import annotations

import time
from collections.abc import Callable

from jobcore.embedding.interrupts import Bell, Lock
from jobcore.embedding.worker import handed_over
from jobcore.storage.connections import SqliteConnection

#: Seconds between two looks for commits of other processes: the first and the longest.
LOOK_FIRST, LOOK_LONGEST = 0.005, 0.05


class Commits:
    """
    What all threads of a process know of the commits to one file.

    Those of this process are told by who makes them. Those of others are seen by
    looking, through a connection of its own that reads no table.
    """

    def __init__(self, connect: Callable[[], SqliteConnection]) -> None:
        self._connect = connect
        self._version = 0
        self.start_afresh()

    def start_afresh(self) -> None:
        """Begin anew, in a forked child too: nobody looks, and nobody waits."""
        self._looking = Lock()
        self._told = Bell()
        self.count = 0  # of this process
        self._last = 0.0  # when the last of them was, by the monotonic clock
        self._looked = (0.0, 0)  # when a thread looked, and the version it saw
        self._watch: SqliteConnection | None = None
        self._base = 0  # what the watch's own number is added to

    def known_version(self, within: float) -> int | None:
        """
        Return the version that a thread saw in the last `within` seconds; None: nobody did.

        It takes no lock and touches no file, so an event loop may call it, and
        a hundred waiters cost one look.
        """
        looked, version = self._looked
        fresh = looked > self._last and time.monotonic() - looked < within
        return version if fresh else None

    def look(self) -> int:
        """Look at the file, and return a version that differs from that before any commit."""
        with self._looking:
            now = time.monotonic()  # before the look: a commit just behind it makes it old
            watch = self._watch or self._open_watch()
            (number,) = watch.execute("PRAGMA data_version").fetchone()
            self._version = self._base + number
            self._looked = now, self._version
            return self._version

    @handed_over
    def _open_watch(self) -> SqliteConnection:
        watch = self._connect()
        (number,) = watch.execute("PRAGMA data_version").fetchone()
        # Each connection counts from anew. After a fork it is not known whether there
        # were commits, so the number is one that was never returned.
        self._base = self._version + 1 - number
        self._watch = watch
        return watch

    def announce(self) -> None:
        """Wake the threads that wait: this process has made a commit."""
        self._last = time.monotonic()
        self.count += 1
        self._told.ring()

    def wait(self, count: int, seconds: float) -> None:
        """Wait until this process has made another number of commits than `count`."""
        self._told.wait(lambda: self.count != count, seconds)

    def close(self) -> None:
        """Close the connection that looks; the next look makes another."""
        with self._looking:
            self._looked = (0.0, 0)  # who waits is to hear of a close, and of a fork
            if self._watch is not None:
                self._watch.close()
                self._watch = None
