"""Capture: what the command writes into its pipes, as whole lines, masked, limited, spooled."""

from __future__ import annotations

import fcntl
import os
import time

from jobcore.supervision import frames
from jobcore.supervision.redaction import Redactor
from jobcore.supervision.spool import Spool

_READ_SIZE = 65536  # a full pipe
_FIONREAD = 0x541B  # of <asm-generic/ioctls.h>; the module `termios` is not worth its import


class _Stream:
    """One pipe, and the beginning of a line that has not ended yet."""

    __slots__ = ("carry", "descriptor", "dropping", "number", "redactor")

    def __init__(self, descriptor: int, number: int, redact: list[bytes]) -> None:
        self.descriptor = descriptor
        self.number = number
        self.redactor = Redactor(redact) if redact else None
        self.carry = b""
        self.dropping = False  # inside a line that is being dropped


class Capture:
    """
    The output of one run, on its way from the pipes to the spool.

    Attributes:
        spool: Where the frames go.
        dropped: Lines beyond the output limit.
    """

    def __init__(self, directory: int, *, limit: int | None, redact: list[bytes]) -> None:
        self.spool = Spool(directory)
        self.dropped = 0
        self._streams: dict[int, _Stream] = {}
        self._redact = redact
        self._limit = limit
        self._room = limit
        self._over = False

    @property
    def held(self) -> bool:
        """Whether there is no space: nothing may be read until `spool.flush` made some progress."""
        return self.spool.held

    @property
    def descriptors(self) -> list[int]:
        """The pipes that have not come to their end."""
        return list(self._streams)

    def add(self, descriptor: int, stream: int) -> None:
        """Take the reading end of a pipe, non-blocking; it is closed at its end."""
        self._streams[descriptor] = _Stream(descriptor, stream, self._redact)

    def read(self, descriptor: int) -> bool:
        """Read once; False when this was the end of the pipe, which is closed then."""
        stream = self._streams[descriptor]
        try:
            data = os.read(descriptor, _READ_SIZE)
        except BlockingIOError:
            return True
        if data:
            self._take(stream, data)
            return True
        self._end(stream)
        return False

    def drain(self) -> None:
        """
        Read what the pipes hold at this moment, and end them, unless the disk is full.

        Somebody who is no child of ours may hold a pipe open and write for ever:
        what comes after this moment is not the job's.
        """
        for stream in list(self._streams.values()):
            left = self._waiting(stream.descriptor)
            while left > 0 and not self.held:
                try:
                    data = os.read(stream.descriptor, min(left, _READ_SIZE))
                except BlockingIOError:
                    break
                if not data:
                    break
                left -= len(data)
                self._take(stream, data)
            if self.held:
                return
            self._end(stream)

    def write_system(self, text: str) -> None:
        """Add a line of jobcore's own, masked and numbered like any other."""
        line = " ".join(text.splitlines())[:8192].encode("utf-8", "backslashreplace")
        if self._redact:
            line = Redactor(self._redact).feed(line, final=True)
        self.spool.append(frames.SYSTEM, 0, 1, line + b"\n", time.time_ns())

    def close(self) -> None:
        """Close pipes and spool, as they are."""
        for descriptor in self._streams:
            os.close(descriptor)
        self._streams.clear()
        self.spool.close()

    @staticmethod
    def _waiting(descriptor: int) -> int:
        answer = fcntl.ioctl(descriptor, _FIONREAD, b"\0\0\0\0")
        return int.from_bytes(answer, "little")

    def _take(self, stream: _Stream, data: bytes) -> None:
        if self._over:
            self._drop(stream, data)
            return
        if stream.redactor is not None:
            data = stream.redactor.feed(data)
        self._split(stream, data)

    def _split(self, stream: _Stream, data: bytes) -> None:
        """Write the whole lines that are there now, and keep the rest."""
        buffer = stream.carry + data if stream.carry else data
        time_ns = time.time_ns()
        position = 0
        lines_end = buffer.rfind(b"\n") + 1
        while position < lines_end or len(buffer) - position > frames.MAX_PAYLOAD:
            limit = position + frames.MAX_PAYLOAD
            cut = lines_end if lines_end <= limit else buffer.rfind(b"\n", position, limit) + 1
            if cut > position:
                payload = buffer[position:cut]
                self._emit(stream, 0, payload.count(b"\n"), payload, time_ns)
            else:
                cut = _cut_line(buffer, limit)
                self._emit(stream, frames.PARTIAL, 1, buffer[position:cut], time_ns)
            position = cut
        stream.carry = buffer[position:]

    def _end(self, stream: _Stream) -> None:
        """Write what the stream still holds, as its last line, and close it."""
        if stream.redactor is not None and not self._over:
            self._split(stream, stream.redactor.feed(b"", final=True))
        if self._over:
            self._drop(stream, b"")
            self.dropped += stream.dropping
        elif stream.carry:
            self._emit(stream, frames.OPEN_END, 1, stream.carry, time.time_ns())
        del self._streams[stream.descriptor]
        os.close(stream.descriptor)

    def _emit(self, stream: _Stream, flags: int, count: int, payload: bytes, time_ns: int) -> None:
        """Hand lines to the spool, as far as the output limit allows."""
        if self._room is not None:
            if self._over:
                # A piece of a line is counted where the line ends.
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
        """Write the lines that still fit, say so, and drop from here on."""
        fits = payload[: payload.rfind(b"\n", 0, self._room) + 1]
        kept = fits.count(b"\n")
        if kept:
            self.spool.append(stream.number, flags, kept, fits, time_ns)
        self._over = True
        self.dropped += 0 if flags & frames.PARTIAL else count - kept
        self.write_system(
            f"output limit of {self._limit} bytes reached: the lines that follow are dropped"
        )

    def _drop(self, stream: _Stream, data: bytes) -> None:
        """Count the lines, and forget them."""
        if stream.redactor is not None:
            data = stream.redactor.feed(b"", final=True) + data
            stream.redactor = None
        if stream.carry:
            stream.dropping = True
            stream.carry = b""
        if data:
            self.dropped += data.count(b"\n")
            stream.dropping = not data.endswith(b"\n")


def _cut_line(buffer: bytes, limit: int) -> int:
    """Return where a line longer than a frame is cut: at `limit`, or before the character there."""
    if buffer[limit] & 0xC0 != 0x80:
        return limit
    for lead in range(limit - 1, limit - 4, -1):
        byte = buffer[lead]
        if byte & 0xC0 != 0x80:
            length = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4
            # Anything else there is no UTF-8, and is cut where it is.
            whole = byte >= 0xC0 and lead + length > limit
            return lead if whole else limit
    return limit
