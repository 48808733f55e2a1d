"""
One job for each line of a file: what `--each` makes of the command.

A line is taken as it is: no word splitting, no quoting, no escapes. In a shell's string it is
quoted, so that no line can be taken for a part of the script.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence

from jobcore.cli import command_options
from jobcore.cli.command_options import JobOptions
from jobcore.cli.values import stored_text
from jobcore.command import Command, current_umask
from jobcore.errors import CommandError

#: What a line replaces.
PLACEHOLDER = "{}"


def items(source: str, *, null: bool) -> list[str]:
    """
    Return the lines of a file without their ends; empty ones are left out.

    Args:
        source: The path; `-`: standard input.
        null: Whether lines end with NUL, as `find -print0` writes them.
    """
    if source == "-":
        data = sys.stdin.buffer.read()
    else:
        with open(source, "rb") as file:
            data = file.read()
    end = b"\0" if null else b"\n"
    return [os.fsdecode(line) for line in data.split(end) if line]


def filled(text: str, item: str) -> str:
    """Return a text in which the line replaces each `{}`."""
    return text.replace(PLACEHOLDER, item)


def filled_text(text: str | None, item: str) -> str | None:
    """Return the name or key of a line's job, which has to be UTF-8 text."""
    return None if text is None else stored_text(filled(text, item))


def argv_for(words: Sequence[str], item: str, *, shell: bool) -> list[str] | str:
    """Return the command of a line."""
    has_place = any(PLACEHOLDER in word for word in words)
    if shell:
        script = command_options.argv(words, shell=True)
        quoted = shlex.quote(item)
        return filled(str(script), quoted) if has_place else f"{script} {quoted}"
    if not has_place:
        return [*words, item]
    return [filled(word, item) for word in words]


def commands_for(
    words: Sequence[str], lines: Iterable[str], given: JobOptions, stdin: str | None
) -> list[Command]:
    """
    Return the command of each line, which also replaces `{}` in directory, variables and files.

    It is not replaced in the values that files of variables hold.
    """
    if stdin == "-":
        raise CommandError("--each and --stdin - cannot be combined: name a file, such as {}")
    if given.stdout_to is not None and PLACEHOLDER not in given.stdout_to:
        raise CommandError(
            f"with --each, --stdout-to {given.stdout_to} would be the file of all jobs: put {{}} "
            "into it"
        )
    same = {**given.command_fields, "umask": current_umask()}
    files, variables = given.from_files, given.variables
    return [
        Command(
            argv_for(words, line, shell=given.shell),
            cwd=None if given.cwd is None else filled(given.cwd, line),
            env={**files, **{name: filled(value, line) for name, value in variables.items()}},
            stdin=None if stdin is None else filled(stdin, line),
            stdout_to=None if given.stdout_to is None else filled(given.stdout_to, line),
            **same,
        )
        for line in lines
    ]
