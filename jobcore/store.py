"""
Store: what is created and listed: workspaces, pipelines, jobs and their history.

Every function takes a connection in a transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    Connection,
    Row,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from jobcore import lifecycle, runs
from jobcore.errors import DatabaseCorrupt
from jobcore.lifecycle import Status, Trigger
from jobcore.tables import job, pipeline, skip, transition, workspace

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


def update_row(
    connection: Connection, table: Table, row_id: UUID, *, now: int, **changes: Any
) -> Row[Any] | None:
    """Change a workspace or a pipeline that is not being deleted; None: there is none."""
    return connection.execute(
        update(table)
        .where(table.c.id == row_id, table.c.deleted_at.is_(None))
        .values(last_modified=func.max(table.c.created, now), **changes)
        .returning(table)
    ).one_or_none()


def mark_row_deleted(connection: Connection, table: Table, row_id: UUID, *, now: int) -> bool:
    """Hide a workspace or a pipeline from every read, for good; False: already so, or not there."""
    done = connection.execute(
        update(table)
        .where(table.c.id == row_id, table.c.deleted_at.is_(None))
        .values(deleted_at=now)
    )
    return done.rowcount == 1


def has_marked(connection: Connection) -> bool:
    """Tell whether the deletion of a workspace or a pipeline was begun."""
    return any(
        connection.execute(select(table.c.id).where(table.c.deleted_at.is_not(None)).limit(1)).all()
        for table in (pipeline, workspace)
    )


def remove_marked(connection: Connection) -> None:
    """Remove workspaces and pipelines whose deletion was begun and that have no job any more."""
    for table, of_job in ((pipeline, job.c.pipeline_id), (workspace, job.c.workspace_id)):
        connection.execute(
            delete(table).where(
                table.c.deleted_at.is_not(None),
                ~select(job.c.number).where(of_job == table.c.id).exists(),
            )
        )


_OF_DELETED = or_(
    *(
        of.in_(select(table.c.id).where(table.c.deleted_at.is_not(None)))
        for table, of in ((pipeline, job.c.pipeline_id), (workspace, job.c.workspace_id))
    )
)


def jobs_of_deleted(connection: Connection) -> Sequence[Row[Any]]:
    """Return the jobs of workspaces and pipelines whose deletion was begun."""
    return connection.execute(select(job).where(_OF_DELETED)).all()


def active_of_deleted(connection: Connection) -> Sequence[int]:
    """Return the QUEUED and RUNNING ones among them whose own deletion was not begun yet."""
    active = [str(status) for status in Status if status in lifecycle.ACTIVE]
    return (
        connection.execute(
            select(job.c.number).where(
                _OF_DELETED, job.c.status.in_(active), job.c.deleted_at.is_(None)
            )
        )
        .scalars()
        .all()
    )


def mark_jobs_of_deleted(connection: Connection, *, now: int) -> None:
    """Hide all of them from every read, for good."""
    connection.execute(
        update(job).where(_OF_DELETED, job.c.deleted_at.is_(None)).values(deleted_at=now)
    )


def list_workspaces(connection: Connection) -> Sequence[Row[Any]]:
    """Return all workspaces, in the order of their creation."""
    return connection.execute(
        select(workspace)
        .where(workspace.c.deleted_at.is_(None))
        .order_by(workspace.c.created, workspace.c.id)
    ).all()


def list_pipelines(connection: Connection, workspace_id: UUID | None) -> Sequence[Row[Any]]:
    """Return all pipelines, or those of a workspace, in the order of their creation."""
    statement = select(pipeline).where(pipeline.c.deleted_at.is_(None))
    if workspace_id is not None:
        statement = statement.where(pipeline.c.workspace_id == workspace_id)
    return connection.execute(statement.order_by(pipeline.c.created, pipeline.c.id)).all()


def set_pipeline_status(
    connection: Connection, pipeline_id: UUID, status: str, *, now: int
) -> None:
    """Say whether changes to a pipeline have been processed."""
    update_row(connection, pipeline, pipeline_id, now=now, status=status)


def pipelines_triggered_by(connection: Connection, source: Row[Any]) -> list[Row[Any]]:
    """Return the pipelines of the same workspace that run after `source`, by its name."""
    name = source.name.casefold()
    return [
        row
        for row in list_pipelines(connection, source.workspace_id)
        if any(str(one).casefold() == name for one in row.triggered_by or ())
    ]


def due_pipelines(connection: Connection, now: int) -> Sequence[Row[Any]]:
    """Return the pipelines whose next tick has come."""
    return connection.execute(
        select(pipeline).where(pipeline.c.deleted_at.is_(None), pipeline.c.next_tick <= now)
    ).all()


def next_tick(connection: Connection) -> int | None:
    """Return when the next pipeline is to run by its schedule; None: none has one."""
    tick: int | None = connection.execute(
        select(func.min(pipeline.c.next_tick)).where(pipeline.c.deleted_at.is_(None))
    ).scalar_one()
    return tick


def advance_tick_if_at(
    connection: Connection, pipeline_id: UUID, old: int, new: int | None
) -> bool:
    """Take a tick, if nobody else has: the next one is `new` then."""
    done = connection.execute(
        update(pipeline)
        .where(
            pipeline.c.id == pipeline_id,
            pipeline.c.next_tick == old,
            pipeline.c.deleted_at.is_(None),
        )
        .values(next_tick=new)
    )
    return done.rowcount == 1


def record_skip(
    connection: Connection,
    pipeline_id: UUID,
    *,
    due: int,
    now: int,
    why: str,
    job_id: UUID | None,
    count: int = 1,
) -> None:
    """Record that a pipeline was to run and did not."""
    connection.execute(
        insert(skip).values(
            pipeline_id=pipeline_id, due=due, recorded=now, why=why, job_id=job_id, count=count
        )
    )


def list_skips(connection: Connection, pipeline_id: UUID, limit: int) -> Sequence[Row[Any]]:
    """Return the newest skips of a pipeline, newest first."""
    return connection.execute(
        select(skip)
        .where(skip.c.pipeline_id == pipeline_id)
        .order_by(skip.c.id.desc())
        .limit(limit)
    ).all()


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
    _record_creation(connection, row.number, now)
    return row


def _record_creation(connection: Connection, number: int, now: int) -> None:
    runs.record(
        connection,
        number,
        now=now,
        trigger=Trigger.CREATE,
        source=None,
        target=lifecycle.INITIAL,
    )


def insert_job_if_free(connection: Connection, *, now: int, **fields: Any) -> Row[Any] | None:
    """Make a QUEUED job of a pipeline, or return None where that has an active one."""
    from sqlalchemy.dialects.sqlite import insert as sqlite_insert  # noqa: PLC0415 - loaded with the first connection, not at import

    row = connection.execute(
        sqlite_insert(job)
        .values(
            {"id": uuid4(), "status": str(lifecycle.INITIAL), "created": now, **_BLANK, **fields}
        )
        .on_conflict_do_nothing()
        .returning(job)
    ).one_or_none()
    if row is not None:
        _record_creation(connection, row.number, now)
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


def run_of(row: Row[Any]) -> runs.Run:
    """Return what is needed of the job while it runs."""
    columns = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    return runs.Run(
        name=row.id.hex,
        of_pipeline=row.pipeline_id is not None,
        **{
            field: columns[field]
            for field in runs.Run._fields
            if field not in ("name", "of_pipeline")
        },
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
    try:
        return dict.fromkeys(Status, 0) | {Status(word): number for word, number in counted}
    except ValueError as error:
        raise DatabaseCorrupt(f"a stored status is none: {error}") from error


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


def next_not_before(
    connection: Connection,
    *,
    types: tuple[str, ...],
    now: int,
    numbers: Collection[int] | None = None,
) -> int | None:
    """Return when the first of those jobs may start that may not yet; None: there is none."""
    statement = select(func.min(job.c.not_before)).where(
        job.c.status == str(Status.QUEUED),
        job.c.deleted_at.is_(None),
        job.c.not_before > now,
        job.c.type.in_(types),
    )
    if numbers is not None:
        statement = statement.where(job.c.number.in_(sorted(numbers)))
    moment: int | None = connection.execute(statement).scalar_one()
    return moment


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
