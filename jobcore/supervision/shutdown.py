"""Shutdown: the wish that the supervisor go, as a fact that poll can wait for."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
else:
    import _signal  # `signal` would build its enums at every start


class Shutdown:
    """
    Whether somebody asked this supervisor to go.

    Attributes:
        requested: It was, once and for all.
    """

    def __init__(self) -> None:
        self.requested = False
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def come_with_sigterm(self) -> None:
        """Have SIGTERM to this process be that wish."""
        # The handler alone would be too late: poll may begin between the signal
        # and the next look at the flag. The byte in the pipe stays.
        _signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGTERM, self._handle)

    def request(self) -> None:
        """Wish it from this process; again is harmless."""
        self.requested = True
        try:
            os.write(self._writer, b"!")
        except BlockingIOError:
            pass  # full of earlier ones

    def fileno(self) -> int:
        """Return what becomes readable with the signal."""
        return self._reader

    def drain(self) -> None:
        """Take the bytes out of the pipe, so that poll sleeps again."""
        try:
            os.read(self._reader, 512)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close the pipe, where it is not the end of the process that does so."""
        os.close(self._reader)
        os.close(self._writer)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
