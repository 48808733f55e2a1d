"""
Admits the reads of an open database file, tracks them, and lends them connections.

It also ends transactions and discards broken connections, for the writer, too.

A read runs in the calling thread. An unexpected exception discards its connection. Each
read registers itself with the frame of its caller, by one dictionary operation. So an
interrupt leaves no lock held. If a read could not remove itself, it is recognised, because its
caller's frame no longer runs.
"""

from __future__ import annotations

import _thread
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from jobcore.embedding import failpoints, telemetry
from jobcore.embedding.locks import GATE, Condition, Lock, is_over
from jobcore.embedding.worker import handed_over
from jobcore.errors import (
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseGone,
    JobcoreError,
    StoreError,
)
from jobcore.storage import filesystem
from jobcore.storage.connections import Held, SqliteConnection
from jobcore.storage.error_mapping import LOCK_FAILED, diagnose
from jobcore.storage.statement import driver_of
from jobcore.tuning import READ_PAUSE, RENEW_PATIENCE, SPARE_CONNECTIONS

if TYPE_CHECKING:
    from jobcore.storage.database import Database

#: Errors after which a connection can be used again. After any other exception, such as
#: KeyboardInterrupt, a statement may be half done.
EXPECTED = (JobcoreError, DBAPIError)


class Use:
    """One registered call inside a database. Forks and closes wait until it has left."""

    __slots__ = ("_readers", "thread")

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self.thread = _thread.get_ident()

    def __enter__(self) -> None:
        """Register the call that contains the `with` statement."""
        self._readers.enter(self, sys._getframe(1))  # noqa: SLF001 - the frame of that call

    def __exit__(self, *_: object) -> None:
        """Remove the call from the register."""
        self._readers.leave(self)


class Reading:
    """A read transaction."""

    __slots__ = ("_readers", "_slot", "_spares", "_use")

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._use = Use(readers)
        self._spares: SpareConnections | None = None
        self._slot: Slot | None = None

    def __enter__(self) -> Connection:
        """Begin the transaction."""
        before = sys.exc_info()[1]
        self._readers.enter(self._use, sys._getframe(1))  # noqa: SLF001 - as above
        try:
            with self._readers.typed_errors:
                self._readers.require_same_file()
                self._spares = self._readers.spares
                self._slot = self._spares.lend(self._use)
                connection = self._slot.connection
                if connection is None:
                    raise StoreError("the connection was closed while it was being lent")
                connection.cursor.execute("BEGIN")  # type: ignore[attr-defined]  # of `dialect`
        except BaseException as failure:  # noqa: BLE001 - raised on unchanged
            self._give_up()
            raise _first(failure, before)  # noqa: B904 - raised on unchanged
        return connection

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """End the transaction. The connection is kept unless an unexpected error occurred."""
        before = sys.exc_info()[1]
        try:
            with self._readers.typed_errors:
                self._end(error)
        except BaseException as failure:
            self._give_up()
            if failure is error:
                raise
            raise _first(failure, before)  # noqa: B904 - raised on unchanged
        self._readers.leave(self._use)

    def _end(self, error: BaseException | None) -> None:
        connection = None if self._slot is None else self._slot.connection
        if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
            raise error.orig or error  # raised by a signal handler, wrapped by SQLAlchemy
        if error is not None and not isinstance(error, EXPECTED):
            raise error
        if self._slot is None or connection is None or self._spares is None:
            return
        end(connection, commit=error is None)
        self._spares.take_back(self._slot)
        if error is not None:
            self._readers.leave(self._use)
            raise error

    def _give_up(self) -> None:
        # An interrupt may come after the slot was given back, when another reader may have it.
        if self._slot is not None and self._slot.is_lent_to(self._use):
            self._slot.drop()
        self._readers.leave(self._use)


def _first(failure: BaseException, before: BaseException | None) -> BaseException:
    """
    Return the exception that interrupted SQLAlchemy, which may be masked by an AssertionError.

    SQLAlchemy's `finally` blocks raise that error when they are interrupted. `before` is the
    exception that was being handled when the call began, so it is not the interruption.
    """
    interruption = failure.__context__
    if not isinstance(failure, AssertionError) or interruption is None or interruption is before:
        return failure
    return interruption


class Slot:
    """
    A place for a connection, lent to one reader at a time.

    Attributes:
        number: Its index among all slots.
        connection: SQLAlchemy's connection; None: there is none now.
        holder: The reader that has it, under the only key, "". A dict, because its
            `setdefault` decides in one atomic operation who gets the slot.
    """

    __slots__ = ("connection", "holder", "number")

    def __init__(self, number: int, holder: object) -> None:
        self.number = number
        self.connection: Connection | None = None
        self.holder: dict[str, object] = {"": holder}

    def is_lent_to(self, reader: object) -> bool:
        """Tell whether this reader has the slot. If so, only that reader can give it back."""
        return self.holder.get("") is reader

    def holders(self) -> list[object]:
        """Return the reader that has the slot, in a list that is empty if there is none."""
        return list(self.holder.values())

    def drop(self) -> None:
        """Close the connection, whatever state it is in, then free the slot."""
        if self.connection is not None:
            discard(self.connection)
            self.connection = None
        self.holder.clear()


class SpareConnections:
    """
    Connections for readers.

    This does not use SQLAlchemy's pools, for three reasons. Their threads wait in a
    `Condition`, which a Ctrl-C can leave locked. An exception from a signal handler while
    a connection is taken back is logged and dropped. And lending a connection costs more
    than a short read. Here a connection stays in its slot while it is lent, so none is
    lost when the reader is interrupted.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._slots: list[Slot] = []
        self._closed = False
        self._tidying = Lock()

    def lend(self, reader: object) -> Slot:
        """Return a slot with a connection that is not in a transaction."""
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
        """Keep the connection for the next reader if it is intact and the slot is a spare one."""
        connection = slot.connection
        is_spare = not self._closed and slot.number < SPARE_CONNECTIONS
        if is_spare and connection is not None and is_at_rest(connection):
            slot.holder.clear()
        else:
            slot.drop()

    def tidy(self, is_present: Callable[[object], bool]) -> None:
        """Close the connections of readers that are no longer present."""
        if any(not is_present(holder) for slot in self._slots for holder in slot.holders()):
            with self._tidying:
                for slot in self._slots:
                    for holder in slot.holders():
                        # Check again: it may have left in the meantime.
                        if not is_present(holder) and slot.is_lent_to(holder):
                            slot.drop()

    def close(self) -> None:
        """Close the connections that are not lent; the others are closed when taken back."""
        self._closed = True
        for slot in self._slots:
            if slot.holder.setdefault("", self) is self:
                slot.drop()


#: What SQLAlchemy raises of a connection that was interrupted in any state. Not `Exception`: a
#: signal handler of the host may raise its own one here, such as a time-out by SIGALRM.
_STATES = (
    SQLAlchemyError,
    sqlite3.Error,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


def discard(connection: Connection) -> None:
    """
    Close a connection whose state is unknown. SQLite rolls back its transaction.

    It closes the driver's connection first, so an interrupted call can be repeated.
    """
    if not (connection.closed or connection.invalidated):
        driver_of(connection).close()
    try:
        if not connection.closed:
            connection.invalidate()
            connection.close()
    except _STATES as error:
        telemetry.event(logging.DEBUG, "connection dropped", error=repr(error))


def is_at_rest(connection: Connection) -> bool:
    """Tell whether a connection is usable and, for SQLAlchemy and SQLite, in no transaction."""
    if connection.closed or connection.invalidated or connection.in_transaction():
        return False
    return not connection.driver.in_transaction  # type: ignore[attr-defined]  # of `dialect`


def end(connection: Connection, *, commit: bool) -> None:
    """
    Commit or roll back the transaction that the driver has begun, if there is one.

    SQLAlchemy joins it with the first statement that it executes itself. Most need none.
    """
    joined = connection.get_transaction()
    if joined is not None:  # also after a failed commit: then only a rollback is possible
        joined.commit() if commit else joined.rollback()
    driver: Any = connection.driver  # type: ignore[attr-defined]  # of `dialect`
    if driver.in_transaction:
        driver.commit() if commit else driver.rollback()


_DATA_VERSION = "PRAGMA data_version"


class ChangeCounter:
    """
    The commits to one file, as all threads of a process see them.

    The writer of this process announces its own commits. Commits of other processes are
    found by polling `PRAGMA data_version` on a separate connection that reads no table.
    """

    def __init__(self, connect: Callable[[], SqliteConnection]) -> None:
        self._connect = connect
        self._version = 0
        self.reset()

    def reset(self) -> None:
        """Reset all state, as in a forked child: no thread polls and no thread waits."""
        self._looking = Lock()
        self._committed = Condition()
        self.count = 0  # commits of this process
        self._last = 0.0  # monotonic time of the last of them
        self._looked = (0.0, 0)  # monotonic time of the last poll, and the version it saw
        self._watch: SqliteConnection | None = None
        self._cursor: sqlite3.Cursor | None = None  # of the polling connection
        self._base = 0  # added to the data_version of the polling connection

    def known_version(self, within: float) -> int | None:
        """
        Return the version polled in the last `within` seconds; None: there was no such poll.

        This takes no lock and touches no file. So an event loop can call it, and a
        hundred waiters share one poll.
        """
        looked, version = self._looked
        fresh = looked > self._last and time.monotonic() - looked < within
        return version if fresh else None

    def look(self) -> int:
        """Poll the file and return its version, which differs after every commit."""
        with self._looking:
            now = time.monotonic()  # before the poll, so that a later commit makes it stale
            cursor = self._cursor or self._open_cursor()
            try:
                ((number,),) = cursor.execute(_DATA_VERSION).fetchall()
            except BaseException:
                self._cursor = None
                cursor.close()  # an interrupted statement would keep its snapshot
                raise
            self._version = self._base + number
            self._looked = now, self._version
            return self._version

    @handed_over
    def _open_cursor(self) -> sqlite3.Cursor:
        watch = self._watch or self._open_watch()
        cursor: sqlite3.Cursor = watch.cursor()
        self._cursor = cursor
        return cursor

    def _open_watch(self) -> SqliteConnection:
        watch = self._connect()
        (number,) = watch.execute(_DATA_VERSION).fetchone()
        # Each connection has its own data_version. After a fork there may have been
        # commits, so this starts with a version that was never returned before.
        self._base = self._version + 1 - number
        self._watch = watch
        return watch

    def announce(self) -> None:
        """Record a commit of this process, and wake the waiting threads."""
        self._last = time.monotonic()
        self.count += 1
        self._committed.notify_all()

    def wait(self, count: int, seconds: float) -> None:
        """Wait until `self.count` differs from `count`, for at most `seconds`."""
        self._committed.wait(lambda: self.count != count, seconds)

    def close(self) -> None:
        """Close the polling connection; the next poll opens a new one."""
        with self._looking:
            self._looked = (0.0, 0)  # so that waiters poll again, and notice a close or a fork
            self._cursor = None
            if self._watch is not None:
                self._watch.close()
                self._watch = None


class TypedErrors:
    """
    The context manager `Readers.typed_errors`. It has no state, so all threads share one.

    Every transaction enters it several times, and a generator would take ten times as long.
    """

    __slots__ = ("_readers",)

    def __init__(self, readers: Readers) -> None:
        self._readers = readers

    def __enter__(self) -> None:
        """Begin: nothing is needed."""

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """Raise jobcore's exception if an error of SQLite has ended the block."""
        if error is not None:
            self._readers.raise_typed(error)


class Holder(Protocol):
    """Keeps a descriptor open. It forgets it before it closes it."""

    held: Held | None


def find_shared_memory(path: str) -> Held | None:
    """
    Return the descriptor of the `-shm` file of a database that is in use.

    SQLite has one for all connections of a process. It stays open as long as any connection
    that has read or written. None: it cannot be told from others.
    """
    found = []
    try:
        facts = os.stat(f"{path}-shm")
        for name in os.listdir("/proc/self/fd"):
            one = int(name), facts.st_dev, facts.st_ino
            if is_open(one):
                found.append(one)
    except OSError:
        return None  # no /proc, or no descriptor is free
    return found[0] if len(found) == 1 else None


def is_open(held: Held) -> bool:
    """Tell whether the descriptor still is that of the file."""
    try:
        facts = os.fstat(held[0])
    except OSError:
        return False
    return (facts.st_dev, facts.st_ino) == held[1:]


class Readers:
    """
    The calls that read an open database file, and what they share.

    Attributes:
        closed: Whether the database was closed, so that no read may begin.
        fork_pending: Whether reads must wait for a fork.
        pid: The process that opened the file.
        renew_by: Monotonic time by which to reopen all connections; 0: there is no need.
        spares: The connections for readers.
        commits: Finds the commits of all processes.
        typed_errors: A context manager that turns errors of SQLite into jobcore's exceptions.
    """

    spares: SpareConnections

    def __init__(self, database: Database) -> None:
        self._database = database
        self.path = database.path
        self._is_lost = False  # descriptors of jobcore or SQLite were closed by others
        #: The descriptors that are closed if other code closes those of SQLite, too.
        self.directories: Holder | None = None
        #: The last connection of the writer. A reference, so that only its `close` closes it.
        self.writer: SqliteConnection | None = None
        self.identity = self._identify()
        self.closed = False
        self.commits = ChangeCounter(database.new_connection)
        self.typed_errors = TypedErrors(self)

    def reset(self, engine: Engine) -> None:
        """Reset all state, at the beginning and in a forked child."""
        self._close_pending = False
        self.fork_pending = False
        self.renew_by = 0.0
        self.writer = None
        self.spares = SpareConnections(engine)
        self.pid = os.getpid()
        self._uses: dict[Use, FrameType] = {}

    # --- which reads may begin, and which run now ----------------------------------

    def enter(self, use: Use, frame: FrameType) -> None:
        """Register a call as soon as reads may begin; `frame` runs for as long as it reads."""
        while True:
            # Register first, then ask. A fork or a close does the reverse: it forbids reads
            # first, then checks the register. So one of the two always sees the other.
            self._uses[use] = frame
            try:
                if self._may_enter():
                    return
            except BaseException:
                self.leave(use)  # not only pop: the last reader may have to finish a close
                raise
            self._uses.pop(use, None)
            time.sleep(READ_PAUSE)

    def leave(self, use: Use) -> None:
        """Remove a call."""
        self._uses.pop(use, None)
        if self._close_pending:
            self.close_after_readers()

    def close_after_readers(self) -> None:
        """Close the connections when the last reader has left, which may be now."""
        self._close_pending = True  # first: the last reader may leave meanwhile
        if not self.present():
            self._close_pending = False
            self._database.close_connections()

    def is_present(self, use: object) -> bool:
        """Tell whether a call is registered."""
        return use in self._uses

    def present(self) -> list[Use]:
        """Return the calls that read now, after removing interrupted ones."""
        found = []
        for use, frame in self._uses.copy().items():
            if is_over(frame):
                self._uses.pop(use, None)
            else:
                found.append(use)
        return found

    def others(self) -> list[Use]:
        """Return the calls of other threads. Waiting for one's own would be a deadlock."""
        me = _thread.get_ident()
        return [use for use in self.present() if use.thread != me]

    def is_inside(self) -> bool:
        """Tell whether the calling thread is in the middle of a read."""
        me = _thread.get_ident()
        return any(use.thread == me for use in self.present())

    def wait(self, patience: float) -> None:
        """Wait until no other thread reads, for at most `patience` seconds."""
        deadline = time.monotonic() + patience
        while self.others() and time.monotonic() < deadline:
            time.sleep(READ_PAUSE)

    def _may_enter(self) -> bool:
        """Tell whether a read may begin now; False: wait for a fork, or for reopening."""
        self.require_usable()
        if self.renew_by and not self.fork_pending:
            self._database.renew()
        return not (self.fork_pending or self.renew_by)

    def require_usable(self) -> None:
        """Raise `StoreError`, or its subclass `DatabaseBusy`, if nothing may begin now."""
        if failpoints.armed:
            failpoints.reach(failpoints.ENTERED, self._database)
        if os.getpid() != self.pid:  # it has copies of the parent's connections
            raise StoreError(
                f"{self.path}: this process was forked without Python's fork hooks, as uWSGI's "
                "workers are: open the database after the fork (uWSGI: `lazy-apps = true`)"
            )
        if self.closed:
            raise StoreError(f"{self.path} is closed")
        if self.fork_pending and GATE.is_forking():
            # A signal handler or another fork hook. The fork waits for it, so it must not wait.
            raise DatabaseBusy(f"{self.path}: this thread is in the middle of a fork")

    # --- the file ------------------------------------------------------------------

    def require_same_file(self) -> None:
        """
        Raise `DatabaseGone` unless the file is still the one that was opened.

        Raises:
            StoreError: Other code has closed descriptors of jobcore or SQLite by their numbers.
        """
        if not self.has_descriptors():
            self._database.abandon_connections()
            raise filesystem.closed_by_others(self.path)
        if self._identify() != self.identity:
            raise DatabaseGone(f"{self.path} was replaced while it was open")

    def has_descriptors(self) -> bool:
        """Tell whether the known descriptors are still open; once False, it stays so."""
        for holder in (self.directories, self.writer):
            held = None if holder is None else holder.held
            # Compare again: it is forgotten before it is closed.
            if holder and held and not is_open(held) and holder.held is held:
                self._is_lost = True
        return not self._is_lost

    def _identify(self) -> tuple[int, int]:
        try:
            facts = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise DatabaseGone(f"{self.path} was removed while it was open") from None
        except OSError as error:
            raise filesystem.typed(self.path, error) from error
        return facts.st_dev, facts.st_ino

    def version(self, within: float = 0.0) -> int:
        """
        Return a number that changes with every commit to the file by any process.

        Args:
            within: Accept a value that another thread read at most this many seconds ago, if
                this process has committed nothing since. 0: poll the file now.
        """
        known = self.commits.known_version(within)
        if known is not None:
            return known
        with Use(self), self.typed_errors:
            self.require_same_file()  # a replaced file would never show another commit
            found = self.commits.look()
        self.tidy()
        return found

    def tidy(self) -> None:
        """Close the connections of interrupted reads."""
        self.present()
        self.spares.tidy(self.is_present)

    def raise_typed(self, error: BaseException | None) -> None:
        """Raise jobcore's exception for an error of SQLite; do nothing for any other."""
        if isinstance(error, (DBAPIError, sqlite3.Error)):
            reason = getattr(error, "orig", None) or error
            found = diagnose(reason, self.path)
            if LOCK_FAILED in str(reason):
                self.renew_by = time.monotonic() + RENEW_PATIENCE
            if type(found) is StoreError and self._is_gone():
                # It was removed after `require_same_file`, so SQLite could not open it.
                raise DatabaseGone(f"{found}: it was removed or replaced meanwhile") from error
            raise found from error
        if isinstance(error, UnicodeDecodeError):
            # Only damage puts invalid UTF-8 into names, texts or SQLite's own messages.
            raise DatabaseCorrupt(
                f"{self.path}: it contains text that is not UTF-8: {error}"
            ) from error

    def _is_gone(self) -> bool:
        """Tell whether the file was removed or replaced; False also if that cannot be checked."""
        try:
            self.require_same_file()
        except DatabaseGone:
            return True
        except StoreError:
            pass
        return False
