"""Moves the write-ahead log into the database, one checkpoint at a time over all processes."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import sqlite3
import time
from collections.abc import Callable

from jobcore.embedding import telemetry
from jobcore.storage import filesystem
from jobcore.supervisor import job_directory

#: Bytes of write-ahead log from which a checkpoint is worth its fsyncs.
WORTH_BYTES = 4 * 2**20
#: Seconds between two tries.
PAUSE = 1.0
#: Milliseconds that it waits for a reader: with 3 s, one open reader blocked a writer for 2.8 s.
PATIENCE = 100

#: The file in the root whose lock the one checkpointer has.
LOCK = "checkpoint"


class Checkpointer:
    """
    Moves the write-ahead log of one database into it.

    SQLite 3.7.0 to 3.51.2 can lose commits when one checkpoint follows another
    while a third connection resets the log. So there is one checkpointer at a
    time over all processes, and the mode is TRUNCATE, which takes the writer's
    lock before it reads the log's header. It may still fall back to PASSIVE when
    a writer is busy; with one checkpointer at a time there is no second one to
    race with.
    """

    def __init__(self, path: str, connect: Callable[[], sqlite3.Connection]) -> None:
        self._path = path
        self._connect = connect
        # Under a limit of `ulimit -f` the log must not come near to it: then nothing is written.
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        self._limit = None if limit == resource.RLIM_INFINITY else limit
        self._next = 0.0  # by the monotonic clock

    def is_due(self) -> bool:
        """Tell whether the log is large; asked again within `PAUSE`, it is not."""
        now = time.monotonic()
        if now < self._next:
            return False
        worth = WORTH_BYTES
        if self._limit is None:
            self._next = now + PAUSE
        else:
            worth = min(worth, self._limit // 4)
        try:
            return os.stat(self._path + "-wal").st_size >= worth
        except OSError:
            return False  # it is not there; or whatever it is, the commits stand

    def run(self) -> bool:
        """Make one; False: somebody else does, or a reader is in."""
        root = filesystem.open_root(self._path, create=False)
        try:
            lock = job_directory.make_file(LOCK, os.O_RDWR, root)
        finally:
            os.close(root)
        try:
            # Belongs to this open file, as an OFD lock does, so threads exclude each other too.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            busy, pages = self._truncate()
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        if busy:
            telemetry.event(logging.INFO, "checkpoint starved", path=self._path, wal_pages=pages)
        return not busy

    def _truncate(self) -> tuple[int, int]:
        """Return whether somebody was in its way, and how many pages the log had."""
        connection = self._connect()
        try:
            connection.execute(f"PRAGMA busy_timeout = {PATIENCE}")
            busy, pages, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.close()
        return busy, pages
