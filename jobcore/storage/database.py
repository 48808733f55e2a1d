"""
An open file, its transactions, and how forks, closes and interrupts affect them.

Another SQL engine would need changes here, in what this rests on (`connections`,
`checkpointer`, `change_counter`, `error_mapping`, `schema`) and in `doctor`, nowhere else.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from jobcore.embedding import failpoints, forking, telemetry
from jobcore.errors import (
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseGone,
    NotAJobcoreDatabase,
    SchemaTooNew,
    StoreError,
)
from jobcore.storage import filesystem, permissions, schema
from jobcore.storage.change_counter import LOOK_FIRST, LOOK_LONGEST, Commits
from jobcore.storage.checkpointer import Checkpointer
from jobcore.storage.connections import Spares, SqliteConnection, connect, keep_for_ever, uri_of
from jobcore.storage.error_mapping import LOCK_REMAINS, diagnose, unchangeable
from jobcore.storage.readers import Readers, Reading, Use
from jobcore.storage.statement import driver_of
from jobcore.storage.writer import NOBODY, Observer, Writer

#: Seconds that a fork in the middle of a read of its own thread waits for those of others.
INSIDE = 0.1
#: Seconds that opening all connections anew waits for reads, and for the thread that writes:
#: SQLite tries for ten seconds to begin a read.
RENEW_PATIENCE = 15.0
#: Files, by device and inode, that this process may no longer touch: it was
#: forked while a connection to them was busy. See Database.before_fork.
_UNSAFE: set[tuple[int, int]] = set()


T = TypeVar("T")


class Database:
    """
    An open jobcore database, shared by all threads of a process.

    A thread of its own makes all its write transactions; see `writer`.

    Raises:
        StoreError: One of its kinds says what is wrong with the file.
    """

    _engine: Engine
    _spares: Spares
    _closes_inside: bool

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_timeout: float = 30.0,
        trust_directory: bool = False,
        runs_jobs: bool = True,
    ) -> None:
        if sqlite3.sqlite_version_info < schema.LEAST_SQLITE:
            raise StoreError(f"SQLite {schema.too_old(sqlite3.sqlite_version)}")
        self.busy_timeout = busy_timeout  # seconds
        self.path = os.fspath(path)
        try:
            self.path = permissions.resolve(self.path)  # which needs the current directory
            filesystem.require_local(self.path)
            permissions.require_private_directory(
                os.path.dirname(self.path), trusted=trust_directory
            )
            permissions.require_private_files(self.path)
            permissions.require_single_names(self.path)
            filesystem.require_own_root(self.path)
            filesystem.make_database_file(self.path)
        except OSError as error:
            raise filesystem.typed(self.path, error) from error
        self._identity = self._identify()
        self._closed = False
        self._runs_jobs = runs_jobs
        self.observer = NOBODY
        self.late_events: list[telemetry.Event] = []
        self._writer = Writer(self)
        self._commits = Commits(self._connect)
        self._checkpointer = Checkpointer(self.path, self._connect)
        self._start_afresh()
        forking.GATE.watch(self)
        try:
            with Use(self._readers), self.typed_errors():
                self._prepare()
        except OSError as error:
            # What could not be made, or read, is beside the file: its directories.
            raise filesystem.typed(f"{self.path}.jobs", error) from error

    # --- transactions ---------------------------------------------------------

    def read(self) -> Reading:
        """
        Give a connection in a read transaction: one moment's view, for a short while.

        Raises:
            DatabaseGone: The file is no longer the one that was opened: what a ghost says is old.
        """
        return Reading(self._readers, self._lend, self.typed_errors)

    def _lend(self) -> Spares:
        self.require_same_file()
        return self._spares

    def write(
        self,
        change: Callable[[Connection], T],
        *,
        durable: bool = True,
        patience: float | None = None,
        about: str = "",
    ) -> T:
        """
        Have `change` called with a connection in a write transaction, and return what it returns.

        It is called in the thread that writes, and committed when this returns. What it
        raises rolls it back and is raised here. Changes that several threads hand over
        are committed together. Where a transaction fails as a whole it is begun anew, so
        `change` may be called again: all that it does is to be done through the
        connection, or returned.

        An exception that interrupts the caller, as a Ctrl-C does, withdraws a change
        that has not begun. One that has begun comes to its end; the exception says
        so in a note.

        Args:
            change: Called once or more; it commits nothing itself.
            durable: Survive a power failure once this returns. False, for log lines
                and reports of progress: they survive a crash of every process.
            patience: Seconds to wait for the lock, if less than the busy timeout. They
                count from this call, so waiting for other threads is included.
            about: What it is about, such as a job's id, for that note, and for damage.

        Raises:
            DatabaseBusy: The lock could not be had within that time; or this is called
                in a transaction, as a finaliser may do.
            DatabaseGone: The file is no longer the one that was opened.
            DatabaseCorrupt: What is stored breaks a rule that jobcore's own statements keep.
            SchemaTooNew: A newer jobcore has changed the file meanwhile.
        """
        seconds = self.busy_timeout if patience is None else min(patience, self.busy_timeout)
        self._require_entrance()
        try:
            return self._writer.write(change, durable=durable, patience=seconds, about=about)
        except DatabaseCorrupt as error:
            raise unchangeable(about, error) from error
        finally:
            self._log_late_events()

    @contextmanager
    def savepoint(
        self, connection: Connection, failed: Callable[[Exception], None]
    ) -> Iterator[None]:
        """
        Give one of several jobs in a transaction its own fate.

        What raises inside is rolled back alone, and `failed` is called with it; the others
        go on. An error that ended the whole transaction is raised on.
        """
        driver = driver_of(connection)
        connection.exec_driver_sql("SAVEPOINT one_of_many")
        try:
            yield
        except Exception as error:
            if not driver.in_transaction:
                raise
            connection.exec_driver_sql("ROLLBACK TO one_of_many")
            failed(self._typed(error))
        connection.exec_driver_sql("RELEASE one_of_many")

    def observe(self, observer: Observer) -> None:
        """Show `observer`, from now on, every write transaction that is committed here."""
        self._require_entrance()

        def begin() -> None:
            self.observer = observer

        self._writer.between(begin, patience=self.busy_timeout)

    def look_away(self) -> None:
        """Show them to nobody any more."""
        self.observer = NOBODY

    # --- what the writer asks for ----------------------------------------------

    def open_for_writing(self) -> Connection:
        """Return a new connection for the writer, which begins its transactions itself."""
        return self._engine.connect()

    def open_anew(self) -> None:
        """
        Close every connection where none can write: the next one may be able to.

        What was read-only when it was opened stays so for SQLite, though the disk
        be writable again; and as a process has one view of the shared memory for
        all its connections, all of them have to go. Those in use go a little later.
        """
        self._close_connections()

    def committed(self) -> None:
        """Wake those who wait for commits."""
        self._commits.announce()

    def after_commits(self) -> None:
        """Make a checkpoint if one is due."""
        self._tidy()
        self._checkpoint_if_due()

    def at_rest(self) -> None:
        """Close what the writer could not close in the middle of a transaction."""
        if self._closes_inside:
            self._closes_inside = False
            self._closes_behind = True
            self._left()

    def _log_late_events(self) -> None:
        """Log what the writer had to tell when nobody waited for it."""
        while self.late_events:
            try:
                telemetry.log(self.late_events.pop(0))
            except IndexError:
                return  # another thread has logged it

    # --- whose file it is --------------------------------------------------------

    def require_same_file(self) -> None:
        """Raise `DatabaseGone` unless the file is still the one that was opened."""
        if self._identify() != self._identity:
            raise DatabaseGone(f"{self.path} was replaced while it was open")

    def require_same_schema(self, connection: Connection) -> None:
        """Raise `SchemaTooNew` if a newer jobcore has migrated the file."""
        (version,) = driver_of(connection).execute("PRAGMA user_version").fetchone()
        if version != schema.VERSION:
            raise SchemaTooNew(f"{self.path} was migrated to schema version {version} meanwhile")

    def _identify(self) -> tuple[int, int]:
        try:
            facts = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise DatabaseGone(f"{self.path} was removed while it was open") from None
        except OSError as error:
            raise filesystem.typed(self.path, error) from error
        return facts.st_dev, facts.st_ino

    # --- waiting for commits --------------------------------------------------

    def version(self, within: float = 0.0) -> int:
        """
        Return a number that differs after every commit to the file, of any process.

        Args:
            within: What another thread saw so many seconds ago will do, if this
                process has committed nothing since. 0: look at the file now.
        """
        known = self._commits.known_version(within)
        if known is not None:
            return known
        with Use(self._readers), self.typed_errors():
            self.require_same_file()  # or whoever waits would wait for commits to a ghost
            found = self._commits.look()
        self._tidy()
        return found

    def _tidy(self) -> None:
        """Close what interrupted reads have left open."""
        self._readers.present()
        self._spares.tidy(self._readers.is_present)

    def known_version(self, within: float) -> int | None:
        """Return the version if a thread saw it in the last `within` seconds; it never waits."""
        return self._commits.known_version(within)

    def wait_for_change(self, seen: int, timeout: float, pause: float = LOOK_FIRST) -> int:
        """
        Wait until the version is no longer `seen`, at most `timeout` seconds, and return it.

        A commit of this process wakes at once; one of another process is seen
        within `LOOK_LONGEST`. No table is touched.

        Args:
            pause: Seconds until the first look for others' commits; the next ones come
                at growing distance. Who has waited for long begins with `LOOK_LONGEST`.
        """
        deadline = time.monotonic() + timeout
        while True:
            count = self._commits.count
            now = self.version(LOOK_FIRST)
            remaining = deadline - time.monotonic()
            if now != seen or remaining <= 0:
                return now
            self._commits.wait(count, min(pause, remaining))
            pause = min(pause * 2, LOOK_LONGEST)

    # --- checkpoints ----------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        if self._checkpointer.is_due():
            try:
                self._run_checkpointer()
            except (StoreError, OSError) as error:
                # The commit before it stands; the next one tries again.
                telemetry.event(
                    logging.WARNING, "checkpoint failed", path=self.path, error=str(error)
                )

    def checkpoint(self) -> bool:
        """Move the write-ahead log into the database; False: somebody else does, or reads."""
        self._require_entrance()
        return self._writer.between(self._run_checkpointer, patience=self.busy_timeout)

    def _run_checkpointer(self) -> bool:
        with self.typed_errors():
            return self._checkpointer.run()

    # --- opening, closing, forking --------------------------------------------

    def close(self) -> None:
        """
        Close every connection, after the transactions under way. Again is harmless.

        One that this thread is in the middle of, as a signal handler may call this, comes
        to its end first, and what is open is closed then.
        """
        self._closed = True
        if self._writer.is_inside():
            self._closes_inside = True  # a finaliser, in the middle of a transaction: `at_rest`
            self._writer.close_soon()
            return
        self._writer.close(self.busy_timeout + 5.0)
        self._readers.wait(self.busy_timeout + 5.0)
        if self._readers.present():
            self._closes_behind = True
            self._left()  # the last one may have left just before
        else:
            self._close_connections()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _close_connections(self) -> None:
        self._commits.close()
        self._writer.close_connection()
        self._spares.close()
        # Those in use are closed when they are given back.
        self._spares = Spares(self._engine)
        if not self._readers.present():
            for connection in list(self._opened):
                connection.abandon()  # lent to somebody whom a Ctrl-C kept from giving it back

    def _start_afresh(self) -> None:
        self._readers = Readers(self._may_enter, self._left)
        self._closes_behind = False  # the last reader to leave closes the connections
        self._closes_inside = False  # `close` was called in the middle of a transaction
        self._fork_pending = False
        self._renew_by = 0.0  # when to open all connections anew, by the monotonic clock; 0: never
        self._pid = os.getpid()
        self._writer.forget()
        self._opened: weakref.WeakSet[SqliteConnection] = weakref.WeakSet()
        self._engine = self._make_engine()
        self._spares = Spares(self._engine)

    def _make_engine(self) -> Engine:
        from jobcore.storage import dialect  # noqa: PLC0415 - loaded with the first connection, not at import

        return dialect.make_engine(
            partial(_connect_for, weakref.ref(self)),
            json_serializer=_write_json,
            json_deserializer=_read_json,
        )

    def _connect(self) -> SqliteConnection:
        if self._identity in _UNSAFE:
            raise StoreError(
                f"{self.path}: this process was forked in the middle of a transaction; "
                "open the database in a process of its own"
            )
        self.require_same_file()
        try:
            permissions.require_private_files(self.path)
        except OSError as error:
            raise filesystem.typed(self.path, error) from error
        return connect(self.path, self.busy_timeout, self._opened)

    def _prepare(self) -> None:
        schema.check(self.path, self._look())
        connection = self._connect()
        try:
            schema.open_or_make(connection, self.path, self.busy_timeout, runs_jobs=self._runs_jobs)
            permissions.make_private(self.path)  # not before it is accepted
        finally:
            connection.close()

    def _look(self) -> tuple[int, int, int]:
        """
        Return whose file it is.

        Another program's file stays as it is, and so does what is beside it: even a
        read-only connection makes files beside a database that has a write-ahead log.
        """
        if os.stat(self.path).st_size == 1:  # for SQLite such a file is as empty as one of 0 bytes
            raise NotAJobcoreDatabase(f"{self.path}: file is not a database")
        try:
            # As an immutable file: SQLite looks at it alone, and takes no lock.
            identity = self._look_as("ro&immutable=1")
        except sqlite3.DatabaseError:
            pass  # no database; or a checkpoint is writing to it just now
        else:
            schema.check(self.path, identity)
            if not permissions.has_side_files(self.path):
                return identity  # else they may say more, such as all of a new schema
            if not any(identity):
                schema.check_log(self.path)
        try:
            return self._look_as("ro")
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
        # The process that began to make this file was killed, and left a journal. Taking a
        # transaction back needs to write; SQLite does it in any connection that may.
        return self._look_as("rw")

    def _look_as(self, mode: str) -> tuple[int, int, int]:
        look = sqlite3.connect(uri_of(self.path, mode), uri=True, timeout=self.busy_timeout)
        try:
            identity = schema.read_identity(look)
            if "immutable" in mode:
                schema.refuse_half_restored(look, self.path, identity)
            return identity
        finally:
            look.close()

    def _require_entrance(self) -> None:
        """Raise unless a write may be handed over now."""
        failpoints.reach(failpoints.ENTERED, self)
        self._require_own_process()
        if self._fork_pending and forking.GATE.is_forking():
            raise DatabaseBusy(f"{self.path}: this thread is in the middle of a fork")
        if self._closed:
            raise StoreError(f"{self.path} is closed")

    def is_of_this_process(self) -> bool:
        """Tell whether this process opened it; a child that C code has forked did not."""
        return os.getpid() == self._pid

    def _require_own_process(self) -> None:
        """Raise in a child that C code has forked: it has copies of SQLite's connections."""
        if not self.is_of_this_process():
            raise StoreError(
                f"{self.path}: this process was forked without Python's fork hooks, as uWSGI's "
                "workers are: open the database after the fork (uWSGI: `lazy-apps = true`)"
            )

    def _may_enter(self) -> bool:
        """Tell whether a call may begin to read; False: a fork is under way."""
        failpoints.reach(failpoints.ENTERED, self)
        self._require_own_process()
        if self._closed:
            raise StoreError(f"{self.path} is closed")
        if self._fork_pending and forking.GATE.is_forking():
            # A signal handler, or another hook: the fork waits for it, not it for the fork.
            raise DatabaseBusy(f"{self.path}: this thread is in the middle of a fork")
        if self._renew_by and not self._fork_pending:
            self._renew()
        return not (self._fork_pending or self._renew_by)

    def _renew(self) -> None:
        """
        Open every connection anew as soon as no other thread reads: SQLite could not begin a read.

        If another process keeps the lock, this changes nothing. If this process does, because
        the system refused to unlock it, SQLite forgets it with the last connection.
        """
        if self._readers.others() and time.monotonic() < self._renew_by:
            return
        try:
            self._writer.between(self.open_anew, patience=RENEW_PATIENCE)
        except StoreError as error:  # it is tried again when another read fails
            telemetry.event(
                logging.INFO, "connections not renewed", path=self.path, error=str(error)
            )
        finally:
            self._renew_by = 0.0

    def _left(self) -> None:
        if self._closes_behind and not self._readers.present():
            self._closes_behind = False
            self._close_connections()

    def before_fork(self) -> None:
        """
        Close every connection, waiting for the transactions under way.

        A child that opens connections of its own is not enough. SQLite keeps a
        table of its locks per process, by inode, and the child inherits it: its
        new connections believe they hold locks that only the parent has. When
        the parent then closes its last connection, it deletes the write-ahead
        log under the child, and what the child commits afterwards is lost. With
        no connection open at the moment of the fork that table is empty.
        """
        self._fork_pending = True
        patience = self.busy_timeout + 5.0
        rests = self._writer.park(patience)
        # A signal handler may fork in the middle of a read of this thread. Then this does not
        # come to rest anyway, and the others may wait for what that read holds.
        self._readers.wait(INSIDE if self._readers.is_inside() else patience)
        if rests and not self._readers.present():
            self._close_connections()

    def after_fork_in_parent(self) -> None:
        """Let transactions begin again; connections are made as they are needed."""
        self._fork_pending = False
        if not self._closed:
            self._writer.resume()

    def after_fork_in_child(self) -> None:
        """Begin with nothing of the parent's; what could not be closed is kept for ever."""
        left_open = [connection for connection in self._opened if connection.is_open]
        if left_open:
            _UNSAFE.add(self._identity)
            keep_for_ever(left_open)
        self._commits.start_afresh()
        self._start_afresh()

    # --- errors ---------------------------------------------------------------

    def _typed(self, error: Exception) -> Exception:
        """Return what stands for an error inside a transaction that goes on."""
        try:
            with self.typed_errors():
                raise error
        except Exception as typed:  # noqa: BLE001 - it is returned
            return typed

    @contextmanager
    def typed_errors(self) -> Iterator[None]:
        """Turn what SQLite raises into errors of jobcore."""
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            reason = getattr(error, "orig", None) or error
            found = diagnose(reason, self.path)
            if LOCK_REMAINS in str(reason):
                self._renew_by = time.monotonic() + RENEW_PATIENCE
            if type(found) is StoreError and self._is_gone():
                # Just behind the look at it: SQLite cannot open it, or not what is beside it.
                raise DatabaseGone(f"{found}: it was removed or replaced meanwhile") from error
            raise found from error
        except UnicodeDecodeError as error:
            # Only damage puts bytes that are no text into names, texts or SQLite's own messages.
            raise DatabaseCorrupt(f"{self.path}: text in it is no UTF-8: {error}") from error

    def _is_gone(self) -> bool:
        """Tell whether the file was removed or replaced; False where that cannot be checked."""
        try:
            self.require_same_file()
        except DatabaseGone:
            return True
        except StoreError:
            pass
        return False


def _connect_for(reference: weakref.ref[Database]) -> SqliteConnection:
    """
    Return a new connection of a database that the engine does not keep alive.

    SQLAlchemy has a global reference to the pool of each connection that is in use: a
    database that is dropped would stay open with it.
    """
    database = reference()
    if database is None:
        raise StoreError("the database was dropped")
    return database._connect()  # noqa: SLF001 - a part of it


def _write_json(value: Any) -> str | bytes:
    """
    Return what is stored of a JSON value.

    Of a number alone the bytes: a column of the type JSON has SQLite's numeric affinity,
    which would make 1 of the text `1.0`, and a float of one beyond 64 bits.
    """
    text = json.dumps(value)
    return text.encode("ascii") if isinstance(value, int | float) else text


def _read_json(stored: str | bytes) -> Any:
    """Return the value of a stored JSON text; jobcore writes nothing that is not valid JSON."""
    try:
        return json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise DatabaseCorrupt(f"a stored JSON value is not valid: {error}") from error
