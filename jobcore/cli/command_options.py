"""The options of `run` and `submit` that say what a job runs, and the command that they make."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobcore.cli import output, values
from jobcore.cli.app import PlainHelp, full_id
from jobcore.cli.values import delay, stored_text, time_limit
from jobcore.command import DEFAULT_GRACE, DEFAULT_LINGER, MOST_BYTES, Command
from jobcore.errors import ArgumentError, CommandError
from jobcore.hooks import HOOK_STATUSES
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
Name = Annotated[
    str | None, typer.Option(parser=stored_text, metavar="TEXT", help="Name of the job.")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        parser=time_limit, metavar="TIME", help="Stop the job after this time. [no limit]"
    ),
]


@dataclass(frozen=True)
class Surroundings:
    """The options for the directory and the variables of a command."""

    cwd: Annotated[
        str | None, typer.Option(metavar="DIRECTORY", help="Working directory. [the current one]")
    ] = None
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Environment variable; may be given again."),
    ] = None
    env_file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="File with lines KEY=VALUE, read now; may be given again. --env comes after it.",
        ),
    ] = None

    @cached_property
    def variables(self) -> dict[str, str]:
        """The variables of `--env`."""
        pairs = [pair.partition("=") for pair in self.env or ()]
        if not all(name and equals for name, equals, _ in pairs):
            raise CommandError("--env needs KEY=VALUE")  # without the word, which may be a secret
        return {name: value for name, _, value in pairs}

    @cached_property
    def from_files(self) -> dict[str, str]:
        """The variables of `--env-file`; those of later files replace earlier ones."""
        if not self.env_file:
            return {}
        from jobcore import env_file  # noqa: PLC0415 - only for such files

        return {name: one for path in self.env_file for name, one in env_file.read(path).items()}


@dataclass(frozen=True)
class JobOptions(Surroundings):
    """The options of `run` and `submit` that say what a job runs, and how."""

    each: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Run one job for each line of FILE; - reads standard input. The line replaces {} "
            "in COMMAND, or becomes its last word.",
        ),
    ] = None
    null: Annotated[
        bool, typer.Option("--null", "-0", help="The lines of --each end with NUL, not LF.")
    ] = False
    name: Name = None
    group: Annotated[
        str | None,
        typer.Option(
            parser=stored_text, metavar="NAME", help="Group whose limit the job counts for."
        ),
    ] = None
    after: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Start after this job is COMPLETE; may be given again."),
    ] = None
    run_if: Annotated[
        RunIf,
        typer.Option(
            metavar="WORD",
            help="How all jobs of --after have to end: complete, failed, or ended (in any way). "
            "[complete]",
        ),
    ] = RunIf.COMPLETE
    retry_delay: Annotated[
        Any,  # a number or several, a union of types that typer does not take
        typer.Option(
            parser=values.delays,
            metavar="TIME[,TIME...]",
            help="Pause before the first retry; each further one is twice as long, up to an hour. "
            "Or the pauses before each, such as 10,1m,5m. [10]",
        ),
    ] = None
    retry_on: Annotated[
        list[RetryOn] | None,
        typer.Option(
            metavar="WORD",
            help="Retry after error, timeout or lost; may be given again. [error and lost]",
        ),
    ] = None
    on_complete: Annotated[
        list[str] | None,
        typer.Option(metavar="SCRIPT", help="Run this with /bin/sh once the job is COMPLETE."),
    ] = None
    on_error: Annotated[
        list[str] | None,
        typer.Option(metavar="SCRIPT", help="Run this with /bin/sh once the job has failed."),
    ] = None
    on_stopped: Annotated[
        list[str] | None,
        typer.Option(metavar="SCRIPT", help="Run this with /bin/sh once the job was stopped."),
    ] = None
    timeout: Timeout = None
    grace: Annotated[
        float,
        typer.Option(
            parser=delay,
            metavar="TIME",
            help="Time from the first signal of a stop to SIGKILL. [10]",
        ),
    ] = DEFAULT_GRACE
    stop_signal: Annotated[
        str,
        typer.Option(
            parser=_signal, metavar="NAME", help="First signal of a stop, such as SIGINT. [SIGTERM]"
        ),
    ] = "SIGTERM"
    stop_scope: Annotated[
        StopScope,
        typer.Option(
            metavar="SCOPE",
            help="Who gets that signal: main, the command's own process; or group, all "
            "processes of the job. [main]",
        ),
    ] = StopScope.MAIN
    linger: Annotated[
        float,
        typer.Option(
            parser=delay,
            metavar="TIME",
            help="Time from SIGTERM to SIGKILL for processes that the command leaves running. [2]",
        ),
    ] = DEFAULT_LINGER
    stdout_to: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the command's stdout to FILE.")
    ] = None
    pty: Annotated[
        bool,
        typer.Option("--pty", help="Give the command a terminal, for programs that need one."),
    ] = False
    separate_streams: Annotated[
        bool,
        typer.Option(
            "--separate-streams",
            help="Print the command's stderr on stderr; its order relative to stdout is lost.",
        ),
    ] = False
    buffered: Annotated[
        bool,
        typer.Option(
            "--buffered", help="Do not set PYTHONUNBUFFERED: faster, but output appears later."
        ),
    ] = False
    shell: Annotated[
        bool, typer.Option("--shell", help="COMMAND is one string for /bin/sh -c.")
    ] = False

    @property
    def command_fields(self) -> dict[str, Any]:
        """The arguments of `Command` that are the same for each line of `--each`."""
        return {
            "timeout": self.timeout,
            "grace": self.grace,
            "stop_signal": self.stop_signal,
            "stop_scope": self.stop_scope.value,
            "linger": self.linger,
            "separate_streams": self.separate_streams,
            "unbuffered": not self.buffered,
            "pty": self.pty,
            "shell": self.shell,
        }

    def command(self, words: Sequence[str], stdin: str | None) -> Command:
        """Return the command of a single job; `stdin` is the value of `--stdin`."""
        return Command(
            argv(words, shell=self.shell),
            cwd=self.cwd,
            env={**self.from_files, **self.variables},
            stdin=standard_input(stdin),
            stdout_to=self.stdout_to,
            **self.command_fields,
        )

    def require_valid(self) -> None:
        """Refuse what is wrong for all jobs, before the lines of `--each` are awaited."""
        if self.run_if is not RunIf.COMPLETE and not self.after:
            raise CommandError("--run-if needs --after")
        _ = self.variables, self.from_files

    def upstream(self, jobs: JobManager) -> list[UUID | str]:
        """Return the ids of the jobs of `--after`; a name prefers one that has not ended."""
        return [full_id(jobs, word, among=ACTIVE) for word in self.after or []]

    def retry_policy(self, most: int) -> Retries | None:
        """Return the retries, up to `most`; None: there are none."""
        if not most:
            if self.retry_delay is not None or self.retry_on:
                raise CommandError("--retry-delay and --retry-on need --retries")
            return None
        from jobcore.retries import Retries  # noqa: PLC0415 - only for retries

        endings = tuple(one.value for one in self.retry_on or ()) or None
        given = {"delay": self.retry_delay, "on": endings}
        try:
            return Retries(most, **{name: one for name, one in given.items() if one is not None})
        except ArgumentError as error:  # only `delay` was not checked before
            raise CommandError(f"--retry-{error}") from None


def argv(words: Sequence[str], *, shell: bool) -> list[str] | str:
    """Return the words of a command, or the one string for a shell."""
    if not shell:
        return list(words)
    if len(words) != 1:
        raise CommandError(f"--shell needs one string, not {len(words)} words")
    return words[0]


def scripts(texts: Sequence[str] | None) -> list[Command] | None:
    """Return the commands of a hook, such as `--on-error`; None: there are none."""
    return [Command(text, shell=True) for text in texts] if texts else None


def hooks(given: Any) -> dict[str, list[Command] | None]:
    """Return the commands of all hooks that options name."""
    return {name: scripts(getattr(given, name)) for name in HOOK_STATUSES}


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
