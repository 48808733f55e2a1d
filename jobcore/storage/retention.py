"""
Finds jobs that ended long enough ago to be deleted.

Each statement contains the whole guard: the job is final, ended by a given moment, is not being
deleted, and matches the caller's filters. So a job that is not final is never touched, and when
several processes prune at once, each job is deleted by one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, select, true, update

from jobcore.lifecycle import FINAL
from jobcore.storage import damage
from jobcore.storage.damage import Failed
from jobcore.storage.job_rows import JobFilter
from jobcore.storage.tables import SHOWN, job, pipeline, skip


class Expired(NamedTuple):
    """
    The conditions under which a job may be deleted.

    Attributes:
        ended_by: The latest end, in microseconds since 1970, inclusive.
        wanted: Further conditions; of its statuses, those that are not final match nothing.
        up_to: The highest job number that matches; None: no limit.
    """

    ended_by: int
    wanted: JobFilter
    up_to: int | None = None

    def guard(self) -> ColumnElement[bool]:
        """Return the SQL condition. It matches final jobs only, whatever `wanted` contains."""
        return and_(self._kind(), job.c.end_time <= self.ended_by)

    def keep(self, connection: Connection, newest: int) -> Expired:
        """Return a copy that spares the `newest` matching jobs, however long ago they ended."""
        # The highest number that is not spared. Later jobs have higher numbers.
        statement = select(job.c.number).where(self._kind()).order_by(job.c.number.desc())
        found = connection.execute(statement.offset(newest).limit(1)).scalar()
        return self._replace(up_to=0 if found is None else found)

    def _kind(self) -> ColumnElement[bool]:
        from jobcore.storage import job_search  # noqa: PLC0415 - few managers remove old jobs

        statuses = FINAL if self.wanted.statuses is None else FINAL & self.wanted.statuses
        kind = job_search.condition(self.wanted._replace(statuses=statuses))
        return and_(kind, true() if self.up_to is None else job.c.number <= self.up_to)


def find_skips(connection: Connection, expired: Expired, limit: int) -> Sequence[int]:
    """Return the ids of up to `limit` skip records that are as old as the expired jobs."""
    wanted, old = expired.wanted, select(skip.c.id)
    if wanted.pipeline_id is None and wanted.workspace_id is None:
        old = old.where(skip.c.recorded <= expired.ended_by)
    else:
        # The sum keeps SQLite from the index by time, which covers all pipelines.
        old = old.where(skip.c.recorded + 0 <= expired.ended_by)
    if wanted.pipeline_id is not None:
        old = old.where(skip.c.pipeline_id == wanted.pipeline_id)
    if wanted.workspace_id is not None:
        of_workspace = select(pipeline.c.id).where(pipeline.c.workspace_id == wanted.workspace_id)
        old = old.where(skip.c.pipeline_id.in_(of_workspace))
    return connection.execute(old.limit(limit)).scalars().all()


def remove_skips(connection: Connection, ids: Sequence[int]) -> None:
    """Remove skip records by id."""
    connection.execute(delete(skip).where(skip.c.id.in_(ids)))


def newest(connection: Connection) -> int:
    """Return the number of the newest job; 0: there is none."""
    number: int | None = connection.execute(select(func.max(job.c.number))).scalar_one()
    return number or 0


def oldest_after(connection: Connection, after: int) -> int | None:
    """Return the smallest job number above `after`; None: there is none."""
    number: int | None = connection.execute(
        select(func.min(job.c.number)).where(job.c.number > after)
    ).scalar_one()
    return number


def find(
    connection: Connection,
    expired: Expired,
    *,
    after: int,
    up_to: int,
    failed: Failed,
) -> Sequence[Row[Any]]:
    """Return the expired jobs with numbers above `after` up to `up_to`, oldest first."""
    statement = (
        select(*SHOWN)
        .where(job.c.number > after, job.c.number <= up_to, expired.guard())
        .order_by(job.c.number)
    )
    return damage.read_rows(connection, statement, job.c.number, failed, damage.unconverted)


def find_numbers(
    connection: Connection, expired: Expired, *, after: int, up_to: int
) -> Sequence[int]:
    """Return only the numbers of the jobs that `find` returns."""
    return (
        connection.execute(
            select(job.c.number)
            .where(job.c.number > after, job.c.number <= up_to, expired.guard())
            .order_by(job.c.number)
        )
        .scalars()
        .all()
    )


#: A place in the order of ends: the end of a job, and its number.
Position = tuple[int, int]
#: The place before all jobs.
FIRST: Position = (-(2**63), 0)


def next_expired(
    connection: Connection, expired: Expired, *, after: Position, examined: int, limit: int
) -> tuple[list[int], Position | None]:
    """
    Return the numbers of the next expired jobs, in the order of their ends.

    Args:
        after: The place of the last job that was examined.
        examined: The most jobs to examine; most of them may stay.
        limit: The most numbers to return.

    Returns:
        The numbers, and the place of the last job that was examined. None: there is no job
        after it that ended early enough.
    """
    statuses = FINAL if expired.wanted.statuses is None else FINAL & expired.wanted.statuses
    numbers: list[int] = []
    last: Position | None = None
    # Two statements: with a comparison of rows, SQLite would read all jobs of the same end.
    for place in (
        and_(job.c.end_time == after[0], job.c.number > after[1]),
        and_(job.c.end_time > after[0], job.c.end_time <= expired.ended_by),
    ):
        ended = (
            select(job.c.number, job.c.status, job.c.end_time)
            .where(place)
            .order_by(job.c.end_time, job.c.number)
            .limit(examined)
        )
        for row in damage.read_rows(
            connection, ended, job.c.number, damage.leave_out, damage.unconverted
        ):
            last = (row.end_time, row.number)
            if row.status in statuses and (expired.up_to is None or row.number <= expired.up_to):
                numbers.append(row.number)
                if len(numbers) == limit:
                    return numbers, last
            examined -= 1
        if examined <= 0:
            break
    return numbers, last


def mark_deleted_if_expired(
    connection: Connection, expired: Expired, numbers: Sequence[int], *, now: int
) -> list[int]:
    """Mark those of the jobs that are still expired as deleted; return their numbers."""
    return sorted(
        connection.execute(
            update(job)
            .where(job.c.number.in_(numbers), expired.guard())
            .values(deleted_at=now)
            .returning(job.c.number)
        ).scalars()
    )
