"""Import of jobcore beside the library that it stands on."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.timing import Goal, Series

DEFAULT_N, QUICK_N = 5, 3


def measure(n: int, rounds: int, folder: str) -> list[Series]:  # noqa: ARG001 - no database
    """Start `n` interpreters a round that import nothing, sqlmodel and jobcore."""
    sqlmodel = Series("import sqlmodel", peer=True)
    jobcore = Series("from jobcore import JobManager", goal=Goal(1.15, "ratio"), beside=sqlmodel)
    sources = {jobcore.what: jobcore, sqlmodel.what: sqlmodel}
    _milliseconds(jobcore.what)  # the .pyc files of both are written now
    for _ in range(n * rounds):  # in turn, so that a busy moment meets all of them
        nothing = _milliseconds("pass")
        for source, series in sources.items():
            series.values.append(_milliseconds(source) - nothing)
    return [jobcore, sqlmodel]


def _milliseconds(source: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", source], check=True)
    return (time.perf_counter() - begun) * 1000
