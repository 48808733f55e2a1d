"""
The statements for values that jobs hand on: results to their dependants, and state to the next run.

Every function takes a connection in a transaction.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, bindparam, select, update

from jobcore.storage.statement import Statement
from jobcore.storage.tables import dependency, job, pipeline, result

#: The encoding of values that are handed on. Unpickling could run any code.
JSON = "json"

_UPSTREAM = Statement(
    select(dependency.c.upstream_id, result.c.data)
    .join_from(dependency, job, job.c.id == dependency.c.upstream_id, isouter=True)
    .join(result, (result.c.job == job.c.number) & (result.c.encoding == JSON), isouter=True)
    .where(dependency.c.job == bindparam("of"))
    .order_by(dependency.c.position)
)


def results_for(connection: Connection, number: int) -> dict[UUID, bytes | None]:
    """Return the results, in JSON, of the jobs that a job depends on; None: there is none."""
    rows = _UPSTREAM(connection, of=number)
    return {UUID(hex=one): None if data is None else bytes(data) for one, data in rows}


_STATE = Statement(select(pipeline.c.state).where(pipeline.c.id == bindparam("of_id")))
_STORE_STATE = Statement(
    update(pipeline)
    .where(
        pipeline.c.id
        == select(job.c.pipeline_id).where(job.c.number == bindparam("of")).scalar_subquery()
    )
    .values(state=bindparam("new_state"))
)
_SET_STATE = Statement(
    update(pipeline).where(pipeline.c.id == bindparam("of_id")).values(state=bindparam("new_state"))
)


def state_of(connection: Connection, pipeline_id: UUID) -> str | None:
    """Return what the last run of a pipeline handed to the next one, as JSON; None: nothing."""
    rows = _STATE(connection, of_id=pipeline_id.hex)
    return rows[0][0] if rows else None


def store_state(connection: Connection, number: int, state: str) -> None:
    """Store the state that a job hands to the next run of its pipeline, if it has one."""
    _STORE_STATE(connection, of=number, new_state=state)


def set_state(connection: Connection, pipeline_id: UUID, state: str | None) -> None:
    """Set the state with which the next run of a pipeline begins."""
    _SET_STATE(connection, of_id=pipeline_id.hex, new_state=state)
