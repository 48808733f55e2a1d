"""Function: what calling a function as a job costs beside a bare interpreter."""

from __future__ import annotations

import operator
import subprocess
import sys
import tempfile

from benchmarks.timing import Ratio, Series
from jobcore import JobManager, function_command

DEFAULT_N = 50


def measure(n: int, rounds: int) -> list[Series | Ratio]:
    """Call a function, run `python -c pass` as a job, and in a bare loop, one after the other."""
    calls = Series("submit_function, wait, result", n, "calls")
    commands = Series("python -c pass as a job", n, "commands")
    logging = Series('subprocess.run(["python", "-c", "import json, logging"])', n, "commands")
    bare = Series('subprocess.run(["python", "-c", "pass"])', n, "commands")
    call = function_command(operator.add, [1, 2])
    for _ in range(rounds):
        with (
            tempfile.TemporaryDirectory() as folder,
            JobManager(f"{folder}/jobs.db", slots=1) as jobs,
        ):
            with calls.sample():
                for _ in range(n):
                    job = jobs.wait(jobs.submit(call, type="FUNCTION").id)
                    assert jobs.result(job.id) == 3
            with commands.sample():
                for _ in range(n):
                    jobs.wait(jobs.submit([sys.executable, "-c", "pass"]).id)
        for series, program in ((logging, "import json, logging"), (bare, "pass")):
            with series.sample():
                for _ in range(n):
                    subprocess.run([sys.executable, "-c", program], check=True)
    return [
        calls,
        commands,
        logging,
        bare,
        Ratio("calls / python -c pass as a job", calls.median / commands.median),
        Ratio("calls / bare loop", calls.median / bare.median),
    ]
