"""Interrupts: what an exception leaves behind is recognised, and is in nobody's way."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
import time
from contextlib import closing
from datetime import datetime, timezone

import pytest
from sqlalchemy import RootTransaction

from jobcore import JobManager, Progress, Status, models
from jobcore.embedding.locks import GATE, Condition, Lock, is_over
from jobcore.embedding.worker import DIRECTORY_WORKER
from jobcore.engine.importer import Importer
from jobcore.engine.recovery import Recovery
from jobcore.operations.lookup import require_job
from jobcore.storage.database import Database
from jobcore.storage.reading import SpareConnections
from jobcore.testing.parts import parts
from tests.opcodes import every_bytecode, handler_at_every_bytecode, sampled
from tests.processes import PATIENCE, descriptors, in_child, until


def frame_of(call=None):
    """Return the frame of a call that has ended, or have it given while the call goes on."""
    frame = sys._getframe()
    if call is not None:
        call(frame)
    return frame


def steps():
    """Yield one's own frame, twice."""
    yield sys._getframe()
    yield sys._getframe()


def test_call_is_over_when_its_frame_has_ended():
    """A call is over when its frame has ended, even if a kept exception refers to the frame."""
    inside = []
    ended = frame_of(lambda frame: inside.append(is_over(frame)))

    assert (inside, is_over(ended), is_over(sys._getframe())) == ([False], True, False)


def test_call_of_another_thread_is_not_over_while_it_waits():
    """A frame is executed as long as it is on any thread's stack."""
    frames, go = [], threading.Event()
    thread = threading.Thread(
        target=frame_of, args=(lambda frame: (frames.append(frame), go.wait(PATIENCE)),)
    )
    thread.start()
    until(lambda: frames, "the frame")
    before = is_over(frames[0])
    go.set()
    thread.join(PATIENCE)

    assert (before, is_over(frames[0])) == (False, True)


def test_suspended_generator_survives_is_over():
    """A suspended generator is not cleared by the question."""
    generator = steps()
    frame = next(generator)

    assert is_over(frame)
    assert next(generator) is frame


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_lock_is_free_after_an_exception_before_any_bytecode(error):
    """Whatever is raised wherever, the next thread has the lock at once."""
    lock, kept, inside = Lock(), [], []

    def call():
        with lock:
            inside.append(1)
            inside.pop()

    for where, raised in every_bytecode(call, error=error):
        kept.append(raised)
        inside.clear()
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive(), where

    assert len(kept) > 30


def test_lock_keeps_threads_apart():
    """No two threads are inside at once, and each comes in."""
    lock, inside, most, count = Lock(), set(), [], []

    def work(number):
        for _ in range(200):
            with lock:
                inside.add(number)
                most.append(len(inside))
                inside.discard(number)
        count.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert sorted(count) == list(range(6))
    assert set(most) == {1}


def test_thread_that_has_the_lock_may_take_it_again():
    """The outer call keeps it until its own end."""
    lock, taken = Lock(), []

    def other():
        taken.append(lock.hold(0))

    def run(target):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join(PATIENCE)

    def inner():
        with lock:
            pass

    with lock:
        inner()
        run(other)
    run(other)

    assert taken == [False, True]


def test_lock_that_is_held_outlives_the_call_that_took_it():
    """`hold` lasts until `release`, which only the thread that has it can do."""
    lock, taken = Lock(), []

    def hold():
        return lock.hold(0)

    def other():
        lock.release()
        taken.append(lock.hold(0))

    assert hold()
    assert lock.is_mine
    thread = threading.Thread(target=other)
    thread.start()
    thread.join(PATIENCE)
    lock.release()

    assert taken == [False]
    assert not lock.is_mine


def test_notify_all_wakes_all_waiters():
    """It wakes all present waiters; one whose predicate is true does not wait."""
    condition, woken = Condition(), []

    def wait():
        condition.wait(lambda: False, PATIENCE)
        woken.append(1)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(condition.waiting) == 3, "the waiters")
    condition.notify_all()
    for thread in threads:
        thread.join(PATIENCE)
    condition.wait(lambda: True, PATIENCE)

    assert woken == [1, 1, 1]
    assert not condition.waiting


def test_notify_done_wakes_waiters_whose_predicate_is_true():
    """The others go on waiting, and are there for the next call."""
    condition, news, woken = Condition(), set(), []

    def wait(name):
        condition.wait(lambda: name in news, PATIENCE)
        woken.append(name)

    threads = [threading.Thread(target=wait, args=[name]) for name in "abc"]
    for thread in threads:
        thread.start()
    until(lambda: len(condition.waiting) == 3, "the waiters")
    condition.notify_done()
    assert len(condition.waiting) == 3
    for count, name in enumerate("bac", 1):
        news.add(name)
        condition.notify_done()
        until(lambda: len(woken) == count, "the waiter")  # noqa: B023
    for thread in threads:
        thread.join(PATIENCE)

    assert woken == ["b", "a", "c"]
    assert not condition.is_waited_for


def test_notify_done_loses_no_wake_up():
    """Threads that start to wait while others notify are woken by their predicate alone."""
    condition, rounds = Condition(), 300
    reached = [0, 0, 0, 0]
    notified = [0]

    def wait(place):
        for turn in range(1, rounds + 1):
            condition.wait(lambda: notified[0] >= turn, PATIENCE)  # noqa: B023
            reached[place] = turn

    threads = [threading.Thread(target=wait, args=[place]) for place in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(1, rounds + 1):
        notified[0] = turn
        condition.notify_done()
        until(lambda: min(reached) >= turn, "all waiters")  # noqa: B023
    for thread in threads:
        thread.join(PATIENCE)


def test_interrupted_waiter_does_not_disturb_the_next_one():
    """After an exception before any bytecode of `wait`, a later waiter is woken."""
    condition = Condition()
    for where, _ in every_bytecode(lambda: condition.wait(lambda: False, 0)):
        woken = []
        thread = threading.Thread(
            target=lambda woken=woken: (condition.wait(lambda: False, PATIENCE), woken.append(1))
        )
        thread.start()
        while not woken:
            condition.notify_all()
            time.sleep(0)
        thread.join(PATIENCE)
        assert woken, where


# --- databases --------------------------------------------------------------------------


def can_write(path):
    """Tell whether another process can write within a second."""
    with closing(sqlite3.connect(path, timeout=1)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    return True


def open_files(path):
    """Return the descriptors of this process on the database and what belongs to it."""
    return sorted(place for place in descriptors().values() if place.startswith(os.fspath(path)))


@sampled
def test_read_that_is_interrupted_before_any_bytecode_leaves_nothing_open(database, most, least):
    """Exceptions are kept; the next call closes what is left, and a fork finds nothing."""
    opened, kept = Database(database), []

    def read():
        with opened.read() as connection:
            connection.exec_driver_sql("SELECT number FROM job").all()
        opened.version()

    read()
    before = open_files(database)
    for where, raised in every_bytecode(read, most=most, never=("sqlalchemy",)):
        kept.append(raised)
        opened.version()
        assert opened.readers._uses == {}, where
        assert opened.checkpoint() is True, where  # no reader is in its way
    read()

    assert len(kept) >= least
    assert len(open_files(database)) <= len(before) + 2
    in_child(
        lambda: opened.write(lambda connection: connection.exec_driver_sql("SELECT 1").close())
    )
    opened.close()
    assert open_files(database) == []


class HostsTimeout(Exception):
    """What a host's own handler of signals raises; no error that a library would expect."""


def test_interrupted_read_closes_no_connection_of_the_next_one(database, monkeypatch):
    """A late interrupt does not close a connection that another read has by then."""
    with JobManager(database, slots=0) as jobs:
        job = jobs.create_job()
        take_back, lent = SpareConnections.take_back, []

        def interrupted(self, slot):
            take_back(self, slot)
            lent.append((self.lend(lent), slot))  # as another thread does at this moment
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(SpareConnections, "take_back", interrupted)
            with pytest.raises(KeyboardInterrupt):
                jobs.get_job(job.id)
        ((now, before),) = lent

        assert now is before
        assert now.is_lent_to(lent)
        assert now.connection.exec_driver_sql("SELECT 1").scalar() == 1
        now.drop()


@pytest.mark.parametrize("error", [KeyboardInterrupt, HostsTimeout])
@pytest.mark.parametrize("fails", [False, True], ids=["commit", "rollback"])
def test_read_hands_on_what_interrupts_the_end_of_a_transaction(
    database, monkeypatch, error, fails
):
    """A `finally` of SQLAlchemy asserts, and would put an AssertionError in its place."""
    opened = Database(database)

    def read():
        try:
            raise LookupError("handled by the host meanwhile")
        except LookupError:
            with opened.read() as connection:
                connection.exec_driver_sql("SELECT 1")
                if fails:
                    require_job(connection, "0" * 32)

    def interrupted(_transaction):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(RootTransaction, "_deactivate_from_connection", interrupted)
        with pytest.raises(error):
            read()
    with opened.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM job").scalar() == 0
    opened.close()

    assert open_files(database) == []


@sampled
def test_submit_that_is_interrupted_before_any_bytecode_happened_or_never_will(
    database, most, least
):
    """The job is there when the exception is, or not at all; nobody else is kept waiting."""
    kept = []
    with JobManager(database, slots=0, busy_timeout=10) as jobs:
        jobs.create_job("TASK")

        def create():
            jobs.create_job("TASK")

        for where, raised in every_bytecode(create, most=most, never=ELSEWHERE):
            kept.append(raised)
            count = sum(jobs.count_jobs().values())
            assert can_write(database), where
            jobs.create_job("TASK")
            assert sum(jobs.count_jobs().values()) == count + 1, where

    assert len(kept) >= least
    assert open_files(database) == []


#: What is not jobcore's and takes most of the bytecodes.
ELSEWHERE = ("sqlalchemy", "pydantic", "uuid", "json", "enum")


@sampled
def test_get_job_that_is_interrupted_before_any_bytecode_leaves_no_descriptor(
    jobs, scripted, most, least
):
    """An interrupted `get_job` leaves the job's directory, lock and spool closed."""
    run = scripted()
    run.started()
    run.write(b"line\n")
    jobs.get_job(run.id)
    before, kept = open_files(parts(jobs).database.path), []
    of_jobs = [path for path in before if ".jobs/" in path]  # the supervisor is this process

    def get():
        jobs.get_job(run.id)

    for where, raised in every_bytecode(get, most=most, never=ELSEWHERE):
        kept.append(raised)
        parts(jobs).database.version()
        now = [path for path in open_files(parts(jobs).database.path) if ".jobs/" in path]
        assert now == of_jobs, where
    jobs.get_job(run.id)

    assert len(kept) >= least
    assert len(open_files(parts(jobs).database.path)) <= len(before) + 2


def test_files_of_jobs_are_opened_in_threads_of_jobcores_own(jobs, scripted, monkeypatch):
    """Where a host's thread may be interrupted, no directory of a job is open."""
    run = scripted()
    run.started()
    run.write(b"line\n")
    here, places = threading.get_ident(), []
    read = Importer.read

    def noted(self, *args, **options):
        places.append(threading.get_ident())
        return read(self, *args, **options)

    monkeypatch.setattr(Importer, "read", noted)
    jobs.get_job(run.id)
    list(jobs.logs(run.id))
    jobs.history(run.id)
    jobs.recover()
    with pytest.raises(TimeoutError):
        jobs.wait(run.id, timeout=0.01)

    assert places
    assert here not in places


def test_signal_handler_exception_propagates_unchanged(jobs, scripted, monkeypatch):
    """A host's time-out is no error of a job, which a read would go on after."""
    run = scripted()
    run.write(b"line\n")
    begun = threading.Event()
    reconcile = Recovery.reconcile

    def slow(self, *args, **options):
        begun.set()
        time.sleep(0.3)
        return reconcile(self, *args, **options)

    def notify_all(*_):
        raise LookupError("the host's")

    monkeypatch.setattr(Recovery, "reconcile", slow)
    before = signal.signal(signal.SIGALRM, notify_all)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(LookupError, match="the host's"):
            jobs.get_job(run.id)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert begun.is_set()
    assert jobs.get_job(run.id).status is Status.RUNNING


def test_interrupted_submit_names_its_job(database, monkeypatch):
    """If the change has begun, the exception has the job's id."""
    from jobcore.storage import job_rows  # noqa: PLC0415 - patched here alone

    insert = job_rows.insert_job

    def slow(*args, **options):
        time.sleep(0.4)
        return insert(*args, **options)

    monkeypatch.setattr(job_rows, "insert_job", slow)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    with JobManager(database, slots=0) as jobs:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt) as caught:
                jobs.create_job("TASK")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        (made,) = jobs.list_jobs()

    assert caught.value.__notes__ == [
        f"jobcore: the interrupted call was completed (job {made.id})"
    ]


# --- models -----------------------------------------------------------------------------


@pytest.fixture
def make_first(monkeypatch):
    """Return a call that makes a model as if it were the first of its type."""
    said = {"done": 1, "total": None, "message": None, "at": datetime.now(timezone.utc)}

    def make():
        monkeypatch.setattr(models, "_used", set())
        monkeypatch.setattr(Progress, "__pydantic_complete__", False)
        Progress.model_rebuild()
        assert Progress._checked(said).done == 1

    return make


def hold_gate():
    """Have a thread of jobcore's own hold the gate, as every directory work does."""

    def hold():
        if not GATE.hold(1):
            return False
        GATE.release()
        return True

    return DIRECTORY_WORKER.call(hold)


def fork():
    """Fork, and make a model and do directory work in the child."""

    def use():
        models._used.clear()
        Progress._checked({"done": 2, "total": 3, "message": "", "at": datetime.now(timezone.utc)})
        assert hold_gate()

    in_child(use)
    return True


@sampled
@pytest.mark.parametrize("handler", [hold_gate, fork])
def test_signal_handler_in_the_first_use_of_a_model_waits_for_nothing(
    make_first, handler, most, least
):
    """Whatever bytecode it interrupts, directory work and forks of the handler go on."""
    answers = []
    make_first()
    for where in handler_at_every_bytecode(
        make_first, lambda: answers.append(handler()), most=most, never=ELSEWHERE
    ):
        assert answers[-1], where

    assert len(answers) >= least


@sampled
def test_signal_handler_in_the_first_use_of_a_model_opens_a_manager(
    make_first, tmp_path, most, least
):
    """It reads and writes jobs of another database, whose types are built first, too."""
    made = []

    def use():
        with JobManager(tmp_path / "jobs.db", slots=0) as jobs:
            made.append(jobs.get_job(jobs.create_job("TASK").id).status)

    for where in handler_at_every_bytecode(make_first, use, most=most, never=ELSEWHERE):
        assert made[-1] is Status.QUEUED, where

    assert len(made) >= least
