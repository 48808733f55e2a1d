"""A version number that changes with every commit of any process, and a way to wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable

from jobcore.embedding.interrupts import Bell, Lock
from jobcore.embedding.worker import handed_over
from jobcore.storage.connections import SqliteConnection


class ChangeCounter:
    """
    The commits to one file, as all threads of a process see them.

    The writer of this process announces its own commits. Commits of other processes are
    found by polling `PRAGMA data_version` on a separate connection that reads no table.
    """

    def __init__(self, connect: Callable[[], SqliteConnection]) -> None:
        self._connect = connect
        self._version = 0
        self.reset()

    def reset(self) -> None:
        """Reset all state, as in a forked child: no thread polls and no thread waits."""
        self._looking = Lock()
        self._committed = Bell()
        self.count = 0  # commits of this process
        self._last = 0.0  # monotonic time of the last of them
        self._looked = (0.0, 0)  # monotonic time of the last poll, and the version it saw
        self._watch: SqliteConnection | None = None
        self._base = 0  # added to the data_version of the polling connection

    def known_version(self, within: float) -> int | None:
        """
        Return the version polled in the last `within` seconds; None: there was no such poll.

        This takes no lock and touches no file. So an event loop can call it, and a
        hundred waiters share one poll.
        """
        looked, version = self._looked
        fresh = looked > self._last and time.monotonic() - looked < within
        return version if fresh else None

    def look(self) -> int:
        """Poll the file and return its version, which differs after every commit."""
        with self._looking:
            now = time.monotonic()  # before the poll, so that a later commit makes it stale
            watch = self._watch or self._open_watch()
            (number,) = watch.execute("PRAGMA data_version").fetchone()
            self._version = self._base + number
            self._looked = now, self._version
            return self._version

    @handed_over
    def _open_watch(self) -> SqliteConnection:
        watch = self._connect()
        (number,) = watch.execute("PRAGMA data_version").fetchone()
        # Each connection has its own data_version. After a fork there may have been
        # commits, so this starts with a version that was never returned before.
        self._base = self._version + 1 - number
        self._watch = watch
        return watch

    def announce(self) -> None:
        """Record a commit of this process, and wake the waiting threads."""
        self._last = time.monotonic()
        self.count += 1
        self._committed.ring()

    def wait(self, count: int, seconds: float) -> None:
        """Wait until `self.count` differs from `count`, for at most `seconds`."""
        self._committed.wait(lambda: self.count != count, seconds)

    def close(self) -> None:
        """Close the polling connection; the next poll opens a new one."""
        with self._looking:
            self._looked = (0.0, 0)  # so that waiters poll again, and notice a close or a fork
            if self._watch is not None:
                self._watch.close()
                self._watch = None
