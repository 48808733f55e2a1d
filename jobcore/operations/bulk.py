"""Stops, cancels, deletes and retries all jobs that match a filter, in steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy import Connection

from jobcore.clock import Clock
from jobcore.engine import remover
from jobcore.engine.recovery import Recovery
from jobcore.engine.remover import Remover, Throttle
from jobcore.engine.stopper import Stopper
from jobcore.errors import (
    DatabaseCorrupt,
    DuplicateKey,
    InvalidTransition,
    JobNotFound,
    PipelineAlreadyRunning,
)
from jobcore.lifecycle import RETRIABLE, Status
from jobcore.models import Job
from jobcore.operations.deletion import Deleter
from jobcore.operations.lookup import Listings
from jobcore.storage import attempts, environments, job_rows, job_search, settlement, transitions
from jobcore.storage.database import Database
from jobcore.storage.environments import SUBMITTER
from jobcore.storage.job_rows import JobFilter
from jobcore.storage.transitions import Run

T = TypeVar("T")

#: Jobs that one transaction changes.
AT_ONCE = 100
#: Jobs that are looked for at once.
FOUND_AT_ONCE = 1000


@dataclass(eq=False)
class BulkOperations:
    """
    Changes many jobs. A job that another process changes first is left out.

    Args:
        recovery: Brings RUNNING jobs up to date before they are stopped.
        deleter: Waits for their ends before they are removed.
    """

    _database: Database
    _clock: Clock
    _listings: Listings
    _recovery: Recovery
    _stopper: Stopper
    _remover: Remover
    _deleter: Deleter

    def stop(self, wanted: JobFilter, grace: float | None) -> list[Job]:
        """Ask the RUNNING jobs to stop; return these jobs."""
        return self._listings.of(self._stop(wanted, grace, "stop"))

    def cancel(self, wanted: JobFilter, grace: float | None) -> list[Job]:
        """Cancel the QUEUED jobs, then ask the RUNNING ones to stop; return all of them."""
        cancelled: list[int] = []
        # First, so that the slots of the jobs that stop do not start these.
        for some in self._some(wanted, Status.QUEUED):
            cancelled += [
                run.number for run in self._write(some, self._cancel_one) if run is not None
            ]
        return self._listings.of(cancelled + self._stop(wanted, grace, "cancel"))

    def _cancel_one(self, connection: Connection, number: int) -> Run | None:
        return settlement.cancel(connection, number, now=self._clock.now())

    def _stop(self, wanted: JobFilter, grace: float | None, why: str) -> list[int]:
        stopped: list[int] = []
        errors: list[Exception] = []
        for some in self._some(wanted, Status.RUNNING):
            for number in some:
                try:
                    if self._stop_one(number, grace, why):
                        stopped.append(number)
                except (JobNotFound, InvalidTransition):
                    continue  # it has ended, or was deleted meanwhile
                except Exception as error:  # noqa: BLE001 - the others must still be stopped
                    errors.append(error)
        if errors:
            raise errors[0]
        return stopped

    def _stop_one(self, number: int, grace: float | None, why: str) -> bool:
        with self._database.read() as connection:
            run: Run | None = transitions.find(connection, number)
        if run is not None and (run.supervised or run.owned):
            run = self._recovery.try_to_reconcile(run, kill=True)
        if run is None or run.status != Status.RUNNING:
            return False
        self._stopper.stop(run, grace, why)
        return True

    def delete(self, wanted: JobFilter) -> list[Job]:
        """Remove the jobs, stopping them first; return them as they were."""
        deleted: list[Job] = []
        active: list[Run] = []
        throttle = Throttle()
        for some in self._some(wanted):
            known = {job.number: job for job in self._listings.of(some)}
            damaged: list[int] = []
            hidden = [run for run in self._write(some, self._hide_one, damaged) if run is not None]
            deleted += [known[run.number] for run in hidden if run.number in known]
            self._remover.remove_jobs(
                *(run.number for run in hidden if run.final), throttle=throttle
            )
            for run in hidden:
                if not run.final:
                    self._stopper.deliver(run)  # all before the wait for any: the graces overlap
                    active.append(run)
            for number in damaged:
                self._remover.remove_damaged(number)  # nothing else can end it
                deleted += [known[number]] if number in known else []
        for run in active:
            if self._deleter.wait_for_end(run):
                self._remover.remove_jobs(run.number, throttle=throttle)
        return deleted

    def _hide_one(self, connection: Connection, number: int) -> Run | None:
        return remover.hide(connection, number, now=self._clock.now())

    def retry(self, wanted: JobFilter) -> list[dict[str, Any]]:
        """Create jobs that repeat those that ended ERROR or STOPPED; return all their columns."""
        made: list[dict[str, Any]] = []
        environment = environments.capture()

        def retry_one(connection: Connection, number: int) -> dict[str, Any] | None:
            row = job_rows.get_job(connection, number)
            if (
                row is None
                or row.deleted_at is not None
                or row.status not in RETRIABLE
                or attempts.retries_of(connection, [row.id])
            ):
                return None
            stored = None
            if row.env_from == SUBMITTER:
                stored = environments.store(connection, environment)
            return settlement.take_over(
                connection,
                row,
                now=self._clock.now(),
                id=uuid4(),
                environment=stored,
                not_before=None,
            )

        for some in self._some(wanted, *RETRIABLE):
            made += [row for row in self._write(some, retry_one) if row is not None]
        return made

    # --- in steps -------------------------------------------------------------------

    def _some(self, wanted: JobFilter, *statuses: Status) -> Iterator[list[int]]:
        """
        Yield the numbers of the jobs that match, the oldest first, in parts.

        Args:
            statuses: Only jobs that also have one of these; none: any.
        """
        if statuses:
            given = frozenset(statuses)
            wanted = wanted._replace(
                statuses=given if wanted.statuses is None else given & wanted.statuses
            )
        numbers: list[int] = []
        after: job_search.Place | None = None
        while True:
            with self._database.read() as connection:
                found = job_search.find(
                    connection, wanted, order="created", limit=FOUND_AT_ONCE, after=after
                )
            numbers += found
            if len(found) < FOUND_AT_ONCE:
                break
            after = job_search.Place(found[-1], found[-1])
        numbers.reverse()
        for start in range(0, len(numbers), AT_ONCE):
            yield numbers[start : start + AT_ONCE]

    def _write(
        self,
        numbers: Sequence[int],
        change: Callable[[Connection, int], T],
        damaged: list[int] | None = None,
    ) -> list[T]:
        """
        Change some jobs in one transaction, and return the results of those that could be.

        Args:
            damaged: Gets the numbers of the jobs whose rows are damaged.
        """
        failed: list[tuple[int, Exception]] = []

        def write(connection: Connection) -> list[T]:
            failed.clear()
            results: list[T] = []
            for number in numbers:
                with self._database.savepoint(connection, failed, number):
                    results.append(change(connection, number))
            return results

        written = self._database.write(write, about=f"{len(numbers)} jobs")
        for number, error in failed:
            if damaged is not None and isinstance(error, DatabaseCorrupt):
                damaged.append(number)
            elif not isinstance(error, (PipelineAlreadyRunning, DuplicateKey, DatabaseCorrupt)):
                raise error
        return written
