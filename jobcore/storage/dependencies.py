"""
The statements about jobs that start only after others.

Each row of `dependency` is open (`met` is NULL) until its upstream job has ended for good, and
`job.unmet` counts the open rows of a job. The transaction that settles an upstream job decides its
rows, up to a limit; see `settlement.decide`. If there are more, the upstream job is listed in
`undecided` with its outcome, and any manager decides the rest. So a crash between two steps
leaves nothing out.
"""

# ruff: noqa: S608 - the words in these statements are our own

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import (
    Connection,
    between,
    bindparam,
    delete,
    exists,
    insert,
    literal_column,
    null,
    select,
    update,
)

from jobcore.lifecycle import Reason, Status
from jobcore.storage.statement import Statement, driver_of
from jobcore.storage.tables import IS_ACTIVE, batch, dependency, job, undecided

#: How the upstream jobs of a job have to end, in the column `run_if`.
COMPLETE, ENDED, FAILED = "complete", "ended", "failed"
#: The outcomes of upstream jobs, in addition to COMPLETE and FAILED.
STOPPED, DELETED = "stopped", "deleted"


class Dependent(NamedTuple):
    """
    A dependency that is not decided yet.

    Attributes:
        number: The number of the job that waits.
        position: Which of its dependencies this is.
        run_if: How the upstream job has to end.
    """

    number: int
    position: int
    run_if: str | None


def outcome_of(status: str, reason: str | None, *, deleted: bool) -> str:
    """Return the outcome of a job that has ended for good."""
    if deleted:
        return DELETED
    if status == Status.COMPLETE:
        return COMPLETE
    if status == Status.ERROR or reason == Reason.TIMEOUT:
        return FAILED
    return STOPPED


def is_met(run_if: str | None, outcome: str) -> bool:
    """Tell whether an outcome is what a dependent job asks for."""
    if run_if == ENDED:
        return outcome != DELETED
    return outcome == (run_if or COMPLETE)


_ADD = Statement(
    insert(dependency).values(
        job=bindparam("of"), position=bindparam("at"), upstream_id=bindparam("upstream")
    )
)


def add(connection: Connection, number: int, upstreams: Sequence[UUID]) -> None:
    """Add open dependencies to a new job; its row counts them in `unmet`."""
    _ADD.many(
        connection,
        [{"of": number, "at": at, "upstream": one.hex} for at, one in enumerate(upstreams)],
    )


_UPSTREAM = Statement(
    select(job.c.number)
    .where(
        job.c.id.in_(select(dependency.c.upstream_id).where(dependency.c.job == bindparam("of")))
    )
    .order_by(job.c.number)
)


def upstream_of(connection: Connection, number: int) -> list[int]:
    """Return the numbers of the jobs that a job depends on, without deleted ones."""
    return [upstream for (upstream,) in _UPSTREAM(connection, of=number)]


# --- the retries of a job ----------------------------------------------------------

_NEXT = Statement(
    select(job.c.id)
    .where(job.c.retry_of == bindparam("of_id"))
    .order_by(job.c.number.desc())
    .limit(1)
)
_MOVE = Statement(
    update(dependency)
    .where(dependency.c.upstream_id == bindparam("old"), dependency.c.met.is_(None))
    .values(upstream_id=bindparam("new"))
)
_COPY = Statement(
    insert(dependency).from_select(
        ["job", "position", "upstream_id", "met"],
        select(
            literal_column(":new"),
            dependency.c.position,
            dependency.c.upstream_id,
            dependency.c.met,
        ).where(dependency.c.job == bindparam("old")),
    )
)


_UNMET = Statement(
    select(dependency.c.position, dependency.c.upstream_id).where(
        dependency.c.job == bindparam("of"), dependency.c.met.is_not(True)
    )
)
_REOPEN = Statement(
    update(dependency)
    .where(dependency.c.job == bindparam("of"), dependency.c.position == bindparam("at"))
    .values(upstream_id=bindparam("upstream"), met=null())
)
_COUNT = Statement(
    update(job).where(job.c.number == bindparam("of")).values(unmet=bindparam("count"))
)


def last_attempt(connection: Connection, job_id: UUID) -> UUID:
    """Return the last attempt of a job: the newest retry, or the newest retry of that."""
    name = job_id.hex
    while found := _NEXT(connection, of_id=name):  # numbers only grow, so this ends
        name = found[0][0]
    return UUID(hex=name)


def move(connection: Connection, old: UUID, new: UUID) -> None:
    """Let the jobs that wait for one job wait for another one, its next attempt."""
    _MOVE(connection, old=old.hex, new=new.hex)


def take_over(connection: Connection, old: int, new: int) -> bool:
    """
    Let the next attempt of a job depend on the same jobs: on their last attempts where the job's
    own dependencies were not met; the others stay met.

    Returns:
        Whether dependencies are open now, and may be decided.
    """
    if not _COPY.count(connection, old=old, new=new):
        return False
    asked_again = _UNMET(connection, of=new)
    for position, name in asked_again:
        upstream = last_attempt(connection, UUID(hex=name))
        _REOPEN(connection, of=new, at=position, upstream=upstream.hex)
    if asked_again:
        _COUNT(connection, of=new, count=len(asked_again))
    return bool(asked_again)


# --- deciding ----------------------------------------------------------------------

_IS_STAGED = exists().where(between(job.c.number, batch.c.first, batch.c.last)).correlate(job)
_OPEN = Statement(
    select(dependency.c.job, dependency.c.position, job.c.run_if)
    .join_from(dependency, job, job.c.number == dependency.c.job)
    .where(
        dependency.c.upstream_id == bindparam("upstream"),
        dependency.c.met.is_(None),
        ~_IS_STAGED,  # publishing the batch lists its ended upstream jobs as undecided
    )
    .limit(bindparam("most"))
)
_ANSWER = Statement(
    update(dependency)
    .where(dependency.c.job == bindparam("of"), dependency.c.position == bindparam("at"))
    .values(met=bindparam("as_asked"))
)
_COUNT_DOWN = Statement(
    update(job)
    .where(job.c.number == bindparam("of"), job.c.unmet > 0)
    .values(unmet=job.c.unmet - 1)
)


def open_of(connection: Connection, upstream: str, limit: int) -> list[Dependent]:
    """Return up to `limit` open dependencies on a job, given by its id in hex."""
    return [Dependent(*row) for row in _OPEN(connection, upstream=upstream, most=limit)]


def answer(connection: Connection, decided: Iterable[tuple[Dependent, bool]]) -> None:
    """Store whether these dependencies were met."""
    pairs = list(decided)
    _ANSWER.many(
        connection,
        [{"of": one.number, "at": one.position, "as_asked": met} for one, met in pairs],
    )
    _COUNT_DOWN.many(connection, [{"of": one.number} for one, _ in pairs])


_REMEMBER = Statement(
    insert(undecided)
    .prefix_with("OR REPLACE")
    .values(upstream_id=bindparam("upstream"), outcome=bindparam("ended"))
)
_LISTED = Statement(select(undecided.c.upstream_id, undecided.c.outcome).limit(bindparam("most")))
_FORGET = Statement(delete(undecided).where(undecided.c.upstream_id == bindparam("upstream")))


def remember(connection: Connection, upstream: str, outcome: str) -> None:
    """List a job that has ended, so that its open dependencies are decided later."""
    _REMEMBER(connection, upstream=upstream, ended=outcome)


def listed(connection: Connection, limit: int) -> list[tuple[str, str]]:
    """Return up to `limit` ended jobs with open dependencies: their ids in hex, and outcomes."""
    return [(upstream, outcome) for upstream, outcome in _LISTED(connection, most=limit)]


def forget(connection: Connection, upstreams: Iterable[str]) -> None:
    """Remove ended jobs from the list."""
    _FORGET.many(connection, [{"upstream": one} for one in upstreams])


_WAITING = (
    between(dependency.c.job, bindparam("first"), bindparam("last")),
    dependency.c.met.is_(None),
)
_MISSING = Statement(
    select(dependency.c.upstream_id)
    .where(*_WAITING, ~exists().where(job.c.id == dependency.c.upstream_id))
    .distinct()
)
_ENDED = Statement(
    select(job.c.id, job.c.status, job.c.reason, job.c.deleted_at)
    .where(job.c.id.in_(select(dependency.c.upstream_id).where(*_WAITING)), ~IS_ACTIVE)
    .order_by(job.c.number)
)
_DECIDED = Statement(
    select(dependency.c.job)
    .where(between(dependency.c.job, bindparam("first"), bindparam("last")))
    .where(dependency.c.met.is_not(None))
    .distinct()
)


def ended(connection: Connection, first: int, last: int) -> list[tuple[str, str]]:
    """
    Return the ended jobs that jobs with numbers from `first` to `last` wait for, with outcomes.

    A job that has been retried since it was named has not ended: those that wait for it wait for
    its last attempt from now on.
    """
    found = [(name, DELETED) for (name,) in _MISSING(connection, first=first, last=last)]
    for name, status, reason, deleted_at in _ENDED(connection, first=first, last=last):
        named = UUID(hex=name)
        newest = last_attempt(connection, named)
        if newest != named:
            move(connection, named, newest)
            found += _outcome(connection, newest.hex)
        else:
            found.append((name, outcome_of(status, reason, deleted=deleted_at is not None)))
    return found


_FACTS = Statement(
    select(job.c.id, job.c.status, job.c.reason, job.c.deleted_at).where(
        job.c.id == bindparam("of_id"), ~IS_ACTIVE
    )
)


def _outcome(connection: Connection, name: str) -> list[tuple[str, str]]:
    return [
        (found, outcome_of(status, reason, deleted=deleted_at is not None))
        for found, status, reason, deleted_at in _FACTS(connection, of_id=name)
    ]


def decided(connection: Connection, first: int, last: int) -> list[int]:
    """Return which jobs with numbers from `first` to `last` have a dependency that is decided."""
    return [number for (number,) in _DECIDED(connection, first=first, last=last)]


# --- for doctor --------------------------------------------------------------------

_IS_MISCOUNTED = (
    "unmet <> (SELECT count(*) FROM dependency WHERE dependency.job = job.number AND met IS NULL)"
)
_MISCOUNTED = f"SELECT id FROM job WHERE {_IS_MISCOUNTED}"
_COUNT_AGAIN = (
    "UPDATE job SET unmet = "
    "(SELECT count(*) FROM dependency WHERE dependency.job = job.number AND met IS NULL) "
    f"WHERE {_IS_MISCOUNTED}"
)
_FORGOTTEN = (
    "SELECT DISTINCT upstream_id FROM dependency WHERE met IS NULL "
    "AND upstream_id NOT IN (SELECT id FROM job WHERE status IN ('QUEUED', 'RUNNING')) "
    "AND upstream_id NOT IN (SELECT upstream_id FROM undecided)"
)


def miscounted(connection: sqlite3.Connection) -> list[str]:
    """Return the ids, in hex, of jobs whose `unmet` is not the number of their open rows."""
    return [str(name) for (name,) in connection.execute(_MISCOUNTED)]


def forgotten(connection: sqlite3.Connection) -> list[str]:
    """Return the ids, in hex, of ended jobs with open rows that nobody is going to decide."""
    return [str(name) for (name,) in connection.execute(_FORGOTTEN)]


def repair(connection: Connection) -> None:
    """Count the open rows of each job again, and list the ended jobs that were forgotten."""
    driver = driver_of(connection)
    driver.execute(_COUNT_AGAIN)
    for name in forgotten(driver):
        found = _outcome(connection, name)
        remember(connection, name, found[0][1] if found else DELETED)
