"""A supervisor that is SIGKILLed: its job dies with it, and no exit code is made up."""

from __future__ import annotations

import os
import signal
import sqlite3

from jobcore import JobManager, Reason, Status, overdue
from tests.faults.hosts import host, submit_and_serve
from tests.processes import carrying, until
from tests.programs import SLEEPS, TREE_THAT_IGNORES_SIGTERM


def supervisor_of(database, job_id):
    """Return the pid of the supervisor that runs the job, and the job's cookie."""
    connection = sqlite3.connect(database)
    try:
        query = "SELECT cookie FROM job WHERE id = ?"
        (cookie,) = connection.execute(query, (job_id.hex,)).fetchone()
    finally:
        connection.close()
    main = min(until(lambda: carrying(cookie), "the command"))
    with open(f"/proc/{main}/stat", encoding="ascii") as stat:
        return int(stat.read().rpartition(")")[2].split()[1]), cookie


def test_a_killed_supervisor_makes_its_job_lost(running_jobs, database):
    """The job of a SIGKILLed supervisor is ERROR, `lost`, without an exit code, at once."""
    job = running_jobs.submit(SLEEPS)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    supervisor, cookie = supervisor_of(database, job.id)

    os.kill(supervisor, signal.SIGKILL)
    job = running_jobs.wait(job.id, timeout=30)

    assert (job.status, job.exit_code, job.reason) == (Status.ERROR, None, Reason.LOST)
    assert carrying(cookie) == []
    lines = [(line.stream, line.text) for line in running_jobs.logs(job.id)]
    assert lines[0] == ("output", "ready")
    assert [stream for stream, _ in lines[1:]] == ["system"]


def test_what_a_killed_supervisor_leaves_is_killed(running_jobs, database):
    """Descendants that outlive the supervisor are gone when the job is final."""
    job = running_jobs.submit(TREE_THAT_IGNORES_SIGTERM)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    supervisor, cookie = supervisor_of(database, job.id)
    assert len(carrying(cookie)) > 3

    os.kill(supervisor, signal.SIGKILL)
    job = running_jobs.wait(job.id, timeout=30)

    assert job.reason is Reason.LOST
    assert carrying(cookie) == []


def test_a_lost_job_that_was_to_stop_is_stopped(running_jobs, database):
    """A wish to stop makes a lost job STOPPED; the exit code stays unknown."""
    job = running_jobs.submit(TREE_THAT_IGNORES_SIGTERM, grace=300)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    supervisor, _ = supervisor_of(database, job.id)
    running_jobs.stop_job(job.id)

    os.kill(supervisor, signal.SIGKILL)
    job = running_jobs.wait(job.id, timeout=30)

    assert (job.status, job.exit_code, job.reason) == (Status.STOPPED, None, Reason.LOST)


def test_a_stopped_supervisor_is_woken_for_a_stop(running_jobs, database, monkeypatch):
    """A SIGSTOPped supervisor that does not react to a stop is found by its lock, and woken."""
    monkeypatch.setattr(overdue, "WAKE_AFTER", 0.1)
    job = running_jobs.submit(SLEEPS, grace=0.1)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    supervisor, _ = supervisor_of(database, job.id)
    os.kill(supervisor, signal.SIGSTOP)

    running_jobs.stop_job(job.id)
    job = running_jobs.wait(job.id, timeout=30)

    assert (job.status, job.reason, job.signal) == (Status.STOPPED, Reason.STOPPED, 15)


def test_host_and_supervisor_killed_together_resolve_at_the_next_read(database):
    """When everything dies at once, the next manager says so; it waits for no timer."""
    with (
        host(submit_and_serve, database, SLEEPS) as killed,
        JobManager(database, slots=0) as jobs,
    ):
        (job,) = jobs.list_jobs() if killed.hear() else []
        assert next(jobs.follow(job.id, timeout=30)).text == "ready"
        supervisor, cookie = supervisor_of(database, job.id)
        os.kill(killed.pid, signal.SIGSTOP)
        os.kill(supervisor, signal.SIGKILL)
        killed.kill()

        job = jobs.wait(job.id, timeout=30)

        assert (job.status, job.exit_code, job.reason) == (Status.ERROR, None, Reason.LOST)
        assert carrying(cookie) == []
    assert os.listdir(database + ".jobs") == ["store"]
