"""Several managers on one file: each job is started once, one pipeline runs once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from jobcore import InvalidTransition, JobManager, PipelineAlreadyRunning, Status
from jobcore.engine.scheduler import Scheduler
from jobcore.testing.parts import parts
from tests.faults.hosts import host, serve
from tests.processes import at_once, in_child, join

pytestmark = pytest.mark.usefixtures("warm_supervisors")


def test_four_processes_start_each_job_once(database):
    """A queue served by four processes starts every job exactly once."""
    side = database + ".side"
    command = ["sh", "-c", f'echo "$JOBCORE_JOB_ID" >> {side}']
    with JobManager(database, slots=0) as jobs:
        submitted = jobs.submit_many([command] * 120)
        with (
            host(serve, database) as one,
            host(serve, database) as two,
            host(serve, database) as three,
            host(serve, database) as four,
        ):
            for server in (one, two, three, four):
                assert server.hear() == "serving"
            for job in submitted:
                assert jobs.wait(job.id, timeout=60).status is Status.COMPLETE
    started = Path(side).read_text(encoding="utf-8").split()

    assert sorted(started) == sorted(str(job.id) for job in submitted)


def contend(database, pipeline_id):
    """Create a job of the pipeline from four threads; return what came of it."""
    came = []
    with JobManager(database, slots=0) as jobs:

        def create():
            try:
                came.append(("created", str(jobs.create_job(pipeline_id=pipeline_id).id)))
            except PipelineAlreadyRunning as conflict:
                came.append(("refused", str(conflict.job_id)))

        threads = [threading.Thread(target=create) for _ in range(4)]
        for thread in threads:
            thread.start()
        join(*threads)
    return came


def test_of_sixteen_contenders_for_a_pipeline_one_wins(database):
    """16 threads in 4 processes create a pipeline's job: one does, the others get its id."""
    with JobManager(database, slots=0) as jobs:
        pipeline = jobs.create_pipeline("nightly", ["true"])

    came = [one for each in at_once(contend, [(database, pipeline.id)] * 4) for one in each]

    created = [job_id for outcome, job_id in came if outcome == "created"]
    assert len(came) == 16
    assert len(created) == 1
    assert {job_id for _, job_id in came} == set(created)


def use_in_child(jobs):
    """Use the parent's manager in a forked child: create a job and wait for its end there."""
    job = jobs.submit(["sh", "-c", "exit 4"])
    ended = jobs.wait(job.id, timeout=60)
    jobs.close()
    return str(ended.id), ended.exit_code


def test_a_manager_opened_before_a_fork_works_on_both_sides(database):
    """A manager that was opened before `fork()` runs jobs in parent and children alike."""
    with JobManager(database, slots=1) as jobs:
        assert jobs.wait(jobs.submit(["true"]).id, timeout=60).status is Status.COMPLETE
        answers = [in_child(use_in_child, jobs) for _ in range(3)]
        assert jobs.wait(jobs.submit(["true"]).id, timeout=60).status is Status.COMPLETE
        listed = {str(job.id): job.exit_code for job in jobs.list_jobs()}

    assert [code for _, code in answers] == [4, 4, 4]
    assert all(listed[job_id] == 4 for job_id, _ in answers)
    assert len(listed) == 5


DUE = 1_700_000_100_000_000  # microseconds; the quarter of an hour behind the test's clock


class At:
    """A clock that stands still."""

    def now(self):
        return DUE

    def monotonic(self):
        return 0.0


def create_once(jobs, pipeline_id):
    """Create a job of the pipeline; return what came of it."""
    try:
        return "created", str(jobs.create_job(pipeline_id=pipeline_id).id)
    except PipelineAlreadyRunning as conflict:
        return "refused", str(conflict.job_id)


def fail_once(jobs, job_id):
    """Let a job fail that others let fail too; return what came of it."""
    try:
        return "failed", str(jobs.finish_job(job_id, 1).id)
    except InvalidTransition:
        return "late", str(job_id)


def collide(database, pipeline_id, job_id):
    """Let schedule, two users and the end of a running job meet; return what came of it."""
    came, seen = [], set()
    over = threading.Event()
    with JobManager(database, slots=0, clock=At()) as jobs:

        def watch():
            while not over.is_set():
                counted = jobs.count_jobs(pipeline_id=pipeline_id)
                seen.add(counted[Status.QUEUED] + counted[Status.RUNNING])

        work = [
            lambda: came.append(create_once(jobs, pipeline_id)),
            Scheduler(parts(jobs).database, parts(jobs).clock).tick,
            lambda: came.append(create_once(jobs, pipeline_id)),
        ]
        if job_id is not None:
            work.insert(1, lambda: came.append(fail_once(jobs, job_id)))
        watcher = threading.Thread(target=watch)
        threads = [threading.Thread(target=one) for one in work]
        watcher.start()
        for thread in threads:
            thread.start()
        join(*threads)
        over.set()
        join(watcher)
    return came, seen


def test_a_retry_is_never_overtaken(database, clock):
    """16 threads in 4 processes: a failing job's retry comes before any user and any tick."""
    with JobManager(database, slots=0, clock=clock) as jobs:
        pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *", max_retries=1)
        job = jobs.create_job(pipeline_id=pipeline.id)
        jobs.start_job(job.id)

        answers = at_once(collide, [(database, pipeline.id, job.id)] * 4)

        (retry, first) = jobs.list_jobs()
        (skip,) = jobs.skips(pipeline.id)
    came = [one for each, _ in answers for one in each]

    assert {count for _, seen in answers for count in seen} == {1}
    assert sorted(word for word, _ in came) == ["failed"] + 3 * ["late"] + 8 * ["refused"]
    assert {job_id for word, job_id in came if word == "refused"} <= {str(job.id), str(retry.id)}
    assert (first.id, first.status) == (job.id, Status.ERROR)
    assert (retry.retry_of, retry.attempt, retry.status) == (job.id, 2, Status.QUEUED)
    assert (skip.why, skip.count) == ("schedule", 1)
    assert skip.job_id in (job.id, retry.id)


def test_of_schedule_and_users_one_wins(database, clock):
    """4 processes with a tick and users at once: one job, and whoever came later knows of it."""
    with JobManager(database, slots=0, clock=clock) as jobs:
        pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")

        answers = at_once(collide, [(database, pipeline.id, None)] * 4)

        (job,) = jobs.list_jobs()
        skips = [(skip.why, skip.count, skip.job_id) for skip in jobs.skips(pipeline.id)]
    came = [one for each, _ in answers for one in each]
    created = [one for one in came if one[0] == "created"]

    assert {count for _, seen in answers for count in seen} <= {0, 1}
    assert len(came) == 8
    assert {job_id for _, job_id in came} == {str(job.id)}
    assert (len(created), skips) in [(0, []), (1, [("schedule", 1, job.id)])]
