"""Claims by hosts: a worker of one's own gets each queued job of its types once."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from datetime import datetime, timedelta, timezone

import pytest

from jobcore import JobManager, Status
from tests.jobfiles import damage
from tests.processes import Child, at_once, in_child, until


def test_oldest_job_of_the_type_is_claimed(jobs):
    """It is RUNNING, owned by this process, and not handed out again."""
    first, _, third = (jobs.create_job(kind) for kind in ("ELT", "OTHER", "ELT"))
    claimed = jobs.claim_job("ELT")
    assert (claimed.id, claimed.status) == (first.id, Status.RUNNING)
    assert jobs.claim_job(["NONE", "ELT"]).id == third.id
    assert jobs.claim_job("ELT") is None
    assert jobs.recover() == []


def test_jobs_that_may_not_start_are_passed_over(jobs):
    """Not those that are due later, cancelled, deleted or reserved."""
    later = datetime.now(timezone.utc) + timedelta(days=1000)
    jobs.submit(["true"], type="ELT", not_before=later)
    jobs.submit(["true"], type="ELT", reserved=True)
    jobs.cancel_job(jobs.create_job("ELT").id)
    jobs.delete_job(jobs.create_job("ELT").id)
    assert jobs.claim_job("ELT") is None


@pytest.mark.parametrize(
    ("column", "garbage"),
    [("priority", "x"), ("expires", "z"), ("retries", "{"), ("run_if", "never")],
)
def test_job_that_cannot_be_returned_is_not_claimed(jobs, database, column, garbage):
    """It stays QUEUED, because no process would own it as RUNNING."""
    bad, good = (jobs.create_job("ELT") for _ in range(2))
    damage(database, "job", bad.id, **{column: garbage})

    assert jobs.claim_job("ELT").id == good.id
    assert jobs.claim_job("ELT") is None
    assert jobs.count_jobs()[Status.QUEUED] == 1


def test_jobs_that_cannot_be_read_are_passed_over(jobs, database):
    """Damaged rows at the head of the queue do not keep other jobs from being claimed."""
    made = [jobs.create_job("ELT") for _ in range(4)]
    with closing(sqlite3.connect(database)) as connection, connection:
        for job in made[:3]:
            connection.execute("UPDATE job SET data = '{' WHERE id = ?", (job.id.hex,))

    assert jobs.claim_job("ELT", timeout=5).id == made[3].id
    assert jobs.claim_job("ELT") is None


def claim_all(database):
    """Claim until there is none."""
    with JobManager(database, slots=0) as jobs:
        claimed = []
        while (job := jobs.claim_job("ELT")) is not None:
            claimed.append(str(job.id))
            jobs.finish_job(job.id)
        return claimed


def test_claimers_that_race_get_each_job_once(database):
    """Each job goes to exactly one process, and all jobs are claimed."""
    with JobManager(database, slots=0) as jobs:
        made = {str(jobs.create_job("ELT").id) for _ in range(40)}
        claimed = [one for some in at_once(claim_all, [(database,)] * 4) for one in some]
        history = [[e.trigger for e in jobs.history(one)] for one in made]

    assert sorted(claimed) == sorted(made)
    assert all(steps == ["create", "start", "finish"] for steps in history)


def submit_one(database):
    with JobManager(database, slots=0) as jobs:
        return str(jobs.create_job("ELT").id)


def test_claim_waits_for_a_job_of_another_process(jobs, database):
    """It returns as soon as there is a job, or None after the time-out."""
    assert jobs.claim_job("ELT", timeout=0.01) is None
    found = []
    waiter = threading.Thread(target=lambda: found.append(jobs.claim_job("ELT", timeout=None)))
    waiter.start()
    made = in_child(submit_one, database)
    waiter.join(30)
    assert [str(job.id) for job in found] == [made]


def claim_and_die(database):
    with JobManager(database, slots=0) as jobs:
        return str(jobs.claim_job("ELT").id)


def test_job_that_a_dead_worker_claimed_is_lost(jobs, database):
    """Its claim made that worker the owner."""
    jobs.create_job("ELT")
    job = jobs.get_job(in_child(claim_and_die, database))
    assert str(job.reason) == "lost"


def test_claimed_job_is_worked_on_in_a_block(jobs):
    """`task` continues the job that `claim_job` has returned."""
    jobs.create_job("ELT")
    claimed = jobs.claim_job("ELT")
    with jobs.task(job_id=claimed.id) as task:
        task.log("done")
    assert jobs.get_job(claimed.id).status is Status.COMPLETE


def test_worker_of_jobcore_and_one_of_the_host_share_a_type(database):
    """A job goes to one of the two."""
    with JobManager(database, slots=2) as jobs:
        made = jobs.submit_many([["true"]] * 20)
        while (job := jobs.claim_job("COMMAND")) is not None:
            jobs.finish_job(job.id)
        jobs.drain(30)
        until(lambda: all(jobs.get_job(job.id).status is Status.COMPLETE for job in made))
        starts = [[e.trigger for e in jobs.history(job.id)].count("start") for job in made]
    assert starts == [1] * 20


@pytest.mark.parametrize("kind", [None, [], 3])
def test_claim_without_a_type_is_refused(jobs, kind):
    """There is no claim of whatever is queued."""
    with pytest.raises(ValueError, match="type"):
        jobs.claim_job(kind)


@pytest.mark.parametrize("timeout", [float("nan"), "1", True])
def test_invalid_timeout_is_refused(jobs, timeout):
    """The error comes before a job is claimed."""
    jobs.create_job("ELT")
    with pytest.raises(ValueError, match="timeout must be"):
        jobs.claim_job("ELT", timeout=timeout)
    assert jobs.claim_job("ELT") is not None


def claim_forever(database):
    with JobManager(database, slots=0) as jobs:
        jobs.claim_job("ELT", timeout=None)


def test_claimer_that_is_killed_while_it_waits_has_claimed_nothing(jobs, database):
    """The job that comes later is there for others."""
    child = Child(claim_forever, database)
    child.kill()
    made = jobs.create_job("ELT")
    assert jobs.claim_job("ELT").id == made.id
