"""What users of data pipelines do in a day, one short test each: runs, schedules, histories."""

from __future__ import annotations

import logging
import os
import time
from datetime import datetime, timezone

import pytest

from jobcore import JobManager, Status, pytest_plugin
from jobcore.clock import to_datetime
from jobcore.testing import ManualClock, Script, ScriptedExecutor, assert_job, drain, elapse
from tests.processes import Child, hear

jobs = pytest_plugin.jobs  # the test kit's, in the place of the one of these tests
scripted = pytest.mark.usefixtures("job_scripts", "job_clock")  # no processes, no real time


def log_of(jobs, job):
    """Return the lines of a job's log, with their streams."""
    return [(line.stream, line.text) for line in jobs.logs(job.id)]


# --- a run in a block of the program ------------------------------------------------


def test_run_in_a_with_block(jobs):
    """It is seen running, and complete when the block ends."""
    with jobs.task("ELT", name="tap-to-target") as run:
        assert_job(run.job, status="RUNNING")

    assert_job(run.job, status="COMPLETE", exit_code=0)


def test_run_that_an_exception_fails(jobs):
    """The error is stored with the run, as the end of its log, and goes on."""
    run = jobs.task("ELT", name="tap-to-target")
    with pytest.raises(ZeroDivisionError), run:
        print(1 / 0)

    assert_job(run.job, status="ERROR", exit_code=1, log="ZeroDivisionError: division by zero")


def work_for_ever(database, answer):
    with JobManager(database, slots=0) as jobs, jobs.task("ELT", name="tap-to-target") as run:
        os.write(answer, str(run.job.id).encode())
        time.sleep(300)


def test_run_whose_process_died_has_failed(jobs, tmp_path):
    """It fails at once, without a missed heartbeat."""
    ours, theirs = os.pipe()
    child = Child(work_for_ever, tmp_path / "jobs.db", theirs)
    job_id = (hear(ours) + os.read(ours, 100)).decode()
    os.close(ours)
    os.close(theirs)
    assert_job(job_id, status="RUNNING")
    child.kill()
    jobs.wait(job_id)

    assert_job(job_id, status="ERROR", reason="lost", log=[])


def test_error_and_state_are_stored_with_the_run(jobs):
    """What a failed run has learned is there for the next one."""

    def extract():
        with jobs.task("ELT", data={"state": {"orders": 0}}) as run:
            try:
                raise OSError("connection lost")
            except OSError as error:
                learned = {"state": {"orders": 17}, "error": str(error)}
                jobs.update_job(run.job.id, data=learned)
                raise

    with pytest.raises(OSError, match="connection lost"):
        extract()
    (last,) = jobs.list_jobs(type="ELT")

    assert_job(last, status="ERROR")
    assert last.data == {"state": {"orders": 17}, "error": "connection lost"}


def test_loggers_with_names_write_to_one_run(jobs):
    """The name of each is before its line; stderr and stdout are as they were."""
    with jobs.task("ELT") as run:
        handler = run.handler(stream="stderr")
        handler.setFormatter(logging.Formatter("%(name)s | %(message)s"))
        for name in ("tap", "target"):
            logger = logging.getLogger(f"acme.{name}")
            logger.addHandler(handler)
            logger.warning("begins")
            logger.removeHandler(handler)

    assert log_of(jobs, run.job) == [
        ("stderr", "acme.tap | begins"),
        ("stderr", "acme.target | begins"),
    ]


def test_writers_with_names_write_to_one_run(jobs):
    """Each line of each of them begins with its name."""
    with jobs.task("ELT") as run:
        tap = run.writer(prefix="tap | ")
        target = run.writer("stderr", prefix="target | ")
        print("one", "two", sep="\n", file=tap)
        print("12 rows", file=target)
        print("no newline", end="", file=tap)

    assert log_of(jobs, run.job) == [
        ("stdout", "tap | one"),
        ("stdout", "tap | two"),
        ("stderr", "target | 12 rows"),
        ("stdout", "tap | no newline"),
    ]


# --- schedules ----------------------------------------------------------------------

#: A moment, and what a manager with a slot needs to run scripts there.
NOON = datetime(2026, 11, 30, 12, 0, 30, tzinfo=timezone.utc)


def outage(database, seconds, *, script=None, **fields):
    """Make a pipeline, run nothing for some time, and return what happens in the next minute."""
    clock = ManualClock(NOON)
    with JobManager(database, slots=0, clock=clock) as jobs:
        pipeline = jobs.create_pipeline("hourly", ["etl"], schedule="@hourly", **fields)
    clock.advance(seconds)
    with (
        ScriptedExecutor(script or Script(), clock=clock) as scripted,
        JobManager(
            database, clock=clock, launcher=scripted, executors={"PIPELINE_RUN": scripted}
        ) as jobs,
    ):
        elapse(jobs, 60)
        runs = len(jobs.list_jobs(pipeline_id=pipeline.id))
        return runs, [(one.why, one.due.hour, one.count) for one in jobs.skips(pipeline.id)]


def test_missed_ticks_are_not_run_by_default(database):
    """They are recorded."""
    assert outage(database, 4 * 3600 + 600) == (0, [("missed", 16, 4)])


def test_last_tick_runs_if_it_is_not_late(database):
    """The last tick is not older than `late_after`, so it runs; the others were missed."""
    assert outage(database, 4 * 3600 + 600, late_after=1800) == (1, [("missed", 15, 3)])


def test_no_tick_runs_if_all_are_late(database):
    """The last tick is older than `late_after`, so it is recorded as missed like the others."""
    assert outage(database, 4 * 3600 + 3000, late_after=1800) == (0, [("missed", 16, 4)])


def test_all_missed_ticks_are_caught_up(database):
    """They run one after the other."""
    assert outage(database, 4 * 3600 + 600, catch_up="all") == (4, [])


def overlapping(jobs, catch_up):
    """Have a run take two and a half hours, and return the hours of the starts and of the skips."""
    pipeline = jobs.create_pipeline("hourly", ["etl"], schedule="@hourly", catch_up=catch_up)
    elapse(jobs, 4 * 3600)
    drain(jobs)
    starts = [job.start_time.strftime("%H:%M") for job in jobs.list_jobs()[::-1]]
    return starts, [(one.why, one.due.hour, one.count) for one in jobs.skips(pipeline.id)]


@pytest.mark.job_scripts(Script([9000]), Script())
@scripted
def test_tick_during_a_run_is_skipped(jobs):
    """A pipeline has one run at a time; a skipped tick is recorded."""
    assert overlapping(jobs, "skip") == (["23:00", "02:00"], [("schedule", 1, 2)])


@pytest.mark.job_scripts(Script([9000]), Script())
@scripted
def test_tick_during_a_run_waits_with_catch_up_all(jobs):
    """With `catch_up="all"` no tick is skipped."""
    starts, skips = overlapping(jobs, "all")

    assert (starts, skips) == (["23:00", "01:30", "01:30", "02:00"], [])


# --- what runs ----------------------------------------------------------------------


def test_variables_from_a_file(jobs, tmp_path):
    """A shell reads them at the start, so that they are in no database."""
    (tmp_path / "job.env").write_text("LEVEL=debug\nGREETING='good morning'\n")
    job = jobs.submit("set -a; . ./job.env; exec env", shell=True, cwd=tmp_path)
    jobs.wait(job.id)

    assert_job(job, status="COMPLETE", log="LEVEL=debug")
    assert_job(job, log="GREETING=good morning")


def test_parameters_of_a_run(jobs):
    """Words, variables and a time-out for this run alone."""
    pipeline = jobs.create_pipeline("load", script='echo "$1 at $LEVEL"', env={"LEVEL": "info"})
    run = jobs.create_job(
        pipeline_id=pipeline.id, args=["monday"], env={"LEVEL": "debug"}, timeout=60
    )
    jobs.wait(run.id)

    assert_job(run, status="COMPLETE", log=["monday at debug"])


COUNTS = """
echo "from $(sed 's/[^0-9]//g' "$JOBCORE_STATE")"
echo "{\\"orders\\": $1}" >&"$JOBCORE_STATE_FD"
exit "${2:-0}"
"""


def test_state_of_a_run_is_there_for_the_next(jobs):
    """A run that fails leaves it as it was."""
    pipeline = jobs.create_pipeline("load", script=COUNTS)
    for args in (["17"], ["23", "1"], ["30"]):
        run = jobs.create_job(pipeline_id=pipeline.id, args=args)
        jobs.wait(run.id)

    assert_job(run, status="COMPLETE", log=["from 17"])
    assert jobs.get_pipeline_state(pipeline.id) == {"orders": 30}


# --- history ------------------------------------------------------------------------


@scripted
def test_runs_of_one_name_newest_first(jobs):
    """The newest is the first, and one can ask for it alone."""
    for name in ("orders", "customers", "orders"):
        jobs.submit(["etl"], name=name)
    drain(jobs)

    assert [job.number for job in jobs.list_jobs(name="orders")] == [3, 1]
    assert [job.number for job in jobs.list_jobs(name="orders", limit=1)] == [3]


@pytest.mark.job_scripts(Script(exit_code=1), Script(exit_code=1), Script())
@scripted
def test_failures_of_a_day(jobs, job_clock):
    """History is filtered by time and status."""
    jobs.submit(["etl"], name="last week")
    drain(jobs)
    job_clock.advance(7 * 86400)
    midnight = to_datetime(job_clock.now())
    jobs.submit(["etl"], name="today, failed")
    drain(jobs)
    jobs.submit(["etl"], name="today")
    drain(jobs)

    failed = jobs.list_jobs(status=Status.ERROR, ended_since=midnight)
    assert [job.name for job in failed] == ["today, failed"]
    assert [job.name for job in jobs.list_jobs(ended_until=midnight)] == ["last week"]


@pytest.mark.job_scripts(Script([5]), Script([60]), Script([30]))
@scripted
def test_slowest_runs(jobs):
    """The history is ordered by how long runs took."""
    for name in ("a", "b", "c"):
        jobs.submit(["etl"], name=name)
        drain(jobs)

    slow = jobs.list_jobs(order="duration", limit=2)
    assert [(job.name, job.duration) for job in slow] == [("b", 60), ("c", 30)]
