"""Reads and changes the retention rules of the file, which managers with slots apply."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from jobcore import checks, durations
from jobcore.errors import ArgumentError
from jobcore.lifecycle import FINAL
from jobcore.models import Retention
from jobcore.operations.arguments import checked_final
from jobcore.storage import settings
from jobcore.storage.database import Database
from jobcore.storage.settings import Rule


def rules(database: Database) -> list[Retention]:
    """Return the rules of the file."""
    with database.read() as connection:
        return [_shown(one) for one in settings.retention(connection)]


def set_rules(database: Database, keep: Any, statuses: Any, count: Any) -> list[Retention]:
    """Replace the rules for these statuses; without `keep` and `count`, remove them."""
    wanted = FINAL if statuses is None else frozenset(checked_final(statuses))
    if not wanted:
        raise ArgumentError("statuses must name at least one of COMPLETE, ERROR and STOPPED")
    newest = checks.optional_count(count, "count")
    age = None if keep is None else durations.seconds(keep, "keep")
    rule = None
    if age is not None or newest is not None:
        least = checks.seconds(0.0 if age is None else age, "keep", checks.OLDEST)
        rule = Rule(wanted, least, newest)

    def change(connection: Connection) -> list[Rule]:
        others = [
            one._replace(statuses=one.statuses - wanted)
            for one in settings.retention(connection)
            if one.statuses - wanted
        ]
        changed = [*others, *([] if rule is None else [rule])]
        settings.set_retention(connection, changed)
        return changed

    return [_shown(one) for one in database.write(change)]


def _shown(rule: Rule) -> Retention:
    return Retention(statuses=sorted(rule.statuses), keep=rule.keep, count=rule.newest)
