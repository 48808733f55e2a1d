"""Lets time pass as fast as a manager can follow, until its queue is empty."""

from __future__ import annotations

import time
from uuid import UUID

from jobcore.errors import WaitTimeout
from jobcore.lifecycle import Status
from jobcore.manager import JobManager
from jobcore.testing.manual_clock import ManualClock, checked_seconds
from jobcore.testing.outlook import Outlook

#: Seconds of real time between two looks whether the manager has come to rest.
PAUSE = 0.002


class NeverEnds(AssertionError):
    """
    A job would run for ever, however far the clock is moved.

    Attributes:
        job_ids: The jobs that run and wait for nothing.
    """

    def __init__(self, message: str, job_ids: tuple[UUID, ...]) -> None:
        super().__init__(message)
        self.job_ids = job_ids


def drain(jobs: JobManager, clock: ManualClock | None = None, *, patience: float = 30.0) -> None:
    """
    Run all that is queued to its end, without a sleep.

    The manager acts until all of it waits for the clock; then the clock is moved
    to the next moment at which something is due (a script goes on, a grace or a
    time-out is over, a retry or a job with `not_before` may start), and so on. When
    this returns, nothing runs and nothing is queued that this manager could ever claim;
    follow-ups are among what was run. Schedules alone do not keep it going:
    a tick that comes while there is work is taken, later ones are left to `elapse`.

    Args:
        jobs: A manager with slots, whose clock is a `ManualClock`.
        clock: That clock; None: it is found there.
        patience: Seconds of real time for all of it.

    Raises:
        NeverEnds: A job hangs: its script has no end, and neither a time-out nor a stop
            brings one.
        WaitTimeout: It took more than `patience` seconds.
        SpawnError: Supervisors fail to start again and again.
        ValueError: The manager has no slots, or another clock.
    """
    outlook = Outlook(jobs, clock)
    deadline = time.monotonic() + patience
    while True:
        _come_to_rest(outlook, jobs, deadline, patience)
        moment = outlook.next_moment()
        if moment is not None:
            outlook.clock.advance_to(moment)
        elif outlook.has_work():
            names = ", ".join(outlook.names())
            raise NeverEnds(
                f"this would run for ever: {names}: its script hangs, it has no time-out, and "
                "nobody has asked it to stop",
                tuple(run.id for run in outlook.running()),
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
    Let `seconds` go by with the manager taking part: what is due is done when it is due.

    `ManualClock.advance` alone does not wait for the manager: a retry that gets due on the way
    is started late, and of several ticks of a schedule it sees the last. This goes from one
    moment to the next, as `drain` does, and takes ticks for such moments, too. When it
    returns, all is done that was due by then. With 0 seconds it only waits until the
    manager has done what it can do now: until a job has been started, say.

    Args:
        jobs: A manager with slots, whose clock is a `ManualClock`.
        seconds: The seconds that go by, 0 or more; jobs need not have ended then.
        clock: That clock; None: it is found there.
        patience: Seconds of real time for all of it.

    Raises:
        WaitTimeout: It took more than `patience` seconds.
        SpawnError: Supervisors fail to start again and again.
        ValueError: The manager has no slots, or another clock; or `seconds` is negative or no
            finite number.
    """
    outlook = Outlook(jobs, clock)
    deadline = time.monotonic() + patience
    end = outlook.clock.monotonic() + checked_seconds(seconds)
    while True:
        _come_to_rest(outlook, jobs, deadline, patience)
        if outlook.clock.monotonic() >= end:
            return
        moments = (end, outlook.next_moment(), outlook.next_tick())
        outlook.clock.advance_to(min(moment for moment in moments if moment is not None))


def _come_to_rest(outlook: Outlook, jobs: JobManager, deadline: float, patience: float) -> None:
    """Let the manager act until nothing but the clock moves anything on."""
    while not outlook.is_at_rest():
        outlook.require_progress()
        if time.monotonic() > deadline:
            running = ", ".join(outlook.names()) or "none"
            queued = jobs.count_jobs()[Status.QUEUED]
            raise WaitTimeout(
                f"the manager did not come to rest within {patience:g} s of real time: "
                f"{queued} queued; running: {running}"
            )
        outlook.wait_for_change(PAUSE)
