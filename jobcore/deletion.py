"""Deletion: the first step of removing a job, after which nobody sees it any more."""

from __future__ import annotations

from sqlalchemy import Connection

from jobcore import runs, settlement, store
from jobcore.lifecycle import Ending, Reason
from jobcore.runs import Run


def begin(connection: Connection, number: int, *, now: int) -> Run | None:
    """
    Hide a job and end it, or have it ended, in one step: no crash leaves it in between.

    Returns:
        The job; None where its deletion was begun before, or it is gone.
    """
    if not runs.mark_deleted(connection, number, now=now):
        return None
    settlement.cancel(connection, number, now=now)
    asked = runs.ask_stop_if_running(connection, number, grace_ms=None, why="delete", now=now)
    if asked is not None and asked.token is None:
        settlement.settle_own(connection, asked, Ending(Reason.STOPPED), now=now)
    return runs.find(connection, number)


def begin_marked(connection: Connection, *, now: int) -> None:
    """Begin the deletion of every job of workspaces and pipelines that are marked deleted."""
    for number in store.active_of_deleted(connection):
        begin(connection, number, now=now)
    store.mark_jobs_of_deleted(connection, now=now)
