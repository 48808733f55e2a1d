"""Changes jobs that wait in the queue, and the `data` of any job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row

from jobcore import checks, parameters
from jobcore.clock import Clock
from jobcore.command import checked_timeout
from jobcore.errors import CommandError, DatabaseCorrupt, InvalidTransition
from jobcore.lifecycle import Status
from jobcore.operations.arguments import UNSET, checked_data, checked_due, checked_priority
from jobcore.operations.lookup import Id, require_job
from jobcore.storage import job_rows
from jobcore.storage.database import Database


def update_job(
    database: Database, clock: Clock, job_id: Id, changes: Mapping[str, Any]
) -> Row[Any]:
    """Change a job, and return it; arguments that are `UNSET` change nothing."""
    checked = _checked({name: one for name, one in changes.items() if one is not UNSET})

    def update(connection: Connection) -> Row[Any]:
        row = require_job(connection, job_id)
        if row.status != Status.QUEUED and checked.keys() - {"data"}:
            raise InvalidTransition(
                row.id, row.status, "update", "only data can be changed after the start"
            )
        columns = dict(checked)
        if "not_before_in" in columns:
            columns["not_before"] = clock.now() + columns.pop("not_before_in")
        if "timeout" in columns:
            columns |= _with_timeout(row, columns.pop("timeout"))
        if columns:
            job_rows.update_job(connection, row.number, columns)
        found = job_rows.get_job(connection, row.number)
        return row if found is None else found

    return database.write(update, about=f"job {job_id}")


def _checked(changes: dict[str, Any]) -> dict[str, Any]:
    """Check the changes, and return the columns, with `timeout` in seconds."""
    found = dict(changes)
    if "priority" in changes:
        found["priority"] = checked_priority(changes["priority"])
    if "not_before" in changes:
        found.pop("not_before")
        found.update(checked_due(changes["not_before"], "not_before"))
    if changes.get("name") is not None:
        found["name"] = checks.text(changes["name"], "name", CommandError)
    if "data" in changes:
        found["data"] = checked_data(changes["data"])
    if "timeout" in changes:
        found["timeout"] = checked_timeout(changes["timeout"])
    return found


def _with_timeout(row: Row[Any], timeout: float | None) -> dict[str, str | None]:
    """Return the columns of a job with another time-out: of its command, or of its run."""
    if row.command is None and row.pipeline_id is None:
        raise CommandError(f"job {row.id} has no command whose timeout could change")
    column = "parameters" if row.command is None else "command"
    stored = getattr(row, column)
    if stored is None:
        return {column: parameters.checked((), None, timeout)}
    try:
        return {column: json.dumps({**json.loads(stored), "timeout": timeout})}
    except (ValueError, TypeError) as error:
        why = f"the stored {column} of a job is invalid: {type(error).__name__}"
    raise DatabaseCorrupt(why)  # outside the handler: a cause would hold the text and its secrets
