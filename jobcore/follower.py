"""
Follower: waits for jobs and reads their logs, also while they grow.

It wakes when the file changed and touches the tables only then. Whoever waits
also brings in what the job has written, so nobody else needs to be alive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from sqlalchemy import Connection

from jobcore import logs, runs
from jobcore.arguments import checked_patience
from jobcore.database import Database
from jobcore.errors import JobDeleted, WaitTimeout
from jobcore.lifecycle import Status
from jobcore.models import LogLine
from jobcore.recovery import Recovery
from jobcore.runs import Run

#: Seconds between two looks into the job directory, for lines and for the end.
FOLLOW_PAUSE = 0.05
WAIT_PAUSE = 0.25
#: Seconds of rest between two looks at the tables, however fast commits follow each other.
LOOK_PAUSE = 0.005


class Follower:
    """
    Reads and waits.

    Args:
        database: Where jobs and lines are.
        recovery: Brings them up to date.
    """

    def __init__(self, database: Database, recovery: Recovery) -> None:
        self._database = database
        self._recovery = recovery

    def lines(self, run: Run, sequence: int, limit: int | None = None) -> Iterator[LogLine]:
        """
        Yield the lines from `sequence` on that are stored by now.

        Raises:
            JobDeleted: The job was deleted in between.
        """
        left = limit
        while left is None or left > 0:
            with self._database.read() as connection:
                self._require(connection, run)
                segments = logs.segments_from(connection, run.number, sequence)
            begun = sequence
            for segment in segments:
                for line in logs.lines(segment, sequence):
                    yield line
                    sequence = line.sequence + 1
                    if left is not None:
                        left -= 1
                        if not left:
                            return
            if sequence == begun:
                return

    def follow(self, run: Run, sequence: int, timeout: float | None = None) -> Iterator[LogLine]:
        """
        Yield the lines from `sequence` on as they come, until the job is final and all are read.

        Raises:
            JobDeleted: The job was deleted in between.
            WaitTimeout: `timeout` seconds were over.
        """
        deadline = _deadline(timeout)
        while True:
            seen = self._database.version()
            current = self._current(run)
            # Final is read before the lines: then these are all.
            final = current.final
            for line in self.lines(current, sequence):
                yield line
                sequence = line.sequence + 1
                if time.monotonic() > deadline:
                    raise WaitTimeout(f"job {run.id} still wrote lines after {timeout} s")
            if final:
                return
            if time.monotonic() > deadline:
                raise WaitTimeout(f"job {run.id} was not final after {timeout} s")
            self._database.wait_for_change(
                seen, min(FOLLOW_PAUSE, max(deadline - time.monotonic(), 0))
            )

    def wait(
        self,
        run: Run,
        timeout: float | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Run:
        """
        Block until the job is final, and return it.

        Args:
            check: Called at every look; raises what should end the waiting.

        Raises:
            JobDeleted: The job was deleted in between.
            WaitTimeout: `timeout` seconds were over.
        """
        deadline = _deadline(timeout)
        while True:
            seen = self._database.version()
            current = self._current(run)
            next_look = time.monotonic() + WAIT_PAUSE
            while not current.final and (now := time.monotonic()) < next_look:
                if current.status == Status.QUEUED:
                    check()
                if now > deadline:
                    raise WaitTimeout(f"job {run.id} is {current.status} after {timeout} s")
                seen = self._database.wait_for_change(seen, max(min(next_look, deadline) - now, 0))
                with self._database.read() as connection:
                    current = self._require(connection, run)
            if current.final:
                return current

    def wait_for(self, condition: Callable[[], bool], timeout: float | None, what: str) -> None:
        """
        Block until `condition`, asked again whenever the file changed.

        Raises:
            WaitTimeout: `timeout` seconds were over.
        """
        deadline = _deadline(timeout)
        while True:
            seen = self._database.version()
            if condition():
                return
            now = time.monotonic()
            if now > deadline:
                raise WaitTimeout(f"{what} after {timeout} s")
            self._database.wait_for_change(seen, min(WAIT_PAUSE, max(deadline - now, 0)))
            # Many commits a second are no reason for as many looks.
            time.sleep(LOOK_PAUSE)

    def _current(self, run: Run) -> Run:
        with self._database.read() as connection:
            current = self._require(connection, run)
        fresh = self._recovery.reconcile_softly(current)
        if fresh is None or (fresh.deleted_at is not None and run.deleted_at is None):
            raise JobDeleted(run.id)
        return fresh

    @staticmethod
    def _require(connection: Connection, run: Run) -> Run:
        current = runs.find(connection, run.number)
        # A number is never used again, so another row under it cannot be.
        if current is None or (current.deleted_at is not None and run.deleted_at is None):
            raise JobDeleted(run.id)
        return current


def _deadline(timeout: float | None) -> float:
    return time.monotonic() + checked_patience(timeout)
