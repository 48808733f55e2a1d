"""Tasks: a `with` block is a job, from its beginning to its end."""

from __future__ import annotations

import os
import time

import pytest

from jobcore import (
    CommandError,
    InvalidTransition,
    JobManager,
    JobNotFound,
    PipelineAlreadyRunning,
    Reason,
    Status,
    Stopped,
)
from tests.processes import Child, hear, in_child, stop_host


def texts(jobs, job):
    return [line.text for line in jobs.logs(job.id)]


def test_block_is_a_complete_job(jobs):
    """The lines, progress and result of the block are those of the job."""
    with jobs.task("ELT", name="load", data={"a": 1}) as task:
        assert task.job.status is jobs.get_job(task.job.id).status is Status.RUNNING
        assert task.log("one", b"two") == 2
        task.progress(3, 10, "loading")
        task.check()
        task.result = {"rows": 3}
    job = jobs.get_job(task.job.id)

    assert (job.type, job.name, job.data) == ("ELT", "load", {"a": 1})
    assert (job.status, job.exit_code, job.reason) == (Status.COMPLETE, 0, Reason.EXITED)
    assert (texts(jobs, job), job.progress.done) == (["one", "two"], 3)
    assert jobs.result(job.id) == task.result == {"rows": 3}
    assert [entry.trigger for entry in jobs.history(job.id)] == ["create", "start", "finish"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_exception_of_the_body_is_the_end_of_its_log(jobs, error):
    """The job is ERROR, its last lines are the traceback, and the exception goes on."""
    task = jobs.task("ELT")

    def work():
        with task:
            task.log("begun")
            task.result = 1
            raise error("broken\nfor good")

    with pytest.raises(error, match="broken"):
        work()
    job = jobs.get_job(task.job.id)
    first, second, *_, last = texts(jobs, job)

    assert (job.status, job.exit_code, job.reason) == (Status.ERROR, 1, Reason.EXITED)
    assert (first, second, last) == ("begun", "Traceback (most recent call last):", "for good")


def stop(jobs, job):
    return jobs.stop_job(job.id).status


def cancel(jobs, job):
    return jobs.cancel_job(job.id).status


def finish(jobs, job):
    return jobs.finish_job(job.id).status


def fail(jobs, job):
    return jobs.finish_job(job.id, 3).status


def delete(jobs, job):
    return jobs.delete_job(job.id)


ENDS = [stop, cancel, finish, fail, delete]
STEPS = [
    lambda task: task.log("more"),
    lambda task: task.progress(1),
    lambda task: task.check(),
    lambda _: None,  # it comes to its end
]


@pytest.mark.parametrize("step", STEPS, ids=["log", "progress", "check", "end"])
@pytest.mark.parametrize("end", ENDS)
def test_body_of_an_ended_job_gets_stopped(jobs, end, step):
    """Its next call, or its end, raises Stopped; the job is not changed."""
    task = jobs.task("ELT")

    def work():
        with task:
            task.log("begun")
            ended.append(end(jobs, task.job))
            step(task)

    ended = []
    with pytest.raises(Stopped) as caught:
        work()
    (status,) = ended

    assert (caught.value.job_id, caught.value.job_status) == (task.job.id, status)
    if status is None:
        with pytest.raises(JobNotFound):
            jobs.get_job(task.job.id)
    else:
        job = jobs.get_job(task.job.id)
        assert (job.status, texts(jobs, job)) == (status, ["begun"])


def test_error_of_a_stopped_body_propagates(jobs):
    """The job stays STOPPED, and what the body raised is not replaced."""
    task = jobs.task("ELT")

    def work():
        with task:
            jobs.stop_job(task.job.id)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()
    assert jobs.get_job(task.job.id).status is Status.STOPPED


def test_queued_job_can_be_the_task(jobs):
    """The block starts it, and its pipeline is free at the end."""
    pipeline = jobs.create_pipeline("p", ["true"])
    queued = jobs.create_job("ELT", pipeline_id=pipeline.id)
    with jobs.task(job_id=queued.id) as task:
        assert (task.job.id, task.job.status) == (queued.id, Status.RUNNING)
        with pytest.raises(PipelineAlreadyRunning), jobs.task(pipeline_id=pipeline.id):
            pass
    with jobs.task("ELT", pipeline_id=pipeline.id) as task:
        pass
    assert jobs.get_job(task.job.id).pipeline_id == pipeline.id


def test_task_of_another_process_or_an_ended_one_is_not_taken(jobs):
    """Only a queued job and one of this process can be worked on."""
    ended = jobs.finish_job(jobs.start_job(jobs.create_job("ELT").id).id)
    people = jobs.start_job(jobs.create_job("PROFILE_IMPORT").id)
    for job in (ended, people):
        with pytest.raises(InvalidTransition), jobs.task(job_id=job.id):
            pass
    with pytest.raises(JobNotFound), jobs.task(job_id="none"):
        pass


def test_task_that_cannot_be_made_makes_no_job(jobs):
    """Its arguments are checked before anything is stored."""
    with pytest.raises(CommandError):
        jobs.task("ELT", data={1, 2})
    with pytest.raises(CommandError), jobs.task("ELT", name=3):
        pass
    assert jobs.list_jobs() == []


@pytest.mark.parametrize("result", [lambda: 1, "x" * (4 * 2**20)])
def test_result_that_cannot_be_stored_is_refused_in_the_body(jobs, result):
    """The error is raised where the result is set, and the job can go on."""
    with jobs.task("ELT") as task:
        with pytest.raises(ValueError, match="result"):
            task.result = result
        task.result = 2
    assert jobs.result(task.job.id) == 2


def test_task_object_is_for_one_block(jobs):
    """Outside of it there is no job, and it does not begin again."""
    task = jobs.task("ELT")
    with pytest.raises(RuntimeError, match="with block"):
        task.log("x")
    with task:
        pass
    with pytest.raises(RuntimeError, match="one with block"):
        task.__enter__()
    with pytest.raises(Stopped):
        task.log("after its end")
    assert len(jobs.list_jobs()) == 1


def body_that_stays(database, answer):
    with JobManager(database, slots=0) as jobs, jobs.task("ELT") as task:
        task.log("begun")
        os.write(answer, str(task.job.id).encode())
        time.sleep(300)


def test_task_of_a_host_that_is_killed_in_the_body_is_lost(jobs, database):
    """No block comes to its end there; the next look ends the job."""
    ours, theirs = os.pipe()
    child = Child(body_that_stays, database, theirs)
    job_id = (hear(ours) + os.read(ours, 100)).decode()
    os.close(ours)
    os.close(theirs)
    assert jobs.get_job(job_id).status is Status.RUNNING
    stop_host(child.pid, database)
    assert jobs.get_job(job_id).status is Status.RUNNING
    child.kill()

    assert jobs.get_job(job_id).reason is Reason.LOST


def try_to_finish(jobs, task):
    try:
        task.log("from the child")
        jobs.recover()
        return str(jobs.get_job(task.job.id).status)
    finally:
        jobs.close()


def test_forked_child_of_a_body_may_log_and_ends_nothing(jobs):
    """It is not the owner; the block ends in the parent."""
    with jobs.task("ELT") as task:
        assert in_child(try_to_finish, jobs, task) == "RUNNING"
        task.check()
    job = jobs.get_job(task.job.id)
    assert (job.status, texts(jobs, job)) == (Status.COMPLETE, ["from the child"])


def leave_body(jobs, task, error):
    try:
        task.__exit__(None if error is None else type(error), error, None)
        return str(jobs.get_job(task.job.id).status)
    finally:
        jobs.close()


@pytest.mark.parametrize("error", [None, SystemExit(0)], ids=["falls out of it", "sys.exit"])
def test_forked_child_that_leaves_the_body_does_not_end_the_job(jobs, error):
    """After `os.fork` both processes come to the end of the block; the job is the parent's."""
    with jobs.task("ELT") as task:
        assert in_child(leave_body, jobs, task, error) == "RUNNING"
        task.check()
    assert jobs.get_job(task.job.id).status is Status.COMPLETE


def test_stop_of_an_inner_task_ends_the_outer_one(jobs):
    """`Stopped` of another job is an exception like any other."""
    outer, inner = jobs.task("OUTER"), jobs.task("INNER")

    def stop_inner():
        with outer, inner:
            jobs.stop_job(inner.job.id)
            inner.check()

    with pytest.raises(Stopped):
        stop_inner()
    job = jobs.get_job(outer.job.id)
    assert (job.status, job.exit_code) == (Status.ERROR, 1)
    assert jobs.get_job(inner.job.id).status is Status.STOPPED
