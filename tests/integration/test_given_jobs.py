"""Methods that take an id take the job, pipeline or workspace itself, as `submit` returns it."""

from __future__ import annotations

import asyncio

import pytest

from jobcore import ArgumentError, JobManager, JobNotFound, PipelineNotFound, Submission


@pytest.fixture
def jobs(database):
    with JobManager(database, slots=0) as manager:
        yield manager


def test_methods_of_one_job_take_the_job(jobs):
    job = jobs.submit(["true"])

    assert jobs.get_job(job).id == job.id
    assert jobs.update_job(job, name="renamed").name == "renamed"
    assert jobs.usage(job) is None
    assert [one.trigger for one in jobs.history(job)] == ["create"]
    assert list(jobs.logs(job)) == list(jobs.tail(job, 1)) == list(jobs.log_text(job)) == []
    assert jobs.list_upstream(job) == []
    assert jobs.cancel_job(job).status == "STOPPED"
    assert jobs.wait(job).id == asyncio.run(jobs.wait_async(job)).id == job.id
    assert list(jobs.follow(job)) == []
    assert len(list(jobs.export_jobs([job]))) > 1
    assert jobs.retry_job(job).retry_of == job.id
    jobs.delete_job(job)
    with pytest.raises(JobNotFound, match=f"no job has the id '?{job.id}'?$") as error:
        jobs.get_job(job)
    assert error.value.job_id == job.id


def test_methods_of_several_jobs_take_jobs(jobs):
    found = [jobs.submit(["true"]) for _ in range(3)]
    for one in found:
        jobs.cancel_job(one)

    assert [one.id for one in jobs.wait_all(found)] == [one.id for one in found]
    assert {one.id for one in jobs.as_completed(found)} == {one.id for one in found}


def test_a_job_waits_for_jobs(jobs):
    first, second = jobs.submit_many([["true"], ["true"]])

    for after in (first, [first], (first, second), [first.id, second]):
        waiting = jobs.submit(["true"], after=after)
        assert first.id in {one.id for one in jobs.list_upstream(waiting)}
    (chained,) = jobs.submit_many([Submission(["true"], after=second)])
    assert [one.id for one in jobs.list_upstream(chained)] == [second.id]


def test_a_single_job_is_refused_where_several_are_meant(jobs):
    job = jobs.submit(["true"])

    for call in (jobs.wait_all, jobs.as_completed, jobs.export_jobs):
        with pytest.raises(ArgumentError, match="takes several ids: pass a list"):
            call(job)
    with pytest.raises(ArgumentError, match="wait takes one id, and wait_all several"):
        jobs.wait([job])


def test_pipelines_and_workspaces(jobs):
    workspace = jobs.create_workspace("sales")
    pipeline = jobs.create_pipeline("nightly", command=["true"], workspace_id=workspace)
    job = jobs.create_job(pipeline_id=pipeline)

    assert jobs.get_workspace(workspace).id == workspace.id
    assert jobs.get_pipeline(pipeline).workspace_id == workspace.id
    assert jobs.update_pipeline(pipeline, timeout=5).id == pipeline.id
    filters = ({"pipeline_id": pipeline}, {"workspace_id": workspace})
    assert [[one.id for one in jobs.list_jobs(**one)] for one in filters] == [[job.id]] * 2
    assert jobs.count_jobs(pipeline_id=pipeline) == jobs.count_jobs(workspace_id=workspace)
    jobs.delete_workspace(workspace)
    with pytest.raises(PipelineNotFound, match=str(pipeline.id)):
        jobs.get_pipeline(pipeline)


def test_a_pipeline_is_not_a_job(jobs):
    pipeline = jobs.create_pipeline("nightly", command=["true"])

    with pytest.raises(JobNotFound, match=str(pipeline.id)):
        jobs.get_job(pipeline)
