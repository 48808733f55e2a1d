"""Loops that are paused in the middle of a look: whoever else waits, here or in a child, looks."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import contextmanager

import pytest

from jobcore import Status
from jobcore.testing.parts import parts
from tests.processes import PATIENCE, in_child


@pytest.fixture
def looks(jobs, monkeypatch):
    """Return what is set when somebody first looks in this process, and what lets that go on."""
    entered, go_on, parent = threading.Event(), threading.Event(), os.getpid()
    refresh = parts(jobs).waiter.refresh

    def held(cursor):
        if os.getpid() == parent and not entered.is_set():
            entered.set()
            go_on.wait(PATIENCE)
        refresh(cursor)

    monkeypatch.setattr(parts(jobs).waiter, "refresh", held)
    yield entered, go_on
    go_on.set()


@contextmanager
def paused(jobs, looks):
    """Have a loop that stands still, with a task in the middle of a look."""
    never = jobs.create_job("TASK")
    loop = asyncio.new_event_loop()
    tasks = []

    async def begin():
        tasks.append(asyncio.create_task(jobs.wait_async(never.id)))
        while not looks[0].is_set():
            await asyncio.to_thread(jobs.create_job, "NOISE")  # something to be seen

    loop.run_until_complete(asyncio.wait_for(begin(), PATIENCE))
    try:
        yield
    finally:
        looks[1].set()
        tasks[0].cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def wait_in_a_loop(jobs, monkeypatch):
    """Return the status that `wait_async` sees of a job that ends when it waits already."""
    job = jobs.start_job(jobs.create_job("TASK").id)
    look = parts(jobs).async_waiter.look

    async def wait():
        waiting = asyncio.Event()

        async def told(cursor):
            found = await look(cursor)
            waiting.set()
            return found

        monkeypatch.setattr(parts(jobs).async_waiter, "look", told)
        task = asyncio.create_task(jobs.wait_async(job.id))
        await asyncio.wait_for(waiting.wait(), PATIENCE)
        await asyncio.to_thread(jobs.finish_job, job.id)
        return (await asyncio.wait_for(task, PATIENCE)).status

    try:
        return asyncio.run(wait())
    finally:
        monkeypatch.setattr(parts(jobs).async_waiter, "look", look)


def test_a_paused_loop_keeps_no_other_from_seeing_the_end(jobs, looks, monkeypatch):
    """One loop hangs in a look, and `wait_async` in another loop still sees the end."""
    with paused(jobs, looks):
        assert wait_in_a_loop(jobs, monkeypatch) is Status.COMPLETE
        assert wait_in_a_loop(jobs, monkeypatch) is Status.COMPLETE


def test_a_child_of_a_process_with_a_paused_loop_sees_the_end(jobs, looks, monkeypatch):
    """A child that was forked in the middle of a look of its parent's waits as anybody does."""
    with paused(jobs, looks):
        assert in_child(wait_in_a_loop, jobs, monkeypatch) is Status.COMPLETE
