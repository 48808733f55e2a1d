"""
The keys of jobs: in each workspace, at most one job holds a key.

A job holds its key in `held_key` until it is final and `unique_until` has passed. Only the unique
index decides who gets it. These functions find the holder after the index has refused a row, and
release keys whose time is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, and_, bindparam, null, or_, select, update

from jobcore.lifecycle import Status
from jobcore.storage.statement import Statement, in_parts
from jobcore.storage.tables import IS_FINAL, has_status, job

_HOLDER = select(job).where(
    job.c.workspace_id == bindparam("place"), job.c.held_key == bindparam("wanted")
)
#: The job may no longer keep others from using its key.
_IS_OVER = or_(
    job.c.deleted_at.is_not(None),
    and_(IS_FINAL, or_(job.c.unique_until.is_(None), job.c.unique_until <= bindparam("now"))),
)
_RELEASE_IF_OVER = Statement(
    update(job)
    .where(
        job.c.workspace_id == bindparam("place"), job.c.held_key == bindparam("wanted"), _IS_OVER
    )
    .values(held_key=null())
)
_RELEASE = Statement(
    update(job)
    .where(job.c.id == bindparam("of_id"), job.c.held_key.is_not(None))
    .values(held_key=null())
)


def holder(connection: Connection, workspace_id: UUID, key: str) -> Row[Any] | None:
    """Return the job that holds a key, or None."""
    return connection.execute(_HOLDER, {"place": workspace_id, "wanted": key}).one_or_none()


def release_if_over(connection: Connection, workspace_id: UUID, key: str, *, now: int) -> bool:
    """Release a key whose holder is final, if its time is over; False: nothing was released."""
    return _RELEASE_IF_OVER.count(connection, place=workspace_id.hex, wanted=key, now=now) == 1


def release(connection: Connection, job_id: UUID) -> None:
    """Release the key of a job, for the job that repeats it."""
    _RELEASE(connection, of_id=job_id.hex)


def uncertain_holders(
    connection: Connection, workspace_id: UUID, keys: Iterable[str]
) -> list[UUID]:
    """Return the holders of these keys that may have ended without being settled."""
    found: list[UUID] = []
    for some in in_parts(keys):
        of_these = select(job.c.id).where(
            job.c.workspace_id == workspace_id,
            job.c.held_key.in_(some),
            or_(
                has_status(Status.RUNNING),
                and_(
                    has_status(Status.QUEUED),
                    or_(job.c.owner.is_not(None), job.c.expires.is_not(None)),
                ),
            ),
        )
        found += connection.execute(of_these).scalars()
    return found
