"""Loop: one thread, whatever happens at its start."""

from __future__ import annotations

import threading

import pytest

from jobcore.engine.thread_loop import Loop
from jobcore.errors import SpawnError
from tests.processes import descriptors, until


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
