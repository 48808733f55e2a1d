"""The statements for statistics, each of bounded cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from jobcore.lifecycle import Status
from jobcore.storage.damage import leave_out, read_rows, unconverted
from jobcore.storage.statement import driver_of
from jobcore.storage.tables import IS_QUEUED, IS_VISIBLE, has_status, job, sequence

#: How many of the oldest queued jobs are read to find one that is due.
_MOST_DELAYED = 100


def created(connection: Connection) -> int:
    """Return how many numbers of jobs were ever assigned."""
    found: int | None = connection.execute(
        select(sequence.c.seq).where(sequence.c.name == job.name)
    ).scalar_one_or_none()
    return found or 0


def oldest_waiting(connection: Connection, now: int) -> int | None:
    """Return since when the oldest queued job that may start has been waiting, or None."""
    oldest = (
        select(job.c.created, job.c.not_before)
        .where(IS_QUEUED)
        .order_by(job.c.number)
        .limit(_MOST_DELAYED)
    )
    for row in read_rows(connection, oldest, job.c.number, leave_out, unconverted):
        if row.not_before is None or row.not_before <= now:
            return max(int(row.created), row.not_before or 0)
    return None


def oldest_start(connection: Connection) -> int | None:
    """Return when the running job that started first was started, or None."""
    running = select(job.c.start_time).where(has_status(Status.RUNNING), IS_VISIBLE)
    rows = read_rows(connection, running, job.c.number, leave_out, unconverted)
    return min((row.start_time for row in rows if row.start_time is not None), default=None)


def ended_since(connection: Connection, since: int, until: int, limit: int) -> Sequence[Row[Any]]:
    """Return up to `limit` of the jobs that ended in this span, the last one first."""
    columns = (
        job.c.status, job.c.reason, job.c.created, job.c.not_before, job.c.start_time,
        job.c.end_time,
    )  # fmt: skip
    ended = (
        select(*columns)
        .where(job.c.end_time >= since, job.c.end_time <= until, IS_VISIBLE)
        .order_by(job.c.end_time.desc())
        .limit(limit)
    )
    return read_rows(connection, ended, job.c.number, leave_out, unconverted)


def free_bytes(connection: Connection) -> int:
    """Return how much of the file is free for new rows."""
    driver = driver_of(connection)
    (pages,), (size,) = (
        driver.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_size")
    )
    return int(pages) * int(size)
