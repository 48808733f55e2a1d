"""
Captures the command's output: splits it into lines, masks, limits and spools it.

Progress reports are taken out of the output, or come through a separate pipe. Only the latest is
written, a few times per second, however many arrive. Reports do not use up line numbers.
"""

from __future__ import annotations

import os
import time

from jobcore.supervisor import frames, job_directory, progress
from jobcore.supervisor.output_file import OutputFile
from jobcore.supervisor.redaction import Values
from jobcore.supervisor.spool import Spool, UnfinishedLines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READ_SIZE = 65536  # bytes; the default capacity of a pipe

#: Seconds between two frames with a report. Hosts do not import a job more often.
REPORT_EVERY = 0.25
#: Maximum bytes of a report with its newline. A longer line is not a report; in the output it
#: would be cut.
MAX_REPORT = frames.MAX_PAYLOAD
_NEVER = float("inf")
_REPORT_BEGINS = b"\n" + progress.PREFIX
#: Nanoseconds. A line that took less time gets the time of its end, so that it can share a frame
#: with the lines that were read with its end.
_AT_ONCE_NS = 250_000_000
#: Bytes; more than the kernel buffers between the two ends of a terminal.
_MOST_IN_TERMINAL = 1024 * 1024


def read_now(descriptor: int) -> Iterator[bytes]:
    """
    Yield what a non-blocking pipe contains now, in pieces.

    It does not read until the end of the pipe: a process outside the job may hold the pipe
    open and write for ever. What arrives later does not belong to the job.
    """
    left = job_directory.count_bytes(descriptor)
    while left > 0:
        try:
            data = os.read(descriptor, min(left, READ_SIZE))
        except BlockingIOError:
            return
        if not data:
            return
        left -= len(data)
        yield data


def read_terminal_now(descriptor: int) -> Iterator[bytes]:
    """
    Yield what a non-blocking terminal has now, in pieces.

    It reads until there is nothing: the kernel counts only the bytes that it has already passed
    from one end of a terminal to the other, and a read waits for the rest.
    """
    left = _MOST_IN_TERMINAL
    while left > 0:
        try:
            data = os.read(descriptor, READ_SIZE)
        except OSError:  # nothing, or no process has the terminal open
            return
        left -= len(data)
        yield data


class ProgressReader:
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
        """Take over the non-blocking read end of the pipe, and close it at end of file."""
        self.descriptor = descriptor

    def read(self) -> bool:
        """Read once; False: end of file, and the pipe is now closed."""
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
            self._next = now + REPORT_EVERY

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
        if self._skipping or len(self._carry) > MAX_REPORT:
            self._skipping = True
            self._refuse(self._carry)
            self._carry = b""
        self._note_last(buffer, begin, end)

    def _note_last(self, buffer: bytes, begin: int, end: int) -> None:
        # Backwards, so that only the last of a thousand reports is parsed.
        while end > begin:
            start = buffer.rfind(b"\n", begin, end - 1) + 1 or begin
            line = buffer[start:end]
            report = None if len(line) > MAX_REPORT else progress.normalize(line)
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


class _Stream:
    """One pipe and its unfinished line."""

    __slots__ = (
        "begun", "carry", "descriptor", "end", "number", "redactor", "since", "terminal",
    )  # fmt: skip

    def __init__(
        self, descriptor: int, number: int, values: Values | None, terminal: int = -1
    ) -> None:
        self.descriptor = descriptor
        self.terminal = terminal  # the command's end of it; negative: this is a pipe
        self.number = number
        self.redactor = values.redactor() if values is not None else None
        self.carry = b""
        self.since = 0  # wall time at which the carry's first byte was read, in nanoseconds
        self.begun = False  # whether earlier pieces of the unfinished line were written
        self.end = 0  # the number after its last line

    @property
    def undecided(self) -> bool:
        """Whether the carry may become a progress report instead of a line."""
        carry, prefix = self.carry, progress.PREFIX
        return not self.begun and (carry.startswith(prefix) or prefix.startswith(carry))

    def shown(self) -> bytes:
        """Return the part of the carry that is certainly text of the line: whole characters."""
        if not self.carry or self.undecided:
            return b""
        return self.carry[: _end_of_characters(self.carry)]


class Capture:
    """
    Moves the output of one run from the pipes to the spool.

    Attributes:
        spool: Receives the frames.
        progress: Receives progress reports, which are not lines.
        unfinished: Publishes the text of unfinished lines.
        dropped: Number of lines beyond the output limit.
        copy: The file that gets a copy of stdout, or None.
    """

    def __init__(
        self,
        directory: int,
        *,
        limit: int | None,
        redact: list[bytes],
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """
        Args:
            directory: The job directory.
            limit: Maximum bytes of output, or None.
            redact: Values to mask.
            time_ns: Returns the wall time in nanoseconds, for the time of the lines.
        """
        self.spool = Spool(directory)
        self._values = Values(redact) if redact else None
        self.progress = ProgressReader(self.spool, self.write_system, self._values, time_ns)
        self.unfinished = UnfinishedLines(directory, self._unfinished_frames)
        self.dropped = 0
        self.copy: OutputFile | None = None
        self._streams: dict[int, _Stream] = {}
        self._limit = limit
        self._room = limit
        self._over = False
        self._system_end = 0  # the number after the last line of jobcore
        self._time_ns = time_ns

    @property
    def descriptors(self) -> list[int]:
        """The pipes that have not reached their end."""
        return list(self._streams)

    @property
    def held(self) -> bool:
        """Whether the pipes must not be read, because there is no space for the output."""
        return self.spool.held or (self.copy is not None and self.copy.held)

    @property
    def errno(self) -> int:
        """Why they must not be read, as an errno."""
        return self.spool.errno if self.spool.held or self.copy is None else self.copy.errno

    def flush(self) -> bool:
        """Write what is held, as far as there is space; False: some still waits."""
        written = self.copy is None or not self.copy.held or self.copy.flush()
        return (not self.spool.held or self.spool.flush()) and written

    def copy_stdout(self, path: bytes, umask: int) -> None:
        """
        Also write the bytes of stdout, unmasked, to the file at an absolute path.

        Raises:
            OSError: It cannot be opened, or is not a regular file.
        """
        self.copy = OutputFile(path, umask, self.write_system)

    def add(self, descriptor: int, stream: int, terminal: int = -1) -> None:
        """
        Take over the non-blocking read end of a pipe, and close it at the end of the pipe.

        Args:
            stream: The stream of the lines.
            terminal: The other end, if it is a terminal. While that is open, the terminal
                has no end, even if no process of the command has it open for a while.
        """
        self._streams[descriptor] = _Stream(descriptor, stream, self._values, terminal)

    def read(self, descriptor: int) -> bool:
        """Read once; False: end of file, and the pipe is now closed."""
        stream = self._streams[descriptor]
        try:
            data = os.read(descriptor, READ_SIZE)
        except BlockingIOError:
            return True
        except OSError:  # no process has the terminal open
            data = b""
        if data:
            self._take(stream, data)
            return True
        self._end(stream)
        return False

    def drain(self) -> None:
        """Read what the pipes contain now and close them, unless the disk is full."""
        for stream in list(self._streams.values()):
            now = read_now if stream.terminal < 0 else read_terminal_now
            for data in now(stream.descriptor):
                self._take(stream, data)
                if self.held:
                    return
            self._end(stream)

    def due(self) -> float:
        """Return the monotonic time at which `advance` has something to write."""
        return min(self.progress.due(), self.unfinished.due)

    def advance(self, now: float) -> None:
        """Write a progress report and unfinished lines, if they are due."""
        self.progress.advance(now)
        if self.unfinished.changed or self.unfinished.due != _NEVER:
            self.unfinished.advance(now)

    def write_system(self, text: str) -> None:
        """Add a line of jobcore, masked and numbered, after all output read so far."""
        self._number_unfinished()
        self._say(text)

    def _say(self, text: str) -> None:
        # Mask first: after cutting, or removing line ends, a value would not be found.
        masked = self.mask(text.encode("utf-8", "backslashreplace")).decode("utf-8", "replace")
        line = " ".join(masked.splitlines())[:8192].encode()
        self.spool.append(frames.SYSTEM, 0, 1, line + b"\n", self._time_ns())
        self._system_end = self.spool.next_sequence

    def mask(self, data: bytes) -> bytes:
        """Return a text about the command with the values masked."""
        return data if self._values is None else self._values.mask(data)

    def close(self) -> None:
        """Close pipes and spool without reading or writing."""
        for stream in self._streams.values():
            _close(stream)
        self._streams.clear()
        if self.copy is not None:
            self.copy.close()
        self.progress.close()
        self.unfinished.close()
        self.spool.close()

    def _unfinished_frames(self) -> bytes:
        """
        Return the unfinished lines as the frames that they would become if they ended now.

        If lines of the other stream were written last, a frame without lines follows. It tells
        where the stream's own last line ends, so that a reader that has come so far can show
        the text before it has read the lines of the other stream.
        """
        found: list[bytes] = []
        ends: list[bytes] = []
        room = self._room
        for stream in self._streams.values():
            text = b"" if self._over else stream.shown()
            if text and (room is None or len(text) <= room):
                first = self.spool.next_sequence
                found += (
                    frames.encode_header(
                        stream.number, frames.OPEN_END, first, 1, stream.since, text
                    ),
                    text,
                )
                end = max(stream.end, self._system_end)
                if end < first:  # at the end, because readers of older versions stop there
                    ends.append(frames.encode_header(stream.number, 0, end, 0, first, b""))
        return b"".join(found + ends)

    def _number_unfinished(self) -> None:
        """Write unfinished lines as pieces, so that they come before the next line."""
        for stream in sorted(self._streams.values(), key=lambda one: one.since):
            text = stream.shown()
            if text:
                stream.carry = stream.carry[len(text) :]
                stream.begun = True
                self._emit(stream, frames.PARTIAL, 1, text, stream.since)

    def _take(self, stream: _Stream, data: bytes) -> None:
        if self.copy is not None and stream.number == frames.STDOUT:
            self.copy.write(data)
        self._split(stream, data if stream.redactor is None else stream.redactor.feed(data))

    def _split(self, stream: _Stream, data: bytes) -> None:
        """Write the whole lines so far, and keep the unfinished one."""
        carry = stream.carry
        buffer = carry + data if carry else data
        time_ns = self._time_ns()
        first_ns = time_ns  # the time of the line that begins with the carry
        if not carry:
            stream.since = time_ns
        elif abs(time_ns - stream.since) >= _AT_ONCE_NS:
            first_ns = stream.since
        # This search is the only cost for ordinary output. `rfind`, because with Python 3.10
        # `in` takes twice as long.
        if buffer.rfind(progress.PREFIX) >= 0:
            buffer = self._without_reports(buffer, time_ns, begun=stream.begun)
            if stream.undecided:  # after removing reports, the first line may be another one
                first_ns = stream.since = time_ns
        position = 0
        lines_end = buffer.rfind(b"\n") + 1
        while position < lines_end or len(buffer) - position > frames.MAX_PAYLOAD:
            limit = position + frames.MAX_PAYLOAD
            cut = lines_end if lines_end <= limit else buffer.rfind(b"\n", position, limit) + 1
            stream.begun = cut <= position
            if stream.begun:
                cut = _cut_line(buffer, limit)
                self._emit(stream, frames.PARTIAL, 1, buffer[position:cut], first_ns)
            else:
                if first_ns != time_ns:
                    cut = buffer.find(b"\n", position) + 1
                payload = buffer[position:cut]
                self._emit(stream, 0, payload.count(b"\n"), payload, first_ns)
            position = cut
            first_ns = stream.since = time_ns
        stream.carry = buffer[position:]
        self._note_unfinished()

    def _note_unfinished(self) -> None:
        # Lines of one stream also change the place of another stream's unfinished line.
        self.unfinished.changed = any(stream.carry for stream in self._streams.values())

    def _without_reports(self, buffer: bytes, time_ns: int, *, begun: bool) -> bytes:
        """
        Hand progress reports to `progress`, and return the other text.

        Args:
            begun: Whether the first line is the rest of a longer one.
        """
        # A line begins after an LF, so add one before the first line, and remove it below.
        text = buffer if begun else b"\n" + buffer
        kept: list[bytes] = []
        position = 0
        begin = text.find(_REPORT_BEGINS)
        while begin >= 0 and (end := text.find(b"\n", begin + 1)) >= 0:
            line = text[begin + 1 : end]
            # A longer line is never a report: it would be cut if it arrived in pieces.
            if len(line) < frames.MAX_PAYLOAD and self._note(line, time_ns):
                kept.append(text[position:begin])
                position = end
            begin = text.find(_REPORT_BEGINS, end)
        kept.append(text[position:])
        rest = b"".join(kept)
        return rest if begun else rest[1:]

    def _note(self, line: bytes, time_ns: int) -> bool:
        """Hand a line with the prefix of reports to `progress`; False: it is not a valid report."""
        report = progress.normalize(line[len(progress.PREFIX) :])
        if report is not None:
            self.progress.note(report, time_ns)
        return report is not None

    def _end(self, stream: _Stream) -> None:
        """Write the rest of a stream as its last line, and close the pipe."""
        if stream.redactor is not None:
            self._split(stream, stream.redactor.feed(b"", final=True))
        rest = stream.carry
        reported = not stream.begun and rest.startswith(progress.PREFIX)
        if rest and not (reported and self._note(rest, self._time_ns())):
            self._emit(stream, frames.OPEN_END, 1, rest, stream.since)
        del self._streams[stream.descriptor]
        _close(stream)
        self._note_unfinished()

    def _emit(self, stream: _Stream, flags: int, count: int, payload: bytes, time_ns: int) -> None:
        """Hand lines to the spool, within the output limit."""
        if self._room is not None:
            if self._over:
                # A line in pieces is counted with its last piece.
                self.dropped += 0 if flags & frames.PARTIAL else count
                return
            if len(payload) > self._room:
                self._reach_limit(stream, flags, count, payload, time_ns)
                return
            self._room -= len(payload)
        self.spool.append(stream.number, flags, count, payload, time_ns)
        stream.end = self.spool.next_sequence

    def _reach_limit(
        self, stream: _Stream, flags: int, count: int, payload: bytes, time_ns: int
    ) -> None:
        """Write the lines that still fit, log that the limit is reached, and drop the rest."""
        fits = payload[: payload.rfind(b"\n", 0, self._room) + 1]
        kept = fits.count(b"\n")
        if kept:
            self.spool.append(stream.number, flags, kept, fits, time_ns)
            stream.end = self.spool.next_sequence
        self._over = True
        self.dropped += 0 if flags & frames.PARTIAL else count - kept
        self._say(f"output limit of {self._limit} bytes reached: the lines that follow are dropped")


def _close(stream: _Stream) -> None:
    os.close(stream.descriptor)
    if stream.terminal >= 0:
        os.close(stream.terminal)


def _end_of_characters(text: bytes) -> int:
    """Return the offset after the last complete UTF-8 character; one may be cut off after it."""
    size = len(text)
    for lead in range(size - 1, max(size - 4, -1), -1):
        byte = text[lead]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return lead if lead + length > size and byte < 0xF8 else size
    return size  # not UTF-8


def _cut_line(buffer: bytes, limit: int) -> int:
    """Return where to cut a line longer than a frame: at `limit`, or before a character there."""
    if buffer[limit] & 0xC0 != 0x80:
        return limit
    for lead in range(limit - 1, limit - 4, -1):
        byte = buffer[lead]
        if byte & 0xC0 != 0x80:
            length = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4
            # Anything else is not UTF-8, and is cut at the limit.
            whole = byte >= 0xC0 and lead + length > limit
            return lead if whole else limit
    return limit
