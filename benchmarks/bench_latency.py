"""From the writing of a line until a follower sees it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable

from benchmarks.processes import program
from benchmarks.timing import Goal, Series
from jobcore import JobManager

DEFAULT_N, QUICK_N = 100, 40

_PAUSE = 0.02

#: Waits for the file $2, then prints $1 lines, every 20 ms one with the time. That clock is the
#: same in each process.
_WRITER = """
import os, sys, time
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
for _ in range(int(sys.argv[1])):
    print(time.monotonic_ns(), flush=True)
    time.sleep(0.02)
"""

#: Follows the job $2 and prints the nanoseconds after which it saw each line.
_FOLLOWER = """
import sys, time
from jobcore import JobManager
with JobManager(sys.argv[1], slots=0) as jobs:
    print("0", flush=True)
    for line in jobs.follow(sys.argv[2]):
        print(time.monotonic_ns() - int(line.raw), flush=True)
"""


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Follow jobs that write `n` lines each, and one that is quiet, and a file by `tail -f`."""
    tail = Series("tail -f", peer=True)
    same = Series("follower in the same process", goal=Goal(5), beside=tail)
    other = Series("follower in another process", goal=Goal(15), beside=tail)
    idle = Series("host with an idle follower", "% CPU", Goal(0.3))
    for _ in range(rounds):
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            JobManager(os.path.join(place, "jobs.db"), slots=1) as jobs,
        ):
            writer = [sys.executable, "-c", _WRITER, str(n), place]
            job = jobs.submit(writer)
            seen = [time.monotonic_ns() - int(line.raw) for line in jobs.follow(job.id)]
            _add(same, seen)
            go = os.path.join(place, "go")
            job = jobs.submit([*writer[:-1], go])
            with program(_FOLLOWER, os.path.join(place, "jobs.db"), job.id) as follower:
                follower.read()  # now it is there
                with open(go, "wb"):
                    pass
                _add(other, [follower.read() for _ in range(n)])
            _idle(idle, jobs, n * _PAUSE)
            _tail(tail, n, writer, os.path.join(place, "text"))
    return [same, _p99(same, 25), other, _p99(other, 50), idle, tail]


def _add(series: Series, nanoseconds: Iterable[int]) -> None:
    series.values += [one / 1e6 for one in nanoseconds]


def _p99(series: Series, bound: float) -> Series:
    return Series(f"{series.what}, p99", goal=Goal(bound), values=[series.quantile(0.99)])


def _idle(idle: Series, jobs: JobManager, seconds: float) -> None:
    job = jobs.submit(["sh", "-c", "echo ready; exec sleep 600"])
    lines = jobs.follow(job.id)
    next(lines)
    thread = threading.Thread(target=lambda: list(lines))
    thread.start()
    time.sleep(seconds / 5)  # what the start has left to do
    begun = time.process_time()
    time.sleep(seconds)
    idle.values.append((time.process_time() - begun) / seconds * 100)
    jobs.stop_job(job.id)
    thread.join()


def _tail(series: Series, n: int, writer: list[str], path: str) -> None:
    with open(path, "wb") as text:
        follower = subprocess.Popen(
            ["tail", "-n", "+1", "-f", path], stdout=subprocess.PIPE, bufsize=0
        )
        assert follower.stdout is not None
        process = subprocess.Popen(writer, stdout=text)
        for _ in range(n):
            _add(series, [-int(follower.stdout.readline()) + time.monotonic_ns()])
        process.wait()
        follower.terminate()
        follower.communicate()
