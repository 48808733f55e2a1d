"""Spawn: how many commands a second go the whole way, beside tools that keep nothing."""

from __future__ import annotations

import subprocess
import tempfile

from benchmarks.timing import Ratio, Series
from jobcore import JobManager, Status

DEFAULT_N = 1000


def measure(n: int, rounds: int) -> list[Series | Ratio]:
    """Run `true` `n` times: as jobs through 4 slots, by xargs, and in a bare loop."""
    ours = Series(f"jobcore, {n} jobs through 4 slots", n, "jobs")
    xargs = Series("xargs -P2 -n1 true", n, "commands")
    bare = Series('subprocess.run(["true"]) in a loop', n, "commands")
    numbers = "\n".join(map(str, range(n))).encode()
    for _ in range(rounds):
        with (
            tempfile.TemporaryDirectory() as folder,
            JobManager(f"{folder}/jobs.db", slots=4) as jobs,
        ):
            with ours.sample():
                jobs.submit_many([["true"]] * n)
                jobs.drain()
            assert jobs.count_jobs()[Status.COMPLETE] == n
        with xargs.sample():
            subprocess.run(["xargs", "-P2", "-n1", "true"], input=numbers, check=True)
        with bare.sample():
            for _ in range(n):
                subprocess.run(["true"], check=True)
    return [
        ours,
        xargs,
        bare,
        Ratio("jobcore / xargs", ours.median / xargs.median),
        Ratio("jobcore / bare loop", ours.median / bare.median),
    ]
