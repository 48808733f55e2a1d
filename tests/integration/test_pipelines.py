"""Workspaces and pipelines: made, changed and removed with all that belongs to them."""

from __future__ import annotations

import json
import os
import signal
from contextlib import closing
from uuid import UUID, uuid4

import pytest

from jobcore import (
    ArgumentError,
    Command,
    CommandError,
    JobManager,
    JobNotFound,
    PipelineExists,
    PipelineNotFound,
    ScheduleError,
    Status,
    WorkspaceNotFound,
)
from jobcore.engine import remover
from jobcore.operations.deletion import Deleter
from jobcore.storage.database import Database
from jobcore.testing.parts import parts
from tests.faults.hosts import host
from tests.jobfiles import cookie_of, row_of, sql, stored_pipelines
from tests.processes import at_once, carrying, until
from tests.programs import EXITS_0_ON_SIGTERM, SLEEPS
from tests.transactions import transaction

#: Every field of a pipeline, each with a value that is not its default.
EVERYTHING = {
    "script": "echo $GREETING",
    "cwd": "/tmp",
    "env": {"GREETING": "hunter2"},
    "timeout": 12.5,
    "max_retries": 3,
    "schedule": "0 30 9-17 * * MON-FRI",
    "time_zone": "Europe/Berlin",
    "catch_up": "all",
    "late_after": 3600.0,
    "triggered_by": ["Extract", "Load"],
    "properties": {"tap-github.repository": "o/r", "nested": {"list": [1, None, True]}},
}


def stored_command(database, pipeline):
    """Return what is stored of the pipeline's command."""
    (row,) = sql(database, "SELECT command FROM pipeline WHERE id = ?", pipeline.id.hex)
    return None if row["command"] is None else Command.from_json(row["command"])


def said(database, pipeline):
    """Return command line, directory and environment that are stored, and the script."""
    command = stored_command(database, pipeline)
    if command is None:
        return None, None, None, pipeline.script
    return command.words, command.cwd, dict(command.env), pipeline.script


def left_behind(database):
    """Return how many rows there are, by table; fail where a job's directory stays."""
    rows = {
        table: sql(database, f"SELECT count(*) AS n FROM {table}")[0]["n"]
        for table in ("pipeline", "job", "transition", "log_segment", "skip")
    }
    # Who has removed a row removes its directory right behind, and may be another manager's thread.
    until(
        lambda: not any(len(name) == 32 for name in os.listdir(database + ".jobs")), "no directory"
    )
    return {name: number for name, number in rows.items() if number}


def make_sources(jobs, **place):
    """Make the pipelines that `EVERYTHING` names as its sources."""
    for name in EVERYTHING["triggered_by"]:
        jobs.create_pipeline(name, ["true"], **place)


# --- workspaces ---------------------------------------------------------------------


def test_workspace_keeps_its_fields_and_changes(jobs, clock):
    """Name and properties are kept, changed one by one, and dated."""
    made = jobs.create_workspace("analytics", properties={"domains": ["a.test"]})
    clock.advance(5)
    renamed = jobs.update_workspace(made.id, name="reports")
    emptied = jobs.update_workspace(made.id, properties=None)
    untouched = jobs.update_workspace(made.id)

    assert (made.name, made.properties) == ("analytics", {"domains": ["a.test"]})
    assert made.created == made.last_modified
    assert (renamed.name, renamed.properties) == ("reports", {"domains": ["a.test"]})
    assert (renamed.last_modified - renamed.created).total_seconds() == 5
    assert (emptied.name, emptied.properties) == ("reports", None)
    assert (untouched.name, untouched.properties) == ("reports", None)
    assert jobs.get_workspace(made.id) == untouched
    assert jobs.list_workspaces() == [untouched]


def test_workspaces_are_listed_in_the_order_of_their_creation(jobs, clock):
    """The oldest workspace is listed first; the default one takes its place among them."""
    made = [jobs.create_workspace("one")]
    clock.advance(1)
    made.append(jobs.get_workspace())
    clock.advance(1)
    made.append(jobs.create_workspace("three"))

    assert made == jobs.list_workspaces()
    assert made[1] == jobs.get_workspace()


def test_workspaces_come_in_pages(jobs):
    """From page to page each workspace comes once, though the last of a page be deleted."""
    for number in range(5):
        jobs.create_workspace(f"w{number}")
    made = jobs.list_workspaces()  # of one moment, as the clock stands still
    pages, last = [], None
    while page := jobs.list_workspaces(limit=2, after=last):
        pages.append(page)
        last = page[-1]
        if len(pages) == 1:
            jobs.delete_workspace(last.id)

    assert pages == [made[:2], made[2:4], made[4:]]
    assert jobs.list_workspaces(after=str(made[3].id)) == [made[4]]
    assert jobs.list_workspaces(limit=0) == []
    for unknown in (made[1].id, "nonsense", 5):
        with pytest.raises(WorkspaceNotFound):
            jobs.list_workspaces(after=unknown)
    for wrong in (-1, "2", 1.5):
        with pytest.raises(ArgumentError):
            jobs.list_workspaces(limit=wrong)


@pytest.mark.parametrize(
    "changes",
    [{"name": None}, {"name": 5}, {"name": "\ud800"}, {"properties": [1]}, {"properties": "ab"},
     {"properties": {"a": object()}}, {"nmae": "typo"}],
)  # fmt: skip
def test_a_workspace_that_makes_no_sense_is_refused(jobs, changes):
    """A name that is no text, properties that are no object and unknown fields are refused."""
    made = jobs.create_workspace("kept", properties={"a": 1})

    with pytest.raises(CommandError):
        jobs.update_workspace(made.id, **changes)
    if "nmae" not in changes:
        with pytest.raises(CommandError):
            jobs.create_workspace(**{"name": "other", **changes})

    assert jobs.list_workspaces() == [made]


# --- pipelines ----------------------------------------------------------------------


def test_pipeline_keeps_every_field(jobs, database):
    """Every read returns the arguments of `create_pipeline`."""
    workspace = jobs.create_workspace("w")
    make_sources(jobs, workspace_id=workspace.id)
    made = jobs.create_pipeline("nightly", ["run"], workspace_id=workspace.id, **EVERYTHING)
    public = {name: value for name, value in EVERYTHING.items() if name not in ("cwd", "env")}

    assert made == jobs.get_pipeline(made.id) == jobs.get_pipeline(str(made.id))
    assert {**public, "name": "nightly", "workspace_id": workspace.id} == {
        name: getattr(made, name) for name in (*public, "name", "workspace_id")
    }
    assert (made.status, made.id.version) == ("READY", 4)
    assert made.command == Command(["run"], cwd="/tmp", env={"GREETING": "hunter2"})
    assert said(database, made) == (
        ("run",), "/tmp", {"GREETING": "hunter2"}, "echo $GREETING",
    )  # fmt: skip


def test_public_json_of_a_pipeline_never_shows_its_environment(jobs):
    """Neither JSON nor repr, of the pipeline or its command, holds a value of env."""
    make_sources(jobs)
    made = jobs.create_pipeline("nightly", ["run"], **EVERYTHING)
    listed = next(one for one in jobs.list_pipelines() if one.id == made.id)
    shown = [
        text
        for one in (made, listed)
        for text in (one.model_dump_json(), repr(one.model_dump()), repr(one), repr(one.command))
    ]

    assert not [text for text in shown if "hunter2" in text]
    assert {
        "id", "workspaceId", "name", "status", "script", "timeout", "maxRetries", "retries",
        "schedule", "timeZone", "catchUp", "lateAfter", "nextTick", "triggeredBy", "requires",
        "group", "paused", "properties", "created", "lastModified",
    } == set(json.loads(made.model_dump_json()))  # fmt: skip


@pytest.mark.parametrize("field", [*EVERYTHING, "name", "command"])
def test_an_update_keeps_what_is_not_named(jobs, database, field):
    """A change of one field leaves all others unchanged."""
    values = {
        "name": "renamed", "command": ["other"], "script": "exit 4", "cwd": "/", "env": {"B": "2"},
        "timeout": None, "max_retries": 0, "schedule": "@daily", "time_zone": "Asia/Tokyo",
        "catch_up": "last", "late_after": 5.0, "triggered_by": None, "properties": {"b": 2},
    }  # fmt: skip
    make_sources(jobs)
    made = jobs.create_pipeline("nightly", ["run"], **EVERYTHING)
    before = {**dict(made), "said": said(database, made)[:3]}

    changed = jobs.update_pipeline(made.id, **{field: values[field]})

    after = {**dict(changed), "said": said(database, changed)[:3]}
    words, cwd, env = before["said"]
    expected = {**before, "next_tick": changed.next_tick}
    if field in expected:
        expected[field] = values[field]
    expected["said"] = (
        ("other",) if field == "command" else words,
        "/" if field == "cwd" else cwd,
        {"B": "2"} if field == "env" else env,
    )
    assert expected == after
    assert (before["next_tick"] == after["next_tick"]) is (field not in ("schedule", "time_zone"))
    assert changed == jobs.get_pipeline(made.id)


SHELL = ("/bin/sh", "-c")
A = {"A": "1"}
#: How a pipeline was made, the changes one after another, and what it says in the end.
CHANGES = {
    "script keeps its place": (
        {"script": "one", "cwd": "/tmp", "env": A}, [{"script": "two"}],
        ((*SHELL, "two"), "/tmp", A, "two"),
    ),
    "command under a script": (
        {"script": "one", "cwd": "/tmp", "env": A}, [{"command": ["run"]}],
        (("run",), "/tmp", A, "one"),
    ),
    "command instead of a script": (
        {"script": "one", "cwd": "/tmp", "env": A}, [{"command": ["run"], "script": None}],
        (("run",), "/tmp", A, None),
    ),
    "command, then no script": (
        {"script": "one", "cwd": "/tmp", "env": A}, [{"command": ["run"]}, {"script": None}],
        (("run",), "/tmp", A, None),
    ),
    "no script over a command": (
        {"command": ["run"], "script": "one", "cwd": "/tmp", "env": A}, [{"script": None}],
        (("run",), "/tmp", A, None),
    ),
    "no command under a script": (
        {"command": ["run"], "script": "one", "cwd": "/tmp", "env": A}, [{"command": None}],
        ((*SHELL, "one"), "/tmp", A, "one"),
    ),
    "script instead of a command": (
        {"command": ["run"], "cwd": "/tmp", "env": A}, [{"command": None, "script": "one"}],
        ((*SHELL, "one"), "/tmp", A, "one"),
    ),
    "other words": (
        {"command": ["run"], "cwd": "/tmp", "env": A}, [{"command": ["other"]}],
        (("other",), "/tmp", A, None),
    ),
    "a Command says all": (
        {"command": ["run"], "cwd": "/tmp", "env": A}, [{"command": Command(["x"], cwd="/usr")}],
        (("x",), "/usr", {}, None),
    ),
    "a Command and a place": (
        {"command": ["run"], "cwd": "/tmp", "env": A},
        [{"command": Command(["x"], cwd="/usr", env={"B": "2"}), "cwd": "/"}],
        (("x",), "/", {"B": "2"}, None),
    ),
    "another environment of a shell command": (
        {"command": Command("run $A", shell=True, cwd="/tmp")}, [{"env": A}],
        ((*SHELL, "run $A"), "/tmp", A, None),
    ),
    "a shell command under the same script": (
        {"command": Command("one", shell=True, cwd="/tmp", umask=0o077), "script": "one"},
        [{"script": None}], ((*SHELL, "one"), "/tmp", {}, None),
    ),
    "another place": (
        {"command": ["run"], "cwd": "/tmp", "env": A}, [{"cwd": "/"}], (("run",), "/", A, None),
    ),
    "no environment of a command": (
        {"command": ["run"], "cwd": "/tmp", "env": A}, [{"env": None}],
        (("run",), "/tmp", {}, None),
    ),
    "no environment of a script": (
        {"script": "one", "cwd": "/tmp", "env": A}, [{"env": None}],
        ((*SHELL, "one"), "/tmp", {}, "one"),
    ),
    "nothing was changed": (
        {"script": "one", "cwd": "/tmp", "env": A}, [{}, {"name": "n"}, {"timeout": 3}],
        ((*SHELL, "one"), "/tmp", A, "one"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_directory_and_environment_outlive_a_change_of_what_is_run(jobs, database, case):
    """Command, script, cwd and env are changed each by itself, unless a `Command` says them all."""
    fields, changes, expected = CHANGES[case]
    made = jobs.create_pipeline("p", **fields)
    for change in changes:
        jobs.update_pipeline(made.id, **change)

    assert expected == said(database, jobs.get_pipeline(made.id))


def test_no_directory_named_is_the_callers_own(jobs, database, monkeypatch, tmp_path):
    """`cwd=None` means the current directory, both at creation and in an update."""
    made = jobs.create_pipeline("p", ["run"], cwd="/", env=A)
    monkeypatch.chdir(tmp_path)
    changed = jobs.update_pipeline(made.id, cwd=None)

    assert (("run",), str(tmp_path), A, None) == said(database, changed)


def test_options_of_a_command_outlive_other_changes(jobs):
    """What a `Command` says beyond words, cwd and env stays when these are changed."""
    command = Command(["run"], timeout=5, grace=0, redact=["hunter2"], inherit_env=False)
    made = jobs.create_pipeline("p", command)
    changed = jobs.update_pipeline(made.id, env=A, cwd="/", name="q")

    assert changed.command == Command(
        ["run"], timeout=5, grace=0, redact=["hunter2"], inherit_env=False, env=A, cwd="/"
    )


def test_changed_pipeline_runs_the_new_script(running_jobs):
    """The next job of a changed pipeline runs the new script in the kept place."""
    made = running_jobs.create_pipeline("p", script="pwd; echo $A", cwd="/tmp", env=A)
    first = running_jobs.wait(running_jobs.create_job(pipeline_id=made.id).id, timeout=30)
    running_jobs.update_pipeline(made.id, script="echo new; pwd; echo $A; exit 3")
    second = running_jobs.wait(running_jobs.create_job(pipeline_id=made.id).id, timeout=30)

    assert b"".join(running_jobs.log_text(first.id)) == b"/tmp\n1\n"
    assert b"".join(running_jobs.log_text(second.id)) == b"new\n/tmp\n1\n"
    assert (first.status, second.status, second.exit_code) == (Status.COMPLETE, Status.ERROR, 3)


WRONG = [
    ({"name": None}, CommandError),
    ({"name": b"bytes"}, CommandError),
    ({"name": "\ud800"}, CommandError),
    ({"command": "one string"}, CommandError),
    ({"command": []}, CommandError),
    ({"command": 5}, CommandError),
    ({"script": ""}, CommandError),
    ({"script": 5}, CommandError),
    ({"script": "nul \0"}, CommandError),
    ({"cwd": ""}, CommandError),
    ({"env": {"A=B": "1"}}, CommandError),
    ({"env": ["A=1"]}, CommandError),
    ({"timeout": 0}, CommandError),
    ({"timeout": -1}, CommandError),
    ({"timeout": float("nan")}, CommandError),
    ({"timeout": True}, CommandError),
    ({"max_retries": -1}, CommandError),
    ({"max_retries": 1001}, CommandError),
    ({"max_retries": 1.0}, CommandError),
    ({"max_retries": True}, CommandError),
    ({"max_retries": None}, CommandError),
    ({"schedule": "* * *"}, ScheduleError),
    ({"schedule": "nonsense"}, ScheduleError),
    ({"schedule": ""}, ScheduleError),
    ({"schedule": 5}, ScheduleError),
    ({"schedule": "0 0 30 2 *"}, ScheduleError),
    ({"schedule": "@hourly", "time_zone": "Nowhere/Bad"}, ScheduleError),
    ({"time_zone": "Nowhere/Bad"}, ScheduleError),
    ({"time_zone": 5}, ScheduleError),
    ({"catch_up": "some"}, CommandError),
    ({"catch_up": 1}, CommandError),
    ({"catch_up": ["all"]}, CommandError),
    ({"late_after": -1}, CommandError),
    ({"late_after": float("nan")}, CommandError),
    ({"late_after": 1e10}, CommandError),
    ({"late_after": "5"}, CommandError),
    ({"late_after": True}, CommandError),
    ({"triggered_by": "extract"}, CommandError),
    ({"triggered_by": [5]}, CommandError),
    ({"triggered_by": 5}, CommandError),
    ({"properties": [1]}, CommandError),
    ({"properties": 5}, CommandError),
    ({"properties": {"a": float("inf")}}, CommandError),
    ({"properties": {"a": "x" * 65536}}, CommandError),
    ({"workspace": "typo"}, CommandError),
    ({"status": "READY"}, CommandError),
]


@pytest.mark.parametrize(("changes", "error"), WRONG, ids=repr)
def test_a_pipeline_that_could_never_run_so_is_refused(jobs, database, clock, changes, error):
    """What could never run is refused at creation and at every change, and nothing is written."""
    made = jobs.create_pipeline("kept", ["run"])
    before = stored_pipelines(database)
    clock.advance(1)

    with pytest.raises(error):
        jobs.create_pipeline(**{"name": "new", "command": ["run"], **changes})
    with pytest.raises(error):
        jobs.update_pipeline(made.id, **changes)

    assert before == stored_pipelines(database)


class Own:
    """An executor of the host's own, which says itself what a pipeline's jobs run."""

    def command(self, _job):
        return Command(["true"])


def test_pipeline_with_nothing_to_run_is_refused(jobs, database):
    """Without command, script and an executor of the host's own, no job of it could run."""
    made = jobs.create_pipeline("kept", script="true")
    before = stored_pipelines(database)

    with pytest.raises(CommandError, match="'idle' has neither command nor script"):
        jobs.create_pipeline("idle")
    with pytest.raises(CommandError, match="neither command nor script"):
        jobs.update_pipeline(made.id, script=None)
    with pytest.raises(CommandError):
        jobs.create_pipeline("idle", env=A)

    assert before == stored_pipelines(database)


def test_host_with_its_own_executor_may_omit_the_command(database):
    """Its executor says what runs; but a directory or an environment needs a command."""
    with JobManager(database, slots=0, executors={"PIPELINE_RUN": Own()}) as jobs:
        idle = jobs.create_pipeline("idle")
        with pytest.raises(CommandError):
            jobs.create_pipeline("p", env=A)
        with pytest.raises(CommandError):
            jobs.update_pipeline(idle.id, cwd="/")

        assert jobs.list_pipelines() == [idle]


@pytest.mark.parametrize("name", ["Straße", "STRASSE"])
def test_name_is_unique_in_its_workspace(jobs, database, name):
    """A name that another pipeline has, in whatever case, is refused at creation and renaming."""
    first = jobs.create_pipeline("strasse", ["true"])
    other = jobs.create_pipeline("other", ["true"])
    before = stored_pipelines(database)

    for take in (
        lambda: jobs.create_pipeline(name, ["true"]),
        lambda: jobs.update_pipeline(other.id, name=name),
    ):
        with pytest.raises(PipelineExists, match=str(first.id)) as caught:
            take()
        assert (caught.value.name, caught.value.pipeline_id) == (name, first.id)
        assert caught.value.status == 409

    assert before == stored_pipelines(database)
    assert jobs.update_pipeline(first.id, name=name).name == name


def test_name_of_a_deleted_pipeline_is_free(jobs):
    """A name can be taken again from the first step of the deletion on."""
    parts(jobs).pipelines.mark_pipeline_deleted(jobs.create_pipeline("p", ["true"]).id)

    assert jobs.create_pipeline("P", ["true"]).name == "P"


def create(database, name):
    """Create a pipeline; tell whether its name was free."""
    with JobManager(database, slots=0) as jobs:
        try:
            return jobs.create_pipeline(name, ["true"]).name
        except PipelineExists:
            return None


def test_of_many_who_take_a_name_one_gets_it(database):
    """Eight processes create a pipeline of one name together: one does, the others are refused."""
    JobManager(database, slots=0).close()
    answers = at_once(create, [(database, name) for name in ("p", "P") * 4])

    assert len([answer for answer in answers if answer is not None]) == 1


def test_a_pipeline_is_in_the_workspace_it_was_made_in(jobs, clock):
    """Pipelines are listed by workspace, oldest first; without one they are in the default one."""
    workspace = jobs.create_workspace("w")
    inside = [jobs.create_pipeline("a", ["true"], workspace_id=workspace.id)]
    clock.advance(1)
    outside = jobs.create_pipeline("a", ["true"])  # the same name in another workspace
    clock.advance(1)
    inside.append(jobs.create_pipeline("b", ["true"], workspace_id=str(workspace.id)))

    assert inside == jobs.list_pipelines(workspace_id=workspace.id)
    assert [outside] == jobs.list_pipelines(workspace_id=jobs.get_workspace().id)
    assert [inside[0], outside, inside[1]] == jobs.list_pipelines()
    assert jobs.create_job(pipeline_id=inside[0].id).workspace_id == workspace.id
    with pytest.raises(PipelineNotFound):
        jobs.create_job(pipeline_id=outside.id, workspace_id=workspace.id)


def test_pipelines_come_in_pages(jobs):
    """From page to page each pipeline comes once, though the last of a page be deleted."""
    for number in range(5):
        jobs.create_pipeline(f"p{number}", ["true"])
    made = jobs.list_pipelines()  # of one moment, as the clock stands still
    pages, last = [], None
    while page := jobs.list_pipelines(limit=2, after=last):
        pages.append(page)
        last = page[-1]
        if len(pages) == 1:
            jobs.delete_pipeline(last.id)

    assert pages == [made[:2], made[2:4], made[4:]]
    assert jobs.list_pipelines(after=str(made[3].id)) == [made[4]]
    assert jobs.list_pipelines(limit=0) == []
    with pytest.raises(PipelineNotFound):
        jobs.list_pipelines(after=made[1].id)
    with pytest.raises(ArgumentError):
        jobs.list_pipelines(limit=-1)


@pytest.mark.parametrize("kind", ["nonsense", "", None, 5, "unknown", "workspace", "job"])
def test_ids_that_no_pipeline_has_are_typed(jobs, kind):
    """Malformed, unknown and others' ids are PipelineNotFound, whatever was wanted."""
    some_id = {
        "unknown": uuid4(),
        "workspace": jobs.get_workspace().id,
        "job": jobs.submit(["true"]).id,
    }.get(kind, kind)
    wanted = [
        lambda: jobs.get_pipeline(some_id),
        lambda: jobs.update_pipeline(some_id, name="x"),
        lambda: jobs.delete_pipeline(some_id),
        lambda: jobs.skips(some_id),
    ]
    if some_id is not None:
        wanted += [
            lambda: jobs.create_job(pipeline_id=some_id),
            lambda: jobs.submit(["true"], pipeline_id=some_id),
            lambda: jobs.list_jobs(pipeline_id=some_id),
            lambda: jobs.count_jobs(pipeline_id=some_id),
        ]
    for want in wanted:
        with pytest.raises(PipelineNotFound) as caught:
            want()

        assert caught.value.status == 404


@pytest.mark.parametrize("kind", ["nonsense", "", 5, "unknown", "pipeline", "job"])
def test_ids_that_no_workspace_has_are_typed(jobs, kind):
    """Malformed, unknown and others' ids are WorkspaceNotFound, whatever was wanted."""
    some_id = {
        "unknown": uuid4(),
        "pipeline": jobs.create_pipeline("p", ["true"]).id,
        "job": jobs.submit(["true"]).id,
    }.get(kind, kind)
    wanted = [
        lambda: jobs.get_workspace(some_id),
        lambda: jobs.update_workspace(some_id, name="x"),
        lambda: jobs.delete_workspace(some_id),
        lambda: jobs.list_pipelines(workspace_id=some_id),
        lambda: jobs.create_pipeline("x", ["true"], workspace_id=some_id),
        lambda: jobs.create_job("COMMAND", workspace_id=some_id),
        lambda: jobs.list_jobs(workspace_id=some_id),
    ]
    for want in wanted:
        with pytest.raises(WorkspaceNotFound) as caught:
            want()

        assert caught.value.status == 404


# --- deleting -----------------------------------------------------------------------


def test_a_deleted_pipeline_leaves_nothing(running_jobs, database):
    """A pipeline's deletion returns when its running job's row, directory and process are gone."""
    made = running_jobs.create_pipeline("p", SLEEPS)
    other = running_jobs.create_pipeline("other", ["true"])
    ended = running_jobs.wait(
        running_jobs.submit(["echo", "x"], pipeline_id=made.id).id, timeout=30
    )
    job = running_jobs.create_job(pipeline_id=made.id)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    cookie = cookie_of(database, job.id)

    running_jobs.delete_pipeline(made.id)

    assert carrying(cookie) == []
    assert left_behind(database) == {"pipeline": 1}
    assert running_jobs.list_pipelines() == [other]
    for gone in (ended.id, job.id):
        with pytest.raises(JobNotFound):
            running_jobs.get_job(gone)
    with pytest.raises(PipelineNotFound):
        running_jobs.delete_pipeline(made.id)


def test_a_deleted_workspace_leaves_nothing(running_jobs, database):
    """Its pipelines and all jobs, running, queued, the host's own and final, go with it."""
    workspace = running_jobs.create_workspace("w")
    cookies = []
    for name in ("a", "b"):
        made = running_jobs.create_pipeline(name, EXITS_0_ON_SIGTERM, workspace_id=workspace.id)
        job = running_jobs.create_job(pipeline_id=made.id)
        assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
        cookies.append(cookie_of(database, job.id))
    queued = running_jobs.submit(["true"], workspace_id=workspace.id)  # both slots are taken
    own = running_jobs.create_job("PROFILE_IMPORT", workspace_id=workspace.id)
    running_jobs.start_job(own.id)
    running_jobs.append_log(own.id, "a line")
    kept = running_jobs.submit(["true"])

    running_jobs.delete_workspace(workspace.id)

    assert [carrying(cookie) for cookie in cookies] == [[], []]
    assert running_jobs.list_pipelines() == []
    assert [entry.id for entry in running_jobs.list_workspaces()] == [kept.workspace_id]
    assert running_jobs.wait(kept.id, timeout=30).status is Status.COMPLETE
    assert left_behind(database) == {"job": 1, "transition": 3}
    assert running_jobs.list_jobs() == [running_jobs.get_job(kept.id)]
    for gone in (queued, own):
        with pytest.raises(JobNotFound):
            running_jobs.get_job(gone.id)


def test_default_workspace_is_created_again_after_deletion(jobs):
    """After the default workspace's deletion there is a new one on first use."""
    old = jobs.submit(["true"])
    jobs.delete_workspace(old.workspace_id)
    new = jobs.submit(["true"])

    assert new.workspace_id != old.workspace_id
    assert jobs.list_jobs() == [new]
    assert [entry.id for entry in jobs.list_workspaces()] == [new.workspace_id]


def test_nothing_is_put_into_a_workspace_that_is_being_deleted(jobs, database):
    """A job submitted while the default workspace is being deleted is not deleted with it."""
    old = jobs.get_workspace()
    parts(jobs).pipelines.mark_workspace_deleted(old.id)  # where its deleter dies
    job = jobs.submit(["true"])
    pipeline = jobs.create_pipeline("p", ["true"])
    jobs.recover()

    assert jobs.get_job(job.id) == job
    assert jobs.get_pipeline(pipeline.id) == pipeline
    assert jobs.get_workspace().id == job.workspace_id != old.id
    assert [entry["id"] for entry in sql(database, "SELECT id FROM workspace")] == [
        job.workspace_id.hex
    ]


def test_deletion_hides_a_workspace_at_once(jobs):
    """A workspace that is being deleted hides pipelines and jobs at once, from every read."""
    workspace = jobs.create_workspace("w")
    pipeline = jobs.create_pipeline("p", ["true"], workspace_id=workspace.id)
    ended = jobs.create_job(pipeline_id=pipeline.id)
    jobs.cancel_job(ended.id)
    own = jobs.create_job(pipeline_id=pipeline.id)
    jobs.start_job(own.id)
    queued = jobs.submit(["true"], workspace_id=workspace.id)

    parts(jobs).pipelines.mark_workspace_deleted(workspace.id)

    assert jobs.list_workspaces() == []
    assert jobs.list_pipelines() == []
    assert jobs.list_jobs() == []
    assert set(jobs.count_jobs().values()) == {0}
    for hidden in (ended, own, queued):
        with pytest.raises(JobNotFound):
            jobs.get_job(hidden.id)
    with pytest.raises(JobNotFound):
        jobs.start_job(queued.id)


def delete_and_stand_still(say, database):
    """Delete a workspace with a running, a queued and a final job; get no further than the mark."""
    with JobManager(database, slots=2) as jobs:
        workspace = jobs.create_workspace("w")
        ended = jobs.submit(["echo", "x"], workspace_id=workspace.id)
        jobs.wait(ended.id, timeout=30)
        pipeline = jobs.create_pipeline("p", SLEEPS, workspace_id=workspace.id)
        running = jobs.create_job(pipeline_id=pipeline.id)
        next(jobs.follow(running.id, timeout=30))
        queued = jobs.create_job("PROFILE_IMPORT", workspace_id=workspace.id)
        say(f"{workspace.id} {pipeline.id} {ended.id} {running.id} {queued.id}")
        say(cookie_of(database, running.id))

        def stand_still(_deleter, _workspace_id):
            say("marked")
            signal.pause()

        Deleter.delete_workspace = stand_still  # in this process alone
        jobs.delete_workspace(workspace.id)


def test_a_deletion_that_a_crash_interrupts_is_finished_by_the_next_manager(database):
    """After a crash right after the mark, the pipeline is hidden, and `recover()` removes it."""
    with host(delete_and_stand_still, database) as killed:
        workspace, pipeline, *job_ids = (UUID(word) for word in killed.hear().split())
        cookie = killed.hear()
        assert killed.hear() == "marked"
        killed.kill()

    with JobManager(database, slots=0) as jobs:
        seen = [*jobs.list_workspaces(), *jobs.list_pipelines(), *jobs.list_jobs()]
        settled = []

        def finished():
            settled.extend(jobs.recover())
            return not sql(database, "SELECT id FROM workspace")

        until(finished, "the end of the deletion")

        assert (seen, settled) == ([], [])
        assert left_behind(database) == {}
        assert carrying(cookie) == []
        for job_id in job_ids:
            with pytest.raises(JobNotFound):
                jobs.get_job(job_id)
        with pytest.raises(PipelineNotFound):
            jobs.get_pipeline(pipeline)
        with pytest.raises(WorkspaceNotFound):
            jobs.get_workspace(workspace)


def test_one_recovery_finishes_a_deletion_that_waits_for_nothing(jobs, database):
    """If no process has to end first, one `recover()` removes everything."""
    pipeline = jobs.create_pipeline("p", ["true"])
    jobs.cancel_job(jobs.create_job(pipeline_id=pipeline.id).id)
    jobs.create_job(pipeline_id=pipeline.id)
    parts(jobs).pipelines.mark_pipeline_deleted(pipeline.id)

    jobs.recover()

    assert left_behind(database) == {}


def test_deletion_waits_for_a_job_that_another_caller_deletes(running_jobs, database):
    """A pipeline's deletion returns when all is gone, whoever had begun with its job."""
    made = running_jobs.create_pipeline("p", SLEEPS)
    job = running_jobs.create_job(pipeline_id=made.id)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    row = row_of(database, job.id)
    with closing(Database(database)) as other, transaction(other) as connection:
        remover.hide(connection, row["number"], now=row["start_time"])

    running_jobs.delete_pipeline(made.id)

    assert carrying(row["cookie"]) == []
    assert left_behind(database) == {}


def test_a_deletion_waits_for_no_other_pipeline(running_jobs, database):
    """A pipeline without jobs goes at once, while a job of another one takes its grace."""
    slow = running_jobs.create_pipeline("slow", SLEEPS)
    other = running_jobs.create_pipeline("other", ["true"])
    job = running_jobs.create_job(pipeline_id=slow.id)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    parts(running_jobs).pipelines.mark_pipeline_deleted(slow.id)  # its deleter has just begun

    running_jobs.delete_pipeline(other.id)

    assert [row["id"] for row in sql(database, "SELECT id FROM pipeline")] == [slow.id.hex]
    running_jobs._deleter().delete_pipeline(slow.id)
    assert left_behind(database) == {}


def test_a_large_workspace_is_deleted_in_steps(jobs, database, monkeypatch):
    """Each transaction marks and removes a few, and others write in between."""
    for name, count in (("PIPELINES_AT_ONCE", 2), ("ACTIVE_AT_ONCE", 2), ("FINAL_AT_ONCE", 2)):
        monkeypatch.setattr(remover, name, count)
    workspace = jobs.create_workspace("w")
    for number in range(7):
        pipeline = jobs.create_pipeline(str(number), ["true"], workspace_id=workspace.id)
        jobs.create_job(pipeline_id=pipeline.id)
        jobs.cancel_job(jobs.submit(["true"], workspace_id=workspace.id).id)
    changed = []
    begin = remover.hide_some

    def counted(*args, **options):
        more = begin(*args, **options)
        changed.append(more)
        return more

    monkeypatch.setattr(remover, "hide_some", counted)
    jobs.delete_workspace(workspace.id)

    assert len(changed) > 8
    assert left_behind(database) == {}
    assert sql(database, "SELECT id FROM workspace") == []


def test_a_deletion_that_stopped_between_its_steps_is_finished(jobs, database, monkeypatch):
    """Where a deleter dies with pipelines and jobs still unmarked, `recover()` goes on."""
    for name, count in (("PIPELINES_AT_ONCE", 2), ("ACTIVE_AT_ONCE", 2), ("FINAL_AT_ONCE", 2)):
        monkeypatch.setattr(remover, name, count)
    workspace = jobs.create_workspace("w")
    for number in range(7):
        pipeline = jobs.create_pipeline(str(number), ["true"], workspace_id=workspace.id)
        jobs.create_job(pipeline_id=pipeline.id)
    parts(jobs).pipelines.mark_workspace_deleted(workspace.id)
    with pytest.raises(WorkspaceNotFound):
        jobs.submit(["true"], workspace_id=workspace.id)

    jobs.recover()

    assert left_behind(database) == {}
    assert sql(database, "SELECT id FROM workspace") == []


def delete(database, pipeline_id):
    """Delete a pipeline; tell whether it was there, and what of it is left at the return."""
    with JobManager(database, slots=0) as jobs:
        try:
            jobs.delete_pipeline(pipeline_id)
        except PipelineNotFound:
            return None
        return left_behind(database)


def test_of_many_who_delete_a_pipeline_one_does(running_jobs, database):
    """Eight processes delete a running pipeline: one succeeds, and the others do not find it."""
    made = running_jobs.create_pipeline("p", SLEEPS)
    job = running_jobs.create_job(pipeline_id=made.id)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    cookie = cookie_of(database, job.id)

    answers = at_once(delete, [(database, made.id)] * 8)

    assert [answer for answer in answers if answer is not None] == [{}]
    assert carrying(cookie) == []


@pytest.mark.parametrize("code", [0xD800, 0xDCFF])
def test_script_that_cannot_be_stored_is_refused(jobs, code):
    """The half of a surrogate is no text, whatever the names of files may be."""
    with pytest.raises(CommandError, match=r"cannot be (encoded|stored)|can be stored"):
        jobs.create_pipeline("a", script=f"echo {chr(code)}")
