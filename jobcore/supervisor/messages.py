"""
The fixed-size messages between host and supervisor.

The socket keeps message boundaries, so every message is one read. What is large
or must be locked travels beside a request as descriptors.
"""

from __future__ import annotations

import struct

from jobcore.supervisor import PROTOCOL_VERSION, NewerProtocol

# From supervisor to host. The number is the pid of the supervisor, the pid of
# the command, the length of the spool, and in the last one the supervisor's pid
# again when it takes another job, 0 when it leaves.
READY = 1
STARTED = 2
OUTPUT = 3
ENDED = 4
# Why output cannot be written: an errno; 0 when it is written again.
HELD = 6
# From host to supervisor, with three descriptors: lock, directory, request.
REQUEST = 5

DESCRIPTORS = 3

NO_TOKEN = "0" * 32

_MAGIC = b"JN"
# magic, version, kind, 4 unused, token, number
_MESSAGE = struct.Struct("<2sBB4x16sQ")
SIZE = _MESSAGE.size


class Notice:
    """
    One message.

    Attributes:
        kind: One of the constants above.
        token: The run it speaks of, 32 hex digits; `NO_TOKEN` in `READY`.
        number: What it says depends on the kind.
    """

    __slots__ = ("kind", "number", "token")

    def __init__(self, kind: int, token: str, number: int) -> None:
        self.kind = kind
        self.token = token
        self.number = number


def encode(kind: int, token: str = NO_TOKEN, number: int = 0) -> bytes:
    """Return the message as bytes."""
    return _MESSAGE.pack(_MAGIC, PROTOCOL_VERSION, kind, bytes.fromhex(token), number)


def decode(data: bytes) -> Notice | None:
    """
    Return the message, or None where `data` is none.

    Raises:
        NewerProtocol: A newer jobcore sent it.
    """
    if len(data) < SIZE:
        return None
    magic, version, kind, token, number = _MESSAGE.unpack_from(data)
    if magic != _MAGIC:
        return None
    if version > PROTOCOL_VERSION:
        raise NewerProtocol(version)
    return Notice(kind, token.hex(), number)
