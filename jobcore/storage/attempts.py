"""
The statements for callers that wait for many jobs, and for the retries of jobs.

Each reads many jobs at once, because a statement per job would take most of the time of a wait
for thousands of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, bindparam, func, select

from jobcore import lifecycle
from jobcore.storage.damage import readable
from jobcore.storage.statement import Statement, in_parts
from jobcore.storage.tables import IS_VISIBLE, job, transition

_IDS = select(job.c.id, job.c.number).where(
    job.c.id.in_(bindparam("ids", expanding=True)), IS_VISIBLE
)


def numbers_of(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the numbers of jobs by their ids, without those that do not exist."""
    found: dict[UUID, int] = {}
    for part in in_parts(ids):
        found.update((row.id, row.number) for row in connection.execute(_IDS, {"ids": part}))
    return found


_STATUSES = select(job.c.number, job.c.status, job.c.deleted_at).where(
    job.c.number.in_(bindparam("numbers", expanding=True))
)


def statuses_of(connection: Connection, numbers: Sequence[int]) -> dict[int, str | None]:
    """Return the statuses of jobs by their numbers; None for one that is being deleted."""
    found: dict[int, str | None] = {}
    for part in in_parts(numbers):
        for number, status, deleted_at in connection.execute(_STATUSES, {"numbers": part}):
            found[number] = status if deleted_at is None else None
    return found


_ROWS = select(job).where(job.c.number.in_(bindparam("numbers", expanding=True)))


def rows_of(connection: Connection, numbers: Sequence[int]) -> dict[int, Row[Any] | Exception]:
    """Return the rows of jobs by their numbers; in place of a damaged row, its error."""
    found: dict[int, Row[Any] | Exception] = {}

    def read(some: Sequence[int]) -> Sequence[Row[Any]]:
        return connection.execute(_ROWS, {"numbers": some}).all()

    for part in in_parts(numbers):
        rows = readable(
            partial(read, part), part.copy, lambda number: read([number]), found.__setitem__
        )
        found.update((row.number, row) for row in rows)
    return found


_RETRIES = (
    select(job.c.retry_of, func.max(job.c.number).label("number"))
    .where(job.c.retry_of.in_(bindparam("ids", expanding=True)), IS_VISIBLE)
    .group_by(job.c.retry_of)
)


def retries_of(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the number of the newest retry of each of these jobs that has one."""
    found: dict[UUID, int] = {}
    for part in in_parts(ids):
        rows = connection.execute(_RETRIES, {"ids": part})
        found.update((row.retry_of, row.number) for row in rows)
    return found


_SINCE = Statement(
    select(transition.c.id, transition.c.job, transition.c.to_status)
    .where(transition.c.id > bindparam("after"))
    .order_by(transition.c.id)
    .limit(bindparam("most"))
)
_FINAL = frozenset(map(str, lifecycle.FINAL))


def ended_since(connection: Connection, after: int, most: int) -> tuple[list[int], int, int]:
    """
    Return the numbers of the jobs that became final after the history entry `after`.

    Args:
        most: How many entries to examine.

    Returns:
        The numbers, the id of the last entry that was examined, and how many were.
    """
    rows = _SINCE(connection, after=after, most=most)
    last = rows[-1][0] if rows else after
    return [number for _, number, status in rows if status in _FINAL], last, len(rows)
