"""Owned tasks: jobs that a process does itself are lost when it ends, and not before."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
import warnings
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from jobcore import InvalidTransition, JobManager, Reason, Status
from jobcore.testing.parts import parts
from tests.processes import PATIENCE, ROOT, Child, at_once, forked, hear, in_child, stop_host, until

LOST = "lost: the process that did this task ended without finishing it"


def start_and_stay(database, answer, options):
    """Do a task in this process: say its id, and never finish it."""
    with JobManager(database, slots=0) as jobs:
        job = jobs.start_job(jobs.create_job("ELT").id, **options)
    os.write(answer, str(job.id).encode())  # after `close`, which does not end it
    time.sleep(10 * PATIENCE)


class Host:
    """A process that does a task."""

    def __init__(self, database, **options):
        ours, theirs = os.pipe()
        self.child = Child(start_and_stay, database, theirs, options)
        self.job_id = (hear(ours) + os.read(ours, 100)).decode()
        os.close(ours)
        os.close(theirs)
        self.alive = True

    def die(self):
        """Be killed; again is harmless."""
        if self.alive:
            self.alive = False
            self.child.kill()


@pytest.fixture
def host(database):
    """Return a maker of processes that do a task."""
    JobManager(database, slots=0).close()
    made = []

    def make(**options):
        made.append(Host(database, **options))
        return made[-1]

    yield make
    for one in made:
        one.die()


def look(jobs, job_id):
    return jobs.get_job(job_id)


def sweep(jobs, job_id):
    (ended,) = jobs.recover()
    assert str(ended.id) == job_id
    return ended


def wait(jobs, job_id):
    return jobs.wait(job_id, 30)


def follow(jobs, job_id):
    assert [line.text for line in jobs.follow(job_id, timeout=30)] == [LOST]
    return jobs.list_jobs()[0]


@pytest.mark.parametrize("verb", [look, sweep, wait, follow])
def test_task_of_a_killed_host_is_lost_at_the_next_look(database, host, verb):
    """It ends ERROR without an exit code, with the reason in its last line."""
    one = host()
    one.die()
    with JobManager(database, slots=0) as jobs:
        job = verb(jobs, one.job_id)
        lines = [(line.stream, line.text) for line in jobs.logs(job.id)]

    assert (job.status, job.reason, job.exit_code) == (Status.ERROR, Reason.LOST, None)
    assert lines == [("system", LOST)]


def test_task_of_a_killed_host_is_lost_while_others_wait_for_it(database, host):
    """A waiter that began before the death sees the end."""
    one = host()
    with JobManager(database, slots=0) as jobs:
        waiter = Child(wait_elsewhere, database, one.job_id)
        assert jobs.get_job(one.job_id).status is Status.RUNNING
        one.die()
        assert waiter.result() == "lost"


def wait_elsewhere(database, job_id):
    with JobManager(database, slots=0) as jobs:
        return str(jobs.wait(job_id, 30).reason)


def test_sweep_ends_tasks_of_dead_hosts(database, host):
    """Its sweep ends the task; nothing asks for it."""
    one = host()
    with JobManager(database, slots=1) as worker:
        one.die()
        until(lambda: worker.count_jobs(status=Status.ERROR)[Status.ERROR], "the sweep")


def test_task_of_a_living_host_is_running_for_all_who_look(database, host):
    """Closing its manager does not end it, and no sweep does."""
    one = host()
    with JobManager(database, slots=1) as jobs:
        assert jobs.recover() == []
        assert jobs.get_job(one.job_id).status is Status.RUNNING
    assert in_child(look_at, database, one.job_id) == "RUNNING"


def look_at(database, job_id):
    with JobManager(database, slots=0) as jobs:
        jobs.recover()
        return str(jobs.get_job(job_id).status)


def test_pipeline_of_a_dead_hosts_task_is_free_again(jobs):
    """Its next job can be created at once; the lost one does not hold it."""
    pipeline = jobs.create_pipeline("p", ["true"])
    first = in_child(start_for_pipeline, jobs, pipeline.id)
    second = jobs.create_job("ELT", pipeline_id=pipeline.id)

    assert jobs.get_job(first).reason is Reason.LOST
    assert second.status is Status.QUEUED


def start_for_pipeline(jobs, pipeline_id):
    job_id = jobs.create_job("ELT", pipeline_id=pipeline_id).id
    return jobs.start_job(job_id).id


@pytest.mark.parametrize(("kind", "options", "outlives"), [
    ("ELT", {"owner": None}, True),
    ("ELT", {"owner": "process"}, False),
    ("PROFILE_IMPORT", {}, True),
    ("PROFILE_COLLABORATE", {}, True),
    ("PROFILE_IMPORT", {"owner": "process"}, False),
])  # fmt: skip
def test_task_for_people_outlives_its_host(jobs, kind, options, outlives):
    """Without an owner a task is RUNNING until it is finished or stopped."""
    job_id = in_child(start_one, jobs, kind, options)
    jobs.recover()

    assert (jobs.get_job(job_id).status is Status.RUNNING) == outlives
    if outlives:
        assert jobs.finish_job(job_id).status is Status.COMPLETE


def start_one(jobs, kind, options):
    return jobs.start_job(jobs.create_job(kind).id, **options).id


@pytest.mark.parametrize("owner", ["", "me", 1, True])
def test_unknown_owner_is_refused(jobs, owner):
    """An owner other than this process, None or the type's default is refused."""
    job = jobs.create_job("ELT")
    with pytest.raises(ValueError, match="owner must be"):
        jobs.start_job(job.id, owner=owner)
    assert jobs.get_job(job.id).status is Status.QUEUED


def test_any_process_may_log_and_finish_a_task(database, host):
    """A process that is not the owner can write its log and end it."""
    one = host()
    with JobManager(database, slots=0) as jobs:
        assert jobs.append_log(one.job_id, "from another process") == 1
        job = jobs.finish_job(one.job_id, 3)
        one.die()
        assert jobs.recover() == []

    assert (job.status, job.exit_code) == (Status.ERROR, 3)


def test_stopped_task_of_a_dead_host_is_lost_and_no_longer_to_be_stopped(database, host):
    """A stop is a look, too: what has ended by then is not stopped."""
    one = host()
    one.die()
    with JobManager(database, slots=0) as jobs, pytest.raises(InvalidTransition, match="ERROR"):
        jobs.stop_job(one.job_id)


def test_forked_child_does_not_keep_the_task_of_its_parent_running(database):
    """A child that outlives its host, forked by Python or by exec, has no part in the lock."""
    source = """
import os, subprocess, sys, time
from jobcore import JobManager
jobs = JobManager(sys.argv[1], slots=0)
job = jobs.start_job(jobs.create_job("ELT").id)
program = subprocess.Popen(["sleep", "300"], close_fds=False)
if (child := os.fork()) == 0:
    time.sleep(300)
    os._exit(0)
print(job.id, program.pid, child, flush=True)
time.sleep(300)
"""
    host = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", source, database],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    job_id, *left = host.stdout.readline().split()
    try:
        with JobManager(database, slots=0) as jobs:
            assert jobs.get_job(job_id).status is Status.RUNNING
            host.kill()
            host.wait()
            assert jobs.get_job(job_id).reason is Reason.LOST
    finally:
        host.stdout.close()
        for pid in left:
            os.kill(int(pid), 9)


def test_adopted_task_depends_on_its_new_owner_alone(database, host):
    """The death of the first owner changes nothing any more; that of the second ends it."""
    one = host()
    other = in_child(adopt, database, one.job_id)  # which ends, and with it the task
    with JobManager(database, slots=0) as jobs:
        assert (other, jobs.get_job(one.job_id).reason) == ("RUNNING", Reason.LOST)
        two = host()
        assert jobs.adopt_task(two.job_id).status is Status.RUNNING
        two.die()
        assert jobs.recover() == []
        assert jobs.finish_job(two.job_id).status is Status.COMPLETE


def adopt(database, job_id):
    with JobManager(database, slots=0) as jobs:
        return str(jobs.adopt_task(job_id).status)


def test_task_for_people_can_be_adopted(jobs, database):
    """It has an owner from then on."""
    job = jobs.start_job(jobs.create_job("PROFILE_IMPORT").id)
    in_child(adopt, database, job.id)

    assert jobs.get_job(job.id).reason is Reason.LOST


def test_only_a_running_task_can_be_adopted(jobs, host):
    """A queued job, an ended one, and one whose owner is dead are refused."""
    queued = jobs.create_job("ELT")
    ended = jobs.finish_job(jobs.start_job(jobs.create_job("ELT").id).id)
    dead = host()
    dead.die()
    for job_id, status in ((queued.id, "QUEUED"), (ended.id, "COMPLETE"), (dead.job_id, "ERROR")):
        with pytest.raises(InvalidTransition, match=f"is {status}: cannot adopt"):
            jobs.adopt_task(job_id)


def test_lock_is_held_as_long_as_a_task_needs_it(database):
    """The last manager that is closed lets go of it, unless a task is still RUNNING."""
    with JobManager(database, slots=0) as first:
        job = first.start_job(first.create_job("ELT").id)
    with JobManager(database, slots=0) as second:
        assert parts(second).ownership.current is not None
        assert in_child(look_at, database, job.id) == "RUNNING"
        second.finish_job(job.id)
    with JobManager(database, slots=0) as third:
        assert parts(third).ownership.current is None


def test_many_looks_at_once_lose_a_task_once(database, host):
    """One of them ends it; it has one last line and one event."""
    one = host()
    one.die()
    seen = at_once(look_at, [(database, one.job_id)] * 6)
    with JobManager(database, slots=0) as jobs:
        lines = list(jobs.logs(one.job_id))
        triggers = [entry.trigger for entry in jobs.history(one.job_id)]

    assert set(seen) == {"ERROR"}
    assert (len(lines), triggers) == (1, ["create", "start", "finish"])


def test_looking_at_a_copy_leaves_its_tasks_as_they_are(database, host, tmp_path):
    """The owners of a copy's tasks are not alive, and the original's tasks are not changed."""
    one = host()
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copytree(database + ".jobs", copy / "jobs.db.jobs")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy / "jobs.db"),))
    with JobManager(copy / "jobs.db", slots=0) as jobs:
        assert jobs.get_job(one.job_id).status is Status.RUNNING
    with JobManager(copy / "jobs.db", slots=0) as jobs:
        assert [str(job.id) for job in jobs.recover()] == [one.job_id]
    with JobManager(database, slots=0) as jobs:
        assert jobs.get_job(one.job_id).status is Status.RUNNING


STARTS_A_TASK = """
import os, sys, time
from jobcore import JobManager
jobs = JobManager(sys.argv[1], slots=0)
job = jobs.start_job(jobs.create_job("ELT").id)
"""


@contextmanager
def program(database, source, *before, fresh=False):
    """
    Run a program that starts a task; give its process and the words that it prints.

    It is a fork that has all loaded, or an interpreter of its own: started by `before`, or `fresh`.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}

    def begin():
        warnings.simplefilter("ignore")
        sys.argv = ["-c", database]
        exec(compile(STARTS_A_TASK + source, "-c", "exec"), {"__name__": "__main__"})

    if before or fresh:
        words = [*before, sys.executable, "-W", "ignore", "-c", STARTS_A_TASK + source, database]
        process = subprocess.Popen(words, **pipes)
    else:
        process = forked(begin, dict(os.environ), **pipes)
    try:
        yield process, process.stdout.readline().split()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "1 / 0", "os.abort()"])
def test_program_that_ends_without_finishing_its_task_has_lost_it(database, end):
    """However it ends: no exit code of the program is one of the task."""
    source = f"sys.stderr = open(os.devnull, 'w'); print(job.id, flush=True); {end}"
    with program(database, source, fresh=not end.startswith("os.")) as (process, (job_id,)):
        process.wait(PATIENCE)
        with JobManager(database, slots=0) as jobs:
            job = jobs.get_job(job_id)
    assert (job.reason, job.exit_code) == (Reason.LOST, None)


def test_program_that_becomes_another_one_has_lost_its_task(database):
    """After an exec, the process is the same, but it does not hold the task any more."""
    source = "print(job.id, flush=True); sys.stdin.read(1); os.execvp('sleep', ['sleep', '300'])"
    with program(database, source) as (process, (job_id,)), JobManager(database, slots=0) as jobs:
        assert jobs.get_job(job_id).status is Status.RUNNING
        process.stdin.write("x")
        process.stdin.flush()
        assert jobs.wait(job_id, 30).reason is Reason.LOST
        assert process.poll() is None


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pool_of_a_dead_program_does_not_keep_its_task_running(database, method):
    """Its pool's workers live on, but they do not own the task."""
    source = f"""
import multiprocessing
worker = multiprocessing.get_context("{method}").Process(target=time.sleep, args=(300,))
worker.start()
print(job.id, worker.pid, flush=True)
time.sleep(300)
"""
    with program(database, source, fresh=True) as (process, (job_id, worker)):
        try:
            with JobManager(database, slots=0) as jobs:
                assert jobs.get_job(job_id).status is Status.RUNNING
                process.kill()
                process.wait()
                assert jobs.get_job(job_id).reason is Reason.LOST
        finally:
            os.kill(int(worker), 9)


def test_stopped_program_still_owns_its_task(database):
    """A SIGSTOP is no death."""
    with program(database, "print(job.id, flush=True); time.sleep(300)") as (process, (job_id,)):
        stop_host(process.pid, database)
        with JobManager(database, slots=0) as jobs:
            assert jobs.recover() == []
            assert jobs.get_job(job_id).status is Status.RUNNING


def test_owner_in_another_pid_namespace_is_judged_by_its_lock(database):
    """Its pid means nothing here: it is alive while its lock is held."""
    enter = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make pid namespaces")
    source = "print(job.id, flush=True); time.sleep(300)"
    with (
        program(database, source, *enter) as (process, (job_id,)),
        JobManager(database, slots=0) as jobs,
    ):
        assert jobs.recover() == []
        process.kill()
        process.wait()
        assert jobs.wait(job_id, 30).reason is Reason.LOST


def test_owner_in_another_pid_namespace_is_unknown_without_its_file(database, caplog):
    """A cleaner has removed the lock file, so the owner may be alive: the task stays."""
    enter = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make pid namespaces")
    source = "print(job.id, flush=True); time.sleep(300)"
    with program(database, source, *enter) as (_, (job_id,)):
        for file in Path(f"{database}.jobs").glob(".owner-*"):
            file.unlink()
        caplog.set_level("WARNING")
        with JobManager(database, slots=1) as jobs:
            assert jobs.recover() == []
            jobs.submit(["true"])
            jobs.drain()
            assert jobs.get_job(job_id).status is Status.RUNNING
            assert any("job postponed" in said and job_id in said for said in caplog.messages)
            assert [one.detail for one in jobs.check() if job_id in one.detail]
            assert jobs.stop_job(job_id).status is Status.STOPPED
