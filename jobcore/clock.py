"""Clock: the two times a host needs, behind one seam."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Clock(Protocol):
    """
    What tells the time.

    Wall time goes into the database and may jump; the monotonic one measures
    how long something took and never goes back. A clock that somebody moves is
    better a `MovableClock`, too: else its moves are noticed within a second.
    """

    def now(self) -> int:
        """Return wall time in microseconds since 1970, UTC."""

    def monotonic(self) -> float:
        """Return seconds from some fixed moment on."""


class MovableClock(Clock, Protocol):
    """A clock that does not run by itself, and tells those who wait for it when it was moved."""

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """
        Have `callback` called after each move.

        A manager gives what wakes its own thread, which looks at schedules, at
        jobs that are due and at everybody's running jobs then.

        Args:
            callback: Returns at once; any thread may call it.

        Returns:
            What ends that: no call begins behind it. It is called once.
        """


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> int:
        """Return wall time in microseconds since 1970, UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Return seconds from some fixed moment on."""
        return time.monotonic()


def seconds_of(clock: Clock) -> Callable[[], float]:
    """
    Return a function that measures seconds by `clock`, and never stands still.

    Under a clock that is moved by hand real time passes, too: what failed is tried again.
    """
    if getattr(clock, "watch", None) is None:
        return clock.monotonic  # it runs by itself
    return lambda: time.monotonic() + clock.monotonic()


def to_datetime(microseconds: int) -> datetime:
    """Return the aware UTC datetime of a stored time, exact to the microsecond."""
    return _EPOCH + timedelta(microseconds=microseconds)


def from_datetime(moment: datetime) -> int:
    """
    Return a stored time.

    Raises:
        ValueError: `moment` has no time zone, so it is no moment.
    """
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone is no moment")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def iso_utc(moment: datetime) -> str:
    """Return ISO 8601 in UTC with milliseconds and `Z`, the form of times for people."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"


def exact_iso_utc(moment: datetime) -> str:
    """Return ISO 8601 in UTC with microseconds and `Z`: all that is stored of a time."""
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds")[:-6] + "Z"
