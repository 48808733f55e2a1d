"""A clock that stands still until a test moves it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Protocol, TypeVar

from jobcore import checks
from jobcore.clock import from_datetime
from jobcore.embedding.locks import GATE, ForkAware

#: The default start of a clock: wall time, and monotonic time in seconds.
START = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
START_MONOTONIC = 1000.0


_T = TypeVar("_T")


class Driven(Protocol):
    """
    An object that a `ManualClock` drives: the clock calls `step` when something is due.

    Any thread that moves the clock may call these methods, one thread at a time.
    """

    def due(self) -> float | None:
        """Return the monotonic time at which something is due next; None: nothing is."""

    def step(self) -> None:
        """Do everything that is due now. Afterwards `due` is later than now."""

    def runs(self) -> frozenset[str]:
        """Return the tokens of its runs, all of which wait for the clock."""


class ManualClock(ForkAware):
    """
    A clock that a test moves: `JobManager(path, clock=ManualClock())`.

    It works as a small simulation. An object that waits for it, such as a
    `ScriptedExecutor`, has times at which something is due, and `advance` moves from one to
    the next. So everything happens at its own time and in order: however far the clock is
    moved, a line at 5 s, a timeout at 60 s and an exit at 80 s get these times. When
    `advance` returns, all of it has happened and is in the job directory. The manager, in
    its own thread, was woken at each of these times.

    For other code it is a `jobcore.MovableClock`. Any thread can call all methods; moves are
    serialised.

    Args:
        start: The wall time at which it starts; None: `START`, 2023-11-14 22:13:20 UTC.
            Monotonic time starts at `START_MONOTONIC`, 1000 seconds.

    Raises:
        ValueError: `start` has no time zone.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._monotonic = START_MONOTONIC
        # Wall time is offset plus monotonic time; adding up many small moves would add up errors.
        self._offset = from_datetime(start or START) - round(START_MONOTONIC * 1e6)
        # Keyed by unique objects, because a member can be registered twice and removed once.
        self._driven: dict[object, Driven] = {}
        self._callbacks: dict[object, Callable[[], None]] = {}
        self._moving = threading.RLock()  # re-entrant, because a callback may move the clock
        GATE.watch(self)

    # --- as any clock -----------------------------------------------------------

    def now(self) -> int:
        """Return wall time in microseconds since 1970, UTC."""
        return self._offset + round(self._monotonic * 1e6)

    def monotonic(self) -> float:
        """Return seconds since a fixed moment; `jump` and `set_wall` do not change it."""
        return self._monotonic

    # --- moving it --------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """
        Move time on by `seconds`, stopping at each time at which something is due.

        Anything that has arrived before, such as a stop request, is handled first, at the
        current time. This does not wait for managers, which act in their own threads. If a
        manager must act on the way, such as start or settle a job, use
        `jobcore.testing.elapse`.

        Args:
            seconds: The time to let pass, 0 or more seconds.

        Raises:
            ValueError: `seconds` is negative or not a finite number. To set wall time back,
                use `jump`.
        """
        with self._moving:
            self.advance_to(self._monotonic + checked_seconds(seconds))

    def advance_to(self, moment: float) -> None:
        """
        Move time on to a given time, as `advance` does.

        Args:
            moment: Seconds of monotonic time, as `monotonic` returns them. A time in the
                past counts as now.
        """
        with self._moving:
            self.step()
            while (due := self.next_due()) is not None and due <= moment:
                self._go_to(due)
            if moment > self._monotonic:
                self._go_to(moment)

    def step(self) -> None:
        """Let all waiting objects handle what has arrived by now, without moving time."""
        with self._moving:
            for driven in list(self._driven.values()):
                driven.step()

    def jump(self, seconds: float) -> None:
        """
        Set the wall clock forward or back, as an operator does. Monotonic time does not change.

        Args:
            seconds: By how many seconds; negative: back.

        Raises:
            ValueError: `seconds` is not a finite number.
        """
        if not checks.is_number(seconds):
            raise ValueError(f"seconds must be a finite number, not {seconds!r}")
        with self._moving:
            self._offset += round(seconds * 1e6)
            self._notify()

    def set_wall(self, moment: datetime | int) -> None:
        """
        Set the wall clock to a time, as an operator does. Monotonic time does not change.

        Args:
            moment: A datetime with a time zone, or microseconds since 1970, UTC.

        Raises:
            ValueError: `moment` has no time zone.
        """
        target = from_datetime(moment) if isinstance(moment, datetime) else moment
        with self._moving:
            self._offset += target - self.now()
            self._notify()

    def _go_to(self, moment: float) -> None:
        self._monotonic = max(moment, self._monotonic)
        self.step()
        self._notify()

    def _notify(self) -> None:
        for callback in list(self._callbacks.values()):
            callback()

    # --- waiting for it ---------------------------------------------------------

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """
        Call `callback` after each move, and at each due time that a move stops at.

        Args:
            callback: Called in the thread that moves the clock; it may move the clock.

        Returns:
            A function that ends this. It is idempotent.
        """
        return _enter(self._callbacks, callback)

    def drive(self, driven: Driven) -> Callable[[], None]:
        """
        Call the `step` of an object, such as a `ScriptedExecutor`, at each time that is due for it.

        Args:
            driven: The object; see `jobcore.testing.manual_clock.Driven`.

        Returns:
            A function that ends this. It is idempotent.
        """
        return _enter(self._driven, driven)

    def next_due(self) -> float | None:
        """Return the monotonic time at which something is due next; None: nothing is."""
        moments = [one.due() for one in list(self._driven.values())]
        return min((moment for moment in moments if moment is not None), default=None)

    def runs(self) -> frozenset[str]:
        """Return the tokens of all runs that wait for this clock."""
        return frozenset().union(*(one.runs() for one in list(self._driven.values())))

    # --- the fork of the host ---------------------------------------------------

    def after_fork_in_child(self) -> None:
        """Create a new lock, because the thread that held it may not exist here."""
        self._moving = threading.RLock()


def _enter(register: dict[object, _T], member: _T) -> Callable[[], None]:
    key = object()
    register[key] = member

    def end() -> None:
        register.pop(key, None)

    return end


def checked_seconds(seconds: Any) -> float:
    """
    Return a number of seconds, checked.

    Raises:
        ValueError: `seconds` is negative or not a finite number.
    """
    if not checks.is_number(seconds) or float(seconds) < 0:
        raise ValueError(f"seconds must be a number, 0 or more, not {seconds!r}: see `jump`")
    return float(seconds)
