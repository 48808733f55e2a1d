"""The end of a job, stored durably."""

from __future__ import annotations

import os

from benchmarks.timing import Series
from jobcore import JobManager

DEFAULT_N, QUICK_N = 500, 100


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Finish `n` jobs of the host's own: the same statement and commit as for a process."""
    series = Series("finish_job, one transaction each")
    with JobManager(os.path.join(folder, "settle.db"), slots=0) as jobs:
        for _ in range(rounds):
            made = [jobs.start_job(jobs.create_job("TASK").id) for _ in range(n)]
            for job in made:
                with series.sample():
                    jobs.finish_job(job.id)
    return [series]
