"""Deletes jobs, pipelines and workspaces for good, in steps that any process can continue."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from uuid import UUID

from sqlalchemy import Table

from jobcore.clock import Clock
from jobcore.embedding import failpoints
from jobcore.engine import remover
from jobcore.engine.remover import REMOVED_AT_ONCE, Remover, Throttle
from jobcore.engine.stopper import Stopper
from jobcore.errors import DatabaseCorrupt, JobDeleted, JobNotFound
from jobcore.operations.lookup import Id, parse_id
from jobcore.operations.waiting import Waiter
from jobcore.storage import damage, deletion, job_rows, transitions
from jobcore.storage.database import Database
from jobcore.storage.tables import pipeline, workspace
from jobcore.storage.transitions import Run


@dataclass(eq=False)
class Deleter:
    """Deletes a job: hides it, stops it, and then removes it."""

    _database: Database
    _stopper: Stopper
    _waiter: Waiter
    _remover: Remover
    _clock: Clock

    def delete(self, run: Run) -> None:
        """
        Remove the job with its log, history and directory; return when all is gone.

        If the row is so damaged that the job cannot be ended by the rules, it is removed
        without that.
        """
        if not transitions.is_sound(run):
            self._remover.remove_damaged(run.number)
            return
        try:
            self._delete(run)
        except DatabaseCorrupt:
            self._remover.remove_damaged(run.number)

    def delete_damaged(self, job_id: Id) -> None:
        """Remove a job whose row cannot be read completely."""
        parsed = parse_id(job_id)
        with self._database.read() as connection:
            number = None if parsed is None else job_rows.number_of(connection, parsed)
            try:
                run = None if number is None else transitions.find(connection, number)
            except Exception as error:
                if not damage.is_damage(error):
                    raise
                run = None
        if number is None:
            raise JobNotFound(job_id)
        if run is None:
            self._remover.remove_damaged(number)
        else:
            self.delete(run)

    def _delete(self, run: Run) -> None:
        mark = partial(remover.hide, number=run.number, now=self._clock.now())
        marked = self._database.write(mark, about=f"job {run.id}")
        if marked is None:
            raise JobNotFound(run.id)
        if failpoints.armed:
            failpoints.reach(failpoints.MARKED_DELETED, self._database)
        if not marked.final:
            self._stopper.deliver(marked)
        if self.wait_for_end(marked):
            self._remover.remove_jobs(marked.number)

    def wait_for_end(self, run: Run) -> bool:
        """Wait until a hidden job has ended; return False if it is removed by then."""
        try:
            self._waiter.wait(run)
        except JobDeleted:
            return False  # another manager's sweep has finished it
        except DatabaseCorrupt:
            self._remover.remove_damaged(run.number)
            return False
        return True

    def delete_workspace(self, workspace_id: UUID) -> None:
        """Remove a workspace that is marked as deleted, with its pipelines and jobs."""
        self._delete_all(workspace, workspace_id)

    def delete_pipeline(self, pipeline_id: UUID) -> None:
        """Remove a pipeline that is marked as deleted, with its jobs."""
        self._delete_all(pipeline, pipeline_id)

    def _delete_all(self, table: Table, owner_id: UUID) -> None:
        if failpoints.armed:
            failpoints.reach(failpoints.MARKED_DELETED, self._database)
        throttle = Throttle()
        while self._remover.mark_some(table, owner_id, throttle):
            pass
        with self._database.read() as connection:
            active, damaged = deletion.marked_active_of(connection, table, owner_id)
        for run in active:
            self._stopper.deliver(run)  # stop all before waiting for any: the graces overlap
        for number in damaged:
            self._remover.remove_damaged(number)  # nothing else can end it
        for run in active:
            self.wait_for_end(run)
        while True:
            with self._database.read() as connection:
                final = deletion.marked_final_of(connection, table, owner_id, REMOVED_AT_ONCE)
            self._remover.remove_jobs(*(run.number for run in final), throttle=throttle)
            if len(final) < REMOVED_AT_ONCE:
                break
        self._remover.remove_owner(table, owner_id, throttle)
