"""
The text that has no newline yet, in a small file for readers and for a resolver.

The text of an unfinished line has no number: it gets one when its line ends, when a
line of jobcore's own follows it, or when its supervisor dies. Until then it is in the file
`tail` of the job directory, as the frames that would be appended to the spool now.
The file has two slots, written in turn and in place, so a reader and a SIGKILL in the
middle of a write find the text that was there before.
"""

from __future__ import annotations

import errno
import os

from jobcore.supervisor import job_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds from a change to its being written, and between two writes.
EVERY = 0.25
#: Seconds until the next attempt after an error such as a full disk.
_RETRY = 1.0

_NEVER = float("inf")


class Tail:
    """
    Writes the unfinished lines of one run.

    Attributes:
        changed: There may be text that was not written yet.
    """

    def __init__(self, directory: int, frames_now: Callable[[], bytes]) -> None:
        """
        Args:
            directory: The job directory.
            frames_now: Returns the unfinished lines as frames; empty: there is nothing to write.
        """
        self.changed = False
        self._directory = directory
        self._frames_now = frames_now
        self._file = -1  # made with the first text: most jobs need none
        self._slot = 0
        self._written = b""
        self._next = _NEVER

    def due(self) -> float:
        """Return when `advance` has something to write, by the monotonic clock."""
        return self._next

    def advance(self, now: float) -> None:
        """Write what has changed, `EVERY` seconds after the change."""
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
                # The text is in memory, and the output of the job goes on without the file.
                self.changed = True
                self._next = now + _RETRY

    def repair(self) -> None:
        """Write the text again where something has removed the file."""
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
        # A torn slot counts as none, and is written again: the other one is whole.
        slot = 1 - self._slot
        if os.pwrite(self._file, data, slot * job_directory.TAIL_SLOT) < len(data):
            raise OSError(errno.ENOSPC, "a short write")
        self._slot = slot
        self._written = data
