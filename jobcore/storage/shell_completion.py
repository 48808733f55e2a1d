"""Reads the jobs and names that a shell offers, with the driver alone: the shell waits."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Any
from urllib.parse import quote

#: Seconds to wait for a lock. If it takes longer, the shell offers nothing.
_PATIENCE = 0.1


#: For each kind of name, the statement that reads the names.
_NAMES = {
    "group": """
        SELECT name FROM job_limit WHERE scope = 'group'
        UNION SELECT group_name FROM pipeline WHERE deleted_at IS NULL
        UNION SELECT * FROM (
            SELECT group_name FROM job WHERE deleted_at IS NULL ORDER BY number DESC LIMIT :newest
        )
        ORDER BY 1
    """,
    "key": """
        SELECT key FROM (
            SELECT key, number FROM job WHERE deleted_at IS NULL ORDER BY number DESC LIMIT :newest
        )
        GROUP BY key ORDER BY max(number) DESC
    """,
    "pipeline": "SELECT DISTINCT name FROM pipeline WHERE deleted_at IS NULL ORDER BY name",
    "workspace": "SELECT DISTINCT name FROM workspace WHERE deleted_at IS NULL ORDER BY name",
}


def newest_jobs(path: str, limit: int) -> list[tuple[int, str, str, str | None]]:
    """
    Return the newest jobs, newest first; none if the file cannot be read.

    Args:
        path: The database file. It is not changed.
        limit: The most jobs to return.

    Returns:
        Number, id in hexadecimal digits, status and name of each job.
    """
    return _read(
        path,
        "SELECT number, id, status, name FROM job WHERE deleted_at IS NULL "
        "ORDER BY number DESC LIMIT :newest",
        limit,
    )


def names(path: str, kind: str, newest: int) -> list[str]:
    """
    Return the names of a kind; none if the file cannot be read.

    Args:
        path: The database file. It is not changed.
        kind: `group`, `key`, `pipeline` or `workspace`.
        newest: Groups and keys are those of this many of the newest jobs.
    """
    return [name for (name,) in _read(path, _NAMES[kind], newest) if name]


def _read(path: str, statement: str, newest: int) -> list[Any]:
    # Without a log beside it, a connection would create one; with `immutable` it creates nothing.
    mode = "ro" if os.path.exists(f"{path}-wal") else "ro&immutable=1"
    try:
        with closing(
            sqlite3.connect(f"file:{quote(path)}?mode={mode}", uri=True, timeout=_PATIENCE)
        ) as connection:
            return connection.execute(statement, {"newest": newest}).fetchall()
    except sqlite3.Error:
        return []
