"""
Compresses and checks log segments, with ISA-L if the package `isal` is installed.

ISA-L is several times as fast as zlib and writes the same format. So each of them reads what the
other has written, and a file can move to a machine without it.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from jobcore.tuning import COMPRESSION_LEVEL


class Library(NamedTuple):
    """
    A library that reads and writes the format of zlib.

    Attributes:
        compress: Takes the bytes and the level.
        decompress: Takes the compressed bytes.
        crc32: Takes bytes, and the CRC of those before them.
        error: What `decompress` raises for damaged bytes.
    """

    compress: Callable[[bytes | bytearray | memoryview, int], bytes]
    decompress: Callable[[bytes], bytes]
    crc32: Callable[[bytes | memoryview, int], int]
    error: type[Exception]


ZLIB = Library(zlib.compress, zlib.decompress, zlib.crc32, zlib.error)


@cache
def fastest() -> Library:
    """Return the fastest library that is installed."""
    try:
        # By its name, so that type checkers do not need the optional package.
        isal = importlib.import_module("isal.isal_zlib")
    except ImportError:
        return ZLIB
    return Library(isal.compress, isal.decompress, isal.crc32, isal.error)


def compress(data: bytes | bytearray | memoryview) -> bytes:
    """Return the compressed bytes."""
    return fastest().compress(data, COMPRESSION_LEVEL)


def decompress(data: bytes) -> bytes:
    """
    Return the bytes that were compressed.

    Raises:
        zlib.error: They are damaged. The text is zlib's, whichever library is installed.
        TypeError: It is not bytes.
    """
    library = fastest()
    try:
        return library.decompress(data)
    except library.error:
        return zlib.decompress(data)
