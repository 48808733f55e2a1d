"""Time that stands still until a test moves it, past everything that waits for it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Protocol, TypeVar

from jobcore.clock import from_datetime
from jobcore.embedding.forking import GATE

#: Where a clock begins unless it is told: this moment, and this many seconds of monotonic time.
START = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
START_MONOTONIC = 1000.0


_T = TypeVar("_T")


class Attendant(Protocol):
    """
    What waits for a `ManualClock`, and is moved on by it.

    All of it may be called by any thread that moves the clock, one at a time.
    """

    def due(self) -> float | None:
        """Return when, by the monotonic clock, there is something to do next; None: not ever."""

    def step(self) -> None:
        """Do all that is due now. Behind it, `due` is later than now."""

    def runs(self) -> frozenset[str]:
        """Return the tokens of the runs that it has in hand, all of which wait for the clock."""


class ManualClock:
    """
    A clock that a test moves: `JobManager(path, clock=ManualClock())`.

    It is a small simulation. What waits for it (a `ScriptedExecutor`) has moments
    at which something is due, and `advance` goes from one to the next, so that
    each thing happens at its own time and in its order: however far the clock is
    moved, a line at 5 s, a time-out at 60 s and an exit at 80 s are stamped with
    these. When `advance` returns, all of that has happened and is in the job's
    directory; the manager, in its own thread, was woken at each of the moments.

    Other code sees a `jobcore.MovableClock`. All methods may be called by any
    thread; moves come one behind the other.

    Args:
        start: The wall time to begin at; None: `START`, 2023-11-14 22:13:20 UTC.
            The monotonic time begins at `START_MONOTONIC`, 1000 seconds.

    Raises:
        ValueError: `start` has no time zone, so it is no moment.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._monotonic = START_MONOTONIC
        # Wall time is never added up: many small moves would gather errors.
        self._offset = from_datetime(start or START) - round(START_MONOTONIC * 1e6)
        # By a key of their own: one may be there twice, and end once.
        self._attendants: dict[object, Attendant] = {}
        self._callbacks: dict[object, Callable[[], None]] = {}
        self._moving = threading.RLock()  # a callback may move it on
        GATE.watch(self)

    # --- as any clock -----------------------------------------------------------

    def now(self) -> int:
        """Return wall time in microseconds since 1970, UTC."""
        return self._offset + round(self._monotonic * 1e6)

    def monotonic(self) -> float:
        """Return seconds from some fixed moment on; `jump` and `set_wall` do not change it."""
        return self._monotonic

    # --- moving it --------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """
        Let `seconds` go by, from one moment at which something is due to the next.

        What had arrived before, such as a wish to stop, is acted on first, at the
        time at which it came. A manager acts in its own thread, and is not waited
        for: where it has to take part (a job is to be started or settled before
        time goes on), use `jobcore.testing.elapse`.

        Args:
            seconds: The seconds that go by, 0 or more.

        Raises:
            ValueError: It is negative, or no finite number: for wall time that goes back
                there is `jump`.
        """
        with self._moving:
            self.advance_to(self._monotonic + checked_seconds(seconds))

    def advance_to(self, moment: float) -> None:
        """
        Let time go by until a moment, as `advance` does.

        Args:
            moment: In seconds, as `monotonic` tells them; one that has passed is now.
        """
        with self._moving:
            self.step()
            while (due := self.next_due()) is not None and due <= moment:
                self._go_to(due)
            if moment > self._monotonic:
                self._go_to(moment)

    def step(self) -> None:
        """Have all that waits act on what has arrived by now; no time goes by."""
        with self._moving:
            for attendant in list(self._attendants.values()):
                attendant.step()

    def jump(self, seconds: float) -> None:
        """
        Set the wall clock on or back, as an operator does: no time goes by.

        Args:
            seconds: By how many seconds; negative: back.

        Raises:
            ValueError: It is no finite number.
        """
        if not _is_number(seconds) or not math.isfinite(seconds):
            raise ValueError(f"a clock is set by a number of seconds, not {seconds!r}")
        with self._moving:
            self._offset += round(seconds * 1e6)
            self._tell()

    def set_wall(self, moment: datetime | int) -> None:
        """
        Set the wall clock to a moment, as an operator does: no time goes by.

        Args:
            moment: With a time zone; or so many microseconds since 1970, UTC.

        Raises:
            ValueError: `moment` has no time zone.
        """
        target = from_datetime(moment) if isinstance(moment, datetime) else moment
        with self._moving:
            self._offset += target - self.now()
            self._tell()

    def _go_to(self, moment: float) -> None:
        self._monotonic = max(moment, self._monotonic)
        self.step()
        self._tell()

    def _tell(self) -> None:
        for callback in list(self._callbacks.values()):
            callback()

    # --- waiting for it ---------------------------------------------------------

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """
        Have `callback` called after each move, and at each moment that a move goes through.

        Args:
            callback: Called by whoever moves the clock; it may move it on.

        Returns:
            What ends that; to call it twice is harmless.
        """
        return _enter(self._callbacks, callback)

    def attend(self, attendant: Attendant) -> Callable[[], None]:
        """
        Have something moved on with the clock, as `ScriptedExecutor` is.

        Args:
            attendant: What waits; see `jobcore.testing.manual_clock.Attendant`.

        Returns:
            What ends that; to call it twice is harmless.
        """
        return _enter(self._attendants, attendant)

    def next_due(self) -> float | None:
        """Return when, by the monotonic clock, the next thing is due that waits; None: nothing."""
        moments = [one.due() for one in list(self._attendants.values())]
        return min((moment for moment in moments if moment is not None), default=None)

    def runs(self) -> frozenset[str]:
        """Return the tokens of all runs that wait for this clock."""
        return frozenset().union(*(one.runs() for one in list(self._attendants.values())))

    # --- the fork of the host ---------------------------------------------------

    def before_fork(self) -> None:
        """Do nothing: each change is one assignment, so none is copied half done."""

    def after_fork_in_parent(self) -> None:
        """Do nothing."""

    def after_fork_in_child(self) -> None:
        """Begin with a lock of its own: the thread that held it may not be here."""
        self._moving = threading.RLock()


def _enter(register: dict[object, _T], member: _T) -> Callable[[], None]:
    key = object()
    register[key] = member

    def end() -> None:
        register.pop(key, None)

    return end


def checked_seconds(seconds: object) -> float:
    """
    Return how much time is to go by.

    Raises:
        ValueError: It is negative, or no finite number.
    """
    if (
        not isinstance(seconds, (int, float))
        or not _is_number(seconds)
        or not (0 <= seconds < math.inf)
    ):
        raise ValueError(f"time goes on by 0 or more seconds, not {seconds!r}: see `jump`")
    return float(seconds)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
