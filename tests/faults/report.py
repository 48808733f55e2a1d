"""Report: what each campaign did, in a table behind the tests, where any ran in full."""

from __future__ import annotations

from benchmarks.timing import environment

_PROPERTY = "campaign"


def note(item, facts):
    """Have the report tell of this test; `facts` may still change while it runs."""
    item.user_properties.append((_PROPERTY, facts))


def pytest_terminal_summary(terminalreporter):
    """Print the table. A campaign ends at its first violation."""
    rows, seed = [], None
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            facts = dict(report.user_properties).get(_PROPERTY)
            if report.when != "call" or facts is None or not facts["full"]:
                continue
            failed = int(outcome == "failed")
            where = f"in round {facts.get('round', 0)}" if failed else ""
            rows.append((facts["name"], facts["rounds"], failed, report.duration, where))
            seed = facts["seed"]
    _tell_of_mutants(terminalreporter)
    if not rows:
        return
    terminalreporter.section("fault campaigns")
    # Without the path of this copy: it is to be quoted.
    terminalreporter.write_line(environment().partition(", jobcore in")[0])
    terminalreporter.write_line(f"seed {seed}")
    width = max(len(name) for name, *_ in rows) + 1
    terminalreporter.write_line(
        f"\n{'campaign':<{width}} {'rounds':>7} {'violations':>10} {'took':>9}"
    )
    for name, rounds, failed, took, where in sorted(rows):
        line = f"{name:<{width}} {rounds:>7,} {failed:>10} {took:>7.0f} s {where}"
        terminalreporter.write_line(line.rstrip())
    total, violations = sum(row[1] for row in rows), sum(row[2] for row in rows)
    terminalreporter.write_line(f"{'all':<{width}} {total:>7,} {violations:>10}")


def _tell_of_mutants(terminalreporter):
    """Say by which test each seeded slip was caught."""
    told = [
        f"{facts['mutant']:<80} {facts['caught_by']}"
        for report in terminalreporter.getreports("passed")
        if report.when == "call" and "mutant" in (facts := dict(report.user_properties))
    ]
    if told:
        terminalreporter.section("mutants, and what caught each")
        for line in sorted(told):
            terminalreporter.write_line(line)
