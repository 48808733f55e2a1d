"""Asserts facts about a job; a failure shows everything that is known about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

from jobcore.errors import JobNotFound, StoreError
from jobcore.lifecycle import Reason, Status
from jobcore.manager import OPEN, JobManager
from jobcore.models import Job, LogLine, Transition
from jobcore.operations.lookup import Id

#: Number of log lines that a failure shows.
SHOWN = 20


class Unchecked(Enum):
    """The default of an argument that is not checked, because None is a possible value."""

    UNCHECKED = "unchecked"


_UNCHECKED = Unchecked.UNCHECKED


def assert_job(
    job: Id,
    *,
    status: Status | str | Unchecked = _UNCHECKED,
    exit_code: int | Unchecked | None = _UNCHECKED,
    reason: Reason | str | Unchecked | None = _UNCHECKED,
    log: Sequence[str] | str | re.Pattern[str] | Unchecked = _UNCHECKED,
    jobs: JobManager | None = None,
) -> Job:
    """
    Assert facts about a job as it is now; arguments that are not given are not checked.

        assert_job(job, status="ERROR", exit_code=3, log=["extract", "load"])

    It reads the job again, and does not wait for it. A failure shows the differences, the
    job's status, exit code, reason and signal, its history, and the end of its log.

    Args:
        job: A job, however outdated, or its id.
        status: The expected status.
        exit_code: The expected exit code; None: the job has none.
        reason: Why the job is final; None: it is not final.
        log: A list of texts: exactly the lines that the job wrote, without their
            terminators and without jobcore's own `system` lines. Or one text or pattern,
            which must occur in at least one line of any stream.
        jobs: The manager to ask. None: the manager of this process that has the job.

    Returns:
        The job as it was read.

    Raises:
        AssertionError: A fact differs, or the job does not exist.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test
    manager, found = _find(job.id if isinstance(job, Job) else job, jobs)
    differences = [
        f"{name} is {actual}, not {expected}"
        for name, actual, expected in (
            ("status", found.status, status),
            ("exit code", found.exit_code, exit_code),
            ("reason", found.reason, reason),
        )
        if expected is not _UNCHECKED and actual != expected
    ]
    if not isinstance(log, Unchecked) and (difference := _log_difference(manager, found, log)):
        differences.append(difference)
    if differences:
        raise AssertionError(
            "\n".join([f"job {found.id}:", *differences, *_report(manager, found)])
        )
    return found


def _find(job_id: Id, jobs: JobManager | None) -> tuple[JobManager, Job]:
    __tracebackhide__ = True
    if jobs is not None:
        try:
            return jobs, jobs.get_job(job_id)
        except JobNotFound:
            raise AssertionError(f"the manager has no job {job_id}") from None
    for manager in list(OPEN):
        try:
            return manager, manager.get_job(job_id)
        except (JobNotFound, StoreError):
            continue  # it has another file, or cannot read it
    raise AssertionError(f"no open manager of this process has a job {job_id}")


def _log_difference(
    manager: JobManager, job: Job, expected: Sequence[str] | str | re.Pattern[str]
) -> str | None:
    if isinstance(expected, str):
        found = any(expected in line.text for line in manager.logs(job.id))
        return None if found else f"no line of the log has {expected!r}"
    if isinstance(expected, re.Pattern):
        found = any(expected.search(line.text) for line in manager.logs(job.id))
        return None if found else f"no line of the log matches {expected.pattern!r}"
    wanted = list(expected)
    written = [line for line in manager.logs(job.id) if line.stream != "system"]
    for line, text in zip(written, wanted, strict=False):
        if line.text != text:
            left_out = _left_out(manager, job)
            return f"line {line.sequence} of the log is {line.text!r}, not {text!r}{left_out}"
    counted = f"the job wrote {len(written)} lines, not {len(wanted)}{_left_out(manager, job)}"
    if len(written) > len(wanted):
        extra = written[len(wanted)]
        return f"line {extra.sequence} of the log, {extra.text!r}, is one too many: {counted}"
    if len(written) < len(wanted):
        return f"{wanted[len(written)]!r} is missing at the end of the log: {counted}"
    return None


def _left_out(manager: JobManager, job: Job) -> str:
    """Return, as text, how many lines of jobcore's own a list leaves out."""
    count = sum(line.stream == "system" for line in manager.logs(job.id))
    lines = "line of jobcore's own is" if count == 1 else "lines of jobcore's own are"
    return f" ({count} {lines} left out)" if count else ""


def _report(manager: JobManager, job: Job) -> list[str]:
    """Return everything that is known about the job, as lines of text."""
    report = [
        f"It is {job.status}: exit code {job.exit_code}, reason {job.reason}, signal {job.signal}.",
        "History:",
        *(f"  {_entry(entry)}" for entry in manager.history(job.id)),
    ]
    lines = list(manager.tail(job.id, SHOWN))
    if not lines:
        return [*report, "Its log is empty."]
    before = f", the last {len(lines)} of {job.line_count} lines" if lines[0].sequence else ""
    return [*report, f"Log{before}:", *(f"  {_line(line)}" for line in lines)]


def _entry(entry: Transition) -> str:
    moved = f"{entry.at:%H:%M:%S.%f} {entry.trigger} {entry.from_status} -> {entry.to_status}"
    return moved + ("" if entry.reason is None else f" ({entry.reason})") + f" by {entry.actor}"


def _line(line: LogLine) -> str:
    number = "unfinished" if line.sequence is None else line.sequence
    return f"{number} {line.stream}: {line.text}"
