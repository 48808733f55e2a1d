"""Application: the command line as a whole: its errors, its options, and what its verbs share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import typer
from typer.core import TyperGroup

from jobcore import terminal
from jobcore.errors import CommandError, JobcoreError, StoreError, WaitTimeout
from jobcore.manager import JobManager

#: Jobs among which the short form of an id must be unique, and its least length.
RECENT, SHORTEST = 1000, 4
#: Exit codes beside the job's own, 1 for an error and 2 for a wrong use: those
#: that `timeout` and shells give.
TIMED_OUT, INTERRUPTED, UNREAD = 124, 130, 141


class _Verbs(TyperGroup):
    """Makes one line and an exit code of an error, for every verb."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            terminal.give_up_stdout()
            raise typer.Exit(UNREAD) from None
        except OSError as error:
            # WaitTimeout is an OSError, too: a TimeoutError.
            terminal.say(str(error))
            if isinstance(error, WaitTimeout):
                raise typer.Exit(TIMED_OUT) from None
            terminal.give_up_stdout()
            raise typer.Exit(1) from None
        except UnicodeEncodeError:
            terminal.say("an argument is no UTF-8 text")
            raise typer.Exit(2) from None
        except JobcoreError as error:
            terminal.say(str(error))
            raise typer.Exit(2 if isinstance(error, CommandError) else 1) from None
        except ValueError as error:  # an argument that no job can have, such as `--db ""`
            terminal.say(str(error))
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help and usage errors are plain text, on a terminal and in a pipe
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobId = Annotated[
    str, typer.Argument(metavar="ID", help="The job's id; of a recent job its first 4 digits do.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def options(
    ctx: typer.Context,
    db: Annotated[
        str, typer.Option(metavar="FILE", envvar="JOBCORE_DB", help="The database.")
    ] = "jobs.db",
    trust_directory: Annotated[
        bool,
        typer.Option(
            "--trust-directory",
            help="Use a database in a directory where other users can create files.",
        ),
    ] = False,
) -> None:
    """
    Run commands as jobs whose status, exit code and log lines stay true.

    Terminals get tables and colours; pipes and files get tab-separated fields,
    with - where there is nothing. Errors are a line on stderr and exit code 1,
    or 2 for a wrong use.

    \b
    Examples:
      jobcore run -- make test
      jobcore list --status ERROR
      jobcore logs -f 3f2a
    """  # noqa: D301 - \b is click's mark for lines that stay as they are
    ctx.obj = Store(db, trust_directory)


class Store(NamedTuple):
    """The database that a command is about, as `ctx.obj`."""

    path: str
    trust_directory: bool

    def open(self, **options: Any) -> JobManager:
        """Return a manager of it; the options are those of `JobManager`."""
        return JobManager(self.path, trust_directory=self.trust_directory, **options)


@contextmanager
def open_manager(ctx: typer.Context) -> Iterator[JobManager]:
    """Give a manager that runs nothing. It makes no database: there is nothing to see in one."""
    if not os.path.exists(ctx.obj.path):
        raise StoreError(f"there is no database {ctx.obj.path}: see --db; run and work make one")
    with ctx.obj.open(slots=0) as jobs:
        yield jobs


def full_id(jobs: JobManager, text: str) -> UUID | str:
    """Return the id of the recent job that begins so, else `text` itself."""
    digits = text.replace("-", "").lower()
    if not SHORTEST <= len(digits) < 32:
        return text
    found = [job.id for job in jobs.list_jobs(limit=RECENT) if job.id.hex.startswith(digits)]
    if len(found) > 1:
        raise CommandError(f"{len(found)} jobs have an id that begins with {text!r}")
    return found[0] if found else text
