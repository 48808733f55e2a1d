"""The benchmarks run, in their smallest size; their numbers are for people."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.__main__ import BENCHMARKS
from tests.processes import PATIENCE, ROOT


@pytest.mark.parametrize("names", [[], ["list", "create"]], ids=["all", "two"])
def test_benchmarks_run(names):
    """With n=1 and one round, each benchmark ends and gives its numbers and its machine."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *names, "-n", "1", "--rounds", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)

    assert "Python" in report["environment"]
    assert {row["benchmark"] for row in report["results"]} == set(names or BENCHMARKS)


def test_each_benchmark_is_in_its_readme():
    """No number without its question and the last result."""
    text = (ROOT / "benchmarks" / "README.md").read_text()

    assert [name for name in BENCHMARKS if f"`{name}`" not in text] == []
