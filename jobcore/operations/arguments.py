"""
Checks the arguments of a manager and its methods.

Each function returns the value in the form that the layers below use. A wrong value of a job or
pipeline raises CommandError, and every other wrong value ArgumentError.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from enum import Enum
from typing import Any, TypeVar, Union
from uuid import UUID

from jobcore import checks, structured_lines
from jobcore.checks import LARGEST_INTEGER
from jobcore.clock import from_datetime
from jobcore.command import Command, current_umask
from jobcore.errors import ArgumentError, CommandError, shown
from jobcore.functions.call import describe
from jobcore.hooks import HOOK_STATUSES as HOOKS
from jobcore.hooks import checked_hooks
from jobcore.lifecycle import Status
from jobcore.models import Job
from jobcore.retries import checked_retries
from jobcore.storage import dependencies, environments
from jobcore.submission import Submission
from jobcore.supervisor import frames, result_file
from jobcore.tuning import DATA_BYTES, MOST_SLOTS

T = TypeVar("T")

#: What callers pass as a command: a `Command`, or a list of words.
Runnable = Union[Command, "Sequence[str | bytes | os.PathLike[str]]"]


class Unset(Enum):
    """The default of an argument for which None means something else."""

    UNSET = "unset"

    def __repr__(self) -> str:
        """Return the text that signatures show."""
        return "<unchanged>"


UNSET = Unset.UNSET


# --- of a manager -------------------------------------------------------------------


def checked_database(database: object) -> str:
    """Return the path of a database; refuse one that other processes cannot open."""
    path = checked_path(database, "database")
    if path == ":memory:":
        raise ArgumentError("database must be a file that other processes can open, not :memory:")
    return path


def checked_python(python: object) -> str | None:
    """Return the path of the interpreter for supervisors."""
    path = None if python is None else checked_path(python, "python")
    # Absolute, because supervisors start in another directory. A bare name is found on PATH.
    return os.path.abspath(path) if path is not None and os.sep in path else path


def checked_slots(slots: object) -> int | None:
    """Return how many jobs may run at once."""
    return None if slots is None else min(checks.count(slots, "slots"), MOST_SLOTS)


def checked_executors(executors: object) -> dict[str, Any]:
    """Return executors by job type."""
    if not isinstance(executors, Mapping):
        raise ArgumentError(f"executors must be a mapping by job type, not {shown(executors)}")
    for kind, executor in executors.items():
        checks.text(kind, "a job type in executors")
        require_methods(executor, f"executors[{kind!r}]", "command")
    return dict(executors)


def require_methods(value: object, what: str, *names: str) -> None:
    """Require that `value` has the methods of a protocol."""
    missing = [name for name in names if not callable(getattr(value, name, None))]
    if missing:
        raise ArgumentError(f"{what} has no method {', '.join(missing)}: {shown(value)}")


def checked_path(value: object, what: str) -> str:
    """Return a path as text."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise ArgumentError(
            f"{what} must be a path: a string, not empty and without NUL, not {shown(value)}"
        )
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{what} is a path that cannot be encoded: {shown(value)}") from error
    return path


# --- of its methods -----------------------------------------------------------------


def checked_prefix(prefix: object) -> tuple[UUID, UUID]:
    """Return the first and the last UUID that begin with `prefix`."""
    digits = prefix.replace("-", "") if isinstance(prefix, str) else ""
    if not re.fullmatch("[0-9a-fA-F]{1,32}", digits):
        raise ArgumentError(f"id_prefix must be 1 to 32 hexadecimal digits, not {shown(prefix)}")
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def checked_before(before: Any) -> int | None:
    """Return the number of a job; a negative one becomes 0, because no job is before it."""
    if before is None:
        return None
    if not checks.is_integer(before):
        raise ArgumentError(f"before must be the number of a job, not {shown(before)}")
    return max(0, min(int(before), LARGEST_INTEGER))


def checked_after(after: Any) -> int | None:
    """Return the id of an event; None: that of the last one that exists."""
    if after is None or after == "now":
        return None
    if not checks.is_integer(after) or after < 0:
        raise ArgumentError(f'after must be "now" or the id of an event, not {shown(after)}')
    return min(int(after), LARGEST_INTEGER)


def checked_callback(callback: Any) -> Any:
    """Return a function to call. Refuse a coroutine function: nothing would await it."""
    if not callable(callback):
        raise ArgumentError(f"callback must be callable, not {shown(callback)}")
    if inspect.iscoroutinefunction(callback):
        raise ArgumentError(
            f"callback must be a plain function, not the coroutine function {shown(callback)}: "
            "pass one that hands the event to the loop with call_soon_threadsafe"
        )
    return callback


def checked_statuses(status: object) -> list[Status] | None:
    """Return the statuses to filter by; None: any."""
    return None if status is None else [_status(one) for one in checks.several(status, "status")]


def checked_final(status: object) -> list[Status]:
    """Return the statuses of jobs that may be removed, all of them final."""
    statuses = [_status(one) for one in checks.several(status, "status")]
    for one in statuses:
        if not one.final:
            raise ArgumentError(f"prune removes COMPLETE, ERROR and STOPPED jobs only, not {one}")
    return statuses


def _status(value: Any) -> Status:
    try:
        return Status(value)
    except (ValueError, TypeError, RecursionError):
        raise ArgumentError(f"{shown(value)} is not a status: {', '.join(Status)}") from None


def checked_types(kind: object) -> list[str] | None:
    """Return the job types to filter by; None: any."""
    if kind is None:
        return None
    return [checks.text(one, "a job type") for one in checks.several(kind, "type")]


def required_types(kind: object) -> tuple[str, ...]:
    """Return the job types to claim, one or several."""
    types = checked_types(kind)
    if not types:
        raise ArgumentError("type must be one or more job types, not an empty collection")
    return tuple(types)


def checked_timeout(timeout: Any) -> float:
    """Return how many seconds to wait; for None, infinity."""
    if timeout is None:
        return math.inf
    is_float = isinstance(timeout, float) and not math.isnan(timeout)
    if not is_float and not checks.is_integer(timeout):
        raise ArgumentError(f"timeout must be a number of seconds or None, not {shown(timeout)}")
    try:
        return float(timeout)
    except OverflowError:  # an int of hundreds of digits
        return math.inf if timeout > 0 else -math.inf


def checked_one(job_id: T) -> T:
    """Return the id of a job to wait for; refuse a collection of ids."""
    if isinstance(job_id, Iterable) and not isinstance(job_id, (str, bytes, Job)):
        raise ArgumentError(f"wait takes one id, and wait_all several: {shown(job_id)}")
    return job_id


def checked_ids(job_ids: Iterable[T], call: str) -> list[T]:
    """Return the ids that a call takes; refuse a single id."""
    if isinstance(job_ids, (str, bytes, Job)) or not isinstance(job_ids, Iterable):
        raise ArgumentError(f"{call} takes several ids: pass a list, not {shown(job_ids)}")
    return list(job_ids)


def checked_most(most: object) -> int:
    """Return how many followers to allow."""
    return min(checks.count(most, "most"), MOST_SLOTS)


def checked_lines(lines: tuple[Any, ...]) -> tuple[str | bytes, ...]:
    """Return lines for a log."""
    for line in lines:
        if not isinstance(line, (str, bytes)):
            raise ArgumentError(f"a line must be str or bytes, not {type(line).__name__}")
    return lines


#: The streams of lines that a host appends, by name.
_STREAMS = {"output": frames.OUTPUT, "stdout": frames.STDOUT, "stderr": frames.STDERR}


def checked_stream(stream: object) -> int:
    """Return the stream of lines that a host appends."""
    return _STREAMS[str(checks.one_of(stream, "stream", tuple(_STREAMS)))]


def checked_line_prefix(prefix: object) -> str:
    """Return the text that each line of a writer begins with."""
    text = checks.text(prefix, "prefix")
    if "\n" in text:
        raise ArgumentError(f"prefix must be a text without a newline, not {prefix!r}")
    return text


def checked_progress(done: Any, total: Any, message: Any) -> tuple[float, float | None, str | None]:
    """Return the progress that a host reports: done, total and message."""
    return (
        _amount(done, "done"),
        None if total is None else _amount(total, "total"),
        None if message is None else checks.text(message, "message"),
    )


def _amount(value: Any, what: str) -> float:
    try:
        if checks.is_number(value) and value >= 0:
            return float(value)
    except OverflowError:
        pass  # an int of hundreds of digits
    raise ArgumentError(f"{what} must be a finite number, 0 or more, not {shown(value)}")


# --- of a job -----------------------------------------------------------------------


def checked_command(command: Runnable, options: Mapping[str, Any]) -> Command:
    """Return a `Command`, made from a list of words and `options` if necessary."""
    if isinstance(command, Command):
        if options:
            raise CommandError(
                f"a Command already has {', '.join(sorted(options))}: pass a list of words, "
                "or use dataclasses.replace"
            )
        return command
    try:
        return Command(command, **options)
    except TypeError as error:
        raise CommandError(str(error)) from error


def checked_env_from(env_from: str) -> str:
    """Return whose environment a command gets."""
    choices = (environments.SUBMITTER, environments.WORKER)
    return str(checks.one_of(env_from, "env_from", choices, CommandError))


def checked_moment(moment: datetime | None, what: str = "not_before") -> int | None:
    """Return a time as it is stored, in microseconds since 1970."""
    if moment is None:
        return None
    given: object = moment  # callers may pass anything
    if not isinstance(given, datetime):
        raise CommandError(f"{what} must be a datetime, not {type(given).__name__}")
    if moment.utcoffset() is None:
        raise CommandError(f"{what} needs a time zone")
    try:
        return from_datetime(moment.astimezone(timezone.utc))
    except OverflowError as error:
        raise CommandError(f"{what} is outside the years 1 to 9999 in UTC") from error


def checked_data(data: Any) -> Any:
    """
    Return `data` if it is JSON of up to `DATA_BYTES` that any service can send on.

    A job with data that cannot be encoded again would break every list that contains it.
    """
    if data is None:
        return None
    deepest = structured_lines.DEEPEST
    try:
        text = json.dumps(data, allow_nan=False)
        json.dumps(data, ensure_ascii=False).encode()  # fails for a lone surrogate
        is_deep = text.count("{") + text.count("[") > deepest and structured_lines.is_deep(
            json.loads(text)
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise CommandError(f"data is not JSON: {error}") from error
    if len(text) > DATA_BYTES:
        raise CommandError(f"data is larger than {DATA_BYTES} bytes of JSON")
    if is_deep:
        raise CommandError(f"data is nested deeper than {deepest} levels")
    return data


def checked_parameters(args: Any, env: Any, timeout: Any) -> str | None:
    """Return the parameters of one run as they are stored; None: there are none."""
    if args == () and env is None and timeout is None:
        return None
    from jobcore import parameters  # noqa: PLC0415 - only for jobs that have some

    return parameters.checked(args, env, timeout)


def checked_state(state: Any) -> str:
    """Return the state of a pipeline as it is stored: JSON, as a run could hand it on."""
    try:
        text = json.dumps(state, allow_nan=False)
        result_file.parse(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise CommandError(f"the state is not JSON: {error}") from error
    if len(text) > result_file.MOST_HANDED[result_file.STATE]:
        raise CommandError(
            f"the state is larger than {result_file.MOST_HANDED[result_file.STATE]} bytes of JSON"
        )
    return text


def checked_object(properties: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the properties of a workspace or pipeline: a JSON object, or None."""
    if properties is None:
        return None
    if not isinstance(properties, Mapping):
        raise CommandError(f"properties must be a mapping, not {type(properties).__name__}")
    checked: dict[str, Any] = checked_data(dict(properties))
    return checked


def usable_processors() -> int:
    """Return how many CPUs this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0))


# --- how a job waits in the queue --------------------------------------------------

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
    after: Any = (),
    run_if: Any = dependencies.COMPLETE,
    retries: Any = None,
    **of_ends: Any,
) -> dict[str, Any]:
    """
    Return the columns of a new job that say how it waits.

    `not_before_in`, `expires_in` and `unique_for`, in microseconds, count from the job's
    creation; `resolved` replaces them by the columns of the table.
    """
    found: dict[str, Any] = {
        "priority": checked_priority(priority),
        "group_name": None if group is None else checked_group(group),
        "key": None if key is None else _checked_short(key, "key"),
        **checked_due(not_before, "not_before"),
        **checked_due(expires, "expires"),
        **_dependency_fields(after, run_if),
    }
    policy = checked_retries(retries)
    if policy is not None:
        found["retries"] = policy.to_json()
    stored_hooks = checked_hooks(of_ends)
    if stored_hooks is not None:
        found["hooks"] = stored_hooks
    if unique_for is not None:
        if key is None:
            raise CommandError("unique_for needs a key")
        found["unique_for"] = _microseconds(unique_for, "unique_for")
    return found


def checked_due(due: Any, column: str) -> dict[str, int | None]:
    """
    Return a time, or seconds from the time that `resolved` gets, as a column.

    Args:
        due: A datetime with a time zone, seconds, or None.
        column: The name of the argument and of the column.
    """
    if due is None or isinstance(due, datetime):
        return {column: checked_moment(due, column)}
    return {f"{column}_in": _microseconds(due, column)}


#: Times that count from the creation of a job, and the columns that they become.
_RELATIVE = (
    ("not_before_in", "not_before"), ("expires_in", "expires"), ("unique_for", "unique_until"),
)  # fmt: skip


#: How the jobs named by `after` have to end.
RUN_IF = (dependencies.COMPLETE, dependencies.ENDED, dependencies.FAILED)


def _dependency_fields(after: Any, run_if: Any) -> dict[str, Any]:
    """Return the columns of a new job that say what it waits for, and `after` itself."""
    checks.one_of(run_if, "run_if", RUN_IF, CommandError)
    given = [after] if isinstance(after, (UUID, Job)) else checks.several(after, "after")
    upstreams = [one.id if isinstance(one, Job) else one for one in given]
    for one in upstreams:
        if not isinstance(one, (str, UUID)):
            raise ArgumentError(f"after must be jobs or their ids, not {shown(one)}")
    if not upstreams:
        return {}
    return {"after": upstreams, "run_if": run_if, "unmet": len(upstreams)}


def resolved(fields: Mapping[str, Any], now: int) -> dict[str, Any]:
    """Return the columns of a job that is created now."""
    found = dict(fields)
    for relative, column in _RELATIVE:
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


#: The fields of a `Submission` that replace the arguments of the call.
_REPLACED = (
    "name", "data", "priority", "group", "not_before", "expires", "after", "run_if", "retries",
    *HOOKS,
)  # fmt: skip


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
            fields["ref"] = one.ref
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
