"""
Adopts running jobs of closed or dead managers, so that they take slots of this one.

A job has at most one manager: the one that holds the slot byte of its lock. The kernel frees
that byte when the manager is closed, and when its process dies.
"""

from __future__ import annotations

from collections.abc import Container

from jobcore.embedding.locks import GATE
from jobcore.engine import orphans
from jobcore.engine.job_directories import Directories
from jobcore.errors import StoreError
from jobcore.storage import transitions
from jobcore.storage.database import Database


class Adoption:
    """
    The jobs that one manager has adopted.

    Only the dispatcher's thread may use it, except for `tokens`.

    Adopting a job changes no row: any process may import and settle it, as before.

    Args:
        enabled: False: adopt nothing, for a manager that runs only its own jobs.

    Attributes:
        slots: The descriptors that hold the slots, by token.
        remaining: Whether the last update left jobs without a manager, for lack of slots.
    """

    def __init__(self, database: Database, directories: Directories, *, enabled: bool) -> None:
        self._database = database
        self._directories = directories
        self._enabled = enabled
        self.slots: dict[str, int] = {}
        self.remaining = False

    @property
    def tokens(self) -> frozenset[str]:
        """The adopted jobs that had not ended at the last `update`. Any thread may read this."""
        return frozenset(self.slots)

    def update(self, claimed: Container[str], room: int) -> None:
        """
        Release jobs that have ended, and adopt others while there are free slots.

        Args:
            claimed: Tokens of the jobs that this manager has claimed itself.
            room: The slots that these leave free.

        Raises:
            StoreError: The rows cannot be read now.
        """
        if not self._enabled:
            return
        with self._database.read() as connection:
            running = transitions.supervised_names(connection)
        for token in self.slots.keys() - running.keys():
            GATE.close(self.slots.pop(token))
        self.remaining = False
        for token, (name, cookie) in running.items():
            if token in claimed or token in self.slots or orphans.is_inside(cookie or ""):
                continue  # this process runs inside that job, which may wait for queued jobs
            slot = self._adopt(name)
            if slot is None:
                continue
            if len(self.slots) < room:
                self.slots[token] = slot
            else:
                # Leave it to a manager with free slots: this one may be about to be restarted.
                self.remaining = True
                GATE.close(slot)

    def close(self) -> None:
        """Leave the jobs to other managers. A second call is harmless."""
        while self.slots:
            GATE.close(self.slots.popitem()[1])

    def forget(self) -> None:
        """Start over in a forked child: the gate has closed the descriptors."""
        self.slots.clear()
        self.remaining = False

    def _adopt(self, name: str) -> int | None:
        try:
            return self._directories.adopt(name)
        except (StoreError, OSError):
            return None  # the sweep will deal with the cause
