"""The options of `run` and `submit` that say what a job runs, and the command that they make."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import termios
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobcore.cli import output, values
from jobcore.cli.app import PlainHelp, full_id
from jobcore.cli.values import delay, stored_text, time_limit
from jobcore.command import MOST_BYTES, Command
from jobcore.errors import ArgumentError, CommandError
from jobcore.lifecycle import ACTIVE

if TYPE_CHECKING:
    from uuid import UUID

    from jobcore.manager import JobManager
    from jobcore.retries import Retries


class StopScope(str, Enum):
    """The processes that get the first signal of a stop."""

    MAIN = "main"
    GROUP = "group"


class RetryOn(str, Enum):
    """The endings after which a job is tried again."""

    ERROR = "error"
    TIMEOUT = "timeout"
    LOST = "lost"


class RunIf(str, Enum):
    """How the jobs of `--after` have to end."""

    COMPLETE = "complete"
    ENDED = "ended"
    FAILED = "failed"


class WithCommand(PlainHelp):
    """A command that ends with the words of another one; `--stdin` may have no value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; a `--stdin` without a value gets the value `-`."""
        flags = {name for one in self.params if getattr(one, "is_flag", False) for name in one.opts}
        args = list(args)
        place = 0
        # The command begins at the first word that is not an option.
        while place < len(args) and args[place] not in ("-", "--") and args[place][:1] == "-":
            value = args[place + 1] if place + 1 < len(args) else "--"
            if args[place] == "--stdin" and value != "-" and value[:1] == "-":
                args[place] = "--stdin=-"
            place += 1 if args[place] in flags or "=" in args[place] else 2
        return super().parse_args(ctx, args)


#: How such a command is registered: options come before the command only.
SETTINGS: dict[str, Any] = {
    "cls": WithCommand,
    "context_settings": {"allow_interspersed_args": False},
}


def _signal(text: str) -> str:
    """Return the name of a signal that a program can handle, checked."""
    try:
        # With a directory: the current one may have been removed, which is no error of the signal.
        Command(["true"], cwd="/", stop_signal=text)
    except CommandError as error:
        raise typer.BadParameter(str(error)) from None
    return text


Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[--] COMMAND", help="The program and its arguments."),
]
Each = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Run one job for each line of FILE; - reads standard input. The line replaces {} in "
        "COMMAND, or becomes its last word.",
    ),
]
Null = Annotated[
    bool, typer.Option("--null", "-0", help="The lines of --each end with NUL, not LF.")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        parser=time_limit, metavar="TIME", help="Stop the job after this time. [no limit]"
    ),
]
Grace = Annotated[
    float,
    typer.Option(
        parser=delay,
        metavar="TIME",
        help="Time from the first signal of a stop to SIGKILL. [10]",
    ),
]
StopSignal = Annotated[
    str,
    typer.Option(
        parser=_signal, metavar="NAME", help="First signal of a stop, such as SIGINT. [SIGTERM]"
    ),
]
Scope = Annotated[
    StopScope,
    typer.Option(
        metavar="SCOPE",
        help="Who gets that signal: main, the command's own process; or group, all "
        "processes of the job. [main]",
    ),
]
Linger = Annotated[
    float,
    typer.Option(
        parser=delay,
        metavar="TIME",
        help="Time from SIGTERM to SIGKILL for processes that the command leaves running. [2]",
    ),
]
Cwd = Annotated[
    str | None, typer.Option(metavar="DIRECTORY", help="Working directory. [the current one]")
]
Env = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Environment variable; may be given again."),
]
EnvFile = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="File with lines KEY=VALUE, read now; may be given again. --env comes after it.",
    ),
]
Name = Annotated[
    str | None, typer.Option(parser=stored_text, metavar="TEXT", help="Name of the job.")
]
Group = Annotated[
    str | None,
    typer.Option(parser=stored_text, metavar="NAME", help="Group whose limit the job counts for."),
]
After = Annotated[
    list[str] | None,
    typer.Option(metavar="ID", help="Start after this job is COMPLETE; may be given again."),
]
Condition = Annotated[
    RunIf,
    typer.Option(
        metavar="WORD",
        help="How all jobs of --after have to end: complete, failed, or ended (in any way). "
        "[complete]",
    ),
]
RetryCount = Annotated[
    int,
    typer.Option(
        parser=values.retries,
        metavar="N",
        help="If the job fails, try it again, up to N times. [0]",
    ),
]
RetryDelay = Annotated[
    Any,  # a number or several, a union of types that typer does not take
    typer.Option(
        parser=values.delays,
        metavar="TIME[,TIME...]",
        help="Pause before the first retry; each further one is twice as long, up to an hour. Or "
        "the pauses before each, such as 10,1m,5m. [10]",
    ),
]
RetryOns = Annotated[
    list[RetryOn] | None,
    typer.Option(
        metavar="WORD",
        help="Retry after error, timeout or lost; may be given again. [error and lost]",
    ),
]
StdoutTo = Annotated[
    str | None, typer.Option(metavar="FILE", help="Also write the command's stdout to FILE.")
]
Pty = Annotated[
    bool,
    typer.Option("--pty", help="Give the command a terminal, for programs that need one."),
]
OnComplete = Annotated[
    list[str] | None,
    typer.Option(metavar="SCRIPT", help="Run this with /bin/sh once the job is COMPLETE."),
]
OnError = Annotated[
    list[str] | None,
    typer.Option(metavar="SCRIPT", help="Run this with /bin/sh once the job has failed."),
]
OnStopped = Annotated[
    list[str] | None,
    typer.Option(metavar="SCRIPT", help="Run this with /bin/sh once the job was stopped."),
]
SeparateStreams = Annotated[
    bool,
    typer.Option(
        "--separate-streams",
        help="Print the command's stderr on stderr; its order relative to stdout is lost.",
    ),
]
Buffered = Annotated[
    bool,
    typer.Option(
        "--buffered", help="Do not set PYTHONUNBUFFERED: faster, but output appears later."
    ),
]
Shell = Annotated[bool, typer.Option("--shell", help="COMMAND is one string for /bin/sh -c.")]


def argv(words: Sequence[str], *, shell: bool) -> list[str] | str:
    """Return the words of a command, or the one string for a shell."""
    if not shell:
        return list(words)
    if len(words) != 1:
        raise CommandError(f"--shell needs one string, not {len(words)} words")
    return words[0]


def environment(pairs: Sequence[str]) -> dict[str, str]:
    """Return the variables of `--env`."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise CommandError("--env needs KEY=VALUE")  # without the word, which may be a secret
        found[name] = value
    return found


def from_files(paths: Sequence[str] | None) -> dict[str, str]:
    """Return the variables of `--env-file`; those of later files replace earlier ones."""
    if not paths:
        return {}
    from jobcore import env_file  # noqa: PLC0415 - only for such files

    return {name: value for path in paths for name, value in env_file.read(path).items()}


def scripts(texts: Sequence[str] | None) -> list[Command] | None:
    """Return the commands of a hook, such as `--on-error`; None: there are none."""
    return [Command(text, shell=True) for text in texts] if texts else None


def retry_policy(
    most: int, pause: float | tuple[float, ...] | None, on: list[RetryOn] | None
) -> Retries | None:
    """Return the retries that the options say; None: there are none."""
    if not most:
        if pause is not None or on:
            raise CommandError("--retry-delay and --retry-on need --retries")
        return None
    from jobcore.retries import Retries  # noqa: PLC0415 - only for retries

    given: dict[str, Any] = {"delay": pause, "on": tuple(one.value for one in on or ()) or None}
    try:
        return Retries(most, **{name: value for name, value in given.items() if value is not None})
    except ArgumentError as error:
        raise CommandError(f"--retry-{error}") from None  # all but its `delay` are checked before


def require_after(run_if: RunIf, after: Sequence[str] | None) -> None:
    """Refuse a `--run-if` without jobs that it could be about."""
    if run_if is not RunIf.COMPLETE and not after:
        raise CommandError("--run-if needs --after")


def ids(jobs: JobManager, words: Sequence[str] | None) -> list[UUID | str]:
    """Return the ids of the jobs of `--after`; a name prefers one that has not ended."""
    return [full_id(jobs, word, among=ACTIVE) for word in words or []]


def require_command(words: Sequence[str], stdin: str | None) -> None:
    """Refuse a `--stdin` that took the command's first word as its file."""
    if stdin not in (None, "-") and not words:
        raise CommandError(
            f"no command is given: --stdin took {stdin!r} as its file; write -- before the command"
        )


def standard_input(source: str | None) -> bytes | str | None:
    """
    Return the command's stdin; for `-`, read all of this process's stdin.

    Without a source, a hint is printed if data is waiting in this process's stdin.

    Args:
        source: The value of `--stdin`.
    """
    if source != "-":
        if source is None and _has_data(0):
            output.say("standard input is not read: --stdin gives it to the command")
        return source
    data = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise CommandError(
            f"standard input has more than {MOST_BYTES} bytes: put it into a file, and name that, "
            "--stdin FILE"
        )
    return data


def _has_data(descriptor: int) -> bool:
    """Tell whether a descriptor is a pipe that contains data."""
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return False
        return any(fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))
    except OSError:
        return False
