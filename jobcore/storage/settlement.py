"""
Settles jobs: writes the final status and everything that follows from it, in one transaction.

A retry, the jobs of triggered pipelines and the status of a configured pipeline are rows.
They are written in the transaction that writes the verdict. So they happen whichever
process settles the job, and they are rolled back with the verdict.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from jobcore import hooks, lifecycle, retries
from jobcore.embedding import telemetry
from jobcore.errors import (
    ArgumentError,
    CommandError,
    DatabaseCorrupt,
    DuplicateKey,
    PipelineAlreadyRunning,
)
from jobcore.lifecycle import Ending, JobType, Reason, Status
from jobcore.retries import Retries
from jobcore.storage import (
    dependencies,
    environments,
    job_rows,
    log_segments,
    pipelines,
    schedules,
    transitions,
)
from jobcore.storage.statement import Statement
from jobcore.storage.tables import dependency, job, pipeline, result
from jobcore.storage.transitions import Run
from jobcore.supervisor import frames

#: The most dependencies that one transaction decides; a job that it cancels counts as several.
#: This takes up to about 20 ms.
DECIDED_AT_ONCE = 1000
CANCELLED_COUNTS = 8
#: The most ended jobs that it takes from the list of those with open dependencies.
LISTED_AT_ONCE = 100


def settle(
    connection: Connection,
    run: Run,
    *,
    offset: int,
    ending: Ending,
    now: int,
    ended: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Run | None:
    """Settle a job as `transitions.settle_if_running` does, then write its consequences."""
    final = transitions.settle_if_running(
        connection, run, offset=offset, ending=ending, now=now, ended=ended, facts=facts
    )
    if final is not None:
        _follow_up(connection, final, ending.reason, now)
        if _release_environment(connection, final):
            environments.remove_unused(connection)
    return final


def settle_own(connection: Connection, run: Run, ending: Ending, *, now: int) -> Run | None:
    """Settle a job without a process, whose log its host wrote."""
    final = settle(connection, run, offset=0, ending=ending, now=now)
    if final is not None:
        log_segments.merge(connection, run.number, run.loose_sequence)
    return final


def cancel_if_expired(connection: Connection, number: int, *, now: int) -> Run | None:
    """Cancel a QUEUED job whose `expires` is over; None: it is not, or has been changed."""
    if not transitions.is_expired(connection, number, now=now):
        return None
    return cancel(connection, number, now=now, reason=Reason.EXPIRED)


def cancel(
    connection: Connection, number: int, *, now: int, reason: Reason = Reason.CANCELLED
) -> Run | None:
    """Cancel a job as `transitions.cancel_if_queued` does, then write its consequences."""
    final = transitions.cancel_if_queued(connection, number, now=now, reason=reason)
    if final is not None:
        _follow_up(connection, final, reason, now)
        _release_environment(connection, final)
        environments.remove_unused(connection)
    return final


def _release_environment(connection: Connection, final: Run) -> bool:
    """Drop an ended job's environment, which its retry and its hooks have by now."""
    return bool(final.has_followups) and environments.release(connection, final.number)


def end_abandoned(connection: Connection, run: Run, *, now: int) -> Run | None:
    """
    End a job whose owner is dead: cancel a QUEUED job, settle a RUNNING one as lost.

    Returns:
        The job as it is afterwards; unchanged if it has another owner now. None: it is gone.
    """
    current = transitions.find(connection, run.number)
    if current is None or not current.owned or current.owner != run.owner:
        return current
    if current.status == Status.QUEUED:
        return cancel(connection, current.number, now=now)
    line = b"lost: the process that did this task ended without finishing it\n"
    current = log_segments.append_task_lines(
        connection, current, [line], now=now, stream=frames.SYSTEM
    )
    ending = Ending(Reason.LOST, stop_requested=current.stop_requested is not None)
    return settle_own(connection, current, ending, now=now)


def _follow_up(connection: Connection, final: Run, reason: Reason, now: int) -> None:
    """Write what follows from the end of a job: a retry, or else everything that waits for it."""
    if not (final.has_followups and _follow_row(connection, final, now)):
        decide(connection, [_outcome(final, reason)], now=now)


def _follow_row(connection: Connection, final: Run, now: int) -> bool:
    """Write what the row of an ended job and its pipeline ask for; tell whether it is retried."""
    row = job_rows.get_job(connection, final.number)
    if row is None:
        return False
    pipeline = None
    if row.pipeline_id is not None:
        pipeline = pipelines.find_followups(connection, row.pipeline_id)
        if pipeline is None:
            return False  # it is being deleted
    if pipeline is not None and row.type == JobType.PIPELINE_CONFIG:
        status = lifecycle.configured_as(Status(row.status))
        pipelines.set_pipeline_status(connection, pipeline.id, status, now=now)
    if row.deleted_at is not None:
        return False
    if row.type not in _LAST:
        policy = _retries_of(row, pipeline)
        if policy is not None and _is_retried(row, policy) and _retry(connection, row, policy, now):
            return True
        if pipeline is not None and row.status == Status.COMPLETE:
            _trigger(connection, pipeline.id, now)
    _queue_hooks(connection, row, pipeline, now)
    return False


#: A hook runs at least once: one that was lost, as in a power failure, runs again.
_HOOK_RETRIES = retries.Retries(3, on=("lost",)).to_json()


def _queue_hooks(
    connection: Connection, row: Row[Any], pipeline: Row[Any] | None, now: int
) -> None:
    """Queue the hooks of a job that has ended for good, and those of its pipeline."""
    facts = {
        "JOB_ID": row.id,
        "NAME": row.name,
        "STATUS": row.status,
        "REASON": row.reason,
        "EXIT_CODE": row.exit_code,
        "SIGNAL": row.signal,
        "PIPELINE": None if pipeline is None else pipeline.name,
    }
    of_pipeline = None if pipeline is None or row.type in _LAST else pipeline.hooks
    for stored in (row.hooks, of_pipeline):
        try:
            commands = hooks.commands_after(stored, Status(row.status), facts)
        except (DatabaseCorrupt, CommandError) as error:
            # The job has still ended.
            telemetry.event(logging.ERROR, "hooks not created", job=str(row.id), error=str(error))
            continue
        for command in commands:
            job_rows.insert_job(
                connection,
                now=now,
                workspace_id=row.workspace_id,
                type=JobType.COMMAND,
                name=f"on_{row.status.lower()}",
                command=command.to_json(),
                hook_of=row.id,
                # With the environment that the job had, if it is still stored.
                env_from=None if row.environment is None else row.env_from,
                environment=row.environment,
                retries=_HOOK_RETRIES,
            )


def _outcome(final: Run, reason: Reason) -> tuple[str, str]:
    deleted = final.deleted_at is not None
    return final.name, dependencies.outcome_of(final.status, reason, deleted=deleted)


def decide(connection: Connection, ended: Iterable[tuple[str, str]], *, now: int) -> None:
    """
    Decide what happens to the jobs that wait for jobs which have ended for good.

    A job whose last dependency is met may start. One whose dependency is not met is cancelled
    with the reason `upstream`, and so are those that wait for it. At most `DECIDED_AT_ONCE`
    dependencies are decided. The rest is listed, and decided by `decide_listed` in transactions of
    their own, so that others can write in between.

    Args:
        ended: The ids, in hex, and outcomes of the ended jobs.
    """
    todo, left, is_cancelled = deque(ended), DECIDED_AT_ONCE, False
    while todo:
        upstream, outcome = todo.popleft()
        answers = []
        for one in dependencies.open_of(connection, upstream, max(left, 0) + 1):
            if left <= 0:
                dependencies.remember(connection, upstream, outcome)
                break
            left -= 1
            met = dependencies.is_met(one.run_if, outcome)
            answers.append((one, met))
            cancelled = None if met else _cancel_dependent(connection, one.number, now)
            if cancelled is not None:
                is_cancelled = True
                left -= CANCELLED_COUNTS
                if not (cancelled.has_followups and _follow_row(connection, cancelled, now)):
                    todo.append(_outcome(cancelled, Reason.UPSTREAM))
                _release_environment(connection, cancelled)
        if answers:
            dependencies.answer(connection, answers)
    if is_cancelled:
        environments.remove_unused(connection)


def _cancel_dependent(connection: Connection, number: int, now: int) -> Run | None:
    try:
        return transitions.cancel_if_queued(connection, number, now=now, reason=Reason.UPSTREAM)
    except DatabaseCorrupt as error:
        # Its row is damaged. That must not keep the job that it waited for from ending.
        telemetry.event(
            logging.ERROR, "dependent not cancelled", job=f"number {number}", error=str(error)
        )
        return None


def decide_new(
    connection: Connection, first: int, last: int, *, now: int
) -> dict[int, dict[str, Any]]:
    """
    Decide the dependencies of new jobs on jobs that have ended already.

    Args:
        first, last: The smallest and the largest number of the new jobs.

    Returns:
        The rows of the jobs that this has changed, by their numbers.
    """
    decide(connection, dependencies.ended(connection, first, last), now=now)
    rows = [
        job_rows.get_job(connection, number)
        for number in dependencies.decided(connection, first, last)
    ]
    return {row.number: dict(row._mapping) for row in rows if row is not None}  # noqa: SLF001 - SQLAlchemy's public name for it


def decide_listed(connection: Connection, *, now: int) -> bool:
    """Decide some of the dependencies that are left; tell whether there are more."""
    listed = dependencies.listed(connection, LISTED_AT_ONCE)
    if not listed:
        return False
    dependencies.forget(connection, [upstream for upstream, _ in listed])
    decide(connection, listed, now=now)
    return bool(dependencies.listed(connection, 1))


#: Jobs of these types are not retried, and trigger nothing.
_LAST = frozenset({JobType.PIPELINE_CONFIG, JobType.PIPELINE_VERIFY})


def _is_retried(row: Row[Any], policy: Retries) -> bool:
    return retries.allows(
        policy,
        Status(row.status),
        Reason(row.reason),
        attempt=row.attempt,
        stop_requested=row.stop_requested is not None,
    )


def _retries_of(row: Row[Any], pipeline: Row[Any] | None) -> Retries | None:
    """Return the retries of a job: its own, or else those of its pipeline as it is now."""
    try:
        if row.retries is not None:
            return Retries.from_json(row.retries)
        if pipeline is None:
            return None
        if pipeline.retries is not None:
            return Retries.from_json(pipeline.retries)
        return Retries(pipeline.max_retries)
    except (DatabaseCorrupt, ArgumentError) as error:
        # The job has still ended, and nobody may have to wait for its end.
        telemetry.event(logging.ERROR, "retry not created", job=str(row.id), error=str(error))
        return None


def _trigger(connection: Connection, source_id: UUID, now: int) -> None:
    """
    Queue a job of each pipeline that runs after this one, or after a set that this completes.

    Damaged pipelines are logged and skipped.
    """

    def failed(rowid: int, error: Exception) -> None:
        _log_damaged(f"row {rowid}", error)

    after = [
        *pipelines.pipelines_triggered_by(connection, source_id, failed),
        *pipelines.pipelines_completed_by(connection, source_id, now, failed),
    ]
    for triggered in {one.id: one for one in after}.values():
        try:
            run_now(connection, triggered.id, triggered.workspace_id, now, why="triggered")
        except DatabaseCorrupt as error:
            _log_damaged(str(triggered.id), error)


def _log_damaged(pipeline: str, error: Exception) -> None:
    telemetry.event(logging.ERROR, "pipeline not triggered", pipeline=pipeline, error=str(error))


def _retry(connection: Connection, row: Row[Any], policy: Retries, now: int) -> bool:
    """
    Queue the next attempt; while it waits for its time, its pipeline starts no other job.

    Returns:
        False: the pipeline has another active job, so there is no retry.
    """
    delay = retries.delay_after(policy, row.attempt, row.id)
    try:
        made = take_over(connection, row, now=now, not_before=now + round(delay * 1e6))
    except (PipelineAlreadyRunning, DuplicateKey):
        telemetry.event(logging.WARNING, "retry not created", job=str(row.id))
        return False
    dependencies.move(connection, row.id, made["id"])
    return True


def take_over(connection: Connection, row: Row[Any], *, now: int, **changes: Any) -> dict[str, Any]:
    """
    Create the next attempt of a job that has ended; it takes over what the job holds.

    Dependencies that were met stay met. For others, it waits for the last attempts of the same
    jobs.

    Args:
        changes: Columns of the new job that differ from the old one's.

    Returns:
        All columns of the new job.

    Raises:
        PipelineAlreadyRunning: Its pipeline has a QUEUED or RUNNING job. Nothing was created.
        DuplicateKey: Another job holds its key. Likewise.
    """
    made = job_rows.insert_job(
        connection,
        now=now,
        workspace_id=row.workspace_id,
        pipeline_id=row.pipeline_id,
        **{**job_rows.next_attempt(row), **changes},
    )
    if dependencies.take_over(connection, row.number, made["number"]):
        number = made["number"]
        decide(connection, dependencies.ended(connection, number, number), now=now)
        changed = job_rows.get_job(connection, number)
        assert changed is not None  # noqa: S101 - this transaction has made it
        made = dict(changed._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    return made


def run_now(
    connection: Connection,
    pipeline_id: UUID,
    workspace_id: UUID,
    now: int,
    *,
    why: str,
    due: int | None = None,
) -> None:
    """
    Queue a job of the pipeline; if it has an active job already, record a skip.

    Args:
        why: The cause of the run: `schedule` or `triggered`.
        due: When the run was due, in microseconds since 1970; None: now.
    """
    try:
        job_rows.insert_job(
            connection,
            now=now,
            workspace_id=workspace_id,
            pipeline_id=pipeline_id,
            type=JobType.PIPELINE_RUN,
        )
    except PipelineAlreadyRunning as conflict:
        schedules.record_skip(
            connection,
            pipeline_id,
            due=now if due is None else due,
            now=now,
            why=why,
            job_id=conflict.job_id,
        )


_STORE_RESULT = Statement(
    insert(result).values({column.name: bindparam(f"new_{column.name}") for column in result.c})
)
_FIND_RESULT = Statement(
    select(result.c.encoding, result.c.data).where(result.c.job == bindparam("of"))
)


def store_result(connection: Connection, number: int, encoding: str, data: bytes) -> None:
    """Store a job's return value. The caller has settled the job in the same transaction."""
    _STORE_RESULT(connection, new_job=number, new_encoding=encoding, new_data=data)


def find_result(connection: Connection, number: int) -> tuple[str, bytes] | None:
    """Return the encoding and the bytes of a job's return value; None: it has none."""
    found = _FIND_RESULT(connection, of=number)
    return (found[0][0], bytes(found[0][1])) if found else None


# --- what jobs hand on --------------------------------------------------------------

#: The encoding of values that are handed on. Unpickling could run any code.
JSON = "json"

_UPSTREAM = Statement(
    select(dependency.c.upstream_id, result.c.data)
    .join_from(dependency, job, job.c.id == dependency.c.upstream_id, isouter=True)
    .join(result, (result.c.job == job.c.number) & (result.c.encoding == JSON), isouter=True)
    .where(dependency.c.job == bindparam("of"))
    .order_by(dependency.c.position)
)


def results_for(connection: Connection, number: int) -> dict[UUID, bytes | None]:
    """Return the results, in JSON, of the jobs that a job depends on; None: there is none."""
    rows = _UPSTREAM(connection, of=number)
    return {UUID(hex=one): None if data is None else bytes(data) for one, data in rows}


_STATE = Statement(select(pipeline.c.state).where(pipeline.c.id == bindparam("of_id")))
_STORE_STATE = Statement(
    update(pipeline)
    .where(
        pipeline.c.id
        == select(job.c.pipeline_id).where(job.c.number == bindparam("of")).scalar_subquery()
    )
    .values(state=bindparam("new_state"))
)
_SET_STATE = Statement(
    update(pipeline).where(pipeline.c.id == bindparam("of_id")).values(state=bindparam("new_state"))
)


def state_of(connection: Connection, pipeline_id: UUID) -> str | None:
    """Return what the last run of a pipeline handed to the next one, as JSON; None: nothing."""
    rows = _STATE(connection, of_id=pipeline_id.hex)
    return rows[0][0] if rows else None


def store_state(connection: Connection, number: int, state: str) -> None:
    """Store the state that a job hands to the next run of its pipeline, if it has one."""
    _STORE_STATE(connection, of=number, new_state=state)


def set_state(connection: Connection, pipeline_id: UUID, state: str | None) -> None:
    """Set the state with which the next run of a pipeline begins."""
    _SET_STATE(connection, of_id=pipeline_id.hex, new_state=state)
