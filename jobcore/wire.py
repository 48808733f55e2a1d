"""Wire: the forms in which a host sends jobs and logs over a network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from jobcore.clock import iso_utc
from jobcore.models import LogLine


def text(lines: Iterable[LogLine]) -> Iterator[bytes]:
    """
    Yield every numbered line as it was written, each with a terminator.

    A piece of a longer line has none, so that the pieces join up again; a last
    line without one gets none either.
    """
    for line in lines:
        yield line.raw


def ndjson(lines: Iterable[LogLine]) -> Iterator[bytes]:
    r"""
    Yield one JSON object a line, each ended by `\n`.

    Its fields: `sequence` (number), `timestamp` (ISO 8601 UTC), `stream`
    (`output`, `stdout`, `stderr` or `system`), `message` (text without its
    terminator), and `partial`, only where it is true.
    """
    stamped: tuple[datetime | None, str] = (None, "")
    for line in lines:
        timestamp = line.timestamp
        if timestamp != stamped[0]:  # all lines of a frame share one
            stamped = (timestamp, iso_utc(timestamp))
        entry: dict[str, Any] = {
            "sequence": line.sequence,
            "timestamp": stamped[1],
            "stream": line.stream,
            "message": line.text,
        }
        if line.partial:
            entry["partial"] = True
        yield json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n"
