"""Captures the command's output: splits it into lines, masks, limits and spools it."""

from __future__ import annotations

import os
import time

from jobcore.supervisor import frames, progress
from jobcore.supervisor.pipes import READ_SIZE, read_now
from jobcore.supervisor.progress_reader import Meter
from jobcore.supervisor.redaction import Values
from jobcore.supervisor.spool import Spool
from jobcore.supervisor.unfinished_line import Tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_REPORT_BEGINS = b"\n" + progress.PREFIX
#: Nanoseconds. A line that took less time gets the time of its end, so that it can share a frame
#: with the lines that were read with its end.
_AT_ONCE_NS = 250_000_000


class _Stream:
    """One pipe and its unfinished line."""

    __slots__ = ("begun", "carry", "descriptor", "number", "redactor", "since")

    def __init__(self, descriptor: int, number: int, values: Values | None) -> None:
        self.descriptor = descriptor
        self.number = number
        self.redactor = values.redactor() if values is not None else None
        self.carry = b""
        self.since = 0  # wall time at which the carry's first byte was read, in nanoseconds
        self.begun = False  # whether earlier pieces of the unfinished line were written

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
        meter: Receives progress reports, which are not lines.
        tail: Publishes the text of unfinished lines.
        dropped: Number of lines beyond the output limit.
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
        self.meter = Meter(self.spool, self.write_system, self._values, time_ns)
        self.tail = Tail(directory, self._unfinished)
        self.dropped = 0
        self._streams: dict[int, _Stream] = {}
        self._limit = limit
        self._room = limit
        self._over = False
        self._time_ns = time_ns

    @property
    def held(self) -> bool:
        """Whether there is no space. Then do not read until `spool.flush` has succeeded."""
        return self.spool.held

    @property
    def descriptors(self) -> list[int]:
        """The pipes that have not reached their end."""
        return list(self._streams)

    def add(self, descriptor: int, stream: int) -> None:
        """Take over the non-blocking read end of a pipe, and close it at the end of the pipe."""
        self._streams[descriptor] = _Stream(descriptor, stream, self._values)

    def read(self, descriptor: int) -> bool:
        """Read once; False: this was the end of the pipe, which is closed now."""
        stream = self._streams[descriptor]
        try:
            data = os.read(descriptor, READ_SIZE)
        except BlockingIOError:
            return True
        if data:
            self._take(stream, data)
            return True
        self._end(stream)
        return False

    def drain(self) -> None:
        """Read what the pipes contain now and close them, unless the disk is full."""
        for stream in list(self._streams.values()):
            for data in read_now(stream.descriptor):
                self._take(stream, data)
                if self.held:
                    return
            self._end(stream)

    def write_system(self, text: str) -> None:
        """Add a line of jobcore, masked and numbered, after all output read so far."""
        self._number_unfinished()
        self._say(text)

    def _say(self, text: str) -> None:
        # Mask first: after cutting, or removing line ends, a value would not be found.
        masked = self.mask(text.encode("utf-8", "backslashreplace")).decode("utf-8", "replace")
        line = " ".join(masked.splitlines())[:8192].encode()
        self.spool.append(frames.SYSTEM, 0, 1, line + b"\n", self._time_ns())

    def mask(self, data: bytes) -> bytes:
        """Return a text about the command with the values masked."""
        return data if self._values is None else self._values.mask(data)

    def close(self) -> None:
        """Close pipes and spool without reading or writing."""
        for descriptor in self._streams:
            os.close(descriptor)
        self._streams.clear()
        self.meter.close()
        self.tail.close()
        self.spool.close()

    def _unfinished(self) -> bytes:
        """Return the unfinished lines as the frames that they would become if they ended now."""
        found: list[bytes] = []
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
        return b"".join(found)

    def _number_unfinished(self) -> None:
        """Write unfinished lines as pieces, so that they come before the next line."""
        for stream in sorted(self._streams.values(), key=lambda one: one.since):
            text = stream.shown()
            if text:
                stream.carry = stream.carry[len(text) :]
                stream.begun = True
                self._emit(stream, frames.PARTIAL, 1, text, stream.since)

    def _take(self, stream: _Stream, data: bytes) -> None:
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
        # Lines of one stream also change the place of another stream's unfinished line.
        self.tail.changed = bool(stream.carry) or any(
            other.carry for other in self._streams.values()
        )

    def _without_reports(self, buffer: bytes, time_ns: int, *, begun: bool) -> bytes:
        """
        Hand progress reports to the meter, and return the other text.

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
        """Hand a line with the prefix of reports to the meter; False: it is not a valid report."""
        report = progress.normalize(line[len(progress.PREFIX) :])
        if report is not None:
            self.meter.note(report, time_ns)
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
        os.close(stream.descriptor)

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

    def _reach_limit(
        self, stream: _Stream, flags: int, count: int, payload: bytes, time_ns: int
    ) -> None:
        """Write the lines that still fit, log that the limit is reached, and drop the rest."""
        fits = payload[: payload.rfind(b"\n", 0, self._room) + 1]
        kept = fits.count(b"\n")
        if kept:
            self.spool.append(stream.number, flags, kept, fits, time_ns)
        self._over = True
        self.dropped += 0 if flags & frames.PARTIAL else count - kept
        self._say(f"output limit of {self._limit} bytes reached: the lines that follow are dropped")


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
