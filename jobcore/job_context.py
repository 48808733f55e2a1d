"""`current_job`: what a program that runs as a job knows about itself, and may tell."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from jobcore.errors import ArgumentError
from jobcore.manager import JobManager
from jobcore.models import Job
from jobcore.operations.arguments import checked_progress
from jobcore.supervisor import progress

#: Characters of a number in a report; `jobcore.supervisor.progress` takes no longer one.
_LONGEST = 32


class CurrentJob(NamedTuple):
    """
    The job that runs this process; see `current_job`.

    Attributes:
        id: The job's id.
        attempt: 1, and one more at each retry.
        workspace_id: The workspace of the job.
        pipeline_id: The pipeline of the job; None: it has none.
        database: The path of the database. With `JobManager(job.database, slots=0)` the job can
            do everything else, for example submit other jobs.
    """

    id: UUID
    attempt: int
    workspace_id: UUID
    pipeline_id: UUID | None
    database: str

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """
        Report how far the job is. This does not open the database, so it can be called often.

        Args:
            done: How much is done, in any unit; 0 or more, and less than 10³¹.
            total: How much there is to do, in the same unit; None: not known.
            message: One line for people.

        Raises:
            ArgumentError: A number is negative, not finite or too large, or `message` is not text.
        """
        done, total, message = checked_progress(done, total, message)
        numbers = _decimal(done) if total is None else f"{_decimal(done)}/{_decimal(total)}"
        report = f"{numbers} {progress.shorten(message or '')}\n"
        if _takes_reports(progress.DESCRIPTOR):
            os.write(progress.DESCRIPTOR, report.encode("utf-8", "replace"))
        else:  # a child whose parent closed the descriptor; a line of output works everywhere
            sys.stdout.write(progress.PREFIX.decode() + report)
            sys.stdout.flush()

    def update(self, *, data: Any) -> Job:
        """
        Change the job's `data`, which every process can read, now and after the job's end.

        Args:
            data: Your own small JSON, up to 64 KiB.

        Returns:
            The job after the change.

        Raises:
            CommandError: `data` cannot be stored; nothing was changed.
            JobNotFound: The job was deleted, or `env` of its command names another database.
        """
        with JobManager(self.database, slots=0, create=False) as jobs:
            return jobs.update_job(self.id, data=data)


def current_job() -> CurrentJob | None:
    """
    Return the job that runs this process; None: no job does.

    It works in the process of a function, in every other Python program that is a job's command,
    and in their child processes, as long as these keep the variables `JOBCORE_*`. The body of
    `JobManager.task` has its `Task` instead.

    Raises:
        ArgumentError: Someone has changed these variables, and they describe no job.
    """
    variables = os.environ
    if "JOBCORE_JOB_ID" not in variables:
        return None
    try:
        pipeline = variables.get("JOBCORE_PIPELINE_ID")
        return CurrentJob(
            id=UUID(variables["JOBCORE_JOB_ID"]),
            attempt=int(variables["JOBCORE_ATTEMPT"]),
            workspace_id=UUID(variables["JOBCORE_WORKSPACE_ID"]),
            pipeline_id=None if pipeline is None else UUID(pipeline),
            database=variables["JOBCORE_DB"],
        )
    except (KeyError, ValueError) as error:
        raise ArgumentError(
            "the variables JOBCORE_JOB_ID, JOBCORE_ATTEMPT, JOBCORE_WORKSPACE_ID, "
            f"JOBCORE_PIPELINE_ID and JOBCORE_DB describe no job: {error}"
        ) from error


def _decimal(number: float) -> str:
    """Return a number as a report has it: digits and a point, without an exponent."""
    text = format(Decimal(repr(number)), "f")
    if len(text.partition(".")[0]) >= _LONGEST:
        raise ArgumentError(f"a number of a report must be less than 10³¹, not {number}")
    return text[:_LONGEST]


def _takes_reports(descriptor: int) -> bool:
    """Tell whether a descriptor is a pipe that can be written to, and no file of the program."""
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        return is_pipe and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    except OSError:
        return False
