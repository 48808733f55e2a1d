"""
Limits: how many jobs of the file, of a group or of a type may run, and which of them are paused.

A claim counts the running jobs in the transaction that writes it. So a limit is exact over all
processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, func, select, text

from jobcore.lifecycle import Status
from jobcore.storage.statement import Statement
from jobcore.storage.tables import has_status, job

FILE, GROUP, TYPE = "file", "group", "type"


class Limit(NamedTuple):
    """
    A limit as it is stored.

    Attributes:
        scope: `FILE`, `GROUP` or `TYPE`.
        name: Of the group or type; empty for the file.
        slots: How many jobs may run at once; None: any number.
        paused: Since when no job may start, in microseconds since 1970; None: they may.
    """

    scope: str
    name: str
    slots: int | None
    paused: int | None


class Room:
    """
    How many more jobs may start in each scope that has a limit.

    Args:
        left: The jobs that may still start, by scope and name.

    Attributes:
        limited: Whether any scope has a limit. If not, callers need not ask.
    """

    __slots__ = ("_left", "limited")

    def __init__(self, left: dict[tuple[str, str], int]) -> None:
        self._left = left
        self.limited = bool(left)

    def admits(self, kind: str, group: str | None) -> bool:
        """Tell whether one more job of this type and group may start."""
        return not self.limited or all(
            self._left.get(scope, 1) > 0 for scope in scopes_of(kind, group)
        )

    def take(self, kind: str, group: str | None) -> None:
        """Note that a job of this type and group starts."""
        if self.limited:
            for scope in scopes_of(kind, group):
                if scope in self._left:
                    self._left[scope] -= 1


#: Nothing is limited. It may be shared, because nothing is taken from it.
UNLIMITED = Room({})


def scopes_of(kind: str, group: str | None) -> list[tuple[str, str]]:
    """Return the scopes that a job of this type and group belongs to."""
    scopes = [(FILE, ""), (TYPE, kind)]
    return scopes if group is None else [*scopes, (GROUP, group)]


_STORED = Statement(
    text(
        "SELECT CAST(scope AS BLOB), CAST(name AS BLOB), "
        # A damaged limit admits no job, because the right number is unknown.
        "CASE WHEN typeof(slots) IN ('integer', 'null') THEN slots ELSE 0 END, "
        "CASE WHEN typeof(paused) IN ('integer', 'null') THEN paused ELSE 0 END "
        "FROM job_limit ORDER BY scope, name"
    )
)
# As bytes, because a damaged name must not keep the other jobs from being counted.
_RUNNING = Statement(
    text(
        "SELECT CAST(type AS BLOB), CAST(group_name AS BLOB), count(*) FROM job "
        "WHERE status = 'RUNNING' GROUP BY type, group_name"
    )
)


def stored(connection: Connection) -> list[Limit]:
    """Return all limits, ordered by scope and name."""
    return [
        Limit(as_text(scope), as_text(name), slots, paused)
        for scope, name, slots, paused in _STORED(connection)
    ]


def in_words(scope: str, name: str) -> str:
    """Return words for a scope, such as `group 'gpu'`."""
    return f"{scope} {name!r}" if name else scope


def running(connection: Connection) -> dict[tuple[str, str], int]:
    """Return how many jobs are RUNNING in each scope, those that a host does itself included."""
    counted: dict[tuple[str, str], int] = {}
    for kind, group, count in _RUNNING(connection):
        for scope in scopes_of(as_text(kind), None if group is None else as_text(group)):
            counted[scope] = counted.get(scope, 0) + count
    return counted


def as_text(raw: bytes) -> str:
    """Return a stored text; bytes that are not UTF-8 become surrogates, as in file names."""
    return raw.decode("utf-8", "surrogateescape")


def room(connection: Connection, *, counted: bool = True) -> Room:
    """
    Return how many more jobs may start.

    Args:
        counted: False: ignore full limits, so that only what is paused has no room.
    """
    limits = stored(connection)
    left = {(limit.scope, limit.name): 0 for limit in limits if limit.paused is not None}
    if counted and any(limit.slots is not None for limit in limits):
        runs = running(connection)
        for scope, name, slots, paused in limits:
            if slots is not None and paused is None:
                left[scope, name] = slots - runs.get((scope, name), 0)
    return Room(left)


_PUT = "INSERT INTO job_limit (scope, name, slots, paused) VALUES (:scope, :name, :slots, :paused) "
#: The ways to change a limit.
SET, PAUSE, RESUME = (
    Statement(text(f"{_PUT} ON CONFLICT (scope, name) DO UPDATE SET {change}"))
    for change in (
        "slots = excluded.slots",
        "paused = coalesce(paused, excluded.paused)",  # the first pause determines the time
        "paused = NULL",
    )
)
_CLEAN = Statement(text("DELETE FROM job_limit WHERE slots IS NULL AND paused IS NULL"))


def change(
    connection: Connection,
    scope: str,
    name: str,
    *,
    way: Statement,
    slots: int | None = None,
    now: int | None = None,
) -> None:
    """
    Change a limit.

    Args:
        way: `SET`, `PAUSE` or `RESUME`.
        slots: For `SET`: how many jobs may run at once; None: any number.
        now: For `PAUSE`: since when no more jobs may start.
    """
    way.count(connection, scope=scope, name=name, slots=slots, paused=now)
    _CLEAN.count(connection)


def causes(connection: Connection) -> Callable[[str, str | None], str | None]:
    """Return a function that tells why no job of a type and group may start: a word, or None."""
    unpaused, left = room(connection, counted=False), room(connection)

    def cause(kind: str, group: str | None) -> str | None:
        if not unpaused.admits(kind, group):
            return "paused"
        return None if left.admits(kind, group) else "limit"

    return cause


#: The most queued jobs of a group that `queued_of_group` counts.
MOST_COUNTED = 1000
_QUEUED_OF_GROUP = Statement(
    select(func.count()).select_from(
        select(job.c.number)
        .where(
            job.c.group_name == bindparam("of_group"),
            job.c.group_name.is_not(None),
            has_status(Status.QUEUED),
        )
        .limit(bindparam("most"))
        .subquery()
    )
)


def queued_of_group(connection: Connection, group: str) -> int:
    """Return how many jobs of a group are queued, counting at most `MOST_COUNTED`."""
    ((count,),) = _QUEUED_OF_GROUP(connection, of_group=group, most=MOST_COUNTED)
    return int(count)
