"""The requirements of jobcore on an executor, as tests to run against your own."""

from __future__ import annotations

import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from unittest import SkipTest

from jobcore.command import Command
from jobcore.engine.executors import Executor
from jobcore.errors import CommandError, InvalidTransition, JobNotRunning
from jobcore.lifecycle import Reason, Status
from jobcore.manager import JobManager
from jobcore.models import ClaimedJob, Job
from jobcore.storage import job_rows, pipelines
from jobcore.testing.assert_job import assert_job
from jobcore.testing.parts import parts

#: Seconds after which a test fails. Far more than anything should take.
PATIENCE = 60.0
#: Seconds that `command` may take. It is short, because one thread starts all jobs.
QUICK = 1.0
#: The timeout of the job in the timeout test, in seconds.
TIMEOUT = 0.2


class ExecutorContract:
    """
    The tests that an executor must pass. Derive a test class from it, which pytest collects.

        class TestDbtExecutor(ExecutorContract):
            job_type = "DBT"
            lines = ["done"]

            def make_executor(self):
                return DbtExecutor(profiles="tests/profiles")

            def create_job(self, jobs):
                return jobs.create_job("DBT", data={"select": "orders"})

    Each test uses its own database, and runs the job under a real supervisor.

    Attributes:
        job_type: The type of the jobs, for which the executor is registered.
        exit_code: The expected exit code of the job of `create_job`.
        lines: The lines that this job is expected to write. None: any.
    """

    job_type: str = "COMMAND"
    exit_code: int = 0
    lines: Sequence[str] | None = None

    # --- to override in a derived class -------------------------------------------

    def make_executor(self) -> Executor:
        """Return a new executor, as a host would create it."""
        raise NotImplementedError("say how the executor is made: override make_executor")

    def create_job(self, jobs: JobManager) -> Job:
        """
        Return a new job for which the executor has a command, and which ends by itself.

        Args:
            jobs: The manager to create it with.
        """
        return jobs.create_job(self.job_type)

    def create_long_job(self, jobs: JobManager) -> Job:  # noqa: ARG002 - for derived classes
        """
        Return a new job that runs until it is stopped. Without it, two tests are skipped.

        Args:
            jobs: The manager to create it with.
        """
        raise SkipTest("there is no job that runs until it is stopped: override create_long_job")

    def create_empty_job(self, jobs: JobManager) -> Job:
        """
        Return a new job for which the executor has nothing to run.

        Args:
            jobs: The manager to create it with.
        """
        return jobs.create_job(self.job_type)

    def open_manager(self, database: Path, *, executor: Executor, slots: int) -> JobManager:
        """
        Return a manager that runs jobs of the type `job_type` with `executor`.

        Args:
            database: The path of its file.
            executor: The executor, from `make_executor`.
            slots: Maximum number of jobs at once; 0: it runs none.
        """
        return JobManager(
            database, slots=slots, executors={self.job_type: executor}, on_exit="stop"
        )

    # --- the tests: what the executor returns ---------------------------------------

    def test_it_returns_a_command(self, tmp_path: Path) -> None:
        """For a job with something to run, an executor returns a Command."""
        with self._manager(tmp_path) as jobs:
            command = self.make_executor().command(_claimed(jobs, self.create_job(jobs)))

        assert isinstance(command, Command)

    def test_it_returns_quickly(self, tmp_path: Path) -> None:
        """It is called in the thread that starts all jobs, so other jobs wait for it."""
        with self._manager(tmp_path) as jobs:
            job, executor = _claimed(jobs, self.create_job(jobs)), self.make_executor()
            took = []
            for _ in range(3):  # the fastest counts: this machine may be busy
                begun = time.monotonic()
                executor.command(job)
                took.append(time.monotonic() - begun)

        assert min(took) < QUICK

    def test_it_returns_the_same_command_again(self, tmp_path: Path) -> None:
        """A start may be abandoned and prepared again, even by another executor of the class."""
        with self._manager(tmp_path) as jobs:
            job, executor = _claimed(jobs, self.create_job(jobs)), self.make_executor()
            first, second = executor.command(job), executor.command(job)
            other = self.make_executor().command(job)

        assert first == second
        assert first == other

    def test_it_has_no_side_effects(self, tmp_path: Path) -> None:
        """Returning a command has no side effects: process and job are unchanged."""
        with self._manager(tmp_path) as jobs:
            made = self.create_job(jobs)
            job, executor = _claimed(jobs, made), self.make_executor()
            executor.command(job)  # resources that it keeps open permanently are open now
            before = _facts()
            executor.command(job)

            assert _facts() == before
            assert jobs.get_job(made.id) == made

    def test_it_handles_an_empty_job(self, tmp_path: Path) -> None:
        """For such a job it raises CommandError with a text for the log, or returns a command."""
        with self._manager(tmp_path) as jobs:
            answer = _ask(self.make_executor(), _claimed(jobs, self.create_empty_job(jobs)))

        assert isinstance(answer, (Command, CommandError))
        assert str(answer)

    # --- the tests: how its command runs -----------------------------------------------

    def test_it_runs(self, tmp_path: Path) -> None:
        """The job has the exit code and the lines of the command."""
        with self._manager(tmp_path, slots=1) as jobs:
            self._assert_ran(jobs, self.create_job(jobs))

    def test_it_is_stopped(self, tmp_path: Path) -> None:
        """Its command ends after a stop request, by itself or when its grace is over."""
        with self._manager(tmp_path, slots=1) as jobs:
            job = self.create_long_job(jobs)
            _wait_for_start(jobs, job)
            with suppress(JobNotRunning):  # it has ended by itself: the assert below fails
                jobs.stop_job(job.id)
            jobs.wait(job.id, timeout=PATIENCE)

            assert_job(job, status=Status.STOPPED, reason=Reason.STOPPED, jobs=jobs)

    def test_it_is_timed_out(self, tmp_path: Path) -> None:
        """Its command ends after its timeout."""
        limited = _Limited(self.make_executor())
        with self._manager(tmp_path, slots=1, executor=limited) as jobs:
            job = jobs.wait(self.create_long_job(jobs).id, timeout=PATIENCE)

            assert_job(
                job,
                status=Status.STOPPED,
                reason=Reason.TIMEOUT,
                log=f"time-out after {TIMEOUT:g} s",
                jobs=jobs,
            )

    def test_its_error_ends_only_one_job(self, tmp_path: Path) -> None:
        """If it raises, only that job ends in ERROR, with the reason in its log."""
        with self._manager(tmp_path, slots=1) as jobs:
            empty = self.create_empty_job(jobs)
            answer = _ask(self.make_executor(), _claimed(jobs, empty))
            if isinstance(answer, Command):
                with suppress(InvalidTransition):  # it may have ended already
                    jobs.cancel_job(empty.id)
                raise SkipTest("it has a command for any job")
            after = self.create_job(jobs)
            jobs.wait(empty.id, timeout=PATIENCE)

            assert_job(
                empty,
                status=Status.ERROR,
                exit_code=None,
                reason=Reason.SPAWN_FAILED,
                log=f"cannot start: {type(answer).__name__}: {answer}".splitlines()[0],
                jobs=jobs,
            )
            self._assert_ran(jobs, after)

    def test_it_runs_a_retry(self, tmp_path: Path) -> None:
        """A retry contains everything that the executor needs."""
        with self._manager(tmp_path) as jobs:
            first = self.create_job(jobs)
            jobs.cancel_job(first.id)
            again = jobs.retry_job(first.id)
        with self._manager(tmp_path, slots=1) as jobs:
            self._assert_ran(jobs, again)

        assert (again.attempt, again.retry_of) == (first.attempt + 1, first.id)

    def test_it_runs_the_job_of_another_process(self, tmp_path: Path) -> None:
        """Everything it needs is in the job, not in the memory of the process that created it."""

        def create() -> str:
            with self._manager(tmp_path) as jobs:
                return str(self.create_job(jobs).id)

        job_id = _in_another_process(create)
        with self._manager(tmp_path, slots=1) as jobs:
            self._assert_ran(jobs, jobs.get_job(job_id))

    # --- helpers ----------------------------------------------------------------------

    def _manager(
        self, tmp_path: Path, *, slots: int = 0, executor: Executor | None = None
    ) -> JobManager:
        return self.open_manager(
            tmp_path / "contract.db", executor=executor or self.make_executor(), slots=slots
        )

    def _assert_ran(self, jobs: JobManager, job: Job) -> None:
        __tracebackhide__ = True
        jobs.wait(job.id, timeout=PATIENCE)
        ended = assert_job(job, exit_code=self.exit_code, reason=Reason.EXITED, jobs=jobs)
        if self.lines is not None:
            assert_job(ended, log=self.lines, jobs=jobs)


class _Limited:
    """Wraps an executor, and adds a timeout to its commands."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def command(self, job: ClaimedJob) -> Command:
        """Return the executor's command with the timeout."""
        return replace(self._executor.command(job), timeout=TIMEOUT)


def _claimed(jobs: JobManager, job: Job) -> ClaimedJob:
    """Return a job in the form that executors get."""
    with parts(jobs).database.read() as connection:  # the command is not public
        row = job_rows.get_job(connection, job.number)
        assert row is not None
        pipeline = (
            None
            if row.pipeline_id is None
            else pipelines.find_pipeline(connection, row.pipeline_id)
        )
    return ClaimedJob.from_rows(row, pipeline)


def _ask(executor: Executor, job: ClaimedJob) -> object:
    """Return the executor's command, or the CommandError that it raised."""
    try:
        return executor.command(job)
    except CommandError as error:
        return error


def _facts() -> dict[str, object]:
    """Return the facts about this process that an executor must not change."""
    umask = os.umask(0o022)
    os.umask(umask)
    return {
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "umask": umask,
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
    }


def _wait_for_start(jobs: JobManager, job: Job) -> None:
    record = Path(f"{parts(jobs).database.path}.jobs") / job.id.hex / "run"
    deadline = time.monotonic() + PATIENCE
    while not record.exists():
        assert time.monotonic() < deadline, f"the job did not start within {PATIENCE:g} s"
        time.sleep(0.005)


def _in_another_process(work: Callable[[], str]) -> str:
    """Call `work` in a forked process, and return its result."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns about forks with threads. The child does not need them, and exits itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, work().encode())
        except BaseException:  # noqa: BLE001 - shown in the output of the test
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with closing(os.fdopen(reader)) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    assert text, "the other process could not create a job"
    return text
