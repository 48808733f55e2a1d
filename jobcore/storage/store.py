"""
Creates, lists, changes and deletes workspaces, pipelines and jobs, and reads their history.

Every function takes a connection in a transaction. Times are microseconds since 1970.
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

#: A pipeline's status. It is about the pipeline's configuration, not about its runs.
READY = "READY"

_ACTIVE = has_status(Status.QUEUED, Status.RUNNING)
_QUEUED = (has_status(Status.QUEUED), IS_VISIBLE)
_FINAL = has_status(*(status for status in Status if status.final))


# --- workspaces and pipelines -------------------------------------------------


def insert_workspace(
    connection: Connection, *, name: str, now: int, properties: Any = None, default: bool = False
) -> Row[Any]:
    """Create a workspace and return its row."""
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
    """Return the workspace; None: there is none, or it is being deleted."""
    return connection.execute(
        select(workspace).where(workspace.c.id == workspace_id, workspace.c.deleted_at.is_(None))
    ).one_or_none()


_DEFAULT = Statement(select(workspace.c.id).where(workspace.c.is_default))


def find_default_workspace(connection: Connection) -> UUID | None:
    """Return the id of the default workspace; None: it has not been needed yet."""
    rows = _DEFAULT(connection)
    try:
        return UUID(hex=rows[0][0]) if rows else None
    except (ValueError, AttributeError) as error:
        raise DatabaseCorrupt("a stored ID is not a valid UUID") from error


def default_workspace(connection: Connection, now: int) -> UUID:
    """Return the id of the default workspace, and create it if needed."""
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
#: Selects pipelines as they are shown: with the current names of their sources, as JSON.
_PIPELINE = select(
    pipeline,
    type_coerce(select(func.json_group_array(_NAMES.c.name)).scalar_subquery(), JSON).label(
        "triggered_by"
    ),
).where(pipeline.c.deleted_at.is_(None))


def insert_pipeline(connection: Connection, *, now: int, **fields: Any) -> UUID:
    """Create a pipeline and return its id."""
    made = uuid4()
    connection.execute(
        insert(pipeline).values(id=made, status=READY, created=now, last_modified=now, **fields)
    )
    return made


def find_pipeline(connection: Connection, pipeline_id: UUID) -> Row[Any] | None:
    """Return the pipeline; None: there is none, or it is being deleted."""
    return connection.execute(_PIPELINE.where(pipeline.c.id == pipeline_id)).one_or_none()


def find_pipeline_called(connection: Connection, workspace_id: UUID, name: str) -> UUID | None:
    """Return the id of the pipeline with this name, ignoring case, or None."""
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
    """Change a workspace or pipeline that the same transaction has found."""
    connection.execute(
        update(table)
        .where(table.c.id == row_id, table.c.deleted_at.is_(None))
        .values(last_modified=func.max(table.c.created, now), **changes)
    )


def mark_row_deleted(connection: Connection, table: Table, row_id: UUID, *, now: int) -> bool:
    """Hide a workspace or pipeline from every read, for good; False: hidden already, or missing."""
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
    """Return ids above `after`, in order, of workspaces or pipelines being deleted."""
    statement = select(table.c.id).where(
        table.c.deleted_at.is_not(None), table.c.id > UUID(hex=after)
    )
    if workspace_id is not None:
        statement = statement.where(pipeline.c.workspace_id == workspace_id)
    return list(connection.execute(statement.order_by(table.c.id).limit(limit)).scalars())


def has_unmarked(connection: Connection, table: Table, owner_id: UUID) -> bool:
    """Tell whether a workspace or pipeline has a job or pipeline that is not being deleted."""
    things = [select(job.c.number).where(_OF[table] == owner_id, IS_VISIBLE)]
    if table is workspace:
        things.append(
            select(pipeline.c.created).where(
                pipeline.c.workspace_id == owner_id, pipeline.c.deleted_at.is_(None)
            )
        )
    return any(connection.execute(one.limit(1)).all() for one in things)


def unmarked_pipelines_of(connection: Connection, workspace_id: UUID, limit: int) -> list[UUID]:
    """Return the ids of pipelines of a workspace that are not being deleted themselves."""
    return list(
        connection.execute(
            select(pipeline.c.id)
            .where(pipeline.c.workspace_id == workspace_id, pipeline.c.deleted_at.is_(None))
            .limit(limit)
        ).scalars()
    )


#: The column of `job` that refers to a row of each table.
_OF = {pipeline: job.c.pipeline_id, workspace: job.c.workspace_id}


def active_unmarked_of(
    connection: Connection, table: Table, owner_id: UUID, limit: int
) -> list[int]:
    """Return numbers of QUEUED and RUNNING jobs of the owner that are not being deleted."""
    return list(
        connection.execute(
            select(job.c.number).where(_OF[table] == owner_id, IS_VISIBLE, _ACTIVE).limit(limit)
        ).scalars()
    )


def mark_final_of(
    connection: Connection, table: Table, owner_id: UUID, limit: int, *, now: int
) -> int:
    """Hide up to `limit` final jobs of a workspace or pipeline, for good; return how many."""
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
    """Hide up to `limit` jobs of a workspace or pipeline, of any status; return how many."""
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
        The jobs that will end, because they were asked to stop; and the numbers of those that
        will not, because their rows are damaged.
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
    """Return up to `limit` jobs of a workspace or pipeline that have ended and are deleted."""
    rows = _MARKED_FINAL[table](connection, owner_id=owner_id.hex, most=limit)
    return [transitions.Run._make(row) for row in rows]


def remove_skips_of(connection: Connection, pipeline_ids: Collection[UUID], limit: int) -> int:
    """Remove up to `limit` skips of pipelines; return how many."""
    some = select(skip.c.id).where(skip.c.pipeline_id.in_(pipeline_ids)).limit(limit)
    return connection.execute(delete(skip).where(skip.c.id.in_(some))).rowcount


def _is_empty(table: Table) -> list[ColumnElement[bool]]:
    left = [~select(job.c.number).where(_OF[table] == table.c.id).exists()]
    if table is workspace:
        left.append(~select(pipeline.c.id).where(pipeline.c.workspace_id == table.c.id).exists())
    return [table.c.deleted_at.is_not(None), *left]


def empty_of(connection: Connection, table: Table, ids: Collection[UUID]) -> list[UUID]:
    """Return those of `ids` that are being deleted and have no jobs or pipelines left."""
    return list(
        connection.execute(
            select(table.c.id).where(table.c.id.in_(ids), *_is_empty(table))
        ).scalars()
    )


def remove_if_empty(connection: Connection, table: Table, ids: Collection[UUID]) -> None:
    """Remove those of `ids` that are being deleted and have no jobs or pipelines left."""
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
    Return a page of all workspaces, in order of creation.

    Args:
        form: Converts a row to the returned object.
        failed: Called with the rowid of each row that cannot be read, and the reason.
        limit: Maximum number in the page; None: all.
        after: Creation time and id of the last one of the page before; None: the first page.
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
    Return a page of all pipelines, or of those of a workspace, in order of creation.

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
    """Return the statement limited to one page, in order of creation."""
    if after is not None:
        created, last = after
        statement = statement.where(
            (table.c.created > created) | ((table.c.created == created) & (table.c.id > last))
        )
    return statement.order_by(table.c.created, table.c.id).limit(limit)


def set_pipeline_status(
    connection: Connection, pipeline_id: UUID, status: str, *, now: int
) -> None:
    """Set the status of a pipeline, which tells whether its configuration was processed."""
    update_row(connection, pipeline, pipeline_id, now=now, status=status)


# --- chains -------------------------------------------------------------------


def links_of(connection: Connection, pipeline_id: UUID) -> Sequence[Row[Any]]:
    """Return the links of a pipeline, in order: ids of its sources, or names without a pipeline."""
    return connection.execute(
        select(link).where(link.c.pipeline_id == pipeline_id).order_by(link.c.position)
    ).all()


def replace_links(
    connection: Connection, pipeline_id: UUID, links: Sequence[tuple[UUID | None, str | None]]
) -> None:
    """Replace the sources of a pipeline. Each link is the id of a pipeline, or only a name."""
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
    """Return id and `max_retries` of the pipeline; None: there is none, or it is being deleted."""
    # Not the whole row, so that damage in another column does not keep jobs from being settled.
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
        failed: Called with the rowid of each pipeline that cannot be read, and the reason.
    """
    triggered = (
        select(pipeline.c.id, pipeline.c.workspace_id)
        .join_from(link, pipeline, link.c.pipeline_id == pipeline.c.id)
        .where(link.c.source_id == source_id, pipeline.c.deleted_at.is_(None))
        .order_by(pipeline.c.created, pipeline.c.id)
    )
    return _readable(connection, triggered, _ROWID, failed)


def runs_before(connection: Connection, pipeline_id: UUID, others: Collection[UUID]) -> bool:
    """Tell whether the pipeline is one of `others` or triggers one of them, even indirectly."""
    before = select(pipeline.c.id).where(pipeline.c.id.in_(others)).cte("before", recursive=True)
    before = before.union(
        select(link.c.source_id).where(
            link.c.pipeline_id == before.c.id, link.c.source_id.is_not(None)
        )
    )
    found = connection.execute(select(before.c.id).where(before.c.id == pipeline_id)).first()
    return found is not None


def remove_links_to(connection: Connection, source_id: UUID) -> None:
    """Remove all links to a pipeline, so that it triggers nothing any more."""
    connection.execute(delete(link).where(link.c.source_id == source_id))


def note(connection: Connection, pipeline_id: UUID, topic: str, detail: str) -> None:
    """Record a note about a pipeline, which `doctor` lists."""
    connection.execute(
        insert(pipeline_note).values(pipeline_id=pipeline_id, topic=topic, detail=detail)
    )


def remove_notes(connection: Connection, pipeline_id: UUID, topic: str) -> None:
    """Remove the notes on a pipeline's `name` or `chain`, after the user has changed it."""
    connection.execute(
        delete(pipeline_note).where(
            pipeline_note.c.pipeline_id == pipeline_id, pipeline_note.c.topic == topic
        )
    )


# --- schedules ----------------------------------------------------------------


#: A position in the list of schedules: a tick and the pipeline that has it.
Place = tuple[int, str]
#: The columns that the scheduler needs. Ids are read as text, and the command is left out, so
#: that damage in them does not end the query.
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
#: With catch_up "all", the next tick waits until the job of the previous one has ended.
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
    Return the pipelines that have a next tick, ordered by it, without their commands.

    Args:
        after: The place of the last pipeline that the caller has seen.
        skip: Number of pipelines to skip after `after`: the unreadable ones, whose place is
            unknown.
        until: Only pipelines whose tick is due by then; None: all.
        limit: Maximum number of pipelines.
        failed: Called with the rowid of each pipeline that cannot be read, and the reason.
    """
    statement = (
        select(*_SCHEDULE)
        .where(
            *_SCHEDULED,
            # Compare the stored values: if damaged, they need not be a valid tick or id.
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
    """Return SQLite's rowid column, which identifies a row even if other columns are damaged."""
    return literal_column(f"{table.name}.rowid", Integer)


_ROWID = _rowid(pipeline)


def _readable(
    connection: Connection,
    statement: Select[Any],
    key: Any,
    failed: Callable[[int, Exception], None],
) -> list[Row[Any]]:
    """Return the rows that can be read; call `failed` with the keys of the others."""
    return _formed(connection, statement, key, lambda row: row, failed)


def _formed(
    connection: Connection,
    statement: Select[Any],
    key: Any,
    form: Callable[[Row[Any]], T],
    failed: Callable[[int, Exception], None],
) -> list[T]:
    """Return the rows, converted by `form`; call `failed` with the keys of unreadable ones."""

    def read(some: Select[Any]) -> list[T]:
        return [form(row) for row in connection.execute(some).all()]

    return error_mapping.readable(
        lambda: read(statement),
        lambda: connection.execute(statement.with_only_columns(key)).scalars().all(),
        lambda number: read(statement.where(key == number).limit(None).offset(None)),
        failed,
    )


#: The tables whose rows have public ids.
_NAMED = {table.name: table for table in (job, pipeline, workspace)}
#: Select the bytes of an id as hex, because a damaged id may not be text.
_NAMES_OF = {
    name: select(func.hex(table.c.id)).where(_rowid(table) == bindparam("rowid"))
    for name, table in _NAMED.items()
}


def name_of_row(connection: Connection, kind: str, rowid: int) -> str:
    """Return the id of a job, pipeline or workspace; if the id is damaged, "number N"."""
    stored = connection.execute(_NAMES_OF[kind], {"rowid": rowid}).scalar_one_or_none()
    try:
        return str(UUID(hex=bytes.fromhex(stored or "").decode()))
    except ValueError:
        return f"number {rowid}"


def damaged_columns(connection: Connection, kind: str, this: UUID | int) -> list[str]:
    """Return the names of the unreadable columns of a row, which is given by id or rowid."""
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
    """Return the earliest next tick of all schedules; None: there is none."""
    tick: int | None = connection.execute(
        select(pipeline.c.next_tick)
        .where(*_SCHEDULED, not_(_WAITS))
        .order_by(pipeline.c.next_tick)
        .limit(1)
    ).scalar_one_or_none()
    return tick


def advance_tick_if_at(connection: Connection, seen: Row[Any], new: int, offset: int) -> bool:
    """
    Take a tick by moving the pipeline to its next one.

    Args:
        seen: The pipeline, as `scheduled_pipelines` returned it.
        new: The next tick.
        offset: UTC offset at the next tick, in seconds.

    Returns:
        False: another process has taken the tick, or the schedule was changed.
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
    Return queued retries that wait for their time, ordered by it.

    Args:
        after: `not_before` and number of the last retry that the caller has seen.
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
    """Move the start time of a QUEUED job from `old` to `new`; False: it was not `old` any more."""
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
    Record that a due run of a pipeline was skipped; extend the newest record if it has the cause.

    Args:
        due: When the run was due.
        why: The cause: `schedule`, `triggered` or `missed`.
        job_id: The active job that was in the way, or None.
        count: Number of skipped runs.
        goes_on: Tells whether the newest record, which has the same `why` and job, has the same
            cause. Called with the `due` of that record.
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
    Create a QUEUED job with its first history entry, and return its row.

    Raises:
        PipelineAlreadyRunning: Its pipeline has a QUEUED or RUNNING job. Nothing was created,
            and the transaction can continue.
    """
    values = new_job(now=now, **fields)
    try:
        row = connection.execute(_INSERT_JOB, values).one()
    except IntegrityError as error:
        # The unique index has refused the row; this only finds the job in the way.
        pipeline_id = values["pipeline_id"]
        blocker = None if pipeline_id is None else active_job_of(connection, pipeline_id)
        if "FOREIGN KEY" in str(error.orig):  # the workspace exists, but its stored id is damaged
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
    """Return the columns of the job that retries the job of `row`."""
    kept = ("type", "name", "data", "command", "env_from", "environment")
    again = {name: getattr(row, name) for name in kept}
    return {**again, "attempt": row.attempt + 1, "retry_of": row.id}


def new_job(*, now: int, **fields: Any) -> dict[str, Any]:
    """Return all columns of a new QUEUED job."""
    return {"id": uuid4(), "status": str(lifecycle.INITIAL), "created": now, **_BLANK, **fields}


#: Defaults for optional columns. Every insert has the same columns, so it is compiled once.
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
    """Return the job; None: there is none, or it is being deleted."""
    return connection.execute(_FIND_JOB, {"id": job_id}).one_or_none()


_NUMBER_OF = Statement(select(job.c.number).where(job.c.id == bindparam("of_id"), IS_VISIBLE))


def number_of(connection: Connection, job_id: UUID) -> int | None:
    """Return the number of a job, even if its row is damaged; None: there is no such job."""
    rows = _NUMBER_OF(connection, of_id=job_id.hex)
    return rows[0][0] if rows else None


def find_jobs(connection: Connection, first: UUID, last: UUID, *, limit: int) -> list[int]:
    """Return the numbers of up to `limit` jobs with ids from `first` to `last`, inclusive."""
    between = job.c.id.between(first, last)
    numbers = select(job.c.number).where(between, IS_VISIBLE).order_by(job.c.id).limit(limit)
    return list(connection.execute(numbers).scalars())


def get_job(connection: Connection, number: int) -> Row[Any] | None:
    """Return the job with this number, even if it is being deleted; None: there is none."""
    return connection.execute(_GET_JOB, {"number": number}).one_or_none()


def visible_jobs(
    connection: Connection, numbers: Iterable[int], failed: Callable[[int, Exception], None]
) -> list[Row[Any]]:
    """Return the visible jobs with these numbers, in the order of `numbers`."""
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
    """Return a job's row as a `Run`."""
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
    """Return the QUEUED or RUNNING job of a pipeline, even if it is being deleted, or None."""
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
    Return a page of jobs with numbers below `before`, newest first.

    Each combination of status and type is read from an index that has its jobs in order. So
    the cost depends on the size of the page, not on the length of the history.

    Args:
        failed: Called with the number of each job of the page that cannot be read, and the
            reason.
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
#: Jobs with an unknown status. It searches the ranges between the known ones, for the index.
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
    """Return the numbers of jobs with an unknown status, which no listing by status finds."""
    return [number for (number,) in _ODD(connection)]


def _of_owner(
    connection: Connection, workspace_id: UUID | None, pipeline_id: UUID | None
) -> list[ColumnElement[bool]]:
    if pipeline_id is None:
        return [] if workspace_id is None else [job.c.workspace_id == workspace_id]
    # A job is in the workspace of its pipeline, so the pipeline alone decides. With both
    # conditions SQLite might scan all jobs of the workspace, or of the pipeline for nothing.
    if workspace_id is not None and not _is_in(connection, pipeline_id, workspace_id):
        return [false()]
    return [job.c.pipeline_id == pipeline_id]


def _is_in(connection: Connection, pipeline_id: UUID, workspace_id: UUID) -> bool:
    statement = select(pipeline.c.id).where(
        pipeline.c.id == pipeline_id, pipeline.c.workspace_id == workspace_id
    )
    return connection.execute(statement).first() is not None


#: Safely below SQLite's limit of 500 SELECTs in a compound SELECT.
_MOST_TOGETHER = 250


def _together(parts: Sequence[Select[Any]]) -> Select[Any] | CompoundSelect[Any]:
    """
    Return the union of `parts`.

    Each part becomes a subquery: SQLite allows ORDER BY and LIMIT within a part only so.
    """
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
    """Return the number of visible jobs of each status, including 0; see `counts`."""
    table = workspace_count if pipeline_id is None else pipeline_count
    # Read only these columns, so that damage in others does not matter.
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
    """Return the statement for the jobs of these types that may start; it reads type by type."""
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
    Yield up to `limit` jobs that can be claimed now, oldest first.

    Rows are read one by one, so that the commands of many jobs are not in memory together.

    Args:
        numbers: Only jobs with these numbers; None: all.
        claimant: The owner whose reserved jobs are included.
        failed: Called with the number of each job that cannot be read, and the reason.
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
                # The concat keeps SQLite from an index by type, which it would scan whole.
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
    """Yield the jobs not in `seen`, reading row by row, after one could not be read."""
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
    """Return the earliest `not_before` after `now` of the queued jobs; None: there is none."""
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
    """Return those of `ids` whose job is QUEUED or RUNNING, so that its directory is in use."""
    return set(connection.execute(select(job.c.id).where(job.c.id.in_(ids), _ACTIVE)).scalars())


# --- history ------------------------------------------------------------------


def history(
    connection: Connection,
    number: int,
    form: Callable[[Row[Any]], T],
    failed: Callable[[int, Exception], None],
) -> list[T]:
    """
    Return the history of a job, oldest first.

    Args:
        form, failed: As for `list_workspaces`.
    """
    statement = select(transition).where(transition.c.job == number).order_by(transition.c.id)
    return _formed(connection, statement, transition.c.id, form, failed)
