"""Commands that show the queue: `list` once, `watch` as it changes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from jobcore.cli import foreground, job_table, output, selection
from jobcore.cli.app import AsJson, app, open_manager
from jobcore.cli.selection import Filter
from jobcore.cli.values import count_from_1
from jobcore.errors import CommandError, PipelineNotFound, StoreError
from jobcore.lifecycle import Reason, Status

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.models import Job

#: Seconds between two updates of `watch`.
PAUSE = 0.5
#: The default number of jobs on a terminal, if filters choose them.
TERMINAL_LIMIT = 100
#: Lines of a terminal that a list leaves to its counts, titles and the next prompt.
OTHER_LINES = 4
#: The least number of jobs that a list shows, however low the terminal.
FEWEST_JOBS = 10


class Order(str, Enum):
    """The orders of a list."""

    CREATED = "created"
    STARTED = "started"
    ENDED = "ended"
    DURATION = "duration"


@app.command("list")
@selection.filters("status", "failed", *selection.OF_ANY, *selection.OF_ENDED)
def list_(
    ctx: typer.Context,
    *,
    wanted: Filter,
    order: Annotated[
        Order | None,
        typer.Option(
            metavar="WORD",
            help="By created, started or ended, the last one first; or by duration, the longest "
            "first. [created]",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            parser=count_from_1,
            metavar="N",
            help="At most N jobs. [what fits a terminal, or 100 with filters; all in a pipe]",
        ),
    ] = None,
    before: Annotated[
        int | None,
        typer.Option(parser=count_from_1, metavar="NUMBER", help="Only jobs with a lower number."),
    ] = None,
    wide: Annotated[
        bool, typer.Option("--wide", "-w", help="Show all columns, and cut nothing.")
    ] = False,
    counted: Annotated[
        bool, typer.Option("--count", help="Print only how many jobs of each status there are.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """
    List jobs.

    A terminal shows running jobs first, then those that start next, then the last
    failures and the last other jobs. With a filter, --limit or --before, and in a
    pipe, the newest job comes first.

    Fields in a pipe: id, number, status, exit code, reason, type, created,
    start, end, lines, name, progress, group, priority, due, command.

    \b
    Examples:
      jobcore list
      jobcore list --failed --since 1d
      jobcore list --json --limit 10
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        wanted = replace(wanted, order=None if order is None else order.value)
        try:
            jobs.refresh()  # import the current state of running jobs
        except (StoreError, OSError) as error:
            output.say(f"listed as stored: {error}")
        if counted:
            _print_counts(jobs, wanted, as_json=as_json)
            return
        copied = {job.id: job for job in jobs.list_copied_jobs()}
        on_terminal = output.on_terminal() and not as_json
        if on_terminal and not wanted.given and limit is None and before is None:
            _print_overview(jobs, copied, wide=wide)
            return
        most = limit or (TERMINAL_LIMIT if output.on_terminal() else None)
        found = _with_notes(selection.listed(jobs, wanted, before), copied)
        if most is None:
            output.print_json(found) if as_json else output.print_jobs(found)
            output.note_damage(jobs.list_damaged_rows())
            return
        page = [job for job, _ in zip(found, range(most), strict=False)]
        more = next(found, None) is not None
        output.note_damage(jobs.list_damaged_rows())
        if on_terminal:
            print_table(jobs, page, wide=wide)
        else:
            output.print_json(page) if as_json else output.print_jobs(page)
    if more and limit is None:
        output.say(f"there are older ones: --before {page[-1].number}, or --limit")


def _print_counts(jobs: JobManager, wanted: Filter, *, as_json: bool) -> None:
    counts = dict.fromkeys(Status, 0)
    for part in wanted.in_parts(jobs):
        for status, count in jobs.count_jobs(**part).items():
            counts[status] += count
    output.note_damage(jobs.list_damaged_rows())
    if as_json:
        output.print_lines([json.dumps(counts)])
    else:
        output.print_rows(("STATUS", "JOBS"), counts.items())


def _with_notes(jobs: Iterator[Job], copied: dict[Any, Job]) -> Iterator[Job]:
    """Yield the jobs, and print a note for each that cannot be updated."""
    for job in jobs:
        if job.id in copied:
            output.note_copies([copied[job.id]])
        yield job


def print_table(jobs: JobManager, page: list[Job], *, wide: bool = False) -> None:
    """Print a table of jobs on a terminal."""
    console = output.console()
    facts = job_table.facts_for(page, _names(jobs), wide=wide)
    table = job_table.table(page, facts, console.width)
    if not wide:
        console.print(table)
        return
    # A terminal wraps what is longer than its rows, so blanks at the end would be empty rows.
    console.width = max(console.width, sum(one.width or 0 for one in table.columns) + 100)
    with console.capture() as captured:
        console.print(table)
    output.print_lines(row.rstrip() for row in captured.get().splitlines())


def _print_overview(jobs: JobManager, copied: dict[Any, Job], *, wide: bool) -> None:
    console = output.console()
    counts = jobs.count_jobs()
    page = overview(jobs, max(console.height - OTHER_LINES, FEWEST_JOBS))
    output.note_copies(copied[job.id] for job in page if job.id in copied)
    console.print(job_table.summary(counts, paused(jobs)))
    if page:
        print_table(jobs, page, wide=wide)
    output.note_damage(jobs.list_damaged_rows())
    left = sum(counts.values()) - len(page)
    if left > 0:
        output.say(f"{left:,} more: see --limit and the filters")


def paused(jobs: JobManager) -> list[str]:
    """Return what is paused, in words."""
    return [
        "all jobs" if one.name is None else f"{one.scope} {one.name}"
        for one in jobs.limits()
        if one.paused is not None
    ]


def overview(jobs: JobManager, lines: int) -> list[Job]:
    """Return the jobs that matter most: running, next to start, last failures, last others."""
    running = jobs.list_jobs(status=Status.RUNNING, limit=lines)
    lines -= len(running)
    queued = _queued(jobs, lines)
    # By the time of their end. The last failures stay, however many jobs have ended well since.
    failed = [
        *jobs.list_jobs(status=Status.ERROR, order="ended", limit=lines),
        *jobs.list_jobs(reason=Reason.TIMEOUT, order="ended", limit=lines),
    ]
    failed.sort(key=lambda job: job.end_time or job.created, reverse=True)
    known = {job.id for job in failed}
    ended = jobs.list_jobs(status=[Status.COMPLETE, Status.STOPPED], order="ended", limit=lines)
    others = [job for job in ended if job.id not in known]
    shares = _shares(lines, [len(queued), len(failed), len(others)])
    return [
        *running,
        *(
            job
            for some, share in zip((queued, failed, others), shares, strict=True)
            for job in some[:share]
        ),
    ]


def _queued(jobs: JobManager, lines: int) -> list[Job]:
    """Return queued jobs: those that start next, paused ones, and those that wait for others."""
    found = jobs.list_upcoming(limit=lines)
    found.sort(key=lambda job: job.waits_for == "paused")  # it is not known when these start
    if len(found) < lines:
        known = {job.id for job in found}
        rest = jobs.list_jobs(status=Status.QUEUED, limit=lines)
        found += [job for job in reversed(rest) if job.id not in known]
    return found


def _shares(lines: int, wanted: list[int]) -> list[int]:
    """Divide lines: half, a quarter and a quarter; what one does not need goes to the others."""
    quotas = [lines - lines // 4 - lines // 4, lines // 4, lines // 4]
    shares = [min(one, quota) for one, quota in zip(wanted, quotas, strict=True)]
    for n, one in enumerate(wanted):
        shares[n] += min(one - shares[n], lines - sum(shares))
    return shares


def _names(jobs: JobManager) -> Callable[[UUID], str]:
    def name_of(pipeline_id: UUID) -> str:
        try:
            return jobs.get_pipeline(pipeline_id).name
        except PipelineNotFound:
            return ""

    return name_of


@app.command()
def watch(
    ctx: typer.Context,
    *,
    wide: Annotated[
        bool, typer.Option("--wide", "-w", help="Show all columns, and cut nothing.")
    ] = False,
) -> None:
    """
    Show the queue on a terminal, as it changes, until Ctrl-C.

    Running jobs come first, then those that start next, then the last failures and
    the last other jobs.

    \b
    Example:
      jobcore watch
    """  # noqa: D301
    if not output.on_terminal():
        raise CommandError("watch needs a terminal; for a pipe there are list and logs -f")
    signals = foreground.block_signals()
    with open_manager(ctx) as jobs, output.Screen() as screen:
        while True:
            _refresh(jobs)
            summary = job_table.summary(jobs.count_jobs(), paused(jobs))
            # After the counts, so that each job is at least in the state in which it was counted.
            page = overview(jobs, screen.lines)
            facts = job_table.facts_for(page, _names(jobs), wide=wide)
            screen.draw(summary, job_table.table(page, facts, screen.width))
            if signal.sigtimedwait(signals, PAUSE) is not None:
                return


def _refresh(jobs: JobManager) -> None:
    try:
        jobs.refresh()  # import the current state of running jobs
    except (StoreError, OSError):
        pass  # show the stored state; the next update tries again
