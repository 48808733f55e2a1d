"""The command that puts jobs into the queue."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobcore.cli import command_options, due_time, output
from jobcore.cli import each as each_line
from jobcore.cli.app import AsJson, app
from jobcore.cli.command_options import RunIf
from jobcore.cli.values import integer, stored_text, time_limit
from jobcore.command import DEFAULT_GRACE, Command, current_umask
from jobcore.errors import CommandError


@app.command(**command_options.SETTINGS)
def submit(
    ctx: typer.Context,
    command: command_options.Words = None,
    *,
    each: command_options.Each = None,
    null: command_options.Null = False,
    priority: Annotated[
        int,
        typer.Option(
            parser=integer, metavar="N", help="Jobs with a higher number start first. [0]"
        ),
    ] = 0,
    group: command_options.Group = None,
    key: Annotated[
        str | None,
        typer.Option(
            parser=stored_text,
            metavar="TEXT",
            help="Create no job while another one with this key has not ended; print its ID.",
        ),
    ] = None,
    unique_for: Annotated[
        float | None,
        typer.Option(
            parser=time_limit,
            metavar="TIME",
            help="With --key: also create nothing within this time after that job was created.",
        ),
    ] = None,
    after: command_options.After = None,
    run_if: command_options.Condition = RunIf.COMPLETE,
    retries: command_options.RetryCount = 0,
    retry_delay: command_options.RetryDelay = None,
    retry_on: command_options.RetryOns = None,
    wait: due_time.Delay = None,
    at: due_time.At = None,
    expires: Annotated[
        float | None,
        typer.Option(
            parser=time_limit, metavar="TIME", help="Cancel the job if it has not started by then."
        ),
    ] = None,
    on_complete: command_options.OnComplete = None,
    on_error: command_options.OnError = None,
    on_stopped: command_options.OnStopped = None,
    timeout: command_options.Timeout = None,
    grace: command_options.Grace = DEFAULT_GRACE,
    stop_signal: command_options.StopSignal = "SIGTERM",
    cwd: command_options.Cwd = None,
    env: command_options.Env = None,
    env_file: command_options.EnvFile = None,
    stdin: Annotated[
        str | None,
        typer.Option(
            metavar="[FILE]",
            help="Standard input of the command: FILE, or without FILE the standard input of "
            "submit, read now.",
        ),
    ] = None,
    name: command_options.Name = None,
    stdout_to: command_options.StdoutTo = None,
    pty: command_options.Pty = False,
    buffered: command_options.Buffered = False,
    shell: command_options.Shell = False,
    as_json: AsJson = False,
) -> None:
    """
    Put a command into the queue, and print the job's ID.

    `jobcore work` runs it. The command gets the environment, directory and umask of
    submit. The database stores the environment until the job has ended.

    With --each, there is one job for each line of FILE: all of them, or none. The
    line replaces {} in COMMAND, --name, --key, --cwd, --env, --stdin and
    --stdout-to. It is taken as it is, without word splitting; with --shell it is
    quoted.

    \b
    Examples:
      jobcore submit -- make report
      jobcore submit --at 22:00 --timeout 1h30m --name backup -- ./backup
      jobcore submit --key nightly --priority 5 -- ./nightly
      jobcore submit --each files.txt --group load -- python load.py {}
      jobcore submit --after 3f2a --retries 3 -- make publish
    """  # noqa: D301
    words = command or []
    command_options.require_command(words, stdin)
    due = due_time.chosen(wait, at)
    if null and each is None:
        raise CommandError("--null needs --each")
    if unique_for is not None and key is None:
        raise CommandError("--unique-for needs --key")
    command_options.require_after(run_if, after)
    queued: dict[str, Any] = {
        "run_if": run_if.value,
        "on_complete": command_options.scripts(on_complete),
        "on_error": command_options.scripts(on_error),
        "on_stopped": command_options.scripts(on_stopped),
        "retries": command_options.retry_policy(retries, retry_delay, retry_on),
        "priority": priority,
        "group": group,
        "not_before": due,
        "expires": expires,
        "env_from": "submitter",
    }
    variables = command_options.environment(env or [])
    from_files = command_options.from_files(env_file)
    options: dict[str, Any] = {
        "timeout": timeout,
        "grace": grace,
        "stop_signal": stop_signal,
        "unbuffered": not buffered,
        "shell": shell,
        "stdout_to": stdout_to,
        "pty": pty,
    }
    if each is None:
        wanted = Command(
            command_options.argv(words, shell=shell),
            cwd=cwd,
            env={**from_files, **variables},
            stdin=command_options.standard_input(stdin),
            **options,
        )
        with ctx.obj.open(slots=0) as jobs:
            queued["after"] = command_options.ids(jobs, after)
            job = jobs.submit(wanted, name=name, key=key, unique_for=unique_for, **queued)
        output.print_json(job) if as_json else output.print_ids([job])
        return
    from jobcore.submission import Submission  # noqa: PLC0415 - only for --each

    options |= {
        "cwd": cwd,
        "env": variables,
        "from_files": from_files,
        "stdin": stdin,
        "umask": current_umask(),
    }
    several = [
        Submission(
            each_line.command_for(words, item, **options),
            name=each_line.filled_text(name, item),
            key=each_line.filled_text(key, item),
            unique_for=unique_for,
        )
        for item in each_line.items(each, null=null)
    ]
    with ctx.obj.open(slots=0) as jobs:
        queued["after"] = command_options.ids(jobs, after)
        made = jobs.submit_many(several, **queued)
    output.print_json(made) if as_json else output.print_ids(made)
