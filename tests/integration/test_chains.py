"""Chains: pipelines that run after others, by name, and never in a circle."""

from __future__ import annotations

import itertools

import pytest

from jobcore import CommandError, PipelineCycle, Status, runs, settlement
from jobcore.lifecycle import Ending
from tests.jobfiles import stored_pipelines
from tests.processes import until
from tests.programs import EXIT_0, EXIT_3
from tests.tasks import end


def run(jobs, pipeline, exit_code=0):
    """Run a pipeline on behalf of its host."""
    return end(jobs, jobs.create_job(pipeline_id=pipeline.id), exit_code)


def jobs_of(jobs, pipeline):
    """Return the statuses of a pipeline's jobs, newest first."""
    return [job.status for job in jobs.list_jobs(pipeline_id=pipeline.id)]


def test_a_complete_pipeline_triggers_those_that_name_it(jobs):
    """COMPLETE queues one PIPELINE_RUN of each pipeline that names the one that ended."""
    source = jobs.create_pipeline("extract", ["true"])
    named = [jobs.create_pipeline(name, ["true"], triggered_by=["extract"]) for name in "ab"]
    other = jobs.create_pipeline("other", ["true"], triggered_by=["load"])
    alone = jobs.create_pipeline("alone", ["true"])
    ended = run(jobs, source)

    for pipeline in named:
        (job,) = jobs.list_jobs(pipeline_id=pipeline.id)
        assert (job.type, job.status, job.attempt, job.retry_of, job.not_before) == (
            "PIPELINE_RUN", Status.QUEUED, 1, None, None,
        )  # fmt: skip
        assert (job.workspace_id, job.created) == (source.workspace_id, ended.end_time)
    assert [jobs_of(jobs, one) for one in (other, alone)] == [[], []]


@pytest.mark.parametrize("name", ["Extract", "EXTRACT", "extract"])
def test_names_are_compared_without_their_case(jobs, name):
    """A trigger names its pipeline whatever the case."""
    source = jobs.create_pipeline("eXtract", ["true"])
    triggered = jobs.create_pipeline("load", ["true"], triggered_by=[name])
    run(jobs, source)

    assert jobs_of(jobs, triggered) == [Status.QUEUED]


def cancel(jobs, pipeline):
    jobs.cancel_job(jobs.create_job(pipeline_id=pipeline.id).id)


def stop(jobs, pipeline):
    job = jobs.create_job(pipeline_id=pipeline.id)
    jobs.start_job(job.id)
    jobs.stop_job(job.id)


def delete(jobs, pipeline):
    job = jobs.create_job(pipeline_id=pipeline.id)
    jobs.start_job(job.id)
    jobs.delete_job(job.id)


@pytest.mark.parametrize(
    "ending", [lambda jobs, pipeline: run(jobs, pipeline, 1), cancel, stop, delete]
)
def test_only_complete_triggers(jobs, ending):
    """Neither ERROR nor STOPPED, nor a deletion, sets off what waits for a success."""
    source = jobs.create_pipeline("a", ["true"])
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    ending(jobs, source)

    assert jobs_of(jobs, triggered) == []
    assert jobs.skips(triggered.id) == []


@pytest.mark.parametrize("exit_code", [0, 1])
def test_nothing_follows_from_a_job_that_is_being_deleted(jobs, exit_code):
    """A job that ends by itself while it is being deleted sets off neither chain nor retry."""
    source = jobs.create_pipeline("a", ["true"], max_retries=1)
    jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    job = jobs.create_job(pipeline_id=source.id)
    jobs.start_job(job.id)
    with jobs._database.write() as connection:
        runs.mark_deleted(connection, job.number, now=0)
        run_of_it = runs.find(connection, job.number)
        settlement.settle_own(connection, run_of_it, Ending.by_host(exit_code), now=0)

    assert jobs.list_jobs() == []


def test_another_attempt_that_completes_triggers(jobs):
    """A failed attempt sets off nothing; the retry that completes sets off the chain, once."""
    source = jobs.create_pipeline("a", ["true"], max_retries=1)
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    run(jobs, source, 1)
    after_failure = jobs_of(jobs, triggered)
    end(jobs, jobs.list_jobs(pipeline_id=source.id)[0])

    assert (after_failure, jobs_of(jobs, triggered)) == ([], [Status.QUEUED])


def test_a_chain_stays_in_its_workspace(jobs):
    """A pipeline of the same name in another workspace sets off nothing here."""
    elsewhere = jobs.create_workspace("elsewhere")
    there = jobs.create_pipeline("a", ["true"], workspace_id=elsewhere.id)
    here = jobs.create_pipeline("a", ["true"])
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    run(jobs, there)
    before = jobs_of(jobs, triggered)
    run(jobs, here)

    assert (before, jobs_of(jobs, triggered)) == ([], [Status.QUEUED])


def test_any_of_several_names_triggers(jobs):
    """Each pipeline that is named sets off a run of its own; naming one twice makes no two."""
    sources = [jobs.create_pipeline(name, ["true"]) for name in ("a", "b")]
    triggered = jobs.create_pipeline("c", ["true"], triggered_by=["a", "A", "b"])
    for source in sources:
        run(jobs, source)
        end(jobs, jobs.list_jobs(pipeline_id=triggered.id)[0])

    assert jobs_of(jobs, triggered) == [Status.COMPLETE, Status.COMPLETE]
    assert jobs.skips(triggered.id) == []


def test_triggers_follow_names_as_they_stand_at_the_end(jobs):
    """Renamed, deleted or no longer named pipelines set off what the names then say."""
    source = jobs.create_pipeline("a", ["true"])
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    gone = jobs.create_pipeline("gone", ["true"], triggered_by=["a"])
    job = jobs.create_job(pipeline_id=source.id)
    jobs.update_pipeline(source.id, name="z")
    jobs.delete_pipeline(gone.id)
    end(jobs, job)
    renamed = jobs_of(jobs, triggered)
    jobs.update_pipeline(triggered.id, triggered_by=["Z"])
    run(jobs, source)
    named = jobs_of(jobs, triggered)
    end(jobs, jobs.list_jobs(pipeline_id=triggered.id)[0])
    jobs.update_pipeline(triggered.id, triggered_by=None)
    run(jobs, source)

    assert (renamed, named) == ([], [Status.QUEUED])
    assert jobs_of(jobs, triggered) == [Status.COMPLETE]
    assert jobs.count_jobs()[Status.QUEUED] == 0


@pytest.mark.parametrize("started", [False, True])
def test_a_triggered_pipeline_that_is_running_is_skipped(jobs, clock, started):
    """Its run is not queued up but recorded, with the moment and the job that was in the way."""
    source = jobs.create_pipeline("a", ["true"])
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    blocker = jobs.create_job(pipeline_id=triggered.id)
    if started:
        jobs.start_job(blocker.id)
    clock.advance(5)
    ended = run(jobs, source)
    (skip,) = jobs.skips(triggered.id)

    assert ended.status is Status.COMPLETE
    assert (skip.why, skip.count, skip.job_id, skip.due) == (
        "triggered", 1, blocker.id, ended.end_time,
    )  # fmt: skip
    assert [job.id for job in jobs.list_jobs(pipeline_id=triggered.id)] == [blocker.id]
    assert jobs.skips(source.id) == []


def test_skips_are_listed_newest_first(jobs, clock):
    """A page of skips begins with the newest one."""
    source = jobs.create_pipeline("a", ["true"])
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    jobs.create_job(pipeline_id=triggered.id)
    ends = []
    for _ in range(3):
        clock.advance(1)
        ends.append(run(jobs, source).end_time)

    assert ends[::-1] == [skip.due for skip in jobs.skips(triggered.id)]
    assert ends[:0:-1] == [skip.due for skip in jobs.skips(triggered.id, limit=2)]


def test_a_retry_that_waits_makes_a_trigger_skip(jobs):
    """A pipeline whose retry waits for its back-off is running: a trigger is skipped."""
    source = jobs.create_pipeline("a", ["true"])
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"], max_retries=1)
    run(jobs, triggered, 1)
    run(jobs, source)
    (retry, _) = jobs.list_jobs(pipeline_id=triggered.id)

    assert [(skip.why, skip.job_id) for skip in jobs.skips(triggered.id)] == [
        ("triggered", retry.id)
    ]


# --- circles ----------------------------------------------------------------------------

#: Which pipelines there are, each with those that trigger it, and the change that closes a circle.
CIRCLES = {
    "of one": ({}, ("a", ["a"])),
    "of one, in another case": ({}, ("Straße", ["STRASSE"])),
    "of one among others": ({"b": []}, ("a", ["b", "A"])),
    "of two": ({"b": ["a"]}, ("a", ["b"])),
    "of two, in another case": ({"b": ["A"]}, ("a", ["B"])),
    "of three": ({"b": ["a"], "c": ["b"]}, ("a", ["c"])),
    "of three with branches": ({"x": [], "b": ["a", "x"], "c": ["x", "b"]}, ("a", ["x", "c"])),
    "of two of one name": ({"a ": [], "b": ["a"], "B": ["x"], "x": []}, ("a", ["B"])),
}


@pytest.mark.parametrize("case", CIRCLES)
def test_a_circle_is_refused_at_creation(jobs, database, case):
    """A pipeline that would trigger itself in the end is refused, and nothing is written."""
    others, (name, triggered_by) = CIRCLES[case]
    for other, by in others.items():
        jobs.create_pipeline(other, ["true"], triggered_by=by)
    before = stored_pipelines(database)
    with pytest.raises(PipelineCycle) as caught:
        jobs.create_pipeline(name, ["true"], triggered_by=triggered_by)

    assert (caught.value.name, caught.value.status) == (name, 400)
    assert before == stored_pipelines(database)


@pytest.mark.parametrize("case", CIRCLES)
def test_a_circle_is_refused_at_an_update(jobs, database, clock, case):
    """A change that would close a circle is refused, and no part of it is written."""
    others, (name, triggered_by) = CIRCLES[case]
    made = jobs.create_pipeline(name, ["true"])
    for other, by in others.items():
        jobs.create_pipeline(other, ["true"], triggered_by=by)
    before = stored_pipelines(database)
    clock.advance(1)
    with pytest.raises(PipelineCycle):
        jobs.update_pipeline(made.id, triggered_by=triggered_by, script="exit 1", timeout=5)

    assert before == stored_pipelines(database)


def test_a_name_that_would_close_a_circle_is_refused(jobs, database):
    """Renaming a pipeline to what its own sources wait for is refused like naming it there."""
    made = jobs.create_pipeline("other", ["true"], triggered_by=["b"])
    jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    before = stored_pipelines(database)
    with pytest.raises(PipelineCycle):
        jobs.update_pipeline(made.id, name="A")

    assert before == stored_pipelines(database)


def test_what_is_no_circle_is_allowed(jobs):
    """Diamonds, names that nothing has, other workspaces and circles that were opened are fine."""
    elsewhere = jobs.create_workspace("elsewhere")
    jobs.create_pipeline("b", ["true"], triggered_by=["a"], workspace_id=elsewhere.id)
    a = jobs.create_pipeline("a", ["true"], triggered_by=["b", "nothing"])
    jobs.create_pipeline("c", ["true"], triggered_by=["a"])
    jobs.create_pipeline("d", ["true"], triggered_by=["c", "a"])
    jobs.update_pipeline(a.id, triggered_by=None)
    opened = jobs.create_pipeline("b", ["true"], triggered_by=["d"])
    with pytest.raises(PipelineCycle):
        jobs.update_pipeline(a.id, triggered_by=["b"])
    jobs.delete_pipeline(opened.id)

    assert jobs.update_pipeline(a.id, triggered_by=["b"]).triggered_by == ["b"]


def test_an_update_of_something_else_is_no_circle(jobs):
    """A pipeline is not its own source: changing it again and again is allowed."""
    jobs.create_pipeline("a", ["true"])
    made = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    jobs.update_pipeline(made.id, triggered_by=["A"])

    assert jobs.update_pipeline(made.id, name="B", timeout=3).triggered_by == ["A"]


def test_what_a_pipeline_was_before_a_change_closes_no_circle(jobs):
    """Name and sources are changed together: the old ones no longer count."""
    made = jobs.create_pipeline("a", ["true"], triggered_by=["b"])

    assert jobs.update_pipeline(made.id, name="b", triggered_by=["a"]).triggered_by == ["a"]


@pytest.mark.parametrize("names", ["extract", b"extract", [b"extract"], [None], 5])
def test_names_that_are_none_are_refused(jobs, names):
    """`triggered_by` is a list of names: a single text is refused, not taken letter by letter."""
    with pytest.raises(CommandError):
        jobs.create_pipeline("p", ["true"], triggered_by=names)

    assert jobs.list_pipelines() == []


# --- shapes -----------------------------------------------------------------------------


def diamond(jobs, **fields):
    """Make a pipeline, two that it triggers, and one that both of these trigger."""
    return [
        jobs.create_pipeline(name, ["true"], triggered_by=by, **fields)
        for name, by in (("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b", "c"]))
    ]


def test_the_last_of_a_diamond_runs_once_while_it_is_running(jobs):
    """Where both sides end while the last one runs, it runs once and the second is recorded."""
    a, b, c, d = diamond(jobs)
    run(jobs, a)
    end(jobs, jobs.list_jobs(pipeline_id=b.id)[0])
    (last,) = jobs.list_jobs(pipeline_id=d.id)
    end(jobs, jobs.list_jobs(pipeline_id=c.id)[0])
    end(jobs, last)

    assert [jobs_of(jobs, one) for one in (a, b, c, d)] == [[Status.COMPLETE]] * 4
    assert [(skip.why, skip.job_id) for skip in jobs.skips(d.id)] == [("triggered", last.id)]
    assert jobs.count_jobs()[Status.QUEUED] == 0


def test_the_last_of_a_diamond_runs_after_each_side(jobs):
    """Where the last one has ended before the second side does, it runs again: any will do."""
    a, b, c, d = diamond(jobs)
    run(jobs, a)
    for side in (b, c):
        end(jobs, jobs.list_jobs(pipeline_id=side.id)[0])
        end(jobs, jobs.list_jobs(pipeline_id=d.id)[0])

    assert jobs_of(jobs, d) == [Status.COMPLETE, Status.COMPLETE]
    assert jobs.skips(d.id) == []


def test_a_chain_runs_by_itself(running_jobs):
    """With slots a chain of three runs to its end, each in turn; a failure ends it there."""
    chain = [
        running_jobs.create_pipeline(name, command, triggered_by=by)
        for name, command, by in (
            ("a", EXIT_0, []), ("b", EXIT_0, ["a"]), ("c", EXIT_3, ["b"]), ("d", EXIT_0, ["c"]),
        )
    ]  # fmt: skip
    running_jobs.create_job(pipeline_id=chain[0].id)
    until(lambda: running_jobs.count_jobs()[Status.ERROR], "the end of the third")
    running_jobs.drain(30)
    ended = running_jobs.list_jobs()[::-1]

    assert [(job.pipeline_id, job.exit_code) for job in ended] == [
        (chain[0].id, 0), (chain[1].id, 0), (chain[2].id, 3),
    ]  # fmt: skip
    assert all(before.end_time <= after.start_time for before, after in itertools.pairwise(ended))
    assert jobs_of(running_jobs, chain[3]) == []
