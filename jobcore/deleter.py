"""Deleter: removes jobs, and what governs them, for good, in steps that anybody can go on with."""

from __future__ import annotations

from functools import partial
from uuid import UUID

from sqlalchemy import Table

from jobcore import deletion, store
from jobcore.clock import Clock
from jobcore.database import Database
from jobcore.errors import DatabaseCorrupt, JobDeleted, JobNotFound
from jobcore.follower import Follower
from jobcore.remover import REMOVED_AT_ONCE, Remover, Turns
from jobcore.runs import Run
from jobcore.stopper import Stopper
from jobcore.supervision import failpoints
from jobcore.tables import pipeline, workspace


class Deleter:
    """
    Hides a job, ends it, and then removes it.

    Args:
        database: Where it is.
        stopper: Ends it.
        follower: Waits for its end.
        remover: Removes what is left.
        clock: Tells when.
    """

    def __init__(
        self,
        database: Database,
        stopper: Stopper,
        follower: Follower,
        remover: Remover,
        clock: Clock,
    ) -> None:
        self._database = database
        self._stopper = stopper
        self._follower = follower
        self._remover = remover
        self._clock = clock

    def delete(self, run: Run) -> None:
        """
        Remove the job with its log, history and directory; return when all is gone.

        Raises:
            JobNotFound: Somebody else deletes it already.
        """
        mark = partial(deletion.begin, number=run.number, now=self._clock.now())
        marked = self._database.write(mark, about=f"job {run.id}")
        if marked is None:
            raise JobNotFound(run.id)
        failpoints.reach(failpoints.MARKED_DELETED, self._database)
        if not marked.final:
            self._stopper.deliver(marked)
        try:
            self._follower.wait(marked)
        except JobDeleted:
            return  # another manager's sweep has finished it
        self._remover.remove_jobs(marked.number)

    def delete_workspace(self, workspace_id: UUID) -> None:
        """
        Remove a workspace that is marked, with all that belongs to it.

        Raises:
            DatabaseCorrupt: As in `delete_pipeline`.
        """
        self._delete_all(workspace, workspace_id)

    def delete_pipeline(self, pipeline_id: UUID) -> None:
        """
        Remove a pipeline that is marked, with its jobs.

        Raises:
            DatabaseCorrupt: A job was hidden and not asked to end, as by a damaged index:
                it would be waited for without an end.
        """
        self._delete_all(pipeline, pipeline_id)

    def _delete_all(self, table: Table, owner_id: UUID) -> None:
        failpoints.reach(failpoints.MARKED_DELETED, self._database)
        turns = Turns()
        while self._remover.mark_some(table, owner_id, turns):
            pass
        with self._database.read() as connection:
            active = store.marked_active_of(connection, table, owner_id)
        for run in active:
            if run.stop_requested is None:
                raise DatabaseCorrupt(f"job number {run.number} is hidden, and nothing ends it")
        for run in active:
            self._stopper.deliver(run)  # to all before any is waited for: their graces pass at once
        for run in active:
            try:
                self._follower.wait(run)
            except JobDeleted:
                continue  # another manager's sweep has finished it
        while True:
            with self._database.read() as connection:
                final = store.marked_final_of(connection, table, owner_id, REMOVED_AT_ONCE)
            self._remover.remove_jobs(*(run.number for run in final), turns=turns)
            if len(final) < REMOVED_AT_ONCE:
                break
        self._remover.remove_owner(table, owner_id, turns)
