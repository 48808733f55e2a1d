"""What users of job queues do with jobs that follow others: retries, chains, values, hooks."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from jobcore import Command, Retries, Status, Submission, pytest_plugin
from jobcore.testing import Script, assert_job, drain
from tests.processes import PATIENCE

jobs = pytest_plugin.jobs  # the test kit's, in the place of the one of these tests
scripted = pytest.mark.usefixtures("job_scripts", "job_clock")  # no processes, no real time


def pauses(jobs):
    """Return the seconds between the end of each attempt of the only job and the next start."""
    attempts = jobs.list_jobs()[::-1]
    pairs = pairwise(attempts)
    return [(after.start_time - before.end_time).total_seconds() for before, after in pairs]


# --- retries ------------------------------------------------------------------------


@pytest.mark.job_scripts(Script(exit_code=1))
@scripted
def test_retry_with_growing_pauses(jobs):
    """Each attempt is a job of its own; after the last one the job has failed."""
    jobs.submit(["etl"], retries=Retries(3, delay=10, factor=3))
    drain(jobs)

    assert pauses(jobs) == [10, 30, 90]
    assert [job.status for job in jobs.list_jobs()] == [Status.ERROR] * 4


@pytest.mark.job_scripts(Script(exit_code=1), Script(exit_code=1), Script())
@scripted
def test_retry_until_it_works(jobs):
    """A caller waits for the last attempt by the id of the first."""
    job = jobs.submit(["etl"], retries=5)
    drain(jobs)
    (last,) = jobs.wait_all([job.id])

    assert (last.attempt, last.status) == (3, Status.COMPLETE)


@pytest.mark.job_scripts(Script(hangs=True), Script())
@scripted
def test_retry_of_a_time_out(jobs):
    """It is retried where one asks for it."""
    job = jobs.submit(["etl"], timeout=60, retries=Retries(1, on="timeout"))
    drain(jobs)
    (last,) = jobs.wait_all([job.id])

    assert_job(job, status="STOPPED", reason="timeout")
    assert (last.attempt, last.status) == (2, Status.COMPLETE)


def test_retry_of_a_function_that_failed(jobs):
    """Functions are retried like commands."""
    job = jobs.submit_function("operator:truediv", 1, 0, retries=Retries(1, delay=0))
    (last,) = jobs.wait_all([job.id])

    assert_job(last, status="ERROR", log="ZeroDivisionError: division by zero")
    assert (last.attempt, last.retry_of) == (2, job.id)


# --- dependencies -------------------------------------------------------------------


@scripted
def test_job_after_another(jobs):
    """It starts when the other one is complete."""
    first = jobs.submit(["extract"])
    second = jobs.submit(["load"], after=first.id)
    assert second.waits_for == "dependencies"
    drain(jobs)

    assert jobs.get_job(second.id).start_time >= jobs.get_job(first.id).end_time


@pytest.mark.job_scripts(Script([10]), Script([20]), Script())
@scripted
def test_job_after_several(jobs):
    """It starts when the last of them is complete."""
    first = jobs.submit_many([["orders"], ["customers"]])
    report = jobs.submit(["report"], after=[job.id for job in first])
    drain(jobs)

    assert (jobs.get_job(report.id).start_time - first[0].created).total_seconds() == 20


@pytest.mark.job_scripts(Script(exit_code=1), Script())
@scripted
def test_job_after_one_that_may_fail(jobs):
    """One asks for the end, the other for the success."""
    first = jobs.submit(["extract"])
    tidy = jobs.submit(["tidy"], after=first.id, run_if="ended")
    load = jobs.submit(["load"], after=first.id)
    drain(jobs)

    assert_job(tidy, status="COMPLETE")
    assert_job(load, status="STOPPED", reason="upstream")


@pytest.mark.job_scripts(Script(exit_code=1), Script())
@scripted
def test_job_after_one_that_succeeds_at_the_second_attempt(jobs):
    """A retry is no failure."""
    first = jobs.submit(["extract"], retries=1)
    load = jobs.submit(["load"], after=first.id)
    drain(jobs)

    assert_job(first, status="ERROR")
    assert_job(load, status="COMPLETE")


@pytest.mark.job_scripts(Script(exit_code=1), Script())
@scripted
def test_precondition_of_a_run(jobs, job_scripts):
    """A command that checks it comes before; if it fails, the run does not start."""
    check = jobs.submit(["test", "-s", "orders.csv"])
    run = jobs.submit(["load"], after=check.id)
    drain(jobs)

    assert_job(run, status="STOPPED", reason="upstream")
    assert len(job_scripts.commands) == 1


@scripted
def test_graph_of_jobs_in_one_call(jobs, job_scripts):
    """Jobs name each other, in any order; each runs once."""
    jobs.submit_many(
        [
            Submission(["report"], after=["orders", "customers"]),
            Submission(["orders"], ref="orders", after=["clean"]),
            Submission(["customers"], ref="customers", after=["clean"]),
            Submission(["clean"], ref="clean"),
        ]
    )
    drain(jobs)
    order = [command.argv[0] for command in job_scripts.commands.values()]

    assert (order[0], sorted(order[1:3]), order[3]) == ("clean", ["customers", "orders"], "report")
    assert len(order) == 4


# --- values -------------------------------------------------------------------------


def text_of(jobs, job):
    """Return what a job wrote."""
    return b"".join(jobs.log_text(job.id)).decode()


def test_result_of_a_command_goes_to_the_next_job(jobs):
    """A command writes JSON; the one after it reads it."""
    hands_on = 'echo "{\\"rows\\": 12}" >&"$JOBCORE_RESULT_FD"'
    first = jobs.submit(hands_on, shell=True)
    second = jobs.submit('cat "$JOBCORE_UPSTREAM"', shell=True, after=first.id)
    jobs.wait(second.id)

    assert jobs.result(first.id) == {"rows": 12}
    assert json.loads(text_of(jobs, second)) == {str(first.id): {"rows": 12}}


def test_pipeline_of_functions_that_passes_values(jobs):
    """Each adds to what the ones before it returned."""
    first = jobs.submit_function("operator:add", 1, 2)
    for number in (10, 100):
        first = jobs.submit_function("tests.functions:adds_to_upstream", number, after=first.id)
    jobs.wait(first.id)

    assert jobs.result(first.id) == 113


def test_group_of_functions_whose_results_are_summed(jobs):
    """The last job gets the results of all."""
    squares = [jobs.submit_function("operator:mul", n, n) for n in range(3)]
    total = jobs.submit_function(
        "tests.functions:adds_to_upstream", 0, after=[job.id for job in squares]
    )
    jobs.wait(total.id)

    assert jobs.result(total.id) == 0 + 1 + 4


# --- hooks --------------------------------------------------------------------------

TELLS = 'echo "$JOBCORE_HOOK_NAME: $JOBCORE_HOOK_STATUS $JOBCORE_HOOK_EXIT_CODE"'
HOOKS = {
    name: Command(f"echo {name}; {TELLS}", shell=True)
    for name in ("on_complete", "on_error", "on_stopped")
}


def told(jobs, job):
    """Wait for all jobs, and return what the hooks of a job wrote."""
    jobs.drain(PATIENCE)
    hooks = [one for one in jobs.list_jobs() if one.hook_of == job.id]
    return [text_of(jobs, hook) for hook in hooks]


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (["true"], "on_complete\nnightly: COMPLETE 0\n"),
        (["false"], "on_error\nnightly: ERROR 1\n"),
    ],
)
def test_hook_of_an_end(jobs, command, lines):
    """One command for each kind of end, told of it by its environment."""
    job = jobs.submit(command, name="nightly", **HOOKS)

    assert told(jobs, job) == [lines]


def test_hook_of_a_stop(jobs):
    """Also of a job that was cancelled in the queue, which has no exit code."""
    job = jobs.submit(["sleep", "300"], name="nightly", not_before=3600, **HOOKS)
    jobs.cancel_job(job.id)

    assert told(jobs, job) == ["on_stopped\nnightly: STOPPED \n"]


def test_hook_of_every_end(jobs):
    """The same command for each kind of end."""
    always = Command("echo tidy", shell=True)
    made = [
        jobs.submit([word], on_complete=always, on_error=always, on_stopped=always)
        for word in ("true", "false")
    ]
    jobs.wait_all([job.id for job in made])

    assert [told(jobs, job) for job in made] == [["tidy\n"], ["tidy\n"]]


def test_hook_only_after_the_last_attempt(jobs):
    """The hook does not run after a failure that is retried."""
    job = jobs.submit(["false"], name="nightly", retries=Retries(1, delay=0), **HOOKS)
    (last,) = jobs.wait_all([job.id])

    assert (told(jobs, job), told(jobs, last)) == ([], ["on_error\nnightly: ERROR 1\n"])


@pytest.mark.job_scripts(Script(exit_code=1), Script(exit_code=3), Script(["told"]))
@scripted
def test_hook_in_the_test_kit(jobs, job_scripts):
    """The hook of the last attempt has a script, and the facts in the variables of its command."""
    jobs.submit(["load"], name="nightly", retries=Retries(1, delay=60), on_error=["tell", "me"])
    drain(jobs)
    hook, last, _ = jobs.list_jobs()
    *_, command = job_scripts.commands.values()

    assert (hook.hook_of, hook.name, text_of(jobs, hook)) == (last.id, "on_error", "told\n")
    assert command.argv == ("tell", "me")
    assert command.env["JOBCORE_HOOK_JOB_ID"] == str(last.id)
    assert command.env["JOBCORE_HOOK_EXIT_CODE"] == "3"


# --- the environment ----------------------------------------------------------------


def variables(jobs, job):
    """Return the names of jobcore's variables that a job printed."""
    jobs.drain(PATIENCE)
    lines = text_of(jobs, job).splitlines()
    return {line.partition("=")[0] for line in lines if line.startswith("JOBCORE_")}


#: Those of every command.
ALWAYS = {
    "JOBCORE_ATTEMPT",
    "JOBCORE_DB",
    "JOBCORE_JOB_ID",
    "JOBCORE_PROGRESS_FD",
    "JOBCORE_RESULT_FD",
    "JOBCORE_RUN",
    "JOBCORE_WORKSPACE_ID",
}


def test_variables_of_a_command(jobs):
    """With those of what it depends on."""
    first = jobs.submit(["env"])
    second = jobs.submit(["env"], after=first.id)

    assert variables(jobs, first) == ALWAYS
    assert variables(jobs, second) == ALWAYS | {"JOBCORE_UPSTREAM"}


def test_variables_of_a_run_of_a_pipeline(jobs):
    """With those of its state."""
    pipeline = jobs.create_pipeline("nightly", ["env"])
    run = jobs.create_job(pipeline_id=pipeline.id)

    assert variables(jobs, run) == ALWAYS | {
        "JOBCORE_PIPELINE_ID",
        "JOBCORE_STATE",
        "JOBCORE_STATE_FD",
    }


def test_variables_of_a_hook(jobs):
    """It has the variables of the job that it reports."""
    job = jobs.submit(["true"], name="nightly", on_complete=Command(["env"]))
    jobs.drain(PATIENCE)
    (hook,) = (one for one in jobs.list_jobs() if one.hook_of == job.id)

    assert variables(jobs, hook) == ALWAYS | {
        "JOBCORE_HOOK_EXIT_CODE",
        "JOBCORE_HOOK_JOB_ID",
        "JOBCORE_HOOK_NAME",
        "JOBCORE_HOOK_PIPELINE",
        "JOBCORE_HOOK_REASON",
        "JOBCORE_HOOK_SIGNAL",
        "JOBCORE_HOOK_STATUS",
    }
