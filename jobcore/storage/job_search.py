"""
Finds jobs by any filter, in any order.

Filters by owner, status and type alone are read from indexes that have the jobs in order; see
`job_rows.list_jobs`. For the others there are two ways. If an index of one of the conditions
gives few jobs, these are examined. Otherwise the jobs of the plain filters are examined, newest
first, until there are enough. Each statement examines a bounded number of jobs.
"""

# ruff: noqa: S608 - the words in these statements are our own

from __future__ import annotations

import heapq
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, TextClause, select, text

from jobcore.checks import LARGEST_INTEGER
from jobcore.lifecycle import FINAL, Status, statuses_with
from jobcore.storage import job_rows
from jobcore.storage.damage import Failed, read_rows, unconverted
from jobcore.storage.job_rows import JobFilter
from jobcore.storage.statement import driver_of, in_parts
from jobcore.storage.tables import SHOWN, job

#: The most jobs of one condition's index that are all examined.
CANDIDATES = 5000
#: Jobs that one statement examines.
AT_ONCE = 500
#: Numbers that one statement looks through.
WINDOW = 1000
#: The same if each status is read separately.
WALKED = 200
#: Entries of an index that one statement reads.
ENTRIES = 2000

#: What a listing can be ordered by, and the values that are compared; all of them descend.
ORDERS = {
    "created": "number",
    "started": "start_time",
    "ended": "end_time",
    "duration": "end_time - start_time",
}

_VISIBLE = (
    "deleted_at IS NULL AND NOT EXISTS "
    "(SELECT 1 FROM batch WHERE job.number BETWEEN batch.first AND batch.last)"
)


class Place(NamedTuple):
    """The place of a job in an order: the value that is compared, and its number."""

    value: int
    number: int


class _Where(NamedTuple):
    """A condition in SQL, with its values."""

    text: str
    values: dict[str, Any]


def _execute(connection: Connection, text: str, values: dict[str, Any]) -> list[Any]:
    rows: list[Any] = driver_of(connection).execute(text, values).fetchall()
    return rows


# --- the conditions -----------------------------------------------------------------


def condition(wanted: JobFilter) -> TextClause:
    """Return all conditions of a filter as one for statements on the table of jobs."""
    where = _where(wanted)
    return text(where.text).bindparams(**where.values)


def _where(wanted: JobFilter) -> _Where:
    """Return all conditions of a filter as one, which also leaves out hidden jobs."""
    parts = [_Where(_VISIBLE, {}), *_times(wanted)]
    for column, value in (
        ("workspace_id", None if wanted.workspace_id is None else wanted.workspace_id.hex),
        ("pipeline_id", None if wanted.pipeline_id is None else wanted.pipeline_id.hex),
        ("key", wanted.key),
        ("group_name", wanted.group),
    ):
        if value is not None:
            parts.append(_Where(f'"{column}" = :{column}', {column: value}))
    if wanted.name is not None:
        parts.append(_Where("name GLOB :glob", {"glob": wanted.name}))
    several: tuple[tuple[str, Iterable[str | int] | None], ...] = (
        ("status", wanted.statuses),
        ("type", wanted.types),
        ("reason", wanted.reasons),
        ("exit_code", wanted.exit_codes),
    )
    for column, members in several:
        if members is not None:  # as one value, because SQLite limits their number
            among = f"{column} IN (SELECT value FROM json_each(:{column}))"
            parts.append(_Where(among, {column: json.dumps(sorted(members))}))
    values = {name: value for part in parts for name, value in part.values.items()}
    return _Where(" AND ".join(part.text for part in parts), values)


def _times(wanted: JobFilter) -> Iterator[_Where]:
    """Yield the conditions on the times of the end and of the creation."""
    for column, since, until in (
        ("end_time", wanted.ended_since, wanted.ended_until),
        ("created", wanted.created_since, wanted.created_until),
    ):
        if since is not None or until is not None:
            # Both bounds, because an index of another condition could look better with one.
            between = f"{column} >= :{column}_since AND {column} < :{column}_until"
            bounds = {
                f"{column}_since": -LARGEST_INTEGER if since is None else since,
                f"{column}_until": LARGEST_INTEGER if until is None else until,
            }
            yield _Where(between, bounds)


def _indexed(wanted: JobFilter) -> Iterator[_Where]:
    """Yield those conditions of a filter that have an index of their own."""
    if wanted.key is not None:
        yield _Where('"key" = :key', {"key": wanted.key})
    if wanted.name is not None:
        prefix = re.split(r"[*?\[]", wanted.name)[0]
        if prefix == wanted.name:
            yield _Where("name = :name", {"name": wanted.name})
        elif prefix:
            after = _after(prefix)
            yield _Where(
                "name >= :prefix" + (" AND name < :after" if after else ""),
                {"prefix": prefix, **({"after": after} if after else {})},
            )
    if wanted.group is not None:
        yield _Where("group_name = :group", {"group": wanted.group})
    yield from _times(wanted)


def _after(prefix: str) -> str | None:
    """Return the first text after all that begin with `prefix`; None: there is none."""
    following = ord(prefix[-1]) + 1
    if following == 0xD800:
        following = 0xE000  # the code points in between are no characters
    return prefix[:-1] + chr(following) if following <= 0x10FFFF else None


# --- the ways -----------------------------------------------------------------------


def _candidates(
    connection: Connection, wanted: JobFilter, *, newest_first: bool
) -> list[int] | None:
    """
    Return numbers among which all jobs of a filter are; None: that would be too many.

    Args:
        newest_first: The jobs of the plain conditions can be read in the order that is wanted.
    """
    for source in _indexed(wanted):
        rows = _execute(
            connection,
            f"SELECT number FROM job WHERE {source.text} LIMIT {CANDIDATES + 1}",
            source.values,
        )
        if len(rows) <= CANDIDATES:
            return [number for (number,) in rows]
    if newest_first or sum(job_rows.count_jobs(connection, wanted).values()) > CANDIDATES:
        return None
    return [number for part in _walk(connection, wanted, None) for number in part]


def _walk(connection: Connection, wanted: JobFilter, before: int | None) -> Iterator[list[int]]:
    """
    Yield the numbers of the jobs that meet the plain conditions, newest first, in parts.

    If there are many types, the jobs of all types are yielded.
    """
    if wanted.has_many_types:
        wanted = wanted._replace(types=None)
    while True:
        numbers = job_rows.list_numbers(connection, wanted, limit=WALKED, before=before)
        if numbers:
            yield numbers
        if len(numbers) < WALKED:
            return
        before = numbers[-1]


def _examine(
    connection: Connection, wanted: JobFilter, numbers: Sequence[int], columns: str = "number"
) -> list[Any]:
    """Return columns of those of these jobs that match the filter."""
    where = _where(wanted)
    # NOT INDEXED: SQLite finds them by their numbers, not by an index of another condition.
    return _execute(
        connection,
        f"SELECT {columns} FROM job NOT INDEXED "
        f"WHERE number IN ({', '.join(map(str, numbers))}) AND {where.text}",
        where.values,
    )


def find(
    connection: Connection, wanted: JobFilter, *, order: str, limit: int, after: Place | None
) -> list[int]:
    """
    Return the numbers of up to `limit` jobs in an order, those after a place.

    Jobs without the value that is compared are left out.

    Args:
        order: One of `ORDERS`; the highest values come first, and of equal ones the newest job.
        after: The place of the last job of the previous page; None: the first page.
    """
    wanted = _narrowed(connection, wanted)
    found: list[int] = []
    for numbers in _matching(connection, wanted, order, limit, after):
        found += numbers
        if len(found) >= limit:
            break
    return found[:limit]


def _narrowed(connection: Connection, wanted: JobFilter) -> JobFilter:
    """Return a filter without types that no job has, and statuses that other conditions exclude."""
    if wanted.has_many_types and wanted.types is not None:
        wanted = wanted._replace(types=wanted.types & job_rows.known_types(connection))
    possible: frozenset[Status] | None = wanted.statuses
    ended = (wanted.reasons, wanted.exit_codes, wanted.ended_since, wanted.ended_until)
    if any(one is not None for one in ended):
        possible = FINAL if possible is None else FINAL & possible
    if possible is not None and wanted.reasons is not None:
        possible &= frozenset[Status]().union(*map(statuses_with, wanted.reasons))
    if possible is not None and wanted.exit_codes is not None and 0 not in wanted.exit_codes:
        possible -= {Status.COMPLETE}
    return wanted._replace(statuses=possible)


def _matching(
    connection: Connection, wanted: JobFilter, order: str, limit: int, after: Place | None
) -> Iterator[list[int]]:
    """Yield the numbers of the jobs that match, in an order, in parts."""
    candidates = _candidates(connection, wanted, newest_first=order == "created")
    if candidates is None and order == "created" and _is_broad(connection, wanted):
        yield from _windows(connection, wanted, None if after is None else after.number)
        return
    for numbers in _in_order(connection, candidates, wanted, order, limit, after):
        found = {number for (number,) in _examine(connection, wanted, numbers)}
        yield [number for number in numbers if number in found]


def _is_broad(connection: Connection, wanted: JobFilter) -> bool:
    """Tell whether the plain conditions select so many jobs that all jobs can be read instead."""
    selected, every = (
        sum(job_rows.count_jobs(connection, one).values()) for one in (wanted, JobFilter())
    )
    return 4 * selected > every


def _windows(
    connection: Connection, wanted: JobFilter, before: int | None, column: str = "number"
) -> Iterator[list[Any]]:
    """Yield a column of the jobs that match, newest first, from all jobs, in parts."""
    where = _where(wanted)
    before = LARGEST_INTEGER if before is None else before
    while True:
        # Begin at a job, not at a number: a damaged number may be far away.
        newest = _execute(
            connection, "SELECT max(number) FROM job WHERE number < :before", {"before": before}
        )
        if newest[0][0] is None:
            return
        before = newest[0][0] - WINDOW + 1
        rows = _execute(
            connection,
            f"SELECT {column} FROM job NOT INDEXED WHERE number BETWEEN :first AND :last "
            f"AND {where.text} ORDER BY number DESC",
            {**where.values, "first": before, "last": newest[0][0]},
        )
        yield [value for (value,) in rows]


def _in_order(
    connection: Connection,
    candidates: list[int] | None,
    wanted: JobFilter,
    order: str,
    limit: int,
    after: Place | None,
) -> Iterator[list[int]]:
    """Yield numbers of jobs that may match, in an order, in parts."""
    if candidates is not None:
        places = (
            place for part in in_parts(candidates) for place in _places_of(connection, order, part)
        )
        yield from in_parts(number for _, number in sorted(_below(places, after), reverse=True))
    elif order == "created":
        yield from _walk(connection, wanted, None if after is None else after.number)
    elif order == "ended":
        yield from _by_end(connection, after)
    else:
        yield from _by_value(connection, order, limit, after)


def _below(
    places: Iterable[tuple[int, int]], after: tuple[int, int] | None
) -> Iterator[tuple[int, int]]:
    return (place for place in places if after is None or place < after)


def _places_of(connection: Connection, order: str, numbers: Sequence[int]) -> list[Place]:
    """Return the places of those of these jobs that have one."""
    value = ORDERS[order]
    rows = _execute(
        connection,
        f"SELECT {value}, number FROM job NOT INDEXED "
        f"WHERE number IN ({', '.join(map(str, numbers))}) AND typeof({value}) = 'integer'",
        {},
    )
    return [Place._make(row) for row in rows]


def place_of(connection: Connection, order: str, number: int) -> Place | None:
    """Return the place of a job in an order; None: it has none."""
    places = _places_of(connection, order, [number])
    return places[0] if places else None


def _by_end(connection: Connection, after: Place | None) -> Iterator[list[int]]:
    """Yield the jobs that have ended, the last one first."""
    place = after or Place(LARGEST_INTEGER, LARGEST_INTEGER)
    while rows := _ends(connection, "end_time, number", place, "<", "DESC", AT_ONCE):
        yield [number for _, number in rows]
        place = Place._make(rows[-1])


def _ends(
    connection: Connection, columns: str, place: Place, compare: str, direction: str, limit: int
) -> list[Any]:
    """Return the next jobs after a place in the index of the ends; empty: these were all."""
    for condition in (
        f"end_time = :value AND number {compare} :number",
        f"end_time {compare} :value",  # not as one row value: SQLite would not seek the number
    ):
        rows = _execute(
            connection,
            f"SELECT {columns} FROM job INDEXED BY jobs_by_end WHERE {condition} "
            f"ORDER BY end_time {direction}, number {direction} LIMIT {limit}",
            place._asdict(),
        )
        if rows:
            return rows
    return []


def _by_value(
    connection: Connection, order: str, limit: int, after: Place | None
) -> Iterator[list[int]]:
    """
    Yield the jobs that have started, or ended, by a value that has no index.

    It compares them in the order of their ends, in an index that has start and end, and keeps the
    first ones. A job starts before it ends. So by start, the rest need not be compared once their
    ends are earlier than the starts that are kept; by duration, all are compared.
    """
    wanted = max(10 * limit, AT_ONCE)
    last: tuple[int, int] | None = after
    while True:
        kept: list[tuple[int, int]] = []  # a heap, the smallest first
        for latest_end, places in _places_by_end(connection, order):
            if order == "started" and len(kept) == wanted and latest_end < kept[0][0]:
                break
            for place in _below(places, last):
                if len(kept) < wanted:
                    heapq.heappush(kept, place)
                elif place > kept[0]:
                    heapq.heapreplace(kept, place)
        kept.sort(reverse=True)
        yield from in_parts(number for _, number in kept)
        if len(kept) < wanted:
            return
        last, wanted = kept[-1], 20 * wanted


def _places_by_end(
    connection: Connection, order: str
) -> Iterator[tuple[int, Sequence[tuple[int, int]]]]:
    """
    Yield the places of all jobs that have one, in parts, running jobs and the last to end first.

    Each part has the latest end of its jobs. The places are plain tuples, which are compared
    faster.
    """
    value = ORDERS[order]
    if order == "started":
        running = _execute(
            connection,
            "SELECT number FROM job INDEXED BY running_jobs WHERE status = 'RUNNING'",
            {},
        )
        for part in in_parts(number for (number,) in running):
            yield LARGEST_INTEGER, _places_of(connection, order, part)
    columns = f"end_time, number, {value}, typeof({value})"
    place = Place(LARGEST_INTEGER, LARGEST_INTEGER)
    while rows := _ends(connection, columns, place, "<", "DESC", ENTRIES):
        yield rows[0][0], [(row[2], row[1]) for row in rows if row[3] == "integer"]
        place = Place(*rows[-1][:2])


def count(connection: Connection, wanted: JobFilter) -> dict[Status, int]:
    """Return the number of jobs of each status that match a filter, including 0."""
    wanted = _narrowed(connection, wanted)
    candidates = _candidates(connection, wanted, newest_first=True)
    counted: Counter[str] = Counter()
    if candidates is None and _is_broad(connection, wanted):
        for statuses in _windows(connection, wanted, None, "status"):
            counted.update(statuses)
    else:
        parts = _walk(connection, wanted, None) if candidates is None else in_parts(candidates)
        for numbers in parts:
            found = _examine(connection, wanted, numbers, "status")
            counted.update(status for (status,) in found)
    # An unknown one is damage, which is reported elsewhere.
    return {status: counted[str(status)] for status in Status}


def shown(connection: Connection, numbers: Sequence[int], failed: Failed) -> list[Row[Any]]:
    """Return the jobs with these numbers as listings show them, in the order of `numbers`."""
    rows: dict[int, Row[Any]] = {}
    for part in in_parts(numbers):
        statement = select(*SHOWN).where(job.c.number.in_(part))
        for row in read_rows(connection, statement, job.c.number, failed, unconverted):
            rows[row.number] = row
    return [rows[number] for number in numbers if number in rows]
