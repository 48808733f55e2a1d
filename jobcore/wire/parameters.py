"""Converts and checks the numeric parameters of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from jobcore.checks import LARGEST_INTEGER
from jobcore.errors import InvalidParameter

#: Jobs in a page: the default, and the maximum.
PAGE_JOBS = 100
MOST_JOBS = 1000


class Page(TypedDict):
    """A page of a listing, as arguments of `JobManager.list_jobs`."""

    limit: int
    before: int | None


def unsigned(value: str | int, name: str) -> int:
    """
    Return the unsigned integer in a parameter of a request, which must be ASCII digits only.

    A number above the largest possible number of a line or a job is reduced to that one. The
    result is the same: nothing comes after it.

    Args:
        value: The text, or a number if the framework has converted it.
        name: The name of the parameter, for the error text.

    Raises:
        InvalidParameter: The value is not an unsigned integer.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return min(value, LARGEST_INTEGER)
    # `isdigit` alone accepts digits of other scripts. `int` accepts signs, blanks and
    # underscores, and refuses more than some 4,000 digits.
    if not (isinstance(value, str) and value.isascii() and value.isdigit()):
        raise InvalidParameter(name, value)
    digits = value.lstrip("0")
    if len(digits) > len(str(LARGEST_INTEGER)):
        return LARGEST_INTEGER
    return min(int(digits or "0"), LARGEST_INTEGER)


def page(query: Mapping[str, str], *, most: int = MOST_JOBS) -> Page:
    """
    Return the page that the query parameters `limit` and `before` select.

    Args:
        query: The parameters of the request; all others are ignored.
        most: Maximum number of jobs in a page, whatever the request asks for.

    Raises:
        InvalidParameter: One of the two is not an unsigned integer.
    """
    before = query.get("before")
    return {
        "limit": min(unsigned(query.get("limit", PAGE_JOBS), "limit"), most),
        "before": None if before is None else unsigned(before, "before"),
    }
