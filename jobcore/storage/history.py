"""
The history of all jobs, in commit order.

AUTOINCREMENT assigns the id of an entry inside a write transaction, and SQLite runs one
of these at a time. So no smaller id appears after an id was seen: a reader that continues
after the last id it handled misses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Row, String, bindparam, case, select

from jobcore.lifecycle import Trigger
from jobcore.storage import damage
from jobcore.storage.damage import Failed
from jobcore.storage.statement import Statement
from jobcore.storage.tables import job, sequence, transition

T = TypeVar("T")


class Entry(NamedTuple):
    """
    A transition with facts of its job, as stored. Only the name may change while it is QUEUED.

    `hidden` is 1 if the deletion of the job has begun, else 0.
    """

    id: int
    job_id: str
    job_number: int
    type: str
    name: str | None
    key: str | None
    group: str | None
    workspace_id: str
    pipeline_id: str | None
    at: int
    trigger: str
    from_status: str | None
    to_status: str
    reason: str | None
    exit_code: int | None
    signal: int | None
    actor: str | None
    hidden: int


_NEWEST = Statement(select(sequence.c.seq).where(sequence.c.name == transition.name))
_ENTRIES = (
    select(
        transition.c.id,
        job.c.id.label("job_id"),
        job.c.number,
        job.c.type,
        job.c.name,
        job.c.key,
        job.c.group_name,
        job.c.workspace_id,
        job.c.pipeline_id,
        transition.c.at,
        transition.c.trigger,
        transition.c.from_status,
        transition.c.to_status,
        transition.c.reason,
        # Only the last entry shows how the job ended; the row may know it already.
        case((transition.c.trigger == str(Trigger.FINISH), job.c.exit_code)),
        case((transition.c.trigger == str(Trigger.FINISH), job.c.signal)),
        transition.c.actor,
        job.c.deleted_at.is_not(None),
    )
    .join_from(transition, job, transition.c.job == job.c.number)
    .where(transition.c.id > bindparam("after"))
    .order_by(transition.c.id)
    .limit(bindparam("most"))
)
_OF_PIPELINE = _ENTRIES.where(transition.c.pipeline_id == bindparam("pipeline", type_=String))
_AFTER, _AFTER_OF_PIPELINE = Statement(_ENTRIES), Statement(_OF_PIPELINE)
_IDS = Statement(_ENTRIES.with_only_columns(transition.c.id))
_IDS_OF_PIPELINE = Statement(_OF_PIPELINE.with_only_columns(transition.c.id))


def newest(connection: Connection) -> int:
    """Return the largest id assigned so far, even if its job has been deleted; 0: none yet."""
    rows = _NEWEST(connection)
    return int(rows[0][0]) if rows else 0


def entries_after(
    connection: Connection,
    after: int,
    most: int,
    pipeline_id: UUID | None = None,
    failed: Failed = damage.leave_out,
) -> list[Entry]:
    """
    Return up to `most` entries after the id `after`, in order, including hidden jobs.

    Args:
        pipeline_id: Only entries of this pipeline's jobs; None: all entries.
    """
    values: dict[str, int | str] = {"after": after, "most": most}
    statement, ids = _AFTER, _IDS
    if pipeline_id is not None:
        values["pipeline"] = pipeline_id.hex
        statement, ids = _AFTER_OF_PIPELINE, _IDS_OF_PIPELINE
    rows = damage.readable(
        lambda: statement(connection, **values),
        lambda: [number for (number,) in ids(connection, **values)],
        lambda number: _AFTER(connection, after=number - 1, most=1),
        failed,
    )
    return [Entry._make(row) for row in rows]


def of_job(
    connection: Connection,
    number: int,
    form: Callable[[Row[Any]], T],
    failed: Failed,
) -> list[T]:
    """Return the history of a job, oldest first."""
    statement = select(transition).where(transition.c.job == number).order_by(transition.c.id)
    return damage.read_rows(connection, statement, transition.c.id, failed, form)
