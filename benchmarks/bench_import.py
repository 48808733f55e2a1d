"""Import: what importing JobManager costs beside the library it stands on."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.timing import Ratio, Series

DEFAULT_N = 10


def measure(n: int, rounds: int) -> list[Series | Ratio]:
    """Start `n` interpreters a round that import nothing, sqlmodel and JobManager."""
    nothing = Series("python -c pass")
    sqlmodel = Series("import sqlmodel")
    jobcore = Series("from jobcore import JobManager")
    for source in (sqlmodel.what, jobcore.what):
        subprocess.run([sys.executable, "-c", source], check=True)  # the .pyc files are written now
    for _ in range(n * rounds):  # in turn, so that a busy moment meets all of them
        for series in (nothing, sqlmodel, jobcore):
            source = series.what if series is not nothing else "pass"
            with series.sample():
                subprocess.run([sys.executable, "-c", source], check=True)
    return [
        nothing,
        sqlmodel,
        jobcore,
        Ratio(
            "from jobcore import JobManager / import sqlmodel",
            (jobcore.median - nothing.median) / (sqlmodel.median - nothing.median),
        ),
    ]
