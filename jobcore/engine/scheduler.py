"""
Creates the jobs of pipelines whose schedule is due, by a clock that may jump.

Every manager that runs jobs looks for due pipelines. The transaction that creates the job also
advances the pipeline's next tick, and so takes the tick. Therefore each tick is taken once, however
many processes share the file. If a wrong clock has delayed ticks or retries, they are moved
earlier when the clock is right again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row

from jobcore import tuning
from jobcore.clock import Clock, from_datetime, seconds_of, to_datetime
from jobcore.embedding import failpoints, telemetry
from jobcore.engine.postponement import Postponement
from jobcore.storage import schedules, settlement
from jobcore.storage.database import Database

if TYPE_CHECKING:
    from jobcore.schedule import Schedule

#: Pipelines or retries that are read together and written in one transaction.
AT_ONCE = 100
#: Seconds after which a look at due pipelines leaves the rest to the next one, so that jobs can
#: start.
LOOK = 0.25

#: The errors that a damaged row, or a time zone that is unknown here, causes.
DAMAGE = (ValueError, OverflowError, TypeError, AttributeError)

#: A place before every pipeline with a next tick.
_FIRST = (-(2**63), UUID(int=0).hex)


class _Seen(NamedTuple):
    """
    The position of a look through the schedules.

    Attributes:
        place: The place of the last pipeline that could be read.
        skip: How many after it could not be read.
    """

    place: schedules.Place
    skip: int = 0


class _Taken(NamedTuple):
    """
    The decision about a due pipeline.

    Attributes:
        due: The tick that runs, or None.
        missed: How many ticks do not run, because no manager was there in time.
        first_missed, last_missed: The first and the last of these.
        upcoming: The next tick.
        offset: Seconds by which local time is ahead of UTC at that tick.
    """

    due: int | None
    missed: int
    first_missed: int
    last_missed: int
    upcoming: int
    offset: int


class Scheduler:
    """
    Takes the ticks of schedules.

    Args:
        postponed: Remembers the pipelines whose tick could not be taken; None: a new one.
    """

    def __init__(
        self, database: Database, clock: Clock, postponed: Postponement | None = None
    ) -> None:
        self._postponed = postponed or Postponement(seconds_of(clock))
        self._database = database
        self._clock = clock
        self._next_look = 0  # for what a wrong clock has delayed, by the wall clock
        self._last_tick = 0
        # The position of that look; None: it is over.
        self._schedules_seen: _Seen | None = None
        self._retries_seen: tuple[int, int] | None = None
        # By pipeline: the schedule and time zone that were invalid. Each is logged once.
        self._invalid_schedules: dict[str, tuple[Any, Any]] = {}
        self._damaged: set[int] = set()  # the rowids of pipelines that could not be read

    def tick(self) -> None:
        """Take all due ticks; once an hour, and if the clock was set back, correct delayed ones."""
        now = self._clock.now()
        if now >= self._next_look or now < self._last_tick:
            self._schedules_seen = _Seen((now, _FIRST[1]))
            self._retries_seen = now, 0
            self._next_look = now + int(tuning.PUT_OFF_PAUSE * 1e6)
        self._last_tick = now
        self._look_at_schedules(now)
        self._look_at_retries(now)
        self._take_due(now)

    # --- due ticks --------------------------------------------------------------

    def _take_due(self, now: int) -> None:
        deadline = time.monotonic() + LOOK
        with self._database.read() as connection:
            seen = _Seen(_FIRST) if schedules.may_be_due(connection, now) else None
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
                if failpoints.armed:
                    failpoints.reach(failpoints.TICK_TAKEN, self._database)
            if seen is not None and time.monotonic() > deadline:
                return
        for repaired in self._damaged - still:
            self._postponed.succeed(("pipeline", repaired))
        self._damaged = still

    def _read(
        self, seen: _Seen, until: int | None, damaged: dict[int, Exception]
    ) -> tuple[Sequence[Row[Any]], _Seen | None]:
        """Return the next pipelines with a schedule, and the position; None: these are the last."""
        with self._database.read() as connection:
            found = schedules.scheduled_pipelines(
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
        """Write the decisions; return the pipelines that cannot be written, with the errors."""
        failed: list[tuple[Row[Any], Exception]] = []
        for pipeline, found in taken:
            with self._database.savepoint(connection, failed, pipeline):
                _write(connection, pipeline, found, now)
        return failed

    def _postpone(self, key: object, error: Exception) -> None:
        """Postpone a pipeline; `key` is its id, or its rowid if it is damaged."""
        self._postponed.fail(("pipeline", key), error, "pipeline postponed", pipeline=str(key))

    def _decide(self, pipeline: Row[Any], now: int) -> _Taken | None:
        """Decide about a due pipeline; None: it is postponed, or its schedule is invalid here."""
        if not self._postponed.is_due(("pipeline", pipeline.id)):
            return None
        try:
            return _decide(pipeline, now)
        except DAMAGE as error:
            self._report(pipeline, error)
            return None

    def _report(self, pipeline: Row[Any], error: Exception) -> None:
        said = pipeline.schedule, pipeline.time_zone
        if self._invalid_schedules.get(pipeline.id) != said:
            self._invalid_schedules[pipeline.id] = said
            telemetry.event(
                logging.ERROR,
                "schedule not understood",
                pipeline=pipeline.id,
                schedule=str(pipeline.schedule),
                time_zone=str(pipeline.time_zone),
                error=repr(error),
            )

    # --- what a wrong clock has delayed -----------------------------------------

    def _look_at_schedules(self, now: int) -> None:
        """Correct the next tick of some schedules, by the current clock and time-zone rules."""
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
                if schedules.advance_tick_if_at(
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
            if one.next_tick - upcoming > tuning.SET_BACK * 1e6:
                telemetry.event(logging.WARNING, "tick moved earlier", **facts)
            else:
                telemetry.event(logging.WARNING, "schedule moved", **facts)

    def _upcoming(self, pipeline: Row[Any], now: int) -> int | None:
        """Return the correct next tick of a pipeline; None: its schedule is invalid here."""
        try:
            # Is the stored tick too late to be the first one after a tick that was taken by now?
            latest = _tick_after(pipeline, now + int(tuning.SET_BACK * 1e6))
            if pipeline.next_tick > latest:
                return _tick_after(pipeline, now)
            return _moved(pipeline)
        except DAMAGE as error:
            self._report(pipeline, error)
            return None

    def _look_at_retries(self, now: int) -> None:
        """Move retries earlier that wait longer than their pause and so block their pipelines."""
        if self._retries_seen is None:
            return
        with self._database.read() as connection:
            waiting = schedules.waiting_retries(connection, after=self._retries_seen, limit=AT_ONCE)
        self._retries_seen = (
            (waiting[-1].not_before, waiting[-1].number) if len(waiting) == AT_ONCE else None
        )
        put_off = [one for one in waiting if _waits_too_long(one, now)]
        if not put_off:
            return

        def fetch(connection: Connection) -> list[tuple[Row[Any], int]]:
            fetched = []
            for one in put_off:
                start = now + one.not_before - one.created
                if schedules.move_start_if_queued(connection, one.number, one.not_before, start):
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
    from jobcore.schedule import Schedule  # noqa: PLC0415 - only for pipelines with a schedule

    return Schedule(expression, time_zone)


def _schedule_of(pipeline: Row[Any]) -> Schedule:
    return _schedule(pipeline.schedule, pipeline.time_zone or "UTC")


def _tick_after(pipeline: Row[Any], moment: int) -> int:
    return from_datetime(_schedule_of(pipeline).next_after(to_datetime(moment)))


def _moved(pipeline: Row[Any]) -> int:
    """Return the next tick by current time-zone rules, which may have changed since."""
    if pipeline.tick_offset is None:
        return int(pipeline.next_tick)
    tick = to_datetime(pipeline.next_tick)
    return from_datetime(_schedule_of(pipeline).moved(tick, pipeline.tick_offset))


def _decide(pipeline: Row[Any], now: int) -> _Taken:
    schedule = _schedule_of(pipeline)
    UUID(hex=pipeline.id)
    tick = _moved(pipeline)
    if tick > now:  # by current rules it is not due yet
        return _taken(schedule, None, 0, tick, tick, tick)
    if pipeline.catch_up == "all":
        return _taken(schedule, tick, 0, tick, tick, _tick_after(pipeline, tick))
    count, latest = _ticks_until(schedule, tick, now)
    late = tuning.LATE_AFTER if pipeline.late_after is None else pipeline.late_after
    runs = now - latest <= late * 1e6 or pipeline.catch_up == "last"
    missed, last_missed = count - runs, latest
    if runs and missed:  # the latest tick runs, so the last missed one is the one before it
        _, last_missed = _ticks_until(schedule, tick, latest - 1)
    upcoming = _tick_after(pipeline, max(latest, now))
    return _taken(schedule, latest if runs else None, missed, tick, last_missed, upcoming)


def _ticks_until(schedule: Schedule, tick: int, until: int) -> tuple[int, int]:
    """Return how many ticks there are from `tick`, which counts, to `until`, and the last one."""
    passed = schedule.passed(to_datetime(tick), to_datetime(until))
    return passed.count + 1, tick if passed.latest is None else from_datetime(passed.latest)


def _taken(
    schedule: Schedule, due: int | None, missed: int, first: int, last: int, upcoming: int
) -> _Taken:
    return _Taken(due, missed, first, last, upcoming, schedule.offset_at(to_datetime(upcoming)))


def _write(connection: Connection, pipeline: Row[Any], taken: _Taken, now: int) -> None:
    if not schedules.advance_tick_if_at(connection, pipeline, taken.upcoming, taken.offset):
        return  # another process took it, or the schedule was changed
    pipeline_id = UUID(hex=pipeline.id)
    if taken.missed:
        _record_missed(
            connection, pipeline, taken.first_missed, taken.last_missed, taken.missed, now
        )
    if taken.due is not None:
        workspace_id = UUID(hex=pipeline.workspace_id)
        settlement.run_now(
            connection, pipeline_id, workspace_id, now, why="schedule", due=taken.due
        )


def record_dropped(connection: Connection, pipeline: Row[Any], now: int) -> None:
    """
    Record the due ticks of a schedule as missed, before the schedule is replaced.

    Args:
        pipeline: The row as stored, with the old schedule.
        now: The current time.
    """
    if pipeline.next_tick is None:
        return
    try:
        tick = _moved(pipeline)
        if tick > now:
            return
        count, last = _ticks_until(_schedule_of(pipeline), tick, now)
    except DAMAGE:
        return  # its ticks cannot be computed, and the change may be the repair
    _record_missed(connection, pipeline, tick, last, count, now)


def _record_missed(
    connection: Connection, pipeline: Row[Any], first: int, last: int, count: int, now: int
) -> None:
    schedule = _schedule_of(pipeline)
    schedules.record_skip(
        connection,
        UUID(str(pipeline.id)),
        due=last,
        now=now,
        why="missed",
        job_id=None,
        count=count,
        # One record covers an outage, however often the scheduler looked during it.
        goes_on=lambda before: schedule.next_after(to_datetime(before)) == to_datetime(first),
    )


def _waits_too_long(retry: Row[Any], now: int) -> bool:
    """Tell whether a retry has longer to wait than its whole pause."""
    try:
        # It is created at the end of the attempt before it. A pause that ends before that has
        # been shortened already.
        pause = retry.not_before - retry.created
        return bool(pause > 0 and retry.not_before - now > pause + tuning.RETRY_SET_BACK * 1e6)
    except TypeError:
        return False  # the row is damaged; go on with the others
