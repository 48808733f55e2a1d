"""What a word on the command line means: a job's number, its name, or the beginning of its id."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import UUID

from jobcore.errors import CommandError

if TYPE_CHECKING:
    from jobcore.manager import JobManager

#: Number of ids that are shown if a short form is ambiguous.
MOST_IDS = 5


def full_id(jobs: JobManager, text: str) -> UUID | str:
    """
    Return the id of the job that `text` means; `text` unchanged if it means none.

    Digits are a number if a job has it, else the beginning of an id; with a `#` before them they
    are a number.

    Raises:
        CommandError: Several jobs have an id that begins so.
    """
    if number := re.fullmatch(r"#?(\d{1,18})", text, re.ASCII):
        page = jobs.list_jobs(before=int(number[1]) + 1, limit=1)
        if page and page[0].number == int(number[1]):
            return page[0].id
    try:
        found = [str(job.id) for job in jobs.find_jobs(text, limit=MOST_IDS + 1)]
    except ValueError:
        return text  # not an id, or an id in another form, such as {...}
    if len(found) > 1:
        shown = ", ".join(found[:MOST_IDS]) + (", ..." if len(found) > MOST_IDS else "")
        raise CommandError(f"several jobs have an id that begins with {text!r}: {shown}")
    return found[0] if found else text
