"""Commands that maintain and examine a database file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from jobcore.cli import foreground, output, selection
from jobcore.cli.app import AsJson, app, full_id, open_manager
from jobcore.cli.output import size, span
from jobcore.cli.selection import Filter
from jobcore.cli.values import age, count
from jobcore.errors import CommandError
from jobcore.lifecycle import FINAL, Status

if TYPE_CHECKING:
    from jobcore.models import Statistics

FinalStatus = Annotated[
    list[Status] | None,
    typer.Option(
        "--status",
        case_sensitive=False,
        metavar="STATUS",
        help="Only COMPLETE, ERROR or STOPPED, in any case; may be given again. [all three]",
    ),
]


@app.command()
@selection.filters(*selection.OF_ANY, "reason", "exit_code")
def prune(
    ctx: typer.Context,
    *,
    older_than: Annotated[
        float,
        typer.Option(
            parser=age,
            metavar="AGE",
            help="Only jobs that ended at least this long ago: 90s, 15m, 12h, 30d.",
        ),
    ],
    status: FinalStatus = None,
    wanted: Filter,
    keep: Annotated[
        int | None,
        typer.Option(parser=count, metavar="N", help="Keep the newest N of them, however old."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Remove nothing; list the jobs that would be removed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """
    Remove old jobs with their logs and history.

    Queued and running jobs are never removed. Prints how many were removed; a dry
    run prints the jobs as list does, oldest first.

    \b
    Examples:
      jobcore prune --older-than 30d
      jobcore prune --older-than 30d --status ERROR --dry-run
      jobcore prune --older-than 0 --keep 1000
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        given = {**wanted.arguments(jobs), "status": status or FINAL}
        if dry_run:
            found = jobs.prune(older_than, keep=keep, dry_run=True, **given)
            output.note_damage(jobs.list_damaged_rows())
            if as_json:
                output.print_json(found)
            elif output.on_terminal():
                from jobcore.cli import list_and_watch  # noqa: PLC0415 - only for its table

                list_and_watch.print_table(jobs, found)
            else:
                output.print_jobs(found)
        else:
            count = jobs.prune(older_than, keep=keep, **given)
            output.print_lines([json.dumps({"pruned": count}) if as_json else str(count)])


@app.command()
def retention(
    ctx: typer.Context,
    *,
    keep: Annotated[
        float | None,
        typer.Option(
            parser=age, metavar="AGE", help="Keep jobs this long after their end: 12h, 30d."
        ),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "--count", parser=count, metavar="N", help="Keep the newest N of them, however old."
        ),
    ] = None,
    status: FinalStatus = None,
    off: Annotated[bool, typer.Option("--off", help="Keep them for ever.")] = False,
    as_json: AsJson = False,
) -> None:
    """
    Set how long ended jobs are kept; without options, show it.

    Each process that runs the queue removes the others, about once a minute. A rule
    replaces earlier ones for the same statuses. Fields in a pipe: statuses, seconds, count.

    \b
    Examples:
      jobcore retention --keep 30d
      jobcore retention --keep 90d --status ERROR --count 100
      jobcore retention --off
    """  # noqa: D301
    if off and (keep is not None or number is not None):
        raise CommandError("--off cannot be combined with --keep or --count")
    is_change = off or keep is not None or number is not None
    with ctx.obj.open(slots=0) if is_change else open_manager(ctx) as jobs:
        if is_change:
            rules = jobs.set_retention(keep, statuses=status or None, count=number)
        elif status:
            raise CommandError("--status needs --keep, --count or --off")
        else:
            rules = jobs.retention()
    if as_json:
        output.print_json(rules)
        return
    on_terminal = output.on_terminal()
    shown = output.span if on_terminal else float  # a pipe gets seconds
    rows = [(", ".join(one.statuses), shown(one.keep), one.count) for one in rules]
    output.print_rows(("STATUSES", "KEEP", "COUNT"), rows)
    if not rows and on_terminal:
        output.say("all jobs are kept")


@app.command()
def backup(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write.")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """
    Copy the database while it is in use, and say what is in the copy.

    Writes FILE and the directory FILE.jobs, which belongs to it. Fields in a pipe:
    file, bytes, pipelines, then queued, running, complete, failed and stopped jobs.

    \b
    Examples:
      jobcore backup monday.db
      jobcore backup --force /backups/jobs.db
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        found = jobs.backup(file, replace=force)
    if as_json:
        output.print_json(found)
        return
    titles = ("FILE", "BYTES", "PIPELINES", *found.jobs)
    output.print_rows(titles, [(found.path, found.size, found.pipelines, *found.jobs.values())])
    if found.jobs[Status.RUNNING]:
        output.say(
            f"{found.jobs[Status.RUNNING]} jobs are running; where the backup is restored, they "
            "end as lost"
        )


@app.command()
@selection.filters(*selection.OF_ANY, *selection.OF_ENDED)
def export(
    ctx: typer.Context,
    job_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="The jobs. [all that match]")
    ] = None,
    *,
    status: FinalStatus = None,
    wanted: Filter,
    commands: Annotated[
        bool,
        typer.Option(
            "--commands", help="With commands and the values of their environments, for retries."
        ),
    ] = False,
) -> None:
    """
    Print jobs with their logs as lines of JSON, oldest first.

    import reads the lines. Without --commands, they contain no value of an
    environment, and an imported job cannot be retried.

    \b
    Examples:
      jobcore export > jobs.ndjson
      jobcore export --status ERROR | jq -r 'select(.log) | .log.text'
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        found: Sequence[UUID | str]
        if job_ids:
            if status or wanted.given:
                raise CommandError("export takes IDs or filters, not both")
            found = [full_id(jobs, one) for one in job_ids]
        else:
            ended = replace(wanted, status=status or sorted(FINAL))
            found = [job.id for job in selection.listed(jobs, ended)][::-1]
        output.note_damage(jobs.list_damaged_rows())
        output.print_lines(jobs.export_jobs(found, with_commands=commands))


@app.command("import")
def import_(
    ctx: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="What export printed; - reads standard input.")
    ],
    *,
    with_pickles: Annotated[
        bool,
        typer.Option("--pickles", help="Also store pickled results; reading one can run any code."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """
    Create the ended jobs of an export, with logs and results. Nothing is run.

    Jobs that the database has are left alone, so it can be repeated. Jobs that have
    not ended are left out. Fields in a pipe: created, existing, left out.

    \b
    Example:
      jobcore import jobs.ndjson
    """  # noqa: D301
    with ctx.obj.open(slots=0) as jobs:
        if file == "-":
            found = jobs.import_jobs(sys.stdin.buffer, with_pickles=with_pickles)
        else:
            with open(file, "rb") as lines:
                found = jobs.import_jobs(lines, with_pickles=with_pickles)
    if as_json:
        output.print_json(found)
    else:
        row = (found.created, found.existing, found.skipped)
        output.print_rows(("CREATED", "EXISTING", "LEFT OUT"), [row])


@app.command()
def stats(
    ctx: typer.Context,
    *,
    window: Annotated[
        float,
        typer.Option(
            parser=age, metavar="AGE", help="The span for jobs that ended: 15m, 12h, 7d. [1d]"
        ),
    ] = 86_400.0,
    as_prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print text for a collector of Prometheus.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """
    Print numbers about the file: jobs, the queue, what ended lately, and sizes.

    Fields in a pipe: name, value. Times are in seconds, sizes in bytes.

    \b
    Examples:
      jobcore stats --window 1h
      jobcore stats --prometheus > jobcore.prom
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        found = jobs.statistics(window)
    if as_json:
        output.print_json(found)
    elif as_prometheus:
        from jobcore.wire.metrics import prometheus  # noqa: PLC0415 - not needed for --help

        output.print_lines(prometheus(found).splitlines())
    elif output.on_terminal():
        output.print_facts(_for_people(found))
    else:
        output.print_rows(("WHAT", "VALUE"), _numbers(found))


def _for_people(found: Statistics) -> dict[str, Any]:
    """Return statistics in short, with the names of their quantiles."""
    numbers = dict(_numbers(found))
    return {
        "jobs": _counts(found.jobs),
        "queued for": None if found.queue_age is None else f"up to {span(found.queue_age)}",
        "running for": None if found.running_age is None else f"up to {span(found.running_age)}",
        "since": found.since,
        "ended": _counts(found.ended),
        "reasons": _counts(found.reasons),
        "ran": _quantiles(found.durations),
        "waited": _quantiles(found.waits),
        "per hour": f"{numbers['ended_per_hour'] or 0:g} ended",
        "created": f"{found.created} ever",
        "file": f"{size(found.file_size)}, {size(found.free_size)} of it free",
        "log": size(found.log_size),
    }


def _counts(of: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in of.items() if count) or "none"


def _quantiles(of: Mapping[str, float]) -> str | None:
    names = {"0.5": "median", "0.9": "90 % within", "0.99": "99 % within", "1": "longest"}
    return ", ".join(f"{names[key]} {span(value)}" for key, value in of.items()) or None


def _numbers(found: Statistics) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of statistics; each quantile and status is one of them."""
    for name, value in found:
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", _rounded(one)) for key, one in value.items())
        else:
            yield name, _rounded(value)
    seconds = (found.at - found.since).total_seconds()
    ended = sum(found.ended.values())
    yield "ended_per_hour", _rounded(ended * 3600 / seconds) if seconds else None


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


@app.command()
def doctor(
    ctx: typer.Context,
    *,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="First make the database usable; jobs that cannot be found end as lost.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """
    Examine the database and its directories. Changes nothing without --repair.

    Prints a line for each check: its subject, the verdict (ok, note or wrong),
    and what was found. The exit code is 1 if something is wrong. A note is something
    that the next manager corrects, or that is good to know. Reads the whole file.

    --repair makes a database usable again after its .jobs directory was removed,
    for example by git clean. Jobs that were running end as lost, but their commands
    may keep running. Retries no longer wait for processes of earlier attempts.

    \b
    Examples:
      jobcore doctor
      jobcore --db /srv/app/jobs.db doctor --repair
    """  # noqa: D301
    from jobcore.operations import doctor as examiner  # noqa: PLC0415 - not needed for --help

    if repair:
        with open_manager(ctx) as jobs:
            for job in jobs.repair():
                output.say(foreground.ending(job))
    findings = examiner.examine(ctx.obj.path, trust_directory=ctx.obj.trust_directory)
    output.print_json(findings) if as_json else output.print_findings(findings)
    if any(one.verdict == "wrong" for one in findings):
        raise typer.Exit(1)
