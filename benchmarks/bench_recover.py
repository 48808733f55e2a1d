"""Recover: how long it takes until all is true again after a host was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

from benchmarks.timing import Ratio, Series, wait_until
from jobcore import JobManager

DEFAULT_N = 20

#: A host with jobs that wait for a file, each with a thousand lines of log.
HOST = """
import sys
from jobcore import JobManager
jobs = JobManager(sys.argv[1], slots=int(sys.argv[2]))
jobs.submit_many([[
    "sh", "-c", 'seq 1000; while [ ! -e "$0" ]; do sleep 0.05; done; exit 3', sys.argv[1] + ".go"
]] * int(sys.argv[2]))
jobs.drain()
"""


def measure(n: int, rounds: int) -> list[Series | Ratio]:
    """Kill a host of `n` running jobs, let them end, and open the database anew."""
    series = Series(f"open and recover, {n} jobs that ended alone")
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            _sample(series, n, f"{folder}/jobs.db")
    return [series]


def _sample(series: Series, n: int, database: str) -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST, database, str(n)])
    with JobManager(database, slots=0) as jobs:
        wait_until(lambda: len(jobs.list_jobs()) == len(_with(database, "run")) == n)
    host.send_signal(signal.SIGKILL)
    host.wait()
    with open(f"{database}.go", "w"):
        pass
    wait_until(lambda: len(_with(database, "exit")) == n)
    with series.sample():
        jobs = JobManager(database, slots=0)
        settled = jobs.recover()
    jobs.close()
    assert [job.exit_code for job in settled] == [3] * n


def _with(database: str, name: str) -> list[str]:
    """Return the directories of jobs that have the file `name`."""
    root = f"{database}.jobs"
    return [job for job in os.listdir(root) if os.path.exists(f"{root}/{job}/{name}")]
