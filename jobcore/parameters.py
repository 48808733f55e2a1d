"""Parameters of one run of a pipeline: further arguments, variables, and a time-out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jobcore import command as commands
from jobcore.command import Command
from jobcore.errors import CommandError, DatabaseCorrupt


def checked(args: Any, env: Any, timeout: Any) -> str | None:
    """
    Return parameters in the form in which they are stored; None: there are none.

    Args:
        args: Words that are appended to the command.
        env: Variables on top of the command's own.
        timeout: Seconds, in place of the command's own; None: its own.

    Raises:
        CommandError: They could never be used; the message names the part and the cause.
    """
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        raise CommandError(f"args must be a list of words, not {type(args).__name__}")
    if env is not None and not isinstance(env, Mapping):
        raise CommandError(f"env must be a mapping, not {type(env).__name__}")
    if not (args or env or timeout is not None):
        return None
    # A command checks its parts, whatever it runs.
    made = Command(["true", *args], env=dict(env or {}), timeout=timeout, cwd="/", umask=0)
    return json.dumps(
        {"args": list(made.words[1:]), "env": dict(made.env), "timeout": made.timeout}
    )


def apply(stored: str, command: Command, *, calls_function: bool = False) -> Command:
    """
    Return the command with a job's parameters.

    Args:
        stored: What `checked` returned.
        command: The command of the job's executor.
        calls_function: Whether it calls a function, which takes no words.

    Raises:
        CommandError: The command takes no arguments.
        DatabaseCorrupt: `stored` is not what `checked` returned.
    """
    args, env, timeout = stored_parameters(stored)
    if args and calls_function:
        raise CommandError("a function takes no args: they are words for a command or a script")
    changes: dict[str, Any] = {}
    if args:
        # With `sh -c`, the word after the script is its $0, and the next one its $1.
        words = [*command.words, "sh"] if command.shell else command.words
        changes |= {"argv": [*words, *args], "shell": False}
    if env:
        changes["env"] = {**command.env, **env}
    if timeout is not None:
        changes["timeout"] = timeout
    return replace(command, **changes)


def stored_parameters(stored: str) -> tuple[list[str], dict[str, str], float | None]:
    """
    Return the arguments, the environment and the time-out that `checked` returned as text.

    Raises:
        DatabaseCorrupt: `stored` is not such a text.
    """
    try:
        found = json.loads(stored)
        # The texts of this process's encoding, as in `Command.from_json`.
        args = [commands.decode(word) for word in found["args"]]
        env = {commands.decode(name): commands.decode(one) for name, one in found["env"].items()}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        why = f"the stored parameters of a job are invalid: {type(error).__name__}"
    else:
        return args, env, found["timeout"]
    raise DatabaseCorrupt(why)  # outside the handler: a cause would hold the text and its secrets
