"""
Finds what callers ask for, by id or as a list, or raises the typed error.

What cannot be read raises where it is asked for by its id. A list leaves it out, so that
the others can be read; the log is told, and so is `JobManager.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Row

from jobcore.clock import Clock, from_datetime, seconds_of
from jobcore.engine.postponement import MOST_TOLD, Postponement
from jobcore.errors import (
    ArgumentError,
    DatabaseCorrupt,
    JobNotFound,
    PipelineNotFound,
    WorkspaceNotFound,
    shown,
)
from jobcore.models import Job, Pipeline, Skip, Transition, Workspace
from jobcore.storage import error_mapping, store
from jobcore.storage.database import Database

T = TypeVar("T")

#: A UUID, or its text; a text that is none is an id that nothing has.
Id = UUID | str


def parse_id(some_id: Id) -> UUID | None:
    """
    Return the UUID, or None where it is not one.

    Raises:
        ArgumentError: It is a list or another collection: those are several ids, or none.
    """
    if isinstance(some_id, UUID):
        return some_id
    if isinstance(some_id, Collection) and not isinstance(some_id, (str, bytes)):
        raise ArgumentError(f"one id was wanted, a UUID or its text, not {shown(some_id)}")
    try:
        return UUID(some_id)
    except (ValueError, AttributeError, TypeError):
        return None


def require_job(connection: Connection, job_id: Id) -> Row[Any]:
    """
    Return the row of a job that is not being deleted.

    Raises:
        JobNotFound: No job has this id.
    """
    return _require(store.find_job, connection, job_id, JobNotFound)


def require_workspace(connection: Connection, workspace_id: Id) -> Row[Any]:
    """
    Return the row of a workspace.

    Raises:
        WorkspaceNotFound: No workspace has this id.
    """
    return _require(store.find_workspace, connection, workspace_id, WorkspaceNotFound)


def require_pipeline(connection: Connection, pipeline_id: Id) -> Row[Any]:
    """
    Return the row of a pipeline.

    Raises:
        PipelineNotFound: No pipeline has this id.
    """
    return _require(store.find_pipeline, connection, pipeline_id, PipelineNotFound)


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
        if parsed is None or not error_mapping.is_damage(failure):
            raise
        kind = _KINDS[error]
        columns = store.damaged_columns(connection, kind, parsed)
        raise _unreadable(kind, parsed, ", ".join(columns) or "its row") from failure
    if row is None:
        raise error(some_id)
    return row


_KINDS = {JobNotFound: "job", WorkspaceNotFound: "workspace", PipelineNotFound: "pipeline"}


def public(kind: type[T], row: Any) -> T:
    """
    Return the public form of a row that was asked for by its id.

    Raises:
        DatabaseCorrupt: A column holds what was never written; it says which.
    """
    try:
        return kind.from_row(row)  # type: ignore[attr-defined,no-any-return]
    except DatabaseCorrupt as error:
        raise _unreadable(kind.__name__.lower(), row.id, str(error)) from error


def _unreadable(kind: str, row_id: object, what: str) -> DatabaseCorrupt:
    return DatabaseCorrupt(f"{kind} {row_id} cannot be read: {what}; {error_mapping.REMEDY}")


class Listings:
    """
    Reads several rows at once, and leaves out those that cannot be read.

    Args:
        database: Where they are.
        clock: Tells when one was told last.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._damaged = Postponement(seconds_of(clock))
        self._named: dict[tuple[str, int, str], tuple[str, Exception]] = {}

    def jobs(self, limit: int, before: int | None, **filters: Any) -> list[Job]:
        """Return up to `limit` jobs that can be read, newest first; see `store.list_jobs`."""
        found: list[Job] = []
        while True:
            failed: dict[int, Exception] = {}
            most = limit - len(found)
            with self._database.read() as connection:
                rows = store.list_jobs(
                    connection, limit=most, before=before, failed=failed.__setitem__, **filters
                )
            last = min([*(row.number for row in rows), *failed], default=None)
            found += self.formed(rows, failed)
            if not failed or len(rows) + len(failed) < most or last is None:
                break
            before = last  # older ones take the places of those that cannot be read
        if filters.get("statuses") is None:
            self._look_for_no_status()
        return found

    def count(self, **filters: Any) -> dict[Any, int]:
        """Return how many jobs there are of each status; see `store.count_jobs`."""
        with self._database.read() as connection:
            counted = store.count_jobs(connection, **filters)
        self._look_for_no_status()
        return counted

    def _look_for_no_status(self) -> None:
        with self._database.read() as connection:
            numbers = store.jobs_of_no_status(connection)
        if numbers:
            error = DatabaseCorrupt("a stored status is unknown")
            self._note("job", dict.fromkeys(numbers, error))

    def of(self, numbers: Iterable[int]) -> list[Job]:
        """Return the jobs with these numbers that are not being deleted, and can be read."""
        failed: dict[int, Exception] = {}
        with self._database.read() as connection:
            rows = store.visible_jobs(connection, numbers, failed.__setitem__)
        return self.formed(rows, failed)

    def formed(self, rows: Sequence[Any], failed: dict[int, Exception] | None = None) -> list[Job]:
        """
        Return the jobs of rows, without those that cannot be read.

        Args:
            failed: Those that were found to be damaged when the rows were read.
        """
        failed = {} if failed is None else failed
        found = []
        for row in rows:
            try:
                found.append(Job.from_row(row))
            except DatabaseCorrupt as error:
                failed[row.number] = error
        self._note("job", failed)
        self._readable("job", found)
        return found

    def workspaces(self, *, limit: int | None, after: Workspace | Id | None) -> list[Workspace]:
        """
        Return a page of all workspaces.

        Args:
            limit: Workspaces in the page; None: all.
            after: The last workspace of the page before, or its id.

        Raises:
            WorkspaceNotFound: There is no such one.
        """
        failed: dict[int, Exception] = {}
        with self._database.read() as connection:
            found = store.list_workspaces(
                connection,
                Workspace.from_row,
                failed.__setitem__,
                limit=limit,
                after=_place(connection, after, Workspace, require_workspace),
            )
        self._note("workspace", failed)
        self._readable("workspace", found)
        return found

    def pipelines(
        self, workspace_id: Id | None, *, limit: int | None, after: Pipeline | Id | None
    ) -> list[Pipeline]:
        """
        Return a page of all pipelines, or of those of a workspace.

        Args:
            workspace_id: Only of this workspace.
            limit: Pipelines in the page; None: all.
            after: The last pipeline of the page before, or its id.

        Raises:
            WorkspaceNotFound, PipelineNotFound: There is no such one.
        """
        failed: dict[int, Exception] = {}
        with self._database.read() as connection:
            place = None
            if workspace_id is not None:
                place = require_workspace(connection, workspace_id).id
            found = store.list_pipelines(
                connection,
                place,
                Pipeline.from_row,
                failed.__setitem__,
                limit=limit,
                after=_place(connection, after, Pipeline, require_pipeline),
            )
        self._note("pipeline", failed)
        self._readable("pipeline", found)
        return found

    def skips(self, pipeline_id: Id, limit: int) -> list[Skip]:
        """
        Return the newest skips of a pipeline.

        Raises:
            PipelineNotFound: No pipeline has this id.
        """
        failed: dict[int, Exception] = {}
        with self._database.read() as connection:
            place = require_pipeline(connection, pipeline_id).id
            found = store.list_skips(connection, place, limit, Skip.from_row, failed.__setitem__)
        self._note("skip", failed)
        return found

    def history(self, job_id: Id) -> list[Transition]:
        """
        Return what happened to a job.

        Raises:
            JobNotFound: No job has this id.
        """
        failed: dict[int, Exception] = {}
        with self._database.read() as connection:
            number = require_job(connection, job_id).number
            found = store.history(connection, number, Transition.from_row, failed.__setitem__)
        self._note("transition", failed)
        return found

    # --- what was left out ----------------------------------------------------------

    def leave_out(self, kind: str) -> Callable[[int, Exception], None]:
        """Return what is to be called with the number of each row that cannot be read."""

        def leave_out(number: int, error: Exception) -> None:
            self._note(kind, {number: error})

        return leave_out

    def left_out(self) -> list[str]:
        """Return what was left out and has not been read since: what it is, and why."""
        failures = list(self._damaged.failures().items())
        said = [f"{key} cannot be read: {one.error}" for key, one in failures[:MOST_TOLD]]
        return said + [f"and {len(failures) - MOST_TOLD} more"] * (len(failures) > MOST_TOLD)

    def _note(self, kind: str, failed: dict[int, Exception]) -> None:
        for rowid, error in failed.items():
            known = (kind, rowid, str(error))
            if known not in self._named:
                self._named[known] = self._name(kind, rowid, error)
            name, cause = self._named[known]
            self._damaged.fail(name, cause, "row damaged", row=name)

    def _name(self, kind: str, rowid: int, error: Exception) -> tuple[str, Exception]:
        """Return what a row is called, and the error that names what is damaged in it."""
        if kind not in _KINDS.values():
            return f"{kind} number {rowid}", error
        with self._database.read() as connection:
            name = store.name_of_row(connection, kind, rowid)
            columns = store.damaged_columns(connection, kind, rowid)
        return f"{kind} {name}", DatabaseCorrupt(", ".join(columns)) if columns else error

    def _readable(self, kind: str, found: Sequence[Any]) -> None:
        """Take it that these can be read again."""
        if self._damaged.failures():
            for one in found:
                self._damaged.succeed(f"{kind} {one.id}")


def _place(
    connection: Connection,
    after: Any,
    model: type[Workspace | Pipeline],
    require: Callable[[Connection, Any], Row[Any]],
) -> tuple[int, UUID] | None:
    """
    Return behind which row a page begins: when that was created, and its id; None: the first page.

    Raises:
        WorkspaceNotFound, PipelineNotFound: No row has the id; as `require` raises it.
    """
    if after is None:
        return None
    if isinstance(after, model):
        return from_datetime(after.created), after.id
    last = require(connection, after)
    return last.created, last.id
