"""
Curator: makes, changes and removes workspaces and pipelines.

What a change brings about (a configuring job, the next tick) is written in the
same transaction as the change.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row

from jobcore import deletion, settlement, store
from jobcore.clock import Clock, from_datetime, to_datetime
from jobcore.command import Command, checked_timeout
from jobcore.creator import (
    checked_command,
    checked_data,
    checked_text,
    place_in_workspace,
)
from jobcore.database import Database
from jobcore.errors import CommandError, PipelineAlreadyRunning, PipelineCycle
from jobcore.lookup import Id, require_pipeline, require_workspace
from jobcore.schedule import Schedule
from jobcore.tables import pipeline as pipelines
from jobcore.tables import workspace as workspaces

WORKSPACE_INIT = "WORKSPACE_INIT"
#: The most retries that make sense: with doubling back-off this is over a week.
MOST_RETRIES = 1000

NOWHERE = "cwd and env are those of a command or a script, and there is none"

#: What of a pipeline can be said at its creation and changed later.
FIELDS = (
    "name", "command", "script", "cwd", "env", "timeout", "max_retries", "schedule", "time_zone",
    "triggered_by", "properties",
)  # fmt: skip


class Curator:
    """
    Keeps workspaces and pipelines.

    Args:
        database: Where.
        clock: Tells when.
        types: The job types that somebody here can run: of others no job is made by itself.
    """

    def __init__(self, database: Database, clock: Clock, types: Collection[str]) -> None:
        self._database = database
        self._clock = clock
        self._types = types

    # --- workspaces -----------------------------------------------------------------

    def create_workspace(self, name: str, properties: Mapping[str, Any] | None) -> Row[Any]:
        """Make a workspace, and its WORKSPACE_INIT job where that type can be run."""
        now = self._clock.now()
        with self._database.write() as connection:
            row = store.insert_workspace(
                connection,
                name=checked_text(name, "name"),
                properties=_checked_object(properties),
                now=now,
            )
            if WORKSPACE_INIT in self._types:
                store.insert_job(connection, now=now, workspace_id=row.id, type=WORKSPACE_INIT)
        return row

    def default_workspace(self) -> Row[Any]:
        """Return the default workspace, made on first use."""
        with self._database.read() as connection:
            found = store.find_default_workspace(connection)
            if found is not None:
                return require_workspace(connection, found)
        now = self._clock.now()
        with self._database.write() as connection:
            return require_workspace(connection, store.default_workspace(connection, now))

    def update_workspace(self, workspace_id: Id, changes: Mapping[str, Any]) -> Row[Any]:
        """
        Change name or properties.

        Raises:
            CommandError: It cannot be so, or has no such field.
            WorkspaceNotFound: No workspace has this id.
        """
        _refuse_unknown("workspace", changes, ("name", "properties"))
        checked: dict[str, Any] = {}
        if "name" in changes:
            checked["name"] = checked_text(changes["name"], "name")
        if "properties" in changes:
            checked["properties"] = _checked_object(changes["properties"])
        with self._database.write() as connection:
            row = require_workspace(connection, workspace_id)
            return store.update_row(
                connection, workspaces, row.id, now=self._clock.now(), **checked
            )

    def mark_workspace_deleted(self, workspace_id: Id) -> None:
        """
        Hide a workspace with its pipelines and jobs from every read, and end what is active.

        Raises:
            WorkspaceNotFound: No workspace has this id.
        """
        now = self._clock.now()
        with self._database.write() as connection:
            row = require_workspace(connection, workspace_id)
            for pipeline in store.list_pipelines(connection, row.id):
                store.mark_row_deleted(connection, pipelines, pipeline.id, now=now)
            # Or it would still be found as the default one, and take new jobs along.
            store.update_row(connection, workspaces, row.id, now=now, is_default=False)
            store.mark_row_deleted(connection, workspaces, row.id, now=now)
            deletion.begin_marked(connection, now=now)

    # --- pipelines ------------------------------------------------------------------

    def create_pipeline(self, fields: Mapping[str, Any], *, workspace_id: Id | None) -> Row[Any]:
        """
        Make a pipeline, and its PIPELINE_CONFIG job where that type can be run.

        Raises:
            CommandError, ScheduleError, PipelineCycle: It could never run as it is said to.
            WorkspaceNotFound: No workspace has this id.
        """
        now = self._clock.now()
        values = {**_checked(fields), "next_tick": _next_tick(fields, now)}
        if values["command"] is None and _names_place(fields):
            raise CommandError(NOWHERE)
        with self._database.write() as connection:
            place = place_in_workspace(connection, workspace_id, now)
            self._refuse_cycle(connection, place, values["name"], values["triggered_by"], None)
            row = store.insert_pipeline(connection, now=now, workspace_id=place, **values)
            return self._configure(connection, row, now)

    def update_pipeline(self, pipeline_id: Id, changes: Mapping[str, Any]) -> Row[Any]:
        """
        Change a pipeline; one whose configuration had FAILED is configured again.

        Raises:
            CommandError, ScheduleError, PipelineCycle: It could never run as it is said to.
            PipelineNotFound: No pipeline has this id.
            PipelineAlreadyRunning: It would have to be configured, and has an active job.
        """
        now = self._clock.now()
        with self._database.write() as connection:
            row = require_pipeline(connection, pipeline_id)
            blocker = store.active_job_of(connection, row.id) if row.status == "FAILED" else None
            if blocker is not None:
                raise PipelineAlreadyRunning(row.id, blocker.id)
            fields = _changed(_as_said(row), changes)
            values = _checked(fields)
            self._refuse_cycle(
                connection, row.workspace_id, values["name"], values["triggered_by"], row
            )
            if values["command"] is None and _names_place(changes):
                raise CommandError(NOWHERE)
            if {"schedule", "time_zone"} & set(changes):
                values["next_tick"] = _next_tick_behind(row, fields, now)
            changed = store.update_row(connection, pipelines, row.id, now=now, **values)
            if row.status != "FAILED":
                return changed
            return self._configure(connection, changed, now)

    def mark_pipeline_deleted(self, pipeline_id: Id) -> None:
        """
        Hide a pipeline with its jobs from every read, and end the one that is active.

        Raises:
            PipelineNotFound: No pipeline has this id.
        """
        now = self._clock.now()
        with self._database.write() as connection:
            row = require_pipeline(connection, pipeline_id)
            store.mark_row_deleted(connection, pipelines, row.id, now=now)
            deletion.begin_marked(connection, now=now)

    def _configure(self, connection: Connection, row: Row[Any], now: int) -> Row[Any]:
        """Have the pipeline configured, if that type can be run; else it is READY as it is."""
        status = "READY"
        if settlement.PIPELINE_CONFIG in self._types:
            status = "PROVISIONING"
            store.insert_job(
                connection,
                now=now,
                workspace_id=row.workspace_id,
                pipeline_id=row.id,
                type=settlement.PIPELINE_CONFIG,
            )
        return store.update_row(connection, pipelines, row.id, now=now, status=status)

    @staticmethod
    def _refuse_cycle(
        connection: Connection,
        workspace_id: Any,
        name: str,
        triggered_by: Iterable[str] | None,
        row: Row[Any] | None,
    ) -> None:
        """Refuse pipelines that would trigger each other for ever."""
        sources = {name.casefold(): {one.casefold() for one in triggered_by or ()}}
        for other in store.triggered_pipelines(connection, workspace_id):
            if row is None or other.id != row.id:
                named = sources.setdefault(other.name.casefold(), set())
                named |= {one.casefold() for one in other.triggered_by}
        seen: set[str] = set()
        todo = list(sources[name.casefold()])
        while todo:
            source = todo.pop()
            if source == name.casefold():
                raise PipelineCycle(name)
            if source not in seen:
                seen.add(source)
                todo += sources.get(source, ())


def _as_said(row: Row[Any]) -> dict[str, Any]:
    """Return what was said of a stored pipeline, in the form of the arguments."""
    said = {name: getattr(row, name) for name in FIELDS if name not in ("command", "cwd", "env")}
    if row.command is None:
        return {**said, "command": None}
    command = Command.from_json(row.command)
    # Made of the script alone: only directory and environment were said.
    of_script = row.script is not None and command == Command(
        row.script, shell=True, cwd=command.cwd, env=command.env
    )
    return {
        **said,
        "command": None if of_script else command,
        "cwd": command.cwd,
        "env": command.env,
    }


def _changed(said: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of a pipeline after changes: what they do not name stays."""
    if isinstance(changes.get("command"), Command):  # which says its directory and environment
        said = {name: said[name] for name in said if name not in ("cwd", "env")}
        return {**said, **changes}
    unsaid = {"cwd": os.curdir, "env": {}}  # what None means, not "as before"
    return {
        **said,
        **changes,
        **{name: unsaid[name] for name in unsaid if name in changes and changes[name] is None},
    }


def _names_place(fields: Mapping[str, Any]) -> bool:
    return fields.get("cwd") is not None or fields.get("env") is not None


def _refuse_unknown(what: str, fields: Mapping[str, Any], known: Collection[str]) -> None:
    unknown = set(fields) - set(known)
    if unknown:
        raise CommandError(f"a {what} has no {', '.join(sorted(unknown))}")


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a pipeline that is said to be so."""
    _refuse_unknown("pipeline", fields, FIELDS)
    retries = fields.get("max_retries", 0)
    whole = isinstance(retries, int) and not isinstance(retries, bool)
    if not whole or not 0 <= retries <= MOST_RETRIES:
        raise CommandError(f"max_retries is a number from 0 to {MOST_RETRIES}, not {retries!r}")
    command = _checked_command(fields)
    triggered_by = fields.get("triggered_by") or ()
    if isinstance(triggered_by, (str, bytes)) or not isinstance(triggered_by, Collection):
        raise CommandError("triggered_by is a list of names of pipelines")
    return {
        "name": checked_text(fields["name"], "name"),
        "command": None if command is None else command.to_json(),
        "script": fields.get("script"),
        "timeout": checked_timeout(fields.get("timeout")),
        "max_retries": retries,
        "schedule": fields.get("schedule"),
        "time_zone": fields.get("time_zone"),
        "triggered_by": [checked_text(one, "triggered_by") for one in triggered_by] or None,
        "properties": _checked_object(fields.get("properties")),
    }


def _checked_command(fields: Mapping[str, Any]) -> Command | None:
    """Return what the pipeline runs; its script, where it has one, instead of the argv."""
    options = {name: fields[name] for name in ("cwd", "env") if fields.get(name) is not None}
    command, script = fields.get("command"), fields.get("script")
    if isinstance(command, Command):
        made: Command | None = replace(command, **options)
    elif command is not None:
        made = checked_command(command, options)
    else:
        made = None if script is None else Command(script, shell=True, **options)
    if made is not None and script is not None:
        replace(made, argv=script, shell=True)  # as it will be run: checked now
    return made


def _next_tick(fields: Mapping[str, Any], now: int) -> int | None:
    expression, time_zone = fields.get("schedule"), fields.get("time_zone")
    if expression is None and time_zone is None:
        return None
    # A time zone that waits for its schedule is looked up now, too.
    schedule = Schedule(
        "@daily" if expression is None else expression, "UTC" if time_zone is None else time_zone
    )
    if expression is None:
        return None
    return from_datetime(schedule.next_after(to_datetime(now)))


def _next_tick_behind(row: Row[Any], fields: Mapping[str, Any], now: int) -> int | None:
    """Return the next tick of a stored pipeline that is said to run so from now on."""
    tick = _next_tick(fields, now)
    if tick is None or row.next_tick is None:
        return tick
    before = row.schedule, row.time_zone or "UTC"
    if (fields["schedule"], fields["time_zone"] or "UTC") != before:
        return tick
    # The same once more: what has come meanwhile, and nobody took, is not left out.
    return min(tick, int(row.next_tick))


def _checked_object(properties: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if properties is None:
        return None
    if not isinstance(properties, Mapping):
        raise CommandError(f"properties are an object, not {type(properties).__name__}")
    checked: dict[str, Any] = checked_data(dict(properties))
    return checked
