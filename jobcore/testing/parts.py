"""The parts of a manager, for tests: the one module that knows its private attributes."""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

from jobcore.clock import Clock
from jobcore.engine.adoption import Adoption
from jobcore.engine.dispatcher import Dispatcher
from jobcore.engine.expiry import Expiry
from jobcore.engine.importer import Importer
from jobcore.engine.job_directories import Directories
from jobcore.engine.ownership import Ownership
from jobcore.engine.postponement import Postponement
from jobcore.engine.queue_reader import QueueReader
from jobcore.engine.recovery import Recovery
from jobcore.engine.remover import Remover
from jobcore.engine.stopper import Stopper
from jobcore.engine.supervisor_pool import SupervisorPool
from jobcore.engine.unresponsive import Unresponsive
from jobcore.manager import JobManager
from jobcore.operations.pipelines import PipelineOperations
from jobcore.operations.subscriptions import Notifier
from jobcore.operations.task_operations import TaskOperations
from jobcore.operations.waiting import Waiter
from jobcore.operations.waiting_async import AsyncWaiter
from jobcore.storage.database import Database
from jobcore.storage.writer import Writer


class Parts:
    """The objects that one manager consists of, read from it at each use."""

    def __init__(self, manager: JobManager) -> None:
        self._manager = manager

    @property
    def database(self) -> Database:
        """Its open database."""
        return self._manager._database

    @property
    def writer(self) -> Writer:
        """The writer of its database."""
        return self._manager._database.writer

    @property
    def clock(self) -> Clock:
        """Its clock."""
        return self._manager._clock

    @property
    def directories(self) -> Directories:
        """Its access to job directories."""
        return self._manager._directories

    @property
    def ownership(self) -> Ownership:
        """Names this process as an owner."""
        return self._manager._ownership

    @property
    def dispatcher(self) -> Dispatcher:
        """Starts its jobs."""
        return self._manager._dispatcher

    @property
    def pool(self) -> SupervisorPool:
        """Its supervisors."""
        return self._manager._dispatcher._pool

    @property
    def queue(self) -> QueueReader:
        """Reads the jobs that it could claim."""
        return self._manager._dispatcher._queue

    @property
    def adoption(self) -> Adoption:
        """The jobs that it has adopted."""
        return self._manager._dispatcher._adoption

    @property
    def postponed(self) -> Postponement:
        """The failures of its background work."""
        return self._manager._dispatcher._postponed

    @property
    def recovery(self) -> Recovery:
        """Brings rows up to date with the job directories."""
        return self._manager._recovery

    @property
    def importer(self) -> Importer:
        """Copies job directories into the database."""
        return self._manager._recovery._importer

    @property
    def unresponsive(self) -> Unresponsive:
        """Watches the supervisors of running jobs."""
        return self._manager._recovery._unresponsive

    @property
    def stopper(self) -> Stopper:
        """Asks jobs to stop."""
        return self._manager._stopper

    @property
    def remover(self) -> Remover:
        """Removes deleted jobs."""
        return self._manager._remover

    @property
    def pipelines(self) -> PipelineOperations:
        """Changes workspaces and pipelines."""
        return self._manager._pipelines

    @property
    def tasks(self) -> TaskOperations:
        """Changes jobs without a process."""
        return self._manager._tasks

    @property
    def expiry(self) -> Expiry:
        """Cancels expired jobs."""
        return self._manager._expiry

    @property
    def waiter(self) -> Waiter:
        """Waits for jobs, in threads."""
        return self._manager._waiter

    @property
    def async_waiter(self) -> AsyncWaiter:
        """Waits for jobs, in event loops."""
        return self._manager._async_waiter

    @property
    def notifier(self) -> Notifier:
        """Calls its subscribers."""
        return self._manager._notifier


def parts(manager: JobManager) -> Parts:
    """Return the parts of a manager."""
    return Parts(manager)
