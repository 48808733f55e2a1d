"""Sets, pauses and shows the limits of the file, of groups and of job types."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from jobcore import checks
from jobcore.clock import Clock, to_datetime
from jobcore.errors import ArgumentError
from jobcore.lifecycle import Status
from jobcore.models import Limit
from jobcore.operations.arguments import checked_group
from jobcore.storage import job_rows, limits
from jobcore.storage.database import Database
from jobcore.storage.job_rows import JobFilter
from jobcore.tuning import MOST_SLOTS


class LimitOperations:
    """
    Changes limits. Each change holds for every claim that is written after it.

    Args:
        clock: Tells since when something is paused.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def set_slots(self, group: Any, kind: Any, slots: Any) -> Limit:
        """Set how many jobs may run at once; None: any number."""
        if slots == 0 and checks.is_integer(slots):
            raise ArgumentError("slots must be 1 or more: to start no jobs, use pause()")
        most = None if slots is None else checks.integer(slots, "slots", 1, MOST_SLOTS)
        return self._change(group, kind, way=limits.SET, slots=most)

    def pause(self, group: Any, kind: Any) -> Limit:
        """Let no more jobs start."""
        return self._change(group, kind, way=limits.PAUSE, now=self._clock.now())

    def resume(self, group: Any, kind: Any) -> Limit:
        """Let jobs start again."""
        return self._change(group, kind, way=limits.RESUME)

    def _change(self, group: Any, kind: Any, **how: Any) -> Limit:
        """Change a limit; `how` are the arguments of `limits.change`."""
        scope, name = _checked_scope(group, kind)

        def write(connection: Connection) -> Limit:
            limits.change(connection, scope, name, **how)
            known = {(one.scope, one.name): one for one in limits.stored(connection)}
            stored = known.get((scope, name), limits.Limit(scope, name, None, None))
            return _shown(connection, stored, limits.running(connection))

        return self._database.write(write, about=f"the limit of the {limits.in_words(scope, name)}")

    def all(self) -> list[Limit]:
        """Return all limits and pauses."""
        with self._database.read() as connection:
            stored = limits.stored(connection)
            running = limits.running(connection) if stored else {}
            return [_shown(connection, limit, running) for limit in stored]


def _checked_scope(group: Any, kind: Any) -> tuple[str, str]:
    """Return scope and name of what is limited."""
    if group is not None and kind is not None:
        raise ArgumentError("give a group or a type, not both")
    if group is not None:
        return limits.GROUP, checked_group(group)
    return (limits.FILE, "") if kind is None else (limits.TYPE, checks.text(kind, "type"))


def _shown(
    connection: Connection, limit: limits.Limit, running: dict[tuple[str, str], int]
) -> Limit:
    scope, name, slots, paused = limit
    if scope == limits.GROUP:
        queued = limits.queued_of_group(connection, name)
    else:
        kinds = None if scope == limits.FILE else frozenset((name,))
        wanted = JobFilter(statuses=frozenset((Status.QUEUED,)), types=kinds)
        queued = job_rows.count_jobs(connection, wanted)[Status.QUEUED]
    return Limit.model_validate(
        {
            "scope": scope,
            "name": name or None,
            "slots": slots,
            "paused": None if paused is None else to_datetime(paused),
            "running": running.get((scope, name), 0),
            "queued": queued,
        }
    )
