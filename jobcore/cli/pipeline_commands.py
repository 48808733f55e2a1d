"""Commands for pipelines and their schedules."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobcore.cli import command_options, foreground, output, values
from jobcore.cli.app import AsJson, app, command_group, open_manager, takes
from jobcore.cli.command_options import Surroundings
from jobcore.cli.log_printer import LogPrinter
from jobcore.cli.values import count_from_1, stored_text, time_limit
from jobcore.cli.workspace_commands import InWorkspace, OfWorkspace, find_workspace
from jobcore.command import CommandView
from jobcore.errors import CommandError
from jobcore.hooks import HOOK_STATUSES

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.models import Pipeline


#: The number of pipelines that are read at once.
PAGE = 1000

PipelineName = Annotated[
    str,
    typer.Argument(
        parser=stored_text, metavar="NAME", help="The pipeline's name, in any case, or its ID."
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- COMMAND]", help="The program and its arguments."),
]


@dataclass(frozen=True)
class PipelineOptions(Surroundings):
    """The options of `pipeline create` and `pipeline set` for what a pipeline runs, and when."""

    script: Annotated[
        str | None,
        typer.Option(
            parser=stored_text,
            metavar="TEXT",
            help="What it runs with /bin/sh -c, in place of a command.",
        ),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            parser=stored_text,
            metavar="CRON",
            help="When it runs: five fields, or six with seconds first; or @daily.",
        ),
    ] = None
    time_zone: Annotated[
        str | None,
        typer.Option(
            metavar="ZONE", help="Time zone of the schedule, such as Europe/Berlin. [UTC]"
        ),
    ] = None
    catch_up: Annotated[
        str | None,
        typer.Option(metavar="WHICH", help="Late ticks that run: skip, last or all. [skip]"),
    ] = None
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", metavar="TIME", help="Stop its jobs after this time. [no limit]"),
    ] = None
    retries: Annotated[
        int | None,
        typer.Option(
            parser=values.retries, metavar="N", help="How often a failed job is tried again. [0]"
        ),
    ] = None
    after: Annotated[
        list[str] | None,
        typer.Option(
            parser=stored_text,
            metavar="NAME",
            help="Run it after each run of this pipeline that is COMPLETE; may be given again.",
        ),
    ] = None
    requires: Annotated[
        list[str] | None,
        typer.Option(
            parser=stored_text,
            metavar="NAME",
            help="Run it once after each of these pipelines has been COMPLETE; may be given again.",
        ),
    ] = None
    group: Annotated[
        str | None, typer.Option(parser=stored_text, metavar="NAME", help="The group of its jobs.")
    ] = None
    on_complete: Annotated[
        list[str] | None,
        typer.Option(metavar="SCRIPT", help="Run this with /bin/sh after a job that is COMPLETE."),
    ] = None
    on_error: Annotated[
        list[str] | None,
        typer.Option(metavar="SCRIPT", help="Run this with /bin/sh after a job that has failed."),
    ] = None
    on_stopped: Annotated[
        list[str] | None,
        typer.Option(metavar="SCRIPT", help="Run this with /bin/sh after a job that was stopped."),
    ] = None

    def fields(self) -> dict[str, Any]:
        """Return the fields that both commands take as they are given; None: not given."""
        return {
            "schedule": self.schedule,
            "time_zone": self.time_zone,
            "catch_up": self.catch_up,
            "timeout": self.timeout and time_limit(self.timeout),
            "max_retries": self.retries,
            "group": self.group,
        }


#: Gives a command these options.
_with_fields = takes(
    PipelineOptions,
    *("script", "schedule", "time_zone", "catch_up", "timeout", "retries", "after", "requires"),
    *("group", "on_complete", "on_error", "on_stopped", "cwd", "env", "env_file"),
    into="given",
)

#: The columns that are cut on a narrow terminal, with their least widths.
_CUT = {"NAME": 20, "PIPELINE": 20, "SCHEDULE": 12, "GROUP": 8, "AFTER": 12}

pipeline = command_group(
    "pipeline",
    """
    List, show, create, change and run pipelines.

    NAME is a pipeline's name, in any case, or its ID.

    \b
    Examples:
      jobcore pipeline create load --schedule @daily -- python load.py
      jobcore pipeline run load --follow
    """,
)


@pipeline.command("list")
def list_pipelines(
    ctx: typer.Context, *, workspace: OfWorkspace = None, as_json: AsJson = False
) -> None:
    """
    List pipelines, in the order of their names, each with its last run.

    Fields in a pipe: id, name, workspace, schedule, time zone, next run, paused
    since, group, sources, and of the last run its number, status, start and end.
    """
    with open_manager(ctx) as jobs:
        found = sorted(_pipelines(jobs, workspace), key=lambda one: one.name.casefold())
        output.note_damage(jobs.list_damaged_rows())
        if as_json:
            output.print_json(found)
            return
        last = [next(iter(jobs.list_jobs(pipeline_id=one.id, limit=1)), None) for one in found]
    if output.on_terminal():
        now = datetime.now(timezone.utc)
        zone = output.zone(now)
        titles = ("NAME", "SCHEDULE", f"NEXT {zone}", "LAST", f"ENDED {zone}", "GROUP", "AFTER")
        rows = [
            (
                one.name,
                one.schedule,
                "paused" if one.paused else _short_time(one.next_tick, now),
                job and job.status,
                job and _short_time(job.end_time, now),
                one.group,
                _after(one),
            )
            for one, job in zip(found, last, strict=True)
        ]
        # Empty columns would take the room of names.
        used = [column for column in range(7) if column < 4 or any(row[column] for row in rows)]
        output.print_rows(
            [titles[column] for column in used],
            [[row[column] for column in used] for row in rows],
            cut=_CUT,
            optional=(f"ENDED {zone}", "GROUP", "AFTER"),
        )
        return
    output.print_rows(
        (),
        (
            (
                *(one.id, one.name, one.workspace_id, one.schedule, one.time_zone, one.next_tick),
                *(one.paused, one.group, _after(one)),
                *((job.number, job.status, job.start_time, job.end_time) if job else [None] * 4),
            )
            for one, job in zip(found, last, strict=True)
        ),
    )


def _short_time(value: Any, now: datetime) -> Any:
    """Return a moment without its zone, and other values as they are."""
    return output.short_time(value, now) if isinstance(value, datetime) else value


def _after(one: Pipeline) -> str | None:
    """Return its sources: `+` joins those of which it needs all."""
    sources = [*(one.triggered_by or ()), *([" + ".join(one.requires)] if one.requires else [])]
    return ", ".join(sources) or None


@pipeline.command("show")
def show_pipeline(
    ctx: typer.Context,
    name: PipelineName,
    *,
    workspace: OfWorkspace = None,
    as_json: AsJson = False,
) -> None:
    """
    Show everything that is known about a pipeline.

    Of its environment, only the names of variables are shown.
    """
    with open_manager(ctx) as jobs:
        found = find_pipeline(jobs, name, workspace)
    if as_json:
        output.print_json(found)
        return
    facts = {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
        for key, value in found.model_dump(by_alias=True).items()
    }
    command = found.command
    if command is not None:
        if found.script is None:
            facts["command"] = str(CommandView.from_json(command.to_json()))
        facts |= {"cwd": command.cwd, "env": ", ".join(sorted(command.env)) or None}
    facts |= {
        f"on{hook[3:].title()}": "; ".join(
            str(CommandView.from_json(one.to_json())) for one in commands
        )
        for hook, commands in found.hooks.items()
    }
    if output.on_terminal():
        for key in ("timeout", "lateAfter"):
            if facts[key] is not None:
                facts[key] = output.span(float(facts[key]))
    output.print_facts(facts)


@pipeline.command("create")
@_with_fields
def create_pipeline(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(parser=stored_text, metavar="NAME", help="Its name.")],
    command: Words = None,
    *,
    given: PipelineOptions,
    workspace: InWorkspace = None,
    as_json: AsJson = False,
) -> None:
    """
    Create a pipeline, and print its ID.

    \b
    Examples:
      jobcore pipeline create load --schedule '30 4 * * 1-5' -- python load.py
      jobcore pipeline create report --after load --script 'python report.py > r'
    """  # noqa: D301
    if (given.script is None) == (not command):
        raise CommandError("a pipeline needs a command after --, or --script; give one of them")
    fields: dict[str, Any] = {
        **given.fields(),
        **command_options.hooks(given),
        "script": given.script,
        "max_retries": given.retries or 0,
        "triggered_by": given.after or (),
        "requires": given.requires or (),
        # The directory of a script is this one, too, as in apply.
        "cwd": os.path.abspath(given.cwd or os.curdir),
        "env": {**given.from_files, **given.variables},
    }
    with ctx.obj.open(slots=0) as jobs:
        place = None if workspace is None else find_workspace(jobs, workspace).id
        made = jobs.create_pipeline(name, command or None, workspace_id=place, **fields)
    output.print_json(made) if as_json else output.print_lines([str(made.id)])


@pipeline.command("set")
@_with_fields
def set_pipeline(
    ctx: typer.Context,
    name: PipelineName,
    command: Words = None,
    *,
    new_name: Annotated[
        str | None, typer.Option("--name", parser=stored_text, metavar="TEXT", help="A new name.")
    ] = None,
    given: PipelineOptions,
    workspace: OfWorkspace = None,
    as_json: AsJson = False,
) -> None:
    """
    Change a pipeline. What is not given stays; an empty text removes a value.

    Variables are added to those that it has. The change applies to jobs that start
    after it.

    \b
    Examples:
      jobcore pipeline set load --schedule @hourly --timeout 5m
      jobcore pipeline set load --schedule ''
      jobcore pipeline set load -- python load2.py
    """  # noqa: D301
    changes: dict[str, Any] = {
        **given.fields(),
        "name": new_name,
        "triggered_by": _given(given.after),
        "requires": _given(given.requires),
        "cwd": given.cwd and os.path.abspath(given.cwd),
    }
    changes = {field: value for field, value in changes.items() if value is not None}
    changes = {field: None if value == "" else value for field, value in changes.items()}
    for hook in HOOK_STATUSES:
        if texts := getattr(given, hook):
            changes[hook] = command_options.scripts(_given(texts))
    if command and given.script is not None:
        raise CommandError("a command and --script cannot be combined: give one of them")
    if command:
        changes |= {"command": command, "script": None}
    if given.script is not None:
        changes |= {"script": given.script, "command": None}
    with open_manager(ctx) as jobs:
        found = find_pipeline(jobs, name, workspace)
        if given.env or given.env_file:
            old = {} if found.command is None else dict(found.command.env)
            changes["env"] = {**old, **given.from_files, **given.variables}
        if not changes:
            raise CommandError("there is nothing to change: give an option or a command")
        changed = jobs.update_pipeline(found.id, **changes)
    if as_json:
        output.print_json(changed)


def _given(texts: list[str] | None) -> list[str] | None:
    """Return the texts of an option without empty ones; None: the option was not given."""
    return [one for one in texts if one] if texts else None


@pipeline.command("run")
@takes(Surroundings, "env", "env_file", into="given")
def run_pipeline(
    ctx: typer.Context,
    name: PipelineName,
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- ARGUMENTS]", help="Further words of its command; $1... of its script."
        ),
    ] = None,
    *,
    timeout: command_options.Timeout = None,
    given: Surroundings,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Print its log until it has ended; exit with its exit code."
        ),
    ] = False,
    workspace: OfWorkspace = None,
    as_json: AsJson = False,
) -> None:
    """
    Queue one run of a pipeline, and print the job's ID.

    `jobcore work` runs it. If it already runs, or waits to run, nothing is queued.

    \b
    Examples:
      jobcore pipeline run load --follow
      jobcore pipeline run load --env LEVEL=debug -- 2026-11-29
    """  # noqa: D301
    variables = given.from_files | given.variables
    with open_manager(ctx) as jobs:
        job = jobs.create_job(
            pipeline_id=find_pipeline(jobs, name, workspace).id,
            args=args or (),
            env=variables or None,
            timeout=timeout,
        )
        if follow:
            output.say(f"job {job.id}")
            job = foreground.watch(jobs, job.id, LogPrinter())
            raise typer.Exit(foreground.exit_code(job))
    output.print_json(job) if as_json else output.print_ids([job])


@pipeline.command("pause")
def pause_pipeline(
    ctx: typer.Context, name: PipelineName, *, workspace: OfWorkspace = None
) -> None:
    """
    Pause the schedule of a pipeline, until resume.

    It still runs on request and after its sources. Ticks of the pause do not run
    later.
    """
    with open_manager(ctx) as jobs:
        jobs.update_pipeline(find_pipeline(jobs, name, workspace).id, paused=True)


@pipeline.command("resume")
def resume_pipeline(
    ctx: typer.Context, name: PipelineName, *, workspace: OfWorkspace = None
) -> None:
    """Resume the schedule of a pipeline."""
    with open_manager(ctx) as jobs:
        jobs.update_pipeline(find_pipeline(jobs, name, workspace).id, paused=False)


@pipeline.command("delete")
def delete_pipeline(
    ctx: typer.Context, name: PipelineName, *, workspace: OfWorkspace = None
) -> None:
    """
    Remove a pipeline with its jobs, their logs and history.

    A running job is stopped first.
    """
    with open_manager(ctx) as jobs:
        jobs.delete_pipeline(find_pipeline(jobs, name, workspace).id)


@pipeline.command("skips")
def skips(
    ctx: typer.Context,
    name: PipelineName,
    *,
    limit: Annotated[
        int, typer.Option(parser=count_from_1, metavar="N", help="At most N entries. [100]")
    ] = 100,
    workspace: OfWorkspace = None,
    as_json: AsJson = False,
) -> None:
    """
    List the runs that were due but did not take place, newest first.

    Fields in a pipe: when the last one was due, how many, why, the job in the way.
    """
    with open_manager(ctx) as jobs:
        found = jobs.skips(find_pipeline(jobs, name, workspace).id, limit=limit)
    if as_json:
        output.print_json(found)
        return
    rows = ((one.due, one.count, one.why, one.job_id) for one in found)
    output.print_rows(("DUE", "RUNS", "WHY", "JOB"), rows)


@app.command()
def schedule(
    ctx: typer.Context,
    *,
    limit: Annotated[
        int | None,
        typer.Option(parser=count_from_1, metavar="N", help="At most N pipelines. [all]"),
    ] = None,
    workspace: OfWorkspace = None,
    as_json: AsJson = False,
) -> None:
    """
    List what is due next, over all pipelines.

    Paused pipelines are left out. Fields in a pipe: when, pipeline, schedule, time
    zone, id.

    \b
    Examples:
      jobcore schedule
      jobcore schedule --limit 5 --json
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        due = [(one.next_tick, one) for one in _pipelines(jobs, workspace) if one.next_tick]
    found = [one for _, one in sorted(due, key=lambda pair: (pair[0], pair[1].name))][:limit]
    if as_json:
        output.print_json(found)
        return
    rows = (
        (one.next_tick, one.name, one.schedule, one.time_zone or "UTC", one.id) for one in found
    )
    if output.on_terminal():  # without the ID, for which a narrow one has no room
        now = datetime.now(timezone.utc)
        output.print_rows(
            (f"NEXT {output.zone(now)}", "PIPELINE", "SCHEDULE", "ZONE"),
            ((_short_time(moment, now), *others[:3]) for moment, *others in rows),
            cut=_CUT | {"ZONE": 10},
        )
    else:
        output.print_rows((), rows)


def _pipelines(jobs: JobManager, workspace: str | None) -> Iterator[Pipeline]:
    """Yield all pipelines, or those of a workspace, reading a page at a time."""
    place = None if workspace is None else find_workspace(jobs, workspace).id
    last: Pipeline | None = None
    while page := jobs.list_pipelines(workspace_id=place, limit=PAGE, after=last):
        yield from page
        last = page[-1]


def find_pipeline(jobs: JobManager, name: str, workspace: str | None) -> Pipeline:
    """Return the pipeline with this name or id."""
    folded = name.casefold()
    every = list(_pipelines(jobs, workspace))
    found = [one for one in every if folded in (one.name.casefold(), str(one.id))]
    if not found:
        near = difflib.get_close_matches(folded, [one.name.casefold() for one in every], 1)
        hint = f"did you mean {near[0]!r}?" if near else "see jobcore pipeline list"
        raise CommandError(f"no pipeline has the name or ID {name!r}; {hint}")
    if len(found) > 1:
        raise CommandError(
            f"{len(found)} workspaces have a pipeline {name!r}: give --workspace, or its ID"
        )
    return found[0]
