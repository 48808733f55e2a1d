"""Starts, logs and finishes jobs without a process, which the host does itself."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from jobcore import checks
from jobcore.clock import Clock
from jobcore.engine.ownership import Ownership
from jobcore.errors import DatabaseCorrupt, InvalidTransition, JobNotFound
from jobcore.lifecycle import Ending, Status, Trigger
from jobcore.models import Job
from jobcore.operations.lookup import Id, require_job
from jobcore.storage import (
    environments,
    job_rows,
    log_segments,
    queue,
    settlement,
    transitions,
)
from jobcore.storage.database import Database
from jobcore.storage.transitions import Report, Run
from jobcore.supervisor import frames, progress
from jobcore.tuning import JOBS_PAST_DAMAGED

#: Expired jobs that are cancelled in one transaction, in the search for a job to claim.
EXPIRED_AT_ONCE = 100
#: Prefixes of the types of tasks that people do; no process owns these tasks.
MANUAL_TYPES = ("PROFILE_",)


class TaskOperations:
    """Changes jobs that have no process."""

    def __init__(self, database: Database, clock: Clock, ownership: Ownership) -> None:
        self._database = database
        self._clock = clock
        self._ownership = ownership

    def start(self, job_id: Id, owner: str | None) -> Row[Any]:
        """
        Move a QUEUED job to RUNNING, without a process.

        Args:
            owner: `"process"`: this process; None: no process; `"auto"`: depends on the type.
        """
        now = self._clock.now()

        def begin(connection: Connection) -> Row[Any]:
            row = require_job(connection, job_id)
            is_owned = owner == "process" or (
                owner == "auto" and not str(row.type).startswith(MANUAL_TYPES)
            )
            name = self._ownership.claim() if is_owned else None
            return start(connection, row, name, now=now)

        return self._database.write(begin, about=f"job {job_id}")

    def take_up(self, job_id: Id) -> Row[Any]:
        """Start a QUEUED job as a task of this process, or return one that it already owns."""
        now = self._clock.now()

        def take(connection: Connection) -> Row[Any]:
            row = require_job(connection, job_id)
            name = self._ownership.claim()
            if row.status == Status.RUNNING and row.owner == name:
                return row
            return start(connection, row, name, now=now)

        return self._database.write(take, about=f"job {job_id}")

    def has_next(self, types: tuple[str, ...]) -> bool:
        """Tell whether a job of these types is queued and may start now."""
        with self._database.read() as connection:
            return self._next(connection, types, self._clock.now()) is not None

    def claim_next(
        self, types: tuple[str, ...], *, patience: float | None = None
    ) -> Row[Any] | None:
        """
        Start the first queued job of these types as a task of this process; None: no job may start.

        Args:
            patience: Seconds to wait for the write lock; None: the busy timeout.
        """
        if not self.has_next(types):
            return None  # without taking the write lock
        now = self._clock.now()

        def begin(connection: Connection) -> tuple[Row[Any] | None, bool]:
            for _ in range(EXPIRED_AT_ONCE):
                row = self._next(connection, types, now)
                if row is None:
                    return None, False
                if not queue.is_expired(row, now):
                    return start(connection, row, self._ownership.claim(), now=now), False
                settlement.cancel_if_expired(connection, row.number, now=now)
            return None, True

        claimed, more = None, True
        while more:
            claimed, more = self._database.write(
                begin, patience=patience, about="the job that is claimed"
            )
        return claimed

    @staticmethod
    def _next(connection: Connection, types: tuple[str, ...], now: int) -> Row[Any] | None:
        damaged: set[int] = set()

        def failed(number: int, _error: Exception) -> None:
            damaged.add(number)

        for _ in range(JOBS_PAST_DAMAGED):
            numbers = queue.claimable(
                connection,
                types=types,
                now=now,
                limit=1,
                without=damaged,
            )
            row = next(job_rows.rows_of(connection, numbers, failed), None)
            if row is not None:
                try:
                    Job.from_row(row, now)
                except DatabaseCorrupt as error:
                    # Claimed, it would stay RUNNING, and no caller would know of it.
                    failed(row.number, error)
                    row = None
            if row is not None or damaged.isdisjoint(numbers):
                return row
        return None

    def adopt(self, job_id: Id) -> Row[Any]:
        """Make this process the owner of a task."""

        def change(connection: Connection) -> Row[Any]:
            run = self._require_own(connection, job_id, "adopt")
            transitions.change_owner(connection, run.number, self._ownership.claim())
            return _get(connection, run)

        return self._database.write(change, about=f"job {job_id}")

    def finish(
        self,
        job_id: Id,
        exit_code: int,
        *,
        lines: tuple[str, ...] = (),
        result: tuple[str, bytes] | None = None,
    ) -> Row[Any]:
        """
        Move a RUNNING job without a process to COMPLETE or ERROR.

        Args:
            lines: Lines to append to its log before.
            result: Encoding and bytes of its result, stored if it is COMPLETE.
        """
        checks.integer(exit_code, "exit_code", 0, 255)
        now = self._clock.now()
        raw = [piece + b"\n" for line in lines for piece in _split(line)]

        def finish(connection: Connection) -> Row[Any]:
            run = self._require_own(connection, job_id, Trigger.FINISH)
            if raw:
                run = log_segments.append_task_lines(connection, run, raw, now=now)
            ending = Ending.by_host(exit_code)
            final = settlement.settle_own(connection, run, ending, now=now)
            if final is None:
                raise InvalidTransition(run.id, run.status, Trigger.FINISH)
            if result is not None and final.status == Status.COMPLETE:
                settlement.store_result(connection, final.number, *result)
            return _get(connection, final)

        return self._database.write(finish, about=f"job {job_id}")

    def append(
        self, job_id: Id, lines: tuple[str | bytes, ...], stream: int = frames.OUTPUT
    ) -> int:
        """Append lines to the log, and return how many lines it then has."""
        raw = [piece + b"\n" for line in lines for piece in _split(line)]

        def append(connection: Connection) -> int:
            run = self._require_own(connection, job_id, "append to the log of")
            if raw:
                run = log_segments.append_task_lines(
                    connection, run, raw, now=self._clock.now(), stream=stream
                )
            return run.next_sequence

        return self._database.write(append, durable=False, about=f"job {job_id}")

    def find_running(self, job_id: Id) -> Run:
        """Return a task that is RUNNING."""
        with self._database.read() as connection:
            return self._require_own(connection, job_id, "go on with")

    def report(self, job_id: Id, done: float, total: float | None, message: str | None) -> Row[Any]:
        """Store the progress of a job, and return the job."""
        text = None if message is None else progress.shorten(message) or None
        report = Report(done, total, text, self._clock.now())

        def store_report(connection: Connection) -> Row[Any]:
            run = self._require_own(connection, job_id, "report the progress of")
            transitions.report_if_own(connection, run.number, report)
            return _get(connection, run)

        return self._database.write(store_report, durable=False, about=f"job {job_id}")

    @staticmethod
    def _require_own(connection: Connection, job_id: Id, trigger: str) -> Run:
        run = job_rows.run_of(require_job(connection, job_id))
        if run.status != Status.RUNNING:
            raise InvalidTransition(run.id, run.status, trigger)
        transitions.require_one_host(run)
        if run.supervised:
            raise InvalidTransition(run.id, run.status, trigger, "a process runs it")
        return run


def start(connection: Connection, row: Row[Any], owner: str | None, *, now: int) -> Row[Any]:
    """
    Move a job from QUEUED to RUNNING, without a process, in the transaction that read `row`.

    Args:
        owner: The name of this process; None: no process owns it.
    """
    moved = transitions.start_if_queued(
        connection, row.number, now=now, claimant=owner, owner=owner
    )
    if moved is None:
        why = "another process has reserved it" if row.owner is not None else ""
        if queue.is_expired(row, now):
            why = "it has expired"
        if row.unmet:
            why = "it waits for other jobs"
        raise InvalidTransition(row.id, row.status, Trigger.START, why)
    if row.environment is not None:
        environments.remove_unused(connection)
    return _get(connection, moved)


def _get(connection: Connection, run: Run) -> Row[Any]:
    row = job_rows.get_job(connection, run.number)
    if row is None:
        raise JobNotFound(run.id)
    return row


def _split(line: str | bytes) -> list[bytes]:
    raw = _encoded(line) if isinstance(line, str) else line
    return raw.removesuffix(b"\n").split(b"\n")


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")  # file names become their original bytes
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")  # other lone surrogates stand for no bytes
