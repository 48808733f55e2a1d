"""Waiter: a waiter hears of every commit, whatever other threads read at the same moment."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobcore import DatabaseCorrupt, Status
from jobcore.operations.waiting import Cursor, WatchedJob
from jobcore.testing.parts import parts
from tests.jobfiles import damage
from tests.tasks import task


def at_bytecode(number, between, step):
    """Call `step`, and `between` at its bytecode `number`; return its answer and whether it was."""
    seen = 0
    code = step.__func__.__code__

    def trace(frame, event, _argument):
        nonlocal seen
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == number:
                sys.settrace(None)
                between()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        answer = step()
    finally:
        sys.settrace(before)
    return answer, seen >= number


@pytest.fixture
def follower(jobs):
    """Return the follower of a manager that runs nothing."""
    return parts(jobs).waiter


def test_row_read_at_any_bytecode_of_moved_is_not_missed(jobs, follower):
    """A cursor whose version is the newest has the newest row, wherever another thread read it."""
    number, reached = 0, True
    while reached:
        number += 1
        job = task(jobs)
        cursor = follower.waiting(jobs._run(job.id))
        follower.refresh(cursor)

        def commit(job=job, cursor=cursor):
            jobs.finish_job(job.id)
            follower.refresh(cursor)

        cursor, reached = at_bytecode(number, commit, cursor.moved)

        assert not reached or cursor.moved().run.status == Status.COMPLETE, f"bytecode {number}"
    assert number > 10


def test_waiter_whose_sight_was_replaced_is_not_missed(jobs, follower):
    """Two threads that begin to wait at once may each have a sight; both are refreshed."""
    job = task(jobs)
    run = jobs._run(job.id)
    first, second = (Cursor(run, WatchedJob(run.number), 1.0) for _ in range(2))
    follower._watched[run.number] = second.watched

    jobs.finish_job(job.id)
    follower.refresh(first)

    assert first.moved().run.status == Status.COMPLETE


def test_damaged_row_concerns_its_own_waiters(jobs, follower, database):
    """A row that cannot be read is an error for those who wait for it, and for no other."""
    bad, good = task(jobs), task(jobs)
    cursors = [follower.waiting(jobs._run(job.id)) for job in (bad, good)]
    damage(database, "job", bad.id, status="ODD")

    follower.refresh(cursors[1])

    assert cursors[1].moved().run.status == Status.RUNNING
    with pytest.raises(DatabaseCorrupt):
        cursors[0].moved()


def test_threads_that_wait_for_one_job_all_hear_of_its_end(jobs):
    """Several threads wait for a job that no other commit follows: each returns."""
    for _ in range(10):
        job = task(jobs)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(jobs.wait, job.id, timeout=20) for _ in range(4)]
            jobs.finish_job(job.id)

        assert [one.result().status for one in waiting] == [Status.COMPLETE] * 4
