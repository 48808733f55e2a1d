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
    JSON,
    Connection,
    Row,
    Select,
    Table,
    bindparam,
    delete,
    false,
    func,
    insert,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.exc import IntegrityError

from jobcore import lifecycle, runs
from jobcore.errors import DatabaseCorrupt, PipelineAlreadyRunning
from jobcore.lifecycle import Status, Trigger
from jobcore.statement import Statement
from jobcore.tables import SHOWN, job, link, pipeline, pipeline_note, skip, transition, workspace

#: What a pipeline's status can be; it speaks of changes to it, not of runs.
READY = "READY"

_ACTIVE_WORDS = [str(status) for status in Status if status in lifecycle.ACTIVE]
_ACTIVE = job.c.status.in_(_ACTIVE_WORDS)


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


_DEFAULT = Statement(select(workspace.c.id).where(workspace.c.is_default))


def find_default_workspace(connection: Connection) -> UUID | None:
    """Return the id of the default workspace, or None where nobody has needed it yet."""
    rows = _DEFAULT(connection)
    try:
        return UUID(hex=rows[0][0]) if rows else None
    except (ValueError, AttributeError) as error:
        raise DatabaseCorrupt("an id in the file is none") from error


def default_workspace(connection: Connection, now: int) -> UUID:
    """Return the id of the default workspace, made on first use."""
    found = find_default_workspace(connection)
    if found is None:
        found = insert_workspace(connection, name="default", now=now, default=True).id
    return found


_SOURCE = pipeline.alias("source")
_NAMES = (
    select(func.coalesce(_SOURCE.c.name, link.c.name).label("name"))
    .select_from(link.outerjoin(_SOURCE, _SOURCE.c.id == link.c.source_id))
    .where(link.c.pipeline_id == pipeline.c.id)
    .order_by(link.c.position)
    .correlate(pipeline)
    .subquery()
)
#: A pipeline as it is shown: with the names of its sources as they are now, in JSON.
_PIPELINE = select(
    pipeline,
    type_coerce(select(func.json_group_array(_NAMES.c.name)).scalar_subquery(), JSON).label(
        "triggered_by"
    ),
).where(pipeline.c.deleted_at.is_(None))


def insert_pipeline(connection: Connection, *, now: int, **fields: Any) -> UUID:
    """Make a pipeline, and return its id."""
    made = uuid4()
    connection.execute(
        insert(pipeline).values(id=made, status=READY, created=now, last_modified=now, **fields)
    )
    return made


def find_pipeline(connection: Connection, pipeline_id: UUID) -> Row[Any] | None:
    """Return the pipeline, or None."""
    return connection.execute(_PIPELINE.where(pipeline.c.id == pipeline_id)).one_or_none()


def find_pipeline_called(connection: Connection, workspace_id: UUID, name: str) -> UUID | None:
    """Return the id of the pipeline of this name, whatever the case, or None."""
    found: UUID | None = connection.execute(
        select(pipeline.c.id).where(
            pipeline.c.workspace_id == workspace_id,
            pipeline.c.folded_name == name.casefold(),
            pipeline.c.deleted_at.is_(None),
        )
    ).scalar_one_or_none()
    return found


def update_row(
    connection: Connection, table: Table, row_id: UUID, *, now: int, **changes: Any
) -> None:
    """Change a workspace or a pipeline, which the same transaction has found."""
    connection.execute(
        update(table)
        .where(table.c.id == row_id, table.c.deleted_at.is_(None))
        .values(last_modified=func.max(table.c.created, now), **changes)
    )


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


_JOBS_OF_DELETED = Statement(select(*runs.COLUMNS).where(_OF_DELETED))


def jobs_of_deleted(connection: Connection) -> list[runs.Run]:
    """Return the jobs of workspaces and pipelines whose deletion was begun."""
    return [runs.Run._make(row) for row in _JOBS_OF_DELETED(connection)]


def active_of_deleted(connection: Connection) -> Sequence[int]:
    """Return the QUEUED and RUNNING ones among them whose own deletion was not begun yet."""
    # By the rows: the index by status would be asked for all that are active anywhere.
    active = job.c.status.concat("").in_(_ACTIVE_WORDS)
    return (
        connection.execute(
            select(job.c.number).where(_OF_DELETED, active, job.c.deleted_at.is_(None))
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
    statement = _PIPELINE
    if workspace_id is not None:
        statement = statement.where(pipeline.c.workspace_id == workspace_id)
    return connection.execute(statement.order_by(pipeline.c.created, pipeline.c.id)).all()


def set_pipeline_status(
    connection: Connection, pipeline_id: UUID, status: str, *, now: int
) -> None:
    """Say whether changes to a pipeline have been processed."""
    update_row(connection, pipeline, pipeline_id, now=now, status=status)


# --- chains -------------------------------------------------------------------


def links_of(connection: Connection, pipeline_id: UUID) -> Sequence[Row[Any]]:
    """Return what triggers the pipeline: ids of pipelines, and names of what is none."""
    return connection.execute(
        select(link).where(link.c.pipeline_id == pipeline_id).order_by(link.c.position)
    ).all()


def replace_links(
    connection: Connection, pipeline_id: UUID, links: Sequence[tuple[UUID | None, str | None]]
) -> None:
    """Have the pipeline run after these alone: each the id of a pipeline, or a name."""
    connection.execute(delete(link).where(link.c.pipeline_id == pipeline_id))
    if links:
        connection.execute(
            insert(link),
            [
                {"pipeline_id": pipeline_id, "position": n, "source_id": source, "name": name}
                for n, (source, name) in enumerate(links)
            ],
        )


def pipelines_triggered_by(connection: Connection, source_id: UUID) -> Sequence[Row[Any]]:
    """Return the pipelines that run after this one, in the order of their creation."""
    return connection.execute(
        select(pipeline)
        .join_from(link, pipeline, link.c.pipeline_id == pipeline.c.id)
        .where(link.c.source_id == source_id, pipeline.c.deleted_at.is_(None))
        .order_by(pipeline.c.created, pipeline.c.id)
    ).all()


def runs_before(connection: Connection, pipeline_id: UUID, others: Collection[UUID]) -> bool:
    """Tell whether the pipeline is one of `others`, or triggers one of them in the end."""
    before = select(pipeline.c.id).where(pipeline.c.id.in_(others)).cte("before", recursive=True)
    before = before.union(
        select(link.c.source_id).where(
            link.c.pipeline_id == before.c.id, link.c.source_id.is_not(None)
        )
    )
    found = connection.execute(select(before.c.id).where(before.c.id == pipeline_id)).first()
    return found is not None


def remove_links_to(connection: Connection, source_id: UUID) -> None:
    """Have nothing run after this pipeline any more."""
    connection.execute(delete(link).where(link.c.source_id == source_id))


def note(connection: Connection, pipeline_id: UUID, topic: str, detail: str) -> None:
    """Record something about a pipeline that doctor lists."""
    connection.execute(
        insert(pipeline_note).values(pipeline_id=pipeline_id, topic=topic, detail=detail)
    )


def remove_notes(connection: Connection, pipeline_id: UUID, topic: str) -> None:
    """Remove what was recorded about a pipeline's `name` or `chain`: it was changed since."""
    connection.execute(
        delete(pipeline_note).where(
            pipeline_note.c.pipeline_id == pipeline_id, pipeline_note.c.topic == topic
        )
    )


# --- schedules ----------------------------------------------------------------


def due_pipelines(connection: Connection, now: int) -> Sequence[Row[Any]]:
    """Return the pipelines whose next tick has come."""
    return connection.execute(
        select(pipeline).where(pipeline.c.deleted_at.is_(None), pipeline.c.next_tick <= now)
    ).all()


def scheduled_pipelines(connection: Connection) -> Sequence[Row[Any]]:
    """Return the pipelines that have a next tick, whenever that is."""
    return connection.execute(
        select(pipeline).where(pipeline.c.deleted_at.is_(None), pipeline.c.next_tick.is_not(None))
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


def waiting_retries(connection: Connection, now: int) -> Sequence[Row[Any]]:
    """Return the queued jobs that try again what failed, and may not start yet."""
    return connection.execute(
        select(job).where(
            job.c.status == str(Status.QUEUED),
            job.c.deleted_at.is_(None),
            job.c.retry_of.is_not(None),
            job.c.not_before > now,
        )
    ).all()


def fetch_back_if_queued(connection: Connection, number: int, old: int, new: int) -> bool:
    """Have a queued job wait for `new` where it waits for `old`, if nobody has changed that."""
    done = connection.execute(
        update(job)
        .where(
            job.c.number == number,
            job.c.status == str(Status.QUEUED),
            job.c.not_before == old,
        )
        .values(not_before=new)
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
        PipelineAlreadyRunning: Its pipeline has a QUEUED or RUNNING job. Nothing was made,
            and the transaction can go on.
    """
    values = {"id": uuid4(), "status": str(lifecycle.INITIAL), "created": now, **_BLANK, **fields}
    try:
        row = connection.execute(_INSERT_JOB, values).one()
    except IntegrityError as error:
        # The index has spoken; the row only says who is in the way.
        pipeline_id = values["pipeline_id"]
        blocker = None if pipeline_id is None else active_job_of(connection, pipeline_id)
        if "FOREIGN KEY" in str(error.orig):  # of a workspace that is there, by a damaged id
            raise DatabaseCorrupt(f"a job cannot be stored: {error.orig}") from error
        if blocker is None:
            raise
        raise PipelineAlreadyRunning(blocker.pipeline_id, blocker.id) from error
    runs.record(
        connection,
        row.number,
        now=now,
        trigger=Trigger.CREATE,
        source=None,
        target=lifecycle.INITIAL,
    )
    return row


def next_attempt(row: Row[Any]) -> dict[str, Any]:
    """Return the columns of a job that does once more what the one of `row` did."""
    kept = ("type", "name", "data", "command", "env_from", "environment")
    again = {name: getattr(row, name) for name in kept}
    return {**again, "attempt": row.attempt + 1, "retry_of": row.id}


#: The columns without a value at creation: one statement for all, compiled once.
_BLANK: dict[str, Any] = {
    "pipeline_id": None,
    "name": None,
    "data": None,
    "command": None,
    "attempt": 1,
    "retry_of": None,
    "not_before": None,
    "owner": None,
    "env_from": None,
    "environment": None,
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
    return connection.execute(
        select(job).where(job.c.pipeline_id == pipeline_id, _ACTIVE)
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
        words = sorted(str(one) for one in statuses)
        # One word alone with `=`, by which SQLite finds the partial index of that status.
        one = job.c.status == words[0] if len(words) == 1 else job.c.status.in_(words)
        statement = statement.where(one)
    if types is not None:
        statement = statement.where(job.c.type.in_(sorted(types)))
    return statement


def list_jobs(
    connection: Connection, *, limit: int, before: int | None, **filters: Any
) -> Sequence[Row[Any]]:
    """Return a page of jobs, newest first, older than the number `before`."""
    statement = _filtered(select(*SHOWN), **filters).order_by(job.c.number.desc()).limit(limit)
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
            or_(job.c.owner.is_(None), job.c.owner == bindparam("claimant")),
            # Not IN: SQLAlchemy writes that statement anew at each execution.
            # And `false`, for a manager that can run nothing: no condition would be any type.
            or_(false(), *(job.c.type == one for one in types)),
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
    claimant: str | None = None,
) -> Sequence[Row[Any]]:
    """
    Return the jobs that could be claimed now, oldest first; among `numbers` where given.

    Args:
        claimant: The owner whose reserved jobs are among them.
    """
    statement = _queue_of(types)
    if numbers is not None:
        statement = statement.where(job.c.number.in_(sorted(numbers)))
    values = {"now": now, "limit": limit, "claimant": claimant}
    return connection.execute(statement, values).all()


def queued_numbers(connection: Connection, numbers: Collection[int]) -> set[int]:
    """Return those of `numbers` whose job is QUEUED."""
    return set(
        connection.execute(
            select(job.c.number).where(
                job.c.status == str(Status.QUEUED), job.c.number.in_(sorted(numbers))
            )
        ).scalars()
    )


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
    return set(connection.execute(select(job.c.id).where(job.c.id.in_(ids), _ACTIVE)).scalars())


# --- history ------------------------------------------------------------------


def history(connection: Connection, number: int) -> Sequence[Row[Any]]:
    """Return what happened to the job, oldest first."""
    return connection.execute(
        select(transition).where(transition.c.job == number).order_by(transition.c.id)
    ).all()
