"""
The guarded statements that move a job from QUEUED to its final status.

The name of each write contains its guard (`..._if_...`), and guard and write are one
statement. Guards on the status come from `lifecycle`. A write returns the changed job.
None or False means that the guard did not match, because another process was faster;
then nothing was changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, bindparam, case, func, insert, null, or_, select, update

from jobcore import lifecycle
from jobcore.errors import DatabaseCorrupt
from jobcore.lifecycle import Ending, Reason, Status, Trigger
from jobcore.storage import damage
from jobcore.storage.damage import Failed
from jobcore.storage.statement import Statement
from jobcore.storage.tables import IS_FINAL, has_status, job, transition


class Run(NamedTuple):
    """
    The columns of a job that are needed while it runs.

    `name` is the id in hex, which is also the name of the job directory. `has_followups` is 1
    if its row says what follows from its end: it has a pipeline, retries or hooks; else 0.
    `calls_function` is 1 if the started command calls a function, else 0; None: an older jobcore
    started it.
    """

    number: int
    name: str
    type: str
    status: str
    token: str | None
    cookie: str | None
    boot_id: str | None
    grace_ms: int | None
    timeout_ms: int | None
    start_time: int | None
    calls_function: int | None
    directory_id: str | None
    stop_requested: int | None
    stop_grace_ms: int | None
    stop_who: str | None
    stop_why: str | None
    spool_offset: int
    next_sequence: int
    loose_sequence: int
    loose_bytes: int
    end_time: int | None
    deleted_at: int | None
    owner: str | None
    has_followups: int

    @property
    def id(self) -> UUID:
        """
        The job's id.

        Raises:
            DatabaseCorrupt: The stored id is not a UUID.
        """
        try:
            return UUID(hex=self.name)
        except (ValueError, AttributeError, TypeError) as error:
            raise DatabaseCorrupt("a stored job ID is not a valid UUID") from error

    @property
    def effective_grace_ms(self) -> int | None:
        """Milliseconds between SIGTERM and SIGKILL: of the stop request, or else the command's."""
        return self.grace_ms if self.stop_grace_ms is None else self.stop_grace_ms

    @property
    def unmerged(self) -> tuple[int, int]:
        """First sequence and raw bytes of the log segments that are not merged yet."""
        return self.loose_sequence, self.loose_bytes

    @property
    def final(self) -> bool:
        """Whether the job has ended, in a status that never changes."""
        return self.end_time is not None

    @property
    def supervised(self) -> bool:
        """Whether the job is RUNNING in a process. Without a token its host does it itself."""
        return self.status == Status.RUNNING and self.token is not None

    @property
    def owned(self) -> bool:
        """Whether the job depends on the process that owns it."""
        return self.owner is not None and not self.final


def is_sound(run: Run) -> bool:
    """Tell whether all columns of a job have the expected types."""
    return all(
        value is None or isinstance(value, str if field in _TEXTS else int)
        for field, value in run._asdict().items()
    )


_TEXTS = frozenset(
    ("name", "type", "status", "token", "cookie", "boot_id", "directory_id", "stop_who",
     "stop_why", "owner")
)  # fmt: skip


def name_of(run: Run) -> str:
    """Return the name of a job for the host's log: its ID, or its number if the ID is damaged."""
    try:
        return str(run.id)
    except DatabaseCorrupt:
        return f"number {run.number}"


#: The columns of a job whose end may have consequences, such as a retry.
FOLLOWED_UP = ("pipeline_id", "retries", "hooks")
# In RETURNING, SQLite 3.40 takes IS NOT NULL of a plain column for true, whatever it holds.
_HAS_FOLLOWUPS = func.coalesce(*(job.c[name] for name in FOLLOWED_UP)).is_not(None)
_DERIVED: dict[str, Any] = {
    "name": job.c.id,
    "has_followups": _HAS_FOLLOWUPS,
}
#: The columns from which a `Run` is read, in order.
COLUMNS = tuple(
    _DERIVED[name].label(name) if name in _DERIVED else job.c[name] for name in Run._fields
)


#: The environment that a job keeps when it leaves the queue: a retry or a hook needs it again.
_ENVIRONMENT_AFTERWARDS = case((_HAS_FOLLOWUPS, job.c.environment), else_=null())


_COUNTERS = ("spool_offset", "next_sequence", "loose_sequence", "loose_bytes")
_STATUSES = frozenset(str(status) for status in Status)


def _one(rows: list[Any]) -> Run | None:
    if not rows:
        return None
    run = Run._make(rows[0])
    if run.status not in _STATUSES:
        # An error, because no transition leaves an unknown status: a waiter would never return.
        raise _unreadable(run, "status is unknown")
    require_one_host(run)
    require_counters(run)
    return run


def require_counters(run: Run) -> None:
    """Raise `DatabaseCorrupt` unless offset and line counters are integers and not negative."""
    for column in _COUNTERS:
        count = getattr(run, column)
        if not isinstance(count, int) or count < 0:
            raise _unreadable(run, f"{column} is not a valid count")


def require_one_host(run: Run) -> None:
    """Raise `DatabaseCorrupt` if a job has both an owner and the token of a supervisor's run."""
    if run.owned and run.token is not None:
        # It would look like a job that a supervisor runs in another directory.
        raise _unreadable(run, "owner or token is not valid: one of them has to be NULL")


def _unreadable(run: Run, why: str) -> DatabaseCorrupt:
    return DatabaseCorrupt(
        f"job {name_of(run)} cannot be read: {why}; {damage.REMEDY}, or delete the job"
    )


def _allows(trigger: Trigger) -> Any:
    """Return the condition that the job's status allows `trigger`."""
    return or_(*(job.c.status == str(status) for status in lifecycle.sources(trigger)))


_THIS = job.c.number == bindparam("of")

#: The key that a job holds when it is final: its own until `unique_until`, then none.
HELD_AFTER_END = case((job.c.unique_until > bindparam("now"), job.c.held_key), else_=null())


# --- history --------------------------------------------------------------------

_RECORD = Statement(
    insert(transition).values(
        {
            **{
                column.name: bindparam(column.name)
                for column in transition.c
                if column.name not in ("id", "pipeline_id")
            },
            "pipeline_id": select(job.c.pipeline_id)
            .where(job.c.number == bindparam("job"))
            .scalar_subquery(),
        }
    )
)


def actor() -> str:
    """Return the name under which this process writes history."""
    return f"pid {os.getpid()}"


def record(
    connection: Connection,
    number: int,
    *,
    now: int,
    trigger: Trigger,
    source: Status | None,
    target: str,
    reason: Reason | None = None,
) -> None:
    """Append to the history of a job."""
    _RECORD(
        connection,
        job=number,
        at=now,
        trigger=str(trigger),
        from_status=None if source is None else str(source),
        to_status=str(target),
        reason=None if reason is None else str(reason),
        actor=actor(),
    )


def _record(
    connection: Connection,
    run: Run,
    trigger: Trigger,
    source: Status,
    now: int,
    reason: Reason | None = None,
) -> None:
    """Record that `trigger` has moved a job from `source` to its present status."""
    moved: dict[str, Any] = {"trigger": trigger, "source": source, "target": run.status}
    record(connection, run.number, now=now, reason=reason, **moved)


# --- reading --------------------------------------------------------------------

_FIND = Statement(select(*COLUMNS).where(_THIS))
_IS_SUPERVISED = (has_status(Status.RUNNING), job.c.token.is_not(None))
_IS_OWNED = (job.c.owner.is_not(None),)
_SUPERVISED, _OWNED = (
    (Statement(select(*COLUMNS).where(*which)), Statement(select(job.c.number).where(*which)))
    for which in (_IS_SUPERVISED, _IS_OWNED)
)
_NAMES = Statement(select(job.c.token, job.c.id, job.c.cookie).where(*_IS_SUPERVISED))
_DELETED = Statement(
    select(job.c.number)
    .where(job.c.deleted_at.is_not(None), IS_FINAL)
    .order_by(job.c.number)
    .limit(bindparam("most"))
)


def find(connection: Connection, number: int) -> Run | None:
    """Return the job with this number, even if it is being deleted; None: there is none."""
    return _one(_FIND(connection, of=number))


def supervised(connection: Connection, failed: Failed = damage.leave_out) -> list[Run]:
    """Return the RUNNING jobs that have a process, of all hosts."""
    return _readable(connection, *_SUPERVISED, failed)


def supervised_names(connection: Connection) -> dict[str, tuple[str, str]]:
    """Return directory name and cookie, by token, of each RUNNING job with a process."""
    return {token: (name, cookie) for token, name, cookie in _NAMES(connection)}


def deleted_final(connection: Connection, limit: int) -> list[int]:
    """Return the numbers of up to `limit` final jobs whose deletion is not finished."""
    return [number for (number,) in _DELETED(connection, most=limit)]


def _readable(
    connection: Connection,
    rows: Statement,
    numbers: Statement,
    failed: Failed,
) -> list[Run]:
    found = damage.readable(
        lambda: rows(connection),
        lambda: [number for (number,) in numbers(connection)],
        lambda number: _FIND(connection, of=number),
        failed,
    )
    return [Run._make(row) for row in found]


def owned(connection: Connection, failed: Failed = damage.leave_out) -> list[Run]:
    """Return the QUEUED and RUNNING jobs that depend on the process that owns them."""
    return _readable(connection, *_OWNED, failed)


# --- QUEUED to RUNNING ------------------------------------------------------------

_START_JOB = (
    update(job)
    .where(
        _THIS,
        _allows(Trigger.START),
        job.c.deleted_at.is_(None),
        job.c.unmet == 0,
        or_(job.c.owner.is_(None), job.c.owner == bindparam("claimant")),
        or_(job.c.expires.is_(None), job.c.expires > bindparam("now")),
    )
    .values(
        status=str(Status.RUNNING),
        # Never before the creation, even if the clock was set back.
        start_time=func.max(job.c.created, bindparam("now")),
        token=bindparam("run_token"),
        cookie=bindparam("run_cookie"),
        boot_id=bindparam("this_boot"),
        grace_ms=bindparam("own_grace_ms"),
        timeout_ms=bindparam("own_timeout_ms"),
        calls_function=bindparam("is_call"),
        owner=bindparam("new_owner"),
        environment=_ENVIRONMENT_AFTERWARDS,
        directory_id=bindparam("own_directory_id"),
    )
    .returning(*COLUMNS)
)
_START = Statement(_START_JOB)
# The job may have been changed since it was read from the queue.
_START_FROM_QUEUE = Statement(
    _START_JOB.where(
        or_(job.c.not_before.is_(None), job.c.not_before <= bindparam("now")),
        job.c.command.is_not_distinct_from(bindparam("command_read")),
        job.c.parameters.is_not_distinct_from(bindparam("parameters_read")),
    )
)


def start_if_queued(
    connection: Connection,
    number: int,
    *,
    now: int,
    token: str | None = None,
    cookie: str | None = None,
    boot_id: str | None = None,
    grace_ms: int | None = None,
    timeout_ms: int | None = None,
    calls_function: bool | None = None,
    claimant: str | None = None,
    owner: str | None = None,
    directory_id: str | None = None,
    from_queue: tuple[str | None, str | None] | None = None,
) -> Run | None:
    """
    Claim a job that is QUEUED and not being deleted, waits for no other job, and is not reserved
    by another owner.

    Args:
        now: Microseconds since 1970.
        token: Identifies the run, which has a process. None: the host does the job itself.
        claimant: The owner whose reserved jobs may be claimed.
        owner: The process that does a job without a token; None: no particular process.
        from_queue: Command and parameters as they were read from the queue. The job must be due,
            and still have them. None: these and its time do not matter.

    Returns:
        The job, RUNNING; None: the guard did not match.
    """
    read = {}
    if from_queue is not None:
        read["command_read"], read["parameters_read"] = from_queue
    run = _one(
        (_START if from_queue is None else _START_FROM_QUEUE)(
            connection,
            of=number,
            now=now,
            run_token=token,
            run_cookie=cookie,
            this_boot=boot_id,
            own_grace_ms=grace_ms,
            own_timeout_ms=timeout_ms,
            is_call=calls_function,
            claimant=claimant,
            new_owner=owner,
            own_directory_id=directory_id,
            **read,
        )
    )
    if run is not None:
        _record(connection, run, Trigger.START, Status.QUEUED, now)
    return run


# --- QUEUED to STOPPED ------------------------------------------------------------

_IS_EXPIRED = Statement(
    select(job.c.number).where(_THIS, has_status(Status.QUEUED), job.c.expires <= bindparam("now"))
)


def is_expired(connection: Connection, number: int, *, now: int) -> bool:
    """Tell whether a job is QUEUED and its time is over, so that it never starts."""
    return bool(_IS_EXPIRED(connection, of=number, now=now))


_CANCEL = Statement(
    update(job)
    .where(_THIS, _allows(Trigger.CANCEL))
    .values(
        status=str(Status.STOPPED),
        reason=bindparam("why"),
        end_time=func.max(job.c.created, bindparam("now")),
        owner=null(),
        environment=_ENVIRONMENT_AFTERWARDS,
        held_key=HELD_AFTER_END,
    )
    .returning(*COLUMNS)
)


def cancel_if_queued(
    connection: Connection, number: int, *, now: int, reason: Reason = Reason.CANCELLED
) -> Run | None:
    """
    Remove a QUEUED job from the queue; None: it is not QUEUED.

    Args:
        reason: One of `lifecycle.UNSTARTED`.
    """
    run = _one(_CANCEL(connection, of=number, now=now, why=str(reason)))
    if run is not None:
        _record(connection, run, Trigger.CANCEL, Status.QUEUED, now, reason)
    return run


# --- asking RUNNING to stop -------------------------------------------------------

_ASK_STOP = Statement(
    update(job)
    .where(_THIS, _allows(Trigger.STOP))
    .values(
        # The first stop request determines time, who and why.
        stop_requested=func.coalesce(job.c.stop_requested, bindparam("now")),
        stop_who=func.coalesce(job.c.stop_who, bindparam("who")),
        stop_why=func.coalesce(job.c.stop_why, bindparam("why")),
        # The first stop request sets the grace, None: the command's own. Later ones can only
        # shorten it.
        stop_grace_ms=case(
            (job.c.stop_requested.is_(None), bindparam("asked_ms")),
            else_=func.min(
                func.coalesce(job.c.stop_grace_ms, job.c.grace_ms),
                func.coalesce(bindparam("asked_ms"), job.c.stop_grace_ms, job.c.grace_ms),
            ),
        ),
    )
    .returning(*COLUMNS)
)


def ask_stop_if_running(
    connection: Connection, number: int, *, grace_ms: int | None, why: str, now: int
) -> Run | None:
    """
    Store a stop request for a RUNNING job; None: it is not RUNNING.

    Args:
        grace_ms: Milliseconds between SIGTERM and SIGKILL; None: the command's own grace.
    """
    before = find(connection, number)
    run = _one(_ASK_STOP(connection, of=number, asked_ms=grace_ms, who=actor(), why=why, now=now))
    if run is not None and before is not None and _asks_more(before, run):
        _record(connection, run, Trigger.STOP, Status.RUNNING, now)
    return run


def _asks_more(before: Run, after: Run) -> bool:
    return before.stop_requested is None or before.effective_grace_ms != after.effective_grace_ms


# --- log lines --------------------------------------------------------------------


class Report(NamedTuple):
    """
    A progress report of a job.

    `at` is in microseconds since 1970. Each field is stored in the column `progress_<field>`.
    """

    done: float
    total: float | None
    message: str | None
    at: int


_REPORTED: dict[str, Any] = {
    f"progress_{name}": bindparam(f"new_{name}") for name in Report._fields
}


def _reported(report: Report) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in report._asdict().items()}


_MOVE_ON = (
    update(job)
    .where(
        _THIS,
        job.c.token == bindparam("run_token"),
        job.c.status == str(Status.RUNNING),
        job.c.spool_offset == bindparam("old_offset"),
    )
    .values(
        spool_offset=bindparam("new_offset"),
        next_sequence=bindparam("new_sequence"),
        loose_sequence=bindparam("new_loose_sequence"),
        loose_bytes=bindparam("new_loose_bytes"),
    )
)
_ADVANCE = Statement(_MOVE_ON)
# One statement for both, so that a stale importer cannot write an old report.
_ADVANCE_AND_REPORT = Statement(_MOVE_ON.values(**_REPORTED))


def advance_if_at(
    connection: Connection,
    run: Run,
    *,
    offset: int,
    next_sequence: int,
    unmerged: tuple[int, int],
    report: Report | None = None,
) -> bool:
    """
    Move the import position of a job on, if it still is where `run` says.

    Args:
        unmerged: First sequence and raw bytes of the segments that are not merged yet.
        report: The last progress report in the imported part; None: there is none.

    Returns:
        False: another process has moved the position, or the job is not RUNNING in this run.
    """
    statement = _ADVANCE if report is None else _ADVANCE_AND_REPORT
    return (
        statement.count(
            connection,
            of=run.number,
            run_token=run.token,
            old_offset=run.spool_offset,
            new_offset=offset,
            new_sequence=next_sequence,
            new_loose_sequence=unmerged[0],
            new_loose_bytes=unmerged[1],
            **({} if report is None else _reported(report)),
        )
        == 1
    )


_OWN = (_THIS, job.c.token.is_(None), job.c.status == str(Status.RUNNING))
_COUNT = Statement(
    update(job)
    .where(*_OWN, job.c.next_sequence == bindparam("old_sequence"))
    .values(
        next_sequence=bindparam("new_sequence"),
        loose_sequence=bindparam("new_loose_sequence"),
        loose_bytes=bindparam("new_loose_bytes"),
    )
)
_REPORT = Statement(update(job).where(*_OWN).values(**_REPORTED))


def count_lines_if_own(
    connection: Connection, run: Run, *, next_sequence: int, unmerged: tuple[int, int]
) -> bool:
    """Move on the line counters of a RUNNING job without a process, whose host appends lines."""
    return (
        _COUNT.count(
            connection,
            of=run.number,
            old_sequence=run.next_sequence,
            new_sequence=next_sequence,
            new_loose_sequence=unmerged[0],
            new_loose_bytes=unmerged[1],
        )
        == 1
    )


_CHANGE_OWNER = Statement(update(job).where(*_OWN).values(owner=bindparam("new_owner")))


def change_owner(connection: Connection, number: int, owner: str) -> None:
    """Make `owner` the process that does a RUNNING job without a supervisor."""
    _CHANGE_OWNER(connection, of=number, new_owner=owner)


def report_if_own(connection: Connection, number: int, report: Report) -> bool:
    """Store the progress report of a host about a RUNNING job without a process."""
    return _REPORT.count(connection, of=number, **_reported(report)) == 1


# --- RUNNING to final -------------------------------------------------------------

_FACTS = (
    "exit_code", "signal", "wait_status", "errno", "cpu_us", "max_rss", "dropped", "unreaped",
    "left_processes",
)  # fmt: skip
_SETTLE = Statement(
    update(job)
    .where(
        _THIS,
        # IS instead of =, because a job without a process has a NULL token.
        job.c.token.is_not_distinct_from(bindparam("run_token")),
        _allows(Trigger.FINISH),
        job.c.spool_offset == bindparam("at_offset"),
    )
    .values(
        status=bindparam("new_status"),
        reason=bindparam("new_reason"),
        end_time=func.max(job.c.start_time, bindparam("ended")),
        owner=null(),
        held_key=HELD_AFTER_END,
        **{name: bindparam(f"new_{name}") for name in _FACTS},
    )
    .returning(*COLUMNS)
)


def settle_if_running(
    connection: Connection,
    run: Run,
    *,
    offset: int,
    ending: Ending,
    now: int,
    ended: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Run | None:
    """
    Settle a RUNNING job, if its log is imported up to `offset`.

    Args:
        ending: How the job ended; it determines the final status.
        ended: When it ended, in microseconds since 1970; None: now. The stored end is never
            before the start.
        facts: Further columns from the exit record.

    Returns:
        The job in its final status; None: the guard did not match.
    """
    known: dict[str, Any] = {"dropped": 0, **(facts or {})}
    known.update(exit_code=ending.exit_code, signal=ending.signal, wait_status=ending.wait_status)
    status = ending.status
    final = _one(
        _SETTLE(
            connection,
            of=run.number,
            run_token=run.token,
            at_offset=offset,
            new_status=str(status),
            new_reason=str(ending.reason),
            ended=now if ended is None else ended,
            now=now,
            **{f"new_{name}": known.get(name) for name in _FACTS},
        )
    )
    if final is not None:
        _record(connection, final, Trigger.FINISH, Status.RUNNING, now, ending.reason)
    return final


# --- processes left behind --------------------------------------------------------

_LEFT = Statement(
    select(job.c.cookie).where(
        job.c.id == bindparam("of_id"),
        job.c.boot_id == bindparam("this_boot"),
        job.c.unreaped.is_not(None),
        job.c.unreaped_ignored.is_(None),
    )
)
_IGNORE_LEFT = Statement(
    update(job)
    .where(job.c.unreaped.is_not(None), job.c.unreaped_ignored.is_(None))
    .values(unreaped_ignored=True)
)


def cookie_of_left(connection: Connection, job_id: UUID, boot_id: str | None) -> str | None:
    """Return the cookie of a job whose remaining processes must end before a retry, or None."""
    rows = _LEFT(connection, of_id=job_id.hex, this_boot=boot_id)
    return rows[0][0] if rows else None


def ignore_left(connection: Connection) -> int:
    """Allow retries while processes of earlier attempts still run; return how many jobs changed."""
    return _IGNORE_LEFT.count(connection)
