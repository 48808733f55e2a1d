"""Races: many processes on one file start each job once, run a pipeline once, migrate once."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack

import pytest

from jobcore import JobManager, PipelineAlreadyRunning, Status
from jobcore.storage import schema
from tests.faults import invariants
from tests.faults.hosts import host
from tests.faults.rounds import in_rounds
from tests.jobfiles import sql
from tests.processes import PATIENCE, Child, at_once, hear, join, until
from tests.unit.test_schema_migration import make_old, shape, version_of

pytestmark = pytest.mark.usefixtures("warm_supervisors")

#: Appends its job's id to one file, and its run to a file of the job's own.
TELLS = 'echo "$JOBCORE_JOB_ID" >>"$1/all"; echo "$JOBCORE_RUN" >>"$1/$JOBCORE_JOB_ID"'


def serve_twice(say, database, seed):
    """Run the queue by two managers of one process until killed."""
    with ExitStack() as stack:
        for number in range(2):
            # Types let them begin at different jobs; all of them are everybody's.
            stack.enter_context(JobManager(database, slots=1 + (seed + number) % 2))
        say("serving")
        threading.Event().wait()


@in_rounds(smoke=40, full=2000)
def test_each_job_is_started_exactly_once(tmp_path, rounds):
    """Two managers in each of several processes take a queue; no job runs twice, none is left."""
    processes = 8 if rounds.facts["full"] else 3
    database, sides = str(tmp_path / "jobs.db"), tmp_path / "sides"
    sides.mkdir()
    command = ["sh", "-c", TELLS, "tells", str(sides)]
    with JobManager(database, slots=0) as jobs, ExitStack() as stack:
        first = jobs.submit_many([command] * (rounds.total // 2))
        servers = [
            stack.enter_context(host(serve_twice, database, number)) for number in range(processes)
        ]
        for server in servers:
            assert server.hear() == "serving"
        # The other half comes while they are at it.
        submitted = [*first, *(jobs.submit(command) for _ in range(rounds.total - len(first)))]
        until(
            lambda: sum(jobs.count_jobs(status=["QUEUED", "RUNNING"]).values()) == 0,
            "the end of all jobs",
            10 * PATIENCE,
        )
        rounds.did(rounds.total)
        starts = sql(
            database, "SELECT job, count(*) n FROM transition WHERE trigger = 'start' GROUP BY job"
        )
        said = (sides / "all").read_text().split()
        runs = {row["id"]: row["cookie"] for row in sql(database, "SELECT id, cookie FROM job")}
        by_job = {job.id: (sides / str(job.id)).read_text().split() for job in submitted}
        counted = jobs.count_jobs()
        # Who loses a claim leaves what it has prepared to the next sweep: nobody prepares now.
        stack.close()

        invariants.check(jobs)
    assert counted == {**dict.fromkeys(Status, 0), Status.COMPLETE: rounds.total}
    assert sorted(said) == sorted(str(job.id) for job in submitted)
    assert [row["n"] for row in starts] == [1] * rounds.total
    assert by_job == {job.id: [runs[job.id.hex]] for job in submitted}


def contend(database, pipeline_id, rounds, barrier):
    """Create a job of the pipeline from four threads in each round; return what came of it."""
    came = [[] for _ in range(rounds)]
    reader, writer = barrier
    with JobManager(database, slots=0) as jobs:

        def create(number):
            try:
                came[number].append(("created", jobs.create_job(pipeline_id=pipeline_id).id))
            except PipelineAlreadyRunning as conflict:
                came[number].append(("refused", conflict.job_id))

        for number in range(rounds):
            os.write(writer, b"!")
            os.read(reader, 1)  # the round begins
            threads = [threading.Thread(target=create, args=(number,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            join(*threads)
        os.write(writer, b"!")
    return came


@in_rounds(smoke=8, full=500)
def test_of_sixteen_contenders_exactly_one_wins_each_time(database, rounds):
    """16 threads in 4 processes create a pipeline's job: one does, the others get its id."""
    with JobManager(database, slots=0) as jobs:
        pipeline = jobs.create_pipeline("nightly", ["true"])
    pipes = [(os.pipe(), os.pipe()) for _ in range(4)]  # begin, and done
    children = [
        Child(contend, database, pipeline.id, rounds.total, (begin[0], done[1]))
        for begin, done in pipes
    ]
    winners = []
    try:
        with JobManager(database, slots=0) as jobs:
            for number in range(rounds.total + 1):
                for _, done in pipes:
                    assert hear(done[0]) == b"!"
                if number:  # all are done with the round before: its job makes way
                    (active,) = jobs.list_jobs(status=["QUEUED", "RUNNING"])
                    winners.append(active.id)
                    jobs.cancel_job(active.id)
                if number < rounds.total:
                    for begin, _ in pipes:
                        os.write(begin[1], b"!")
    except BaseException:
        for child in children:
            child.kill()  # they wait for rounds that do not come
        raise
    answers = [child.result() for child in children]
    with JobManager(database, slots=0) as jobs:
        invariants.check(jobs)
    for descriptor in (one for pair in pipes for pipe in pair for one in pipe):
        os.close(descriptor)
    rounds.did(rounds.total)

    for number, winner in enumerate(winners):
        came = sorted(one for answer in answers for one in answer[number])
        assert came == [("created", winner)] + [("refused", winner)] * 15
    assert len(winners) == len(set(winners)) == rounds.total


def open_and_use(database, name):
    """Open what may be old, missing or half made by another; return the job and the store."""
    with JobManager(database, slots=0, busy_timeout=PATIENCE) as jobs:
        job = jobs.start_job(jobs.create_job("TASK", name=name).id)
        jobs.append_log(job.id, name)
        jobs.finish_job(job.id)
        return str(job.id), sql(database, "SELECT id FROM store")[0]["id"]


@in_rounds(smoke=2, full=50)
def test_many_open_an_old_file_and_a_missing_one_at_once(tmp_path, rounds):
    """However their steps meet: one store, one schema, and everybody's job is there, whole."""
    for _ in rounds:
        new = str(tmp_path / f"{rounds.number}.new.db")
        old = str(tmp_path / f"{rounds.number}.old.db")
        make_old(old, 1)
        before = len(sql(old, "SELECT 1 FROM job"))
        names = [(database, f"{n}") for database in (new, old) for n in range(4)]
        answers = at_once(open_and_use, names)
        for database in (new, old):
            of_it = [answers[n] for n, (one, _) in enumerate(names) if one == database]
            with open(f"{database}.jobs/store") as file:
                store = file.read().strip()
            with JobManager(database, slots=0) as jobs:
                found = [job for job in jobs.list_jobs() if job.name in {"0", "1", "2", "3"}]
                logs = {job.name: [line.text for line in jobs.logs(job.id)] for job in found}
                total = sum(jobs.count_jobs().values())
                invariants.check(jobs)

            assert {stored for _, stored in of_it} == {store}
            assert sorted(str(job.id) for job in found) == sorted(job_id for job_id, _ in of_it)
            assert logs == {name: [name] for name in "0123"}
            assert total == 4 + (before if database == old else 0)
            assert version_of(database) == schema.VERSION
            assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"
        assert shape(new) == shape(old)
