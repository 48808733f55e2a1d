"""Filters and orders of jobs: what is found, by every way to find it."""

from __future__ import annotations

import fnmatch
import itertools
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from functools import partial

import hypothesis
import pytest
from hypothesis import strategies as st

from jobcore import FINAL, ArgumentError, JobManager, Reason, Status, Submission, WorkspaceNotFound
from jobcore.operations import job_filters
from jobcore.storage import glob, job_search
from jobcore.testing import ManualClock
from jobcore.testing.parts import parts
from tests.tasks import end


def make(jobs, clock):
    """Create jobs of all kinds, at different times; return them as they are then."""
    place = jobs.create_workspace("other").id
    for n in range(48):
        job = jobs.create_job(
            "TASK" if n % 3 else "OTHER",
            name=("load-a", "load-b", "clean", None)[n % 4],
            key=f"k{n % 5}" if n % 7 == 0 else None,
            group=("gpu", None)[n % 2],
            workspace_id=place if n % 11 == 0 else None,
        )
        clock.advance(10)
        if n % 6 == 0:
            continue
        if n % 6 == 1:
            jobs.cancel_job(job.id)
            continue
        jobs.start_job(job.id)
        clock.advance(n * 7 % 13)
        if n % 6 == 2:
            continue
        if n % 6 == 3:
            jobs.stop_job(job.id)
        else:
            jobs.finish_job(job.id, n % 4)
    return sorted(jobs.list_jobs(limit=1000), key=lambda job: job.number), place


@pytest.fixture(scope="module", params=["indexed", "walked", "windows"])
def filled(tmp_path_factory, request):
    """Return a manager of such jobs, the jobs, and the way in which they are found."""
    clock = ManualClock()
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "indexed":
            patch.setattr(job_search, "CANDIDATES", 0)
        broad = request.param == "windows"
        patch.setattr(job_search, "_is_broad", lambda *_: broad)
        for name in ("AT_ONCE", "WALKED", "ENTRIES", "WINDOW"):
            patch.setattr(job_search, name, 7)
        path = tmp_path_factory.mktemp("filters") / "jobs.db"
        with JobManager(path, slots=0, clock=clock) as jobs:
            made, place = make(jobs, clock)
            yield jobs, made, place


def values(order):
    """Return the function with the value of a job in an order, or None."""
    return {
        "created": lambda job: job.number,
        "started": lambda job: job.start_time,
        "ended": lambda job: job.end_time,
        "duration": lambda job: job.duration,
    }[order]


def expected(made, order, matches):
    """Return the numbers of the jobs that should be found, in order."""
    value = values(order)
    found = [job for job in made if value(job) is not None and matches(job)]
    return [
        job.number for job in sorted(found, key=lambda job: (value(job), job.number), reverse=True)
    ]


def filters(made, place):
    """Return filters, each with the condition that it stands for."""
    middle, late = made[20].created, made[35].created
    ends = sorted(job.end_time for job in made if job.end_time is not None)
    first, last = ends[5], ends[-5]
    return [
        ({}, lambda job: True),  # noqa: ARG005 - every job
        ({"name": "load-a"}, lambda job: job.name == "load-a"),
        ({"name": "load-*"}, lambda job: job.name and fnmatch.fnmatchcase(job.name, "load-*")),
        ({"name": "*a*"}, lambda job: job.name and "a" in job.name),
        ({"name": "[!l]*"}, lambda job: job.name == "clean"),
        ({"name": "nothing"}, lambda job: False),  # noqa: ARG005 - no job
        ({"key": "k2"}, lambda job: job.key == "k2"),
        ({"group": "gpu"}, lambda job: job.group == "gpu"),
        ({"reason": Reason.CANCELLED}, lambda job: job.reason == "cancelled"),
        (
            {"reason": ["stopped", "exited"], "status": "STOPPED"},
            lambda job: job.reason == "stopped",
        ),
        ({"exit_code": 0}, lambda job: job.exit_code == 0),
        ({"exit_code": [1, 3]}, lambda job: job.exit_code in (1, 3)),
        ({"created_since": middle}, lambda job: job.created >= middle),
        (
            {"created_since": middle, "created_until": late},
            lambda job: middle <= job.created < late,
        ),
        (
            {"ended_since": first, "ended_until": last},
            lambda job: job.end_time is not None and first <= job.end_time < last,
        ),
        (
            {"ended_since": first, "status": Status.ERROR, "type": "TASK", "group": "gpu"},
            lambda job: (
                (job.status, job.type, job.group) == ("ERROR", "TASK", "gpu")
                and job.end_time >= first
            ),
        ),
        (
            {"workspace_id": place, "name": "l*"},
            lambda job: job.workspace_id == place and job.name and job.name[0] == "l",
        ),
        ({"status": ["RUNNING", "QUEUED"]}, lambda job: not job.status.final),
        ({"workspace_id": place}, lambda job: job.workspace_id == place),
    ]


@pytest.mark.parametrize("order", job_search.ORDERS)
def test_every_filter_in_every_order(filled, order):
    """Lists, pages and counts agree with a plain search of all jobs."""
    jobs, made, place = filled
    for given, matches in filters(made, place):
        wanted = expected(made, order, matches)
        whole = jobs.list_jobs(**given, order=order, limit=1000)
        assert [job.number for job in whole] == wanted, given

        pages, before = [], None
        while page := jobs.list_jobs(**given, order=order, limit=4, before=before):
            pages += [job.number for job in page]
            before = pages[-1]
        assert pages == wanted, given
        assert whole == [job for number in wanted for job in made if job.number == number]


def test_every_count(filled):
    """Counts by status are those of the jobs that are found."""
    jobs, made, place = filled
    for given, matches in filters(made, place):
        found = [job for job in made if matches(job)]
        counted = jobs.count_jobs(**given)
        assert counted == {
            status: sum(job.status == status for job in found) for status in Status
        }, given


def test_events_are_filtered_likewise(filled):
    """Filters use the facts of the event, such as its reason and exit code."""
    jobs, _, place = filled
    whole = list(jobs.events())
    ends = [event for event in whole if event.to_status.final]
    for given, wanted in (
        ({"name": "load-*"}, [one for one in whole if one.name and one.name[:5] == "load-"]),
        ({"name": "[!l]*"}, [one for one in whole if one.name == "clean"]),
        ({"key": "k2"}, [one for one in whole if one.key == "k2"]),
        ({"group": "gpu", "type": "OTHER"},
         [one for one in whole if (one.group, one.type) == ("gpu", "OTHER")]),
        ({"reason": ["cancelled", "stopped"]}, [one for one in ends if one.reason != "exited"]),
        ({"exit_code": [1, 3]}, [one for one in ends if one.exit_code in (1, 3)]),
        ({"workspace_id": place, "name": "l*"},
         [one for one in whole if one.workspace_id == place and (one.name or "")[:1] == "l"]),
    ):  # fmt: skip
        assert wanted, given
        assert list(jobs.events(**given)) == wanted, given


def test_subscriber_gets_what_passes_its_filters(jobs):
    seen = []
    jobs.subscribe(seen.append, group="gpu", name="load*")
    for name, group in (("load 1", "gpu"), ("load 2", None), (None, "gpu"), ("load 3", "gpu")):
        jobs.create_job("TASK", name=name, group=group)
    jobs.close()

    assert [event.name for event in seen] == ["load 1", "load 3"]


@pytest.mark.parametrize("name", ["created_since", "ended_until", "nmae"])
def test_events_have_no_times_to_filter_by(filled, name):
    jobs, made, _ = filled
    for call in (jobs.events, jobs.events_async, partial(jobs.subscribe, print)):
        with pytest.raises(ArgumentError, match=f"events have no filter {name}"):
            call(**{name: made[0].created})


@hypothesis.given(
    pattern=st.text("ab-c[]^*?!\\\n", max_size=8),
    value=st.text("abc-]^[!\\\n", max_size=5),
)
@hypothesis.example(pattern="[]-c]", value="-")
@hypothesis.example(pattern="c[^]*", value="c^\n\\")
def test_pattern_means_the_same_in_python_and_in_sqlite(pattern, value):
    with closing(sqlite3.connect(":memory:")) as connection:
        (wanted,) = connection.execute("SELECT ? GLOB ?", (value, pattern)).fetchone()
    assert glob.matches(pattern, value) == bool(wanted)


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ("x[[!]", ["x!", "x["]),
        ("x[!^]", ["x!", "x["]),
        ("x[!]!]", ["x[", "x^"]),
        ("[[!x]!", ["x!"]),
    ],
)
def test_exclamation_mark_negates_a_set_only_at_its_beginning(jobs, pattern, matching):
    """A verb must not take a job that its pattern does not match."""
    for name in ("x!", "x[", "x^"):
        jobs.create_job("TASK", name=name)
    assert sorted(job.name for job in jobs.list_jobs(name=pattern)) == matching


#: A value of each filter that some but not all jobs of `filled` pass.
SOME = {
    "status": ["ERROR", "QUEUED"], "type": "TASK", "name": "load-*", "key": "k0",
    "group": "gpu", "reason": ["cancelled", "exited"], "exit_code": [1, 3],
    **dict.fromkeys(job_filters.NAMES[-4:]), "workspace_id": None, "pipeline_id": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "takes"),
    [
        ("stop_jobs", {"RUNNING"}),
        ("cancel_jobs", {"QUEUED", "RUNNING"}),
        ("delete_jobs", set(Status)),
        ("retry_jobs", {"ERROR", "STOPPED"}),
        ("prune", FINAL),
    ],
)
def test_verbs_for_many_jobs_take_every_filter(tmp_path, clock, verb, takes):
    """Each changes those jobs that `list_jobs` finds with the same filter, and no others."""
    with JobManager(tmp_path / "whole.db", slots=0, clock=clock) as jobs:
        made, place = make(jobs, clock)
        pipeline = jobs.create_pipeline("p", ["true"]).id
        end(jobs, jobs.create_job("TASK", pipeline_id=pipeline), 1)
        if verb != "retry_jobs":  # while it runs, its pipeline has no retry
            jobs.start_job(jobs.create_job("TASK", pipeline_id=pipeline).id)
    middle = made[24].created
    for name in job_filters.NAMES:
        value = {"workspace_id": place, "pipeline_id": pipeline}.get(name, SOME[name] or middle)
        if (verb, name) == ("prune", "status"):
            value = "ERROR"
        shutil.copy(tmp_path / "whole.db", path := tmp_path / f"{name}.db")
        with JobManager(path, slots=0, clock=clock, trust_directory=True) as jobs:
            before = jobs.list_jobs(limit=1000)
            found = {job.id for job in jobs.list_jobs(**{name: value}, limit=1000)}
            wanted = {job.id for job in before if job.id in found and job.status in takes}
            if verb == "prune":
                listed = {job.id for job in jobs.prune(0, dry_run=True, **{name: value})}
                assert jobs.prune(0, **{name: value}) == len(listed)
                left = {job.id for job in jobs.list_jobs(limit=1000)}
                assert {job.id for job in before} - left == listed
            else:
                done = getattr(jobs, verb)(**{name: value})
                listed = {job.retry_of if verb == "retry_jobs" else job.id for job in done}
        if verb == "retry_jobs":  # of a job whose key another one holds there is no retry
            wanted = {job.id for job in before if job.id in wanted and not job.key} | (
                listed & wanted
            )
        assert listed == wanted, name
        assert len(wanted) < len(before), name


def test_thousands_of_types_are_no_slower_than_one(jobs):
    """They are one value of a statement, and types without jobs are left out first."""
    for n in range(60):
        jobs.create_job(f"T{n % 30}", name=str(n))
    few, most = [f"T{n}" for n in range(3)], [f"T{n}" for n in range(40_000)]
    for types, names in ((few, [n for n in range(60) if n % 30 < 3]), (most, range(60))):
        many = [*types, *(f"X{n}" for n in range(40_000))]
        for order in ("created", "started"):
            found = jobs.list_jobs(type=many, order=order, limit=1000)
            assert [job.name for job in found][::-1] == [
                str(n) for n in names if order == "created"
            ]
        assert jobs.count_jobs(type=many)[Status.QUEUED] == len(names)
        assert jobs.count_jobs(type=many, name="*")[Status.QUEUED] == len(names)
    assert len(jobs.cancel_jobs(type=most)) == 60


def test_before_needs_a_place_in_the_order(filled):
    """A job that has not ended has no place in the order of ends."""
    jobs, made, _ = filled
    for number in (made[0].number, 9999):
        with pytest.raises(ArgumentError, match='in the order "ended"'):
            jobs.list_jobs(order="ended", before=number)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"name": 5}, "name must be a string"),
        ({"key": 5}, "key must be a string"),
        ({"group": b"x"}, "group must be a string"),
        ({"reason": "bad"}, "'bad' is not a reason: exited"),
        ({"exit_code": 256}, "exit_code must be an integer from 0 to 255"),
        ({"exit_code": "0"}, "exit_code must be an integer from 0 to 255"),
        ({"created_since": 5}, "created_since must be a datetime"),
        ({"ended_until": ManualClock}, "ended_until must be a datetime"),
    ],
)
def test_wrong_filters_are_refused(filled, given, text):
    """The text names the filter."""
    jobs, _, _ = filled
    for call in (
        jobs.list_jobs, jobs.count_jobs, jobs.stop_jobs, jobs.cancel_jobs, jobs.delete_jobs,
        jobs.retry_jobs,
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=text):
            call(**given)


def test_unknown_filters_and_orders_are_refused(filled):
    """A misspelled filter must not select everything."""
    jobs, made, _ = filled
    with pytest.raises(ArgumentError, match="jobs have no filter nmae"):
        jobs.delete_jobs(nmae="x")
    with pytest.raises(ArgumentError, match="order must be one of"):
        jobs.list_jobs(order="name")
    with pytest.raises(ArgumentError, match="created_since needs a time zone"):
        jobs.list_jobs(created_since=made[0].created.replace(tzinfo=None))
    with pytest.raises(WorkspaceNotFound):
        jobs.stop_jobs(workspace_id="0" * 32)


@pytest.mark.parametrize(
    "name", ["a", "\ud7ff", "\U0010ffff", "a\U0010ffff", "é*", "[", "a[b", "%_"]
)
def test_names_of_all_kinds_are_found(database, name):
    """A name is found by itself, unless it is a pattern, and by its beginning."""
    with JobManager(database, slots=0) as jobs:
        job = jobs.submit(["true"], name=name + "x")
        if not set(name) & set("[*"):
            assert jobs.list_jobs(name=name + "x") == [job]
            assert jobs.list_jobs(name=name + "*") == [job]
        assert jobs.list_jobs(name="*x") == [job]


# --- many jobs at once --------------------------------------------------------------


def numbers(found):
    """Return the numbers of jobs."""
    return [job.number for job in found]


def test_cancel_and_stop_many(jobs):
    """QUEUED jobs are cancelled, RUNNING ones stopped; `stop_jobs` takes the latter only."""
    made = jobs.submit_many([["true"]] * 250, type="TASK", group="g")
    started = [jobs.start_job(job.id) for job in made[:3]]
    other = jobs.submit(["true"], group="h")

    assert numbers(jobs.stop_jobs(group="g")) == numbers(started)
    assert {job.status for job in jobs.list_jobs(status=Status.STOPPED)} == {"STOPPED"}
    running = jobs.start_job(made[3].id)
    found = jobs.cancel_jobs(group="g")
    assert numbers(found) == [*numbers(made[4:]), running.number]
    assert {(job.status, job.reason) for job in found[:-1]} == {("STOPPED", "cancelled")}
    assert jobs.get_job(other.id).status == Status.QUEUED
    assert jobs.cancel_jobs(group="g") == jobs.stop_jobs() == []


def test_delete_many(jobs):
    """Jobs of every status go, as the call returns them; the others stay."""
    made = jobs.submit_many([["true"]] * 250, type="TASK", name="old")
    jobs.start_job(made[0].id)
    jobs.finish_job(jobs.start_job(made[1].id).id)
    keep = jobs.submit(["true"], name="new")
    with pytest.raises(ArgumentError, match="delete_jobs needs a filter"):
        jobs.delete_jobs()
    with pytest.raises(ArgumentError, match="delete_jobs needs a filter"):
        jobs.delete_jobs(status=None)

    found = jobs.delete_jobs(name="old")
    assert numbers(found) == numbers(made)
    assert [job.status for job in found[:3]] == ["RUNNING", "COMPLETE", "QUEUED"]
    assert jobs.list_jobs(limit=1000) == [keep]
    assert numbers(jobs.delete_jobs(status=list(Status))) == [keep.number]


def test_running_commands_are_stopped_and_deleted(database):
    """Their processes end; all graces run at once."""
    with JobManager(database, slots=3) as jobs:
        made = jobs.submit_many([["sleep", "600"]] * 3)
        for job in made:
            jobs.wait(job.id, until="started", timeout=60)
        assert numbers(jobs.stop_jobs(grace=0, created_since=made[0].created)) == numbers(made)
        assert {job.status for job in jobs.wait_all([job.id for job in made], timeout=60)} == {
            "STOPPED"
        }
        again = jobs.submit(["sleep", "600"], name="again")
        jobs.wait(again.id, until="started", timeout=60)
        assert numbers(jobs.delete_jobs(name="again")) == [again.number]


def test_retry_many_once(jobs, clock):
    """Each failed job is retried once, however often one calls."""
    made = jobs.submit_many([Submission(["true"], name=f"n{n % 2}") for n in range(6)])
    for job, code in zip(made, itertools.cycle([0, 1, 2])):
        jobs.start_job(job.id)
        jobs.finish_job(job.id, code)
    clock.advance(5)
    first = jobs.retry_jobs(name="n1", exit_code=[1, 2])
    assert [job.retry_of for job in first] == [made[1].id, made[5].id]
    assert {(job.status, job.attempt) for job in first} == {("QUEUED", 2)}

    assert [job.retry_of for job in jobs.retry_jobs()] == [made[2].id, made[4].id]
    assert jobs.retry_jobs() == []
    jobs.cancel_job(first[0].id)
    assert [job.retry_of for job in jobs.retry_jobs(ended_since=first[0].created)] == [first[0].id]


def test_retry_leaves_out_what_is_blocked(jobs):
    """Jobs of a running pipeline or with a held key are left out; the others are retried."""
    line = jobs.create_pipeline("p", ["true"])
    failed = []
    for more in ({"pipeline_id": line.id}, {"key": "k"}, {}):
        job = jobs.create_job("TASK", **more)
        failed.append(jobs.finish_job(jobs.start_job(job.id).id, 1))
    jobs.create_job(pipeline_id=line.id)
    jobs.submit(["true"], key="k")

    assert [job.retry_of for job in jobs.retry_jobs()] == [failed[2].id]


def test_retry_of_many_takes_the_environment(jobs):
    """It is stored once."""
    for _ in range(2):
        job = jobs.submit(["true"], env_from="submitter")
        jobs.finish_job(jobs.start_job(job.id).id, 1)
    assert [job.env_from for job in jobs.retry_jobs()] == ["submitter"] * 2
    with parts(jobs).database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM environment").scalar() == 1


def test_times_are_inclusive_at_the_beginning_only(jobs, clock):
    """The borders of two ranges that meet have each job once."""
    made = []
    for _ in range(3):
        made.append(jobs.submit(["true"]))
        clock.advance(1)
    border = made[1].created

    assert numbers(jobs.list_jobs(created_until=border)) == numbers(made[:1])
    assert numbers(jobs.list_jobs(created_since=border)) == [3, 2]
    assert jobs.list_jobs(created_since=border + timedelta(hours=1)) == []
