"""Durations: what people write is a number of seconds, and nothing is guessed."""

from __future__ import annotations

import json
import re

import pytest

from jobcore import ArgumentError, CommandError, durations
from tests.cases import each


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (2.5, 2.5),
        ("90", 90.0),
        ("90s", 90.0),
        ("1.5h", 5400.0),
        ("1h30m", 5400.0),
        ("30d", 30 * 86_400.0),
        ("1w2d3h4m5s", 788_645.0),
    ],
)
def test_durations_are_seconds(value, expected):
    """Units from weeks to seconds, each at most once; a number alone means seconds."""
    assert durations.seconds(value, "it") == expected


@each(
    "value",
    ["", "m", "h1", "30m1h", "1m1m", "5 m", "-5", "5M", "1.", "5m\n", "٣", None, True, [5],
     float("nan"), float("inf")],
)  # fmt: skip
def test_other_texts_are_refused(value):
    """The error names the argument, the value and examples, and is of the caller's kind."""
    with pytest.raises(ArgumentError, match=r"keep must be a number of seconds, .* 1h30m .*, not "):
        durations.seconds(value, "keep")
    with pytest.raises(CommandError):
        durations.seconds(value, "keep", CommandError)


def test_the_pattern_is_one_for_json_schemas():
    """It matches what the function accepts, and is anchored."""
    pattern = json.loads(json.dumps(durations.PATTERN))

    assert [one for one in ("5m", "90", "1h30m", "m", "5 m", "") if re.search(pattern, one)] == [
        "5m", "90", "1h30m",
    ]  # fmt: skip
