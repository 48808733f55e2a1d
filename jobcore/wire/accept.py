"""Chooses the media type of a log by an Accept header (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re

from jobcore.errors import NotAcceptable

TEXT = "text/plain"
NDJSON = "application/x-ndjson"
STREAM_JSON = "application/stream+json"
EVENT_STREAM = "text/event-stream"
#: The media types of a log. The first is the default.
LOG_TYPES = (TEXT, NDJSON, STREAM_JSON, EVENT_STREAM)

#: A quoted parameter, in which commas and semicolons separate nothing. An unclosed quote
#: extends to the end. Searching for the next quote instead would take time quadratic in the
#: length of the header.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
#: More than the grammar allows, because clients send `.2` and `1.0000`, and they are clear.
_WEIGHT = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")


def log_type(accept: str | None) -> str:
    """
    Return the type of `LOG_TYPES` that an Accept header prefers.

    The most specific range that matches a type gives its weight; 0 excludes the type. With
    equal weights the more specific range wins, then the earlier one in the header, then the
    order of `LOG_TYPES`. Parameters other than `q` are ignored. A weight that is not a
    number counts as 1.

    Args:
        accept: The value of the header; several headers are joined by commas. None or
            empty: any type is acceptable.

    Raises:
        NotAcceptable: The header does not accept any of these types.
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
    """Return weight, specificity and place of the most specific range; None: type excluded."""
    names = ("*/*", offered.partition("/")[0] + "/*", offered)  # increasingly specific
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
    """Return the media ranges of a header with their weights, in order."""
    found = []
    for element in _QUOTED.sub('""', accept).split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        if name:
            # Some clients send "*" for "*/*".
            found.append(("*/*" if name == "*" else name.lower(), _weight(parameters)))
    return found


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = (part.strip() for part in parameter.partition("="))
        if name.lower() == "q":
            return min(float(value), 1.0) if _WEIGHT.fullmatch(value) else 1.0
    return 1.0
