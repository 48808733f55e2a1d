"""A busy database: callers are told at once, jobs do not notice, and all comes true afterwards."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest

from jobcore import DatabaseBusy, JobManager, Status
from jobcore.testing import busy
from jobcore.testing.parts import parts
from tests.processes import descriptors, until

#: A manager that waited for its time-out would hold up the suite for an hour.
HOUR = 3600.0


@pytest.fixture
def jobs(database):
    """Return a manager that would wait for an hour."""
    with JobManager(database, slots=1, busy_timeout=HOUR, on_exit="stop") as manager:
        yield manager


def test_writes_raise_database_busy_at_once(jobs):
    """Writes raise DatabaseBusy and have no effect; reads work."""
    job = jobs.create_job("TASK")
    with busy(jobs):
        for write in (
            lambda: jobs.submit(["true"]),
            lambda: jobs.start_job(job.id),
            lambda: jobs.cancel_job(job.id),
            lambda: jobs.delete_job(job.id),
            lambda: jobs.create_workspace("w"),
        ):
            with pytest.raises(DatabaseBusy):
                write()
        assert jobs.get_job(job.id) == job
        assert jobs.get_workspace().id == job.workspace_id
        assert jobs.count_jobs()[Status.QUEUED] == 1

    assert jobs.start_job(job.id).status is Status.RUNNING
    assert jobs.finish_job(job.id).status is Status.COMPLETE


def test_the_lock_is_real(jobs, database):
    """Another connection, of whatever program, cannot write either; afterwards it can."""
    with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as other:
        with busy(database), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")

    assert jobs.list_jobs() == []


def test_running_jobs_do_not_notice(jobs, database, tmp_path):
    """A job that ends meanwhile is RUNNING as stored, and is settled once the block is over."""
    go = tmp_path / "go"
    wait = f"echo begun; while [ ! -e {go} ]; do sleep 0.01; done; echo ended; exit 4"
    job = jobs.submit(["sh", "-c", wait])
    assert next(jobs.follow(job.id, timeout=60)).text == "begun"
    with busy(jobs):
        go.touch()
        until(lambda: os.path.exists(f"{database}.jobs/{job.id.hex}/exit"), "the exit record")
        assert jobs.get_job(job.id).status is Status.RUNNING
    job = jobs.wait(job.id, timeout=60)

    assert (job.status, job.exit_code) == (Status.ERROR, 4)
    assert [line.text for line in jobs.logs(job.id)] == ["begun", "ended"]


def test_every_manager_of_the_file_gives_up(jobs, database, tmp_path):
    """All managers of this process that have the file are impatient; another file's is not busy."""
    with (
        JobManager(database, slots=0, busy_timeout=HOUR) as second,
        JobManager(tmp_path / "other.db", slots=0, busy_timeout=HOUR) as other,
        busy(jobs),
    ):
        with pytest.raises(DatabaseBusy):
            second.submit(["true"])
        assert other.submit(["true"]).status is Status.QUEUED


def test_error_in_the_block_releases_the_lock(database):
    """Lock, patience and descriptors are given back, however the block ends."""
    before = descriptors()
    with JobManager(database, slots=0, busy_timeout=HOUR) as jobs:
        with pytest.raises(KeyError), busy(jobs):
            raise KeyError

        assert parts(jobs).database.busy_timeout == HOUR
        assert jobs.submit(["true"]).status is Status.QUEUED

    assert descriptors() == before


def test_unlockable_file_raises(jobs, database, tmp_path):
    """A held lock is DatabaseBusy; a missing file is not made."""
    with busy(jobs), pytest.raises(DatabaseBusy), busy(database, timeout=0.01):
        pass
    with pytest.raises(FileNotFoundError), busy(tmp_path / "none.db"):
        pass

    assert not (tmp_path / "none.db").exists()
