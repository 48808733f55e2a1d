"""Paused schedules, and the group that jobs have from their pipeline."""

from __future__ import annotations

import pytest

from jobcore import CommandError
from jobcore.clock import to_datetime
from jobcore.engine.scheduler import Scheduler
from jobcore.storage import job_rows
from jobcore.testing.parts import parts
from tests.tasks import end


def tick(jobs):
    """Do once what a manager with slots does every second."""
    Scheduler(parts(jobs).database, parts(jobs).clock).tick()


def group_of(jobs, job):
    with parts(jobs).database.read() as connection:
        return job_rows.find_job(connection, job.id).group_name


@pytest.mark.parametrize("catch_up", ["skip", "last", "all"])
def test_paused_schedule_does_not_fire_and_its_ticks_do_not_run_later(jobs, clock, catch_up):
    """The pause has no ticks; the next one is the first after the end of the pause."""
    made = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *", catch_up=catch_up)
    paused = jobs.update_pipeline(made.id, paused=True)
    began = to_datetime(clock.now())
    clock.advance(7200)
    tick(jobs)
    again = jobs.update_pipeline(made.id, paused=True, timeout=5)
    resumed = jobs.update_pipeline(made.id, paused=False)
    tick(jobs)

    assert (paused.paused, paused.next_tick) == (began, None)
    assert (again.paused, again.next_tick) == (began, None)
    assert resumed.paused is None
    assert resumed.next_tick > to_datetime(clock.now())
    assert jobs.list_jobs() == []
    assert jobs.skips(made.id) == []

    clock.advance(100)
    tick(jobs)
    assert len(jobs.list_jobs()) == 1


def test_change_of_a_paused_schedule_keeps_the_pause(jobs):
    """The new schedule begins when the pause ends."""
    made = jobs.create_pipeline("p", ["true"], schedule="@daily", paused=True)
    changed = jobs.update_pipeline(made.id, schedule="@hourly", time_zone="Europe/Berlin")

    assert (made.next_tick, changed.next_tick, changed.paused) == (None, None, made.paused)
    assert jobs.update_pipeline(made.id, paused=False).next_tick is not None


def test_ticks_that_were_due_before_the_pause_are_recorded(jobs, clock):
    """A tick that no manager had handled when the schedule was paused is a missed one."""
    made = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(200)
    jobs.update_pipeline(made.id, paused=True)

    assert [(one.why, one.count) for one in jobs.skips(made.id)] == [("missed", 1)]


def test_paused_pipeline_runs_on_request_and_after_its_sources(jobs):
    """Only the schedule is paused."""
    source = jobs.create_pipeline("source", ["true"])
    made = jobs.create_pipeline("p", ["true"], triggered_by=["source"], paused=True)
    end(jobs, jobs.create_job(pipeline_id=source.id))

    (job,) = jobs.list_jobs(pipeline_id=made.id)
    end(jobs, job)
    assert jobs.create_job(pipeline_id=made.id).pipeline_id == made.id


def test_jobs_have_the_group_of_their_pipeline(jobs, clock):
    """By request, by schedule and by trigger; a later change applies to later jobs."""
    made = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *", group="gpu")
    after = jobs.create_pipeline("q", ["true"], triggered_by=["p"], group="db")
    by_request = jobs.create_job(pipeline_id=made.id)
    groups = [group_of(jobs, by_request)]
    end(jobs, by_request)
    groups += [group_of(jobs, job) for job in jobs.list_jobs(pipeline_id=after.id)]
    clock.advance(100)
    tick(jobs)
    groups.append(group_of(jobs, jobs.list_jobs(pipeline_id=made.id)[0]))
    changed = jobs.update_pipeline(made.id, group=None)
    end(jobs, jobs.list_jobs(pipeline_id=made.id)[0])
    groups.append(group_of(jobs, jobs.create_job(pipeline_id=made.id)))

    assert groups == ["gpu", "db", "gpu", None]
    assert (made.group, changed.group) == ("gpu", None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group": ""}, "group must be a name, not an empty text"),
        ({"group": 7}, "group must be a string, not 7"),
        ({"group": "g" * 256}, "group must have 1 to 255 characters, not 256"),
        ({"paused": "yes"}, "paused must be one of"),
        ({"paused": 3.5}, "paused must be one of"),
    ],
)
def test_wrong_groups_and_pauses_are_refused(jobs, fields, message):
    """Nothing is created."""
    with pytest.raises(CommandError, match=message):
        jobs.create_pipeline("p", ["true"], **fields)
    assert jobs.list_pipelines() == []
