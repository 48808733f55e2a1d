"""What a word on the command line means: a job's number, its name, or the beginning of its id."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING
from uuid import UUID

import typer

from jobcore.cli.values import stored_text
from jobcore.errors import CommandError

if TYPE_CHECKING:
    from jobcore.lifecycle import Status
    from jobcore.manager import JobManager
    from jobcore.models import Job

#: Number of ids that are shown if a short form is ambiguous.
MOST_IDS = 5


def full_id(
    jobs: JobManager,
    text: str,
    *,
    among: Collection[Status] | None = None,
    unique: bool = False,
) -> UUID | str:
    """
    Return the id of the job that `text` means; `text` unchanged if it means none.

    Digits are a number if a job has it, else the beginning of an id; with a `#` before them they
    are a number. A name means the newest job of that name.

    Args:
        jobs: Finds them.
        text: The word.
        among: Of several jobs with this name, the newest one with one of these statuses is
            meant, if there is one.
        unique: Refuse a name that several jobs have.

    Raises:
        CommandError: Several jobs have an id that begins so, or, with `unique`, this name.
    """
    try:
        text = stored_text(text)
    except typer.BadParameter:
        return text  # no job has such a name
    if number := re.fullmatch(r"#?(\d{1,18})", text, re.ASCII):
        page = jobs.list_jobs(before=int(number[1]) + 1, limit=1)
        if page and page[0].number == int(number[1]):
            return page[0].id
    if text and len(text) < len(UUID(int=0).hex) and (named := _named(jobs, text, among)):
        if unique and len(named) > 1:
            numbers = ", ".join(f"#{job.number}" for job in named)
            raise CommandError(f"several jobs are called {text!r}, such as {numbers}: give one")
        return named[0].id
    try:
        found = [str(job.id) for job in jobs.find_jobs(text, limit=MOST_IDS + 1)]
    except ValueError:
        return text  # not an id, or an id in another form, such as {...}
    if len(found) > 1:
        shown = ", ".join(found[:MOST_IDS]) + (", ..." if len(found) > MOST_IDS else "")
        raise CommandError(f"several jobs have an id that begins with {text!r}: {shown}")
    return found[0] if found else text


def _named(jobs: JobManager, name: str, among: Collection[Status] | None) -> list[Job]:
    """Return the newest jobs of this name, those with a status in `among` if there are any."""
    try:
        pattern = re.sub(r"([*?\[])", r"[\1]", name)
        found = jobs.list_jobs(name=pattern, status=among, limit=MOST_IDS) if among else []
        return found or jobs.list_jobs(name=pattern, limit=MOST_IDS)
    except ValueError:
        return []  # no job can have such a name
