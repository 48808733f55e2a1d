"""
Stores a stop request and carries it to the supervisor.

The row is the wish; the file and the doorbell are how the supervisor hears of
it, from whatever process. Whoever finds a wish without a file carries it again.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable

from sqlalchemy import Connection

from jobcore.clock import Clock
from jobcore.embedding import failpoints, telemetry
from jobcore.embedding.worker import handed_over
from jobcore.engine import orphans
from jobcore.engine.job_directories import Directories
from jobcore.errors import DatabaseFull, InvalidTransition, JobNotFound, JobNotRunning, StoreError
from jobcore.lifecycle import Ending, Reason, Status, Trigger
from jobcore.storage import filesystem, settlement, transitions
from jobcore.storage.database import Database
from jobcore.storage.transitions import Run
from jobcore.supervisor import NewerProtocol, job_directory


class Stopper:
    """
    Asks jobs to stop.

    Args:
        database: Where wishes are stored.
        directories: Where supervisors look for them.
        clock: Tells when.
    """

    def __init__(self, database: Database, directories: Directories, clock: Clock) -> None:
        self._database = database
        self._directories = directories
        self._clock = clock

    @handed_over
    def stop(
        self, run: Run, grace: float | None, why: str, *, patience: float | None = None
    ) -> Run:
        """
        Ask a RUNNING job to stop, durably; one without a process is STOPPED at once.

        Args:
            grace: Seconds until it is killed; None: its command's own.
            patience: Seconds to wait for the write lock; None: the busy timeout.

        Raises:
            JobNotFound, JobNotRunning: It is gone, or not RUNNING.
            DatabaseFull: The wish could not be stored; the supervisor was told all the same.
        """
        milliseconds = None if grace is None else round(grace * 1000)
        now = self._clock.now()

        def ask(connection: Connection) -> Run:
            asked = transitions.ask_stop_if_running(
                connection,
                run.number,
                grace_ms=milliseconds,
                why=why,
                now=now,
            )
            if asked is None:
                current = transitions.find(connection, run.number)
                if current is None:
                    raise JobNotFound(run.id)
                raise _not_running(current)
            if asked.token is None:
                return self._end_bookkeeping(connection, asked, now)
            return asked

        try:
            asked = self._database.write(ask, patience=patience, about=f"job {run.id}")
        except DatabaseFull:
            # The doorbell needs no space.
            self._ring(run, job_directory.KILL_NOW if milliseconds == 0 else job_directory.STOP_NOW)
            raise
        if asked.token is None:
            return asked  # ended here: there is no process to be told
        failpoints.reach(failpoints.STOP_STORED, self._database)
        self.deliver(asked)
        return asked

    @handed_over
    def stop_all(self, running: Iterable[Run]) -> float:
        """
        Ask each of these to stop; return the longest grace, in seconds, that one has.

        Where a wish cannot be stored the supervisor is told all the same: its verdict
        says that it was. No more than one wish waits for the write lock.
        """
        longest = 0
        patience: float | None = None
        for run in running:
            longest = max(longest, run.effective_grace_ms or 0)
            try:
                self.stop(run, None, "close", patience=patience)
            except (JobNotFound, JobNotRunning):
                continue  # it has ended, or was deleted, meanwhile
            except StoreError as error:
                patience = 0.0
                telemetry.event(
                    logging.WARNING, "stop not stored", job=str(run.id), error=str(error)
                )
                self._ring_softly(run)
        return longest / 1000

    def _ring_softly(self, run: Run) -> None:
        try:
            self._ring(run, job_directory.KILL_NOW if run.grace_ms == 0 else job_directory.STOP_NOW)
        except StoreError as error:
            # It lives on; the others are stopped all the same.
            telemetry.event(logging.ERROR, "not stopped", job=str(run.id), error=str(error))

    @handed_over
    def cancel(self, run: Run, grace: float | None = None) -> Run:
        """
        Move QUEUED to STOPPED; ask a RUNNING job to stop.

        Args:
            grace: Seconds until a RUNNING one is killed; None: its command's own.

        Raises:
            JobNotFound, InvalidTransition: It is gone, or final.
        """
        now = self._clock.now()

        def cancel(connection: Connection) -> tuple[Run | None, Run | None]:
            cancelled = settlement.cancel(connection, run.number, now=now)
            return cancelled, transitions.find(connection, run.number)

        cancelled, current = self._database.write(cancel, about=f"job {run.id}")
        if cancelled is not None:
            return cancelled
        if current is None:
            raise JobNotFound(run.id)
        if current.status != Status.RUNNING:
            raise InvalidTransition(run.id, current.status, Trigger.CANCEL)
        return self.stop(current, grace, "cancel")

    @staticmethod
    def _end_bookkeeping(connection: Connection, run: Run, now: int) -> Run:
        final = settlement.settle_own(connection, run, Ending(Reason.STOPPED), now=now)
        if final is None:
            raise JobNotRunning(run.id, run.status, Trigger.STOP)
        return final

    @handed_over
    def deliver(self, run: Run) -> None:
        """
        Tell the supervisor of a RUNNING job what its row wishes.

        Harmless when told before, and when the job has ended meanwhile.

        Raises:
            StoreError: No file could be written. The supervisor was told to stop
                all the same, through the FIFO, which needs no space, or by SIGTERM.
        """
        try:
            with self._directories.open(run.name) as directory:
                self._write_until_true(run, directory)
                failpoints.reach(failpoints.STOP_WRITTEN, self._database)
                try:
                    job_directory.ring(directory)
                except OSError as error:
                    # The wish stands. The supervisor looks after its FIFO, and finds it then.
                    telemetry.event(
                        logging.WARNING, "stop delayed", job=str(run.id), error=str(error)
                    )
                failpoints.reach(failpoints.STOP_RUNG, self._database)
        except FileNotFoundError:
            pass  # it has ended, and its directory is gone

    def remind(self, run: Run) -> None:
        """
        Tell the supervisor once more of a wish that it has not fulfilled yet.

        Whoever stored the wish may have died before the file was written, or
        between the file and the doorbell, without which nobody reads it.

        Raises:
            StoreError: As `deliver` does.
        """
        if self._is_written(run):
            self._ring(run, job_directory.DOORBELL)
        else:
            self.deliver(run)

    def _is_written(self, run: Run) -> bool:
        """Tell whether the wish of the row stands in the job's directory."""
        try:
            with self._directories.open(run.name) as directory:
                wish = job_directory.read_record(directory, job_directory.STOP)
        except FileNotFoundError:
            return True  # nobody is there to be told
        except NewerProtocol:
            return True  # whatever else it says, it asks to stop
        except StoreError:
            return False  # what cannot be read is put aside, or a letter tells the wish
        return wish is not None and _asks_no_less(wish, run)

    def _ring(self, run: Run, letter: bytes) -> None:
        try:
            with self._directories.open(run.name) as directory:
                _tell(run, directory, letter)
        except FileNotFoundError:
            pass  # it has ended

    def _write_until_true(self, run: Run, directory: int) -> None:
        while True:
            wish: dict[str, str | int | None] = {
                "grace_ms": run.stop_grace_ms,
                "who": run.stop_who,
                "why": run.stop_why,
            }
            try:
                job_directory.write_record(directory, job_directory.STOP, wish)
            except FileNotFoundError:
                return  # the directory was removed under us: it has ended
            except OSError as error:
                letter = (
                    job_directory.KILL_NOW if run.stop_grace_ms == 0 else job_directory.STOP_NOW
                )
                _tell(run, directory, letter)
                what = f"the wish to stop {run.id} cannot be written"
                raise filesystem.typed(what, error) from error
            # Another process may have shortened the grace, and written its file
            # before ours: what the row says now is what must stand there.
            with self._database.read() as connection:
                fresh = transitions.find(connection, run.number)
            if fresh is None or _asks_no_less(wish, fresh):
                return
            run = fresh


def _not_running(run: Run) -> JobNotRunning:
    queued = run.status == Status.QUEUED
    return JobNotRunning(
        run.id, run.status, Trigger.STOP, "cancel_job takes it from the queue" if queued else ""
    )


def _tell(run: Run, directory: int, letter: bytes) -> None:
    """
    Tell the supervisor by the FIFO; where that is none, tell a wish to stop by SIGTERM.

    Raises:
        OSError: It was not told.
    """
    try:
        job_directory.ring(directory, letter)
    except OSError:
        # At SIGTERM a supervisor ends its job, with the command's own grace.
        if letter == job_directory.DOORBELL or not orphans.signal_all(
            run.token or "", signal.SIGTERM
        ):
            raise


def _asks_no_less(wish: dict[str, str | int | None], run: Run) -> bool:
    """Tell whether the file asks for as short a grace as the row."""
    written, wanted = wish.get("grace_ms"), run.stop_grace_ms
    return wanted is None or (isinstance(written, int) and written <= wanted)
