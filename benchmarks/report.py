"""Report: the results of a row as text for people, and as values for JSON."""

from __future__ import annotations

from typing import Any

from benchmarks.timing import Series

HEADER = f"{'':50} {'median':>10} {'p95':>10} {'unit':10} ratio and goal"


def markdown(results: dict[str, list[Series]], machine: str) -> str:
    """Return the results of all rows as one table, below a line about the machine."""
    table = ["| Row | What | Median | p95 | Ratio and goal |", "|---|---|---|---|---|"]
    for row, series_of_row in results.items():
        cells = (_cells(series, series_of_row[0]) for series in series_of_row)
        table += [f"| `{row}` | {' | '.join(each)} |" for each in cells]
    return "\n".join([machine, "", *table])


def _cells(series: Series, first: Series) -> list[str]:
    name = f"*{series.what}*" if series.peer else series.what
    if not series.values:
        return [name, "", "", f"missing: {series.missing}"]
    figures = [f"{number(value)} {series.unit}" for value in (series.median, series.p95)]
    return [name, *figures, comparison(series, first)]


def lines(results: list[Series]) -> list[str]:
    """Return a line for each series; those of peers say how jobcore compares."""
    return [_line(series, results[0]) for series in results]


def _line(series: Series, first: Series) -> str:
    name = f"  {'| ' if series.peer else ''}{series.what}"
    if not series.values:
        return f"{name:50} missing: {series.missing}"
    figures = " ".join(f"{number(value):>10}" for value in (series.median, series.p95))
    return f"{name:50} {figures} {series.unit:10} {comparison(series, first)}".rstrip()


def comparison(series: Series, first: Series) -> str:
    """Return the ratio of a series and whether it reaches its goal."""
    if series.peer:
        ours = series.of or first
        if series.unit != ours.unit or series.median <= 0:
            return ""
        return f"jobcore: {number(ours.median / series.median)} x"
    parts = []
    if series.beside is not None and series.ratio is not None:
        parts.append(f"{number(series.ratio)} x {series.beside.what}")
    if series.goal is not None:
        success = series.success
        outcome = "not comparable" if success is None else "met" if success >= 1 else "missed"
        parts.append(f"goal: {goal(series)}, {outcome}")
    return "; ".join(parts)


def goal(series: Series) -> str:
    """Return the goal of a series in words."""
    if series.goal is None:
        return ""
    least = "at least" if series.is_rate else "at most"
    if series.goal.of == "ratio":
        return f"{least} {number(series.goal.bound)} x"
    p95 = "p95 " if series.goal.of == "p95" else ""
    return f"{p95}{least} {number(series.goal.bound)} {series.unit}"


def figure(series: Series) -> str:
    """Return the figure that the goal of a series is about, with the median."""
    median = f"{number(series.median)} {series.unit}"
    if series.goal is None or series.judged is None or series.goal.of == "median":
        return median
    judged = number(series.judged)
    return f"{median}, {judged} x" if series.goal.of == "ratio" else f"p95 {judged} {series.unit}"


def facts(row: str, series: Series) -> dict[str, Any]:
    """Return the figures of a series as JSON values."""
    found: dict[str, Any] = {"row": row, "what": series.what, "unit": series.unit}
    if not series.values:
        return {**found, "missing": series.missing}
    return {
        **found,
        "peer": series.peer,
        "median": series.median,
        "p95": series.p95,
        "samples": len(series.values),
        "ratio": series.ratio,
        "goal": goal(series) or None,
        "success": series.success,
    }


def number(value: float) -> str:
    """Return a number with three digits, as far as these are before the point or behind it."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
