"""Hides jobs: the first step of a deletion, after which no caller sees the job."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, Table

from jobcore.errors import DatabaseCorrupt
from jobcore.lifecycle import Ending, Reason
from jobcore.storage import damage, deletion, settlement, transitions
from jobcore.storage.tables import pipeline, workspace
from jobcore.storage.transitions import Run

#: Rows to mark in one transaction, chosen so that each takes about 50 ms.
PIPELINES_AT_ONCE = 500
ACTIVE_AT_ONCE = 100
FINAL_AT_ONCE = 1000


def begin(connection: Connection, number: int, *, now: int) -> Run | None:
    """
    Hide a job and end it, or ask it to stop, in one transaction, so that no crash can separate
    the two.

    Returns:
        The job; None if its deletion had already begun, or it is gone.

    Raises:
        DatabaseCorrupt: Its row cannot be changed; see `Remover.remove_damaged`.
    """
    if not transitions.mark_deleted(connection, number, now=now):
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


def begin_some(connection: Connection, table: Table, owner_id: UUID, *, now: int) -> bool:
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
                begin(connection, number, now=now)
        except Exception as error:
            if not damage.is_damage(error):
                raise
            transitions.mark_deleted(connection, number, now=now)  # `remove_damaged` ends it later
    if len(active) == ACTIVE_AT_ONCE:
        return True
    marked = deletion.mark_final_of(connection, table, owner_id, FINAL_AT_ONCE, now=now)
    if marked < FINAL_AT_ONCE:  # the remaining jobs are damaged: their status is unknown
        marked = deletion.mark_rest_of(connection, table, owner_id, FINAL_AT_ONCE, now=now)
    return marked == FINAL_AT_ONCE
