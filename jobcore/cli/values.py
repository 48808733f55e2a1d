"""The values of options: numbers, times, moments and texts, checked."""

from __future__ import annotations

import math
import os
import re
from datetime import datetime, timedelta
from typing import Any

import typer

from jobcore import durations
from jobcore.errors import ArgumentError
from jobcore.tuning import MOST_RETRIES

_EXAMPLES = "such as 90, 5m or 1h30m"


def time_limit(text: Any) -> float:
    """Return a time-out in seconds."""
    seconds = _seconds(text)
    if not 0 < seconds < math.inf:
        raise typer.BadParameter(
            f"a time-out must be a number of seconds above 0 or a time, {_EXAMPLES}, not {text!r}"
        )
    return seconds


def delay(text: Any) -> float:
    """Return a number of seconds, 0 or more."""
    seconds = _seconds(text)
    if not 0 <= seconds < math.inf:
        raise typer.BadParameter(
            f"it must be a number of seconds, 0 or more, or a time, {_EXAMPLES}, not {text!r}"
        )
    return seconds


def delays(text: Any) -> float | tuple[float, ...]:
    """Return a number of seconds, or several that commas separate."""
    if not isinstance(text, str) or "," not in text:
        return delay(text)
    return tuple(delay(one.strip()) for one in text.split(","))


def age(text: Any) -> float:
    """Return an age such as `30d`, `12h` or `90` in seconds."""
    try:
        return durations.seconds(str(text), "an age")
    except ArgumentError:
        raise typer.BadParameter(
            f"an age must be a number and s, m, h, d or w, such as 30d, not {text!r}"
        ) from None


def _seconds(text: Any) -> float:
    """Return a time in seconds: a number, or numbers with units, such as `1h30m`; else NaN."""
    try:
        return durations.seconds(str(text), "it")
    except ArgumentError:
        pass  # float takes more, such as 1e3
    try:
        return float(text)
    except ValueError:
        return math.nan


def moment(text: Any) -> datetime:
    """
    Return a moment: `18:30` is the next one, `2026-12-01 18:30` that one; both are local time.

    A time zone may follow, as in `2026-12-01T18:30Z`.
    """
    words = str(text).strip()
    if clock := re.fullmatch(r"(\d\d?):(\d\d)(?::(\d\d))?", words, re.ASCII):
        hour, minute, second = (int(number or 0) for number in clock.groups())
        now = datetime.now()  # noqa: DTZ005 - local time is meant
        try:
            today = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
        except ValueError:
            raise _invalid_moment(text) from None
        # Added to the local time, so that it is this time of day also across a change of clocks.
        return (today if today > now else today + timedelta(days=1)).astimezone()
    try:
        found = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", words))
    except ValueError:
        raise _invalid_moment(text) from None
    try:
        return found.astimezone()  # one without a zone is local time
    except (OverflowError, ValueError, OSError):
        raise _invalid_moment(text) from None


def past(text: Any) -> datetime:
    """Return a moment in the past: an age such as `2h`, or a moment as in `moment`."""
    if not re.fullmatch(r"\d\d?:\d\d(:\d\d)?", str(text), re.ASCII):
        try:
            ago = timedelta(seconds=age(text))
            return datetime.now().astimezone() - ago
        except (typer.BadParameter, OverflowError):
            return moment(text)
    found = moment(text)
    now = datetime.now().astimezone()
    # The last one with this time of day, not the next one.
    return found if found <= now else (found.replace(tzinfo=None) - timedelta(days=1)).astimezone()


def _invalid_moment(text: Any) -> typer.BadParameter:
    return typer.BadParameter(
        f"it must be a time of day such as 18:30, or a moment such as '2026-12-01 18:30', "
        f"not {text!r}"
    )


def stored_text(text: Any) -> str:
    """Return an argument as text that can be stored: its bytes are UTF-8 in every locale."""
    words = str(text)
    try:
        words.encode()
    except UnicodeEncodeError:  # the interpreter could not decode it in this locale
        try:
            return os.fsencode(words).decode()
        except UnicodeDecodeError:
            raise typer.BadParameter(f"it must be UTF-8 text, not {os.fsencode(words)!r}") from None
    return words


def count(text: Any) -> int:
    """Return an integer, 0 or more."""
    return _whole(text, 0)


def count_from_1(text: Any) -> int:
    """Return an integer, 1 or more."""
    return _whole(text, 1)


def retries(text: Any) -> int:
    """Return a number of retries."""
    return _whole(text, 0, MOST_RETRIES)


def _whole(text: Any, least: int, most: int | None = None) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least or (most is not None and number > most):
        bounds = f"{least} or more" if most is None else f"from {least} to {most}"
        raise typer.BadParameter(f"it must be an integer, {bounds}, not {text!r}")
    return number


def integer(text: Any) -> int:
    """Return an integer."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"it must be an integer, not {text!r}") from None
