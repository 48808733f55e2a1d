"""
The register of reads in progress, from which interrupted reads are cleaned up.

A read runs in the calling thread. An unexpected exception discards its connection. Each
read registers itself with the frame of its caller, by one dictionary operation. So an
interrupt can leave no lock held; and a read that could not remove itself is recognised,
because its caller's frame is no longer running.
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
from jobcore.storage.connections import Slot, SpareConnections
from jobcore.tuning import READ_PAUSE

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the call from the register."""
        self._readers.leave(self)


class Reading:
    """
    A read transaction.

    Args:
        readers: The register for it.
        lend: Checks that the file is still the same, and returns the spare connections.
        typed: Turns errors of SQLite into jobcore's exceptions.
    """

    __slots__ = ("_lend", "_readers", "_slot", "_spares", "_transaction", "_typed", "_use")

    def __init__(
        self,
        readers: Readers,
        lend: Callable[[], SpareConnections],
        typed: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._readers = readers
        self._lend = lend
        self._typed = typed
        self._use = Use(readers)
        self._spares: SpareConnections | None = None
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
                # Begin explicitly: statements that bypass SQLAlchemy would not begin it.
                self._transaction = connection.begin()
        except BaseException as failure:  # noqa: BLE001 - raised on unchanged
            self._give_up()
            raise _first(failure, before)  # noqa: B904 - raised on unchanged
        return connection

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the transaction. The connection is kept unless an unexpected error occurred."""
        before = sys.exc_info()[1]
        try:
            with self._typed():
                self._end(error)
        except BaseException as failure:
            self._give_up()
            if failure is error:
                raise
            raise _first(failure, before)  # noqa: B904 - raised on as it is
        self._readers.leave(self._use)

    def _end(self, error: BaseException | None) -> None:
        transaction = self._transaction
        if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
            raise error.orig or error  # raised by a signal handler, wrapped by SQLAlchemy
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


class Readers:
    """
    The register of calls that read now.

    Args:
        may_enter: Tells whether a read may begin now. If none may begin any more, it raises.
        left: Called after a call has left.
    """

    def __init__(self, may_enter: Callable[[], bool], left: Callable[[], None]) -> None:
        self._may_enter = may_enter
        self._left = left
        self._uses: dict[Use, FrameType] = {}

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
                self.leave(use)  # not only pop: a close may rely on the last reader to finish it
                raise
            self._uses.pop(use, None)
            time.sleep(READ_PAUSE)

    def leave(self, use: Use) -> None:
        """Remove a call."""
        self._uses.pop(use, None)
        self._left()

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
