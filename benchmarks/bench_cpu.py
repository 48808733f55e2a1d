"""CPU time of a small job, by process."""

from __future__ import annotations

import os
import resource
import tempfile

from benchmarks.processes import descendants, inherits_orphans, program
from benchmarks.timing import Goal, Series

DEFAULT_N, QUICK_N = 1000, 200

_HOST = """
import sys, time
from jobcore import JobManager
with JobManager(sys.argv[1], slots=4) as jobs:
    for n in (8, int(sys.argv[2])):  # first, four supervisors are started
        begun = time.process_time()
        jobs.submit_many([["true"]] * n)
        jobs.drain()
        print(time.process_time() - begun, flush=True)
        sys.stdin.readline()
"""


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Run `true` `n` times as jobs, and ask the kernel what each process has used."""
    floor = Series("true by posix_spawn, with its parent", peer=True)
    total = Series("all", goal=Goal(1.8), beside=floor)
    host, supervisors, commands = Series("host"), Series("supervisors"), Series("commands")
    for _ in range(rounds):
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            inherits_orphans(),
            program(_HOST, os.path.join(place, "jobs.db"), n) as running,
        ):
            running.read()
            before = _supervisors(running.pid)
            running.go_on()
            of_host = running.read()
            after = _supervisors(running.pid)
            running.go_on()
        used = (of_host, after[0] - before[0], after[1] - before[1])
        for series, seconds in zip((host, supervisors, commands), used, strict=True):
            series.values.append(seconds * 1000 / n)
        total.values.append(sum(used) * 1000 / n)
        floor.values.append(_spawned(n) * 1000 / n)
    return [total, host, supervisors, commands, floor]


def _supervisors(host: int) -> tuple[float, float]:
    """Return the seconds of CPU of the supervisors, and of their commands."""
    found = [use for use in descendants() if use.pid != host]
    return sum(use.cpu for use in found), sum(use.children_cpu for use in found)


def _spawned(n: int) -> float:
    """Return the seconds of CPU that `true` takes `n` times, with its parent's part."""
    begun = _used()
    for _ in range(n):
        os.waitpid(os.posix_spawnp("true", ["true"], os.environ), 0)
    return _used() - begun


def _used() -> float:
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)
