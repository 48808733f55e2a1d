"""
The writer: the only thread of an open database that writes, and its transactions.

Changes that several threads hand over at about the same time are committed together. If
one fails, they are repeated with a savepoint each, so that it is rolled back alone. The
thread never sleeps in SQLite's busy handler. While another process has the write lock it
retries, and each caller's timeout expires independently.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from jobcore.embedding import failpoints, telemetry
from jobcore.embedding.worker import Call, Worker, outcome_unknown
from jobcore.errors import DatabaseBusy, ReadOnlyDatabase, StoreError
from jobcore.storage.reading import discard, end, is_at_rest
from jobcore.storage.statement import driver_of

if TYPE_CHECKING:
    from jobcore.storage.database import Database

#: Maximum number of changes committed together, which bounds how long the next ones wait.
TOGETHER = 128
#: Seconds between two attempts to get the write lock: the first and the longest pause.
TRY_FIRST, TRY_LONGEST = 0.0005, 0.005
#: After holding the lock, the writer leaves it free for this fraction of the time it held it,
#: so that other processes get it.
REST_PART = 0.25
#: Shortest and longest rest, in seconds. Shorter rests do not pay: a sleep costs 0.1 ms, and
#: another process that retries every few milliseconds would miss the gap.
REST_LEAST, REST_MOST = 0.002, 0.01
#: After a transaction of this many changes, the writer expects as many again, and waits for them
#: up to this many seconds. Otherwise the first caller to come back gets a commit of its own, in
#: which the others wait.
MANY, COME_BACK = 3, 0.001
T = TypeVar("T")


class Observer:
    """
    Observes the write transactions, in order, one at a time. This base class does nothing.

    The writer's thread calls it, so it must not raise or block.
    """

    def begun(self, connection: Connection) -> None:
        """Handle a transaction that has begun, before anything is written."""

    def ending(self, connection: Connection) -> None:
        """Handle the end of a transaction: everything is written, the commit comes next."""

    def committed(self) -> None:
        """Handle a successful commit. Never called for a transaction that was rolled back."""

    @property
    def in_doubt(self) -> bool:
        """Whether `ending` was called, and the outcome of the commit is not known yet."""
        return False

    def interrupted(self, connection: Connection) -> None:
        """After a commit that raised: find out whether it succeeded, and if so act on it."""


NO_OBSERVER = Observer()


class _OutcomeUnknown(Exception):
    """The commit of a transaction was interrupted, and its outcome is unknown."""


class Change(Call[T]):
    """A call that the writer makes in a write transaction."""

    __slots__ = ("durable",)

    durable: bool


class Writer:
    """Writes to one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.worker = Worker("jobcore-writer", self._serve, self._at_end)
        self._forget()

    def _forget(self) -> None:
        self.connection: Connection | None = None
        self._is_noted = False  # whether the database knows that the connection has begun
        self._settings: dict[str, str] = {}  # pragmas that may change between transactions
        self._observer: Observer = NO_OBSERVER
        self.taken: list[Call[Any]] = []  # from the queue, for the current round
        self._pause_due = 0.0  # seconds of rest that are due
        self._together = 0  # changes in the last transaction
        self._ended = 0.0  # monotonic time at which the last transaction ended

    # --- for callers ------------------------------------------------------------------

    def write(
        self, change: Callable[[Connection], T], *, durable: bool, patience: float, about: str = ""
    ) -> T:
        """Call `change` in a write transaction and return its result; see `Database.write`."""
        self._refuse_inside()
        call = Change(change, patience, about)
        call.durable = durable
        return self.worker.hand_over(call)

    def between(self, action: Callable[[], T], *, patience: float) -> T:
        """Call `action` in the writer's thread between two transactions; return its result."""
        self._refuse_inside()
        return self.worker.hand_over(Call(action, patience))

    def _refuse_inside(self) -> None:
        """Refuse a call from inside a transaction, which would be a deadlock."""
        if self.worker.is_inside():
            raise DatabaseBusy(f"{self._database.path}: this thread is in a transaction")

    def forget(self) -> None:
        """Reset all state in a forked child."""
        self.worker.forget()
        self._forget()

    def close_connection(self) -> None:
        """Close the connection. Call it while the thread is parked, or in the thread itself."""
        connection = self.connection
        if connection is not None:
            discard(connection)
            self.connection = None  # last, so that an interrupted call can be repeated

    # --- the thread -------------------------------------------------------------------

    def _at_end(self) -> None:
        if self.worker.suspended:
            self.close_connection()

    def _serve(self, first: Call[Any]) -> None:
        """Make and commit the changes that are waiting now."""
        self.taken = [first]
        with telemetry.Collected(self._database.late_events):
            try:
                self._waiting(0)
                self._expect_callers()
                changes = self._sorted(list(self.taken))
                if changes:
                    self._commit(changes)
            except BaseException as error:  # noqa: BLE001 - injected into this thread from outside
                self._take_back(error)
                self.worker.fail_all(self.taken, error)
            self.taken = []
            self._database.on_idle()

    def _expect_callers(self) -> None:
        """Wait a moment for callers whose last changes were committed together."""
        until = time.monotonic() + COME_BACK
        while MANY <= self._together > len(self.taken):
            if not self._waiting(until - time.monotonic()):
                return

    def _sorted(self, calls: list[Call[Any]]) -> list[Change[Any]]:
        """Return the calls that are changes, and make the other calls at once."""
        changes = []
        for call in calls:
            if isinstance(call, Change):
                changes.append(call)
            elif call.begin():
                try:
                    call.make()
                except BaseException as error:  # noqa: BLE001 - for the caller
                    call.fail(error)
                else:
                    call.answer()
        return changes

    def _waiting(self, seconds: float) -> list[Call[Any]]:
        """Return the waiting calls; wait up to `seconds` for the first one."""
        calls: list[Call[Any]] = []
        while len(calls) < TOGETHER:
            call = self.worker.take(0 if calls else seconds)
            if call is None:
                break
            self.taken.append(call)
            calls.append(call)
        return calls

    def _commit(self, changes: list[Change[Any]], *, alone: bool = False) -> None:
        """
        Make and commit changes in one transaction, and wake their callers.

        Args:
            alone: Take no further changes into the transaction, because an attempt has failed.
        """
        begun = self._begin(changes)
        if not begun:
            return
        if not alone and any(change.durable for change in begun):
            begun += self._latecomers(TOGETHER - len(begun))
        taken = time.monotonic()
        if len(begun) == 1:
            self._make_alone(begun[0])
        elif not self._make_together(begun):
            for change in begun:
                if not change.done:
                    self._commit([change], alone=True)
            return
        self._together = len(begun)
        self._ended = time.monotonic()
        self._pause_due = min(self._pause_due + (self._ended - taken) * REST_PART, REST_MOST)
        self._database.after_commits()

    def _begin(self, changes: list[Change[Any]]) -> list[Change[Any]]:
        """
        Begin a transaction and return the changes whose callers still wait.

        The list is empty if every caller has timed out, or the transaction cannot begin.
        """
        self._rest()
        pause = TRY_FIRST
        while changes := [change for change in changes if not change.is_withdrawn]:
            try:
                self._try_to_begin(durable=any(change.durable for change in changes))
            except DatabaseBusy as error:
                changes = _refuse_late(changes, error)
            except BaseException as error:  # noqa: BLE001 - for the callers
                self._fail_to_begin(changes, error)
                return []
            else:
                begun = [change for change in changes if change.begin()]
                if not begun:
                    self._end()
                return begun
            if self.worker.suspended:
                for change in changes:
                    self.taken.remove(change)
                    self.worker.give_back(change)
                return []
            changes += self._sorted(self._waiting(pause))
            pause = min(pause * 2, TRY_LONGEST)
        return []

    def _latecomers(self, most: int) -> list[Change[Any]]:
        """
        Return the changes that came during the rest and the begin of a durable transaction.

        One commit for all of them costs less than one for each half of the callers in turn.
        """
        found: list[Change[Any]] = []
        while len(found) < most and (call := self.worker.take(0)) is not None:
            if not isinstance(call, Change):
                self.worker.give_back(call)  # it is made between two transactions
                break
            self.taken.append(call)
            if call.begin():
                found.append(call)
        return found

    def _rest(self) -> None:
        """Leave the lock free for other processes, less the time it has been free already."""
        self._pause_due = max(self._pause_due - (time.monotonic() - self._ended), 0.0)
        if self._pause_due >= REST_LEAST:
            time.sleep(self._pause_due)
            self._pause_due = 0.0

    def _fail_to_begin(self, changes: list[Change[Any]], error: BaseException) -> None:
        """Fail a single change; retry several changes one by one, so that each gets its error."""
        if len(changes) > 1:
            for change in changes:
                self._commit([change], alone=True)
        elif changes[0].begin():
            changes[0].fail(error)

    def _try_to_begin(self, *, durable: bool) -> None:
        database = self._database
        try:
            with database.typed_errors:
                database.require_same_file()
                if self.connection is not None and not is_at_rest(self.connection):
                    self.close_connection()  # an earlier rollback was interrupted from outside
                if self.connection is None:
                    self.connection = database.open_for_writing()
                    self._is_noted = False
                    self._settings = {}
                connection = self.connection
                # Before BEGIN, because SQLite ignores `synchronous` inside a transaction.
                self._set("synchronous", "FULL" if durable else "NORMAL")
                self._set("busy_timeout", "0")
                # Not through SQLAlchemy, which would treat a refusal as a broken connection.
                connection.cursor.execute("BEGIN IMMEDIATE")  # type: ignore[attr-defined]  # of `dialect`
                if not self._is_noted:
                    database.note_writer(connection)
                    self._is_noted = True
                if failpoints.armed:
                    failpoints.reach(failpoints.WRITE_BEGUN, database)
                database.require_same_schema(connection)
                self._observer = database.observer
                self._observer.begun(connection)
        except BaseException as error:
            self._take_back(error)
            raise

    def _set(self, pragma: str, value: str) -> None:
        if self._settings.get(pragma) != value:
            driver_of(self._required).execute(f"PRAGMA {pragma} = {value}")
            self._settings[pragma] = value

    @property
    def _required(self) -> Connection:
        if self.connection is None:
            raise StoreError(f"{self._database.path}: the connection was closed in a transaction")
        return self.connection

    def _make_alone(self, change: Change[Any]) -> None:
        """Make one change in the open transaction, and commit."""
        try:
            with self._database.typed_errors:
                change.make(self._required)
            self._end()
        except _OutcomeUnknown as error:
            self._take_back(error)
            change.fail(StoreError(str(error)))
        except BaseException as error:  # noqa: BLE001 - for the caller
            self._take_back(error)
            change.fail(error)
        else:
            change.answer()

    def _make_together(self, changes: list[Change[Any]]) -> bool:
        """
        Make several changes and commit. If one fails, repeat them, each in a savepoint.

        Returns:
            Whether every change has an outcome. False: the whole transaction was rolled
            back, and the changes without an outcome must be made again.
        """
        made: list[Change[Any]] = []
        failed: list[tuple[Change[Any], Exception]] = []
        try:
            self._make_each(changes, made, failed)
            self._end()
        except _OutcomeUnknown as error:
            self._take_back(error)
            for change in made:
                change.fail(StoreError(str(error)))
        except BaseException as error:  # noqa: BLE001 - its caller gets it, the others are repeated
            self._take_back(error)
            return False
        else:
            for change in made:
                change.answer()
        for change, reason in failed:
            change.fail(reason)
        return True

    def _make_all(self, changes: list[Change[Any]]) -> bool:
        """Make changes without savepoints, which cost more than some changes; False: one failed."""
        for change in changes:
            try:
                with self._database.typed_errors:
                    change.make(self._required)
            except BaseException as error:
                if isinstance(error, Exception) and driver_of(self._required).in_transaction:
                    return False
                change.fail(error)
                raise
        return True

    def _make_each(
        self,
        changes: list[Change[Any]],
        made: list[Change[Any]],
        failed: list[tuple[Change[Any], Exception]],
    ) -> None:
        driver = driver_of(self._required)
        driver.execute("SAVEPOINT all_changes")
        if self._make_all(changes):
            made += changes
            return
        driver.execute("ROLLBACK TO all_changes")
        for change in changes:
            driver.execute("SAVEPOINT one_change")
            try:
                with self._database.typed_errors:
                    change.make(self._required)
            except Exception as error:
                if not driver.in_transaction:
                    change.fail(error)
                    raise
                driver.execute("ROLLBACK TO one_change")
                failed.append((change, error))
            except BaseException as error:
                change.fail(error)
                raise
            else:
                made.append(change)
            driver.execute("RELEASE one_change")

    def _end(self) -> None:
        """Commit. Errors after the commit are only logged, because the changes are stored."""
        with self._database.typed_errors:
            connection = self._required
            if not connection.driver.in_transaction:  # type: ignore[attr-defined]  # of `dialect`
                # SQLite does that after some errors. A change that goes on after one is not stored.
                raise StoreError(f"{self._database.path}: the transaction was rolled back")
            self._observer.ending(connection)
            try:
                end(connection, commit=True)
            except (DBAPIError, sqlite3.Error):
                raise  # SQLite refused: nothing was committed
            except BaseException as error:
                # Injected into this thread from outside, before or after the commit.
                path = self._database.path
                raise _OutcomeUnknown(outcome_unknown(path, repr(error))) from error
        for _ in range(2):  # repeat it once if an exception from outside interrupts it
            try:
                self._observer.committed()
                break
            except BaseException as error:  # noqa: BLE001 - the change itself has succeeded
                telemetry.event(logging.ERROR, "events missed", error=repr(error))
        self._database.committed()

    def _take_back(self, error: BaseException) -> None:
        """Roll back, and keep the connection only if its state is certain."""
        try:
            if self.connection is not None and isinstance(error, Exception):
                end(self.connection, commit=False)
                if driver_of(self.connection).in_transaction:
                    self.close_connection()
            else:
                self.close_connection()
        except Exception as failure:  # noqa: BLE001 - the caller raises the first error
            telemetry.event(logging.DEBUG, "connection dropped", error=repr(failure))
            self.close_connection()
        if isinstance(error, ReadOnlyDatabase):
            # SQLite keeps treating a connection as read-only if its file was read-only on opening,
            # even if the disk has become writable. All connections of a process share one view of
            # the shared memory, so all must be closed. A new one may be able to write.
            self._database.close_connections()
        if self._observer.in_doubt:
            self._look_for_commit(self._observer)

    def _look_for_commit(self, observer: Observer) -> None:
        """Let the observer check whether a commit that raised was still stored."""
        try:
            connection = self._database.open_for_writing()
            try:
                observer.interrupted(connection)
            finally:
                discard(connection)
        except (StoreError, DBAPIError, sqlite3.Error) as error:
            telemetry.event(logging.ERROR, "events missed", error=repr(error))


def _refuse_late(changes: list[Change[Any]], error: DatabaseBusy) -> list[Change[Any]]:
    """Fail changes whose callers have timed out with `DatabaseBusy`; return the others."""
    for change in changes:
        if change.is_late and change.begin():
            change.fail(DatabaseBusy(*error.args))
    return [change for change in changes if not change.done]
