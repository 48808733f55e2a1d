"""Requirements: a pipeline runs once after each complete set of runs of others."""

from __future__ import annotations

import pytest

from jobcore import CommandError, JobManager, PipelineCycle, Status
from tests.processes import at_once
from tests.tasks import end


def run(jobs, pipeline, exit_code=0):
    """Run a pipeline on behalf of its host."""
    return end(jobs, jobs.create_job(pipeline_id=pipeline.id), exit_code)


def runs(jobs, pipeline):
    """Return how many jobs a pipeline has, and end the active one."""
    found = jobs.list_jobs(pipeline_id=pipeline.id)
    for job in found:
        if job.status is Status.QUEUED:
            end(jobs, job)
    return len(found)


def join_of(jobs, names="ab", **more):
    """Return the pipelines `a` and `b`, and one that requires both."""
    sources = [jobs.create_pipeline(name, ["true"]) for name in names]
    return *sources, jobs.create_pipeline("join", ["true"], requires=list(names), **more)


def test_pipeline_runs_once_for_each_complete_set(jobs):
    """It runs when the last one of a set is COMPLETE, and the next set begins empty."""
    a, b, join = join_of(jobs)
    assert join.requires == ["a", "b"]
    run(jobs, a)
    run(jobs, a)
    assert runs(jobs, join) == 0
    run(jobs, b)
    assert runs(jobs, join) == 1
    run(jobs, b)
    assert runs(jobs, join) == 1
    run(jobs, a)
    assert runs(jobs, join) == 2


def test_only_complete_runs_count(jobs):
    """A run that failed, was stopped, or only sets up adds nothing to the set."""
    a, b, join = join_of(jobs)
    run(jobs, a)
    run(jobs, b, 1)
    jobs.cancel_job(jobs.create_job(pipeline_id=b.id).id)
    end(jobs, jobs.create_job("PIPELINE_VERIFY", pipeline_id=b.id))
    assert runs(jobs, join) == 0
    run(jobs, b)
    assert runs(jobs, join) == 1


def test_fan_out_and_fan_in(jobs):
    """What runs after both branches runs once, after the slower one."""
    a = jobs.create_pipeline("a", ["true"])
    b, c = (jobs.create_pipeline(name, ["true"], triggered_by=["a"]) for name in "bc")
    join = jobs.create_pipeline("join", ["true"], requires=["b", "c"])
    run(jobs, a)
    for branch in (b, c):
        assert runs(jobs, join) == 0
        assert runs(jobs, branch) == 1
    assert runs(jobs, join) == 1


def test_set_that_completes_while_the_pipeline_runs_is_skipped(jobs):
    """It is recorded, as for `triggered_by`."""
    a, b, join = join_of(jobs)
    for pipeline in (a, b, a, b):
        run(jobs, pipeline)
    (skip,) = jobs.skips(join.id)

    assert (skip.why, len(jobs.list_jobs(pipeline_id=join.id))) == ("triggered", 1)


def test_pipeline_named_in_both_ways_runs_once_for_one_end(jobs):
    a, b, join = join_of(jobs, triggered_by=["b"])
    run(jobs, a)
    run(jobs, b)

    assert (runs(jobs, join), jobs.skips(join.id)) == (1, [])


def test_met_requirements_survive_changes_of_the_others(jobs):
    """A change of the list keeps what its sources have done; renaming changes nothing."""
    a, b, join = join_of(jobs)
    c = jobs.create_pipeline("c", ["true"])
    run(jobs, a)
    jobs.update_pipeline(a.id, name="renamed")
    assert jobs.get_pipeline(join.id).requires == ["renamed", "b"]
    changed = jobs.update_pipeline(join.id, requires=["c", "renamed"], max_retries=1)
    assert changed.requires == ["c", "renamed"]
    assert jobs.update_pipeline(join.id, max_retries=2).requires == ["c", "renamed"]
    run(jobs, b)
    assert runs(jobs, join) == 0
    run(jobs, c)
    assert runs(jobs, join) == 1
    assert jobs.update_pipeline(join.id, requires=None).requires is None


@pytest.mark.parametrize("chain", ["triggered_by", "requires"])
def test_cycle_is_refused(jobs, chain):
    """Over both kinds of chains."""
    a, _, join = join_of(jobs)
    last = jobs.create_pipeline("last", ["true"], **{chain: ["join"]})
    with pytest.raises(PipelineCycle):
        jobs.update_pipeline(a.id, requires=["last"])
    with pytest.raises(PipelineCycle):
        jobs.update_pipeline(a.id, triggered_by=["last"])
    with pytest.raises(PipelineCycle):
        jobs.update_pipeline(join.id, requires=["JOIN"])

    assert jobs.get_pipeline(a.id).requires is None
    assert getattr(last, chain) == ["join"]


@pytest.mark.parametrize("wrong", ["a", ["unknown"], ["deploy"], [1], 3])
def test_unsatisfiable_requirement_is_refused(jobs, wrong):
    with pytest.raises(CommandError, match="requires"):
        jobs.create_pipeline("p", ["true"], requires=wrong)


def test_requirement_on_a_deleted_source_is_dropped(jobs):
    """`check` names the pipeline, and the others are enough from then on."""
    a, b, join = join_of(jobs)
    jobs.delete_pipeline(b.id)
    assert jobs.get_pipeline(join.id).requires == ["a"]
    assert any("join" in one.detail or str(join.id) in one.detail for one in jobs.check())
    run(jobs, a)
    assert runs(jobs, join) == 1


def finish(database, job_id):
    """Finish a job of a source."""
    with JobManager(database, slots=0) as jobs:
        jobs.finish_job(job_id)


def test_sources_that_end_at_once_make_one_run(jobs, database):
    """Each end is one transaction, so exactly one of them completes the set."""
    *sources, join = join_of(jobs, "abcdef")
    started = [jobs.start_job(jobs.create_job(pipeline_id=one.id).id) for one in sources]
    at_once(finish, [(database, job.id) for job in started])

    assert runs(jobs, join) == 1
    assert jobs.skips(join.id) == []
