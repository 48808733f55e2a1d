"""How the file is opened, where spare connections wait, and how one is thrown away."""

from __future__ import annotations

import logging
import sqlite3
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine

from jobcore.embedding import telemetry
from jobcore.embedding.interrupts import Lock
from jobcore.embedding.worker import handed_over
from jobcore.storage.statement import driver_of

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

#: Cursors of a connection that are noted before those that are gone are looked for.
CURSORS = 64
#: Connections that are kept for the next reader; more are made when more threads read at once.
SPARES = 8


class SqliteConnection(sqlite3.Connection):
    """A connection that can be referred to weakly, so that a fork can find it, and its cursors."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cursors: list[weakref.ref[sqlite3.Cursor]] = []

    def cursor(self, *args: Any, **options: Any) -> Any:
        """Return a new cursor, and note it; `execute` calls this, too."""
        made = super().cursor(*args, **options)
        if len(self._cursors) >= CURSORS:
            self._cursors = [one for one in self._cursors if one() is not None]
        self._cursors.append(weakref.ref(made))
        return made

    @property
    def is_open(self) -> bool:
        """Whether it is open. A closed one may still be referred to, as by a kept traceback."""
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
        for reference in self._cursors:
            cursor = reference()
            if cursor is not None:
                cursor.close()


class Slot:
    """
    A place for a connection, lent to one reader at a time.

    Attributes:
        number: Its place among all.
        connection: SQLAlchemy's; None: there is none now.
        holder: Who has it, under the one key "". Who gets it is decided by one operation.
    """

    __slots__ = ("connection", "holder", "number")

    def __init__(self, number: int, holder: object) -> None:
        self.number = number
        self.connection: Connection | None = None
        self.holder: dict[str, object] = {"": holder}

    def drop(self) -> None:
        """Close the connection in the middle of whatever it is, and then be free."""
        if self.connection is not None:
            throw_away(self.connection)
            self.connection = None
        self.holder.clear()


class Spares:
    """
    Connections for readers.

    Not one of SQLAlchemy's pools. These wait for each other in a `Condition`,
    whose `with` a Ctrl-C leaves locked; what a signal handler raises while one
    takes a connection back, it logs and drops; and to lend one and take it back
    costs more than a short read. Each connection stays in its slot while it is lent,
    so none is lost when the reader is interrupted.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._slots: list[Slot] = []
        self._closed = False
        self._tidying = Lock()

    def lend(self, reader: object) -> Slot:
        """Return a slot with a connection that is in no transaction."""
        for slot in self._slots:
            if slot.holder.setdefault("", reader) is reader:
                break
        else:
            slot = Slot(len(self._slots), reader)
            self._slots.append(slot)
        if slot.connection is None:
            self._fill(slot)
        return slot

    @handed_over
    def _fill(self, slot: Slot) -> None:
        slot.connection = self._engine.connect()

    def take_back(self, slot: Slot) -> None:
        """Keep its connection for the next reader, if it is whole and there are not enough."""
        connection = slot.connection
        if (
            self._closed
            or slot.number >= SPARES
            or connection is None
            or connection.closed
            or connection.invalidated
            or connection.in_transaction()
            or driver_of(connection).in_transaction
        ):
            slot.drop()
        else:
            slot.holder.clear()

    def tidy(self, is_present: Callable[[object], bool]) -> None:
        """Close what readers have that are no longer present."""
        with self._tidying:
            for slot in self._slots:
                holder = slot.holder.get("")
                if holder is None or is_present(holder):
                    continue
                if slot.holder.get("") is holder:  # it did not leave just now
                    slot.drop()

    def close(self) -> None:
        """Close those that are not lent, and from now on what is taken back."""
        self._closed = True
        for slot in self._slots:
            if slot.holder.setdefault("", self) is self:
                slot.drop()


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
