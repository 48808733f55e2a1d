"""Create: what a durable job costs before anything runs."""

from __future__ import annotations

import tempfile

from benchmarks.timing import Ratio, Series
from jobcore import JobManager

DEFAULT_N = 500


def measure(n: int, rounds: int) -> list[Series | Ratio]:
    """Submit `n` jobs one by one, each committed to the disk, and `n` in one transaction."""
    single = Series("submit, one transaction each")
    together = Series(f"submit_many, {n} in one transaction", n, "jobs")
    with tempfile.TemporaryDirectory() as folder, JobManager(f"{folder}/jobs.db", slots=0) as jobs:
        for _ in range(rounds):
            for _ in range(n):
                with single.sample():
                    jobs.submit(["true"])
            with together.sample():
                jobs.submit_many([["true"]] * n)
    return [single, together]
