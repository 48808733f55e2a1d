"""Secrets: what a command is given shows in nothing that jobcore says, to whomever it says it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import traceback
from contextlib import closing

import pytest
import structlog

from jobcore import Command, JobcoreError, JobManager, Status, wire
from jobcore.models import ClaimedJob
from jobcore.supervisor import job_directory
from jobcore.testing import busy
from tests.integration.verbs_harness import in_a_pipe, on_a_terminal
from tests.processes import PATIENCE, until

CANARY = "s3cr3t" + "-canary"  # in no line of a source that a traceback shows

#: A word of argv, which /proc shows to everybody. `Job.command` has it, and so do the views of the
#: command line; models, forms, events and errors do not.
WORD = "w0rd" + "-of-argv"
#: Everything else that a command may be given, which is shown nowhere.
GIVEN = {"env": {"TOKEN": CANARY}, "stdin": CANARY.encode()}


@pytest.fixture
def told():
    """Return what the host's structlog is told, at every level."""
    told = []

    def collect(_, method, facts):
        told.append(f"{method} {facts!r}")
        raise structlog.DropEvent

    structlog.configure(processors=[collect])
    yield told
    structlog.reset_defaults()


def check(shown, *needed, has_argv=False):
    """Nothing of what was shown has the canary, or half of it, in it; and something was shown."""
    for words in needed:
        assert any(words in text for text in shown), words
    halves = [CANARY[:8], CANARY[-8:], CANARY[::-1]]
    if has_argv:
        assert any(WORD in text for text in shown)
    else:
        halves.append(WORD)
    assert [text for text in shown if any(half in text for half in halves)] == []


def forms_of(*values):
    """Return what a program prints, logs or sends of values."""
    shown = []
    for value in values:
        shown += [repr(value), str(value), f"{value}"]
        if hasattr(value, "model_dump"):
            shown += [repr(value.model_dump()), repr(value.model_dump(mode="json"))]
            shown += [value.model_dump_json(), value.model_dump_json(by_alias=False)]
            shown += [json.dumps(type(value).model_json_schema())]
    return shown


def told_of(error):
    """Return an error as a log has it, with all those behind it."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))


def failing(call):
    """Return what is told of the error that a call must end with."""
    with pytest.raises(JobcoreError) as caught:
        call()
    form = json.dumps(wire.error_to_object(caught.value, "/api"))
    return told_of(caught.value) + form


def all_ends(jobs, database):
    """Return jobs with the canary in them that have come to every kind of end."""
    ids = [
        jobs.submit(Command(["sh", "-c", script, "sh", WORD], **{**GIVEN, **options})).id
        for script, options in (
            ("exit 0", {}),
            ("exit 3", {}),
            ("kill -KILL $$", {}),
            ("sleep 300", {"timeout": 0.2, "grace": 0}),
            ("echo $TOKEN $1; cat; echo jobcore:progress 1/2 $1", {"redact": [CANARY, WORD]}),
            ("exit 0", {"stdin": f"/no/such/{CANARY}"}),
            ("exit 0", {"env": {"TOKEN": CANARY * 20_000}}),
        )
    ]
    ids += [
        jobs.submit(Command(argv, cwd=cwd, redact=redact, **GIVEN)).id
        for argv, cwd, redact in (
            (["/no/such/program", WORD], "/", []),
            (["true", WORD], "/no/such/folder", []),
            ([f"/no/such/{CANARY}"], "/", [CANARY]),
            (["true"], f"/no/such/{CANARY}", [CANARY]),
        )
    ]
    stopped, lost = (
        jobs.submit(Command(["sh", "-c", "echo ready; exec sleep 300", WORD], **GIVEN)).id
        for _ in range(2)
    )
    for job_id in (stopped, lost):
        assert next(jobs.follow(job_id, timeout=PATIENCE)).text == "ready"
    jobs.stop_job(stopped)
    with open(os.path.join(f"{database}.jobs", lost.hex, job_directory.RUN), "rb") as file:
        os.kill(job_directory.decode_record(file.read())["supervisor"], signal.SIGKILL)
    return [jobs.wait(job_id, PATIENCE) for job_id in (*ids, stopped, lost)]


def test_secrets_of_a_job_are_shown_nowhere(running_jobs, database, told):
    """Neither models nor forms, logs, feeds, checks, events nor the command line show it."""
    seen = []
    running_jobs.subscribe(lambda event: seen.extend(forms_of(event)))
    ended = all_ends(running_jobs, database)
    again = running_jobs.retry_job(ended[1].id)
    running_jobs.wait(again.id, PATIENCE)
    pipeline = running_jobs.create_pipeline("load", Command(["true", WORD], **GIVEN))
    of_pipeline = running_jobs.wait(running_jobs.create_job(pipeline_id=pipeline.id).id, PATIENCE)
    every = running_jobs.list_jobs()

    shown = forms_of(*ended, *every, again, of_pipeline, pipeline)
    for job in every:
        shown += forms_of(ClaimedJob.model_validate(job.model_dump()))
        shown += forms_of(*running_jobs.history(job.id))
        shown += [repr(line) + line.text for line in running_jobs.logs(job.id)]
        shown += [row.decode() for row in running_jobs.log_text(job.id)]
        shown += [row.decode() for row in running_jobs.log_ndjson(job.id)]
        form = pipeline if job.pipeline_id else None
        shown += [json.dumps(wire.job_to_hal(job, "http://x", pipeline=form))]
    shown += [json.dumps(wire.jobs_to_hal(every, "http://x", self_path="/jobs", limit=100))]
    shown += [json.dumps(wire.pipeline_to_hal(pipeline, "http://x"))]
    shown += [json.dumps(wire.stop_to_object(every[0]))]
    shown += forms_of(*running_jobs.events(0), *running_jobs.skips(pipeline.id))
    shown += forms_of(*running_jobs.check(), *running_jobs.list_workspaces(), running_jobs)

    assert {job.reason.value for job in every} == {
        "exited", "signaled", "timeout", "stopped", "spawn_failed", "lost",
    }  # fmt: skip
    check([*shown, *seen, *told], "cannot start", "E2BIG", "***", "lost: its", "job resolved")
    # The one that says it, one that is not found, the one that is lost.
    ids = [str(ended[number].id) for number in (4, 9, -1)]
    views, others = command_line(database, ids)
    check(views, "spawn_failed", has_argv=True)
    check(others, "cannot start", "--env needs", "TRIGGER")


def command_line(database, ids):
    """Return what the views of jobs, and what all other verbs, say to a pipe and to a terminal."""
    views = [["list"], ["list", "--json"], ["prune", "--older-than", "0s", "--dry-run"]]
    words = [["doctor"], ["doctor", "--json"]]
    for job_id in ids:
        views += [["show", job_id], ["show", "--json", job_id]]
        words += [[verb, job_id] for verb in ("history", "logs")]
        words += [["history", "--json", job_id]]
        words += [["logs", "--format", "ndjson", job_id], ["wait", job_id]]
    # What jobcore is told there is not said again, whatever is wrong with it.
    words += [["run", "--env", f"TOKEN={CANARY}", "--", "/no/such/program", WORD]]
    words += [["run", "--env", f"TOKEN={CANARY}", "--timeout", "-1", "--", "true", WORD]]
    words += [["run", "--env", f"={CANARY}", "--", "true"], ["run", "--env", CANARY, "true"]]
    words += [["run", "--env", f"TOKEN={CANARY}", "--shell", "--", "true", WORD]]
    return [[*in_a_pipe(database, some), *on_a_terminal(database, some)] for some in (views, words)]


def test_errors_contain_no_secret(jobs, database, told, tmp_path):
    """No error has it in its text, its traceback or its cause."""
    wrong = [
        {"env": {"A": CANARY + "\0"}},
        {"env": {"A": CANARY + "\ud800"}},
        {"env": {f"A={CANARY}": ""}},
        {"env": {f"={CANARY}": ""}},
        {"env": {"A": 3, "B": CANARY}},
        {"env": {3: CANARY}},
        {"env": CANARY},
        {"env": [("A", CANARY)]},
        {"stdin": CANARY + "\0"},
        {"stdin": CANARY + "\ud800"},
        {"redact": CANARY},
        {"redact": [CANARY, ""]},
        {"redact": [CANARY + "\0"]},
        {"redact": [CANARY + "\ud800"]},
        {"redact": [CANARY, 3]},
        {"argv": ["true", CANARY + "\0"]},
        {"argv": ["true", CANARY + "\ud800"]},
        {"argv": ["", CANARY]},
        {"argv": ["true", CANARY, 3]},
        {"argv": CANARY},
        {"argv": ["true", CANARY], "shell": True},
        {"argv": ["true", CANARY * 2**20, "x" * 2**24]},
        {"timeout": -1},
        {"grace": -1},
        {"umask": -1},
        {"output_limit": -1},
        {"inherit_env": 3},
        {"cwd": ""},
    ]
    shown = []
    for options in wrong:
        whole = {"argv": ["true", CANARY], **GIVEN, "redact": [CANARY], **options}
        argv = whole.pop("argv")
        shown.append(failing(lambda argv=argv, whole=whole: Command(argv, **whole)))
        shown.append(failing(lambda argv=argv, whole=whole: jobs.submit(argv, **whole)))
    given = Command(["true", CANARY], **GIVEN, redact=[CANARY])
    pipeline = jobs.create_pipeline("first", given, max_retries=1)
    jobs.create_job(pipeline_id=pipeline.id)
    calls = (
        lambda: jobs.submit(given, not_before="never"),
        lambda: jobs.submit(given, data={1, 2}),
        lambda: jobs.submit(given, workspace_id="none"),
        lambda: jobs.submit(given, timeout=3),
        lambda: jobs.submit_many([given, "true", given]),
        lambda: jobs.create_pipeline("p", given, schedule="never"),
        lambda: jobs.create_pipeline("p", given, max_retries=-1),
        lambda: jobs.create_pipeline("first", given, triggered_by=["first"]),
        lambda: jobs.update_pipeline(pipeline.id, env={"A": CANARY + "\0"}),
        lambda: jobs.create_job(pipeline_id=pipeline.id),
    )
    shown += [failing(call) for call in calls]
    with busy(jobs):
        shown.append(failing(lambda: jobs.submit(given)))
        shown.append(failing(lambda: jobs.create_pipeline("p", given)))
    os.rename(database, tmp_path / "elsewhere")
    shown.append(failing(lambda: jobs.submit(given)))
    os.rename(tmp_path / "elsewhere", database)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE job RENAME COLUMN not_before TO later")
    shown.append(failing(lambda: jobs.submit(given)))

    check([*shown, *told], "DatabaseBusy", "CommandError", "PipelineAlreadyRunning")


@pytest.mark.parametrize(
    "damage",
    [
        "command = substr(command, 1, 100)",
        "command = json_remove(command, '$.stdin')",
        "command = json_set(command, '$.env', json_extract(command, '$.env.TOKEN'))",
        "command = json_set(command, '$.argv', json_extract(command, '$.env.TOKEN'))",
        "command = json_set(command, '$.timeout', 'x')",
        "command = json_set(command, '$.more', 1)",
        "command = json_extract(command, '$.env.TOKEN')",
    ],
)
def test_no_damage_brings_it_to_light(database, told, damage):
    """Whatever the file has in place of a command, the error shows no part of it."""
    with JobManager(database, slots=0) as jobs:
        job_id = jobs.submit(Command(["true", CANARY], **GIVEN)).id
        pipeline_id = jobs.create_pipeline("p", Command(["true", CANARY], **GIVEN)).id
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        drop_guards(connection)
        connection.execute(f"UPDATE job SET {damage}")
        connection.execute(f"UPDATE pipeline SET {damage}")
    shown = []
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        until(
            lambda: (
                any("start postponed" in one for one in told) or jobs.list_jobs(status=Status.ERROR)
            ),
            "the note of the damage",
        )
        for call in (
            lambda: forms_of(jobs.get_job(job_id), *jobs.list_jobs(), *jobs.check()),
            lambda: [line.text for line in jobs.logs(job_id)],
            lambda: forms_of(jobs.get_pipeline(pipeline_id)),
            lambda: forms_of(*jobs.list_pipelines()),
            lambda: forms_of(jobs.retry_job(job_id)),
        ):
            try:
                shown += call()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                shown.append(told_of(error))

    check([*shown, *told], " start")


def drop_guards(connection):
    """Have the file take what it otherwise refuses."""
    triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    for (name,) in triggers.fetchall():
        connection.execute(f'DROP TRIGGER "{name}"')


def test_a_command_masks_what_is_to_be_masked(told):
    """Its repr has neither env, stdin nor redact, and masks the values of redact elsewhere."""
    plain = Command(["curl", "-H", "Authorization: x"], **GIVEN)
    masked = Command(
        ["curl", "-H", f"Authorization: {CANARY}"],
        cwd=f"/tmp/{CANARY}",
        redact=[CANARY[:9], CANARY.encode()],
        **GIVEN,
    )
    shell = Command(f"curl -u me:{CANARY}", shell=True, redact=[CANARY])

    check([*forms_of(plain, masked, shell), *told], "'Authorization: ***'", "/tmp/***", "me:***")
    assert eval(repr(plain)) == Command(["curl", "-H", "Authorization: x"])
