"""
Checks values that callers pass. Each function returns the value, or raises `error`.

The texts of the errors name the argument, say what it must be, and show the value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from jobcore.errors import ArgumentError, shown

#: The largest integer in SQLite.
LARGEST_INTEGER = 2**63 - 1
#: Seconds, about 30 years: more is a mistake, and would overflow the timers of some systems.
LONGEST = 1e9
#: Seconds, 3,000 years: a larger age is a mistake. In microseconds it still fits SQLite.
OLDEST = 1e11


def is_integer(value: object) -> bool:
    """Tell whether a value is an `int` and no `bool`."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Tell whether a value is an `int` or a finite `float`."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def integer(
    value: Any, what: str, least: int, most: int, error: type[Exception] = ArgumentError
) -> int:
    """Return an integer between `least` and `most`, both inclusive."""
    if not is_integer(value) or not least <= value <= most:
        raise error(f"{what} must be an integer from {least} to {most}, not {shown(value)}")
    return int(value)


def count(value: Any, what: str) -> int:
    """Return an integer, 0 or more; larger ones than SQLite's become its largest."""
    if not is_integer(value) or value < 0:
        raise ArgumentError(f"{what} must be an integer, 0 or more, not {shown(value)}")
    return min(int(value), LARGEST_INTEGER)


def optional_count(value: Any, what: str) -> int | None:
    """Return what `count` does; None stays None."""
    return None if value is None else count(value, what)


def seconds(
    value: Any, what: str, most: float = LONGEST, error: type[Exception] = ArgumentError
) -> float:
    """Return a number of seconds between 0 and `most`, both inclusive."""
    if not is_number(value) or not 0 <= value <= most:
        raise error(f"{what} must be 0 to {most:.0f} seconds, not {shown(value)}")
    return float(value)


def positive_seconds(
    value: Any, what: str, most: float = LONGEST, error: type[Exception] = ArgumentError
) -> float:
    """Return a number of seconds above 0, up to `most`."""
    if not is_number(value) or not 0 < value <= most:
        raise error(
            f"{what} must be a number of seconds above 0, up to {most:.0f}, not {shown(value)}"
        )
    return float(value)


def text(value: Any, what: str, error: type[Exception] = ArgumentError) -> str:
    """Return a text that can be stored: one without lone surrogates."""
    if not isinstance(value, str):
        raise error(f"{what} must be a string, not {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise error(f"{what} cannot be stored as UTF-8: {shown(value)}") from None
    return value


def several(value: Any, what: str) -> list[Any]:
    """Return the elements of a collection; a string is one element."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise ArgumentError(f"{what} must be one value or a collection, not {shown(value)}")
    return list(value)


def one_of(
    value: Any, what: str, choices: Iterable[Any], error: type[Exception] = ArgumentError
) -> Any:
    """Return one of the choices."""
    known = list(choices)
    if value not in known:
        listed = ", ".join("None" if one is None else f'"{one}"' for one in known)
        raise error(f"{what} must be one of {listed}, not {shown(value)}")
    return value
