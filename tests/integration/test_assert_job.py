"""What `assert_job` holds, and what it tells of a job that is not as it should be."""

from __future__ import annotations

import re

import pytest

from jobcore import JobManager, Reason, Status
from jobcore.testing import assert_job


@pytest.fixture
def job(jobs):
    """Return a job that its host finished with 3, behind two lines."""
    made = jobs.create_job("TASK")
    jobs.start_job(made.id)
    jobs.append_log(made.id, "extract", "load")
    return jobs.finish_job(made.id, 3)


def failure(*args, **expected):
    """Return the lines that a failing assertion tells."""
    with pytest.raises(AssertionError) as failed:
        assert_job(*args, **expected)
    return str(failed.value).splitlines()


def test_matching_facts_pass_and_return_the_job(jobs, job):
    """Each argument alone, all, and no arguments; the job is read again."""
    stale = job.model_copy(update={"status": Status.QUEUED})

    for expected in (
        {},
        {"status": "ERROR"},
        {"status": Status.ERROR, "exit_code": 3, "reason": Reason.EXITED},
        {"reason": "exited"},
        {"log": ["extract", "load"]},
        {"log": ("extract", "load")},
        {"log": "xtr"},
        {"log": re.compile("^lo.d$")},
    ):
        assert assert_job(stale, **expected, jobs=jobs) == job
        assert assert_job(str(job.id), **expected) == job


def test_differences_come_first(job):
    """Every difference has a line, before the story of the job."""
    told = failure(job, status="COMPLETE", exit_code=0, reason=None)

    assert told[:5] == [
        f"job {job.id}:",
        "status is ERROR, not COMPLETE",
        "exit code is 3, not 0",
        "reason is exited, not None",
        "It is ERROR: exit code 3, reason exited, signal None.",
    ]


def test_failure_shows_status_history_and_log(job):
    """Status, history and log of the job stand in the message."""
    told = "\n".join(failure(job, exit_code=None))

    assert re.search(
        r"""^exit code is 3, not None
It is ERROR: exit code 3, reason exited, signal None\.
History:
  \d\d:\d\d:\d\d\.\d{6} create None -> QUEUED by pid \d+
  \S+ start QUEUED -> RUNNING by pid \d+
  \S+ finish RUNNING -> ERROR \(exited\) by pid \d+
Log:
  0 output: extract
  1 output: load$""",
        told,
        re.MULTILINE,
    )


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (["extract"], "line 1 of the log, 'load', is one too many: the job wrote 2 lines, not 1"),
        (
            ["extract", "load", "done"],
            "'done' is missing at the end of the log: the job wrote 2 lines, not 3",
        ),
        (["extract", "lost"], "line 1 of the log is 'load', not 'lost'"),
        ([], "line 0 of the log, 'extract', is one too many: the job wrote 2 lines, not 0"),
        ("transform", "no line of the log has 'transform'"),
        (re.compile("^oad"), "no line of the log matches '^oad'"),
    ],
)
def test_wrong_log_line_is_named(job, log, said):
    """The first line that differs is named; a text or pattern that no line has, too."""
    assert failure(job, log=log)[1] == said


def test_only_the_end_of_a_long_log_is_shown(jobs):
    """The last 20 lines, with their numbers; for a job without lines, a text says so."""
    job = jobs.create_job("TASK")
    jobs.start_job(job.id)
    assert failure(job, status="QUEUED")[-1] == "Its log is empty."
    jobs.append_log(job.id, *(f"line {n}" for n in range(30)))
    told = failure(job, status="QUEUED")

    assert told[-21:-19] == ["Log, the last 20 of 30 lines:", "  10 output: line 10"]
    assert told[-1] == "  29 output: line 29"


def test_system_lines_are_not_the_jobs(database):
    """A list of lines means the job's; a text is also found in jobcore's lines."""
    with JobManager(database, slots=1) as jobs:
        job = jobs.wait(jobs.submit(["/no/such/program"]).id, timeout=60)

        assert_job(job, status="ERROR", exit_code=127, reason="spawn_failed", log=[])
        assert_job(job, log="program not found")


def test_the_manager_is_found_or_named(jobs, job, tmp_path):
    """It asks the manager that has the job, or only the one that was passed."""
    with JobManager(tmp_path / "other.db", slots=0) as other:
        assert assert_job(job) == job
        assert failure(job, jobs=other) == [f"the manager has no job {job.id}"]
    assert failure("no id") == ["no open manager of this process has a job no id"]
    jobs.close()
    assert failure(job) == [f"no open manager of this process has a job {job.id}"]


@pytest.mark.parametrize("log", [["a", "c"], ["a"], ["a", "b", "c"]])
def test_failure_counts_the_system_lines_left_out(running_jobs, log):
    """The failure gives the number of jobcore's lines, which no list has."""
    made = running_jobs.submit(["sh", "-c", "printf 'a\\nb\\n'; exec sleep 300"])
    lines = running_jobs.follow(made.id, timeout=60)
    assert [next(lines).text, next(lines).text] == ["a", "b"]
    running_jobs.stop_job(made.id)
    ended = running_jobs.wait(made.id, 60)
    said = sum(line.stream == "system" for line in running_jobs.logs(ended.id))
    told = failure(ended, log=log, jobs=running_jobs)[1]

    assert said > 0
    assert re.search(rf"\({said} lines? of jobcore's own (is|are) left out\)$", told)
