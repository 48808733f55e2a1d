"""
Benchmarks: jobcore beside its peers and floors, in one run.

Numbers to compare on one machine, no gate.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from typing import Any

from benchmarks import (
    bench_adoption,
    bench_cpu,
    bench_functions,
    bench_import,
    bench_jobs,
    bench_latency,
    bench_log_delete,
    bench_log_lines,
    bench_log_read,
    bench_log_write,
    bench_running,
    bench_scale,
    bench_settle,
    bench_submit,
    report,
)
from benchmarks.chart import draw
from benchmarks.timing import Series, environment

ROWS: dict[str, Any] = {
    "jobs": bench_jobs,
    "cpu": bench_cpu,
    "submit": bench_submit,
    "settle": bench_settle,
    "log-write": bench_log_write,
    "log-read": bench_log_read,
    "log-lines": bench_log_lines,
    "log-delete": bench_log_delete,
    "functions": bench_functions,
    "running": bench_running,
    "import": bench_import,
    "latency": bench_latency,
    "scale": bench_scale,
    "adoption": bench_adoption,
}

_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"


def main() -> None:
    """Run the rows that were named, or all; exit with 1 if one of them failed."""
    given = _arguments()
    # Programs start from .pyc files, as installed ones do.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    begun, results = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        machine = environment(folder)
        if not given.json:
            print(f"{machine}\n\n{report.HEADER}")
        chosen = given.rows or list(ROWS)
        for name in chosen:
            try:
                results[name] = _measured(ROWS[name], given, folder)
            except Exception:  # noqa: BLE001 - the other rows are worth having
                print(f"{name} failed:\n{traceback.format_exc()}", file=sys.stderr)
            else:
                _show(name, results[name], given)
    quoted = machine.partition(", jobcore in")[0] + (", with --quick" if given.quick else "")
    if given.json:
        facts = [report.facts(name, series) for name, row in results.items() for series in row]
        print(json.dumps({"environment": machine, "results": facts}, indent=1))
    else:
        print(f"took {(time.monotonic() - begun) / 60:.1f} minutes")
    if given.chart:
        with open(given.chart, "w", encoding="utf-8") as file:
            file.write(draw(results, quoted))
    if given.update:
        _update(given.update, report.markdown(results, quoted))
    sys.exit(len(results) < len(chosen))


def _measured(module: Any, given: argparse.Namespace, folder: str) -> list[Series]:
    n = given.n or (module.QUICK_N if given.quick else module.DEFAULT_N)
    measured: list[Series] = module.measure(n, given.rounds or (2 if given.quick else 5), folder)
    return measured


def _show(name: str, row: list[Series], given: argparse.Namespace) -> None:
    if not given.json:
        lines = [f"{name}: {ROWS[name].__doc__}", *report.lines(row), ""]
        print("\n".join(lines), flush=True)


def _update(path: str, table: str) -> None:
    """Replace what is between the two comments in a Markdown file."""
    with open(path, encoding="utf-8") as file:
        before, begin, rest = file.read().partition(_BEGIN)
        _, end, after = rest.partition(_END)
    if not end:
        raise SystemExit(f"{path} lacks the lines {_BEGIN} and {_END}")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{before}{begin}\n{table}\n{end}{after}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rows", nargs="+", metavar="NAME", choices=ROWS, help=f"only these: {', '.join(ROWS)}"
    )
    parser.add_argument("--quick", action="store_true", help="less of each, for a first look")
    parser.add_argument("-n", type=_count, help="jobs, lines or calls in each round")
    parser.add_argument("--rounds", type=_count, help="how often each row is measured")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--chart", metavar="FILE", type=os.path.abspath, help="draw an SVG")
    parser.add_argument(
        "--update", metavar="FILE", help="replace the results in a Markdown file, as in README.md"
    )
    return parser.parse_args()


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    main()
