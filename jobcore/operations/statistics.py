"""
Statistics of a file, by a bounded amount of work.

Numbers of jobs come from the tables of counts. What ended lately is read by the index of ends, up
to a limit, so that a busy file with millions of jobs takes as long as a quiet one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from jobcore.clock import Clock, to_datetime
from jobcore.lifecycle import Status
from jobcore.models import Statistics
from jobcore.storage import job_rows, metrics
from jobcore.storage.database import Database
from jobcore.storage.job_rows import JobFilter

#: The most ended jobs that are read: reading them takes about 50 ms.
MOST_ENDED = 10_000
#: The quantiles of durations.
QUANTILES = (0.5, 0.9, 0.99, 1.0)


def take(database: Database, clock: Clock, window: float) -> Statistics:
    """Return the statistics of now, and of what ended in the last `window` seconds."""
    now = clock.now()
    since = now - round(window * 1e6)
    with database.read() as connection:
        counted = job_rows.count_jobs(connection, JobFilter())
        created = metrics.created(connection)
        waiting = metrics.oldest_waiting(connection, now)
        started = metrics.oldest_start(connection)
        free = metrics.free_bytes(connection)
        ended = metrics.ended_since(connection, since, now, MOST_ENDED)
    if len(ended) == MOST_ENDED:
        since = ended[-1].end_time  # there may be more before it
    reasons = Counter(row.reason for row in ended if row.reason is not None)
    return Statistics(
        at=to_datetime(now),
        since=to_datetime(since),
        created=created,
        jobs=counted,
        ended={
            status: sum(row.status == status for row in ended) for status in Status if status.final
        },
        reasons=dict(sorted(reasons.items())),
        durations=_quantiles(_seconds(row.start_time, row.end_time) for row in ended),
        waits=_quantiles(
            _seconds(max(row.created, row.not_before or 0), row.start_time) for row in ended
        ),
        queue_age=None if waiting is None else max(now - waiting, 0) / 1e6,
        running_age=None if started is None else max(now - started, 0) / 1e6,
        file_size=_size(database.path),
        log_size=_size(f"{database.path}-wal"),
        free_size=free,
    )


def _seconds(begin: int | None, end: int | None) -> float | None:
    return None if begin is None or end is None else max(end - begin, 0) / 1e6


def _quantiles(values: Iterable[float | None]) -> dict[str, float]:
    """Return the quantiles of the values, by nearest rank; nothing if there are none."""
    ordered = sorted(value for value in values if value is not None)
    return {f"{one:g}": _rank(ordered, one) for one in QUANTILES} if ordered else {}


def _rank(ordered: Sequence[float], quantile: float) -> float:
    return ordered[max(-int(-quantile * len(ordered) // 1) - 1, 0)]


def _size(path: str) -> int:
    """Return the size of a file; 0: it is missing. Stat only: opening it could drop locks."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
