"""The statements that hide deleted rows, and find those that are still to be removed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Select,
    String,
    Table,
    bindparam,
    case,
    delete,
    func,
    or_,
    select,
    update,
)

from jobcore.lifecycle import Status
from jobcore.storage import transitions
from jobcore.storage.damage import leave_out, readable
from jobcore.storage.statement import Statement
from jobcore.storage.tables import (
    IS_ACTIVE,
    IS_FINAL,
    IS_VISIBLE,
    job,
    pipeline,
    skip,
    workspace,
)


def mark_row_deleted(connection: Connection, table: Table, row_id: UUID, *, now: int) -> bool:
    """Hide a workspace or pipeline from every read, for good; False: hidden already, or missing."""
    done = connection.execute(
        update(table)
        .where(table.c.id == row_id, table.c.deleted_at.is_(None))
        .values(deleted_at=now)
    )
    return done.rowcount == 1


def _owners(table: Table) -> Select[Any]:
    return (
        select(table.c.id)
        .where(table.c.deleted_at.is_not(None), table.c.id > bindparam("after", type_=String))
        .order_by(table.c.id)
        .limit(bindparam("most"))
    )


_MARKED_OWNERS = {table: Statement(_owners(table)) for table in (workspace, pipeline)}
_MARKED_PIPELINES = Statement(
    _owners(pipeline).where(pipeline.c.workspace_id == bindparam("workspace", type_=String))
)


def marked_ids(
    connection: Connection, table: Table, after: str, limit: int, workspace_id: UUID | None = None
) -> list[UUID]:
    """Return ids above `after`, in order, of workspaces or pipelines being deleted."""
    if workspace_id is None:
        rows = _MARKED_OWNERS[table](connection, after=after, most=limit)
    else:
        rows = _MARKED_PIPELINES(connection, after=after, most=limit, workspace=workspace_id.hex)
    return [UUID(hex=name) for (name,) in rows]


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
            select(job.c.number).where(_OF[table] == owner_id, IS_VISIBLE, IS_ACTIVE).limit(limit)
        ).scalars()
    )


def mark_jobs_of(
    connection: Connection, table: Table, owner_id: UUID, limit: int, *, now: int, final: bool
) -> int:
    """
    Hide up to `limit` jobs of a workspace or pipeline, for good, and return how many.

    Args:
        final: Whether to hide only jobs that have ended.
    """
    some = select(job.c.number).where(_OF[table] == owner_id, job.c.deleted_at.is_(None))
    if final:
        some = some.where(IS_FINAL)
    return connection.execute(
        update(job).where(job.c.number.in_(some.limit(limit))).values(deleted_at=now)
    ).rowcount


_MARKED = {
    table: select(*transitions.COLUMNS)
    .where(of == bindparam("owner_id", type_=String), job.c.deleted_at.is_not(None))
    .limit(bindparam("most", type_=Integer))
    for table, of in _OF.items()
}


_MARKED_ACTIVE = {table: Statement(some.where(IS_ACTIVE)) for table, some in _MARKED.items()}


_MARKED_NUMBERS = {
    table: Statement(
        select(job.c.number).where(
            of == bindparam("owner_id", type_=String), job.c.deleted_at.is_not(None), ~IS_FINAL
        )
    )
    for table, of in _OF.items()
}


_MARKED_FINAL = {table: Statement(some.where(IS_FINAL)) for table, some in _MARKED.items()}


def marked_active_of(
    connection: Connection, table: Table, owner_id: UUID
) -> tuple[list[transitions.Run], list[int]]:
    """
    Return the jobs of a workspace or pipeline that are being deleted and have not ended.

    Returns:
        The jobs that were asked to stop, so they will end; and the numbers of those that never
        end, because their rows are damaged.
    """
    numbers = [number for (number,) in _MARKED_NUMBERS[table](connection, owner_id=owner_id.hex)]

    def read_all() -> list[transitions.Run]:
        rows = _MARKED_ACTIVE[table](connection, owner_id=owner_id.hex, most=-1)
        return [transitions.Run._make(row) for row in rows]

    def read(number: int) -> list[transitions.Run]:
        run = transitions.find(connection, number)
        return [] if run is None else [run]

    found = readable(read_all, lambda: numbers, read, leave_out)
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


# --- single jobs ------------------------------------------------------------------

_THIS = job.c.number == bindparam("of")
_MARK = Statement(
    update(job).where(_THIS, job.c.deleted_at.is_(None)).values(deleted_at=bindparam("now"))
)
_REMOVE = Statement(
    delete(job).where(
        _THIS,
        job.c.deleted_at.is_not(None),
        IS_FINAL,
    )
)


#: Jobs being deleted that will never end, because their rows are damaged.
_STUCK = Statement(
    select(job.c.number)
    .where(
        job.c.deleted_at.is_not(None),
        ~IS_FINAL,
        or_(job.c.status != str(Status.RUNNING), job.c.stop_requested.is_(None)),
    )
    .limit(bindparam("most"))
)
#: As hex of the bytes, because damaged texts may not be UTF-8.
_FACTS_OF_DAMAGED = Statement(
    select(
        func.hex(job.c.id), func.hex(job.c.status), func.hex(job.c.token), func.hex(job.c.cookie),
        func.hex(job.c.directory_id), func.hex(job.c.boot_id),
        case((func.typeof(job.c.grace_ms) == "integer", job.c.grace_ms), else_=0),
    ).where(_THIS)
)  # fmt: skip
_REMOVE_DAMAGED = Statement(
    delete(job).where(
        _THIS,
        func.hex(job.c.status) == bindparam("status_bytes"),
        func.hex(job.c.token) == bindparam("token_bytes"),
    )
)


class Damaged(NamedTuple):
    """
    The facts needed to remove a job whose row is damaged.

    Attributes:
        name, cookie, directory_id, boot_id: As in a `Run`, or empty. If damaged, they can be any
            text.
        status, token: The stored bytes, in hex.
        grace_ms: Of the job's command; 0 if it is damaged.
    """

    name: str
    status: str
    token: str
    cookie: str
    directory_id: str
    boot_id: str
    grace_ms: int


def stuck(connection: Connection, limit: int) -> list[int]:
    """Return the numbers of jobs being deleted that never end, because their rows are damaged."""
    return [number for (number,) in _STUCK(connection, most=limit)]


def find_damaged(connection: Connection, number: int) -> Damaged | None:
    """Return the readable facts of a job, whatever its columns contain; None: it is gone."""
    rows = _FACTS_OF_DAMAGED(connection, of=number)
    if not rows:
        return None
    name, status, token, cookie, directory_id, boot_id, grace_ms = rows[0]
    return Damaged(
        _text(name),
        status,
        token,
        _text(cookie),
        _text(directory_id),
        _text(boot_id),
        grace_ms or 0,
    )


def _text(stored: str) -> str:
    return bytes.fromhex(stored).decode(errors="replace")


def remove_damaged_if(connection: Connection, number: int, seen: Damaged) -> bool:
    """Remove a job whatever its status, unless status or token differ from `seen`."""
    return (
        _REMOVE_DAMAGED.count(
            connection, of=number, status_bytes=seen.status, token_bytes=seen.token
        )
        == 1
    )


def mark_job_deleted(connection: Connection, number: int, *, now: int) -> bool:
    """
    Begin the deletion of a job: hide it from every read, for good.

    While it is active, its pipeline can start no other job.

    Returns:
        False: the deletion has begun already.
    """
    return _MARK.count(connection, of=number, now=now) == 1


def remove_if_final(connection: Connection, number: int) -> bool:
    """Remove a job that is final and being deleted, with its log and history; False: it is not."""
    return _REMOVE.count(connection, of=number) == 1
