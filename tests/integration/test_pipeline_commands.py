"""Pipelines, schedules and workspaces on the command line."""

from __future__ import annotations

import json
import re

import pytest
import typer.main

from jobcore import Status
from jobcore.cli.app import app
from tests.integration.verbs_harness import fork, in_a_pipe, on_a_terminal
from tests.processes import PATIENCE

GROUPS = {
    name: typer.main.get_command(app).get_command(None, name).commands
    for name in ("pipeline", "workspace")
}


def said(database, *words):
    """Return exit code, stdout and stderr of one command."""
    process = fork([list(words)], {"JOBCORE_DB": database}, stdout=-1, stderr=-1, text=True)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def rows(text):
    return [line.split("\t") for line in text.splitlines()]


def test_pipeline_is_created_changed_and_deleted(jobs, database, tmp_path):
    """Options come on either side of the name; what is not given stays, '' removes a value."""
    create = ["pipeline", "create", "load", "--schedule", "@daily", "--time-zone", "Asia/Tokyo"]
    more = ["--timeout", "5m", "--retries", "2", "--group", "g", "--env", "A=1", "--catch-up=last"]
    made, report, err = in_a_pipe(
        database,
        [
            [*create, *more, "--cwd", str(tmp_path), "--", "sh", "-c", "echo $A"],
            ["pipeline", "create", "--after", "load", "report", "--script", "echo r", "--json"],
        ],
    )
    load = jobs.get_pipeline(made.strip())

    assert err == ""
    assert (load.command.argv, load.command.cwd, load.command.env) == (
        ("sh", "-c", "echo $A"), str(tmp_path), {"A": "1"},
    )  # fmt: skip
    assert (load.schedule, load.time_zone, load.timeout, load.max_retries, load.group) == (
        "@daily", "Asia/Tokyo", 300.0, 2, "g",
    )  # fmt: skip
    assert load.catch_up == "last"
    assert json.loads(report)["triggeredBy"] == ["load"]

    changes = [
        [
            "pipeline",
            "set",
            "LOAD",
            "--schedule",
            "",
            "--group=",
            "--env",
            "B=2",
            "--name",
            "fetch",
        ],
        ["pipeline", "set", "report", "--after", "", "--", "true"],
        ["pipeline", "set", str(load.id), "--script", "echo new", "--timeout", "90"],
    ]
    assert in_a_pipe(database, changes) == ["", "", "", ""]
    load = jobs.get_pipeline(load.id)
    other = next(one for one in jobs.list_pipelines() if one.name == "report")
    assert (load.name, load.schedule, load.group, load.timeout) == ("fetch", None, None, 90.0)
    assert (load.script, load.command.env) == ("echo new", {"A": "1", "B": "2"})
    assert (other.triggered_by, other.script, other.command.argv) == (None, None, ("true",))

    assert in_a_pipe(database, [["pipeline", "delete", "report"]]) == ["", ""]
    assert [one.name for one in jobs.list_pipelines()] == ["fetch"]


def test_scripts_run_after_the_jobs_of_a_pipeline(running_jobs, database):
    """`set` replaces the one that is given, '' removes it, and the others stay."""
    create = ["pipeline", "create", "load", "--on-error", "echo first", "--on-complete", "echo ok"]
    in_a_pipe(
        database,
        [
            [*create, "--", "false"],
            ["pipeline", "set", "load", "--on-error", "echo changed", "--on-complete", ""],
        ],
    )
    (load,) = running_jobs.list_pipelines()

    def outputs():
        """Return what the scripts print that run after one job."""
        job = running_jobs.wait(running_jobs.create_job(pipeline_id=load.id).id, PATIENCE)
        running_jobs.drain(PATIENCE)
        scripts = [one for one in running_jobs.list_jobs() if one.hook_of == job.id]
        return [line.text for one in scripts for line in running_jobs.logs(one.id)]

    shown, _ = in_a_pipe(database, [["pipeline", "show", "load"]])
    assert "\nonError\techo changed\n" in shown
    assert "onComplete" not in shown
    assert [*load.hooks] == ["on_error"]
    assert outputs() == ["changed"]
    in_a_pipe(database, [["pipeline", "set", "load", "--", "true"]])
    assert outputs() == []


def test_list_show_and_schedule_show_due_times(jobs, database):
    """In a pipe with all fields, on a terminal in short; no value of a variable is shown."""
    place = jobs.create_workspace("w")
    b = jobs.create_pipeline("b", ["x", "a b"], schedule="@daily", env={"KEY": "hunter2"})
    a = jobs.create_pipeline("a", script="y", schedule="@hourly", group="g", triggered_by=["b"])
    c = jobs.create_pipeline("c", ["z"], workspace_id=place.id, schedule="@daily", paused=True)
    run = jobs.create_job(pipeline_id=b.id)
    jobs.start_job(run.id)
    verbs = [
        ["pipeline", "list"],
        ["pipeline", "list", "--json", "--workspace", "w"],
        ["pipeline", "show", "B"],
        ["pipeline", "show", "b", "--json"],
        ["schedule"],
        ["schedule", "--limit", "1", "--json"],
    ]
    listed, of_place, shown, document, due, first, err = in_a_pipe(database, verbs)

    assert err == ""
    assert [(row[1], row[7], row[8], row[10]) for row in rows(listed)] == [
        ("a", "g", "b", "-"), ("b", "-", "-", "RUNNING"), ("c", "-", "-", "-"),
    ]  # fmt: skip
    assert rows(listed)[2][6] != "-"
    assert [one["id"] for one in json.loads(of_place)] == [str(c.id)]
    facts = dict(rows(shown))
    assert (facts["command"], facts["env"], facts["name"]) == ("x 'a b'", "KEY", "b")
    assert json.loads(document)["id"] == str(b.id)
    assert [row[1] for row in rows(due)] == ["a", "b"]
    assert [one["id"] for one in json.loads(first)] == [str(a.id)]

    terminal = on_a_terminal(database, verbs[:1] + verbs[2:3] + verbs[4:5])
    assert "paused" in terminal[0]
    assert "hunter2" not in "".join([listed, of_place, shown, document, due, *terminal])


@pytest.mark.parametrize(
    ("columns", "titles"),
    [
        (60, "NAME SCHEDULE NEXT UTC LAST"),
        (80, "NAME SCHEDULE NEXT UTC LAST GROUP AFTER"),
        (200, "NAME SCHEDULE NEXT UTC LAST GROUP AFTER"),
    ],
)
def test_long_names_take_no_room_from_times(jobs, database, columns, titles):
    """A narrow terminal has fewer columns, and cuts names; the other values are complete."""
    load = jobs.create_pipeline("load orders " * 5, ["true"], group="g" * 20)
    jobs.create_pipeline("report", ["true"], schedule="30 4 * * 1-5", triggered_by=[load.name])
    jobs.create_job(pipeline_id=load.id)
    (shown,) = on_a_terminal(database, [["pipeline", "list"]], COLUMNS=str(columns))
    header, first, second = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()

    assert " ".join(header.split()) == titles
    assert " QUEUED" in first
    assert " 30 4 * * 1-5  " in second
    assert ("…" in first) == (columns < 200)


def test_pause_and_resume_keep_the_schedule(jobs, database):
    """They are for the schedule only."""
    made = jobs.create_pipeline("p", ["true"], schedule="@daily")

    assert in_a_pipe(database, [["pipeline", "pause", "p"]]) == ["", ""]
    assert jobs.get_pipeline(made.id).next_tick is None
    assert in_a_pipe(database, [["pipeline", "resume", "p"]]) == ["", ""]
    assert jobs.get_pipeline(made.id).next_tick is not None


def test_run_queues_one_job(jobs, database):
    """Its ID is printed; while it is active, another one is refused."""
    made = jobs.create_pipeline("p", ["true"])
    (job_id, _) = in_a_pipe(database, [["pipeline", "run", "p"]])
    code, out, err = said(database, "pipeline", "run", "p")

    assert jobs.get_job(job_id.strip()).pipeline_id == made.id
    assert (code, out) == (1, "")
    assert job_id.strip() in err


def test_pipeline_run_prints_the_number_on_a_terminal(jobs, database):
    """It prints the same as `submit`."""
    jobs.create_pipeline("p", ["true"])
    (shown,) = on_a_terminal(database, [["pipeline", "run", "p"]])
    (job,) = jobs.list_jobs()

    assert shown == f"#1  {job.id}\r\n"


def test_run_may_follow_until_the_end(running_jobs, database):
    """It prints the log, and exits as the job did."""
    running_jobs.create_pipeline("p", ["sh", "-c", "echo hello; exit 3"])
    code, out, err = said(database, "pipeline", "run", "-f", "p")

    assert (code, out) == (3, "hello\n")
    assert err.startswith("jobcore: job ")
    assert [job.status for job in running_jobs.list_jobs()] == [Status.ERROR]


def test_run_takes_parameters(running_jobs, database):
    """Words, variables and a time limit, for this run only."""
    running_jobs.create_pipeline("p", script='echo "$1 $2 $LEVEL"')
    words = [
        "pipeline",
        "run",
        "p",
        "-f",
        "--env",
        "LEVEL=debug",
        "--timeout",
        "1m",
        "--",
        "a",
        "-b",
    ]
    code, out, _ = said(database, *words)

    assert (code, out) == (0, "a -b debug\n")


def test_pipeline_may_need_several_others(jobs, database):
    """Once for each complete set of their runs."""
    jobs.create_pipeline("a", ["true"])
    jobs.create_pipeline("b", ["true"])
    verbs = [
        ["pipeline", "create", "c", "--requires", "a", "--requires", "b", "--", "true"],
        ["pipeline", "list"],
        ["pipeline", "set", "c", "--requires", ""],
    ]
    made, listed, _, err = in_a_pipe(database, verbs)

    assert err == ""
    assert rows(listed)[2][8] == "a + b"
    assert jobs.get_pipeline(made.strip()).requires is None


def test_skips_are_listed(jobs, clock, database):
    """Newest first."""
    made = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
    clock.advance(1000)
    jobs.update_pipeline(made.id, paused=True)
    (listed, document, _) = in_a_pipe(
        database, [["pipeline", "skips", "p"], ["pipeline", "skips", "p", "--json"]]
    )

    assert [row[1:] for row in rows(listed)] == [["2", "missed", "-"]]
    assert json.loads(document)[0]["count"] == 2


def test_names_that_are_unclear_are_refused_with_a_hint(jobs, database):
    """By workspace or ID they are clear."""
    place = jobs.create_workspace("w")
    jobs.create_pipeline("twin", ["true"])
    second = jobs.create_pipeline("Twin", ["true"], workspace_id=place.id)

    assert (
        "2 workspaces have a pipeline 'twin': give" in said(database, "pipeline", "show", "twin")[2]
    )
    assert (
        "no pipeline has the name or ID 'twim'; did you mean 'twin'?"
        in said(database, "pipeline", "show", "twim")[2]
    )
    for words in (["twin", "--workspace", "w"], [str(second.id)]):
        code, out, _ = said(database, "pipeline", "show", *words)
        assert (code, dict(rows(out))["id"]) == (0, str(second.id))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create", "p"], "a pipeline needs a command after --, or --script"),
        (["create", "p", "--script", "x", "--", "y"], "give one of them"),
        (["create", "p", "ls", "-l"], "No such option: -l"),
        (["create", "p", "--schedule", "soon", "--", "x"], "is not a cron expression"),
        (["create", "p", "--timeout", "soon", "--", "x"], "time-out must be"),
        (["set", "q"], "there is nothing to change"),
        (["set", "q", "--catch-up", "some"], "catch_up must be one of"),
        ([], "Missing command; see jobcore pipeline --help"),
        (["lst"], "Did you mean 'list'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(jobs, database, words, message):
    """Nothing is written."""
    before = jobs.create_pipeline("q", ["true"])
    code, out, err = said(database, "pipeline", *words)

    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert jobs.list_pipelines() == [before]


def test_workspaces_are_created_renamed_and_deleted(jobs, database):
    """Deletion takes their pipelines and jobs."""
    (made, _) = in_a_pipe(database, [["workspace", "create", "w"]])
    in_a_pipe(
        database,
        [
            ["pipeline", "create", "p", "--workspace", "w", "--", "true"],
            ["workspace", "rename", "w", "v"],
        ],
    )
    listed, document, _ = in_a_pipe(
        database, [["workspace", "list"], ["workspace", "list", "--json"]]
    )

    assert [(row[0], row[1], row[3], row[4]) for row in rows(listed)] == [
        (made.strip(), "v", "1", "0")
    ]
    assert json.loads(document)[0]["name"] == "v"
    assert in_a_pipe(database, [["workspace", "delete", "v"]]) == ["", ""]
    assert (jobs.list_workspaces(), jobs.list_pipelines()) == ([], [])


@pytest.mark.parametrize("group", GROUPS)
def test_each_command_of_a_group_explains_itself(group):
    """The help of each has a sentence, and explains each of its options and arguments."""
    for name, command in GROUPS[group].items():
        assert command.help.partition("\n")[0].endswith("."), name
        assert [
            one.name for one in command.params if not one.help and one.name not in ("help", "ctx")
        ] == []
