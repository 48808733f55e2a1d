"""`current_job`: what a process knows about the job that runs it."""

from __future__ import annotations

import sys

import pytest

from jobcore import ArgumentError, CommandError, current_job
from jobcore.supervisor import progress
from jobcore.testing import assert_job
from tests.processes import ROOT

#: What a job runs: it tells its number of attempts, from the main process or from a child.
TELLS = "from jobcore import current_job; current_job().progress(current_job().attempt, 3, 'told')"
CALLS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TELLS!r}], check=True)"
#: A pipe of a child that has nothing to do with reports, where its descriptor would be.
HAS_A_PIPE = (
    "import os; r, w = os.pipe(); os.dup2(r, 8); os.close(r); "
    f"{TELLS}; os.set_blocking(8, False); os.close(w); assert os.read(8, 99) == b''"
)


def job_variables(monkeypatch, **variables):
    usual = {
        "JOBCORE_JOB_ID": "0" * 32,
        "JOBCORE_WORKSPACE_ID": "0" * 32,
        "JOBCORE_ATTEMPT": "1",
        "JOBCORE_DB": "jobs.db",
    }
    for name, value in {**usual, **variables}.items():
        monkeypatch.setenv(name, value)


def test_no_job_runs_a_host(monkeypatch):
    """A program that was started by hand has no job."""
    monkeypatch.delenv("JOBCORE_JOB_ID", raising=False)

    assert current_job() is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("JOBCORE_JOB_ID", "12"), ("JOBCORE_ATTEMPT", "first"), ("JOBCORE_PIPELINE_ID", "load")],
)
def test_variables_that_describe_no_job_are_refused(monkeypatch, name, value):
    """The error names the variables, and no job is invented."""
    job_variables(monkeypatch, **{name: value})

    with pytest.raises(ArgumentError, match=r"JOBCORE_JOB_ID.* describe no job"):
        current_job()


@pytest.mark.parametrize("number", [-1, float("nan"), float("inf"), 1e31, "3"])
def test_number_that_no_report_can_have_is_refused(monkeypatch, number):
    """It is refused where it is given, and the log has no complaint about it."""
    job_variables(monkeypatch)

    with pytest.raises(ArgumentError):
        current_job().progress(number)


def test_every_other_number_is_a_report(monkeypatch, capsys):
    """Very small and very large numbers are written without an exponent."""
    job_variables(monkeypatch)
    for number in (0, 3, 0.25, 1e-7, 1e-40, 1 / 3, 9.9e30, 12345678.9):
        current_job().progress(number, number)
        line = capsys.readouterr().out.encode()
        assert line.startswith(progress.PREFIX)
        done, total, message = progress.parse(line.removeprefix(progress.PREFIX))
        assert done == total == pytest.approx(number, abs=1e-30)
        assert message is None


@pytest.mark.parametrize("program", [TELLS, CALLS, HAS_A_PIPE])
def test_command_and_its_children_report_progress(running_jobs, program):
    """A child without the descriptor prints the report, which is no line of the log."""
    words = [sys.executable, "-c", program]
    job = running_jobs.wait(running_jobs.submit(words, env={"PYTHONPATH": str(ROOT)}).id)

    assert_job(job, status="COMPLETE")
    assert (job.progress.done, job.progress.total, job.progress.message) == (1, 3, "told")
    assert [*running_jobs.logs(job.id)] == []


def test_data_that_cannot_be_stored_is_refused(monkeypatch, jobs, database):
    """The error is that of `update_job`."""
    with jobs.task() as task:
        job_variables(monkeypatch, JOBCORE_JOB_ID=str(task.job.id), JOBCORE_DB=database)
        with pytest.raises(CommandError):
            current_job().update(data=object())
        assert current_job().update(data=[1]).data == jobs.get_job(task.job.id).data == [1]
