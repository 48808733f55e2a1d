"""
Creates the jobs of pipelines whose schedule is due, by a clock that may jump.

Every manager that runs jobs looks; whoever moves the pipeline's next tick on
has taken the tick, in the transaction that creates the job. So it is taken
once, whatever number of processes share the file. Ticks and retries that a wrong
clock has put off are fetched back when it is right again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row

from jobcore.clock import Clock, from_datetime, seconds_of, to_datetime
from jobcore.embedding import failpoints, telemetry
from jobcore.engine.postponement import Postponement
from jobcore.schedule import Schedule
from jobcore.storage import settlement, store
from jobcore.storage.database import Database

#: Seconds that a tick may be late and still count, where its pipeline does not say.
LATE = 60.0
#: Seconds by which the clock may be set back without a tick being taken twice. By more, it was
#: wrong before, and the ticks that it had then count no more: as cron does.
SET_BACK = 3 * 3600.0
#: The same for retries, of which none is made twice: seconds that one may wait beyond its pause.
RETRY_SET_BACK = 60.0
#: Seconds between two looks for what a wrong clock has put off: perhaps in another process.
PUT_OFF_PAUSE = 3600.0
#: Pipelines or retries that are read together, and written in one transaction.
AT_ONCE = 100
#: Seconds after which a look at due pipelines leaves the rest to the next one, so that jobs
#: start meanwhile.
LOOK = 0.25

#: What a damaged row, or a time zone that is unknown here, leads to.
DAMAGE = (ValueError, OverflowError, TypeError, AttributeError)

#: Before everything that has a next tick, or waits for its time.
_FIRST = (-(2**63), UUID(int=0).hex)


class _Seen(NamedTuple):
    """
    How far a look at the schedules has got.

    Attributes:
        place: Of the last one that could be read.
        skip: How many after it could not be read.
    """

    place: store.Place
    skip: int = 0


class _Taken(NamedTuple):
    """
    What a due pipeline's next tick leads to.

    Attributes:
        due: The tick that runs; None: none does.
        missed: How many ticks do not run, because nothing was there in time.
        first_missed, last_missed: The first and the last of these.
        upcoming: The next tick.
        offset: Seconds that local time is ahead of UTC then.
    """

    due: int | None
    missed: int
    first_missed: int
    last_missed: int
    upcoming: int
    offset: int


class Scheduler:
    """
    Takes ticks.

    Args:
        database: Where the pipelines are.
        clock: Tells when.
        postponed: Remembers the pipelines whose tick could not be taken; None: anew.
    """

    def __init__(
        self, database: Database, clock: Clock, postponed: Postponement | None = None
    ) -> None:
        self._postponed = postponed or Postponement(seconds_of(clock))
        self._database = database
        self._clock = clock
        self._next_look = 0  # for what was put off, by the wall clock
        self._last_tick = 0
        # How far that look has got; None: it is over.
        self._schedules_seen: _Seen | None = None
        self._retries_seen: tuple[int, int] | None = None
        # Those that are not understood, with what they say: each is told once.
        self._troubled: dict[str, tuple[Any, Any]] = {}
        self._damaged: set[int] = set()  # the rowids of those that could not be read

    def tick(self) -> None:
        """Take every tick that has come; once an hour, fetch back what a wrong clock put off."""
        now = self._clock.now()
        if now >= self._next_look or now < self._last_tick:
            self._schedules_seen = _Seen((now, _FIRST[1]))
            self._retries_seen = now, 0
            self._next_look = now + int(PUT_OFF_PAUSE * 1e6)
        self._last_tick = now
        self._look_at_schedules(now)
        self._look_at_retries(now)
        self._take_due(now)

    # --- ticks that have come ---------------------------------------------------

    def _take_due(self, now: int) -> None:
        deadline = time.monotonic() + LOOK
        seen: _Seen | None = _Seen(_FIRST)
        still: set[int] = set()
        while seen is not None:
            damaged: dict[int, Exception] = {}
            due, seen = self._read(seen, now, damaged)
            for rowid, error in damaged.items():
                self._postpone(rowid, error)
            still |= damaged.keys()
            self._damaged |= still
            taken = [(one, found) for one in due if (found := self._decide(one, now)) is not None]
            if taken:
                failed = self._database.write(partial(self._write, taken=taken, now=now))
                for one, error in failed:
                    self._postpone(one.id, error)
                for done in {one.id for one, _ in taken} - {one.id for one, _ in failed}:
                    self._postponed.succeed(("pipeline", done))
                failpoints.reach(failpoints.TICK_TAKEN, self._database)
            if seen is not None and time.monotonic() > deadline:
                return
        for repaired in self._damaged - still:
            self._postponed.succeed(("pipeline", repaired))
        self._damaged = still

    def _read(
        self, seen: _Seen, until: int | None, damaged: dict[int, Exception]
    ) -> tuple[Sequence[Row[Any]], _Seen | None]:
        """Return the next schedules, and how far that is; None: these are the last."""
        with self._database.read() as connection:
            found = store.scheduled_pipelines(
                connection,
                after=seen.place,
                until=until,
                limit=AT_ONCE,
                skip=seen.skip,
                failed=damaged.__setitem__,
            )
        if len(found) + len(damaged) < AT_ONCE:
            return found, None
        if not found:
            return found, seen._replace(skip=seen.skip + AT_ONCE)
        return found, _Seen((found[-1].next_tick, found[-1].id))

    def _write(
        self, connection: Connection, taken: list[tuple[Row[Any], _Taken]], now: int
    ) -> list[tuple[Row[Any], Exception]]:
        """Write what comes of due pipelines; return those that cannot be written, and why."""
        failed: list[tuple[Row[Any], Exception]] = []
        for pipeline, found in taken:
            with self._database.savepoint(connection, partial(_note, failed, pipeline)):
                _write(connection, pipeline, found, now)
        return failed

    def _postpone(self, key: object, error: Exception) -> None:
        """Leave a pipeline alone for a while; `key` is its id, or its rowid where it is damaged."""
        self._postponed.fail(("pipeline", key), error, "pipeline postponed", pipeline=str(key))

    def _decide(self, pipeline: Row[Any], now: int) -> _Taken | None:
        """Return what comes of a due pipeline; None: it is postponed, or not understood here."""
        if not self._postponed.is_due(("pipeline", pipeline.id)):
            return None
        try:
            return _decide(pipeline, now)
        except DAMAGE as error:
            self._report(pipeline, error)
            return None

    def _report(self, pipeline: Row[Any], error: Exception) -> None:
        said = pipeline.schedule, pipeline.time_zone
        if self._troubled.get(pipeline.id) != said:
            self._troubled[pipeline.id] = said
            telemetry.event(
                logging.ERROR,
                "schedule not understood",
                pipeline=pipeline.id,
                schedule=str(pipeline.schedule),
                time_zone=str(pipeline.time_zone),
                error=repr(error),
            )

    # --- what was put off -------------------------------------------------------

    def _look_at_schedules(self, now: int) -> None:
        """Have the next tick of some schedules be the one that comes by today's clock and rules."""
        if self._schedules_seen is None:
            return
        some, self._schedules_seen = self._read(self._schedules_seen, None, {})
        moved = [
            (one, upcoming)
            for one in some
            if (upcoming := self._upcoming(one, now)) is not None and upcoming != one.next_tick
        ]
        if not moved:
            return

        def move(connection: Connection) -> list[tuple[Row[Any], int]]:
            return [
                (one, upcoming)
                for one, upcoming in moved
                if store.advance_tick_if_at(
                    connection,
                    one,
                    upcoming,
                    _schedule_of(one).offset_at(to_datetime(upcoming)),
                )
            ]

        for one, upcoming in self._database.write(move):
            facts = {
                "pipeline": str(UUID(hex=one.id)),
                "from_tick": to_datetime(one.next_tick).isoformat(),
                "to_tick": to_datetime(upcoming).isoformat(),
            }
            if one.next_tick - upcoming > SET_BACK * 1e6:
                telemetry.event(logging.WARNING, "tick moved earlier", **facts)
            else:
                telemetry.event(logging.WARNING, "schedule moved", **facts)

    def _upcoming(self, pipeline: Row[Any], now: int) -> int | None:
        """Return when the next tick of a pipeline is to come; None where nothing understands it."""
        try:
            # Too late to be the first one behind one that was taken before now?
            latest = _tick_after(pipeline, now + int(SET_BACK * 1e6))
            if pipeline.next_tick > latest:
                return _tick_after(pipeline, now)
            return _moved(pipeline)
        except DAMAGE as error:
            self._report(pipeline, error)
            return None

    def _look_at_retries(self, now: int) -> None:
        """Have no retry wait for longer than its pause: it would keep its pipeline all the time."""
        if self._retries_seen is None:
            return
        with self._database.read() as connection:
            waiting = store.waiting_retries(connection, after=self._retries_seen, limit=AT_ONCE)
        self._retries_seen = (
            (waiting[-1].not_before, waiting[-1].number) if len(waiting) == AT_ONCE else None
        )
        put_off = [one for one in waiting if _waits_too_long(one, now)]
        if not put_off:
            return

        def fetch(connection: Connection) -> list[tuple[Row[Any], int]]:
            fetched = []
            for one in put_off:
                start = now + settlement.pause_behind(one.attempt - 1)
                if store.fetch_back_if_queued(connection, one.number, one.not_before, start):
                    fetched.append((one, start))
            return fetched

        for one, start in self._database.write(fetch):
            telemetry.event(
                logging.WARNING,
                "retry moved earlier",
                job=str(one.id),
                from_time=to_datetime(one.not_before).isoformat(),
                to_time=to_datetime(start).isoformat(),
            )


@lru_cache(maxsize=1024)
def _schedule(expression: str, time_zone: str) -> Schedule:
    return Schedule(expression, time_zone)


def _note(failed: list[tuple[Row[Any], Exception]], pipeline: Row[Any], error: Exception) -> None:
    failed.append((pipeline, error))


def _schedule_of(pipeline: Row[Any]) -> Schedule:
    return _schedule(pipeline.schedule, pipeline.time_zone or "UTC")


def _tick_after(pipeline: Row[Any], moment: int) -> int:
    return from_datetime(_schedule_of(pipeline).next_after(to_datetime(moment)))


def _moved(pipeline: Row[Any]) -> int:
    """Return the next tick by the time-zone rules of today, which may be others than it had."""
    if pipeline.tick_offset is None:
        return int(pipeline.next_tick)
    tick = to_datetime(pipeline.next_tick)
    return from_datetime(_schedule_of(pipeline).moved(tick, pipeline.tick_offset))


def _decide(pipeline: Row[Any], now: int) -> _Taken:
    schedule = _schedule_of(pipeline)
    UUID(hex=pipeline.id)
    tick = _moved(pipeline)
    if tick > now:  # by the rules of today it is still to come
        return _taken(schedule, None, 0, tick, tick, tick)
    if pipeline.catch_up == "all":
        return _taken(schedule, tick, 0, tick, tick, _tick_after(pipeline, tick))
    passed = schedule.passed(to_datetime(tick), to_datetime(now))
    latest = tick if passed.latest is None else from_datetime(passed.latest)
    late = LATE if pipeline.late_after is None else pipeline.late_after
    runs = now - latest <= late * 1e6 or pipeline.catch_up == "last"
    missed, last_missed = passed.count + 1 - runs, latest
    if runs and missed:  # the last one that does not run is the one before
        before = schedule.passed(to_datetime(tick), to_datetime(latest - 1)).latest
        last_missed = tick if before is None else from_datetime(before)
    upcoming = _tick_after(pipeline, max(latest, now))
    return _taken(schedule, latest if runs else None, missed, tick, last_missed, upcoming)


def _taken(
    schedule: Schedule, due: int | None, missed: int, first: int, last: int, upcoming: int
) -> _Taken:
    return _Taken(due, missed, first, last, upcoming, schedule.offset_at(to_datetime(upcoming)))


def _write(connection: Connection, pipeline: Row[Any], taken: _Taken, now: int) -> None:
    if not store.advance_tick_if_at(connection, pipeline, taken.upcoming, taken.offset):
        return  # another process took it, or the schedule was changed
    pipeline_id = UUID(hex=pipeline.id)
    if taken.missed:
        schedule = _schedule_of(pipeline)
        store.record_skip(
            connection,
            pipeline_id,
            due=taken.last_missed,
            now=now,
            why="missed",
            job_id=None,
            count=taken.missed,
            # One record for an outage, however many looks there were meanwhile.
            goes_on=lambda last: (
                schedule.next_after(to_datetime(last)) == to_datetime(taken.first_missed)
            ),
        )
    if taken.due is not None:
        workspace_id = UUID(hex=pipeline.workspace_id)
        settlement.run_now(
            connection, pipeline_id, workspace_id, now, why="schedule", due=taken.due
        )


def _waits_too_long(retry: Row[Any], now: int) -> bool:
    """Whether what it still waits for is more than all of its pause."""
    try:
        longest = settlement.pause_behind(retry.attempt - 1) + RETRY_SET_BACK * 1e6
        return bool(retry.not_before - now > longest)
    except TypeError:
        return False  # damaged: it keeps no other from being looked at
