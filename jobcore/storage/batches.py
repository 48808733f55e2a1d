"""
Batches: many jobs that are written in short steps and become visible together.

A batch reserves a range of job numbers. Its jobs are rows of the job table from the first
step on, but no read shows them while the batch exists. Publishing deletes the batch, in
one short transaction that also writes the history of all its jobs. So no other writer
waits long, and readers see all of the jobs or none. If the process that writes a batch
dies, the batch is removed with its jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    Connection,
    and_,
    between,
    bindparam,
    delete,
    insert,
    literal,
    select,
    update,
)

from jobcore import lifecycle
from jobcore.errors import DuplicateKey
from jobcore.lifecycle import Trigger
from jobcore.storage import environments, job_rows, transitions
from jobcore.storage.statement import Statement
from jobcore.storage.tables import batch, job, sequence, transition


class Batch(NamedTuple):
    """
    A batch that is not published yet.

    Attributes:
        id: Its number.
        first, last: The first and the last job number of the batch, both inclusive.
        owner: The process that writes the batch.
    """

    id: int
    first: int
    last: int
    owner: str


#: The job that holds a key.
_HOLDER = job.alias("holder")

_REMOVE_JOB = Statement(delete(job).where(job.c.number == bindparam("of")))
_OPEN = Statement(select(batch.c.id, batch.c.first, batch.c.last, batch.c.owner))
_IS = Statement(select(batch.c.id).where(batch.c.id == bindparam("of")))


def begin(connection: Connection, count: int, owner: str) -> Batch:
    """Create a batch that reserves `count` consecutive job numbers."""
    largest = connection.execute(
        select(sequence.c.seq).where(sequence.c.name == job.name)
    ).scalar_one_or_none()
    if largest is None:
        connection.execute(insert(sequence).values(name=job.name, seq=count))
    else:
        connection.execute(
            update(sequence).where(sequence.c.name == job.name).values(seq=largest + count)
        )
    first = (largest or 0) + 1
    made = connection.execute(
        insert(batch).values(first=first, last=first + count - 1, owner=owner).returning(batch.c.id)
    ).scalar_one()
    return Batch(made, first, first + count - 1, owner)


def is_open(connection: Connection, of: Batch) -> bool:
    """Tell whether a batch still exists; False: it was removed as abandoned, or published."""
    return bool(_IS(connection, of=of.id))


def find_open(connection: Connection) -> list[Batch]:
    """Return all batches that are not published."""
    return [Batch._make(row) for row in _OPEN(connection)]


def stage(connection: Connection, jobs: Sequence[dict[str, Any]]) -> None:
    """Insert some jobs of a batch. No read shows them yet."""
    job_rows.insert_jobs(connection, jobs)


_HOLDS = and_(_HOLDER.c.workspace_id == job.c.workspace_id, _HOLDER.c.held_key == job.c.key)


def claim_keys(
    connection: Connection, of: Batch, workspace_id: UUID, *, now: int, on_conflict: str
) -> dict[int, int]:
    """
    Let the jobs of a batch hold their keys.

    Args:
        on_conflict: `return`: remove the jobs whose keys others hold; or `raise`.

    Returns:
        For the number of each removed job, that of the job that holds its key.

    Raises:
        DuplicateKey: Another job holds a key, and `on_conflict` is `raise`.
    """
    keyed = (_is_of(of), job.c.key.is_not(None))
    if connection.execute(select(job.c.number).where(*keyed).limit(1)).first() is None:
        return {}
    from jobcore.storage import keys  # noqa: PLC0415 - few batches have keys

    held = select(
        job.c.number, job.c.key, _HOLDER.c.id.label("holder_id"), _HOLDER.c.number.label("holder")
    ).join_from(job, _HOLDER, _HOLDS)
    for row in connection.execute(held.where(*keyed)).all():
        keys.release_if_over(connection, workspace_id, row.key, now=now)
    conflicts = connection.execute(held.where(*keyed)).all()
    if conflicts and on_conflict == "raise":
        raise DuplicateKey(conflicts[0].key, conflicts[0].holder_id)
    for row in conflicts:
        _REMOVE_JOB(connection, of=row.number)
    connection.execute(update(job).where(*keyed).values(held_key=job.c.key))
    return {row.number: row.holder for row in conflicts}


def publish(connection: Connection, of: Batch, *, now: int) -> None:
    """Make the jobs of a batch visible, and write the first history entry of each."""
    connection.execute(
        insert(transition).from_select(
            ["job", "at", "trigger", "to_status", "actor"],
            select(
                job.c.number,
                literal(now),
                literal(str(Trigger.CREATE)),
                literal(str(lifecycle.INITIAL)),
                literal(transitions.actor()),
            )
            .where(_is_of(of))
            .order_by(job.c.number),
        )
    )
    connection.execute(delete(batch).where(batch.c.id == of.id))


def remove_some(connection: Connection, of: Batch, limit: int) -> bool:
    """
    Remove up to `limit` jobs of an abandoned batch, and the batch with its last job.

    Returns:
        True: call again, there may be more. False: the batch is gone, or was published.
    """
    if not is_open(connection, of):
        return False
    some = select(job.c.number).where(_is_of(of)).limit(limit)
    removed = connection.execute(delete(job).where(job.c.number.in_(some))).rowcount
    if removed < limit:
        connection.execute(delete(batch).where(batch.c.id == of.id))
        environments.remove_unused(connection)
    return removed == limit


def _is_of(of: Batch) -> Any:
    return between(job.c.number, of.first, of.last)
