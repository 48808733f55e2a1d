"""Creator: checks what callers ask for, and makes jobs, workspaces and pipelines of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Union
from uuid import UUID

from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from jobcore import store
from jobcore.clock import Clock
from jobcore.command import Command
from jobcore.database import Database
from jobcore.errors import CommandError, PipelineAlreadyRunning, PipelineNotFound
from jobcore.lookup import Id, parse_id, require_pipeline, require_workspace

#: What can be run: a `Command`, or a list of words.
Runnable = Union[Command, "Sequence[str | bytes | os.PathLike[str]]"]

#: Bytes of a caller's own JSON: facts about a job, not its payload.
DATA_BYTES = 64 * 1024


class Creator:
    """
    Makes rows, each call in one transaction.

    Args:
        database: Where.
        clock: Tells when.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create_jobs(
        self,
        jobs: Sequence[Mapping[str, Any]],
        *,
        workspace_id: Id | None,
        pipeline_id: Id | None,
    ) -> list[Row[Any]]:
        """
        Make QUEUED jobs, all of them or none, durably.

        Args:
            jobs: The columns of each, checked.

        Raises:
            WorkspaceNotFound, PipelineNotFound: There is no such one.
            PipelineAlreadyRunning: The pipeline has a QUEUED or RUNNING job.
        """
        for job in jobs:
            for column in ("type", "name"):
                if job.get(column) is not None:
                    checked_text(job[column], column)
        now = self._clock.now()
        with self._database.write() as connection:
            place = self._place(connection, workspace_id, pipeline_id, now)
            try:
                return [store.insert_job(connection, now=now, **place, **job) for job in jobs]
            except IntegrityError as error:
                # The index has spoken; the row only says who is in the way.
                pipeline = place["pipeline_id"]
                blocker = None if pipeline is None else store.active_job_of(connection, pipeline)
                if blocker is None:
                    raise
                raise PipelineAlreadyRunning(blocker.pipeline_id, blocker.id) from error

    def _place(
        self, connection: Connection, workspace_id: Id | None, pipeline_id: Id | None, now: int
    ) -> dict[str, UUID | None]:
        """Return workspace and pipeline of a new job; a pipeline brings its workspace."""
        if pipeline_id is not None:
            pipeline = require_pipeline(connection, pipeline_id)
            if workspace_id is not None and parse_id(workspace_id) != pipeline.workspace_id:
                raise PipelineNotFound(pipeline_id)  # this workspace has no such pipeline
            return {"workspace_id": pipeline.workspace_id, "pipeline_id": pipeline.id}
        if workspace_id is not None:
            workspace = require_workspace(connection, workspace_id)
            return {"workspace_id": workspace.id, "pipeline_id": None}
        return {"workspace_id": store.default_workspace(connection, now), "pipeline_id": None}

    def create_workspace(self, name: str, properties: Mapping[str, Any] | None) -> Row[Any]:
        """Make a workspace."""
        checked = None if properties is None else checked_data(dict(properties))
        with self._database.write() as connection:
            return store.insert_workspace(
                connection,
                name=checked_text(name, "name"),
                properties=checked,
                now=self._clock.now(),
            )

    def default_workspace_id(self) -> UUID:
        """Return the id of the default workspace, made on first use."""
        with self._database.write() as connection:
            return store.default_workspace(connection, self._clock.now())

    def create_pipeline(
        self,
        name: str,
        command: Runnable | None,
        *,
        workspace_id: Id | None,
        script: str | None,
        timeout: float | None,
        properties: Mapping[str, Any] | None,
    ) -> Row[Any]:
        """
        Make a pipeline.

        Raises:
            CommandError: Name, command, script or time-out could never run.
            WorkspaceNotFound: No workspace has this id.
        """
        stored = None if command is None else checked_command(command, {}).to_json()
        if script is not None:
            Command(script, shell=True, timeout=timeout)
        elif timeout is not None:
            Command(["true"], timeout=timeout)
        checked = None if properties is None else checked_data(dict(properties))
        now = self._clock.now()
        with self._database.write() as connection:
            place = self._place(connection, workspace_id, None, now)
            return store.insert_pipeline(
                connection,
                now=now,
                workspace_id=place["workspace_id"],
                name=checked_text(name, "name"),
                command=stored,
                script=script,
                timeout=timeout,
                properties=checked,
            )


def checked_command(command: Runnable, options: Mapping[str, Any]) -> Command:
    """
    Return the command that a list of words and `options` make.

    Raises:
        CommandError: It could never run, or a `Command` says all that already.
    """
    if isinstance(command, Command):
        if options:
            raise CommandError(f"a Command already says its {', '.join(sorted(options))}")
        return command
    try:
        return Command(command, **options)
    except TypeError as error:
        raise CommandError(str(error)) from error


def checked_text(text: str, what: str) -> str:
    """
    Return `text`, if it can be stored.

    Raises:
        CommandError: It is no text, or holds what no encoding has.
    """
    try:
        text.encode("utf-8")
    except (AttributeError, UnicodeEncodeError) as error:
        raise CommandError(f"{what} is no text that can be stored: {error}") from error
    return text


def checked_data(data: Any) -> Any:
    """
    Return `data`, if it is JSON of up to `DATA_BYTES`.

    Raises:
        CommandError: It is not.
    """
    try:
        text = json.dumps(data, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CommandError(f"data is no JSON: {error}") from error
    if len(text) > DATA_BYTES:
        raise CommandError(f"data is larger than {DATA_BYTES} bytes of JSON")
    return data
