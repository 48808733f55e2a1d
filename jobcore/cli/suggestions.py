"""
What a shell offers for the word under the cursor.

The shell waits for it at each press of the Tab key. So commands and jobs are found without the
framework and the manager; only options need the framework.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jobcore.cli import commands

#: Number of jobs, from the newest on, among which the ones to offer are found.
NEWEST = 500
#: Number of jobs that are offered.
OFFERED = 40
#: The commands whose arguments are jobs.
OF_JOBS = {"cancel", "delete", "export", "history", "logs", "retry", "set", "show", "stop", "wait"}
#: Those of them that need a job which has not ended.
_OF_UNFINISHED = {"cancel", "set", "stop"}
_COMMON = ("--db", "--trust-directory", "--utc", "--version", "--help")
_STATUSES = ("QUEUED", "RUNNING", "COMPLETE", "ERROR", "STOPPED")
#: The values of options that have only a few.
_VALUES = {
    "--format": ("text", "ndjson"),
    "--order": ("created", "started", "ended", "duration"),
    "--reason": (
        *("exited", "signaled", "timeout", "stopped", "cancelled", "upstream", "expired"),
        *("shutdown", "spawn_failed", "lost", "never_started"),
    ),
    "--retry-on": ("error", "timeout", "lost"),
    "--run-if": ("complete", "ended", "failed"),
    "--status": _STATUSES,
    "--stop-scope": ("main", "group"),
    "--stream": ("output", "stdout", "stderr", "system"),
}
#: The values of arguments that have only a few, by command.
_ARGUMENTS = {"completion": ("bash", "zsh", "fish")}

#: The options whose values are names in the database, and their kinds.
_NAMED_VALUES = {
    "--group": "group",
    "--key": "key",
    "--pipeline": "pipeline",
    "--requires": "pipeline",
    "--workspace": "workspace",
}
#: The same for commands whose argument is a name.
_NAMED_ARGUMENTS = {"limit": "group", "pause": "group", "resume": "group"}

#: Commands with subcommands, and those of these that take a new name.
_GROUPS = {"pipeline", "workspace"}
_CREATING = {"create", "list"}

#: A name that a shell takes as it is, and the command line for no option.
_AS_IT_IS = re.compile(r"[\w.@+/][\w.@+/-]*")

_Offer = tuple[str, str]


def answer(shell: str, words: Sequence[str]) -> None:
    """
    Print what begins with the last of `words`, a line each.

    Args:
        shell: `bash`, `zsh` or `fish`, which differ in how they take a description.
        words: The words of the command line after `jobcore`, up to the cursor.
    """
    for word, about in _offers(_joined(words or [""])):
        line = word
        if shell == "zsh":
            line = ":".join([word.replace(":", r"\:"), *([about] if about else [])])
        elif shell == "fish" and about:
            line = f"{word}\t{about}"
        sys.stdout.write(" ".join(line.splitlines()) + "\n")
    sys.stdout.flush()


def _joined(words: Sequence[str]) -> list[str]:
    """Return the words without the `=` that bash treats as a separate word."""
    kept = [word for word in words if word != "="]
    return [*kept, ""] if words[-1] == "=" else kept


def _offers(words: Sequence[str]) -> Iterator[_Offer]:
    *before, incomplete = words
    database, before = _database(before)
    if before and before[-1] == "--db":
        return iter(())  # a file
    place = next((n for n, word in enumerate(before) if not word.startswith("-")), None)
    if place is not None:
        return _of_words(database, before[place], before[place + 1 :], incomplete)
    if incomplete.startswith("-"):
        return _beginning(incomplete, dict.fromkeys(_COMMON, ""))
    parts = commands.SECTIONS.values()
    return _beginning(
        incomplete, {name: about for part in parts for name, (_, about) in part.items()}
    )


def _of_words(
    database: str | None, name: str, own: Sequence[str], incomplete: str
) -> Iterator[_Offer]:
    """Return what a command offers after these words."""
    last = own[-1] if own else ""
    if name not in commands.MODULES or "--" in own:
        return iter(())
    is_option = incomplete.startswith("-") or last.startswith("-")
    if words := _VALUES.get(last) or (None if is_option else _ARGUMENTS.get(name)):
        return _beginning(incomplete, dict.fromkeys(words, ""))
    if kind := _kind_of_name(name, own, is_option=is_option):
        return _names(database, kind, incomplete)
    if last == "--after" or (name in OF_JOBS and not is_option):
        return _jobs(database, name, incomplete)
    if is_option or name in _GROUPS:
        return _of_command(database, name, own, incomplete)
    return iter(())


def _kind_of_name(name: str, own: Sequence[str], *, is_option: bool) -> str | None:
    """Return what kind of name comes after these words of a command; None: no name."""
    last = own[-1] if own else ""
    if last == "--after" and name == "pipeline":
        return "pipeline"
    if is_option:
        return _NAMED_VALUES.get(last)
    if not own:
        return _NAMED_ARGUMENTS.get(name)
    is_named = name in _GROUPS and len(own) == 1 and own[0] not in _CREATING
    return name if is_named else None


def _database(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the value of the last `--db`, and the other words."""
    database, kept = None, list(words)
    while "--db" in kept[:-1]:
        place = kept.index("--db")
        database = kept[place + 1]
        del kept[place : place + 2]
    for word in kept:
        if word.startswith("--db="):
            database = word[len("--db=") :]
    return database, kept


def _beginning(incomplete: str, table: dict[str, str]) -> Iterator[_Offer]:
    return ((word, about) for word, about in table.items() if word.startswith(incomplete))


def _of_command(
    database: str | None, name: str, own: Sequence[str], incomplete: str
) -> Iterator[_Offer]:
    """Return what a command offers: its options, and the commands of a group."""
    import typer.main  # noqa: PLC0415 - only for options

    from jobcore.cli.app import app  # noqa: PLC0415 - only for options

    command: Any = typer.main.get_command(app)
    for word in (name, *own):
        if hasattr(command, "list_commands"):
            command = command.get_command(None, word) or command
    if hasattr(command, "list_commands"):
        inner = ((one, command.get_command(None, one)) for one in command.list_commands(None))
        return _beginning(incomplete, {one: made.get_short_help_str(99) for one, made in inner})
    options = [one for one in command.params if one.param_type_name == "option"]
    if incomplete.startswith("-"):
        about = {max(one.opts, key=len): one.help or "" for one in options}
        return _beginning(incomplete, {**about, "--help": ""})
    takes_value = {option for one in options if not one.is_flag for option in one.opts}
    if name in OF_JOBS and own and own[-1] not in takes_value:
        return _jobs(database, name, incomplete)
    return iter(())


def _names(database: str | None, kind: str, incomplete: str) -> Iterator[_Offer]:
    """Return the names of a kind that begin with `incomplete`."""
    from jobcore.storage.shell_completion import names  # noqa: PLC0415 - only for names

    found = filter(_AS_IT_IS.fullmatch, names(_path(database), kind, NEWEST))
    return _beginning(incomplete, dict.fromkeys(found, ""))


def _path(database: str | None) -> str:
    return database or os.environ.get("JOBCORE_DB") or "jobs.db"


def _jobs(database: str | None, command: str, incomplete: str) -> Iterator[_Offer]:
    """Yield what begins with `incomplete`: numbers, names and ids of the newest jobs."""
    from jobcore.storage.shell_completion import newest_jobs  # noqa: PLC0415 - only for jobs

    seen: set[str] = set()
    for number, digits, status, name in newest_jobs(_path(database), NEWEST):
        if command in _OF_UNFINISHED and status not in ("QUEUED", "RUNNING"):
            continue
        about = f"{status} {name or ''}"
        words = [str(number)]
        if name and _AS_IT_IS.fullmatch(name):
            words.append(name)
        if incomplete:
            words.append(digits)
        for word in words:
            if word.startswith(incomplete) and word not in seen:
                seen.add(word)
                yield word, about
                break
        if len(seen) == OFFERED:
            return
