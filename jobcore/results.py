"""Results: what functions returned, each stored in the transaction of its job's verdict."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, insert, select

from jobcore.statement import Statement
from jobcore.tables import result

_STORE = Statement(
    insert(result).values({column.name: bindparam(f"new_{column.name}") for column in result.c})
)
_FIND = Statement(select(result.c.encoding, result.c.data).where(result.c.job == bindparam("of")))


def store(connection: Connection, number: int, encoding: str, data: bytes) -> None:
    """Store what the job returned; the caller has just settled it."""
    _STORE(connection, new_job=number, new_encoding=encoding, new_data=data)


def find(connection: Connection, number: int) -> tuple[str, bytes] | None:
    """Return how a job's return value is encoded, and its bytes; None: it has none."""
    found = _FIND(connection, of=number)
    return (found[0][0], bytes(found[0][1])) if found else None
