"""Observation: shows somebody what each write transaction did, once it is committed."""

from __future__ import annotations

import threading

from sqlalchemy import Connection

from jobcore import interrupts


class Observer:
    """
    Sees each write transaction, in their order, one at a time; this one looks at nothing.

    Called by whatever thread writes, which nothing here may fail or delay.
    """

    def begun(self, connection: Connection) -> None:
        """Look before anything is written."""

    def ending(self, connection: Connection) -> None:
        """Look when all is written; the commit comes next."""

    def committed(self) -> None:
        """Take it that the commit stands. Never called for what was rolled back."""

    @property
    def in_doubt(self) -> bool:
        """Whether it has looked at all that was written, and not heard of the commit."""
        return False

    def interrupted(self, connection: Connection) -> None:
        """Find out, as the commit did not return, whether it stands; take it so then."""


NOBODY = Observer()


class Observation:
    """Who observes the write transactions of a database, and whether one is under way unseen."""

    _changed: threading.Condition

    def __init__(self) -> None:
        self._observer = NOBODY
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a forked child: no transaction is under way."""
        self._changed = threading.Condition(interrupts.lock())
        self._unseen = False

    @property
    def observer(self) -> Observer:
        """Who sees the transactions that begin now."""
        return self._observer

    def begin(self) -> Observer:
        """Return who sees the transaction that has just begun."""
        with self._changed:
            self._unseen = self._observer is NOBODY
            return self._observer

    def end(self) -> None:
        """Note the end of the transaction, however it ended."""
        with self._changed:
            self._unseen = False
            self._changed.notify_all()

    def observe(self, observer: Observer, patience: float) -> None:
        """
        Have `observer` see every transaction that is committed after this returns.

        Args:
            patience: Seconds to wait for the end of one that has begun before. It
                has the write lock already, so it does not wait for others.
        """
        with self._changed:
            self._observer = observer
            if observer is not NOBODY:
                self._changed.wait_for(lambda: not self._unseen, patience)
