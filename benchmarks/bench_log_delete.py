"""Delete a job with a big log."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing

from benchmarks.big_logs import LINES, QUICK_LINES, lines_file, write
from benchmarks.processes import program
from benchmarks.timing import Goal, Series
from jobcore import JobManager

DEFAULT_N, QUICK_N = LINES, QUICK_LINES

#: Begins a write again and again until its input ends; prints the longest wait in milliseconds.
_WRITER = """
import select, sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
longest, since = 0.0, None
print("1", flush=True)
while not select.select([sys.stdin], [], [], 0.001)[0]:
    now = time.perf_counter()
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        since = since or now
        continue
    connection.execute("ROLLBACK")
    if since is not None:
        longest, since = max(longest, now - since), None
print(longest * 1000, flush=True)
"""


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Delete a job of `n` lines while another process wants to write, and the same rows."""
    rows = Series("DELETE of as many rows", peer=True)
    ours = Series(f"delete_job, {n:,} lines", goal=Goal(50), beside=rows)
    longest = Series("longest wait of another writer", goal=Goal(50))
    text = lines_file(folder, n)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            database = os.path.join(place, "jobs.db")
            with JobManager(database, slots=1) as jobs:
                job = write(jobs, [text], n)
                with program(_WRITER, database) as writer:
                    writer.read()
                    with ours.sample():
                        jobs.delete_job(job)
                    writer.go_on()
                    longest.values.append(writer.read())
            _delete_rows(rows, text, os.path.join(place, "rows.db"))
    return [ours, longest, rows]


def _delete_rows(rows: Series, text: str, path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE line (job, number, text, PRIMARY KEY (job, number))")
        with open(text, "rb") as lines:
            numbered = ((1, number, line) for number, line in enumerate(lines))
            connection.executemany("INSERT INTO line VALUES (?, ?, ?)", numbered)
        connection.commit()
        with rows.sample():
            connection.execute("DELETE FROM line WHERE job = 1")
            connection.commit()
