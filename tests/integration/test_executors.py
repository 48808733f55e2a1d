"""Every executor that jobcore ships passes the contract that it holds others to."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from itertools import count
from typing import ClassVar
from unittest import SkipTest

import pytest

from jobcore import (
    Command,
    CommandExecutor,
    FunctionExecutor,
    JobManager,
    PipelineExecutor,
    function_command,
)
from jobcore.testing import ExecutorContract, Script, ScriptedExecutor
from tests import functions
from tests.processes import PATIENCE
from tests.programs import SLEEPS

SAYS_TWO_LINES = ["sh", "-c", "echo extract; echo load >&2; exit 3"]


class TestCommandExecutor(ExecutorContract):
    """The job's own command."""

    exit_code = 3
    lines = ("extract", "load")

    def make_executor(self):
        return CommandExecutor()

    def create_job(self, jobs):
        return jobs.submit(SAYS_TWO_LINES)

    def create_long_job(self, jobs):
        return jobs.submit(SLEEPS)


class TestFunctionExecutor(ExecutorContract):
    """A function in a fresh interpreter."""

    job_type = "FUNCTION"
    lines = ("extract", "load")

    def make_executor(self):
        return FunctionExecutor()

    def create_job(self, jobs):
        return jobs.submit_function(functions.prints, *self.lines)

    def create_long_job(self, jobs):
        return jobs.submit_function(functions.waits)


class TestCommandExecutorOfFunctions(TestFunctionExecutor):
    """The same, run by the executor of commands."""

    job_type = "COMMAND"

    def make_executor(self):
        return CommandExecutor()

    def create_job(self, jobs):
        return jobs.submit(function_command(functions.prints, self.lines))

    def create_long_job(self, jobs):
        return jobs.submit(function_command(functions.waits))


class TestPipelineExecutor(ExecutorContract):
    """The script of the job's pipeline."""

    job_type = "PIPELINE_RUN"
    exit_code = 3
    lines = ("extract", "load")

    def make_executor(self):
        return PipelineExecutor()

    def create_job(self, jobs):
        return self._run_of(jobs, script=SAYS_TWO_LINES[-1])

    def create_long_job(self, jobs):
        return self._run_of(jobs, script=SLEEPS[-1])

    @staticmethod
    def _run_of(jobs, **fields):
        return jobs.create_job(pipeline_id=jobs.create_pipeline("shop", **fields).id)


class TestScriptedExecutor(ExecutorContract):
    """Scripts, run without processes: the same holds."""

    exit_code = 3
    lines = ("extract", "load")

    @pytest.fixture(autouse=True)
    def scripted(self):
        with ScriptedExecutor(self._script_of) as self.stage:
            yield

    @staticmethod
    def _script_of(job):
        return Script(["extract", "load"], exit_code=3) if job.name is None else Script(hangs=True)

    def make_executor(self):
        return self.stage

    def create_long_job(self, jobs):
        return jobs.create_job(name="long")

    def create_job(self, jobs):
        return jobs.submit(["etl"])

    def open_manager(self, database, *, executor, slots):
        executors = {"COMMAND": executor, "PIPELINE_RUN": executor}
        return JobManager(
            database, slots=slots, executors=executors, launcher=self.stage, on_exit="stop"
        )


# --- the contract itself: its tests fail for executors that break it -----------------


TURNS = count()


class Remembers:
    """Knows the commands of jobs that this process created, as an executor must not."""

    commands: ClassVar[dict] = {}

    def command(self, job):
        return self.commands[job.id]


def answers(answer):
    """Return the maker of an executor that gives `answer(job)`."""

    class Answers:
        def command(self, job):
            return answer(job)

    return Answers


def returns_another_each_time(job):
    """Return another command each time."""
    return replace(job.command, env={"TURN": str(next(TURNS))})


def changes_the_environment(job):
    """Change the environment of the process that asks."""
    os.environ["MARK"] = os.environ.get("MARK", "") + "!"
    return job.command


def is_slow(job):
    """Make all other jobs wait."""
    time.sleep(0.01)
    return job.command


@pytest.mark.parametrize(
    ("test", "make"),
    [
        ("test_it_returns_a_command", answers(lambda job: job.command.argv)),
        ("test_it_returns_quickly", answers(is_slow)),
        ("test_it_returns_the_same_command_again", answers(returns_another_each_time)),
        ("test_it_has_no_side_effects", answers(changes_the_environment)),
        ("test_it_handles_an_empty_job", answers(lambda job: job.command)),
        ("test_it_handles_an_empty_job", answers(lambda job: job.command.argv)),
        ("test_it_runs", answers(lambda _: Command(["echo", "extract"]))),
        ("test_it_is_stopped", answers(lambda _: Command(["true"]))),
        ("test_it_is_timed_out", answers(lambda _: Command(["true"]))),
        ("test_its_error_ends_only_one_job", answers(lambda job: job.command or Command(["true"]))),
        ("test_it_runs_a_retry", Remembers),
        ("test_it_runs_the_job_of_another_process", Remembers),
    ],
)
def test_contract_fails_for_an_executor_that_breaks_it(tmp_path, monkeypatch, test, make):
    """An executor without a required property fails the test of that property."""
    monkeypatch.setenv("MARK", "")
    monkeypatch.setattr("jobcore.testing.executor_contract.QUICK", 0.005)
    # A stop can be in time even for `true`: here it comes when that has ended.
    monkeypatch.setattr(
        "jobcore.testing.executor_contract._wait_for_start",
        lambda jobs, job: jobs.wait(job.id, PATIENCE),
    )

    class Held(TestCommandExecutor):
        def make_executor(self):
            return make()

        def create_job(self, jobs):
            job = super().create_job(jobs)
            Remembers.commands[job.id] = Command(SAYS_TWO_LINES)
            return job

    with pytest.raises((AssertionError, AttributeError, SkipTest)):
        getattr(Held(), test)(tmp_path)


def test_contract_names_the_methods_to_override(tmp_path):
    """Without an executor nothing runs; without a long job its tests are skipped, and say so."""
    with pytest.raises(NotImplementedError, match="make_executor"):
        ExecutorContract().test_it_returns_a_command(tmp_path)
    with pytest.raises(SkipTest, match="override create_long_job"):
        ExecutorContract().create_long_job(None)
