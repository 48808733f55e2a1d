"""Checks how a new job waits in the queue: its key, priority, group and times."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from jobcore import checks
from jobcore.command import Command, current_umask
from jobcore.errors import CommandError
from jobcore.functions.call import describe
from jobcore.operations.arguments import checked_command, checked_data, checked_moment
from jobcore.submission import Submission

#: Characters of a key or of the name of a group.
MOST_TEXT = 255
#: The highest priority; the lowest is its negative.
HIGHEST = 2**31 - 1
#: What a call does if another job holds the key.
ON_CONFLICT = ("return", "raise")


def queue_fields(
    *,
    priority: Any = 0,
    group: Any = None,
    expires: Any = None,
    key: Any = None,
    unique_for: Any = None,
    not_before: Any = None,
) -> dict[str, Any]:
    """
    Return the columns of a new job that say how it waits.

    `expires_in` and `unique_for`, in microseconds, count from the job's creation; `resolved`
    replaces them by the columns of the table.
    """
    found: dict[str, Any] = {
        "priority": checked_priority(priority),
        "group_name": None if group is None else checked_group(group),
        "not_before": checked_moment(not_before),
        "key": None if key is None else checked_key(key),
    }
    if isinstance(expires, datetime):
        found["expires"] = checked_moment(expires, "expires")
    elif expires is not None:
        found["expires_in"] = _microseconds(expires, "expires")
    if unique_for is not None:
        if key is None:
            raise CommandError("unique_for needs a key")
        found["unique_for"] = _microseconds(unique_for, "unique_for")
    return found


def resolved(fields: Mapping[str, Any], now: int) -> dict[str, Any]:
    """Return the columns of a job that is created now."""
    found = dict(fields)
    for relative, column in (("expires_in", "expires"), ("unique_for", "unique_until")):
        if relative in found:
            found[column] = now + found.pop(relative)
    found["held_key"] = found.get("key")
    return found


def checked_priority(priority: Any) -> int:
    """Return the priority of a job."""
    return checks.integer(priority, "priority", -HIGHEST, HIGHEST, CommandError)


def checked_group(group: Any) -> str:
    """Return the name of a group."""
    return _checked_short(group, "group")


def checked_key(key: Any) -> str:
    """Return the key of a job."""
    return _checked_short(key, "key")


def checked_on_conflict(on_conflict: Any) -> str:
    """Return what a call does if another job holds the key."""
    return str(checks.one_of(on_conflict, "on_conflict", ON_CONFLICT, CommandError))


def _checked_short(value: Any, what: str) -> str:
    text = checks.text(value, what, CommandError)
    if not 0 < len(text) <= MOST_TEXT:
        raise CommandError(f"{what} must have 1 to {MOST_TEXT} characters, not {len(text)}")
    return text


def _microseconds(value: Any, what: str) -> int:
    return round(checks.seconds(value, what, error=CommandError) * 1e6)


# --- of several jobs ----------------------------------------------------------------

#: The fields of a `Submission` that replace the arguments of the call.
_REPLACED = ("name", "data", "priority", "group", "not_before", "expires")


def submitted_fields(
    commands: Iterable[Any], given: Mapping[str, Any], options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """
    Return the columns of the jobs of a call of `submit_many`.

    Args:
        commands: Commands, lists of words and submissions.
        given: The arguments that a submission can replace.
        options: Further arguments of `Command`, for lists of words.
    """
    if not isinstance(commands, Iterable):
        raise CommandError(f"commands must be a list of commands, not {type(commands).__name__}")
    own = {"umask": current_umask(), **options}  # read it once
    same = _fields(given)  # checked once
    found = []
    for one in commands:
        command, fields = one, same
        if isinstance(one, Submission):
            command = one.command
            replaced = {name: getattr(one, name) for name in _REPLACED}
            changes = {name: value for name, value in replaced.items() if value is not None}
            fields = _fields({**given, **changes}, key=one.key, unique_for=one.unique_for)
        checked = checked_command(command, options if isinstance(command, Command) else own)
        found.append({**fields, "command": checked.to_json()})
    return found


def _fields(given: Mapping[str, Any], **of_one: Any) -> dict[str, Any]:
    waiting = {name: value for name, value in given.items() if name not in ("name", "data")}
    return {
        "name": given["name"],
        "data": checked_data(given["data"]),
        **queue_fields(**waiting, **of_one),
    }


def refuse_parameters(target: Callable[..., Any] | str, given: Iterable[str]) -> None:
    """Refuse an argument of `submit_function` that the function has a parameter for."""
    if isinstance(target, str):
        return
    try:
        parameters = inspect.signature(target).parameters
    except Exception:  # noqa: BLE001 - some builtins have no signature, and objects may raise
        return
    for name in given:
        if name in parameters and parameters[name].kind in _BY_NAME:
            raise CommandError(
                f"{name} is an argument of submit_function, and {describe(target)} has a parameter "
                'of this name: use submit(function_command(...), type="FUNCTION", ...)'
            )


_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
