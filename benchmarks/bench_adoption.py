"""Running jobs, after their host was killed."""

from __future__ import annotations

import json
import os
import tempfile

from benchmarks.processes import gate, program, started, waiting
from benchmarks.timing import Goal, Series, wait_until

DEFAULT_N, QUICK_N = 200, 40

_HOST = """
import json, sys
from jobcore import JobManager
jobs = JobManager(sys.argv[1], slots=int(sys.argv[3]))
jobs.submit_many([json.loads(sys.argv[2])] * int(sys.argv[3]))
sys.stdin.readline()
"""

#: Adopts the jobs, prints the milliseconds and how many run, and waits for them.
_NEXT_HOST = """
import sys, time
from jobcore import JobManager
n = int(sys.argv[2])
begun = time.perf_counter()
jobs = JobManager(sys.argv[1], slots=n)
jobs.recover()
print((time.perf_counter() - begun) * 1000, flush=True)
print(jobs.count_jobs()["RUNNING"], flush=True)
sys.stdin.readline()
jobs.close()
"""

#: Settles jobs that ended without a host, and prints the milliseconds and how many there were.
_LAST_HOST = """
import sys, time
from jobcore import JobManager
begun = time.perf_counter()
with JobManager(sys.argv[1], slots=0) as jobs:
    settled = jobs.recover()
    print((time.perf_counter() - begun) * 1000, flush=True)
    print(sum(job.exit_code == 0 for job in settled), flush=True)
"""


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """SIGKILL a host of `n` running jobs, adopt them, let them end alone, and settle them."""
    adopted = Series(f"open and adopt {n} running jobs", goal=Goal(200))
    settled = Series(f"open and settle {n} that ended alone")
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            _sample(adopted, settled, n, place)
    return [adopted, settled]


def _sample(adopted: Series, settled: Series, n: int, place: str) -> None:
    database = os.path.join(place, "jobs.db")
    with gate(place):
        with program(_HOST, database, json.dumps(waiting(place)), n) as host:
            wait_until(lambda: started(place) == n)
            host.kill()
        with program(_NEXT_HOST, database, n) as host:
            adopted.values.append(host.read())
            assert host.read() == n
            host.go_on()
    wait_until(lambda: _ended(database) == n)
    with program(_LAST_HOST, database) as host:
        settled.values.append(host.read())
        assert host.read() == n


def _ended(database: str) -> int:
    """Return how many jobs have left an exit record."""
    root = f"{database}.jobs"
    return sum(os.path.exists(f"{root}/{name}/exit") for name in os.listdir(root))
