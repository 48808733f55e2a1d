"""Observation: shows somebody what each write transaction did, once it is committed."""

from __future__ import annotations

from sqlalchemy import Connection


class Observer:
    """
    Sees each write transaction, in their order, one at a time; this one looks at nothing.

    Called by the thread that writes, which nothing here may fail or delay.
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
        """Find out, as the commit has failed, whether it stands; take it so then."""


NOBODY = Observer()
