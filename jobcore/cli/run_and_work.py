"""Commands that run jobs: one job in the foreground, or the whole queue."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from jobcore.cli import command_options, foreground, output, values
from jobcore.cli import each as each_line
from jobcore.cli.app import INTERRUPTED, app, takes
from jobcore.cli.command_options import JobOptions
from jobcore.cli.log_printer import LogPrinter
from jobcore.cli.values import count_from_1, stored_text
from jobcore.errors import (
    CommandError,
    DatabaseGone,
    JobcoreError,
    JobDeleted,
    JobNotFound,
    SpawnError,
    StoreError,
    WaitTimeout,
)
from jobcore.lifecycle import Reason, Status

if TYPE_CHECKING:
    from jobcore.command import Command
    from jobcore.manager import JobManager
    from jobcore.models import Event
    from jobcore.retries import Retries


@app.command(**command_options.SETTINGS)
@takes(
    JobOptions,
    *("detach", "each", "null", "slots", "retries", "retry_delay", "retry_on", "timeout", "grace"),
    *("stop_signal", "stop_scope", "linger", "cwd", "env", "env_file", "stdin", "name", "group"),
    *("key", "after", "run_if", "stdout_to", "pty", "separate_streams", "buffered", "shell"),
    into="given",
)
def run(
    ctx: typer.Context,
    command: command_options.Words = None,
    *,
    given: JobOptions,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the job's ID once it has started, and exit.")
    ] = False,
    slots: Annotated[
        int | None,
        typer.Option(
            parser=count_from_1,
            metavar="N",
            help="With --each: run at most N jobs at once. [one per processor]",
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            parser=values.retries,
            metavar="N",
            help="With --each: when all have ended, try those that failed again, up to N times. "
            "[0]",
        ),
    ] = 0,
    stdin: Annotated[
        str | None,
        typer.Option(
            metavar="[FILE]",
            help="Standard input of the command: FILE, or without FILE the standard input of run, "
            "read before the job starts.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            parser=stored_text,
            metavar="TEXT",
            help="Run nothing while another job with this key has not ended: exit with 1.",
        ),
    ] = None,
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
      jobcore run --key nightly -- ./nightly
      jobcore run --after 3f2a -- make publish
      jobcore run --stdin orders.csv -- python load.py
      generate | jobcore run --stdin -- python load.py
      ls *.csv | jobcore run --each - --slots 4 -- python load.py {}
    """  # noqa: D301
    words = command or []
    command_options.require_command(words, stdin)
    given.require_valid()
    if given.each is not None:
        if detach or print_id:
            raise CommandError(
                "--each cannot be combined with --detach or --print-id: use submit --each"
            )
        if key is not None or given.after:
            raise CommandError("--each cannot be combined with --key or --after: use submit --each")
        _run_each(ctx, given.each, words, given, stdin, slots, given.retry_policy(retries))
        return
    if slots is not None or given.null:
        raise CommandError("--slots and --null need --each")
    if retries or given.retry_delay is not None or given.retry_on:
        raise CommandError("--retries needs --each; to try one job again, see submit --retries")
    _run_one(ctx, given.command(words, stdin), given, key, detach=detach, print_id=print_id)


def _run_one(
    ctx: typer.Context,
    wanted: Command,
    given: JobOptions,
    key: str | None,
    *,
    detach: bool,
    print_id: bool,
) -> None:
    interrupts = foreground.Interrupts()
    with ctx.obj.open(slots=1, only_own=True) as jobs:
        interrupts.arm()
        foreground.print_delays()
        # Reserved, because a worker would run the command with the worker's environment.
        job = jobs.submit(
            wanted,
            reserved=True,
            on_conflict="raise",
            name=given.name,
            group=given.group,
            key=key,
            after=given.upstream(jobs),
            run_if=given.run_if.value,
        )
        if print_id:
            output.say(f"job {job.id}")
        interrupts.expect(
            lambda: foreground.stop(jobs, job.id), lambda: foreground.kill(jobs, job.id)
        )
        started = False
        try:
            begun = foreground.wait_for_start(jobs, job.id)
            started = True
            if detach:
                output.print_ids([job])
                if (
                    begun.start_time is None
                ):  # cancelled, for example because a job of --after has failed
                    output.say(foreground.ending(begun))
                    raise typer.Exit(foreground.exit_code(begun))
                return
            ended = foreground.watch(jobs, job.id, LogPrinter(apart=True))
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
                foreground.print_state(jobs, job.id)
            raise
    if ended.reason is Reason.SPAWN_FAILED and not wanted.shell:
        foreground.hint(list(map(str, wanted.argv)))
    if ended.reason is not Reason.EXITED:
        output.say(foreground.ending(ended))
    raise typer.Exit(foreground.exit_code(ended))


def _run_each(
    ctx: typer.Context,
    source: str,
    words: list[str],
    given: JobOptions,
    stdin: str | None,
    slots: int | None,
    policy: Retries | None,
) -> None:
    from jobcore.cli import batch  # noqa: PLC0415 - only for --each
    from jobcore.submission import Submission  # noqa: PLC0415 - only for --each

    items = each_line.items(source, null=given.null)
    commands = each_line.commands_for(words, items, given, stdin)
    wanted = [
        Submission(command, name=each_line.filled_text(given.name, item))
        for command, item in zip(commands, items, strict=True)
    ]
    if not wanted:
        output.say(f"{'standard input' if source == '-' else source} has no lines: nothing to run")
        return
    interrupts = foreground.Interrupts()
    with ctx.obj.open(slots=slots, only_own=True) as jobs:
        interrupts.arm()
        foreground.print_delays()
        many = batch.Batch(jobs, policy, group=given.group)
        many.submit(wanted)
        interrupts.expect(many.stop, many.kill)
        code = many.show()
    raise typer.Exit(INTERRUPTED if many.stopped else code)


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
    drain_on_stop: Annotated[
        bool,
        typer.Option(
            "--drain-on-stop", help="After the signal, wait until the jobs started here have ended."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Print a line for each start and end, as on a terminal."
        ),
    ] = False,
) -> None:
    """
    Run queued jobs until Ctrl-C or SIGTERM.

    Jobs with a higher priority start first, and otherwise in the order of their
    creation. After the signal no more jobs are started, and running jobs keep
    running.

    On a terminal it prints what starts and ends. Otherwise it logs that on stderr,
    one JSON object per line.

    \b
    Example:
      jobcore work --slots 4
    """  # noqa: D301
    from jobcore.cli import worker  # noqa: PLC0415 - not needed for run

    signals = foreground.block_signals()
    for_people = verbose or output.on_terminal()
    structured = None if for_people else worker.ForLogs()  # before the manager logs anything
    with ctx.obj.open(slots=slots) as jobs:
        report = structured or worker.ForPeople(partial(_name_of, jobs))
        report.listen(jobs)
        worker.notify("READY=1")
        while signal.sigtimedwait(signals, 0 if drain else 3600) is None:
            if drain and _is_drained(jobs):
                return
        worker.notify("STOPPING=1")
        foreground.end_at_next(signals)
        if not drain_on_stop:
            running = jobs.count_jobs(status=Status.RUNNING)[Status.RUNNING]
            output.say(f"no more jobs are started; {running} running jobs keep running")
    # The manager is closed, so it starts no job, and all starts are known.
    left = report.running
    if drain_on_stop and left:
        output.say(f"no more jobs are started; waiting for {len(left)} running jobs")
        with ctx.obj.open(slots=0) as jobs:
            report.listen(jobs)
            for job_id in left:
                try:
                    jobs.wait(job_id)
                except (JobNotFound, JobDeleted):
                    pass  # there is nothing to wait for


def _name_of(jobs: JobManager, event: Event) -> str:
    """Return the name, command or pipeline of an event's job; empty: it is deleted."""
    try:
        found = event.name or output.what(jobs.get_job(event.job_id))
        if not found and event.pipeline_id is not None:  # a script
            found = jobs.get_pipeline(event.pipeline_id).name
    except JobcoreError:
        return ""
    return found


def _is_drained(jobs: JobManager) -> bool:
    try:
        jobs.drain(timeout=0.25)
    except WaitTimeout:
        return False
    return True
