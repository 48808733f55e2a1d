"""Environments: whose a queued job gets, what is stored of it, and for how long."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest

from jobcore import Command, CommandError, JobManager, Reason, Status
from tests.processes import PATIENCE, in_child, read_elsewhere, until

SHOWS = ["sh", "-c", 'echo "$STAGE"']
SECRET = "a-secret-of-the-submitter"


@pytest.fixture
def stage(monkeypatch):
    """Return what sets the variable STAGE of this process."""
    return lambda value: monkeypatch.setenv("STAGE", value)


def run_all(database, stage):
    """Run the queue as a worker whose environment has this STAGE."""
    os.environ["STAGE"] = stage
    with JobManager(database, slots=2) as worker:
        worker.drain(30)


def said(jobs, job):
    return [line.text for line in jobs.logs(jobs.get_job(job.id).id)]


def stored(database):
    """Return how many environments the file has."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT count(*) FROM environment").fetchone()[0]


def bytes_of(database):
    """Return what the database's file holds once its log is emptied."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return read_elsewhere(database)


def test_env_from_selects_the_environment(jobs, database, stage):
    """It is the worker's, or the submitter's at the time of the submission."""
    stage("submitter")
    made = {
        "submit worker": jobs.submit(SHOWS),
        "submit submitter": jobs.submit(SHOWS, env_from="submitter"),
        "many submitter": jobs.submit_many([SHOWS], env_from="submitter")[0],
        "create submitter": jobs.create_job("COMMAND", command=SHOWS, env_from="submitter"),
    }
    stage("later")
    in_child(run_all, database, "worker")

    for how, job in made.items():
        wanted = how.split()[1]
        assert (job.env_from, said(jobs, job)) == (wanted, [wanted]), how
        assert jobs.get_job(job.id).env_from == wanted


def test_own_env_of_a_command_comes_first(jobs, database, stage):
    """`env` is over either environment, and without `inherit_env` there is no other."""
    stage("submitter")
    over = jobs.submit(SHOWS, env={"STAGE": "own"}, env_from="submitter")
    alone = jobs.submit(SHOWS, inherit_env=False, env_from="submitter")
    in_child(run_all, database, "worker")

    assert (said(jobs, over), said(jobs, alone)) == (["own"], [""])


def test_without_a_base_environment_jobcore_adds_its_own_variables(running_jobs, database):
    """With `inherit_env=False` a command has them and `env`, and nothing else."""
    pipeline = running_jobs.create_pipeline(
        "p", Command(["/usr/bin/env", "-0"], inherit_env=False, env={"A": "b"})
    )
    inside = running_jobs.create_job(pipeline_id=pipeline.id)
    alone = running_jobs.submit(["/usr/bin/env", "-0"], inherit_env=False, unbuffered=False)
    for job in (inside, alone):
        assert running_jobs.wait(job.id, 30).status is Status.COMPLETE
    its, others = (
        dict(pair.split("=", 1) for pair in "".join(said(running_jobs, job)).split("\0") if pair)
        for job in (inside, alone)
    )

    assert its.pop("JOBCORE_RUN") != others.pop("JOBCORE_RUN")
    assert its == {
        "A": "b",
        "JOBCORE_ATTEMPT": "1",
        "JOBCORE_DB": database,
        "JOBCORE_JOB_ID": str(inside.id),
        "JOBCORE_PIPELINE_ID": str(pipeline.id),
        "JOBCORE_PROGRESS_FD": "8",
        "JOBCORE_RESULT_FD": "7",
        "JOBCORE_STATE": f"{database}.jobs/{inside.id.hex}/state.json",
        "JOBCORE_STATE_FD": "6",
        "JOBCORE_WORKSPACE_ID": str(inside.workspace_id),
        "PYTHONUNBUFFERED": "1",
    }
    assert others == {
        "JOBCORE_ATTEMPT": "1",
        "JOBCORE_DB": database,
        "JOBCORE_JOB_ID": str(alone.id),
        "JOBCORE_PROGRESS_FD": "8",
        "JOBCORE_RESULT_FD": "7",
        "JOBCORE_WORKSPACE_ID": str(alone.workspace_id),
    }


def test_a_retry_knows_its_attempt_and_a_command_may_name_another_database(running_jobs):
    """`JOBCORE_ATTEMPT` counts as `Job.attempt` does; `env` comes before `JOBCORE_DB` alone."""
    shows = ["sh", "-c", 'echo "$JOBCORE_ATTEMPT $JOBCORE_DB"; exit 1']
    env = {"JOBCORE_DB": "/elsewhere", "JOBCORE_ATTEMPT": "x"}
    first = running_jobs.wait(running_jobs.submit(shows, env=env).id, 30)
    second = running_jobs.wait(running_jobs.retry_job(first.id).id, 30)

    assert said(running_jobs, first) == ["1 /elsewhere"]
    assert (second.attempt, said(running_jobs, second)) == (2, ["2 /elsewhere"])


def test_variables_of_one_process_are_left_out(jobs, database, monkeypatch):
    """Variables of a session, a terminal or a service of the submitter do not reach the job."""
    left = [
        "JOBCORE_X", "NOTIFY_SOCKET", "LISTEN_FDS", "INVOCATION_ID", "SSH_AUTH_SOCK", "DISPLAY",
        "SHLVL", "_",
    ]  # fmt: skip
    for name in left:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("PWD", f"/{SECRET}")
    monkeypatch.setenv("KEPT", "line\nand = more")
    job = jobs.submit(["env", "-0"], env_from="submitter")
    in_child(run_all, database, "worker")
    shown = "\n".join(said(jobs, job))

    assert "KEPT=line\nand = more\0" in shown
    assert SECRET not in shown


def test_one_environment_is_stored_once_and_as_long_as_it_is_needed(jobs, database, stage):
    """Equal environments are stored once, until their last job starts or is cancelled."""
    stage("one")
    first, second = jobs.submit_many([SHOWS] * 2, env_from="submitter")
    third = jobs.submit(SHOWS, env_from="submitter")
    stage("two")
    fourth = jobs.submit(SHOWS, env_from="submitter")
    assert stored(database) == 2

    jobs.cancel_job(fourth.id)
    assert stored(database) == 1
    jobs.delete_job(first.id)
    jobs.cancel_job(second.id)
    assert stored(database) == 1
    in_child(run_all, database, "worker")
    assert (stored(database), said(jobs, third)) == (0, ["one"])


@pytest.mark.parametrize("ending", ["started", "cancelled", "deleted", "expired"])
def test_no_byte_of_a_stored_environment_stays_in_the_file(jobs, database, stage, ending):
    """The bytes of an environment that no job needs any more are overwritten."""
    stage(SECRET * 1000)  # of several pages
    job = jobs.submit(["true"], env_from="submitter")
    stage("")
    assert SECRET.encode() in bytes_of(database)

    if ending == "started":
        in_child(run_all, database, "worker")
    elif ending == "cancelled":
        jobs.cancel_job(job.id)
    elif ending == "deleted":
        jobs.delete_job(job.id)
    else:
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE job SET environment = NULL")
        jobs.recover()
    assert SECRET.encode() not in bytes_of(database)


def test_a_stored_environment_is_shown_by_nothing(jobs, stage):
    """Neither the job nor its JSON contains the stored environment."""
    stage(SECRET)
    job = jobs.submit(["true"], env_from="submitter")

    assert SECRET not in repr(job) + job.model_dump_json() + repr(jobs.list_jobs())


def test_retry_gets_the_environment_of_the_retrier(jobs, database, stage):
    """A retry by hand is submitted again, and says whose environment it gets."""
    stage("first")
    job = jobs.submit(["sh", "-c", 'echo "$STAGE"; exit 1'], env_from="submitter")
    plain = jobs.submit(["false"])
    in_child(run_all, database, "worker")
    stage("retrier")
    again = jobs.retry_job(job.id)
    again_plain = jobs.retry_job(plain.id)
    in_child(run_all, database, "worker")

    assert (again.env_from, said(jobs, again)) == ("submitter", ["retrier"])
    assert again_plain.env_from == "worker"


def test_retry_by_a_pipeline_gets_the_environment_of_its_first_attempt(jobs, database, stage):
    """The environment is kept until the last attempt has ended."""
    pipeline = jobs.create_pipeline("p", ["sh", "-c", 'echo "$STAGE"; exit 1'], max_retries=1)
    stage("first")
    jobs.create_job(pipeline_id=pipeline.id, env_from="submitter")
    stage("later")
    in_child(run_all, database, "worker")
    assert stored(database) == 1
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE job SET not_before = NULL WHERE status = 'QUEUED'")
    in_child(run_all, database, "worker")
    second, first = jobs.list_jobs()

    assert [second.attempt, first.attempt] == [2, 1]
    assert said(jobs, first) == said(jobs, second) == ["first"]
    assert stored(database) == 0


def _cancel(jobs, submit, *_):
    jobs.cancel_job(submit().id)


def _cancel_all(jobs, submit, *_):
    submit()
    jobs.cancel_jobs()


def _cancel_upstream(jobs, submit, *_):
    first = jobs.create_job("TASK")
    submit(after=[first.id])
    jobs.finish_job(jobs.start_job(first.id).id, 1)


def _cancel_the_cascade(jobs, submit, *_):
    first = jobs.create_job("TASK")
    middle = jobs.submit(["true"], after=[first.id])
    submit(after=[middle.id])
    jobs.cancel_job(first.id)


def _delete_upstream(jobs, submit, *_):
    first = jobs.create_job("TASK")
    submit(after=[first.id])
    jobs.delete_job(first.id)


def _name_what_has_failed(jobs, submit, *_):
    first = jobs.start_job(jobs.create_job("TASK").id)
    jobs.finish_job(first.id, 1)
    submit(after=[first.id])


def _expire(_jobs, submit, clock):
    submit(expires=5)
    clock.advance(6)


def _stop_the_run(jobs, submit, *_):
    jobs.stop_job(jobs.start_job(submit().id).id)


@pytest.mark.parametrize(
    "ending",
    [
        _cancel, _cancel_all, _cancel_upstream, _cancel_the_cascade, _delete_upstream,
        _name_what_has_failed, _expire, _stop_the_run,
    ],
)  # fmt: skip
def test_hook_of_a_job_that_never_ran_has_its_environment(database, clock, stage, ending):
    """However the job was taken out of the queue; the hook's end removes the environment."""

    def submit(**options):
        return jobs.submit(["true"], env_from="submitter", on_stopped=SHOWS, **options)

    with JobManager(database, slots=0, clock=clock) as jobs:
        stage("submitter")
        ending(jobs, submit, clock)
        stage("later")
    with JobManager(database, slots=1, clock=clock) as worker:
        worker.drain(PATIENCE)
        (hook,) = worker.list_jobs(name="on_stopped")
        assert (hook.status, hook.env_from) == (Status.COMPLETE, "submitter")
        assert said(worker, hook) == ["submitter"]

    assert stored(database) == 0


@pytest.mark.parametrize("ending", [_cancel, _cancel_all, _cancel_upstream, _delete_upstream])
def test_ended_job_needs_no_environment_though_its_hooks_did_not_run(
    database, clock, stage, ending
):
    """Hooks of another ending keep nothing."""
    with JobManager(database, slots=0, clock=clock) as jobs:
        stage(SECRET)
        given = {"env_from": "submitter", "on_complete": SHOWS, "retries": 2}
        ending(jobs, lambda **options: jobs.submit(["true"], **given, **options))
    assert stored(database) == 0
    assert SECRET.encode() not in bytes_of(database)


def test_deleted_job_keeps_no_environment_for_its_hooks(jobs, database, stage):
    """Its hooks do not run."""
    stage(SECRET)
    job = jobs.submit(["true"], env_from="submitter", on_stopped=SHOWS)
    jobs.delete_job(job.id)

    assert (jobs.list_jobs(), stored(database)) == ([], 0)
    assert SECRET.encode() not in bytes_of(database)


def test_job_whose_environment_is_missing_does_not_start_in_another(jobs, database, stage):
    """If the stored environment is damaged, the job ends with that as its reason."""
    stage("submitter")
    job = jobs.submit(SHOWS, env_from="submitter")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM environment")
    in_child(run_all, database, "worker")
    ended = jobs.get_job(job.id)

    assert (ended.status, ended.reason) == (Status.ERROR, Reason.SPAWN_FAILED)
    assert said(jobs, job) == ["cannot start: the environment of its submitter is not stored"]


@pytest.mark.parametrize("source", ["", "host", None, 3])
def test_unknown_source_of_an_environment_is_refused(jobs, source):
    """It is the submitter or the worker."""
    with pytest.raises(CommandError, match="submitter"):
        jobs.submit(SHOWS, env_from=source)
    assert jobs.list_jobs() == []


def test_reserved_job_stores_no_environment(jobs, database, stage):
    """Its own process starts it, so nothing is written, and it gets that environment."""
    stage("own")
    job = jobs.submit(SHOWS, reserved=True)
    assert (job.env_from, stored(database)) == ("submitter", 0)
    with JobManager(database, slots=1) as here:
        here.wait(job.id, 30)
    until(lambda: said(jobs, job) == ["own"])
