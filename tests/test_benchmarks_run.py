"""The benchmarks run, in their smallest size; their numbers are for people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from xml.etree import ElementTree as ET

import pytest

from benchmarks import __main__ as program
from benchmarks import peers, report
from benchmarks.__main__ import ROWS
from benchmarks.timing import Goal, Series
from tests.processes import PATIENCE, ROOT, forked

OPTIONS = ["-n", "1", "--rounds", "1", "--json"]


def run_program(words):
    """Be `python -m benchmarks`."""
    sys.argv = ["benchmarks", *words]
    program.main()


def drawn(chart):
    """Return the names of the rows that a chart has."""
    texts = ET.parse(chart).getroot().iter("{http://www.w3.org/2000/svg}tspan")
    return {text.text for text in texts}


@pytest.mark.parametrize("row", ROWS)
def test_benchmarks_run(tmp_path, row):
    """With n=1 and one round, each row ends, gives its numbers and machine, and is drawn."""
    chart = tmp_path / "chart.svg"
    process = forked(
        partial(run_program, [*OPTIONS, "--rows", row, "--chart", str(chart)]),
        {**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    out, err = process.communicate(timeout=4 * PATIENCE)
    assert process.returncode == 0, err
    report = json.loads(out)

    assert "Python" in report["environment"]
    assert {series["row"] for series in report["results"]} == {row}
    assert all("median" in series or series["missing"] for series in report["results"])
    assert drawn(chart) == {series["row"] for series in report["results"] if series.get("success")}


def test_rows_are_chosen_by_name(tmp_path):
    """`--rows` measures those rows and no other, and the chart has each."""
    chart = tmp_path / "chart.svg"
    words = [*OPTIONS, "--rows", "submit", "log-read", "--chart", str(chart)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    assert {one["row"] for one in json.loads(done.stdout)["results"]} == {"submit", "log-read"}
    assert drawn(chart) == {"submit", "log-read"}


def test_each_benchmark_is_in_its_readme():
    """No number without its question and the last result."""
    text = (ROOT / "benchmarks" / "README.md").read_text()

    assert [name for name in ROWS if f"`{name}`" not in text] == []


def test_figures_are_held_against_goals():
    """More is better of a rate, less of a time; a ratio is one to the peer of the same run."""
    peer = Series("peer", "jobs/s", peer=True, values=[100.0])
    rate = Series("rate", "jobs/s", Goal(0.5, "ratio"), peer, values=[80.0, 60.0, 40.0])
    slow = Series("slow", goal=Goal(50, "p95"), values=[10.0] * 18 + [60.0] * 2)
    quick = Series("quick", goal=Goal(50, "p95"), values=[10.0] * 19 + [60.0])

    assert (rate.median, rate.p95, rate.ratio, rate.success) == (60.0, 40.0, 0.6, 1.2)
    assert "0.6 x peer; goal: at least 0.5 x, met" in report.lines([rate, peer])[0]
    assert "jobcore: 0.6 x" in report.lines([rate, peer])[1]
    assert slow.success < 1 < quick.success


def test_missing_peers_are_named(monkeypatch):
    """A peer that is not installed has a line that says how to install it."""
    monkeypatch.setenv("PATH", "/nowhere")

    named = report.lines([series for series, _ in peers.command_peers(1)])

    assert any("missing: apt install task-spooler" in line for line in named)


def test_a_row_that_fails_leaves_the_others(monkeypatch, capsys, tmp_path):
    """It is named, the results of the others are kept, and the exit code is 1."""
    results = tmp_path / "results.md"
    results.write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # the program removes it
    monkeypatch.setattr(ROWS["cpu"], "measure", lambda *_: 1 // 0)
    options = ["-n", "1", "--rounds", "1", "--rows", "cpu", "settle", "--update", str(results)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *options])

    with pytest.raises(SystemExit) as ended:
        program.main()

    assert ended.value.code == 1
    assert "cpu failed" in capsys.readouterr().err
    text = results.read_text()
    assert "| `settle` | finish_job" in text
    assert (text[:7], text[-6:], "old" in text) == ("before\n", "after\n", False)
