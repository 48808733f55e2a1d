"""`Assignment`: a job that this manager has claimed and not settled yet."""

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

#: Seconds between two imports of one job, unless it has much output or has ended.
IMPORT_PAUSE = 0.25
#: Bytes of new output that trigger an import earlier.
IMPORT_BYTES = 256 * 1024
#: Seconds until a failed send or settlement is tried again.
RETRY = 0.05


class Assignment:
    """
    A claimed job, and what the dispatcher must do about it next.

    Attributes:
        run: The job as it was last read from the database.
        request: Its request, until that is sent; then None.
        claimed: When it was claimed, by the monotonic clock.
        supervisor: Its supervisor; None before the request is sent, and after it has ended.
        accepted: Whether its supervisor has taken it.
        ended: Whether it has ended, so that its directory should hold an exit record.
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
        """Whether it must still be sent; the host itself ends one that cannot be started."""
        return self.request is not None and self.request.failure is None

    def hear(self, notice: messages.Notice) -> None:
        """Note what a notice of its supervisor reports."""
        self.accepted = True
        if notice.kind == messages.ENDED:
            self.end()
        elif notice.kind == messages.HELD:
            _tell_held(self.run, notice.number)
        elif notice.kind == messages.OUTPUT:
            much = notice.number - self.run.spool_offset >= IMPORT_BYTES
            self.due = min(self.due, 0.0 if much else self._imported + IMPORT_PAUSE)

    def begin_import(self, now: float) -> None:
        """Note that an import begins; the next one is due only when there is a reason."""
        self._imported = now
        self.due = now + RETRY if self.ended else float("inf")

    def wait(self, seconds: float) -> None:
        """Postpone it for `seconds`, because it could not be read, written or sent."""
        if seconds > 0:
            self.due = time.monotonic() + seconds

    def end(self) -> None:
        """Mark it as ended, so that the next round settles it."""
        self.ended = True
        self.supervisor = None
        self.due = 0.0

    def let_go(self) -> None:
        """Close its descriptors; if it was not sent, its free lock shows that it never started."""
        if self.request is not None:
            self.request.close()
            self.request = None
        if self._slot is not None:
            slot, self._slot = self._slot, None
            GATE.close(slot)


def _tell_held(run: Run, number: int) -> None:
    """Log that the command must wait until its output can be written, or that it continues."""
    if number:
        telemetry.event(
            logging.WARNING, "output held back", job=str(run.id), why=os.strerror(number)
        )
    else:
        telemetry.event(logging.INFO, "output written again", job=str(run.id))
