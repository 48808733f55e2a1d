"""Log segments: the statements that store and remove them, and reading lines from them."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select

from jobcore.errors import DatabaseCorrupt
from jobcore.log_lines import LineGroup, pieces_of
from jobcore.models import LogLine
from jobcore.storage import compression, transitions
from jobcore.storage.statement import Statement
from jobcore.storage.tables import IS_FINAL, job, log_segment
from jobcore.storage.transitions import Run
from jobcore.supervisor import frames
from jobcore.tuning import (
    LINES_OF_FRAME,
    SEGMENT_BYTES,
    SEGMENTS_READ_AT_ONCE,
    UNMERGED_READ_AT_ONCE,
)

_STREAMS_APART = ("stdout", "stderr")


class Slice:
    """
    Consecutive whole frames that become one segment.

    Attributes:
        first: The number of the first line.
        count: The number of lines.
        size: The bytes of the frames.
    """

    __slots__ = ("_parts", "count", "first", "size")

    def __init__(self, first: int, count: int, buffer: bytes, begin: int, end: int) -> None:
        self.first = first
        self.count = count
        self.size = end - begin
        self._parts = [(buffer, begin, end)]

    @property
    def data(self) -> bytes | memoryview:
        """The frames. They are copied only if they come from several buffers."""
        parts = [memoryview(buffer)[begin:end] for buffer, begin, end in self._parts]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def append(self, count: int, buffer: bytes, begin: int, end: int) -> None:
        """Append `count` lines as frames, which are between two offsets of the buffer."""
        self.count += count
        self.size += end - begin
        last, first, last_end = self._parts[-1]
        if last is buffer and last_end == begin:
            self._parts[-1] = (buffer, first, end)
        else:
            self._parts.append((buffer, begin, end))


_INSERT = Statement(
    insert(log_segment).values(
        {column.name: bindparam(column.name) for column in log_segment.c if column.name != "id"}
    )
)


def insert_slices(connection: Connection, number: int, slices: Sequence[Slice]) -> None:
    """Store slices as segments of the job with this number."""
    _INSERT.many(
        connection,
        [
            {
                "job": number,
                "first_sequence": one.first,
                "line_count": one.count,
                "raw_bytes": one.size,
                "compressed": True,
                "data": compression.compress(one.data),
            }
            for one in slices
        ],
    )


def unmerged_after(
    before: tuple[int, int], slices: Sequence[Slice], next_sequence: int
) -> tuple[int, int]:
    """
    Return the unmerged part of a log, which is to be merged later, after slices are stored.

    Args:
        before: First sequence and raw bytes of the unmerged part before.
        next_sequence: The number of the line after the slices. If the slices fill a segment,
            the new unmerged part is empty and begins there.
    """
    gathered = before[1] + sum(one.size for one in slices)
    return (next_sequence, 0) if gathered >= SEGMENT_BYTES else (before[0], gathered)


def append_slices(
    connection: Connection,
    number: int,
    slices: Sequence[Slice],
    *,
    before: tuple[int, int],
    after: tuple[int, int],
) -> None:
    """
    Store slices, and merge the unmerged part of the log once it fills a segment.

    Args:
        before, after: The unmerged part before and after, as of `unmerged_after`.
    """
    insert_slices(connection, number, slices)
    if before[1] and after[0] != before[0]:
        merge(connection, number, before[0])


def merge(connection: Connection, number: int, sequence: int) -> None:
    """Merge segments from `sequence` on into as few as possible; if one is damaged, merge none."""
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
        return  # readers get the error; raising it here would keep the job from being settled
    if len(merged) < len(rows):
        connection.execute(delete(log_segment).where(these))
        insert_slices(connection, number, merged)


def remove_of_deleted(connection: Connection, numbers: Sequence[int], limit: int) -> int:
    """Remove up to `limit` segments of jobs that are final and being deleted; return how many."""
    jobs = select(job.c.number).where(
        job.c.number.in_(numbers), job.c.deleted_at.is_not(None), IS_FINAL
    )
    some = select(log_segment.c.id).where(log_segment.c.job.in_(jobs)).limit(limit)
    return connection.execute(delete(log_segment).where(log_segment.c.id.in_(some))).rowcount


def remove_some(connection: Connection, number: int, limit: int) -> int:
    """Remove up to `limit` segments of a job, whatever its status; return how many."""
    some = select(log_segment.c.id).where(log_segment.c.job == number).limit(limit)
    return connection.execute(delete(log_segment).where(log_segment.c.id.in_(some))).rowcount


def unpack(row: Row[Any]) -> bytes:
    """
    Return the frames of a stored segment, decompressed.

    Raises:
        DatabaseCorrupt: The segment is damaged.
    """
    try:
        return compression.decompress(row.data) if row.compressed else bytes(row.data)
    except (zlib.error, TypeError) as error:
        raise DatabaseCorrupt(f"{_in_words(row)} is damaged: {error}") from error


def _in_words(row: Row[Any]) -> str:
    return f"the log of job number {row.job}, from line {row.first_sequence} on,"


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
    .limit(bindparam("most"))
)


def segments_from(
    connection: Connection, number: int, sequence: int, most: int = SEGMENTS_READ_AT_ONCE
) -> Sequence[Row[Any]]:
    """Return up to `most` segments in order, beginning with the one that holds a line."""
    values = {"number": number, "sequence": sequence, "most": most}
    return connection.execute(_SEGMENTS, values).all()


_BEFORE = (
    select(log_segment)
    .where(
        log_segment.c.job == bindparam("number"),
        log_segment.c.first_sequence < bindparam("sequence"),
    )
    .order_by(log_segment.c.first_sequence.desc())
    .limit(bindparam("most"))
)


def segments_before(
    connection: Connection, number: int, sequence: int, most: int = SEGMENTS_READ_AT_ONCE
) -> Sequence[Row[Any]]:
    """Return up to `most` segments that begin before the line `sequence`, last one first."""
    values = {"number": number, "sequence": sequence, "most": most}
    return connection.execute(_BEFORE, values).all()


def count_to_read(segments: Sequence[Row[Any]]) -> int:
    """Return how many segments to read after these: more if they are not merged yet."""
    size = sum(row.raw_bytes for row in segments)
    return SEGMENTS_READ_AT_ONCE if size > SEGMENT_BYTES else UNMERGED_READ_AT_ONCE


def see_frames(
    connection: Connection, number: int, sequence: int, see: Callable[[frames.Frame], object]
) -> None:
    """Call `see` with each stored frame from the line `sequence` on, and with some before it."""
    while segments := segments_from(connection, number, sequence):
        for row in segments:
            if end_of(row) > sequence:
                sequence = end_of(row)
                for frame in frames_of(row):
                    see(frame)
        if len(segments) < SEGMENTS_READ_AT_ONCE:
            return


def end_of(row: Row[Any]) -> int:
    """Return the number of the line after a stored segment's last line."""
    end: int = row.first_sequence + row.line_count
    return end


def groups(
    row: Row[Any], sequence: int, numbered: dict[str, int] | None = None
) -> Iterator[LineGroup]:
    """
    Yield the lines of a stored segment from the number `sequence` on, in groups.

    Args:
        numbered: Where to note, by stream, the number after the lines of each group, as soon as
            it is yielded.

    Raises:
        DatabaseCorrupt: The segment is damaged after the lines that were yielded.
    """
    data = unpack(row)
    end = 0
    for frame in frames.scan(data, crc32=compression.fastest().crc32):
        end = frame.end
        after = frame.first + frame.count
        if after <= sequence:
            continue  # the header suffices to skip a frame
        stream = frames.STREAM_NAMES[frame.stream]
        if numbered is not None:
            numbered[stream] = after
        group = LineGroup(
            frame.first,
            frame.count,
            frame.time_ns,
            stream,
            frame.partial,
            data[frame.start : frame.end],
        )
        yield group if frame.first >= sequence else group.between(sequence, after)
    if end != len(data):
        raise DatabaseCorrupt(f"{_in_words(row)} is damaged after byte {end}")


def lines(row: Row[Any], sequence: int, numbered: dict[str, int]) -> Iterator[LogLine]:
    """Return an iterator of the lines in `groups`."""
    return itertools.chain.from_iterable(pieces_of(groups(row, sequence, numbered)))


def frames_of(row: Row[Any]) -> list[frames.Frame]:
    """Return the frame headers of a stored segment; for a damaged one, one substitute header."""
    try:
        return list(frames.scan(unpack(row)))
    except DatabaseCorrupt:
        return [frames.Frame(0, frames.OUTPUT, 0, row.first_sequence, row.line_count, 0, 0)]


# --- unfinished lines ---------------------------------------------------------


class Unfinished(NamedTuple):
    """
    The unfinished lines of a running job, as its supervisor last recorded them.

    Attributes:
        first: The number of lines that the job had when the supervisor wrote this.
        lines: The unfinished line of each stream that has one.
        after: For each of `lines`, the number after the last line that comes before it: a line
            of the same stream or of jobcore. It is `first` or less.
    """

    first: int
    lines: tuple[LogLine, ...]
    after: tuple[int, ...]

    @property
    def ends(self) -> dict[str, int]:
        """By stream, the values of `after`."""
        return {line.stream: at for line, at in zip(self.lines, self.after, strict=True)}

    @property
    def age(self) -> tuple[int, int]:
        """Two values that grow whenever the supervisor writes other text."""
        # As long as `first` stays the same, the text only grows.
        return self.first, sum(len(line.raw) for line in self.lines)

    def standing(self, sequence: int, numbered: Mapping[str, int]) -> tuple[LogLine, ...]:
        """
        Return the lines to show to a reader of all lines before the number `sequence`.

        Args:
            numbered: By stream, the number after the last line that was read.
        """
        if numbered.get("system", 0) > self.first:  # before it, all other text was numbered
            return ()
        return tuple(
            line
            for line, after in zip(self.lines, self.after, strict=True)
            if after <= sequence and numbered.get(line.stream, 0) <= self.first
        )


def _slot_content(slot: bytes) -> tuple[list[tuple[frames.Frame, bytes]], dict[int, int]]:
    """Return the frames in a slot, each with its text; and by stream, where its lines end."""
    found: list[tuple[frames.Frame, bytes]] = []
    ends: dict[int, int] = {}
    for frame in frames.scan(slot):
        # All others are remains of an earlier, longer text.
        if not frame.count and found and frame.time_ns == found[0][0].first:
            ends[frame.stream] = frame.first
        elif frame.count and not ends and (not found or frame.first == found[0][0].first):
            found.append((frame, slot[frame.start : frame.end]))
        else:
            break
    return found, ends


def _newer_slot(
    slots: Iterable[bytes],
) -> tuple[list[tuple[frames.Frame, bytes]], dict[int, int]]:
    newest: list[tuple[frames.Frame, bytes]] = []
    ends: dict[int, int] = {}
    age = (-1, 0)
    for slot in slots:
        found, found_ends = _slot_content(slot)
        if found:
            order = (found[0][0].first, sum(len(text) for _, text in found))
            if order > age:
                newest, ends, age = found, found_ends, order
    return newest, ends


def unfinished_frames(slots: Iterable[bytes]) -> list[tuple[frames.Frame, bytes]]:
    """Return the frames in the newer slot of a job's `tail` file, each with its text."""
    return _newer_slot(slots)[0]


def see_numbered(
    connection: Connection, number: int, begin: int, end: int, numbered: dict[str, int]
) -> None:
    """Note for each stream, in `numbered`, the number after its last line between two numbers."""

    def see(frame: frames.Frame) -> None:
        if begin < frame.first + frame.count and frame.first < end:
            stream = frames.STREAM_NAMES[frame.stream]
            numbered[stream] = max(frame.first + frame.count, numbered.get(stream, 0))

    see_frames(connection, number, begin, see)


def standing(
    connection: Connection, number: int, found: Unfinished, next_sequence: int
) -> tuple[LogLine, ...]:
    """Return the unfinished lines that the log does not contain as numbered lines."""
    numbered: dict[str, int] = {}
    if found.first < next_sequence:
        if not any(line.stream in _STREAMS_APART for line in found.lines):
            return ()  # with a merged stream, the next numbered line is the unfinished one
        see_numbered(connection, number, found.first, next_sequence, numbered)
    return found.standing(next_sequence, numbered)


def unfinished(slots: Iterable[bytes]) -> Unfinished | None:
    """Return the unfinished lines in the slots of a job's `tail` file; None: there are none."""
    found, ends = _newer_slot(slots)
    if not found:
        return None
    first = found[0][0].first
    return Unfinished(
        first,
        tuple(
            LogLine(None, frame.time_ns, frames.STREAM_NAMES[frame.stream], text, partial=True)
            for frame, text in found
        ),
        tuple(ends.get(frame.stream, first) for frame, _ in found),
    )


# --- the last lines ------------------------------------------------------------


_NONE: Mapping[str, int] = MappingProxyType({})


class LastLines:
    """
    Finds where the last lines of a log begin. A line may be stored in several pieces.

    It takes the frames of the log from the end backwards.

    Args:
        count: The number of lines to find, 1 or more.
        end: The number after the last line.
        going_on: The streams whose last line continues after `end`, each with the number
            after its last line or piece before `end`, or with a larger number.

    Attributes:
        begin: All lines from this number on belong to the result; None: not found yet.
        pieces: Numbers before `begin` that are pieces of lines in the result.
    """

    def __init__(self, count: int, end: int, going_on: Mapping[str, int] = _NONE) -> None:
        self.begin: int | None = None if count > 0 else end
        self.pieces: set[int] = set()
        self._left = count
        self._ends = {frames.STREAM_NAMES.index(name): at for name, at in going_on.items()}
        self._later = set(self._ends)
        #: Streams whose first entry from `begin` on may have earlier pieces.
        self._open = set(self._later) if count <= 0 else set()

    @property
    def first(self) -> int:
        """The smallest number that belongs to the result."""
        return min(self.pieces, default=self.begin or 0)

    @property
    def found(self) -> bool:
        """Whether the result is complete: earlier frames cannot add to it."""
        return self.begin is not None and not self._open

    def before(self, sequence: int) -> int:
        """Return the number before which to continue, if all from `sequence` on were taken."""
        if self.begin is None:
            return sequence
        # What is left are pieces of lines that go on. There is no line of these streams behind
        # the ends, however many of another stream.
        return min(sequence, max((self._ends.get(one, sequence) for one in self._open), default=0))

    def take(self, frame: frames.Frame) -> None:
        """Take the frame that precedes those taken so far."""
        stream = frame.stream
        if self.begin is not None:
            if stream in self._open and frame.partial:
                self.pieces.add(frame.first)
            elif frame.count:
                self._open.discard(stream)
            return
        # A piece without a continuation was cut off by the end of the output: it ends a line.
        ends = frame.count if not frame.partial else int(stream not in self._later)
        if frame.count:
            self._later.add(stream)
        if ends >= self._left:
            self.begin = frame.first + ends - self._left
            self._open = self._later - {frames.SYSTEM}
            if self.begin > frame.first:
                self._open.discard(stream)
        self._left -= ends


def encode_lines(first: int, raw_lines: Sequence[bytes], time_ns: int, stream: int) -> list[Slice]:
    """Encode whole lines, each with its terminator, as frames, and return the slices."""
    slices: list[Slice] = []
    sequence = first
    for start in range(0, len(raw_lines), LINES_OF_FRAME):
        some = raw_lines[start : start + LINES_OF_FRAME]
        payload = b"".join(some)
        header = frames.encode_header(stream, 0, sequence, len(some), time_ns, payload)
        append_to(slices, sequence, len(some), header + payload)
        sequence += len(some)
    return slices


def append_to(
    slices: list[Slice],
    first: int,
    count: int,
    buffer: bytes,
    begin: int = 0,
    end: int | None = None,
) -> None:
    """
    Append a frame to the last slice; if the slice would get too large, begin a new one.

    Args:
        buffer, begin, end: The frame is between these offsets; None: up to the end.
    """
    end = len(buffer) if end is None else end
    last = slices[-1] if slices else None
    if last is not None and last.size + end - begin <= SEGMENT_BYTES:
        last.append(count, buffer, begin, end)
    else:
        slices.append(Slice(first, count, buffer, begin, end))


def append_task_lines(
    connection: Connection,
    run: Run,
    lines: Sequence[bytes],
    *,
    now: int,
    stream: int = frames.OUTPUT,
) -> Run:
    """
    Append lines to the log of a job without a process.

    Args:
        run: The job, as this transaction read it. It is RUNNING and has no process.
        lines: The lines, each with its terminator.
        now: Microseconds since 1970.

    Returns:
        The job with its counters moved on.

    Raises:
        DatabaseCorrupt: The job's line counters are damaged.
    """
    transitions.require_counters(run)
    count = run.next_sequence + len(lines)
    slices = encode_lines(run.next_sequence, lines, now * 1000, stream)
    unmerged = unmerged_after(run.unmerged, slices, count)
    transitions.count_lines_if_own(connection, run, next_sequence=count, unmerged=unmerged)
    append_slices(connection, run.number, slices, before=run.unmerged, after=unmerged)
    return run._replace(next_sequence=count, loose_sequence=unmerged[0], loose_bytes=unmerged[1])
