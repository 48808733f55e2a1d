"""Commands that take several jobs, or filters: stop, cancel, wait, retry, set, delete, logs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from datetime import timedelta

import pytest
import typer

from jobcore import JobManager, Reason, Status
from jobcore.cli.app import app
from tests.integration.verbs_harness import fork, in_a_pipe, on_a_terminal
from tests.processes import PATIENCE, ROOT, open_gate, until
from tests.tasks import end


@pytest.fixture
def cli(database):
    """Return a function that runs `jobcore`: its stdout and stderr."""

    def call(*words, code=0):
        process = start(database, *words)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, "Traceback" in err) == (code, False), f"{out}\n{err}"
        return out, err

    return call


def start(database, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JOBCORE_DB": database}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return fork([words], environment, text=True, **pipes)


@pytest.fixture
def jobs(database):
    """Return a manager that runs nothing, with the clock of the command line."""
    with JobManager(database, slots=0) as manager:
        yield manager


def task(jobs, exit_code=None, **options):
    """Return a task: QUEUED without an exit code, else final."""
    job = jobs.create_job("TASK", **options)
    return job if exit_code is None else end(jobs, job, exit_code)


def statuses(jobs):
    return [str(job.status) for job in jobs.list_jobs()[::-1]]


# --- stop and cancel -------------------------------------------------------------------


def test_stop_takes_running_and_queued_jobs_by_id(cli, jobs):
    """An error of one is printed, and the others are stopped all the same."""
    over, queued = task(jobs, 0), task(jobs)
    running = jobs.start_job(task(jobs).id, owner=None)
    _, err = cli("stop", "1", "2", str(running.id), code=1)

    assert statuses(jobs) == ["COMPLETE", "STOPPED", "STOPPED"]
    assert err == f"jobcore: job {over.id} is COMPLETE: cannot stop\n"
    assert jobs.get_job(queued.id).reason is Reason.CANCELLED


def test_filters_choose_what_can_be_stopped(cli, jobs):
    """By name, group, type and status, all of which have to fit; --all alone means all."""
    task(jobs, 0, name="load a")
    for name, group in (("load b", "x"), ("load c", "y"), ("other", "x"), ("last", None)):
        task(jobs, name=name, group=group)
    cli("stop", "--name", "load *", "--group", "x")
    assert statuses(jobs) == ["COMPLETE", "STOPPED", "QUEUED", "QUEUED", "QUEUED"]

    cli("cancel", "--group", "x")
    out, _ = cli("cancel", "--group", "y", "--json")
    assert [one["name"] for one in json.loads(out)] == ["load c"]
    assert statuses(jobs) == ["COMPLETE", "STOPPED", "STOPPED", "STOPPED", "QUEUED"]

    cli("stop", "--type", "COMMAND")
    cli("stop", "--status", "RUNNING")
    assert statuses(jobs)[-1] == "QUEUED"
    cli("stop", "--all")
    assert statuses(jobs)[-1] == "STOPPED"


def test_terminal_names_stopping_jobs_by_number(jobs, database):
    """On a terminal, the messages of `stop` name jobs by number, not by ID."""
    task(jobs)
    jobs.start_job(task(jobs).id, owner=None)
    shown = on_a_terminal(database, [["stop", "1"], ["stop", "--no-wait", "2"]])

    assert shown[0] == "jobcore: job #1 is STOPPED: cancelled\r\n"
    assert shown[1].startswith("jobcore: job #2 is ")


@pytest.mark.parametrize("verb", ["stop", "cancel", "wait", "retry", "delete", "logs"])
def test_nothing_is_chosen_by_accident(cli, jobs, verb):
    """Without an id or a filter nothing is done, nor with both."""
    task(jobs)
    failed = task(jobs, 1)
    _, none = cli(verb, code=2)
    _, both = cli(verb, "1", "--name", "x", code=2)

    assert none.startswith(f"jobcore: {verb} needs an ID")
    assert both == f"jobcore: {verb} takes IDs or filters, not both\n"
    assert statuses(jobs) == ["QUEUED", "ERROR"]
    assert jobs.list_jobs()[0].id == failed.id


#: The filters that jobs of any status can pass, with the jobs of the test that do.
ANY = {
    "--type TASK": "ab", "--name load*": "a", "--group gpu": "a", "--key k": "a",
    "--workspace other": "b", "--pipeline p": "c", "--since 2000-01-01": "abc",
    "--until 2000-01-01": "",
}  # fmt: skip
#: Those that only ended jobs can pass.
ENDED = {
    "--ended-since 2000-01-01": "abc", "--ended-until 2000-01-01": "", "--exit-code 3": "b",
    "--reason cancelled": "c",
}  # fmt: skip


def test_every_filter_of_the_command_line(jobs, database):
    """Each finds the right jobs; all commands share its code."""
    place = jobs.create_workspace("other").id
    pipeline = jobs.create_pipeline("p", ["true"]).id
    made = {
        "a": jobs.create_job("TASK", name="load a", group="gpu", key="k"),
        "b": jobs.create_job("TASK", name="other", workspace_id=place),
        "c": jobs.create_job(pipeline_id=pipeline),
    }
    end(jobs, made["a"], 1), end(jobs, made["b"], 3), jobs.cancel_job(made["c"].id)
    verbs = [
        [*verb.split(), *words.split(" ", 1)]
        for verb in ("list", "export", "prune --older-than 0 --dry-run")
        for words in (*ANY, *ENDED)
        if not (verb.startswith("prune") and words.startswith("--ended"))
    ]
    for words, said in zip(verbs, in_a_pipe(database, verbs), strict=False):
        found = {name for name, job in made.items() if str(job.id) in said}
        assert found == set({**ANY, **ENDED}[" ".join(words[-2:])]), words


@pytest.mark.parametrize(
    ("verb", "given"),
    [
        ("list", [*ANY, *ENDED, "--status", "--failed"]),
        ("stop", [*ANY, "--status"]),
        ("cancel", ANY),
        ("wait", ANY),
        ("retry", [*ANY, *ENDED, "--status", "--failed"]),
        ("delete", [*ANY, *ENDED, "--status", "--failed"]),
        ("export", [*ANY, *ENDED, "--status"]),
        ("prune", [*ANY, "--exit-code", "--reason", "--status"]),
    ],
)
def test_commands_take_every_filter_that_their_jobs_can_pass(verb, given):
    """A queued job has no exit code, and what is pruned has an age instead of an end."""
    options = {
        name for one in typer.main.get_command(app).commands[verb].params for name in one.opts
    }

    assert {one.split(" ")[0] for one in given} <= options


def test_filters_by_key_and_owner_choose_what_is_changed(cli, jobs):
    """In stop, cancel, retry and delete."""
    pipeline = jobs.create_pipeline("p", ["true"]).id
    task(jobs, key="one"), jobs.create_job(pipeline_id=pipeline), task(jobs, key="three")
    cli("stop", "--key", "one")
    cli("cancel", "--pipeline", "P")
    assert statuses(jobs) == ["STOPPED", "STOPPED", "QUEUED"]

    assert len(cli("retry", "--key", "one", "--reason", "cancelled")[0].split()) == 1
    assert cli("retry", "--status", "ERROR")[0] == ""
    cli("delete", "--pipeline", "p", "--ended-since", "1h")
    assert statuses(jobs) == ["STOPPED", "QUEUED", "QUEUED"]


def test_count_of_a_list(cli, jobs):
    """By status, of all jobs or of those that pass the filters."""
    task(jobs, 0), task(jobs, 1), task(jobs, name="x")

    every = cli("list", "--count")[0]
    assert every == "QUEUED\t1\nRUNNING\t0\nCOMPLETE\t1\nERROR\t1\nSTOPPED\t0\n"
    assert json.loads(cli("list", "--count", "--name", "x", "--json")[0])["QUEUED"] == 1
    assert sum(json.loads(cli("list", "--count", "--failed", "--json")[0]).values()) == 1


# --- names --------------------------------------------------------------------------------


def test_name_means_the_newest_job_that_the_command_can_take(cli, jobs):
    """`delete` refuses a name that several jobs have; a pattern is no name."""
    old = task(jobs, name="a*[b")
    new = task(jobs, 3, name="a*[b")

    assert json.loads(cli("show", "--json", "a*[b")[0])["id"] == str(new.id)
    cli("set", "--priority", "2", "a*[b")
    assert jobs.get_job(old.id).priority == 2
    assert "several jobs are called" in cli("delete", "a*[b", code=2)[1]
    cli("stop", "a*[b")
    assert jobs.get_job(old.id).status is Status.STOPPED
    assert "no job has the number, name or ID 'a*'" in cli("show", "a*", code=1)[1]


# --- limits -------------------------------------------------------------------------------


def test_queue_is_paused_and_limited(cli, jobs, database):
    """File, group and type can be paused and limited; `limit` lists the limits and removes one."""
    task(jobs, group="gpu")
    jobs.start_job(task(jobs, group="gpu").id, owner=None)
    cli("limit", "gpu", "1")
    cli("limit", "--file", "8")
    cli("pause", "--type", "TASK")
    cli("pause", "gpu")
    rows = [line.split("\t") for line in cli("limit")[0].splitlines()]
    facts = {tuple(row[:2]): (row[2], row[5] != "-", row[3], row[4]) for row in rows}

    assert facts == {
        ("file", "-"): ("8", False, "1", "1"),
        ("group", "gpu"): ("1", True, "1", "1"),
        ("type", "TASK"): ("-", True, "1", "1"),
    }
    (text,) = on_a_terminal(database, [["list"]])
    assert "paused: group gpu" in text
    assert "paused: type TASK" in text

    cli("resume", "gpu"), cli("resume", "--type", "TASK")
    cli("limit", "gpu", "none")
    assert [one.scope for one in jobs.limits() if one.slots or one.paused] == ["file"]
    for words in (["limit", "gpu"], ["limit", "gpu", "0"], ["limit", "--file", "--type", "X", "1"],
                  ["pause", "gpu", "--type", "X"]):  # fmt: skip
        cli(*words, code=2)


# --- wait ------------------------------------------------------------------------------


def test_wait_for_several_exits_with_0_only_if_all_are_complete(cli, jobs):
    """For one job, its exit code; for several, 1 if one failed; for no job, 0."""
    task(jobs, 0), task(jobs, 0), task(jobs, 7)

    cli("wait", "3", code=7)
    cli("wait", "1", "2")
    cli("wait", "1", "2", "3", code=1)
    out, err = cli("wait", "--all", "--json")
    assert (json.loads(out), err) == ([], "jobcore: no queued or running job matches\n")
    task(jobs)
    cli("wait", "--all", "--timeout", "0.1", code=124)


# --- retry -----------------------------------------------------------------------------


def test_failed_jobs_are_retried_once(cli, jobs):
    """ERROR and time-outs, but neither stopped jobs nor those that were retried."""
    task(jobs, 0), task(jobs, 3, name="a"), task(jobs, 4, name="b")
    jobs.cancel_job(task(jobs).id)
    first, _ = cli("retry", "--failed")
    again, _ = cli("retry", "--failed")
    made = [jobs.get_job(one) for one in first.split()]

    assert again == ""
    assert [(job.name, job.attempt) for job in made] == [("a", 2), ("b", 2)]

    jobs.start_job(made[0].id)
    jobs.finish_job(made[0].id, 1)
    third, _ = cli("retry", "--failed", "--since", "1h")  # the last attempt only
    assert jobs.get_job(third.strip()).retry_of == made[0].id
    assert cli("retry", "--failed", "--name", "x")[0] == ""


def test_retry_by_id_prints_the_new_job(cli, jobs):
    """A stopped job can be retried by its id; a complete one is an error."""
    jobs.cancel_job(task(jobs).id)
    task(jobs, 0)
    new = json.loads(cli("retry", "1", "--json")[0])
    _, err = cli("retry", "2", code=1)

    assert (new["attempt"], new["number"]) == (2, 3)
    assert "COMPLETE" in err


# --- set -------------------------------------------------------------------------------


def test_set_changes_queued_jobs(cli, jobs):
    """`set` changes priority, start, name and time-out, also of several jobs at once."""
    first, second = (jobs.submit(["true"]) for _ in range(2))
    cli("set", "1", "2", "--priority", "-3", "--delay", "1h", "--name", "n", "--timeout", "2m")
    changed = [jobs.get_job(one.id) for one in (first, second)]

    assert [(job.priority, job.name) for job in changed] == [(-3, "n")] * 2
    assert changed[0].not_before > first.created + timedelta(minutes=59)
    assert changed[0].command.timeout == 120
    _, err = cli("set", "1", code=2)
    assert "what to change" in err


def test_set_refuses_what_has_ended(cli, jobs):
    """The error names the job."""
    over = task(jobs, 0)
    _, err = cli("set", "--priority", "1", "1", code=1)

    assert str(over.id) in err


# --- delete ----------------------------------------------------------------------------


def test_delete_by_filter_takes_only_what_has_ended(cli, jobs):
    """Queued and running jobs stay, whatever the filter."""
    task(jobs, 0), task(jobs, 1), task(jobs)
    jobs.start_job(task(jobs).id, owner=None)
    cli("delete", "--failed")
    assert statuses(jobs) == ["COMPLETE", "QUEUED", "RUNNING"]
    cli("delete", "--all", "--until", "1h")
    assert statuses(jobs) == ["COMPLETE", "QUEUED", "RUNNING"]
    cli("delete", "--all")
    assert statuses(jobs) == ["QUEUED", "RUNNING"]
    cli("delete", "3", "4")
    assert statuses(jobs) == []


# --- logs ------------------------------------------------------------------------------


@pytest.fixture
def logged(running_jobs):
    """Return three jobs that have written two lines each; the second one failed."""
    made = [
        running_jobs.submit(["sh", "-c", f"echo a{n}; echo b{n}; exit {n % 2}"], name=f"job {n}")
        for n in range(3)
    ]
    for job in made:
        running_jobs.wait(job.id, PATIENCE)
    return made


def test_several_logs_have_titles(database, logged):
    """Each log has its job's number and name as title; a filter can select one."""
    both, failed, lines, err = in_a_pipe(
        database,
        [["logs", "1", "3"], ["logs", "--failed"], ["logs", "--all", "--tail", "1"]],
    )

    assert both == "==> #1 job 0 <==\na0\nb0\n\n==> #3 job 2 <==\na2\nb2\n"
    assert failed == "==> #2 job 1 <==\na1\nb1\n"
    assert re.findall(r"^\w\d$", lines, re.MULTILINE) == ["b0", "b1", "b2"]
    assert err == ""
    del logged


def test_log_without_a_chosen_line_has_no_title(database, logged):
    """Of many logs, only those with a match are shown, with the last lines or all of them."""
    calls = [
        ["logs", "--all", "--grep", "[02]$", "--tail", "1"],
        ["logs", "--all", "--grep", "a[12]"],
        ["logs", "--all", "--grep", "none"],
    ]

    assert in_a_pipe(database, calls) == [
        "==> #1 job 0 <==\nb0\n\n==> #3 job 2 <==\nb2\n",
        "==> #2 job 1 <==\na1\n\n==> #3 job 2 <==\na2\n",
        *("", ""),
    ]
    del logged


def test_lines_are_chosen(database, logged):
    """By text, by stream and by time; the last of those."""
    calls = [
        ["logs", "1", "--grep", "^a"],
        ["logs", "1", "--grep", "[ab]", "--tail", "1"],
        ["logs", "1", "--stream", "system"],
        ["logs", "1", "--stream", "output", "--stream", "system", "--sequence", "1"],
        ["logs", "1", "--since", "1h"],
        ["logs", "1", "--since", "0"],
        ["logs", "--all", "--format", "ndjson", "--grep", "b"],
    ]
    *texts, objects, err = in_a_pipe(database, calls)

    assert texts == ["a0\n", "b0\n", "", "b0\n", "a0\nb0\n", ""]
    found = [json.loads(line) for line in objects.splitlines()]
    assert [(one["job"], one["message"]) for one in found] == [
        (str(job.id), f"b{n}") for n, job in enumerate(logged)
    ]
    assert err == ""


def test_lines_have_their_times(database, logged, jobs):
    """UTC in a pipe."""
    shown, _ = in_a_pipe(database, [["logs", "-t", "1"]])
    line = next(jobs.logs(logged[0].id))

    assert re.fullmatch(r"(\d{4}-\d\d-\d\dT[\d:.]+Z  [ab]0\n){2}", shown)
    assert line.timestamp.strftime("%Y-%m-%dT%H:%M:%S.") in shown


def test_two_jobs_are_followed_at_once(database, running_jobs, gate):
    """Each line is printed when it is written, after the number of its job."""
    held = running_jobs.submit(["sh", "-c", f"echo begun; read x <'{gate}'; echo done"])
    until(lambda: running_jobs.get_job(held.id).line_count, "the first line")
    other = running_jobs.submit(["sh", "-c", "echo quick; printf end"])
    process = start(database, "logs", "-f", "1", "2")
    before = [process.stdout.readline() for _ in range(3)]
    running_jobs.wait(other.id, PATIENCE)
    open_gate(gate)
    after = process.stdout.read()
    process.communicate(timeout=PATIENCE)

    assert sorted(before) == ["#1 | begun\n", "#2 | end\n", "#2 | quick\n"]
    assert (after, process.returncode) == ("#1 | done\n", 0)


def test_pattern_is_checked(cli, database):
    """An invalid regular expression is one line of error."""
    _, err = cli("logs", "1", "--grep", "(", code=2)

    assert "'(' is not a regular expression" in err
    assert not os.path.exists(database)


def test_status_filter_of_list_and_stop_are_the_same_words(cli, jobs):
    """Statuses in any case."""
    task(jobs)
    cli("stop", "--status", "queued")

    assert statuses(jobs) == [str(Status.STOPPED)]
