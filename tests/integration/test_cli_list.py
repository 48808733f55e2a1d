"""`list` and `show`: what matters most, at any width; and JSON that scripts can calculate with."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest
from rich.cells import cell_len

from jobcore import Command, JobManager, Retries
from tests.integration.verbs_harness import in_a_pipe, on_a_terminal
from tests.processes import PATIENCE
from tests.programs import SLEEPS
from tests.tasks import end


@pytest.fixture
def jobs(database):
    """Return a manager that runs nothing, with the clock of the command line."""
    with JobManager(database, slots=0) as manager:
        yield manager


def task(jobs, exit_code=None, **options):
    job = jobs.create_job("TASK", **options)
    return job if exit_code is None else end(jobs, job, exit_code)


def shown(database, *words, **environment):
    """Return the rows that a terminal shows, without colours."""
    (text,) = on_a_terminal(database, [["list", *words]], **environment)
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "").splitlines()


def test_running_jobs_come_first_then_the_next_then_failures(database, jobs):
    """However many have been queued or have ended well since."""
    failed = task(jobs, 3, name="failed")
    running = jobs.start_job(task(jobs, name="running").id, owner=None)
    for n in range(30):
        task(jobs, 0, name=f"good {n}")
    jobs.submit_many([["true"]] * 50)
    urgent = jobs.submit(["true"], priority=1, name="urgent")
    counts, titles, *rows = shown(database, LINES="14")
    numbers = [int(row.split()[0]) for row in rows[:-1]]

    assert counts == "QUEUED 51  RUNNING 1  COMPLETE 30  ERROR 1  STOPPED 0"
    assert titles.startswith("JOB  ID ")
    assert len(rows) == 11
    assert numbers[:3] == [running.number, urgent.number, 33]
    assert failed.number in numbers
    assert numbers[-2:] == [32, 31]
    assert rows[-1] == "jobcore: 73 more: see --limit and the filters"


def test_paused_jobs_come_after_those_that_may_start(database, jobs):
    """Nobody knows when they start."""
    jobs.pause("old")
    jobs.submit(["true"], group="old")
    jobs.submit(["true"])
    jobs.submit(["true"], not_before=3600)
    _, _, *rows = shown(database)

    assert [row.split()[0] for row in rows] == ["2", "3", "1"]


@pytest.mark.parametrize(
    ("columns", "titles"),
    [
        (60, "JOB STATUS TIME NOTE WHAT"),
        (80, "JOB STATUS TIME NOTE STARTED GROUP PIPELINE WHAT"),
        (160, "JOB ID STATUS TIME NOTE STARTED PRIO GROUP PIPELINE LINES WHAT"),
    ],
)
def test_columns_fit_the_terminal(database, jobs, columns, titles):
    """Only the last one is cut, and no row is longer than the terminal."""
    pipeline = jobs.create_pipeline("nightly", ["true"])
    run = jobs.create_job(pipeline_id=pipeline.id, group="reports", priority=3)
    jobs.append_log(jobs.start_job(run.id, owner=None).id, "line")
    jobs.finish_job(run.id, 3)
    jobs.submit(["python", "load.py", "--a-long-option", "with a long value" * 5])
    _, first, *rows = shown(database, COLUMNS=str(columns))

    assert [title for title in first.split() if title != "UTC"] == titles.split()
    assert all(len(row) <= columns for row in rows)
    (queued, failed) = rows
    assert queued.startswith("  2 ")
    assert queued.endswith("…")
    assert "python load.py" in queued
    assert "exit 3" in failed
    assert failed.rstrip().endswith("nightly")


def test_long_names_take_no_room_from_numbers_and_states(database, jobs):
    """Names are cut, and columns are left out; a wide character takes two of a terminal."""
    load = jobs.create_pipeline("load " * 10, ["true"], group="connections to the warehouse")
    jobs.create_job(pipeline_id=load.id)
    jobs.submit(["true"], name="\N{HIRAGANA LETTER A}" * 30, not_before=3_000)
    _, titles, first, second = shown(database, COLUMNS="80")

    assert titles.split() == ["JOB", "STATUS", "TIME", "GROUP", "PIPELINE", "WHAT"]
    assert first.split()[:2] == ["1", "QUEUED"]
    assert "connections…" in first
    assert second.split()[:3] == ["2", "QUEUED", "in"]
    assert second.rstrip().endswith("\N{HIRAGANA LETTER A} …")
    assert [cell_len(row) for row in (titles, first, second)] == [80] * 3


def test_wide_cuts_nothing(database, jobs):
    """Whole ids, names and commands."""
    job = jobs.submit(["echo", "x" * 300], name="n")
    text = "".join(shown(database, "-w", "--limit", "1", COLUMNS="80"))

    assert str(job.id) in text
    assert f"n: echo {'x' * 300}" in text


def test_notes_show_what_a_job_waits_for(database, jobs):
    """NOTE says when a job is due, that it waits for other jobs, and which attempt it is."""
    now = jobs.get_workspace().created
    due = jobs.submit(["true"], not_before=now + timedelta(hours=2, minutes=30))
    jobs.submit(["true"], after=[due.id])
    jobs.start_job(task(jobs).id, owner=None)
    jobs.report_progress(jobs.list_jobs()[0].id, 1, 3)
    again = jobs.create_pipeline("again", ["true"], retries=Retries(1, delay=3000))
    run = jobs.create_job(pipeline_id=again.id)
    jobs.finish_job(jobs.start_job(run.id, owner=None).id, 1)
    rows = "\n".join(shown(database))

    assert re.search(r"^ *1 +\w+ +QUEUED +in 2h\d\dm ", rows, re.MULTILINE)
    assert re.search(r"^ *2 +\w+ +QUEUED +waits ", rows, re.MULTILINE)
    assert re.search(r"^ *3 +\w+ +RUNNING +\d\.\ds +33% ", rows, re.MULTILINE)
    assert re.search(r"^ *5 +\w+ +QUEUED +in \w+ +attempt 2 ", rows, re.MULTILINE)


def test_filters_of_a_list(database, jobs):
    """By name, group, failure and time, in a pipe."""
    task(jobs, 1, name="load a", group="x")
    task(jobs, 0, name="load b")
    task(jobs, name="other", group="x", key="k")
    place = jobs.create_workspace("w")
    nightly = jobs.create_pipeline("nightly", ["true"], workspace_id=place.id)
    jobs.create_job(pipeline_id=nightly.id)
    calls = [
        ["list", "--name", "load *"],
        ["list", "--group", "x"],
        ["list", "--failed"],
        ["list", "--since", "1h", "--until", "0"],
        ["list", "--since", "0"],
        ["list", "--exit-code", "1", "--exit-code", "0", "--reason", "exited"],
        ["list", "--key", "k"],
        ["list", "--pipeline", "NIGHTLY"],
        ["list", "--workspace", "w"],
        ["list", "--workspace", "w", "--pipeline", "nightly", "--status", "ERROR"],
        ["list", "--ended-since", "1h"],
        ["list", "--ended-until", "0"],
        ["list", "--ended-until", "1h"],
        ["list", "--order", "ended"],
    ]
    *texts, err = in_a_pipe(database, calls)

    found = [[line.split("\t")[1] for line in text.splitlines()] for text in texts]
    assert found == [
        *(["2", "1"], ["3", "1"], ["1"], ["4", "3", "2", "1"], []),
        *(["2", "1"], ["3"], ["4"], ["4"], [], ["2", "1"], ["2", "1"], [], ["2", "1"]),
    ]
    assert err == ""


def test_json_has_durations_and_times_as_numbers(database, jobs):
    """And the command, masked."""
    jobs.submit(Command(["echo", "secret-word"], env={"A": "value"}, redact=["secret-word"]))
    done = task(jobs, 0)
    text, err = in_a_pipe(database, [["list", "--json"]])
    ended, queued = json.loads(text)

    assert queued["command"] == ["echo", "***"]
    assert (queued["duration"], queued["epoch"]["startTime"]) == (None, None)
    assert ended["command"] is None
    assert ended["duration"] == done.duration
    assert ended["epoch"]["endTime"] - ended["epoch"]["startTime"] == pytest.approx(
        done.duration, abs=1e-5
    )
    assert ended["epoch"]["created"] == done.created.timestamp()
    assert "secret-word" not in text + err
    assert "value" not in text


def test_show_has_the_command_and_who_asked_for_the_stop(database, jobs):
    """The names of variables, never their values; a terminal leaves out what is empty."""
    job = jobs.submit(["sleep", "1 2"], env={"TOKEN": "value-1"}, cwd="/srv", timeout=60)
    piped, _ = in_a_pipe(database, [["show", "1"]])
    facts = dict(line.split("\t") for line in piped.splitlines())

    assert facts["command"] == "sleep '1 2'"
    assert (facts["cwd"], facts["env"], facts["timeout"]) == ("/srv", "TOKEN", "60.0")
    assert facts["stopRequestedBy"] == "-"
    assert "value-1" not in piped

    jobs.stop_job(jobs.start_job(task(jobs).id, owner=None).id)
    (text,) = on_a_terminal(database, [["show", "2"]])
    assert "pipeline" not in text
    assert "dropped" not in text
    (text,) = on_a_terminal(database, [["show", "1"]])
    assert re.search(r"^timeout +1m\b", text, re.MULTILINE)
    assert re.search(r"^grace +10s\b", text, re.MULTILINE)
    piped, _ = in_a_pipe(database, [["show", "2"]])
    assert re.search(r"^stopRequestedBy\tpid \d+$", piped, re.MULTILINE)
    jobs.submit(["true"], after=[job.id])
    piped, _ = in_a_pipe(database, [["show", "3"]])
    assert "\nafter\t#1 QUEUED\n" in piped


def test_show_has_what_a_running_job_uses(database, running_jobs):
    """Its processor time, memory and processes."""
    job = running_jobs.submit(SLEEPS)
    assert next(running_jobs.follow(job.id)).text == "ready"
    piped, _ = in_a_pipe(database, [["show", "1"]])
    running_jobs.stop_job(job.id)
    running_jobs.wait(job.id, PATIENCE)

    usage = r"^usage\t\d+\.\d s of CPU, \d+\.\d MiB, \d process(es)?$"
    assert re.search(usage, piped, re.MULTILINE)
