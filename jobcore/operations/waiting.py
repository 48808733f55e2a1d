"""
Waits for jobs, and reads their logs while they grow.

It wakes when there was a commit and reads tables only then. Between commits it
looks at the job's directory alone, and whoever looks also brings in what is
there, so nobody else needs to be alive.
"""

from __future__ import annotations

import itertools
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row

from jobcore.embedding import telemetry
from jobcore.embedding.interrupts import Bell
from jobcore.engine.recovery import Recovery
from jobcore.errors import DatabaseCorrupt, JobDeleted, StoreError, StoreMismatch, WaitTimeout
from jobcore.models import LogLine
from jobcore.operations.deadline import Patience
from jobcore.storage import log_segments, transitions
from jobcore.storage.change_counter import LOOK_FIRST, LOOK_LONGEST
from jobcore.storage.database import Database
from jobcore.storage.log_segments import Unfinished
from jobcore.storage.transitions import Run

#: Seconds between two looks into a job's directory: for its lines, and for its end alone.
FOLLOW_PAUSE, WAIT_PAUSE = 0.05, 0.25
#: Seconds for which what could not be brought in is left to others.
BACK_OFF = 0.25
#: Seconds that a manager which runs jobs has to settle one of another directory as lost.
COPIED_PATIENCE = 5.0
#: Seconds that it has to end what a dead supervisor left running; then a waiter does that.
LEFT_PATIENCE = 5.0
#: Segments without a piece of the last lines, after which no more pieces are looked for.
FEW_SEGMENTS = 64
#: Seconds after which another thread looks for all that wait for a job, if the one that does
#: has said nothing for so long.
LEASE = 0.25
#: Seconds for which an event loop trusts what a thread has seen of commits, and between two
#: looks of a thread that looks for others.
TRUST = LOOK_LONGEST / 2


#: What a drain says that took too long.
NOT_DRAINED = "jobs were still queued or running"


class Sighting(NamedTuple):
    """
    A job's row as it was read once.

    Attributes:
        run: The job; None: it is gone.
        seen: The version of the file; the row is this version's, or a later one's.
            -1, which no version is: nothing was read yet.
        damage: Why the row cannot be read, else None.
    """

    run: Run | None = None
    seen: int = -1
    damage: str | None = None


class Sight:
    """
    What this process sees of a job that somebody waits for; all who wait for it share it.

    So one of them looks for all, into the directory and, when there was a
    commit, at the rows of all jobs that anybody waits for.

    Attributes:
        last: What was read last. One value, replaced as a whole: a thread that read the
            row and the version one after the other could take the row of one commit for
            that of the next, and wait for ever.
        visited: When its directory was last looked into, by the monotonic clock.
        copied_since: Since when it is known to be a job of another directory, else None.
        dead_since: Since when its supervisor is known to be dead, else None.
        unfinished: What its directory had of unfinished lines at the last visit.
    """

    __slots__ = (
        "__weakref__", "_lookers", "copied_since", "dead_since", "last", "number", "unfinished",
        "visited",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.last = Sighting()
        self.visited = 0.0
        self.copied_since: float | None = None
        self.dead_since: float | None = None
        self.unfinished: Unfinished | None = None
        #: By what a thread looks for, which does so for all others, and until when.
        self._lookers: dict[object, tuple[object, float]] = {}

    def look_for_all(self, what: object, who: object) -> float:
        """Have `who` look from now on: return 0; or the seconds for which another one does."""
        looker, until = self._lookers.get(what, (None, 0.0))
        now = time.monotonic()
        if looker is not who and now < until:
            return until - now
        self._lookers[what] = who, now + LEASE  # two that do so at once both look
        return 0.0

    def is_left_by(self, what: object, who: object) -> bool:
        """Have `who` look no more; tell whether it did."""
        looks = self._lookers.get(what, (None, 0.0))[0] is who
        if looks:
            self._lookers.pop(what, None)
        return looks


class Cursor(NamedTuple):
    """
    Where somebody who waits for a job stands; each step returns the next one.

    It is a value, so a step whose answer nobody took has lost nothing.

    Attributes:
        run: The job as its waiter last saw it.
        sight: Where he sees what has become of it.
        interval: Seconds between two looks into its directory.
        sequence: The line to be read next.
        seen: The version of the file that `run` is from.
        pause: Seconds until the next look for commits; it grows while nothing happens.
        vain: Whether there were commits since, and they were others' affairs.
        shown: The unfinished lines that its waiter has got; None: it wants none.
    """

    run: Run
    sight: Sight
    interval: float
    sequence: int = 0
    seen: int = -1
    pause: float = LOOK_FIRST
    vain: bool = False
    shown: tuple[LogLine, ...] | None = None

    @property
    def behind(self) -> bool:
        """Whether there are lines to be read."""
        return self.sequence < self.run.next_sequence

    @property
    def due(self) -> bool:
        """Whether it is time to look at its files: a job without a process or an owner has none."""
        has_files = self.run.supervised or self.run.owned
        return has_files and time.monotonic() >= self.sight.visited + self.interval

    def unfinished(self) -> tuple[tuple[LogLine, ...], Cursor]:
        """Return the unfinished lines that are new, and the cursor with them shown."""
        there = self.sight.unfinished
        # Not before lines that were numbered first, nor behind those that it may be a part of.
        if self.shown is None or there is None or not there.first <= self.sequence <= there.behind:
            return (), self
        new = tuple(line for line in there.lines if line not in self.shown)
        return new, self._replace(shown=there.lines) if new else self

    @property
    def what(self) -> tuple[float, bool]:
        """What is looked for, and how often: who looks for less sees nothing for the others."""
        return self.interval, self.shown is not None

    @property
    def has_news(self) -> bool:
        """Whether there is something in sight that its waiter has not seen."""
        return self.sight.last.seen != self.seen or bool(self.unfinished()[0])

    def moved(self) -> Cursor:
        """
        Return the cursor with what is in sight.

        Raises:
            JobDeleted: The job is gone, or is being deleted by somebody else.
            DatabaseCorrupt: The row holds what was never written.
        """
        last = self.sight.last
        if last.seen == self.seen:
            return self._replace(vain=False, pause=min(self.pause * 2, LOOK_LONGEST))
        if last.damage is not None:
            raise DatabaseCorrupt(last.damage)
        run, seen = require(self.run, last.run), last.seen
        if run == self.run:
            return self._replace(seen=seen, vain=self.seen >= 0)
        return self._replace(run=run, seen=seen, vain=False, pause=LOOK_FIRST)

    def in_words(self) -> str:
        """Return what is so of the job, for whoever can wait no longer."""
        return f"job {self.run.id} is {self.run.status}"


class Follower:
    """
    Reads and waits.

    All waiting, in threads and in event loops, is made of the steps `refresh`,
    `visit` and `read`; each blocks for no longer than a few transactions do.

    Args:
        database: Where jobs and lines are.
        recovery: Brings them up to date.
    """

    def __init__(self, database: Database, recovery: Recovery) -> None:
        self._database = database
        self._recovery = recovery
        #: By job number; each is gone with the last of those who wait for it.
        self._sights: weakref.WeakValueDictionary[int, Sight] = weakref.WeakValueDictionary()
        self._news = Bell()  # for threads that leave it to another one to look

    # --- the steps ----------------------------------------------------------------

    def waiting(self, run: Run) -> Cursor:
        """Return the cursor of somebody who waits for the job's end."""
        return Cursor(run, self._sights.setdefault(run.number, Sight(run.number)), WAIT_PAUSE)

    def following(self, run: Run, sequence: int, *, unfinished: bool = False) -> Cursor:
        """Return the cursor of somebody who reads its lines from `sequence` on."""
        sight = self._sights.setdefault(run.number, Sight(run.number))
        return Cursor(run, sight, FOLLOW_PAUSE, sequence, shown=() if unfinished else None)

    def is_stale(self, cursor: Cursor) -> bool:
        """Tell, without any lock or file, whether there may have been a commit since the sight."""
        return cursor.sight.last.seen != self._database.known_version(TRUST)

    def refresh(self, cursor: Cursor) -> None:
        """If there was a commit, read the rows of all jobs in sight."""
        version = self._database.version(LOOK_FIRST)
        if cursor.sight.last.seen == version:
            return
        # The references in one go: another thread may add one meanwhile. The cursor's own
        # sight is not among them if two threads began to wait for the job at once.
        shared = (reference() for reference in self._sights.valuerefs())
        sights = {cursor.sight, *(sight for sight in shared if sight is not None)}
        with self._database.read() as connection:
            for sight in sights:
                if sight.last.seen != version:
                    sight.last = _sighting(connection, sight.number, version)
        self._news.ring()

    def visit(self, cursor: Cursor) -> Cursor:
        """
        Look into the job's directory, bring in what is new there, and return the cursor with it.

        Raises:
            JobDeleted: The job was deleted in between.
            DatabaseGone: The directory of the job directories is gone, so nothing would come.
            StoreMismatch: The job was started in another directory, and no manager settles it.
        """
        run = cursor.run
        cursor.sight.visited = time.monotonic()
        if not self._recovery.require_root():
            return cursor
        self._require_here(cursor)
        unfinished = None
        if cursor.shown is None:
            has_news = self._recovery.has_news(run)
        else:  # before the import: what is numbered by then is seen there
            unfinished, has_news = self._recovery.look(run)
        fresh = run
        if has_news:
            kill = self._is_left(cursor)
            fresh = require(run, self._recovery.reconcile_softly(run, kill=kill))
            if fresh == run:
                cursor.sight.visited = time.monotonic() + BACK_OFF
        if cursor.shown is not None:
            before, standing = cursor.sight.unfinished, self._standing(fresh, unfinished)
            cursor.sight.unfinished = standing
            if standing != before:
                self._news.ring()
        # The version stays the one seen: behind this commit there may be another one.
        return cursor._replace(run=fresh)

    def _is_left(self, cursor: Cursor) -> bool:
        """Tell whether the supervisor is dead and no manager has ended what it left in time."""
        sight, now = cursor.sight, time.monotonic()
        if not self._recovery.is_dead(cursor.run):
            sight.dead_since = None
            return False
        if sight.dead_since is None:
            sight.dead_since = now
        return now - sight.dead_since > LEFT_PATIENCE

    def _require_here(self, cursor: Cursor) -> None:
        """Refuse to wait long for a job of another directory: nothing of it comes to this one."""
        run, sight, now = cursor.run, cursor.sight, time.monotonic()
        if not run.supervised or self._recovery.is_here(run):
            sight.copied_since = None
        elif sight.copied_since is None:
            sight.copied_since = now
        elif now - sight.copied_since > COPIED_PATIENCE:
            raise StoreMismatch(
                f"job {run.id} was started in another directory, of which this is a copy: "
                "nothing more comes here. recover() and `jobcore work` settle it as lost"
            )

    def read(self, cursor: Cursor) -> tuple[Sequence[Row[Any]], Cursor]:
        """
        Return a few segments from the cursor's line on, and the cursor behind them.

        Raises:
            JobDeleted: The job was deleted in between.
        """
        with self._database.read() as connection:
            run = require(cursor.run, transitions.find(connection, cursor.run.number))
            segments = log_segments.segments_from(connection, run.number, cursor.sequence)
        end = log_segments.end_of(segments[-1]) if segments else 0
        if end <= cursor.sequence:
            end = run.next_sequence  # a damaged file: nobody is to wait for lines that are lost
        return segments, cursor._replace(run=run, sequence=end)

    # --- in the caller's thread -----------------------------------------------------

    def lines(
        self, run: Run, sequence: int, limit: int | None, unfinished: Unfinished | None = None
    ) -> Iterator[LogLine]:
        """
        Return an iterator of so many lines from `sequence` on, as far as they are stored.

        Args:
            limit: How many; None: all.
            unfinished: What was there before `run` was brought up to date. It is the end, as
                far as `run` has no lines after it.

        Raises:
            JobDeleted: The job was deleted in between.
        """
        there = max(run.next_sequence - sequence, 0)
        most = there if limit is None else min(there, limit)
        lines = itertools.chain.from_iterable(self._pieces(run, sequence, most))
        if sequence > run.next_sequence:
            return lines
        end = self._end_of(run, unfinished)
        return itertools.chain(lines, end if limit is None else end[: limit - most])

    def last_lines(self, run: Run, count: int, unfinished: Unfinished | None) -> Iterator[LogLine]:
        """
        Return an iterator of the last lines, each with all of its pieces.

        Args:
            unfinished: As for `lines`.

        Raises:
            JobDeleted: The job was deleted in between.
        """
        end = self._end_of(run, unfinished)[-count:] if count else ()
        streams = [line.stream for line in end]
        last = log_segments.LastLines(count - len(end), run.next_sequence, streams)
        self._find(run, last)
        begin, pieces = last.begin or 0, last.pieces
        lines = itertools.chain.from_iterable(
            self._pieces(run, last.first, run.next_sequence - last.first)
        )
        numbered = (
            line
            for line in lines
            if line.sequence is not None and (line.sequence >= begin or line.sequence in pieces)
        )
        return itertools.chain(numbered if pieces else lines, end)

    def _end_of(self, run: Run, unfinished: Unfinished | None) -> tuple[LogLine, ...]:
        """Return the unfinished lines with which the log of a job ends now."""
        standing = None if run.final else self._standing(run, unfinished)
        is_there = standing is not None and standing.first <= run.next_sequence <= standing.behind
        return standing.lines if standing is not None and is_there else ()

    def _standing(self, run: Run, unfinished: Unfinished | None) -> Unfinished | None:
        """Return what of unfinished lines is not among those that `run` has by now."""
        if unfinished is None or unfinished.first >= run.next_sequence:
            return unfinished
        with self._database.read() as connection:
            return log_segments.standing(connection, run.number, unfinished, run.next_sequence)

    def _find(self, run: Run, last: log_segments.LastLines) -> None:
        """Show the log to `last`, from its end on, until it has found its beginning."""
        sequence, vain = run.next_sequence, 0
        while not last.found and sequence > 0 and vain < FEW_SEGMENTS:
            with self._database.read() as connection:
                require(run, transitions.find(connection, run.number))
                segments = log_segments.segments_before(connection, run.number, sequence)
            if not segments:
                return
            for segment in segments:
                sequence = segment.first_sequence
                known = len(last.pieces)
                for frame in reversed(log_segments.frames_of(segment)):
                    if frame.first < run.next_sequence:
                        last.take(frame)
                if last.begin is not None:
                    vain = vain + 1 if len(last.pieces) == known else 0

    def _pieces(self, run: Run, sequence: int, limit: int) -> Iterator[Iterator[LogLine]]:
        """Yield the lines of a segment each, so that a line costs no step of this."""
        left = limit
        while left > 0:
            with self._database.read() as connection:
                require(run, transitions.find(connection, run.number))
                segments = log_segments.segments_from(connection, run.number, sequence)
            begun = sequence
            for segment in segments:
                there = log_segments.end_of(segment) - sequence
                if there <= 0:
                    continue  # damaged: it would lead back
                if there <= left:
                    yield log_segments.lines(segment, sequence)  # to its end, where damage is told
                elif left:
                    yield itertools.islice(log_segments.lines(segment, sequence), left)
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
    ) -> Iterator[LogLine]:
        """
        Yield the lines from `sequence` on as they come, until the job is final and all are read.

        Args:
            check: As for `wait`.
            unfinished: Yield unfinished lines, too, each time they have changed.

        Raises:
            JobDeleted: The job was deleted in between.
            WaitTimeout: `timeout` seconds were over.
        """
        patience = Patience(timeout)
        cursor = self.following(run, sequence, unfinished=unfinished)
        me = object()
        try:
            while True:
                cursor = self._look(cursor)
                if cursor.behind:
                    self._leave(cursor, me)  # whoever takes the lines may take long
                while cursor.behind:
                    first = cursor.sequence
                    segments, cursor = self.read(cursor)
                    for segment in segments:
                        for line in log_segments.lines(segment, first):
                            yield line
                            if patience.over:
                                raise patience.error(cursor.in_words())
                if cursor.run.final:
                    return
                lines, cursor = cursor.unfinished()
                if lines:
                    self._leave(cursor, me)
                yield from lines
                check(cursor.run)
                self._rest(cursor, patience, check, me)
        finally:
            self._leave(cursor, me)

    def wait(
        self,
        run: Run,
        timeout: float | Patience | None = None,
        check: Callable[[Run], None] = lambda _run: None,
    ) -> Run:
        """
        Block until the job is final, and return it.

        Args:
            check: Called at every look at a job that goes on; raises what should end the waiting.

        Raises:
            JobDeleted: The job was deleted in between.
            WaitTimeout: `timeout` seconds were over.
        """
        patience = Patience.of(timeout)
        cursor = self.waiting(run)
        me = object()
        try:
            while not (cursor := self._look(cursor)).run.final:
                check(cursor.run)
                self._rest(cursor, patience, check, me)
        finally:
            self._leave(cursor, me)
        return cursor.run

    def wait_softly(self, waited: Sequence[Run], seconds: float) -> None:
        """Wait until all of these are final, at most so long; whatever is in the way is logged."""
        patience = Patience(seconds)
        for run in waited:
            try:
                self.wait(run, patience.left)
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
        """
        Block until the queue `is_empty` and what is `running` elsewhere is final.

        Raises:
            WaitTimeout: `timeout` seconds were over.
        """
        patience = Patience(timeout)
        while True:
            self.wait_for(is_empty, patience, NOT_DRAINED)
            found = running()
            if not found:
                return
            for run in found:
                try:
                    self.wait(run, patience)
                except JobDeleted:
                    continue

    def wait_for(
        self, condition: Callable[[], bool], timeout: float | Patience | None, what: str
    ) -> None:
        """
        Block until `condition`, asked again after every commit, and now and then.

        Raises:
            WaitTimeout: `timeout` seconds were over.
        """
        patience = Patience.of(timeout)
        pause = LOOK_FIRST
        while True:
            seen = self._database.version(LOOK_FIRST)
            if condition():
                return
            if patience.over:
                raise patience.error(what)
            self._database.wait_for_change(seen, min(pause, patience.left), pause)
            time.sleep(LOOK_FIRST)  # many commits a second are no reason for as many questions
            pause = min(pause * 2, LOOK_LONGEST)

    def _look(self, cursor: Cursor) -> Cursor:
        self.refresh(cursor)
        cursor = cursor.moved()
        return self.visit(cursor) if cursor.due else cursor

    def _rest(
        self, cursor: Cursor, patience: Patience, check: Callable[[Run], None], me: object
    ) -> None:
        """
        Sleep until the next look, as long as another thread looks for all: until there is news.

        Each thread that woke by itself, some twenty times a second, would cost as much as the
        one that looks.

        Raises:
            WaitTimeout: The time is over.
        """
        if patience.over:
            raise patience.error(cursor.in_words())
        if cursor.vain:
            time.sleep(LOOK_FIRST)  # others may commit as often as they like
        while (seconds := cursor.sight.look_for_all(cursor.what, me)) > 0:
            self._news.wait(lambda: cursor.has_news, min(seconds, patience.left))
            if cursor.has_news:
                return
            if patience.over:
                raise patience.error(cursor.in_words())
            check(cursor.run)
        pause = cursor.pause
        if self._news.is_waited_for:
            pause = min(pause, TRUST)  # they see a commit after this thread does
        self._database.wait_for_change(cursor.seen, min(pause, patience.left), pause)

    def _leave(self, cursor: Cursor, me: object) -> None:
        """Have another thread look in the place of this one, if it did."""
        if cursor.sight.is_left_by(cursor.what, me):
            self._news.ring()


def _sighting(connection: Connection, number: int, version: int) -> Sighting:
    try:
        return Sighting(transitions.find(connection, number), version)
    except DatabaseCorrupt as error:  # for those who wait for this job, not for all others
        return Sighting(None, version, str(error))


def require(run: Run, current: Run | None) -> Run:
    """
    Return what the job is now, for somebody who knows it as `run`.

    Raises:
        JobDeleted: It is gone, or being deleted since.
    """
    # A number is never used again, so another row under it cannot be.
    if current is None or (current.deleted_at is not None and run.deleted_at is None):
        raise JobDeleted(run.id)
    return current
