"""Reads the jobs that a shell offers, with the driver alone, because the shell waits."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from urllib.parse import quote

#: Seconds to wait for a lock. If it takes longer, the shell offers nothing.
_PATIENCE = 0.1


def newest_jobs(path: str, limit: int) -> list[tuple[int, str, str, str | None]]:
    """
    Return the newest jobs, newest first; none if the file cannot be read.

    Args:
        path: The database file. It is not changed.
        limit: The most jobs to return.

    Returns:
        Number, id in hexadecimal digits, status and name of each job.
    """
    # Without a log beside it, a connection would create one; with `immutable` it creates nothing.
    mode = "ro" if os.path.exists(f"{path}-wal") else "ro&immutable=1"
    try:
        with closing(
            sqlite3.connect(f"file:{quote(path)}?mode={mode}", uri=True, timeout=_PATIENCE)
        ) as connection:
            return connection.execute(
                "SELECT number, id, status, name FROM job WHERE deleted_at IS NULL "
                "ORDER BY number DESC LIMIT ?",
                (limit,),
            ).fetchall()
    except sqlite3.Error:
        return []
