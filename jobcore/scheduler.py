"""
Scheduler: creates the jobs of pipelines whose schedule has come true, by a clock that may jump.

Every manager that runs jobs looks; whoever moves the pipeline's next tick on
has taken the tick, in the transaction that creates the job. So it is taken
once, whatever number of processes share the file. Ticks and retries that a wrong
clock has put off are fetched back when it is right again.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row

from jobcore import settlement, store, telemetry
from jobcore.clock import Clock, from_datetime, to_datetime
from jobcore.database import Database
from jobcore.errors import ScheduleError
from jobcore.schedule import Schedule
from jobcore.supervision import failpoints

#: Seconds that a tick may be late and still count; older ones passed while nothing ran.
LATE = 60.0
#: Seconds by which the clock may be set back without a tick being taken twice. By more, it was
#: wrong before, and the ticks that it had then count no more: as cron does.
SET_BACK = 3 * 3600.0
#: The same for retries, of which none is made twice: seconds that one may wait beyond its pause.
RETRY_SET_BACK = 60.0
#: Seconds between two looks for what a wrong clock has put off: perhaps in another process.
PUT_OFF_PAUSE = 3600.0
#: Missed ticks that are counted one by one: more are "at least so many".
COUNTED = 10_000


class Scheduler:
    """
    Takes ticks.

    Args:
        database: Where the pipelines are.
        clock: Tells when.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._next_look = 0  # for what was put off, by the wall clock
        self._last_tick = 0

    def tick(self) -> None:
        """Take every tick that has come; once an hour, fetch back what a wrong clock put off."""
        now = self._clock.now()
        if now >= self._next_look or now < self._last_tick:
            self._fetch_back(now)
            self._fetch_retries(now)
            self._next_look = now + int(PUT_OFF_PAUSE * 1e6)
        self._last_tick = now
        with self._database.read() as connection:
            due = store.due_pipelines(connection, now)
        if due:
            self._database.write(partial(self._take_due, now=now))
            failpoints.reach(failpoints.TICK_TAKEN, self._database)

    def _take_due(self, connection: Connection, now: int) -> None:
        # Read again: one may have been given another schedule, with the same next tick.
        for pipeline in store.due_pipelines(connection, now):
            with self._database.savepoint(connection, pipeline.id):
                self._take(connection, pipeline, now)

    def _fetch_back(self, now: int) -> None:
        """Have the next tick of each schedule be one that may come by the clock of now."""
        with self._database.read() as connection:
            put_off = [
                one for one in store.scheduled_pipelines(connection) if _is_put_off(one, now)
            ]
        if not put_off:
            return

        def fetch(connection: Connection) -> None:
            for one in put_off:
                upcoming = _tick_after(one, now)
                if store.advance_tick_if_at(connection, one.id, one.next_tick, upcoming):
                    telemetry.event(
                        logging.WARNING,
                        "schedule fetched back",
                        pipeline=str(one.id),
                        from_tick=to_datetime(one.next_tick).isoformat(),
                        to_tick=to_datetime(upcoming).isoformat(),
                    )

        self._database.write(fetch)

    def _fetch_retries(self, now: int) -> None:
        """Have no retry wait for longer than its pause: it would keep its pipeline all the time."""
        with self._database.read() as connection:
            waiting = store.waiting_retries(connection, now)
        put_off = [one for one in waiting if _waits_too_long(one, now)]
        if not put_off:
            return

        def fetch(connection: Connection) -> None:
            for one in put_off:
                start = now + settlement.pause_behind(one.attempt - 1)
                if store.fetch_back_if_queued(connection, one.number, one.not_before, start):
                    telemetry.event(
                        logging.WARNING,
                        "retry fetched back",
                        job=str(one.id),
                        from_time=to_datetime(one.not_before).isoformat(),
                        to_time=to_datetime(start).isoformat(),
                    )

        self._database.write(fetch)

    @staticmethod
    def _take(connection: Connection, pipeline: Row[Any], now: int) -> None:
        schedule = _schedule_of(pipeline)
        # The tick that is due, and all behind it that have passed as well.
        passed = schedule.passed(to_datetime(pipeline.next_tick), to_datetime(now), limit=COUNTED)
        latest = pipeline.next_tick if passed.latest is None else from_datetime(passed.latest)
        upcoming = _tick_after(pipeline, max(latest, now))
        if not store.advance_tick_if_at(connection, pipeline.id, pipeline.next_tick, upcoming):
            return  # another process took it
        in_time = now - latest <= LATE * 1e6
        missed = passed.count + 1 - in_time
        if missed:
            last_missed = latest
            if in_time:  # that one is run: the last missed is the one before
                before = to_datetime(latest - 1)
                last = schedule.passed(to_datetime(pipeline.next_tick), before, limit=0).latest
                last_missed = pipeline.next_tick if last is None else from_datetime(last)
            store.record_skip(
                connection,
                pipeline.id,
                due=last_missed,
                now=now,
                why="missed",
                job_id=None,
                count=missed,
            )
        if in_time:
            settlement.run_now(connection, pipeline, now, why="schedule", due=latest)


def _schedule_of(pipeline: Row[Any]) -> Schedule:
    return Schedule(pipeline.schedule, pipeline.time_zone or "UTC")


def _tick_after(pipeline: Row[Any], moment: int) -> int:
    return from_datetime(_schedule_of(pipeline).next_after(to_datetime(moment)))


def _waits_too_long(retry: Row[Any], now: int) -> bool:
    """Whether what it still waits for is more than all of its pause."""
    try:
        longest = settlement.pause_behind(retry.attempt - 1) + RETRY_SET_BACK * 1e6
        return bool(retry.not_before - now > longest)
    except TypeError:
        return False  # damaged: it keeps no other from being looked at


def _is_put_off(pipeline: Row[Any], now: int) -> bool:
    """Whether its next tick is too late to be the first behind one that was taken before now."""
    try:
        return bool(pipeline.next_tick > _tick_after(pipeline, now + int(SET_BACK * 1e6)))
    except (ScheduleError, OverflowError, TypeError):
        return False  # damaged, or of another machine: it keeps no other from its ticks
