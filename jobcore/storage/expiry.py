"""
The statements about jobs that are cancelled if they have not started in time.

Every function takes a connection in a transaction. Times are microseconds since 1970.
"""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, select

from jobcore.lifecycle import Status
from jobcore.storage.statement import Statement
from jobcore.storage.tables import IS_VISIBLE, has_status, job

_EXPIRING = (
    select(job.c.expires)
    .where(has_status(Status.QUEUED), job.c.expires.is_not(None), IS_VISIBLE)
    .order_by(job.c.expires)
)
# With the bound, SQLite prefers the index of the expiring jobs to others by status.
_NEXT = Statement(_EXPIRING.where(job.c.expires >= 0).limit(1))
_EXPIRED = Statement(
    _EXPIRING.with_only_columns(job.c.number)
    .where(job.c.expires.between(0, bindparam("now")))
    .limit(bindparam("most"))
)


def next_expiry(connection: Connection) -> int | None:
    """Return when the next QUEUED job expires, even if that is past; None: none does."""
    rows = _NEXT(connection)
    return rows[0][0] if rows else None


def expired(connection: Connection, *, now: int, limit: int) -> list[int]:
    """Return the numbers of up to `limit` QUEUED jobs whose time is over, first the oldest."""
    return [number for (number,) in _EXPIRED(connection, now=now, most=limit)]
