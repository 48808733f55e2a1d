"""Reads which QUEUED jobs come next, for people who look at the queue."""

from __future__ import annotations

import heapq
from itertools import islice

from sqlalchemy import Connection, bindparam, select, text

from jobcore.storage import queue
from jobcore.storage.limits import UNLIMITED, as_text
from jobcore.storage.statement import Statement
from jobcore.storage.tables import IS_QUEUED, job

_TYPES = Statement(
    text("SELECT DISTINCT CAST(type AS BLOB) FROM workspace_count WHERE batch = 0 AND queued > 0")
)
_DELAYED = Statement(
    select(job.c.not_before, job.c.number)
    .where(
        job.c.type == bindparam("type"),
        IS_QUEUED,
        job.c.not_before > bindparam("now"),
    )
    .order_by(job.c.not_before)
    .limit(bindparam("most"))
)


def upcoming(connection: Connection, *, now: int, limit: int) -> list[int]:
    """
    Return the numbers of the next QUEUED jobs, whether their limits have room or not.

    First come those that may start now, in the order of the queue, then those that wait for a
    time. Jobs that are reserved, and those that wait for others, are not among them.
    """
    types = [as_text(kind) for (kind,) in _TYPES(connection)]
    ready = queue.in_order(connection, types=types, now=now, room=UNLIMITED, claimant=None)
    found = [one.number for one in islice(ready, limit)]
    most = limit - len(found)
    if most:
        delayed = [_DELAYED(connection, type=kind, now=now, most=most) for kind in types]
        merged = heapq.merge(*(map(tuple, rows) for rows in delayed))
        found += [number for _, number in islice(merged, most)]
    return found
