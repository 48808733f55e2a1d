"""Lookup: from what a caller gives as an id to the row, or to the typed error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from jobcore import store
from jobcore.errors import ArgumentError, JobNotFound, PipelineNotFound, WorkspaceNotFound, shown

#: A UUID, or its text; a text that is none is an id that nothing has.
Id = UUID | str


def parse_id(some_id: Id) -> UUID | None:
    """
    Return the UUID, or None where the text is not one.

    Raises:
        ArgumentError: It is neither a UUID nor a text.
    """
    if isinstance(some_id, UUID):
        return some_id
    if not isinstance(some_id, str):
        raise ArgumentError(f"an id is a UUID or its text, not {shown(some_id)}")
    try:
        return UUID(some_id)
    except ValueError:
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
    row = None if parsed is None else find(connection, parsed)
    if row is None:
        raise error(some_id)
    return row
