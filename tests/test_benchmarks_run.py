"""The benchmarks run, in their smallest size; their numbers are for people."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest

from benchmarks import __main__ as program
from benchmarks import peers, report
from benchmarks.__main__ import ROWS
from benchmarks.timing import Goal, Series
from tests.processes import PATIENCE, ROOT


def measured(*options):
    """Run the benchmarks with these options, and return the JSON that they print."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "-n", "1", "--rounds", "1", "--json", *options],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_benchmarks_run(tmp_path):
    """With n=1 and one round, each row ends, gives its numbers and machine, and is drawn."""
    report = measured("--chart", str(tmp_path / "chart.svg"))

    assert "Python" in report["environment"]
    assert {series["row"] for series in report["results"]} == set(ROWS)
    assert all("median" in series or series["missing"] for series in report["results"])
    chart = ET.parse(tmp_path / "chart.svg").getroot()
    drawn = {text.text for text in chart.iter("{http://www.w3.org/2000/svg}tspan")}
    goals = {series["row"] for series in report["results"] if series.get("success")}
    assert drawn == goals


def test_rows_are_chosen_by_name():
    """`--rows` measures those rows and no other."""
    report = measured("--rows", "settle", "submit")

    assert {series["row"] for series in report["results"]} == {"settle", "submit"}


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
