"""
Copies a job directory into the database, every line exactly once.

Frame headers tell which lines follow, so an import does not examine the output itself. Whole
frames are grouped, compressed and inserted, and the same transaction moves the offset by
compare-and-set. Any process may import any job at any time: one of them wins, and the others
find nothing to do.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection

from jobcore.clock import Clock
from jobcore.embedding import failpoints, telemetry
from jobcore.engine.job_directories import Directories
from jobcore.lifecycle import Ending, Reason, Status
from jobcore.storage import compression, log_segments, settlement, transitions
from jobcore.storage.database import Database
from jobcore.storage.transitions import Report, Run
from jobcore.supervisor import (
    NewerProtocol,
    frames,
    job_directory,
    progress,
    result_file,
)

#: Bytes of frames per transaction. This bounds memory, and how long others wait for the lock.
BATCH_BYTES = 2**20
#: The errors of opening a file that something else has replaced; see `job_directory.open_file`.
_REPLACED_FILE = (errno.EINVAL, errno.EISDIR, errno.ENXIO, errno.ELOOP, errno.EACCES)
#: The most replacement lines in one frame, because a damaged gap can have any size.
_HOLE_LINES = 2**20


class NewContent:
    """
    The new content of a job directory, which is not in the database yet.

    Attributes:
        run: The job as it was read before; the import begins at its offset.
        offset, next_sequence: The values of the row after this import.
        slices: The frames in between, without those that have no lines.
        report: The last progress report in between, or None.
        exit: The exit record, if there is one and this import reaches the end of the spool.
        result: The encoded result of its function or command, if it has one.
        state: What it hands to the next run of its pipeline, as JSON, or None.
        goal: The end of the spool when it was read, which may be beyond this one transaction.
        rotated: Whether a whole spool file has been imported, so that it can be removed.
    """

    __slots__ = (
        "_intact_end", "exit", "goal", "next_sequence", "offset", "report", "result", "rotated",
        "run", "slices", "state",
    )  # fmt: skip

    def __init__(self, run: Run) -> None:
        self.run = run
        self.offset: int = run.spool_offset
        self.next_sequence: int = run.next_sequence
        self._intact_end: int = run.spool_offset  # the end of the last intact frame
        self.slices: list[log_segments.Slice] = []
        self.report: Report | None = None
        self.exit: job_directory.ExitRecord | None = None
        self.result: tuple[str, bytes] | None = None
        self.state: bytes | None = None
        self.goal: int = run.spool_offset
        self.rotated = False

    @property
    def durable(self) -> bool:
        """Whether a power failure must not undo it: it settles, or frees a spool file."""
        return self.exit is not None or self.rotated

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return self.exit is None and self.offset == self.run.spool_offset and not self.slices

    def add(self, buffer: bytes, frame: frames.Frame) -> None:
        """Add the next frame; its bytes in the buffer are not copied."""
        if frame.count:  # otherwise it has no lines, and the next frame has the same number
            log_segments.append_to(
                self.slices, frame.first, frame.count, buffer, frame.begin, frame.end
            )
        elif frame.stream == frames.PROGRESS:
            said = progress.parse(buffer[frame.start : frame.end])
            if said is not None:  # None: perhaps the format of a later jobcore
                self.report = Report(*said, at=frame.time_ns // 1000)
        self.offset += frame.end - frame.begin
        self._intact_end = self.offset
        self.next_sequence = frame.first + frame.count

    def can_be_followed_by(self, frame: frames.Frame) -> bool:
        """
        Tell whether a frame that was found after damage can be the supervisor's.

        A job may print bytes that look like a frame, and damage may uncover them. Each line takes
        at least one byte, so no more lines than bytes can be missing.
        """
        missing = frame.first - self.next_sequence
        return 0 <= missing <= self.offset + frame.begin - self._intact_end

    def fill_hole(self, sequence: int, time_ns: int) -> None:
        """Insert `system` lines for the missing ones up to `sequence`: no line is renumbered."""
        while self.next_sequence < sequence:
            count = min(sequence - self.next_sequence, _HOLE_LINES)
            note = b"%d lines are lost from here: the spool is damaged\n" % (
                sequence - self.next_sequence
            )
            self._add_system(note + b"\n" * (count - 1), count, time_ns)

    def add_note(self, note: str, time_ns: int) -> None:
        """Add a `system` line that is not in the spool."""
        self._add_system(note.encode() + b"\n", 1, time_ns)

    def _add_system(self, payload: bytes, count: int, time_ns: int) -> None:
        header = frames.encode_header(frames.SYSTEM, 0, self.next_sequence, count, time_ns, payload)
        log_segments.append_to(self.slices, self.next_sequence, count, header + payload)
        self.next_sequence += count


def _unfinished_in(directory: int) -> list[tuple[frames.Frame, bytes]]:
    """Return the unfinished lines in a job's directory, as frames."""
    try:
        return log_segments.unfinished_frames(job_directory.read_tail(directory))
    except OSError as error:
        if error.errno not in _REPLACED_FILE:
            raise
        return []  # not a supervisor's file; it must not keep the job from being settled


def _result_in(run: Run, directory: int) -> tuple[str, bytes] | None:
    """
    Return the encoded result in a job directory, or None.

    Only that of a function may be pickled. A command could have written any file there, and a
    host that asks for the result would unpickle it.
    """
    if run.calls_function != 0:
        return result_file.read(directory)
    handed = _handed_over(directory, result_file.RESULT)
    return None if handed is None else (settlement.JSON, handed)


def _handed_over(directory: int, name: str) -> bytes | None:
    """Return the JSON text that a command has handed over, or None if it is missing or invalid."""
    try:
        found = result_file.read(directory, name)
    except NewerProtocol:
        return None  # not its supervisor's: that is of the version that wrote the exit record
    if found is None or found[0] != settlement.JSON:
        return None
    if len(found[1]) > result_file.MOST_HANDED[name]:
        return None
    try:
        result_file.parse(found[1])
    except ValueError:
        return None
    return found[1]


def _store_values(connection: Connection, content: NewContent) -> None:
    """Store the result of a COMPLETE job, and the state of its pipeline."""
    if content.result is not None:
        settlement.store_result(connection, content.run.number, *content.result)
    if content.state is not None:
        settlement.store_state(connection, content.run.number, content.state.decode())


class Importer:
    """Imports job directories into the database."""

    def __init__(self, database: Database, directories: Directories, clock: Clock) -> None:
        self._database = database
        self._directories = directories
        self._clock = clock

    def import_all(
        self,
        run: Run,
        *,
        patience: float | None = None,
        verdict: job_directory.ExitRecord | None = None,
        until: float = math.inf,
        most: float = math.inf,
    ) -> Run | None:
        """
        Import the current content of a job directory, and settle the job if it has ended.

        Args:
            patience: Seconds to wait for each write transaction; None: the busy timeout.
            verdict: The exit record to use if the directory has none, or is missing.
            until: When to leave the rest to a later call, by the monotonic clock.
            most: Bytes of the spool after which to leave the rest to a later call.

        Returns:
            The run as it is then; None if it has been removed.

        Raises:
            StoreError: The database failed; the directory still has everything.
        """
        goal: float | None = None
        begin = run.spool_offset
        while True:
            content = self.read(run, verdict)
            if content is None:
                # Another process may have settled the job and removed its directory.
                with self._database.read() as connection:
                    return transitions.find(connection, run.number)
            if content.empty:
                return run
            if goal is None:
                # Stop there: a command may write for ever.
                goal = min(content.goal, begin + most)
            fresh = self._database.write(
                partial(self.apply, content=content),
                durable=content.durable,
                patience=patience,
            )
            self.clean_up(content, fresh)
            if fresh is None or fresh.final:
                return fresh
            if content.exit is None and fresh.spool_offset >= goal:
                return fresh
            if time.monotonic() >= until:
                return fresh
            run = fresh

    def count_lines(
        self,
        run: Run,
        directory: int,
        spool_end: int,
        see: Callable[[frames.Frame], object] = lambda _frame: None,
    ) -> int:
        """
        Return the number that the next line would have, after all lines in the spool.

        Args:
            see: Called with each frame of lines that is not imported yet.
        """
        end = job_directory.ExitRecord(token=run.token or "", reason="", spool_end=spool_end)
        content = NewContent(run)
        while content.offset < end.spool_end:
            self._read_frames(content, directory, end)
            for piece in content.slices:
                for frame in frames.scan(bytes(piece.data)):
                    see(frame)
            content.slices = []
        return content.next_sequence

    def number_unfinished(self, run: Run, directory: int) -> None:
        """
        Append the unfinished lines of a dead supervisor to its spool. The caller holds the lock.

        A second call is harmless: it finds them in the spool.

        Raises:
            OSError: It cannot be written, for lack of space for example.
        """
        found = _unfinished_in(directory)
        if not found:
            return
        first = found[0][0].first
        later: set[int] = set()  # the streams with lines later than the unfinished ones

        def see(frame: frames.Frame) -> None:
            if frame.first + frame.count > first:
                later.add(frame.stream)

        if first < run.next_sequence:
            with self._database.read() as connection:
                log_segments.see_frames(connection, run.number, first, see)
        end = max(run.spool_offset, job_directory.spool_end(directory))
        sequence = self.count_lines(run, directory, end, see)
        # A later `system` line means that all text before it was written. And if lines are
        # lost, the unfinished ones have no place after the gap.
        if frames.SYSTEM in later or first > sequence:
            return
        data = b""
        for frame, text in found:
            if frame.stream not in later:
                header = frames.encode_header(
                    frame.stream, frames.OPEN_END, sequence, 1, frame.time_ns, text
                )
                data += header + text
                sequence += 1
        if data:
            job_directory.append_spool(directory, end, data)

    def read(self, run: Run, verdict: job_directory.ExitRecord | None = None) -> NewContent | None:
        """
        Read new content, as much as fits in one transaction; None: the directory is missing.

        The exit record is read first, because everything written before it is then complete.

        Args:
            verdict: As for `import_all`.
        """
        try:
            with self._directories.open(run.name) as directory:
                verdict = job_directory.read_exit(directory, run.token or "") or verdict
                content = NewContent(run)
                self._read_frames(content, directory, verdict)
                if content.exit is not None and content.exit.wait_status == 0:
                    content.result = _result_in(run, directory)
                    if run.has_followups:
                        content.state = _handed_over(directory, result_file.STATE)
                if failpoints.armed:
                    failpoints.reach(failpoints.IMPORT_READ, self._database)
                return content
        except FileNotFoundError:
            if verdict is None:
                return None
            content = NewContent(run)
            self._conclude(content, verdict)
            return content
        except NewerProtocol as newer:
            telemetry.event(
                logging.WARNING, "left to a newer jobcore", job=str(run.id), protocol=newer.args[0]
            )
            return None

    def _read_frames(
        self, content: NewContent, directory: int, verdict: job_directory.ExitRecord | None
    ) -> None:
        end = None if verdict is None else verdict.spool_end
        taken = 0
        while taken < BATCH_BYTES and (end is None or content.offset < end):
            size = BATCH_BYTES if end is None else min(BATCH_BYTES, end - content.offset)
            buffer = job_directory.read_spool(directory, content.offset, size)
            position = 0
            for frame in frames.scan(buffer, crc32=compression.fastest().crc32):
                if frame.first != content.next_sequence:
                    break  # valid, but not the next one: something before it is missing
                content.add(buffer, frame)
                position = frame.end
            taken += position
            if position:
                continue
            if end is None:
                break  # the next frame is incomplete: its supervisor is still writing
            self._skip_damage(content, directory, buffer, end)
        if verdict is not None and end is not None and content.offset >= end:
            content.goal = content.offset
            self._conclude(content, verdict)
            return  # the whole directory is removed, so no single spool file has to be
        content.goal = max(
            content.offset, job_directory.spool_end(directory) if end is None else end
        )
        # Each spool file ends where the next one begins; so skip the beginning of the first.
        content.rotated = any(
            begin <= content.offset for begin in job_directory.spool_offsets(directory)[1:]
        )

    def _conclude(self, content: NewContent, verdict: job_directory.ExitRecord) -> None:
        """Add the exit record and its note, once all of the spool is in it."""
        at_ns = self._clock.now() * 1000 if verdict.ended_ns is None else verdict.ended_ns
        content.fill_hole(verdict.next_sequence, at_ns)
        if verdict.note is not None:
            content.add_note(verdict.note, at_ns)
        content.exit = verdict

    def _skip_damage(self, content: NewContent, directory: int, buffer: bytes, end: int) -> None:
        """Continue at the next valid frame before `end`, with `system` lines for missing ones."""
        found = frames.find_next(buffer, 0)
        while found >= 0:
            frame = frames.decode(buffer, found)
            if frame is not None and content.can_be_followed_by(frame):
                content.offset += found
                content.fill_hole(frame.first, frame.time_ns)
                return
            found = frames.find_next(buffer, found + 1)
        later = [
            begin for begin in job_directory.spool_offsets(directory) if begin > content.offset
        ]
        # Skip the damage that was searched, but not a frame that may begin near its end.
        step = max(len(buffer) - frames.HEADER_SIZE - frames.MAX_PAYLOAD, 1) if buffer else 0
        if buffer and len(buffer) == BATCH_BYTES:
            content.offset += step
        else:
            content.offset = min([end, *later])

    def apply(self, connection: Connection, content: NewContent) -> Run | None:
        """
        Write the new content in the caller's transaction.

        Returns:
            The run as it is then; None if it has been removed.
        """
        run = content.run
        unmerged = log_segments.unmerged_after(run.unmerged, content.slices, content.next_sequence)
        if content.slices or content.offset != run.spool_offset:
            if not transitions.advance_if_at(
                connection,
                run,
                offset=content.offset,
                next_sequence=content.next_sequence,
                unmerged=unmerged,
                report=content.report,
            ):
                # Another process has already imported this.
                return transitions.find(connection, run.number)
            if content.slices:
                log_segments.append_slices(
                    connection, run.number, content.slices, before=run.unmerged, after=unmerged
                )
            if failpoints.armed:
                failpoints.reach(failpoints.IMPORT_WRITTEN, self._database)
        if content.exit is not None:
            final = self._settle(connection, content, content.exit)
            if final is not None:
                if final.status == Status.COMPLETE:
                    _store_values(connection, content)
                if run.loose_bytes and unmerged[0] == run.loose_sequence:
                    log_segments.merge(connection, run.number, run.loose_sequence)
                if failpoints.armed:
                    failpoints.reach(failpoints.SETTLE_WRITTEN, self._database)
                return final
        return transitions.find(connection, run.number)

    def _settle(
        self, connection: Connection, content: NewContent, verdict: job_directory.ExitRecord
    ) -> Run | None:
        run = content.run
        now = self._clock.now()
        stop_requested = run.stop_requested is not None
        if verdict.wait_status is None and not stop_requested:
            # No process saw the end, so a stop request decides; it may be newer than `run`.
            fresh = transitions.find(connection, run.number)
            stop_requested = fresh is not None and fresh.stop_requested is not None
        return settlement.settle(
            connection,
            run,
            offset=content.offset,
            ending=Ending(
                Reason(verdict.reason),
                verdict.wait_status,
                stop_requested=stop_requested,
            ),
            now=now,
            ended=now if verdict.ended_ns is None else verdict.ended_ns // 1000,
            facts={
                "errno": verdict.errno,
                "cpu_us": verdict.cpu_us,
                "max_rss": verdict.max_rss,
                "dropped": verdict.dropped,
                "unreaped": " ".join(map(str, verdict.unreaped)) or None,
                "left_processes": verdict.left,
            },
        )

    def clean_up(self, content: NewContent, run: Run | None) -> None:
        """After the commit, remove imported spool files, or the directory of a final job."""
        name = content.run.name
        ended = run is None or run.final
        if failpoints.armed:
            failpoints.reach(failpoints.SETTLED if ended else failpoints.IMPORTED, self._database)
        if run is None or run.final:
            self._directories.remove(name)
        elif content.rotated:
            try:
                with self._directories.open(name) as directory:
                    job_directory.drop_imported(directory, run.spool_offset)
            except FileNotFoundError:
                pass
