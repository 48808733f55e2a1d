"""Reads pipes in pieces, and at the end only what they hold at that moment."""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

READ_SIZE = 65536  # a full pipe

_FIONREAD = 0x541B  # of <asm-generic/ioctls.h>; the module `termios` is not worth its import


def read_now(descriptor: int) -> Iterator[bytes]:
    """
    Yield what a non-blocking pipe holds at this moment, in pieces.

    Somebody who is no child of ours may hold a pipe open and write for ever:
    what comes after this moment is not the job's.
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
