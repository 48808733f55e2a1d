"""`list_upcoming` is the order in which a worker starts the jobs; others wait for jobs."""

from __future__ import annotations

from datetime import timedelta

from jobcore import JobManager
from tests.processes import PATIENCE


def test_next_jobs_come_in_the_order_in_which_they_start(database):
    """By priority, then by creation, over types and groups; then by the time that they wait for."""
    with JobManager(database, slots=0) as jobs:
        first = jobs.submit(["true"], name="first")
        hour, day = timedelta(hours=1), timedelta(days=1)
        jobs.submit(["true"], name="in a day", not_before=first.created + day, priority=9)
        jobs.submit(["true"], name="in an hour", not_before=first.created + hour)
        jobs.submit(["true"], name="due", not_before=first.created, priority=1)
        jobs.submit(["true"], name="group", group="x", priority=1)
        jobs.submit(["true"], name="low", priority=-1)
        jobs.create_job("TASK", name="task")
        jobs.submit(["true"], name="high", priority=5)
        jobs.submit(["true"], name="reserved", reserved=True, priority=5)
        jobs.cancel_job(jobs.submit(["true"], name="cancelled", priority=7).id)
        names = [job.name for job in jobs.list_upcoming()]
        assert [job.name for job in jobs.list_upcoming(limit=2)] == ["high", "due"]
        assert jobs.list_upcoming(limit=0) == []
        with JobManager(database, slots=1) as worker:
            worker.drain(PATIENCE)
            started = sorted(worker.list_jobs(status="COMPLETE"), key=lambda job: job.start_time)

    expected = ["high", "due", "group", "first", "task", "low", "in an hour", "in a day"]
    assert names == expected
    assert [job.name for job in started if job.name != "reserved"] == [
        name for name in expected[:-2] if name != "task"
    ]


def test_jobs_that_a_job_waits_for_are_listed(database):
    """Whether they have ended or not; a retry in place of its job; deleted ones are left out."""
    with JobManager(database, slots=0) as jobs:
        first, second, third = (jobs.create_job("TASK") for _ in range(3))
        waiting = jobs.submit(["true"], after=[third.id, first.id, second.id], run_if="ended")
        jobs.start_job(first.id)
        jobs.finish_job(first.id)
        jobs.delete_job(third.id)
        assert [job.id for job in jobs.list_upstream(waiting.id)] == [first.id, second.id]
        assert jobs.list_upstream(first.id) == []
