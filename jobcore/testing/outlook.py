"""What a manager is waiting for: only for the clock, or for more."""

# ruff: noqa: SLF001 - it looks inside, so that nothing of this is on JobManager
# ruff: noqa: TRY004 - one kind of error for every wrong argument, as everywhere in jobcore

from __future__ import annotations

from jobcore.clock import Clock
from jobcore.manager import JobManager
from jobcore.storage import store, transitions
from jobcore.storage.transitions import Run
from jobcore.testing.manual_clock import ManualClock


class Outlook:
    """
    The view of one manager, its database and its clock.

    Args:
        jobs: A manager that runs jobs.
        clock: The clock that it goes by; None: find it there.

    Raises:
        ValueError: It runs no jobs, or its clock cannot be moved.
    """

    def __init__(self, jobs: JobManager, clock: ManualClock | None = None) -> None:
        own: Clock = jobs._clock
        if clock is not None and clock is not own:
            raise ValueError("the manager goes by another clock: open it with this one")
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
        Tell whether nothing happens any more until the clock is moved.

        What other threads, managers and processes may do to the jobs is not foreseen.
        """
        self.clock.step()
        waiting = self.clock.runs()
        dispatcher = self._jobs._dispatcher
        moving = {run.token for run in self.running()} - waiting
        if moving:
            # Its supervisor is a process, or it has ended and is not settled yet: by this
            # manager soon, but where another one had claimed it, by whoever looks.
            if moving - {run.token for run in dispatcher.running()}:
                self._jobs.recover()
            return False
        # In this order: a tick that is taken in between has become a job in the queue.
        return not self._has_due_tick() and dispatcher.waits_only_for(waiting)

    def _has_due_tick(self) -> bool:
        with self._jobs._database.read() as connection:
            tick = store.next_tick(connection)
        return tick is not None and tick <= self.clock.now()

    def running(self) -> list[Run]:
        """Return the jobs that a supervisor has in hand, or had."""
        with self._jobs._database.read() as connection:
            return transitions.supervised(connection)

    def names(self) -> list[str]:
        """Return the same jobs in words: id, and name where they have one."""
        with self._jobs._database.read() as connection:
            rows = [(run, store.get_job(connection, run.number)) for run in self.running()]
        return [
            str(run.id) if row is None or row.name is None else f"{run.id} ({row.name})"
            for run, row in rows
        ]

    def has_work(self) -> bool:
        """Tell whether anything runs, or could be claimed by this manager, now or later."""
        dispatcher = self._jobs._dispatcher
        return bool(
            self.running() or not dispatcher.is_idle() or dispatcher.next_start() is not None
        )

    def require_progress(self) -> None:
        """
        Tell one who waits that nothing will ever go on.

        Raises:
            SpawnError, StoreError: As `JobManager.drain` says.
        """
        self._jobs._dispatcher.require_progress()

    def wait_for_change(self, seconds: float) -> None:
        """Sleep until somebody commits, or so long."""
        database = self._jobs._database
        database.wait_for_change(database.version(), seconds)

    # --- later ------------------------------------------------------------------

    def next_moment(self) -> float | None:
        """Return when, by the monotonic clock, a script goes on or a queued job gets due."""
        moments = [self.clock.next_due(), self._monotonic(self._jobs._dispatcher.next_start())]
        return min((moment for moment in moments if moment is not None), default=None)

    def next_tick(self) -> float | None:
        """Return when, by the monotonic clock, a pipeline is to run by its schedule."""
        with self._jobs._database.read() as connection:
            return self._monotonic(store.next_tick(connection))

    def _monotonic(self, wall: int | None) -> float | None:
        if wall is None:
            return None
        return self.clock.monotonic() + (wall - self.clock.now()) / 1e6
