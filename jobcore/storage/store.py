"""
Workspaces, pipelines, jobs and their history: what is created and listed.

Every function takes a connection in a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    ColumnElement,
    CompoundSelect,
    Connection,
    Integer,
    Row,
    Select,
    String,
    Table,
    and_,
    bindparam,
    delete,
    false,
    func,
    insert,
    literal,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError

from jobcore import lifecycle
from jobcore.errors import DatabaseCorrupt, PipelineAlreadyRunning
from jobcore.lifecycle import Status, Trigger
from jobcore.storage import error_mapping, transitions
from jobcore.storage.statement import Statement
from jobcore.storage.tables import (
    IS_VISIBLE,
    SHOWN,
    has_status,
    job,
    link,
    pipeline,
    pipeline_count,
    pipeline_note,
    skip,
    transition,
    workspace,
    workspace_count,
)

T = TypeVar("T")

#: What a pipeline's status can be; it speaks of changes to it, not of runs.
READY = "READY"

_ACTIVE = has_status(Status.QUEUED, Status.RUNNING)
_QUEUED = (has_status(Status.QUEUED), IS_VISIBLE)
_FINAL = has_status(*(status for status in Status if status.final))


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
        raise DatabaseCorrupt("a stored ID is not a valid UUID") from error


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


# --- deleting -----------------------------------------------------------------


def marked_ids(
    connection: Connection, table: Table, after: str, limit: int, workspace_id: UUID | None = None
) -> list[UUID]:
    """Return some workspaces or pipelines whose deletion was begun, by id, after `after`."""
    statement = select(table.c.id).where(
        table.c.deleted_at.is_not(None), table.c.id > UUID(hex=after)
    )
    if workspace_id is not None:
        statement = statement.where(pipeline.c.workspace_id == workspace_id)
    return list(connection.execute(statement.order_by(table.c.id).limit(limit)).scalars())


def has_unmarked(connection: Connection, table: Table, owner_id: UUID) -> bool:
    """Tell whether something belongs to a workspace or pipeline whose deletion was not begun."""
    things = [select(job.c.number).where(_OF[table] == owner_id, IS_VISIBLE)]
    if table is workspace:
        things.append(
            select(pipeline.c.created).where(
                pipeline.c.workspace_id == owner_id, pipeline.c.deleted_at.is_(None)
            )
        )
    return any(connection.execute(one.limit(1)).all() for one in things)


def unmarked_pipelines_of(connection: Connection, workspace_id: UUID, limit: int) -> list[UUID]:
    """Return pipelines of a workspace whose own deletion was not begun."""
    return list(
        connection.execute(
            select(pipeline.c.id)
            .where(pipeline.c.workspace_id == workspace_id, pipeline.c.deleted_at.is_(None))
            .limit(limit)
        ).scalars()
    )


#: The column of a job that refers to what is deleted.
_OF = {pipeline: job.c.pipeline_id, workspace: job.c.workspace_id}


def active_unmarked_of(
    connection: Connection, table: Table, owner_id: UUID, limit: int
) -> list[int]:
    """Return QUEUED and RUNNING jobs of a workspace or pipeline whose deletion was not begun."""
    return list(
        connection.execute(
            select(job.c.number).where(_OF[table] == owner_id, IS_VISIBLE, _ACTIVE).limit(limit)
        ).scalars()
    )


def mark_final_of(
    connection: Connection, table: Table, owner_id: UUID, limit: int, *, now: int
) -> int:
    """Hide final jobs of a workspace or pipeline from every read, for good; return how many."""
    some = (
        select(job.c.number)
        .where(_OF[table] == owner_id, job.c.deleted_at.is_(None), _FINAL)
        .limit(limit)
    )
    return connection.execute(
        update(job).where(job.c.number.in_(some)).values(deleted_at=now)
    ).rowcount


def mark_rest_of(
    connection: Connection, table: Table, owner_id: UUID, limit: int, *, now: int
) -> int:
    """Hide jobs of a workspace or pipeline whatever their status; return how many."""
    some = select(job.c.number).where(_OF[table] == owner_id, job.c.deleted_at.is_(None))
    return connection.execute(
        update(job).where(job.c.number.in_(some.limit(limit))).values(deleted_at=now)
    ).rowcount


_MARKED = {
    table: select(*transitions.COLUMNS)
    .where(of == bindparam("owner_id", type_=String), job.c.deleted_at.is_not(None))
    .limit(bindparam("most", type_=Integer))
    for table, of in _OF.items()
}
_MARKED_ACTIVE = {table: Statement(some.where(_ACTIVE)) for table, some in _MARKED.items()}
_MARKED_NUMBERS = {
    table: Statement(
        select(job.c.number).where(
            of == bindparam("owner_id", type_=String), job.c.deleted_at.is_not(None), ~_FINAL
        )
    )
    for table, of in _OF.items()
}
_MARKED_FINAL = {table: Statement(some.where(_FINAL)) for table, some in _MARKED.items()}


def marked_active_of(
    connection: Connection, table: Table, owner_id: UUID
) -> tuple[list[transitions.Run], list[int]]:
    """
    Return the jobs of a workspace or pipeline that are being deleted and have not ended.

    Returns:
        Those that end, and the numbers of those that nothing ends: their rows are damaged.
    """
    numbers = [number for (number,) in _MARKED_NUMBERS[table](connection, owner_id=owner_id.hex)]

    def read_all() -> list[transitions.Run]:
        rows = _MARKED_ACTIVE[table](connection, owner_id=owner_id.hex, most=-1)
        return [transitions.Run._make(row) for row in rows]

    def read(number: int) -> list[transitions.Run]:
        run = transitions.find(connection, number)
        return [] if run is None else [run]

    found = error_mapping.readable(read_all, lambda: numbers, read, error_mapping.leave_out)
    ends = [run for run in found if run.stop_requested is not None and transitions.is_sound(run)]
    known = {run.number for run in ends}
    return ends, [number for number in numbers if number not in known]


def marked_final_of(
    connection: Connection, table: Table, owner_id: UUID, limit: int
) -> list[transitions.Run]:
    """Return some jobs of a workspace or pipeline that are being deleted and have ended."""
    rows = _MARKED_FINAL[table](connection, owner_id=owner_id.hex, most=limit)
    return [transitions.Run._make(row) for row in rows]


def remove_skips_of(connection: Connection, pipeline_ids: Collection[UUID], limit: int) -> int:
    """Remove skips of pipelines, and return how many."""
    some = select(skip.c.id).where(skip.c.pipeline_id.in_(pipeline_ids)).limit(limit)
    return connection.execute(delete(skip).where(skip.c.id.in_(some))).rowcount


def _is_empty(table: Table) -> list[ColumnElement[bool]]:
    left = [~select(job.c.number).where(_OF[table] == table.c.id).exists()]
    if table is workspace:
        left.append(~select(pipeline.c.id).where(pipeline.c.workspace_id == table.c.id).exists())
    return [table.c.deleted_at.is_not(None), *left]


def empty_of(connection: Connection, table: Table, ids: Collection[UUID]) -> list[UUID]:
    """Return those workspaces or pipelines that are being deleted and have nothing left."""
    return list(
        connection.execute(
            select(table.c.id).where(table.c.id.in_(ids), *_is_empty(table))
        ).scalars()
    )


def remove_if_empty(connection: Connection, table: Table, ids: Collection[UUID]) -> None:
    """Remove those workspaces or pipelines that are being deleted and have nothing left."""
    connection.execute(delete(table).where(table.c.id.in_(ids), *_is_empty(table)))


def list_workspaces(
    connection: Connection,
    form: Callable[[Row[Any]], T],
    failed: Callable[[int, Exception], None],
    *,
    limit: int | None = None,
    after: tuple[int, UUID] | None = None,
) -> list[T]:
    """
    Return a page of all workspaces, in the order of their creation.

    Args:
        form: Makes of a row what is returned.
        failed: Called with the rowid of each that cannot be read, and the reason.
        limit: Workspaces in the page; None: all.
        after: When the last one of the page before was created, and its id; None: the first page.
    """
    statement = select(workspace).where(workspace.c.deleted_at.is_(None))
    statement = _page(statement, workspace, limit, after)
    return _formed(connection, statement, _rowid(workspace), form, failed)


def list_pipelines(
    connection: Connection,
    workspace_id: UUID | None,
    form: Callable[[Row[Any]], T],
    failed: Callable[[int, Exception], None],
    *,
    limit: int | None = None,
    after: tuple[int, UUID] | None = None,
) -> list[T]:
    """
    Return a page of all pipelines, or of those of a workspace, in the order of their creation.

    Args:
        form, failed, limit, after: As for `list_workspaces`.
    """
    statement = _PIPELINE
    if workspace_id is not None:
        statement = statement.where(pipeline.c.workspace_id == workspace_id)
    statement = _page(statement, pipeline, limit, after)
    return _formed(connection, statement, _ROWID, form, failed)


def _page(
    statement: Select[Any], table: Table, limit: int | None, after: tuple[int, UUID] | None
) -> Select[Any]:
    """Return the statement with a page of its rows, in the order of their creation."""
    if after is not None:
        created, last = after
        statement = statement.where(
            (table.c.created > created) | ((table.c.created == created) & (table.c.id > last))
        )
    return statement.order_by(table.c.created, table.c.id).limit(limit)


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


def find_retries(connection: Connection, pipeline_id: UUID) -> Row[Any] | None:
    """Return id and `max_retries` of the pipeline, or None."""
    # Not the whole row: damage in another column must not keep its jobs from being settled.
    columns: tuple[Any, ...] = (pipeline.c.id, pipeline.c.max_retries)
    return connection.execute(
        select(*columns).where(pipeline.c.id == pipeline_id, pipeline.c.deleted_at.is_(None))
    ).one_or_none()


def pipelines_triggered_by(
    connection: Connection,
    source_id: UUID,
    failed: Callable[[int, Exception], None] = error_mapping.leave_out,
) -> list[Row[Any]]:
    """
    Return id and workspace of the pipelines that run after this one, in order of creation.

    Args:
        failed: Called with the rowid of each of them that cannot be read.
    """
    triggered = (
        select(pipeline.c.id, pipeline.c.workspace_id)
        .join_from(link, pipeline, link.c.pipeline_id == pipeline.c.id)
        .where(link.c.source_id == source_id, pipeline.c.deleted_at.is_(None))
        .order_by(pipeline.c.created, pipeline.c.id)
    )
    return _readable(connection, triggered, _ROWID, failed)


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


#: Where a look at schedules goes on: a tick, and the pipeline that has it.
Place = tuple[int, str]
#: What is needed to keep a schedule: no command, and nothing whose damage would end the look.
_SCHEDULE = (
    type_coerce(pipeline.c.id, String).label("id"),
    type_coerce(pipeline.c.workspace_id, String).label("workspace_id"),
    *(
        pipeline.c[name]
        for name in (
            "schedule", "time_zone", "next_tick", "tick_offset", "catch_up", "late_after",
        )
    ),
)  # fmt: skip
#: Where each missed tick is made up for, the next one comes when the job before has ended.
_WAITS = and_(
    func.coalesce(pipeline.c.catch_up, "skip") == "all",
    select(job.c.number).where(job.c.pipeline_id == pipeline.c.id, _ACTIVE).exists(),
)
_SCHEDULED = (pipeline.c.next_tick.is_not(None), pipeline.c.deleted_at.is_(None))


def scheduled_pipelines(
    connection: Connection,
    *,
    after: Place,
    until: int | None,
    limit: int,
    skip: int = 0,
    failed: Callable[[int, Exception], None] = error_mapping.leave_out,
) -> Sequence[Row[Any]]:
    """
    Return the pipelines that have a next tick, in the order of these, without their commands.

    Args:
        after: The place of the last one that was seen.
        skip: How many to pass over from there on: those that cannot be read have no place.
        until: Only those whose tick is due by then; None: all.
        limit: Pipelines at the most.
        failed: Called with the rowid of each of them whose row cannot be read.
    """
    statement = (
        select(*_SCHEDULE)
        .where(
            *_SCHEDULED,
            # As the file has them: neither a tick nor an id need be one, where it is damaged.
            tuple_(pipeline.c.next_tick, type_coerce(pipeline.c.id, String))
            > tuple_(literal(after[0], Integer), literal(after[1], String)),
            true()
            if until is None
            else and_(pipeline.c.next_tick <= until, not_(func.coalesce(_WAITS, false()))),
        )
        .order_by(pipeline.c.next_tick, pipeline.c.id)
        .limit(limit)
        .offset(skip)
    )
    return _readable(connection, statement, _ROWID, failed)


def _rowid(table: Table) -> Any:
    """Return the column that finds a row, whatever stands in the others."""
    return literal_column(f"{table.name}.rowid", Integer)


_ROWID = _rowid(pipeline)


def _readable(
    connection: Connection,
    statement: Select[Any],
    key: Any,
    failed: Callable[[int, Exception], None],
) -> list[Row[Any]]:
    """Return the rows that can be read; `failed` hears of the keys of the others."""
    return _formed(connection, statement, key, lambda row: row, failed)


def _formed(
    connection: Connection,
    statement: Select[Any],
    key: Any,
    form: Callable[[Row[Any]], T],
    failed: Callable[[int, Exception], None],
) -> list[T]:
    """Return what `form` makes of each row; `failed` hears of those that cannot be read."""

    def read(some: Select[Any]) -> list[T]:
        return [form(row) for row in connection.execute(some).all()]

    return error_mapping.readable(
        lambda: read(statement),
        lambda: connection.execute(statement.with_only_columns(key)).scalars().all(),
        lambda number: read(statement.where(key == number).limit(None).offset(None)),
        failed,
    )


#: The tables whose rows have ids that callers know.
_NAMED = {table.name: table for table in (job, pipeline, workspace)}
#: The bytes of an id, whatever the file has there.
_NAMES_OF = {
    name: select(func.hex(table.c.id)).where(_rowid(table) == bindparam("rowid"))
    for name, table in _NAMED.items()
}


def name_of_row(connection: Connection, kind: str, rowid: int) -> str:
    """Return the id of a job, pipeline or workspace that cannot be read, else its number."""
    stored = connection.execute(_NAMES_OF[kind], {"rowid": rowid}).scalar_one_or_none()
    try:
        return str(UUID(hex=bytes.fromhex(stored or "").decode()))
    except ValueError:
        return f"number {rowid}"  # the id is what is damaged


def damaged_columns(connection: Connection, kind: str, this: UUID | int) -> list[str]:
    """Return the columns of a row, by its id or rowid, that cannot be read by themselves."""
    table = _NAMED[kind]
    key = _rowid(table) == this if isinstance(this, int) else table.c.id == this
    found = []
    for column in table.c:
        try:
            connection.execute(select(column).where(key)).all()
        except Exception as error:
            if not error_mapping.is_damage(error):
                raise
            found.append(column.name)
    return found


def next_tick(connection: Connection) -> int | None:
    """Return when the next pipeline is to run by its schedule; None: none has one."""
    tick: int | None = connection.execute(
        select(pipeline.c.next_tick)
        .where(*_SCHEDULED, not_(_WAITS))
        .order_by(pipeline.c.next_tick)
        .limit(1)
    ).scalar_one_or_none()
    return tick


def advance_tick_if_at(connection: Connection, seen: Row[Any], new: int, offset: int) -> bool:
    """
    Take a tick, unless another process has, or the schedule was changed since it was `seen`.

    Args:
        seen: The pipeline, as `scheduled_pipelines` returned it.
        new: The next tick.
        offset: Seconds that local time is ahead of UTC then.
    """
    done = connection.execute(
        update(pipeline)
        .where(
            type_coerce(pipeline.c.id, String) == seen.id,
            pipeline.c.next_tick == seen.next_tick,
            pipeline.c.schedule.is_not_distinct_from(seen.schedule),
            pipeline.c.time_zone.is_not_distinct_from(seen.time_zone),
            pipeline.c.deleted_at.is_(None),
        )
        .values(next_tick=new, tick_offset=offset)
    )
    return done.rowcount == 1


def waiting_retries(connection: Connection, *, after: tuple[int, int], limit: int) -> Sequence[Any]:
    """
    Return queued jobs that try again what failed, in the order of when they may start.

    Args:
        after: When the last one that was seen may start, and its number.
    """
    return connection.execute(
        select(job.c.number, job.c.id, job.c.attempt, job.c.not_before)
        .where(
            *_QUEUED,
            job.c.retry_of.is_not(None),
            job.c.not_before.is_not(None),
            tuple_(job.c.not_before, job.c.number) > tuple_(*after),
        )
        .order_by(job.c.not_before, job.c.number)
        .limit(limit)
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
    goes_on: Callable[[int], bool] = lambda _due: True,
) -> None:
    """
    Record that a pipeline was to run and did not; one record for all runs of one cause.

    Args:
        goes_on: Whether this has the cause of the newest record, which has the same `why`
            and the same job: told when the last run of that one was due.
    """
    newest = connection.execute(
        select(skip).where(skip.c.pipeline_id == pipeline_id).order_by(skip.c.id.desc()).limit(1)
    ).one_or_none()
    if newest is not None and (newest.why, newest.job_id) == (why, job_id) and goes_on(newest.due):
        connection.execute(
            update(skip)
            .where(skip.c.id == newest.id)
            .values(due=due, recorded=now, count=skip.c.count + count)
        )
        return
    connection.execute(
        insert(skip).values(
            pipeline_id=pipeline_id, due=due, recorded=now, why=why, job_id=job_id, count=count
        )
    )


def list_skips(
    connection: Connection,
    pipeline_id: UUID,
    limit: int,
    form: Callable[[Row[Any]], T],
    failed: Callable[[int, Exception], None],
) -> list[T]:
    """
    Return the newest skips of a pipeline, newest first.

    Args:
        form, failed: As for `list_workspaces`.
    """
    statement = (
        select(skip)
        .where(skip.c.pipeline_id == pipeline_id)
        .order_by(skip.c.id.desc())
        .limit(limit)
    )
    return _formed(connection, statement, skip.c.id, form, failed)


# --- creating and reading jobs ------------------------------------------------

_INSERT_JOB = insert(job).returning(job)


def insert_job(connection: Connection, *, now: int, **fields: Any) -> Row[Any]:
    """
    Make a QUEUED job.

    Raises:
        PipelineAlreadyRunning: Its pipeline has a QUEUED or RUNNING job. Nothing was made,
            and the transaction can go on.
    """
    values = new_job(now=now, **fields)
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
    transitions.record(
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


def new_job(*, now: int, **fields: Any) -> dict[str, Any]:
    """Return the columns of a job that is made now."""
    return {"id": uuid4(), "status": str(lifecycle.INITIAL), "created": now, **_BLANK, **fields}


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

_FIND_JOB = select(job).where(job.c.id == bindparam("id"), IS_VISIBLE)
_GET_JOB = select(job).where(job.c.number == bindparam("number"))


def find_job(connection: Connection, job_id: UUID) -> Row[Any] | None:
    """Return the job, or None; one that is being deleted is not there."""
    return connection.execute(_FIND_JOB, {"id": job_id}).one_or_none()


_NUMBER_OF = Statement(select(job.c.number).where(job.c.id == bindparam("of_id"), IS_VISIBLE))


def number_of(connection: Connection, job_id: UUID) -> int | None:
    """Return the number of a job, though its row be damaged; None: there is no such job."""
    rows = _NUMBER_OF(connection, of_id=job_id.hex)
    return rows[0][0] if rows else None


def find_jobs(connection: Connection, first: UUID, last: UUID, *, limit: int) -> list[int]:
    """Return the numbers of the jobs with ids from `first` to `last`, by a walk on the index."""
    between = job.c.id.between(first, last)
    numbers = select(job.c.number).where(between, IS_VISIBLE).order_by(job.c.id).limit(limit)
    return list(connection.execute(numbers).scalars())


def get_job(connection: Connection, number: int) -> Row[Any] | None:
    """Return the job with this number, being deleted or not, or None."""
    return connection.execute(_GET_JOB, {"number": number}).one_or_none()


def visible_jobs(
    connection: Connection, numbers: Iterable[int], failed: Callable[[int, Exception], None]
) -> list[Row[Any]]:
    """Return the jobs with these numbers, in their order, without those being deleted."""
    found: list[Row[Any]] = []
    for number in numbers:
        try:
            found += connection.execute(_GET_JOB.where(IS_VISIBLE), {"number": number}).all()
        except Exception as error:
            if not error_mapping.is_damage(error):
                raise
            failed(number, error_mapping.told(error))
    return found


def run_of(row: Row[Any]) -> transitions.Run:
    """Return what is needed of the job while it runs."""
    columns = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    return transitions.Run(
        name=row.id.hex,
        of_pipeline=row.pipeline_id is not None,
        **{
            field: columns[field]
            for field in transitions.Run._fields
            if field not in ("name", "of_pipeline")
        },
    )


def active_job_of(connection: Connection, pipeline_id: UUID) -> Row[Any] | None:
    """Return the QUEUED or RUNNING job of the pipeline, being deleted or not, or None."""
    return connection.execute(
        select(job).where(job.c.pipeline_id == pipeline_id, _ACTIVE)
    ).one_or_none()


def list_jobs(
    connection: Connection,
    *,
    limit: int,
    before: int | None,
    workspace_id: UUID | None,
    pipeline_id: UUID | None,
    statuses: Collection[Status] | None,
    types: Collection[str] | None,
    failed: Callable[[int, Exception], None] = error_mapping.leave_out,
) -> list[Row[Any]]:
    """
    Return a page of jobs, newest first, older than the number `before`.

    Each status of each type is read by itself from an index that has its jobs in order. So a
    page costs what it shows, whatever the history.

    Args:
        failed: Called with the number of each job of the page that cannot be read.
    """
    of_owner = _of_owner(connection, workspace_id, pipeline_id)
    kinds: list[ColumnElement[bool]] = [true()]
    if types is not None:
        kinds = [job.c.type == one for one in sorted(set(types))]
    parts = [
        select(job.c.number)
        .where(IS_VISIBLE, has_status(status), kind, *of_owner)
        .where(true() if before is None else job.c.number < before)
        .order_by(job.c.number.desc())
        .limit(limit)
        for status in sorted(Status if statuses is None else set(statuses))
        for kind in kinds
    ]
    if not parts:
        return []
    page = (
        select(*SHOWN)
        .where(job.c.number.in_(_together(parts)))
        .order_by(job.c.number.desc())
        .limit(limit)
    )
    return _readable(connection, page, job.c.number, failed)


_WORDS = sorted(Status)
#: Jobs whose status is no word of these, by the gaps between them: an index has these.
_ODD = Statement(
    select(
        union_all(
            *(
                select(select(job.c.number).where(IS_VISIBLE, gap).limit(100).subquery())
                for gap in (
                    job.c.status < literal_column(f"'{_WORDS[0]}'"),
                    *(
                        and_(
                            job.c.status > literal_column(f"'{low}'"),
                            job.c.status < literal_column(f"'{high}'"),
                        )
                        for low, high in pairwise(_WORDS)
                    ),
                    job.c.status > literal_column(f"'{_WORDS[-1]}'"),
                )
            )
        ).subquery()
    )
)


def jobs_of_no_status(connection: Connection) -> list[int]:
    """Return jobs with an unknown status, which no listing by status finds."""
    return [number for (number,) in _ODD(connection)]


def _of_owner(
    connection: Connection, workspace_id: UUID | None, pipeline_id: UUID | None
) -> list[ColumnElement[bool]]:
    if pipeline_id is None:
        return [] if workspace_id is None else [job.c.workspace_id == workspace_id]
    # The workspace of a job is that of its pipeline. With both conditions SQLite could walk
    # through all jobs of the workspace, or through all of the pipeline to show none.
    if workspace_id is not None and not _is_in(connection, pipeline_id, workspace_id):
        return [false()]
    return [job.c.pipeline_id == pipeline_id]


def _is_in(connection: Connection, pipeline_id: UUID, workspace_id: UUID) -> bool:
    statement = select(pipeline.c.id).where(
        pipeline.c.id == pipeline_id, pipeline.c.workspace_id == workspace_id
    )
    return connection.execute(statement).first() is not None


#: SQLite's limit of the SELECTs in a compound one is 500.
_MOST_TOGETHER = 250


def _together(parts: Sequence[Select[Any]]) -> Select[Any] | CompoundSelect[Any]:
    """Return the rows of all of `parts`; SQLite allows ORDER BY and LIMIT within a part only so."""
    subqueries = [select(part.subquery()) for part in parts]
    while len(subqueries) > _MOST_TOGETHER:
        subqueries = [
            select(union_all(*subqueries[first : first + _MOST_TOGETHER]).subquery())
            for first in range(0, len(subqueries), _MOST_TOGETHER)
        ]
    return subqueries[0] if len(subqueries) == 1 else union_all(*subqueries)


def count_jobs(
    connection: Connection,
    *,
    workspace_id: UUID | None,
    pipeline_id: UUID | None,
    statuses: Collection[Status] | None,
    types: Collection[str] | None,
) -> dict[Status, int]:
    """Return how many jobs there are of each status, 0 included; see `counts`."""
    table = workspace_count if pipeline_id is None else pipeline_count
    # Of these columns alone: what else may stand there is not even to be read.
    asked = sorted(Status if statuses is None else set(statuses))
    columns = [func.coalesce(func.sum(table.c[str(one).lower()]), 0) for one in asked]
    statement = select(*columns).where(table.c.batch == 0)
    if pipeline_id is not None:
        statement = statement.where(table.c.pipeline_id == pipeline_id.hex)
        if workspace_id is not None and not _is_in(connection, pipeline_id, workspace_id):
            asked = []
    elif workspace_id is not None:
        statement = statement.where(table.c.workspace_id == workspace_id.hex)
    if types is not None:
        statement = statement.where(table.c.type.in_(sorted(types)))
    counted = connection.execute(statement).one() if asked else ()
    return dict.fromkeys(Status, 0) | dict(zip(asked, counted, strict=True))


_CLAIMABLE = or_(job.c.owner.is_(None), job.c.owner == bindparam("claimant"))


@lru_cache(maxsize=64)
def _queue_of(types: tuple[str, ...]) -> Select[Any]:
    """Return the statement that reads what may start of these types: each by its own index."""
    parts = []
    for one in types:
        of_type = select(job.c.number).where(*_QUEUED, job.c.type == one, _CLAIMABLE)
        parts += [
            of_type.where(job.c.not_before.is_(None))
            .order_by(job.c.number)
            .limit(bindparam("limit")),
            of_type.where(job.c.not_before.is_not(None), job.c.not_before <= bindparam("now"))
            .order_by(job.c.not_before, job.c.number)
            .limit(bindparam("limit")),
        ]
    return (
        select(job)
        .where(job.c.number.in_(_together(parts)))
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
    failed: Callable[[int, Exception], None] = error_mapping.leave_out,
) -> Generator[Row[Any], None, None]:
    """
    Yield the jobs that could be claimed now, oldest first; among `numbers` where given.

    Each is read when it is asked for: the commands of many need not be in memory together.

    Args:
        claimant: The owner whose reserved jobs are among them.
        failed: Called with the number of each of them whose row cannot be read.
    """
    if not types:
        return
    if numbers is None:
        statement = _queue_of(types)
    else:
        statement = (
            select(job)
            .where(
                job.c.number.in_(sorted(numbers)),
                *_QUEUED,
                or_(job.c.not_before.is_(None), job.c.not_before <= bindparam("now")),
                _CLAIMABLE,
                # By number alone: an index by type would be read whole.
                job.c.type.concat("").in_(types),
            )
            .order_by(job.c.number)
            .limit(bindparam("limit"))
        )
    values = {"now": now, "limit": limit, "claimant": claimant}
    seen: set[int] = set()
    try:
        with connection.execute(statement, values) as rows:
            for row in rows:
                seen.add(row.number)
                yield row
    except Exception as error:
        if not error_mapping.is_damage(error):
            raise
    else:
        return
    yield from _queued_one_by_one(
        connection, statement.with_only_columns(job.c.number), values, seen, failed
    )


def _queued_one_by_one(
    connection: Connection,
    numbers: Select[Any],
    values: dict[str, Any],
    seen: Collection[int],
    failed: Callable[[int, Exception], None],
) -> Iterator[Row[Any]]:
    """Yield the rest of a queue in which a row cannot be read."""
    for number in connection.execute(numbers, values).scalars().all():
        if number in seen:
            continue
        try:
            rows = connection.execute(_GET_JOB, {"number": number}).all()
        except Exception as error:
            if not error_mapping.is_damage(error):
                raise
            failed(number, error_mapping.told(error))
        else:
            yield from rows


def queued_numbers(connection: Connection, numbers: Collection[int]) -> set[int]:
    """Return those of `numbers` whose job is QUEUED."""
    return set(
        connection.execute(
            select(job.c.number).where(has_status(Status.QUEUED), job.c.number.in_(sorted(numbers)))
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
    delayed = select(job.c.not_before).where(
        *_QUEUED, job.c.not_before.is_not(None), job.c.not_before > now
    )
    if numbers is None:
        parts = [
            delayed.where(job.c.type == one).order_by(job.c.not_before).limit(1) for one in types
        ]
    else:
        parts = [delayed.where(job.c.number.in_(sorted(numbers)), job.c.type.concat("").in_(types))]
    if not parts:
        return None
    moments = connection.execute(_together(parts)).scalars()
    return min(moments, default=None)


def active_ids(connection: Connection, ids: Collection[UUID]) -> set[UUID]:
    """Return those of `ids` whose job is QUEUED or RUNNING: their directories are in use."""
    return set(connection.execute(select(job.c.id).where(job.c.id.in_(ids), _ACTIVE)).scalars())


# --- history ------------------------------------------------------------------


def history(
    connection: Connection,
    number: int,
    form: Callable[[Row[Any]], T],
    failed: Callable[[int, Exception], None],
) -> list[T]:
    """
    Return what happened to the job, oldest first.

    Args:
        form, failed: As for `list_workspaces`.
    """
    statement = select(transition).where(transition.c.job == number).order_by(transition.c.id)
    return _formed(connection, statement, transition.c.id, form, failed)
