"""How long a caller waits, at most."""

from __future__ import annotations

import time

from jobcore.errors import WaitTimeout
from jobcore.operations.arguments import checked_patience


class Patience:
    """
    The time that somebody who waits has given; it runs from now on.

    Args:
        timeout: Seconds; None: for ever.

    Raises:
        ArgumentError: `timeout` is no number.
    """

    __slots__ = ("_deadline", "_timeout")

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._deadline = time.monotonic() + checked_patience(timeout)

    @property
    def left(self) -> float:
        """Seconds, never below 0."""
        return max(self._deadline - time.monotonic(), 0.0)

    @property
    def over(self) -> bool:
        """Whether the time has passed."""
        return time.monotonic() > self._deadline

    @classmethod
    def of(cls, timeout: float | Patience | None) -> Patience:
        """Return one that begins now, or the one that several waits share."""
        return timeout if isinstance(timeout, Patience) else cls(timeout)

    def error(self, what: object) -> WaitTimeout:
        """Return the error that says what was still so when the time was over."""
        return WaitTimeout(f"{what} after {self._timeout} s")
