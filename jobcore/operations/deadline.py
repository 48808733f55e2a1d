"""The deadline of a caller that waits."""

from __future__ import annotations

import time

from jobcore.errors import WaitTimeout
from jobcore.operations.arguments import checked_timeout


class Deadline:
    """
    A deadline, `timeout` seconds from now.

    Args:
        timeout: Seconds; None: never.

    Raises:
        ArgumentError: `timeout` is not a number.
    """

    __slots__ = ("_deadline", "_timeout")

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._deadline = time.monotonic() + checked_timeout(timeout)

    @property
    def left(self) -> float:
        """Seconds until the deadline, never below 0."""
        return max(self._deadline - time.monotonic(), 0.0)

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self._deadline

    @classmethod
    def of(cls, timeout: float | Deadline | None) -> Deadline:
        """Return a new deadline, or `timeout` itself if it is one that several waits share."""
        return timeout if isinstance(timeout, Deadline) else cls(timeout)

    def error(self, what: object) -> WaitTimeout:
        """Return a `WaitTimeout` that says what was still the case at the deadline."""
        return WaitTimeout(f"{what} after {self._timeout} s")
