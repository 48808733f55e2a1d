"""The command-line application: errors, common options, and what its commands share."""

from __future__ import annotations

import difflib
import functools
import gc
import inspect
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints
from uuid import UUID

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command_from_info, get_group_from_info

from jobcore import __version__
from jobcore.cli import commands, output
from jobcore.errors import JobcoreError, StoreError, WaitTimeout

if TYPE_CHECKING:
    from jobcore.manager import JobManager

#: Errors of files that the user has named; they are shown without an errno.
_FILE_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
#: The framework's class for usage errors. By version, it is click's or typer's own copy of it.
_UsageError: Any = typer.BadParameter.__mro__[1]
#: For help texts: the possible statuses.
STATUSES = "QUEUED, RUNNING, COMPLETE, ERROR or STOPPED, in any case; may be given again"
#: Exit codes besides the job's own, 1 for errors and 2 for wrong use. They are the same as
#: those of `timeout` and of shells.
TIMED_OUT, INTERRUPTED, UNREAD = 124, 130, 141


class PlainHelp(TyperCommand):
    """A command whose help shows names, placeholders and meanings, and no types or ranges."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words after the command's name in the usage line."""
        arguments = (one for one in self.get_params(ctx) if one.param_type_name == "argument")
        return ["[OPTIONS]", *(one.metavar or "" for one in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a line for each argument and option."""
        _write_options(self, ctx, formatter)


class _CommandGroup(TyperGroup):
    """
    Turns every error of a command into one line and an exit code.

    Loads the module of a command when the command is used.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, loaded or not."""
        del ctx
        return list(commands.MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name, or None if there is none; load its module if needed."""
        if cmd_name in commands.MODULES and cmd_name not in self.commands:
            commands.load(cmd_name)
            self.commands[cmd_name] = _registered(cmd_name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that these words call; the error for an unknown one has a hint."""
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            near = difflib.get_close_matches(args[0], commands.MODULES)
            if near and "Did you mean" not in error.message:
                names = " or ".join(map(repr, near))
                error.message = f"{error.message.rstrip('.')}. Did you mean {names}?"
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a line for each option and for each command."""
        _write_options(self, ctx, formatter)
        for title, section in commands.SECTIONS.items():
            rows = [(name, about.rstrip(".")) for name, (_, about) in section.items()]
            with formatter.section(title):
                formatter.write_dl(rows)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words before the command."""
        given = bool(args)
        try:
            _print_help(self, ctx, args)
            return super().parse_args(ctx, args)
        except _UsageError as error:
            if not given:
                raise  # without arguments, the error prints the help
            output.say(_misused(error, ctx))
            raise typer.Exit(2) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            output.say(_misused(error, ctx))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            output.discard_stdout()
            raise typer.Exit(UNREAD) from None
        except OSError as error:
            # WaitTimeout is a TimeoutError, and so an OSError, too.
            named = type(error) in _FILE_ERRORS and error.filename is not None
            output.say(f"{error.filename}: {error.strerror}" if named else str(error))
            if isinstance(error, WaitTimeout):
                raise typer.Exit(TIMED_OUT) from None
            output.discard_stdout()
            raise typer.Exit(1) from None
        except UnicodeEncodeError as error:
            output.say(_not_encoded(error))
            raise typer.Exit(2) from None
        except JobcoreError as error:
            output.say_error(error)
            # Those that are ValueErrors say that an argument is wrong.
            raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None
        except ValueError as error:  # an impossible argument, such as `--db ""`
            output.say(str(error))
            raise typer.Exit(2) from None


class _SubcommandGroup(TyperGroup):
    """A command with subcommands, whose help is as plain as that of the others."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words before the subcommand."""
        _print_help(self, ctx, args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a line for each option and for each command."""
        _write_options(self, ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, (command.help or "").partition("\n")[0].rstrip("."))
                    for name, command in self.commands.items()
                ]
            )


def _print_help(group: Any, ctx: Any, args: list[str]) -> None:
    """
    Print the help of a command and exit, if these words ask for nothing else.

    Otherwise the framework first checks the options before the command, and some versions of it
    import pydantic for that, which takes longer than all the rest.
    """
    if len(args) < 2 or args[-1] not in ctx.help_option_names:
        return
    command = group.get_command(ctx, args[0])
    # After other words, `--help` may belong to the command that a job runs.
    if command is not None and (len(args) == 2 or hasattr(command, "list_commands")):
        command.make_context(args[0], args[1:], parent=ctx)


def _registered(name: str) -> Any:
    """Return the command or group of this name that a loaded module has registered."""
    settings: Any = {"pretty_exceptions_short": True, "rich_markup_mode": None}
    for command in app.registered_commands:
        if command.name == name or (command.callback and command.callback.__name__ == name):
            return get_command_from_info(command, **settings)
    (group,) = (one for one in app.registered_groups if one.name == name)
    return get_group_from_info(group, suggest_commands=True, **settings)


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    lines: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
    for one in command.get_params(ctx):
        name = ", ".join(sorted(one.opts, key=len)) if one.param_type_name == "option" else ""
        placeholder = "" if getattr(one, "is_flag", False) else one.metavar or ""
        lines[one.param_type_name].append((f"{name} {placeholder}".strip(), one.help or ""))
    for title, records in (("Arguments", lines["argument"]), ("Options", lines["option"])):
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def _misused(error: Any, ctx: Any) -> str:
    """Return the text of a usage error in one line."""
    # Some versions of the framework mention an environment variable that does not exist.
    message = error.format_message().replace(" (env var: 'None')", "")
    message = message.replace("Value error, ", "")  # some put that before an Enum's words
    words = " ".join(message.split()).rstrip(".")
    return f"{words}; see {(error.ctx or ctx).command_path} --help"


def _not_encoded(error: UnicodeEncodeError) -> str:
    """Return the error text for an argument or path that cannot be encoded."""
    if error.encoding.replace("-", "").lower() == "utf8":
        return "an argument is not UTF-8 text"
    return (
        f"an argument or path cannot be encoded as {error.encoding}: set a UTF-8 locale, such as "
        "LC_ALL=C.UTF-8"
    )


class _App(typer.Typer):
    """An application whose commands accept the program's options, too, and have plain help."""

    def command(  # type: ignore[override]  # callers do not choose the class
        self, name: str | None = None, **settings: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that registers a function as a command."""
        register = super().command(name, **{"cls": PlainHelp, **settings})

        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            register(_with_program_options(function))
            return function

        return add


def _with_program_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that also accepts the options of `options`, which override earlier ones."""

    @functools.wraps(function)
    def verb(
        ctx: typer.Context,
        *args: Any,
        db: str | None,
        trust_directory: bool,
        utc: bool,
        **named: Any,
    ) -> Any:
        if db is not None:
            ctx.obj = ctx.obj._replace(path=db)
        if trust_directory:
            ctx.obj = ctx.obj._replace(trust_directory=True)
        if utc:
            output.show_utc(True)
        return function(ctx, *args, **named)

    signature = inspect.signature(function, eval_str=True)
    of_program = [
        _option("db", None, _Db),
        _option("trust_directory", False, _Trust),
        _option("utc", False, _Utc),
    ]
    _show_parameters(verb, [*signature.parameters.values(), *of_program])
    return verb


def takes(kind: type, *names: str, into: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Return a decorator that gives a command the options that are the fields of a dataclass.

    They stand in the place of the command's parameter `into`, which gets an instance.

    Args:
        kind: The dataclass. Each field has its option as its annotation.
        names: The fields, in the order of the help. Names of other parameters of the command
            may stand among them; the class then has no such field, or it keeps its default.
        into: The name of the parameter.
    """
    hints = get_type_hints(kind, include_extras=True)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function, eval_str=True).parameters
        fields = [name for name in names if name not in own]

        @functools.wraps(function)
        def command(*args: Any, **given: Any) -> Any:
            chosen = kind(**{name: given.pop(name) for name in fields})
            return function(*args, **{into: chosen}, **given)

        placed = [
            own[name] if name in own else _option(name, getattr(kind, name), hints[name])
            for name in names
        ]
        parameters: list[inspect.Parameter] = []
        for one in own.values():
            parameters += placed if one.name == into else [one] if one.name not in names else []
        _show_parameters(command, parameters)
        return command

    return decorate


def _option(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _show_parameters(function: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> None:
    """Let the framework see these parameters in place of those that a wrapper has."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {one.name: one.annotation for one in parameters}


app = _App(
    cls=_CommandGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help and usage errors are plain text, on a terminal and in a pipe
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command_group(name: str, about: str) -> _App:
    """
    Return a command with subcommands, which its module registers with it.

    Args:
        name: Its name.
        about: The text of its help.
    """
    group = _App(
        cls=_SubcommandGroup,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def options(ctx: typer.Context) -> None:
        del ctx  # it has only the options of the program

    group.callback()(_with_program_options(options))
    app.add_typer(group, name=name, help=inspect.cleandoc(about))
    return group


JobId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="The job's number, name or ID, or as many of its first digits as are unique.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Db = Annotated[
    str | None,
    typer.Option("--db", metavar="FILE", help="The database. [$JOBCORE_DB, else jobs.db]"),
]
_Trust = Annotated[
    bool,
    typer.Option(
        "--trust-directory",
        help="Use a database in a directory where other users can create files.",
    ),
]
_Utc = Annotated[bool, typer.Option("--utc", help="Show times on a terminal in UTC. [local time]")]


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    import sqlite3  # noqa: PLC0415 - it may be missing, which other code reports

    python = platform.python_version()
    output.print_lines(
        [f"jobcore {__version__} (Python {python}, SQLite {sqlite3.sqlite_version})"]
    )
    raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    *,
    db: _Db = None,
    trust_directory: _Trust = False,
    utc: _Utc = False,
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """
    Run commands as jobs whose status, exit code and log lines stay true.

    A terminal gets tables and colours. A pipe or file gets tab-separated fields,
    with - for an empty one. An error is one line on stderr, with exit code 1, or
    2 for wrong use.

    \b
    Examples:
      jobcore run -- make test
      jobcore list --status ERROR
      jobcore logs -f 3f2a
    """  # noqa: D301 - \b is click's mark for lines that stay as they are
    chosen = os.environ.get("JOBCORE_DB") or "jobs.db" if db is None else db
    ctx.obj = Store(chosen, trust_directory)
    output.show_utc(utc)


class Store(NamedTuple):
    """The database of a command, stored as `ctx.obj`."""

    path: str
    trust_directory: bool

    def open(self, **options: Any) -> JobManager:
        """Return a manager for it, with these further options of `JobManager`."""
        from jobcore.manager import JobManager  # noqa: PLC0415 - not needed for --help

        # Searching all that was imported, the last time at the exit, takes a fifth of the CPU time
        # of a short command.
        gc.freeze()
        gc.enable()
        return JobManager(self.path, trust_directory=self.trust_directory, **options)


@contextmanager
def open_manager(ctx: typer.Context) -> Iterator[JobManager]:
    """Open a manager that runs no jobs and leaves a missing or empty file alone."""
    if not os.path.exists(ctx.obj.path):
        raise StoreError(
            f"there is no database {ctx.obj.path}: name another with --db, or create it with run, "
            "submit or work"
        )
    with ctx.obj.open(slots=0, create=False) as jobs:
        yield jobs


def full_id(jobs: JobManager, text: str, **options: Any) -> UUID | str:
    """Return the id of the job that `text` means; see `job_ids.full_id`."""
    from jobcore.cli import job_ids  # noqa: PLC0415 - not needed for --help

    return job_ids.full_id(jobs, text, **options)
