"""
Overdue: what to do about a supervisor that has not reacted to a stop.

Time is measured here, from the moment this process first saw the wish: the
wall clock in the row may have jumped since.
"""

from __future__ import annotations

import signal

#: Seconds beyond the grace after which a supervisor is taken to be stopped.
WAKE_AFTER = 30.0
#: Seconds more after which it is killed, and its job resolved.
KILL_AFTER = 10.0


class Overdue:
    """Remembers since when each wish has been waiting; pure, told the time."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def judge(self, number: int, grace: float, now: float) -> signal.Signals | None:
        """
        Return the signal that the supervisor of job `number` is due, if any.

        Args:
            grace: Seconds that the wish gives the command.
            now: By the monotonic clock.
        """
        waited = now - self._since.setdefault(number, now) - grace
        if waited >= WAKE_AFTER + KILL_AFTER:
            return signal.SIGKILL
        return signal.SIGCONT if waited >= WAKE_AFTER else None

    def keep(self, numbers: set[int]) -> None:
        """Forget all jobs but these."""
        self._since = {number: at for number, at in self._since.items() if number in numbers}
