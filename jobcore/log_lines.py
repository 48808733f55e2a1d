"""The lines of a log in groups, as they are stored, for readers that want no object per line."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

from jobcore.models import LogLine, log_lines

#: The most lines that are made at once; a group of lost lines may have a million.
LINES_AT_ONCE = 4096


class LineGroup(NamedTuple):
    """
    Consecutive lines of one stream that were read at the same time.

    Attributes:
        first: The number of the first line.
        line_count: The number of lines.
        time_ns, stream, partial: As in each `LogLine`.
        raw: The bytes of all lines, each with its line end.
    """

    first: int
    line_count: int
    time_ns: int
    stream: str
    partial: bool
    raw: bytes

    @property
    def end(self) -> int:
        """The number after the last line."""
        return self.first + self.line_count

    @property
    def raw_lines(self) -> list[bytes]:
        """The bytes of each line. Only LF ends a line."""
        found = io.BytesIO(self.raw).readlines()
        if len(found) == self.line_count:
            return found
        # More or fewer lines than the header of the frame says.
        return (found + [b""] * self.line_count)[: self.line_count]

    @property
    def messages(self) -> bytes:
        """The `text` of each line in UTF-8, each with an LF."""
        raw = self.raw if self.raw.isascii() else self.raw.decode("utf-8", "replace").encode()
        if b"\r" in raw:  # this search is much faster than that for the two characters
            raw = raw.replace(b"\r\n", b"\n")
        if raw[-1:] != b"\n":
            raw += b"\n"
        missing = self.line_count - raw.count(b"\n")
        if missing < 0:  # more lines than the header of the frame says
            return b"".join(io.BytesIO(raw).readlines()[: self.line_count])
        return raw + b"\n" * missing

    def between(self, begin: int, end: int) -> LineGroup:
        """Return the group without the lines before the number `begin` and from `end` on."""
        first, last = max(begin, self.first), min(end, self.end)
        if (first, last) == (self.first, self.end):
            return self
        some = self.raw_lines[first - self.first : last - self.first]
        return self._replace(first=first, line_count=len(some), raw=b"".join(some))

    def parts(self) -> Iterator[LineGroup]:
        """Yield the group in parts of at most `LINES_AT_ONCE` lines."""
        if self.line_count <= LINES_AT_ONCE:
            yield self
            return
        raw_lines = self.raw_lines
        for begin in range(0, self.line_count, LINES_AT_ONCE):
            some = raw_lines[begin : begin + LINES_AT_ONCE]
            yield self._replace(first=self.first + begin, line_count=len(some), raw=b"".join(some))


class Lines(itertools.chain[LogLine]):
    """
    An iterator of lines. A reader that has not begun can take them in groups instead.

    Its methods are those of `chain`, so that iterating costs no call of Python.
    """

    feed: _Feed

    @classmethod
    def of(cls, groups: Iterable[LineGroup], end: Iterable[LogLine] = ()) -> Lines:
        """
        Return an iterator.

        Args:
            groups: The numbered lines.
            end: Further lines after them.
        """
        feed = _Feed(groups, end)
        made = cast("Lines", cls.from_iterable(feed.pieces()))
        made.feed = feed
        return made


class _Feed:
    """What a `Lines` reads from; `begun` is set once it has taken a line."""

    def __init__(self, groups: Iterable[LineGroup], end: Iterable[LogLine]) -> None:
        self.groups = groups
        self.end = end
        self.begun = False

    def pieces(self) -> Iterator[Iterable[LogLine]]:
        self.begun = True
        yield from pieces_of(self.groups)
        yield self.end


def pieces_of(groups: Iterable[LineGroup]) -> Iterator[list[LogLine]]:
    """Yield the lines of groups in lists, of which each has a limited length."""
    for group in groups:
        for part in group.parts():
            yield log_lines(part.first, part.time_ns, part.stream, part.raw_lines, part.partial)


def taken_in_groups(
    lines: Iterable[LogLine],
) -> tuple[Iterable[LineGroup], Iterable[LogLine]] | None:
    """Take all lines as groups, and the lines after them; None: this is not possible here."""
    if not isinstance(lines, Lines) or lines.feed.begun:
        return None
    lines.feed.begun = True
    return lines.feed.groups, lines.feed.end
