"""Which jobs a command means: ids, or filters, or all."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID

import typer

from jobcore.cli import output
from jobcore.cli.app import STATUSES, full_id, takes
from jobcore.cli.values import integer, past, stored_text
from jobcore.errors import CommandError, JobcoreError
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
#: The filters by owner and name.
BY_NAME = ("type", "name", "group", "key", "workspace", "pipeline")
#: The filters that jobs of any status can pass.
OF_ANY = (*BY_NAME, "created_since", "created_until")
#: The filters that only ended jobs can pass.
OF_ENDED = ("ended_since", "ended_until", "reason", "exit_code")


@dataclass(frozen=True)
class Filter:
    """
    The filters of a command; the default lets every job pass.

    The fields are arguments of `list_jobs`, but for `failed`, `workspace` and `pipeline`.
    """

    status: Annotated[
        list[Status] | None,
        typer.Option(case_sensitive=False, metavar="STATUS", help=f"Only {STATUSES}."),
    ] = None
    failed: Annotated[
        bool,
        typer.Option("--failed", help="Only jobs that ended ERROR, or STOPPED by their time-out."),
    ] = False
    type: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Only jobs of this type; may be given again."),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(
            parser=stored_text,
            metavar="GLOB",
            help="Only jobs whose name matches, such as 'load *'.",
        ),
    ] = None
    group: Annotated[
        str | None,
        typer.Option(parser=stored_text, metavar="NAME", help="Only jobs of this group."),
    ] = None
    key: Annotated[
        str | None,
        typer.Option(parser=stored_text, metavar="TEXT", help="Only jobs with this key."),
    ] = None
    workspace: Annotated[
        str | None,
        typer.Option(
            parser=stored_text, metavar="NAME", help="Only jobs of the workspace of this name."
        ),
    ] = None
    pipeline: Annotated[
        str | None,
        typer.Option(
            parser=stored_text, metavar="NAME", help="Only jobs of the pipeline of this name."
        ),
    ] = None
    created_since: Annotated[
        datetime | None,
        typer.Option(
            "--since",
            parser=past,
            metavar="WHEN",
            help="Only jobs created since then: 2h, 18:30, or '2026-12-01 18:30'.",
        ),
    ] = None
    created_until: Annotated[
        datetime | None,
        typer.Option("--until", parser=past, metavar="WHEN", help="Only jobs created before then."),
    ] = None
    ended_since: Annotated[
        datetime | None,
        typer.Option(parser=past, metavar="WHEN", help="Only jobs that have ended since then."),
    ] = None
    ended_until: Annotated[
        datetime | None,
        typer.Option(parser=past, metavar="WHEN", help="Only jobs that had ended before then."),
    ] = None
    reason: Annotated[
        list[Reason] | None,
        typer.Option(metavar="WORD", help="Only jobs with this reason, such as timeout or lost."),
    ] = None
    exit_code: Annotated[
        list[int] | None,
        typer.Option(parser=integer, metavar="N", help="Only jobs with this exit code."),
    ] = None
    order: str | None = None

    @property
    def given(self) -> bool:
        """Whether any filter was given."""
        return self != Filter()

    def arguments(self, jobs: JobManager) -> dict[str, Any]:
        """Return the arguments of `list_jobs` for all filters but `failed` and `order`."""
        others = ("failed", "order", "workspace", "pipeline")
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: given[name] for name in given if name not in others} | self._place(jobs)

    def _place(self, jobs: JobManager) -> dict[str, Any]:
        """Return the ids of the workspace and the pipeline, each given by its name or id."""
        found: dict[str, Any] = {}
        if self.workspace is not None:
            from jobcore.cli import workspace_commands  # noqa: PLC0415 - only with this filter

            found["workspace_id"] = workspace_commands.find_workspace(jobs, self.workspace).id
        if self.pipeline is not None:
            from jobcore.cli import pipeline_commands  # noqa: PLC0415 - only with this filter

            pipeline = pipeline_commands.find_pipeline(jobs, self.pipeline, self.workspace)
            found["pipeline_id"] = pipeline.id
        return found

    def in_parts(self, jobs: JobManager) -> list[dict[str, Any]]:
        """Return the arguments of one call, or of two: for ERROR, and for time-outs."""
        given = self.arguments(jobs)
        if not self.failed:
            return [given]
        if self.status is not None:
            raise CommandError("--failed and --status cannot be combined: give one of them")
        if self.reason is not None or self.order is not None:
            raise CommandError("--failed cannot be combined with --reason or --order")
        return [{**given, "status": Status.ERROR}, {**given, "reason": Reason.TIMEOUT}]


def filters(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that gives a command the options for these fields of `Filter`."""
    return takes(Filter, *names, into="wanted")


def listed(jobs: JobManager, wanted: Filter, before: int | None = None) -> Iterator[Job]:
    """Yield the jobs that pass the filters, newest first or in their order, page by page."""
    if wanted.order is not None:
        return _pages(jobs, {**wanted.arguments(jobs), "order": wanted.order}, before)
    parts = [_pages(jobs, one, before) for one in wanted.in_parts(jobs)]
    return heapq.merge(*parts, key=lambda job: -job.number)


def _pages(jobs: JobManager, filters: dict[str, Any], before: int | None) -> Iterator[Job]:
    while page := jobs.list_jobs(**filters, limit=PAGE, before=before):
        yield from page
        before = page[-1].number


def chosen(
    jobs: JobManager,
    ids: list[str] | None,
    wanted: Filter,
    *,
    every: bool,
    verb: str,
    **options: Any,
) -> list[UUID | str] | None:
    """
    Return the ids of the jobs that a command names; None: its filters choose them.

    Args:
        jobs: Finds them.
        ids: The words of the command.
        wanted: Its filters.
        every: Whether `--all` was given.
        verb: The command's name, for the error if nothing was chosen.
        options: Those of `full_id`.

    Raises:
        CommandError: Nothing was chosen, or jobs both by id and by filter.
    """
    if ids:
        if every or wanted.given:
            raise CommandError(f"{verb} takes IDs or filters, not both")
        return list(dict.fromkeys(full_id(jobs, one, **options) for one in ids))
    if not (every or wanted.given):
        raise CommandError(f"{verb} needs an ID, a filter or --all; see jobcore {verb} --help")
    return None


def for_each(ids: Iterable[UUID | str], step: Callable[[UUID | str], T]) -> tuple[list[T], int]:
    """
    Call `step` with each id, print the errors, and return the results and the number of errors.

    Several calls run at once. If one fails, the others are still made.
    """

    def attempt(job_id: UUID | str) -> Any:
        try:
            return step(job_id)
        except (JobcoreError, OSError) as error:
            return error

    every = list(ids)
    if len(every) == 1:
        return [step(every[0])], 0
    done: list[T] = []
    failed = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for answer in pool.map(attempt, every):
            if isinstance(answer, Exception):
                output.say_error(answer)
                failed += 1
            else:
                done.append(answer)
    return done, failed
