"""
Executors: they decide which command a job runs.

An executor has one method, `command`, and is registered for a job type. It decides what to
run. How that runs (start, stop, time-out, log) is the same for all jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from jobcore.command import Command
from jobcore.errors import CommandError
from jobcore.functions.call import checked_warm, in_interpreter, is_function
from jobcore.models import ClaimedJob


class Executor(Protocol):
    """
    Decides what to run for a job.

    The manager that is about to start the job calls it, in its own thread: be quick. An
    exception makes the job ERROR with reason `spawn_failed`, and a `system` line of its log
    shows the exception.
    """

    def command(self, job: ClaimedJob) -> Command:
        """
        Return the command to run for `job`.

        Args:
            job: The job, with the command and the pipeline that it was created with.
        """


class CommandExecutor:
    """
    Runs the job's own command.

    Args:
        python: The interpreter for commands that `function_command` made; None:
            that of the process that starts the job.
    """

    def __init__(self, python: str | None = None) -> None:
        self._python = python

    def command(self, job: ClaimedJob) -> Command:
        """
        Return the command that the job was created with.

        Args:
            job: The job that is about to start.

        Raises:
            CommandError: The job was created without a command.
        """
        if job.command is None:
            raise CommandError("the job was created without a command")
        return in_interpreter(job.command, self._python, job.directory)


class FunctionExecutor:
    """
    Calls the job's function in a fresh interpreter, or in a process forked from a warm one.

    A warm interpreter has loaded modules, and forks a process for each call, which takes a
    few milliseconds. It makes a call only if a fresh interpreter would behave the same; see
    the guide "jobs". All other calls get a fresh interpreter, as do those made while no warm
    one is ready.

    Args:
        python: The interpreter; None: that of the process that starts the job.
        warm: How many warm interpreters to keep; True: one for each slot; False: none.
        preload: The names of modules that they load, such as those of the functions.

    Raises:
        CommandError: `warm` or `preload` cannot be used.
    """

    def __init__(
        self,
        python: str | None = None,
        *,
        warm: int | bool = False,
        preload: Sequence[str] = (),
    ) -> None:
        self._python = python
        self._warm = checked_warm(warm, preload)

    def command(self, job: ClaimedJob) -> Command:
        """
        Return a command that calls the function that the job was created with.

        Args:
            job: The job that is about to start.

        Raises:
            CommandError: The job was created without a function, or no interpreter is known.
        """
        if job.command is None or not is_function(job.command):
            raise CommandError("the job was created without a function: see function_command")
        return in_interpreter(job.command, self._python, job.directory, self._warm)


class PipelineExecutor:
    """
    Runs the pipeline's script or command, within the pipeline's time-out.

    Args:
        python: The interpreter for commands that `function_command` made; None:
            that of the process that starts the job.
    """

    def __init__(self, python: str | None = None) -> None:
        self._python = python

    def command(self, job: ClaimedJob) -> Command:
        """
        Return the job's own command if it has one, else the pipeline's.

        Args:
            job: The job that is about to start.

        Raises:
            CommandError: Neither the job nor its pipeline has a command or a script.
        """
        if job.command is not None:
            return in_interpreter(job.command, self._python, job.directory)
        pipeline = job.pipeline
        if pipeline is None or (pipeline.command is None and pipeline.script is None):
            raise CommandError("neither the job nor its pipeline has a command or a script")
        own = pipeline.command
        if pipeline.script is not None:
            # The script replaces the argv; all other fields of the command apply.
            own = (
                Command(pipeline.script, shell=True)
                if own is None
                else replace(own, argv=pipeline.script, shell=True)
            )
        assert own is not None  # noqa: S101 - for the type checker alone
        if pipeline.timeout is not None and own.timeout is None:
            own = replace(own, timeout=pipeline.timeout)
        return in_interpreter(own, self._python, job.directory)


def default_executors(python: str | None = None) -> dict[str, Executor]:
    """
    Return the default executors of a manager, by job type.

    Args:
        python: The interpreter for functions; None: that of this process.
    """
    return {
        "COMMAND": CommandExecutor(python),
        "FUNCTION": FunctionExecutor(python),
        "PIPELINE_RUN": PipelineExecutor(python),
    }
