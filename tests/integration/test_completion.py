"""Waiting for many jobs: each comes once, when its last attempt has ended, at little cost."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from jobcore import (
    ArgumentError,
    DatabaseCorrupt,
    JobDeleted,
    JobManager,
    JobNotFound,
    Status,
    WaitTimeout,
)
from jobcore.operations import completion
from tests.faults.hosts import host, serve
from tests.jobfiles import damage
from tests.processes import PATIENCE, join, open_gate, until
from tests.tasks import end, task

LOOKS = "PRAGMA data_version"


def ids_of(jobs):
    return [job.id for job in jobs]


async def gather(ended):
    return [job.id async for job in ended]


def every(jobs, ids, timeout=PATIENCE):
    """Return the ids of the jobs as both forms return them."""
    found = ids_of(jobs.as_completed(ids, timeout))
    assert sorted(asyncio.run(gather(jobs.as_completed_async(ids, timeout)))) == sorted(found)
    return found


# --- one after the other ---------------------------------------------------------------


def test_jobs_come_in_the_order_in_which_they_end(jobs):
    """Ended jobs come first, then each other one as it ends, once."""
    first, second, third = (jobs.create_job("TASK") for _ in range(3))
    end(jobs, second)
    ended = jobs.as_completed([str(first.id), second.id, third.id, second.id], PATIENCE)
    seen = [next(ended)]
    for job in (third, first):
        end(jobs, job, 3)
        seen.append(next(ended))

    assert ids_of(seen) == [second.id, third.id, first.id]
    assert [job.exit_code for job in seen] == [0, 3, 3]
    assert next(ended, None) is None
    assert every(jobs, []) == []


def test_jobs_come_in_an_event_loop_as_they_end(jobs):
    """A cancelled `anext()` has consumed nothing."""
    first, second = (jobs.create_job("TASK") for _ in range(2))

    async def both():
        ended = jobs.as_completed_async([first.id, second.id], PATIENCE)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ended.__anext__(), 0.02)
        await asyncio.to_thread(end, jobs, second)
        seen = [await ended.__anext__()]
        await asyncio.to_thread(end, jobs, first)
        return seen + [job async for job in ended]

    assert ids_of(asyncio.run(both())) == [second.id, first.id]


def test_commands_of_another_process_are_waited_for(database):
    """Whoever runs them: a manager without slots sees each end."""
    with JobManager(database, slots=0) as jobs:
        made = jobs.submit_many([["true"]] * 20)
        with host(serve, database):
            found = every(jobs, ids_of(made))

    assert sorted(found) == sorted(ids_of(made))


def test_command_whose_manager_is_gone_is_waited_for(database, gate):
    """The waiter imports the output itself if no manager does."""
    with JobManager(database, slots=1) as jobs:
        script = 'echo ready; read -r _ < "$GATE"; exit 4'
        job = jobs.submit(["sh", "-c", script], env={"GATE": gate})
        assert jobs.wait(job.id, PATIENCE, until="started").status == Status.RUNNING
        assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
    with JobManager(database, slots=0) as jobs:
        ended = jobs.as_completed([job.id, job.id], PATIENCE)
        open_gate(gate)
        assert [job.exit_code for job in ended] == [4]


# --- the last attempt ------------------------------------------------------------------


def test_id_stands_for_the_last_attempt(jobs):
    """Where a job was retried, its retry is waited for and returned, also through several."""
    first = jobs.create_job("TASK", name="again")
    end(jobs, first, 1)
    second = jobs.retry_job(first.id)
    end(jobs, second, 1)
    third = jobs.retry_job(second.id)
    with pytest.raises(WaitTimeout, match=f"job {third.id} is QUEUED"):
        jobs.wait_all([first.id], 0)
    end(jobs, third)

    assert every(jobs, [first.id]) == [third.id]
    assert every(jobs, [first.id, second.id, third.id]) == [third.id]
    assert ids_of(jobs.wait_all([first.id, third.id])) == [third.id] * 2
    assert ids_of(asyncio.run(jobs.wait_all_async([first.id, third.id]))) == [third.id] * 2
    assert jobs.wait(first.id).id == first.id


def test_retry_of_a_pipeline_is_waited_for(database, clock):
    """No moment lies between a failure and its retry: the failed job is never returned."""
    with JobManager(database, slots=0, clock=clock) as jobs:
        pipeline = jobs.create_pipeline("retried", ["true"], max_retries=2)
        job = jobs.create_job(pipeline_id=pipeline.id)
        ended = []
        thread = threading.Thread(target=lambda: ended.extend(jobs.wait_all([job.id], PATIENCE)))
        thread.start()
        for exit_code in (1, 1, 0):
            (queued,) = jobs.list_jobs(status=Status.QUEUED)
            end(jobs, queued, exit_code)
        join(thread)

    assert [(job.attempt, job.status) for job in ended] == [(3, Status.COMPLETE)]


def test_deleted_retry_does_not_count_as_an_attempt(jobs):
    """The attempt before it is the last one again."""
    first = jobs.create_job("TASK")
    end(jobs, first, 1)
    jobs.delete_job(jobs.retry_job(first.id).id)

    assert every(jobs, [first.id]) == [first.id]


# --- errors ----------------------------------------------------------------------------


def test_wrong_arguments_raise_at_the_call(jobs):
    """Unknown jobs too, but in an event loop at the first `anext()`."""
    job = task(jobs)
    for call in (jobs.as_completed, jobs.as_completed_async):
        with pytest.raises(ArgumentError, match="as_completed takes several ids"):
            call(str(job.id))
        with pytest.raises(ArgumentError, match="timeout"):
            call([job.id], "soon")
    with pytest.raises(JobNotFound):
        jobs.as_completed([job.id, "unknown"])
    unknown = jobs.as_completed_async([job.id, "unknown"])
    with pytest.raises(JobNotFound):
        asyncio.run(gather(unknown))
    for call in (jobs.wait, jobs.wait_async):
        with pytest.raises(ArgumentError, match='"ended", "started"'):
            call(job.id, until="running")


def test_time_is_for_the_whole_iteration(jobs):
    """Jobs that ended in time come before the error, which names the others."""
    ended, running = jobs.create_job("TASK"), task(jobs)
    end(jobs, ended)
    for timeout in (0, 0.05):
        several = jobs.as_completed([running.id, ended.id], timeout)
        assert next(several).id == ended.id
        with pytest.raises(WaitTimeout, match=f"1 of 2 jobs are not final: job {running.id} is"):
            next(several)
        assert next(several, None) is None
        with pytest.raises(WaitTimeout, match=f"job {running.id} is RUNNING after"):
            asyncio.run(gather(jobs.as_completed_async([running.id], timeout)))


@pytest.mark.parametrize("many", [False, True])
def test_deleted_job_raises_with_its_id(jobs, many, monkeypatch):
    """Also where jobs are too many to examine each of them at every look."""
    if many:
        monkeypatch.setattr(completion, "ALWAYS_EXAMINED", 0)
        monkeypatch.setattr(completion, "EXAMINE_PAUSE", 0.05)
    ended, deleted = jobs.create_job("TASK"), jobs.create_job("TASK")
    end(jobs, ended)
    several = jobs.as_completed([deleted.id, ended.id], PATIENCE)
    assert next(several).id == ended.id
    jobs.delete_job(deleted.id)
    with pytest.raises(JobDeleted) as error:
        next(several)
    assert error.value.job_id == deleted.id


def test_damaged_job_ends_the_wait_after_the_others(jobs, database):
    """The jobs before it come first; then its error is raised."""
    ended, damaged = jobs.create_job("TASK"), jobs.create_job("TASK")
    end(jobs, ended)
    damage(database, "job", damaged.id, status="LOST")
    several = jobs.as_completed([ended.id, damaged.id], PATIENCE)

    assert next(several).id == ended.id
    with pytest.raises(DatabaseCorrupt, match="status is unknown"):
        next(several)


# --- until="started" -------------------------------------------------------------------


def test_wait_until_started_ends_with_the_queue(jobs):
    """A job that runs has started, and so has one that has ended, however it ended."""
    running, ended, cancelled = (jobs.create_job("TASK") for _ in range(3))
    with pytest.raises(WaitTimeout, match="is QUEUED"):
        jobs.wait(running.id, 0, until="started")
    started = []
    thread = threading.Thread(
        target=lambda: started.append(jobs.wait(running.id, PATIENCE, until="started"))
    )
    thread.start()
    jobs.start_job(running.id)
    join(thread)
    end(jobs, ended, 2)
    jobs.cancel_job(cancelled.id)

    assert [job.status for job in started] == [Status.RUNNING]
    for job, status in [
        (running, Status.RUNNING),
        (ended, Status.ERROR),
        (cancelled, Status.STOPPED),
    ]:
        assert jobs.wait(job.id, 0, until="started").status == status
        assert asyncio.run(jobs.wait_async(job.id, 0, until="started")).status == status
    assert jobs.get_job(cancelled.id).start_time is None


# --- cost ------------------------------------------------------------------------------


def test_thousands_are_found_by_looks_not_by_jobs(statements, jobs):
    """Waiting for thousands of jobs reads only what was committed since the last look."""
    made = jobs.submit_many([["true"]] * 4000)
    several = jobs.as_completed(ids_of(made), PATIENCE)
    jobs.cancel_job(made[0].id)
    assert next(several).id == made[0].id
    before = len(statements)
    for job in made[1:40]:
        jobs.cancel_job(job.id)
        assert next(several).id == job.id
    read = [one for one in statements[before:] if one.startswith("SELECT") and "FROM job" in one]

    assert len([one for one in read if "job.number IN" in one]) < 39 * 4
    assert max(one.count(",") for one in read) < 2000


def test_idle_waiter_reads_no_table(statements, jobs, monkeypatch):
    """Between commits a waiter executes nothing but the question whether there was one."""
    steps = []
    step = completion.CompletionWaiter.step
    monkeypatch.setattr(
        completion.CompletionWaiter,
        "step",
        lambda *args: steps.append(len(statements)) or step(*args),
    )
    made = [jobs.create_job("TASK"), task(jobs)]
    ended = []
    thread = threading.Thread(
        target=lambda: ended.extend(jobs.as_completed(ids_of(made), PATIENCE)), daemon=True
    )
    thread.start()
    until(lambda: len(steps) >= 6, "the first steps")
    seen = len(steps)
    before = len(statements)
    until(lambda: len(steps) >= seen + 6, "idle steps")
    idle = statements[before:]
    end(jobs, made[0])
    jobs.finish_job(made[1].id)
    join(thread)

    assert set(idle) == {LOOKS}
    assert len(ended) == 2


def test_no_end_is_missed_among_many_writers(jobs):
    """However ends and looks interleave, each job comes exactly once."""
    made = [jobs.create_job("TASK") for _ in range(200)]

    def finish(mine):
        for job in mine:
            end(jobs, job)

    threads = [threading.Thread(target=partial(finish, made[part::4])) for part in range(4)]
    for thread in threads:
        thread.start()
    found = ids_of(jobs.as_completed(ids_of(made), PATIENCE))
    join(*threads)

    assert len(found) == 200
    assert set(found) == set(ids_of(made))
