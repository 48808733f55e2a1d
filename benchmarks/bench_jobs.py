"""Durable jobs a second, beside tools that keep less."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from benchmarks.peers import command_peers
from benchmarks.timing import Goal, Series
from jobcore import JobManager, Status

DEFAULT_N, QUICK_N = 1000, 100


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Run `true` `n` times: as jobs through 4 slots, submitted in two ways, and by each peer."""
    peers = command_peers(n)
    xargs = peers[0][0]
    together = Series("submit_many, 4 slots", "jobs/s", Goal(0.5, "ratio"), xargs)
    single = Series("submit, 4 slots", "jobs/s", Goal(0.5, "ratio"), xargs)

    def submit_each(jobs: JobManager) -> None:
        for _ in range(n):
            jobs.submit(["true"])

    for _ in range(rounds):
        _sample(together, n, folder, lambda jobs: jobs.submit_many([["true"]] * n))
        _sample(single, n, folder, submit_each)
        for series, sample in peers:
            if not series.missing:
                sample()
    return [together, single, *(series for series, _ in peers)]


def _sample(series: Series, n: int, folder: str, submit: Callable[[JobManager], object]) -> None:
    with (
        tempfile.TemporaryDirectory(dir=folder) as place,
        JobManager(os.path.join(place, "jobs.db"), slots=4) as jobs,
    ):
        with series.sample(n):
            submit(jobs)
            jobs.drain()
        assert jobs.count_jobs()[Status.COMPLETE] == n
