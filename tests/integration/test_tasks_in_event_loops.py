"""Tasks in event loops: under asyncio and trio, by way of anyio."""

from __future__ import annotations

import threading
from functools import partial

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from jobcore import JobManager, Reason, Status, Stopped
from jobcore.operations.task_operations import TaskOperations
from tests.processes import PATIENCE

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[("asyncio", {"debug": True}), ("trio", {})], ids=["asyncio", "trio"])
def anyio_backend(request):
    """Return what the tests of this file run under."""
    return request.param


async def call(function, *args, **options):
    """Call a method of a manager as README says, in a thread."""
    return await anyio.to_thread.run_sync(partial(function, *args, **options))


async def test_block_is_a_complete_job(jobs):
    """The body awaits what it says, and the job is COMPLETE behind it."""
    async with jobs.task("ELT") as task:
        assert await task.log_async("one", "two") == 2
        await task.progress_async(1, 2, "half")
        await task.check_async()
        task.result = [1]
    job = await call(jobs.get_job, task.job.id)

    assert (job.status, job.line_count, job.progress.total) == (Status.COMPLETE, 2, 2)
    assert await call(jobs.result, job.id) == [1]


async def test_exception_of_the_body_is_the_end_of_its_log(jobs):
    """The job is ERROR, and the exception goes on as it is."""
    task = jobs.task("ELT")

    async def work():
        async with task:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await work()
    job = await call(jobs.get_job, task.job.id)

    assert (job.status, job.exit_code) == (Status.ERROR, 1)
    assert [line.text for line in jobs.logs(job.id)][-1] == "ValueError: broken"


@pytest.mark.parametrize("verb", ["stop_job", "finish_job", "delete_job"])
async def test_body_that_awaits_is_cancelled_when_its_job_is_over(jobs, verb):
    """It need not look: the block raises Stopped, and what is around it goes on."""
    begun, at_work, cancelled, told = anyio.Event(), [], [], []

    async def work():
        try:
            async with jobs.task("ELT") as task:
                at_work.append(task.job)
                begun.set()
                try:
                    await anyio.sleep(10 * PATIENCE)
                except anyio.get_cancelled_exc_class():
                    cancelled.append(True)
                    raise
        except Stopped as error:
            told.append(error)
        await anyio.sleep(0.01)  # no cancellation is left over
        told.append("went on")

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await begun.wait()
            await call(getattr(jobs, verb), at_work[0].id)

    assert cancelled == [True]
    assert [getattr(one, "job_id", one) for one in told] == [at_work[0].id, "went on"]


async def test_next_step_of_a_stopped_body_raises_stopped(jobs):
    """It gets Stopped by its step or by the cancellation, whichever is first; both once."""
    told = []
    for _ in range(5):
        try:
            async with jobs.task("ELT") as task:
                await call(jobs.stop_job, task.job.id)
                await task.log_async("more")
        except Stopped as error:
            told.append(error.job_status)
        await anyio.lowlevel.checkpoint()
    assert told == [Status.STOPPED] * 5


async def test_block_ending_during_a_stop_raises_stopped(jobs):
    """A body without a step more learns at its end that its job was not completed."""
    told = []
    try:
        async with jobs.task("ELT") as task:
            jobs.stop_job(task.job.id)  # in the loop, which cannot look meanwhile
    except Stopped as error:
        told.append(error.job_status)
    await anyio.lowlevel.checkpoint()
    assert told == [Status.STOPPED]


async def test_cancellation_by_the_host_propagates_and_ends_the_job(jobs):
    """The job is ERROR with the traceback: nothing asked for its stop."""
    with anyio.CancelScope() as scope:
        async with jobs.task("ELT") as task:
            scope.cancel()
            await anyio.sleep(10 * PATIENCE)
    job = await call(jobs.get_job, task.job.id)

    assert scope.cancel_called
    assert (job.status, job.reason, job.exit_code) == (Status.ERROR, Reason.EXITED, 1)


async def test_cancellation_by_the_host_and_a_stop_at_once(jobs):
    """Whichever comes first, the job is STOPPED and the host's scope is left."""
    with anyio.CancelScope() as scope:
        try:
            async with jobs.task("ELT") as task:
                await call(jobs.stop_job, task.job.id)
                scope.cancel()
                await anyio.sleep(10 * PATIENCE)
        except Stopped:
            pass
    assert (await call(jobs.get_job, task.job.id)).status is Status.STOPPED


async def test_exception_of_a_cancelled_body_propagates(jobs):
    """An exception from the clean-up of a cancelled body is raised, and no cancellation is left."""
    begun, at_work, told = anyio.Event(), [], []

    async def work():
        try:
            async with jobs.task("ELT") as task:
                at_work.append(task.job)
                begun.set()
                try:
                    await anyio.sleep(10 * PATIENCE)
                finally:
                    raise ValueError("clean-up")
        except ValueError as error:
            told.append(str(error))
        await anyio.sleep(0.01)
        told.append("went on")

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await begun.wait()
            await call(jobs.stop_job, at_work[0].id)
    assert told == ["clean-up", "went on"]


async def test_many_tasks_at_once(jobs):
    """Each has its own job, and one that is stopped ends alone."""
    ended = []

    async def work(number):
        try:
            async with jobs.task("ELT", name=str(number)) as task:
                if number == 3:
                    await call(jobs.stop_job, task.job.id)
                await task.log_async("x")
        except Stopped:
            ended.append(number)

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(work, number)
    counts = await call(jobs.count_jobs)
    assert (ended, counts[Status.COMPLETE], counts[Status.STOPPED]) == ([3], 7, 1)


# --- claims ---------------------------------------------------------------------


async def test_claim_waits_and_gives_up(jobs):
    """It gets the job that comes, and None where none comes in time."""
    assert await jobs.claim_job_async("ELT") is None
    assert await jobs.claim_job_async("ELT", timeout=0.01) is None
    claimed = []

    async def claim():
        claimed.append(await jobs.claim_job_async("ELT", timeout=None))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(claim)
            made = await call(jobs.create_job, "ELT")
    assert [(job.id, job.status) for job in claimed] == [(made.id, Status.RUNNING)]


async def test_claim_that_is_cancelled_while_it_waits_has_claimed_nothing(jobs):
    """The next job is there for others."""
    with anyio.move_on_after(0.02):
        await jobs.claim_job_async("ELT", timeout=None)
    made = await call(jobs.create_job, "ELT")
    await anyio.sleep(0.05)
    assert (await jobs.claim_job_async("ELT")).id == made.id


async def test_claim_that_is_cancelled_in_the_middle_loses_no_job(jobs, monkeypatch):
    """The job that is just being claimed is returned, and then the cancellation comes."""
    inside, go_on = threading.Event(), threading.Event()
    real = TaskOperations.claim_next

    def held(self, types, **options):
        inside.set()
        assert go_on.wait(PATIENCE)
        return real(self, types, **options)

    monkeypatch.setattr(TaskOperations, "claim_next", held)
    made = await call(jobs.create_job, "ELT")
    got = []

    async def claim(scope):
        with scope:
            got.append(await jobs.claim_job_async("ELT"))
            await anyio.sleep(10 * PATIENCE)
            got.append("was not cancelled")

    scope = anyio.CancelScope()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(claim, scope)
            await call(inside.wait)
            scope.cancel()
            await anyio.sleep(0.01)
            go_on.set()
    assert [job.id for job in got] == [made.id]


async def test_claimers_of_one_loop_share_the_jobs(database):
    """Each job goes to one of them."""
    with JobManager(database, slots=0) as jobs:
        made = {(await call(jobs.create_job, "ELT")).id for _ in range(12)}
        got = []

        async def work():
            while (job := await jobs.claim_job_async("ELT")) is not None:
                async with jobs.task(job_id=job.id) as task:
                    got.append(task.job.id)

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(work)
        counts = await call(jobs.count_jobs)
    assert sorted(got) == sorted(made)
    assert counts[Status.COMPLETE] == 12
