"""Several managers on one file: each job is started once, one pipeline runs once."""

from __future__ import annotations

import threading
from pathlib import Path

from jobcore import JobManager, PipelineAlreadyRunning, Status
from tests.faults.hosts import host, serve
from tests.processes import at_once, in_child


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
        for thread in threads:
            thread.join()
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
