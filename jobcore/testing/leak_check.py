"""Finds what a test has left of jobcore, in the process and on the machine, and removes it."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from uuid import UUID

from sqlalchemy import select

from jobcore.embedding.locks import GATE
from jobcore.engine import orphans
from jobcore.engine.dispatcher import Dispatcher
from jobcore.engine.job_directories import Directories
from jobcore.errors import JobcoreError, JobDeleted, JobNotFound, JobNotRunning, WaitTimeout
from jobcore.manager import OPEN, JobManager
from jobcore.operations.subscriptions import Notifier
from jobcore.storage import job_rows, transitions
from jobcore.storage.database import Database
from jobcore.storage.tables import job as jobs_table
from jobcore.storage.transitions import Run
from jobcore.testing.parts import parts

#: Seconds that running jobs have to end by themselves.
PATIENCE = 5.0
#: Seconds within which a job is killed with all its descendants.
KILLING = 15.0


#: The parts of a manager that hold resources, in the order in which they are closed.
PARTS = (Dispatcher, Notifier, Directories, Database)


class LeakCheck:
    """
    Everything that was created after this object and should be gone.

    Things that existed before are left alone, and so are things that managers from before
    may need.
    """

    def __init__(self) -> None:
        self._owners = weakref.WeakSet(GATE.owners())
        self._threads = set(_threads())
        # With what is open there, because a number may be closed and reused.
        self._descriptors = {number: _file_of(number) for number in GATE.descriptors()}

    def clear(
        self,
        path: str | os.PathLike[str],
        *,
        patience: float = PATIENCE,
        silently: bool = False,
    ) -> list[str]:
        """
        Remove everything, and return a line of text for each thing.

        Args:
            path: The database whose jobs are checked. No manager needs it any more.
            patience: Seconds that its jobs have to end by themselves.
            silently: End running jobs without reporting them, because they are scripts.
        """
        unclosed = self._close_managers()
        found = [f"a manager of {one} was not closed" for one in unclosed]
        for one in dict.fromkeys([os.path.realpath(path), *unclosed]):
            found += _of_jobs(one, 0 if silently else patience, silently=silently)
        threads = [one for one in _threads() if one not in self._threads]
        found += [f"thread {one.name} is still running" for one in threads]
        if not _unclosed(GATE.owners()):  # else they may belong to another manager
            before = self._descriptors
            new = [one for one in GATE.descriptors() if before.get(one) != _file_of(one)]
            found += _descriptors(new, close=not threads)
        return found

    def _close_managers(self) -> list[str]:
        """Close managers created since then, and return the paths of their databases."""
        new = [one for one in GATE.owners() if one not in self._owners]
        paths = [one.path for one in _unclosed(new)]
        for manager in list(OPEN):
            if parts(manager).database in new:  # a new manager has a new database
                with suppress(JobcoreError):  # its file may be gone, which does not matter here
                    manager.close()
        # An unreferenced manager may still have a thread that runs jobs.
        for kind in PARTS:
            for part in new:
                if isinstance(part, kind):
                    part.close()
        return paths


def _unclosed(owners: Iterable[object]) -> list[Database]:
    return [one for one in owners if isinstance(one, Database) and not one.closed]


def _threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("jobcore-")]


def _file_of(descriptor: int) -> tuple[int, int]:
    """Return device and inode of an open file; of a closed one (-1, -1)."""
    try:
        facts = os.fstat(descriptor)
    except OSError:
        return -1, -1
    return facts.st_dev, facts.st_ino


def _descriptors(numbers: Iterable[int], *, close: bool) -> Iterator[str]:
    for number in sorted(numbers):
        try:
            yield f"descriptor {number} is open: {os.readlink(f'/proc/self/fd/{number}')}"
        except FileNotFoundError:
            yield f"descriptor {number} was closed by other code"
            continue
        if close:  # if threads are left, one may use it
            GATE.close(number)


def _of_jobs(path: str | os.PathLike[str], patience: float, *, silently: bool) -> list[str]:
    """End all jobs of a database, and return a line for each thing that was left."""
    if not os.path.exists(path):
        return []  # without the file nothing is known about its jobs
    try:
        with JobManager(path, slots=0) as jobs:
            jobs.recover()
            _wait_for_all(jobs, patience)
            ended = _end_all(jobs)
            found = [] if silently else [_in_words(jobs, run) for run in ended]
            found += _processes(jobs)
            jobs.recover()
            return found + _directories(jobs)
    except JobcoreError as error:
        return [f"the jobs cannot be examined: {type(error).__name__}: {error}"]


def _running(jobs: JobManager) -> list[Run]:
    """Return the jobs that have a process, including those being deleted."""
    with parts(jobs).database.read() as connection:  # no public method returns the latter
        return transitions.supervised(connection)


def _wait_for_all(jobs: JobManager, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for run in _running(jobs):
        try:
            parts(jobs).waiter.wait(run, max(deadline - time.monotonic(), 0))
        except (JobDeleted, WaitTimeout):
            continue


def _end_all(jobs: JobManager) -> list[Run]:
    """Kill all running jobs, and return them."""
    running = _running(jobs)
    for run in running:
        try:
            parts(jobs).stopper.stop(run, 0, "its test is over")
        except (JobNotFound, JobNotRunning):
            continue  # it has just ended
    _wait_for_all(jobs, KILLING)
    return running


def _in_words(jobs: JobManager, run: Run) -> str:
    with parts(jobs).database.read() as connection:
        row = job_rows.get_job(connection, run.number)
    named = "" if row is None or row.name is None else f" {row.name!r}"
    kind = "" if row is None else f", a {row.type},"
    return f"job {run.id}{named}{kind} is still running"


def _processes(jobs: JobManager) -> list[str]:
    with parts(jobs).database.read() as connection:  # the cookie is not public
        rows = connection.execute(
            select(jobs_table.c.id, jobs_table.c.cookie).where(jobs_table.c.cookie.is_not(None))
        ).all()
    found: list[str] = []
    for job_id, cookie in rows:
        found += [f"process {pid} of job {job_id} is still there" for pid in orphans.find(cookie)]
        orphans.kill(cookie)
    return found


def _directories(jobs: JobManager) -> list[str]:
    names = parts(jobs).directories.names()  # job directories are not public
    with parts(jobs).database.read() as connection:
        active = job_rows.active_ids(connection, {UUID(hex=name) for name in names})
    return [
        f"the directory of job {UUID(hex=name)} cannot be removed: its lock is held"
        for name in names
        if UUID(hex=name) not in active
    ]
