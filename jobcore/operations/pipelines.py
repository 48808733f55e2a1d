"""
Creates, changes and deletes workspaces and pipelines.

The consequences of a change (a PIPELINE_CONFIG job, the next tick) are written in the same
transaction as the change.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from jobcore import checks
from jobcore.clock import Clock, from_datetime, to_datetime
from jobcore.command import Command, checked_timeout
from jobcore.embedding import telemetry
from jobcore.engine import remover, scheduler
from jobcore.engine.executors import Executor, PipelineExecutor
from jobcore.errors import (
    CommandError,
    PipelineAlreadyRunning,
    PipelineCycle,
    PipelineExists,
)
from jobcore.hooks import HOOK_STATUSES as HOOKS
from jobcore.hooks import checked_hooks, stored_hooks
from jobcore.lifecycle import JobType, PipelineStatus
from jobcore.operations.arguments import checked_command, checked_group, checked_object
from jobcore.operations.lookup import Id, require_pipeline, require_workspace
from jobcore.operations.submission import place_in_workspace
from jobcore.retries import Retries, checked_retries
from jobcore.storage import deletion, job_rows, pipelines, workspaces
from jobcore.storage.database import Database
from jobcore.storage.tables import pipeline, workspace
from jobcore.tuning import LONGEST_LATE, MOST_RETRIES

CWD_NEEDS_COMMAND = "cwd and env need a command or a script"

#: The fields of a pipeline that callers can set and change.
FIELDS = (
    "name", "command", "script", "cwd", "env", "timeout", "max_retries", "retries", "schedule",
    "time_zone", "catch_up", "late_after", "triggered_by", "requires", "group", "paused",
    "properties", *HOOKS,
)  # fmt: skip

#: The columns of fields with another name.
_COLUMNS = {"group": "group_name"}

#: How missed ticks are handled: no tick runs, only the last one, or each.
CATCH_UP = ("skip", "last", "all")


class PipelineOperations:
    """
    Creates, changes and hides workspaces and pipelines.

    Args:
        executors: By job type. WORKSPACE_INIT and PIPELINE_CONFIG jobs are created only if
            there is an executor for them.
    """

    def __init__(self, database: Database, clock: Clock, executors: Mapping[str, Executor]) -> None:
        self._database = database
        self._clock = clock
        self._executors = executors

    # --- workspaces -----------------------------------------------------------------

    def create_workspace(self, name: str, properties: Mapping[str, Any] | None) -> Row[Any]:
        """Create a workspace, with a WORKSPACE_INIT job if there is an executor for it."""
        now = self._clock.now()
        text, checked = checks.text(name, "name", CommandError), checked_object(properties)

        def create(connection: Connection) -> Row[Any]:
            row = workspaces.insert_workspace(connection, name=text, properties=checked, now=now)
            if JobType.WORKSPACE_INIT in self._executors:
                job_rows.insert_job(
                    connection, now=now, workspace_id=row.id, type=JobType.WORKSPACE_INIT
                )
            return row

        return self._database.write(create)

    def default_workspace(self) -> Row[Any]:
        """Return the default workspace, which is created on first use."""
        with self._database.read() as connection:
            found = workspaces.find_default_workspace(connection)
            if found is not None:
                return require_workspace(connection, found)
        now = self._clock.now()

        def make(connection: Connection) -> Row[Any]:
            return require_workspace(connection, workspaces.default_workspace(connection, now))

        return self._database.write(make)

    def update_workspace(self, workspace_id: Id, changes: Mapping[str, Any]) -> Row[Any]:
        """Change the name or the properties of a workspace."""
        _refuse_unknown("workspace", changes, ("name", "properties"))
        checked: dict[str, Any] = {}
        if "name" in changes:
            checked["name"] = checks.text(changes["name"], "name", CommandError)
        if "properties" in changes:
            checked["properties"] = checked_object(changes["properties"])
        now = self._clock.now()

        def update(connection: Connection) -> Row[Any]:
            row = require_workspace(connection, workspace_id)
            workspaces.update_row(connection, workspace, row.id, now=now, **checked)
            return require_workspace(connection, row.id)

        return self._database.write(update)

    def mark_workspace_deleted(self, workspace_id: Id) -> UUID:
        """Hide a workspace for good, with some of its pipelines and jobs; return its id."""
        now = self._clock.now()

        def mark(connection: Connection) -> UUID:
            row = require_workspace(connection, workspace_id)
            # Otherwise it would still be found as the default one and get new jobs.
            workspaces.update_row(connection, workspace, row.id, now=now, is_default=False)
            deletion.mark_row_deleted(connection, workspace, row.id, now=now)
            remover.hide_some(connection, workspace, row.id, now=now)
            return UUID(str(row.id))

        return self._database.write(mark)

    # --- pipelines ------------------------------------------------------------------

    def create_pipeline(self, fields: Mapping[str, Any], *, workspace_id: Id | None) -> Row[Any]:
        """Create a pipeline, with a PIPELINE_CONFIG job if there is an executor for it."""
        now = self._clock.now()
        values = self.columns_of(fields, now)
        sources, required = _checked_sources(fields), _checked_sources(fields, "requires")

        def create(connection: Connection) -> Row[Any]:
            place = place_in_workspace(connection, workspace_id, now)
            return self.insert(connection, place, values, sources, now, required)

        return self._database.write(create)

    def columns_of(self, fields: Mapping[str, Any], now: int) -> dict[str, Any]:
        """Check the fields of a new pipeline, and return its columns."""
        fields = _with_retries(fields, None)
        values = {**_checked(fields), **_next_tick(fields, now)}
        self._refuse_idle(values)
        if values["command"] is None and _has_cwd_or_env(fields):
            raise CommandError(CWD_NEEDS_COMMAND)
        return values

    def insert(
        self,
        connection: Connection,
        workspace_id: Any,
        values: Mapping[str, Any],
        sources: Iterable[str],
        now: int,
        required: Iterable[str] = (),
    ) -> Row[Any]:
        """Create a pipeline from the columns that `columns_of` returned, and configure it."""
        _refuse_taken(connection, workspace_id, values["name"], None)
        links = _links(connection, workspace_id, values["name"], sources, None)
        sets = _requirements(connection, workspace_id, values["name"], required, None)
        made = pipelines.insert_pipeline(connection, now=now, workspace_id=workspace_id, **values)
        pipelines.replace_links(connection, made, links)
        pipelines.replace_requirements(connection, made, sets)
        return self._configure(connection, require_pipeline(connection, made), now)

    def update_pipeline(self, pipeline_id: Id, changes: Mapping[str, Any]) -> Row[Any]:
        """Change a pipeline; a FAILED one is configured again."""
        now = self._clock.now()

        def update(connection: Connection) -> Row[Any]:
            return self.change(connection, require_pipeline(connection, pipeline_id), changes, now)

        return self._database.write(update)

    def change(
        self, connection: Connection, row: Row[Any], changes: Mapping[str, Any], now: int
    ) -> Row[Any]:
        """Change some fields of a stored pipeline; see `put`."""
        stored = _stored_fields(row)
        fields = _changed(stored, _with_retries(changes, stored["retries"]))
        return self.put(connection, row, fields, changes, now)

    def put(
        self,
        connection: Connection,
        row: Row[Any],
        fields: Mapping[str, Any],
        changes: Mapping[str, Any],
        now: int,
    ) -> Row[Any]:
        """
        Write the fields of a stored pipeline, and configure it again if it is FAILED.

        Args:
            row: The pipeline as stored.
            fields: All its fields after the change.
            changes: Those of them that may differ.
            now: The current time.
        """
        blocker = (
            job_rows.active_job_of(connection, row.id)
            if row.status == PipelineStatus.FAILED
            else None
        )
        if blocker is not None:
            raise PipelineAlreadyRunning(row.id, blocker.id)
        values = _checked(fields)
        if {"command", "script"} & set(changes):
            self._refuse_idle(values)
        if values["command"] is None and _has_cwd_or_env(changes):
            raise CommandError(CWD_NEEDS_COMMAND)
        if {"schedule", "time_zone", "paused"} & set(changes):
            values |= _next_tick_after(row, fields, now)
            if "next_tick" in values:
                scheduler.record_dropped(connection, row, now)
        if "name" in changes:
            _refuse_taken(connection, row.workspace_id, values["name"], row)
            pipelines.remove_notes(connection, row.id, "name")
        if "triggered_by" in changes:
            sources = _checked_sources(changes)
            links = _links(connection, row.workspace_id, values["name"], sources, row)
            pipelines.replace_links(connection, row.id, links)
            pipelines.remove_notes(connection, row.id, "chain")
        if "requires" in changes:
            required = _checked_sources(changes, "requires")
            sets = _requirements(connection, row.workspace_id, values["name"], required, row)
            pipelines.replace_requirements(connection, row.id, sets)
            pipelines.remove_notes(connection, row.id, "chain")
        workspaces.update_row(connection, pipeline, row.id, now=now, **values)
        changed = require_pipeline(connection, row.id)
        if row.status != PipelineStatus.FAILED:
            return changed
        return self._configure(connection, changed, now)

    def chain(
        self,
        connection: Connection,
        row: Row[Any],
        sources: Iterable[str],
        required: Iterable[str],
        now: int,
    ) -> None:
        """Replace the sources of a stored pipeline; call `require_no_cycle` after all changes."""
        links = _links(connection, row.workspace_id, row.name, sources, None)
        sets = _requirements(connection, row.workspace_id, row.name, required, None)
        pipelines.replace_links(connection, row.id, links)
        pipelines.replace_requirements(connection, row.id, sets)
        pipelines.remove_notes(connection, row.id, "chain")
        workspaces.update_row(connection, pipeline, row.id, now=now)

    def require_no_cycle(self, connection: Connection, row: Row[Any]) -> None:
        """Raise `PipelineCycle` if a stored pipeline triggers itself, directly or not."""
        if pipelines.runs_before(connection, row.id, pipelines.sources_of(connection, row.id)):
            raise PipelineCycle(row.name)

    def mark_pipeline_deleted(self, pipeline_id: Id) -> UUID:
        """
        Hide a pipeline for good, with its active job and some of its other jobs; return its id.

        Each pipeline that it triggered gets a note, which `check` shows.
        """
        now = self._clock.now()

        def mark(connection: Connection) -> tuple[Row[Any], Sequence[Row[Any]]]:
            row = require_pipeline(connection, pipeline_id)
            return row, self.hide(connection, row, now)

        row, triggered = self._database.write(mark)
        for one in triggered:
            telemetry.event(
                logging.WARNING, "trigger deleted", pipeline=str(one.id), deleted=row.name
            )
        return UUID(str(row.id))

    def hide(self, connection: Connection, row: Row[Any], now: int) -> Sequence[Row[Any]]:
        """Mark a pipeline as deleted, with some of its jobs; return those that it triggered."""
        triggered = [
            *pipelines.pipelines_triggered_by(connection, row.id),
            *pipelines.pipelines_requiring(connection, row.id),
        ]
        for one in triggered:
            pipelines.note(
                connection,
                one.id,
                "chain",
                f"it ran after the pipeline {row.name!r}, which was deleted",
            )
        pipelines.remove_links_to(connection, row.id)
        deletion.mark_row_deleted(connection, pipeline, row.id, now=now)
        remover.hide_some(connection, pipeline, row.id, now=now)
        return triggered

    def _refuse_idle(self, values: Mapping[str, Any]) -> None:
        """Refuse a pipeline without command and script, unless the host has its own executor."""
        executor = self._executors.get(JobType.PIPELINE_RUN)
        if type(executor) is PipelineExecutor and not (values["command"] or values["script"]):
            raise CommandError(
                f"pipeline {values['name']!r:.200} has neither command nor script, so no job of "
                "it could run; give it one, or register your own executor for PIPELINE_RUN"
            )

    def _configure(self, connection: Connection, row: Row[Any], now: int) -> Row[Any]:
        """Create a PIPELINE_CONFIG job if there is an executor for it; else set it READY."""
        status = PipelineStatus.READY
        if JobType.PIPELINE_CONFIG in self._executors:
            status = PipelineStatus.PROVISIONING
            job_rows.insert_job(
                connection,
                now=now,
                workspace_id=row.workspace_id,
                pipeline_id=row.id,
                type=JobType.PIPELINE_CONFIG,
            )
        pipelines.set_pipeline_status(connection, row.id, status, now=now)
        return require_pipeline(connection, row.id)


def _refuse_taken(
    connection: Connection, workspace_id: Any, name: str, row: Row[Any] | None
) -> None:
    """Refuse a name that another pipeline of the workspace already has."""
    other = pipelines.find_pipeline_called(connection, workspace_id, name)
    if other is not None and (row is None or other != row.id):
        raise PipelineExists(name, other)


def _links(
    connection: Connection,
    workspace_id: Any,
    name: str,
    sources: Iterable[str],
    row: Row[Any] | None,
) -> list[tuple[UUID | None, str | None]]:
    """
    Resolve the names in `triggered_by`: each becomes an id of a pipeline, or stays a name.

    Args:
        row: The pipeline to change; None: it is new.
    """
    kept = {pipelines.DEPLOY}
    if row is not None:
        stored = pipelines.links_of(connection, row.id)
        kept |= {one.name.casefold() for one in stored if one.name is not None}
    links: dict[str, tuple[UUID | None, str | None]] = {}  # in order, without duplicates
    for source in sources:
        found = pipelines.find_pipeline_called(connection, workspace_id, source)
        if source.casefold() == name.casefold():
            raise PipelineCycle(name)
        if found is None and source.casefold() not in kept:
            raise CommandError(
                f"triggered_by names {source!r:.200}, which no pipeline of this workspace has: "
                "create that pipeline first"
            )
        links[source.casefold()] = (found, source if found is None else None)
    ids = [found for found, _ in links.values() if found is not None]
    if row is not None and pipelines.runs_before(connection, row.id, ids):
        raise PipelineCycle(name)
    return list(links.values())


def _requirements(
    connection: Connection,
    workspace_id: Any,
    name: str,
    sources: Iterable[str],
    row: Row[Any] | None,
) -> list[UUID]:
    """
    Resolve the names in `requires`: each becomes the id of a pipeline.

    Args:
        row: The pipeline to change; None: it is new.
    """
    found: dict[UUID, None] = {}  # in order, without duplicates
    for source in sources:
        if source.casefold() == name.casefold():
            raise PipelineCycle(name)
        one = pipelines.find_pipeline_called(connection, workspace_id, source)
        if one is None:
            raise CommandError(
                f"requires names {source!r:.200}, which no pipeline of this workspace has: "
                "create that pipeline first"
            )
        found[one] = None
    if row is not None and pipelines.runs_before(connection, row.id, list(found)):
        raise PipelineCycle(name)
    return list(found)


def _stored_fields(row: Row[Any]) -> dict[str, Any]:
    """Return the arguments that describe a stored pipeline."""
    stored = {
        name: getattr(row, _COLUMNS.get(name, name))
        for name in FIELDS
        if name not in ("command", "cwd", "env", *HOOKS)
    }
    stored |= stored_hooks(row.hooks)
    stored["paused"] = row.paused is not None
    if row.retries is not None:
        stored["retries"] = Retries.from_json(row.retries)
    if row.command is None:
        return {**stored, "command": None}
    command = Command.from_json(row.command)
    # If the command was made from the script, the caller gave only directory and environment.
    of_script = row.script is not None and command == Command(
        row.script, shell=True, cwd=command.cwd, env=command.env
    )
    return {
        **stored,
        "command": None if of_script else command,
        "cwd": command.cwd,
        "env": command.env,
    }


def _changed(stored: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that describe a pipeline after changes; other fields stay."""
    if isinstance(changes.get("command"), Command):  # it has its own directory and environment
        stored = {name: stored[name] for name in stored if name not in ("cwd", "env")}
        return {**stored, **changes}
    defaults = {"cwd": os.curdir, "env": {}}  # None means "the default", not "unchanged"
    return {
        **stored,
        **changes,
        **{name: defaults[name] for name in defaults if name in changes and changes[name] is None},
    }


def _with_retries(given: Mapping[str, Any], stored: Retries | None) -> dict[str, Any]:
    """
    Return arguments in which `retries` and `max_retries` agree.

    Args:
        given: The arguments of a new pipeline, or the changes of a stored one.
        stored: The retries of the stored pipeline.
    """
    fields = dict(given)
    retries = checked_retries(fields.get("retries"))
    if retries is not None:
        if fields.setdefault("max_retries", retries.max) != retries.max:
            raise CommandError(
                f"max_retries is {fields['max_retries']!r:.200} and retries allows {retries.max}: "
                "pass one of them"
            )
        fields["retries"] = retries
    elif stored is not None and "retries" not in fields and "max_retries" in fields:
        most = checks.integer(fields["max_retries"], "max_retries", 0, MOST_RETRIES, CommandError)
        fields["retries"] = replace(stored, max=most)
    return fields


def _has_cwd_or_env(fields: Mapping[str, Any]) -> bool:
    return fields.get("cwd") is not None or fields.get("env") is not None


def _refuse_unknown(what: str, fields: Mapping[str, Any], known: Collection[str]) -> None:
    unknown = set(fields) - set(known)
    if unknown:
        raise CommandError(f"a {what} has no {', '.join(sorted(unknown))}")


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check the fields of a pipeline, and return its columns."""
    _refuse_unknown("pipeline", fields, FIELDS)
    max_retries = fields.get("max_retries", 0)
    retries = fields.get("retries")
    command = _checked_command(fields)
    late_after = fields.get("late_after")
    for chain in ("triggered_by", "requires"):
        _checked_sources(fields, chain)
    name = checks.text(fields["name"], "name", CommandError)
    hooks = {}
    if set(HOOKS) & set(fields):
        hooks = {"hooks": checked_hooks(fields)}
    return {
        **hooks,
        "name": name,
        "folded_name": name.casefold(),
        "command": None if command is None else command.to_json(),
        "script": fields.get("script"),
        "timeout": checked_timeout(fields.get("timeout")),
        "max_retries": checks.integer(max_retries, "max_retries", 0, MOST_RETRIES, CommandError),
        "retries": None if retries is None else retries.to_json(),
        "schedule": fields.get("schedule"),
        "time_zone": fields.get("time_zone"),
        "catch_up": checks.one_of(
            fields.get("catch_up"), "catch_up", (*CATCH_UP, None), CommandError
        ),
        "late_after": (
            None
            if late_after is None
            else checks.seconds(late_after, "late_after", LONGEST_LATE, CommandError)
        ),
        "group_name": _checked_group(fields.get("group")),
        "properties": checked_object(fields.get("properties")),
    }


def _checked_group(name: Any) -> str | None:
    if name == "":
        raise CommandError("group must be a name, not an empty text: pass None for no group")
    return None if name is None else checked_group(name)


def _checked_sources(fields: Mapping[str, Any], chain: str = "triggered_by") -> list[str]:
    """Check `triggered_by` or `requires`, and return the names in it."""
    names = fields.get(chain) or ()
    if isinstance(names, (str, bytes)) or not isinstance(names, Collection):
        raise CommandError(f"{chain} must be a list of names of pipelines")
    return [checks.text(one, chain, CommandError) for one in names]


def _checked_command(fields: Mapping[str, Any]) -> Command | None:
    """Return the command that a pipeline stores; its script, if any, replaces the argv later."""
    options = {name: fields[name] for name in ("cwd", "env") if fields.get(name) is not None}
    command, script = fields.get("command"), fields.get("script")
    if isinstance(command, Command):
        made: Command | None = replace(command, **options)
    elif command is not None:
        made = checked_command(command, options)
    else:
        made = None if script is None else Command(script, shell=True, **options)
    if made is not None and script is not None:
        replace(made, argv=script, shell=True)  # check it now in the form that will run
        checks.text(
            script, "script", CommandError
        )  # it is stored as text, not in JSON like a command
    return made


def _next_tick(fields: Mapping[str, Any], now: int) -> dict[str, int | None]:
    """Return the columns for the next tick of a pipeline; a paused one has none."""
    expression, time_zone = fields.get("schedule"), fields.get("time_zone")
    paused = checks.one_of(fields.get("paused", False), "paused", (True, False), CommandError)
    nothing: dict[str, int | None] = {
        "next_tick": None,
        "tick_offset": None,
        "paused": now if paused else None,
    }
    if expression is None and time_zone is None:
        return nothing
    from jobcore.schedule import Schedule  # noqa: PLC0415 - only for pipelines with a schedule

    # Check a time zone even if there is no schedule yet.
    schedule = Schedule(
        "@daily" if expression is None else expression, "UTC" if time_zone is None else time_zone
    )
    if expression is None or paused:
        return nothing
    tick = schedule.next_after(to_datetime(now))
    return {
        **nothing,
        "next_tick": from_datetime(tick),
        "tick_offset": schedule.offset_at(tick),
    }


def _next_tick_after(row: Row[Any], fields: Mapping[str, Any], now: int) -> dict[str, int | None]:
    """Return the columns for the next tick of a stored pipeline after its fields changed."""
    found = _next_tick(fields, now)
    if row.paused is not None and found["paused"] is not None:
        found["paused"] = row.paused  # since the first pause
    tick = found["next_tick"]
    if tick is None or row.next_tick is None:
        return found
    before = row.schedule, row.time_zone or "UTC"
    if (fields["schedule"], fields["time_zone"] or "UTC") != before or tick < row.next_tick:
        return found
    # The schedule is unchanged: keep the stored tick, or one that is already due would be lost.
    return {}
