"""Commands that list, show, follow, stop and delete jobs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from jobcore.cli import foreground, output
from jobcore.cli.app import (
    STATUSES,
    AsJson,
    JobId,
    app,
    full_id,
    open_manager,
)
from jobcore.cli.values import count, count_from_1, delay, time_limit
from jobcore.errors import CommandError, JobNotRunning, StoreError
from jobcore.lifecycle import Status

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.models import Job

#: The default number of jobs on a terminal; and the number of jobs read at once for a pipe,
#: which gets all jobs.
SCREENFUL, PAGE = 100, 1000

StopGrace = Annotated[
    float | None,
    typer.Option(
        parser=delay,
        metavar="TIME",
        help="Time from the first signal to SIGKILL; 0 kills now. [the job's own]",
    ),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return without waiting for the end.")]


class LogFormat(str, Enum):
    """The formats of a log."""

    TEXT = "text"
    NDJSON = "ndjson"


# --- looking ----------------------------------------------------------------------


@app.command("list")
def list_(
    ctx: typer.Context,
    *,
    status: Annotated[
        list[Status] | None,
        typer.Option(case_sensitive=False, metavar="STATUS", help=f"Only {STATUSES}."),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TEXT", help="Only jobs of this type; may be given again."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            parser=count_from_1,
            metavar="N",
            help="At most N jobs. [100 on a terminal; all in a pipe or file]",
        ),
    ] = None,
    before: Annotated[
        int | None,
        typer.Option(parser=count_from_1, metavar="NUMBER", help="Only jobs with a lower number."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    List jobs, newest first.

    Fields in a pipe: id, number, status, exit code, reason, type, created,
    start, end, lines, name, progress.

    \b
    Examples:
      jobcore list --status RUNNING --status QUEUED
      jobcore list --json --limit 10
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        try:
            jobs.refresh()  # import the current state of running jobs
        except (StoreError, OSError) as error:
            output.say(f"listed as stored: {error}")
        copied = {job.id: job for job in jobs.list_copied_jobs()}
        filters: dict[str, Any] = {"status": status, "type": kind}
        if limit is None and not output.on_terminal():
            found = _all_jobs(jobs, before, copied, filters)
            output.print_json(found) if as_json else output.print_jobs(found)
            output.note_damage(jobs.list_damaged_rows())
            return
        most = limit or SCREENFUL
        page = jobs.list_jobs(limit=most, before=before, **filters)
        more = len(page) == most and jobs.list_jobs(limit=1, before=page[-1].number, **filters)
        output.note_copies(copied[job.id] for job in page if job.id in copied)
        output.note_damage(jobs.list_damaged_rows())
    output.print_json(page) if as_json else output.print_jobs(page)
    if more and limit is None:
        output.say(f"there are older ones: --before {page[-1].number}, or --limit")


def _all_jobs(
    jobs: JobManager, before: int | None, copied: dict[Any, Job], filters: dict[str, Any]
) -> Iterator[Job]:
    """Yield all jobs, newest first, reading a page at a time."""
    while page := jobs.list_jobs(limit=PAGE, before=before, **filters):
        output.note_copies(copied[job.id] for job in page if job.id in copied)
        yield from page
        before = page[-1].number


@app.command()
def show(ctx: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """
    Show everything that is known about a job.

    \b
    Example:
      jobcore show 3f2a
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        job = jobs.get_job(full_id(jobs, job_id))
        output.note_copies(one for one in jobs.list_copied_jobs() if one.id == job.id)
    if as_json:
        output.print_json(job)
    else:
        output.print_job(job)


@app.command()
def logs(
    ctx: typer.Context,
    job_id: JobId,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more lines until the job has ended.")
    ] = False,
    sequence: Annotated[
        int | None,
        typer.Option(parser=count, metavar="N", help="Begin with line N. [0]"),
    ] = None,
    tail: Annotated[
        int | None,
        typer.Option(
            parser=count, metavar="N", help="Begin with the last N lines; a long line counts once."
        ),
    ] = None,
    form: Annotated[
        LogFormat,
        typer.Option(
            "--format",
            case_sensitive=False,
            metavar="FORMAT",
            help="text, or ndjson: one JSON object per line. [text]",
        ),
    ] = LogFormat.TEXT,
) -> None:
    """
    Print a job's log.

    It has the job's output and jobcore's own lines, all on stdout.

    \b
    Examples:
      jobcore logs -f --tail 10 3f2a
      jobcore logs --format ndjson --sequence 200 3f2a
    """  # noqa: D301
    if sequence is not None and tail is not None:
        raise CommandError("--sequence and --tail exclude each other")
    with open_manager(ctx) as jobs:
        job = jobs.get_job(full_id(jobs, job_id))
        printer = output.LogPrinter(sequence or 0, ndjson=form is LogFormat.NDJSON)
        if tail is not None:
            _print_tail(jobs, job.id, tail, printer)
        if follow:
            foreground.watch(jobs, job.id, printer)
        elif tail is None:
            printer.print(jobs.logs(job.id, printer.next_sequence))


def _print_tail(jobs: JobManager, job_id: UUID, count: int, printer: output.LogPrinter) -> None:
    """Print the last `count` lines, and set the printer to the number after them."""
    while True:
        printer.next_sequence = jobs.get_job(job_id).line_count
        lines = jobs.tail(job_id, count)
        first = next(lines, None)
        if first is not None and not first.unfinished:
            printer.print(itertools.chain([first], lines))
            return
        # No numbered line shows the number after it, so the log must not have grown.
        if jobs.get_job(job_id).line_count == printer.next_sequence:
            printer.print([] if first is None else [first, *lines])
            return


@app.command()
def history(ctx: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """
    Show what happened to a job, oldest first.

    Fields in a pipe: when, trigger, from, to, reason, by whom.

    \b
    Example:
      jobcore history 3f2a
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        entries = jobs.history(full_id(jobs, job_id))
        output.note_damage(jobs.list_damaged_rows())
    if as_json:
        output.print_json(entries)
    else:
        output.print_history(entries)


# --- ending -----------------------------------------------------------------------


@app.command()
def stop(
    ctx: typer.Context,
    job_id: JobId,
    *,
    grace: StopGrace = None,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """
    Stop a running job and its descendants, or take a queued job from the queue.

    Returns when the job has ended.

    \b
    Example:
      jobcore stop --grace 2 3f2a
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        found = full_id(jobs, job_id)
        try:
            job = jobs.stop_job(found, grace=grace)
        except JobNotRunning as error:
            if error.job_status != Status.QUEUED:
                raise
            job = jobs.cancel_job(found, grace=grace)  # works for QUEUED and RUNNING jobs
        if not no_wait:
            job = jobs.wait(job.id)
    _report(job, as_json=as_json)


@app.command()
def cancel(
    ctx: typer.Context,
    job_id: JobId,
    *,
    grace: StopGrace = None,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """
    Take a job from the queue.

    A job that already runs is stopped. Returns when the job has ended.

    \b
    Example:
      jobcore cancel 3f2a
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        job = jobs.cancel_job(full_id(jobs, job_id), grace=grace)
        if not no_wait:
            job = jobs.wait(job.id)
    _report(job, as_json=as_json)


@app.command()
def wait(
    ctx: typer.Context,
    job_id: JobId,
    *,
    timeout: Annotated[
        float | None,
        typer.Option(parser=time_limit, metavar="TIME", help="Wait at most this long. [no limit]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    Wait for a job, and exit with its exit code.

    The exit code is that of run. If the time-out is over first, it is 124, and
    the job keeps running.

    \b
    Example:
      jobcore wait --timeout 60 3f2a && echo done
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        job = jobs.wait(full_id(jobs, job_id), timeout)
    _report(job, as_json=as_json)
    raise typer.Exit(foreground.exit_code(job))


@app.command()
def delete(ctx: typer.Context, job_id: JobId) -> None:
    """
    Remove a job with its log and history.

    A running job is stopped first.

    \b
    Example:
      jobcore delete 3f2a
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        jobs.delete_job(full_id(jobs, job_id))


def _report(job: Job, *, as_json: bool) -> None:
    """Print how the job ended, as JSON or on a terminal; scripts use the exit code."""
    if as_json:
        output.print_json(job)
    elif output.on_terminal():
        output.say(foreground.ending(job) if job.status.final else f"job {job.id} is asked to stop")
