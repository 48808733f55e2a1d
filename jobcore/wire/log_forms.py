"""Encodes the lines of a log as text, NDJSON or server-sent events."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from datetime import datetime

from jobcore.clock import iso_utc, to_datetime
from jobcore.log_lines import LineGroup, taken_in_groups
from jobcore.models import LogLine, line_object
from jobcore.structured_lines import ENCODER, ObjectFinder
from jobcore.wire.accept import EVENT_STREAM, TEXT

#: What to replace in messages, in this order: what JSON escapes, as `ENCODER` does it, and `%`,
#: because the numbers are inserted with `%`. LF ends each line.
_ESCAPES = [(b"%", b"%%")] + [
    (bytes([code]), ENCODER.encode(chr(code))[1:-1].encode()) for code in b'\\"' + bytes(range(32))
]
_ESCAPES.remove((b"\n", b"\\n"))
_AS_THEY_ARE = bytes(set(range(256)) - {old[0] for old, _ in _ESCAPES})


def text(lines: Iterable[LogLine]) -> Iterator[bytes]:
    """
    Yield every numbered line as it was written, with its terminator; no unfinished lines.

    A piece of a longer line has no terminator, so the pieces join up again. The last line
    of a stream gets none if it was written without one. So the text is byte for byte what
    was written. With separate streams, or where jobcore adds lines of its own, a line may
    therefore begin in the middle of another one; `ndjson` distinguishes them.

    Args:
        lines: The lines, from `JobManager.logs` or `follow`. Their exceptions are raised
            here.
    """
    return TextForm().encode_all(lines)


def ndjson(lines: Iterable[LogLine], *, unfinished: bool = False) -> Iterator[bytes]:
    r"""
    Yield one JSON object per line, each followed by `\n`.

    Its fields: `sequence` (number), `timestamp` (ISO 8601 UTC), `stream`
    (`output`, `stdout`, `stderr` or `system`), `message` (text without its
    terminator), `fields` (object), only if the message is a JSON object (see
    `LogLine.fields`), and `partial`, only if it is true.

    An unfinished line has `"unfinished": true` and no `sequence`; the next object of its
    `stream` replaces it.

    Args:
        lines: The lines, from `JobManager.logs` or `follow`. Their exceptions are raised
            here.
        unfinished: Whether to yield unfinished lines, too.
    """
    return NdjsonForm().encode_all(lines, unfinished=unfinished)


def sse(lines: Iterable[LogLine], *, unfinished: bool = False) -> Iterator[bytes]:
    """
    Yield each line as a server-sent event, for `EventSource` in a browser.

    The event's `id` is the number of the line, and its `data` is the object of `ndjson`. A
    client that reconnects sends the last `id` in the header `Last-Event-ID`.

    An unfinished line is an event of the type `unfinished` without `id`; the next event with
    the same `stream`, of either type, replaces it.

    Args:
        lines: The lines, from `JobManager.logs` or `follow`. Their exceptions are raised
            here.
        unfinished: Whether to yield unfinished lines, too.
    """
    return EventForm().encode_all(lines, unfinished=unfinished)


def _wanted(lines: Iterable[LogLine], *, unfinished: bool) -> Iterable[LogLine]:
    return lines if unfinished else (line for line in lines if not line.unfinished)


class Form:
    """
    A form of a log, one line after the other.

    Attributes:
        beginning: Bytes at the beginning of a body, sent before there is a line.
        heartbeat: Bytes sent while no line comes.
    """

    beginning = b""
    heartbeat = b""

    def encode(self, line: LogLine) -> bytes:
        """Return a line as bytes."""
        raise NotImplementedError

    def encode_each(self, group: LineGroup) -> Iterable[bytes]:
        """Return each of these lines as bytes, the same as those of `encode`."""
        raise NotImplementedError

    def encode_group(self, group: LineGroup) -> Iterable[bytes]:
        """Return the same bytes in items of limited size, of one or more lines."""
        raise NotImplementedError

    def encode_all(self, lines: Iterable[LogLine], *, unfinished: bool = False) -> Iterator[bytes]:
        """
        Return an iterator of the lines as bytes.

        Args:
            unfinished: Whether to include unfinished lines.
        """
        taken = taken_in_groups(lines)
        if taken is None:
            return map(self.encode, _wanted(lines, unfinished=unfinished))
        groups, end = taken
        each = itertools.chain.from_iterable(map(self.encode_each, groups))
        return itertools.chain(each, map(self.encode, _wanted(end, unfinished=unfinished)))

    def encode_together(self, lines: Iterable[LogLine]) -> Iterator[bytes]:
        """Return an iterator of the same bytes in items of one or more numbered lines."""
        taken = taken_in_groups(lines)
        if taken is None:
            return self.encode_all(lines)
        groups, _ = taken
        return itertools.chain.from_iterable(map(self.encode_group, groups))


class TextForm(Form):
    """
    Plain text.

    The heartbeat is empty, because every byte would be part of the text. So the server gets
    control, and the client gets nothing.
    """

    def encode(self, line: LogLine) -> bytes:
        """Return a line as bytes."""
        return line.raw

    def encode_each(self, group: LineGroup) -> Iterable[bytes]:
        """Return each of these lines as bytes."""
        return group.raw_lines

    def encode_group(self, group: LineGroup) -> Iterable[bytes]:
        """Return the same bytes at once."""
        return (group.raw,)


class NdjsonForm(Form):
    """
    One JSON object per line.

    A heartbeat is an empty line, which readers of NDJSON ignore.
    """

    heartbeat = b"\n"

    def __init__(self) -> None:
        self._stamped: tuple[datetime | None, str] = (None, "")
        self._finder = ObjectFinder()

    def encode(self, line: LogLine) -> bytes:
        """Return a line as bytes."""
        return self._object(line) + b"\n"

    def encode_each(self, group: LineGroup) -> Iterable[bytes]:
        """Return each of these lines as bytes."""
        return itertools.chain.from_iterable(map(io.BytesIO, self._objects(group)))

    def encode_group(self, group: LineGroup) -> Iterable[bytes]:
        """Return the same bytes in items of limited size, of one or more lines."""
        return self._objects(group)

    def _objects(self, group: LineGroup) -> Iterator[bytes]:
        return map(self._encoded, group.parts())

    def _encoded(self, group: LineGroup) -> bytes:
        # All lines at once, with no step of Python for a single one that is not an object: each
        # line end becomes what is between two messages, with a place for the next line's number.
        timestamp = iso_utc(to_datetime(group.time_ns // 1000))
        middle = f', "timestamp": "{timestamp}", "stream": "{group.stream}", "message": "'
        head = b'{"sequence": %d' + middle.encode()
        tail = b'", "partial": true}\n' if group.partial else b'"}\n'
        lines = b"\n" + group.messages
        special = lines.translate(None, _AS_THEY_ARE)
        escapes = [one for one in _ESCAPES if one[0] in special]
        pieces: list[bytes] = []
        begin = 0
        for end, fields in () if group.partial else self._finder.find(lines):
            pieces += (
                _replaced(lines[begin:end], escapes),
                b'", "fields": ',
                fields.replace(b"%", b"%%"),
                b"\r",  # in place of the LF: no other CR is left
            )
            begin = end + 1
        pieces.append(_replaced(lines[begin:], escapes))
        text = b"".join(pieces).replace(b"\n", tail + head).replace(b"\r", b"}\n" + head)
        return text[len(tail) : -len(head)] % tuple(range(group.first, group.end))

    def _object(self, line: LogLine) -> bytes:
        timestamp = line.timestamp
        if timestamp != self._stamped[0]:  # all lines of a frame have the same timestamp
            self._stamped = (timestamp, iso_utc(timestamp))
        return ENCODER.encode(line_object(line, self._stamped[1])).encode("utf-8")


class EventForm(NdjsonForm):
    """Server-sent events; a heartbeat is a comment, which also begins the body."""

    beginning = heartbeat = b":\n\n"

    def encode(self, line: LogLine) -> bytes:
        """Return a line as bytes."""
        if line.sequence is None:
            return b"event: unfinished\ndata: %s\n\n" % self._object(line)
        return b"id: %d\ndata: %s\n\n" % (line.sequence, self._object(line))

    def encode_each(self, group: LineGroup) -> Iterable[bytes]:
        """Return each of these lines as bytes."""
        # Not a list: a group that stands for lost lines has up to a million.
        objects = enumerate(super().encode_each(group), group.first)
        return (b"id: %d\ndata: %s\n" % (number, one) for number, one in objects)

    def encode_group(self, group: LineGroup) -> Iterable[bytes]:
        """Return the same bytes, an item for each line."""
        return self.encode_each(group)


def _replaced(text: bytes, replacements: list[tuple[bytes, bytes]]) -> bytes:
    for old, new in replacements:
        text = text.replace(old, new)
    return text


def form_of(media_type: str) -> Form:
    """Return a new encoder for one of `accept.LOG_TYPES`."""
    if media_type == TEXT:
        return TextForm()
    return EventForm() if media_type == EVENT_STREAM else NdjsonForm()
