"""
Stop requests for a running job, and the request to shut its supervisor down.

Hosts ask for the first through the FIFO and the file `stop`. The second is SIGTERM. Both come
with a descriptor that `poll` can wait for.
"""

from __future__ import annotations

import os
import stat
import sys

from jobcore.supervisor import NewerProtocol, job_directory, system_calls

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


class StopRequest:
    """
    A stop request.

    Attributes:
        grace: Seconds from SIGTERM to SIGKILL; 0: kill now.
        words: The line for the log: who asks, and why.
    """

    __slots__ = ("grace", "words")

    def __init__(self, grace: float, words: str) -> None:
        self.grace = grace
        self.words = words


class StopRequests:
    """Receives the stop requests for one job."""

    def __init__(self, directory: int, grace: float) -> None:
        """
        Open the FIFO.

        Args:
            directory: The job directory.
            grace: The command's grace in seconds, for requests that contain none.
        """
        self._directory = directory
        self._grace = grace
        job_directory.clear_control(directory)
        job_directory.make_control(directory)  # no-op if it exists
        self._control = job_directory.open_control(directory)
        self._unread = job_directory.READ_STOP  # a request may have been stored before

    def fileno(self) -> int:
        """Return the descriptor of the FIFO, to poll it for reading."""
        return self._control

    def reopen(self) -> None:
        """Open the FIFO again, after it was replaced, under the same descriptor number."""
        control = job_directory.open_control(self._directory)
        os.dup2(control, self._control, inheritable=False)
        os.close(control)
        self._unread += job_directory.READ_STOP  # a request may have come in the meantime

    def listen(self) -> None:
        """Read the FIFO, in which each request is one byte."""
        self._unread += os.read(self._control, 4096)

    def take(self) -> StopRequest | None:
        """Return the stop request that came since the last call, or None."""
        unread, self._unread = self._unread, b""
        if not unread:
            return None
        grace: float | None = None
        words = "stopping: asked by a host"
        try:
            stop = job_directory.read_record(self._directory, job_directory.STOP)
        except NewerProtocol:
            stop = {}  # a newer host asks to stop; its details cannot be read
        except OSError as error:
            stop = None  # hosts ask again; the bytes below count without the file
            if error.errno in system_calls.SHORTAGE:
                # A stop must not wait for a descriptor. Its details follow once there is one.
                stop = {} if self._is_stored() else None
                self._unread = job_directory.READ_STOP
        if stop is not None:
            asked = stop.get("grace_ms")
            grace = asked / 1000 if isinstance(asked, int) else self._grace
            if stop.get("who"):
                words = f"stopping: asked by {stop['who']}"
            if stop.get("why"):
                words += f": {stop['why']}"
        # Hosts send these bytes if the disk is too full for the file.
        if job_directory.KILL_NOW in unread:
            grace = 0.0
        elif job_directory.STOP_NOW in unread:
            grace = self._grace if grace is None else min(grace, self._grace)
        return None if grace is None else StopRequest(grace, words)

    def _is_stored(self) -> bool:
        """Tell, without a descriptor, whether there is a file with a stop request."""
        try:
            facts = os.stat(job_directory.STOP, dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return False
        return stat.S_ISREG(facts.st_mode)

    def close(self) -> None:
        """Close the FIFO."""
        os.close(self._control)


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

    def request_by_sigterm(self) -> None:
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
