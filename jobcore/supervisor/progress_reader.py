"""
Reads progress reports, and writes the latest one to the spool a few times per second.

So a host sees only a few reports per second, however many arrive. Reports do not use up line
numbers.
"""

from __future__ import annotations

import os
import time

from jobcore.supervisor import frames, progress
from jobcore.supervisor.pipes import READ_SIZE, read_now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from jobcore.supervisor.redaction import Values
    from jobcore.supervisor.spool import Spool

#: Seconds between two frames. Hosts do not import a job more often.
EVERY = 0.25

#: Maximum bytes of a report with its newline. A longer line is not a report; in the output it
#: would be cut.
MAX_LINE = frames.MAX_PAYLOAD

_NEVER = float("inf")


class Meter:
    """
    The latest report of one run, from its output or from the pipe for reports.

    Attributes:
        descriptor: The read end of that pipe; negative: there is no pipe, or it has ended.
    """

    def __init__(
        self,
        spool: Spool,
        say: Callable[[str], None],
        values: Values | None,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """
        Args:
            spool: The spool that the frames are appended to.
            say: Adds a line to the log.
            values: The values to mask in reports from the pipe. Reports from the output are
                masked already.
            time_ns: Returns the wall time, in nanoseconds, for the time of a report.
        """
        self.descriptor = -1
        self._spool = spool
        self._say = say
        self._redactor = values.redactor() if values is not None else None
        self._time_ns = time_ns
        self._carry = b""  # the beginning of an unfinished line
        self._skipping = False  # inside a line that is too long
        self._told = False  # whether an invalid report was logged
        self._latest: tuple[bytes, int] | None = None  # not written yet, with its time
        self._next = 0.0  # monotonic time from which it may be written

    def note(self, report: bytes, time_ns: int) -> None:
        """Set the latest report, as `progress.normalize` returns it."""
        self._latest = (report, time_ns)

    def add(self, descriptor: int) -> None:
        """Take over the non-blocking read end of the pipe, and close it at the end of the pipe."""
        self.descriptor = descriptor

    def read(self) -> bool:
        """Read once; False: this was the end of the pipe, which is closed now."""
        try:
            data = os.read(self.descriptor, READ_SIZE)
        except BlockingIOError:
            return True
        if data:
            self._take(data)
            return True
        self._end_pipe()
        return False

    def due(self) -> float:
        """Return the monotonic time at which `advance` has something to write."""
        return _NEVER if self._latest is None or self._spool.held else self._next

    def advance(self, now: float) -> None:
        """Write the latest report if it is new and due; after a pause it is due at once."""
        if now >= self.due():
            self._write()
            self._next = now + EVERY

    def end(self) -> None:
        """Read what the pipe contains now, close it, and write the latest report."""
        if self.descriptor >= 0:
            for data in read_now(self.descriptor):
                self._take(data)
            self._end_pipe()
        if self._latest is not None:
            self._write()

    def close(self) -> None:
        """Close the pipe without reading it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _end_pipe(self) -> None:
        if self._redactor is not None:
            self._split(self._redactor.feed(b"", final=True))
        self._split(b"\n")  # the last line may have no newline
        self.close()

    def _take(self, data: bytes) -> None:
        self._split(data if self._redactor is None else self._redactor.feed(data))

    def _split(self, data: bytes) -> None:
        """Note the last report among the whole lines so far, and keep the unfinished line."""
        buffer = self._carry + data
        begin = 0
        if self._skipping:
            begin = buffer.find(b"\n") + 1
            self._skipping = begin == 0
        end = buffer.rfind(b"\n") + 1
        self._carry = buffer[end:]
        if self._skipping or len(self._carry) > MAX_LINE:
            self._skipping = True
            self._refuse(self._carry)
            self._carry = b""
        self._note_last(buffer, begin, end)

    def _note_last(self, buffer: bytes, begin: int, end: int) -> None:
        # Backwards: of a thousand reports read at once, only the last is parsed.
        while end > begin:
            start = buffer.rfind(b"\n", begin, end - 1) + 1 or begin
            line = buffer[start:end]
            report = None if len(line) > MAX_LINE else progress.normalize(line)
            if report is not None:
                self.note(report, self._time_ns())
                return
            self._refuse(line)
            end = start

    def _refuse(self, line: bytes) -> None:
        """Log the first invalid report, for the author of the command."""
        if not self._told and line.strip():
            self._told = True
            words = line.strip()[:100].decode("utf-8", "replace")
            self._say(f"a malformed progress report is dropped: {words!r}")

    def _write(self) -> None:
        if self._latest is not None:
            report, time_ns = self._latest
            self._latest = None
            self._spool.append(frames.PROGRESS, 0, 0, report, time_ns)
