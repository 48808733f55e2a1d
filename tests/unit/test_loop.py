"""Loop: one thread, whatever happens at its start."""

from __future__ import annotations

import threading

import pytest

from jobcore.errors import SpawnError
from jobcore.forking import GATE
from jobcore.loop import Loop
from tests.processes import descriptors, join, until


class Turns:
    """A loop that sleeps, and the threads that it has had."""

    def __init__(self):
        self.threads = []
        self.loop = Loop("jobcore-test", self._turn)

    def _turn(self):
        self.threads.append(threading.current_thread())
        self.loop.wait((), None)


@pytest.fixture
def turns():
    """Return a loop; nothing of it may be left behind."""
    before = descriptors()
    made = Turns()
    yield made
    made.loop.close()
    until(lambda: not any(thread.is_alive() for thread in made.threads), "the end of its thread")
    assert descriptors().keys() <= before.keys()


@pytest.mark.parametrize("told", [KeyboardInterrupt, RuntimeError])
def test_it_has_one_thread_though_a_start_was_interrupted(turns, monkeypatch, told):
    """
    A Ctrl-C when the thread runs and nobody has noted it: that one ends, and has no turn.

    Where it hits the wait for the thread's beginning, Python says that a lock was not held.
    """
    start, started, closed = threading.Thread.start, [], []
    close = GATE.close
    monkeypatch.setattr(GATE, "close", lambda *pipe: closed.append(pipe) or close(*pipe))

    def interrupted(thread):
        start(thread)
        started.append(thread)
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if told is KeyboardInterrupt:
                raise
            raise told("cannot notify on un-acquired lock")  # noqa: B904 - as a `with` does it

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(told):
        turns.loop.start()
    monkeypatch.setattr(threading.Thread, "start", start)
    join(started[0])
    assert len(closed) == 1  # twice would be somebody else's the second time
    turns.loop.start()
    until(lambda: turns.threads, "a turn")

    assert turns.threads[0] is not started[0]


def test_a_thread_that_cannot_be_made_is_made_later(turns, monkeypatch):
    """Where the machine has no room for a thread, the start fails and leaves nothing open."""
    before = descriptors()

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(SpawnError):
        turns.loop.start()
    monkeypatch.undo()

    assert descriptors().keys() == before.keys()
    turns.loop.start()
    until(lambda: turns.threads, "a turn")
