"""
The environments that queued jobs inherit from the process that submitted them.

Each distinct environment is stored once, and only while a job that may still start
needs it. After that its bytes are overwritten in the file. Listings, logs and exports
never contain an environment.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from sqlalchemy import Connection, bindparam, delete, exists, insert, null, select, update

from jobcore.storage.statement import Statement
from jobcore.storage.tables import environment, job

#: The values of `Job.env_from`.
SUBMITTER, WORKER = "submitter", "worker"

#: Variables that describe one process, session or terminal, and would mislead the command.
_EXCLUDED = frozenset(
    {
        b"NOTIFY_SOCKET", b"INVOCATION_ID", b"SSH_AUTH_SOCK", b"DISPLAY", b"PWD", b"SHLVL", b"_",
    }
)  # fmt: skip
_EXCLUDED_PREFIXES = (b"JOBCORE_", b"LISTEN_")

_STORE = Statement(
    insert(environment)
    .prefix_with("OR IGNORE")
    .values(hash=bindparam("new_hash"), data=bindparam("new_data"))
)
_FIND = Statement(select(environment.c.data).where(environment.c.hash == bindparam("of")))
_RELEASE = Statement(
    update(job)
    .where(job.c.number == bindparam("of"), job.c.environment.is_not(None))
    .values(environment=null())
)
_IS_UNUSED = ~exists().where(job.c.environment == environment.c.hash)
_UNUSED = Statement(select(environment.c.hash).where(_IS_UNUSED).limit(1))
_REMOVE = Statement(delete(environment).where(_IS_UNUSED))


def capture() -> bytes:
    """Return this process's environment for storing, without what belongs to it alone."""
    kept = (
        (name, value)
        for name, value in os.environb.items()
        if name not in _EXCLUDED and not name.startswith(_EXCLUDED_PREFIXES)
    )
    return b"\0".join(name + b"=" + value for name, value in sorted(kept))


def store(connection: Connection, data: bytes) -> str:
    """Store an environment, and return the key by which jobs refer to it."""
    name = hashlib.sha256(data).hexdigest()
    _STORE(connection, new_hash=name, new_data=data)
    return name


def find(connection: Connection, name: str) -> Mapping[bytes, bytes] | None:
    """Return the environment stored under a key; None: it has been removed."""
    rows = _FIND(connection, of=name)
    if not rows:
        return None
    pairs = (pair.partition(b"=") for pair in bytes(rows[0][0]).split(b"\0") if pair)
    return {variable: value for variable, _, value in pairs}


def release(connection: Connection, number: int) -> bool:
    """Drop a job's reference to its environment; return whether it had one."""
    return _RELEASE.count(connection, of=number) > 0


def has_unused(connection: Connection) -> bool:
    """Tell whether the file stores an environment that no job needs."""
    return bool(_UNUSED(connection))


def remove_unused(connection: Connection) -> None:
    """Remove the environments that no job needs, and overwrite their bytes in the file."""
    if not has_unused(connection):
        return
    # For this statement alone, because it writes every page that is freed.
    connection.exec_driver_sql("PRAGMA secure_delete = ON")
    try:
        _REMOVE(connection)
    finally:
        connection.exec_driver_sql("PRAGMA secure_delete = FAST")
