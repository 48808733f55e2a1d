"""
Creates very many jobs at once without blocking other writers for long.

The jobs of a batch are written in several short transactions, hidden, and then published
together in one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from jobcore.embedding import telemetry
from jobcore.engine.ownership import Ownership
from jobcore.engine.remover import Throttle
from jobcore.errors import StoreError
from jobcore.operations.dependencies import Dependencies, add
from jobcore.operations.lookup import require_workspace
from jobcore.storage import batches, dependencies, environments, job_rows, settlement
from jobcore.storage.database import Database
from jobcore.tuning import STAGED_AT_ONCE, STAGED_TEXT

ABANDONED = (
    "another process removed the jobs before they were published, as this process seemed dead; "
    "no job was created"
)

#: A dependency takes as long to write as this many characters of a command.
DEPENDENCY_TEXT = 100
#: Owner and id of the batches that failed in this process and could not be removed.
_UNREMOVED: set[tuple[str, int]] = set()


class BatchCreator:
    """
    Creates batches of jobs.

    Args:
        ownership: Names this process, so that others can tell whether it is alive.
    """

    def __init__(self, database: Database, ownership: Ownership) -> None:
        self._database = database
        self._ownership = ownership
        self._unknown: set[int] = set()  # batches whose owner cannot be examined, as logged

    def create(
        self,
        jobs: Sequence[Mapping[str, Any]],
        common: Callable[[Connection], dict[str, Any]],
        after: Dependencies,
        *,
        now: int,
        about: str,
        on_conflict: str,
    ) -> list[dict[str, Any]]:
        """
        Create QUEUED jobs durably: all of them, or none.

        Args:
            jobs: The columns of each job.
            common: Returns the columns that are the same for all, including the workspace.
            after: Which jobs they wait for.
            now: The time of their creation.
            about: Words for these jobs, for an exception that interrupts the call.
            on_conflict: `return`: in place of a job whose key another one holds, return the
                other; or `raise`.

        Returns:
            All columns of each job.

        Raises:
            DuplicateKey: Another job holds a key, and `on_conflict` is `raise`.
            WorkspaceNotFound: The workspace does not exist, or was deleted meanwhile.
        """
        owner = self._ownership.claim()
        self._remove_left(owner)
        throttle = Throttle()
        begun: list[batches.Batch] = []

        upstreams: dict[UUID, list[UUID]] = {}

        def begin(
            connection: Connection,
        ) -> tuple[batches.Batch, dict[str, Any], dict[str, Any]]:
            # Write the first job too, so that the environment is referenced from the start.
            same = common(connection)
            batch = batches.begin(connection, len(jobs), owner)
            first = job_rows.new_job(now=now, number=batch.first, **_unclaimed(jobs[0], same))
            upstreams.update(after.resolve(connection))
            _stage(connection, [first], upstreams)
            begun.append(batch)  # not after the write: an interrupt may keep it from returning
            return batch, first, same

        try:
            batch, first, same = self._database.write(begin, durable=False)
            rows = [
                job_rows.new_job(now=now, number=number, **_unclaimed(job, same))
                for number, job in enumerate(jobs[1:], batch.first + 1)
            ]
            for start, end in _steps(rows, after):
                with throttle.step():
                    self._database.write(
                        partial(_stage_some, batch=batch, rows=rows[start:end], after=upstreams),
                        # The last step makes all of them durable, so that the transaction
                        # that publishes them has little to sync.
                        durable=end == len(rows),
                    )
            others = self._database.write(
                partial(
                    _publish,
                    batch=batch,
                    workspace_id=same["workspace_id"],
                    now=now,
                    on_conflict=on_conflict,
                    ids={row["number"]: row["id"] for row in [first, *rows]} if after else {},
                ),
                about=about,
            )
        except BaseException:
            _UNREMOVED.update((owner, one.id) for one in begun)
            try:
                self._remove_left(owner)
            except StoreError as error:  # the next call or the next manager tries again
                telemetry.event(logging.WARNING, "batch not removed", error=str(error))
            raise
        return [
            others.get(row["number"]) or job_rows.as_read({**row, "held_key": row["key"]})
            for row in [first, *rows]
        ]

    def remove_abandoned(self, *, everything: bool = False) -> None:
        """
        Remove the batches of processes that have died.

        Args:
            everything: Remove all of them. If false, do one step, so that jobs can start.
        """
        with self._database.read() as connection:
            found = batches.find_open(connection)
        for batch in found:
            try:
                alive = self._ownership.lives(batch.owner)
                if alive is False:
                    self._remove(batch, everything=everything)
                elif alive is None and batch.id not in self._unknown:
                    # Keep it: its owner may still publish it.
                    self._unknown.add(batch.id)
                    telemetry.event(logging.WARNING, "batch left", owner=batch.owner)
            except StoreError as error:
                telemetry.event(logging.WARNING, "batch not removed", error=str(error))

    def _remove_left(self, owner: str) -> None:
        """Remove the failed batches of this process that could not be removed before."""
        left = {number for of, number in _UNREMOVED.copy() if of == owner}
        if not left:
            return
        with self._database.read() as connection:
            found = batches.find_open(connection)
        for batch in found:
            if batch.owner == owner and batch.id in left:
                self._remove(batch)
        _UNREMOVED.difference_update((owner, number) for number in left)

    def _remove(self, batch: batches.Batch, *, everything: bool = True) -> None:
        """Remove a batch, unless it has been published."""
        throttle = Throttle()
        remove = partial(batches.remove_some, of=batch, limit=STAGED_AT_ONCE)
        while True:
            with throttle.step():
                more = self._database.write(remove)
            if not more or not everything:
                return


def _stage_some(
    connection: Connection,
    batch: batches.Batch,
    rows: Sequence[dict[str, Any]],
    after: Mapping[UUID, Sequence[UUID]],
) -> None:
    if not batches.is_open(connection, batch):
        raise StoreError(ABANDONED)
    _stage(connection, rows, after)


def _stage(
    connection: Connection, rows: Sequence[dict[str, Any]], after: Mapping[UUID, Sequence[UUID]]
) -> None:
    batches.stage(connection, rows)
    add(connection, {row["id"]: row["number"] for row in rows}, after, {})


def _unclaimed(job: Mapping[str, Any], same: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a staged job. It gets its key when the batch is published."""
    return {**job, **same, "held_key": None}


def _publish(
    connection: Connection,
    batch: batches.Batch,
    workspace_id: UUID,
    now: int,
    on_conflict: str,
    ids: Mapping[int, UUID],
) -> dict[int, dict[str, Any]]:
    """
    Publish a batch.

    Args:
        ids: The ids of its jobs by their numbers, if any of them waits for another.

    Returns:
        By the numbers of its jobs: the jobs that hold their keys, and the jobs themselves if some
        of their dependencies have been decided.
    """
    if not batches.is_open(connection, batch):
        raise StoreError(ABANDONED)
    require_workspace(connection, workspace_id)
    held = batches.claim_keys(connection, batch, workspace_id, now=now, on_conflict=on_conflict)
    others = {number: job_rows.get_job(connection, other) for number, other in held.items()}
    for number, row in others.items():
        if row is not None and ids:
            dependencies.move(connection, ids[number], row.id)
    batches.publish(connection, batch, now=now)
    environments.remove_unused(connection)
    changed = settlement.decide_new(connection, batch.first, batch.last, now=now) if ids else {}
    shown = {number: dict(row._mapping) for number, row in others.items() if row is not None}  # noqa: SLF001 - SQLAlchemy's public name for it
    return {**changed, **shown}


def _steps(rows: Sequence[Mapping[str, Any]], after: Dependencies) -> Iterator[tuple[int, int]]:
    """Yield the bounds of each step, so that none has too many jobs or too much text."""
    start = text = 0
    for end, row in enumerate(rows):
        text += len(row["command"] or "") + DEPENDENCY_TEXT * after.of(row["id"])
        if end + 1 - start == STAGED_AT_ONCE or text > STAGED_TEXT or end + 1 == len(rows):
            yield start, end + 1
            start, text = end + 1, 0
