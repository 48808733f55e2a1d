"""The benchmarks run, in their smallest size; their numbers are for people."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree as ET

from benchmarks.__main__ import ROWS
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
