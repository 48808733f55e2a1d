"""Which media type of a log an Accept header asks for (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re

from jobcore.errors import NotAcceptable

TEXT = "text/plain"
NDJSON = "application/x-ndjson"
STREAM_JSON = "application/stream+json"
EVENT_STREAM = "text/event-stream"
#: What a log can be sent as; the first is what a client gets that names none.
LOG_TYPES = (TEXT, NDJSON, STREAM_JSON, EVENT_STREAM)

#: A quoted parameter may hold commas and semicolons that separate nothing. One
#: that is not closed goes on to the end: to look for the next quote instead
#: would take time with the square of the header's length.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
#: More than the grammar has: `.2` and `1.0000` are sent, and clear.
_WEIGHT = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")


def log_type(accept: str | None) -> str:
    """
    Return the one of `LOG_TYPES` that an Accept header prefers.

    The range that names a type most closely gives it its weight; 0 excludes it.
    Of equal weights the closer name wins, then the earlier place in the header,
    then the order of `LOG_TYPES`. Parameters other than `q` are not looked at.
    A weight that is no number counts as none was given: as 1.

    Args:
        accept: The header's value, several headers joined by commas; None or
            empty: anything will do.

    Raises:
        NotAcceptable: It asks for nothing that there is.
    """
    ranges = _ranges(accept or "")
    if not ranges:
        return TEXT
    best: tuple[float, int, int] | None = None
    chosen = ""
    for offered in LOG_TYPES:
        rank = _rank(offered, ranges)
        if rank is not None and (best is None or rank > best):
            best, chosen = rank, offered
    if best is None:
        raise NotAcceptable(accept, LOG_TYPES)
    return chosen


def _rank(offered: str, ranges: list[tuple[str, float]]) -> tuple[float, int, int] | None:
    """Return weight, closeness and place of the closest range, or None where it is excluded."""
    names = ("*/*", offered.partition("/")[0] + "/*", offered)  # from far to close
    found = [
        (names.index(name), -place, weight)
        for place, (name, weight) in enumerate(ranges)
        if name in names
    ]
    if not found:
        return None
    closeness, place, weight = max(found)
    return (weight, closeness, place) if weight else None


def _ranges(accept: str) -> list[tuple[str, float]]:
    """Return the media ranges of a header with their weights, in its order."""
    found = []
    for element in _QUOTED.sub('""', accept).split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        if name:
            # Some clients say "*" for "*/*".
            found.append(("*/*" if name == "*" else name.lower(), _weight(parameters)))
    return found


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = (part.strip() for part in parameter.partition("="))
        if name.lower() == "q":
            return min(float(value), 1.0) if _WEIGHT.fullmatch(value) else 1.0
    return 1.0
