"""
Reads the database's first page from the write-ahead log, without SQLite.

SQLite cannot read a log without writing to the shared-memory file beside it. This
module can, so it leaves the log of another program unchanged. SQLite's documentation
describes the layout under "WAL-mode File Format".
"""

from __future__ import annotations

import struct

from jobcore.tuning import LARGEST_LOG_SEARCHED

_HEADER = struct.Struct(">8I")  # magic, version, page size, sequence, two salts, two sums
_FRAME = struct.Struct(">6I")  # page number, pages after a commit or 0, two salts, two sums
_MAGIC = 0x377F0682  # if the last bit is set, the checksums use big-endian words


def first_page(log: str) -> bytes | None:
    """
    Return page 1 as of the last commit in the log; None: the log does not contain it.

    Args:
        log: The path of the log. SQLite keeps no locks on this file, so closing it is safe.

    Raises:
        OSError: The log cannot be read.
    """
    with open(log, "rb") as file:
        data = file.read(LARGEST_LOG_SEARCHED)
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
            break  # frames from before a reset, or an incomplete write
        if number == 1:
            pending = page
        if pages:
            committed = pending
        position = begin + page_size
    return committed


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    """Continue the log's checksum over `data`, whose length is a multiple of 8 bytes."""
    first, second = sums
    for one, other in struct.iter_unpack(order + "II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second
