"""Commands that list, show, follow, stop and delete jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobcore.cli import output
from jobcore.cli.app import (
    STATUSES,
    AsJson,
    JobId,
    app,
    full_id,
    open_manager,
)
from jobcore.cli.values import count_from_1
from jobcore.errors import StoreError
from jobcore.lifecycle import Status

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.models import Job

#: The default number of jobs on a terminal; and the number of jobs read at once for a pipe,
#: which gets all jobs.
SCREENFUL, PAGE = 100, 1000


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
