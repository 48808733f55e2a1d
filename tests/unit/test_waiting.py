"""Waiter: a waiter hears of every commit, whatever other threads read at the same moment."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from jobcore import DatabaseCorrupt, Status, tuning
from jobcore.operations import waiting
from jobcore.operations.waiting import Cursor, WatchedJob
from jobcore.testing.parts import parts
from tests.jobfiles import damage, run_of, stored_run
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
        cursor = follower.waiting(run_of(jobs, job))
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
    run = run_of(jobs, job)
    first, second = (Cursor(run, WatchedJob(run.number), 1.0) for _ in range(2))
    follower.watched[run.number] = second.watched

    jobs.finish_job(job.id)
    follower.refresh(first)

    assert first.moved().run.status == Status.COMPLETE


def test_damaged_row_concerns_its_own_waiters(jobs, follower, database):
    """A damaged row raises only for those who wait for it."""
    bad, good = task(jobs), task(jobs)
    cursors = [follower.waiting(run_of(jobs, job)) for job in (bad, good)]
    damage(database, "job", bad.id, status="ODD")

    follower.refresh(cursors[1])

    assert cursors[1].moved().run.status == Status.RUNNING
    with pytest.raises(DatabaseCorrupt):
        cursors[0].moved()


def test_threads_that_wait_for_one_job_all_hear_of_its_end(jobs):
    """Several threads wait for a job whose end is the last commit: each returns."""
    for _ in range(10):
        job = task(jobs)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(jobs.wait, job.id, timeout=20) for _ in range(4)]
            jobs.finish_job(job.id)

        assert [one.result().status for one in waiting] == [Status.COMPLETE] * 4


def test_follower_looks_often_while_lines_come(jobs, scripted, monkeypatch):
    """It looks each few milliseconds after news, then less often, and rests longer than a look."""
    now = [100.0]
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run = scripted()
    cursor = parts(jobs).waiter.following(stored_run(jobs, run), 0)
    watched = cursor.watched
    watched.visited = now[0]

    def pause(quiet, cost):
        watched.quiet, watched.cost = quiet, cost
        return pytest.approx(cursor.due_at - now[0])

    steady = waiting.STEADY_LOOKS
    assert [pause(quiet, 0.0) for quiet in (0, steady)] == [waiting.FOLLOW_PAUSE] * 2
    assert pause(steady + 1, 0.0) == 2 * waiting.FOLLOW_PAUSE
    assert [pause(quiet, 0.0) for quiet in (99, 10**6)] == [waiting.WAIT_PAUSE] * 2
    assert pause(0, 0.004) == 0.004 * waiting.LOOK_SHARE
    assert pause(0, 5.0) == waiting.BUSY_PAUSE


def test_follower_does_not_rest_beyond_its_next_look(jobs, scripted, monkeypatch):
    """A line without a commit is found at the next look, even if nothing else changes the file."""
    run = scripted()
    waiter = parts(jobs).waiter
    cursor = waiter.following(stored_run(jobs, run), 0)._replace(pause=tuning.LOOK_LONGEST)
    cursor.watched.visited = time.monotonic()
    rests = []
    monkeypatch.setattr(
        parts(jobs).database,
        "wait_for_change",
        lambda _seen, seconds, _pause: rests.append(seconds),
    )
    waiter._rest(cursor, waiting.Deadline(None), lambda _run: None, object())

    assert len(rests) == 1
    assert rests[0] <= waiting.FOLLOW_PAUSE < tuning.LOOK_LONGEST


def test_follower_of_a_job_that_reports_here_does_not_poll(jobs, scripted, monkeypatch):
    """Its own commits wake it, so it leaves it to others to look for those of other processes."""
    run = scripted()
    waiter, recovery = parts(jobs).waiter, parts(jobs).recovery
    cursor, pauses, looks = waiter.following(stored_run(jobs, run), 0), [], []
    monkeypatch.setattr(
        parts(jobs).database, "wait_for_change", lambda _seen, *said: pauses.append(said)
    )
    for connected in (False, True):
        monkeypatch.setattr(recovery, "is_connected", lambda _run, connected=connected: connected)
        cursor = waiter.visit(cursor)
        cursor.watched.quiet = 1000
        me = object()
        waiter._rest(cursor, waiting.Deadline(None), lambda _run: None, me)
        waiter.watched[cursor.watched.number].release(cursor.what, me)
        looks.append([waiter._polling.release(only_own, me) for only_own in (False, True)])

    assert pauses[0][1] == tuning.LOOK_FIRST
    assert waiting.WAIT_PAUSE < pauses[1][0] <= pauses[1][1] == waiting.CONNECTED_PAUSE
    assert looks == [[True, False], [False, True]]


def test_commit_wakes_one_of_those_whose_jobs_report_here(jobs, scripted, monkeypatch):
    """The others are woken by that one if their job has changed, or for their next visit."""
    waiter, recovery = parts(jobs).waiter, parts(jobs).recovery
    cursors = [waiter.following(stored_run(jobs, scripted()), 0) for _ in range(3)]
    monkeypatch.setattr(recovery, "is_connected", lambda _run: True)
    slept = []
    monkeypatch.setattr(parts(jobs).database, "wait_for_change", lambda *_: slept.append(1))
    for cursor in cursors:
        visited = waiter.visit(cursor)
        waiter._rest(visited, waiting.Deadline(None), lambda _run: None, object())

    assert len(slept) == 1


def test_thread_whose_job_now_reports_here_lets_another_one_poll(jobs, scripted, monkeypatch):
    """It will not see commits of other processes, so it does not keep others from looking."""
    waiter, recovery = parts(jobs).waiter, parts(jobs).recovery
    monkeypatch.setattr(parts(jobs).database, "wait_for_change", lambda *_: None)
    cursor, me = waiter.following(stored_run(jobs, scripted()), 0), object()
    there = []
    for connected in (False, True):
        monkeypatch.setattr(recovery, "is_connected", lambda _run, connected=connected: connected)
        waiter._rest(waiter.visit(cursor), waiting.Deadline(None), lambda _run: None, me)
        there.append(waiter._polling.acquire(False, object()) > 0)

    assert there == [True, False]


def test_import_is_left_to_whoever_has_imported_since_the_last_visit(jobs, scripted, monkeypatch):
    """Two that read the same job directory do not import the same output; if one stops, both do."""
    run = scripted()
    waiter, recovery = parts(jobs).waiter, parts(jobs).recovery
    cursor, imported = waiter.waiting(stored_run(jobs, run)), []
    reconcile = recovery.try_to_reconcile
    monkeypatch.setattr(
        recovery,
        "try_to_reconcile",
        lambda run, **options: imported.append(run.spool_offset) or reconcile(run, **options),
    )

    def visit(cursor):
        waiter.refresh(cursor)
        return waiter.visit(cursor.moved())

    run.write(b"a\n")
    cursor = visit(cursor)
    run.write(b"b\n")
    parts(jobs).importer.import_all(stored_run(jobs, run))
    run.write(b"c\n")
    cursor = visit(cursor)
    assert (len(imported), cursor.run.next_sequence) == (1, 2)

    cursor = visit(cursor)
    assert (len(imported), cursor.run.next_sequence) == (2, 3)
