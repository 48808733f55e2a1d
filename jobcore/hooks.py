"""Hooks: commands that run as separate jobs when a job has ended and is not retried."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jobcore.command import Command
from jobcore.errors import CommandError, DatabaseCorrupt, shown
from jobcore.lifecycle import Status

#: The arguments that name hooks, and the statuses after which they run.
HOOK_STATUSES = {
    "on_complete": Status.COMPLETE,
    "on_error": Status.ERROR,
    "on_stopped": Status.STOPPED,
}


def checked_hooks(given: Mapping[str, Any]) -> str | None:
    """
    Return hooks in the form in which they are stored; None: there are none.

    Args:
        given: By the names in `HOOK_STATUSES`: a `Command`, a list of words, or a list of these.

    Raises:
        CommandError: A hook could never run.
    """
    found = {name: _commands(name, given.get(name)) for name in HOOK_STATUSES}
    stored = {name: [one.to_json() for one in found[name]] for name in HOOK_STATUSES if found[name]}
    return json.dumps(stored) if stored else None


def stored_hooks(text: str | None) -> dict[str, list[Command]]:
    """
    Return the commands that `checked_hooks` stored, by the names in `HOOK_STATUSES`.

    Raises:
        DatabaseCorrupt: `text` is not a stored value.
    """
    if text is None:
        return {}
    try:
        stored = json.loads(text)
        return {
            name: [Command.from_json(one) for one in stored[name]]
            for name in HOOK_STATUSES
            if name in stored
        }
    except (ValueError, TypeError, LookupError, AttributeError):
        # Without the cause, which would show the text.
        raise DatabaseCorrupt("stored hooks are invalid") from None


def commands_after(text: str | None, status: Status, facts: Mapping[str, Any]) -> list[Command]:
    """
    Return the commands of stored hooks that run after a job has ended with this status.

    Args:
        facts: What their environment says about the job: `JOB_ID`, `NAME` and so on. None becomes
            an empty text.
    """
    told = {
        f"JOBCORE_HOOK_{name}": "" if value is None else str(value).replace("\0", "")
        for name, value in facts.items()
    }
    (name,) = (name for name in HOOK_STATUSES if HOOK_STATUSES[name] is status)
    return [replace(one, env={**one.env, **told}) for one in stored_hooks(text).get(name, ())]


def _commands(name: str, given: Any) -> list[Command]:
    if given is None:
        return []
    if isinstance(given, Command):
        return [given]
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise CommandError(f"{name} must be a command or a list of commands, not {shown(given)}")
    if any(isinstance(one, Command) or _is_words(one) for one in given):
        return [one if isinstance(one, Command) else _command(name, one) for one in given]
    return [_command(name, given)] if given else []


def _is_words(one: Any) -> bool:
    return isinstance(one, Sequence) and not isinstance(one, (str, bytes))


def _command(name: str, words: Any) -> Command:
    try:
        return Command(words)
    except (CommandError, TypeError) as error:
        raise CommandError(f"{name}: {error}") from error
