"""The parts of a manager, for tests: the one module that knows its private attributes."""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

from jobcore.manager import JobManager


class Parts:
    """The objects that one manager consists of."""

    def __init__(self, manager: JobManager) -> None:
        #: Its open database.
        self.database = manager._database
        #: The writer of its database.
        self.writer = manager._database.writer
        #: Its clock.
        self.clock = manager._clock
        #: Its access to job directories.
        self.directories = manager._directories
        #: Names this process as an owner.
        self.ownership = manager._ownership
        #: Starts its jobs.
        self.dispatcher = manager._dispatcher
        #: Its supervisors.
        self.pool = manager._dispatcher._pool
        #: Reads the jobs that it could claim.
        self.queue = manager._dispatcher._queue
        #: The jobs that it has adopted.
        self.adoption = manager._dispatcher._adoption
        #: The failures of its background work.
        self.postponed = manager._dispatcher._postponed
        #: Brings rows up to date with the job directories.
        self.recovery = manager._recovery
        #: Copies job directories into the database.
        self.importer = manager._recovery._importer
        #: Watches the supervisors of running jobs.
        self.unresponsive = manager._recovery._unresponsive
        #: Asks jobs to stop.
        self.stopper = manager._stopper
        #: Removes deleted jobs.
        self.remover = manager._remover
        #: Changes workspaces and pipelines.
        self.pipelines = manager._pipelines
        #: Changes jobs without a process.
        self.tasks = manager._tasks
        #: Cancels expired jobs.
        self.expiry = manager._expiry
        #: Waits for jobs, in threads.
        self.waiter = manager._waiter
        #: Waits for jobs, in event loops.
        self.async_waiter = manager._async_waiter
        #: Calls its subscribers.
        self.notifier = manager._notifier


def parts(manager: JobManager) -> Parts:
    """Return the parts of a manager."""
    return Parts(manager)
