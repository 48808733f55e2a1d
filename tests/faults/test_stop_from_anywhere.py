"""Stopping: from any process, and nothing of the job survives."""

from __future__ import annotations

import sqlite3
from contextlib import suppress

import pytest

from jobcore import JobManager, JobNotRunning, Reason, Status, Trigger
from tests.faults.hosts import host, submit_and_serve
from tests.jobfiles import cookie_of
from tests.processes import at_once, carrying, in_child
from tests.programs import EXITS_0_ON_SIGTERM, SLEEPS, STOPS_ITSELF, TREE_THAT_IGNORES_SIGTERM

pytestmark = pytest.mark.usefixtures("warm_supervisors")

GRACE = 0.5  # seconds


def stop(database, job_id, grace):
    """Stop a job from a process of its own, which runs nothing."""
    with JobManager(database, slots=0) as jobs:
        jobs.stop_job(job_id, grace=grace)


def stop_if_running(database, job_id, grace):
    """Stop a job likewise, unless the stop of another process has ended it already."""
    with suppress(JobNotRunning):
        stop(database, job_id, grace)


@pytest.mark.parametrize("who", ["a manager beside", "another process", "after its host died"])
def test_a_tree_that_ignores_sigterm_is_gone_after_its_grace(database, who):
    """Double-forked, re-sessioned, TERM-ignoring and stopped processes all end after the grace."""
    with (
        host(submit_and_serve, database, TREE_THAT_IGNORES_SIGTERM, {"grace": 300}) as serving,
        JobManager(database, slots=0) as jobs,
    ):
        job = jobs.get_job(serving.hear())
        assert next(jobs.follow(job.id, timeout=30)).text == "ready"
        cookie = cookie_of(database, job.id)
        if who == "after its host died":
            serving.kill()
        if who == "another process":
            in_child(stop, database, job.id, GRACE)
        else:
            asked = jobs.stop_job(job.id, grace=GRACE)
            assert asked.status is Status.RUNNING

        job = jobs.wait(job.id, timeout=30)

    assert (job.status, job.reason) == (Status.STOPPED, Reason.STOPPED)
    assert (job.exit_code, job.signal) == (137, 9)
    assert carrying(cookie) == []
    # The grace is a minimum; how much longer it takes is the machine's affair.
    assert (job.end_time - job.stop_requested).total_seconds() >= GRACE


def test_repeated_stop_is_one_stop(running_jobs):
    """Asking again changes nothing; a shorter grace is taken, a longer one is not."""
    job = running_jobs.submit(TREE_THAT_IGNORES_SIGTERM, grace=300)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"

    first = running_jobs.stop_job(job.id)
    running_jobs.stop_job(job.id)
    running_jobs.stop_job(job.id, grace=200)
    running_jobs.stop_job(job.id, grace=400)
    running_jobs.stop_job(job.id, grace=0)
    job = running_jobs.wait(job.id, timeout=30)

    assert job.stop_requested == first.stop_requested
    stops = [entry.trigger for entry in running_jobs.history(job.id)].count(Trigger.STOP)
    assert stops == 3  # the first, and the two that asked for less
    with pytest.raises(JobNotRunning):
        running_jobs.stop_job(job.id)


def test_eight_processes_stop_one_job(database):
    """All of them ask at once: it is one stop, by the shortest grace that anybody has named."""
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        job = jobs.submit(TREE_THAT_IGNORES_SIGTERM, grace=300)
        assert next(jobs.follow(job.id, timeout=30)).text == "ready"

        at_once(stop_if_running, [(database, job.id, 100 * number + GRACE) for number in range(8)])
        job = jobs.wait(job.id, timeout=30)
        history = jobs.history(job.id)
        said = [line.text for line in jobs.logs(job.id) if line.stream == "system"]

    stops = [entry for entry in history if entry.trigger is Trigger.STOP]
    assert (job.status, job.reason, job.exit_code) == (Status.STOPPED, Reason.STOPPED, 137)
    assert [word.partition(":")[0] for word in said[:1]] == ["stopping"]
    assert [word.partition(":")[2].split()[0] for word in said[1:]] == ["SIGTERM", "killed:"]
    assert 1 <= len(stops) <= 8  # those that asked for less than all before them
    assert (job.end_time - job.stop_requested).total_seconds() >= GRACE


def test_a_command_that_obeys_keeps_its_exit_code(running_jobs):
    """A command that exits 0 on SIGTERM is STOPPED with exit code 0: it did not end by itself."""
    job = running_jobs.submit(EXITS_0_ON_SIGTERM)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"

    running_jobs.stop_job(job.id)
    job = running_jobs.wait(job.id, timeout=30)

    assert (job.status, job.exit_code, job.reason) == (Status.STOPPED, 0, Reason.STOPPED)


@pytest.mark.parametrize("program", [SLEEPS, STOPS_ITSELF], ids=["sleeping", "stopped"])
def test_stop_ends_what_sleeps_or_is_stopped(running_jobs, program):
    """SIGTERM ends a sleeping command, and with SIGCONT after it a stopped one."""
    job = running_jobs.submit(program)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"

    running_jobs.stop_job(job.id)
    job = running_jobs.wait(job.id, timeout=30)

    assert (job.status, job.signal, job.exit_code) == (Status.STOPPED, 15, 143)


def test_delete_of_a_running_job_leaves_nothing(running_jobs, database):
    """A RUNNING job that is deleted is stopped first; then no row, line or process is left."""
    job = running_jobs.submit(TREE_THAT_IGNORES_SIGTERM, grace=0.2)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    cookie = cookie_of(database, job.id)

    running_jobs.delete_job(job.id)

    assert running_jobs.list_jobs() == []
    assert carrying(cookie) == []
    connection = sqlite3.connect(database)
    counts = [
        connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in ("job", "log_segment", "transition")
    ]
    connection.close()
    assert counts == [0, 0, 0]
