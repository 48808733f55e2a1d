"""Many jobs that run at once."""

from __future__ import annotations

import json
import os
import tempfile
import time

from benchmarks.processes import (
    descendants,
    gate,
    inherits_orphans,
    memory,
    program,
    started,
    waiting,
)
from benchmarks.timing import Goal, Series, wait_until

DEFAULT_N, QUICK_N = 200, 40

_HOST = """
import json, sys, time
from jobcore import JobManager
command = json.loads(sys.argv[2])
n = int(sys.argv[3])
with JobManager(sys.argv[1], slots=n) as jobs:
    print("1", flush=True)
    sys.stdin.readline()
    jobs.submit_many([command] * n)
    for _ in range(2):
        sys.stdin.readline()
        print(time.process_time(), flush=True)
    jobs.drain()
"""


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Start `n` commands at once that wait, and look at their supervisors and their host."""
    start = Series(f"{n} commands started", goal=Goal(1000 * n / DEFAULT_N))
    pss = Series("PSS of a supervisor", "MB", Goal(1.5))
    rss = Series("RSS of a supervisor", "MB")
    idle = Series("host, while nothing happens", "% CPU", Goal(0.5))
    for _ in range(rounds):
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            inherits_orphans(),
            program(_HOST, os.path.join(place, "jobs.db"), json.dumps(waiting(place)), n) as host,
            gate(place),
        ):
            host.read()
            with start.sample():
                host.go_on()
                wait_until(lambda: started(place) == n)
            wait_until(lambda: len(_commands()) == n)
            supervisors = [use.pid for use in descendants() if use.name != "cat"]
            supervisors.remove(host.pid)
            pss.values.append(sum(memory(pid, "Pss") for pid in supervisors) / n)
            rss.values.append(sum(memory(pid, "Rss") for pid in supervisors) / n)
            seconds = n / 40
            time.sleep(seconds / 5)  # what the start has left to do
            host.go_on()
            before = host.read()
            time.sleep(seconds)
            host.go_on()
            idle.values.append((host.read() - before) / seconds * 100)
    return [start, pss, rss, idle]


def _commands() -> list[int]:
    return [use.pid for use in descendants() if use.name == "cat"]
