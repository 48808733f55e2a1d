"""Calls of functions as jobs."""

from __future__ import annotations

import gc
import operator
import os
import subprocess
import sys
import tempfile

from benchmarks.peers import function_peers
from benchmarks.timing import Goal, Series
from jobcore import Command, FunctionExecutor, JobManager, function_command

DEFAULT_N, QUICK_N = 50, 10


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Call a tiny function `n` times, one after the other, and twice as often all at once."""
    command = Series("python -c pass as a job", "calls/s")
    calls = Series("one after the other", "calls/s", Goal(0.8, "ratio"), command)
    burst = Series(f"{2 * n} at once, 4 slots", "calls/s")
    warm = Series("one after the other, warm", "calls/s")
    warm_burst = Series(f"{2 * n} at once, 2 slots, warm", "calls/s", Goal(200))
    bare = Series("python -c pass, bare", "calls/s", peer=True)
    peers = function_peers(2 * n)
    call, nothing = function_command(operator.add, [1, 2]), [sys.executable, "-c", "pass"]
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            with JobManager(os.path.join(place, "one.db"), slots=1) as jobs:
                jobs.wait(jobs.submit(["true"]).id)  # starts a supervisor
                with calls.sample(n):
                    for _ in range(n):
                        job = jobs.wait(jobs.submit(call, type="FUNCTION").id)
                        assert jobs.result(job.id) == 3
                with command.sample(n):
                    for _ in range(n):
                        jobs.wait(jobs.submit(nothing).id)
            with JobManager(os.path.join(place, "four.db"), slots=4) as jobs, burst.sample(2 * n):
                made = jobs.submit_many([call] * (2 * n), type="FUNCTION")
                jobs.drain()
                assert jobs.result(made[-1].id) == 3
            measure_warm(place, call, n, warm, warm_burst)
        with bare.sample(n):
            for _ in range(n):
                subprocess.run(nothing, check=True)
        for series, sample in peers:
            if not series.missing:
                sample()
    return [calls, warm, command, burst, warm_burst, bare, *(series for series, _ in peers)]


def measure_warm(place: str, call: Command, n: int, single: Series, burst: Series) -> None:
    """Make the same calls by processes that warm interpreters fork, which have started before."""
    executors = {"FUNCTION": FunctionExecutor(warm=True, preload=["operator"])}
    is_warm = function_command(gc.get_freeze_count)  # a warm interpreter has frozen its objects
    with JobManager(os.path.join(place, "warm.db"), slots=2, executors=executors) as jobs:
        ready = False
        while not ready:  # both supervisors make calls
            made = jobs.submit_many([is_warm] * 4, type="FUNCTION")
            ready = all(jobs.result(jobs.wait(job.id).id) for job in made)
        with single.sample(n):
            for _ in range(n):
                job = jobs.wait(jobs.submit(call, type="FUNCTION").id)
                assert jobs.result(job.id) == 3
        with burst.sample(2 * n):
            made = jobs.submit_many([call] * (2 * n), type="FUNCTION")
            jobs.drain()
            assert jobs.result(made[-1].id) == 3
