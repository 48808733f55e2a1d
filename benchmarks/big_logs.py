"""Big logs: lines as data tools write them, and databases that hold jobs that wrote them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from uuid import UUID

from jobcore import JobManager, Status

#: About 150 MB.
LINES, QUICK_LINES = 1_140_000, 60_000

_SOURCES = ("extract.orders", "transform.sessions", "load.warehouse", "http.client", "db.pool")
_TABLES = ("orders", "order_items", "customers", "sessions", "events", "invoices", "shipments")


def lines_file(folder: str, n: int) -> str:
    """Return the path of a file with `n` lines of about 130 bytes, the same at each call."""
    path = os.path.join(folder, f"{n}.log")
    if not os.path.exists(path):
        with open(path, "w", buffering=1 << 20) as file:
            file.writelines(_lines(n))
            file.flush()
            os.fsync(file.fileno())
    return path


def stored(folder: str, n: int, times: int = 1) -> tuple[str, UUID]:
    """Return a database and a job in it that has written `n` lines so many times; made once."""
    database = os.path.join(folder, f"{n}x{times}.db")
    is_made = os.path.exists(database)
    with JobManager(database, slots=0 if is_made else 1) as jobs:
        if not is_made:
            write(jobs, [lines_file(folder, n)] * times, n * times)
        return database, jobs.list_jobs(limit=1)[0].id


def write(jobs: JobManager, paths: list[str], n: int) -> UUID:
    """Run a job that writes these files with `n` lines in all, until each can be read."""
    job = jobs.wait(jobs.submit(["cat", *paths]).id)
    assert (job.status, job.line_count) == (Status.COMPLETE, n)
    return job.id


def _lines(n: int) -> Iterator[str]:
    """Yield lines of three kinds, with numbers, times and names that differ."""
    chance = random.Random(7)
    moment = datetime(2026, 11, 30, 8, tzinfo=timezone.utc)
    for number in range(n):
        moment += timedelta(microseconds=int(chance.random() * 9000))
        now = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        source = _SOURCES[int(chance.random() * len(_SOURCES))]
        table = _TABLES[int(chance.random() * len(_TABLES))]
        kind, size, took = chance.random(), int(chance.random() * 1e9), chance.random() * 900
        if kind < 0.5:
            yield (
                f"{now} INFO  [worker-{number % 7}] {source}: batch {number // 50} wrote "
                f"{size % 5000} rows to {table} in {took:.1f} ms (offset={size}, lag=0)\n"
            )
        elif kind < 0.8:
            yield (
                f"{now} DEBUG [worker-{number % 7}] {source}: GET https://api.example.com/v2/"
                f"{table}/{size}?page={number % 400} 200 {size % 90_000}B {took:.0f}ms\n"
            )
        else:
            record = {"ts": now, "level": "info", "logger": source, "msg": "record processed"}
            yield (
                json.dumps({**record, "id": f"{size:08x}", "rows": size % 9973, "ok": True}) + "\n"
            )
