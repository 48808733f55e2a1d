"""Reads the current content of a pipe in pieces."""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

READ_SIZE = 65536  # bytes; the default capacity of a pipe

_FIONREAD = 0x541B  # from <asm-generic/ioctls.h>, which saves importing `termios`


def read_now(descriptor: int) -> Iterator[bytes]:
    """
    Yield what a non-blocking pipe contains now, in pieces.

    It does not read until the end of the pipe: a process outside the job may hold the pipe
    open and write for ever. What arrives later does not belong to the job.
    """
    left = int.from_bytes(fcntl.ioctl(descriptor, _FIONREAD, b"\0\0\0\0"), "little")
    while left > 0:
        try:
            data = os.read(descriptor, min(left, READ_SIZE))
        except BlockingIOError:
            return
        if not data:
            return
        left -= len(data)
        yield data
