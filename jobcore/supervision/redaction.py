"""Redaction: secret values in a stream of bytes, masked before anything reaches the disk."""

from __future__ import annotations

MASK = b"***"


class Redactor:
    """
    Masks given values in one stream, whatever pieces it comes in.

    Where values overlap, the one that begins first is masked, and of those that
    begin together the longest.
    """

    def __init__(self, values: list[bytes]) -> None:
        self._values = sorted({value for value in values if value}, key=len, reverse=True)
        self._held = b""

    def feed(self, data: bytes, *, final: bool = False) -> bytes:
        """
        Return what is certain by now, masked.

        The end that may be the beginning of a value is held back until more
        bytes decide, or `final` says that there are none.
        """
        buffer = self._held + data if self._held else data
        size = len(buffer)
        found = {value: buffer.find(value) for value in self._values}
        pieces: list[bytes] = []
        position = 0
        while True:
            begin = size
            match = b""
            for value in self._values:
                at = found[value]
                if 0 <= at < position:
                    at = found[value] = buffer.find(value, position)
                if 0 <= at < begin:  # the longer value comes first, and stays
                    begin, match = at, value
            open_end = size if final else self._open_end(buffer, position)
            if not match or begin >= open_end:
                break
            pieces += (buffer[position:begin], MASK)
            position = begin + len(match)
        self._held = buffer[open_end:]
        if not pieces and position == 0 and open_end == size:
            return buffer
        pieces.append(buffer[position:open_end])
        return b"".join(pieces)

    def _open_end(self, buffer: bytes, position: int) -> int:
        """Return where the earliest end of `buffer` begins that a value may begin with."""
        earliest = len(buffer)
        for value in self._values:
            at = max(position, len(buffer) - len(value) + 1)
            while (at := buffer.find(value[:1], at, earliest)) >= 0:
                if value.startswith(buffer[at:]):
                    earliest = at
                    break
                at += 1
        return earliest
