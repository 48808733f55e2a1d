"""Hooks: commands that run as jobs of their own when a job has ended for good."""

from __future__ import annotations

import json

import pytest

from jobcore import (
    Command,
    CommandError,
    JobManager,
    Reason,
    Retries,
    Status,
    Submission,
    function_command,
)
from jobcore.testing import Script, ScriptedExecutor, drain
from tests.jobfiles import row_of, sql
from tests.processes import PATIENCE
from tests.tasks import end, stop

NAMES = ("JOB_ID", "NAME", "STATUS", "REASON", "EXIT_CODE", "SIGNAL", "PIPELINE")
TELL = "; ".join(f'echo "{name}=$JOBCORE_HOOK_{name}"' for name in NAMES)


def hooks_of(jobs, job):
    """Return name and words of the hooks of a job, oldest first."""
    return [
        (one.name, list(one.command.argv))
        for one in jobs.list_jobs()[::-1]
        if one.hook_of == job.id
    ]


EACH = {name: [name] for name in ("on_complete", "on_error", "on_stopped")}


@pytest.mark.parametrize(
    ("ending", "name"),
    [
        (end, "on_complete"),
        (lambda jobs, job: end(jobs, job, 1), "on_error"),
        (stop, "on_stopped"),
        (lambda jobs, job: jobs.cancel_job(job.id), "on_stopped"),
    ],
)
def test_hook_of_the_ending_is_queued_with_it(jobs, ending, name):
    """One job for the hook that names the ending; it belongs to no pipeline."""
    job = jobs.submit(["true"], **EACH)
    ending(jobs, job)
    (hook,) = [one for one in jobs.list_jobs() if one.hook_of == job.id]

    assert (hook.status, hook.type, hook.name) == (Status.QUEUED, "COMMAND", name)
    assert (hook.workspace_id, hook.pipeline_id) == (job.workspace_id, None)
    assert hooks_of(jobs, job) == [(name, [name])]
    assert jobs.get_job(job.id).hook_of is None


def test_hook_gets_the_facts(running_jobs):
    """They are in its environment, beside its own variables."""
    pipeline = running_jobs.create_pipeline(
        "nightly", ["sh", "-c", "exit 3"],
        on_error=Command(f'{TELL}; echo "$OWN"', shell=True, env={"OWN": "mine"}),
    )  # fmt: skip
    job = running_jobs.create_job(pipeline_id=pipeline.id, name="n")
    running_jobs.drain(30)
    (hook,) = [one for one in running_jobs.list_jobs() if one.hook_of == job.id]

    assert [line.text for line in running_jobs.logs(hook.id)] == [
        f"JOB_ID={job.id}", "NAME=n", "STATUS=ERROR", "REASON=exited", "EXIT_CODE=3", "SIGNAL=",
        "PIPELINE=nightly", "mine",
    ]  # fmt: skip


def test_several_commands_and_both_owners(jobs):
    """The job's own hooks come first, then those of its pipeline, each as one job."""
    pipeline = jobs.create_pipeline("p", ["true"], on_complete=[["mail"], Command(["chat"])])
    job = jobs.submit(["true"], pipeline_id=pipeline.id, on_complete=[["a", "b"], ["c"]])
    end(jobs, job)

    assert [words for _, words in hooks_of(jobs, job)] == [["a", "b"], ["c"], ["mail"], ["chat"]]


def test_hooks_run_after_the_last_attempt(jobs):
    """A failure that is retried has none; the last attempt has its own and its successor's."""
    first = jobs.submit(["true"], retries=Retries(1, delay=0), on_error=["tell"], name="job")
    end(jobs, first, 1)
    assert hooks_of(jobs, first) == []
    (retry,) = jobs.list_jobs(status=Status.QUEUED)
    end(jobs, retry, 1)
    assert hooks_of(jobs, retry) == [("on_error", ["tell"])]
    end(jobs, jobs.retry_job(retry.id), 0)

    assert len([one for one in jobs.list_jobs() if one.hook_of is not None]) == 1


def test_hooks_have_no_hooks(jobs):
    """Whatever the pipeline or the job says."""
    job = jobs.submit(["true"], **EACH)
    end(jobs, job, 1)
    (hook,) = [one for one in jobs.list_jobs() if one.hook_of == job.id]
    end(jobs, hook, 1)

    assert len(jobs.list_jobs()) == 2


def test_cascade_runs_the_hooks_of_each_cancelled_job(jobs):
    """A job that is cancelled because of another has its own `on_stopped`."""
    first = jobs.create_job("TASK")
    waits = jobs.submit(["true"], after=[first.id], on_stopped=["tell"])
    end(jobs, first, 1)

    assert jobs.get_job(waits.id).reason is Reason.UPSTREAM
    assert hooks_of(jobs, waits) == [("on_stopped", ["tell"])]


def test_hooks_of_pipelines_are_changed_as_other_fields(jobs):
    """A hook that is not passed stays; None removes it."""
    pipeline = jobs.create_pipeline("p", ["true"], on_error=["a"], on_complete=["b"])
    jobs.update_pipeline(pipeline.id, on_error=None, max_retries=0)
    failed = end(jobs, jobs.create_job(pipeline_id=pipeline.id), 1)
    complete = end(jobs, jobs.create_job(pipeline_id=pipeline.id))
    config = end(jobs, jobs.create_job("PIPELINE_CONFIG", pipeline_id=pipeline.id))

    assert (hooks_of(jobs, failed), hooks_of(jobs, config)) == ([], [])
    assert hooks_of(jobs, complete) == [("on_complete", ["b"])]


def test_each_way_to_submit_takes_hooks(jobs):
    given = {"on_complete": ["tell"]}
    made = [
        jobs.submit(["true"], **given),
        jobs.submit_function("os:getcwd", **given),
        *jobs.submit_many([["true"], Submission(["true"], on_complete=["other"])], **given),
        jobs.submit(function_command("os:getcwd"), type="FUNCTION", **given),
    ]
    for job in made:
        end(jobs, job)

    assert [hooks_of(jobs, job)[0][1] for job in made] == [
        ["tell"], ["tell"], ["tell"], ["other"], ["tell"],
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", ["text", 3, [3], [["a"], 3], {"a": 1}])
def test_impossible_command_is_refused(jobs, wrong):
    with pytest.raises(CommandError, match="on_error"):
        jobs.submit(["true"], on_error=wrong)
    with pytest.raises(CommandError, match="on_error"):
        jobs.create_pipeline("p", ["true"], on_error=wrong)

    assert (jobs.list_jobs(), jobs.list_pipelines()) == ([], [])


@pytest.mark.parametrize("damage", ["x", "[]", '{"on_error": [1]}', '{"on_error": ["{}"]}'])
def test_job_ends_though_its_hooks_are_damaged(jobs, database, damage):
    """The hooks of its pipeline are queued all the same."""
    pipeline = jobs.create_pipeline("p", ["true"], on_error=["tell"])
    job = jobs.submit(["true"], pipeline_id=pipeline.id, on_error=["own"])
    sql(database, "UPDATE job SET hooks = ? WHERE id = ?", damage, job.id.hex)
    ended = end(jobs, job, 1)

    assert ended.status is Status.ERROR
    assert hooks_of(jobs, job) in ([("on_error", ["tell"])], [])


def test_hook_has_the_environment_of_its_job(running_jobs, monkeypatch):
    """A hook of a job with its submitter's environment has the same environment as the job."""
    monkeypatch.setenv("FROM_SUBMITTER", "here")
    job = running_jobs.submit(
        ["true"], env_from="submitter", on_complete=["sh", "-c", "echo $FROM_SUBMITTER"]
    )
    monkeypatch.delenv("FROM_SUBMITTER")
    running_jobs.wait(job.id, PATIENCE)
    running_jobs.drain(PATIENCE)

    (hook,) = [one for one in running_jobs.list_jobs() if one.hook_of == job.id]
    assert (hook.status, hook.env_from) == (Status.COMPLETE, "submitter")
    assert [line.text for line in running_jobs.logs(hook.id)] == ["here"]


@pytest.mark.parametrize(
    ("script", "endings"),
    [
        (Script(dies=True), [("ERROR", "lost"), ("COMPLETE", "exited")]),
        (Script(exit_code=3), [("ERROR", "exited")]),
    ],
    ids=["lost", "failed"],
)
def test_lost_hook_runs_again(database, clock, script, endings):
    """A lost hook runs again with the same command and facts; a failed one does not."""
    with (
        ScriptedExecutor(Script(), script, Script(), clock=clock) as scripted,
        JobManager(database, slots=1, launcher=scripted, clock=clock) as jobs,
    ):
        job = jobs.submit(["true"], on_complete=["tell"])
        drain(jobs)
        hooks = [one for one in jobs.list_jobs()[::-1] if one.hook_of == job.id]

    assert [(one.status, one.reason) for one in hooks] == endings
    assert [one.attempt for one in hooks] == [*range(1, len(hooks) + 1)]
    (command,) = {row_of(database, one.id)["command"] for one in hooks}
    assert json.loads(command)["env"]["JOBCORE_HOOK_JOB_ID"] == str(job.id)


def test_deleted_job_has_no_hooks(jobs):
    job = jobs.submit(["true"], **EACH)
    jobs.delete_job(job.id)

    assert jobs.list_jobs() == []


def test_commands_of_hooks_are_in_no_json(jobs, database):
    """Their environments may hold secrets."""
    job = jobs.submit(["true"], on_error=Command(["tell"], env={"KEY": "hunter2"}))
    pipeline = jobs.create_pipeline("p", ["true"], on_error=Command(["tell"], env={"K": "hunter2"}))

    assert "hunter2" in json.dumps(dict(row_of(database, job.id)), default=str)
    for shown in (job, jobs.list_jobs()[0], pipeline, jobs.get_pipeline(pipeline.id)):
        assert "hunter2" not in shown.model_dump_json() + repr(shown)


def test_hook_and_end_are_one_transaction(jobs, database):
    """There is no moment at which one of them is stored alone."""
    job = jobs.start_job(jobs.submit(["true"], **EACH).id)
    sql(
        database,
        "CREATE TRIGGER no_hook BEFORE INSERT ON job BEGIN SELECT RAISE(ABORT, 'no'); END",
    )
    with pytest.raises(Exception, match="no"):
        jobs.finish_job(job.id, 1)
    assert jobs.get_job(job.id).status is Status.RUNNING
    sql(database, "DROP TRIGGER no_hook")
    jobs.finish_job(job.id, 1)
    with JobManager(database, slots=0) as other:
        assert hooks_of(other, job) == [("on_error", ["on_error"])]
