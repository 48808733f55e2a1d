"""Interrupts: what the facade lets go of, and what it hands on."""

from __future__ import annotations

import functools
import inspect
import signal
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobcore import CommandError, JobManager, Status, interrupts
from jobcore.database import Database
from jobcore.importer import Importer
from tests.processes import PATIENCE, join, until


class Held:
    """Takes a lock as if a Ctrl-C came before the `try` that would release it."""

    def __init__(self):
        self.lock = interrupts.lock()
        self.given_up = 0
        interrupts.watch(self)

    @interrupts.entrance
    def take(self, error=KeyboardInterrupt):
        """Take it, and be interrupted."""
        self.lock.acquire()
        raise error

    @interrupts.entrance
    def lines(self):
        """Yield a line, and be interrupted in the next step."""
        yield "line"
        self.take()

    @interrupts.entrance
    def take_within(self):
        """Be interrupted in a call of a signal handler that the handler survives."""
        with self.lock:
            with pytest.raises(KeyboardInterrupt):
                self.take()
            return interrupts.is_owner(self.lock)

    @interrupts.entrance
    def complain(self):
        """Raise an error behind an interrupt, as a `with` does that finds nothing to release."""
        try:
            raise KeyboardInterrupt
        finally:
            self.lock.release()

    def let_go(self):
        """Be interrupted once more, the first time."""
        self.given_up += 1
        if self.given_up == 1:
            self.lock.acquire()
            raise KeyboardInterrupt


@pytest.fixture
def held():
    """Return what can be left holding a lock."""
    return Held()


def owners(held):
    """Tell whether this thread has the lock."""
    return interrupts.is_owner(held.lock)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, TimeoutError])
def test_whatever_passes_the_facade_leaves_no_lock(held, error):
    """A handler may raise anything, and that comes out."""
    held.given_up = 1
    with pytest.raises(error):
        held.take(error)

    assert (owners(held), held.given_up) == (False, 2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, TimeoutError, LookupError])
def test_letting_go_survives_a_further_interrupt(held, error):
    """All is let go of again, and the Ctrl-C is not lost behind the error that came first."""
    with pytest.raises(KeyboardInterrupt):
        held.take(error)

    assert (owners(held), held.given_up) == (False, 2)


def test_a_step_of_an_iterator_is_a_call(held):
    """An iterator that a method returned is let go of at the step that was interrupted."""
    lines = held.lines()
    assert next(lines) == "line"
    with pytest.raises(KeyboardInterrupt):
        next(lines)

    assert not owners(held)
    lines.close()


@pytest.mark.parametrize(
    "read",
    [
        lambda jobs, job_id: jobs.logs(job_id),
        lambda jobs, job_id: jobs.tail(job_id, 1),
        lambda jobs, job_id: jobs.follow(job_id),
        lambda jobs, job_id: jobs.log_text(job_id),
        lambda jobs, job_id: jobs.log_ndjson(job_id),
        lambda jobs, _job_id: jobs.events(),
        lambda jobs, _job_id: jobs.events(limit=1, follow=True),
    ],
)
def test_a_step_of_each_iterator_of_a_manager_is_a_call(database, monkeypatch, read):
    """No iterator that a host is given reads the database outside of the facade."""
    come_in = Database._come_in
    inside = []

    def seen(self, use):
        inside.append(interrupts._is_inside())
        come_in(self, use)

    with JobManager(database, slots=0) as jobs:
        job = jobs.create_job()
        jobs.start_job(job.id)
        jobs.append_log(job.id, "a line")
        steps = read(jobs, job.id)
        monkeypatch.setattr(Database, "_come_in", seen)
        next(steps)

    assert inside
    assert all(inside)


def test_a_call_inside_a_call_leaves_the_outer_one_its_locks(held):
    """What a signal handler calls does not let go of what it interrupted."""
    assert held.take_within()
    assert held.lock.acquire(blocking=False)
    interrupts.release(held.lock)


def test_an_error_in_place_of_an_interrupt_is_that_interrupt(held):
    """Who pressed Ctrl-C sees KeyboardInterrupt, not what it led to."""
    with pytest.raises(KeyboardInterrupt):
        held.complain()


def test_an_error_while_the_host_handles_an_interrupt_is_that_error(held):
    """An interrupt of before is not taken for the reason of a later error."""
    held.given_up = 1  # it raises nothing itself any more
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(LookupError):
            held.take(LookupError)


def test_another_thread_keeps_what_it_holds(held):
    """No other thread is ever interrupted, so what it holds it is going to release."""
    taken, go = threading.Event(), threading.Event()
    held.given_up = 1  # it takes nothing itself any more

    def work():
        with held.lock:
            taken.set()
            go.wait()

    thread = threading.Thread(target=work)
    thread.start()
    until(taken.is_set, "the other thread's lock")
    with pytest.raises(KeyboardInterrupt):
        interrupts.passed(held.complain)

    free = held.lock.acquire(blocking=False)
    go.set()
    join(thread)
    assert not free


def test_locks_may_be_made_meanwhile(monkeypatch):
    """A lock that another thread makes while all are looked at makes another look."""
    made = weakref.WeakSet([interrupts.lock])
    looks = []

    def twice(known):
        looks.append(known)
        if len(looks) == 1:
            raise RuntimeError("Set changed size during iteration")
        return [*known]

    monkeypatch.setattr(interrupts, "list", twice, raising=False)

    assert interrupts.members(made) == [interrupts.lock]
    assert len(looks) == 2


def test_an_entrance_that_an_interrupt_left_behind_keeps_none_from_letting_go(held, monkeypatch):
    """A Ctrl-C at the very end of a call, before that is noted, costs the next one nothing."""

    def gone():
        return sys._getframe()

    monkeypatch.setattr(interrupts._INSIDE, "frame", gone())
    with pytest.raises(KeyboardInterrupt):
        held.take()

    assert not interrupts.is_owner(held.lock)


@pytest.fixture
def handled():
    """Have signal handlers as they were before."""
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.signal(signal.SIGALRM, before)


def ring(*_):
    """Have the signal handler called now, as if a timer had rung."""
    signal.raise_signal(signal.SIGALRM)


class Rings:
    """A host's time-out: handlers of all kinds that raise it."""

    def method(self, *_):
        """Raise it."""
        raise TimeoutError("the host's")

    __call__ = method


@pytest.mark.parametrize(
    "handler",
    [Rings().method, Rings(), functools.partial(Rings.method, None)],
    ids=["method", "object", "partial"],
)
@pytest.mark.usefixtures("handled")
def test_what_a_handler_raises_comes_out_as_it_is(jobs, scripted, monkeypatch, handler):
    """A host's time-out is no error of a job, which a read would go on behind, and none of ours."""
    run = scripted()
    signal.signal(signal.SIGALRM, handler)
    monkeypatch.setattr(Importer, "harvest", ring)
    run.write(b"line\n")
    with pytest.raises(TimeoutError, match="the host's"):
        jobs.get_job(run.id)
    monkeypatch.undo()

    def in_its_place(*_):
        try:
            ring()
        except TimeoutError as error:
            raise LookupError("wrapped by whoever it hit") from error

    monkeypatch.setattr(JobManager, "_reconciled", in_its_place)
    with pytest.raises(TimeoutError, match="the host's"):
        jobs.get_job(run.id)


@pytest.mark.parametrize("bug", [lambda *_: {}["bug"], lambda *_: Status("none")])
def test_an_error_of_a_job_is_no_handlers(jobs, scripted, monkeypatch, bug):
    """A read goes on behind it, and says what is stored."""
    run = scripted()
    run.write(b"line\n")
    monkeypatch.setattr(Importer, "harvest", bug)

    assert jobs.get_job(run.id).status is Status.RUNNING


def test_an_error_of_a_job_is_no_reason_of_what_the_host_handles(jobs, scripted, monkeypatch):
    """Who cleans up behind a Ctrl-C is not interrupted by it once more."""
    run = scripted()
    run.write(b"line\n")
    monkeypatch.setattr(Importer, "harvest", lambda *_: {}["bug"])
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert jobs.get_job(run.id).status is Status.RUNNING


def behind(calls, call):
    """Call something behind so many other calls."""
    return behind(calls - 1, call) if calls else call()


def behind_c(calls, call):
    """Do the same with as many calls in C, of which `sys._getframe` knows nothing."""
    return next(map(behind_c, [calls - 1], [call])) if calls else call()


@pytest.mark.parametrize("deep", [behind, behind_c])
@pytest.mark.parametrize("in_thread", [False, True], ids=["main", "another"])
def test_a_stack_that_is_full_leaves_nothing_held(jobs, deep, in_thread):
    """Wherever the last call does not fit any more, everybody can write afterwards."""
    outcomes = set()

    def fill():
        room = sys.getrecursionlimit() - len(inspect.stack(0))
        for calls in range(room // 3 - 100, room, 11):
            try:
                deep(calls, jobs.create_job)
                outcomes.add("made")
            except (RecursionError, CommandError):
                outcomes.add("full")
            outcomes.add(in_another(held_by_others))

    def held_by_others():
        jobs.create_job()
        return [lock for lock in interrupts.members(interrupts._LOCKS) if not is_free(lock)] != []

    before = sys.getrecursionlimit()
    if in_thread:
        in_another(fill)
    else:
        fill()
    jobs.create_job()  # where it was too deep to give the room back, this does

    assert outcomes == {"made", "full", False}
    assert sys.getrecursionlimit() == before


def is_free(lock):
    """Tell whether a lock can be had."""
    if lock.acquire(timeout=0.5):
        lock.release()
        return True
    return False


def in_another(function):
    """Return what a function returns in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(PATIENCE)


def test_a_thread_of_ours_keeps_what_it_holds(held):
    """What fails in a host's callback is inside of what that thread is in the middle of."""
    held.given_up = 1

    def work():
        interrupts.keep()
        with held.lock:
            with pytest.raises(KeyboardInterrupt):
                held.take()
            return owners(held)

    assert in_another(work)
