"""Job types: which jobs are made by themselves, who runs them, and what their endings mean."""

from __future__ import annotations

import pytest

from jobcore import (
    Command,
    InvalidTransition,
    JobManager,
    PipelineAlreadyRunning,
    Reason,
    Status,
)
from jobcore.engine.executors import default_executors
from jobcore.testing.parts import parts
from tests.jobfiles import sql
from tests.programs import EXIT_0, EXIT_3, SAYS_HELLO, SLEEPS
from tests.tasks import stop


class Runs:
    """An executor that runs the same command for every job, and keeps what it was asked for."""

    def __init__(self, argv, **options):
        self._command = Command(argv, **options)
        self.asked = []

    def command(self, job):
        self.asked.append(job)
        return self._command


@pytest.fixture
def manage(database, clock):
    """Return a maker of managers with executors for some types more."""
    made = []

    def make(slots=0, **executors):
        made.append(
            JobManager(
                database,
                slots=slots,
                clock=None if slots else clock,
                executors={**default_executors(), **executors},
                on_exit="stop",
            )
        )
        return made[-1]

    yield make
    for manager in made:
        manager.close()


def only_job(jobs, pipeline):
    """Return the one job of the pipeline."""
    (job,) = jobs.list_jobs(pipeline_id=pipeline.id)
    return job


def fail(jobs, pipeline):
    """Let the configuration of a pipeline fail, and return the pipeline."""
    job = only_job(jobs, pipeline)
    jobs.start_job(job.id)
    jobs.finish_job(job.id, 3)
    return jobs.get_pipeline(pipeline.id)


# --- which are made by themselves ---------------------------------------------------


def test_without_executors_no_job_is_made_by_itself(jobs):
    """A manager that could run neither type makes no automatic job, and pipelines are READY."""
    workspace = jobs.create_workspace("w")
    pipeline = jobs.create_pipeline("p", ["true"], workspace_id=workspace.id)
    jobs.update_pipeline(pipeline.id, name="q")

    assert jobs.list_jobs() == []
    assert jobs.get_pipeline(pipeline.id).status == "READY"


def test_a_workspace_is_initialised_where_that_can_be_run(manage):
    """Creating a workspace makes one QUEUED WORKSPACE_INIT job of it; changing it makes none."""
    jobs = manage(WORKSPACE_INIT=Runs(EXIT_0))
    workspace = jobs.create_workspace("w")
    jobs.update_workspace(workspace.id, name="v")
    jobs.create_pipeline("p", ["true"], workspace_id=workspace.id)
    (job,) = jobs.list_jobs()

    assert (job.type, job.status, job.workspace_id, job.pipeline_id) == (
        "WORKSPACE_INIT", Status.QUEUED, workspace.id, None,
    )  # fmt: skip


def test_a_pipeline_is_configured_where_that_can_be_run(manage):
    """Creating a pipeline makes one QUEUED PIPELINE_CONFIG job of it, and it is PROVISIONING."""
    jobs = manage(PIPELINE_CONFIG=Runs(EXIT_0))
    workspace = jobs.create_workspace("w")
    pipeline = jobs.create_pipeline("p", ["true"], workspace_id=workspace.id)
    job = only_job(jobs, pipeline)

    assert pipeline.status == jobs.get_pipeline(pipeline.id).status == "PROVISIONING"
    assert (job.type, job.status, job.workspace_id, job.attempt) == (
        "PIPELINE_CONFIG", Status.QUEUED, workspace.id, 1,
    )  # fmt: skip
    with pytest.raises(PipelineAlreadyRunning) as caught:
        jobs.create_job(pipeline_id=pipeline.id)
    assert caught.value.job_id == job.id


def test_a_refused_pipeline_makes_no_job(manage):
    """Nothing is configured of a pipeline that was refused."""
    jobs = manage(PIPELINE_CONFIG=Runs(EXIT_0))
    with pytest.raises(ValueError, match="itself"):
        jobs.create_pipeline("p", ["true"], triggered_by=["P"])

    assert jobs.list_jobs() == []


# --- what a configuration's ending means ---------------------------------------------


def finish(code):
    """Return an ending: the job is started and finished with `code`."""

    def end(jobs, job, _):
        jobs.start_job(job.id)
        jobs.finish_job(job.id, code)

    return end


def lose(jobs, job, database):
    sql(
        database,
        "UPDATE job SET status = 'RUNNING', start_time = created, token = 't', cookie = 'c' "
        "WHERE id = ?",
        job.id.hex,
    )
    jobs.recover()


@pytest.mark.parametrize(
    ("end", "status", "reason", "configured"),
    [
        (finish(0), Status.COMPLETE, Reason.EXITED, "READY"),
        (finish(1), Status.ERROR, Reason.EXITED, "FAILED"),
        (lambda jobs, job, _: jobs.cancel_job(job.id), Status.STOPPED, Reason.CANCELLED, "FAILED"),
        (stop, Status.STOPPED, Reason.STOPPED, "FAILED"),
        (lose, Status.ERROR, Reason.LOST, "FAILED"),
    ],
    ids=["complete", "error", "cancelled", "stopped", "lost"],
)
def test_the_ending_of_its_configuration_is_the_pipelines_status(
    manage, database, clock, end, status, reason, configured
):
    """COMPLETE makes a pipeline READY, any other ending FAILED, whoever settles the job."""
    jobs = manage(PIPELINE_CONFIG=Runs(EXIT_0))
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=3)
    clock.advance(5)
    end(jobs, only_job(jobs, pipeline), database)
    job = only_job(jobs, pipeline)  # one: a configuration is not tried again

    assert (status, reason) == (job.status, job.reason)
    assert configured == jobs.get_pipeline(pipeline.id).status
    assert jobs.get_pipeline(pipeline.id).last_modified == job.end_time


@pytest.mark.parametrize("started", [False, True])
def test_a_pipeline_whose_configuration_is_deleted_is_failed(manage, started):
    """Deleting the configuring job ends it: the pipeline does not stay PROVISIONING for ever."""
    jobs = manage(PIPELINE_CONFIG=Runs(EXIT_0))
    pipeline = jobs.create_pipeline("p", ["true"])
    job = only_job(jobs, pipeline)
    if started:
        jobs.start_job(job.id)
    jobs.delete_job(job.id)

    assert jobs.get_pipeline(pipeline.id).status == "FAILED"
    assert jobs.update_pipeline(pipeline.id).status == "PROVISIONING"


def test_deleting_what_has_configured_a_pipeline_leaves_it_ready(manage):
    """A final configuring job that is deleted changes nothing about its pipeline."""
    jobs = manage(PIPELINE_CONFIG=Runs(EXIT_0))
    pipeline = jobs.create_pipeline("p", ["true"])
    job = only_job(jobs, pipeline)
    finish(0)(jobs, job, None)
    jobs.delete_job(job.id)

    assert jobs.get_pipeline(pipeline.id).status == "READY"


@pytest.mark.parametrize(
    ("executor", "status", "configured"),
    [
        (Runs(EXIT_0), Status.COMPLETE, "READY"),
        (Runs(EXIT_3), Status.ERROR, "FAILED"),
        (Runs(SLEEPS, timeout=0.05, grace=0), Status.STOPPED, "FAILED"),
        (Runs(["/no/such/program"]), Status.ERROR, "FAILED"),
    ],
    ids=["exits 0", "exits 3", "times out", "cannot start"],
)
def test_a_configuration_that_runs_moves_its_pipeline(manage, executor, status, configured):
    """As soon as a PIPELINE_CONFIG job is seen to be final, its pipeline has the new status."""
    jobs = manage(slots=1, PIPELINE_CONFIG=executor)
    pipeline = jobs.create_pipeline("p", ["true"])
    job = jobs.wait(only_job(jobs, pipeline).id, timeout=30)

    assert status is job.status
    assert configured == jobs.get_pipeline(pipeline.id).status


def test_an_executor_sees_the_pipeline_that_it_configures(manage):
    """The executor of PIPELINE_CONFIG is told the pipeline, with what it runs."""
    executor = Runs(EXIT_0)
    jobs = manage(slots=1, PIPELINE_CONFIG=executor)
    pipeline = jobs.create_pipeline("p", ["run"], env={"A": "1"}, properties={"a": 1})
    jobs.wait(only_job(jobs, pipeline).id, timeout=30)
    (seen,) = executor.asked

    assert (seen.type, seen.pipeline) == ("PIPELINE_CONFIG", pipeline)
    assert seen.pipeline.command.env == {"A": "1"}


# --- configuring again ----------------------------------------------------------------


def test_updating_a_failed_pipeline_configures_it_again(manage):
    """A FAILED pipeline that is changed is PROVISIONING again, and READY once that completes."""
    jobs = manage(PIPELINE_CONFIG=Runs(EXIT_0))
    pipeline = fail(jobs, jobs.create_pipeline("p", ["true"]))
    changed = jobs.update_pipeline(pipeline.id, script="exit 0")
    newest = jobs.list_jobs(pipeline_id=pipeline.id)[0]
    finish(0)(jobs, newest, None)

    assert (pipeline.status, changed.status) == ("FAILED", "PROVISIONING")
    assert (newest.type, newest.attempt, newest.retry_of) == ("PIPELINE_CONFIG", 1, None)
    assert jobs.count_jobs(pipeline_id=pipeline.id)[Status.QUEUED] == 0
    assert jobs.get_pipeline(pipeline.id).status == "READY"


def test_updating_a_ready_pipeline_configures_nothing(manage):
    """Only a FAILED pipeline is configured again by a change."""
    jobs = manage(PIPELINE_CONFIG=Runs(EXIT_0))
    pipeline = jobs.create_pipeline("p", ["true"])
    while_configured = jobs.update_pipeline(pipeline.id, name="q")
    finish(0)(jobs, only_job(jobs, pipeline), None)
    ready = jobs.update_pipeline(pipeline.id, name="r")

    assert (while_configured.status, ready.status) == ("PROVISIONING", "READY")
    assert only_job(jobs, pipeline).status is Status.COMPLETE


@pytest.mark.parametrize("started", [False, True])
def test_a_failed_pipeline_with_an_active_job_is_not_changed(manage, database, clock, started):
    """Updating it is PipelineAlreadyRunning with the job's id, and nothing at all is written."""
    jobs = manage(PIPELINE_CONFIG=Runs(EXIT_0))
    pipeline = fail(jobs, jobs.create_pipeline("p", ["true"]))
    job = jobs.create_job(pipeline_id=pipeline.id)
    if started:
        jobs.start_job(job.id)
    before = [tuple(row) for row in sql(database, "SELECT * FROM pipeline")]
    clock.advance(1)
    with pytest.raises(PipelineAlreadyRunning) as caught:
        jobs.update_pipeline(pipeline.id, name="q", schedule="@hourly", script="exit 1")

    assert (caught.value.pipeline_id, caught.value.job_id) == (pipeline.id, job.id)
    assert caught.value.status == 409
    assert before == [tuple(row) for row in sql(database, "SELECT * FROM pipeline")]
    assert jobs.count_jobs(pipeline_id=pipeline.id, type="PIPELINE_CONFIG") == {
        **dict.fromkeys(Status, 0), Status.ERROR: 1,
    }  # fmt: skip


# --- on demand, and by the user -------------------------------------------------------


def test_a_verification_runs_on_demand_and_moves_nothing(manage):
    """PIPELINE_VERIFY holds its pipeline while it runs; its failure is neither status nor retry."""
    jobs = manage(slots=1, PIPELINE_VERIFY=Runs(EXIT_3))
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=3)
    jobs.create_pipeline("next", ["true"], triggered_by=["p"])
    job = jobs.wait(jobs.create_job("PIPELINE_VERIFY", pipeline_id=pipeline.id).id, timeout=30)

    assert (job.type, job.status, job.exit_code) == ("PIPELINE_VERIFY", Status.ERROR, 3)
    assert jobs.list_jobs() == [job]
    assert jobs.get_pipeline(pipeline.id).status == "READY"


def test_a_verification_that_completes_triggers_nothing(jobs):
    """`triggered_by` speaks of runs: a verification's COMPLETE makes no job."""
    pipeline = jobs.create_pipeline("p", ["true"])
    jobs.create_pipeline("next", ["true"], triggered_by=["p"])
    job = jobs.create_job("PIPELINE_VERIFY", pipeline_id=pipeline.id)
    finish(0)(jobs, job, None)

    assert [one.id for one in jobs.list_jobs()] == [job.id]


@pytest.mark.parametrize("kind", ["PROFILE_COLLABORATE", "PROFILE_IMPORT"])
def test_a_user_task_waits_for_its_host(running_jobs, kind):
    """No manager claims it: it is QUEUED until `start_job`, and ends by `finish_job`."""
    task = running_jobs.create_job(kind, name="ask")
    behind = running_jobs.submit(["true"])
    running_jobs.wait(behind.id, timeout=30)  # younger, and done: nobody wants the task
    running_jobs.drain(30)
    waiting = running_jobs.get_job(task.id)
    with pytest.raises(InvalidTransition):
        running_jobs.finish_job(task.id)
    started = running_jobs.start_job(task.id)
    running_jobs.append_log(task.id, "one", "two")
    ended = running_jobs.finish_job(task.id, 0)

    assert (waiting.status, waiting.start_time) == (Status.QUEUED, None)
    assert (started.status, ended.status, ended.reason, ended.exit_code) == (
        Status.RUNNING, Status.COMPLETE, Reason.EXITED, 0,
    )  # fmt: skip
    assert [line.text for line in running_jobs.logs(task.id)] == ["one", "two"]
    with pytest.raises(InvalidTransition):
        running_jobs.start_job(task.id)


def test_custom_type_runs_where_it_has_an_executor(manage):
    """Any string is a type; only managers with an executor for it run its jobs."""
    without = manage(slots=1)
    job = without.create_job("my/own type", data={"a": 1})
    without.wait(without.submit(["true"]).id, timeout=30)
    without.drain(30)
    before = without.get_job(job.id)
    executor = Runs(SAYS_HELLO)
    ended = manage(slots=1, **{"my/own type": executor}).wait(job.id, timeout=30)

    assert before.status is Status.QUEUED
    assert (ended.type, ended.status) == ("my/own type", Status.COMPLETE)
    assert [line.text for line in without.logs(job.id)] == ["hello", "world"]
    assert [(one.id, one.data, one.command) for one in executor.asked] == [(job.id, {"a": 1}, None)]


def test_a_manager_without_executors_runs_nothing(database):
    """Without executors, all queued jobs are left to other managers."""
    with JobManager(database, slots=1, executors={}) as idle:
        job = idle.submit(EXIT_0)
        idle.drain(30)
        before = idle.get_job(job.id)
        with JobManager(database, slots=1) as other:
            ended = other.wait(job.id, timeout=30)
        history = [entry.trigger for entry in idle.history(job.id)]

    assert before.status is Status.QUEUED
    assert ended.status is Status.COMPLETE
    assert history == ["create", "start", "finish"]


def test_manager_with_only_own_forgets_ended_jobs(database):
    """It runs all of them, also more than one look asks for, and asks for none twice."""
    with JobManager(database, slots=0) as others:
        left = others.submit(EXIT_0)
    with JobManager(database, slots=2, only_own=True) as jobs:
        own = parts(jobs).queue._own
        made = [jobs.submit(EXIT_0) for _ in range(40)]
        jobs.drain(30)
        ended = {jobs.get_job(job.id).status for job in made}

        assert ended == {Status.COMPLETE}
        assert own == set()
        assert jobs.get_job(left.id).status is Status.QUEUED


def test_an_executor_that_raises_ends_its_job_with_the_reason(manage):
    """The job ends `spawn_failed`, with the exception in its log."""

    class Broken:
        def command(self, job):
            raise RuntimeError(f"no settings for {job.pipeline.name}")

    jobs = manage(slots=1, PIPELINE_CONFIG=Broken())
    pipeline = jobs.create_pipeline("p", ["true"])
    job = jobs.wait(only_job(jobs, pipeline).id, timeout=30)

    assert (job.status, job.reason, job.exit_code) == (Status.ERROR, Reason.SPAWN_FAILED, None)
    assert [(line.stream, line.text) for line in jobs.logs(job.id)] == [
        ("system", "cannot start: RuntimeError: no settings for p")
    ]
    assert jobs.get_pipeline(pipeline.id).status == "FAILED"


def test_a_workspaces_initialisation_runs(manage):
    """With an executor and a slot, WORKSPACE_INIT runs without anybody asking for it."""
    executor = Runs(SAYS_HELLO)
    jobs = manage(slots=1, WORKSPACE_INIT=executor)
    workspace = jobs.create_workspace("w")
    (job,) = jobs.list_jobs(workspace_id=workspace.id)
    ended = jobs.wait(job.id, timeout=30)

    assert (ended.status, ended.line_count) == (Status.COMPLETE, 2)
    assert [one.workspace_id for one in executor.asked] == [workspace.id]
