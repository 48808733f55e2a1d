"""
Reads the queue: which jobs may start now, in order.

Jobs of higher priority come first, then the older ones. The reads jump: over the jobs of a full
or paused group or type, over jobs that are not due, over those that other processes have
reserved, and over batches that are not published. So their cost depends on the number of groups
and of the jobs that are wanted, not on the number of jobs that wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select, text

from jobcore.checks import LARGEST_INTEGER
from jobcore.lifecycle import Status
from jobcore.storage import limits
from jobcore.storage.limits import Room, as_text
from jobcore.storage.statement import Statement, driver_of, in_parts
from jobcore.storage.tables import IS_VISIBLE, batch, has_status, job

#: Types that are looked for in one statement; SQLite allows 500 parts.
PROBED = 100
#: Jobs of one group that are read at once.
PAGE = 32
#: Due jobs of one group and priority that are put in the order of creation. If more are due, those
#: that became due first come first.
DUE_AT_ONCE = 500
#: How many jobs of the queue are read to find those of one manager. After that, these are looked
#: up by their numbers.
MOST_WALKED = 500


class Candidate(NamedTuple):
    """A job that may start. Candidates compare in the order of the queue."""

    negative_priority: int
    number: int
    type: str
    group: str | None


# --- the statements -------------------------------------------------------------

# Names of groups are read and bound as bytes, so that one that is not UTF-8 hides no other group.
# Values of a damaged type come last among the groups, and first among the priorities: a damaged
# priority counts as the highest one, and jobs of a damaged group are not read.
_PRIORITY = f"CASE typeof(priority) WHEN 'integer' THEN priority ELSE {LARGEST_INTEGER} END"
_GROUP = "CAST(group_name AS BLOB)"
_OF_TYPE = "type = :type AND status = 'QUEUED' AND unmet = 0 AND deleted_at IS NULL"
_READY = f"{_OF_TYPE} AND owner IS :owner AND not_before IS NULL"
_DELAYED = f"{_OF_TYPE} AND owner IS :owner AND not_before IS NOT NULL"
_THIS_GROUP = "group_name IS CAST(:group AS TEXT)"


def _statement(columns: str, where: str, order: str, limit: str) -> Statement:
    return Statement(
        text(f"SELECT {columns} FROM job WHERE {where} ORDER BY {order} LIMIT {limit}")  # noqa: S608 - our own texts
    )


_ANY = Statement(
    text("SELECT EXISTS (SELECT 1 FROM job WHERE status = 'QUEUED' AND deleted_at IS NULL)")
)


def has_any(connection: Connection) -> bool:
    """Tell whether any job is QUEUED, whatever it waits for."""
    ((found,),) = _ANY(connection)
    return bool(found)


def _first(where: str, value: str, order: str) -> str:
    """Return a subquery for the value of the first row, as bytes."""
    return f"(SELECT CAST({value} AS BLOB) FROM job WHERE {where} ORDER BY {order} LIMIT 1)"  # noqa: S608 - our own texts


# A recursive statement can hand only one value from step to step without a second search. So the
# first job of each group becomes a text: priority and number in 21 characters each, and the group.
_READY_HEAD = f"printf('%+021d%+021d', {_PRIORITY}, number) || group_name"
_READY_ORDER = "group_name, priority DESC, number"
_GROUP_OF_HEAD = "CAST(substr(head.x, 43) AS TEXT)"
_READY_HEADS = Statement(
    text(
        "WITH RECURSIVE head(x) AS (SELECT "  # noqa: S608 - our own texts
        + _first(f"{_READY} AND group_name > '' AND group_name < x''", _READY_HEAD, _READY_ORDER)
        + " UNION ALL SELECT "
        + _first(
            f"{_READY} AND group_name > {_GROUP_OF_HEAD} AND group_name < x''",
            _READY_HEAD,
            _READY_ORDER,
        )
        + " FROM head WHERE head.x IS NOT NULL) SELECT x FROM head WHERE x IS NOT NULL"
    )
)
# The same for each priority of the delayed jobs of each group: the priority in 21 characters,
# whether a job is due, and the group behind "=", or "-" for no group.
_DELAYED_HEAD = (
    f"printf('%+021d%d', {_PRIORITY}, not_before <= :now) || coalesce('=' || group_name, '-')"
)
_DELAYED_ORDER = "group_name, priority DESC, not_before, number"
_PRIORITY_OF_LEVEL = "CAST(substr(head.x, 1, 21) AS INTEGER)"
_GROUP_OF_LEVEL = (
    "CASE WHEN substr(head.x, 23, 1) = x'3d' THEN CAST(substr(head.x, 24) AS TEXT) END"
)
_LEVEL = f"{_DELAYED} AND group_name IS ({_GROUP_OF_LEVEL}) AND priority"
_DUE_LEVELS = Statement(
    text(
        "WITH RECURSIVE head(x) AS (SELECT coalesce("  # noqa: S608 - our own texts
        + _first(f"{_DELAYED} AND group_name IS NULL", _DELAYED_HEAD, _DELAYED_ORDER)
        + ", "
        + _first(
            f"{_DELAYED} AND group_name > '' AND group_name < x''", _DELAYED_HEAD, _DELAYED_ORDER
        )
        + ") UNION ALL SELECT coalesce("
        + _first(f"{_LEVEL} < {_PRIORITY_OF_LEVEL}", _DELAYED_HEAD, _DELAYED_ORDER)
        + ", "
        + _first(
            f"{_DELAYED} AND group_name > coalesce({_GROUP_OF_LEVEL}, '') AND group_name < x''",
            _DELAYED_HEAD,
            _DELAYED_ORDER,
        )
        + ") FROM head WHERE head.x IS NOT NULL) "
        "SELECT x, (SELECT min(number) FROM (SELECT number FROM job "
        + f"WHERE {_LEVEL} = {_PRIORITY_OF_LEVEL} AND not_before <= :now "
        f"ORDER BY not_before, number LIMIT {DUE_AT_ONCE})) "
        "FROM head WHERE substr(x, 22, 1) = x'31'"
    )
)
_READY_FIRST, _READY_OF_PRIORITY, _READY_BELOW = (
    _statement(
        f"{_PRIORITY}, number",
        f"{_READY} AND {_THIS_GROUP}{further}",
        "priority DESC, number",
        ":most",
    )
    for further in (
        "",
        " AND priority = :priority AND number > :number",
        " AND priority < :priority",
    )
)


@lru_cache(maxsize=16)
def _probe(count: int) -> Statement:
    """
    Return the statement that tells which kinds of jobs there are, for `count` types.

    Its first row tells whether there are limits, and whether there are batches. The others, for
    each type: whether there are jobs without a group, jobs of groups, and jobs that are due.
    Usually there are no limits and no batches, and most types have no queued job. One statement
    that says so takes less time than a statement for each.
    """
    parts = ["SELECT EXISTS (SELECT 1 FROM job_limit), EXISTS (SELECT 1 FROM batch), 0"]
    for number in range(count):
        conditions = (
            f"{_READY} AND group_name IS NULL",
            f"{_READY} AND group_name > ''",
            f"{_OF_TYPE} AND not_before IS NOT NULL AND not_before <= :now",
        )
        found = ", ".join(f"EXISTS (SELECT 1 FROM job WHERE {one})" for one in conditions)  # noqa: S608 - our own texts
        parts.append(f"SELECT {found}".replace(":type", f":type{number}"))
    return Statement(text(" UNION ALL ".join(parts)))


_DUE = _statement(
    "not_before, number",
    f"{_DELAYED} AND {_THIS_GROUP} AND priority = :priority AND not_before <= :now "
    "AND (not_before, number) > (:moment, :number)",
    "not_before, number",
    str(DUE_AT_ONCE),
)
_NEXT_MOMENT = _statement(
    "not_before",
    f"{_OF_TYPE} AND not_before IS NOT NULL AND not_before > :now AND not_before < ''",
    "not_before",
    "1",
)
_OPEN_BATCHES = Statement(select(batch.c.first, batch.c.last).order_by(batch.c.first))


# --- the order ------------------------------------------------------------------


class _Queue:
    """The queue of one type and owner, as it is in one transaction."""

    def __init__(
        self,
        connection: Connection,
        kind: str,
        owner: str | None,
        now: int,
        room: Room,
        hidden: Sequence[tuple[int, int]],
        page: int,
    ) -> None:
        self._connection = connection
        self._kind = kind
        self._values: dict[str, Any] = {"type": kind, "owner": owner}
        self._now = now
        self._room = room
        self._hidden = hidden
        self._page = page

    def parts(
        self, *, alone: bool, grouped: bool, due: bool
    ) -> Iterator[tuple[Candidate, Iterator[Candidate]]]:
        """
        Yield the first job of each group, and of each priority of delayed jobs.

        With each comes an iterator of the jobs after it, which reads nothing before it is asked.

        Args:
            alone: Whether there are jobs without a group.
            grouped: Whether there are jobs of groups.
            due: Whether there are jobs that had to wait for their time.
        """
        if not self._admits(None):
            return
        ready = self._ready(None) if alone else iter(())
        for first in ready:
            yield first, ready
            break
        for (head,) in self._read(_READY_HEADS) if grouped else ():
            priority, number, group = int(head[:21]), int(head[21:42]), head[42:]
            if self._admits(group):
                yield from self._part(priority, number, group, self._ready_after)
        if due:
            for head, number in self._read(_DUE_LEVELS, now=self._now):
                group = head[23:] if head[22:23] == b"=" else None
                if number is not None and self._admits(group):
                    yield from self._part(int(head[:21]), number, group, self._due_after)

    def _part(
        self,
        priority: int,
        number: int,
        group: bytes | None,
        after: Callable[[bytes | None, int, int], Iterator[Candidate]],
    ) -> Iterator[tuple[Candidate, Iterator[Candidate]]]:
        """Yield a job and those after it, or nothing if all are hidden."""
        following = after(group, priority, number)
        if self._end_of_hidden(number) is None:
            yield self._candidate(priority, number, group), following
            return
        for first in following:
            yield first, following
            break

    def _read(self, statement: Statement, **values: Any) -> list[Any]:
        return statement(self._connection, **self._values, **values)

    def _admits(self, group: bytes | None) -> bool:
        if not self._room.limited:
            return True
        return self._room.admits(self._kind, None if group is None else as_text(group))

    def _candidate(self, priority: int, number: int, group: bytes | None) -> Candidate:
        name = None if group is None else as_text(group)
        return Candidate(-priority, number, self._kind, name)

    def _end_of_hidden(self, number: int) -> int | None:
        """Return the last number of the open batch that a job belongs to, or None."""
        return next((last for first, last in self._hidden if first <= number <= last), None)

    def _ready(self, group: bytes | None) -> Iterator[Candidate]:
        """Yield the jobs of a group that have no time before which they may not start."""
        rows = self._read(_READY_FIRST, group=group, most=self._page)
        return self._each(group, rows, more=len(rows) == self._page)

    def _ready_after(self, group: bytes | None, priority: int, number: int) -> Iterator[Candidate]:
        """Yield those that come after a job, which may be hidden."""
        yield from self._each(group, [(priority, number)], first=1)

    def _each(
        self, group: bytes | None, rows: list[Any], *, first: int = 0, more: bool = True
    ) -> Iterator[Candidate]:
        """
        Yield the jobs of these rows from the `first` on, and those after them.

        Args:
            more: Whether there may be jobs after these rows.
        """
        while rows:
            priority, last = rows[-1]
            for level, number in rows:
                end = self._end_of_hidden(number)
                if end is not None:
                    priority, last, first, more = level, end, 0, True
                    break
                if first:
                    first -= 1
                elif self._admits(group):
                    yield self._candidate(level, number, group)
                else:
                    return
            if not more:
                return
            place = {"group": group, "priority": priority, "most": PAGE}
            rows = self._read(_READY_OF_PRIORITY, number=last, **place)
            if not rows:
                rows = self._read(_READY_BELOW, **place)
                more = len(rows) == PAGE

    def _due_after(self, group: bytes | None, priority: int, first: int) -> Iterator[Candidate]:
        """Yield the due jobs of one group and priority but the first one, older ones first."""
        moment = number = -LARGEST_INTEGER
        while True:
            rows = self._read(
                _DUE, group=group, priority=priority, now=self._now, moment=moment, number=number
            )
            for one in sorted(number for _, number in rows):
                if not self._admits(group):
                    return
                if one != first and self._end_of_hidden(one) is None:
                    yield self._candidate(priority, one, group)
            if len(rows) < DUE_AT_ONCE:
                return
            moment, number = rows[-1]


class _Kinds(NamedTuple):
    """
    What there is in the queue, as `_probe` finds it.

    Attributes:
        limits, batches: Whether there are any.
        parts: For each owner and type, the arguments of `_Queue.parts`.
    """

    limits: bool
    batches: bool
    parts: list[tuple[str | None, str, dict[str, bool]]]


def _kinds(connection: Connection, types: Sequence[str], now: int, claimant: str | None) -> _Kinds:
    limited = batched = 0
    each: list[tuple[str | None, str, dict[str, bool]]] = []
    for begin in range(0, len(types), PROBED):
        part = types[begin : begin + PROBED]
        values: dict[str, Any] = {f"type{number}": kind for number, kind in enumerate(part)}
        for owner in dict.fromkeys((None, claimant)):
            (limited, batched, _), *rows = _probe(len(part))(
                connection, owner=owner, now=now, **values
            )
            each += [
                (owner, kind, {"alone": alone, "grouped": grouped, "due": due})
                for kind, (alone, grouped, due) in zip(part, rows, strict=True)
                if alone or grouped or due
            ]
    return _Kinds(bool(limited), bool(batched), each)


def in_order(
    connection: Connection, *, types: Iterable[str], now: int, room: Room, claimant: str | None
) -> Iterator[Candidate]:
    """
    Yield the jobs that may start now, in the order in which they should.

    Read it only within the transaction. If the caller takes room for a job, the jobs that then
    have none are left out.

    Args:
        claimant: The owner whose reserved jobs are included.
    """
    kinds = _kinds(connection, tuple(types), now, claimant)
    return _in_order(connection, kinds, now, room, PAGE)


def _in_order(
    connection: Connection, kinds: _Kinds, now: int, room: Room, page: int
) -> Iterator[Candidate]:
    """Yield what `in_order` does; `page` is the number of jobs to read first."""
    hidden = [tuple(row) for row in _OPEN_BATCHES(connection)] if kinds.batches else []
    parts: list[tuple[Candidate, Iterator[Candidate]]] = []
    for owner, kind, present in kinds.parts:
        one = _Queue(connection, kind, owner, now, room, hidden, page)
        parts += one.parts(**present)
    heapq.heapify(parts)  # no two of the jobs are equal
    while parts:
        first, following = parts[0]
        if not room.limited or room.admits(
            first.type, first.group
        ):  # else it has lost its room meanwhile
            yield first
        for after in following:
            heapq.heapreplace(parts, (after, following))
            break
        else:
            heapq.heappop(parts)


def claimable(
    connection: Connection,
    *,
    types: Sequence[str],
    now: int,
    limit: int,
    room: Room | None = None,
    counted: bool = True,
    claimant: str | None = None,
    without: Collection[object] = (),
    only: Collection[int] | None = None,
) -> list[int]:
    """
    Return the numbers of the first `limit` jobs that may start now, in order.

    Args:
        room: How many more jobs may start; it is used up. None: as many as the limits say.
        counted: As for `limits.room`, if `room` is None.
        claimant: The owner whose reserved jobs are included.
        without: The numbers of jobs to leave out.
        only: Only jobs with these numbers; None: all.
    """
    kinds = _kinds(connection, types, now, claimant)
    if room is None:
        room = limits.room(connection, counted=counted) if kinds.limits else limits.UNLIMITED
    page = min(PAGE, limit + len(without)) if only is None else PAGE
    order = _in_order(connection, kinds, now, room, page)
    if only is not None:
        order = _only(order, only, lambda: _of_numbers(connection, only, types, now, claimant))
    found: list[int] = []
    for one in order:
        if one.number in without:
            continue
        if room.limited:
            if not room.admits(one.type, one.group):
                continue
            room.take(one.type, one.group)
        found.append(one.number)
        if len(found) >= limit:
            break
    return found


def _only(
    order: Iterator[Candidate],
    numbers: Collection[int],
    look_up: Callable[[], list[Candidate]],
) -> Iterator[Candidate]:
    """Yield the jobs with these numbers; look them up if too many others come first."""
    if not numbers:
        return
    seen = set()
    for walked, one in enumerate(order):
        if walked == MOST_WALKED:
            break
        if one.number in numbers:
            seen.add(one.number)
            yield one
    else:
        return
    yield from (one for one in look_up() if one.number not in seen)


def _of_numbers(
    connection: Connection,
    numbers: Collection[int],
    types: Collection[str],
    now: int,
    claimant: str | None,
) -> list[Candidate]:
    """Return those of these jobs that may start now, in order."""
    found: list[Candidate] = []
    hidden = _OPEN_BATCHES(connection)
    for some in in_parts(sorted(numbers)):
        rows = driver_of(connection).execute(
            f"SELECT {_PRIORITY}, number, CAST(type AS BLOB), {_GROUP} FROM job "  # noqa: S608 - our own texts and integers
            f"WHERE number IN ({', '.join(map(str, some))}) AND status = 'QUEUED' AND unmet = 0 "
            "AND deleted_at IS NULL AND (not_before IS NULL OR not_before <= ?) "
            "AND (owner IS NULL OR owner = ?)",
            (now, claimant),
        )
        for priority, number, kind, group in rows.fetchall():
            name = None if group is None else as_text(group)
            if as_text(kind) in types and not any(
                first <= number <= last for first, last in hidden
            ):
                found.append(Candidate(-priority, number, as_text(kind), name))
    return sorted(found)


def queued_numbers(connection: Connection, numbers: Collection[int]) -> set[int]:
    """Return those of `numbers` whose job is QUEUED."""
    found: set[int] = set()
    for some in in_parts(sorted(numbers)):
        queued = select(job.c.number).where(has_status(Status.QUEUED), job.c.number.in_(some))
        found.update(connection.execute(queued).scalars())
    return found


def next_not_before(
    connection: Connection,
    *,
    types: Iterable[str],
    now: int,
    only: Collection[int] | None = None,
) -> int | None:
    """
    Return the earliest `not_before` after `now` of the queued jobs; None: there is none.

    Args:
        only: As for `claimable`.
    """
    moments: list[int] = []
    if only is None:
        for kind in types:
            moments += [moment for (moment,) in _NEXT_MOMENT(connection, type=kind, now=now)]
        return min(moments, default=None)
    known = frozenset(types)
    for some in in_parts(sorted(only)):
        rows = driver_of(connection).execute(
            "SELECT not_before, CAST(type AS BLOB) FROM job "  # noqa: S608 - integers
            f"WHERE number IN ({', '.join(map(str, some))}) AND status = 'QUEUED' AND unmet = 0 "
            "AND deleted_at IS NULL AND not_before > ? AND not_before < ''",
            (now,),
        )
        moments += [moment for moment, kind in rows.fetchall() if as_text(kind) in known]
    return min(moments, default=None)


# --- jobs that are cancelled if they have not started in time ----------------------

_EXPIRING = (
    select(job.c.expires)
    .where(has_status(Status.QUEUED), job.c.expires.is_not(None), IS_VISIBLE)
    .order_by(job.c.expires)
)
# With the bound, SQLite prefers the index of the expiring jobs to others by status.
_NEXT_EXPIRY = Statement(_EXPIRING.where(job.c.expires >= 0).limit(1))
_EXPIRED = Statement(
    _EXPIRING.with_only_columns(job.c.number)
    .where(job.c.expires.between(0, bindparam("now")))
    .limit(bindparam("most"))
)


def next_expiry(connection: Connection) -> int | None:
    """Return when the next QUEUED job expires, even if that is past; None: none does."""
    rows = _NEXT_EXPIRY(connection)
    return rows[0][0] if rows else None


def expired(connection: Connection, *, now: int, limit: int) -> list[int]:
    """Return the numbers of up to `limit` QUEUED jobs whose time is over, first the oldest."""
    return [number for (number,) in _EXPIRED(connection, now=now, most=limit)]


def is_expired(row: Row[Any], now: int) -> bool:
    """Tell whether a job is QUEUED and its time is over."""
    expires = row.expires
    # A damaged value is a text.
    return row.status == Status.QUEUED and isinstance(expires, int) and expires <= now
