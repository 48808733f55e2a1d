"""The request to shut the supervisor down, as a descriptor that `poll` can wait for."""

from __future__ import annotations

import os
import sys

from jobcore.supervisor import system_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
else:
    import _signal  # `signal` would create its enums at every start


#: Sender pids of a service manager: pid 1, or 0 for a process outside our pid namespace. The
#: service manager of a user has another pid.
_MANAGERS = (0, 1)
_SIZE = 128  # bytes of a `struct signalfd_siginfo`
_SENDER = slice(12, 16)  # the sender's pid in it


class Shutdown:
    """
    Whether this supervisor was asked to shut down.

    Attributes:
        by_service_manager: Whether the request came from pid 1 of the system or container, or
            from outside the container.
    """

    def __init__(self) -> None:
        self.by_service_manager = False
        self._requested = False
        self._tells_sender = False
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def requested(self) -> bool:
        """Whether a shutdown was requested. Once True, it stays True."""
        if not self._requested:
            self.drain()
        return self._requested

    def come_with_sigterm(self) -> None:
        """Treat SIGTERM to this process as the request."""
        _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGTERM,))
        try:
            signals = system_calls.open_signal(_signal.SIGTERM)
        except OSError:
            # A handler that sets a flag does not suffice: the signal may come between the
            # check of the flag and the poll. The byte in the wake-up pipe wakes the poll.
            _signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            _signal.signal(_signal.SIGTERM, self._handle)
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGTERM,))
            return
        os.dup2(signals, self._reader, inheritable=False)
        os.close(signals)
        self._tells_sender = True

    def request(self) -> None:
        """Request the shutdown from this process. Idempotent."""
        self._requested = True
        try:
            os.write(self._writer, b"!")
        except BlockingIOError:
            pass  # the pipe is full of earlier requests

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with the request."""
        return self._reader

    def drain(self) -> None:
        """Read the descriptor empty, so that the next poll waits again."""
        try:
            data = os.read(self._reader, 4 * _SIZE)
        except BlockingIOError:
            return
        if self._tells_sender and not self._requested:
            self.by_service_manager = int.from_bytes(data[_SENDER], sys.byteorder) in _MANAGERS
        self._requested = True

    def close(self) -> None:
        """Close the descriptors, if the process does not end anyway."""
        os.close(self._reader)
        os.close(self._writer)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._requested = True
