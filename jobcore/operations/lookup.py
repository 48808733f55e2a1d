"""
Finds jobs, pipelines and workspaces, by id or as lists.

A damaged row raises an error when it is requested by its id. Lists leave it out, so that the
other rows can be read. The host's log and `JobManager.check` report it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Row

from jobcore.clock import Clock, from_datetime, seconds_of
from jobcore.engine.postponement import MOST_LISTED, Postponement
from jobcore.errors import (
    ArgumentError,
    DatabaseCorrupt,
    JobNotFound,
    PipelineNotFound,
    WorkspaceNotFound,
    shown,
)
from jobcore.lifecycle import Status
from jobcore.models import Job, Pipeline, Skip, Transition, Workspace
from jobcore.storage import damage, history, job_rows, limits, pipelines, schedules, workspaces
from jobcore.storage.damage import Failed
from jobcore.storage.database import Database
from jobcore.storage.job_rows import JobFilter

if TYPE_CHECKING:
    from jobcore.storage.job_search import Place

T = TypeVar("T")

#: A job, pipeline or workspace; or its id, a UUID or the text of one. A text that is not a UUID is
#: treated as an unknown id.
Id = UUID | str | Job | Pipeline | Workspace


def parse_id(some_id: Id) -> UUID | None:
    """Return the id as a UUID, or None if it is not one."""
    if isinstance(some_id, UUID):
        return some_id
    if isinstance(some_id, (Job, Pipeline, Workspace)):
        return some_id.id
    if isinstance(some_id, Collection) and not isinstance(some_id, (str, bytes)):
        raise ArgumentError(f"an id must be one UUID or its text, not {shown(some_id)}")
    try:
        return UUID(some_id)
    except (ValueError, AttributeError, TypeError):
        return None


def require_job(connection: Connection, job_id: Id) -> Row[Any]:
    """Return the row of a job that is not being deleted."""
    return _require(job_rows.find_job, connection, job_id, JobNotFound)


def require_workspace(connection: Connection, workspace_id: Id) -> Row[Any]:
    """Return the row of a workspace."""
    return _require(workspaces.find_workspace, connection, workspace_id, WorkspaceNotFound)


def require_pipeline(connection: Connection, pipeline_id: Id) -> Row[Any]:
    """Return the row of a pipeline."""
    return _require(pipelines.find_pipeline, connection, pipeline_id, PipelineNotFound)


def _require(
    find: Callable[[Connection, UUID], Row[Any] | None],
    connection: Connection,
    some_id: Id,
    error: type[JobNotFound | WorkspaceNotFound | PipelineNotFound],
) -> Row[Any]:
    parsed = parse_id(some_id)
    try:
        row = None if parsed is None else find(connection, parsed)
    except Exception as failure:
        if parsed is None or not damage.is_damage(failure):
            raise
        kind = _KINDS[error]
        columns = damage.damaged_columns(connection, kind, parsed)
        raise _unreadable(kind, parsed, ", ".join(columns) or "its row") from failure
    if row is None:
        raise error(some_id)
    return row


_KINDS = {JobNotFound: "job", WorkspaceNotFound: "workspace", PipelineNotFound: "pipeline"}


def public(kind: type[T], row: Any, *facts: Any) -> T:
    """
    Return the public form of a row that was requested by its id.

    Args:
        facts: Further arguments of the model's `from_row`.

    Raises:
        DatabaseCorrupt: A column holds an invalid value; the message names the column.
    """
    try:
        return kind.from_row(row, *facts)  # type: ignore[attr-defined,no-any-return]
    except DatabaseCorrupt as error:
        raise _unreadable(kind.__name__.lower(), row.id, str(error)) from error


def _unreadable(kind: str, row_id: object, what: str) -> DatabaseCorrupt:
    return DatabaseCorrupt(f"{kind} {row_id} cannot be read: {what}; {damage.REMEDY}")


def job_filter(
    connection: Connection,
    workspace_id: Id | None,
    pipeline_id: Id | None,
    wanted: JobFilter,
) -> JobFilter:
    """Return `wanted` with workspace and pipeline, which must exist."""
    if workspace_id is not None:
        wanted = wanted._replace(workspace_id=require_workspace(connection, workspace_id).id)
    if pipeline_id is None:
        return wanted
    pipeline = require_pipeline(connection, pipeline_id)
    if wanted.workspace_id not in (None, pipeline.workspace_id):
        return wanted._replace(statuses=frozenset())  # the pipeline has no job in this workspace
    return wanted._replace(workspace_id=None, pipeline_id=pipeline.id)


class Listings:
    """Reads lists of rows, and leaves out those that cannot be read."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._damaged = Postponement(seconds_of(clock))
        self._named: dict[tuple[str, int, str], tuple[str, Exception]] = {}

    def jobs(self, wanted: JobFilter, limit: int, before: int | None) -> list[Job]:
        """Return up to `limit` jobs that can be read, newest first; see `job_rows.list_jobs`."""
        found: list[Job] = []
        while True:
            failed: dict[int, Exception] = {}
            most = limit - len(found)
            with self._database.read() as connection:
                rows = job_rows.list_jobs(
                    connection, wanted, limit=most, before=before, failed=failed.__setitem__
                )
            last = min([*(row.number for row in rows), *failed], default=None)
            found += self.formed(rows, failed)
            if not failed or len(rows) + len(failed) < most or last is None:
                break
            before = last  # fill the page with older jobs, in place of the damaged ones
        if wanted.statuses is None:
            self._look_for_no_status()
        return found

    def upcoming(self, limit: int) -> list[Job]:
        """Return up to `limit` QUEUED jobs, the next one to start first."""
        from jobcore.storage import upcoming  # noqa: PLC0415 - for those who need it

        failed: dict[int, Exception] = {}
        with self._database.read() as connection:
            numbers = upcoming.upcoming(connection, now=self._clock.now(), limit=limit)
            rows = list(job_rows.rows_of(connection, numbers, failed.__setitem__))
        return self.formed(rows, failed)

    def search(self, wanted: JobFilter, limit: int, before: int | None, order: str) -> list[Job]:
        """Return up to `limit` jobs that can be read, in an order; see `job_search.find`."""
        from jobcore.storage import job_search  # noqa: PLC0415 - loaded by those who need it

        failed: dict[int, Exception] = {}
        found: list[Job] = []
        with self._database.read() as connection:
            place = None if before is None else _place_of(connection, order, before)
            while len(found) < limit:
                most = limit - len(found)
                numbers = job_search.find(connection, wanted, order=order, limit=most, after=place)
                rows = job_search.shown(connection, numbers, failed.__setitem__)
                found += self._form(rows, failed)
                if len(numbers) < most:
                    break
                # Fill the page with further jobs, in place of the damaged ones.
                place = job_search.place_of(connection, order, numbers[-1])
        self._note("job", failed)
        self._readable("job", found)
        return self.with_limits(found)

    def count(self, wanted: JobFilter) -> dict[Status, int]:
        """Return how many jobs there are of each status; see `job_rows.count_jobs`."""
        with self._database.read() as connection:
            if not wanted.is_plain:
                from jobcore.storage import job_search  # noqa: PLC0415 - loaded by those who need it

                return job_search.count(connection, wanted)
            counted = job_rows.count_jobs(connection, wanted)
        self._look_for_no_status()
        return counted

    def _look_for_no_status(self) -> None:
        with self._database.read() as connection:
            numbers = job_rows.jobs_of_no_status(connection)
        if numbers:
            error = DatabaseCorrupt("a stored status is unknown")
            self._note("job", dict.fromkeys(numbers, error))

    def of(self, numbers: Iterable[int]) -> list[Job]:
        """Return the jobs with these numbers, without deleted and damaged ones."""
        failed: dict[int, Exception] = {}
        with self._database.read() as connection:
            rows = job_rows.visible_jobs(connection, numbers, failed.__setitem__)
        return self.formed(rows, failed)

    def formed(self, rows: Sequence[Any], failed: dict[int, Exception] | None = None) -> list[Job]:
        """
        Return the jobs of rows, without those that cannot be read.

        Args:
            failed: The jobs that were already found to be damaged, by number.
        """
        failed = {} if failed is None else failed
        found = self._form(rows, failed)
        self._note("job", failed)
        self._readable("job", found)
        return self.with_limits(found)

    def _form(self, rows: Sequence[Any], failed: dict[int, Exception]) -> list[Job]:
        found = []
        now = self._clock.now()
        for row in rows:
            try:
                found.append(Job.from_row(row, now))
            except DatabaseCorrupt as error:
                failed[row.number] = error
        return found

    def with_limits(self, jobs: list[Job]) -> list[Job]:
        """Return the jobs with `waits_for` of those that only a limit or a pause keeps waiting."""
        if not any(_may_start(job) for job in jobs):
            return jobs
        with self._database.read() as connection:
            cause = limits.causes(connection)
        return [
            job.model_copy(update={"waits_for": cause(job.type, job.group)})
            if _may_start(job)
            else job
            for job in jobs
        ]

    def workspaces(self, *, limit: int | None, after: Id | None) -> list[Workspace]:
        """Return a page of all workspaces: those that follow `after`, or its id."""

        def read(connection: Connection, failed: Failed) -> list[Workspace]:
            place = _place(connection, after, Workspace, require_workspace)
            return workspaces.list_workspaces(
                connection, Workspace.from_row, failed, limit=limit, after=place
            )

        return self._listed("workspace", read)

    def pipelines(
        self, workspace_id: Id | None, *, limit: int | None, after: Id | None
    ) -> list[Pipeline]:
        """Return a page of all pipelines, or of those of a workspace, that follow `after`."""

        def read(connection: Connection, failed: Failed) -> list[Pipeline]:
            place = _place(connection, after, Pipeline, require_pipeline)
            owner = None if workspace_id is None else require_workspace(connection, workspace_id).id
            return pipelines.list_pipelines(
                connection, owner, Pipeline.from_row, failed, limit=limit, after=place
            )

        return self._listed("pipeline", read)

    def skips(self, pipeline_id: Id, limit: int) -> list[Skip]:
        """Return the newest skips of a pipeline."""

        def read(connection: Connection, failed: Failed) -> list[Skip]:
            owner = require_pipeline(connection, pipeline_id).id
            return schedules.list_skips(connection, owner, limit, Skip.from_row, failed)

        return self._listed("skip", read)

    def history(self, job_id: Id) -> list[Transition]:
        """Return the transitions of a job."""

        def read(connection: Connection, failed: Failed) -> list[Transition]:
            number = require_job(connection, job_id).number
            return history.of_job(connection, number, Transition.from_row, failed)

        return self._listed("transition", read)

    def _listed(self, kind: str, read: Callable[[Connection, Failed], list[T]]) -> list[T]:
        """Return what `read` finds, and note the rows that it leaves out."""
        failed: dict[int, Exception] = {}
        with self._database.read() as connection:
            found = read(connection, failed.__setitem__)
        self._note(kind, failed)
        if kind in _KINDS.values():  # other kinds have no ids
            self._readable(kind, found)
        return found

    # --- damaged rows ---------------------------------------------------------------

    def leave_out(self, kind: str) -> Failed:
        """Return a function to call with the number and error of each row that cannot be read."""

        def leave_out(number: int, error: Exception) -> None:
            self._note(kind, {number: error})

        return leave_out

    def left_out(self) -> list[str]:
        """Return a line for each damaged row that has not been read since, with the cause."""
        failures = list(self._damaged.failures().items())
        lines = [f"{key} cannot be read: {one.error}" for key, one in failures[:MOST_LISTED]]
        return lines + [f"and {len(failures) - MOST_LISTED} more"] * (len(failures) > MOST_LISTED)

    def _note(self, kind: str, failed: dict[int, Exception]) -> None:
        for rowid, error in failed.items():
            known = (kind, rowid, str(error))
            if known not in self._named:
                self._named[known] = self._name(kind, rowid, error)
            name, cause = self._named[known]
            self._damaged.fail(name, cause, "row damaged", row=name)

    def _name(self, kind: str, rowid: int, error: Exception) -> tuple[str, Exception]:
        """Return words for a damaged row, and an error that names the damaged columns."""
        if kind not in _KINDS.values():
            return f"{kind} number {rowid}", error
        with self._database.read() as connection:
            name = damage.name_of_row(connection, kind, rowid)
            columns = damage.damaged_columns(connection, kind, rowid)
        return f"{kind} {name}", DatabaseCorrupt(", ".join(columns)) if columns else error

    def _readable(self, kind: str, found: Sequence[Any]) -> None:
        """Note that these rows can be read again."""
        if self._damaged.failures():
            for one in found:
                self._damaged.succeed(f"{kind} {one.id}")


def _place_of(connection: Connection, order: str, number: int) -> Place:
    """Return the place after which a page begins."""
    from jobcore.storage import job_search  # noqa: PLC0415 - loaded by those who need it

    if order == "created":
        return job_search.Place(number, number)
    place = job_search.place_of(connection, order, number)
    if place is None:
        raise ArgumentError(
            f'before must be the number of a job that has a place in the order "{order}", '
            f"not {number}"
        )
    return place


def _may_start(job: Job) -> bool:
    return job.status == Status.QUEUED and job.waits_for is None


def _place(
    connection: Connection,
    after: Any,
    model: type[Workspace | Pipeline],
    require: Callable[[Connection, Any], Row[Any]],
) -> tuple[int, UUID] | None:
    """Return time of creation and id of the last row before a page; None: the first page."""
    if after is None:
        return None
    if isinstance(after, model):
        return from_datetime(after.created), after.id
    last = require(connection, after)
    return last.created, last.id
