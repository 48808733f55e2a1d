"""A request's parameters, as numbers that can be relied on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from jobcore.errors import InvalidParameter

#: No line and no job has a larger number: it is the largest that SQLite knows.
LARGEST = 2**63 - 1
#: Jobs in a page where the request does not say, and where it asks for more.
PAGE_JOBS = 100
MOST_JOBS = 1000


class Page(TypedDict):
    """Which page of a listing: these arguments of `JobManager.list_jobs`."""

    limit: int
    before: int | None


def unsigned(value: str | int, name: str) -> int:
    """
    Return an unsigned integer as a request gives it: ASCII digits and nothing else.

    A number beyond the largest that a line or a job can have becomes that one,
    so that it is as true as any other that nothing lies behind it.

    Args:
        value: The text, or a number that has been read already.
        name: What the request calls it.

    Raises:
        InvalidParameter: It is none.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return min(value, LARGEST)
    # isdigit alone would take the digits of other scripts, and int() a sign,
    # blanks and underscores; it refuses more than some 4,000 digits.
    if not (isinstance(value, str) and value.isascii() and value.isdigit()):
        raise InvalidParameter(name, value)
    digits = value.lstrip("0")
    return LARGEST if len(digits) > len(str(LARGEST)) else min(int(digits or "0"), LARGEST)


def page(query: Mapping[str, str], *, most: int = MOST_JOBS) -> Page:
    """
    Return the page that a query string with `limit` and `before` asks for.

    Args:
        query: The parameters of the request; others are not looked at.
        most: Jobs in a page, however many the request asks for.

    Raises:
        InvalidParameter: One of the two is no unsigned integer.
    """
    before = query.get("before")
    return {
        "limit": min(unsigned(query.get("limit", PAGE_JOBS), "limit"), most),
        "before": None if before is None else unsigned(before, "before"),
    }
