"""The request that the supervisor end, as a descriptor that `poll` can wait for."""

from __future__ import annotations

import os
import sys

from jobcore.supervisor import system_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
else:
    import _signal  # `signal` would build its enums at every start


#: Who sends the signals of a service manager: the first process, or one that our pid namespace
#: does not show. A service manager of a user is neither.
_MANAGERS = (0, 1)
_SIZE = 128  # bytes of a `struct signalfd_siginfo`,
_SENDER = slice(12, 16)  # and where in it the sender's pid is


class Shutdown:
    """
    Whether somebody asked this supervisor to go.

    Attributes:
        by_service_manager: The one who asked was the first process of the system, or of its
            container, or one outside of that.
    """

    def __init__(self) -> None:
        self.by_service_manager = False
        self._requested = False
        self._tells_sender = False
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def requested(self) -> bool:
        """Whether it was asked, once and for all."""
        if not self._requested:
            self.drain()
        return self._requested

    def come_with_sigterm(self) -> None:
        """Have SIGTERM to this process be that wish."""
        _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGTERM,))
        try:
            signals = system_calls.open_signal(_signal.SIGTERM)
        except OSError:
            # The handler alone would be too late: poll may begin between the signal
            # and the next look at the flag. The byte in the pipe stays.
            _signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            _signal.signal(_signal.SIGTERM, self._handle)
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGTERM,))
            return
        os.dup2(signals, self._reader, inheritable=False)
        os.close(signals)
        self._tells_sender = True

    def request(self) -> None:
        """Wish it from this process; again is harmless."""
        self._requested = True
        try:
            os.write(self._writer, b"!")
        except BlockingIOError:
            pass  # full of earlier ones

    def fileno(self) -> int:
        """Return what becomes readable with the signal."""
        return self._reader

    def drain(self) -> None:
        """Take in what has come, so that poll sleeps again."""
        try:
            data = os.read(self._reader, 4 * _SIZE)
        except BlockingIOError:
            return
        if self._tells_sender and not self._requested:
            self.by_service_manager = int.from_bytes(data[_SENDER], sys.byteorder) in _MANAGERS
        self._requested = True

    def close(self) -> None:
        """Close the pipe, where it is not the end of the process that does so."""
        os.close(self._reader)
        os.close(self._writer)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._requested = True
