"""Connections: how the file is opened, where spare connections wait, and how one is thrown away."""

from __future__ import annotations

import gc
import logging
import sqlite3
import weakref
from collections import deque
from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from jobcore import telemetry
from jobcore.statement import driver_of

#: Each pragma of a connection, with its reason.
PRAGMAS = (
    "PRAGMA foreign_keys = ON",  # deleting a job takes its log and history along
    "PRAGMA synchronous = FULL",  # a state that was acknowledged survives a power failure
    # No automatic checkpoints: they run in PASSIVE mode, the one that SQLite before
    # 3.51.3 can lose commits in (the WAL-reset bug). See `checkpointer`.
    "PRAGMA wal_autocheckpoint = 0",
    "PRAGMA mmap_size = 0",  # reported to make that bug's damage worse
    "PRAGMA journal_size_limit = 16777216",  # one huge transaction does not keep its room for ever
    "PRAGMA temp_store = MEMORY",  # no files outside the database's directory
    "PRAGMA trusted_schema = OFF",  # the schema of a file is data, not a program
)

#: Connections that are kept for the next reader; more are made when more threads read at once.
SPARES = 8


class SqliteConnection(sqlite3.Connection):
    """A connection that can be referred to weakly, so that a fork can find it."""

    @property
    def is_open(self) -> bool:
        """Whether it was not closed: an exception that somebody keeps may refer to one that was."""
        try:
            return self.total_changes >= 0  # which touches no file
        except sqlite3.ProgrammingError:
            return False

    def close(self) -> None:
        """Close it, and take back the transaction that it is in."""
        if self.is_open and self.in_transaction:
            self._end_statements()
            self.rollback()
        super().close()

    def abandon(self) -> None:
        """Close it in the middle of whatever it is."""
        if self.is_open:
            self._end_statements()
            self.close()

    def _end_statements(self) -> None:
        """
        End what cursors are in the middle of that somebody keeps, such as a traceback.

        One statement would keep the connection alive for SQLite (`sqlite3_close_v2`),
        with its locks; and if it were used again, it would see what was there then.
        """
        for one in gc.get_referrers(self):
            if isinstance(one, sqlite3.Cursor):
                one.close()


class Spares:
    """
    Connections that nobody uses now, as SQLAlchemy's `Connection` objects.

    Not in one of SQLAlchemy's pools. These wait for each other in a `Condition`,
    whose `with` a Ctrl-C leaves locked; what a signal handler raises while one
    takes a connection back, it logs and drops; and to lend one and take it back
    costs more than a short read. A deque needs no lock.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._spare: deque[Connection] = deque()
        self._closed = False

    def lend(self) -> Connection:
        """Return one that is in no transaction; make one where none is left."""
        try:
            return self._spare.pop()
        except IndexError:
            return self._engine.connect()

    def take_back(self, connection: Connection) -> None:
        """Keep one for the next reader, if it is whole and there are not enough."""
        is_whole = not (connection.closed or connection.invalidated)
        if not is_whole or connection.in_transaction() or driver_of(connection).in_transaction:
            throw_away(connection)
        elif self._closed or len(self._spare) >= SPARES:
            connection.close()
        else:
            self._spare.append(connection)

    def close(self) -> None:
        """Close them, and from now on what is taken back."""
        self._closed = True
        while True:
            try:
                self._spare.pop().close()
            except IndexError:
                return


def uri_of(path: str, mode: str) -> str:
    """Return the URI under which SQLite opens the file, for `rw`, or for reading with `ro`."""
    # `?` and `#` would end the path, `%` escapes. The empty authority is for a
    # path that begins with two slashes.
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file://{quoted}?mode={mode}"


def connect(
    path: str, busy_timeout: float, opened: weakref.WeakSet[SqliteConnection]
) -> SqliteConnection:
    """
    Return a new connection to a file that is there.

    Args:
        path: Absolute, without links.
        busy_timeout: Seconds that a statement waits for another process's lock.
        opened: Where it is noted, so that a fork finds it whoever has it.
    """
    connection = sqlite3.connect(
        uri_of(path, "rw"),  # never `rwc`: a file that was removed is not made again
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
        connection.close()  # it refers to itself: it would be open until the collector comes
        raise
    return connection


def throw_away(connection: Connection) -> None:
    """
    Close a connection of which nothing is certain any more; SQLite rolls back what it was in.

    The driver's first: where this is interrupted, the next try finds it all the same.
    """
    if not (connection.closed or connection.invalidated):
        driver_of(connection).abandon()
    try:
        if not connection.closed:
            connection.invalidate()
            connection.close()
    except Exception as error:  # noqa: BLE001 - what it believes of itself may be anything
        telemetry.event(logging.DEBUG, "connection dropped", error=repr(error))


def keep_for_ever(connections: Sequence[sqlite3.Connection]) -> None:
    """Add one more reference than anybody gives back: not even a finaliser may close them here."""
    import ctypes  # noqa: PLC0415 - needed here alone, and slow to load

    for connection in connections:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
