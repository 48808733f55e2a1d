"""
An open database file: its transactions, and how forks, closes and interrupts affect them.

Supporting another SQL engine would need changes only here, in the modules that this one
uses (`reading`, `connections`, `checkpointer`, `error_mapping`, `schema`) and in
`doctor`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

from sqlalchemy import Connection, Engine, text

from jobcore.embedding import locks, telemetry
from jobcore.errors import (
    DatabaseCorrupt,
    NotAJobcoreDatabase,
    SchemaTooNew,
    StoreError,
)
from jobcore.storage import filesystem, permissions, schema
from jobcore.storage.checkpointer import Checkpointer
from jobcore.storage.connections import SqliteConnection, connect, keep_forever, uri_of
from jobcore.storage.damage import unchangeable
from jobcore.storage.reading import (
    Holder,
    Readers,
    Reading,
    SpareConnections,
    Use,
    find_shared_memory,
)
from jobcore.storage.statement import Statement, driver_of
from jobcore.storage.writer import NO_OBSERVER, Observer, Writer
from jobcore.tuning import FORK_IN_READ_PATIENCE, LOOK_FIRST, LOOK_LONGEST, RENEW_PATIENCE

#: Files, by device and inode, that this process must not touch any more, because it was
#: forked while a connection to them was busy. See `Database.before_fork`.
_UNSAFE: set[tuple[int, int]] = set()


T = TypeVar("T")

_VERSION = Statement(text("PRAGMA user_version"))
_SAVEPOINT, _ROLL_BACK, _RELEASE = (
    Statement(text(f"{step} one_of_many")) for step in ("SAVEPOINT", "ROLLBACK TO", "RELEASE")
)


class Database(locks.ForkAware):
    """
    An open jobcore database, shared by all threads of a process.

    A dedicated thread runs all write transactions; see `writer`.

    Args:
        path: The path of the file.
        busy_timeout: Seconds to wait for locks of other processes.
        trust_directory: Accept a directory in which other users can create files.
        runs_jobs: Refuse a file that has running jobs while its job directories are missing.
        create: Make a missing or empty file a database. If false, refuse it unchanged.

    Raises:
        StoreError: The file cannot be used. A subclass names the reason.
    """

    _engine: Engine
    _close_pending: bool

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_timeout: float = 30.0,
        trust_directory: bool = False,
        runs_jobs: bool = True,
        create: bool = True,
    ) -> None:
        if sqlite3.sqlite_version_info < schema.LEAST_SQLITE:
            raise StoreError(f"SQLite {schema.too_old(sqlite3.sqlite_version)}")
        self.busy_timeout = busy_timeout  # seconds
        self.path = os.fspath(path)
        try:
            self.path = permissions.resolve(self.path)  # may raise OSError: no current directory
            filesystem.require_local(self.path)
            permissions.require_private_directory(
                os.path.dirname(self.path), trusted=trust_directory
            )
            permissions.require_private_files(self.path)
            permissions.require_single_names(self.path)
            # The root may be missing, but must not be a link or another user's.
            with suppress(FileNotFoundError):
                os.close(filesystem.open_root(self.path, create=False))
            if create:
                filesystem.make_database_file(self.path)
            elif not os.path.lexists(self.path):
                raise NotAJobcoreDatabase(f"there is no database {self.path}")
        except OSError as error:
            raise filesystem.typed(self.path, error) from error
        self.readers = Readers(self)
        self.typed_errors = self.readers.typed_errors
        self.require_same_file = self.readers.require_same_file
        self.version = self.readers.version
        self.known_version = self.readers.commits.known_version
        self.committed = self.readers.commits.announce
        self._runs_jobs = runs_jobs
        self.observer = NO_OBSERVER
        self.late_events: list[telemetry.Event] = []
        self.writer = Writer(self)
        self.checkpointer = Checkpointer(self.path, self.new_connection)
        self._reset()
        locks.GATE.watch(self)
        try:
            with Use(self.readers), self.typed_errors:
                self._prepare(create=create)
        except OSError as error:
            # An OSError here is about the job directories, beside the file.
            raise filesystem.typed(f"{self.path}.jobs", error) from error

    # --- transactions ---------------------------------------------------------

    def read(self) -> Reading:
        """
        Return a context manager that gives a connection in a read transaction.

        All its reads see one snapshot. Keep it short: an open read transaction delays
        checkpoints.

        Raises:
            DatabaseGone: The file was removed or replaced, so its content would be stale.
        """
        return Reading(self.readers)

    def write(
        self,
        change: Callable[[Connection], T],
        *,
        durable: bool = True,
        patience: float | None = None,
        about: str = "",
    ) -> T:
        """
        Call `change` with a connection in a write transaction, and return its result.

        The writer's thread calls it. When this method returns, the change is committed. An
        exception in `change` rolls it back and is raised here. Changes that several threads
        hand over are committed together. If such a transaction fails as a whole, the changes
        are repeated. So `change` may be called more than once, and its only effects must be
        writes through the connection and its return value.

        An exception that interrupts the caller, such as KeyboardInterrupt, withdraws a
        change that has not begun. A change that has begun is completed; a note on the
        exception says so.

        Args:
            change: Called once or more. It must not commit.
            durable: Whether the change survives a power failure once this returns. Use False
                for log lines and progress reports: they survive a crash of every process.
            patience: Seconds to wait for the lock, at most the busy timeout. They count from
                this call, so they include waiting for other threads.
            about: The subject of the change, such as a job's id, for the note and for errors
                about damage.

        Raises:
            DatabaseBusy: The lock was not available within that time; or the call comes
                from inside a transaction, as from a finaliser.
            DatabaseGone: The file was removed or replaced.
            DatabaseCorrupt: Stored content violates a constraint that jobcore always keeps.
            SchemaTooNew: A newer jobcore has migrated the file since it was opened.
        """
        seconds = self.busy_timeout if patience is None else min(patience, self.busy_timeout)
        self.readers.require_usable()
        try:
            return self.writer.write(change, durable=durable, patience=seconds, about=about)
        except DatabaseCorrupt as error:
            raise unchangeable(about, error) from error
        finally:
            if self.late_events:
                self._log_late_events()

    def savepoint(
        self, connection: Connection, failed: list[tuple[T, Exception]], what: T
    ) -> Savepoint[T]:
        """
        Run a part of a transaction in a savepoint, so that it can fail alone.

        An exception inside rolls back this part only, and is appended to `failed` with `what`.
        An error that has ended the whole transaction is re-raised.
        """
        return Savepoint(self, connection, failed, what)

    def copy_into(self, path: str) -> None:
        """Write a complete and compact copy into an empty file, while others read and write."""
        self.readers.require_usable()
        with Use(self.readers), self.typed_errors:
            connection = self.new_connection()  # VACUUM works in no transaction
            try:
                connection.execute("VACUUM INTO ?", (path,))
            finally:
                connection.close()

    def guard(self, directories: Holder) -> None:
        """
        Before each use of the file, check that `directories` still has its descriptor.

        Other code of this process that has closed it by its number, such as `os.closerange` in
        a daemon's start, has closed SQLite's descriptors, too. SQLite would then wait for locks
        that it can never get.
        """
        self.readers.directories = directories

    def observe(self, observer: Observer) -> None:
        """Let `observer` see every write transaction of this database from now on."""
        self.readers.require_usable()

        def begin() -> None:
            self.observer = observer

        self.writer.between(begin, patience=self.busy_timeout)

    def stop_observing(self) -> None:
        """Remove the observer."""
        self.observer = NO_OBSERVER

    # --- called by the writer ---------------------------------------------------

    def open_for_writing(self) -> Connection:
        """Return a new connection for the writer, which begins its transactions itself."""
        return self._engine.connect()

    def note_writer(self, connection: Connection) -> None:
        """Find SQLite's shared memory, which stays open as long as the writer's connection."""
        driver = driver_of(connection)
        if isinstance(driver, SqliteConnection):
            driver.held = find_shared_memory(self.path)
            self.readers.writer = driver

    def after_commits(self) -> None:
        """Close connections of interrupted reads, and run a checkpoint if one is due."""
        self.readers.tidy()
        self._checkpoint_if_due()

    def on_idle(self) -> None:
        """Finish a `close` that was called in the middle of a transaction."""
        if self._close_pending:
            self._close_pending = False
            self.readers.close_after_readers()

    def _log_late_events(self) -> None:
        """Log the events of the writer that belong to no caller."""
        while self.late_events:
            try:
                telemetry.log(self.late_events.pop(0))
            except IndexError:
                return  # another thread took the last one

    # --- whose file it is --------------------------------------------------------

    def require_same_schema(self, connection: Connection) -> None:
        """Raise `SchemaTooNew` if a newer jobcore has migrated the file."""
        ((version,),) = _VERSION(connection)
        if version != schema.VERSION:
            raise SchemaTooNew(f"{self.path} was migrated to schema version {version} meanwhile")

    # --- waiting for commits --------------------------------------------------

    def wait_for_change(self, seen: int, timeout: float, pause: float = LOOK_FIRST) -> int:
        """
        Wait until the version differs from `seen`, for at most `timeout` seconds; return it.

        A commit of this process wakes it at once. A commit of another process is seen within
        `pause` or `LOOK_LONGEST` seconds, whichever is longer. It reads no table.

        Args:
            pause: Seconds until the first poll for commits of other processes. Later pauses
                grow up to `LOOK_LONGEST`. A caller that has waited long passes that value, or a
                longer one if the commits of this process are enough for it.
        """
        deadline = time.monotonic() + timeout
        while True:
            count = self.readers.commits.count
            now = self.version(LOOK_FIRST)
            remaining = deadline - time.monotonic()
            if now != seen or remaining <= 0:
                return now
            self.readers.commits.wait(count, min(pause, remaining))
            pause = min(pause * 2, LOOK_LONGEST)

    # --- checkpoints ----------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        if self.checkpointer.is_due():
            try:
                self._run_checkpointer()
            except (StoreError, OSError) as error:
                # The commit itself succeeded. A later one tries the checkpoint again.
                telemetry.event(
                    logging.WARNING, "checkpoint failed", path=self.path, error=str(error)
                )

    def checkpoint(self) -> bool:
        """Run a checkpoint; False: another process runs one, or a reader was in the way."""
        self.readers.require_usable()
        return self.writer.between(self._run_checkpointer, patience=self.busy_timeout)

    def _run_checkpointer(self) -> bool:
        with self.typed_errors:
            return self.checkpointer.run()

    # --- opening, closing, forking --------------------------------------------

    def close(self) -> None:
        """
        Close every connection after the transactions in progress. Idempotent.

        If the calling thread is itself in a read or a transaction (a signal handler or a
        finaliser may call this), the connections are closed when that has ended.
        """
        self.readers.closed = True
        reason = f"{self.path} is closed"
        if self.writer.worker.is_inside():
            self._close_pending = True  # a finaliser inside a transaction; `on_idle` finishes this
            self.writer.worker.close_without_waiting(reason)
            return
        self.writer.worker.close(reason, self.busy_timeout + 5.0)
        self.readers.wait(self.busy_timeout + 5.0)
        if self.readers.present():
            self.readers.close_after_readers()
        else:
            self.close_connections()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.readers.closed

    def abandon_connections(self) -> None:
        """
        Never close the connections that are open now: their descriptors may be other files'.

        SQLite would close these, and copy the write-ahead log into one of them.
        """
        opened = [connection for connection in self._opened if not connection.is_abandoned]
        for connection in opened:
            connection.is_abandoned = True
        keep_forever(opened)

    def close_connections(self) -> None:
        """Close every connection; those in use are closed when they are given back."""
        if not self.readers.has_descriptors():
            self.abandon_connections()
        self.readers.commits.close()
        self.writer.close_connection()
        self.readers.spares.close()
        # Connections in use are closed when they are given back.
        self.readers.spares = SpareConnections(self._engine)
        if not self.readers.present():
            for connection in list(self._opened):
                connection.close()  # an interrupted reader did not give it back

    def _reset(self) -> None:
        self._close_pending = False  # `close` was called in the middle of a transaction
        self.writer.forget()
        self._opened: weakref.WeakSet[SqliteConnection] = weakref.WeakSet()
        self._engine = self._make_engine()
        self.readers.reset(self._engine)

    def _make_engine(self) -> Engine:
        from jobcore.storage import dialect  # noqa: PLC0415 - loaded with the first connection, not at import

        return dialect.make_engine(partial(_connect_for, weakref.ref(self)))

    def new_connection(self) -> SqliteConnection:
        """Return a new connection of the driver, which the caller closes."""
        if self.readers.identity in _UNSAFE:
            raise StoreError(
                f"{self.path}: this process was forked in the middle of a transaction; "
                "open the database in another process"
            )
        self.require_same_file()
        try:
            permissions.require_private_files(self.path)
        except OSError as error:
            raise filesystem.typed(self.path, error) from error
        return connect(self.path, self.busy_timeout, self._opened)

    def _prepare(self, *, create: bool) -> None:
        identity = self._look()
        schema.check(self.path, identity)
        if identity == schema.EMPTY and not create:
            raise NotAJobcoreDatabase(f"{self.path} is empty: it holds no database yet")
        connection = self.new_connection()
        try:
            schema.open_or_make(connection, self.path, self.busy_timeout, runs_jobs=self._runs_jobs)
            permissions.make_private(self.path)  # not before it is accepted
        finally:
            connection.close()

    def _look(self) -> tuple[int, int, int]:
        """
        Return the file's identity, as `schema.read_identity` does.

        It leaves another program's file, and the files beside it, unchanged. This needs
        care, because even a read-only connection creates files beside a database in WAL mode.
        """
        if os.stat(self.path).st_size == 1:  # SQLite treats it as empty, like one of 0 bytes
            raise NotAJobcoreDatabase(f"{self.path}: file is not a database")
        try:
            # As immutable: SQLite reads only the file itself, and takes no lock.
            identity = self._look_as("ro&immutable=1")
        except sqlite3.DatabaseError:
            pass  # not a database, or a checkpoint is writing to it right now
        else:
            schema.check(self.path, identity)
            if not permissions.has_side_files(self.path):
                return identity  # with side files it may be incomplete: read it normally
            if not any(identity):
                schema.check_log(self.path)
        try:
            return self._look_as("ro")
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
        # The process that created this file was killed and left a journal. Rolling back the
        # journal needs write access; SQLite does it on opening a writable connection.
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

    def is_of_this_process(self) -> bool:
        """Tell whether this process opened the database, and not a parent that C code forked."""
        return os.getpid() == self.readers.pid

    def renew(self) -> None:
        """
        Reopen every connection once no other thread reads, after SQLite could not begin a read.

        A lock was in its way. If another process holds the lock, this changes nothing. If
        this process holds it, because the system refused to unlock it, SQLite drops the lock
        with the last connection.
        """
        if self.readers.others() and time.monotonic() < self.readers.renew_by:
            return
        try:
            self.writer.between(self.close_connections, patience=RENEW_PATIENCE)
        except StoreError as error:  # the next read that fails tries again
            telemetry.event(
                logging.INFO, "connections not renewed", path=self.path, error=str(error)
            )
        finally:
            self.readers.renew_by = 0.0

    def before_fork(self) -> None:
        """
        Close every connection, after the transactions in progress.

        It is not enough that the child opens new connections. SQLite keeps a table of its
        locks per process, by inode, and the child inherits it. So the child's connections
        believe that they hold locks that only the parent has. When the parent then closes
        its last connection, it deletes the write-ahead log that the child uses, and later
        commits of the child are lost. If no connection is open during the fork, the table
        is empty.
        """
        self.readers.fork_pending = True
        patience = self.busy_timeout + 5.0
        rests = self.writer.worker.suspend(patience)
        # A signal handler may fork in the middle of a read of this thread. That read cannot
        # end before the fork, and other reads may wait for what it holds: so do not wait long.
        self.readers.wait(FORK_IN_READ_PATIENCE if self.readers.is_inside() else patience)
        if rests and not self.readers.present():
            self.close_connections()

    def after_fork_in_parent(self) -> None:
        """Allow transactions again. Connections are opened when needed."""
        self.readers.fork_pending = False
        if not self.readers.closed:
            self.writer.worker.resume()

    def after_fork_in_child(self) -> None:
        """Reset all state. Connections that the parent could not close are leaked, not closed."""
        left_open = [connection for connection in self._opened if connection.is_open]
        if left_open:
            _UNSAFE.add(self.readers.identity)
            keep_forever(left_open)
        self.readers.commits.reset()
        self._reset()

    # --- errors ---------------------------------------------------------------

    def as_typed(self, error: Exception) -> Exception:
        """Return jobcore's exception for an error, without raising it."""
        try:
            with self.typed_errors:
                raise error
        except Exception as typed:  # noqa: BLE001 - it is returned
            return typed


class Savepoint(Generic[T]):
    """The context manager of `Database.savepoint`."""

    __slots__ = ("_connection", "_database", "_failed", "_what")

    def __init__(
        self,
        database: Database,
        connection: Connection,
        failed: list[tuple[T, Exception]],
        what: T,
    ) -> None:
        self._database = database
        self._connection = connection
        self._failed = failed
        self._what = what

    def __enter__(self) -> None:
        """Begin the savepoint. SQLAlchemy would take ten times as long."""
        _SAVEPOINT(self._connection)

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> bool:
        """Release it; roll it back first if the block has failed, and suppress the exception."""
        if error is not None:
            if not (isinstance(error, Exception) and driver_of(self._connection).in_transaction):
                return False
            _ROLL_BACK(self._connection)
            self._failed.append((self._what, self._database.as_typed(error)))
        _RELEASE(self._connection)
        return True


def _connect_for(reference: weakref.ref[Database]) -> SqliteConnection:
    """
    Return a new connection of a database, which is only weakly referenced.

    SQLAlchemy keeps a global reference to the pool of each connection in use. With a strong
    reference, a database that its owner dropped would stay open.
    """
    database = reference()
    if database is None:
        raise StoreError("the database was dropped")
    return database.new_connection()
