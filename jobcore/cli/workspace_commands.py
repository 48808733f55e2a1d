"""Commands for workspaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobcore.cli import output
from jobcore.cli.app import AsJson, command_group, open_manager
from jobcore.cli.values import stored_text
from jobcore.errors import CommandError

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.models import Workspace

InWorkspace = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        parser=stored_text,
        metavar="NAME",
        help="Name or ID of the workspace. [default]",
    ),
]
OfWorkspace = Annotated[
    str | None,
    typer.Option(
        "--workspace", parser=stored_text, metavar="NAME", help="Only in this workspace. [all]"
    ),
]
WorkspaceName = Annotated[
    str, typer.Argument(parser=stored_text, metavar="NAME", help="The workspace's name, or its ID.")
]

workspace_group = command_group(
    "workspace",
    """
    List, create, rename and delete workspaces.

    NAME is a workspace's name or its ID.

    \b
    Examples:
      jobcore workspace create reports
      jobcore workspace list
    """,
)


@workspace_group.command("list")
def list_workspaces(ctx: typer.Context, *, as_json: AsJson = False) -> None:
    """
    List workspaces, in the order of their creation.

    Fields in a pipe: id, name, created, number of pipelines, number of jobs.
    """
    with open_manager(ctx) as jobs:
        found = jobs.list_workspaces()
        if as_json:
            output.print_json(found)
            return
        rows = [
            (
                *(one.id, one.name, one.created),
                len(jobs.list_pipelines(workspace_id=one.id)),
                sum(jobs.count_jobs(workspace_id=one.id).values()),
            )
            for one in found
        ]
    titles = ("ID", "NAME", "CREATED", "PIPELINES", "JOBS")
    output.print_rows(titles, rows, cut={"NAME": 12}, optional=("CREATED", "PIPELINES"))


@workspace_group.command("create")
def create_workspace(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(parser=stored_text, metavar="NAME", help="Its name.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Create a workspace, and print its ID."""
    with ctx.obj.open(slots=0) as jobs:
        made = jobs.create_workspace(name)
    output.print_json(made) if as_json else output.print_lines([str(made.id)])


@workspace_group.command("rename")
def rename_workspace(
    ctx: typer.Context,
    name: WorkspaceName,
    new_name: Annotated[str, typer.Argument(metavar="NEW-NAME", help="Its new name.")],
) -> None:
    """Rename a workspace."""
    with open_manager(ctx) as jobs:
        jobs.update_workspace(find_workspace(jobs, name).id, name=new_name)


@workspace_group.command("delete")
def delete_workspace(ctx: typer.Context, name: WorkspaceName) -> None:
    """
    Remove a workspace with its pipelines and jobs.

    Running jobs are stopped first.
    """
    with open_manager(ctx) as jobs:
        jobs.delete_workspace(find_workspace(jobs, name).id)


def find_workspace(jobs: JobManager, name: str) -> Workspace:
    """Return the workspace with this name or id."""
    found = [one for one in jobs.list_workspaces() if name in (one.name, str(one.id))]
    if not found:
        raise CommandError(f"no workspace has the name or ID {name!r}; see workspace list")
    if len(found) > 1:
        raise CommandError(
            f"{len(found)} workspaces have the name {name!r}: give the ID of one, such as "
            f"{found[0].id}"
        )
    return found[0]
