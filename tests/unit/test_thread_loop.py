"""Loop: one thread, whatever happens at its start."""

from __future__ import annotations

import os
import resource
import threading
import time
from types import SimpleNamespace

import pytest

from jobcore.engine import thread_loop
from jobcore.engine.thread_loop import Loop
from jobcore.errors import SpawnError
from tests.processes import PATIENCE, descriptors, until


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


def test_thread_outlives_a_limit_of_no_descriptors(turns, monkeypatch):
    """While the limit of open files is 0, nothing can be polled; the thread goes on after it."""
    monkeypatch.setattr(thread_loop, "ERROR_PAUSE", 0.01)
    turns.loop.start()
    until(lambda: turns.threads, "a turn")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        turns.loop.wake()
        until(lambda: len(turns.threads) > 3, "further turns")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_thread_whose_pipe_was_closed_rests_and_logs_it_once(monkeypatch, caplog):
    """A program that becomes a daemon closes all descriptors, and may reuse their numbers."""
    rests = threading.Semaphore(0)

    def sleep(_seconds):
        rests.release()

    monkeypatch.setattr(thread_loop, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    loop = Loop("test", lambda: loop.wait([], None))
    loop.start()
    until(lambda: loop.runs, "the thread")
    reader, writer = loop.reader, loop.writer
    with open(os.devnull, "rb") as other:
        os.dup2(other.fileno(), reader)
    os.close(writer)
    for _ in range(3):
        assert rests.acquire(timeout=PATIENCE)
    loop.wake()
    loop.close()

    assert [said.count("closed the pipe") for said in caplog.messages] == [1]
    os.fstat(reader)  # it is another file's, and was left open
    os.close(reader)
