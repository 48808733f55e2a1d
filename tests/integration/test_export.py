"""Export and import: ended jobs with their logs, from file to file."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import timedelta

import pytest

from jobcore import (
    FINAL,
    ArgumentError,
    Command,
    Job,
    JobManager,
    NoResult,
    PipelineAlreadyRunning,
    Reason,
    Retries,
    Status,
)
from jobcore.operations import export
from tests.integration.verbs_harness import fork, in_a_pipe
from tests.jobfiles import row_of
from tests.processes import PATIENCE
from tests.programs import KILLS_ITSELF, SLEEPS
from tests.tasks import end

#: What the rules and the file itself decide, not the import.
OWN = {"number", "workspace_id", "pipeline_id"}
#: What only jobs have that have not ended.
ACTIVE = {"next_attempt", "waits_for"}


@pytest.fixture
def other(tmp_path):
    """Return a manager of another file, which runs nothing."""
    with JobManager(tmp_path / "other.db", slots=0) as manager:
        yield manager


def facts(job):
    return {name: value for name, value in job if name not in OWN}


def copied(jobs, other, **options):
    """Export all jobs, oldest first, and import them."""
    ids = [job.id for job in reversed(jobs.list_jobs())]
    return other.import_jobs(jobs.export_jobs(ids, **options))


def same(jobs, other, job):
    """Tell whether a job is the same in both files, with its log."""
    here, there = jobs.get_job(job.id), other.get_job(job.id)
    assert facts(there) == facts(here)
    assert list(other.logs(job.id)) == list(jobs.logs(job.id))
    return True


def test_every_ending_is_imported_as_it_was(running_jobs, other):
    """With exit code, signal, reason, times, log, and what it used."""
    jobs = running_jobs
    made = [
        jobs.submit(["sh", "-c", "echo hello; echo world >&2"], name="n", data={"a": 1}, key="k"),
        jobs.submit(["sh", "-c", "printf '\\377\\n'; printf end; exit 3"], group="g", priority=4),
        jobs.submit(KILLS_ITSELF),
        jobs.submit(["/no/such/program"]),
        jobs.submit(["sleep", "60"], timeout=0.1),
        jobs.submit(["sh", "-c", "echo out; echo err >&2"], separate_streams=True),
    ]
    for job in made:
        jobs.wait(job.id, PATIENCE)
    stopped = jobs.submit(SLEEPS)
    assert next(jobs.follow(stopped.id)).text == "ready"
    jobs.stop_job(stopped.id)
    jobs.wait(stopped.id, PATIENCE)
    done = copied(jobs, other, with_commands=True)

    assert (done.created, done.existing, done.skipped) == (7, 0, 0)
    assert all(same(jobs, other, job) for job in [*made, stopped])
    assert [job.id for job in other.list_jobs()] == [job.id for job in jobs.list_jobs()]
    assert {job.reason for job in other.list_jobs()} >= {Reason.TIMEOUT, Reason.SIGNALED}
    assert [one for one in other.check() if one.verdict == "wrong"] == []
    assert [one.trigger for one in other.history(made[0].id)] == ["create", "start", "finish"]


def test_every_field_of_a_job_is_imported(database, clock, other):
    """Of each field that a final job can have; a new field fails here until it is exported."""
    with JobManager(database, slots=0, clock=clock) as jobs:
        first = jobs.create_job("TASK")
        clock.advance(1)
        rich = jobs.submit(
            ["true"], name="n", data={"a": [1]}, key="k", priority=3, group="g",
            env_from="submitter", expires=first.created + timedelta(hours=1),
            retries=Retries(2, delay=1, jitter=0.5, on=("lost",)), after=[first.id],
            run_if="ended", not_before=first.created, on_error=["tell"],
        )  # fmt: skip
        end(jobs, first)
        clock.advance(1)
        running = jobs.start_job(rich.id, owner=None)
        jobs.append_log(running.id, "line")
        jobs.report_progress(running.id, 1.5, 4, "half")
        jobs.finish_job(running.id, 3)
        again = end(jobs, jobs.retry_job(rich.id))
        stopped = jobs.start_job(jobs.create_job("TASK").id, owner=None)
        jobs.stop_job(stopped.id)
    with closing(sqlite3.connect(database)) as connection, connection:
        # Facts of processes, which the rules do not check.
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'job'"
        ).fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(
            "UPDATE job SET cpu_us = 5, max_rss = 6, dropped = 7, left_processes = 8, signal = 9, "
            "exit_code = 137, wait_status = 9, reason = 'signaled' WHERE id = ?", (rich.id.hex,)
        )  # fmt: skip
        connection.execute("UPDATE job SET hook_of = ? WHERE id = ?", (rich.id.hex, again.id.hex))
    with JobManager(database, slots=0, clock=clock) as jobs:
        blank = jobs.get_job(first.id)
        ended = jobs.list_jobs(status=FINAL)
        seen = {name for job in ended for name, value in job if value != getattr(blank, name)}
        assert seen | OWN | ACTIVE == set(Job.model_fields)
        copied(jobs, other)
        assert all(same(jobs, other, job) for job in ended)


def test_import_can_be_repeated_and_creates_only_what_is_missing(jobs, other, clock):
    """By the ids; those that are there stay as they are."""
    first = jobs.finish_job(jobs.start_job(jobs.create_job("TASK").id).id)
    assert copied(jobs, other).created == 1
    clock.advance(5)
    jobs.cancel_job(jobs.create_job("TASK").id)
    done = copied(jobs, other)
    again = copied(jobs, other)

    assert (done.created, done.existing) == (1, 1)
    assert (again.created, again.existing) == (0, 2)
    assert other.count_jobs()[Status.STOPPED] == 1
    assert same(jobs, other, first)


def test_jobs_that_have_not_ended_are_left_out(jobs, other):
    """They would have to run."""
    jobs.create_job("TASK")
    jobs.start_job(jobs.create_job("TASK").id)
    done = copied(jobs, other)

    assert (done.created, done.skipped) == (0, 2)
    assert other.list_jobs() == []


def test_imported_jobs_run_nothing_retry_nothing_and_trigger_nothing(jobs, tmp_path):
    """Whatever the pipelines of the other file say; they get the pipeline of the same name."""
    source = jobs.create_pipeline("source", ["true"], max_retries=3)
    failed = jobs.create_job(pipeline_id=source.id)
    jobs.start_job(failed.id)
    jobs.finish_job(failed.id, 1)
    (retry,) = jobs.list_jobs(status=Status.QUEUED)
    jobs.start_job(retry.id)
    jobs.finish_job(retry.id)
    with JobManager(tmp_path / "other.db", slots=0) as other:
        there = other.create_pipeline("SOURCE", ["true"], max_retries=3)
        other.create_pipeline("after", ["true"], triggered_by=["source"])
        copied(jobs, other)
        found = other.list_jobs()

        assert [(job.id, job.pipeline_id, job.attempt, job.retry_of) for job in found] == [
            (retry.id, there.id, 2, failed.id), (failed.id, there.id, 1, None),
        ]  # fmt: skip
        active = other.create_job(pipeline_id=there.id)
        other.delete_job(failed.id)
        with pytest.raises(PipelineAlreadyRunning):
            copied(jobs, other)
        other.cancel_job(active.id)
        assert copied(jobs, other).created == 1


def test_results_are_imported(running_jobs, other):
    """JSON always; pickled ones, which run code when they are read, only on request."""
    jobs = running_jobs
    made = [
        jobs.submit(["sh", "-c", 'echo "[1, null]" >&$JOBCORE_RESULT_FD']),
        jobs.submit_function("builtins:max", "é", "a"),
        jobs.submit_function("builtins:frozenset", [1, 2]),
    ]
    for job in made:
        jobs.wait(job.id, PATIENCE)
    copied(jobs, other)
    assert [other.result(job.id) for job in made[:2]] == [[1, None], "é"]
    with pytest.raises(NoResult):
        other.result(made[2].id)

    other.delete_job(made[2].id)
    other.import_jobs(jobs.export_jobs([made[2].id]), with_pickles=True)
    assert other.result(made[2].id) == frozenset([1, 2])


def test_imported_attempt_takes_no_key_from_a_job(jobs, other):
    """Its key is that of a live job there."""
    first = jobs.submit(["true"], key="k", data=1)
    end(jobs, first, 1)
    end(jobs, jobs.retry_job(first.id), 1)
    live = other.submit(["true"], key="k")
    copied(jobs, other)

    assert other.submit(["true"], key="k").id == live.id
    assert [job.attempt for job in other.list_jobs(key="k")] == [2, 1, 1]


def test_retry_of_an_imported_job_has_hooks_and_arguments(jobs, other, database, tmp_path):
    """They are exported with the command, and not without it."""
    pipeline = jobs.create_pipeline("p", ["echo"]).id
    made = [
        jobs.submit(["true"], on_error=Command(["tell"], env={"KEY": "hunter2"}), retries=0),
        jobs.create_job(pipeline_id=pipeline, args=["hunter2"]),
    ]
    for job in made:
        end(jobs, job, 1)
    other.create_pipeline("p", ["echo"])
    assert "hunter2" not in "".join(jobs.export_jobs([job.id for job in made]))
    copied(jobs, other, with_commands=True)
    for job in made:
        end(other, other.retry_job(job.id), 1)

    assert [job.name for job in other.list_jobs(type="COMMAND", name="on_error")] == ["on_error"]
    paths = {database: made, str(tmp_path / "other.db"): other.list_jobs(type="PIPELINE_RUN")}
    stored = [row_of(path, job.id)["parameters"] for path, some in paths.items() for job in some]
    assert [one for one in stored if one] == [stored[1]] * 3


def test_long_logs_are_imported_line_by_line(jobs, other):
    """Over many segments, with long lines in pieces."""
    job = jobs.create_job("TASK")
    jobs.start_job(job.id)
    for n in range(300):
        jobs.append_log(job.id, f"{n} " + "x" * 1000, f"{n}é")
    jobs.append_log(job.id, "y" * 200_000)
    jobs.finish_job(job.id)
    copied(jobs, other)

    assert same(jobs, other, job)
    assert [line.sequence for line in other.logs(job.id, 550)] == [
        line.sequence for line in jobs.logs(job.id, 550)
    ]
    assert [line.raw for line in other.tail(job.id, 3)] == [
        line.raw for line in jobs.tail(job.id, 3)
    ]


def test_lines_appended_together_are_exported_in_records_of_a_limited_size(
    jobs, other, monkeypatch
):
    """Long lines that one call appends are no record that an import refuses."""
    monkeypatch.setattr(export, "MOST_RECORD_BYTES", 70_000)
    job = jobs.start_job(jobs.create_job("TASK").id)
    jobs.append_log(job.id, *("x" * 20_000 for _ in range(10)))
    jobs.append_log(job.id, *("\xff" for _ in range(70_000)), "")
    jobs.finish_job(job.id, 0)

    copied(jobs, other)

    assert same(jobs, other, job)


def test_export_holds_no_value_of_an_environment_unless_asked(jobs, other):
    """An export has no variable's value, no standard input and no `redact` value unless asked."""
    secret = {"env": {"KEY": "hunter2"}, "stdin": b"hunter3", "redact": ["hunter4"]}
    job = jobs.cancel_job(jobs.submit(["echo", "hunter4"], **secret).id)
    text = "".join(jobs.export_jobs([job.id]))
    assert "hunter" not in text
    assert other.import_jobs([*jobs.export_jobs([job.id])]).created == 1
    assert other.get_job(job.id).command is None

    assert "hunter2" in "".join(jobs.export_jobs([job.id], with_commands=True))
    other.delete_job(job.id)
    other.import_jobs(jobs.export_jobs([job.id], with_commands=True))
    again = other.retry_job(job.id)
    assert again.command == jobs.get_job(job.id).command


def test_cut_off_and_deleted_jobs_are_left_out(jobs, other):
    """A job is created only with its end."""
    made = [jobs.cancel_job(jobs.create_job("TASK").id).id for _ in range(3)]
    lines = list(jobs.export_jobs(made))
    assert other.import_jobs(lines[:-1]).skipped == 1
    assert [job.id for job in other.list_jobs()] == made[1::-1]

    jobs.delete_job(made[1])
    assert len(list(jobs.export_jobs(made))) == len(lines) - 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not a record of an export"),
        ('{"other": {}}', "its kind is 'other'"),
        ('{"export": {"version": 2}}', "it has version 2, not 1"),
        ('{"job": {"id": "x"}}', "line 2 is not a record"),
        ('{"end": {"job": "x", "lines": 0}}', "it does not belong to the job before it"),
        ('["job"]', "line 2 is not a record"),
        ("\udcff", "line 2 is not a record"),
    ],
)
def test_malformed_export_lines_are_refused(jobs, other, line, message):
    """With the number of the line; jobs before it were created."""
    job = jobs.cancel_job(jobs.create_job("TASK").id)
    lines = list(jobs.export_jobs([job.id]))
    with pytest.raises(ArgumentError, match=message):
        other.import_jobs([lines[0], line, *lines[1:]])

    assert other.list_jobs() == []


WRONG = {
    "another exit code": {"exit_code": 1},
    "another status": {"status": "ERROR"},
    "an impossible signal": {"signal": 9},
    "an end before the start": {"end_time": 1},
    "an unknown reason": {"reason": "bored"},
    "a reason that never starts": {"reason": "cancelled"},
    "a text in place of a number": {"created": "now"},
    "a huge number": {"created": 2**70},
    "an invalid ID of another job": {"hook_of": "x"},
}


@pytest.mark.parametrize("what", WRONG)
def test_endings_that_the_rules_do_not_allow_are_refused(jobs, other, what):
    """An import creates no invalid state, and nothing of such a job."""
    job = jobs.finish_job(jobs.start_job(jobs.create_job("TASK").id).id)
    good = jobs.cancel_job(jobs.create_job("TASK").id)
    records = [json.loads(line) for line in jobs.export_jobs([good.id, job.id])]
    (record,) = (one["job"] for one in records if one.get("job", {}).get("id") == str(job.id))
    record.update(WRONG[what])
    with pytest.raises(ArgumentError, match=r"line \d|cannot have ended like this"):
        other.import_jobs(map(json.dumps, records))

    assert job.id not in {one.id for one in other.list_jobs()}


def test_export_and_import_on_the_command_line(jobs, database, tmp_path):
    """From file to file, by id or by status, and through a pipe."""
    good = jobs.finish_job(jobs.start_job(jobs.create_job("TASK").id).id)
    stopped = jobs.cancel_job(jobs.create_job("TASK").id)
    every, some, one, err = in_a_pipe(
        database, [["export"], ["export", "--status", "stopped"], ["export", str(good.id)]]
    )
    (tmp_path / "some.ndjson").write_text(some)
    there = str(tmp_path / "there.db")
    first, _ = in_a_pipe(there, [["import", str(tmp_path / "some.ndjson")]])
    with (tmp_path / "every.ndjson").open("w+") as file:
        file.write(every)
        file.seek(0)
        process = fork(
            [["import", "-", "--json"]], {"JOBCORE_DB": there}, stdin=file, stdout=-1, text=True
        )
        second = json.loads(process.communicate(timeout=PATIENCE)[0])

    assert (first, err) == ("1\t0\t0\n", "")
    assert second == {"created": 1, "existing": 1, "skipped": 0}
    assert [json.loads(line)["job"]["id"] for line in one.splitlines() if '{"job":{' in line] == [
        str(good.id)
    ]
    with JobManager(there, slots=0) as other:
        assert {job.id for job in other.list_jobs()} == {good.id, stopped.id}
