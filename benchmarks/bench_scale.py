"""Few jobs and many: a page, one job, a submit, a run and the counts."""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing

from benchmarks.timing import Goal, Series
from jobcore import JobManager
from jobcore.storage import counts

DEFAULT_N, QUICK_N = 1_000_000, 100_000

_FEW = 1000
_TIMES = 20


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Do the same in a file of a thousand jobs and in one of `n`, and ask SQLite alone."""
    results: list[Series] = []
    with (
        tempfile.TemporaryDirectory(dir=folder) as place,
        closing(_File(os.path.join(place, "few.db"), min(n, _FEW))) as few,
        closing(_File(os.path.join(place, "many.db"), n)) as many,
    ):
        for what, act in _ACTS.items():
            small = Series(f"{what}, {few.size:,} jobs")
            goal = Goal(1.3, "ratio") if what != "count_jobs" else Goal(5)
            large = Series(f"{what}, {many.size:,} jobs", goal=goal, beside=small)
            raw = _raw(what, large) if what in _RAW else None
            for _ in range(rounds * (_TIMES if n > 1 else 1)):
                for series, file in ((small, few), (large, many)):
                    one = file.one()
                    with series.sample():
                        act(file.jobs, one)
                if raw is not None:
                    named = {"id": many.one()}
                    with raw.sample():
                        many.connection.execute(_RAW[what][1], named).fetchall()
            results += [large, small, *([raw] if raw is not None else [])]
    return results


def _raw(what: str, large: Series) -> Series:
    return Series(f"SQLite alone: {_RAW[what][0]}", peer=True, of=large)


class _File:
    """A database of `size` jobs that have ended, open in a manager and by SQLite alone."""

    def __init__(self, path: str, size: int) -> None:
        self.size = size
        self._chance = random.Random(1)
        with JobManager(path, slots=1) as jobs:
            jobs.wait(jobs.submit(["true"]).id)
        self.connection = sqlite3.connect(path, isolation_level=None)
        _multiply(self.connection, size)
        self.jobs = JobManager(path, slots=1)
        self.jobs.wait(self.jobs.submit(["true"]).id)  # starts a supervisor

    def one(self) -> str:
        """Return the id of a job, another one each time."""
        number = self._chance.randrange(self.size) + 1
        query = "SELECT id FROM job WHERE number = ?"
        return str(self.connection.execute(query, (number,)).fetchone()[0])

    def close(self) -> None:
        """Close both."""
        self.jobs.close()
        self.connection.close()


def _multiply(connection: sqlite3.Connection, size: int) -> None:
    """Copy the one row of the table of jobs; one statement takes seconds, `submit` minutes."""
    columns = [row[1] for row in connection.execute("PRAGMA table_info(job)")]
    copied = ", ".join(
        {"number": "i", "id": "lower(hex(randomblob(16)))"}.get(name, name) for name in columns
    )
    guards = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    guards_of_rows = guards.fetchall()
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN IMMEDIATE")
    for name, _ in guards_of_rows:
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        f"INSERT INTO job ({', '.join(columns)}) SELECT {copied} FROM n, job WHERE number = 1",
        (size,),
    )
    counts.count_again(connection)
    for _, text in guards_of_rows:
        connection.execute(text)
    connection.execute("COMMIT")


_ACTS: dict[str, Callable[[JobManager, str], object]] = {
    "list_jobs, a page of 50": lambda jobs, _: jobs.list_jobs(limit=50),
    "get_job": lambda jobs, one: jobs.get_job(one),
    "submit": lambda jobs, _: jobs.submit(["true"], not_before=3600.0),
    "submit and wait": lambda jobs, _: jobs.wait(jobs.submit(["true"]).id),
    "count_jobs": lambda jobs, _: jobs.count_jobs(),
}

#: The same question to SQLite, where it is one.
_RAW = {
    "list_jobs, a page of 50": (
        "a page of 50",
        "SELECT * FROM job WHERE deleted_at IS NULL ORDER BY number DESC LIMIT 50",
    ),
    "get_job": ("one row by its id", "SELECT * FROM job WHERE id = :id"),
    "count_jobs": (
        "GROUP BY status",
        "SELECT status, count(*) FROM job WHERE deleted_at IS NULL GROUP BY status",
    ),
}
