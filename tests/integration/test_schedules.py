"""Schedules: each tick is taken once, run or recorded, and never made up for."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from jobcore import JobManager, PipelineNotFound, ScheduleError, Status
from jobcore.clock import to_datetime
from jobcore.engine import scheduler
from jobcore.engine.scheduler import Scheduler
from jobcore.schedule import Schedule
from jobcore.storage import schedules
from jobcore.testing.parts import parts
from tests.jobfiles import sql
from tests.processes import at_once, until
from tests.programs import EXIT_0
from tests.tasks import end

#: Where the test's clock stands at first: 100 s before a quarter of an hour.
BEGIN = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
QUARTER = datetime(2023, 11, 14, 22, 15, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)


def tick(jobs):
    """Do once what a manager with slots does every second."""
    Scheduler(parts(jobs).database, parts(jobs).clock).tick()


def skips(jobs, pipeline):
    """Return why, when, how many and because of which job, newest first."""
    return [(one.why, one.due, one.count, one.job_id) for one in jobs.skips(pipeline.id)]


def next_tick(jobs, pipeline):
    return jobs.get_pipeline(pipeline.id).next_tick


def test_schedules_that_are_not_due_are_not_read(jobs, clock, monkeypatch):
    """Between the ticks a look asks an index alone, apart from the correction once an hour."""
    jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    scheduler = Scheduler(parts(jobs).database, parts(jobs).clock)
    scheduler.tick()
    reads, read = [], schedules.scheduled_pipelines
    monkeypatch.setattr(
        schedules, "scheduled_pipelines", lambda *a, **b: reads.append(b) or read(*a, **b)
    )
    scheduler.tick()
    before = len(reads)
    clock.advance(100)
    scheduler.tick()

    assert (before, len(reads), len(jobs.list_jobs())) == (0, 1, 1)


def test_pipeline_shows_its_next_tick(jobs):
    """`next_tick` is the first moment after now that the schedule names; None without one."""
    scheduled = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    seconds = jobs.create_pipeline("q", ["true"], schedule="21 * * * * *")
    alone = jobs.create_pipeline("r", ["true"])

    assert scheduled.next_tick == QUARTER
    assert seconds.next_tick == BEGIN + timedelta(seconds=1)
    assert alone.next_tick is None


def test_a_due_tick_creates_one_job(jobs, clock):
    """Before its moment a tick does nothing; from then on it makes one job, and moves on."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(99.999999)
    tick(jobs)
    before = jobs.list_jobs()
    clock.advance(0.000001)
    tick(jobs)
    tick(jobs)
    (job,) = jobs.list_jobs()

    assert before == []
    assert (job.type, job.status, job.pipeline_id, job.workspace_id, job.created) == (
        "PIPELINE_RUN", Status.QUEUED, pipeline.id, pipeline.workspace_id, QUARTER,
    )  # fmt: skip
    assert next_tick(jobs, pipeline) == QUARTER + 15 * MINUTE
    assert skips(jobs, pipeline) == []


def test_each_tick_has_its_job(jobs, clock):
    """A pipeline whose jobs end in time runs at every tick."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    for _ in range(4):
        clock.advance((next_tick(jobs, pipeline) - to_datetime(clock.now())).total_seconds())
        tick(jobs)
        end(jobs, jobs.list_jobs()[0])

    assert [QUARTER + 15 * n * MINUTE for n in (3, 2, 1, 0)] == [
        job.created for job in jobs.list_jobs()
    ]
    assert skips(jobs, pipeline) == []


@pytest.mark.parametrize("late", [0, 1, 59, 60])
def test_a_tick_that_is_seen_late_still_counts(jobs, clock, late):
    """Up to a minute late, the tick is run and not missed."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(100 + late)
    tick(jobs)

    assert len(jobs.list_jobs()) == 1
    assert skips(jobs, pipeline) == []
    assert next_tick(jobs, pipeline) == QUARTER + 15 * MINUTE


@pytest.mark.parametrize("started", [False, True])
def test_tick_of_a_running_pipeline_is_skipped(jobs, clock, started):
    """It is recorded with its moment and the job in the way, and is not queued up."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    blocker = jobs.create_job(pipeline_id=pipeline.id)
    if started:
        jobs.start_job(blocker.id)
    clock.advance(101)
    tick(jobs)
    tick(jobs)
    recorded = skips(jobs, pipeline)
    (jobs.finish_job if started else jobs.cancel_job)(blocker.id)
    tick(jobs)

    assert recorded == skips(jobs, pipeline) == [("schedule", QUARTER, 1, blocker.id)]
    assert [job.id for job in jobs.list_jobs()] == [blocker.id]


def test_tick_during_a_waiting_retry_is_skipped(jobs, clock):
    """A retry that waits for its back-off holds the pipeline against its schedule too."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *", max_retries=1)
    clock.advance(95)
    first = jobs.create_job(pipeline_id=pipeline.id)
    jobs.start_job(first.id)
    jobs.finish_job(first.id, 1)
    clock.advance(5)
    tick(jobs)
    (retry, _) = jobs.list_jobs()

    assert skips(jobs, pipeline) == [("schedule", QUARTER, 1, retry.id)]


def test_ticks_missed_while_nothing_ran_are_recorded(jobs, clock):
    """Three ticks that passed unseen are one record with their number and the last of them."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(100 + 40 * 60)
    tick(jobs)
    tick(jobs)

    assert skips(jobs, pipeline) == [("missed", QUARTER + 30 * MINUTE, 3, None)]
    assert jobs.list_jobs() == []
    assert next_tick(jobs, pipeline) == QUARTER + 45 * MINUTE


@pytest.mark.parametrize(
    ("late", "count", "last"), [(900, 1, 0), (930, 1, 0), (1800, 2, 15), (2700, 3, 30)]
)
def test_tick_in_time_runs_after_missed_ticks(jobs, clock, late, count, last):
    """Only those before it are recorded as missed, with the last of them; it runs."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(100 + late)
    tick(jobs)

    assert skips(jobs, pipeline) == [("missed", QUARTER + last * MINUTE, count, None)]
    assert [job.created for job in jobs.list_jobs()] == [QUARTER + timedelta(seconds=late)]


def test_missed_ticks_of_seconds_are_counted_each(jobs, clock):
    """A schedule of seconds that was not looked at for 25 s runs once, and misses the others."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/10 * * * * *")
    clock.advance(35)
    tick(jobs)

    assert skips(jobs, pipeline) == [("missed", BEGIN + timedelta(seconds=20), 2, None)]
    assert len(jobs.list_jobs()) == 1
    assert next_tick(jobs, pipeline) == BEGIN + timedelta(seconds=40)


def test_missed_and_skipped_ticks_are_distinguished(jobs, clock):
    """Ticks that passed unseen are missed; the one in time that meets a job is skipped for it."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    blocker = jobs.create_job(pipeline_id=pipeline.id)
    clock.advance(100 + 1800)
    tick(jobs)

    assert skips(jobs, pipeline) == [
        ("schedule", QUARTER + 30 * MINUTE, 1, blocker.id),
        ("missed", QUARTER + 15 * MINUTE, 2, None),
    ]


def test_a_year_without_a_manager_is_one_record(jobs, clock):
    """However many ticks were missed, they are one record with their number and the last one."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="0-58 0 * * * *")
    clock.advance(365 * 86400)
    tick(jobs)
    ((why, due, count, _),) = skips(jobs, pipeline)

    assert (why, due) == ("missed", BEGIN.replace(year=2024, day=13, minute=0, second=58))
    assert count == 365 * 24 * 59
    assert jobs.list_jobs() == []


def test_a_clock_that_is_set_back_takes_no_tick_twice(jobs, clock):
    """A tick that was taken is not taken again when its hour comes a second time."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(100)
    tick(jobs)
    end(jobs, jobs.list_jobs()[0])
    clock.jump(-50)
    tick(jobs)
    clock.advance(60)
    tick(jobs)

    assert len(jobs.list_jobs()) == 1
    assert skips(jobs, pipeline) == []


@pytest.mark.parametrize("others", [False, True], ids=["the same manager", "another one"])
def test_a_clock_that_was_wrong_puts_no_tick_off_for_years(jobs, clock, caplog, others):
    """What ran by a clock ten years ahead is forgotten once that is set back; 3 h are not much."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    taker = Scheduler(parts(jobs).database, parts(jobs).clock)
    taker.tick()
    wrong = timedelta(days=3653).total_seconds()
    clock.jump(wrong)
    taker.tick()
    put_off = next_tick(jobs, pipeline)
    clock.jump(-wrong)
    (Scheduler(parts(jobs).database, parts(jobs).clock) if others else taker).tick()
    moved = next_tick(jobs, pipeline)
    clock.advance(100)
    taker.tick()

    assert put_off - BEGIN > timedelta(days=3652)
    assert moved == QUARTER
    assert [job.created for job in jobs.list_jobs()] == [QUARTER]
    (told,) = caplog.messages
    assert told.startswith("event='tick moved earlier'")


def test_a_wrong_clock_of_another_process_is_noticed_within_the_hour(jobs, clock):
    """Also by a manager that has not seen it itself."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="0 22 * * *")
    taker = Scheduler(parts(jobs).database, parts(jobs).clock)
    taker.tick()
    wrong = timedelta(days=3653).total_seconds()
    clock.jump(wrong)
    tick(jobs)
    clock.jump(-wrong)
    clock.advance(3599)
    taker.tick()
    before = next_tick(jobs, pipeline)
    clock.advance(1)
    taker.tick()

    assert before - BEGIN > timedelta(days=3652)
    assert next_tick(jobs, pipeline) == datetime(2023, 11, 15, 22, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "damage", ["next_tick = 'soon'", "schedule = 'x', next_tick = 9e17", "time_zone = 'x'"]
)
def test_a_damaged_schedule_keeps_no_other_from_its_ticks(jobs, clock, database, damage):
    """Whatever one row holds, the look for ticks that were put off passes over it."""
    jobs.create_pipeline("p", ["true"], schedule="0 22 * * *")
    sql(database, f"UPDATE pipeline SET {damage}")
    jobs.create_pipeline("q", ["true"], schedule="*/15 * * * *")
    clock.advance(100)
    tick(jobs)

    assert [job.created for job in jobs.list_jobs()] == [QUARTER]


@pytest.mark.parametrize("hours", [1, 2, 3])
def test_a_clock_that_is_set_back_by_hours_takes_no_tick_twice(jobs, clock, hours):
    """Up to three hours, a tick that was taken is not taken again."""
    jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(100)
    tick(jobs)
    end(jobs, jobs.list_jobs()[0])
    clock.jump(-hours * 3600)
    for _ in range(hours * 4):
        tick(jobs)
        clock.advance(15 * 60 - 1)

    assert len(jobs.list_jobs()) == 1


def test_a_schedule_is_meant_in_its_time_zone(jobs, clock):
    """09:30 in Tokyo is 00:30 UTC; that is when the job is made."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="30 9 * * *", time_zone="Asia/Tokyo")
    due = datetime(2023, 11, 15, 0, 30, tzinfo=timezone.utc)
    clock.advance((due - BEGIN).total_seconds())
    tick(jobs)

    assert pipeline.next_tick == due
    assert [job.created for job in jobs.list_jobs()] == [due]
    assert next_tick(jobs, pipeline) == due + timedelta(days=1)


def test_a_change_of_offset_moves_the_tick(jobs, clock):
    """On the day without 02:30 in Berlin, it runs right after the clock change."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="30 2 * * *", time_zone="Europe/Berlin")
    change = datetime(2024, 3, 31, 1, 0, tzinfo=timezone.utc)
    clock.set_wall(change - timedelta(hours=1))
    jobs.update_pipeline(pipeline.id, schedule="30 2 * * *")
    clock.advance(3600)
    tick(jobs)

    assert [job.created for job in jobs.list_jobs()] == [change]
    assert next_tick(jobs, pipeline) == datetime(2024, 4, 1, 0, 30, tzinfo=timezone.utc)


# --- ticks that came while nothing ran ------------------------------------------------------


@pytest.mark.parametrize(("late_after", "runs"), [(0, 0), (299, 0), (300, 1), (3600, 1)])
def test_late_after_decides_which_ticks_are_missed(jobs, clock, late_after, runs):
    """A tick that is seen later than that is missed."""
    jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *", late_after=late_after)
    clock.advance(100 + 300)
    tick(jobs)

    assert len(jobs.list_jobs()) == runs


def test_missed_ticks_are_counted_outside_any_transaction(jobs, clock, database, monkeypatch):
    """While they are counted another process can write."""
    jobs.create_pipeline("p", ["true"], schedule="* * * * *")
    clock.advance(7 * 86400)
    written = []
    count = Schedule.passed

    def passed(self, after, until):
        sql(database, "UPDATE workspace SET name = name")  # by a connection that waits for nobody
        written.append(1)
        return count(self, after, until)

    monkeypatch.setattr(Schedule, "passed", passed)
    tick(jobs)

    assert written != []
    assert len(jobs.list_jobs()) == 1


def test_last_missed_tick_is_made_up_for(jobs, clock):
    """With `catch_up="last"` the last tick runs, however late, and the others are recorded."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *", catch_up="last")
    clock.advance(100 + 3 * 900 + 800)
    tick(jobs)
    tick(jobs)

    assert len(jobs.list_jobs()) == 1
    assert skips(jobs, pipeline) == [("missed", QUARTER + 30 * MINUTE, 3, None)]
    assert next_tick(jobs, pipeline) == QUARTER + 60 * MINUTE


def test_every_missed_tick_is_made_up_for(jobs, clock):
    """With `catch_up="all"`, each runs in order, and no tick is recorded as missed."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *", catch_up="all")
    clock.advance(100 + 2 * 900 + 800)
    for number in range(1, 4):
        for _ in range(3):
            tick(jobs)
        assert len(jobs.list_jobs()) == number
        end(jobs, jobs.list_jobs()[0])
    tick(jobs)

    assert len(jobs.list_jobs()) == 3
    assert skips(jobs, pipeline) == []
    assert next_tick(jobs, pipeline) == QUARTER + 45 * MINUTE


def test_pipeline_that_waits_for_its_own_run_keeps_no_other_from_its_ticks(jobs, clock):
    """Neither here nor in what a test waits for."""
    slow = jobs.create_pipeline("slow", ["true"], schedule="*/5 * * * *", catch_up="all")
    other = jobs.create_pipeline("other", ["true"], schedule="*/5 * * * *")
    clock.advance(100)
    tick(jobs)
    (job,) = jobs.list_jobs(pipeline_id=other.id)
    end(jobs, job)
    clock.advance(300)
    with parts(jobs).database.read() as connection:
        due = schedules.next_tick(connection)
    tick(jobs)

    assert due == clock.now()
    assert [len(jobs.list_jobs(pipeline_id=one.id)) for one in (slow, other)] == [1, 2]


def test_missed_ticks_that_follow_each_other_are_one_record(jobs, clock):
    """An outage that managers look into now and then is recorded once; a run ends the record."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(100 + 800)
    for _ in range(3):
        tick(jobs)
        clock.advance(1800)
    outage = skips(jobs, pipeline)
    clock.advance(100)
    tick(jobs)
    end(jobs, jobs.list_jobs()[0])
    clock.advance(1700)
    tick(jobs)

    assert outage == [("missed", QUARTER + 60 * MINUTE, 5, None)]
    assert skips(jobs, pipeline) == [
        ("missed", QUARTER + 120 * MINUTE, 1, None), ("missed", QUARTER + 90 * MINUTE, 7, None),
    ]  # fmt: skip


def test_more_due_pipelines_than_one_transaction_takes(jobs, clock):
    """Of hundreds that are due together each runs; the writes are those of some at a time."""
    for number in range(250):
        jobs.create_pipeline(str(number), ["true"], schedule="*/15 * * * *")
    clock.advance(100)
    for _ in range(5):
        tick(jobs)

    assert jobs.count_jobs()[Status.QUEUED] == 250


@pytest.mark.parametrize(
    "change",
    [{"schedule": "*/5 * * * *"}, {"schedule": None}, {"time_zone": "Etc/GMT-1"}],
    ids=str,
)
@pytest.mark.parametrize("catch_up", ["skip", "last", "all"])
def test_ticks_that_a_change_of_the_schedule_drops_are_recorded(jobs, clock, change, catch_up):
    """Ticks of the old schedule that were due do not run, and are recorded once as missed."""
    pipeline = jobs.create_pipeline(
        "p", ["true"], schedule="*/15 * * * *", time_zone="UTC", catch_up=catch_up
    )
    clock.advance(100 + 40 * 60)
    jobs.update_pipeline(pipeline.id, **change)
    jobs.update_pipeline(pipeline.id, **change)
    tick(jobs)

    assert skips(jobs, pipeline) == [("missed", QUARTER + 30 * MINUTE, 3, None)]
    assert jobs.list_jobs() == []


@pytest.mark.parametrize(
    "change", [{"schedule": "*/5 * * * *"}, {"time_zone": None}, {"name": "q"}], ids=str
)
def test_change_of_a_pipeline_with_nothing_due_records_no_skip(jobs, clock, change):
    """No skip is recorded if the next tick is in the future or the schedule is the same."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *", time_zone="UTC")
    clock.advance(99 if "name" not in change else 101)
    jobs.update_pipeline(pipeline.id, **change)

    assert skips(jobs, pipeline) == []


def test_damaged_schedule_can_be_replaced(jobs, clock, database):
    """Its ticks cannot be computed, and the change is the repair."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(1000)
    sql(database, "UPDATE pipeline SET time_zone = 'Mars/Olympus'")
    jobs.update_pipeline(pipeline.id, time_zone="UTC")

    assert skips(jobs, pipeline) == []


# --- other rules of a time zone -------------------------------------------------------------


@pytest.mark.parametrize("hours", [1, -1])
def test_schedule_runs_once_across_a_change_of_rules(jobs, clock, database, hours):
    """A tick that was computed by other rules keeps its local time, and its day has it once."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="0 9 * * *", time_zone="Etc/GMT-1")
    sql(
        database,
        f"UPDATE pipeline SET next_tick = next_tick - {hours * 3_600_000_000}, "
        f"tick_offset = tick_offset + {hours * 3600}, late_after = 7200",
    )  # as if local time had been another one when it was computed
    clock.set_wall(datetime(2023, 11, 15, 6, 0, tzinfo=timezone.utc))
    seen = []
    for _ in range(60):
        clock.advance(1800)
        Scheduler(parts(jobs).database, parts(jobs).clock).tick()
        seen += [job.created for job in jobs.list_jobs() if job.end_time is None]
        for job in jobs.list_jobs():
            if job.end_time is None:
                end(jobs, job)

    assert [one.strftime("%d %H:%M") for one in seen] == ["15 08:00", "16 08:00"]
    assert skips(jobs, pipeline) == []


def test_unknown_time_zone_is_logged_once(jobs, clock, database, caplog):
    """A schedule that is not understood here is logged when it is first met, and never again."""
    jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    sql(database, "UPDATE pipeline SET time_zone = 'Mars/Olympus'")
    other = jobs.create_pipeline("q", ["true"], schedule="*/15 * * * *")
    taker = Scheduler(parts(jobs).database, parts(jobs).clock)
    for _ in range(5):
        clock.advance(100)
        taker.tick()

    assert [job.pipeline_id for job in jobs.list_jobs()] == [other.id]
    told = [text for text in caplog.messages if "not understood" in text]
    assert len(told) == 1
    assert "Mars/Olympus" in told[0]


# --- changes ------------------------------------------------------------------------------


def test_a_changed_schedule_counts_from_now(jobs, clock):
    """A change of schedule or time zone computes the next tick again; other changes leave it."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(60)
    hourly = jobs.update_pipeline(pipeline.id, schedule="@hourly")
    named = jobs.update_pipeline(pipeline.id, name="q", max_retries=2)
    india = jobs.update_pipeline(pipeline.id, time_zone="Asia/Kolkata")  # half an hour off
    utc = jobs.update_pipeline(pipeline.id, time_zone=None)

    assert hourly.next_tick == named.next_tick == utc.next_tick == QUARTER + 45 * MINUTE
    assert india.next_tick == QUARTER + 15 * MINUTE


@pytest.mark.parametrize("said", [{"schedule": "*/15 * * * *"}, {"time_zone": "UTC"}])
def test_repeating_an_unchanged_schedule_loses_no_tick(jobs, clock, said):
    """Who says the same again, as a deployment does, neither takes a tick nor leaves one out."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(100 + 3 * 900)  # the first three were nobody's, the last one has just come
    again = jobs.update_pipeline(pipeline.id, **said)
    tick(jobs)
    (job,) = jobs.list_jobs()

    assert again.next_tick == QUARTER
    assert job.created == QUARTER + 45 * MINUTE
    assert skips(jobs, pipeline) == [("missed", QUARTER + 30 * MINUTE, 3, None)]
    assert next_tick(jobs, pipeline) == QUARTER + 60 * MINUTE


def test_tick_of_a_schedule_that_is_changed_meanwhile_is_taken_by_the_new_one(
    jobs, clock, monkeypatch
):
    """One that is changed while it is looked at is not moved on by what it was before."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/5 * * * *")
    clock.advance(100)
    changed = []
    read = schedules.scheduled_pipelines

    def look(connection, **which):
        found = read(connection, **which)
        if which["until"] is not None and not changed:
            changed.append(1)
            sql(parts(jobs).database.path, "UPDATE pipeline SET schedule = '15 * * * *'")
        return found

    monkeypatch.setattr(schedules, "scheduled_pipelines", look)
    tick(jobs)
    before = jobs.list_jobs()
    tick(jobs)

    assert (before, len(jobs.list_jobs())) == ([], 1)
    assert next_tick(jobs, pipeline) == QUARTER + 60 * MINUTE


@pytest.mark.parametrize("damaged", [1, 2, 5])
def test_pipelines_that_cannot_be_read_keep_no_other_from_its_tick(
    jobs, clock, monkeypatch, damaged
):
    """However many of them are due before it, and however few are read at once."""
    monkeypatch.setattr(scheduler, "AT_ONCE", 2)
    for number in range(damaged):
        jobs.create_pipeline(f"damaged {number}", ["true"], schedule="*/5 * * * *")
    sql(parts(jobs).database.path, "UPDATE pipeline SET time_zone = CAST(x'ff' AS TEXT)")
    whole = [jobs.create_pipeline(f"p{n}", ["true"], schedule="*/15 * * * *").id for n in range(3)]
    clock.advance(100)
    tick(jobs)

    assert sorted(job.pipeline_id for job in jobs.list_jobs()) == sorted(whole)


def test_unreadable_pipeline_keeps_no_other_tick_from_moving_earlier(jobs, monkeypatch):
    """An unreadable pipeline does not keep the ticks of others from moving back to their time."""
    monkeypatch.setattr(scheduler, "AT_ONCE", 2)
    for number in range(3):
        jobs.create_pipeline(f"damaged {number}", ["true"], schedule="*/5 * * * *")
    sql(parts(jobs).database.path, "UPDATE pipeline SET time_zone = CAST(x'ff' AS TEXT)")
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    before = next_tick(jobs, pipeline)
    sql(parts(jobs).database.path, "UPDATE pipeline SET next_tick = next_tick * 2 WHERE name = 'p'")
    looks = Scheduler(parts(jobs).database, parts(jobs).clock)
    for _ in range(4):
        looks.tick()

    assert next_tick(jobs, pipeline) == before


def test_a_schedule_that_was_removed_runs_no_more(jobs, clock):
    """Without a schedule there is no tick, neither the one that was due nor a later one."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(100)
    changed = jobs.update_pipeline(pipeline.id, schedule=None)
    for _ in range(3):
        tick(jobs)
        clock.advance(900)

    assert (changed.schedule, changed.next_tick) == (None, None)
    assert jobs.list_jobs() == []
    assert skips(jobs, pipeline) == [("missed", QUARTER, 1, None)]  # it was due before


def test_a_schedule_that_comes_back_misses_nothing(jobs, clock):
    """Ticks of the time without a schedule are not recorded."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    jobs.update_pipeline(pipeline.id, schedule=None)
    clock.advance(86400 + 50)
    jobs.update_pipeline(pipeline.id, schedule="*/15 * * * *")
    clock.advance(50)
    tick(jobs)

    assert len(jobs.list_jobs()) == 1
    assert skips(jobs, pipeline) == []


def test_a_deleted_pipeline_is_not_ticked(jobs, clock, database):
    """A tick that comes after the first step of a deletion makes neither job nor record."""
    for mark in (jobs.delete_pipeline, parts(jobs).pipelines.mark_pipeline_deleted):
        mark(jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *").id)
    clock.advance(100)
    tick(jobs)

    assert jobs.list_jobs() == []
    assert sql(database, "SELECT * FROM skip") == []
    with pytest.raises(PipelineNotFound):
        jobs.skips("p")


def test_skips_are_deleted_with_their_pipeline(jobs, clock, database):
    """Nothing of a pipeline's records outlives it."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(86400)
    tick(jobs)
    recorded = len(jobs.skips(pipeline.id))
    jobs.delete_pipeline(pipeline.id)

    assert (recorded, sql(database, "SELECT * FROM skip")) == (1, [])


@pytest.mark.parametrize("expression", ["", "* * * *", "61 * * * *", "@sometimes", "0 0 31 2 *"])
def test_a_bad_expression_is_refused_when_it_is_written(jobs, clock, database, expression):
    """An invalid or impossible schedule is a ScheduleError; the old one stays in force."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    with pytest.raises(ScheduleError) as caught:
        jobs.create_pipeline("q", ["true"], schedule=expression)
    with pytest.raises(ScheduleError):
        jobs.update_pipeline(pipeline.id, schedule=expression, name="q")
    with pytest.raises(ScheduleError):
        jobs.update_pipeline(pipeline.id, time_zone="Mars/Olympus")
    clock.advance(100)
    tick(jobs)

    assert caught.value.status == 400
    assert [row["name"] for row in sql(database, "SELECT name FROM pipeline")] == ["p"]
    assert len(jobs.list_jobs()) == 1


def test_one_pipeline_that_cannot_be_ticked_holds_up_no_other(jobs, clock, database):
    """A stored time zone that is not known here costs its own pipeline's ticks, no more."""
    broken = jobs.create_pipeline("broken", ["true"], schedule="*/15 * * * *")
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    sql(database, "UPDATE pipeline SET time_zone = 'Gone/Zone' WHERE id = ?", broken.id.hex)
    clock.advance(100)
    tick(jobs)

    assert [job.pipeline_id for job in jobs.list_jobs()] == [pipeline.id]
    assert next_tick(jobs, broken) == QUARTER


def test_a_tick_and_its_job_are_one_transaction(jobs, clock, database):
    """A tick whose job could not be written is not taken, and is taken later."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(100)
    sql(database, "CREATE TRIGGER no BEFORE INSERT ON job BEGIN SELECT RAISE(ABORT, 'no'); END")
    tick(jobs)
    between = next_tick(jobs, pipeline)
    sql(database, "DROP TRIGGER no")
    tick(jobs)

    assert between == QUARTER
    assert len(jobs.list_jobs()) == 1


# --- several processes ----------------------------------------------------------------------


class At:
    """A clock that stands where it is put."""

    def __init__(self, wall):
        self.wall = wall

    def now(self):
        return self.wall

    def monotonic(self):
        return 0.0


def tick_through(database, first, count):
    """Look at the schedules at `count` moments, a minute apart."""
    clock = At(first)
    with JobManager(database, slots=0, clock=clock) as jobs:
        for _ in range(count):
            tick(jobs)
            clock.wall += 60_000_000


def test_of_eight_processes_one_takes_a_tick(jobs, clock, database):
    """Eight processes that see a tick at once make one job of it and record nothing."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(100)

    at_once(tick_through, [(database, clock.now(), 1)] * 8)

    assert len(jobs.list_jobs()) == 1
    assert skips(jobs, pipeline) == []


def test_eight_processes_take_each_tick_once(jobs, clock, database):
    """Ten ticks seen by eight processes are one job, and nine runs that were skipped for it."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="* * * * *")
    clock.advance(40)
    first = to_datetime(clock.now())

    at_once(tick_through, [(database, clock.now(), 10)] * 8)

    (job,) = jobs.list_jobs()
    assert job.created == first
    assert skips(jobs, pipeline) == [("schedule", first + 9 * MINUTE, 9, job.id)]
    assert next_tick(jobs, pipeline) == first + 10 * MINUTE


def test_eight_processes_record_missed_ticks_once(jobs, clock, database):
    """Only the process that moves the next tick records the missed ones."""
    pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(100 + 40 * 60)

    at_once(tick_through, [(database, clock.now(), 1)] * 8)

    assert skips(jobs, pipeline) == [("missed", QUARTER + 30 * MINUTE, 3, None)]
    assert jobs.list_jobs() == []


def test_a_manager_with_slots_runs_what_is_due(running_jobs):
    """Without anybody asking, a pipeline of every second runs again and again."""
    pipeline = running_jobs.create_pipeline("p", EXIT_0, schedule="* * * * * *")
    until(
        lambda: running_jobs.count_jobs(pipeline_id=pipeline.id)[Status.COMPLETE] >= 2,
        "two runs by schedule",
    )
    running_jobs.update_pipeline(pipeline.id, schedule=None)
    running_jobs.drain(30)
    ended = running_jobs.list_jobs()

    assert {(job.type, job.status, job.pipeline_id) for job in ended} == {
        ("PIPELINE_RUN", Status.COMPLETE, pipeline.id)
    }
    assert len({job.created.replace(microsecond=0) for job in ended}) == len(ended)


def test_a_manager_without_slots_takes_no_tick(database, clock):
    """It neither runs nor records due ticks; managers with slots do."""
    with JobManager(database, slots=0, clock=clock) as jobs:
        pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
        clock.advance(86400)
        jobs.recover()
        listed = jobs.list_jobs()

        assert listed == []
        assert next_tick(jobs, pipeline) == QUARTER
