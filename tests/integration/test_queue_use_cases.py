"""What users of job queues do in a day, one short test each: enqueue, order, cancel, wait."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobcore import (
    DuplicateKey,
    Reason,
    Status,
    Submission,
    pytest_plugin,
)
from jobcore.clock import to_datetime
from jobcore.testing import Script, assert_job, drain, elapse
from tests.processes import open_gate, until

jobs = pytest_plugin.jobs  # the test kit's, in the place of the one of these tests
scripted = pytest.mark.usefixtures("job_scripts", "job_clock")  # no processes, no real time


def started(job_scripts):
    """Return the first words of the commands, in the order of their starts."""
    return [command.argv[0] for command in job_scripts.commands.values()]


def fill_slots(jobs):
    """Start a job in each slot of the test kit's manager, so that others wait."""
    jobs.submit_many([["busy"], ["busy"]])
    elapse(jobs, 0)


# --- putting jobs in ----------------------------------------------------------------


def test_enqueue_a_function_and_take_its_result(jobs):
    """The id is all that a caller keeps."""
    job = jobs.submit_function("operator:add", 2, 3)
    jobs.wait(job.id)

    assert jobs.result(job.id) == 5


@scripted
def test_enqueue_many_at_once(jobs, job_scripts):
    """They start in their order."""
    made = jobs.submit_many([[f"load-{n}"] for n in range(5)], name="load")
    drain(jobs)

    assert [jobs.get_job(job.id).status for job in made] == [Status.COMPLETE] * 5
    assert started(job_scripts) == [f"load-{n}" for n in range(5)]


@scripted
def test_enqueue_at_a_time(jobs, job_clock):
    """It starts then, and not before."""
    job = jobs.submit(["report"], not_before=to_datetime(job_clock.now()) + timedelta(hours=1))
    elapse(jobs, 3599)
    assert (jobs.get_job(job.id).status, job.waits_for) == (Status.QUEUED, "time")
    drain(jobs)

    assert jobs.get_job(job.id).start_time == job.not_before


@scripted
def test_enqueue_in_some_time(jobs):
    """Seconds count from the creation."""
    job = jobs.submit(["report"], not_before=3600)
    batch = jobs.submit_many([Submission(["report"], not_before=7200), ["report"]], not_before=60)
    drain(jobs)
    starts = [jobs.get_job(one.id).start_time - job.created for one in (job, *batch)]

    assert [start.total_seconds() for start in starts] == [3600, 7200, 60]


@pytest.mark.job_scripts(Script([10]))
@scripted
def test_priority_goes_before_order(jobs, job_scripts):
    """Of equal jobs the oldest starts first."""
    fill_slots(jobs)
    for name, priority in (("a", 0), ("b", 5), ("c", -1), ("d", 5)):
        jobs.submit([name], priority=priority)
    drain(jobs)

    assert started(job_scripts)[2:] == ["b", "d", "a", "c"]


@pytest.mark.job_scripts(Script([10]))
@scripted
def test_move_to_the_front(jobs, job_scripts):
    """A waiting job gets a higher priority than the one that would start next."""
    fill_slots(jobs)
    jobs.submit(["a"], priority=7)
    *_, last = jobs.submit_many([["b"], ["c"]])
    (first,) = jobs.list_upcoming(limit=1)
    jobs.update_job(last.id, priority=first.priority + 1)
    drain(jobs)

    assert started(job_scripts)[2:] == ["c", "a", "b"]


@scripted
def test_name_a_job_oneself(jobs):
    """A key of one's own finds the job again, and no second one is created."""
    job = jobs.submit(["report"], key="report-2026-11-29", unique_for=86400)
    drain(jobs)

    assert jobs.submit(["report"], key="report-2026-11-29").id == job.id
    assert [found.id for found in jobs.list_jobs(key="report-2026-11-29")] == [job.id]
    with pytest.raises(DuplicateKey) as caught:
        jobs.submit(["report"], key="report-2026-11-29", on_conflict="raise")
    assert caught.value.job_id == job.id


# --- taking jobs back ---------------------------------------------------------------


@pytest.mark.job_scripts(Script([10]))
@scripted
def test_job_that_waits_too_long_expires(jobs, job_scripts):
    """It never starts, and its reason is `expired`."""
    fill_slots(jobs)
    job = jobs.submit(["price"], expires=5)
    drain(jobs)

    assert_job(job, status="STOPPED", reason="expired")
    assert "price" not in started(job_scripts)


@scripted
def test_cancel_a_job_that_waits(jobs, job_scripts):
    """It never starts."""
    job = jobs.submit(["mail"], not_before=3600)
    cancelled = jobs.cancel_job(job.id)
    drain(jobs)

    assert (cancelled.status, cancelled.reason) == (Status.STOPPED, Reason.CANCELLED)
    assert started(job_scripts) == []


@pytest.mark.job_scripts(Script(["begin"], hangs=True))
@scripted
def test_cancel_a_job_that_runs(jobs):
    """The same call stops it, with all of its processes."""
    job = jobs.submit(["import"])
    elapse(jobs, 0)
    jobs.cancel_job(job.id)
    drain(jobs)

    assert_job(job, status="STOPPED", reason="stopped", log=["begin"])


@pytest.mark.job_scripts(Script([10]))
@scripted
def test_cancel_many_jobs_at_once(jobs, job_scripts):
    """Those that match never start; the others do."""
    fill_slots(jobs)
    jobs.submit_many([["mail"]] * 3, name="mail-to-all")
    jobs.submit(["report"], name="report")
    cancelled = jobs.cancel_jobs(name="mail-*")
    drain(jobs)

    assert [job.reason for job in cancelled] == [Reason.CANCELLED] * 3
    assert started(job_scripts)[2:] == ["report"]


@scripted
def test_hold_back_jobs_of_a_group(jobs, job_scripts):
    """Jobs of a paused group wait until `resume`; the others run."""
    jobs.pause("mail")
    mail = jobs.submit(["mail"], group="mail")
    jobs.submit(["report"])
    drain(jobs)
    assert started(job_scripts) == ["report"]
    jobs.resume("mail")
    drain(jobs)

    assert_job(mail, status="COMPLETE")


@pytest.mark.job_scripts(Script(exit_code=1), Script(exit_code=1), Script())
@scripted
def test_retry_all_that_failed(jobs):
    """Each once, however often one asks."""
    first = jobs.submit_many([["a"], ["b"], ["c"]])
    drain(jobs)
    again = jobs.retry_jobs(status=Status.ERROR)
    drain(jobs)

    assert [job.retry_of for job in again] == [job.id for job in first[:2]]
    assert jobs.retry_jobs(status=Status.ERROR) == []


@scripted
def test_results_live_for_a_time(jobs, job_clock):
    """A job goes with its log and its result; failures may stay for longer."""
    jobs.set_retention("1h", statuses=Status.COMPLETE)
    job = jobs.submit(["report"])
    drain(jobs)
    job_clock.advance(3500)
    assert_job(job, status="COMPLETE")
    job_clock.advance(200)

    until(lambda: jobs.list_jobs() == [], "the end of the job's time")


# --- while it runs ------------------------------------------------------------------


def test_data_of_a_job_changes_while_it_runs(jobs):
    """Another process reads what the job says about itself, now and later."""
    with jobs.task(data={"step": "extract"}) as task:
        jobs.update_job(task.job.id, data={"step": "load"})
        seen = jobs.get_job(task.job.id).data

    assert seen == jobs.get_job(task.job.id).data == {"step": "load"}


def test_function_knows_its_job(jobs, database):
    """It reads its id, changes its data and reports its progress."""
    job = jobs.wait(jobs.submit_function("tests.functions:tells_its_step", "load").id)

    assert_job(job, status="COMPLETE")
    assert jobs.result(job.id) == [str(job.id), 1, str(job.workspace_id), None, database]
    assert job.data == {"step": "load"}
    told = job.progress
    assert (told.done, told.total, told.message) == (0.25, 1e9, "load of many")


@scripted
def test_progress_of_a_job_is_seen_while_it_runs(jobs):
    """It is kept when the job is final."""
    with jobs.task() as task:
        task.progress(3, 10, "orders")
        seen = jobs.get_job(task.job.id).progress

    assert (seen.done, seen.total, seen.message) == (3, 10, "orders")
    assert jobs.get_job(task.job.id).progress == seen


# --- several jobs -------------------------------------------------------------------


def test_wait_for_a_group_of_jobs(jobs):
    """Their results come in the order of the jobs."""
    made = [jobs.submit_function("operator:mul", n, n) for n in range(3)]
    jobs.wait_all([job.id for job in made])

    assert [jobs.result(job.id) for job in made] == [0, 1, 4]


def test_take_jobs_as_they_end(jobs, gate):
    """The first to end is the first to come."""
    slow = jobs.submit(["sh", "-c", 'read -r _ < "$GATE"'], env={"GATE": gate})
    fast = jobs.submit(["true"])
    ended = jobs.as_completed([slow.id, fast.id])
    assert next(ended).id == fast.id
    open_gate(gate)

    assert next(ended).id == slow.id


@pytest.mark.job_scripts(Script([10]))
@scripted
def test_lock_so_that_one_runs_at_a_time(jobs):
    """A limit of a group is a lock, over all processes."""
    jobs.set_limit("warehouse", 1)
    made = jobs.submit_many([["load"]] * 3, group="warehouse")
    other = jobs.submit(["report"])
    drain(jobs)
    starts = [jobs.get_job(job.id).start_time for job in made]

    assert [(start - starts[0]).total_seconds() for start in starts] == [0, 10, 20]
    assert jobs.get_job(other.id).start_time == starts[0]


# --- again and again ----------------------------------------------------------------


@scripted
def test_periodic_task(jobs):
    """A pipeline with a schedule runs at each tick."""
    hourly = jobs.create_pipeline("hourly", ["report"], schedule="@hourly")
    elapse(jobs, 3 * 3600)
    runs = jobs.list_jobs(pipeline_id=hourly.id)

    assert [job.start_time.minute for job in runs] == [0, 0, 0]
    assert {job.status for job in runs} == {Status.COMPLETE}


@scripted
def test_repeat_a_number_of_times_with_pauses(jobs):
    """Each run is a job that waits for its time."""
    runs = jobs.submit_many([Submission(["poll"], not_before=600 * n) for n in range(3)])
    drain(jobs)
    starts = [jobs.get_job(run.id).start_time - runs[0].created for run in runs]

    assert [start.total_seconds() for start in starts] == [0, 600, 1200]
