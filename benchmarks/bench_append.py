"""Append: how fast a log gets from the job directory into the database."""

from __future__ import annotations

import os
import tempfile

from benchmarks.timing import Ratio, Series, wait_until
from jobcore import JobManager, Status

DEFAULT_N = 1_000_000

#: Waits for the file $2, then prints $1 lines of 78 bytes, as long as lines of logs are.
PRINTS_LINES = r"""
while [ ! -e "$2" ]; do sleep 0.05; done
seq -f "2026-01-01T00:00:00.000Z INFO  extract: record %09.0f written to the target" "$1"
"""


def measure(n: int, rounds: int) -> list[Series | Ratio]:
    """Let a job write `n` lines while no host is there, then bring them all in."""
    series = Series(f"import of {n} lines of 78 bytes", n, "lines")
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            _sample(series, n, folder)
    return [series]


def _sample(series: Series, n: int, folder: str) -> None:
    database, go = f"{folder}/jobs.db", f"{folder}/go"
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(["sh", "-c", PRINTS_LINES, "sh", str(n), go])
        wait_until(lambda: jobs.get_job(job.id).status is Status.RUNNING)
    with open(go, "w"):
        pass
    exit_record = f"{database}.jobs/{job.id.hex}/exit"
    wait_until(lambda: os.path.exists(exit_record))
    with JobManager(database, slots=0) as jobs:
        with series.sample():
            jobs.recover()
        assert jobs.get_job(job.id).line_count == n
