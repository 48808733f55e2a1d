"""Moves a manual clock as fast as a manager can follow, until its queue is empty."""

from __future__ import annotations

import time
from uuid import UUID

from jobcore.errors import WaitTimeout
from jobcore.lifecycle import Status
from jobcore.manager import JobManager
from jobcore.testing.manual_clock import ManualClock, checked_seconds
from jobcore.testing.pending_work import PendingWork

#: Seconds of real time between two checks whether the manager waits only for the clock.
PAUSE = 0.002


class NeverEnds(AssertionError):
    """
    A job would never end, however far the clock is moved.

    Attributes:
        job_ids: The jobs that run and wait for nothing.
    """

    def __init__(self, message: str, job_ids: tuple[UUID, ...]) -> None:
        super().__init__(message)
        self.job_ids = job_ids


def drain(jobs: JobManager, clock: ManualClock | None = None, *, patience: float = 30.0) -> None:
    """
    Run all queued jobs to their end, without sleeping.

    It lets the manager act until it waits only for the clock. Then it moves the clock to the
    next time at which something is due (a script continues, a grace or a timeout ends, a
    retry or a job with `not_before` may start), and repeats this. When this returns, no job
    runs and no job is queued that this manager could ever claim, including follow-ups.
    Schedules do not keep it running: a tick that is due while there is work is taken; for
    later ticks use `elapse`.

    Args:
        jobs: A manager with slots, whose clock is a `ManualClock`.
        clock: That clock; None: take it from the manager.
        patience: Seconds of real time for the whole call.

    Raises:
        NeverEnds: A job hangs: its script has no end, and neither a timeout nor a stop
            request will end it.
        WaitTimeout: The call took more than `patience` seconds.
        SpawnError: Supervisors repeatedly fail to start.
        ValueError: The manager has no slots, or another clock.
    """
    work = PendingWork(jobs, clock)
    deadline = time.monotonic() + patience
    while True:
        _come_to_rest(work, jobs, deadline, patience)
        moment = work.next_moment()
        if moment is not None:
            work.clock.advance_to(moment)
        elif work.has_work():
            names = ", ".join(work.names())
            raise NeverEnds(
                f"this would run for ever: {names}: its script hangs, it has no time-out, and "
                "no stop was requested",
                tuple(run.id for run in work.running()),
            )
        else:
            return


def elapse(
    jobs: JobManager,
    seconds: float,
    clock: ManualClock | None = None,
    *,
    patience: float = 30.0,
) -> None:
    """
    Move the clock on by `seconds`, while the manager does everything when it is due.

    `ManualClock.advance` alone does not wait for the manager: a retry that becomes due on
    the way starts late, and of several ticks of a schedule the manager sees only the last.
    This function moves the clock from one due time to the next, as `drain` does, and also
    stops at ticks. When it returns, everything that was due by then is done. With 0 seconds
    it only waits until the manager has done what it can do now, such as starting a job.

    Args:
        jobs: A manager with slots, whose clock is a `ManualClock`.
        seconds: The time to let pass, 0 or more seconds. Jobs need not have ended then.
        clock: That clock; None: take it from the manager.
        patience: Seconds of real time for the whole call.

    Raises:
        WaitTimeout: The call took more than `patience` seconds.
        SpawnError: Supervisors repeatedly fail to start.
        ValueError: The manager has no slots, or another clock; or `seconds` is negative or
            not a finite number.
    """
    work = PendingWork(jobs, clock)
    deadline = time.monotonic() + patience
    end = work.clock.monotonic() + checked_seconds(seconds)
    while True:
        _come_to_rest(work, jobs, deadline, patience)
        if work.clock.monotonic() >= end:
            return
        moments = (end, work.next_moment(), work.next_tick())
        work.clock.advance_to(min(moment for moment in moments if moment is not None))


def _come_to_rest(work: PendingWork, jobs: JobManager, deadline: float, patience: float) -> None:
    """Let the manager act until it waits only for the clock."""
    while not work.is_at_rest():
        work.require_progress()
        if time.monotonic() > deadline:
            running = ", ".join(work.names()) or "none"
            queued = jobs.count_jobs()[Status.QUEUED]
            raise WaitTimeout(
                f"the manager did not come to rest within {patience:g} s of real time: "
                f"{queued} queued; running: {running}"
            )
        work.wait_for_change(PAUSE)
