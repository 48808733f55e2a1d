"""Settle: what a durable end of a job costs."""

from __future__ import annotations

import tempfile

from benchmarks.timing import Ratio, Series
from jobcore import JobManager

DEFAULT_N = 500


def measure(n: int, rounds: int) -> list[Series | Ratio]:
    """Finish `n` jobs of the host's own: the same statement and commit as for a process."""
    series = Series("finish_job, one transaction each")
    with tempfile.TemporaryDirectory() as folder, JobManager(f"{folder}/jobs.db", slots=0) as jobs:
        for _ in range(rounds):
            made = [jobs.start_job(jobs.create_job("TASK").id) for _ in range(n)]
            for job in made:
                with series.sample():
                    jobs.finish_job(job.id)
    return [series]
