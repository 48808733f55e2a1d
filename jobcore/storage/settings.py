"""Settings of the file: its retention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, select

from jobcore.lifecycle import FINAL, Status
from jobcore.storage.statement import Statement
from jobcore.storage.tables import setting

_RETENTION = "retention"
_FIND = Statement(select(setting.c.value).where(setting.c.name == bindparam("of_name")))


class Rule(NamedTuple):
    """
    Which final jobs are removed.

    Attributes:
        statuses: Jobs with one of these statuses.
        keep: Those that ended at least this many seconds ago.
        newest: How many of the newest of them are kept in any case; None: no job.
    """

    statuses: frozenset[Status]
    keep: float
    newest: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the form in which it is stored."""
        return {"statuses": sorted(self.statuses), "keep": self.keep, "count": self.newest}


def retention(connection: Connection) -> list[Rule]:
    """Return the rules by which final jobs are removed; a damaged setting removes nothing."""
    rows = _FIND(connection, of_name=_RETENTION)
    try:
        return [_rule(one) for one in json.loads(rows[0][0])] if rows else []
    except (ValueError, TypeError, LookupError, AttributeError):
        return []


def _rule(stored: dict[str, Any]) -> Rule:
    statuses = frozenset(map(Status, stored["statuses"])) & FINAL
    count = stored["count"]
    return Rule(statuses, float(stored["keep"]), None if count is None else int(count))


def set_retention(connection: Connection, rules: Sequence[Rule]) -> None:
    """Replace the rules."""
    connection.execute(delete(setting).where(setting.c.name == _RETENTION))
    if rules:
        value = json.dumps([one.to_json() for one in rules])
        connection.execute(insert(setting).values(name=_RETENTION, value=value))
