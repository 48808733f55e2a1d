"""List: how fast pages and counts of many jobs are read."""

from __future__ import annotations

import tempfile

from benchmarks.timing import Ratio, Series
from jobcore import JobManager

DEFAULT_N = 100_000
#: Of so many jobs one is still queued, as in a file with a long history.
QUEUED = 1000


def measure(n: int, rounds: int) -> list[Series | Ratio]:
    """Read the newest page of `n` jobs, that of a rare status, and their number by status."""
    page = Series(f"list_jobs, 100 of {n} jobs")
    rare = Series(f"list_jobs, the QUEUED ones of {n}")
    counts = Series(f"count_jobs, of {n} jobs")
    with tempfile.TemporaryDirectory() as folder, JobManager(f"{folder}/jobs.db", slots=0) as jobs:
        for begin in range(0, n, 10_000):
            jobs.submit_many([["true"]] * min(10_000, n - begin))
        # One statement for all: to cancel each by itself would take minutes.
        jobs._database.write(  # noqa: SLF001 - no verb ends so many at once
            lambda connection: connection.exec_driver_sql(
                "UPDATE job SET status = 'STOPPED', reason = 'cancelled', end_time = created "
                f"WHERE number % {QUEUED} <> 0"
            ).close()
        )
        for _ in range(rounds):
            with page.sample():
                jobs.list_jobs()
            with rare.sample():
                jobs.list_jobs(status="QUEUED")
            with counts.sample():
                assert sum(jobs.count_jobs().values()) == n
    return [page, rare, counts]
