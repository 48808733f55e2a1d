"""Commands that change jobs: stop, cancel, retry, delete, and what is queued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from jobcore.cli import command_options, due_time, foreground, output, selection
from jobcore.cli.app import AsJson, app, full_id, open_manager
from jobcore.cli.selection import Filter
from jobcore.cli.values import delay, integer, time_limit
from jobcore.errors import CommandError, JobNotRunning
from jobcore.lifecycle import ACTIVE, FINAL, RETRIABLE, Status

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.models import Job

StopGrace = Annotated[
    float | None,
    typer.Option(
        parser=delay,
        metavar="TIME",
        help="Time from the first signal to SIGKILL; 0 kills now. [the job's own]",
    ),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return without waiting for the end.")]


@app.command()
@selection.filters("status", *selection.OF_ANY)
def stop(
    ctx: typer.Context,
    job_ids: selection.JobIds = None,
    *,
    every: selection.All = False,
    wanted: Filter,
    grace: StopGrace = None,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """
    Stop running jobs with their descendants, or take queued jobs from the queue.

    Returns when the jobs have ended.

    \b
    Examples:
      jobcore stop --grace 2 3f2a
      jobcore stop --group load --all
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        found = selection.chosen(jobs, job_ids, wanted, every=every, verb="stop", among=ACTIVE)
        many = partial(jobs.cancel_jobs, grace=grace)
        done, failed = _each_or_all(jobs, found, partial(_stop, jobs, grace), wanted, many)
        done, late = _ended(jobs, done, no_wait=no_wait)
    _report(done, job_ids, as_json=as_json)
    _exit(failed + late)


def _stop(jobs: JobManager, grace: float | None, job_id: UUID | str) -> Job:
    try:
        return jobs.stop_job(job_id, grace=grace)
    except JobNotRunning as error:
        if error.job_status != Status.QUEUED:
            raise
        return jobs.cancel_job(job_id, grace=grace)  # works for QUEUED and RUNNING jobs


@app.command()
@selection.filters(*selection.OF_ANY)
def cancel(
    ctx: typer.Context,
    job_ids: selection.JobIds = None,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="All queued jobs; running ones only by their IDs.")
    ] = False,
    wanted: Filter,
    grace: StopGrace = None,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """
    Take jobs from the queue.

    A job that already runs is stopped. Returns when the jobs have ended.

    \b
    Examples:
      jobcore cancel 3f2a
      jobcore cancel --name 'load *'
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        found = selection.chosen(jobs, job_ids, wanted, every=every, verb="cancel", among=ACTIVE)
        one, many = partial(jobs.cancel_job, grace=grace), partial(jobs.cancel_jobs, grace=grace)
        queued = replace(wanted, status=[Status.QUEUED])
        done, failed = _each_or_all(jobs, found, one, queued, many)
        done, late = _ended(jobs, done, no_wait=no_wait)
    _report(done, job_ids, as_json=as_json)
    _exit(failed + late)


@app.command()
@selection.filters(*selection.OF_ANY)
def wait(
    ctx: typer.Context,
    job_ids: selection.JobIds = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All queued and running jobs.")] = False,
    wanted: Filter,
    timeout: Annotated[
        float | None,
        typer.Option(parser=time_limit, metavar="TIME", help="Wait at most this long. [no limit]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    Wait for jobs, and exit with the job's exit code.

    The exit code is that of run; for several jobs it is 0 if all are COMPLETE, else
    1. A job that is retried is waited for until its last attempt has ended. If the
    time-out is over first, the exit code is 124, and the jobs keep running.

    --all and filters choose among the queued and running jobs: those that have
    already ended do not count. If there are none, wait says so, and the exit code
    is 0.

    \b
    Examples:
      jobcore wait --timeout 60 3f2a && echo done
      jobcore wait --group load --all
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        found = selection.chosen(jobs, job_ids, wanted, every=every, verb="wait", among=ACTIVE)
        if found is None:
            active = replace(wanted, status=sorted(ACTIVE))
            found = [job.id for job in selection.listed(jobs, active)]
            if not found:
                output.say("no queued or running job matches")
        done = jobs.wait_all(found, timeout)
    _report(done, job_ids, as_json=as_json)
    codes = [foreground.exit_code(job) for job in done]
    raise typer.Exit(codes[0] if len(codes) == 1 else int(any(codes)))


@app.command()
@selection.filters("status", *selection.OF_ANY, *selection.OF_ENDED)
def retry(
    ctx: typer.Context,
    job_ids: selection.JobIds = None,
    *,
    failed: Annotated[
        bool,
        typer.Option(
            "--failed",
            help="All jobs that ended ERROR, or STOPPED by their time-out, and were not retried.",
        ),
    ] = False,
    wanted: Filter,
    as_json: AsJson = False,
) -> None:
    """
    Put failed or stopped jobs into the queue again, as new jobs; print their IDs.

    The old jobs stay as they are. With --failed or a filter, a job that was retried
    already is left out, so that calling it twice retries nothing twice. A job that
    took the environment of its submitter takes that of this process.

    \b
    Examples:
      jobcore retry 3f2a
      jobcore retry --failed --since 2h
    """  # noqa: D301
    wanted = replace(wanted, failed=failed)
    with open_manager(ctx) as jobs:
        found = selection.chosen(jobs, job_ids, wanted, every=False, verb="retry", among=RETRIABLE)
        done, errors = _each_or_all(jobs, found, jobs.retry_job, wanted, jobs.retry_jobs)
    if as_json:
        output.print_json(done[0] if job_ids and len(job_ids) == 1 else done)
    else:
        output.print_ids(done)
    _exit(errors)


def _each_or_all(
    jobs: JobManager,
    found: list[UUID | str] | None,
    one: Callable[..., Job],
    wanted: Filter,
    many: Callable[..., list[Job]],
) -> tuple[list[Job], int]:
    """
    Call `one` with each id that was found; without ids, `many` with each part of the filters.

    Returns:
        The jobs, and how many calls of `one` failed.
    """
    if found is not None:
        return selection.for_each(found, one)
    return [job for part in wanted.in_parts(jobs) for job in many(**part)], 0


@app.command("set")
def set_(
    ctx: typer.Context,
    job_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="ID...",
            help="Numbers, names or IDs of jobs, or as many first digits of IDs as are unique.",
        ),
    ],
    *,
    priority: Annotated[
        int | None,
        typer.Option(parser=integer, metavar="N", help="Jobs with a higher number start first."),
    ] = None,
    wait: due_time.Delay = None,
    at: due_time.At = None,
    name: command_options.Name = None,
    timeout: Annotated[
        float | None,
        typer.Option(parser=time_limit, metavar="TIME", help="Stop the job after this time."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    Change jobs that are queued.

    \b
    Examples:
      jobcore set --priority 10 3f2a
      jobcore set --delay 0 3f2a
    """  # noqa: D301
    given: dict[str, Any] = {
        "priority": priority,
        "not_before": due_time.chosen(wait, at),
        "name": name,
        "timeout": timeout,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise CommandError("set needs an option that says what to change; see jobcore set --help")
    with open_manager(ctx) as jobs:
        ids = [full_id(jobs, one, among=[Status.QUEUED]) for one in job_ids]
        done, failed = selection.for_each(ids, lambda job_id: jobs.update_job(job_id, **changes))
    if as_json:
        output.print_json(done[0] if len(job_ids) == 1 else done)
    _exit(failed)


@app.command()
@selection.filters("status", "failed", *selection.OF_ANY, *selection.OF_ENDED)
def delete(
    ctx: typer.Context,
    job_ids: selection.JobIds = None,
    *,
    every: selection.All = False,
    wanted: Filter,
) -> None:
    """
    Remove jobs with their logs and histories.

    A running job that is named by its ID is stopped first. With --all or a filter,
    only jobs that have ended are removed.

    \b
    Examples:
      jobcore delete 3f2a
      jobcore delete --failed --until 7d
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        found = selection.chosen(jobs, job_ids, wanted, every=every, verb="delete", unique=True)
        if found is None:
            if wanted.status is None and not wanted.failed:
                wanted = replace(wanted, status=sorted(FINAL))
            elif not set(wanted.status or FINAL) <= FINAL:
                raise CommandError("delete by filter takes only COMPLETE, ERROR and STOPPED jobs")
            done = [job for part in wanted.in_parts(jobs) for job in jobs.delete_jobs(**part)]
            errors = 0
            if output.on_terminal():
                output.say(f"{len(done)} jobs removed")
        else:
            _, errors = selection.for_each(found, jobs.delete_job)
    _exit(errors)


def _ended(jobs: JobManager, done: list[Job], *, no_wait: bool) -> tuple[list[Job], int]:
    """Return the jobs once they have ended, and how many could not be waited for."""
    if no_wait:
        return done, 0
    # Not wait_all: a stopped job is not retried, and this exact one has to end.
    return selection.for_each([job.id for job in done], jobs.wait) if done else ([], 0)


def _report(done: list[Job], job_ids: list[str] | None, *, as_json: bool) -> None:
    """Print how the jobs ended, as JSON or on a terminal; scripts use the exit code."""
    if as_json:
        output.print_json(done[0] if job_ids and len(job_ids) == len(done) == 1 else done)
    elif output.on_terminal():
        for job in done:
            asked = f"job {output.label(job)} is asked to stop"
            output.say(foreground.ending(job) if job.status.final else asked)
        if not done:
            output.say("no job matches")


def _exit(failed: int) -> None:
    """End with 1 if something failed."""
    if failed:
        raise typer.Exit(1)
