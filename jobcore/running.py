"""Running: the verbs that run jobs, one in the foreground or the whole queue."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from jobcore import foreground, terminal
from jobcore.application import app
from jobcore.command import DEFAULT_GRACE, Command
from jobcore.errors import CommandError, DatabaseGone, SpawnError, StoreError, WaitTimeout
from jobcore.lifecycle import Reason, Status
from jobcore.manager import JobManager


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    ctx: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--] COMMAND", help="The program and its arguments."),
    ] = None,
    *,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the job's id once it has started, and leave it.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop it after this time. [no limit]")
    ] = None,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", help="From SIGTERM to SIGKILL when it is stopped.")
    ] = DEFAULT_GRACE,
    cwd: Annotated[
        str | None, typer.Option(metavar="DIRECTORY", help="Where it runs. [here]")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A variable for it; may be given again."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="What you call it.")] = None,
    separate_streams: Annotated[
        bool,
        typer.Option(
            "--separate-streams", help="Its stderr goes to stderr; the order of the two is lost."
        ),
    ] = False,
    shell: Annotated[
        bool, typer.Option("--shell", help="COMMAND is one string for /bin/sh -c.")
    ] = False,
) -> None:
    """
    Run a command as a job in the foreground.

    Its log is shown as it comes, and its exit code is passed on.

    The log goes to stdout byte for byte, jobcore's own lines to stderr. The
    exit code is 1 where the job has none, or has 0 but is not COMPLETE. The
    command's stdin is empty.

    The first Ctrl-C or SIGTERM stops the job, and its log is still shown to the
    end; the second kills it; the third leaves it. When the terminal is closed,
    or nobody reads stdout any more (exit code 141), the job runs on by itself.

    \b
    Examples:
      jobcore run -- sh -c 'echo hello; exit 3'
      jobcore run --timeout 3600 --env LEVEL=debug -- make report
      jobcore run --detach -- ./nightly
      jobcore run --shell -- 'sort < big | uniq -c'
    """  # noqa: D301
    wanted = Command(
        _argv(command or [], shell=shell),
        cwd=cwd,
        env=_environment(env or []),
        timeout=timeout,
        grace=grace,
        separate_streams=separate_streams,
        shell=shell,
    )
    interrupts = foreground.Interrupts()
    with ctx.obj.open(slots=1, only_own=True) as jobs:
        interrupts.arm()
        foreground.tell_delays()
        # Reserved: a worker beside it would give the command its own environment.
        job = jobs.submit(wanted, name=name, reserved=True)
        interrupts.expect(
            lambda: foreground.stop(jobs, job.id), lambda: foreground.kill(jobs, job.id)
        )
        started = False
        try:
            foreground.wait_for_start(jobs, job.id)
            started = True
            if detach:
                terminal.print_lines([str(job.id)])
                return
            ended = foreground.watch(jobs, job.id, terminal.LogPrinter(apart=True))
        except SpawnError:
            jobs.cancel_job(job.id)  # it must not run some day, when nobody watches
            raise
        except DatabaseGone:
            terminal.say(
                f"job {job.id} is not watched any more: a command that has started goes on; its "
                "output and its end can be read here only if the files are put back"
            )
            raise
        except (OSError, StoreError):
            if started:  # else the next look at it cancels it
                foreground.take_leave(jobs, job.id)
            raise
    if ended.reason is not Reason.EXITED:
        terminal.say(foreground.ending(ended))
    raise typer.Exit(foreground.exit_code(ended))


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
        if not equals:
            raise CommandError("--env needs KEY=VALUE")  # not shown: it may be a secret
        environment[name] = value
    return environment


@app.command()
def work(
    ctx: typer.Context,
    *,
    slots: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Jobs at once. [one per processor]")
    ] = None,
    drain: Annotated[
        bool,
        typer.Option(
            "--drain", help="Exit when nothing runs here, and nothing that is queued may start yet."
        ),
    ] = False,
) -> None:
    """
    Run queued jobs until Ctrl-C or SIGTERM.

    They are started in the order of their creation. At the signal nothing more
    is started, and what runs goes on by itself.

    \b
    Example:
      jobcore work --slots 4
    """  # noqa: D301
    signals = foreground.block_signals()
    with ctx.obj.open(slots=slots) as jobs:
        while signal.sigtimedwait(signals, 0 if drain else 3600) is None:
            if drain and _is_drained(jobs):
                return
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)  # the next one ends us at once
        running = jobs.count_jobs(status=Status.RUNNING).get(Status.RUNNING, 0)
        terminal.say(f"no more jobs are started; {running} running ones go on by themselves")


def _is_drained(jobs: JobManager) -> bool:
    try:
        jobs.drain(timeout=0.25)
    except WaitTimeout:
        return False
    return True
