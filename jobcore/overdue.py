"""
Overdue: what to do about a supervisor that lets a stop or a time-out pass.

A wish to stop is timed from the moment this process first saw it, since the wall
clock in the row may have jumped. A supervisor that answers is never signalled: it
may be waiting for room on a full disk.
"""

from __future__ import annotations

import signal

from jobcore.runs import Run

#: Seconds beyond the grace after which a supervisor that does not answer is woken.
WAKE_AFTER = 30.0
#: Seconds more, without any answer, after which it is killed and its job resolved.
KILL_AFTER = 10.0


class Overdue:
    """Remembers since when each job should have ended; pure, told the time."""

    def __init__(self) -> None:
        self._asked: dict[int, float] = {}  # when a wish to stop was seen first
        self._since: dict[int, float] = {}  # when the job was seen to be overdue
        self._silent: dict[int, float] = {}  # since when its supervisor has not answered
        self._woken: dict[int, float] = {}  # when it was first sent SIGCONT

    def is_overdue(self, run: Run, wall: int, now: float) -> bool:
        """
        Tell whether the job should have ended: by a stop or its time-out, and its grace.

        Args:
            run: As it is now.
            wall: Wall time in microseconds.
            now: By the monotonic clock, as for `judge`.
        """
        grace = run.effective_grace_ms
        if grace is None:
            return False  # a jobcore that did not note it has started the job
        stopped = (
            run.stop_requested is not None
            and now >= self._asked.setdefault(run.number, now) + grace / 1000
        )
        timed_out = (
            run.timeout_ms is not None
            and run.start_time is not None
            and wall >= run.start_time + (run.timeout_ms + grace) * 1000
        )
        return stopped or timed_out

    def judge(self, number: int, now: float, *, answers: bool) -> signal.Signals | None:
        """
        Return the signal that the supervisor of an overdue job is due, if any.

        Args:
            number: The job.
            now: By the monotonic clock.
            answers: Whether the supervisor has answered since the last call.
        """
        waited = now - self._since.setdefault(number, now)
        if answers:
            self._silent.pop(number, None)
            self._woken.pop(number, None)
            return None
        silent = now - self._silent.setdefault(number, now)
        if waited < WAKE_AFTER:
            return None
        # It has time to answer after it was woken, also where this process was stopped
        # or frozen together with it, and finds all of that time gone.
        woken = now - self._woken.setdefault(number, now)
        return signal.SIGKILL if min(woken, silent) >= KILL_AFTER else signal.SIGCONT

    def keep(self, numbers: set[int]) -> None:
        """Forget all jobs but these."""
        for moments in (self._asked, self._since, self._silent, self._woken):
            for number in set(moments) - numbers:
                moments.pop(number, None)
