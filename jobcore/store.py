"""
Store: what is created and listed: workspaces, pipelines, jobs and their history.

Every function takes a connection in a transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Row, Select, bindparam, func, insert, or_, select

from jobcore import lifecycle, runs
from jobcore.command import DEFAULT_GRACE, Command
from jobcore.lifecycle import Status, Trigger
from jobcore.tables import job, pipeline, transition, workspace

#: What a pipeline's status can be; it speaks of changes to it, not of runs.
READY = "READY"


# --- workspaces and pipelines -------------------------------------------------


def insert_workspace(
    connection: Connection, *, name: str, now: int, properties: Any = None, default: bool = False
) -> Row[Any]:
    """Make a workspace."""
    return connection.execute(
        insert(workspace)
        .values(
            id=uuid4(),
            name=name,
            is_default=default,
            properties=properties,
            created=now,
            last_modified=now,
        )
        .returning(workspace)
    ).one()


def find_workspace(connection: Connection, workspace_id: UUID) -> Row[Any] | None:
    """Return the workspace, or None."""
    return connection.execute(
        select(workspace).where(workspace.c.id == workspace_id, workspace.c.deleted_at.is_(None))
    ).one_or_none()


def default_workspace(connection: Connection, now: int) -> UUID:
    """Return the id of the default workspace, made on first use."""
    found = connection.execute(select(workspace.c.id).where(workspace.c.is_default)).scalar()
    if found is None:
        found = insert_workspace(connection, name="default", now=now, default=True).id
    return UUID(str(found))


def insert_pipeline(connection: Connection, *, now: int, **fields: Any) -> Row[Any]:
    """Make a pipeline."""
    return connection.execute(
        insert(pipeline)
        .values(id=uuid4(), status=READY, created=now, last_modified=now, **fields)
        .returning(pipeline)
    ).one()


def find_pipeline(connection: Connection, pipeline_id: UUID) -> Row[Any] | None:
    """Return the pipeline, or None."""
    return connection.execute(
        select(pipeline).where(pipeline.c.id == pipeline_id, pipeline.c.deleted_at.is_(None))
    ).one_or_none()


# --- creating and reading jobs ------------------------------------------------

_INSERT_JOB = insert(job).returning(job)


def insert_job(connection: Connection, *, now: int, **fields: Any) -> Row[Any]:
    """
    Make a QUEUED job.

    Raises:
        IntegrityError: Its pipeline has a QUEUED or RUNNING job.
    """
    row = connection.execute(
        _INSERT_JOB,
        {"id": uuid4(), "status": str(lifecycle.INITIAL), "created": now, **_BLANK, **fields},
    ).one()
    runs.record(
        connection,
        row.number,
        now=now,
        trigger=Trigger.CREATE,
        source=None,
        target=lifecycle.INITIAL,
    )
    return row


#: The columns without a value at creation: one statement for all, compiled once.
_BLANK: dict[str, Any] = {
    "pipeline_id": None,
    "name": None,
    "data": None,
    "command": None,
    "attempt": 1,
    "retry_of": None,
    "not_before": None,
    "spool_offset": 0,
    "next_sequence": 0,
    "loose_sequence": 0,
    "loose_bytes": 0,
    "dropped": 0,
}

_FIND_JOB = select(job).where(job.c.id == bindparam("id"), job.c.deleted_at.is_(None))
_GET_JOB = select(job).where(job.c.number == bindparam("number"))


def find_job(connection: Connection, job_id: UUID) -> Row[Any] | None:
    """Return the job, or None; one that is being deleted is not there."""
    return connection.execute(_FIND_JOB, {"id": job_id}).one_or_none()


def get_job(connection: Connection, number: int) -> Row[Any] | None:
    """Return the job with this number, being deleted or not, or None."""
    return connection.execute(_GET_JOB, {"number": number}).one_or_none()


def grace_of(connection: Connection, number: int) -> float:
    """Return the seconds between SIGTERM and SIGKILL that the job's own command says."""
    text = connection.execute(select(job.c.command).where(job.c.number == number)).scalar()
    return DEFAULT_GRACE if text is None else Command.from_json(text).grace


def run_of(row: Row[Any]) -> runs.Run:
    """Return what is needed of the job while it runs."""
    columns = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    return runs.Run(
        name=row.id.hex,
        **{field: columns[field] for field in runs.Run._fields if field != "name"},
    )


def active_job_of(connection: Connection, pipeline_id: UUID) -> Row[Any] | None:
    """Return the QUEUED or RUNNING job of the pipeline, being deleted or not, or None."""
    active = [str(status) for status in Status if status in lifecycle.ACTIVE]
    return connection.execute(
        select(job).where(job.c.pipeline_id == pipeline_id, job.c.status.in_(active))
    ).one_or_none()


def _filtered(
    statement: Select[Any],
    *,
    workspace_id: UUID | None,
    pipeline_id: UUID | None,
    statuses: Collection[Status] | None,
    types: Collection[str] | None,
) -> Select[Any]:
    statement = statement.where(job.c.deleted_at.is_(None))
    if workspace_id is not None:
        statement = statement.where(job.c.workspace_id == workspace_id)
    if pipeline_id is not None:
        statement = statement.where(job.c.pipeline_id == pipeline_id)
    if statuses is not None:
        statement = statement.where(job.c.status.in_(sorted(str(one) for one in statuses)))
    if types is not None:
        statement = statement.where(job.c.type.in_(sorted(types)))
    return statement


def list_jobs(
    connection: Connection, *, limit: int, before: int | None, **filters: Any
) -> Sequence[Row[Any]]:
    """Return a page of jobs, newest first, older than the number `before`."""
    statement = _filtered(select(job), **filters).order_by(job.c.number.desc()).limit(limit)
    if before is not None:
        statement = statement.where(job.c.number < before)
    return connection.execute(statement).all()


def count_jobs(connection: Connection, **filters: Any) -> dict[Status, int]:
    """Return how many jobs there are of each status, 0 included."""
    counted = connection.execute(
        _filtered(select(job.c.status, func.count()), **filters).group_by(job.c.status)
    ).all()
    return dict.fromkeys(Status, 0) | {Status(word): number for word, number in counted}


@lru_cache(maxsize=64)
def _queue_of(types: tuple[str, ...]) -> Select[Any]:
    return (
        select(job)
        .where(
            job.c.status == str(Status.QUEUED),
            job.c.deleted_at.is_(None),
            or_(job.c.not_before.is_(None), job.c.not_before <= bindparam("now")),
            # Not IN: SQLAlchemy writes that statement anew at each execution.
            or_(*(job.c.type == one for one in types)),
        )
        .order_by(job.c.number)
        .limit(bindparam("limit"))
    )


def queued_jobs(
    connection: Connection,
    *,
    types: tuple[str, ...],
    now: int,
    limit: int,
    numbers: Collection[int] | None = None,
) -> Sequence[Row[Any]]:
    """Return the jobs that could be claimed now, oldest first; among `numbers` where given."""
    statement = _queue_of(types)
    if numbers is not None:
        statement = statement.where(job.c.number.in_(sorted(numbers)))
    return connection.execute(statement, {"now": now, "limit": limit}).all()


def active_ids(connection: Connection, ids: Collection[UUID]) -> set[UUID]:
    """Return those of `ids` whose job is QUEUED or RUNNING: their directories are in use."""
    active = [str(status) for status in Status if status in lifecycle.ACTIVE]
    return set(
        connection.execute(
            select(job.c.id).where(job.c.id.in_(ids), job.c.status.in_(active))
        ).scalars()
    )


# --- history ------------------------------------------------------------------


def history(connection: Connection, number: int) -> Sequence[Row[Any]]:
    """Return what happened to the job, oldest first."""
    return connection.execute(
        select(transition).where(transition.c.job == number).order_by(transition.c.id)
    ).all()
