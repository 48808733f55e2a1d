"""Subscribers: told of what this process does, each once, in order, and harmless to all else."""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from jobcore import (
    FINAL,
    JobManager,
    JobNotFound,
    PipelineNotFound,
    Status,
    StoreError,
    WorkspaceNotFound,
)
from jobcore.operations import subscriptions
from jobcore.storage import job_rows
from jobcore.storage.connections import SqliteConnection
from jobcore.storage.writer import NO_OBSERVER
from jobcore.testing.parts import parts
from tests.jobfiles import sql
from tests.processes import PATIENCE, Child, descriptors, in_child, own_threads, run_python, until
from tests.programs import EXIT_3, SLEEPS
from tests.tasks import task
from tests.transactions import transaction


def all_told(jobs):
    """Wait until nothing is to be told any more."""
    until(lambda: not parts(jobs).notifier.queue, "the last callback")


@contextmanager
def collected(jobs, **filters):
    """Give the list of events that a subscriber gets; they are all there behind the block."""
    got = []
    end = jobs.subscribe(got.append, **filters)
    yield got
    all_told(jobs)
    end()


# --- what is told -----------------------------------------------------------------


def test_each_transition_is_delivered_once_in_order(jobs):
    """A subscriber gets the events of the feed since its subscription."""
    before = task(jobs)
    with collected(jobs) as got:
        jobs.finish_job(before.id, 3)
        job = task(jobs)
        jobs.stop_job(job.id)
        jobs.submit_many([["true"]] * 5)
    jobs.create_job("TASK")

    assert got == list(jobs.events(2))[: len(got)]
    assert [event.id for event in got] == list(range(3, 13))
    assert got[0].exit_code == 3


def test_transitions_of_the_managers_thread_are_delivered(running_jobs):
    """Changes by the manager's thread are delivered like those of its callers."""
    with collected(running_jobs) as got:
        ids = [running_jobs.submit(EXIT_3).id for _ in range(5)]
        for job_id in ids:
            running_jobs.wait(job_id)

    assert got == list(running_jobs.events())
    assert len(got) == 15
    assert [event.exit_code for event in got if event.to_status is Status.ERROR] == [3] * 5


def test_transitions_of_other_managers_are_not_delivered(jobs, database):
    """Changes by another manager or process are not delivered."""

    def other():
        with JobManager(database, slots=0) as theirs:
            theirs.create_job("TASK")

    with collected(jobs) as got:
        other()
        in_child(other)
        mine = jobs.create_job("TASK")

    assert [event.job_id for event in got] == [mine.id]
    assert got[0].id == 3


def test_rolled_back_transitions_are_not_delivered(jobs):
    """Neither a transaction that was rolled back nor a savepoint gives an event."""
    place = jobs.get_workspace().id
    database = parts(jobs).database

    def create(connection):
        job_rows.insert_job(connection, now=1, workspace_id=place, type="TASK", name="?")

    with collected(jobs) as got:
        with suppress(ZeroDivisionError), transaction(database) as connection:
            create(connection)
            raise ZeroDivisionError
        with transaction(database) as connection:
            create(connection)
            with database.savepoint(connection, [], None):
                create(connection)
                raise ZeroDivisionError
            create(connection)
        with pytest.raises(PipelineNotFound):
            jobs.create_job("TASK", pipeline_id="none")

    assert [(event.id, event.job_number) for event in got] == [(1, 1), (2, 2)]
    assert got == list(jobs.events())


def interrupt_once(monkeypatch, owner, name, *, behind):
    """Have a Ctrl-C come at the next call of a method: when it has done its work, or before."""
    method = getattr(owner, name)

    def interrupted(*args):
        monkeypatch.setattr(owner, name, method)
        if behind:
            method(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("behind", [True, False], ids=["committed", "not committed"])
def test_interrupted_commit_is_delivered_if_it_succeeded(jobs, monkeypatch, behind):
    """A commit that raised an outside exception is delivered once and in order."""
    with collected(jobs) as got:
        jobs.create_job("TASK")
        interrupt_once(monkeypatch, SqliteConnection, "commit", behind=behind)
        with pytest.raises(StoreError, match="outcome unknown"):
            jobs.submit_many([["true"]] * 3)
        jobs.create_job("TASK")

    assert got == list(jobs.events())
    assert len(got) == (5 if behind else 2)


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("name", ["start", "wake"])
def test_event_delivered_during_ctrl_c_is_delivered_once(jobs, monkeypatch, name, behind):
    """Events that could not be passed to their thread at once are delivered later."""
    with collected(jobs) as got:
        jobs.create_job("TASK")
        all_told(jobs)
        interrupt_once(monkeypatch, parts(jobs).notifier.loop, name, behind=behind)
        jobs.submit_many([["true"]] * 3)
        all_told(jobs)

    assert got == list(jobs.events())
    assert len(got) == 4


#: Another process creates a job.
CREATE = """
import sys
from jobcore import JobManager

with JobManager(sys.argv[1], slots=0) as jobs:
    jobs.create_job("TASK")
"""


def test_another_process_event_is_not_taken_for_an_interrupted_one(jobs, database, monkeypatch):
    """Another process may get the ids that a rollback freed; its events are its own."""
    undo = SqliteConnection.commit

    def taken_back(connection):
        monkeypatch.setattr(SqliteConnection, "commit", undo)
        connection.rollback()
        run_python(CREATE, database)
        raise KeyboardInterrupt

    with collected(jobs) as got:
        monkeypatch.setattr(SqliteConnection, "commit", taken_back)
        with pytest.raises(StoreError, match="outcome unknown"):
            jobs.create_job("TASK")
        jobs.create_job("TASK")

    assert [event.id for event in got] == [2]
    assert [event.id for event in jobs.events()] == [1, 2]


def test_filters_are_those_of_the_feed(jobs):
    """Each subscriber gets the events that match its filters."""
    pipeline = jobs.create_pipeline("nightly", ["true"])
    place = jobs.get_workspace().id
    with (
        collected(jobs, status=FINAL) as ends,
        collected(jobs, pipeline_id=pipeline.id) as of_pipeline,
        collected(jobs, type=["CHORE"], workspace_id=place) as chores,
        collected(jobs, workspace_id=jobs.create_workspace("other").id) as elsewhere,
    ):
        jobs.finish_job(task(jobs, pipeline_id=pipeline.id).id)
        jobs.cancel_job(jobs.create_job("CHORE").id)

    assert [event.id for event in ends] == [3, 5]
    assert [event.id for event in of_pipeline] == [1, 2, 3]
    assert [event.id for event in chores] == [4, 5]
    assert elsewhere == []


def test_events_of_a_deleted_job_are_delivered(jobs):
    """They are delivered although the job is gone, and so is its end by the deletion."""
    told, go = threading.Event(), threading.Event()
    got = []

    def callback(event):
        told.set()
        assert go.wait(PATIENCE)
        got.append(event)

    end = jobs.subscribe(callback)
    job = task(jobs)
    queued = jobs.create_job("TASK")
    assert told.wait(PATIENCE)
    jobs.delete_job(job.id)
    jobs.delete_job(queued.id)
    go.set()
    all_told(jobs)
    end()

    assert [(event.job_number, str(event.to_status)) for event in got] == [
        (1, "QUEUED"), (1, "RUNNING"), (2, "QUEUED"),
        (1, "RUNNING"), (1, "STOPPED"), (2, "STOPPED"),
    ]  # fmt: skip
    assert list(jobs.events()) == []
    with pytest.raises(JobNotFound):
        jobs.get_job(got[-1].job_id)


def test_every_commit_after_a_subscription_is_delivered(jobs):
    """A transaction that began before `subscribe` has ended when it returns, or is delivered."""
    database = parts(jobs).database
    place = jobs.get_workspace().id
    inside, order, got = threading.Event(), [], []

    def write():
        with transaction(database) as connection:
            job_rows.insert_job(connection, now=1, workspace_id=place, type="TASK")
            inside.set()
            until(lambda: not database.writer.worker.queue.empty(), "the subscriber")
            order.append("commits")

    writer = threading.Thread(target=write)
    writer.start()
    assert inside.wait(PATIENCE)
    end = jobs.subscribe(got.append)
    order.append("subscribed")
    stored = jobs.count_jobs()[Status.QUEUED]
    writer.join(PATIENCE)
    jobs.create_job("TASK")
    all_told(jobs)
    end()

    assert (order, stored) == (["commits", "subscribed"], 1)
    assert [event.id for event in got] == [2]


def test_state_and_events_make_the_whole_story(jobs):
    """Whoever subscribes and then reads misses nothing: later changes are delivered."""
    stop = threading.Event()

    def work():
        while not stop.is_set():
            jobs.cancel_job(jobs.create_job("TASK").id)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    known = []
    for _ in range(20):
        got = []
        end = jobs.subscribe(got.append)
        state = {job.id: job.status for job in jobs.list_jobs(limit=10_000)}
        known.append((state, got, end))
    stop.set()
    for worker in workers:
        worker.join(PATIENCE)
    all_told(jobs)
    truth = {job.id: job.status for job in jobs.list_jobs(limit=10_000)}

    for state, got, end in known:
        end()
        for event in got:
            state[event.job_id] = event.to_status
        ids = [event.id for event in got]
        assert state == truth
        assert ids == sorted(set(ids))


# --- callbacks --------------------------------------------------------------------


def test_a_slow_callback_delays_no_job_and_no_caller(running_jobs):
    """Jobs are created, run and waited for while a callback has not come back."""
    go = threading.Event()
    got = []

    def callback(event):
        assert go.wait(PATIENCE)
        got.append(event)

    end = running_jobs.subscribe(callback)
    job = running_jobs.wait(running_jobs.submit(EXIT_3).id, timeout=PATIENCE)
    seen = list(got)
    go.set()
    all_told(running_jobs)
    end()

    assert (job.status, seen) == (Status.ERROR, [])
    assert got == list(running_jobs.events())


@pytest.mark.parametrize(
    "error", [ValueError("wrong"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr
)
def test_callback_exception_is_logged_only(jobs, caplog, error):
    """The others get the event, and this subscriber gets all later ones."""
    got = []

    def callback(event):
        got.append(event.id)
        raise error

    end = jobs.subscribe(callback)
    with collected(jobs) as others:
        job = task(jobs)
    end()

    assert got == [1, 2] == [event.id for event in others]
    assert jobs.get_job(job.id).status is Status.RUNNING
    failures = [record for record in caplog.records if "subscriber failed" in record.getMessage()]
    assert len(failures) == 2
    assert type(error).__name__ in caplog.text
    assert f"job='{job.id}'" in failures[0].getMessage()
    assert "event_id=1" in failures[0].getMessage()


def test_callback_exception_with_a_failing_str_is_logged(jobs):
    """An exception whose own text fails is no more than any other."""

    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("no text")

        __repr__ = __str__

    def callback(_):
        raise Broken

    end = jobs.subscribe(callback)
    with collected(jobs) as got:
        task(jobs)
    end()

    assert [event.id for event in got] == [1, 2]


def test_a_subscription_ends_inside_its_callback(jobs):
    """Ended in a callback, it gets no more calls, even for earlier commits."""
    got, ready = [], threading.Event()

    def once(event):
        assert ready.wait(PATIENCE)
        got.append(event.id)
        end()

    end = jobs.subscribe(once)
    with collected(jobs) as others:
        jobs.submit_many([["true"]] * 3)
        ready.set()
    end()

    assert got == [1]
    assert [event.id for event in others] == [1, 2, 3]


def test_ended_subscription_gets_no_events(jobs):
    """An ended subscription gets nothing more, others go on, and at last nobody looks."""
    got = []
    first, second = jobs.subscribe(got.append), jobs.subscribe(got.append)
    jobs.create_job("TASK")
    all_told(jobs)
    first()
    first()
    jobs.create_job("TASK")
    all_told(jobs)
    second()
    jobs.create_job("TASK")
    all_told(jobs)

    assert [event.id for event in got] == [1, 1, 2]
    assert parts(jobs).database.observer is NO_OBSERVER


def test_the_same_callback_may_subscribe_twice(jobs):
    """Each subscription is its own."""
    got = []
    ends = [jobs.subscribe(got.append) for _ in range(2)]
    jobs.create_job("TASK")
    all_told(jobs)
    for end in ends:
        end()

    assert [event.id for event in got] == [1, 1]


def test_a_callback_may_use_the_manager(jobs):
    """A callback can read, write and subscribe, and gets the events of its own changes."""
    got, late = [], []

    def callback(event):
        got.append((event.trigger, jobs.get_job(event.job_id).status))
        if event.to_status is Status.QUEUED and event.job_number == 1:
            ends.append(jobs.subscribe(late.append))
            jobs.cancel_job(jobs.create_job("TASK").id)

    ends = [jobs.subscribe(callback)]
    jobs.create_job("TASK")
    until(lambda: len(got) == 3, "three events")
    all_told(jobs)
    for end in ends:
        end()

    assert got[0] == ("create", Status.QUEUED)
    assert [event.id for event in late] == [2, 3]


@pytest.mark.parametrize("callback", [None, 3, "print"], ids=repr)
def test_uncallable_callback_is_refused(jobs, callback):
    """A callback is something to call."""
    with pytest.raises(ValueError, match="callback"):
        jobs.subscribe(callback)


def test_an_async_callback_is_refused(jobs):
    """A coroutine function is refused with the reason: nobody would await it."""

    async def callback(_):
        """Be awaited by nobody."""

    with pytest.raises(ValueError, match="coroutine function"):
        jobs.subscribe(callback)


@pytest.mark.parametrize(
    ("filters", "error"),
    [
        ({"status": "DONE"}, ValueError),
        ({"type": 1}, ValueError),
        ({"workspace_id": "none"}, WorkspaceNotFound),
        ({"pipeline_id": "none"}, PipelineNotFound),
    ],
    ids=repr,
)
def test_a_wrong_filter_is_refused(jobs, filters, error):
    """An invalid filter raises, and creates no subscription."""
    with pytest.raises(error):
        jobs.subscribe(print, **filters)
    assert own_threads() == []


def test_failure_to_read_events_does_not_fail_the_job(jobs, monkeypatch, caplog):
    """If the events cannot be read, the job still changes, and a log event says so."""

    def fail(*_):
        raise RuntimeError("cannot be read")

    with collected(jobs) as got:
        for name in ("newest", "entries_after"):
            with monkeypatch.context() as patched:
                patched.setattr(f"jobcore.storage.history.{name}", fail)
                task(jobs)
        jobs.create_job("TASK")

    assert [event.id for event in got] == [5]
    assert jobs.count_jobs()[Status.RUNNING] == 2
    assert caplog.text.count("events missed") == 4


# --- thread, close, fork ------------------------------------------------------------


def test_the_thread_comes_with_the_first_subscription(database):
    """One thread serves all subscriptions, until `close`; no descriptor stays open."""
    before = descriptors()
    with JobManager(database, slots=0) as jobs:
        seen = [own_threads()]
        ends = [jobs.subscribe(print) for _ in range(3)]
        seen.append(own_threads())
        for end in ends:
            end()

    assert seen == [[], ["jobcore-notifier"]]
    assert own_threads() == []
    assert descriptors() == before


def test_close_delivers_committed_events(database):
    """`close` returns when a slow subscriber has all events."""
    got = []
    with JobManager(database, slots=0) as jobs:

        def callback(event):
            time.sleep(0.001)
            got.append(jobs.get_job(event.job_id).number)

        jobs.subscribe(callback)
        jobs.submit_many([["true"]] * 50)

    assert got == list(range(1, 51))


def test_close_waits_for_a_hanging_callback_only_so_long(database, monkeypatch, caplog):
    """After the time-out of `close`, no event is delivered, and a log event says so."""
    monkeypatch.setattr(subscriptions, "CLOSE_PATIENCE", 0.05)
    got, go = [], threading.Event()

    def callback(event):
        got.append(event.id)
        assert go.wait(PATIENCE)

    jobs = JobManager(database, slots=0)
    jobs.subscribe(callback)
    jobs.subscribe(callback)
    jobs.submit_many([["true"]] * 3)
    until(lambda: got, "the first callback")
    jobs.close()
    go.set()
    until(lambda: not own_threads(), "the end of the thread")

    assert got == [1]
    assert "events not delivered" in caplog.text


def test_a_callback_may_close_the_manager(database):
    """`close` in a callback returns, committed events are delivered, and the thread ends."""
    before = descriptors()
    got, closed = [], []

    def callback(event):
        got.append(event.id)
        if not closed:
            jobs.close()
            closed.append(True)

    jobs = JobManager(database, slots=0)
    end = jobs.subscribe(callback)
    jobs.submit_many([["true"]] * 5)
    until(lambda: not own_threads(), "the end of the thread")
    jobs.close()
    end()

    assert (got, closed) == ([1, 2, 3, 4, 5], [True])
    assert descriptors() == before
    with pytest.raises(StoreError, match="closed"):
        jobs.subscribe(print)


def test_close_with_stop_delivers_the_ends(database):
    """Subscribers get the ends of the jobs that `close` stops."""
    got = []
    with JobManager(database, slots=2, on_exit="stop") as jobs:
        jobs.subscribe(got.append, status=FINAL)
        ids = {jobs.submit(SLEEPS).id for _ in range(2)}
        until(lambda: jobs.count_jobs()[Status.RUNNING] == 2, "two running jobs")

    assert {(event.job_id, event.to_status) for event in got} == {
        (job_id, Status.STOPPED) for job_id in ids
    }


def test_interpreter_exit_delivers_pending_events(database):
    """A program that ends without `close` delivers its events first."""
    printed = run_python(
        """
import sys, time
from jobcore import JobManager
jobs = JobManager(sys.argv[1], slots=0)
def callback(event):
    time.sleep(0.01)
    print(event.id, event.trigger, flush=True)
jobs.subscribe(callback)
jobs.submit_many([["true"]] * 3)
""",
        database,
    )

    assert printed == "1 create\n2 create\n3 create\n"


def test_forked_child_gets_its_own_events(jobs):
    """A child has the subscriptions, no thread until it needs one, and its own events alone."""
    go, got = threading.Event(), []

    def callback(event):
        if event.job_number == 1:
            assert go.wait(PATIENCE)
        got.append((os.getpid(), event.job_number))

    def child():
        seen = own_threads()
        jobs.create_job("TASK")
        all_told(jobs)
        jobs.close()
        return seen, got, os.getpid()

    end = jobs.subscribe(callback)
    jobs.create_job("TASK")
    until(lambda: parts(jobs).notifier.queue, "the callback")
    forked = Child(child)
    seen, theirs, pid = forked.result()
    jobs.create_job("TASK")
    go.set()
    all_told(jobs)
    end()

    assert seen == []
    assert theirs == [(pid, 2)]
    assert got == [(os.getpid(), 1), (os.getpid(), 3)]
    assert own_threads() == ["jobcore-notifier"]


def test_a_child_may_end_a_subscription_of_its_parent(jobs):
    """What a child ends it ends for itself."""
    got = []
    end = jobs.subscribe(got.append)

    def child():
        end()
        jobs.create_job("TASK")
        all_told(jobs)
        return got, own_threads()

    assert in_child(child) == ([], [])
    jobs.create_job("TASK")
    all_told(jobs)
    end()
    assert [event.id for event in got] == [2]


def test_fork_during_a_subscription_does_not_block_the_child(jobs):
    """A child that was forked while another thread held the lock here subscribes all the same."""
    held, go = threading.Event(), threading.Event()
    got = []

    def hold():
        with parts(jobs).notifier.change_lock:
            held.set()
            assert go.wait(PATIENCE)

    def child():
        jobs.subscribe(got.append)
        jobs.create_job("TASK")
        jobs.close()
        return len(got)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE)
    told = in_child(child)
    go.set()
    holder.join(PATIENCE)

    assert told == 1


def test_events_of_many_threads_arrive_in_commit_order(jobs, database):
    """Whatever threads and processes write, a subscriber has this process's ids, ascending."""
    chance = random.Random(7)

    def theirs():
        with JobManager(database, slots=0) as other:
            for _ in range(20):
                other.cancel_job(other.create_job("TASK").id)

    def work(count):
        for _ in range(count):
            jobs.submit_many([["true"]] * chance.randrange(1, 4))

    with collected(jobs) as got:
        other = Child(theirs)
        workers = [threading.Thread(target=work, args=(20,)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE)
        other.result()
    mine = f"pid {os.getpid()}"
    stored = sql(database, "SELECT id FROM transition WHERE actor = ? ORDER BY id", mine)

    assert [event.id for event in got] == [row["id"] for row in stored]
    assert len(got) < len(list(jobs.events()))
