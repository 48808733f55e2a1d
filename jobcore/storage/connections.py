"""Opens connections to the file; see `reading` for who uses them."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Sequence
from typing import Any

from jobcore.tuning import RECORDED_CURSORS

#: An open descriptor, and the device and inode of its file.
Held = tuple[int, int, int]

#: Each pragma of a connection, with its reason.
PRAGMAS = (
    "PRAGMA foreign_keys = ON",  # deleting a job deletes its log and history
    "PRAGMA synchronous = FULL",  # an acknowledged state survives a power failure
    # No automatic checkpoints. They run in PASSIVE mode, in which SQLite before 3.51.3 can
    # lose commits (the WAL-reset bug). See `checkpointer`.
    "PRAGMA wal_autocheckpoint = 0",
    "PRAGMA mmap_size = 0",  # reported to make that bug's damage worse
    "PRAGMA journal_size_limit = 16777216",  # after a huge transaction the log shrinks again
    "PRAGMA temp_store = MEMORY",  # no files outside the database's directory
    # Do not overwrite whole pages that become free. Debian's SQLite would write every page of a log
    # that is deleted. What must be overwritten says so: see `environments`.
    "PRAGMA secure_delete = FAST",
    "PRAGMA trusted_schema = OFF",  # the schema of a file is data, not a program
)


class SqliteConnection(sqlite3.Connection):
    """A connection that supports weak references, so that a fork can find it and its cursors."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: The `-shm` file, if it is the writer's connection; forgotten before it closes.
        self.held: Held | None = None
        self.is_abandoned = False  # its descriptors may be other files' now: never close it
        self._cursors: list[weakref.ref[sqlite3.Cursor]] = []

    def cursor(self, *args: Any, **options: Any) -> Any:
        """Return a new cursor and record it."""
        made = super().cursor(*args, **options)
        if len(self._cursors) >= RECORDED_CURSORS:
            self._cursors = [one for one in self._cursors if one() is not None]
        self._cursors.append(weakref.ref(made))
        return made

    def execute(self, *args: Any) -> sqlite3.Cursor:
        """Execute a statement with a recorded cursor. Only Python 3.11 would call `cursor`."""
        made: sqlite3.Cursor = self.cursor()
        return made.execute(*args)

    @property
    def is_open(self) -> bool:
        """Whether it is open. Closed ones can still be referenced, e.g. by a stored traceback."""
        try:
            return self.total_changes >= 0  # touches no file
        except sqlite3.ProgrammingError:
            return False

    def close(self) -> None:
        """End its statements, roll back an open transaction and close the connection."""
        if self.is_abandoned:
            return
        self.held = None
        if self.is_open:
            self._end_statements()
            if self.in_transaction:
                self.rollback()
        super().close()

    # From 3.13 on, Python would warn of an unclosed connection here. `JobManager` itself warns if
    # it is dropped without `close()`, and the connections of a program that ends are left to the
    # system. A C function: a Python function would swallow an exception of a signal handler.
    __del__ = object.__sizeof__

    def _end_statements(self) -> None:
        """
        End the statements of cursors that are still referenced, e.g. by a traceback.

        One open statement keeps the connection and its locks alive in SQLite
        (`sqlite3_close_v2`). If the connection were used again, it would see old data.
        """
        for reference in self._cursors:
            cursor = reference()
            if cursor is not None:
                cursor.close()


def uri_of(path: str, mode: str) -> str:
    """Return the URI by which SQLite opens the file; `mode` is SQLite's, such as `rw` or `ro`."""
    # `?` and `#` would end the path, and `%` begins an escape. The empty authority (`//`)
    # allows paths that begin with two slashes.
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file://{quoted}?mode={mode}"


def connect(
    path: str, busy_timeout: float, opened: weakref.WeakSet[SqliteConnection]
) -> SqliteConnection:
    """
    Return a new connection to an existing file.

    Args:
        path: An absolute path without links.
        busy_timeout: Seconds that a statement waits for another process's lock.
        opened: The set that the connection is added to, so that a fork finds it.
    """
    connection = sqlite3.connect(
        uri_of(path, "rw"),  # never `rwc`, which would create a removed file again
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,  # we say BEGIN ourselves
        check_same_thread=False,  # lent to one thread at a time
        factory=SqliteConnection,
        cached_statements=256,
    )
    opened.add(connection)
    try:
        for pragma in PRAGMAS:
            connection.execute(pragma)
    except BaseException:
        connection.close()  # a reference cycle would keep it open until garbage collection
        raise
    return connection


def keep_forever(connections: Sequence[sqlite3.Connection]) -> None:
    """Leak a reference to each connection, so that not even a finaliser closes it here."""
    import ctypes  # noqa: PLC0415 - needed here alone, and slow to load

    for connection in connections:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
