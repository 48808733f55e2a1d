"""Tells what a manager waits for: whether only for the clock, and until when."""

# ruff: noqa: SLF001 - it uses internals, so that JobManager needs no methods for this
# ruff: noqa: TRY004 - one error class for every wrong argument, as everywhere in jobcore

from __future__ import annotations

from jobcore.clock import Clock
from jobcore.manager import JobManager
from jobcore.storage import job_rows, schedules, transitions
from jobcore.storage.transitions import Run
from jobcore.testing.manual_clock import ManualClock


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
        own: Clock = jobs._clock
        if clock is not None and clock is not own:
            raise ValueError("the manager uses another clock: open it with this one")
        if not isinstance(own, ManualClock):
            raise ValueError(
                "the manager's clock runs by itself: ask for the fixture job_clock, too, or open "
                "the manager with JobManager(..., clock=ManualClock()); jobs.drain() waits for "
                "jobs in real time"
            )
        if not jobs._slots:
            raise ValueError("the manager has no slots, so it runs nothing")
        self.clock = own
        self._jobs = jobs

    # --- now --------------------------------------------------------------------

    def is_at_rest(self) -> bool:
        """
        Tell whether nothing more happens until the clock is moved.

        It does not know what other threads, managers and processes will do.
        """
        self.clock.step()
        waiting = self.clock.runs()
        dispatcher = self._jobs._dispatcher
        moving = {run.token for run in self.running()} - waiting
        if moving:
            # Either the supervisor is a process, or the job has ended and is not settled yet.
            # This manager soon settles its own jobs; `recover` settles those of others.
            if moving - {run.token for run in dispatcher.running()}:
                self._jobs.recover()
            return False
        # In this order, because a tick that is taken in between becomes a queued job.
        return not self._has_due_tick() and dispatcher.waits_only_for(waiting)

    def _has_due_tick(self) -> bool:
        with self._jobs._database.read() as connection:
            tick = schedules.next_tick(connection)
        return tick is not None and tick <= self.clock.now()

    def running(self) -> list[Run]:
        """Return the RUNNING jobs that have, or had, a supervisor."""
        with self._jobs._database.read() as connection:
            return transitions.supervised(connection)

    def names(self) -> list[str]:
        """Return the same jobs as text: the id, and the name if there is one."""
        with self._jobs._database.read() as connection:
            rows = [(run, job_rows.get_job(connection, run.number)) for run in self.running()]
        return [
            str(run.id) if row is None or row.name is None else f"{run.id} ({row.name})"
            for run, row in rows
        ]

    def has_work(self) -> bool:
        """Tell whether a job runs, or can be claimed by this manager now or later."""
        dispatcher = self._jobs._dispatcher
        return bool(
            self.running() or not dispatcher.is_idle() or dispatcher.next_start() is not None
        )

    def require_progress(self) -> None:
        """
        Raise if waiting is pointless, because the manager cannot make progress.

        Raises:
            SpawnError, StoreError: As for `JobManager.drain`.
        """
        self._jobs._dispatcher.liveness.require_progress()

    def wait_for_change(self, seconds: float) -> None:
        """Wait for a commit of any process, for at most `seconds`."""
        database = self._jobs._database
        database.wait_for_change(database.version(), seconds)

    # --- later ------------------------------------------------------------------

    def next_moment(self) -> float | None:
        """Return the monotonic time at which a script continues or a queued job is due, or None."""
        moments = [self.clock.next_due(), self._monotonic(self._jobs._dispatcher.next_start())]
        return min((moment for moment in moments if moment is not None), default=None)

    def next_tick(self) -> float | None:
        """Return the monotonic time of the next scheduled tick, or None."""
        with self._jobs._database.read() as connection:
            return self._monotonic(schedules.next_tick(connection))

    def _monotonic(self, wall: int | None) -> float | None:
        if wall is None:
            return None
        return self.clock.monotonic() + (wall - self.clock.now()) / 1e6
