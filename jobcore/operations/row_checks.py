"""
Finds the rows of a table that the manager's listings leave out as damaged.

It reads each value as bytes, because a damaged file can hold any value in any column.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Boolean, Float, Integer, Table

from jobcore.clock import to_datetime
from jobcore.command import Command
from jobcore.errors import DatabaseCorrupt
from jobcore.lifecycle import Reason, Status, Trigger
from jobcore.storage import tables

#: The tables with listings, which leave out damaged rows.
LISTED = (tables.workspace, tables.pipeline, tables.job, tables.transition, tables.skip)
#: Columns that hold one of a few words; below, those that hold times.
_WORDS = {
    "job.status": frozenset(map(str, Status)),
    "job.reason": frozenset(map(str, Reason)),
    "job.env_from": frozenset(("submitter", "worker")),
    "transition.trigger": frozenset(map(str, Trigger)),
    "transition.from_status": frozenset(map(str, Status)),
    "transition.to_status": frozenset(map(str, Status)),
    "transition.reason": frozenset(map(str, Reason)),
}
_TIMES = (
    "at", "created", "deleted_at", "due", "end_time", "last_modified", "next_tick", "not_before",
    "paused", "progress_at", "recorded", "start_time", "stop_requested",
)  # fmt: skip


def damaged_rows(table: Table) -> Callable[[sqlite3.Connection], list[str]]:
    """Return a question that finds the damaged rows of a table, and names their bad columns."""
    checks = [(column.name, column.nullable, _check_of(table, column)) for column in table.c]
    names = ", ".join(f'"{name}"' for name, _, _ in checks)
    key = [name for name, _, _ in checks].index("id")

    def look(connection: sqlite3.Connection) -> list[str]:
        connection.text_factory = bytes  # to find texts that are not UTF-8
        found = []
        for rowid, *row in connection.execute(f'SELECT rowid, {names} FROM "{table.name}"'):  # noqa: S608 - our own names
            wrong = [
                name
                for (name, is_optional, is_right), value in zip(checks, row, strict=True)
                if not (is_optional if value is None else is_right(value))
            ]
            if wrong:
                known = row[key] if _is_id(row[key]) else None
                what = f"number {rowid}" if known is None else str(UUID(hex=known.decode()))
                found.append(f"{table.name} {what} ({', '.join(wrong)})")
        return found

    return look


def _check_of(table: Table, column: Any) -> Callable[[Any], bool]:
    """Return a function that tells whether a value other than NULL is valid in a column."""
    words = _WORDS.get(f"{table.name}.{column.name}")
    if words is not None:
        return lambda value: _is_text(value) and value.decode() in words
    if column.name in _TIMES:
        return _is_time
    if column.name == "command":
        return _is_command
    return next((check for kind, check in _CHECKS if isinstance(column.type, kind)), _is_text)


def _is_text(value: Any) -> bool:
    return isinstance(value, bytes) and _parses(value.decode)


def _is_id(value: Any) -> bool:
    return _is_text(value) and len(value) == 32 and _parses(lambda: UUID(hex=value.decode()))


def _is_json(value: Any) -> bool:
    return _parses(lambda: json.loads(value) if isinstance(value, bytes) else value)


def _is_time(value: Any) -> bool:
    return isinstance(value, int) and _parses(lambda: to_datetime(value))


def _is_command(value: Any) -> bool:
    return _is_text(value) and _parses(lambda: Command.from_json(value.decode()))


def _parses(parse: Callable[[], object]) -> bool:
    """Tell whether `parse` succeeds."""
    try:
        parse()
    except (ValueError, OverflowError, RecursionError, DatabaseCorrupt):
        return False
    return True


_CHECKS: tuple[tuple[type, Callable[[Any], bool]], ...] = (
    (tables.Id, _is_id),
    (JSON, _is_json),
    (Boolean, lambda value: value in (0, 1)),
    (Integer, lambda value: isinstance(value, int)),
    (Float, lambda value: isinstance(value, int | float)),
)
