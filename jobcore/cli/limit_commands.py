"""Commands that pause the queue and limit how many jobs run at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobcore.cli import output
from jobcore.cli.app import AsJson, app, open_manager
from jobcore.cli.values import count_from_1, stored_text
from jobcore.errors import CommandError

if TYPE_CHECKING:
    from jobcore.models import Limit

Group = Annotated[
    str | None,
    typer.Argument(
        metavar="[GROUP]", parser=stored_text, help="The group; without it, all jobs of the file."
    ),
]
OfType = Annotated[
    str | None,
    typer.Option("--type", metavar="TEXT", help="A job type, in the place of a group."),
]


@app.command()
def pause(
    ctx: typer.Context, group: Group = None, *, kind: OfType = None, as_json: AsJson = False
) -> None:
    """
    Start no more jobs of a group, of a type, or of the whole file, until resume.

    Running jobs keep running, and jobs can be submitted. The pause is stored in the
    database, and holds for all workers.

    \b
    Examples:
      jobcore pause
      jobcore pause load
    """  # noqa: D301
    _require_one(group, kind)
    with ctx.obj.open(slots=0) as jobs:
        _report(jobs.pause(group, kind), as_json=as_json)


@app.command()
def resume(
    ctx: typer.Context, group: Group = None, *, kind: OfType = None, as_json: AsJson = False
) -> None:
    """
    Let paused jobs start again.

    \b
    Examples:
      jobcore resume
      jobcore resume load
    """  # noqa: D301
    _require_one(group, kind)
    with open_manager(ctx) as jobs:
        _report(jobs.resume(group, kind), as_json=as_json)


@app.command()
def limit(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[GROUP] [N]",
            help="At most N jobs of the group run at once; none: any number.",
        ),
    ] = None,
    *,
    kind: OfType = None,
    whole: Annotated[
        bool, typer.Option("--file", help="All jobs of the file, in the place of a group.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """
    Limit how many jobs run at once, or list all limits and pauses.

    The limit is stored in the database, and holds over all workers. Running jobs
    keep running.

    Fields in a pipe: scope, name, slots, running, queued, paused since.

    \b
    Examples:
      jobcore limit
      jobcore limit gpu 1
      jobcore limit --file 8
      jobcore limit gpu none
    """  # noqa: D301
    given = list(words or [])
    if not given and kind is None and not whole:
        with open_manager(ctx) as jobs:
            limits = jobs.limits()
        output.print_json(limits) if as_json else output.print_limits(limits)
        return
    group = None if kind is not None or whole else stored_text(given.pop(0))
    if len(given) != 1 or (kind is not None and whole):
        raise CommandError("limit needs a group, --type or --file, and a number or none")
    try:
        slots = None if given[0] == "none" else count_from_1(given[0])
    except typer.BadParameter:
        raise CommandError(f"N must be an integer, 1 or more, or none, not {given[0]!r}") from None
    with ctx.obj.open(slots=0) as jobs:  # limits are often set before there are jobs
        _report(jobs.set_limit(group, slots, type=kind), as_json=as_json)


def _require_one(group: str | None, kind: str | None) -> None:
    if group is not None and kind is not None:
        raise CommandError("a group and --type cannot be combined: give one of them")


def _report(limit: Limit, *, as_json: bool) -> None:
    """Print the new limit, as JSON or on a terminal."""
    if as_json:
        output.print_json(limit)
    elif output.on_terminal():
        output.print_limits([limit])
