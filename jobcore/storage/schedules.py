"""The statements about schedules: find pipelines with a tick, take ticks, and record skips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    Connection,
    Integer,
    Row,
    String,
    and_,
    bindparam,
    false,
    func,
    insert,
    literal,
    not_,
    select,
    true,
    tuple_,
    type_coerce,
    update,
)

from jobcore.lifecycle import Status
from jobcore.storage.damage import Failed, leave_out, read_rows, rowid, unconverted
from jobcore.storage.statement import Statement
from jobcore.storage.tables import (
    IS_ACTIVE,
    IS_QUEUED,
    job,
    pipeline,
    skip,
)

T = TypeVar("T")


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
    select(job.c.number).where(job.c.pipeline_id == pipeline.c.id, IS_ACTIVE).exists(),
)


_SCHEDULED = (pipeline.c.next_tick.is_not(None), pipeline.c.deleted_at.is_(None))


_MAYBE_DUE = Statement(
    select(pipeline.c.next_tick)
    .where(*_SCHEDULED, pipeline.c.next_tick <= bindparam("now"))
    .limit(1)
)


def may_be_due(connection: Connection, now: int) -> bool:
    """Tell, by one step in an index, whether `scheduled_pipelines` may return any until `now`."""
    return bool(_MAYBE_DUE(connection, now=now))


def scheduled_pipelines(
    connection: Connection,
    *,
    after: Place,
    until: int | None,
    limit: int,
    skip: int = 0,
    failed: Failed = leave_out,
) -> Sequence[Row[Any]]:
    """
    Return the pipelines that have a next tick, ordered by it, without their commands.

    Args:
        after: The place of the last pipeline that the caller has seen.
        skip: Number of pipelines to skip after `after`: the unreadable ones, whose place is
            unknown.
        until: Only pipelines whose tick is due by then; None: all.
        limit: Maximum number of pipelines.
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
    return read_rows(connection, statement, rowid(pipeline), failed, unconverted)


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
        select(job.c.number, job.c.id, job.c.created, job.c.not_before)
        .where(
            IS_QUEUED,
            job.c.retry_of.is_not(None),
            job.c.not_before.is_not(None),
            tuple_(job.c.not_before, job.c.number) > tuple_(*after),
        )
        .order_by(job.c.not_before, job.c.number)
        .limit(limit)
    ).all()


def move_start_if_queued(connection: Connection, number: int, old: int, new: int) -> bool:
    """Move the start time of a QUEUED job from `old` to `new`; False: it has changed meanwhile."""
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


# --- skips ----------------------------------------------------------------


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
    Record a skipped run of a pipeline. If the newest record has the same cause, extend it.

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
    failed: Failed,
) -> list[T]:
    """Return the newest skips of a pipeline, newest first."""
    statement = (
        select(skip)
        .where(skip.c.pipeline_id == pipeline_id)
        .order_by(skip.c.id.desc())
        .limit(limit)
    )
    return read_rows(connection, statement, skip.c.id, failed, form)
