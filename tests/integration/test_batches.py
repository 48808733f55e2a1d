"""Batches: very many jobs are made in short steps, and appear all together or not at all."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest

from jobcore import CommandError, JobManager, Status, StoreError, WorkspaceNotFound
from jobcore.engine import ownership
from jobcore.engine.ownership import Ownership
from jobcore.operations import staging, submission
from jobcore.storage import batches
from jobcore.testing.parts import parts
from tests.jobfiles import sql
from tests.processes import Child


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Have ten jobs be many, in steps of three."""
    monkeypatch.setattr(submission, "STAGED_FROM", 9)
    monkeypatch.setattr(staging, "STAGED_AT_ONCE", 3)


def many(jobs, count=10, **options):
    return jobs.submit_many([["echo", str(n)] for n in range(count)], **options)


def rows(database):
    """Return how many rows there are of a batch and its jobs."""
    tables = ("job", "transition", "batch", "environment")
    return {table: sql(database, f"SELECT count(*) FROM {table}")[0][0] for table in tables}


def test_batch_is_like_any_other_jobs(jobs, database):
    """Its jobs have ordered numbers, their history and all their arguments."""
    before = jobs.submit(["before"])
    made = many(jobs, name="n", data={"a": [1]}, timeout=5, env_from="submitter")
    behind = jobs.submit(["behind"])

    assert [job.number for job in (before, *made, behind)] == list(range(1, 13))
    assert jobs.list_jobs()[1:11] == made[::-1] == [jobs.get_job(job.id) for job in made[::-1]]
    assert {(job.status, job.name, job.env_from) for job in made} == {
        (Status.QUEUED, "n", "submitter")
    }
    assert all(job.data == {"a": [1]} for job in made)
    assert [str(one.trigger) for one in jobs.history(made[4].id)] == ["create"]
    assert [event.job_id for event in jobs.events()] == [
        job.id for job in (before, *made, behind)
    ]  # fmt: skip
    assert rows(database) == {"job": 12, "transition": 12, "batch": 0, "environment": 1}


def test_batch_in_an_empty_file(jobs):
    """The first jobs of a file may be a batch."""
    assert [job.number for job in many(jobs)] == list(range(1, 11))


def test_batch_runs(running_jobs):
    """Managers start its jobs like others, in their order."""
    made = many(running_jobs)
    running_jobs.drain(60)

    assert running_jobs.count_jobs()[Status.COMPLETE] == 10
    assert b"".join(running_jobs.log_text(made[7].id)) == b"7\n"


def at_steps(monkeypatch, look):
    """Have `look` called in the middle of each step of a batch, by another manager's eyes."""
    for name in ("stage", "publish"):
        real = getattr(batches, name)

        def looked(connection, *args, real=real, **named):
            look()
            return real(connection, *args, **named)

        monkeypatch.setattr(batches, name, looked)


def test_no_job_of_a_batch_is_seen_before_all_are(jobs, database, monkeypatch):
    """No listing, count, look at the queue, event or claim knows of an open batch."""
    seen = []
    with JobManager(database, slots=0) as other:
        other.submit(["first"])

        def look():
            ids = [row["id"] for row in sql(database, "SELECT id FROM job WHERE number > 1")]
            seen.append(
                [
                    len(other.list_jobs()),
                    len(other.list_jobs(type="COMMAND", status="QUEUED")),
                    other.count_jobs()[Status.QUEUED],
                    len(list(other.events())),
                    sum(is_there(other, one) for one in ids),
                ]
            )

        at_steps(monkeypatch, look)
        many(jobs)

        assert len(other.list_jobs()) == 11
    assert len(seen) >= 4
    assert [one for one in seen if one != [1, 1, 1, 1, 0]] == []


def is_there(jobs, job_id):
    return any(job.id.hex == job_id for job in jobs.list_jobs()) or _found(jobs, job_id)


def _found(jobs, job_id):
    try:
        jobs.get_job(job_id)
    except LookupError:
        return False
    return True


def test_others_write_between_the_steps(jobs, database, monkeypatch):
    """A job that is submitted meanwhile has a higher number than the batch, and stays."""
    real, made = staging.Throttle.step, []

    def take(self):
        if len(made) < 3:
            with JobManager(database, slots=0) as other:
                made.append(other.submit(["between"]))
        return real(self)

    monkeypatch.setattr(staging.Throttle, "step", take)
    batch = many(jobs)

    assert [job.number for job in batch] == list(range(1, 11))
    assert [job.number for job in made] == [11, 12, 13]
    assert len(jobs.list_jobs()) == 13


@pytest.mark.parametrize("at", [1, 3, 5])
def test_batch_of_a_dead_process_is_swept(jobs, database, at):
    """Rows of a process that died at any step are hidden, and the next sweep removes them."""
    kept = jobs.submit(["kept"])

    def die_at(count):
        steps = []

        def look():
            steps.append(1)
            if len(steps) == count:
                os._exit(9)

        at_steps(pytest.MonkeyPatch(), look)
        with JobManager(database, slots=0) as doomed:
            many(doomed, env_from="submitter")

    with pytest.raises(AssertionError, match="died without an answer"):
        Child(die_at, at).result()
    left = rows(database)
    seen = jobs.list_jobs()
    jobs.recover()

    assert left["batch"] == (0 if at == 1 else 1)
    assert seen == jobs.list_jobs() == [kept]
    assert rows(database) == {"job": 1, "transition": 1, "batch": 0, "environment": 0}
    assert many(jobs)[0].number > kept.number


def test_batch_of_a_living_process_is_not_swept(jobs, database, monkeypatch):
    """A manager that looks meanwhile leaves it alone."""
    with JobManager(database, slots=0) as other:
        swept = []

        def look():
            Child(partial(sweep, database)).result()
            swept.append(1)

        real = staging.Throttle.step

        def take(self):
            look()
            return real(self)

        monkeypatch.setattr(staging.Throttle, "step", take)
        made = many(other)

    assert swept != []
    assert len(jobs.list_jobs()) == len(made) == 10


def test_batch_of_a_process_that_cannot_be_examined_is_not_swept(
    jobs, database, monkeypatch, caplog
):
    """A hidden owner without a lock file may still publish its batch, so the batch is kept."""
    with JobManager(database, slots=0) as other:
        real = staging.Throttle.step

        def take(self):
            sweep(database)
            return real(self)

        monkeypatch.setattr(staging.Throttle, "step", take)
        monkeypatch.setattr(Ownership, "lives", lambda *_: None)
        made = many(other)

    assert len(jobs.list_jobs()) == len(made) == 10
    assert any("batch left" in said for said in caplog.messages)


def test_batch_of_a_dead_process_of_another_namespace_is_removed(database):
    """Its lock file shows that it is dead, so the file is kept until the batch is removed."""
    jobs_root = f"{database}.jobs"
    with JobManager(database, slots=0) as jobs:
        many(jobs)
        root = os.open(jobs_root, os.O_RDONLY)
        dead = ownership._Process.this(root)._replace(namespace=1)
        os.close(root)
        owner = ".".join([*map(str, dead), "0" * 8])
        with open(f"{jobs_root}/{ownership.PREFIX}{owner}", "wb") as lock:
            lock.write(b"%d\n" % os.fstat(lock.fileno()).st_ino)
        sql(database, "INSERT INTO batch (first, last, owner) VALUES (100, 110, ?)", owner)
        jobs.recover()

        assert rows(database)["batch"] == 0
        jobs.recover()
        assert not [name for name in os.listdir(jobs_root) if name.endswith(owner)]


def sweep(database):
    """Sweep in another process."""
    with JobManager(database, slots=0) as jobs:
        jobs.recover()


def test_batch_of_another_thread_is_not_taken_for_left(jobs, database, monkeypatch):
    """One that has just begun, of which its own thread has not heard yet, is left alone."""
    begin, others = batches.begin, []

    def begin_and_look(connection, count, owner):
        batch = begin(connection, count, owner)
        if not others:
            others.append(threading.Thread(target=many, args=(jobs,)))
        return batch

    write = parts(jobs).database.write

    def hear_late(change, **options):
        outcome = write(change, **options)
        if others and others[0].ident is None:
            others[0].start()
            others[0].join()
        return outcome

    monkeypatch.setattr(batches, "begin", begin_and_look)
    monkeypatch.setattr(parts(jobs).database, "write", hear_late)
    many(jobs)

    assert rows(database)["batch"] == 0
    assert len(jobs.list_jobs()) == 20


def test_batch_that_could_not_be_removed_is_removed_by_the_next_call(jobs, database, monkeypatch):
    """A call that is interrupted while it begins, or cleans up, leaves nothing for long."""
    monkeypatch.setattr(batches, "stage", fail_at(2, KeyboardInterrupt, batches.stage))
    monkeypatch.setattr(batches, "remove_some", fail_at(1, StoreError("busy"), None))
    with pytest.raises(KeyboardInterrupt):
        many(jobs)
    left = rows(database)
    monkeypatch.undo()
    monkeypatch.setattr(submission, "STAGED_FROM", 9)
    many(jobs)

    assert left["batch"] == 1
    assert rows(database)["batch"] == 0
    assert rows(database)["job"] == 10


def fail_at(number, error, function):
    """Return the function, but have one of its calls fail."""
    calls = []

    def fail(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            raise error
        return function(*arguments, **options)

    return fail


def test_batch_that_was_swept_is_not_published(jobs, monkeypatch):
    """If its process was taken for dead, no job of it is created, and the call raises."""
    monkeypatch.setattr(batches, "is_open", lambda *_: False)

    with pytest.raises(StoreError, match="no job was created"):
        many(jobs)
    monkeypatch.undo()

    assert jobs.list_jobs() == []


def test_error_in_the_middle_leaves_nothing(jobs, database, monkeypatch):
    """A failure in the middle removes the jobs that were written before."""
    steps = []

    def look():
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    at_steps(monkeypatch, look)
    with pytest.raises(KeyboardInterrupt):
        many(jobs)
    monkeypatch.undo()

    assert jobs.list_jobs() == []
    assert rows(database)["batch"] == 0
    assert rows(database)["job"] == 0


def test_batch_for_a_workspace_that_is_deleted_meanwhile(jobs, database, monkeypatch):
    """The workspace is deleted, and no job of the batch is created."""
    place = jobs.create_workspace("w")
    real = staging.Throttle.step

    def take(self):
        monkeypatch.undo()
        with JobManager(database, slots=0) as other:
            parts(other).pipelines.mark_workspace_deleted(place.id)
        return real(self)

    monkeypatch.setattr(staging.Throttle, "step", take)
    monkeypatch.setattr(submission, "STAGED_FROM", 9)
    with pytest.raises(WorkspaceNotFound):
        many(jobs, workspace_id=place.id)
    jobs.recover()

    assert rows(database)["job"] == 0
    assert sql(database, "SELECT id FROM workspace") == []


def test_many_with_a_mistake_are_refused_before_anything_is_written(jobs, database):
    """One command that can never run keeps all of them from being staged."""
    with pytest.raises(CommandError):
        jobs.submit_many([["true"]] * 10 + [[]])

    assert rows(database) == {"job": 0, "transition": 0, "batch": 0, "environment": 0}
