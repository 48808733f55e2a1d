"""Clock: the wall time and the monotonic time, which tests can replace."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Clock(Protocol):
    """
    A source of wall time and monotonic time.

    Wall time is stored in the database and may jump. Monotonic time measures
    durations and never goes back. A clock that can be moved by hand should be a
    `MovableClock`; otherwise a manager notices a move only within a second.
    """

    def now(self) -> int:
        """Return wall time in microseconds since 1970, UTC."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment."""


class MovableClock(Clock, Protocol):
    """A clock that is moved by hand, and calls its watchers after each move."""

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """
        Call `callback` after each move.

        A manager passes a function that wakes its own thread, which then checks schedules,
        jobs that are due, and all running jobs.

        Args:
            callback: Returns at once; any thread may call it.

        Returns:
            A function that ends the watch: no call of `callback` begins after it. A manager
            calls it once.
        """


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> int:
        """Return wall time in microseconds since 1970, UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Return seconds since some fixed moment."""
        return time.monotonic()


def seconds_of(clock: Clock) -> Callable[[], float]:
    """
    Return a function that measures seconds by `clock` and never stands still.

    For a clock that is moved by hand it adds real time, so that failed work is tried again
    even if the clock is not moved.
    """
    if getattr(clock, "watch", None) is None:
        return clock.monotonic  # it runs by itself
    return lambda: time.monotonic() + clock.monotonic()


def to_datetime(microseconds: int) -> datetime:
    """Return a stored time as an aware UTC datetime, exact to the microsecond."""
    return _EPOCH + timedelta(microseconds=microseconds)


def from_datetime(moment: datetime) -> int:
    """
    Return `moment` as it is stored: in microseconds since 1970, UTC.

    Raises:
        ValueError: `moment` has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError("a time needs a time zone")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def iso_utc(moment: datetime) -> str:
    """Return ISO 8601 in UTC with milliseconds and `Z`, the form that people read."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"


def exact_iso_utc(moment: datetime) -> str:
    """Return ISO 8601 in UTC with microseconds and `Z`, which loses nothing of a stored time."""
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds")[:-6] + "Z"
