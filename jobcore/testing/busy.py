"""Holds the write lock of a database during a `with` block."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from jobcore.errors import DatabaseBusy
from jobcore.manager import OPEN, JobManager
from jobcore.storage.connections import uri_of
from jobcore.storage.database import Database
from jobcore.testing.parts import parts


@contextmanager
def busy(jobs: JobManager | str | os.PathLike[str], *, timeout: float = 30.0) -> Iterator[None]:
    """
    Hold the write lock of a database during the `with` block, as another process would.

        with busy(jobs), pytest.raises(DatabaseBusy):
            jobs.submit(["true"])

    It is SQLite's own lock, taken on a separate connection. Managers of this process that
    have the file open fail at once instead of waiting for their `busy_timeout`, so the test
    does not wait. Managers of other processes wait as usual.

    Inside the block, methods that write raise `DatabaseBusy`, methods that read work and
    return what is stored, and running commands are not affected. Managers repeat their
    background work, and complete it soon after the block.

    Do not fork inside the block: the child could not use the file.

    Args:
        jobs: A manager, or the path of its database.
        timeout: Seconds to wait for the lock.

    Raises:
        DatabaseBusy: The lock was not available within that time.
        FileNotFoundError: The file does not exist.
    """
    path = os.path.realpath(
        parts(jobs).database.path if isinstance(jobs, JobManager) else os.fspath(jobs)
    )
    os.stat(path)  # raises if it is missing; opening it would create it
    Database(path, busy_timeout=timeout).close()  # raises if it is not a database of jobcore
    impatient = [
        parts(manager).database  # it has the `busy_timeout`
        for manager in list(OPEN)
        if parts(manager).database.path == path
    ]
    patience = [database.busy_timeout for database in impatient]
    # Not a `Database`, which releases the lock when a call of the host fails.
    holder = sqlite3.connect(uri_of(path, "rw"), timeout=timeout, uri=True, isolation_level=None)
    try:
        # Before the lock is taken, or a call that begins now would wait for long.
        for database in impatient:
            database.busy_timeout = 0.0
        holder.execute("PRAGMA wal_autocheckpoint = 0")  # as on every connection; see `connections`
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
