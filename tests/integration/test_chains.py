"""Chains: pipelines that run after others, whatever these are called, and never in a circle."""

from __future__ import annotations

import itertools

import pytest

from jobcore import CommandError, PipelineCycle, Status
from jobcore.lifecycle import Ending
from jobcore.storage import deletion, settlement, transitions
from jobcore.testing.parts import parts
from tests.jobfiles import stored_pipelines
from tests.processes import until
from tests.programs import EXIT_0, EXIT_3
from tests.tasks import end
from tests.transactions import transaction


def run(jobs, pipeline, exit_code=0):
    """Run a pipeline on behalf of its host."""
    return end(jobs, jobs.create_job(pipeline_id=pipeline.id), exit_code)


def jobs_of(jobs, pipeline):
    """Return the statuses of a pipeline's jobs, newest first."""
    return [job.status for job in jobs.list_jobs(pipeline_id=pipeline.id)]


def test_a_complete_pipeline_triggers_those_that_name_it(jobs):
    """COMPLETE queues one PIPELINE_RUN of each pipeline that names the one that ended."""
    source = jobs.create_pipeline("extract", ["true"])
    jobs.create_pipeline("load", ["true"])
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
    """ERROR, STOPPED and a deletion do not start a triggered pipeline."""
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
    with transaction(parts(jobs).database) as connection:
        deletion.mark_job_deleted(connection, job.number, now=0)
        run_of_it = transitions.find(connection, job.number)
        settlement.settle_own(connection, run_of_it, Ending.by_host(exit_code), now=0)

    assert jobs.list_jobs() == []


@pytest.mark.parametrize("kind", ["COMMAND", "PIPELINE_RUN", "TASK"])
def test_job_that_was_submitted_to_a_pipeline_retries_and_triggers(jobs, kind):
    """Whatever its type, a job of a pipeline is tried again, and its COMPLETE triggers."""
    source = jobs.create_pipeline("a", ["true"], max_retries=1)
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    first = end(jobs, jobs.submit(["run"], pipeline_id=source.id, type=kind), 1)
    retry = jobs.list_jobs(pipeline_id=source.id)[0]
    before = jobs_of(jobs, triggered)
    end(jobs, retry)

    assert (retry.type, retry.attempt, retry.retry_of) == (kind, 2, first.id)
    assert (before, jobs_of(jobs, triggered)) == ([], [Status.QUEUED])


@pytest.mark.parametrize("kind", ["PIPELINE_CONFIG", "PIPELINE_VERIFY"])
@pytest.mark.parametrize("exit_code", [0, 1])
def test_configuration_and_verification_neither_retry_nor_trigger(jobs, kind, exit_code):
    """They speak of the pipeline, and are no runs of it."""
    source = jobs.create_pipeline("a", ["true"], max_retries=1)
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    end(jobs, jobs.create_job(kind, pipeline_id=source.id), exit_code)

    assert len(jobs_of(jobs, source)) == 1
    assert jobs_of(jobs, triggered) == []


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


def test_renamed_source_still_triggers(jobs):
    """A chain refers to the pipeline, not to its name, and shows the name that it has now."""
    source = jobs.create_pipeline("a", ["true"])
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["A"])
    job = jobs.create_job(pipeline_id=source.id)
    jobs.update_pipeline(source.id, name="z")
    jobs.create_pipeline("a", ["true"])
    end(jobs, job)

    assert jobs_of(jobs, triggered) == [Status.QUEUED]
    assert jobs.get_pipeline(triggered.id).triggered_by == ["z"]


def test_new_pipeline_with_the_old_name_of_a_source_triggers_nothing(jobs):
    """A name that has become free brings no links along."""
    source = jobs.create_pipeline("a", ["true"])
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    jobs.update_pipeline(source.id, name="z")
    run(jobs, jobs.create_pipeline("a", ["true"]))

    assert jobs_of(jobs, triggered) == []


def test_triggers_are_those_at_the_end_of_the_job(jobs):
    """A source that ends triggers no pipeline that was deleted or no longer names it."""
    source = jobs.create_pipeline("a", ["true"])
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    gone = jobs.create_pipeline("gone", ["true"], triggered_by=["a"])
    job = jobs.create_job(pipeline_id=source.id)
    jobs.delete_pipeline(gone.id)
    changed = jobs.update_pipeline(triggered.id, triggered_by=None)
    end(jobs, job)

    assert changed.triggered_by is None
    assert jobs_of(jobs, triggered) == []
    assert jobs.count_jobs()[Status.QUEUED] == 0


@pytest.mark.parametrize("names", [["laod"], ["load", "laod"], [""], ["load "]])
def test_unknown_source_is_refused(jobs, database, names):
    """A name that no pipeline of the workspace has is refused, and nothing is written."""
    jobs.create_pipeline("load", ["true"])
    made = jobs.create_pipeline("after", ["true"])
    elsewhere = jobs.create_workspace("elsewhere")
    for name in names:
        if name != "load":
            jobs.create_pipeline(name, ["true"], workspace_id=elsewhere.id)
    before = stored_pipelines(database)

    for change in (
        lambda: jobs.create_pipeline("new", ["true"], triggered_by=names),
        lambda: jobs.update_pipeline(made.id, triggered_by=names),
    ):
        with pytest.raises(CommandError, match="which no pipeline of this workspace has"):
            change()

    assert before == stored_pipelines(database)


@pytest.mark.parametrize("name", ["deploy", "Deploy"])
def test_deploy_is_a_task_of_the_host(jobs, name):
    """`deploy` needs no pipeline of this name; where there is one, it is that one."""
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=[name])
    source = jobs.create_pipeline("deploy", ["true"])
    run(jobs, source)
    as_task = jobs_of(jobs, triggered)
    jobs.update_pipeline(triggered.id, triggered_by=["DEPLOY"])
    run(jobs, source)

    assert triggered.triggered_by == [name]
    assert (as_task, jobs_of(jobs, triggered)) == ([], [Status.QUEUED])
    assert jobs.get_pipeline(triggered.id).triggered_by == ["deploy"]


def finding(jobs):
    """Return verdict and detail of what doctor says of chains and names."""
    (found,) = (one for one in jobs.check() if one.check == "chains")
    return found.verdict, found.detail


def test_deleted_source_is_reported(jobs, caplog):
    """The link is removed and logged, and doctor names the pipeline until it is changed."""
    source = jobs.create_pipeline("load", ["true"])
    other = jobs.create_pipeline("other", ["true"])
    triggered = jobs.create_pipeline("report", ["true"], triggered_by=["load", "other"])
    jobs.delete_pipeline(source.id)
    jobs.create_pipeline("load", ["true"])
    reported = finding(jobs)
    changed = jobs.get_pipeline(triggered.id)
    run(jobs, other)
    jobs.update_pipeline(triggered.id, timeout=3)
    still = finding(jobs)
    jobs.update_pipeline(triggered.id, triggered_by=["other"])

    assert changed.triggered_by == ["other"]
    assert jobs_of(jobs, triggered) == [Status.QUEUED]
    assert reported == still
    assert reported[0] == "note"
    assert "pipeline 'report'" in reported[1]
    assert "'load', which was deleted" in reported[1]
    assert finding(jobs) == ("ok", "no pipeline has lost a trigger")
    assert [text for text in caplog.messages if text.startswith("event='trigger deleted'")] != []


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
    ends = []
    for _ in range(3):
        blocker = jobs.create_job(pipeline_id=triggered.id)
        clock.advance(1)
        ends.append(run(jobs, source).end_time)
        jobs.cancel_job(blocker.id)

    assert ends[::-1] == [skip.due for skip in jobs.skips(triggered.id)]
    assert ends[:0:-1] == [skip.due for skip in jobs.skips(triggered.id, limit=2)]


def test_skips_because_of_one_job_are_one_record(jobs, clock):
    """However often a pipeline is triggered while one job runs, it is one record with a number."""
    source = jobs.create_pipeline("a", ["true"])
    triggered = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    blocker = jobs.create_job(pipeline_id=triggered.id)
    for _ in range(5):
        clock.advance(1)
        last = run(jobs, source).end_time
    (skip,) = jobs.skips(triggered.id)

    assert (skip.why, skip.count, skip.due, skip.job_id) == ("triggered", 5, last, blocker.id)


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
    "of one": ({"a": []}, ("a", ["a"])),
    "of one, in another case": ({"Straße": []}, ("Straße", ["STRASSE"])),
    "of one among others": ({"b": [], "a": []}, ("a", ["b", "A"])),
    "of two": ({"a": [], "b": ["a"]}, ("a", ["b"])),
    "of two, in another case": ({"a": [], "b": ["A"]}, ("a", ["B"])),
    "of three": ({"a": [], "b": ["a"], "c": ["b"]}, ("a", ["c"])),
    "of three with branches": (
        {"a": [], "x": [], "b": ["a", "x"], "c": ["x", "b"]}, ("a", ["x", "c"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("triggered_by", [["a"], ["A"], ["b", "a"]])
def test_pipeline_that_names_itself_is_refused_at_creation(jobs, database, triggered_by):
    """No other cycle is possible then, because no pipeline names a new one."""
    jobs.create_pipeline("b", ["true"])
    before = stored_pipelines(database)
    with pytest.raises(PipelineCycle) as caught:
        jobs.create_pipeline("a", ["true"], triggered_by=triggered_by)

    assert (caught.value.name, caught.value.status) == ("a", 400)
    assert before == stored_pipelines(database)


@pytest.mark.parametrize("case", CIRCLES)
def test_a_circle_is_refused_at_an_update(jobs, database, clock, case):
    """A change that would close a circle is refused, and no part of it is written."""
    pipelines, (name, triggered_by) = CIRCLES[case]
    made = {
        one: jobs.create_pipeline(one, ["true"], triggered_by=by) for one, by in pipelines.items()
    }
    before = stored_pipelines(database)
    clock.advance(1)
    with pytest.raises(PipelineCycle) as caught:
        jobs.update_pipeline(made[name].id, triggered_by=triggered_by, script="exit 1", timeout=5)

    assert (caught.value.name, caught.value.status) == (name, 400)
    assert before == stored_pipelines(database)


def test_renaming_closes_no_circle(jobs):
    """A pipeline may take the name that its own source had."""
    source = jobs.create_pipeline("a", ["true"])
    made = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    jobs.update_pipeline(source.id, name="c")

    assert jobs.update_pipeline(made.id, name="A").triggered_by == ["c"]


def test_acyclic_chains_are_allowed(jobs):
    """Diamonds, other workspaces and circles that were opened are fine."""
    elsewhere = jobs.create_workspace("elsewhere")
    jobs.create_pipeline("a", ["true"], workspace_id=elsewhere.id)
    jobs.create_pipeline("b", ["true"], triggered_by=["a"], workspace_id=elsewhere.id)
    b = jobs.create_pipeline("b", ["true"])
    a = jobs.create_pipeline("a", ["true"], triggered_by=["b"])
    jobs.create_pipeline("c", ["true"], triggered_by=["a"])
    jobs.create_pipeline("d", ["true"], triggered_by=["c", "a"])
    jobs.update_pipeline(a.id, triggered_by=None)
    jobs.update_pipeline(b.id, triggered_by=["d"])
    with pytest.raises(PipelineCycle):
        jobs.update_pipeline(a.id, triggered_by=["b"])
    jobs.update_pipeline(b.id, triggered_by=[])

    assert jobs.update_pipeline(a.id, triggered_by=["b"]).triggered_by == ["b"]


def test_unrelated_update_is_not_a_cycle(jobs):
    """A pipeline is not its own source: changing it again and again is allowed."""
    jobs.create_pipeline("a", ["true"])
    made = jobs.create_pipeline("b", ["true"], triggered_by=["a"])
    jobs.update_pipeline(made.id, triggered_by=["A"])

    assert jobs.update_pipeline(made.id, name="B", timeout=3).triggered_by == ["a"]


@pytest.mark.parametrize("names", ["extract", b"extract", [b"extract"], [None], 5])
def test_invalid_source_names_are_refused(jobs, names):
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
    """With `triggered_by`, the last pipeline of a diamond runs once after each side that ends."""
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
