"""Moves a manual clock as fast as a manager can follow, until its queue is empty."""

# ruff: noqa: TRY004 - one error class for every wrong argument, as everywhere in jobcore

from __future__ import annotations

import time
from uuid import UUID

from jobcore.clock import Clock
from jobcore.errors import WaitTimeout
from jobcore.lifecycle import Status
from jobcore.manager import JobManager
from jobcore.storage import job_rows, queue, schedules, transitions
from jobcore.storage.transitions import Run
from jobcore.testing.manual_clock import ManualClock, checked_seconds
from jobcore.testing.parts import parts

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
    runs and no job is queued that this manager could ever claim, including follow-ups. Paused
    jobs stay in the queue.
    Schedules do not keep it running: a tick that is due while there is work is taken; for
    later ticks use `elapse`.

    Args:
        jobs: A manager with slots, whose clock is a `ManualClock`.
        clock: That clock; None: take it from the manager.
        patience: Seconds of real time for the whole call.

    Raises:
        NeverEnds: A job hangs: its script has no end, and neither a timeout nor a stop
            request will end it. Or queued jobs wait for a limit that only tasks use.
        WaitTimeout: The call took more than `patience` seconds.
        SpawnError: Supervisors repeatedly fail to start.
        ValueError: The manager has no slots, or another clock.
    """
    work = PendingWork(jobs, clock)
    deadline = time.monotonic() + patience
    while True:
        _run_until_idle(work, jobs, deadline, patience)
        moment = work.next_moment()
        if moment is not None:
            end = work.next_expiry()  # an expiry alone is no reason to go on
            work.clock.advance_to(moment if end is None else min(moment, end))
        elif work.has_work():
            names = ", ".join(work.names())
            if not names:
                raise NeverEnds(
                    "this would run for ever: queued jobs wait for a limit, and the jobs that "
                    "count for it are tasks that are not finished",
                    (),
                )
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
        _run_until_idle(work, jobs, deadline, patience)
        if work.clock.monotonic() >= end:
            return
        moments = (end, work.next_moment(), work.next_tick(), work.next_expiry())
        work.clock.advance_to(min(moment for moment in moments if moment is not None))


def _run_until_idle(work: PendingWork, jobs: JobManager, deadline: float, patience: float) -> None:
    """Let the manager act until it waits only for the clock."""
    while not work.is_idle():
        work.require_progress()
        if time.monotonic() > deadline:
            running = ", ".join(work.names()) or "none"
            queued = jobs.count_jobs()[Status.QUEUED]
            raise WaitTimeout(
                f"the manager was still busy after {patience:g} s of real time: "
                f"{queued} queued; running: {running}"
            )
        work.wait_for_change(PAUSE)


class PendingWork:
    """
    What one manager, its database and its clock wait for.

    Args:
        jobs: A manager that runs jobs.
        clock: The manager's clock; None: take it from the manager.

    Raises:
        ValueError: The manager runs no jobs, or its clock is not a `ManualClock`.
    """

    def __init__(self, jobs: JobManager, clock: ManualClock | None = None) -> None:
        own: Clock = parts(jobs).clock
        if clock is not None and clock is not own:
            raise ValueError("the manager uses another clock: open it with this one")
        if not isinstance(own, ManualClock):
            raise ValueError(
                "the manager's clock runs by itself: ask for the fixture job_clock, too, or open "
                "the manager with JobManager(..., clock=ManualClock()); jobs.drain() waits for "
                "jobs in real time"
            )
        if not jobs.slots:
            raise ValueError("the manager has no slots, so it runs nothing")
        self.clock = own
        self._jobs = jobs
        self._parts = parts(jobs)

    # --- now --------------------------------------------------------------------

    def is_idle(self) -> bool:
        """
        Tell whether nothing more will happen until the clock is moved.

        It does not know what other threads, managers and processes will do.
        """
        self.clock.step()
        waiting = self.clock.runs()
        dispatcher = self._parts.dispatcher
        moving = {run.token for run in self.running()} - waiting
        if moving:
            # Either the supervisor is a process, or the job has ended and is not settled yet.
            # This manager soon settles its own jobs; `recover` settles those of others.
            if moving - {run.token for run in dispatcher.running()}:
                self._jobs.recover()
            return False
        # In this order, because a tick that is taken in between becomes a queued job.
        return (
            not self._has_due_tick()
            and not self._has_expired()
            and dispatcher.waits_only_for(waiting)
        )

    def _has_due_tick(self) -> bool:
        with self._parts.database.read() as connection:
            tick = schedules.next_tick(connection)
        return tick is not None and tick <= self.clock.now()

    def _has_expired(self) -> bool:
        with self._parts.database.read() as connection:
            return bool(queue.expired(connection, now=self.clock.now(), limit=1))

    def running(self) -> list[Run]:
        """Return the RUNNING jobs that have, or had, a supervisor."""
        with self._parts.database.read() as connection:
            return transitions.supervised(connection)

    def names(self) -> list[str]:
        """Return the same jobs as text: the id, and the name if there is one."""
        with self._parts.database.read() as connection:
            rows = [(run, job_rows.get_job(connection, run.number)) for run in self.running()]
        return [
            str(run.id) if row is None or row.name is None else f"{run.id} ({row.name})"
            for run, row in rows
        ]

    def has_work(self) -> bool:
        """Tell whether a job runs, or can be claimed by this manager now or later."""
        dispatcher = self._parts.dispatcher
        # Not `is_idle`, which is also false for a moment while a chore is at work.
        return bool(
            self.running()
            or not self._parts.queue.is_empty(counted=False)
            or dispatcher.next_start() is not None
        )

    def require_progress(self) -> None:
        """
        Raise if waiting is pointless, because the manager cannot make progress.

        Raises:
            SpawnError, StoreError: As for `JobManager.drain`.
        """
        self._parts.dispatcher.liveness.require_progress()

    def wait_for_change(self, seconds: float) -> None:
        """Wait for a commit of any process, for at most `seconds`."""
        database = self._parts.database
        database.wait_for_change(database.version(), seconds)

    # --- later ------------------------------------------------------------------

    def next_moment(self) -> float | None:
        """Return the monotonic time at which a script continues or a queued job is due, or None."""
        moments = [
            self.clock.next_due(),
            self._monotonic(self._parts.dispatcher.next_start()),
        ]
        return min((moment for moment in moments if moment is not None), default=None)

    def next_tick(self) -> float | None:
        """Return the monotonic time of the next scheduled tick, or None."""
        with self._parts.database.read() as connection:
            return self._monotonic(schedules.next_tick(connection))

    def next_expiry(self) -> float | None:
        """Return the monotonic time at which the next queued job expires, or None."""
        with self._parts.database.read() as connection:
            return self._monotonic(queue.next_expiry(connection))

    def _monotonic(self, wall: int | None) -> float | None:
        if wall is None:
            return None
        return self.clock.monotonic() + (wall - self.clock.now()) / 1e6
