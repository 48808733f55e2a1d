"""Reserved jobs: only the process that submitted one may start it."""

from __future__ import annotations

import os

import pytest

from jobcore import InvalidTransition, JobManager, Reason, Status
from jobcore.testing.parts import parts
from tests.processes import Child, hear, in_child
from tests.programs import EXIT_0


def submit_reserved(database, answer):
    """Reserve a job in this process, say its id, and stay."""
    with JobManager(database, slots=0) as jobs:
        os.write(answer, str(jobs.submit(EXIT_0, reserved=True).id).encode())
        os.read(os.pipe()[0], 1)


@pytest.fixture
def reserved(database):
    """Return a process, and the id of the QUEUED job that it has reserved."""
    JobManager(database, slots=0).close()
    ours, theirs = os.pipe()
    child = Child(submit_reserved, database, theirs)
    job_id = (hear(ours) + os.read(ours, 100)).decode()
    os.close(ours)
    os.close(theirs)
    yield child, job_id
    if child.pid:
        child.kill()


def die(child):
    """Kill the process that has reserved the job."""
    child.kill()
    child.pid = 0


def run_all(database):
    """Run all that a worker may run."""
    with JobManager(database, slots=1) as worker:
        worker.drain(30)
        return [str(job.status) for job in worker.list_jobs()]


def test_reserved_job_is_started_by_its_process_alone(database):
    """A worker passes over it and takes all others; its own process runs it."""
    with JobManager(database, slots=0) as jobs:
        mine = jobs.submit(EXIT_0, reserved=True)
        jobs.submit(EXIT_0)
        assert in_child(run_all, database) == ["COMPLETE", "QUEUED"]
        with JobManager(database, slots=1) as here:
            assert here.wait(mine.id, 30).status is Status.COMPLETE
        assert [entry.trigger for entry in jobs.history(mine.id)] == ["create", "start", "finish"]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("count", [3, 21])
def test_many_reserved_jobs_are_started_by_their_process_alone(database, count):
    """However they are written: together, or in steps."""
    with JobManager(database, slots=0) as jobs:
        jobs.submit_many([["true"]] * count, reserved=True, priority=1)
        jobs.submit(EXIT_0)
        assert in_child(run_all, database)[:2] == ["COMPLETE", "QUEUED"]
        assert jobs.count_jobs()[Status.QUEUED] == count
        if count == 3:
            with JobManager(database, slots=2) as here:
                here.drain(30)
                assert here.count_jobs()[Status.COMPLETE] == 4


def test_reserved_job_stays_queued_while_its_process_lives(database, reserved):
    """Neither a worker nor a host's `start_job` takes it."""
    _, job_id = reserved
    assert run_all(database) == ["QUEUED"]
    with JobManager(database, slots=0) as jobs, pytest.raises(InvalidTransition):
        jobs.start_job(job_id)


def look(jobs, job_id):
    return jobs.get_job(job_id)


def sweep(jobs, job_id):
    (ended,) = jobs.recover()
    assert str(ended.id) == job_id
    return ended


def wait(jobs, job_id):
    return jobs.wait(job_id, 30)


@pytest.mark.parametrize("verb", [look, sweep, wait])
def test_reserved_job_of_a_dead_process_is_cancelled(database, reserved, verb):
    """The next look cancels it, so it does not run when nobody waits for it."""
    child, job_id = reserved
    die(child)
    with JobManager(database, slots=0) as jobs:
        job = verb(jobs, job_id)

    assert (job.status, job.reason) == (Status.STOPPED, Reason.CANCELLED)
    assert job.start_time is None


def test_worker_never_starts_the_reserved_job_of_a_dead_process(database, reserved):
    """The worker's sweep cancels it."""
    child, job_id = reserved
    die(child)
    with JobManager(database, slots=1) as worker:
        ended = worker.wait(job_id, 30)
        triggers = [entry.trigger for entry in worker.history(job_id)]

    assert ended.reason is Reason.CANCELLED
    assert triggers == ["create", "cancel"]


def test_reserved_job_is_cancelled_and_deleted_like_others(database):
    """Any process may take it from the queue; then it is no longer anybody's."""
    with JobManager(database, slots=0) as jobs:
        first, second = (jobs.submit(EXIT_0, reserved=True) for _ in range(2))
        assert jobs.cancel_job(first.id).status is Status.STOPPED
        jobs.delete_job(second.id)
        assert [job.id for job in jobs.list_jobs()] == [first.id]
        assert parts(jobs).ownership.current is not None
    assert parts(jobs).ownership.directories._closed
