"""The statements that create, find, list and count jobs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    text,
    true,
    union_all,
    update,
)

from jobcore import lifecycle
from jobcore.errors import DatabaseCorrupt, DuplicateKey, PipelineAlreadyRunning
from jobcore.lifecycle import Reason, Status, Trigger
from jobcore.storage import transitions
from jobcore.storage.damage import (
    Failed,
    leave_out,
    read_each,
    read_rows,
    unconverted,
)
from jobcore.storage.history import Entry
from jobcore.storage.statement import RowStatement, Statement, read_json, write_json
from jobcore.storage.tables import (
    IS_ACTIVE,
    IS_VISIBLE,
    SHOWN,
    JobRow,
    has_status,
    job,
    pipeline,
    pipeline_count,
    workspace_count,
)

T = TypeVar("T")


#: With more types than this, `list_jobs` would compile a statement for longer than it runs.
MANY_TYPES = 20


class JobFilter(NamedTuple):
    """
    Selects jobs; or events, by all fields but the times: an event has the status, the reason and
    the exit code that it led to.

    None in a field matches all. Give at most one owner: a job is always in the workspace of its
    pipeline. With both conditions, SQLite might scan all jobs of the workspace.

    The times are microseconds since 1970; `since` is inclusive, and `until` is not. `name` is a
    pattern for SQLite's GLOB.
    """

    workspace_id: UUID | None = None
    pipeline_id: UUID | None = None
    statuses: frozenset[Status] | None = None
    types: frozenset[str] | None = None
    name: str | None = None
    key: str | None = None
    group: str | None = None
    reasons: frozenset[Reason] | None = None
    exit_codes: frozenset[int] | None = None
    created_since: int | None = None
    created_until: int | None = None
    ended_since: int | None = None
    ended_until: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it selects by owner, status and type alone."""
        return all(one is None for one in self[4:])

    @property
    def is_of_owner(self) -> bool:
        """Whether it selects by owner and status alone."""
        return self.is_plain and self.types is None

    @property
    def has_many_types(self) -> bool:
        """Whether it names more types than are worth reading one by one; see `job_search`."""
        return self.types is not None and len(self.types) > MANY_TYPES

    def of_owner(self) -> list[ColumnElement[bool]]:
        """Return the SQL condition on the owner."""
        if self.pipeline_id is not None:
            return [job.c.pipeline_id == self.pipeline_id]
        return [] if self.workspace_id is None else [job.c.workspace_id == self.workspace_id]

    def takes(self, entry: Entry) -> bool:
        """Tell whether an entry of the history matches."""
        if self.name is not None:
            from jobcore.storage import glob  # noqa: PLC0415 - few filters have a name

            if not glob.matches(self.name, entry.name):
                return False
        return (
            (self.workspace_id is None or self.workspace_id.hex == entry.workspace_id)
            and (self.pipeline_id is None or self.pipeline_id.hex == entry.pipeline_id)
            and (self.statuses is None or entry.to_status in self.statuses)
            and (self.types is None or entry.type in self.types)
            and (self.key is None or self.key == entry.key)
            and (self.group is None or self.group == entry.group)
            and (self.reasons is None or entry.reason in self.reasons)
            and (self.exit_codes is None or entry.exit_code in self.exit_codes)
        )


def members(values: Iterable[T] | None) -> frozenset[T] | None:
    """Return a set for a field of a filter; None stays None."""
    return None if values is None else frozenset(values)


#: The columns of a new job that have a default, and these defaults. SQLite assigns the number.
_NEW_JOB: dict[str, Any] = {
    name: JobRow.model_fields[name].default
    for name in (
        "number", "pipeline_id", "name", "data", "command", "attempt", "retry_of", "not_before",
        "owner", "env_from", "environment", "priority", "group_name", "expires", "retries",
        "hooks", "hook_of", "parameters", "key", "held_key", "unique_until", "run_if", "unmet",
        "spool_offset", "next_sequence", "loose_sequence", "loose_bytes", "dropped",
    )
}  # fmt: skip
_INSERT_JOB = Statement(
    insert(job).values(
        {
            name: bindparam(name)
            for name in ("id", "workspace_id", "type", "status", "created", *_NEW_JOB)
        }
    )
)
#: The columns that a new job does not set.
_UNSET: dict[str, Any] = dict.fromkeys(job.c.keys())


def insert_job(connection: Connection, *, now: int, **fields: Any) -> dict[str, Any]:
    """
    Create a QUEUED job with its first history entry, and return its columns as a read would.

    Raises:
        PipelineAlreadyRunning: Its pipeline has a QUEUED or RUNNING job. Nothing was created,
            and the transaction can continue.
        DuplicateKey: Another job holds its key. Likewise.
    """
    values = new_job(now=now, **fields)
    if values["pipeline_id"] is not None and values["group_name"] is None:
        values["group_name"] = _group_of(connection, values["pipeline_id"])
    if values["key"] is not None and values["retry_of"] is not None:
        from jobcore.storage import keys  # noqa: PLC0415 - few jobs have a key

        # The next attempt takes the key over.
        values["held_key"] = values["key"]
        keys.release(connection, values["retry_of"])
    try:
        number = _INSERT_JOB.insert(connection, **_stored(values))
    except sqlite3.IntegrityError as error:
        _refuse(connection, values, error)
        _require_key(connection, values, error, now)
        number = _INSERT_JOB.insert(connection, **_stored(values))
    transitions.record(
        connection, number, now=now, trigger=Trigger.CREATE, source=None, target=lifecycle.INITIAL
    )
    return as_read({**values, "number": number})


_GROUP_OF = Statement(select(pipeline.c.group_name).where(pipeline.c.id == bindparam("of_id")))


def _group_of(connection: Connection, pipeline_id: UUID) -> str | None:
    rows = _GROUP_OF(connection, of_id=pipeline_id.hex)
    return rows[0][0] if rows else None


def _refuse(connection: Connection, values: dict[str, Any], error: sqlite3.IntegrityError) -> None:
    """Raise for a row that a unique index has refused, unless only its key can be the cause."""
    pipeline_id = values["pipeline_id"]
    blocker = None if pipeline_id is None else active_job_of(connection, pipeline_id)
    if "FOREIGN KEY" in str(error):  # the workspace exists, but its stored id is damaged
        raise DatabaseCorrupt(f"a job cannot be stored: {error}") from error
    if blocker is not None:
        raise PipelineAlreadyRunning(blocker.pipeline_id, blocker.id) from error


def _require_key(
    connection: Connection, values: dict[str, Any], error: sqlite3.IntegrityError, now: int
) -> None:
    """Release the key of a row that its index has refused; raise if another job keeps it."""
    from jobcore.storage import keys  # noqa: PLC0415 - few jobs have a key

    key, place = values["held_key"], values["workspace_id"]
    if key is None:
        raise error
    if not keys.release_if_over(connection, place, key, now=now):
        other = keys.holder(connection, place, key)
        raise error if other is None else DuplicateKey(key, other.id) from error


def insert_jobs(connection: Connection, jobs: Sequence[dict[str, Any]]) -> None:
    """Insert jobs that `new_job` returned, without history."""
    _INSERT_JOB.many(connection, [_stored(values) for values in jobs])


def next_attempt(row: Row[Any]) -> dict[str, Any]:
    """Return the columns of the job that retries the job of `row`."""
    kept = (
        "type", "name", "data", "command", "env_from", "environment", "priority", "group_name",
        "retries", "hooks", "hook_of", "parameters", "key", "unique_until", "run_if",
    )  # fmt: skip
    again = {name: getattr(row, name) for name in kept}
    return {**again, "attempt": row.attempt + 1, "retry_of": row.id}


def new_job(*, now: int, **fields: Any) -> dict[str, Any]:
    """Return the columns that a new QUEUED job sets."""
    values = {"status": str(lifecycle.INITIAL), "created": now, **_NEW_JOB, **fields}
    if "id" not in values:
        values["id"] = uuid4()
    return values


def as_read(values: dict[str, Any]) -> dict[str, Any]:
    """Return all columns of a job that `new_job` returned, as a read would return them."""
    data = values["data"]
    return {**_UNSET, **values, "data": None if data is None else read_json(write_json(data))}


def _stored(values: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a new job in the form in which the file stores them."""
    stored = {**values, "data": None if values["data"] is None else write_json(values["data"])}
    for name in ("id", "workspace_id", "pipeline_id", "retry_of", "hook_of"):
        if values[name] is not None:
            stored[name] = values[name].hex
    return stored


_FIND_JOB = RowStatement(select(job).where(job.c.id == bindparam("of_id"), IS_VISIBLE))
_GET_JOB = select(job).where(job.c.number == bindparam("of"))
_ANY_JOB, _VISIBLE_JOB = RowStatement(_GET_JOB), RowStatement(_GET_JOB.where(IS_VISIBLE))


def find_job(connection: Connection, job_id: UUID) -> Row[Any] | None:
    """Return the job; None: there is none, or it is being deleted."""
    rows = _FIND_JOB.rows(connection, of_id=job_id.hex)
    return rows[0] if rows else None


_NUMBER_OF = Statement(select(job.c.number).where(job.c.id == bindparam("of_id"), IS_VISIBLE))


def number_of(connection: Connection, job_id: UUID) -> int | None:
    """Return the number of a job, even if its row is damaged; None: there is no such job."""
    rows = _NUMBER_OF(connection, of_id=job_id.hex)
    return rows[0][0] if rows else None


def update_job(connection: Connection, number: int, columns: dict[str, Any]) -> None:
    """Change columns of a job that are no facts of its run; the caller has checked its status."""
    connection.execute(update(job).where(job.c.number == number).values(columns))


def find_jobs(connection: Connection, first: UUID, last: UUID, *, limit: int) -> list[int]:
    """Return the numbers of up to `limit` jobs with ids from `first` to `last`, inclusive."""
    between = job.c.id.between(first, last)
    numbers = select(job.c.number).where(between, IS_VISIBLE).order_by(job.c.id).limit(limit)
    return list(connection.execute(numbers).scalars())


def get_job(connection: Connection, number: int) -> Row[Any] | None:
    """Return the job with this number, even if it is being deleted; None: there is none."""
    rows = _ANY_JOB.rows(connection, of=number)
    return rows[0] if rows else None


def rows_of(connection: Connection, numbers: Iterable[int], failed: Failed) -> Iterator[Row[Any]]:
    """
    Yield the jobs with these numbers, even those that are being deleted, in this order.

    They are read one by one, so that the commands of many jobs are not in memory together.
    """
    return read_each(numbers, lambda number: _ANY_JOB.rows(connection, of=number), failed)


def visible_jobs(connection: Connection, numbers: Iterable[int], failed: Failed) -> list[Row[Any]]:
    """Return the visible jobs with these numbers, in the order of `numbers`."""
    return list(read_each(numbers, lambda number: _VISIBLE_JOB.rows(connection, of=number), failed))


def run_of(row: Row[Any]) -> transitions.Run:
    """Return a job's row as a `Run`."""
    columns = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    return transitions.Run(
        name=row.id.hex,
        has_followups=any(columns[name] is not None for name in transitions.FOLLOWED_UP),
        **{
            field: columns[field]
            for field in transitions.Run._fields
            if field not in ("name", "has_followups")
        },
    )


def active_job_of(connection: Connection, pipeline_id: UUID) -> Row[Any] | None:
    """Return the QUEUED or RUNNING job of a pipeline, even if it is being deleted, or None."""
    return connection.execute(
        select(job).where(job.c.pipeline_id == pipeline_id, IS_ACTIVE)
    ).one_or_none()


def list_jobs(
    connection: Connection,
    wanted: JobFilter,
    *,
    limit: int,
    before: int | None,
    failed: Failed = leave_out,
) -> list[Row[Any]]:
    """
    Return a page of jobs with numbers below `before`, newest first.

    `wanted` is plain and has few types.
    """
    numbers = _numbers(wanted, limit, before)
    if numbers is None:
        return []
    page = (
        select(*SHOWN).where(job.c.number.in_(numbers)).order_by(job.c.number.desc()).limit(limit)
    )
    return read_rows(connection, page, job.c.number, failed, unconverted)


def list_numbers(
    connection: Connection, wanted: JobFilter, *, limit: int, before: int | None
) -> list[int]:
    """Return the numbers of the jobs that `list_jobs` returns, damaged ones included."""
    numbers = _numbers(wanted, limit, before)
    if numbers is None:
        return []
    found = connection.execute(numbers).scalars()
    return sorted(found, reverse=True)[:limit]


def _numbers(
    wanted: JobFilter, limit: int, before: int | None
) -> Select[Any] | CompoundSelect[Any] | None:
    """
    Return a statement for the numbers of a page, which may find more; None: there are none.

    Each combination of status and type is read from an index that has its jobs in order. So
    the cost depends on the size of the page, not on the length of the history.
    """
    kinds: list[ColumnElement[bool]] = [true()]
    if wanted.types is not None:
        kinds = [job.c.type == one for one in sorted(wanted.types)]
    parts = [
        select(job.c.number)
        .where(IS_VISIBLE, has_status(status), kind, *wanted.of_owner())
        .where(true() if before is None else job.c.number < before)
        .order_by(job.c.number.desc())
        .limit(limit)
        for status in sorted(Status if wanted.statuses is None else wanted.statuses)
        for kind in kinds
    ]
    return _together(parts) if parts else None


_WORDS = sorted(Status)
#: Jobs with an unknown status. It searches the ranges between the known ones, to use the index.
_WITHOUT_STATUS = Statement(
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
    return [number for (number,) in _WITHOUT_STATUS(connection)]


#: Safely below SQLite's limit of 500 SELECTs in a compound SELECT.
_MOST_TOGETHER = 250


def _together(parts: Sequence[Select[Any]]) -> Select[Any] | CompoundSelect[Any]:
    """
    Return the union of `parts`.

    Each part becomes a subquery, because SQLite allows ORDER BY and LIMIT in a part only there.
    """
    subqueries = [select(part.subquery()) for part in parts]
    while len(subqueries) > _MOST_TOGETHER:
        subqueries = [
            select(union_all(*subqueries[first : first + _MOST_TOGETHER]).subquery())
            for first in range(0, len(subqueries), _MOST_TOGETHER)
        ]
    return subqueries[0] if len(subqueries) == 1 else union_all(*subqueries)


def count_jobs(connection: Connection, wanted: JobFilter) -> dict[Status, int]:
    """Return the number of visible jobs of each status, including 0; see `counts`."""
    table = workspace_count if wanted.pipeline_id is None else pipeline_count
    # Read only these columns, so that damage in others does not matter.
    asked = sorted(Status if wanted.statuses is None else wanted.statuses)
    columns = [func.coalesce(func.sum(table.c[str(one).lower()]), 0) for one in asked]
    statement = select(*columns).where(table.c.batch == 0)
    if wanted.pipeline_id is not None:
        statement = statement.where(table.c.pipeline_id == wanted.pipeline_id.hex)
    elif wanted.workspace_id is not None:
        statement = statement.where(table.c.workspace_id == wanted.workspace_id.hex)
    if wanted.types is not None:
        # One value: SQLite limits the number of values, and SQLAlchemy is slow with many.
        types = text("type IN (SELECT value FROM json_each(:types))")
        statement = statement.where(types.bindparams(types=json.dumps(sorted(wanted.types))))
    counted = connection.execute(statement).one() if asked else ()
    return dict.fromkeys(Status, 0) | dict(zip(asked, counted, strict=True))


_TYPES = Statement(select(workspace_count.c.type).where(workspace_count.c.batch == 0).distinct())


def known_types(connection: Connection) -> frozenset[str]:
    """Return the types that visible jobs have, or have had."""
    return frozenset(kind for (kind,) in _TYPES(connection))


def active_ids(connection: Connection, ids: Collection[UUID]) -> set[UUID]:
    """Return those of `ids` whose job is QUEUED or RUNNING, so that its directory is in use."""
    return set(connection.execute(select(job.c.id).where(job.c.id.in_(ids), IS_ACTIVE)).scalars())
