"""Functions and faults: a value is there once and whole, or the job has none, whatever dies."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import pytest

from jobcore import JobManager, NoResult, Reason, Status
from jobcore.embedding import failpoints
from tests import functions
from tests.faults.hosts import host
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.jobfiles import cookie_of, sql
from tests.processes import at_once, carrying, until


def call_and_serve(say, database, point, target, *args):
    """Submit one call, say its id, and run it until killed; by its own hand at `point`."""

    def die(reached, _):
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    with JobManager(database, slots=1) as jobs:
        jobs.get_workspace()
        job = jobs.submit_function(target, *args)
        say(str(job.id))
        failpoints.arm(die)
        signal.pause()


def result_of(database, job_id):
    """Return what the job returned, asked by a manager that runs nothing."""
    with JobManager(database, slots=0) as jobs:
        jobs.wait(job_id, timeout=60)
        return jobs.result(job_id)


def stored(database):
    """Return how many values are stored."""
    return sql(database, "SELECT count(*) FROM result")[0][0]


def test_a_function_outlives_its_host(database, tmp_path):
    """A host SIGKILLed in the middle of a call is not missed: the next manager has the value."""
    flag = str(tmp_path / "flag")
    with host(call_and_serve, database, None, functions.waits_for, flag) as killed:
        job_id = killed.hear()
        with JobManager(database, slots=0) as jobs:
            assert next(jobs.follow(job_id, timeout=60)).text == "ready"
        killed.kill()
    os.close(os.open(flag, os.O_CREAT))

    assert result_of(database, job_id) == {"saw": flag}
    assert set(os.listdir(database + ".jobs")) <= {"store", "checkpoint"}


@pytest.mark.parametrize(
    "point", [failpoints.IMPORT_READ, failpoints.SETTLE_WRITTEN, failpoints.SETTLED]
)
def test_a_host_that_dies_over_a_value_leaves_it_once(database, point):
    """Killed before, in or after the transaction of the ending, it leaves one value."""
    with host(call_and_serve, database, point, functions.gives_back, (1, 2)) as killed:
        job_id = killed.hear()
        assert killed.end() == -signal.SIGKILL
    before = stored(database)

    assert result_of(database, job_id) == (1, 2)
    assert (before, stored(database)) == (int(point == failpoints.SETTLED), 1)


def test_all_who_read_at_once_have_the_same_value(database, tmp_path):
    """Processes that settle the same job at one moment agree, and the value is stored once."""
    flag = str(tmp_path / "flag")
    with host(call_and_serve, database, None, functions.waits_for, flag) as killed:
        job_id = killed.hear()
        with JobManager(database, slots=0) as jobs:
            assert next(jobs.follow(job_id, timeout=60)).text == "ready"
        killed.kill()
    os.close(os.open(flag, os.O_CREAT))

    assert at_once(result_of, [(database, job_id)] * 4) == [{"saw": flag}] * 4
    assert stored(database) == 1


@in_rounds(smoke=6, full=300)
def test_a_function_killed_at_a_random_moment_returns_all_or_nothing(rounds, database):
    """Killed at any time, also while it writes: COMPLETE with the whole value, or no value."""
    value, killed = "x" * 2**21, 0
    with JobManager(database, slots=1) as jobs:
        for chance in rounds:
            job = jobs.submit_function(functions.returns_many_bytes, len(value))
            until(lambda job=job: jobs.get_job(job.id).status is not Status.QUEUED, "the start")
            cookie = cookie_of(database, job.id)
            time.sleep(chance.random() * 0.2)  # the instant of death, not a wait for anything
            for pid in carrying(cookie):
                with suppress(ProcessLookupError):  # it has just returned
                    os.kill(pid, signal.SIGKILL)
            job = jobs.wait(job.id, timeout=60)
            if job.status is Status.COMPLETE:
                assert jobs.result(job.id) == value
            else:
                assert (job.status, job.reason, job.signal) == (
                    Status.ERROR, Reason.SIGNALED, signal.SIGKILL,
                )  # fmt: skip
                with pytest.raises(NoResult):
                    jobs.result(job.id)
                killed += 1
            check(jobs)
            jobs.delete_job(job.id)
    assert killed or not rounds.facts["full"]  # of a few, each may have been quicker
    assert set(os.listdir(database + ".jobs")) <= {"store", "checkpoint"}
