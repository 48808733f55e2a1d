"""
The database's first page as the write-ahead log has it, read without SQLite.

SQLite cannot look into a log without writing to the shared memory beside it. This
can, so that another program's log stays as it is. See "WAL-mode File Format" in
SQLite's documentation for the layout.
"""

from __future__ import annotations

import struct

#: Bytes of a log beyond which nothing is looked for.
LARGEST = 16 * 2**20

_HEADER = struct.Struct(">8I")  # magic, version, page size, sequence, two salts, two sums
_FRAME = struct.Struct(">6I")  # page number, pages after a commit or 0, two salts, two sums
_MAGIC = 0x377F0682  # with the last bit set: sums are of big-endian words


def first_page(log: str) -> bytes | None:
    """
    Return the first page as the last commit in a log left it; None: the log does not have it.

    Args:
        log: The path of the log. No process has locks on it that a close could drop.

    Raises:
        OSError: It cannot be read.
    """
    with open(log, "rb") as file:
        data = file.read(LARGEST)
    if len(data) < _HEADER.size:
        return None
    magic, _, page_size, _, *salts, first_sum, second_sum = _HEADER.unpack_from(data)
    order = ">" if magic & 1 else "<"
    sums = _checksum(order, data[: _HEADER.size - 8], (0, 0))
    if magic & ~1 != _MAGIC or sums != (first_sum, second_sum):
        return None
    pending = committed = None
    position = _HEADER.size
    while position + _FRAME.size + page_size <= len(data):
        number, pages, *frame_salts, first_sum, second_sum = _FRAME.unpack_from(data, position)
        begin = position + _FRAME.size
        page = data[begin : begin + page_size]
        sums = _checksum(order, page, _checksum(order, data[position : position + 8], sums))
        if frame_salts != salts or sums != (first_sum, second_sum):
            break  # what a reset has left, or the torn end
        if number == 1:
            pending = page
        if pages:
            committed = pending
        position = begin + page_size
    return committed


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    """Return the sums of SQLite's log after these bytes, of which there are 8 or a multiple."""
    first, second = sums
    for one, other in struct.iter_unpack(order + "II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second
