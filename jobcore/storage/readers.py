"""
The reads in progress, and what interrupted ones have left open.

Reads run in the thread that asks, on a connection that any exception throws away.
Each enters itself in a register with the frame of its caller, by one operation of
a dictionary. So no lock can be left behind, and a read that could not take itself
out is recognised: its caller's frame is no longer executed.
"""

from __future__ import annotations

import _thread
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType, TracebackType

from sqlalchemy import Connection, RootTransaction
from sqlalchemy.exc import DBAPIError, StatementError

from jobcore.embedding.interrupts import is_over
from jobcore.errors import JobcoreError, StoreError
from jobcore.storage.connections import Slot, Spares

#: Errors that leave a connection as it was. After another one, a Ctrl-C say, a
#: statement may be half done.
EXPECTED = (JobcoreError, DBAPIError)
#: Seconds between two looks whether reads may begin, or all have ended.
PAUSE = 0.001


class Use:
    """The presence of one call inside a database; no fork and no close comes meanwhile."""

    __slots__ = ("_readers", "thread")

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self.thread = _thread.get_ident()

    def __enter__(self) -> None:
        """Enter the call that has the `with` statement."""
        self._readers.enter(self, sys._getframe(1))  # noqa: SLF001 - the call that is to be over

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it out."""
        self._readers.leave(self)


class Reading:
    """
    A read transaction.

    Args:
        readers: Where it is entered.
        lend: Returns where its connection comes from, once the file is known to be there.
        typed: Turns what SQLite raises into errors of jobcore.
    """

    __slots__ = ("_lend", "_readers", "_slot", "_spares", "_transaction", "_typed", "_use")

    def __init__(
        self,
        readers: Readers,
        lend: Callable[[], Spares],
        typed: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._readers = readers
        self._lend = lend
        self._typed = typed
        self._use = Use(readers)
        self._spares: Spares | None = None
        self._slot: Slot | None = None
        self._transaction: RootTransaction | None = None

    def __enter__(self) -> Connection:
        """Begin the transaction."""
        before = sys.exc_info()[1]
        self._readers.enter(self._use, sys._getframe(1))  # noqa: SLF001 - as above
        try:
            with self._typed():
                self._spares = self._lend()
                self._slot = self._spares.lend(self._use)
                connection = self._slot.connection
                if connection is None:
                    raise StoreError("the connection was closed while it was being lent")
                # Not left to the first statement: some go to the driver directly.
                self._transaction = connection.begin()
        except BaseException as failure:  # noqa: BLE001 - it is raised as it came
            self._give_up()
            raise _first(failure, before)  # noqa: B904 - as it came
        return connection

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it; its connection is kept only if nothing unexpected has happened."""
        before = sys.exc_info()[1]
        try:
            with self._typed():
                self._end(error)
        except BaseException as failure:
            self._give_up()
            if failure is error:
                raise
            raise _first(failure, before)  # noqa: B904 - it is raised as it came
        self._readers.leave(self._use)

    def _end(self, error: BaseException | None) -> None:
        transaction = self._transaction
        if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
            raise error.orig or error  # a signal handler's, which SQLAlchemy has wrapped
        if error is not None and not isinstance(error, EXPECTED):
            raise error
        if self._slot is None or transaction is None or self._spares is None:
            return
        if transaction.is_active:
            transaction.rollback() if error is not None else transaction.commit()
        self._spares.take_back(self._slot)
        if error is not None:
            self._readers.leave(self._use)
            raise error

    def _give_up(self) -> None:
        if self._slot is not None and self._readers.is_present(self._use):
            self._slot.drop()
        self._readers.leave(self._use)


def _first(failure: BaseException, before: BaseException | None) -> BaseException:
    """
    Return what has interrupted SQLAlchemy, whose `finally` may raise AssertionError instead.

    `before` is what was being handled when the call began: it has interrupted nothing here.
    """
    interruption = failure.__context__
    if not isinstance(failure, AssertionError) or interruption is None or interruption is before:
        return failure
    return interruption


class Readers:
    """
    The register.

    Args:
        may_enter: Tells whether a read may begin; raises what ends the waiting for that.
        left: Called when a call has left.
    """

    def __init__(self, may_enter: Callable[[], bool], left: Callable[[], None]) -> None:
        self._may_enter = may_enter
        self._left = left
        self._uses: dict[Use, FrameType] = {}

    def enter(self, use: Use, frame: FrameType) -> None:
        """Enter a call as soon as reads may begin; `frame` is executed as long as it reads."""
        while True:
            # Entered first, then asked: a fork or a close forbids reads first, then looks here.
            self._uses[use] = frame
            try:
                if self._may_enter():
                    return
            except BaseException:
                self.leave(use)  # a close may have seen it, and left the rest to the last reader
                raise
            self._uses.pop(use, None)
            time.sleep(PAUSE)

    def leave(self, use: Use) -> None:
        """Take a call out."""
        self._uses.pop(use, None)
        self._left()

    def is_present(self, use: object) -> bool:
        """Tell whether a call is entered."""
        return use in self._uses

    def present(self) -> list[Use]:
        """Return the calls that read now; interrupted ones are taken out."""
        found = []
        for use, frame in self._uses.copy().items():
            if is_over(frame):
                self._uses.pop(use, None)
            else:
                found.append(use)
        return found

    def others(self) -> list[Use]:
        """Return those of other threads; who waits for his own would wait for himself."""
        me = _thread.get_ident()
        return [use for use in self.present() if use.thread != me]

    def is_inside(self) -> bool:
        """Tell whether the calling thread is in the middle of a read."""
        me = _thread.get_ident()
        return any(use.thread == me for use in self.present())

    def wait(self, patience: float) -> None:
        """Wait until no other thread reads, so many seconds at the most."""
        deadline = time.monotonic() + patience
        while self.others() and time.monotonic() < deadline:
            time.sleep(PAUSE)
