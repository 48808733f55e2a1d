"""
The fixed-size messages between host and supervisor.

The socket preserves message boundaries, so each message is one read. Large or lockable
objects are sent as descriptors along with a request.
"""

from __future__ import annotations

import struct

from jobcore.supervisor import PROTOCOL_VERSION, NewerProtocol

# From supervisor to host. In this order, the number is the pid of the supervisor, and the length
# of the spool. In ENDED it is the supervisor's pid if it takes another job, and 0 if it exits.
# Supervisors of older versions also send 2, when the command runs.
READY = 1
OUTPUT = 3
ENDED = 4
# The number is the errno that keeps output from being written; 0: it is written again.
HELD = 6
# From host to supervisor, with three descriptors: lock, directory, request. The number is 1 if
# the supervisor may have a warm interpreter for it.
REQUEST = 5
# From host to keeper, with one descriptor: the socket for a new supervisor. A keeper sends READY.
FORK = 7

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
        token: The run that it is about, 32 hex digits; `NO_TOKEN` in `READY`.
        number: Its meaning depends on the kind; see above.
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
    Return the message, or None if `data` is not a valid message.

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
