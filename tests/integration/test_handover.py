"""What jobs hand on: results, the state of a pipeline, and what differs in one run."""

from __future__ import annotations

import json
import os
import signal

import pytest

from jobcore import (
    Command,
    CommandError,
    JobManager,
    NoResult,
    PipelineNotFound,
    Reason,
    Retries,
    Status,
    function_command,
)
from jobcore.supervisor import job_directory, result_file
from tests.faults.hosts import host, submit_and_serve
from tests.processes import PATIENCE, open_gate

#: Writes what it is given to the descriptor for results.
SAYS = 'printf %s "$1" >&"$JOBCORE_RESULT_FD"'
#: Hands on a state with one more run than the one it got.
COUNTS = """
runs=$(sed 's/[^0-9]//g' "$JOBCORE_STATE")
echo "{\\"runs\\": $((runs + 1))}" >&"$JOBCORE_STATE_FD"
exit "${CODE:-0}"
"""


def ended(jobs, job):
    return jobs.wait(job.id, PATIENCE)


def says(jobs, text, *more):
    """Return a job that has ended, whose command has written this text."""
    return ended(jobs, jobs.submit(["sh", "-c", SAYS + "".join(more), "sh", text]))


def system_lines(jobs, job):
    return [line.text for line in jobs.logs(job.id) if line.stream == "system"]


# --- results ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"rows": [1, 2.5, None, "é"]}, None, "x" * 65_000, 0])
def test_result_of_a_command_is_what_it_wrote(running_jobs, value):
    """Any JSON value, in UTF-8."""
    job = says(running_jobs, json.dumps(value, ensure_ascii=False))

    assert running_jobs.result(job.id) == value
    assert list(running_jobs.logs(job.id)) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not valid JSON: Expecting"),
        ("NaN", "not valid JSON: NaN"),
        ("1 2", "not valid JSON: Extra data"),
        ("[" * 101 + "]" * 101, "nested deeper than 100 levels"),
        ("[" * 30_000, "nested deeper than 100 levels"),
        ('"' + "x" * 65_535 + '"', "larger than 65536 bytes"),
        ('"\\ud800"', "not UTF-8"),
    ],
    ids=range(7),
)
def test_invalid_result_is_reported_in_the_log(running_jobs, text, why):
    """The status of the job is that of its command."""
    job = says(running_jobs, text)
    (line,) = system_lines(running_jobs, job)

    assert job.status is Status.COMPLETE
    assert line.startswith("what the command wrote to JOBCORE_RESULT_FD is not stored: it is ")
    assert why in line
    with pytest.raises(NoResult):
        running_jobs.result(job.id)


def test_much_more_than_a_result_does_not_block_the_command(running_jobs):
    """It is read to its end and dropped, though a pipe holds less."""
    job = ended(
        running_jobs, running_jobs.submit(["sh", "-c", "head -c 3000000 /dev/zero >&7; echo done"])
    )

    assert job.status is Status.COMPLETE
    assert next(running_jobs.logs(job.id)).text == "done"


def test_only_a_complete_job_has_a_result(running_jobs):
    """The result of a failed or stopped command is ignored, even an invalid one."""
    failed = says(running_jobs, "1", "; exit 3")
    invalid = says(running_jobs, "{", "; exit 3")
    late = ended(
        running_jobs,
        running_jobs.submit(
            ["sh", "-c", "trap 'exit 0' TERM; echo 1 >&7; sleep 60 & wait"], timeout=0.2
        ),
    )

    assert [job.status for job in (failed, invalid, late)] == [
        Status.ERROR,
        Status.ERROR,
        Status.STOPPED,
    ]
    for job in (failed, invalid, late):
        with pytest.raises(NoResult):
            running_jobs.result(job.id)
    assert system_lines(running_jobs, invalid) == []


def test_result_survives_the_host(database, gate):
    """The supervisor keeps it until a manager settles the job."""
    script = 'echo ready; read -r _ < "$GATE"; echo "[1]" >&7'
    command = Command(["sh", "-c", script], env={"GATE": gate})
    with host(submit_and_serve, database, command) as one:
        job_id = one.hear()
        with JobManager(database, slots=0) as jobs:
            assert next(jobs.follow(job_id, timeout=PATIENCE)).text == "ready"
        one.kill()
    open_gate(gate)
    with JobManager(database, slots=0) as jobs:
        assert jobs.wait(job_id, PATIENCE).status is Status.COMPLETE
        assert jobs.result(job_id) == [1]


def test_no_result_is_left_by_a_supervisor_that_was_killed(running_jobs, database, gate):
    """Its job is lost, whatever the command had written by then."""
    job = running_jobs.submit(
        ["sh", "-c", 'echo "[1]" >&7; echo ready; read -r _ < "$GATE"'], env={"GATE": gate}
    )
    assert next(running_jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
    directory = os.open(f"{database}.jobs/{job.id.hex}", os.O_RDONLY)
    try:
        record = job_directory.read_record(directory, job_directory.RUN)
    finally:
        os.close(directory)
    os.kill(record["supervisor"], signal.SIGKILL)

    assert ended(running_jobs, job).reason is Reason.LOST
    with pytest.raises(NoResult):
        running_jobs.result(job.id)


def test_dependants_find_the_results_of_their_upstream_jobs(running_jobs):
    """A file in their directory has them by id; a job without a result has null."""
    first, second = (
        running_jobs.submit(["sh", "-c", SAYS, "sh", text]) for text in ('{"a": 1}', "")
    )
    failed = running_jobs.submit(["sh", "-c", SAYS + "; exit 1", "sh", "1"])
    pickled = running_jobs.submit_function("tests.functions:answer_a_tuple")
    job = running_jobs.submit(
        ["sh", "-c", 'cat "$JOBCORE_UPSTREAM"'],
        after=[second.id, first.id, failed.id, pickled.id],
        run_if="ended",
    )
    ended(running_jobs, job)
    (line,) = [line.text for line in running_jobs.logs(job.id)]

    assert json.loads(line) == {
        str(first.id): {"a": 1},
        str(second.id): None,
        str(failed.id): None,
        str(pickled.id): None,
    }


def test_dependants_find_the_result_of_the_attempt_that_succeeded(running_jobs, tmp_path):
    """It stands under the id of the retry, which the job then depends on."""
    script = f"mkdir {tmp_path}/once && exit 1; {SAYS}"  # fails the first time
    first = running_jobs.submit(["sh", "-c", script, "sh", "7"], retries=Retries(1, delay=0))
    job = running_jobs.submit(["sh", "-c", 'cat "$JOBCORE_UPSTREAM"'], after=[first.id])
    ended(running_jobs, job)
    (again,) = running_jobs.wait_all([first.id], PATIENCE)

    assert (again.attempt, again.retry_of) == (2, first.id)
    assert [line.text for line in running_jobs.logs(job.id)] == [f'{{"{again.id}": 7}}']


def test_job_without_upstream_jobs_has_no_such_variable(running_jobs, monkeypatch):
    """Not even that of a job in which its host runs."""
    for name in ("JOBCORE_UPSTREAM", "JOBCORE_STATE", "JOBCORE_STATE_FD"):
        monkeypatch.setenv(name, "of another job")
    job = ended(running_jobs, running_jobs.submit(["sh", "-c", "env | grep JOBCORE_ | sort"]))
    names = [line.text.partition("=")[0] for line in running_jobs.logs(job.id)]

    assert "JOBCORE_RESULT_FD" in names
    assert not {"JOBCORE_UPSTREAM", "JOBCORE_STATE", "JOBCORE_STATE_FD"} & set(names)


# --- the state of a pipeline -----------------------------------------------------------


def test_run_gets_the_state_of_the_last_complete_run(running_jobs):
    """A run that fails changes nothing, and so does one that writes none."""
    pipeline = running_jobs.create_pipeline("counts", script=COUNTS)
    for code, runs in [("0", 1), ("3", 1), ("0", 2)]:
        job = running_jobs.create_job(pipeline_id=pipeline.id, env={"CODE": code})
        assert ended(running_jobs, job).exit_code == int(code)
        assert running_jobs.get_pipeline_state(pipeline.id) == {"runs": runs}
    running_jobs.update_pipeline(pipeline.id, script='cat "$JOBCORE_STATE"')
    job = ended(running_jobs, running_jobs.create_job(pipeline_id=pipeline.id))

    assert [line.text for line in running_jobs.logs(job.id)] == ['{"runs": 2}']
    assert running_jobs.get_pipeline_state(pipeline.id) == {"runs": 2}


def test_state_can_be_set_and_removed(jobs):
    """The next run gets a state that was set by hand; an invalid state is refused."""
    pipeline = jobs.create_pipeline("p", ["true"])
    assert jobs.get_pipeline_state(pipeline.id) is None
    for state in ({"bookmarks": {"orders": "2026-11-30"}}, [1], 0, None):
        jobs.set_pipeline_state(pipeline.id, state)
        assert jobs.get_pipeline_state(pipeline.id) == state
    for state in (float("nan"), {1, 2}, "x" * 2**20):
        with pytest.raises(CommandError, match="the state is"):
            jobs.set_pipeline_state(pipeline.id, state)
    for call in (jobs.get_pipeline_state, lambda one: jobs.set_pipeline_state(one, 1)):
        with pytest.raises(PipelineNotFound):
            call("unknown")


def test_a_megabyte_of_state_is_handed_on(running_jobs):
    """It may have an entry for each of many tables."""
    script = 'head -c 1000000 /dev/zero | tr "\\\\0" x | sed \'s/.*/"&"/\' >&"$JOBCORE_STATE_FD"'
    pipeline = running_jobs.create_pipeline("large", script=script)
    ended(running_jobs, running_jobs.create_job(pipeline_id=pipeline.id))

    assert running_jobs.get_pipeline_state(pipeline.id) == "x" * 1_000_000


@pytest.mark.parametrize(
    ("encoding", "data"),
    [("pickle", b"1"), ("json", b"{"), ("json", b'"' + b"x" * 2**20 + b'"')],
    ids=["pickled", "invalid", "too large"],
)
def test_values_that_no_supervisor_wrote_are_not_stored(jobs, scripted, encoding, data):
    """A command may put any file into its directory; the job is COMPLETE all the same."""
    pipeline = jobs.create_pipeline("p", ["true"])
    run = scripted(pipeline_id=pipeline.id)
    run.update(calls_function=0)
    with run.open() as place:
        for name in (result_file.RESULT, result_file.STATE):
            result_file.put(place, name, encoding, data, sync=False)
    run.exit()
    run.die()

    assert jobs.get_job(run.id).status is Status.COMPLETE
    with pytest.raises(NoResult):
        jobs.result(run.id)
    assert jobs.get_pipeline_state(pipeline.id) is None


# --- what differs in one run -----------------------------------------------------------


def test_run_gets_its_words_variables_and_time(running_jobs):
    """Words come after those of the command, and are $1, $2 of a script."""
    script = 'echo "$0 $# $1 $2 $X $Y"; exec sleep "$3"'
    command = Command(["sh", "-c", script, "own"], env={"X": "own", "Y": "own"})
    by_command = running_jobs.create_pipeline("command", command)
    by_script = running_jobs.create_pipeline("script", script=script, env={"X": "own", "Y": "own"})
    for pipeline, zero in ((by_command, "own"), (by_script, "sh")):
        job = ended(
            running_jobs,
            running_jobs.create_job(
                pipeline_id=pipeline.id, args=["a b", b"$c", "60"], env={"X": "its"}, timeout=0.2
            ),
        )
        assert (job.status, job.reason) == (Status.STOPPED, Reason.TIMEOUT)
        assert next(running_jobs.logs(job.id)).text == f"{zero} 3 a b $c its own"
        again = ended(running_jobs, running_jobs.retry_job(job.id))
        assert next(running_jobs.logs(again.id)).text == f"{zero} 3 a b $c its own"
        plain = ended(running_jobs, running_jobs.create_job(pipeline_id=pipeline.id, args=["0"]))
        assert next(running_jobs.logs(plain.id)).text == f"{zero} 1 0  own own"


def test_function_takes_no_words(running_jobs):
    """Variables and a time-out it does; the log says what is wrong."""
    command = function_command("os:getenv", ["X"])
    pipeline = running_jobs.create_pipeline("function", command)
    job = ended(running_jobs, running_jobs.create_job(pipeline_id=pipeline.id, env={"X": "its"}))
    assert running_jobs.result(job.id) == "its"
    job = ended(running_jobs, running_jobs.create_job(pipeline_id=pipeline.id, args=["x"]))

    assert (job.status, job.reason) == (Status.ERROR, Reason.SPAWN_FAILED)
    assert "a function takes no args" in system_lines(running_jobs, job)[0]


def test_parameters_are_checked_at_the_call(jobs):
    """Nothing is created then; a task without a command has none."""
    pipeline = jobs.create_pipeline("p", ["true"])
    for wrong in (
        {"args": "one"},
        {"args": [1]},
        {"args": ["\0"]},
        {"env": ["X"]},
        {"env": {"": "x"}},
        {"timeout": 0},
    ):
        with pytest.raises(CommandError):
            jobs.create_job(pipeline_id=pipeline.id, **wrong)
    for given in ({"args": ["x"]}, {"env": {"X": "x"}}, {"timeout": 1}):
        with pytest.raises(CommandError, match="need a command"):
            jobs.create_job("TASK", **given)
    assert jobs.list_jobs() == []
    assert jobs.create_job("TASK", args=(), env={}).status is Status.QUEUED
