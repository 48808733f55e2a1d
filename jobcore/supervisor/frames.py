"""
Runs of numbered, timestamped output lines, as the supervisor writes them.

A frame is a header and whole lines, byte for byte. The header says the first
sequence number, how many lines follow and how many bytes they take, so whoever
copies frames never needs to look at the output itself. One line longer than
`MAX_PAYLOAD` is cut into *partial* pieces, each with a number of its own.
"""

from __future__ import annotations

import struct
import zlib

from jobcore.supervisor import PROTOCOL_VERSION, NewerProtocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# The stream of a frame: whose lines these are.
SYSTEM = 0  # jobcore's own words about the job
OUTPUT = 1  # stdout and stderr through one pipe, in the order of the writes
STDOUT = 2  # the two pipes of `separate_streams`
STDERR = 3
PROGRESS = 4  # what a job reports of its progress; no line

STREAM_NAMES = ("system", "output", "stdout", "stderr", "progress")

# Flags of a frame.
PARTIAL = 1  # one piece of a line that goes on in the stream's next frame
OPEN_END = 2  # the last line has no terminator: the output ended without one

MAX_PAYLOAD = 65536  # bytes: one read of a full pipe, and the longest line kept whole

MAGIC = b"JF"
# magic, version, stream, flags, 3 unused, first sequence, lines, payload bytes, time in ns, CRC-32
_HEADER = struct.Struct("<2sBBB3xQIIqI")
_UNSIGNED = _HEADER.size - 4  # the CRC covers everything before it, and the payload
HEADER_SIZE = _HEADER.size


class Frame:
    """
    One decoded header, and where its payload lies in the buffer it was read from.

    `first` is the sequence of its first line, `count` how many lines it holds
    (0 is legal), `time_ns` wall time in nanoseconds; `begin`, `start` and `end`
    are offsets of header, payload and the byte behind it.
    """

    __slots__ = ("begin", "count", "end", "first", "flags", "start", "stream", "time_ns")

    def __init__(
        self, begin: int, stream: int, flags: int, first: int, count: int, length: int, time_ns: int
    ) -> None:
        self.begin = begin
        self.stream = stream
        self.flags = flags
        self.first = first
        self.count = count
        self.time_ns = time_ns
        self.start = begin + HEADER_SIZE
        self.end = self.start + length

    @property
    def partial(self) -> bool:
        """Whether this is one piece of a line that goes on in a later frame."""
        return bool(self.flags & PARTIAL)


def encode_header(
    stream: int, flags: int, first: int, count: int, time_ns: int, payload: bytes
) -> bytes:
    """Return the header that goes before `payload`, CRC included."""
    unsigned = _HEADER.pack(
        MAGIC, PROTOCOL_VERSION, stream, flags, first, count, len(payload), time_ns, 0
    )[:_UNSIGNED]
    return unsigned + zlib.crc32(payload, zlib.crc32(unsigned)).to_bytes(4, "little")


def decode(buffer: bytes, offset: int = 0) -> Frame | None:
    """
    Return the frame at `offset`, or None where no whole and undamaged one is.

    Raises:
        NewerProtocol: A newer jobcore wrote it.
    """
    start = offset + HEADER_SIZE
    if start > len(buffer):
        return None
    magic, version, stream, flags, first, count, length, time_ns, crc = _HEADER.unpack_from(
        buffer, offset
    )
    if magic != MAGIC:
        return None
    end = start + length
    if end > len(buffer):
        # A damaged length looks just like a frame not yet written to its end.
        return None
    view = memoryview(buffer)
    if zlib.crc32(view[start:end], zlib.crc32(view[offset : offset + _UNSIGNED])) != crc:
        return None
    if version > PROTOCOL_VERSION:
        raise NewerProtocol(version)
    return Frame(offset, stream, flags, first, count, length, time_ns)


def scan(buffer: bytes, offset: int = 0) -> Iterator[Frame]:
    """Yield the frames from `offset` on, up to the first byte that is not a whole, valid frame."""
    while (frame := decode(buffer, offset)) is not None:
        yield frame
        offset = frame.end


def find_next(buffer: bytes, offset: int) -> int:
    """Return where the next valid frame begins at or behind `offset`, or -1: used behind damage."""
    while (offset := buffer.find(MAGIC, offset)) >= 0:
        if decode(buffer, offset) is not None:
            return offset
        offset += 1
    return -1


def split_lines(buffer: bytes, frame: Frame) -> Iterator[bytes]:
    """Yield the lines of `frame`, each with its terminator; only LF ends a line."""
    position = frame.start
    for _ in range(frame.count):
        newline = buffer.find(b"\n", position, frame.end)
        end = frame.end if newline < 0 else newline + 1
        yield buffer[position:end]
        position = end
