"""Which jobs a command means: ids, or filters, or all."""

from __future__ import annotations

import functools
import heapq
import inspect
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID

import typer

from jobcore.cli import output
from jobcore.cli.app import STATUSES, full_id, show_parameters
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
#: The options for filters, by field of `Filter`.
_OPTIONS: dict[str, Any] = {
    "status": Annotated[
        list[Status] | None,
        typer.Option(case_sensitive=False, metavar="STATUS", help=f"Only {STATUSES}."),
    ],
    "failed": Annotated[
        bool,
        typer.Option("--failed", help="Only jobs that ended ERROR, or STOPPED by their time-out."),
    ],
    "kinds": Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TEXT", help="Only jobs of this type; may be given again."),
    ],
    "name": Annotated[
        str | None,
        typer.Option(
            parser=stored_text,
            metavar="GLOB",
            help="Only jobs whose name matches, such as 'load *'.",
        ),
    ],
    "group": Annotated[
        str | None,
        typer.Option(parser=stored_text, metavar="NAME", help="Only jobs of this group."),
    ],
    "key": Annotated[
        str | None,
        typer.Option(parser=stored_text, metavar="TEXT", help="Only jobs with this key."),
    ],
    "workspace": Annotated[
        str | None,
        typer.Option(
            parser=stored_text, metavar="NAME", help="Only jobs of the workspace of this name."
        ),
    ],
    "pipeline": Annotated[
        str | None,
        typer.Option(
            parser=stored_text, metavar="NAME", help="Only jobs of the pipeline of this name."
        ),
    ],
    "since": Annotated[
        datetime | None,
        typer.Option(
            parser=past,
            metavar="WHEN",
            help="Only jobs created since then: 2h, 18:30, or '2026-12-01 18:30'.",
        ),
    ],
    "until": Annotated[
        datetime | None,
        typer.Option(parser=past, metavar="WHEN", help="Only jobs created before then."),
    ],
    "ended_since": Annotated[
        datetime | None,
        typer.Option(parser=past, metavar="WHEN", help="Only jobs that have ended since then."),
    ],
    "ended_until": Annotated[
        datetime | None,
        typer.Option(parser=past, metavar="WHEN", help="Only jobs that had ended before then."),
    ],
    "reasons": Annotated[
        list[Reason] | None,
        typer.Option(
            "--reason", metavar="WORD", help="Only jobs with this reason, such as timeout or lost."
        ),
    ],
    "exit_codes": Annotated[
        list[int] | None,
        typer.Option(
            "--exit-code", parser=integer, metavar="N", help="Only jobs with this exit code."
        ),
    ],
}
#: The filters by owner and name.
BY_NAME = ("kinds", "name", "group", "key", "workspace", "pipeline")
#: The filters that jobs of any status can pass.
OF_ANY = (*BY_NAME, "since", "until")
#: The filters that only ended jobs can pass.
OF_ENDED = ("ended_since", "ended_until", "reasons", "exit_codes")


@dataclass(frozen=True)
class Filter:
    """The filters of a command; the default lets every job pass."""

    status: list[Status] | None = None
    kinds: list[str] | None = None
    name: str | None = None
    group: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    failed: bool = False
    key: str | None = None
    reasons: list[Reason] | None = None
    exit_codes: list[int] | None = None
    ended_since: datetime | None = None
    ended_until: datetime | None = None
    workspace: str | None = None
    pipeline: str | None = None
    order: str | None = None

    @property
    def given(self) -> bool:
        """Whether any filter was given."""
        return self != Filter()

    def arguments(self, jobs: JobManager) -> dict[str, Any]:
        """Return the arguments of `list_jobs` for all filters but `failed`."""
        return {
            "status": self.status,
            "type": self.kinds,
            "name": self.name,
            "group": self.group,
            "created_since": self.since,
            "created_until": self.until,
            "key": self.key,
            "reason": self.reasons,
            "exit_code": self.exit_codes,
            "ended_since": self.ended_since,
            "ended_until": self.ended_until,
            **self._place(jobs),
        }

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
        if self.reasons is not None or self.order is not None:
            raise CommandError("--failed cannot be combined with --reason or --order")
        return [{**given, "status": Status.ERROR}, {**given, "reason": Reason.TIMEOUT}]


def filters(*fields: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Return a decorator that gives a command the options for these fields of `Filter`.

    They stand in the place of the command's parameter `wanted`, which gets the filter.
    """
    options = [
        inspect.Parameter(
            field,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(Filter, field),
            annotation=_OPTIONS[field],
        )
        for field in fields
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(*args: Any, **given: Any) -> Any:
            wanted = Filter(**{field: given.pop(field) for field in fields})
            return function(*args, wanted=wanted, **given)

        parameters: list[inspect.Parameter] = []
        for one in inspect.signature(function, eval_str=True).parameters.values():
            parameters += options if one.name == "wanted" else [one]
        show_parameters(command, parameters)
        return command

    return decorate


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
