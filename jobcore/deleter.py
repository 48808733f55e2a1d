"""Deleter: removes a job for good, in steps that anybody can go on with."""

from __future__ import annotations

from jobcore import logs, runs
from jobcore.clock import Clock
from jobcore.database import Database
from jobcore.errors import JobDeleted, JobNotFound
from jobcore.follower import Follower
from jobcore.lifecycle import Ending, Reason
from jobcore.recovery import Recovery
from jobcore.runs import Run
from jobcore.stopper import Stopper


class Deleter:
    """
    Hides a job, ends it, and then removes it.

    Args:
        database: Where it is.
        stopper: Ends it.
        follower: Waits for its end.
        recovery: Removes what is left.
        clock: Tells when.
    """

    def __init__(
        self,
        database: Database,
        stopper: Stopper,
        follower: Follower,
        recovery: Recovery,
        clock: Clock,
    ) -> None:
        self._database = database
        self._stopper = stopper
        self._follower = follower
        self._recovery = recovery
        self._clock = clock

    def delete(self, run: Run) -> None:
        """
        Remove the job with its log, history and directory; return when all is gone.

        Raises:
            JobNotFound: Somebody else deletes it already.
        """
        marked = self._mark(run)
        if not marked.final:
            self._stopper.deliver(marked)
        try:
            self._follower.wait(marked)
        except JobDeleted:
            return  # another manager's sweep has finished it
        self._recovery.finish_deletion(marked.number)

    def _mark(self, run: Run) -> Run:
        """Hide the job and end it, or have it ended, in one step: no crash leaves it between."""
        now = self._clock.now()
        with self._database.write() as connection:
            if not runs.mark_deleted(connection, run.number, now=now):
                raise JobNotFound(run.id)
            runs.cancel_if_queued(connection, run.number, now=now)
            asked = runs.ask_stop_if_running(
                connection, run.number, grace_ms=None, why="delete", now=now
            )
            if asked is not None and asked.token is None:
                runs.settle_if_running(
                    connection, asked, offset=0, ending=Ending(Reason.STOPPED), now=now
                )
                logs.merge(connection, run.number, 0)
            marked = runs.find(connection, run.number)
        if marked is None:
            raise JobNotFound(run.id)
        return marked
