"""
Tells callers that wait for jobs whether this manager can still make progress.

A caller must not wait for ever for a job that cannot go on. It gets an error if a failure
persists: it has been repeated for some seconds, and its cause is not a busy, full or read-only
database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from jobcore.embedding import telemetry
from jobcore.engine.job_directories import Directories
from jobcore.engine.ownership import Ownership
from jobcore.engine.postponement import SUPERVISORS, Postponement
from jobcore.engine.queue_reader import QueueReader
from jobcore.errors import SpawnError
from jobcore.lifecycle import Status
from jobcore.storage import transitions
from jobcore.storage.transitions import Run
from jobcore.supervisor import job_directory

if TYPE_CHECKING:
    from jobcore.engine.dispatcher import Dispatcher

#: The error for a job that waits in a manager whose thread has ended with the interpreter.
EXITING = "the interpreter is shutting down: this manager starts no more jobs"
#: The key in `Postponement` of failures of the dispatcher's rounds.
ROUND = "round"


class Liveness:
    """
    What one dispatcher has failed to do, for threads that wait. Any thread may use it.

    Args:
        ownership: Names this process, whose reserved jobs it may claim.
        queue: The jobs that the dispatcher could claim.
        postponed: Remembers its failures.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        directories: Directories,
        ownership: Ownership,
        queue: QueueReader,
        postponed: Postponement,
    ) -> None:
        self._dispatcher = dispatcher
        self._directories = directories
        self._ownership = ownership
        self._queue = queue
        self._postponed = postponed

    def begin_wait(self, manager: object) -> Callable[[Run], None]:
        """
        Return `require` for a waiter that begins now; it ignores failures before that.

        Args:
            manager: Kept alive by the returned function, so that it is not collected meanwhile.
        """
        return partial(self.require, begun=self._postponed.now(), manager=manager)

    def require(self, run: Run, begun: float = 0.0, manager: object = None) -> None:  # noqa: ARG002 - see `begin_wait`
        """
        Raise an error if a job cannot go on here and the cause persists, for a caller that waits.

        It raises nothing for a job that has a supervisor or that only another manager can run,
        and nothing because the database is busy, full or read-only.

        Args:
            run: The job.
            begun: When the caller began to wait; earlier failures are ignored.
            manager: See `begin_wait`.

        Raises:
            SpawnError: The job is QUEUED, and jobs cannot be started here; or the interpreter
                is exiting and has ended the thread.
            DatabaseGone: The job is QUEUED, and the directory of all job directories is gone.
            StoreError: Its row, its directory or its files cannot be read. The subclass says
                why.
        """
        if run.status == Status.QUEUED:
            if self._dispatcher.exiting:
                raise SpawnError(EXITING)
            self._directories.require_root()
            if run.owner in (None, self._ownership.current) and self._queue.takes(run):
                self._require_starts(begun)
                self._require_readable(run, begun)
        elif (
            run.supervised
            and self._postponed.fails(run.number)  # first, because it is fast and called often
            and not _may_be_locked(run)
        ):
            self._require_readable(run, begun)

    def _require_starts(self, begun: float) -> None:
        for key, what in (
            (SUPERVISORS, "supervisors cannot be started"),
            (ROUND, "this manager cannot start jobs: each attempt fails"),
        ):
            failure = self._postponed.persistent(key, begun)
            if failure is not None:
                raise failure.for_waiter(what)

    def _require_readable(self, run: Run, begun: float) -> None:
        failure = self._postponed.persistent(run.number, begun)
        if failure is not None:
            raise failure.for_waiter(
                f"job {transitions.name_of(run)} is {run.status} and cannot go on"
            )
        self._postponed.retry_soon(run.number)  # retry a failure soon: its cause may be gone

    def require_progress(self, begun: float = 0.0) -> None:
        """
        Raise an error if none of this manager's jobs can go on, for a caller that drains it.

        Args:
            begun: When the caller began to wait; earlier failures are ignored.

        Raises:
            SpawnError, StoreError: As in `require`: none of the jobs that this manager has
                claimed, or could claim, can go on.
        """
        if self._dispatcher.exiting:
            raise SpawnError(EXITING)
        claimed = self._dispatcher.running()
        stuck = [run for run in claimed if self._postponed.persistent(run.number, begun)]
        if len(stuck) < len(claimed):
            self._retry_soon(run.number for run in claimed)
            return  # at least one job can go on
        for run in stuck:
            self.require(run, begun)
        if stuck:
            return
        self._require_starts(begun)
        queued = self._queue.first()
        failures = [self._postponed.persistent(number, begun) for number in queued]
        if failures and failures[0] is not None and None not in failures:
            raise failures[0].for_waiter(f"job number {queued[0]} cannot be started")
        self._retry_soon(queued)

    def _retry_soon(self, numbers: Iterable[int]) -> None:
        """Retry jobs that fail soon, because a caller waits for them."""
        for number in numbers:
            self._postponed.retry_soon(number)

    def is_drained(self, *, starts: bool) -> Callable[[], bool]:
        """
        Return a function that tells whether all jobs are done, for a caller that waits from now on.

        Args:
            starts: Whether it starts the thread if necessary, for example in a forked child.
        """
        begun = self._postponed.now()

        def answer() -> bool:
            if starts:
                self._dispatcher.start()
            if self._dispatcher.is_idle():
                if self._queue.has_paused():
                    telemetry.event(logging.WARNING, "paused jobs left in the queue")
                return True
            self.require_progress(begun)
            return False

        return answer

    def failures(self) -> list[str]:
        """Return a line for each current failure."""
        return self._postponed.in_words()


def _may_be_locked(run: Run) -> bool:
    """Tell whether the job has a supervisor; True if that cannot be checked now."""
    try:
        return job_directory.is_run_locked(run.token or "")
    except OSError:
        return True
