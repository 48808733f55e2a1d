"""
One job for each line of a file: what `--each` makes of the command.

A line is taken as it is: no word splitting, no quoting, no escapes. In a shell's string it is
quoted, so that no line can be taken for a part of the script.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jobcore.cli import command_options
from jobcore.cli.values import stored_text
from jobcore.command import Command
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


def command_for(
    words: Sequence[str],
    item: str,
    *,
    shell: bool,
    cwd: str | None,
    env: Mapping[str, str],
    from_files: Mapping[str, str],
    stdin: str | None,
    stdout_to: str | None,
    **options: Any,
) -> Command:
    """
    Return the command of a line, which also replaces `{}` in directory, variables and files.

    It is not replaced in the values that `from_files` holds.
    """
    if stdin == "-":
        raise CommandError("--each and --stdin - cannot be combined: name a file, such as {}")
    if stdout_to is not None and PLACEHOLDER not in stdout_to:
        raise CommandError(
            f"with --each, --stdout-to {stdout_to} would be the file of all jobs: put {{}} into it"
        )
    return Command(
        argv_for(words, item, shell=shell),
        shell=shell,
        cwd=None if cwd is None else filled(cwd, item),
        env={**from_files, **{name: filled(value, item) for name, value in env.items()}},
        stdin=None if stdin is None else filled(stdin, item),
        stdout_to=None if stdout_to is None else filled(stdout_to, item),
        **options,
    )
