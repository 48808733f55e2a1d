"""The asynchronous forms: under asyncio in debug mode and under trio, by way of anyio."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import traceback
from functools import partial
from uuid import UUID

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from jobcore import (
    ArgumentError,
    JobDeleted,
    JobManager,
    JobNotFound,
    PipelineNotFound,
    SpawnError,
    Status,
    StoreError,
    WaitTimeout,
    WorkspaceNotFound,
)
from jobcore.embedding import worker
from jobcore.engine.job_directories import Directories
from jobcore.engine.recovery import Recovery
from jobcore.operations import events as feed
from jobcore.operations import waiting_async
from jobcore.storage.database import Database
from jobcore.supervisor import job_directory
from jobcore.testing.parts import parts
from tests.processes import PATIENCE, descriptors, left_open, open_gate, run_python, until
from tests.programs import EXIT_3, SLEEPS, python

pytestmark = pytest.mark.anyio

NUMBERS = python("""
for start in range(0, 8000, 500):
    print(*(f"line {n}" for n in range(start, start + 500)), sep="\\n", flush=True)
raise SystemExit(7)
""")
NUMBER_LINES = [(n, f"line {n}") for n in range(8000)]  # several imports, and several pages


@pytest.fixture(params=[("asyncio", {"debug": True}), ("trio", {})], ids=["asyncio", "trio"])
def anyio_backend(request):
    """Return what the tests of this file run under."""
    return request.param


async def read(lines):
    return [(line.sequence, line.text) async for line in lines]


async def until_true(condition):
    """Return when `condition` is true; the loop goes on meanwhile."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nobody is there to set an event
            await anyio.sleep(0.002)


async def make(call, *arguments, **options):
    """Call a blocking method as a host in an event loop does."""
    return await anyio.to_thread.run_sync(partial(call, *arguments, **options))


# --- what they return ---------------------------------------------------------------


async def test_they_return_what_the_blocking_forms_return(running_jobs):
    """A job awaited is the job waited for, its lines are the lines, and drained is drained."""
    job = await make(running_jobs.submit, NUMBERS)
    lines = await read(running_jobs.follow_async(job.id, unfinished=False))
    ended = await running_jobs.wait_async(job.id, timeout=PATIENCE)
    await running_jobs.drain_async(timeout=PATIENCE)

    assert lines == NUMBER_LINES
    assert (ended.status, ended.exit_code) == (Status.ERROR, 7)
    assert ended == await make(running_jobs.wait, job.id)
    assert await read(running_jobs.follow_async(str(job.id), 7999)) == NUMBER_LINES[-1:]


async def test_several_jobs_are_awaited_at_once(running_jobs):
    """All are final, in the order of the ids, as `wait_all` returns them."""
    first, second = await make(running_jobs.submit_many, [EXIT_3, ["true"]])
    ids = [second.id, str(first.id), second.id]
    ended = await running_jobs.wait_all_async(iter(ids), timeout=PATIENCE)

    assert [job.id for job in ended] == [second.id, first.id, second.id]
    assert [job.exit_code for job in ended] == [0, 3, 0]
    assert ended == await make(running_jobs.wait_all, ids)
    assert await running_jobs.wait_all_async([]) == []
    for one in (str(first.id), first.id, None):
        with pytest.raises(ArgumentError, match="wait_all"):
            running_jobs.wait_all_async(one)


async def test_the_time_of_a_wait_for_several_is_for_all_of_them(jobs):
    """Each begins with what the ones before it have left; unknown jobs are told at the await."""
    mine = []
    for _ in range(3):
        job = await make(jobs.create_job, "TASK")
        mine.append((await make(jobs.start_job, job.id)).id)
    waiting = jobs.wait_all_async(mine, timeout=0.02)
    with pytest.raises(WaitTimeout, match=r"RUNNING after 0.02 s"):
        await waiting
    waiting = jobs.wait_all_async([*mine, UUID(int=5)])
    with pytest.raises(JobNotFound):
        await waiting


async def test_unfinished_line_comes_without_a_number_and_then_once_with_it(running_jobs, gate):
    """A prompt is seen while it stands; what an `anext()` that was cancelled saw comes again."""
    script = 'printf "sure? "; read -r _ < "$GATE"; echo yes'
    job = await make(running_jobs.submit, ["sh", "-c", script], env={"GATE": gate})
    lines = running_jobs.follow_async(job.id)
    with anyio.move_on_after(0.01):
        await anext(lines)
    seen = await anext(running_jobs.follow_async(job.id))
    await make(open_gate, gate)
    rest = [line for line in await read(lines) if line[0] is not None]

    assert (seen.sequence, seen.raw) == (None, b"sure? ")
    assert rest == [(0, "sure? yes")]


async def test_many_follow_at_once_and_each_gets_each_line_once(running_jobs):
    """Eight tasks that follow one job from different lines all end with it, without a gap."""
    job = await make(running_jobs.submit, NUMBERS)
    got = {}

    async def follow(first):
        got[first] = await read(running_jobs.follow_async(job.id, first, unfinished=False))

    async with anyio.create_task_group() as tasks:
        for first in range(0, 8000, 1000):
            tasks.start_soon(follow, first)

    assert got == {first: NUMBER_LINES[first:] for first in range(0, 8000, 1000)}


async def test_a_drain_ends_when_the_last_job_does(running_jobs):
    """`drain_async` returns once all that was submitted is final."""
    submitted = await make(running_jobs.submit_many, [EXIT_3] * 8)
    await running_jobs.drain_async()

    ended = [await make(running_jobs.get_job, job.id) for job in submitted]
    assert {job.exit_code for job in ended} == {3}


async def test_a_loop_that_takes_a_time_out_for_a_pause_ends(jobs):
    """A follower raises WaitTimeout once; then it is over, and nothing spins."""
    job = await make(jobs.create_job, "TASK")
    await make(jobs.start_job, job.id)
    lines = jobs.follow_async(job.id, timeout=0)
    pauses = 0
    while True:
        try:
            await anext(lines)
        except TimeoutError:
            pauses += 1
        except StopAsyncIteration:
            break

    assert pauses == 1


async def test_events_come_as_from_the_blocking_form(jobs):
    """Past events, filtered and limited, and then later ones, without a gap."""
    done = await make(jobs.create_job, "A")
    await make(jobs.cancel_job, done.id)
    options = {"after": 1, "status": Status.STOPPED, "type": "A"}
    seen = [event async for event in jobs.events_async(**options)]

    assert seen == await make(lambda: list(jobs.events(**options)))
    assert [event.id async for event in jobs.events_async(limit=1)] == [1]
    some = jobs.events_async(type="B", scan_limit=1)
    assert some.after is None
    assert ([event async for event in some], some.after) == ([], 1)
    assert [event.id async for event in jobs.events_async("now")] == []
    assert [event.id async for event in jobs.events_async("now", follow=True, timeout=0)] == []


async def test_a_time_out_ends_a_search_for_rare_events(jobs, monkeypatch):
    """It counts while a reader catches up, too: after the first page the time is over."""
    monkeypatch.setattr(feed, "PAGE", 20)
    await make(jobs.submit_many, [["true"]] * 21)
    blocking, awaited = jobs.events(type="B", timeout=-1), jobs.events_async(type="B", timeout=-1)

    assert list(blocking) == [event async for event in awaited] == []
    assert (blocking.after, awaited.after) == (20, 20)


async def test_event_reader_sees_each_commit(jobs):
    """It waits without a thread; a cancelled step loses no event."""
    events = jobs.events_async(0, follow=True, limit=40)
    with anyio.move_on_after(0.05):
        await anext(events)
    got = []

    async def read_all():
        got.extend([event.id async for event in events])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_all)
        for _ in range(20):
            job = await make(jobs.create_job, "TASK")
            await make(jobs.cancel_job, job.id)

    assert got == list(range(1, 41))


async def test_wrong_event_arguments_raise(jobs):
    """A wrong argument raises at the call, or at the first step if the database has to be asked."""
    for options in ({"after": -1}, {"limit": -1}, {"timeout": "x"}, {"status": "x"}, {"type": 5}):
        with pytest.raises(ArgumentError):
            jobs.events_async(**options)
    for options, error in (
        ({"after": 7}, ArgumentError),
        ({"workspace_id": "none"}, WorkspaceNotFound),
        ({"pipeline_id": "none"}, PipelineNotFound),
    ):
        events = jobs.events_async(**options)
        with pytest.raises(error):
            await anext(events)
        with pytest.raises(StopAsyncIteration):
            await anext(events)


# --- the loop -----------------------------------------------------------------------


async def test_nothing_is_touched_in_the_loops_own_thread(database, monkeypatch):
    """Every statement and every job directory is another thread's affair."""
    touched = []
    connect, open_directory = Database.new_connection, job_directory.open_directory

    def traced(self):
        connection = connect(self)
        connection.set_trace_callback(lambda text: touched.append((threading.get_ident(), text)))
        return connection

    def opened(name, **options):
        touched.append((threading.get_ident(), name))
        return open_directory(name, **options)

    monkeypatch.setattr(Database, "new_connection", traced)
    require_root = Directories.require_root

    def required(self):
        touched.append((threading.get_ident(), "the root of all directories"))
        return require_root(self)

    monkeypatch.setattr(job_directory, "open_directory", opened)
    monkeypatch.setattr(Directories, "require_root", required)
    jobs = await make(JobManager, database, slots=1)
    try:
        queued = await make(
            jobs.create_job, "REVIEW"
        )  # whose wait opens the root of the directories
        with pytest.raises(WaitTimeout):
            await jobs.wait_async(queued.id, timeout=0.1)
        job = await make(jobs.submit, NUMBERS)
        assert len(await read(jobs.follow_async(job.id, unfinished=False))) == 8000
        job = await make(jobs.submit, EXIT_3)
        await jobs.wait_async(job.id)
        await jobs.drain_async()
    finally:
        await make(jobs.close)

    assert len(touched) > 20
    assert [what for thread, what in touched if thread == threading.get_ident()] == []


@pytest.fixture
def held(jobs, scripted, monkeypatch):
    """Return a job that has ended, and two events: a step of its waiters blocks, and may go on."""
    blocked, go_on = threading.Event(), threading.Event()
    reconcile = Recovery.reconcile

    def block(self, run, **options):
        blocked.set()
        assert go_on.wait(PATIENCE)
        return reconcile(self, run, **options)

    run = scripted()

    async def end():
        """Let the job end behind the back of a waiter that has begun."""
        await until_true(lambda: parts(jobs).waiter.watched)
        monkeypatch.setattr(Recovery, "reconcile", block)
        run.exit()
        run.die()
        await until_true(blocked.is_set)

    yield run, end, go_on
    go_on.set()


async def test_event_loop_runs_while_a_step_blocks(jobs, held):
    """A look that waits for the database delays only the tasks that need it."""
    run, end, go_on = held
    ended = []

    async def wait():
        ended.append(await jobs.wait_async(run.id))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await end()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()  # would not come back if the step held the loop
        assert ended == []
        go_on.set()

    assert [job.status for job in ended] == [Status.COMPLETE]


async def test_cancelled_waiter_does_not_wait_for_its_step(jobs, held):
    """A cancelled waiter ends while its step is still under way; the step ends by itself."""
    run, end, go_on = held
    with anyio.fail_after(PATIENCE / 2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(jobs.wait_async, run.id)
            await end()
            tasks.cancel_scope.cancel()
    assert not go_on.is_set()
    go_on.set()

    assert (await jobs.wait_async(run.id)).status is Status.COMPLETE


async def test_asyncio_finds_no_callback_slow(running_jobs, anyio_backend_name, caplog):
    """In asyncio's debug mode no step of a callback is reported as one that holds up the loop."""
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio's own report")

    loop = asyncio.get_running_loop()
    loop.slow_callback_duration = 1.0  # seconds; what blocks on the database takes up to 30
    caplog.set_level(logging.WARNING, logger="asyncio")
    job = await make(running_jobs.submit, NUMBERS)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(read, running_jobs.follow_async(job.id))
            tasks.start_soon(running_jobs.wait_async, job.id)

    assert loop.get_debug()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_a_long_log_lets_other_tasks_run(jobs, own, monkeypatch):
    """A reader of lines that are all there lets others run in between."""
    monkeypatch.setattr(waiting_async, "LINES_PER_SWITCH", 10)
    await make(jobs.append_log, own.id, *["x"] * 1000)
    await make(jobs.finish_job, own.id)
    turns = []

    async def count():
        while True:
            turns.append(None)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        lines = jobs.follow_async(own.id)
        await lines.__anext__()
        begun = len(turns)
        assert len(await read(lines)) == 999
        taken = len(turns) - begun
        tasks.cancel_scope.cancel()

    assert taken >= 90


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)  # no debug mode
async def test_hundreds_of_waiters_hold_no_threads(jobs, own):
    """Hundreds of tasks wait for queued and running jobs with a few threads, and all end."""
    queued = await make(jobs.create_job, "TASK")
    ended, most = [], 0

    async def wait(job_id):
        ended.append((await jobs.wait_async(job_id)).status)

    async with anyio.create_task_group() as tasks:
        for index in range(300):
            tasks.start_soon(wait, (own.id, queued.id)[index % 2])
        for _ in range(10):  # all of them have looked before the second
            await anyio.sleep(0.005)
            most = max(most, threading.active_count())
        await make(jobs.finish_job, own.id)
        await make(jobs.cancel_job, queued.id)

    assert most < 60  # asyncio's workers are at most 32, trio's 40, whoever waits
    assert sorted(ended) == [Status.COMPLETE] * 150 + [Status.STOPPED] * 150


# --- leaving ------------------------------------------------------------------------


@pytest.fixture
def nothing_left(monkeypatch):
    """After the test no descriptor and no thread that works for jobcore may be left."""
    monkeypatch.setattr(worker, "IDLE", 0.05)  # seconds that a thread waits for another call
    before = descriptors()
    yield
    assert left_open(before) == {}
    # Frameworks keep idle threads for a while.
    until(lambda: threads_in_jobcore() == [], "the end of all steps")


def threads_in_jobcore():
    return [
        frame.f_code.co_name
        for ident, top in sys._current_frames().items()
        for frame, _ in traceback.walk_stack(top)
        if ident != threading.get_ident()
        and frame.f_globals.get("__name__", "").startswith("jobcore.")
    ]


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("form", ["wait", "follow", "drain"])
async def test_cancelling_leaves_nothing(database, form):
    """A waiter that is cancelled ends, wherever it is, and leaves no thread and no descriptor."""
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        job = await make(jobs.submit, SLEEPS, grace=0.1)
        assert [line async for line in take(jobs.follow_async(job.id), 1)]

        async def waits():
            if form == "wait":
                await jobs.wait_async(job.id)
            elif form == "follow":
                await read(jobs.follow_async(job.id))
            else:
                await jobs.drain_async()

        for index in range(30):
            with anyio.fail_after(PATIENCE), anyio.move_on_after(index * 0.002) as scope:
                await waits()
            assert scope.cancelled_caught
        # The framework itself holds the last cancellation for a moment.
        await until_true(lambda: gc.collect() >= 0 and list(parts(jobs).waiter.watched) == [])
        assert (await make(jobs.get_job, job.id)).status is Status.RUNNING


async def take(lines, count):
    """Yield the first lines."""
    async for line in lines:
        yield line
        count -= 1
        if not count:
            return


async def test_a_cancelled_anext_loses_no_line(running_jobs):
    """Lines that are awaited with many short time-outs come each once, in order."""
    job = await make(running_jobs.submit, NUMBERS)
    lines, got, given_up = running_jobs.follow_async(job.id, unfinished=False), [], 0
    with anyio.fail_after(PATIENCE):
        while True:
            with anyio.move_on_after(0.0005 * (given_up % 20)) as scope:
                try:
                    line = await lines.__anext__()
                except StopAsyncIteration:
                    break
                got.append((line.sequence, line.text))
            given_up += scope.cancelled_caught

    assert given_up > 0
    assert got == NUMBER_LINES


async def test_leaving_a_loop_early_leaves_nothing(jobs, own):
    """Whoever breaks out of `async for` owes nothing: no warning comes, and another may go on."""
    await make(jobs.append_log, own.id, "a", "b", "c")
    lines = jobs.follow_async(own.id)
    async for line in lines:
        if line.text == "b":
            break
    await make(jobs.finish_job, own.id)
    rest = await read(lines)
    again = await read(lines)
    del lines
    gc.collect()

    assert rest == [(2, "c")]
    assert again == []
    # A thread that has looked may still hold the result.
    until(lambda: list(parts(jobs).waiter.watched) == [], "the end of what was known of the job")


async def test_two_tasks_cannot_share_an_iterator(jobs, own):
    """A second task that awaits the same iterator gets an error."""
    lines = jobs.follow_async(own.id)
    raised = []

    async def take_one():
        try:
            await lines.__anext__()
        except RuntimeError as error:
            raised.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_one)
        tasks.start_soon(take_one)
        await until_true(lambda: raised)
        tasks.cancel_scope.cancel()

    assert raised == ["another task waits for the next line of the same iterator"]


# --- errors -------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.02])
async def test_time_outs_hold(jobs, own, timeout):  # noqa: ASYNC109 - it is what is tested
    """A wait ends at its time-out, after the present lines, and the job goes on."""
    await make(jobs.append_log, own.id, "a")
    lines = jobs.follow_async(own.id, timeout=timeout)
    first = await lines.__anext__()

    for waiting in (jobs.wait_async(own.id, timeout), read(lines)):
        with pytest.raises(WaitTimeout, match=f"RUNNING after {timeout} s"):
            await waiting
    with pytest.raises(StopAsyncIteration):
        await lines.__anext__()
    assert first.text == "a"
    assert (await make(jobs.get_job, own.id)).status is Status.RUNNING


async def test_a_drain_has_its_time_out(database):
    """The error says that jobs are still queued or running."""
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        await make(jobs.submit, SLEEPS)
        with pytest.raises(WaitTimeout, match="still queued or running after 0"):
            await jobs.drain_async(timeout=0)


@pytest.mark.parametrize("nonsense", [float("nan"), "1", -1.5])
async def test_wrong_arguments_raise_at_the_call(jobs, own, nonsense):
    """A wrong argument raises at the call, before any `await`."""
    with pytest.raises(ValueError, match="sequence must be"):
        jobs.follow_async(own.id, nonsense)
    if nonsense != -1.5:  # a time that is over
        for call in (partial(jobs.wait_async, own.id), partial(jobs.follow_async, own.id, 0)):
            with pytest.raises(ValueError, match="timeout must be"):
                call(nonsense)
        with pytest.raises(ValueError, match="timeout must be"):
            jobs.drain_async(nonsense)
        with pytest.raises(ValueError, match="timeout must be"):
            jobs.wait_all_async([own.id], nonsense)


async def test_unknown_and_deleted_jobs_raise(jobs, own):
    """The errors are those of the blocking forms, at the `await`."""
    with pytest.raises(JobNotFound):
        await jobs.wait_async("no-such-job")
    with pytest.raises(JobNotFound):
        await jobs.follow_async("no-such-job").__anext__()
    await make(jobs.append_log, own.id, "a")
    lines = jobs.follow_async(own.id)
    await lines.__anext__()
    begun, raised = [], []
    waiting = parts(jobs).waiter.waiting
    parts(jobs).waiter.waiting = lambda run: begun.append(run) or waiting(run)

    async def wait():
        with pytest.raises(JobDeleted) as error:
            await jobs.wait_async(own.id)
        raised.append(error.value.job_id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await until_true(lambda: begun)
        await make(jobs.delete_job, own.id)
    with pytest.raises(JobDeleted):
        await lines.__anext__()

    assert raised == [own.id]


@pytest.mark.usefixtures("quick_failures")
async def test_failing_supervisor_starts_raise_in_waiters(database, tmp_path):
    """An `await` of a job that may never run raises."""
    with JobManager(database, slots=1, python=str(tmp_path / "no-python")) as jobs:
        job = await make(jobs.submit, EXIT_3)
        with pytest.raises(SpawnError):
            await jobs.wait_async(job.id, PATIENCE)
        with pytest.raises(SpawnError):
            await anext(jobs.follow_async(job.id, timeout=PATIENCE))
        with pytest.raises(SpawnError):
            await jobs.drain_async(PATIENCE)


async def test_waiting_on_a_closed_manager_raises(database):
    """Waiting on when the manager is closed ends with the typed error, not never."""
    jobs = JobManager(database, slots=0)
    job = await make(jobs.create_job, "TASK")
    raised = []

    async def wait():
        with pytest.raises(StoreError, match="is closed"):
            await jobs.wait_async(job.id)
        raised.append(True)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await until_true(lambda: len(parts(jobs).waiter.watched) == 1)
        await make(jobs.close)

    assert raised == [True]


# --- which framework ----------------------------------------------------------------

PLAIN = """
import sys
from jobcore import JobManager

async def main():
    with JobManager(sys.argv[1], slots=1) as jobs:
        job = jobs.submit(["sh", "-c", "echo hello; exit 3"])
        async for line in jobs.follow_async(job.id, unfinished=False):
            print(line.text)
        print((await jobs.wait_async(job.id)).exit_code)
        await jobs.drain_async()

"""
RUNNERS = """
import asyncio
asyncio.run(main(), debug=True)
print("trio" in sys.modules)

import trio
trio.run(main)
asyncio.run(main())
"""


def test_each_framework_works_by_itself(database):
    """asyncio needs nothing else; trio is used if it runs, not if it is only imported."""
    said = run_python(PLAIN + RUNNERS, database, flags=["-W", "error"])

    assert said.split() == ["hello", "3", "False", "hello", "3", "hello", "3"]
