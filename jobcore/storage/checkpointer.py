"""Checkpoints the write-ahead log; all processes together run one checkpoint at a time."""

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
from jobcore.tuning import CHECKPOINT_BYTES, CHECKPOINT_PATIENCE, CHECKPOINT_PAUSE

#: The file in the root of the job directories that the checkpointer locks.
LOCK = "checkpoint"


class Checkpointer:
    """
    Checkpoints the write-ahead log of one database.

    SQLite 3.7.0 to 3.51.2 can lose commits when one checkpoint follows another
    while a third connection resets the log. So only one process at a time runs a
    checkpoint, in mode TRUNCATE, which takes the writer's lock before it reads the
    log's header. SQLite may still fall back to PASSIVE when a writer is busy; that is
    safe here, because no second checkpoint can run at the same time.
    """

    def __init__(self, path: str, connect: Callable[[], sqlite3.Connection]) -> None:
        self._path = path
        self._connect = connect
        # `ulimit -f`: once the log reaches this size, no write succeeds any more.
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        self._limit = None if limit == resource.RLIM_INFINITY else limit
        self.next_run = 0.0  # monotonic time of the next check

    def is_due(self) -> bool:
        """Tell whether the log is large; without `ulimit -f`, look once a second at most."""
        now = time.monotonic()
        if now < self.next_run:
            return False
        worth = CHECKPOINT_BYTES
        if self._limit is None:
            self.next_run = now + CHECKPOINT_PAUSE
        else:
            worth = min(worth, self._limit // 4)
        try:
            return os.stat(self._path + "-wal").st_size >= worth
        except OSError:
            return False  # no log; any other error does not endanger what is committed

    def run(self) -> bool:
        """Run a checkpoint; False: another process runs one, or a reader was in the way."""
        root = filesystem.open_root(self._path, create=False)
        try:
            lock = job_directory.make_file(LOCK, os.O_RDWR, root)
        finally:
            os.close(root)
        try:
            # A lock of `flock` belongs to the open file, so it excludes other threads too.
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
        """Return whether a reader or writer was in the way, and the number of pages in the log."""
        connection = self._connect()
        try:
            connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_PATIENCE}")
            busy, pages, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.close()
        return busy, pages
