"""Holds the write lock of a database for as long as a block lasts."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from jobcore.errors import DatabaseBusy
from jobcore.manager import OPEN, JobManager
from jobcore.storage.connections import uri_of
from jobcore.storage.database import Database


@contextmanager
def busy(jobs: JobManager | str | os.PathLike[str], *, timeout: float = 30.0) -> Iterator[None]:
    """
    Hold the write lock of a database while the block lasts, as another process would.

        with busy(jobs), pytest.raises(DatabaseBusy):
            jobs.submit(["true"])

    The lock is SQLite's own, on a connection of its own. The managers of this
    process that have the file open give up at once, instead of waiting for their
    `busy_timeout`; so no test has to wait. Managers of other processes wait as
    they always do.

    Inside the block what writes raises `DatabaseBusy`, what reads works and tells
    what is stored, and running commands do not notice. What managers do in the
    background is tried again, and comes true soon after the block.

    Do not fork inside the block: the child could not use the file.

    Args:
        jobs: A manager, or the path of its database.
        timeout: Seconds to wait for the lock.

    Raises:
        DatabaseBusy: It could not be had within that time; somebody else holds it.
        FileNotFoundError: There is no such file.
    """
    path = os.path.realpath(
        jobs._database.path if isinstance(jobs, JobManager) else os.fspath(jobs)  # noqa: SLF001
    )
    os.stat(path)  # opening it would make one that is not there
    Database(path, busy_timeout=timeout).close()  # which says what is wrong with another file
    impatient = [
        manager._database  # noqa: SLF001 - it knows how long to wait
        for manager in list(OPEN)
        if manager._database.path == path  # noqa: SLF001
    ]
    patience = [database.busy_timeout for database in impatient]
    # No `Database`: whatever a thread holds of one is let go of when a call of a host fails.
    holder = sqlite3.connect(uri_of(path, "rw"), timeout=timeout, uri=True, isolation_level=None)
    try:
        # Before the lock is taken: who begins to wait now would wait for long.
        for database in impatient:
            database.busy_timeout = 0.0
        holder.execute("PRAGMA wal_autocheckpoint = 0")  # as on all connections: see `connections`
        try:
            holder.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise DatabaseBusy(f"{path}: {error}") from error
        yield
        holder.execute("ROLLBACK")
    finally:
        for database, seconds in zip(impatient, patience, strict=True):
            database.busy_timeout = seconds
        holder.close()
