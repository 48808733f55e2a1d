"""The parts of a manager, for tests: the one module that knows its private attributes."""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

from jobcore.manager import JobManager


class Parts:
    """The objects that one manager consists of; the docstring of each class says what it does."""

    def __init__(self, manager: JobManager) -> None:
        self.database = manager._database
        self.writer = manager._database.writer
        self.clock = manager._clock
        self.directories = manager._directories
        self.ownership = manager._ownership
        self.dispatcher = manager._dispatcher
        self.pool = manager._dispatcher._pool
        self.queue = manager._dispatcher._queue
        self.adoption = manager._dispatcher._adoption
        self.postponed = manager._dispatcher._postponed
        self.recovery = manager._recovery
        self.importer = manager._recovery._importer
        self.unresponsive = manager._recovery._unresponsive
        self.stopper = manager._stopper
        self.remover = manager._remover
        self.pipelines = manager._pipelines
        self.tasks = manager._tasks
        self.expiry = manager._expiry
        self.waiter = manager._waiter
        self.async_waiter = manager._async_waiter
        self.notifier = manager._notifier


def parts(manager: JobManager) -> Parts:
    """Return the parts of a manager."""
    return Parts(manager)
