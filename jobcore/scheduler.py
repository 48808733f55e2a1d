"""
Scheduler: creates the jobs of pipelines whose schedule has come true.

Every manager that runs jobs looks; whoever moves the pipeline's next tick on
has taken the tick, in the transaction that creates the job. So it is taken
once, whatever number of processes share the file.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from jobcore import settlement, store
from jobcore.clock import Clock, from_datetime, to_datetime
from jobcore.database import Database
from jobcore.schedule import Schedule
from jobcore.supervision import failpoints

#: Seconds that a tick may be late and still count; older ones passed while nothing ran.
LATE = 60.0
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

    def tick(self) -> None:
        """Take every tick that has come."""
        now = self._clock.now()
        with self._database.read() as connection:
            due = store.due_pipelines(connection, now)
        if due:
            with self._database.write() as connection:
                # Again: one may have been given another schedule, with the same next tick.
                for pipeline in store.due_pipelines(connection, now):
                    with self._database.savepoint(connection, pipeline.id):
                        self._take(connection, pipeline, now)
            failpoints.reach(failpoints.TICK_TAKEN, self._database)

    @staticmethod
    def _take(connection: Connection, pipeline: Row[Any], now: int) -> None:
        schedule = Schedule(pipeline.schedule, pipeline.time_zone or "UTC")
        # The tick that is due, and all behind it that have passed as well.
        passed = schedule.passed(to_datetime(pipeline.next_tick), to_datetime(now), limit=COUNTED)
        latest = pipeline.next_tick if passed.latest is None else from_datetime(passed.latest)
        upcoming = from_datetime(schedule.next_after(to_datetime(max(latest, now))))
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
