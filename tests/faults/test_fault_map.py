"""The map of faults is complete, and names tests that there are."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from tests.cases import every

TESTS = Path(__file__).resolve().parent.parent
ROWS = re.findall(
    r"^\| (F\d\d) \| ([^|]+) \| ([^|]+) \|$",
    (TESTS / "faults" / "FAULTS.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
#: How many faults are known; whoever finds another one adds a row and its test.
COUNT = 99


@functools.cache
def named_in(path):
    """Return the names of the tests in a file, as far as nothing skips them all."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
        and not any("mark.skip(" in ast.unparse(one) for one in node.decorator_list)
    }


def test_no_fault_is_missing():
    """Every number is there once, in order, with words of its own."""
    assert [number for number, _, _ in ROWS] == [f"F{n:02}" for n in range(1, COUNT + 1)]
    assert len({words for _, words, _ in ROWS}) == COUNT


@every(row=ROWS)
def test_every_fault_has_tests_that_there_are(row):
    """Each row names existing tests by file and function, or the reason for having none."""
    number, _, tests = row
    if tests.startswith("Not produced here: "):
        assert "`" not in tests, number
        return
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", tests)
    rest = re.sub(r"`[^`]+`", "", tests).strip()

    assert (rest, bool(named)) == ("", True), number
    assert len(named) == tests.count("`") / 2, number
    for file, test in named:
        assert test in named_in(TESTS / file), f"{number}: {file} has no {test}"
