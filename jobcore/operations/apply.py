"""
Makes the pipelines of a workspace equal to a description of them, in one transaction.

A dry run does the same and rolls it back, so it finds the same errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields as fields_of
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from jobcore.clock import Clock
from jobcore.command import Command, CommandView
from jobcore.errors import (
    CommandError,
    PipelineCycle,
    PipelineFileError,
    ScheduleError,
)
from jobcore.hooks import stored_hooks
from jobcore.models import Change
from jobcore.operations.lookup import Id, require_pipeline
from jobcore.operations.pipelines import PipelineOperations
from jobcore.operations.submission import place_in_workspace
from jobcore.pipeline_file import Entry, parse
from jobcore.storage import pipelines
from jobcore.storage.database import Database
from jobcore.tuning import LATE_AFTER

#: The columns that a description does not set, or that follow from others.
_OTHER_COLUMNS = {"folded_name", "next_tick", "tick_offset", "paused"}
#: The fields that name other pipelines.
_CHAINS = ("triggered_by", "requires")
#: What columns without a value mean.
_DEFAULTS = {"catch_up": "skip", "late_after": LATE_AFTER}
#: Columns that hold JSON as text.
_JSON = {"retries"}
_HIDDEN = "***"


class _Rollback(Exception):
    """Carries the result of a dry run out of the transaction, which it rolls back."""

    def __init__(self, applied: Applied) -> None:
        super().__init__()
        self.applied = applied


class Applied(NamedTuple):
    """
    The result.

    Attributes:
        changes: What was changed, in the order of the description; deletions come last.
        deleted: The ids of the pipelines that were marked as deleted.
    """

    changes: list[Change]
    deleted: list[UUID]


class PipelineApplier:
    """Makes pipelines equal to a description."""

    def __init__(self, database: Database, clock: Clock, operations: PipelineOperations) -> None:
        self._database = database
        self._clock = clock
        self._operations = operations

    def apply(
        self, mapping: Any, *, workspace_id: Id | None, prune: bool, dry_run: bool
    ) -> Applied:
        """Create, change and, with `prune`, mark pipelines as deleted: all of it or nothing."""
        entries = parse(mapping)
        now = self._clock.now()

        def write(connection: Connection) -> Applied:
            place = place_in_workspace(connection, workspace_id, now)
            applied = self._write(connection, place, entries, prune=prune, now=now)
            if dry_run:
                raise _Rollback(applied)
            return applied

        try:
            return self._database.write(write)
        except _Rollback as done:
            return Applied([_without_id(one) for one in done.applied.changes], [])

    def _write(
        self,
        connection: Connection,
        workspace_id: UUID,
        entries: Mapping[str, Entry],
        *,
        prune: bool,
        now: int,
    ) -> Applied:
        changes: list[Change] = []
        ids: dict[str, UUID] = {}
        chained: set[str] = set()  # those whose sources change
        for name, entry in entries.items():
            with _at(name):
                change, ids[name], before = self._put(connection, workspace_id, name, entry, now)
            for field, old in before.items():
                new = getattr(entry, field)
                if [one.casefold() for one in old] != _folded(new):
                    chained.add(name)
                    change.fields[field] = (old or None, new or None)
            if change.action == "create" or change.fields:
                changes.append(change)
        gone = []
        if prune:
            gone = pipelines.other_pipelines(connection, workspace_id, set(ids.values()))
        for row in gone:
            self._operations.hide(connection, row, now)
            changes.append(Change(action="delete", name=row.name, pipeline_id=row.id, fields={}))
        names = {row.name.casefold() for row in gone}
        # Sources come last: they may be described later, or a chain may have turned round.
        chained |= {
            name
            for name, entry in entries.items()
            if names & {*_folded(entry.triggered_by), *_folded(entry.requires)}
        }
        self._chain(
            connection,
            {name: (ids[name], entries[name]) for name in entries if name in chained},
            now,
        )
        return Applied(changes, [row.id for row in gone])

    def _chain(
        self, connection: Connection, chained: Mapping[str, tuple[UUID, Entry]], now: int
    ) -> None:
        for name, (made, entry) in chained.items():
            with _at(name, *_chained(entry)):
                row = require_pipeline(connection, made)
                sources = entry.triggered_by, entry.requires
                self._operations.chain(connection, row, *sources, now)
        for name, (made, entry) in chained.items():
            with _at(name, *_chained(entry)):
                self._operations.require_no_cycle(connection, require_pipeline(connection, made))

    def _put(
        self, connection: Connection, workspace_id: UUID, name: str, entry: Entry, now: int
    ) -> tuple[Change, UUID, dict[str, list[str]]]:
        """Write all of a pipeline except its chain; return its id and its sources before."""
        found = pipelines.find_pipeline_called(connection, workspace_id, name)
        if found is None:
            fields = {"name": name, **entry.fields(), **dict.fromkeys(_CHAINS, ())}
            values = self._operations.columns_of(fields, now)
            row = self._operations.insert(connection, workspace_id, values, (), now)
            usual = {**_DEFAULTS, "max_retries": 0, "name": name}
            new = {
                field: (None, value)
                for field, value in _facts(values)
                if value is not None and usual.get(field) != value
            }
            change = Change(action="create", name=name, pipeline_id=row.id, fields=_masked(new))
            return change, row.id, {one: [] for one in _CHAINS}
        row = require_pipeline(connection, found)
        stored = None if row.command is None else Command.from_json(row.command)
        # The umask of the calling process is not part of the description.
        fields = {"name": name, **entry.fields(umask=None if stored is None else stored.umask)}
        fields |= {"paused": row.paused is not None, **dict.fromkeys(_CHAINS, ())}
        values = self._operations.columns_of(fields, now)
        columns = {column: row._mapping[column] for column in values}  # noqa: SLF001 - it is public
        before, after = dict(_facts(columns)), dict(_facts(values))
        differ = {
            field: (before.get(field), after.get(field))
            for field in {**before, **after}
            if before.get(field) != after.get(field)
        }
        if differ:
            same = {*_CHAINS, *(() if "name" in differ else ("name",))}
            changes = {one: value for one, value in fields.items() if one not in same}
            self._operations.put(connection, row, fields, changes, now)
        change = Change(action="update", name=name, pipeline_id=row.id, fields=_masked(differ))
        return change, row.id, {one: list(getattr(row, one) or ()) for one in _CHAINS}


def _chained(entry: Entry) -> list[str]:
    """Return the field that names sources, if it is only one."""
    given = [field for field in _CHAINS if getattr(entry, field)]
    return given if len(given) == 1 else []


def _without_id(change: Change) -> Change:
    """Return the change without the id of a pipeline that was not created after all."""
    return change.model_copy(update={"pipeline_id": None}) if change.action == "create" else change


@contextmanager
def _at(name: str, *field: str) -> Iterator[None]:
    """Add the place in the description to errors."""
    try:
        yield
    except (CommandError, ScheduleError, PipelineCycle) as error:
        raise PipelineFileError([(("pipelines", name, *field), str(error))]) from error


def _folded(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.casefold() for name in names))


def _facts(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a pipeline's columns, with those of its command one by one."""
    for column, value in values.items():
        if column in _OTHER_COLUMNS:
            continue
        if column == "hooks":
            yield from _facts_of_hooks(value)
        elif column != "command":
            fact = json.loads(value) if column in _JSON and value is not None else value
            name = "group" if column == "group_name" else column
            yield name, _DEFAULTS.get(column) if fact is None else fact
        elif value is not None:
            yield from _facts_of_command(Command.from_json(value), values["script"])


def _facts_of_command(command: Command, script: str | None) -> Iterator[tuple[str, Any]]:
    plain = Command(("x",), cwd="/", umask=command.umask)
    for field in fields_of(command):
        value = getattr(command, field.name)
        if field.name == "env":
            for name, text in sorted(value.items()):
                yield f"env.{name}", _Secret(text)
        elif field.name == "argv":
            if script is None:
                words = list(command.argv)
                yield "command", _Secret(repr(words)) if command.redact else words
        elif field.name == "cwd":
            yield "cwd", value
        elif field.name == "timeout":
            yield "command.timeout", value
        elif value != getattr(plain, field.name) and (field.name != "shell" or script is None):
            yield field.name, _Secret(repr(value)) if not field.repr else value


def _facts_of_hooks(stored: str | None) -> Iterator[tuple[str, Any]]:
    for name, commands in stored_hooks(stored).items():
        texts = [one.to_json() for one in commands]
        fact = _Secret(json.dumps(texts))
        fact.shown = [str(CommandView.from_json(text)) for text in texts]
        yield name, fact


class _Secret(str):  # noqa: SLOT000 - each has its own `shown`
    """A value that is compared, and not shown as it is."""

    shown: Any = _HIDDEN


def _masked(fields: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    return {name: (_shown(before), _shown(after)) for name, (before, after) in fields.items()}


def _shown(value: Any) -> Any:
    return value.shown if isinstance(value, _Secret) else value
