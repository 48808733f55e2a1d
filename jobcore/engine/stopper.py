"""
Stores a stop request and delivers it to the supervisor.

The row holds the request. The file `stop` and a byte on the FIFO deliver it to the
supervisor, from any process. A process that finds a request without a file delivers it again.
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
from jobcore.errors import (
    DatabaseBusy,
    DatabaseFull,
    InvalidTransition,
    JobNotFound,
    JobNotRunning,
    StoreError,
)
from jobcore.lifecycle import Ending, Reason, Status, Trigger
from jobcore.storage import filesystem, settlement, transitions
from jobcore.storage.database import Database
from jobcore.storage.transitions import Run
from jobcore.supervisor import NewerProtocol, job_directory


class Stopper:
    """Asks jobs to stop."""

    def __init__(self, database: Database, directories: Directories, clock: Clock) -> None:
        self._database = database
        self._directories = directories
        self._clock = clock

    @handed_over
    def stop(self, run: Run, grace: float | None, why: str) -> Run:
        """
        Ask a RUNNING job to stop, durably; one without a process is STOPPED at once.

        Args:
            grace: Seconds until it is killed; None: its command's own.

        Raises:
            JobNotFound, JobNotRunning: It is gone, or not RUNNING.
            DatabaseFull, DatabaseBusy: The request could not be stored. The supervisor was still
                asked to stop.
        """
        try:
            asked = self._store(run, grace, why, None)
        except (DatabaseFull, DatabaseBusy):
            # Tell the supervisor through its FIFO, which needs neither disk space nor a lock.
            self._send_control(
                run, job_directory.KILL_NOW if grace == 0 else job_directory.STOP_NOW
            )
            raise
        return self._deliver_stored(asked)

    def _store(self, run: Run, grace: float | None, why: str, patience: float | None) -> Run:
        """Store the request; `patience`: seconds to wait for the write lock."""
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
                return self._end_task(connection, asked, now)
            return asked

        return self._database.write(ask, patience=patience, about=f"job {run.id}")

    def _deliver_stored(self, asked: Run) -> Run:
        """Deliver a request that has just been stored."""
        if asked.token is None:
            return asked  # it had no process, and is settled
        if failpoints.armed:
            failpoints.reach(failpoints.STOP_STORED, self._database)
        self.deliver(asked)
        return asked

    @handed_over
    def stop_all(self, running: Iterable[Run]) -> float:
        """
        Ask each of these jobs to stop, and return the longest of their graces in seconds.

        If a request cannot be stored, the supervisor is still asked to stop; its exit record will
        say so. After that, further requests do not wait for the write lock.
        """
        longest = 0
        patience: float | None = None
        for run in running:
            longest = max(longest, run.effective_grace_ms or 0)
            try:
                asked = self._store(run, None, "close", patience)
            except (JobNotFound, JobNotRunning):
                continue  # it has ended, or was deleted meanwhile
            except StoreError as error:
                patience = 0.0
                telemetry.event(
                    logging.WARNING, "stop not stored", job=str(run.id), error=str(error)
                )
                self._try_to_ask(run)
                continue
            try:
                self._deliver_stored(asked)
            except StoreError as error:
                # The supervisor got the request in another way, or the text says that it did not.
                telemetry.event(logging.WARNING, "stop delayed", job=str(run.id), error=str(error))
        return longest / 1000

    def _try_to_ask(self, run: Run) -> None:
        byte = job_directory.KILL_NOW if run.grace_ms == 0 else job_directory.STOP_NOW
        try:
            self._send_control(run, byte)
        except StoreError as error:
            # This job continues; stop the others all the same.
            telemetry.event(logging.ERROR, "not stopped", job=str(run.id), error=str(error))

    @handed_over
    def cancel(self, run: Run, grace: float | None = None) -> Run:
        """
        Move a QUEUED job to STOPPED; ask a RUNNING job to stop.

        Args:
            grace: Seconds until a RUNNING one is killed; None: its command's own.

        Raises:
            JobNotFound, InvalidTransition: It is gone, or final.
        """
        if run.status == Status.RUNNING:
            # No job returns to QUEUED, and `stop` works even if the database cannot be written.
            return self.stop(run, grace, "cancel")
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
    def _end_task(connection: Connection, run: Run, now: int) -> Run:
        final = settlement.settle_own(connection, run, Ending(Reason.STOPPED), now=now)
        if final is None:
            raise JobNotRunning(run.id, run.status, Trigger.STOP)
        return final

    @handed_over
    def deliver(self, run: Run) -> None:
        """
        Deliver the stop request in the row of a RUNNING job to its supervisor.

        It is harmless to deliver it twice, or after the job has ended.

        Raises:
            StoreError: No file could be written. The supervisor was still asked to stop, through
                the FIFO, which needs no disk space, or by SIGTERM. If that failed, too, the text
                says so.
        """
        opened = False
        try:
            with self._directories.open(run.name) as directory:
                opened = True
                self._write_until_current(run, directory)
                if failpoints.armed:
                    failpoints.reach(failpoints.STOP_WRITTEN, self._database)
                try:
                    job_directory.send_control(directory)
                except OSError as error:
                    # The file is written. The supervisor checks its FIFO, and then finds it.
                    telemetry.event(
                        logging.WARNING, "stop delayed", job=str(run.id), error=str(error)
                    )
                if failpoints.armed:
                    failpoints.reach(failpoints.STOP_SENT, self._database)
        except FileNotFoundError:
            if not opened:
                self._signal(run)  # it has ended, or a tool has removed its directory
        except StoreError as error:
            if opened:
                raise
            # The directory cannot be read. The kernel's list of locks names the supervisor.
            raise _unreachable(run, error, delivered=self._signal(run), stored=True) from error

    def redeliver(self, run: Run) -> None:
        """
        Deliver a stop request again that the supervisor has not carried out yet.

        The process that stored it may have died before it wrote the file, or before it wrote to
        the FIFO, without which the supervisor does not read the file.

        Raises:
            StoreError: As in `deliver`.
        """
        if self._is_written(run):
            self._send_control(run, job_directory.READ_STOP)
        else:
            self.deliver(run)

    def _is_written(self, run: Run) -> bool:
        """Tell whether the stop request of the row is written in the job directory."""
        try:
            with self._directories.open(run.name) as directory:
                written = job_directory.read_record(directory, job_directory.STOP)
        except FileNotFoundError:
            return False  # `deliver` tells the supervisor directly, if the job has not ended
        except NewerProtocol:
            return True  # in any version, the file is a request to stop
        except StoreError:
            return False  # `deliver` replaces an unreadable file, or tells the supervisor directly
        return written is not None and _is_as_strict(written, run)

    def _send_control(self, run: Run, byte: bytes) -> None:
        """
        Send the supervisor a byte without writing the `stop` file, or SIGTERM instead.

        Raises:
            StoreError: Neither reached it.
        """
        opened = False
        try:
            with self._directories.open(run.name) as directory:
                opened = True
                self._write_control(run, directory, byte)
        except FileNotFoundError:
            if not opened:
                self._signal(run)  # it has ended, or a tool has removed its directory
        except StoreError as error:
            if opened or not self._signal(run):
                stored = run.stop_requested is not None
                raise _unreachable(run, error, delivered=False, stored=stored) from error

    def _write_control(self, run: Run, directory: int, byte: bytes) -> None:
        """
        Write a byte to the supervisor's FIFO; if that fails, send SIGTERM instead.

        SIGTERM replaces only a byte that asks to stop, not `READ_STOP`.

        Raises:
            OSError: Neither could be sent.
        """
        try:
            job_directory.send_control(directory, byte)
        except OSError:
            # On SIGTERM a supervisor ends its job, with the command's own grace.
            if byte == job_directory.READ_STOP or not self._signal(run):
                raise

    def _signal(self, run: Run) -> bool:
        """Send SIGTERM to the supervisor of a job of this directory; tell whether it was sent."""
        try:
            # In a copy of the database, the supervisor is the original's.
            is_here = run.token is not None and self._directories.is_home_of(
                run.directory_id, run.boot_id
            )
            return is_here and bool(orphans.signal_all(run.token or "", signal.SIGTERM))
        except (StoreError, OSError):
            return False  # the directories are gone, or no descriptor is free for the check

    def _write_until_current(self, run: Run, directory: int) -> None:
        while True:
            # Leave out damaged values: who asked, and why, is only logged.
            who, why = (
                text if isinstance(text, str) else None for text in (run.stop_who, run.stop_why)
            )
            request: dict[str, str | int | None] = {
                "grace_ms": run.stop_grace_ms,
                "who": who,
                "why": why,
            }
            try:
                job_directory.write_record(directory, job_directory.STOP, request)
            except FileNotFoundError:
                return  # the directory was removed meanwhile: the job has ended
            except OSError as error:
                byte = job_directory.KILL_NOW if run.stop_grace_ms == 0 else job_directory.STOP_NOW
                what = f"the stop request for job {run.id} cannot be written"
                typed = filesystem.typed(what, error)
                try:
                    self._write_control(run, directory, byte)
                except OSError:
                    raise _unreachable(run, typed, delivered=False, stored=True) from error
                raise typed from error
            # Another process may have shortened the grace and written its file before this one,
            # so compare with the current row.
            with self._database.read() as connection:
                fresh = transitions.find(connection, run.number)
            if fresh is None or _is_as_strict(request, fresh):
                return
            run = fresh


def _not_running(run: Run) -> JobNotRunning:
    queued = run.status == Status.QUEUED
    return JobNotRunning(
        run.id, run.status, Trigger.STOP, "cancel_job takes it from the queue" if queued else ""
    )


def _unreachable(run: Run, error: StoreError, *, delivered: bool, stored: bool) -> StoreError:
    """Return an error for a stop that could not be delivered through the job directory."""
    if delivered:
        what = (
            "the stop request is stored, and its supervisor got SIGTERM instead, so it ends "
            "within the grace of its command"
        )
    elif stored:
        what = (
            "the stop request is stored; a manager that runs jobs delivers it as soon as the "
            "directory can be read"
        )
    else:
        what = "the stop request is not stored either, so repeat it"
    return type(error)(
        f"job {run.id} cannot be stopped through its directory ({error}): {what}", error.errno
    )


def _is_as_strict(request: dict[str, str | int | None], run: Run) -> bool:
    """Tell whether the grace in the file is as short as the one in the row, or shorter."""
    written, wanted = request.get("grace_ms"), run.stop_grace_ms
    return wanted is None or (isinstance(written, int) and written <= wanted)
