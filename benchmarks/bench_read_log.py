"""Read log: how fast a whole log and its last lines are read."""

from __future__ import annotations

import tempfile

from benchmarks.timing import Ratio, Series
from jobcore import JobManager

DEFAULT_N = 1_000_000


def measure(n: int, rounds: int) -> list[Series | Ratio]:
    """Read a log of `n` lines as lines, as text, and ten lines of its end."""
    lines = Series(f"logs, all of {n} lines", n, "lines")
    text = Series(f"log_text, all of {n} lines", n, "lines")
    last = Series(f"logs, the last 10 of {n} lines")
    with tempfile.TemporaryDirectory() as folder, JobManager(f"{folder}/jobs.db", slots=1) as jobs:
        job = jobs.wait(jobs.submit(["seq", str(n)]).id)
        for _ in range(rounds):
            with lines.sample():
                count = sum(1 for _ in jobs.logs(job.id))
            with text.sample():
                size = sum(map(len, jobs.log_text(job.id)))
            with last.sample():
                list(jobs.logs(job.id, max(n - 10, 0)))
            assert (count, size > n) == (n, True)
    return [lines, text, last]
