"""The command that prints the guides that come with the package."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Annotated

import typer

from jobcore.cli import output
from jobcore.cli.app import app
from jobcore.errors import CommandError


@app.command()
def docs(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The guide; without it, list all guides.")
    ] = None,
) -> None:
    """
    Print a guide in Markdown, or list all guides.

    \b
    Examples:
      jobcore docs
      jobcore docs operating | less
    """  # noqa: D301
    del ctx
    folder = files("jobcore") / "docs"
    guides = {one.name[:-3]: one for one in folder.iterdir() if one.name.endswith(".md")}
    if name is None:
        output.print_lines(sorted(guides))
        return
    if name not in guides:
        raise CommandError(f"there is no guide {name!r}: choose one of {', '.join(sorted(guides))}")
    text = guides[name].read_text("utf-8")
    # Remove the marks around examples, which only the tests need.
    output.print_lines(re.sub(r"<!-- .*? -->\n", "", text).splitlines())
