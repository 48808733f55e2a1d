"""Creates jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from sqlalchemy import Connection

from jobcore import checks, lifecycle
from jobcore.clock import Clock
from jobcore.embedding import failpoints
from jobcore.engine.ownership import Ownership
from jobcore.errors import (
    CommandError,
    DuplicateKey,
    InvalidTransition,
    PipelineNotFound,
    shown,
)
from jobcore.operations.arguments import resolved
from jobcore.operations.dependencies import Dependencies
from jobcore.operations.dependencies import add as add_dependencies
from jobcore.operations.lookup import (
    Id,
    parse_id,
    require_job,
    require_pipeline,
    require_workspace,
)
from jobcore.storage import environments, job_rows, settlement, transitions, workspaces
from jobcore.storage.database import Database
from jobcore.tuning import STAGED_FROM

if TYPE_CHECKING:
    from jobcore.operations.staging import BatchCreator


class JobCreator:
    """
    Creates jobs: each call in one transaction, unless there are very many.

    Args:
        ownership: Names this process as the owner of reserved and started jobs.
    """

    def __init__(
        self, database: Database, staging: BatchCreator, clock: Clock, ownership: Ownership
    ) -> None:
        self._database = database
        self._staging = staging
        self._ownership = ownership
        self._clock = clock

    def create_jobs(
        self,
        jobs: Sequence[Mapping[str, Any]],
        *,
        workspace_id: Id | None,
        pipeline_id: Id | None,
        environment: bytes | None = None,
        reserved: bool = False,
        started: bool = False,
        on_conflict: str = "raise",
    ) -> list[dict[str, Any]]:
        """
        Create QUEUED jobs durably: all of them, or none.

        Args:
            jobs: The checked columns of each job; see `arguments.queue_fields`.
            environment: The environment of their commands, as `environments.capture`
                returned it; None: that of the worker.
            reserved: Whether only this process may start them.
            started: Whether this process does them itself: they are RUNNING at once.
            on_conflict: `return`: in place of a job whose key another one holds, return the
                other; or `raise`.

        Returns:
            All columns of each job.
        """
        _check(jobs)
        now = self._clock.now()
        # Choose the ids here, so that an exception that interrupts the call can name the job.
        identified = [{"id": uuid4(), **resolved(job, now)} for job in jobs]
        after = Dependencies(identified)

        def common(connection: Connection) -> dict[str, Any]:
            """Return the columns that are the same for all."""
            found: dict[str, Any] = _place(connection, workspace_id, pipeline_id, now)
            if environment is not None:
                found["environment"] = environments.store(connection, environment)
            if reserved:
                # Claim it here, in the writer's thread, where no interrupt can leave the lock
                # half taken.
                found["owner"] = self._ownership.claim()
            return found

        def create(connection: Connection) -> list[dict[str, Any]]:
            same = common(connection)
            upstreams = after.resolve(connection)
            rows = [_insert(connection, {**job, **same}, now, on_conflict) for job in identified]
            if after:
                rows = _decided(connection, identified, rows, upstreams, now)
            if environment is not None and all(
                row["id"] != job["id"] for row, job in zip(rows, identified, strict=True)
            ):
                environments.remove_unused(connection)  # nothing new needs it
            if not started:
                return rows
            owner = self._ownership.claim()
            return [_start(connection, row["number"], owner, now) for row in rows]

        about = _named([job["id"] for job in identified])
        if len(jobs) + after.count > STAGED_FROM and len(jobs) > 1:
            rows = self._staging.create(
                identified, common, after, now=now, about=about, on_conflict=on_conflict
            )
        else:
            rows = self._database.write(create, about=about)
        if failpoints.armed:
            failpoints.reach(failpoints.CREATED, self._database)
        return rows

    def retry(self, job_id: Id, environment: bytes | None) -> dict[str, Any]:
        """
        Create a job that repeats one that ended ERROR or STOPPED, durably.

        Args:
            environment: The environment of its command, as `environments.capture` returned
                it; None: that of the worker.

        Returns:
            All columns of the new job.
        """
        from jobcore.storage import attempts  # noqa: PLC0415 - loaded by those who need it

        now, new_id = self._clock.now(), uuid4()

        def create(connection: Connection) -> dict[str, Any]:
            row = require_job(connection, job_id)
            if row.status not in lifecycle.RETRIABLE:
                raise InvalidTransition(row.id, row.status, "retry")
            for number in attempts.retries_of(connection, [row.id]).values():
                newer = job_rows.get_job(connection, number)
                if newer is not None:
                    why = f"job {newer.id} has retried it, so retry that one"
                    raise InvalidTransition(row.id, row.status, "retry", why)
            stored = None if environment is None else environments.store(connection, environment)
            return settlement.take_over(
                connection, row, now=now, id=new_id, environment=stored, not_before=None
            )

        row = self._database.write(create, about=_named([new_id]))
        if failpoints.armed:
            failpoints.reach(failpoints.CREATED, self._database)
        return row

    def uncertain_holders(
        self, held: Sequence[str], workspace_id: Id | None, pipeline_id: Id | None
    ) -> list[UUID]:
        """Return those holders of these keys that may have ended without being settled."""
        from jobcore.storage import keys  # noqa: PLC0415 - few jobs have a key

        with self._database.read() as connection:
            place: UUID | None
            if pipeline_id is not None:
                place = require_pipeline(connection, pipeline_id).workspace_id
            elif workspace_id is not None:
                place = require_workspace(connection, workspace_id).id
            else:
                place = workspaces.find_default_workspace(connection)
            return [] if place is None else keys.uncertain_holders(connection, place, held)


def _insert(
    connection: Connection, values: dict[str, Any], now: int, on_conflict: str
) -> dict[str, Any]:
    """Create a job; return the one that holds its key, if there is one and the caller wants it."""
    try:
        return job_rows.insert_job(connection, now=now, **values)
    except DuplicateKey as conflict:
        other = job_rows.find_job(connection, conflict.job_id)
        if on_conflict != "return" or other is None:
            raise
        return dict(other._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def _decided(
    connection: Connection,
    jobs: Sequence[Mapping[str, Any]],
    rows: Sequence[dict[str, Any]],
    upstreams: Mapping[UUID, Sequence[UUID]],
    now: int,
) -> list[dict[str, Any]]:
    """
    Store what new jobs wait for, decide what is known already, and return their rows again.

    Args:
        jobs: The columns of the jobs that were to be created.
        rows: The rows that were created, or those of the jobs that hold their keys.
        upstreams: What `Dependencies.resolve` returned.
    """
    pairs = list(zip(jobs, rows, strict=True))
    made = {row["id"]: row["number"] for job, row in pairs if row["id"] == job["id"]}
    if not made:
        return list(rows)  # other jobs hold all the keys
    others = {job["id"]: row["id"] for job, row in pairs if row["id"] != job["id"]}
    add_dependencies(connection, made, upstreams, others)
    decided = settlement.decide_new(connection, min(made.values()), max(made.values()), now=now)
    return [decided.get(row["number"], row) for row in rows]


def _check(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse types and names that cannot be stored, and a key that occurs twice."""
    given: set[str] = set()
    for job in jobs:
        checks.text(job["type"], "type", CommandError)
        if job.get("name") is not None:
            checks.text(job["name"], "name", CommandError)
        key = job.get("key")
        if key is not None:
            if key in given:
                raise CommandError(f"two jobs of this call have the key {shown(key)}")
            given.add(key)


def _start(connection: Connection, number: int, owner: str, now: int) -> dict[str, Any]:
    transitions.start_if_queued(connection, number, now=now, owner=owner)
    started = job_rows.get_job(connection, number)
    assert started is not None  # noqa: S101 - this transaction has made it
    return dict(started._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def _named(ids: Sequence[UUID]) -> str:
    """Return words for the jobs of a call, for an exception that interrupts it."""
    if len(ids) == 1:
        return f"job {ids[0]}"
    return f"{len(ids)} jobs, all or none, the first of them {ids[0]}" if ids else "no job"


def _place(
    connection: Connection, workspace_id: Id | None, pipeline_id: Id | None, now: int
) -> dict[str, UUID | None]:
    """Return workspace and pipeline of a new job; a pipeline determines the workspace."""
    if pipeline_id is None:
        return {
            "workspace_id": place_in_workspace(connection, workspace_id, now),
            "pipeline_id": None,
        }
    pipeline = require_pipeline(connection, pipeline_id)
    if workspace_id is not None and parse_id(workspace_id) != pipeline.workspace_id:
        raise PipelineNotFound(pipeline_id)  # not in this workspace
    return {"workspace_id": pipeline.workspace_id, "pipeline_id": pipeline.id}


def place_in_workspace(connection: Connection, workspace_id: Id | None, now: int) -> UUID:
    """
    Return the id of a workspace; without an id, of the default one, created on first use.

    Raises:
        WorkspaceNotFound: No workspace has this id.
    """
    if workspace_id is None:
        return workspaces.default_workspace(connection, now)
    return UUID(str(require_workspace(connection, workspace_id).id))
