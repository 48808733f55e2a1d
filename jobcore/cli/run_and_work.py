"""Commands that run jobs: one job in the foreground, or the whole queue."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import sys
import termios
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobcore.cli import foreground, output
from jobcore.cli.app import PlainHelp, app
from jobcore.cli.values import count_from_1, delay, stored_text, time_limit
from jobcore.command import DEFAULT_GRACE, DEFAULT_LINGER, LARGEST, Command
from jobcore.errors import CommandError, DatabaseGone, SpawnError, StoreError, WaitTimeout
from jobcore.lifecycle import Reason, Status

if TYPE_CHECKING:
    from jobcore.manager import JobManager


class StopScope(str, Enum):
    """The processes that get the first signal of a stop."""

    MAIN = "main"
    GROUP = "group"


def _signal(text: str) -> str:
    """Return the name of a signal that a program can handle, checked."""
    try:
        Command(["true"], stop_signal=text)
    except CommandError as error:
        raise typer.BadParameter(str(error)) from None
    return text


class _Run(PlainHelp):
    """Adds the value `-` to a `--stdin` without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
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


@app.command(cls=_Run, context_settings={"allow_interspersed_args": False})
def run(
    ctx: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--] COMMAND", help="The program and its arguments."),
    ] = None,
    *,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the job's ID once it has started, and exit.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=time_limit, metavar="TIME", help="Stop the job after this time. [no limit]"
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            parser=delay,
            metavar="TIME",
            help="Time from the first signal of a stop to SIGKILL. [10]",
        ),
    ] = DEFAULT_GRACE,
    stop_signal: Annotated[
        str,
        typer.Option(
            parser=_signal, metavar="NAME", help="First signal of a stop, such as SIGINT. [SIGTERM]"
        ),
    ] = "SIGTERM",
    stop_scope: Annotated[
        StopScope,
        typer.Option(
            metavar="SCOPE",
            help="Who gets that signal: main, the command's own process; or group, all "
            "processes of the job. [main]",
        ),
    ] = StopScope.MAIN,
    linger: Annotated[
        float,
        typer.Option(
            parser=delay,
            metavar="TIME",
            help="Time from SIGTERM to SIGKILL for processes that the command leaves running. [2]",
        ),
    ] = DEFAULT_LINGER,
    cwd: Annotated[
        str | None, typer.Option(metavar="DIRECTORY", help="Working directory. [the current one]")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Environment variable; may be given again."),
    ] = None,
    stdin: Annotated[
        str | None,
        typer.Option(
            metavar="[FILE]",
            help="Standard input of the command: FILE; without FILE, that of run, read before "
            "the job starts.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(parser=stored_text, metavar="TEXT", help="Name of the job.")
    ] = None,
    separate_streams: Annotated[
        bool,
        typer.Option(
            "--separate-streams",
            help="Print the command's stderr on stderr; its order relative to stdout is lost.",
        ),
    ] = False,
    buffered: Annotated[
        bool,
        typer.Option(
            "--buffered", help="Do not set PYTHONUNBUFFERED: faster, but output appears later."
        ),
    ] = False,
    shell: Annotated[
        bool, typer.Option("--shell", help="COMMAND is one string for /bin/sh -c.")
    ] = False,
    print_id: Annotated[
        bool, typer.Option("--print-id", help="Print the job's ID on stderr before it starts.")
    ] = False,
) -> None:
    """
    Run a command as a job in the foreground.

    Shows its log as it is written, and exits with its exit code.

    The output goes to stdout byte for byte, jobcore's own lines to stderr. The
    exit code is 1 if the job has none, or has 0 but is not COMPLETE. Without
    --stdin the command's standard input is empty.

    The first Ctrl-C or SIGTERM stops the job, and its log is still shown to the
    end. The second kills the job. The third ends only this command, and the job
    keeps running. Two signals within a second count as one. If the terminal is
    closed, or the reader of stdout goes away (exit code 141), the job keeps running.
    Ctrl-Z pauses only the display: the job keeps running, and fg shows the rest.

    \b
    Examples:
      jobcore run -- sh -c 'echo hello; exit 3'
      jobcore run --timeout 3600 --env LEVEL=debug -- make report
      jobcore run --detach -- ./nightly
      jobcore run --shell -- 'sort < big | uniq -c'
      jobcore run --stdin orders.csv -- python load.py
      generate | jobcore run --stdin -- python load.py
    """  # noqa: D301
    if stdin not in (None, "-") and not command:
        raise CommandError(
            f"no command is given: --stdin took {stdin!r} as its file; write -- before the command"
        )
    wanted = Command(
        _argv(command or [], shell=shell),
        cwd=cwd,
        env=_environment(env or []),
        stdin=_input(stdin),
        timeout=timeout,
        grace=grace,
        stop_signal=stop_signal,
        stop_scope=stop_scope.value,
        linger=linger,
        separate_streams=separate_streams,
        shell=shell,
        unbuffered=not buffered,
    )
    interrupts = foreground.Interrupts()
    with ctx.obj.open(slots=1, only_own=True) as jobs:
        interrupts.arm()
        foreground.tell_delays()
        # Reserved, because a worker would run the command with the worker's environment.
        job = jobs.submit(wanted, name=name, reserved=True)
        if print_id:
            output.say(f"job {job.id}")
        interrupts.expect(
            lambda: foreground.stop(jobs, job.id), lambda: foreground.kill(jobs, job.id)
        )
        started = False
        try:
            foreground.wait_for_start(jobs, job.id)
            started = True
            if detach:
                output.print_lines([str(job.id)])
                return
            ended = foreground.watch(jobs, job.id, output.LogPrinter(apart=True))
        except SpawnError:
            jobs.cancel_job(job.id)  # it must not run later, unattended
            raise
        except DatabaseGone:
            output.say(
                f"job {job.id} is no longer watched: a command that has started runs on; "
                "its output and its end can be read here only if the files are put back"
            )
            raise
        except (OSError, StoreError):
            if started:  # otherwise recovery cancels it, because it is reserved by this process
                foreground.say_state(jobs, job.id)
            raise
    if ended.reason is Reason.SPAWN_FAILED and not shell:
        foreground.hint(command or [])
    if ended.reason is not Reason.EXITED:
        output.say(foreground.ending(ended))
    raise typer.Exit(foreground.exit_code(ended))


def _input(source: str | None) -> bytes | str | None:
    """Return the command's stdin; for `-`, read all of this process's stdin."""
    if source != "-":
        if source is None and _has_data(0):
            output.say("standard input is not read: --stdin gives it to the command")
        return source
    data = sys.stdin.buffer.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise CommandError(
            f"standard input has more than {LARGEST} bytes: put it into a file, and name that, "
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


def _argv(words: list[str], *, shell: bool) -> list[str] | str:
    if not shell:
        return words
    if len(words) != 1:
        raise CommandError(f"--shell needs one string, not {len(words)} words")
    return words[0]


def _environment(pairs: list[str]) -> dict[str, str]:
    environment = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise CommandError("--env needs KEY=VALUE")  # without the word, which may be a secret
        environment[name] = value
    return environment


@app.command()
def work(
    ctx: typer.Context,
    *,
    slots: Annotated[
        int | None,
        typer.Option(
            parser=count_from_1, metavar="N", help="Run at most N jobs at once. [one per processor]"
        ),
    ] = None,
    drain: Annotated[
        bool,
        typer.Option(
            "--drain", help="Exit once this process runs no job and no queued job is due."
        ),
    ] = False,
) -> None:
    """
    Run queued jobs until Ctrl-C or SIGTERM.

    Jobs start in the order of their creation. After the signal no more jobs are
    started, and running jobs keep running.

    \b
    Example:
      jobcore work --slots 4
    """  # noqa: D301
    signals = foreground.block_signals()
    with ctx.obj.open(slots=slots) as jobs:
        while signal.sigtimedwait(signals, 0 if drain else 3600) is None:
            if drain and _is_drained(jobs):
                return
        foreground.end_at_next(signals)
        running = jobs.count_jobs(status=Status.RUNNING).get(Status.RUNNING, 0)
        output.say(f"no more jobs are started; {running} running jobs keep running")


def _is_drained(jobs: JobManager) -> bool:
    try:
        jobs.drain(timeout=0.25)
    except WaitTimeout:
        return False
    return True
