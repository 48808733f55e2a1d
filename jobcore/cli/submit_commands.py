"""The command that puts jobs into the queue."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobcore.cli import command_options, due_time, output, values
from jobcore.cli import each as each_line
from jobcore.cli.app import AsJson, app, takes
from jobcore.cli.command_options import JobOptions
from jobcore.cli.values import integer, stored_text, time_limit
from jobcore.errors import CommandError


@app.command(**command_options.SETTINGS)
@takes(
    JobOptions,
    *("each", "null", "priority", "group", "key", "unique_for", "after", "run_if", "retries"),
    *("retry_delay", "retry_on", "wait", "at", "expires", "on_complete", "on_error", "on_stopped"),
    *("timeout", "grace", "stop_signal", "cwd", "env", "env_file", "stdin", "name", "stdout_to"),
    *("pty", "buffered", "shell"),
    into="given",
)
def submit(
    ctx: typer.Context,
    command: command_options.Words = None,
    *,
    given: JobOptions,
    priority: Annotated[
        int,
        typer.Option(
            parser=integer, metavar="N", help="Jobs with a higher number start first. [0]"
        ),
    ] = 0,
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
    retries: Annotated[
        int,
        typer.Option(
            parser=values.retries,
            metavar="N",
            help="If the job fails, try it again, up to N times. [0]",
        ),
    ] = 0,
    wait: due_time.Delay = None,
    at: due_time.At = None,
    expires: Annotated[
        float | None,
        typer.Option(
            parser=time_limit, metavar="TIME", help="Cancel the job if it has not started by then."
        ),
    ] = None,
    stdin: Annotated[
        str | None,
        typer.Option(
            metavar="[FILE]",
            help="Standard input of the command: FILE, or without FILE the standard input of "
            "submit, read now.",
        ),
    ] = None,
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
    if given.null and given.each is None:
        raise CommandError("--null needs --each")
    if unique_for is not None and key is None:
        raise CommandError("--unique-for needs --key")
    given.require_valid()
    queued: dict[str, Any] = {
        **command_options.hooks(given),
        "run_if": given.run_if.value,
        "retries": given.retry_policy(retries),
        "priority": priority,
        "group": given.group,
        "not_before": due,
        "expires": expires,
        "env_from": "submitter",
    }
    if given.each is None:
        wanted = given.command(words, stdin)
        with ctx.obj.open(slots=0) as jobs:
            queued["after"] = given.upstream(jobs)
            job = jobs.submit(wanted, name=given.name, key=key, unique_for=unique_for, **queued)
        output.print_json(job) if as_json else output.print_ids([job])
        return
    from jobcore.submission import Submission  # noqa: PLC0415 - only for --each

    items = each_line.items(given.each, null=given.null)
    several = [
        Submission(
            one,
            name=each_line.filled_text(given.name, item),
            key=each_line.filled_text(key, item),
            unique_for=unique_for,
        )
        for one, item in zip(each_line.commands_for(words, items, given, stdin), items, strict=True)
    ]
    with ctx.obj.open(slots=0) as jobs:
        queued["after"] = given.upstream(jobs)
        made = jobs.submit_many(several, **queued)
    output.print_json(made) if as_json else output.print_ids(made)
