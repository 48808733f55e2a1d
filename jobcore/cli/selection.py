"""Which jobs a command means: ids, or filters, or all."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID

import typer

from jobcore.cli import output
from jobcore.cli.app import STATUSES, full_id
from jobcore.cli.values import past
from jobcore.errors import CommandError, InvalidTransition, JobcoreError, JobNotFound
from jobcore.lifecycle import Reason, Status

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.models import Job

#: Number of jobs that are read at once.
PAGE = 1000
#: Number of jobs that are changed at once, so that their writes share commits.
THREADS = 8

T = TypeVar("T")

JobIds = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ID]...",
        help="Numbers, names or IDs of jobs, or as many first digits of IDs as are unique.",
    ),
]
All = Annotated[bool, typer.Option("--all", help="All jobs for which this can be done.")]
WithStatus = Annotated[
    list[Status] | None,
    typer.Option("--status", case_sensitive=False, metavar="STATUS", help=f"Only {STATUSES}."),
]
WithType = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="TEXT", help="Only jobs of this type; may be given again."),
]
WithName = Annotated[
    str | None,
    typer.Option("--name", metavar="GLOB", help="Only jobs with such a name, as in 'load *'."),
]
InGroup = Annotated[
    list[str] | None,
    typer.Option("--group", metavar="NAME", help="Only jobs of this group; may be given again."),
]
Since = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        parser=past,
        metavar="WHEN",
        help="Only jobs created since then: 2h, 18:30, or '2026-12-01 18:30'.",
    ),
]
Until = Annotated[
    datetime | None,
    typer.Option("--until", parser=past, metavar="WHEN", help="Only jobs created before then."),
]
Failed = Annotated[
    bool,
    typer.Option("--failed", help="Only jobs that ended ERROR, or STOPPED by their time-out."),
]


@dataclass(frozen=True)
class Filter:
    """The filters of a command; the default lets every job pass."""

    status: list[Status] | None = None
    kinds: list[str] | None = None
    name: str | None = None
    groups: list[str] | None = None
    since: datetime | None = None
    until: datetime | None = None
    failed: bool = False

    @property
    def given(self) -> bool:
        """Whether any filter was given."""
        return self != Filter()

    def passes(self, job: Job) -> bool:
        """Tell whether a job passes those filters that a listing does not know."""
        return (
            (self.name is None or fnmatch.fnmatchcase(job.name or "", self.name))
            and (not self.groups or job.group in self.groups)
            and (self.until is None or job.created < self.until)
            and (not self.failed or has_failed(job))
        )


def has_failed(job: Job) -> bool:
    """Tell whether a job ended ERROR, or STOPPED by its time-out."""
    return job.status is Status.ERROR or job.reason is Reason.TIMEOUT


def listed(jobs: JobManager, wanted: Filter, before: int | None = None) -> Iterator[Job]:
    """Yield the jobs that pass the filters, newest first, reading a page at a time."""
    statuses = wanted.status
    if statuses is None and wanted.failed:
        statuses = [Status.ERROR, Status.STOPPED]
    while page := jobs.list_jobs(status=statuses, type=wanted.kinds, limit=PAGE, before=before):
        for job in page:
            if wanted.since is not None and job.created < wanted.since:
                return
            if wanted.passes(job):
                yield job
        before = page[-1].number


def chosen(
    jobs: JobManager,
    ids: list[str] | None,
    wanted: Filter,
    *,
    every: bool,
    among: Iterable[Status],
    verb: str,
) -> list[UUID | str]:
    """
    Return the ids of the jobs that a command means.

    Args:
        jobs: Finds them.
        ids: The words of the command.
        wanted: Its filters.
        every: Whether `--all` was given.
        among: If filters choose the jobs: only those with these statuses.
        verb: The command's name, for the error if nothing was chosen.

    Raises:
        CommandError: Nothing was chosen, or jobs both by id and by filter.
    """
    if ids:
        if every or wanted.given:
            raise CommandError(f"{verb} takes IDs or filters, not both")
        return list(dict.fromkeys(full_id(jobs, one) for one in ids))
    if not (every or wanted.given):
        raise CommandError(f"{verb} needs an ID, a filter or --all; see jobcore {verb} --help")
    allowed = set(among)
    found = (job for job in listed(jobs, wanted) if job.status in allowed)
    return list(reversed([job.id for job in found]))


def for_each(
    ids: Iterable[UUID | str], step: Callable[[UUID | str], T], *, by_filter: bool = False
) -> tuple[list[T], int]:
    """
    Call `step` with each id, print the errors, and return the results and the number of errors.

    Several are done at once. An error of one keeps none of the others from being done.

    Args:
        ids: The ids of the jobs.
        step: Does something with a job.
        by_filter: Whether filters chose the jobs. Then it is no error if one has changed so that
            the step is not possible any more.
    """

    def attempt(job_id: UUID | str) -> Any:
        try:
            return step(job_id)
        except (JobcoreError, OSError) as error:
            return error

    every = list(ids)
    if len(every) == 1 and not by_filter:
        return [step(every[0])], 0
    done: list[T] = []
    failed = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for answer in pool.map(attempt, every):
            if not isinstance(answer, Exception):
                done.append(answer)
            elif not (by_filter and isinstance(answer, (InvalidTransition, JobNotFound))):
                output.say(str(answer))
                failed += 1
    return done, failed
