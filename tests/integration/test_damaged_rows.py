"""Damaged rows: a list has all the others, and says what is missing."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from contextlib import closing

import pytest

from jobcore import DatabaseCorrupt, InvalidTransition, JobManager, Status
from jobcore.clock import seconds_of
from jobcore.engine import remover
from jobcore.engine.postponement import MOST_LISTED, Postponement
from jobcore.engine.scheduler import Scheduler
from jobcore.operations import doctor
from jobcore.supervisor import job_directory
from jobcore.testing.parts import parts
from tests.integration.verbs_harness import in_a_pipe
from tests.jobfiles import UNDECODABLE, damage, damage_rows, sql
from tests.processes import until

#: What no jobcore has ever stored.
GARBAGE = {
    "bytes": b"\x00\xff",
    "text": "garbage {",
    "a negative number": -(2**63),
    "a fraction": 1e308,
    "text that is not UTF-8": UNDECODABLE,
}


def columns_of(database, table):
    """Return the columns of a table."""
    return [row["name"] for row in sql(database, f"PRAGMA table_info({table})")]


def rows_found(database):
    """Return what doctor finds of damaged rows."""
    (found,) = [one for one in doctor.examine(database) if one.check == "rows"]
    return found


def is_shown(get, made):
    """Tell whether a job or pipeline can be got, by its id; if not, the error names it."""
    said = []
    try:
        get(made.id)
    except DatabaseCorrupt as error:
        said.append(str(error))
    except LookupError:
        return False  # its id, or the mark of its deletion, is what is damaged
    assert all(str(made.id) in one and "`jobcore doctor`" in one for one in said)
    return not said


#: What hides a row by rights: it seems to be in the middle of its deletion.
HIDES = ("deleted_at",)


@pytest.mark.parametrize("what", GARBAGE)
def test_list_of_jobs_has_all_but_the_damaged_ones(database, jobs, caplog, what):
    """With garbage in any column, a job is listed as it is, or reported as missing."""
    # An unknown status is met by each list, so it comes first.
    others = [one for one in columns_of(database, "job") if one not in ("number", "status")]
    columns = ["status", *others]
    made = {name: jobs.submit_many([["true"]] * 3, name=name) for name in columns}
    bad_ones = [(bad.id, column, GARBAGE[what]) for column, (_, bad, _) in made.items()]
    damage_rows(database, "job", bad_ones)
    known = set()
    with JobManager(database, slots=0) as reader:
        for column, (before, bad, after) in made.items():
            caplog.clear()
            listed = {job.number for job in reader.list_jobs(before=after.number + 1, limit=3)}
            missing = set(reader.list_damaged_rows()) - known
            known |= missing
            shown = is_shown(reader.get_job, bad)

            assert {before.number, after.number} <= listed, column
            if column in HIDES:
                assert bad.number not in listed
            else:
                assert (bad.number in listed) != bool(missing), column
                assert not missing or "row damaged" in caplog.text, column
                # A list shows no command.
                assert shown == (bad.number in listed) or column == "command", column
        counted = sum(reader.count_jobs().values())
    good = {job.number for before, _, after in made.values() for job in (before, after)}
    assert counted >= len(good)
    assert good <= {job.number for job in jobs.list_jobs(limit=10_000)}
    assert rows_found(database).verdict == "wrong"


@pytest.mark.parametrize("what", GARBAGE)
def test_list_of_pipelines_has_all_but_the_damaged_ones(database, jobs, what):
    """With garbage in any column, a pipeline is listed as it is, or reported as missing."""
    known = set()
    with JobManager(database, slots=0) as reader:
        for column in columns_of(database, "pipeline"):
            good, bad = (
                jobs.create_pipeline(f"{column} {n}", ["true"], schedule="@daily") for n in range(2)
            )
            damage(database, "pipeline", bad.id, **{column: GARBAGE[what]})
            listed = {pipeline.id for pipeline in reader.list_pipelines()}
            missing = set(reader.list_damaged_rows()) - known
            known |= missing
            shown = is_shown(reader.get_pipeline, bad)

            assert good.id in listed, column
            if column in HIDES:
                assert bad.id not in listed
            elif column != "id":
                assert (bad.id in listed) != bool(missing), column
                assert shown == (bad.id in listed), column
            if missing and missing == known:  # the first; from then on there is one
                assert rows_found(database).verdict == "wrong", column


def test_page_continues_after_a_damaged_row(database, jobs):
    """Pages keep their length, and the next one goes on where the last one ended."""
    made = [jobs.create_job("TASK") for _ in range(10)]
    for number in (2, 5, 6):
        damage(database, "job", made[number].id, data="{")
    first = jobs.list_jobs(limit=4)
    second = jobs.list_jobs(limit=4, before=first[-1].number)

    assert [job.number for job in first] == [10, 9, 8, 5]
    assert [job.number for job in second] == [4, 2, 1]
    assert len(jobs.list_damaged_rows()) == 3


def test_row_that_was_repaired_is_missing_no_more(database, jobs):
    """A failure is reported until the row can be read again."""
    job = jobs.create_job("TASK", data={"a": 1})
    damage(database, "job", job.id, data="{")
    assert jobs.list_jobs() == []
    (said,) = jobs.list_damaged_rows()
    assert said == f"job {job.id} cannot be read: data"
    assert said in [one.detail for one in jobs.check()]

    damage(database, "job", job.id, data='{"a": 1}')

    assert [one.data for one in jobs.list_jobs()] == [{"a": 1}]
    assert jobs.list_damaged_rows() == []


def test_damaged_row_is_logged_once(database, clock, caplog):
    """The log hears of it when it begins, when its cause changes, and once an hour."""
    caplog.set_level(logging.WARNING, "jobcore")
    with JobManager(database, slots=0, clock=clock) as jobs:
        job = jobs.create_job("TASK")
        damage(database, "job", job.id, data="{")

        def told():
            caplog.clear()
            jobs.list_jobs()
            return caplog.text.count("row damaged")

        counts = [told(), told()]
        damage(database, "job", job.id, data=None, name=UNDECODABLE)
        counts += [told(), told()]
        damage(database, "job", job.id, name=None, exit_code="x")
        counts += [told(), told()]
        clock.advance(3601)
        counts += [told(), told()]

    assert counts == [1, 0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("column", ["at", "trigger", "from_status", "to_status", "reason", "actor"])
def test_history_and_events_have_all_but_the_damaged_entries(database, jobs, column, what):
    """One entry that cannot be read keeps no other from the history or the feed."""
    job, other = jobs.create_job("TASK"), jobs.create_job("TASK")
    jobs.start_job(job.id)
    undecodable = GARBAGE[what] is UNDECODABLE
    sql(
        database,
        f"UPDATE transition SET {column} = {'CAST(? AS TEXT)' if undecodable else '?'} "
        "WHERE job = ? AND trigger = 'create'",
        b"\x80" if undecodable else GARBAGE[what],
        job.number,
    )
    entries = [one.trigger for one in jobs.history(job.id)]
    events = [(one.job_id, str(one.trigger)) for one in jobs.events()]

    assert entries[-1] == "start"
    assert [(other.id, "create"), (job.id, "start")] == events[-2:]
    if len(entries) == 1:
        assert len(events) == 2
        assert len(jobs.list_damaged_rows()) == 2
        assert rows_found(database).verdict == "wrong"
    jobs.finish_job(job.id, 0)


def test_workspaces_and_skips_that_are_damaged_are_left_out(database, jobs):
    """All that is listed goes by the same rule."""
    good, bad = jobs.create_workspace("good"), jobs.create_workspace("bad")
    damage(database, "workspace", bad.id, properties="{")

    assert [one.id for one in jobs.list_workspaces()] == [good.id]
    assert jobs.list_damaged_rows()[0].startswith(f"workspace {bad.id} cannot be read: ")
    with pytest.raises(DatabaseCorrupt, match=f"workspace {bad.id} cannot be read: properties; "):
        jobs.get_workspace(bad.id)


def test_error_names_id_column_and_remedy(database, jobs):
    """For a text that is not UTF-8, invalid JSON, and a value that is not a number."""
    for column, value in (
        ("type", UNDECODABLE),
        ("data", "{"),
        ("exit_code", "x"),
        ("created", "x"),
    ):
        job = jobs.create_job("TASK")
        damage(database, "job", job.id, **{column: value})

        with pytest.raises(
            DatabaseCorrupt, match=f"job {job.id} cannot be read: .*{column}.*; `jobc"
        ):
            jobs.get_job(job.id)


def test_pipeline_that_was_repaired_fails_no_more(database, jobs, clock):
    """Failures to read and write it are forgotten when it works."""
    postponed = Postponement(seconds_of(clock))
    scheduler = Scheduler(parts(jobs).database, clock, postponed)
    made = [jobs.create_pipeline(f"p{n}", ["true"], schedule="@daily") for n in range(30)]
    sql(database, "UPDATE pipeline SET next_tick = 1")
    for one in made:
        damage(database, "pipeline", one.id, schedule=UNDECODABLE)
    scheduler.tick()
    said = postponed.in_words()
    for one in made:
        damage(database, "pipeline", one.id, schedule="@daily")
    scheduler.tick()

    assert len(said) == MOST_LISTED + 1
    assert said[0].startswith("pipeline number ")
    assert said[-1] == "and 10 more"
    assert postponed.in_words() == []


def test_doctor_quotes_no_damaged_text_as_it_is(database, jobs):
    """A schedule of any bytes is named, escaped and short, and the others are looked at."""
    bad, other = (jobs.create_pipeline(name, ["true"], schedule="@daily") for name in "ab")
    damage(database, "pipeline", bad.id, time_zone="\x1b[2J\n" * 1000)
    damage(database, "pipeline", other.id, schedule=UNDECODABLE)
    found = [one.detail for one in doctor.examine(database) if one.check == "schedules"]

    assert len(found) == 2
    assert all(line.isprintable() and len(line) < 400 for line in found)


@pytest.mark.parametrize("what", GARBAGE)
def test_dry_run_of_a_pruning_leaves_out_what_cannot_be_read(database, jobs, clock, what):
    """The list has the others, and the damaged job is named; it would be removed, too."""
    ended = [jobs.finish_job(jobs.start_job(jobs.create_job("TASK").id).id, 0) for _ in range(3)]
    clock.advance(60)
    damage(database, "job", ended[1].id, name=GARBAGE[what], workspace_id=GARBAGE[what])

    assert [job.id for job in jobs.prune(1, dry_run=True)] == [ended[0].id, ended[2].id]
    assert len(jobs.list_damaged_rows()) == 1
    assert jobs.prune(1) == 3


@pytest.mark.parametrize("at", ["'garbage'", "x'00ff'", "CAST(x'80ff' AS TEXT)"])
def test_damaged_row_keeps_no_subscriber_from_the_other_events(jobs, caplog, at):
    """Its event is left out and logged; the later ones are delivered."""
    job = jobs.create_job("TASK")
    told = []
    jobs.subscribe(told.append)
    parts(jobs).database.write(
        lambda connection: connection.exec_driver_sql(
            "INSERT INTO transition (job, at, trigger, to_status) "
            f"VALUES ({job.number}, {at}, 'start', 'RUNNING')"
        )
    )
    jobs.start_job(job.id)
    until(lambda: told, "the event that can be read")

    assert [event.at for event in told] == [told[0].at]
    assert "background step failed" not in caplog.text
    assert caplog.text.count("event left out") == 1


@pytest.mark.parametrize(
    "words", [["list"], ["list", "--limit", "1"], ["prune", "--older-than", "0s", "--dry-run"]]
)
def test_list_command_reports_damaged_rows(database, jobs, words):
    """On stderr, with the first of them by name; stdout has the others."""
    good, *bad = (
        jobs.finish_job(jobs.start_job(jobs.create_job("TASK").id).id, 0) for _ in range(3)
    )
    for job in bad:
        damage(database, "job", job.id, name=UNDECODABLE)
    shown, said = in_a_pipe(database, [words])

    assert str(good.id) in shown
    assert "left out: job " in said
    assert "and 1 more; `jobcore doctor` lists what is damaged" in said


def test_history_command_reports_damaged_entries(database, jobs):
    """The entries that can be read are shown."""
    job = jobs.start_job(jobs.create_job("TASK").id)
    sql(database, "UPDATE transition SET at = 'garbage' WHERE to_status = 'RUNNING'")
    shown, said = in_a_pipe(database, [["history", str(job.id)]])

    assert "create" in shown
    assert "left out: " in said


@pytest.mark.parametrize(
    ("column", "value", "call"),
    [
        ("start_time", 5, "cancel_job"),
        ("exit_code", 7, "cancel_job"),
        ("exit_code", "x", "start_job"),
    ],
)
def test_change_that_breaks_a_rule_names_job_columns_and_remedy(
    database, jobs, column, value, call
):
    """A row with contradictory columns is not changed, and the error names them."""
    job = jobs.create_job("TASK")
    damage(database, "job", job.id, **{column: value})

    with pytest.raises(
        DatabaseCorrupt, match=rf"job {job.id} cannot be .*{column}.*`jobcore doctor`"
    ):
        getattr(jobs, call)(job.id)


def queued(jobs):
    """Return a job that has not started."""
    return jobs.submit(["true"], env={"A": "b"})


def running(jobs):
    """Return a task that is under way."""
    return jobs.start_job(jobs.create_job("TASK").id)


def supervised(jobs):
    """Replace the fixture `scripted`, whose jobs have supervisors."""


def ended(jobs):
    """Return a task that is over."""
    return jobs.finish_job(running(jobs).id, 0)


#: Reads find the row by these columns, or hide it.
FINDS = ("number", "id", "deleted_at")


@pytest.mark.parametrize("what", GARBAGE)
def test_task_with_a_token_is_reported_as_damaged(database, jobs, what):
    """A garbage token claims that a supervisor runs the job. Nothing waits for that one."""
    job = running(jobs)
    damage(database, "job", job.id, token=GARBAGE[what])
    for call in (
        lambda: jobs.wait(job.id, 60),
        lambda: list(jobs.follow(job.id, timeout=60)),
        lambda: jobs.append_log(job.id, "line"),
        lambda: jobs.finish_job(job.id, 0),
        lambda: jobs.adopt_task(job.id),
        lambda: jobs.stop_job(job.id),
        lambda: jobs.cancel_job(job.id),
    ):
        with pytest.raises(DatabaseCorrupt, match=rf"job {job.id} cannot .*token.*; `jobcore doc"):
            call()
    jobs.delete_job(job.id)

    assert sql(database, "SELECT number FROM job") == []


@pytest.mark.parametrize(
    ("make", "call"),
    [(queued, "cancel_job"), (running, "stop_job"), (supervised, "stop_job")],
)
@pytest.mark.parametrize("what", GARBAGE)
def test_stop_of_a_damaged_job_works_or_names_job_column_and_remedy(
    database, jobs, scripted, make, what, call
):
    """Garbage in a column of a job: it is stopped, found not to run, or reported as damaged."""
    made, refused, told = {}, [], {}
    for column in columns_of(database, "job"):
        if column not in (*FINDS, "pipeline_id"):
            made[column] = (scripted() if make is supervised else make(jobs)).id
    damage_rows(
        database, "job", [(job_id, column, GARBAGE[what]) for column, job_id in made.items()]
    )
    for column, job_id in made.items():
        try:
            getattr(jobs, call)(job_id)
        except InvalidTransition:
            refused.append(column)
        except DatabaseCorrupt as error:
            told[column] = str(error)

    # Garbage owns nothing, and a negative time is over: these jobs end before.
    assert refused in ([], ["owner"], ["owner", "expires"])
    for column, said in told.items():
        assert f"job {made[column]} cannot be " in said
        assert column in said
        assert "`jobcore doctor`" in said


@pytest.mark.parametrize("column", ["stop_who", "stop_why"])
def test_stop_reaches_the_supervisor_whatever_is_damaged_of_its_words(
    database, jobs, scripted, column
):
    """They are only logged: a value that is not text is left out."""
    run = scripted()
    damage(database, "job", run.id, **{column: b"\x00\xff"})
    jobs.stop_job(run.id, grace=1)
    with run.open() as directory:
        asked = job_directory.read_record(directory, job_directory.STOP)

    assert asked.pop(column.removeprefix("stop_")) is None
    assert asked["grace_ms"] == 1000


def test_damaged_rule_is_reported_as_damage(database, jobs):
    """A flipped bit in the text of a CHECK admits no job, and leaks no raw error."""
    jobs.create_job("TASK")
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'status <> ''RUNNING'' OR start_time', "
            "'status <> ''QUEUED'' OR start_time') WHERE name = 'job'"
        )
        connection.execute("PRAGMA schema_version = 9999")
    with (
        JobManager(database, slots=0) as others,
        pytest.raises(DatabaseCorrupt, match=r"jobs\.db: .*running_has_started.*`jobc"),
    ):
        others.submit(["true"])


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("make", [queued, running, ended])
def test_damaged_job_can_be_deleted(database, jobs, make, what):
    """Garbage in any column of a job keeps neither it nor its log from being removed."""
    columns = [column for column in columns_of(database, "job") if column not in FINDS]
    made = [make(jobs) for _ in columns]
    if make is running:
        for job in made:
            jobs.append_log(job.id, "line")
    damaged = [(job.id, column, GARBAGE[what]) for job, column in zip(made, columns, strict=True)]
    damage_rows(database, "job", damaged)
    for job in made:
        jobs.delete_job(job.id)

    assert sql(database, "SELECT number FROM job") == []
    assert sql(database, "SELECT id FROM log_segment") == []
    assert sql(database, "SELECT hash FROM environment") == []


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("column", ["status", "start_time", "exit_code", "spool_offset", "name"])
def test_workspace_with_damaged_jobs_can_be_deleted(database, jobs, column, what):
    """They are removed with it, and so is its pipeline."""
    workspace = jobs.create_workspace("w")
    pipeline = jobs.create_pipeline("p", ["true"], workspace_id=workspace.id)
    made = [jobs.create_job("TASK", workspace_id=workspace.id) for _ in range(2)]
    made.append(jobs.create_job("TASK", pipeline_id=pipeline.id))
    jobs.start_job(made[0].id)
    for job in made:
        damage(database, "job", job.id, **{column: GARBAGE[what]})
    jobs.delete_workspace(workspace.id)

    assert sql(database, "SELECT number FROM job") == []
    assert jobs.list_pipelines() == []
    assert workspace.id not in {one.id for one in jobs.list_workspaces()}


def test_damaged_job_that_is_deleted_leaves_no_process(database):
    """Its command is stopped though its row cannot be settled, and its directory is removed."""
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(["sleep", "1000"], grace=0)
        until(lambda: jobs.get_job(job.id).status is Status.RUNNING, "the start")
        damage(database, "job", job.id, exit_code="x", stop_requested="y")
        directory = f"{database}.jobs/{job.id.hex}"
        until(lambda: os.path.exists(directory), "the directory")
        jobs.delete_job(job.id)

        assert sql(database, "SELECT number FROM job") == []
        assert not os.path.exists(directory)


def test_deletion_of_a_damaged_job_is_finished_by_a_sweep(database, jobs):
    """A process that died in the middle of it has left the row hidden."""
    job = jobs.create_job("TASK")
    damage(database, "job", job.id, start_time=5, deleted_at=5)
    jobs.recover()

    assert sql(database, "SELECT number FROM job") == []


def test_sweep_does_not_wait_for_the_end_of_a_damaged_job(
    database, jobs, scripted, monkeypatch, caplog
):
    """It asks the supervisor to stop, looks at the other jobs, and removes the row later."""
    monkeypatch.setattr(remover, "END_PAUSE", None)  # which no wait could sleep for
    run, other = scripted(), scripted()
    run.update(grace_ms=60_000)
    damage(database, "job", run.id, start_time="x", deleted_at=5)
    with run.open() as directory:
        control = job_directory.open_control(directory)
    other.started()
    other.exit()
    other.die()

    jobs.recover()
    asked = os.read(control, 100)
    os.close(control)
    left = sql(database, "SELECT number FROM job WHERE id = ?", run.id.hex)
    run.die()
    jobs.recover()

    assert "job postponed" not in caplog.text
    assert set(asked) == set(job_directory.STOP_NOW)
    assert len(left) == 1
    assert jobs.get_job(other.id).status is Status.COMPLETE
    assert sql(database, "SELECT number FROM job WHERE id = ?", run.id.hex) == []


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("column", ["next_sequence", "loose_bytes", "loose_sequence", "type"])
def test_task_with_damaged_counters_raises_database_corrupt(database, jobs, column, what):
    """Appending, starting and finishing work, or name the damage."""
    job, other = running(jobs), jobs.create_job("TASK")
    for one in (job, other):
        damage(database, "job", one.id, **{column: GARBAGE[what]})
    for call in (
        lambda: jobs.append_log(job.id, "line"),
        lambda: jobs.start_job(other.id),
        lambda: jobs.finish_job(job.id, 0),
    ):
        with contextlib.suppress(DatabaseCorrupt):
            call()


def test_page_of_a_log_continues_after_a_missing_segment(database, jobs):
    """A page that begins in the gap has the next lines; an empty page would be the end."""
    job = jobs.start_job(jobs.create_job("TASK").id)
    for text in "abc":
        jobs.append_log(job.id, *(text for _ in range(5)))
    sql(database, "DELETE FROM log_segment WHERE first_sequence = 5")

    for sequence in (3, 5, 9):
        page = jobs.logs(job.id, sequence, limit=3)
        later = [n for n in range(15) if n >= sequence and n not in range(5, 10)]
        assert [line.sequence for line in page] == later[:3]
