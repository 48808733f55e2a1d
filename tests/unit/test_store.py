"""Store: jobs as they are created, found, listed and moved by their host."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone
from uuid import UUID

import pytest

from jobcore import (
    STARTED,
    ArgumentError,
    CommandError,
    InvalidTransition,
    JobManager,
    JobNotFound,
    JobNotRunning,
    PipelineAlreadyRunning,
    PipelineNotFound,
    Reason,
    Status,
    WorkspaceNotFound,
)
from jobcore.clock import to_datetime
from jobcore.lifecycle import Ending
from jobcore.storage import deletion, transitions
from jobcore.storage.database import Database
from tests.jobfiles import sql
from tests.processes import at_once, join
from tests.transactions import transaction

#: An id, but no job's. Not a random one: the names of tests are the same in every process.
NOBODY = UUID("12345678-9abc-4def-8123-456789abcdef")
#: The outermost moments that a datetime can be.
LAST = datetime.max.replace(tzinfo=timezone.utc)
FIRST = datetime.min.replace(tzinfo=timezone.utc)
NO_IDS = [
    "", "x", "../../etc/passwd", "/etc/passwd", "\0", "é", "0" * 31, "0" * 33, f"{NOBODY}x",
    "' OR 1=1 --", "%", None, 7, b"0" * 32, ..., NOBODY, NOBODY.hex,
]  # fmt: skip


def move_to(jobs, status):
    """Return a job that its host brought to `status`."""
    job = jobs.create_job("TASK")
    if status is Status.QUEUED:
        return job
    if status is Status.STOPPED:
        return jobs.cancel_job(job.id)
    jobs.start_job(job.id)
    if status is Status.RUNNING:
        return jobs.get_job(job.id)
    return jobs.finish_job(job.id, 0 if status is Status.COMPLETE else 3)


# --- ids ----------------------------------------------------------------------


@pytest.mark.parametrize("job_id", NO_IDS, ids=repr)
def test_id_that_no_job_has(jobs, job_id):
    """Every method refuses an unknown or malformed id with the same typed error."""
    move_to(jobs, Status.RUNNING)
    before = jobs.list_jobs()
    for verb in (
        jobs.get_job, jobs.start_job, jobs.finish_job, jobs.stop_job, jobs.cancel_job,
        jobs.delete_job, jobs.retry_job, jobs.history, jobs.wait, jobs.append_log,
        lambda job_id: jobs.report_progress(job_id, 1),
    ):  # fmt: skip
        with pytest.raises(JobNotFound) as refused:
            verb(job_id)
        assert refused.value.job_id is job_id

    assert jobs.list_jobs() == before


@pytest.mark.parametrize("several", [[], [NOBODY], (), {}, {NOBODY}], ids=repr)
def test_list_of_ids_is_refused_as_an_id(jobs, several):
    """A list in the place of an id is a wrong argument, and not one that nothing has."""
    for verb in (jobs.get_job, jobs.wait, jobs.get_pipeline, jobs.get_workspace):
        with pytest.raises(ArgumentError):
            verb(several)


@pytest.mark.parametrize("some_id", [one for one in NO_IDS if one is not None], ids=repr)
def test_id_that_no_workspace_or_pipeline_has(jobs, some_id):
    """An unknown workspace or pipeline is an error; nothing is created or listed."""
    for verb in (jobs.create_job, jobs.list_jobs, jobs.count_jobs):
        with pytest.raises(WorkspaceNotFound):
            verb(workspace_id=some_id)
        with pytest.raises(PipelineNotFound):
            verb(pipeline_id=some_id)
    with pytest.raises(PipelineNotFound):
        jobs.get_pipeline(some_id)
    with pytest.raises(WorkspaceNotFound):
        jobs.get_workspace(some_id)

    assert jobs.list_jobs() == []


@pytest.mark.parametrize(
    "form", [str, lambda one: one.hex, lambda one: str(one).upper(), UUID.urn.fget]
)
def test_every_form_of_a_uuid_is_the_id(jobs, form):
    """An id may be given as a UUID or as any text of it."""
    job = jobs.create_job("TASK")

    assert jobs.get_job(form(job.id)).id == job.id


# --- creating -----------------------------------------------------------------


def test_jobs_are_numbered_in_order(jobs):
    """Numbers grow in the order of creation, and ids are version 4 UUIDs."""
    made = [jobs.create_job("TASK") for _ in range(5)]

    assert [job.number for job in made] == [1, 2, 3, 4, 5]
    assert {job.id.version for job in made} == {4}
    assert {job.status for job in made} == {Status.QUEUED}


def test_submit_many_creates_all_jobs_or_no_job(jobs):
    """One command that can never run keeps all of them from being created."""
    with pytest.raises(CommandError):
        jobs.submit_many([["true"], [], ["true"]])
    none = jobs.list_jobs()
    made = jobs.submit_many([["true"]] * 3, name="n", timeout=5)

    assert none == []
    assert [job.number for job in jobs.list_jobs()] == [3, 2, 1]
    assert [job.name for job in made] == ["n"] * 3
    assert jobs.submit_many([]) == []


@pytest.mark.parametrize("data", [object(), {1, 2}, float("nan"), b"x", "x" * 70_000])
def test_invalid_or_large_data_is_refused(jobs, data):
    """A host's own data is JSON of up to 64 KiB, or refused, and nothing is created."""
    for verb in (lambda: jobs.create_job("TASK", data=data), lambda: jobs.submit(["x"], data=data)):
        with pytest.raises(CommandError):
            verb()

    assert jobs.list_jobs() == []


@pytest.mark.parametrize(
    "data",
    [0, 1, 1.0, -0.0, 0.1, 1e300, 2**53 + 1, 2**63, -(2**70), True, False, "1.0", " 1", [1.0], ""],
)
def test_data_comes_back_as_it_was_given(jobs, database, data):
    """Also a number alone, of which SQLite would make one of its own kinds."""
    made = jobs.create_job("TASK", data=data)
    with JobManager(database) as other:
        found = other.get_job(made.id)

    assert [repr(made.data), repr(found.data)] == [repr(data)] * 2


def test_deep_data_is_refused(jobs):
    """Data nested beyond all reason is refused, not a crash."""
    data = []
    for _ in range(100_000):
        data = [data]
    with pytest.raises(CommandError):
        jobs.create_job("TASK", data=data)


def test_unknown_option_is_a_command_error(jobs):
    """A misspelt option is refused, and nothing is created."""
    with pytest.raises(CommandError, match="timeot"):
        jobs.submit(["true"], timeot=3)

    assert jobs.list_jobs() == []


def test_naive_not_before_is_refused(jobs):
    """A moment without a time zone is refused."""
    with pytest.raises(ValueError, match="zone"):
        jobs.submit(["true"], not_before=datetime(2030, 1, 1))  # noqa: DTZ001 - refused

    assert jobs.list_jobs() == []


@pytest.mark.parametrize(
    "moment",
    [
        LAST.replace(tzinfo=timezone(timedelta(hours=-12))),
        FIRST.replace(tzinfo=timezone(timedelta(hours=12))),
    ],
    ids=["behind the last year", "before the first"],
)
def test_not_before_outside_utc_years_is_refused(jobs, moment):
    """A moment of the year 10000 or 0 in UTC is refused, and what is there can still be listed."""
    there = jobs.submit(["true"])

    for make in (
        lambda: jobs.submit(["true"], not_before=moment),
        lambda: jobs.submit_many([["true"], ["true"]], not_before=moment),
    ):
        with pytest.raises(CommandError, match="not_before"):
            make()

    assert [job.id for job in jobs.list_jobs()] == [there.id]
    assert sum(jobs.count_jobs().values()) == 1


@pytest.mark.parametrize("outermost", [LAST, FIRST], ids=["last", "first"])
def test_the_outermost_moments_in_utc_come_back(jobs, outermost):
    """The first and the last moment that a datetime can be are kept, in whatever zone they fit."""
    hours = timezone(timedelta(hours=-12 if outermost == LAST else 12))
    job = jobs.submit(["true"], not_before=outermost)
    other = jobs.submit(["true"], not_before=outermost.astimezone(hours))

    assert {each.not_before for each in jobs.list_jobs()} == {outermost}
    assert job.not_before == other.not_before


def test_clock_that_is_set_back_reorders_nothing(jobs, clock):
    """Jobs stay in the order of creation, and no job ends before its start."""
    first = jobs.create_job("TASK")
    clock.jump(-86400)
    second = jobs.create_job("TASK")
    jobs.start_job(first.id)
    done = jobs.finish_job(first.id)
    cancelled = jobs.create_job("TASK")
    clock.jump(-86400)
    cancelled = jobs.cancel_job(cancelled.id)

    assert second.number > first.number
    assert done.created <= done.start_time <= done.end_time
    assert cancelled.created <= cancelled.end_time


# --- pipelines ----------------------------------------------------------------


def test_pipeline_has_one_job_at_a_time(jobs):
    """A second job of a pipeline is refused with the first one's id, until that is final."""
    pipeline = jobs.create_pipeline("p", ["true"])
    first = jobs.create_job(pipeline_id=pipeline.id)
    with pytest.raises(PipelineAlreadyRunning) as refused:
        jobs.create_job(pipeline_id=pipeline.id)
    jobs.cancel_job(first.id)
    second = jobs.create_job(pipeline_id=pipeline.id)

    assert (refused.value.job_id, refused.value.pipeline_id) == (first.id, pipeline.id)
    assert second.workspace_id == pipeline.workspace_id
    assert len(jobs.list_jobs()) == 2


def test_job_that_is_over_in_truth_does_not_block(jobs, scripted, database):
    """A pipeline whose job has ended, though nobody has noticed yet, takes the next one."""
    pipeline = jobs.create_pipeline("p", ["true"])
    run = scripted()
    sql(database, "DROP TRIGGER job_keeps_its_id")
    sql(database, "UPDATE job SET pipeline_id = ?", pipeline.id.hex)
    run.started()
    with pytest.raises(PipelineAlreadyRunning):
        jobs.create_job(pipeline_id=pipeline.id)
    run.die()
    job = jobs.create_job(pipeline_id=pipeline.id)

    assert job.status is Status.QUEUED
    assert jobs.get_job(run.id).reason is Reason.LOST


def test_sixteen_contenders_one_winner(jobs, database):
    """Of sixteen creates for one pipeline in four processes exactly one wins, in each round."""
    pipelines = [jobs.create_pipeline(f"p{n}", ["true"]).id for n in range(20)]

    def contend(path):
        won = []
        with JobManager(path, slots=0) as mine:

            def create():
                for pipeline in pipelines:
                    try:
                        won.append(mine.create_job(pipeline_id=pipeline).pipeline_id)
                    except PipelineAlreadyRunning:
                        pass

            threads = [threading.Thread(target=create) for _ in range(4)]
            for thread in threads:
                thread.start()
            join(*threads)
        return won

    winners = [pipeline for won in at_once(contend, [(database,)] * 4) for pipeline in won]

    assert sorted(winners, key=str) == sorted(pipelines, key=str)
    assert jobs.count_jobs()[Status.QUEUED] == len(pipelines)


# --- listing ------------------------------------------------------------------


def test_pages_are_newest_first_without_holes(jobs):
    """Pages follow one another by the last number, also while jobs are created and deleted."""
    made = [jobs.create_job("TASK") for _ in range(25)]
    pages, before = [], None
    while page := jobs.list_jobs(limit=7, before=before):
        pages.append([job.number for job in page])
        before = page[-1].number
        jobs.create_job("TASK")
        jobs.delete_job(page[0].id)

    assert [number for page in pages for number in page] == [job.number for job in reversed(made)]
    assert [len(page) for page in pages] == [7, 7, 7, 4]


@pytest.mark.parametrize("limit", [-1, 1.5, "7", None, True])
def test_limit_of_a_page_is_checked(jobs, limit):
    """What is no number of jobs is refused; it does not mean all of them."""
    with pytest.raises(ValueError, match="limit"):
        jobs.list_jobs(limit=limit)


def test_filters_choose(jobs):
    """A list has exactly the jobs of a status, type, workspace or pipeline, and the count too."""
    for status in Status:
        move_to(jobs, status)
    other = jobs.create_workspace("other")
    there = jobs.create_job("SPECIAL", workspace_id=other.id)
    pipeline = jobs.create_pipeline("p", ["true"], workspace_id=other.id)
    piped = jobs.create_job(pipeline_id=pipeline.id)

    def statuses(**filters):
        return sorted(str(job.status) for job in jobs.list_jobs(**filters))

    assert statuses(status=STARTED) == ["COMPLETE", "ERROR", "RUNNING", "STOPPED"]
    assert statuses(status=Status.ERROR) == statuses(status="ERROR") == ["ERROR"]
    assert statuses(status=[Status.RUNNING, "QUEUED"]) == ["QUEUED"] * 3 + ["RUNNING"]
    assert statuses(status=[]) == []
    assert [job.id for job in jobs.list_jobs(type="SPECIAL")] == [there.id]
    assert [job.id for job in jobs.list_jobs(type=["SPECIAL", "PIPELINE_RUN"])] == [
        piped.id,
        there.id,
    ]
    assert [job.id for job in jobs.list_jobs(workspace_id=str(other.id))] == [piped.id, there.id]
    assert [job.id for job in jobs.list_jobs(pipeline_id=pipeline.id)] == [piped.id]
    assert jobs.count_jobs() == {
        Status.QUEUED: 3, Status.RUNNING: 1, Status.COMPLETE: 1, Status.ERROR: 1, Status.STOPPED: 1,
    }  # fmt: skip
    assert jobs.count_jobs(type="SPECIAL") == {**dict.fromkeys(Status, 0), Status.QUEUED: 1}


@pytest.mark.parametrize("hostile", ["' OR 1=1 --", "'; DROP TABLE job; --", "%", '"', "\0", "é"])
def test_filters_are_values(jobs, database, hostile):
    """Whatever a filter or a name contains is a value, never SQL."""
    made = jobs.create_job(hostile, name=hostile, data=hostile)
    jobs.create_job("TASK")
    schema = [tuple(row) for row in sql(database, "SELECT sql FROM sqlite_master")]

    assert [job.id for job in jobs.list_jobs(type=hostile)] == [made.id]
    assert jobs.get_job(made.id).name == hostile
    with pytest.raises(ValueError, match="is not a status"):
        jobs.list_jobs(status=hostile)
    assert [tuple(row) for row in sql(database, "SELECT sql FROM sqlite_master")] == schema


# --- moving -------------------------------------------------------------------


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("verb", ["start", "finish", "stop", "cancel", "retry"])
def test_verb_in_every_status(jobs, status, verb):
    """Each verb does what the rules say in each status, or is refused and changes nothing."""
    job = move_to(jobs, status)
    before = jobs.get_job(job.id), jobs.history(job.id)
    expected = {
        ("start", Status.QUEUED): Status.RUNNING,
        ("finish", Status.RUNNING): Status.COMPLETE,
        ("stop", Status.RUNNING): Status.STOPPED,  # without a process: at once
        ("cancel", Status.QUEUED): Status.STOPPED,
        ("cancel", Status.RUNNING): Status.STOPPED,
        ("retry", Status.ERROR): Status.QUEUED,
        ("retry", Status.STOPPED): Status.QUEUED,
    }.get((verb, status))
    error = JobNotRunning if verb == "stop" else InvalidTransition

    if expected is None:
        with pytest.raises(error) as refused:
            getattr(jobs, f"{verb}_job")(job.id)
        assert refused.value.job_id == job.id
        assert str(refused.value.job_status) == str(status)
        assert (jobs.get_job(job.id), jobs.history(job.id)) == before
    else:
        assert getattr(jobs, f"{verb}_job")(job.id).status is expected


@pytest.mark.parametrize("code", [-1, 256, 1.5, "0", None, True])
def test_exit_code_of_a_host_is_a_byte(jobs, code):
    """What is no exit code is refused, and the job is RUNNING still."""
    job = move_to(jobs, Status.RUNNING)
    with pytest.raises(ValueError, match="exit_code must be"):
        jobs.finish_job(job.id, code)

    assert jobs.get_job(job.id).status is Status.RUNNING


def test_job_in_a_process_is_not_the_hosts(jobs, scripted):
    """A host cannot finish what a process runs: its end decides."""
    run = scripted()
    with pytest.raises(InvalidTransition, match="process"):
        jobs.finish_job(run.id, 0)

    assert jobs.get_job(run.id).status is Status.RUNNING


def test_history_has_every_transition(jobs, clock):
    """History has each move with its moment, trigger, reason and process, oldest first."""
    job = jobs.create_job("TASK")
    clock.advance(1)
    jobs.start_job(job.id)
    clock.advance(1)
    jobs.finish_job(job.id, 9)
    entries = jobs.history(job.id)
    moves = [
        (str(e.trigger), e.from_status and str(e.from_status), str(e.to_status)) for e in entries
    ]

    assert moves == [
        ("create", None, "QUEUED"), ("start", "QUEUED", "RUNNING"), ("finish", "RUNNING", "ERROR"),
    ]  # fmt: skip
    assert [e.reason for e in entries] == [None, None, Reason.EXITED]
    assert [e.at - entries[0].at for e in entries] == [timedelta(seconds=n) for n in range(3)]
    assert all(e.actor for e in entries)


def test_stop_is_in_the_history_once(jobs, scripted):
    """Asking again for no less is no new entry; a shorter grace is."""
    run = scripted()
    for grace in (5, 5, 9, None, 1):
        jobs.stop_job(run.id, grace=grace)

    told = [str(entry.trigger) for entry in jobs.history(run.id)]
    assert told == ["create", "start", "stop", "stop"]
    assert jobs.get_job(run.id).stop_requested == jobs.history(run.id)[2].at


def test_retry_is_a_new_job(jobs):
    """A retry has the same arguments, the next attempt and its original's id."""
    workspace = jobs.create_workspace("w")
    first = jobs.submit(["true"], name="n", data={"a": 1}, workspace_id=workspace.id)
    jobs.cancel_job(first.id)
    before = jobs.get_job(first.id)
    second = jobs.retry_job(first.id)
    jobs.cancel_job(second.id)
    third = jobs.retry_job(second.id)

    assert (second.attempt, second.retry_of) == (2, first.id)
    assert (third.attempt, third.retry_of) == (3, second.id)
    assert (second.name, second.data, second.type, second.workspace_id) == (
        "n", {"a": 1}, "COMMAND", workspace.id,
    )  # fmt: skip
    assert jobs.get_job(first.id) == before


@pytest.mark.parametrize("status", Status)
def test_deleted_job_is_gone_in_every_status(jobs, database, status):
    """A job of any status can be deleted completely, and its pipeline is free."""
    pipeline = jobs.create_pipeline("p", ["true"])
    job = move_to(jobs, status)
    if not status.final:
        sql(database, "DROP TRIGGER job_keeps_its_id")
        sql(database, "UPDATE job SET pipeline_id = ?", pipeline.id.hex)
    jobs.delete_job(job.id)

    for verb in (jobs.get_job, jobs.delete_job, jobs.history):
        with pytest.raises(JobNotFound):
            verb(job.id)
    assert sql(database, "SELECT * FROM job") == []
    assert sql(database, "SELECT * FROM transition") == []
    assert jobs.create_job(pipeline_id=pipeline.id).number == job.number + 1


def test_half_deleted_job_is_hidden(jobs, database):
    """From the first step of its deletion on nobody sees a job."""
    job = move_to(jobs, Status.RUNNING)
    sql(database, "UPDATE job SET deleted_at = 1")

    assert jobs.list_jobs() == []
    assert jobs.count_jobs() == dict.fromkeys(Status, 0)
    for verb in (jobs.get_job, jobs.start_job, jobs.finish_job, jobs.append_log, jobs.cancel_job):
        with pytest.raises(JobNotFound):
            verb(job.id)


def test_one_claim_wins(database):
    """Of eight processes that claim each of a hundred jobs, exactly one gets it."""
    with JobManager(database, slots=0) as jobs:
        numbers = [job.number for job in jobs.submit_many([["true"]] * 100)]

    def claim(path, token):
        opened = Database(path)
        won = []
        for number in numbers:
            with transaction(opened, durable=False) as connection:
                if transitions.start_if_queued(connection, number, now=1, token=token):
                    won.append(number)
        opened.close()
        return won

    won = at_once(claim, [(database, f"{n:032}") for n in range(8)])
    tokens = {row["number"]: row["token"] for row in sql(database, "SELECT * FROM job")}

    assert sorted(number for one in won for number in one) == numbers
    assert tokens == {number: f"{n:032}" for n, one in enumerate(won) for number in one}


def test_offset_moves_by_compare_and_set(jobs, scripted, database):
    """An import that comes late, or speaks for another run, moves nothing."""
    run = scripted()
    opened = Database(database)
    with opened.read() as connection:
        old = transitions.find(connection, jobs.get_job(run.id).number)
    moves = []
    for one, offset in (
        (old, 100),
        (old, 50),
        (old, 200),
        (old._replace(spool_offset=100, token="f" * 32), 150),
        (old._replace(spool_offset=100), 150),
    ):
        with transaction(opened) as connection:
            moves.append(
                transitions.advance_if_at(
                    connection, one, offset=offset, next_sequence=offset // 10, unmerged=(0, 0)
                )
            )
    opened.close()

    assert moves == [True, False, False, False, True]
    assert (run.row()["spool_offset"], run.row()["next_sequence"]) == (150, 15)


def test_a_verdict_waits_for_all_of_the_log(jobs, scripted, database):
    """A job is settled only at the offset that its log has come to, and for its own run."""
    run = scripted()
    run.write(b"one\n")
    number = jobs.get_job(run.id).number
    opened = Database(database)
    with opened.read() as connection:
        now = transitions.find(connection, number)
    settled = []
    for one, offset in (
        (now, now.spool_offset + 1),
        (now, 0),
        (now._replace(token="f" * 32), now.spool_offset),
        (now, now.spool_offset),
        (now, now.spool_offset),
    ):
        with transaction(opened) as connection:
            final = transitions.settle_if_running(
                connection, one, offset=offset, ending=Ending(Reason.EXITED, 0), now=2**60
            )
            settled.append(final is not None)
    opened.close()

    assert settled == [False, False, False, True, False]
    assert run.row()["status"] == "COMPLETE"


def test_only_a_final_job_that_is_hidden_is_removed(jobs, scripted, database):
    """A row is removed only if the job is final and marked as deleted."""
    run, final = scripted(), jobs.cancel_job(jobs.create_job("TASK").id)
    opened = Database(database)
    removed = []
    with transaction(opened) as connection:
        for number in (run.job.number, final.number):
            removed.append(deletion.remove_if_final(connection, number))
            assert deletion.mark_job_deleted(connection, number, now=0)
            removed.append(deletion.remove_if_final(connection, number))
    opened.close()

    assert removed == [False, False, False, True]
    assert [row["number"] for row in sql(database, "SELECT number FROM job")] == [run.job.number]


def test_default_workspace_is_made_once(jobs, database):
    """Jobs without a workspace share one, however many processes ask first."""

    def ask(path):
        with JobManager(path, slots=0) as mine:
            return mine.get_workspace().id

    found = {*at_once(ask, [(database,)] * 6), jobs.create_job("TASK").workspace_id}

    assert len(found) == 1


def test_times_are_utc_whatever_the_zone(jobs, clock, monkeypatch):
    """The host's time zone changes no time."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        job = jobs.create_job("TASK")
        moment = datetime.now(timezone(timedelta(hours=14))) + timedelta(hours=1)
        delayed = jobs.submit(["true"], not_before=moment)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert job.created == to_datetime(clock.now())
    assert delayed.not_before == moment
    assert delayed.not_before.utcoffset() == timedelta(0)
