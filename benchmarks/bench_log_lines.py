"""A hundred lines from anywhere in a big log."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing

from benchmarks.big_logs import LINES, lines_file, stored
from benchmarks.timing import Goal, Series
from jobcore import JobManager

#: About ten million lines.
DEFAULT_N, QUICK_N = 9 * LINES, 200_000

_PAGE = 100
_READS = 50


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Read lines at random from a log of `n` lines, and from as many rows of a table."""
    each, times = max(2 * _PAGE, min(n, LINES)), max(1, n // LINES)
    total = each * times
    raw = Series(f"SELECT of {_PAGE} rows of {total:,}", peer=True)
    ours = Series(f"logs, {_PAGE} of {total:,} lines", goal=Goal(1, "p95"), beside=raw)
    last = Series(f"tail, {_PAGE} of {total:,} lines")
    chance = random.Random(1)
    database, job = stored(folder, each, times)
    rows = _rows(folder, each, times)
    with JobManager(database, slots=0) as jobs, closing(sqlite3.connect(rows)) as connection:
        for _ in range(rounds * _READS):
            first = chance.randrange(total - _PAGE)
            with ours.sample():
                found = len(list(jobs.logs(job, first, _PAGE)))
            with last.sample():
                found += len(list(jobs.tail(job, _PAGE)))
            with raw.sample():
                query = "SELECT number, text FROM line WHERE number > ? ORDER BY number LIMIT ?"
                found += len(connection.execute(query, (first, _PAGE)).fetchall())
            assert found == 3 * _PAGE
    return [ours, last, raw]


def _rows(folder: str, each: int, times: int) -> str:
    """Return the path of a database with the same lines as rows."""
    path = os.path.join(folder, f"{each}x{times}-rows.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")  # it is made for reading only
        connection.execute("CREATE TABLE line (number INTEGER PRIMARY KEY, text BLOB)")
        for _ in range(times):
            with open(lines_file(folder, each), "rb") as lines:
                connection.executemany(
                    "INSERT INTO line (text) VALUES (?)", ((line,) for line in lines)
                )
        connection.commit()
    return path
