"""
Reads progress reports, and writes the latest of them now and then.

However many reports come, a host sees no more than a few a second, and they
take no numbers from the lines.
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

#: Seconds between two frames: hosts import a job no more often, so nobody would see more of them.
EVERY = 0.25

#: Bytes of a line, its newline among them: a longer one is no report, here as in
#: the output, where it is not kept whole.
MAX_LINE = frames.MAX_PAYLOAD

_NEVER = float("inf")


class Meter:
    """
    The latest report of one run, from its output and from the pipe that is there for it.

    Attributes:
        descriptor: The reading end of that pipe; negative where there is none, or it has ended.
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
            spool: Where the frames go.
            say: Adds a line to the log.
            values: They are masked; what comes from the output is so already.
            time_ns: Tells the wall time at which a report came.
        """
        self.descriptor = -1
        self._spool = spool
        self._say = say
        self._redactor = values.redactor() if values is not None else None
        self._time_ns = time_ns
        self._carry = b""  # the beginning of a line that has not ended yet
        self._skipping = False  # inside a line that is too long
        self._told = False  # of a report that is none
        self._latest: tuple[bytes, int] | None = None  # not written yet, and when it came
        self._next = 0.0  # when it may be

    def note(self, report: bytes, time_ns: int) -> None:
        """Take a report, as `progress.normalize` gives it, in place of all before it."""
        self._latest = (report, time_ns)

    def add(self, descriptor: int) -> None:
        """Take the reading end of the pipe, non-blocking; it is closed at its end."""
        self.descriptor = descriptor

    def read(self) -> bool:
        """Read once; False when this was the end of the pipe, which is closed then."""
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
        """Return when `advance` has something to write, by the monotonic clock."""
        return _NEVER if self._latest is None or self._spool.held else self._next

    def advance(self, now: float) -> None:
        """Write the latest report if it is new and its time has come: at once after quiet."""
        if now >= self.due():
            self._write()
            self._next = now + EVERY

    def end(self) -> None:
        """Read what the pipe holds at this moment, close it, and write the last report."""
        if self.descriptor >= 0:
            for data in read_now(self.descriptor):
                self._take(data)
            self._end_pipe()
        if self._latest is not None:
            self._write()

    def close(self) -> None:
        """Close the pipe, as it is."""
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
        """Note the last report among the whole lines that are there now, and keep the rest."""
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
        # From the end: of a thousand reports read at once one is looked at.
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
        """Say once that something is no report: whoever wrote the command may want to know."""
        if not self._told and line.strip():
            self._told = True
            words = line.strip()[:100].decode("utf-8", "replace")
            self._say(f"what it reports is no progress, and is dropped: {words!r}")

    def _write(self) -> None:
        if self._latest is not None:
            report, time_ns = self._latest
            self._latest = None
            self._spool.append(frames.PROGRESS, 0, 0, report, time_ns)
