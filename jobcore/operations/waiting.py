"""
Waits for jobs, and reads their logs while they grow.

A waiter wakes when there was a commit, and reads the tables only then. Between commits it
looks only into the job directory, and imports what it finds there. So it works even if no
other manager is alive.

Whatever waits for a job or reads it raises JobDeleted if the job is deleted meanwhile, and
WaitTimeout when its time is over.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row

from jobcore import checks
from jobcore.embedding import telemetry
from jobcore.embedding.locks import Condition
from jobcore.embedding.worker import handed_over
from jobcore.engine.recovery import Recovery
from jobcore.errors import DatabaseCorrupt, JobDeleted, StoreError, StoreMismatch, WaitTimeout
from jobcore.lifecycle import Status
from jobcore.log_lines import LineGroup, Lines
from jobcore.models import LogLine
from jobcore.operations.arguments import checked_timeout
from jobcore.storage import log_segments, transitions
from jobcore.storage.database import Database
from jobcore.storage.log_segments import Unfinished
from jobcore.storage.transitions import Run
from jobcore.tuning import LOOK_FIRST, LOOK_LONGEST

#: Seconds between two looks into a job directory: to follow lines, and to wait for the end. After
#: `STEADY_LOOKS` without anything new, the first doubles until it is the second. When a manager
#: imports the output, its commits wake the waiters anyway. Only unfinished lines are found by
#: looking alone, so if the job's supervisor reports to this process, the longest pause is
#: `CONNECTED_PAUSE`.
FOLLOW_PAUSE, WAIT_PAUSE, CONNECTED_PAUSE = 0.005, 0.25, 0.5
STEADY_LOOKS = 5
#: A follower rests at least this many times as long as the last look took, but no longer than
#: `BUSY_PAUSE` for this reason. So many followers of busy jobs leave time for others.
LOOK_SHARE, BUSY_PAUSE = 2, 0.05
#: Seconds after which a follower looks for unfinished lines again while it still has numbered
#: lines to read, and for which it imports at once. It may never read the last one, because a
#: job can write faster than anyone reads.
LOOK_AGAIN = 0.25
#: Seconds before the next look if an import did not succeed, so that another process can do it.
IMPORT_RETRY_PAUSE = 0.25
#: Seconds to wait for a manager to settle a job of another directory as lost.
COPIED_PATIENCE = 5.0
#: Seconds to wait for a manager to kill what a dead supervisor left running; then the waiter
#: does that itself.
LEFT_PATIENCE = 5.0
#: Segments that the first read transaction of a log reads. Most readers want a page of it, which
#: is in one segment or two.
FEW_READ = 2
#: The search for pieces of the last lines ends after this many segments without one.
FEW_SEGMENTS = 64
#: Seconds of the lease of a thread that looks for other threads. If it does not renew the lease,
#: another thread takes over.
LEASE = 0.25
#: Seconds for which an event loop trusts the file version that a thread has seen last, and the
#: longest pause of a thread that looks for others.
VERSION_MAX_AGE = LOOK_LONGEST / 2


#: The text of the WaitTimeout of a drain.
NOT_DRAINED = "jobs were still queued or running"


class Deadline:
    """
    A deadline, `timeout` seconds from now.

    Args:
        timeout: Seconds; None: never.

    Raises:
        ArgumentError: `timeout` is not a number.
    """

    __slots__ = ("_deadline", "_timeout")

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._deadline = time.monotonic() + checked_timeout(timeout)

    @property
    def at(self) -> float:
        """The deadline, by the monotonic clock."""
        return self._deadline

    @property
    def left(self) -> float:
        """Seconds until the deadline, never below 0."""
        return max(self._deadline - time.monotonic(), 0.0)

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self._deadline

    @classmethod
    def of(cls, timeout: float | Deadline | None) -> Deadline:
        """Return a new deadline, or `timeout` itself if it is one that several waits share."""
        return timeout if isinstance(timeout, Deadline) else cls(timeout)

    def error(self, what: object) -> WaitTimeout:
        """Return a `WaitTimeout` that says what was still true at the deadline."""
        return WaitTimeout(f"{what} after {self._timeout} s")


class StoredRow(NamedTuple):
    """
    A job's row as it was read.

    Attributes:
        run: The job; None: it is gone.
        seen: The version of the file before the read; the row is of this version or a later
            one. -1: nothing was read yet.
        damage: Why the row cannot be read, or None.
    """

    run: Run | None = None
    seen: int = -1
    damage: str | None = None


class Leases:
    """Lets one thread look on behalf of all that wait for the same thing."""

    __slots__ = ("_holders",)

    def __init__(self) -> None:
        #: By kind of look: the thread that looks for all, and the time at which its lease ends.
        self._holders: dict[object, tuple[object, float]] = {}

    def acquire(self, what: object, who: object) -> float:
        """Return 0 if `who` is to look for all, or the seconds for which another thread does."""
        holder, until = self._holders.get(what, (None, 0.0))
        now = time.monotonic()
        if holder is not who and now < until:
            return until - now
        self._holders[what] = who, now + LEASE  # if two do this at once, both look: harmless
        return 0.0

    def release(self, what: object, who: object) -> bool:
        """Release the lease of `who`; tell whether it had it."""
        looks = self._holders.get(what, (None, 0.0))[0] is who
        if looks:
            self._holders.pop(what, None)
        return looks


class WatchedJob(Leases):
    """
    What this process knows of a job that is waited for; all waiters of the job share it.

    Therefore one waiter looks into the job directory for all of them.

    Attributes:
        last: The last row that was read. It is one value, replaced as a whole: a thread that
            read row and version separately could take the row of one commit for that of the
            next, and wait for ever.
        visited: When the job directory was last visited, by the monotonic clock.
        cost: Seconds that the last visit took.
        offset: The bytes of output that were imported then; None: there was no visit.
        quiet: The number of visits since there was something new.
        is_connected: Whether its supervisor reported to this process at the last visit. Then the
            commits of this process show its lines and its end.
        copied_since: Since when it is known to be a job of another directory, or None.
        dead_since: Since when its supervisor is known to be dead, or None.
        unfinished: The unfinished lines in its directory at the last look; they may have
            become numbered lines since.
        tail_read: When they were looked for, by the monotonic clock.
    """

    __slots__ = (
        "__weakref__", "copied_since", "cost", "dead_since", "is_connected", "last", "number",
        "offset", "quiet", "tail_read", "unfinished", "visited",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.last = StoredRow()
        self.visited = 0.0
        self.cost = 0.0
        self.offset: int | None = None
        self.quiet = 0
        self.is_connected = False
        self.copied_since: float | None = None
        self.dead_since: float | None = None
        self.unfinished: Unfinished | None = None
        self.tail_read = 0.0

    def note_unfinished(self, found: Unfinished | None) -> bool:
        """Set the unfinished lines, unless another thread has read later ones; tell if new."""
        before = self.unfinished
        if found == before or (found and before and found.age < before.age):
            return False
        self.unfinished = found
        return True

    def replace_row(self, row: StoredRow) -> None:
        """Replace the last row that was read."""
        if row.run != self.last.run:
            self.quiet = 0
        self.last = row


class Cursor(NamedTuple):
    """
    The position of a waiter; each step returns the next one. Immutable.

    So a step that is cancelled, whose result is dropped, loses nothing.

    Attributes:
        run: The job as the waiter last saw it.
        watched: What this process knows of the job; shared by all its waiters.
        interval: Seconds between two looks into the job directory, as long as there is news.
        sequence: The next line to read.
        seen: The version of the file that `run` is from.
        pause: Seconds until the next look for commits; it grows while nothing happens.
        unchanged: Whether the last commits did not change the job.
        shown: The unfinished lines that the waiter has received; None: it wants none.
        begin: The number from which `numbered` is complete.
        numbered: By stream, the number after the last line that the waiter has received. The
            code that receives the lines keeps it up to date.
    """

    run: Run
    watched: WatchedJob
    interval: float
    sequence: int = 0
    seen: int = -1
    pause: float = LOOK_FIRST
    unchanged: bool = False
    shown: tuple[LogLine, ...] | None = None
    begin: int = 0
    numbered: dict[str, int] = {}  # noqa: RUF012 - `following` gives each reader its own

    @property
    def has_lines(self) -> bool:
        """Whether there are lines to read."""
        return self.sequence < self.run.next_sequence

    @property
    def due_at(self) -> float:
        """When to look at the job's files; never if it has no process and no owner."""
        if not (self.run.supervised or self.run.owned):
            return math.inf
        growth = 2.0 ** min(max(self.watched.quiet - STEADY_LOOKS, 0), 8)
        pause = max(self.interval * growth, min(self.watched.cost * LOOK_SHARE, BUSY_PAUSE))
        return self.watched.visited + min(
            pause, CONNECTED_PAUSE if self.watched.is_connected else WAIT_PAUSE
        )

    @property
    def due(self) -> bool:
        """Whether to look at the job's files now."""
        return time.monotonic() >= self.due_at

    @property
    def is_unsure(self) -> bool:
        """Whether lines before its first one may contain the unfinished lines: see `search`."""
        there = self.watched.unfinished
        is_before = there is not None and there.first < self.begin <= self.run.next_sequence
        return is_before and self.shown is not None and not self.run.final

    def unfinished(self, sequence: int | None = None) -> tuple[tuple[LogLine, ...], Cursor]:
        """
        Return the unfinished lines that are new, and the cursor with them shown.

        Args:
            sequence: The next line that the waiter receives, if it has not yet received all
                lines that were read.
        """
        there = self.watched.unfinished
        if self.shown is None or there is None or self.run.final or there.first < self.begin:
            return (), self
        # Not before numbered lines that precede them, nor after those that contain them.
        lines = there.standing(self.sequence if sequence is None else sequence, self.numbered)
        new = tuple(line for line in lines if line not in self.shown)
        if not new:
            return (), self
        streams = {line.stream for line in lines}
        others = (line for line in self.shown if line.stream not in streams)
        return new, self._replace(shown=(*others, *lines))

    @property
    def what(self) -> tuple[float, bool]:
        """The kind of look. A waiter can look only for others that look for the same, as often."""
        return self.interval, self.shown is not None

    @property
    def has_news(self) -> bool:
        """Whether `watched` shows anything of the job that the waiter has not seen."""
        last = self.watched.last
        is_new = last.seen != self.seen and (last.run != self.run or last.damage is not None)
        return is_new or self.is_unsure or bool(self.unfinished()[0])

    def moved(self) -> Cursor:
        """
        Return the cursor updated from `watched`.

        Raises:
            JobDeleted: The job is gone, or another caller is deleting it.
            DatabaseCorrupt: The row holds an invalid value.
        """
        last = self.watched.last
        if last.seen == self.seen:
            return self._replace(unchanged=False, pause=min(self.pause * 2, LOOK_LONGEST))
        if last.damage is not None:
            raise DatabaseCorrupt(last.damage)
        run, seen = require(self.run, last.run), last.seen
        if run == self.run:
            return self._replace(seen=seen, unchanged=self.seen >= 0)
        return self._replace(run=run, seen=seen, unchanged=False, pause=LOOK_FIRST)

    def in_words(self) -> str:
        """Return the state of the job in words, for a WaitTimeout."""
        return f"job {self.run.id} is {self.run.status}"


def is_final(run: Run) -> bool:
    """Tell whether a job has ended."""
    return run.final


def has_started(run: Run) -> bool:
    """Tell whether a job is no longer QUEUED, even if it was cancelled before it started."""
    return run.status != Status.QUEUED


def checked_until(until: object) -> Callable[[Run], bool]:
    """Return the condition to wait for, by its name."""
    named = {"ended": is_final, "started": has_started}
    return named[str(checks.one_of(until, "until", tuple(named)))]


class Waiter:
    """
    Waits for jobs and reads their logs.

    All waiting, in threads and in event loops, uses the steps `refresh`, `visit`, `search`,
    `read` and `look_for_unfinished`. Each blocks no longer than a few transactions.
    """

    def __init__(self, database: Database, recovery: Recovery) -> None:
        self._database = database
        self._recovery = recovery
        #: By job number; an entry disappears with the last waiter of the job.
        self.watched: weakref.WeakValueDictionary[int, WatchedJob] = weakref.WeakValueDictionary()
        self._row_changed = Condition()  # for threads that let another thread look
        #: Of two threads, by kind. False: it looks for commits of all processes, for all waiters.
        #: True: it waits for those of this process, which is enough for jobs that report here.
        self._polling = Leases()

    # --- the steps ----------------------------------------------------------------

    def waiting(self, run: Run) -> Cursor:
        """Return the cursor of a waiter for the job's end."""
        return Cursor(run, self.watched.setdefault(run.number, WatchedJob(run.number)), WAIT_PAUSE)

    def following(self, run: Run, sequence: int, *, unfinished: bool = False) -> Cursor:
        """Return the cursor of a reader of its lines from `sequence` on."""
        watched = self.watched.setdefault(run.number, WatchedJob(run.number))
        shown = () if unfinished else None
        return Cursor(
            run, watched, FOLLOW_PAUSE, sequence, shown=shown, begin=sequence, numbered={}
        )

    def is_stale(self, cursor: Cursor) -> bool:
        """Tell, without locks or I/O, whether there may have been a commit since the last look."""
        return cursor.watched.last.seen != self._database.known_version(VERSION_MAX_AGE)

    def refresh(self, cursor: Cursor) -> None:
        """If there was a commit, read the rows of all jobs that are waited for."""
        version = self._database.version(LOOK_FIRST)
        if cursor.watched.last.seen == version:
            return
        # Copy the references at once, because another thread may add one. The cursor's own
        # job may be missing there, if two threads began to wait for the job at once.
        shared = (reference() for reference in self.watched.valuerefs())
        jobs = {cursor.watched, *(watched for watched in shared if watched is not None)}
        with self._database.read() as connection:
            for watched in jobs:
                if watched.last.seen != version:
                    watched.replace_row(_read_row(connection, watched.number, version))
        self._row_changed.notify_done()

    def visit(self, cursor: Cursor) -> Cursor:
        """
        Look into the job directory, import what is new there, and return the updated cursor.

        Raises:
            JobDeleted: The job was deleted meanwhile.
            DatabaseGone: The directory of all job directories is gone, so nothing can come.
            StoreMismatch: The job was started in another directory, and no manager settles it.
        """
        run = cursor.run
        cursor.watched.visited = begun = time.monotonic()
        cursor.watched.is_connected = self._recovery.is_connected(run)
        unfinished, has_news = self._look_at_files(cursor)
        cursor.watched.quiet = 0 if has_news else cursor.watched.quiet + 1
        if cursor.shown is not None:
            self._note_unfinished(cursor, unfinished)
        fresh = run
        # Leave the import to a manager that has imported since the last visit: it is busy with this
        # job, and both would read the same.
        if has_news and cursor.watched.offset in (None, run.spool_offset):
            kill = self._is_left(cursor)
            until = math.inf if cursor.shown is None else time.monotonic() + LOOK_AGAIN
            fresh = require(run, self._recovery.try_to_reconcile(run, kill=kill, until=until))
            if fresh == run:
                cursor.watched.visited = time.monotonic() + IMPORT_RETRY_PAUSE
            elif fresh.final:
                self._recovery.decide()  # what waits for it, if there are thousands
        cursor.watched.offset = fresh.spool_offset
        cursor.watched.cost = time.monotonic() - begun
        # Keep the version that was seen: another process may have committed after this import.
        return cursor._replace(run=fresh)

    def _note_unfinished(self, cursor: Cursor, found: Unfinished | None) -> None:
        cursor.watched.tail_read = time.monotonic()
        if cursor.watched.note_unfinished(found):
            cursor.watched.quiet = 0
            self._row_changed.notify_done()

    def look_for_unfinished(self, cursor: Cursor) -> Cursor:
        """Look for unfinished lines only; for a reader that has not read all numbered lines."""
        run, is_due = cursor.run, time.monotonic() - cursor.watched.tail_read >= LOOK_AGAIN
        if is_due and run.supervised:
            self._note_unfinished(cursor, self._recovery.unfinished(run))
        return self.search(cursor)

    def search(self, cursor: Cursor) -> Cursor:
        """Look for unfinished lines among the numbered ones before the cursor's first line."""
        there = cursor.watched.unfinished
        if there is None or not cursor.is_unsure:
            return cursor
        with self._database.read() as connection:
            log_segments.see_numbered(
                connection, cursor.run.number, there.first, cursor.begin, cursor.numbered
            )
        return cursor._replace(begin=there.first)

    @handed_over  # all of it at once: each hand-over costs as much as a look at a file
    def _look_at_files(self, cursor: Cursor) -> tuple[Unfinished | None, bool]:
        """Return the unfinished lines, if the waiter wants them, and whether there is news."""
        if not self._recovery.require_root():
            return cursor.watched.unfinished, False
        self._require_here(cursor)
        if cursor.shown is None:
            return None, self._recovery.has_news(cursor.run)
        return self._recovery.look(cursor.run)

    def _is_left(self, cursor: Cursor) -> bool:
        """Tell whether the supervisor is dead, and managers had time to end what it left."""
        watched, now = cursor.watched, time.monotonic()
        if not self._recovery.is_dead(cursor.run):
            watched.dead_since = None
            return False
        if watched.dead_since is None:
            watched.dead_since = now
        return now - watched.dead_since > LEFT_PATIENCE

    def _require_here(self, cursor: Cursor) -> None:
        """Refuse to wait long for a job of another directory, whose output never comes here."""
        run, watched, now = cursor.run, cursor.watched, time.monotonic()
        if not run.supervised or self._recovery.is_here(run):
            watched.copied_since = None
        elif watched.copied_since is None:
            watched.copied_since = now
        elif now - watched.copied_since > COPIED_PATIENCE:
            raise StoreMismatch(
                f"job {run.id} was started in another directory, of which this is a copy: "
                "its output never arrives here. recover() and `jobcore work` settle it as lost"
            )

    def read(self, cursor: Cursor) -> tuple[Sequence[Row[Any]], Cursor]:
        """Return a few segments from the cursor's line on, and the cursor after them."""
        with self._database.read() as connection:
            run = require(cursor.run, transitions.find(connection, cursor.run.number))
            segments = log_segments.segments_from(connection, run.number, cursor.sequence)
        end = log_segments.end_of(segments[-1]) if segments else 0
        if end <= cursor.sequence:
            end = run.next_sequence  # the file is damaged: do not wait for lines that are lost
        return segments, cursor._replace(run=run, sequence=end)

    # --- in the caller's thread -----------------------------------------------------

    def lines(
        self,
        run: Run,
        sequence: int,
        limit: int | None,
        unfinished: Unfinished | None = None,
        goal: int = 0,
    ) -> Iterator[LogLine]:
        """
        Return an iterator of the lines from `sequence` on.

        Lines that are not stored yet are imported once the stored ones have been read.

        Args:
            limit: Most lines to return; None: all.
            unfinished: The unfinished lines from before `run` was brought up to date. They
                come last, unless they have become numbered lines of `run`.
            goal: The offset up to which the job had written before that.
        """
        if run.supervised and run.spool_offset < goal:
            return self._imported_lines(run, sequence, limit, unfinished, goal)
        there = max(run.next_sequence - sequence, 0)
        most = there if limit is None else min(there, limit)
        groups = self._groups(run, sequence, most)
        if sequence > run.next_sequence:
            return Lines.of(groups)
        end = self._end_of(run, unfinished)
        return Lines.of(groups, end if limit is None else end[: limit - most])

    def _imported_lines(
        self, run: Run, sequence: int, limit: int | None, unfinished: Unfinished | None, goal: int
    ) -> Iterator[LogLine]:
        """Return the lines from `sequence` on, and import more while `run` is before `goal`."""
        reached = run
        left = math.inf if limit is None else limit

        def groups() -> Iterator[LineGroup]:
            nonlocal reached, left
            first = sequence
            while True:
                there = max(reached.next_sequence - first, 0)
                most = there if left > there else int(left)
                yield from self._groups(reached, first, most)
                first += most
                left -= most
                fresh = self._import_some(reached, goal) if left else None
                if fresh is None:
                    return
                reached = fresh

        def end() -> Iterator[LogLine]:
            if sequence <= reached.next_sequence and left:
                found = self._end_of(reached, unfinished)
                yield from found if limit is None else found[: int(left)]

        return Lines.of(groups(), end())

    def _import_some(self, run: Run, goal: int) -> Run | None:
        """
        Import some of the output before the offset `goal`, and return the run as it is then.

        Returns:
            None: All of it is imported, or no more can be imported now.
        """
        if not run.supervised or run.spool_offset >= goal:
            return None
        fresh = require(run, self._recovery.try_to_reconcile(run))
        return None if fresh.spool_offset == run.spool_offset else fresh

    def last_lines(
        self, run: Run, count: int, unfinished: Unfinished | None, goal: int = 0
    ) -> Iterator[LogLine]:
        """
        Return an iterator of the last lines, each with all of its pieces.

        Args:
            unfinished, goal: As for `lines`.
        """
        while fresh := self._import_some(run, goal):
            run = fresh
        end = self._end_of(run, unfinished)[-count:] if count else ()
        streams = {line.stream for line in end}
        ends = {} if unfinished is None else unfinished.ends
        going_on = {stream: at for stream, at in ends.items() if stream in streams}
        last = log_segments.LastLines(count - len(end), run.next_sequence, going_on)
        self._find(run, last)
        begin, pieces = last.begin or 0, last.pieces
        groups = self._groups(run, last.first, run.next_sequence - last.first)
        if not pieces:
            return Lines.of(groups, end)
        numbered = (
            line
            for line in Lines.of(groups)
            if line.sequence is not None and (line.sequence >= begin or line.sequence in pieces)
        )
        return itertools.chain(numbered, end)

    def _end_of(self, run: Run, unfinished: Unfinished | None) -> tuple[LogLine, ...]:
        """Return the unfinished lines at the current end of a job's log."""
        if unfinished is None or run.final:
            return ()
        with self._database.read() as connection:
            return log_segments.standing(connection, run.number, unfinished, run.next_sequence)

    def _find(self, run: Run, last: log_segments.LastLines) -> None:
        """Pass the log to `last`, backwards from its end, until `last` has found its first line."""
        sequence, misses, most = last.before(run.next_sequence), 0, FEW_READ
        while not last.found and sequence > 0 and misses < FEW_SEGMENTS:
            with self._database.read() as connection:
                require(run, transitions.find(connection, run.number))
                segments = log_segments.segments_before(connection, run.number, sequence, most)
            if not segments:
                return
            most = log_segments.count_to_read(segments)
            for segment in segments:
                sequence = segment.first_sequence
                known = len(last.pieces)
                for frame in reversed(log_segments.frames_of(segment)):
                    if frame.first < run.next_sequence:
                        last.take(frame)
                if last.before(sequence) == 0:
                    return
                if last.begin is not None:
                    misses = misses + 1 if len(last.pieces) == known else 0
            sequence = last.before(sequence)

    def _groups(self, run: Run, sequence: int, limit: int) -> Iterator[LineGroup]:
        """Yield up to `limit` stored lines from `sequence` on."""
        left, most = limit, FEW_READ
        while left > 0:
            with self._database.read() as connection:
                require(run, transitions.find(connection, run.number))
                segments = log_segments.segments_from(connection, run.number, sequence, most)
            begun, most = sequence, log_segments.count_to_read(segments)
            for segment in segments:
                there = log_segments.end_of(segment) - sequence
                if there <= 0:
                    continue  # damaged: it would lead backwards
                groups = log_segments.groups(segment, sequence)
                if there <= left:
                    yield from groups  # whole, so it can report damage
                elif left:
                    yield from _first_lines(groups, left)
                sequence += min(there, left)
                left -= min(there, left)
            if sequence == begun:
                return

    def follow(
        self,
        run: Run,
        sequence: int,
        timeout: float | None = None,
        check: Callable[[Run], None] = lambda _run: None,
        *,
        unfinished: bool = False,
        on_wait: Callable[[], object] = lambda: None,
    ) -> Iterator[LogLine]:
        """
        Yield the lines from `sequence` on as they come, until the job is final and all are read.

        Args:
            check: As for `wait`.
            unfinished: Whether to yield unfinished lines too, each time they have changed.
            on_wait: Called before each wait.
        """
        deadline = Deadline(timeout)
        cursor = self.following(run, sequence, unfinished=unfinished)
        me = object()
        alarm = min(deadline.at, time.monotonic() + LOOK_AGAIN)
        try:
            while True:
                cursor = self._look(cursor)
                if cursor.has_lines:
                    self._leave(cursor, me)  # the consumer of the lines may be slow
                while cursor.has_lines:
                    first = cursor.sequence
                    segments, cursor = self.read(cursor)
                    for segment in segments:
                        for line in log_segments.lines(segment, first, cursor.numbered):
                            yield line
                            if time.monotonic() > alarm:
                                lines, cursor = self._interrupt(cursor, line, deadline)
                                yield from lines
                                alarm = min(deadline.at, time.monotonic() + LOOK_AGAIN)
                if cursor.run.final:
                    return
                lines, cursor = cursor.unfinished()
                if lines:
                    self._leave(cursor, me)
                yield from lines
                on_wait()
                check(cursor.run)
                self._rest(cursor, deadline, check, me)
        finally:
            self._leave(cursor, me)

    def _interrupt(
        self, cursor: Cursor, last: LogLine, deadline: Deadline
    ) -> tuple[tuple[LogLine, ...], Cursor]:
        """
        Return the new unfinished lines for a follower that has not read all numbered ones.

        Args:
            last: The line that it has received last.
        """
        if deadline.over:
            raise deadline.error(cursor.in_words())
        if last.sequence is None or cursor.shown is None:
            return (), cursor
        return self.look_for_unfinished(cursor).unfinished(last.sequence + 1)

    def wait(
        self,
        run: Run,
        timeout: float | Deadline | None = None,
        check: Callable[[Run], None] = lambda _run: None,
        until: Callable[[Run], bool] = is_final,
    ) -> Run:
        """
        Block until the job is final, and return it.

        Args:
            check: Called with the job at every look while it is not final. It raises an
                error to end the wait.
            until: What to wait for instead: `is_final` or `has_started`.
        """
        deadline = Deadline.of(timeout)
        cursor = self.waiting(run)
        me = object()
        try:
            while not until((cursor := self._look(cursor)).run):
                check(cursor.run)
                self._rest(cursor, deadline, check, me)
        finally:
            self._leave(cursor, me)
        return cursor.run

    def wait_and_log_errors(self, waited: Sequence[Run], seconds: float) -> None:
        """Wait up to `seconds` until all of these are final; log errors instead of raising."""
        deadline = Deadline(seconds)
        for run in waited:
            try:
                self.wait(run, deadline.left)
            except (JobDeleted, WaitTimeout):
                continue
            except StoreError as error:
                telemetry.event(logging.WARNING, "end of jobs not awaited", error=str(error))
                return

    def drain(
        self,
        is_empty: Callable[[], bool],
        running: Callable[[], Sequence[Run]],
        timeout: float | None,
    ) -> None:
        """Block until `is_empty` is true and all jobs that `running` returns are final."""
        deadline = Deadline(timeout)
        while True:
            self.wait_for(is_empty, deadline, NOT_DRAINED)
            found = running()
            if not found:
                return
            for run in found:
                try:
                    self.wait(run, deadline)
                except JobDeleted:
                    continue

    def wait_for(
        self, condition: Callable[[], bool], timeout: float | Deadline | None, what: str
    ) -> None:
        """Block until `condition` is true. It is called after every commit, and now and then."""
        deadline = Deadline.of(timeout)
        pause = LOOK_FIRST
        while True:
            seen = self._database.version(LOOK_FIRST)
            if condition():
                return
            if deadline.over:
                raise deadline.error(what)
            self._database.wait_for_change(seen, min(pause, deadline.left), pause)
            time.sleep(LOOK_FIRST)  # limits the calls while there are many commits a second
            pause = min(pause * 2, LOOK_LONGEST)

    def _look(self, cursor: Cursor) -> Cursor:
        self.refresh(cursor)
        cursor = cursor.moved()
        return self.search(self.visit(cursor) if cursor.due else cursor)

    def _rest(
        self, cursor: Cursor, deadline: Deadline, check: Callable[[Run], None], me: object
    ) -> None:
        """
        Sleep until the next look; while another thread looks for all, sleep until it has news.

        One thread looks for commits. Of the threads whose jobs report to this process, one waits
        for the commits of this process instead. Of those that wait for the same job, one looks into
        its directory. If each thread woke by itself, at each commit or about twenty times a second,
        each would cost as much as the one that looks.
        """
        if deadline.over:
            raise deadline.error(cursor.in_words())
        if cursor.unchanged:
            time.sleep(LOOK_FIRST)  # limits the looks while others commit often
        while True:
            connected = cursor.watched.is_connected
            if self._polling.release(not connected, me):
                self._row_changed.notify_all()  # so that one that needs it takes over
            looked_for = cursor.watched.acquire(cursor.what, me)
            seconds = looked_for or self._polling.acquire(connected, me)
            if not seconds:
                break
            if not looked_for:
                seconds = min(seconds, max(cursor.due_at - time.monotonic(), 0.0))
            self._row_changed.wait(lambda: cursor.has_news, min(seconds, deadline.left))
            if cursor.has_news or (not looked_for and cursor.due):
                return
            if deadline.over:
                raise deadline.error(cursor.in_words())
            check(cursor.run)
        self._sleep(cursor, deadline, connected=connected)

    def _sleep(self, cursor: Cursor, deadline: Deadline, *, connected: bool) -> None:
        """Sleep until there was a commit, or until the next visit."""
        pause, longest = cursor.pause, WAIT_PAUSE
        if connected:
            pause = longest = CONNECTED_PAUSE  # the commits of this process wake it
        elif self._row_changed.is_waited_for:
            pause = min(pause, VERSION_MAX_AGE)  # they see a commit only after this thread does
        if self._row_changed.is_waited_for:
            longest = LEASE / 2  # so that it keeps its leases
        due_in = max(cursor.due_at - time.monotonic(), 0.0)
        self._database.wait_for_change(cursor.seen, min(longest, deadline.left, due_in), pause)

    def _leave(self, cursor: Cursor, me: object) -> None:
        """If this thread has a lease, release it and wake the others, so that one takes over."""
        visits = cursor.watched.release(cursor.what, me)
        polls = [self._polling.release(connected, me) for connected in (False, True)]
        if visits or any(polls):
            self._row_changed.notify_all()


def _read_row(connection: Connection, number: int, version: int) -> StoredRow:
    try:
        return StoredRow(transitions.find(connection, number), version)
    except DatabaseCorrupt as error:  # concerns only the waiters of this job
        return StoredRow(None, version, str(error))


def _first_lines(groups: Iterable[LineGroup], count: int) -> Iterator[LineGroup]:
    """Yield up to `count` lines."""
    left = count  # not up to a number, because lines may be missing before the first group
    for group in groups:
        if left <= 0:
            return
        yield group.between(group.first, group.first + left)
        left -= group.line_count


def require(run: Run, current: Run | None) -> Run:
    """
    Return the current state of a job that a caller knows as `run`.

    Raises:
        JobDeleted: It has been deleted since, or is being deleted.
    """
    # Numbers are never reused, so a row with this number is this job.
    if current is None or (current.deleted_at is not None and run.deleted_at is None):
        raise JobDeleted(run.id)
    return current
