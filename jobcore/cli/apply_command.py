"""The command that makes the pipelines of a workspace equal to files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobcore.cli import output
from jobcore.cli.app import AsJson, app
from jobcore.cli.workspace_commands import InWorkspace, find_workspace
from jobcore.errors import CommandError, PipelineFileError

if TYPE_CHECKING:
    from jobcore.models import Change


@app.command()
def apply(
    ctx: typer.Context,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE...]", help="Files in YAML or JSON."),
    ] = None,
    *,
    workspace: InWorkspace = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; print what would be changed.")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Delete pipelines that the files do not have, with their jobs."
        ),
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a file, for editors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """
    Make the pipelines of a workspace equal to a file.

    Creates what is missing, and changes what differs: all of it or nothing. Fields in
    a pipe: action, pipeline, field, value before, value after. The value of a
    variable is shown as ***.

    \b
    Examples:
      jobcore apply pipelines.yml --dry-run
      jobcore apply pipelines.yml --prune
      jobcore apply --schema > pipelines.schema.json
    """  # noqa: D301
    from jobcore import pipeline_file, pipeline_source  # noqa: PLC0415 - not needed for --help

    if schema:
        output.print_lines([json.dumps(pipeline_file.json_schema(), indent=2)])
        return
    if not files:
        raise CommandError("apply needs a file of pipelines: jobcore apply pipelines.yml")
    sources = [pipeline_source.read(path) for path in files]
    with ctx.obj.open(slots=0) as jobs:
        place = None if workspace is None else find_workspace(jobs, workspace).id
        try:
            changes = jobs.apply(
                pipeline_source.merged(sources), workspace_id=place, prune=prune, dry_run=dry_run
            )
        except PipelineFileError as error:
            for line in pipeline_source.problem_lines(error, sources):
                output.say(line)
            raise typer.Exit(2) from None
    if as_json:
        output.print_json(changes)
        return
    titles = ("ACTION", "PIPELINE", "FIELD", "BEFORE", "AFTER")
    output.print_rows(titles, _rows(changes), cut={"PIPELINE": 16, "BEFORE": 12})
    if output.on_terminal():
        output.say(_summary(changes, dry_run=dry_run))


def _rows(changes: Iterable[Change]) -> Iterator[tuple[Any, ...]]:
    for one in changes:
        for field, (before, after) in one.fields.items() or [(None, (None, None))]:
            yield one.action, one.name, field, _short(before), _short(after)


def _short(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _summary(changes: list[Change], *, dry_run: bool) -> str:
    if not changes:
        return "the pipelines are as described; nothing changes"
    counts = dict.fromkeys(("create", "update", "delete"), 0)
    for one in changes:
        counts[one.action] += 1
    words = ", ".join(f"{count} to {action}" for action, count in counts.items() if count)
    return f"{words}; nothing was changed" if dry_run else words.replace(" to ", " ") + "d"
