"""A job that this manager has claimed and not settled yet."""

from __future__ import annotations

import logging
import os
import time

from jobcore.embedding import telemetry
from jobcore.embedding.forking import GATE
from jobcore.engine.launch import Request
from jobcore.engine.supervisor_pool import Supervisor
from jobcore.storage.transitions import Run
from jobcore.supervisor import messages

#: Seconds between two imports of one job, unless much has gathered or it ended.
IMPORT_PAUSE = 0.25
#: Bytes of spool that are worth an import before that.
IMPORT_BYTES = 256 * 1024
#: Seconds after which a send, or a job that could not be settled, is tried again.
RETRY = 0.05


class Assignment:
    """
    A claimed job, and what the dispatcher is to do about it next.

    Attributes:
        run: As the database last had it.
        request: Until it is sent.
        claimed: When it was claimed, by the monotonic clock.
        supervisor: That has it; None before it is sent, and after it ended.
        accepted: Whether its supervisor has taken it.
        ended: Whether its verdict can be expected.
        due: When to look into its directory, by the monotonic clock.
    """

    __slots__ = (
        "_imported", "_slot", "accepted", "claimed", "due", "ended", "request", "run", "supervisor",
    )  # fmt: skip

    def __init__(self, run: Run, request: Request) -> None:
        self.run = run
        self.request: Request | None = request
        self.claimed = time.monotonic()
        self.supervisor: Supervisor | None = None
        self.accepted = False
        self.ended = False
        self.due = float("inf")
        self._imported = 0.0
        self._slot = request.prepared.take_slot()

    @property
    def needs_supervisor(self) -> bool:
        """Whether it is to be sent; one that cannot be started is ended by its host."""
        return self.request is not None and self.request.failure is None

    def hear(self, notice: messages.Notice) -> None:
        """Note what its supervisor says."""
        self.accepted = True
        if notice.kind == messages.ENDED:
            self.end()
        elif notice.kind == messages.HELD:
            _tell_held(self.run, notice.number)
        elif notice.kind == messages.OUTPUT:
            much = notice.number - self.run.spool_offset >= IMPORT_BYTES
            self.due = min(self.due, 0.0 if much else self._imported + IMPORT_PAUSE)

    def begin_import(self, now: float) -> None:
        """Note that its directory is being looked into; again only when there is a reason."""
        self._imported = now
        self.due = now + RETRY if self.ended else float("inf")

    def wait(self, seconds: float) -> None:
        """Leave it alone for so long: it could not be read, written or sent."""
        if seconds > 0:
            self.due = time.monotonic() + seconds

    def end(self) -> None:
        """Have it settled in the next round."""
        self.ended = True
        self.supervisor = None
        self.due = 0.0

    def let_go(self) -> None:
        """Close what it holds; of a job that was not sent the free lock says so."""
        if self.request is not None:
            self.request.close()
            self.request = None
        if self._slot is not None:
            slot, self._slot = self._slot, None
            GATE.close(slot)


def _tell_held(run: Run, number: int) -> None:
    """Tell that the command waits until its output can be written, or that it goes on."""
    if number:
        telemetry.event(
            logging.WARNING, "output held back", job=str(run.id), why=os.strerror(number)
        )
    else:
        telemetry.event(logging.INFO, "output written again", job=str(run.id))
