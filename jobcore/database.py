"""
Database: the one place for connections, pragmas, transactions, checkpoints and forks.

Another SQL engine would need changes here, in `schema` and in `doctor`, nowhere else.
"""

# ruff: noqa: SLF001 - a use is part of its database

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Engine, RootTransaction, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from jobcore import filesystem, forking, interrupts, schema, telemetry
from jobcore.errors import (
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseFull,
    DatabaseGone,
    JobcoreError,
    NotAJobcoreDatabase,
    ReadOnlyDatabase,
    SchemaTooNew,
    StoreError,
)
from jobcore.observation import NOBODY, Observation, Observer
from jobcore.supervision import failpoints, jobdir

#: Each pragma of a connection, with its reason.
PRAGMAS = (
    "PRAGMA foreign_keys = ON",  # deleting a job takes its log and history along
    "PRAGMA synchronous = FULL",  # a state that was acknowledged survives a power failure
    # No automatic checkpoints: they run in PASSIVE mode, the one that SQLite before
    # 3.51.3 can lose commits in (the WAL-reset bug). See Database.checkpoint.
    "PRAGMA wal_autocheckpoint = 0",
    "PRAGMA mmap_size = 0",  # reported to make that bug's damage worse
    "PRAGMA journal_size_limit = 16777216",  # one huge transaction does not keep its room for ever
    "PRAGMA temp_store = MEMORY",  # no files outside the database's directory
    "PRAGMA trusted_schema = OFF",  # the schema of a file is data, not a program
)

#: Bytes of write-ahead log from which a checkpoint is worth its fsyncs.
CHECKPOINT_BYTES = 4 * 2**20
#: Seconds between two tries at a checkpoint.
CHECKPOINT_PAUSE = 1.0
#: Milliseconds that a checkpoint waits for a reader: with 3 s, one open reader
#: blocked a writer for 2.8 s.
CHECKPOINT_PATIENCE = 100

#: Connections that are kept for the next reader; more are made when more threads read at once.
SPARES = 8

#: Seconds between two looks for commits of other processes: the first and the longest.
LOOK_FIRST, LOOK_LONGEST = 0.005, 0.05

#: Behind this the driver quotes what it has read, which may be a secret.
_NO_TEXT = "Could not decode to UTF-8"

_BY_MESSAGE: tuple[tuple[str, type[StoreError]], ...] = (
    # By text, because Python 3.10 does not tell the code.
    ("is locked", DatabaseBusy),
    ("disk is full", DatabaseFull),
    ("SQLITE_IOERR_SHMSIZE", DatabaseFull),  # no room for the memory that connections share
    ("malformed", DatabaseCorrupt),
    # All that our statements name is there, and nothing that a migration makes, by the
    # version that the file says it has.
    ("no such ", DatabaseCorrupt),
    ("has no column", DatabaseCorrupt),
    ("constraint failed", DatabaseCorrupt),  # what our statements keep, other rows do not
    ("unsupported file format", DatabaseCorrupt),
    ("duplicate column", DatabaseCorrupt),
    ("already exists", DatabaseCorrupt),
    (_NO_TEXT, DatabaseCorrupt),
    ("not a database", NotAJobcoreDatabase),
    ("readonly database", ReadOnlyDatabase),
)

#: Errors of which it is known what they ended. Behind another one, a Ctrl-C say,
#: a statement may be half done, and its connection is not used any more.
EXPECTED = (JobcoreError, DBAPIError, sqlite3.Error)

#: Files, by device and inode, that this process may no longer touch: it was
#: forked while a connection to them was busy. See Database.before_fork.
_UNSAFE: set[tuple[int, int]] = set()


class _SqliteConnection(sqlite3.Connection):
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


class _Spares(Pool):
    """
    Connections that nobody uses now.

    SQLAlchemy's own pools wait for each other in a `Condition`, whose `with` a Ctrl-C
    leaves locked: every other thread would then wait for ever. A deque needs no lock.
    """

    #: Where SQLAlchemy's pools log each use of a connection, which nobody gets unasked. By
    #: the name of this class a host that logs from DEBUG up would have that of each look.
    _sqla_logger_namespace = "sqlalchemy.pool"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._spare: deque[ConnectionPoolEntry] = deque()
        self._disposed = False

    def status(self) -> str:
        return f"{len(self._spare)} spare connections"

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self._spare.pop()
        except IndexError:
            return self._create_connection()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._disposed or len(self._spare) >= SPARES:
            record.close()
        else:
            self._spare.append(record)

    def dispose(self) -> None:
        self._disposed = True
        while self._spare:
            try:
                self._spare.pop().close()
            except IndexError:
                return  # another thread took it

    def recreate(self) -> _Spares:
        return type(self)(
            self._creator,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )


class _Use:
    """
    The presence of one thread inside a database; no fork and no close comes meanwhile.

    No use is a generator: one that a Ctrl-C left behind would go on to its end when
    the host drops the exception, in the middle of whatever is done then.
    """

    __slots__ = ("connection", "database", "thread", "transaction")

    def __init__(self, database: Database) -> None:
        self.database = database
        self.thread = threading.get_ident()
        self.connection: Connection | None = None
        self.transaction: RootTransaction | None = None

    @property
    def is_mine(self) -> bool:
        """Whether it is the calling thread's: who waits for that would wait for himself."""
        return self.thread == threading.get_ident()

    def __enter__(self) -> Any:
        self.database._come_in(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.database._go_out(self)


class _Reading(_Use):
    """A read transaction."""

    def __enter__(self) -> Connection:
        database = self.database
        database._come_in(self)
        try:
            with database._typed_errors():
                database._require_same_file()
                self.connection = connection = database._engine.connect()
                # Not left to the first statement: some go to the driver directly.
                self.transaction = connection.begin()
        except BaseException:
            database._give_up(self)
            raise
        return connection

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.connection is not None and self.transaction is not None:
                with self.database._typed_errors():
                    if error is not None and not isinstance(error, EXPECTED):
                        raise error
                    with self.connection, self.transaction:
                        if error is not None:
                            raise error
        except BaseException:
            self.database._give_up(self)
            raise
        self.database._go_out(self)


class _Writing(_Use):
    """A write transaction, and the write lock of this process."""

    __slots__ = ("_durable", "_observer", "_patience")

    def __init__(self, database: Database, durable: bool, patience: float) -> None:
        super().__init__(database)
        self._durable = durable
        self._patience = patience
        self._observer = NOBODY

    def __enter__(self) -> Connection:
        database = self.database
        database._refuse_within_another()
        database._come_in(self)
        try:
            database._wait_for_turn(self._patience)
            with database._anew_if_read_only(), database._typed_errors():
                connection = database._writer_connection()
                database._require_same_file()
                # Before BEGIN: inside a transaction SQLite ignores the first of them.
                database._set_on_writer("synchronous", "FULL" if self._durable else "NORMAL")
                database._set_on_writer("busy_timeout", str(round(self._patience * 1000)))
                self.transaction = connection.begin()
                failpoints.reach(failpoints.WRITE_BEGUN, database)
                database._require_same_schema(connection)
                self._observer = database._observation.begin()
                self._observer.begun(connection)
                self.connection = connection
        except BaseException:
            database._give_up(self)
            raise
        return connection

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        database = self.database
        try:
            if self.connection is not None and self.transaction is not None:
                with database._anew_if_read_only(), database._typed_errors():
                    if error is not None and not isinstance(error, EXPECTED):
                        raise error
                    with self.transaction:
                        if error is not None:
                            raise error
                        self._observer.ending(self.connection)
                    # Before the next writer is let in: in the order of the commits.
                    database._observation.end()
                    self._observer.committed()
        except BaseException:
            database._give_up(self)
            raise
        interrupts.release(database._writer_lock)
        database._go_out(self)
        database._announce()
        database._checkpoint_if_due()


class Database:
    """
    An open jobcore database, shared by all threads of a process.

    Write transactions of one process queue on a lock of this object: SQLite's
    busy handler sleeps and is unfair, it is for other processes.

    Raises:
        StoreError: One of its kinds says what is wrong with the file.
    """

    _writer: Connection | None
    _watch: _SqliteConnection | None
    _engine: Engine
    _settings: dict[str, str]  # pragmas of the writer that change from one use to the next
    _next_checkpoint: float  # by the monotonic clock

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout: float = 30.0) -> None:
        if sqlite3.sqlite_version_info < schema.LEAST_SQLITE:
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: 3.37 is needed")
        self.path = os.path.realpath(os.fspath(path))
        self.busy_timeout = busy_timeout  # seconds
        try:
            filesystem.require_local(self.path)
            filesystem.make_database_file(self.path)
        except OSError as error:
            raise filesystem.typed(self.path, error) from error
        self._identity = self._identify()
        self._closed = False
        self._version = 0
        self._observation = Observation()
        self._start_afresh()
        forking.GATE.watch(self)
        interrupts.watch(self)
        try:
            with self._in_use(), self._typed_errors():
                self._prepare()
        except OSError as error:
            # What could not be made, or read, is beside the file: its directories.
            raise filesystem.typed(f"{self.path}.jobs", error) from error

    # --- transactions ---------------------------------------------------------

    def read(self) -> _Reading:
        """
        Give a connection in a read transaction: one moment's view, for a short while.

        Raises:
            DatabaseGone: The file is no longer the one that was opened: what a ghost says is old.
        """
        return _Reading(self)

    def write(self, *, durable: bool = True, patience: float | None = None) -> _Writing:
        """
        Give a connection in a write transaction; commit at the end, roll back on any error.

        Args:
            durable: Survive a power failure once this returns. False, for log
                lines alone: they survive a crash of every process.
            patience: Seconds to wait for the lock, if less than the busy timeout.

        Raises:
            DatabaseBusy: The lock could not be had within that time.
            DatabaseGone: The file is no longer the one that was opened.
            SchemaTooNew: A newer jobcore has changed the file meanwhile.
        """
        seconds = self.busy_timeout if patience is None else min(patience, self.busy_timeout)
        return _Writing(self, durable, seconds)

    @contextmanager
    def savepoint(self, connection: Connection, of: object) -> Iterator[None]:
        """
        Give one of several jobs in a transaction its own fate.

        What raises inside is rolled back alone and logged; the others go on.
        An error that ended the whole transaction is raised on.
        """
        driver = self._driver(connection)
        connection.exec_driver_sql("SAVEPOINT one_of_many")
        try:
            yield
        except Exception as error:
            if not driver.in_transaction:
                raise
            connection.exec_driver_sql("ROLLBACK TO one_of_many")
            telemetry.event(logging.ERROR, "rolled back alone", job=str(of), error=repr(error))
        connection.exec_driver_sql("RELEASE one_of_many")

    def observe(self, observer: Observer) -> None:
        """Show `observer`, from now on, every write transaction that is committed here."""
        with self._in_use():
            self._observation.observe(observer, self.busy_timeout)

    def look_away(self) -> None:
        """Show them to nobody any more."""
        self._observation.observe(NOBODY, 0)

    @contextmanager
    def _anew_if_read_only(self) -> Iterator[None]:
        """
        Close every connection where none can write: the next one may be able to.

        What was read-only when it was opened stays so for SQLite, though the disk
        be writable again; and as a process has one view of the shared memory for
        all its connections, all of them have to go. Those in use go a little later.
        """
        try:
            yield
        except ReadOnlyDatabase:
            with self._watch_lock:
                self._close_connections()
            raise

    def _writer_connection(self) -> Connection:
        if self._writer is None:
            self._writer = self._engine.connect().execution_options(jobcore_write=True)
            self._settings = {}
        return self._writer

    def _refuse_within_another(self) -> None:
        """
        Refuse a thread that is in a transaction already: it would wait for itself.

        A signal handler or a finaliser may come in the middle of one. It is refused
        before there is anything to give up: that one is to go on behind it, whole.
        """
        if interrupts.is_owner(self._writer_lock):
            raise DatabaseBusy(f"{self.path}: this thread is in a transaction")

    def _wait_for_turn(self, patience: float) -> None:
        """Take the write lock."""
        if not self._writer_lock.acquire(timeout=patience):
            raise DatabaseBusy(f"{self.path}: another thread kept writing")

    def _set_on_writer(self, pragma: str, value: str) -> None:
        if self._writer is not None and self._settings.get(pragma) != value:
            self._settings.pop(pragma, None)  # unknown, if a Ctrl-C comes now
            self._driver(self._writer).execute(f"PRAGMA {pragma} = {value}")
            self._settings[pragma] = value

    # --- what was not ended -----------------------------------------------------

    def _give_up(self, use: _Use) -> None:
        """
        End a use whose transaction has failed; again is harmless.

        A Ctrl-C between the driver's BEGIN and SQLAlchemy's noting it leaves a
        transaction that nobody has ended: it would keep every other process from
        writing. Its connection is closed, which takes it back whatever is known of it.
        """
        if isinstance(use, _Writing):
            self._give_up_writing(use.transaction)
        elif use.connection is not None:
            _throw_away(use.connection)
        self._go_out(use)

    def _give_up_writing(self, transaction: RootTransaction | None = None) -> None:
        if not interrupts.is_owner(self._writer_lock):
            return
        writer = self._writer
        if writer is not None and (
            writer.closed
            or writer.invalidated
            or (transaction is not None and transaction.is_active)
            or self._driver(writer).in_transaction
        ):
            self._writer = None
            _throw_away(writer)
        self._observation.end()
        interrupts.release(self._writer_lock)

    def let_go(self) -> None:
        """End what this thread was in the middle of; the commits of before stand."""
        if interrupts.is_owner(self._writer_lock):
            writer, self._writer = self._writer, None
            if writer is not None:
                _throw_away(writer)
            self._give_up_writing()
            self._announce()  # it may have been committed
        for use in [use for use in list(self._users) if use.is_mine]:
            self._give_up(use)

    def _require_same_file(self) -> None:
        if self._identify() != self._identity:
            raise DatabaseGone(f"{self.path} was replaced while it was open")

    def _require_same_schema(self, connection: Connection) -> None:
        (version,) = self._driver(connection).execute("PRAGMA user_version").fetchone()
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
        known = self.known_version(within)
        return self._look_for_commits() if known is None else known

    def known_version(self, within: float) -> int | None:
        """
        Return the version that a thread saw in the last `within` seconds; None: nobody did.

        It takes no lock and touches no file, so an event loop may call it, and
        a hundred waiters cost one look.
        """
        looked, version = self._looked
        fresh = looked > self._announced and time.monotonic() - looked < within
        return version if fresh else None

    def _look_for_commits(self) -> int:
        with self._in_use(), self._watch_lock, self._typed_errors():
            self._require_same_file()  # or whoever waits would wait for commits to a ghost
            now = time.monotonic()  # before the look: a commit just behind it makes it old
            fresh = self._watch is None
            if self._watch is None:
                self._watch = self._connect()
            (number,) = self._watch.execute("PRAGMA data_version").fetchone()
            if fresh:
                # Each connection counts from anew. Behind a fork nobody knows whether
                # there were commits, so the number is one that was never returned.
                self._version_base = self._version + 1 - number
            self._version = self._version_base + number
            self._looked = now, self._version
            return self._version

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
            commits = self._commits
            now = self.version(LOOK_FIRST)
            remaining = deadline - time.monotonic()
            if now != seen or remaining <= 0:
                return now
            with self._committed:
                if self._commits == commits:  # or the one to wake us came just before
                    self._committed.wait(min(pause, remaining))
            pause = min(pause * 2, LOOK_LONGEST)

    def _announce(self) -> None:
        with self._committed:
            self._announced = time.monotonic()
            self._commits += 1
            self._committed.notify_all()

    # --- checkpoints ----------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        now = time.monotonic()
        if now < self._next_checkpoint:
            return
        self._next_checkpoint = now + CHECKPOINT_PAUSE
        try:
            if os.stat(self.path + "-wal").st_size < CHECKPOINT_BYTES:
                return
        except OSError:
            return  # it is not there; or whatever it is, the commit stands
        try:
            self.checkpoint()
        except (StoreError, OSError) as error:
            # The commit before it stands; the next one tries again.
            telemetry.event(logging.WARNING, "checkpoint failed", path=self.path, error=str(error))

    def checkpoint(self) -> bool:
        """
        Move the write-ahead log into the database; False: somebody else does, or a reader is in.

        SQLite 3.7.0 to 3.51.2 can lose commits when one checkpoint follows
        another while a third connection resets the log. So there is one
        checkpointer at a time over all processes (an OFD lock in the root), and
        the mode is TRUNCATE, which takes the writer's lock before it reads the
        log's header. It may still fall back to PASSIVE when a writer is busy;
        with one checkpointer at a time there is no second one to race with.
        """
        # No generator, which a Ctrl-C might leave behind with the lock.
        with self._in_use():
            root = filesystem.open_root(self.path, create=False)
            try:
                lock = jobdir.make_file("checkpoint", os.O_RDWR, root)
            finally:
                os.close(root)
            try:
                # Belongs to this open file, as an OFD lock does, so threads exclude each other too.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                busy, pages = self._truncate_log()
            except BlockingIOError:
                return False
            finally:
                os.close(lock)
        if busy:
            telemetry.event(logging.INFO, "checkpoint starved", path=self.path, wal_pages=pages)
        return not busy

    def _truncate_log(self) -> tuple[int, int]:
        """Return whether somebody was in its way, and how many pages the log had."""
        with self._typed_errors():
            connection = self._connect()
            try:
                connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_PATIENCE}")
                done = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.close()
        return done[0], done[1]

    # --- opening, closing, forking --------------------------------------------

    def close(self) -> None:
        """
        Close every connection, after the transactions under way. Again is harmless.

        One that this thread is in the middle of, as a signal handler may call this, comes
        to its end first, and what is open is closed then.
        """
        with self._doorway:
            self._closed = True
            self._wait_for_users()
            self._closes_behind = any(use.is_mine for use in self._users)
            if self._closes_behind:
                return
        self._close_connections()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _wait_for_users(self) -> None:
        """Wait, in the doorway, until nobody else is inside, as long as a transaction may take."""
        # One that waits for the lock, and then works.
        deadline = time.monotonic() + self.busy_timeout + 5.0
        while not all(use.is_mine for use in self._users):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._doorway.wait(left)

    def _close_connections(self) -> None:
        self._looked = (0.0, 0)  # who waits is to hear of a close, and of a fork
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._engine.dispose()
        if not self._users:
            for connection in list(self._opened):
                connection.abandon()  # lent to somebody whom a Ctrl-C kept from giving it back

    def _start_afresh(self) -> None:
        self._writer_lock = threading.RLock()  # not of `interrupts`: see `let_go`
        self._watch_lock = interrupts.lock()
        self._committed = threading.Condition(interrupts.lock())
        self._commits = 0  # of this process
        self._announced = 0.0  # when the last of them was, by the monotonic clock
        self._looked = (0.0, 0)  # when a thread looked for commits, and the version it saw
        self._doorway = threading.Condition(interrupts.lock())
        self._users: set[_Use] = set()
        self._closes_behind = False  # the last one to go out closes the connections
        self._fork_pending = False
        self._writer = None
        self._watch = None
        self._version_base = 0
        self._settings = {}
        self._next_checkpoint = 0.0
        self._opened: weakref.WeakSet[_SqliteConnection] = weakref.WeakSet()
        self._engine = self._make_engine()

    def _make_engine(self) -> Engine:
        engine = create_engine(
            "sqlite+pysqlite://",
            creator=self._connect,
            poolclass=_Spares,
            # Commands and their environments are parameters: they belong into no
            # error's text and into no log of statements.
            hide_parameters=True,
            json_deserializer=_read_json,
        )

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            # The driver would begin DEFERRED; a reader that turns writer then fails
            # at once with SQLITE_BUSY_SNAPSHOT, without any busy timeout.
            immediate = connection.get_execution_options().get("jobcore_write", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

        return engine

    def _connect(self) -> _SqliteConnection:
        if self._identity in _UNSAFE:
            raise StoreError(
                f"{self.path}: this process was forked in the middle of a transaction; "
                "open the database in a process of its own"
            )
        self._require_same_file()
        connection = sqlite3.connect(
            uri_of(self.path, "rw"),  # never `rwc`: a file that was removed is not made again
            uri=True,
            timeout=self.busy_timeout,
            isolation_level=None,  # we say BEGIN ourselves
            check_same_thread=False,  # the pool lends it to one thread at a time
            factory=_SqliteConnection,
            cached_statements=256,
        )
        self._opened.add(connection)
        try:
            for pragma in PRAGMAS:
                connection.execute(pragma)
        except BaseException:
            connection.close()  # it refers to itself: it would be open until the collector comes
            raise
        return connection

    def _prepare(self) -> None:
        schema.check(self.path, self._look())
        connection = self._connect()
        try:
            schema.open_or_make(connection, self.path, self.busy_timeout)
        finally:
            connection.close()

    def _look(self) -> tuple[int, int, int]:
        """Return whose file it is, before anything that is not SQLite's own may be written."""
        # Read-only at first: another program's file must not change by a byte.
        try:
            return self._look_as("ro")
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
        # Whoever began to make this file was killed, and left a journal. Taking a
        # transaction back needs to write; SQLite does it for whoever opens the file.
        return self._look_as("rw")

    def _look_as(self, mode: str) -> tuple[int, int, int]:
        look = sqlite3.connect(uri_of(self.path, mode), uri=True, timeout=self.busy_timeout)
        try:
            return schema.read_identity(look)
        finally:
            look.close()

    def _in_use(self) -> _Use:
        return _Use(self)

    def _come_in(self, use: _Use) -> None:
        failpoints.reach(failpoints.ENTERED, self)
        with self._doorway:
            while self._fork_pending:
                if forking.GATE.is_forking():
                    # A signal handler, or another hook: the fork waits for it, not it for the fork.
                    raise DatabaseBusy(f"{self.path}: this thread is in the middle of a fork")
                self._doorway.wait()
            if self._closed:
                raise StoreError(f"{self.path} is closed")
            self._users.add(use)

    def _go_out(self, use: _Use) -> None:
        with self._doorway:
            self._users.discard(use)
            self._doorway.notify_all()
            last = self._closes_behind and not self._users
        if last:
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
        with self._doorway:
            self._fork_pending = True
            self._wait_for_users()
            if not self._users:
                self._close_connections()

    def after_fork_in_parent(self) -> None:
        """Let transactions begin again; connections are made as they are needed."""
        with self._doorway:
            self._fork_pending = False
            self._doorway.notify_all()

    def after_fork_in_child(self) -> None:
        """Begin with nothing of the parent's; what could not be closed is kept for ever."""
        self._observation.forget()
        left_open = [connection for connection in self._opened if connection.is_open]
        if left_open:
            _UNSAFE.add(self._identity)
            _keep_for_ever(left_open)
        self._start_afresh()

    # --- errors ---------------------------------------------------------------

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # a rule of the schema said no: for the statement's author to read
        except (DBAPIError, sqlite3.Error) as error:
            raise self._typed(getattr(error, "orig", None) or error) from error
        except UnicodeDecodeError as error:
            # Only damage puts bytes that are no text into names, texts or SQLite's own messages.
            raise DatabaseCorrupt(f"{self.path}: text in it is no UTF-8: {error}") from error

    def _typed(self, error: BaseException) -> StoreError:
        before, found, _ = str(error).partition(_NO_TEXT)
        message = before + found
        # Since Python 3.11. It says which of many things "disk I/O error" stands for.
        name = str(getattr(error, "sqlite_errorname", ""))
        if name.startswith("SQLITE_IOERR_"):
            message += f" ({name})"
        if "unable to open" in message and not os.access(os.path.dirname(self.path), os.W_OK):
            # Even to read, SQLite needs a log and shared memory: there are none to be made.
            return ReadOnlyDatabase(f"{self.path}: {message}, and its directory is read-only")
        kind = next((kind for part, kind in _BY_MESSAGE if part in message), None)
        if kind is None and self._is_gone():
            # Just behind the look at it: SQLite cannot open it, or not what is beside it.
            return DatabaseGone(f"{self.path} was removed or replaced while it was open: {message}")
        return (kind or StoreError)(f"{self.path}: {message}")

    def _is_gone(self) -> bool:
        try:
            self._require_same_file()
        except DatabaseGone:
            return True
        except StoreError:
            pass  # whatever keeps us from looking
        return False

    @staticmethod
    def _driver(connection: Connection) -> Any:
        return connection.connection.driver_connection


def uri_of(path: str, mode: str) -> str:
    """Return the URI under which SQLite opens the file, for `rw`, or for reading with `ro`."""
    # `?` and `#` would end the path, `%` escapes. The empty authority is for a
    # path that begins with two slashes.
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file://{quoted}?mode={mode}"


def _read_json(text: str) -> Any:
    """Return the value of a stored JSON text: what is none was never written."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # TypeError: a number, which is JSON, too
        raise DatabaseCorrupt(f"a JSON value in the file is none: {error}") from error


def _throw_away(connection: Connection) -> None:
    """Close a connection of which nothing is certain any more; SQLite rolls back what it was in."""
    driver: Any = None
    if not (connection.closed or connection.invalidated):
        driver = connection.connection.driver_connection
    try:
        if not connection.closed:
            connection.invalidate()
            connection.close()
    except Exception as error:  # noqa: BLE001 - what it believes of itself may be anything
        telemetry.event(logging.DEBUG, "connection dropped", error=repr(error))
    finally:
        if driver is not None:
            driver.abandon()


def _keep_for_ever(connections: Sequence[sqlite3.Connection]) -> None:
    """Add one more reference than anybody gives back: not even a finaliser may close them here."""
    import ctypes  # noqa: PLC0415 - needed here alone, and slow to load

    for connection in connections:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
