"""Expiry: a job that has not started in time is cancelled, and never starts."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta

import pytest

from jobcore import InvalidTransition, JobManager, Reason, Status
from jobcore.engine import expiry
from jobcore.testing import Script, ScriptedExecutor, drain, elapse
from jobcore.testing.parts import parts
from tests.processes import until


@pytest.fixture
def scripted(clock):
    with ScriptedExecutor(Script([10]), clock=clock) as scripted:
        yield scripted


def is_cancelled(job, seconds):
    """Tell whether a job has expired, so many seconds after its creation."""
    return (
        (job.status, job.reason, job.start_time) == (Status.STOPPED, Reason.EXPIRED, None)
        and job.end_time == job.created + timedelta(seconds=seconds)
        and job.exit_code is None
    )


def test_job_queued_after_a_long_one_expires(database, clock, scripted):
    """It ends at its time, though the manager runs another job; the one after it starts."""
    with JobManager(
        database, slots=1, clock=clock, launcher=scripted, executors={"COMMAND": scripted}
    ) as jobs:
        first = jobs.submit(["a"])
        late = jobs.submit(["b"], expires=4)
        soon = jobs.submit(["c"], expires=11)
        drain(jobs, patience=30)

        assert is_cancelled(jobs.get_job(late.id), 4)
        assert [jobs.get_job(one.id).status for one in (first, soon)] == ["COMPLETE"] * 2
        assert [entry.trigger for entry in jobs.history(late.id)] == ["create", "cancel"]


def test_expiry_at_a_moment(database, clock, scripted):
    """A datetime does as well, and `elapse` stops at it."""
    with JobManager(
        database, slots=1, clock=clock, launcher=scripted, executors={"COMMAND": scripted}
    ) as jobs:
        made = jobs.submit(["a"], not_before=jobs.submit(["b"]).created + timedelta(hours=1))
        job = jobs.submit(["a"], expires=made.not_before - timedelta(minutes=1), type="OTHER")
        assert job.expires == made.not_before - timedelta(minutes=1)
        elapse(jobs, 3600, patience=30)

        assert is_cancelled(jobs.get_job(job.id), 3540)
        assert jobs.get_job(made.id).status == Status.RUNNING


def test_drain_does_not_wait_for_an_expiry(database, clock, scripted):
    """A job that this manager cannot run is no work, whenever it expires."""
    with JobManager(
        database, slots=1, clock=clock, launcher=scripted, executors={"COMMAND": scripted}
    ) as jobs:
        job = jobs.submit(["a"], type="OTHER", expires=5)
        drain(jobs, patience=30)

        assert jobs.get_job(job.id).status == Status.QUEUED


def test_job_that_has_started_does_not_expire(jobs, clock):
    """Only the start counts."""
    job = jobs.create_job("TASK", expires=5)
    jobs.start_job(job.id)
    clock.advance(10)

    assert jobs.get_job(job.id).status == Status.RUNNING
    assert jobs.finish_job(job.id).status == Status.COMPLETE


def test_expired_job_is_never_started(jobs, clock):
    """Neither by its id nor from the queue; the next one in the queue is claimed."""
    expired = [jobs.create_job("TASK", expires=1) for _ in range(3)]
    by_id = jobs.create_job("OTHER", expires=1)
    good = jobs.create_job("TASK", expires=60)
    clock.advance(1)
    with pytest.raises(InvalidTransition, match="it has expired"):
        parts(jobs).tasks.start(by_id.id, None)

    assert jobs.claim_job("TASK").id == good.id
    assert jobs.claim_job("TASK") is None
    assert all(is_cancelled(jobs.get_job(one.id), 1) for one in (*expired, by_id))


def test_claim_passes_many_expired_jobs(jobs, clock):
    """However many have expired, the one that has not is found."""
    jobs.submit_many([["true"]] * 350, type="TASK", expires=1)
    good = jobs.create_job("TASK")
    clock.advance(2)

    assert jobs.claim_job("TASK").id == good.id
    assert jobs.count_jobs()["STOPPED"] == 350


def test_looking_at_an_expired_job_cancels_it(jobs, clock):
    """Without a worker, reading an expired job cancels it."""
    job = jobs.submit(["true"], expires=5)
    clock.advance(4.9)
    assert jobs.get_job(job.id).status == Status.QUEUED
    clock.advance(0.1)

    assert is_cancelled(jobs.get_job(job.id), 5)
    assert jobs.retry_job(job.id).expires is None


def test_waiter_returns_when_its_job_expires(database):
    """`wait` returns when a manager with slots has cancelled the job."""
    with JobManager(database, slots=1) as jobs, JobManager(database, slots=0) as other:
        long = jobs.submit(["sleep", "600"])
        until(lambda: jobs.get_job(long.id).status == Status.RUNNING)
        job = jobs.submit(["true"], expires=0.2)

        assert other.wait(job.id, timeout=60).reason == Reason.EXPIRED
        jobs.stop_job(long.id, grace=0)
        jobs.wait(long.id, timeout=60)


def test_time_can_be_changed_by_a_new_submission(jobs, clock):
    """An expired job holds no key."""
    job = jobs.submit(["true"], key="k", expires=5)
    clock.advance(6)
    expiry.Expiry(parts(jobs).database, clock, parts(jobs).postponed).tick()

    assert is_cancelled(jobs.get_job(job.id), 6)
    assert jobs.submit(["true"], key="k").id != job.id


def test_very_many_expire_in_steps(jobs, clock, monkeypatch):
    """A call handles a part and reports that there is more, until all are done."""
    jobs.submit_many([["true"]] * 250, expires=5)
    clock.advance(5)
    monkeypatch.setattr(expiry, "LOOK", -1.0)
    chore = expiry.Expiry(parts(jobs).database, clock, parts(jobs).postponed)
    counted = []
    for _ in range(3):
        chore.tick()
        counted.append((jobs.count_jobs()["STOPPED"], chore.is_unfinished()))

    assert counted == [(100, True), (200, True), (250, False)]


def test_one_damaged_job_holds_up_no_other(jobs, clock, database):
    """It is postponed; the jobs after it are cancelled."""
    bad, good = (jobs.submit(["true"], expires=5) for _ in range(2))
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE job SET spool_offset = 'x' WHERE number = ?", (bad.number,))
    clock.advance(5)
    chore = expiry.Expiry(parts(jobs).database, clock, parts(jobs).postponed)
    chore.tick()

    assert is_cancelled(jobs.get_job(good.id), 5)
    with parts(jobs).database.read() as connection:
        status = "SELECT status FROM job WHERE number = 1"
        assert connection.exec_driver_sql(status).scalar_one() == "QUEUED"


def test_a_key_of_an_expired_holder(jobs, clock):
    """A job that has expired and was not cancelled yet holds its key no longer."""
    job = jobs.submit(["true"], key="k", expires=5)
    clock.advance(5)

    assert jobs.submit(["true"], key="k").id != job.id
    assert is_cancelled(jobs.get_job(job.id), 5)
