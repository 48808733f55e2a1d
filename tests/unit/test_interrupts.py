"""Interrupts: what the facade lets go of, and what it hands on."""

from __future__ import annotations

import sys
import threading
import weakref

import pytest

from jobcore import JobManager, interrupts
from jobcore.database import Database
from tests.processes import until


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
    """A handler may raise anything; letting go survives a further Ctrl-C."""
    with pytest.raises(error):
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
    thread.join()
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

    monkeypatch.setattr(interrupts._Inside, "frame", gone())
    with pytest.raises(KeyboardInterrupt):
        held.take()

    assert not interrupts.is_owner(held.lock)
