"""Logs: the statements on segments, and the lines read out of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select

from jobcore.errors import DatabaseCorrupt
from jobcore.lifecycle import Status
from jobcore.models import LogLine
from jobcore.statement import Statement
from jobcore.supervision import frames
from jobcore.tables import job, log_segment

#: Raw bytes of a segment, at most: one is what a reader decompresses to find a
#: line. A guess between many rows and much work for one line.
SEGMENT_BYTES = 256 * 1024
#: Lines that a host appends at once go into one frame: readers skip it by its header.
LINES_OF_FRAME = 1024
#: zlib's fastest: 3.6 million lines/s against 1.8 without compression, as less is written.
LEVEL = 1
#: Segments read in one short transaction: a reader that stays in one keeps the
#: write-ahead log from being truncated.
BATCH = 8


class Slice:
    """Whole frames, one behind the other: what becomes one segment."""

    __slots__ = ("count", "data", "first")

    def __init__(self, first: int, count: int, data: bytes) -> None:
        self.first = first
        self.count = count
        self.data = data


_INSERT = Statement(
    insert(log_segment).values(
        {column.name: bindparam(column.name) for column in log_segment.c if column.name != "id"}
    )
)


def insert_slices(connection: Connection, number: int, slices: Sequence[Slice]) -> None:
    """Store the slices of the job `number`."""
    _INSERT.many(
        connection,
        [
            {
                "job": number,
                "first_sequence": one.first,
                "line_count": one.count,
                "raw_bytes": len(one.data),
                "compressed": True,
                "data": zlib.compress(one.data, LEVEL),
            }
            for one in slices
        ],
    )


def loose_behind(
    before: tuple[int, int], slices: Sequence[Slice], next_sequence: int
) -> tuple[int, int]:
    """
    Return what is to be merged some day, behind slices that are going to be stored.

    Args:
        before: First sequence, and raw bytes, of what was to be merged before.
        next_sequence: The number of the next line; from there on, where these fill a segment.
    """
    gathered = before[1] + sum(len(one.data) for one in slices)
    return (next_sequence, 0) if gathered >= SEGMENT_BYTES else (before[0], gathered)


def append_slices(
    connection: Connection,
    number: int,
    slices: Sequence[Slice],
    *,
    before: tuple[int, int],
    behind: tuple[int, int],
) -> None:
    """Store slices, and merge what was loose `before` where nothing of it is so `behind` them."""
    insert_slices(connection, number, slices)
    if before[1] and behind[0] != before[0]:
        merge(connection, number, before[0])


def merge(connection: Connection, number: int, sequence: int) -> None:
    """Make as few segments as possible out of those from `sequence` on; damaged ones stay."""
    these = (log_segment.c.job == number) & (log_segment.c.first_sequence >= sequence)
    rows = connection.execute(
        select(log_segment).where(these).order_by(log_segment.c.first_sequence)
    ).all()
    if len(rows) < 2:
        return
    merged: list[Slice] = []
    try:
        for row in rows:
            append_to(merged, row.first_sequence, row.line_count, unpack(row))
    except DatabaseCorrupt:
        return  # who reads them is told; that no job could end any more would help nobody
    if len(merged) < len(rows):
        connection.execute(delete(log_segment).where(these))
        insert_slices(connection, number, merged)


def remove_of_deleted(connection: Connection, numbers: Sequence[int], limit: int) -> int:
    """Remove segments of those jobs that are final and being deleted; return how many."""
    final = [str(status) for status in Status if status.final]
    jobs = select(job.c.number).where(
        job.c.number.in_(numbers), job.c.deleted_at.is_not(None), job.c.status.in_(final)
    )
    some = select(log_segment.c.id).where(log_segment.c.job.in_(jobs)).limit(limit)
    return connection.execute(delete(log_segment).where(log_segment.c.id.in_(some))).rowcount


def unpack(row: Row[Any]) -> bytes:
    """
    Return the frames of a stored segment.

    Raises:
        DatabaseCorrupt: It is damaged.
    """
    try:
        return zlib.decompress(row.data) if row.compressed else bytes(row.data)
    except (zlib.error, TypeError) as error:
        raise DatabaseCorrupt(f"{_in_words(row)} is damaged: {error}") from error


def _in_words(row: Row[Any]) -> str:
    return f"the log from line {row.first_sequence} on, of job number {row.job},"


_AT = (
    select(func.coalesce(func.max(log_segment.c.first_sequence), 0))
    .where(
        log_segment.c.job == bindparam("number"),
        log_segment.c.first_sequence <= bindparam("sequence"),
    )
    .scalar_subquery()
)
_SEGMENTS = (
    select(log_segment)
    .where(log_segment.c.job == bindparam("number"), log_segment.c.first_sequence >= _AT)
    .order_by(log_segment.c.first_sequence)
    .limit(BATCH)
)


def segments_from(connection: Connection, number: int, sequence: int) -> Sequence[Row[Any]]:
    """Return a few segments from the one that holds the line `sequence`, in order."""
    return connection.execute(_SEGMENTS, {"number": number, "sequence": sequence}).all()


def end_of(row: Row[Any]) -> int:
    """Return the number behind that of a stored segment's last line."""
    end: int = row.first_sequence + row.line_count
    return end


def lines(row: Row[Any], sequence: int) -> Iterator[LogLine]:
    """
    Yield the lines of a stored segment, from the number `sequence` on.

    Raises:
        DatabaseCorrupt: It is damaged, behind the lines that were yielded.
    """
    data = unpack(row)
    end = 0
    for frame in frames.scan(data):
        end = frame.end
        if frame.first + frame.count <= sequence:
            continue  # whole frames are passed over by their headers
        stream = frames.STREAM_NAMES[frame.stream]
        for number, raw in enumerate(frames.split_lines(data, frame), frame.first):
            if number >= sequence:
                yield LogLine(number, frame.time_ns, stream, raw, partial=frame.partial)
    if end != len(data):
        raise DatabaseCorrupt(f"{_in_words(row)} is damaged behind byte {end}")


def encode_lines(first: int, raw_lines: Sequence[bytes], time_ns: int, stream: int) -> list[Slice]:
    """Return whole lines, each with its terminator, as slices of frames."""
    slices: list[Slice] = []
    sequence = first
    for start in range(0, len(raw_lines), LINES_OF_FRAME):
        some = raw_lines[start : start + LINES_OF_FRAME]
        payload = b"".join(some)
        header = frames.encode_header(stream, 0, sequence, len(some), time_ns, payload)
        append_to(slices, sequence, len(some), header + payload)
        sequence += len(some)
    return slices


def append_to(slices: list[Slice], first: int, count: int, data: bytes) -> None:
    """Append a frame to the last slice, or begin a new one where it would get too large."""
    last = slices[-1] if slices else None
    if last is not None and len(last.data) + len(data) <= SEGMENT_BYTES:
        last.data += data
        last.count += count
    else:
        slices.append(Slice(first, count, data))
