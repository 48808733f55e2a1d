"""
Removes deleted jobs: hides them at once, then removes rows and directories a little at a time.

No caller sees a hidden job any more. Whatever happens next, it will be removed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from uuid import UUID

from sqlalchemy import Connection, Table

from jobcore import tuning
from jobcore.clock import Clock
from jobcore.embedding import failpoints
from jobcore.embedding.worker import handed_over
from jobcore.engine import orphans
from jobcore.engine.job_directories import Directories, is_name
from jobcore.engine.postponement import Postponement, concerns_all_jobs
from jobcore.errors import DatabaseCorrupt, StoreError
from jobcore.lifecycle import Ending, Reason
from jobcore.storage import (
    damage,
    deletion,
    dependencies,
    environments,
    log_segments,
    settlement,
    transitions,
)
from jobcore.storage.database import Database
from jobcore.storage.deletion import Damaged
from jobcore.storage.tables import pipeline, workspace
from jobcore.storage.transitions import Run
from jobcore.supervisor import job_directory

#: Rows to mark in one transaction, chosen so that each takes about 50 ms.
PIPELINES_AT_ONCE = 500
ACTIVE_AT_ONCE = 100
FINAL_AT_ONCE = 1000

#: Jobs whose rows are removed in one transaction, which bounds how long other writers wait.
REMOVED_AT_ONCE = 100
#: Log segments removed in one transaction. They hold up to 62 MiB of lines; if these could not be
#: compressed, it takes about 40 ms, because SQLite reads every page that it frees.
SEGMENTS_AT_ONCE = 250
#: Workspaces or pipelines, and skips, removed in one transaction.
OWNERS_AT_ONCE = 100
SKIPS_AT_ONCE = 1000

#: Seconds within which the processes of a damaged job must end, and between two looks.
END, END_PAUSE = 30.0, 0.02

#: An id before every other.
_FIRST = UUID(int=0).hex
#: The most seconds of rest before a step. The last transaction may have locked long only because
#: it had to wait itself, which needs no longer rest.
LONGEST_PAUSE = 0.1


def hide(connection: Connection, number: int, *, now: int) -> Run | None:
    """
    Hide a job and end it, or ask it to stop. One transaction does both, so no crash can separate
    them.

    Returns:
        The job; None if its deletion had already begun, or it is gone.

    Raises:
        DatabaseCorrupt: Its row cannot be changed; see `Remover.remove_damaged`.
    """
    if not deletion.mark_job_deleted(connection, number, now=now):
        return None
    settlement.cancel(connection, number, now=now)
    asked = transitions.ask_stop_if_running(
        connection, number, grace_ms=None, why="delete", now=now
    )
    if asked is not None and asked.token is None:
        ended = settlement.settle_own(connection, asked, Ending(Reason.STOPPED), now=now)
        if ended is None:  # otherwise the deletion would wait for its end for ever
            raise DatabaseCorrupt(f"job number {number} cannot be settled")
    return transitions.find(connection, number)


def hide_some(connection: Connection, table: Table, owner_id: UUID, *, now: int) -> bool:
    """
    Hide some of the pipelines and jobs of a workspace or pipeline that is marked deleted.

    Pipelines come first, so that the end of a job no longer triggers anything.

    Returns:
        Whether there may be more of them.
    """
    if table is workspace:
        pipelines = deletion.unmarked_pipelines_of(connection, owner_id, PIPELINES_AT_ONCE)
        for one in pipelines:
            deletion.mark_row_deleted(connection, pipeline, one, now=now)
        if len(pipelines) == PIPELINES_AT_ONCE:
            return True
    active = deletion.active_unmarked_of(connection, table, owner_id, ACTIVE_AT_ONCE)
    for number in active:
        try:
            with connection.begin_nested():
                hide(connection, number, now=now)
        except Exception as error:
            if not damage.is_damage(error):
                raise
            deletion.mark_job_deleted(connection, number, now=now)  # `remove_damaged` ends it later
    if len(active) == ACTIVE_AT_ONCE:
        return True
    mark = partial(deletion.mark_jobs_of, connection, table, owner_id, FINAL_AT_ONCE, now=now)
    marked = mark(final=True)
    if marked < FINAL_AT_ONCE:  # the remaining jobs are damaged: their status is unknown
        marked = mark(final=False)
    return marked == FINAL_AT_ONCE


class Throttle:
    """
    Rests before each transaction for as long as the last one took.

    The write lock is not a queue. Other threads, and SQLite's busy handler in other processes,
    which sleeps up to 100 ms between two tries, would hardly ever hit the gap between two
    transactions that follow at once. Without rests they would wait for the whole chore instead
    of one step.
    """

    def __init__(self) -> None:
        self._rest = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Rest, then run the block and measure how long it takes."""
        time.sleep(self._rest)
        begun = time.monotonic()
        try:
            yield
        finally:
            self._rest = min(time.monotonic() - begun, LONGEST_PAUSE)


class Remover:
    """
    Removes jobs, pipelines and workspaces that are marked deleted.

    If the process is killed in between, another manager continues.

    Args:
        postponed: Remembers the jobs that could not be removed, by number.
    """

    def __init__(
        self, database: Database, directories: Directories, clock: Clock, postponed: Postponement
    ) -> None:
        self._postponed = postponed
        self._database = database
        self._directories = directories
        self._clock = clock
        self._last_examined = {workspace: _FIRST, pipeline: _FIRST}
        self._ending: dict[int, float] = {}  # stuck jobs, and since when sweeps end them

    def remove_jobs(self, *numbers: int, throttle: Throttle | None = None) -> None:
        """Remove these jobs and their directories, except jobs that are not final or not hidden."""
        throttle = throttle or Throttle()
        for first in range(0, len(numbers), REMOVED_AT_ONCE):
            some = numbers[first : first + REMOVED_AT_ONCE]
            while not self._remove(some, throttle):
                while self._remove_segments(some, throttle):
                    pass

    @handed_over
    def _remove_segments(self, numbers: Sequence[int], throttle: Throttle) -> bool:
        """Remove some segments of these jobs; True: there may be more."""
        remove = partial(log_segments.remove_of_deleted, numbers=numbers, limit=SEGMENTS_AT_ONCE)
        with throttle.step():
            # Not durable: whoever removes the rows syncs this, too.
            return self._database.write(remove, durable=False) == SEGMENTS_AT_ONCE

    @handed_over
    def _remove(self, numbers: Sequence[int], throttle: Throttle) -> bool:
        """Remove what fits in one transaction; True: these jobs are removed completely."""

        def remove_rows(connection: Connection) -> list[str] | None:
            # Not by ON DELETE CASCADE, which would remove a log as large as the disk at once.
            if (
                log_segments.remove_of_deleted(connection, numbers, SEGMENTS_AT_ONCE)
                == SEGMENTS_AT_ONCE
            ):
                return None
            found = [(deletion.find_damaged(connection, number), number) for number in numbers]
            return [
                one.name
                for one, number in found
                if one is not None and deletion.remove_if_final(connection, number)
            ]

        with throttle.step():
            removed = self._database.write(remove_rows)
        if removed is None:
            return False
        if failpoints.armed:
            failpoints.reach(failpoints.ROWS_REMOVED, self._database)
        for name in removed:
            self._remove_directory(name)
        return True

    def _remove_directory(self, name: str) -> None:
        """Remove the directory of a removed job; a damaged id has no directory."""
        if is_name(name):
            self._directories.remove(name)

    @handed_over
    def remove_damaged(self, number: int) -> None:
        """
        Remove a job with a damaged row, which cannot be settled, using its readable columns.

        Its command is stopped first, and killed after its grace.

        Raises:
            StoreError: The file cannot be read, or the command does not end.
        """
        since = time.monotonic()
        while not self._removes_damaged(number, since, tuning.ORPHAN_PATIENCE):
            time.sleep(END_PAUSE)

    def _removes_damaged(self, number: int, since: float, patience: float) -> bool:
        """
        Remove a job with a damaged row; False: not yet, call again a little later.

        Args:
            since: When the first call was, by the monotonic clock.
            patience: Seconds that this call may take to kill orphans.

        Raises:
            StoreError: As in `remove_damaged`.
        """
        with self._database.read() as connection:
            seen = deletion.find_damaged(connection, number)
        if seen is None:
            return True
        if is_name(seen.name) and not self._has_ended(number, seen, since, patience):
            return False
        throttle = Throttle()
        removed = SEGMENTS_AT_ONCE
        while removed == SEGMENTS_AT_ONCE:
            with throttle.step():
                removed = self._database.write(
                    partial(log_segments.remove_some, number=number, limit=SEGMENTS_AT_ONCE)
                )

        def remove_row(connection: Connection) -> bool:
            removed = deletion.remove_damaged_if(connection, number, seen)
            if removed:
                environments.remove_unused(connection)
                if is_name(seen.name):  # it was not settled
                    gone = [(seen.name, dependencies.DELETED)]
                    settlement.decide(connection, gone, now=self._clock.now())
            return removed

        with throttle.step():
            gone = self._database.write(remove_row)
        if gone:
            self._remove_directory(seen.name)
        return gone  # if the row has changed in the meantime, read it again

    def _has_ended(self, number: int, seen: Damaged, since: float, patience: float) -> bool:
        """Tell whether no process of a job with a damaged row is left; else end them."""
        kill_at = since + max(seen.grace_ms, 0) / 1000
        now = time.monotonic()
        byte = job_directory.STOP_NOW if now <= kill_at else job_directory.KILL_NOW
        if self._is_supervised(seen.name, byte):
            if now > kill_at + END:
                raise StoreError(
                    f"job number {number} is damaged, and its command has not ended within "
                    f"{END:g} s: delete it again"
                )
            return False
        if not seen.cookie or orphans.is_inside(seen.cookie):
            return True
        if not self._directories.is_home_of(seen.directory_id, seen.boot_id):
            return True  # in a copy of the database, the processes are the original's
        left = orphans.kill(seen.cookie, patience)
        # A process that no SIGKILL ends must not keep the row for ever.
        return not left or time.monotonic() >= kill_at + tuning.ORPHAN_PATIENCE

    def _is_supervised(self, name: str, byte: bytes) -> bool:
        """Tell whether a job has a supervisor, and if so, send it `byte`."""
        try:
            with self._directories.open(name) as directory:
                if not self._directories.is_held(directory):
                    return False
                with suppress(OSError):  # it is ending, or the next look tries again
                    job_directory.send_control(directory, byte)
                return True
        except FileNotFoundError:
            return False

    def remove_owner(self, table: Table, owner_id: UUID, throttle: Throttle) -> None:
        """Remove a workspace or pipeline that is marked deleted, if it is empty."""
        if table is workspace:
            after = _FIRST
            while pipelines := self._marked(pipeline, after, workspace_id=owner_id):
                after = pipelines[-1].hex
                self._remove_owners(pipeline, pipelines, throttle)
        self._remove_owners(table, [owner_id], throttle)

    def continue_deletions(self, *, everything: bool) -> None:
        """
        Continue unfinished deletions: mark, remove final jobs, then workspaces and pipelines.

        Args:
            everything: Finish all of them. If false, do a few steps, so that jobs can start.
        """
        throttle = Throttle()
        pages = {}
        for table in (workspace, pipeline):
            pages[table] = self._pages(table, everything=everything)
            for one in pages[table]:
                while self.mark_some(table, one, throttle) and everything:
                    pass
        if self._remove_final(throttle, everything=everything):
            self._remove_stuck()  # only now: it examines all hidden jobs, of which few are left
        for table in (pipeline, workspace):  # in this order: pipelines belong to workspaces
            self._remove_owners(table, pages[table], throttle)

    def _pages(self, table: Table, *, everything: bool) -> list[UUID]:
        """Return the marked workspaces or pipelines: all, or the next few."""
        if not everything:
            found = self._marked(table, self._last_examined[table])
            self._last_examined[table] = found[-1].hex if found else _FIRST
            return found
        every: list[UUID] = []
        while some := self._marked(table, every[-1].hex if every else _FIRST):
            every += some
        return every

    def mark_some(self, table: Table, owner_id: UUID, throttle: Throttle) -> bool:
        """Hide some jobs or pipelines of a marked workspace or pipeline; False: all are hidden."""
        with self._database.read() as connection:
            if not deletion.has_unmarked(connection, table, owner_id):
                return False
        hide = partial(hide_some, table=table, owner_id=owner_id, now=self._clock.now())
        with throttle.step():
            return self._database.write(hide)

    def _marked(self, table: Table, after: str, workspace_id: UUID | None = None) -> list[UUID]:
        with self._database.read() as connection:
            return deletion.marked_ids(connection, table, after, OWNERS_AT_ONCE, workspace_id)

    def _remove_final(self, throttle: Throttle, *, everything: bool) -> bool:
        """Remove all or some of the hidden final jobs; tell whether these were the last ones."""
        while True:
            waiting = self._postponed.waiting()
            with self._database.read() as connection:
                marked = transitions.deleted_final(connection, REMOVED_AT_ONCE + len(waiting))
            numbers = [number for number in marked if number not in waiting]
            self._remove_each(numbers, throttle)
            if not everything or len(numbers) < REMOVED_AT_ONCE:
                return len(numbers) < REMOVED_AT_ONCE

    def _remove_stuck(self) -> None:
        """Remove damaged jobs whose deletion has begun, without waiting for their processes."""
        with self._database.read() as connection:
            numbers = deletion.stuck(connection, REMOVED_AT_ONCE)
        now = time.monotonic()
        self._ending = {number: self._ending.get(number, now) for number in numbers}
        for number in set(numbers) - self._postponed.waiting():
            try:
                self._removes_damaged(number, self._ending[number], orphans.PAUSE)
            except Exception as error:
                if concerns_all_jobs(error):
                    raise
                self._postpone(number, error)

    def _postpone(self, number: int, error: Exception) -> None:
        self._postponed.fail(number, error, "job postponed", job=f"number {number}", step="delete")

    def _remove_each(self, numbers: Sequence[int], throttle: Throttle) -> None:
        """Remove jobs; postpone those that cannot be removed, and remove the others."""
        try:
            self.remove_jobs(*numbers, throttle=throttle)
        except Exception as error:
            if concerns_all_jobs(error):
                raise
        else:
            return
        for number in numbers:
            try:
                self.remove_jobs(number, throttle=throttle)
            except Exception as error:  # noqa: BLE001 - the other jobs must be removed all the same
                self._postpone(number, error)

    def _remove_owners(self, table: Table, ids: Sequence[UUID], throttle: Throttle) -> None:
        for first in range(0, len(ids), OWNERS_AT_ONCE):
            some = ids[first : first + OWNERS_AT_ONCE]
            with self._database.read() as connection:
                empty = deletion.empty_of(connection, table, some)
            if empty:
                self._remove_empty(table, empty, throttle)

    def _remove_empty(self, table: Table, ids: Sequence[UUID], throttle: Throttle) -> None:
        removed = SKIPS_AT_ONCE
        while table is pipeline and removed == SKIPS_AT_ONCE:
            with throttle.step():
                removed = self._database.write(
                    partial(deletion.remove_skips_of, pipeline_ids=ids, limit=SKIPS_AT_ONCE)
                )
        with throttle.step():
            self._database.write(partial(deletion.remove_if_empty, table=table, ids=ids))
