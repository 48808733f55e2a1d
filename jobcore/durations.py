"""Durations: lengths of time as people write them, such as `90`, `5m` or `1h30m`."""

from __future__ import annotations

import math
import re
from typing import Any

from jobcore.errors import ArgumentError, shown

_UNITS = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}  # seconds
#: Each unit at most once, from weeks to seconds; a number alone means seconds.
PATTERN = r"^(?:\d+(?:\.\d+)?|(?=\d)" + "".join(rf"(?:\d+(?:\.\d+)?{u})?" for u in _UNITS) + ")$"
_TEXT = re.compile(PATTERN, re.ASCII)
_PART = re.compile(r"([\d.]+)([a-z]?)")


def seconds(value: Any, what: str, error: type[Exception] = ArgumentError) -> float:
    """
    Return a duration in seconds.

    Args:
        value: A number of seconds, or a text such as `90`, `90s`, `5m`, `1h30m` or `30d`.
        what: The name of the argument, for the text of an error.
        error: The exception to raise.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if not isinstance(value, str) or not _TEXT.fullmatch(value):
        raise error(
            f"{what} must be a number of seconds, or a text such as 90s, 5m, 1h30m or 30d, "
            f"not {shown(value)}"
        )
    return sum(float(number) * _UNITS[unit or "s"] for number, unit in _PART.findall(value))
