"""
Frames: groups of numbered output lines with a timestamp, as the supervisor writes them.

A frame is a header and whole lines, byte for byte. The header contains the first sequence
number, the number of lines and the number of bytes. So frames can be copied without reading
the output itself. A line longer than `MAX_PAYLOAD` is cut into *partial* pieces, each with
its own number.
"""

from __future__ import annotations

import struct
import zlib

from jobcore.supervisor import PROTOCOL_VERSION, NewerProtocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Crc32 = Callable[[bytes | memoryview, int], int]

# The stream that the lines of a frame come from.
SYSTEM = 0  # jobcore's own lines about the job
OUTPUT = 1  # stdout and stderr through one pipe, in the order of the writes
STDOUT = 2  # the two pipes of `separate_streams`
STDERR = 3
PROGRESS = 4  # a progress report of the job, which is not a line

STREAM_NAMES = ("system", "output", "stdout", "stderr", "progress")

# Flags of a frame.
PARTIAL = 1  # a piece of a line that continues in the stream's next frame
OPEN_END = 2  # the last line has no terminator: the output ended without one

MAX_PAYLOAD = 65536  # bytes: the content of a full pipe, and the longest line that is not cut

MAGIC = b"JF"
# magic, version, stream, flags, 3 unused, first sequence, lines, payload bytes, time in ns, CRC-32
_HEADER = struct.Struct("<2sBBB3xQIIqI")
_UNSIGNED = _HEADER.size - 4  # the CRC covers the header before it and the payload
HEADER_SIZE = _HEADER.size


class Frame:
    """
    A decoded header, and the position of its payload in the buffer.

    `first` is the sequence number of its first line, `count` the number of lines (0 is
    valid), and `time_ns` the wall time in nanoseconds. `begin`, `start` and `end` are the
    offsets of the header, the payload, and the byte after the payload.
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
        """Whether this is a piece of a line that continues in a later frame."""
        return bool(self.flags & PARTIAL)


def encode_header(
    stream: int, flags: int, first: int, count: int, time_ns: int, payload: bytes
) -> bytes:
    """Return the header for `payload`, including the CRC."""
    unsigned = _HEADER.pack(
        MAGIC, PROTOCOL_VERSION, stream, flags, first, count, len(payload), time_ns, 0
    )[:_UNSIGNED]
    return unsigned + zlib.crc32(payload, zlib.crc32(unsigned)).to_bytes(4, "little")


def decode(buffer: bytes, offset: int = 0, crc32: Crc32 = zlib.crc32) -> Frame | None:
    """
    Return the frame at `offset`; None: there is no complete and undamaged one.

    Args:
        crc32: What to check it with, if there is something faster than zlib.

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
        # Either the frame is not fully written yet, or the length is damaged.
        return None
    view = memoryview(buffer)
    if crc32(view[start:end], crc32(view[offset : offset + _UNSIGNED], 0)) != crc:
        return None
    if version > PROTOCOL_VERSION:
        raise NewerProtocol(version)
    return Frame(offset, stream, flags, first, count, length, time_ns)


def scan(buffer: bytes, offset: int = 0, crc32: Crc32 = zlib.crc32) -> Iterator[Frame]:
    """Yield the frames from `offset` on, until the first position without a valid frame."""
    while (frame := decode(buffer, offset, crc32)) is not None:
        yield frame
        offset = frame.end


def find_next(buffer: bytes, offset: int) -> int:
    """
    Return the offset of the next valid frame from `offset` on, to skip damage; -1: there is no
    other frame.
    """
    while (offset := buffer.find(MAGIC, offset)) >= 0:
        if decode(buffer, offset) is not None:
            return offset
        offset += 1
    return -1
