"""Durable submits, from one thread and from eight."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from contextlib import closing

from benchmarks.timing import Goal, Series
from jobcore import JobManager

DEFAULT_N, QUICK_N = 800, 160

_THREADS = 8


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Submit `n` jobs in three ways, and insert `n` rows of their size by SQLite alone."""
    alone = Series("submit, one thread", "jobs/s")
    threads = Series(f"submit, {_THREADS} threads", "jobs/s", Goal(3, "ratio"), alone)
    together = Series(f"submit_many, {n} in one transaction", "jobs/s")
    raw = Series("raw durable insert, one thread", "jobs/s", peer=True, of=alone)
    alone.beside = raw
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            with JobManager(os.path.join(place, "jobs.db"), slots=0) as jobs:
                _submit(jobs, 1)  # opens the connection, creates the default workspace
                with alone.sample(n):
                    _submit(jobs, n)
                with threads.sample(n):
                    _submit_from_threads(jobs, n)
                with together.sample(n):
                    jobs.submit_many([["true"]] * n)
            _insert(raw, os.path.join(place, "raw.db"), n)
    return [threads, alone, together, raw]


def _submit(jobs: JobManager, n: int) -> None:
    for _ in range(n):
        jobs.submit(["true"])


def _submit_from_threads(jobs: JobManager, n: int) -> None:
    shares = [n // _THREADS + (number < n % _THREADS) for number in range(_THREADS)]
    threads = [threading.Thread(target=_submit, args=(jobs, share)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _insert(raw: Series, path: str, n: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(
            "CREATE TABLE job (number INTEGER PRIMARY KEY, id TEXT UNIQUE, row TEXT)"
        )
        with raw.sample(n):
            for _ in range(n):
                connection.execute("BEGIN IMMEDIATE")
                row = (os.urandom(16).hex(), "x" * 300)
                connection.execute("INSERT INTO job (id, row) VALUES (?, ?)", row)
                connection.execute("COMMIT")
