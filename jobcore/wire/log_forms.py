"""The lines of a log as bytes to send: text, NDJSON or server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime

from jobcore.clock import iso_utc
from jobcore.models import LogLine, line_object
from jobcore.wire.accept import EVENT_STREAM, TEXT

#: `json.dumps` would make one for each line, a sixth of the time.
_ENCODER = json.JSONEncoder(ensure_ascii=False)


def text(lines: Iterable[LogLine]) -> Iterator[bytes]:
    """
    Yield every numbered line as it was written, with its terminator; no unfinished ones.

    A piece of a longer line has none, so that the pieces join up again; the last
    line of a stream without one gets none either. So the text is byte for byte what
    was written, and where two streams are kept apart, or jobcore says something
    itself, a line may begin in the middle of another: `ndjson` tells them apart.

    Args:
        lines: As `JobManager.logs` or `follow` returns them; what these raise is
            raised here.
    """
    return map(TextForm().encode, _wanted(lines, unfinished=False))


def ndjson(lines: Iterable[LogLine], *, unfinished: bool = False) -> Iterator[bytes]:
    r"""
    Yield one JSON object a line, each ended by `\n`.

    Its fields: `sequence` (number), `timestamp` (ISO 8601 UTC), `stream`
    (`output`, `stdout`, `stderr` or `system`), `message` (text without its
    terminator), `fields` (object), only where the message is a JSON object (see
    `LogLine.fields`), and `partial`, only where it is true.

    An unfinished line has `"unfinished": true` and no `sequence`; the next object of its
    `stream` replaces it.

    Args:
        lines: As `JobManager.logs` or `follow` returns them; what these raise is
            raised here.
        unfinished: Yield unfinished lines, too.
    """
    return map(NdjsonForm().encode, _wanted(lines, unfinished=unfinished))


def sse(lines: Iterable[LogLine], *, unfinished: bool = False) -> Iterator[bytes]:
    """
    Yield each line as a server-sent event, for `EventSource` in a browser.

    Its `id` is the number of the line, and its `data` the object of `ndjson`. A client
    that reconnects sends the last `id` as the header `Last-Event-ID`.

    An unfinished line is an event of the type `unfinished` and has no `id`; the next line
    of its `stream`, of either type, replaces it.

    Args:
        lines: As `JobManager.logs` or `follow` returns them; what these raise is
            raised here.
        unfinished: Yield unfinished lines, too.
    """
    return map(EventForm().encode, _wanted(lines, unfinished=unfinished))


def _wanted(lines: Iterable[LogLine], *, unfinished: bool) -> Iterable[LogLine]:
    return lines if unfinished else (line for line in lines if not line.unfinished)


class TextForm:
    """
    Plain text.

    Attributes:
        beginning: What a body begins with before there is a line.
        heartbeat: What is sent while no line comes. Every byte would be one of the text,
            so it is none: the server gets its turn, and the client gets nothing.
    """

    beginning = b""
    heartbeat = b""

    def encode(self, line: LogLine) -> bytes:
        """Return a line as it is sent."""
        return line.raw


class NdjsonForm:
    """
    An object a line; `beginning` and `heartbeat` are as in `TextForm`.

    A heartbeat is an empty line, which readers of NDJSON pass over.
    """

    beginning = b""
    heartbeat = b"\n"

    def __init__(self) -> None:
        self._stamped: tuple[datetime | None, str] = (None, "")

    def encode(self, line: LogLine) -> bytes:
        """Return a line as it is sent."""
        return self._object(line) + b"\n"

    def _object(self, line: LogLine) -> bytes:
        timestamp = line.timestamp
        if timestamp != self._stamped[0]:  # all lines of a frame share one
            self._stamped = (timestamp, iso_utc(timestamp))
        return _ENCODER.encode(line_object(line, self._stamped[1])).encode("utf-8")


class EventForm(NdjsonForm):
    """Server-sent events; a heartbeat is a comment, which also begins the body."""

    beginning = heartbeat = b":\n\n"

    def encode(self, line: LogLine) -> bytes:
        """Return a line as it is sent."""
        if line.sequence is None:
            return b"event: unfinished\ndata: %s\n\n" % self._object(line)
        return b"id: %d\ndata: %s\n\n" % (line.sequence, self._object(line))


Form = TextForm | NdjsonForm


def form_of(media_type: str) -> Form:
    """Return the form of one of `accept.LOG_TYPES`."""
    if media_type == TEXT:
        return TextForm()
    return EventForm() if media_type == EVENT_STREAM else NdjsonForm()
