"""A database that another program keeps locked: callers are told in time, jobs do not notice."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from contextlib import closing, contextmanager

import pytest

from jobcore import DatabaseBusy, JobManager, Reason, Status
from jobcore.storage.database import Database
from jobcore.testing.parts import parts
from tests.faults.hosts import host
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.jobfiles import sql
from tests.processes import PATIENCE, until
from tests.programs import SLEEPS, python

pytestmark = pytest.mark.usefixtures("warm_supervisors")

BUSY = 0.2  # seconds that callers wait here

#: Seconds for which the full rounds keep the lock, and by which each read has returned meanwhile:
#: one that waits for the lock returns behind the former, and the busy time-out is as long.
HELD, RETURNED = 30.0, 5.0

WAITS = ["sh", "-c", 'echo ready; while [ ! -e "$0" ]; do sleep 0.05; done']


def hold(say, database, seconds=10 * PATIENCE):
    """Hold the write lock so long, or until killed, as a program that forgot to commit."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=PATIENCE)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        say("held")
        time.sleep(seconds)


@contextmanager
def locked(database):
    """Have another process hold the write lock for the block."""
    with host(hold, database) as holder:
        assert holder.hear() == "held"
        yield


def numbers(count, code, pause=0.0):
    """Return a command that prints so many numbered lines, a hundred at a time."""
    return python(
        f"""
import sys, time
for first in range(0, {count}, 100):
    print("".join(f"line {{n}}\\n" for n in range(first, first + 100)), end="", flush=True)
    time.sleep({pause})
sys.exit({code})
"""
    )


def has_ended(database, job_id):
    """Tell whether the job's supervisor has written how it ended."""
    return os.path.exists(f"{database}.jobs/{job_id.hex}/exit")


def until_ended(database, job_id):
    """Wait for that, whatever the database says."""
    until(lambda: has_ended(database, job_id), f"the end of the command of {job_id}")


@in_rounds(smoke=2, full=30)
def test_jobs_lose_nothing_while_the_database_is_locked(tmp_path, rounds):
    """Commands print and end while nothing can be stored; then all of it comes by itself."""
    for chance in rounds:
        database = str(tmp_path / f"{rounds.facts['round']}.db")
        with JobManager(database, slots=3, busy_timeout=BUSY) as jobs:
            wanted = [(chance.randrange(1, 60) * 100, chance.randrange(256)) for _ in range(3)]
            submitted = [
                jobs.submit(numbers(count, code, chance.choice([0, 0.001, 0.01])))
                for count, code in wanted
            ]
            until(lambda jobs=jobs: jobs.count_jobs()[Status.QUEUED] == 0, "the start of all jobs")
            with locked(database):
                ids = {job.id for job in submitted if jobs.get_job(job.id).end_time is None}
                for job_id in ids:
                    until_ended(database, job_id)
                with pytest.raises(DatabaseBusy):
                    jobs.submit(["true"])
                assert {job.id for job in jobs.list_jobs(status=Status.RUNNING)} == ids
            until(lambda jobs=jobs: jobs.count_jobs()[Status.RUNNING] == 0, "the end of all jobs")
            ended = [jobs.get_job(job.id) for job in submitted]
            logs = [[line.text for line in jobs.logs(job.id)] for job in submitted]
            check(jobs)

        assert [job.exit_code for job in ended] == [code for _, code in wanted]
        assert logs == [[f"line {n}" for n in range(count)] for count, _ in wanted]
        assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"


@pytest.mark.faults
def test_a_lock_of_ten_seconds_is_waited_out(database):
    """A writer with the usual patience gets through; a job that prints all the while is whole."""
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(numbers(60_000, 7, 0.02))
        until(lambda: jobs.get_job(job.id).line_count > 0, "the first lines")
        with host(hold, database, 10) as holder:
            assert holder.hear() == "held"
            queued = jobs.submit(["true"])
            assert holder.end() == 0  # it had let go, or this would not have been stored
        job, queued = (jobs.wait(one.id, PATIENCE) for one in (job, queued))

        assert (job.exit_code, queued.exit_code) == (7, 0)
        assert [line.text for line in jobs.logs(job.id)] == [f"line {n}" for n in range(60_000)]


def reads_of(jobs, running):
    """Return each way to read jobs, by its name."""
    reads = {"list_jobs": lambda: jobs.list_jobs(status=Status.RUNNING)}
    for what, job_id in running.items():
        reads[f"get_job of {what}"] = lambda job_id=job_id: jobs.get_job(job_id)
        reads[f"logs of {what}"] = lambda job_id=job_id: list(jobs.logs(job_id))
        reads[f"tail of {what}"] = lambda job_id=job_id: list(jobs.tail(job_id, 3))
    return reads


def read_until(ended, running, *managers):
    """Read by turns until `ended`; return, by its name, the seconds of each read's longest call."""
    longest = {}
    while True:
        for jobs in managers:
            for name, read in reads_of(jobs, running).items():
                begun = time.monotonic()
                read()
                longest[name] = max(longest.get(name, 0.0), time.monotonic() - begun)
        if ended():
            return longest


def leave_a_task(say, database):
    """Start a task and be killed."""
    with JobManager(database, slots=0) as jobs:
        say(str(jobs.start_job(jobs.create_job("TASK").id).id))
        signal.pause()


@in_rounds(smoke=1, full=2)
def test_reads_do_not_wait_for_a_locked_database(tmp_path, rounds, record_property):
    """Reads return while another process holds the lock, even if a job has output to be stored."""
    for _ in rounds:
        database = str(tmp_path / f"{rounds.number}.db")
        with (
            JobManager(database, slots=3) as jobs,  # with the usual busy time-out
            JobManager(database, slots=0) as other,
            host(leave_a_task, database) as killed,
        ):
            says = jobs.submit(numbers(10**7, 0, 0.01))
            silent, ends = jobs.submit(SLEEPS), jobs.submit([*WAITS, f"{database}.go"])
            task = killed.hear()
            for job in (says, silent, ends):
                next(jobs.follow(job.id, timeout=PATIENCE))
            with locked(database):
                killed.kill()
                open(f"{database}.go", "x").close()
                until_ended(database, ends.id)
                running = {
                    "a job that prints": says.id,
                    "a silent job": silent.id,
                    "a job that has ended": ends.id,
                    "a task without its host": task,
                }
                until_then = time.monotonic() + (HELD if rounds.facts["full"] else 0)
                longest = read_until(lambda: time.monotonic() >= until_then, running, jobs, other)  # noqa: B023
                stored = other.get_job(ends.id).status, other.get_job(task).status
            for job in (says, silent):
                jobs.stop_job(job.id, grace=0)
            for job_id in running.values():
                jobs.wait(job_id, PATIENCE)
            check(jobs)
        record_property("longest read", max(longest.values()))

        assert stored == (Status.RUNNING, Status.RUNNING)
        assert [name for name, took in longest.items() if took > RETURNED] == []


def test_writes_raise_database_busy_after_their_timeout(database, clock):
    """Each verb that writes raises DatabaseBusy after its time-out, and has no effect."""
    with JobManager(database, slots=0, clock=clock, busy_timeout=BUSY) as jobs:
        pipeline = jobs.create_pipeline("nightly", ["true"])
        queued, task = jobs.create_job("TASK"), jobs.start_job(jobs.create_job("TASK").id)
        final = jobs.cancel_job(jobs.create_job("TASK").id)
        writes = {
            "submit": lambda: jobs.submit(["true"]),
            "submit_many": lambda: jobs.submit_many([["true"]] * 3),
            "create_job": lambda: jobs.create_job("TASK"),
            "retry_job": lambda: jobs.retry_job(final.id),
            "start_job": lambda: jobs.start_job(queued.id),
            "finish_job": lambda: jobs.finish_job(task.id),
            "append_log": lambda: jobs.append_log(task.id, "line"),
            "stop_job": lambda: jobs.stop_job(task.id),
            "cancel_job": lambda: jobs.cancel_job(queued.id),
            "delete_job": lambda: jobs.delete_job(final.id),
            "prune": lambda: jobs.prune(0),
            "create_workspace": lambda: jobs.create_workspace("w"),
            "update_pipeline": lambda: jobs.update_pipeline(pipeline.id, name="x"),
            "delete_pipeline": lambda: jobs.delete_pipeline(pipeline.id),
        }
        clock.advance(1)
        before = (jobs.list_jobs(), jobs.list_pipelines(), list(jobs.events()))
        with locked(database):
            for name, write in writes.items():
                begun = time.monotonic()
                with pytest.raises(DatabaseBusy):
                    write()
                waited = time.monotonic() - begun
                assert BUSY <= waited < PATIENCE, name
            during = (jobs.list_jobs(), jobs.list_pipelines(), list(jobs.events()))
        after = (jobs.list_jobs(), jobs.list_pipelines(), list(jobs.events()))
        jobs.finish_job(task.id)

    assert before == during == after


def test_time_out_and_stop_work_while_the_database_is_locked(database):
    """A time-out needs no database. A stop that cannot be stored raises, and works at once."""
    with JobManager(database, slots=3, busy_timeout=BUSY, on_exit="stop") as jobs:
        late, stopped, cancelled = jobs.submit(SLEEPS, timeout=0.5), *jobs.submit_many([SLEEPS] * 2)
        for job in (late, stopped, cancelled):
            assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        with locked(database):
            for end, job in ((jobs.stop_job, stopped), (jobs.cancel_job, cancelled)):
                with pytest.raises(DatabaseBusy):
                    end(job.id)
            for job in (late, stopped, cancelled):
                until_ended(database, job.id)
        ended = [jobs.wait(job.id, PATIENCE) for job in (late, stopped, cancelled)]

    assert [job.status for job in ended] == [Status.STOPPED] * 3
    assert [job.reason for job in ended] == [Reason.TIMEOUT, Reason.STOPPED, Reason.STOPPED]


def test_close_stops_jobs_while_the_database_is_locked(database, monkeypatch):
    """`close` sends the stops to the supervisors, and waits for the lock only once."""
    jobs = JobManager(database, slots=3, busy_timeout=BUSY, on_exit="stop")
    ids = [jobs.submit(SLEEPS, grace=0).id for _ in range(3)]
    try:
        for job_id in ids:
            assert next(jobs.follow(job_id, timeout=PATIENCE)).text == "ready"
        until(lambda: len(parts(jobs).dispatcher.running()) == 3, "all claims to be noted")
        tried = []
        write = Database.write

        def noted(self, change, *, patience=None, **options):
            if threading.current_thread().name != "jobcore-dispatcher":
                tried.append(patience)
            return write(self, change, patience=patience, **options)

        monkeypatch.setattr(Database, "write", noted)
        with locked(database):
            jobs.close()
            for job_id in ids:
                until_ended(database, job_id)
        monkeypatch.undo()
    finally:
        jobs.close()
        with JobManager(database, slots=0) as other:
            for job in other.recover() + other.list_jobs(status=Status.RUNNING):
                if not job.status.final:
                    other.stop_job(job.id, grace=0)
                    other.wait(job.id, PATIENCE)
            ends = {(job.status, job.reason) for job in other.list_jobs()}

    assert ends == {(Status.STOPPED, Reason.STOPPED)}
    assert tried[:3] == [None, 0.0, 0.0]
    assert tried.count(None) == 1


def test_wait_and_follow_survive_a_locked_database(database):
    """They return the end and all lines, though nothing could be stored for a while."""
    with JobManager(database, slots=1, busy_timeout=BUSY) as jobs:
        job = jobs.submit(numbers(2000, 5))
        until(lambda: jobs.get_job(job.id).status is not Status.QUEUED, "the start")
        followed = jobs.follow(job.id, timeout=PATIENCE)
        with locked(database):
            until(
                lambda: has_ended(database, job.id) or jobs.get_job(job.id).status.final,
                "the command's end",
            )
        lines = [line.text for line in followed]
        ended = jobs.wait(job.id, PATIENCE)

    assert lines == [f"line {n}" for n in range(2000)]
    assert ended.exit_code == 5


def test_queued_jobs_start_by_themselves_once_the_lock_is_free(database, caplog):
    """A queue that could not be claimed from is gone on with, without a call of anybody."""
    with JobManager(database, slots=0) as jobs:
        jobs.submit_many([["true"]] * 20)
    with locked(database), caplog.at_level("WARNING", logger="jobcore"):
        jobs = JobManager(database, slots=2, busy_timeout=BUSY)
        until(lambda: "dispatcher waits" in caplog.text, "a try in vain")
        (behind_lock,) = sql(database, "SELECT count(*) FROM job WHERE status = 'QUEUED'")
    try:
        until(
            lambda: sql(database, "SELECT 1 FROM job WHERE status <> 'COMPLETE'") == [],
            "the end of all jobs",
        )
    finally:
        jobs.close()

    assert behind_lock[0] == 20
