"""
Writes output that has no newline yet to the `tail` file, for readers and for a resolver.

An unfinished line has no number. It gets one when the line ends, when a line of jobcore
follows it, or when its supervisor dies. Until then its text is in the file `tail` of the job
directory, as the frames that would be appended to the spool now. The file has two slots,
which are overwritten in turn. So while one slot is being written, or if SIGKILL interrupts
the write, the previous text is intact in the other slot.
"""

from __future__ import annotations

import errno
import os

from jobcore.supervisor import job_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds between a change and its write, and between two writes.
EVERY = 0.25
#: Seconds until the next attempt after an error such as a full disk.
_RETRY = 1.0

_NEVER = float("inf")


class Tail:
    """
    Writes the unfinished lines of one run.

    Attributes:
        changed: Whether there may be text that is not written yet.
    """

    def __init__(self, directory: int, frames_now: Callable[[], bytes]) -> None:
        """
        Args:
            directory: The job directory.
            frames_now: Returns the unfinished lines as frames; b"": there are none.
        """
        self.changed = False
        self._directory = directory
        self._frames_now = frames_now
        self._file = -1  # created with the first text, because most jobs need none
        self._slot = 0
        self._written = b""
        self._next = _NEVER

    def due(self) -> float:
        """Return the monotonic time at which `advance` has something to write."""
        return self._next

    def advance(self, now: float) -> None:
        """Write changed text, `EVERY` seconds after the change."""
        if not self.changed:
            self._next = _NEVER
        elif self._next == _NEVER:
            self._next = now + EVERY
        elif now >= self._next:
            self.changed = False
            self._next = _NEVER
            try:
                self._write(self._frames_now())
            except OSError:
                # Retry later: the text is in memory, and the job does not need the file.
                self.changed = True
                self._next = now + _RETRY

    def repair(self) -> None:
        """If the file was removed, write the text again into a new one."""
        if self._file >= 0 and os.fstat(self._file).st_nlink == 0:
            self.close()
            self._written = b""
            self.changed = True

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, data: bytes) -> None:
        if not data or data == self._written:
            return
        if self._file < 0:
            self._file = job_directory.make_file(job_directory.TAIL, os.O_WRONLY, self._directory)
        # After a short write the slot is invalid, and is written again; the other one is intact.
        slot = 1 - self._slot
        if os.pwrite(self._file, data, slot * job_directory.TAIL_SLOT) < len(data):
            raise OSError(errno.ENOSPC, "a short write")
        self._slot = slot
        self._written = data
