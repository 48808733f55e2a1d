"""
Benchmarks: `python -m benchmarks [NAME...] [-n N] [--rounds R] [--json]`.

A baseline to compare with on one machine, no gate.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks import (
    bench_append,
    bench_create,
    bench_function,
    bench_import,
    bench_list,
    bench_read_log,
    bench_recover,
    bench_settle,
    bench_spawn,
)
from benchmarks.timing import Ratio, Series, environment

BENCHMARKS: dict[str, Any] = {
    "create": bench_create,
    "append": bench_append,
    "read_log": bench_read_log,
    "list": bench_list,
    "settle": bench_settle,
    "spawn": bench_spawn,
    "function": bench_function,
    "recover": bench_recover,
    "import": bench_import,
}


def main() -> None:
    """Run those that were named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("-n", type=int, help="jobs, lines or starts in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown or given.rounds < 1 or (given.n is not None and given.n < 1):
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else "numbers begin at 1")
    if not given.json:
        print(environment())
    rows: list[dict[str, Any]] = []
    for name in given.names or BENCHMARKS:
        module = BENCHMARKS[name]
        if not given.json:
            print(f"\n{module.__doc__.splitlines()[0]}")
        for result in module.measure(given.n or module.DEFAULT_N, given.rounds):
            rows.append({"benchmark": name, **_facts(result)})
            if not given.json:
                print(_line(result))
    if given.json:
        print(json.dumps({"environment": environment(), "results": rows}, indent=1))


def _facts(result: Series | Ratio) -> dict[str, Any]:
    if isinstance(result, Ratio):
        return {"what": result.what, "ratio": result.value}
    return {
        "what": result.what,
        "unit": result.unit,
        "median": result.median,
        "p95": result.p95,
        "samples": len(result.seconds),
    }


def _line(result: Series | Ratio) -> str:
    if isinstance(result, Ratio):
        return f"  {result.what:48} {result.value:12.2f}"
    median, p95 = (f"{value:12,.2f}" for value in (result.median, result.p95))
    return f"  {result.what:48} {median} {p95} (p95) {result.unit:10} of {len(result.seconds)}"


if __name__ == "__main__":
    main()
