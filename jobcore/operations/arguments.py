"""
Checks the arguments of a manager and its methods.

These checks raise ArgumentError, which is a ValueError. Commands and other parts of a job are
checked in `command` and `submission`, which raise CommandError.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from uuid import UUID

from jobcore.errors import ArgumentError, shown
from jobcore.lifecycle import Status

T = TypeVar("T")

#: The largest integer in SQLite; larger numbers are cut to it.
MOST = 2**63 - 1
#: The most slots: Linux cannot have more processes.
MOST_SLOTS = 2**22
#: Seconds, 3,000 years: a larger age is a mistake. In microseconds it still fits SQLite.
OLDEST = 1e11
#: Seconds, 24 days: the most that SQLite's busy timer can hold, in milliseconds of 31 bits.
LONGEST_BUSY = 2_147_483


# --- arguments of a manager ---------------------------------------------------------


def checked_database(database: object) -> str:
    """
    Return the path of a database.

    Raises:
        ArgumentError: It is not a path, or not one of a file that other processes can open.
    """
    path = _checked_path(database, "the database")
    if path == ":memory:":
        raise ArgumentError("the database is a file that other processes can open, not :memory:")
    return path


def checked_python(python: object) -> str | None:
    """
    Return the path of the interpreter for supervisors.

    Raises:
        ArgumentError: It is not a path.
    """
    path = None if python is None else _checked_path(python, "python")
    # Absolute, because supervisors start in another directory. A bare name is found on PATH.
    return os.path.abspath(path) if path is not None and os.sep in path else path


def checked_slots(slots: object) -> int | None:
    """
    Return how many jobs may run at once.

    Raises:
        ArgumentError: It is neither a whole number, 0 or more, nor None.
    """
    return None if slots is None else min(_checked_count(slots, "slots is"), MOST_SLOTS)


def checked_busy_timeout(seconds: Any) -> float:
    """
    Return how many seconds to wait for another process's write transaction.

    Raises:
        ArgumentError: It is not a number of seconds that SQLite can wait.
    """
    if not _is_number(seconds) or not 0 <= seconds <= LONGEST_BUSY:
        raise ArgumentError(f"busy_timeout is 0 to {LONGEST_BUSY} seconds, not {shown(seconds)}")
    return float(seconds)


def checked_executors(executors: object) -> dict[str, Any]:
    """
    Return executors by job type.

    Raises:
        ArgumentError: It is not a mapping of texts to objects with a method `command`.
    """
    if not isinstance(executors, Mapping):
        raise ArgumentError(f"executors is a mapping by job type, not {shown(executors)}")
    for kind, executor in executors.items():
        _checked_text(kind, "a job type in executors")
        require_methods(executor, f"in executors, that for {kind!r}", "command")
    return dict(executors)


def require_methods(value: object, what: str, *names: str) -> None:
    """
    Require that `value` has the methods of a protocol.

    Raises:
        ArgumentError: `value` lacks one of the methods.
    """
    missing = [name for name in names if not callable(getattr(value, name, None))]
    if missing:
        raise ArgumentError(f"{what} has no method {', '.join(missing)}: {shown(value)}")


# --- arguments of its methods -------------------------------------------------------


def checked_limit(limit: object) -> int:
    """
    Return a limit on the number of lines or jobs.

    Raises:
        ArgumentError: It is not a whole number, 0 or more: SQLite takes a negative limit for
            no limit.
    """
    return _checked_count(limit, "a limit is")


def checked_prefix(prefix: object) -> tuple[UUID, UUID]:
    """
    Return the first and the last UUID that begin with `prefix`.

    Raises:
        ArgumentError: It is not 1 to 32 hexadecimal digits, with hyphens or without.
    """
    digits = prefix.replace("-", "") if isinstance(prefix, str) else ""
    if not re.fullmatch("[0-9a-fA-F]{1,32}", digits):
        raise ArgumentError(f"an id begins with 1 to 32 hexadecimal digits, not {shown(prefix)}")
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def checked_sequence(sequence: object) -> int:
    """
    Return the number of the first line to read.

    Raises:
        ArgumentError: It is not a whole number, 0 or more.
    """
    return _checked_count(sequence, "a line number is")


def checked_before(before: object) -> int | None:
    """
    Return the number of a job, or None. A negative number becomes 0: no job is before it.

    Raises:
        ArgumentError: It is neither a whole number nor None.
    """
    if before is None:
        return None
    if isinstance(before, bool) or not isinstance(before, int):
        raise ArgumentError(f"before is the number of a job, not {shown(before)}")
    return max(0, min(before, MOST))


def checked_after(after: object) -> int | None:
    """
    Return the id of an event; None: that of the last one that exists.

    Raises:
        ArgumentError: It is neither a whole number, 0 or more, nor "now" nor None.
    """
    if after is None or after == "now":
        return None
    return _checked_count(after, 'after is "now" or the id of an event,')


def checked_callback(callback: Any) -> Any:
    """
    Return a function to call.

    Raises:
        ArgumentError: It cannot be called, or is a coroutine function.
    """
    if not callable(callback):
        raise ArgumentError(f"a callback is called, which {shown(callback)} cannot be")
    if inspect.iscoroutinefunction(callback):
        raise ArgumentError(
            f"{shown(callback)} is a coroutine function, and a subscription awaits nothing: "
            "pass a plain function that hands the event to the loop by call_soon_threadsafe"
        )
    return callback


def checked_statuses(status: object) -> list[Status] | None:
    """
    Return the statuses to filter by.

    Raises:
        ArgumentError: One is not a status.
    """
    return None if status is None else [_checked_status(one) for one in _several(status, "status")]


def checked_final(status: object) -> list[Status]:
    """
    Return the statuses of jobs that may be removed.

    Raises:
        ArgumentError: One is not a status, or not a final one.
    """
    statuses = [_checked_status(one) for one in _several(status, "status")]
    for one in statuses:
        if not one.final:
            raise ArgumentError(
                f"only jobs that are final (COMPLETE, ERROR, STOPPED) are pruned, not {one} ones"
            )
    return statuses


def checked_age(seconds: Any) -> float:
    """
    Return an age in seconds.

    Raises:
        ArgumentError: It is not a finite number of seconds, 0 or more.
    """
    if not _is_number(seconds) or not 0 <= seconds <= OLDEST:
        raise ArgumentError(f"an age is 0 or more seconds, not {shown(seconds)}")
    return float(seconds)


def checked_keep(keep: object) -> int | None:
    """
    Return how many of the newest jobs to keep.

    Raises:
        ArgumentError: It is neither a whole number, 0 or more, nor None.
    """
    return None if keep is None else _checked_count(keep, "keep is")


def checked_types(kind: object) -> list[str] | None:
    """
    Return the job types to filter by.

    Raises:
        ArgumentError: One of them is not text.
    """
    if kind is None:
        return None
    return [_checked_text(one, "a job type") for one in _several(kind, "type")]


def required_types(kind: object) -> tuple[str, ...]:
    """
    Return the job types to claim, one or several.

    Raises:
        ArgumentError: It is empty, or an element is not a string.
    """
    types = checked_types(kind)
    if not types:
        raise ArgumentError("claim jobs of one type or several, not of none")
    return tuple(types)


def checked_patience(timeout: Any) -> float:
    """
    Return how many seconds to wait; for None, infinity.

    Raises:
        ArgumentError: It is neither a number nor None, or it is NaN, which would never end.
    """
    if timeout is None:
        return math.inf
    if isinstance(timeout, float) and math.isnan(timeout):
        raise ArgumentError("a time-out of NaN seconds would never be over")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ArgumentError(f"a time-out is a number of seconds, or None, not {shown(timeout)}")
    try:
        return float(timeout)
    except OverflowError:  # an int of hundreds of digits
        return math.inf if timeout > 0 else -math.inf


def checked_one(job_id: T) -> T:
    """
    Return the id of a job to wait for.

    Raises:
        ArgumentError: It is a collection of ids.
    """
    if isinstance(job_id, Iterable) and not isinstance(job_id, (str, bytes)):
        raise ArgumentError(f"wait is for one job, and wait_all for several: {shown(job_id)}")
    return job_id


def checked_ids(job_ids: Iterable[T]) -> list[T]:
    """
    Return the ids of the jobs to wait for.

    Raises:
        ArgumentError: It is a single id, or not iterable.
    """
    if isinstance(job_ids, (str, bytes)) or not isinstance(job_ids, Iterable):
        raise ArgumentError(f"wait_all is for several jobs, and wait for one: {shown(job_ids)}")
    return list(job_ids)


def checked_heartbeat(seconds: Any) -> float:
    """
    Return after how many seconds without a line to send a heartbeat.

    Raises:
        ArgumentError: It is not a finite number of seconds above 0.
    """
    if not _is_number(seconds) or not 0 < seconds <= OLDEST:
        raise ArgumentError(f"a heartbeat is a number of seconds above 0, not {shown(seconds)}")
    return float(seconds)


def checked_most(most: object) -> int:
    """
    Return how many followers to allow.

    Raises:
        ArgumentError: It is not a whole number, 0 or more.
    """
    return min(_checked_count(most, "most is"), MOST_SLOTS)


def checked_lines(lines: tuple[Any, ...]) -> tuple[str | bytes, ...]:
    """
    Return lines for a log.

    Raises:
        ArgumentError: One is neither text nor bytes.
    """
    for line in lines:
        if not isinstance(line, (str, bytes)):
            raise ArgumentError(f"a line is text or bytes, not {type(line).__name__}")
    return lines


def checked_owner(owner: Any) -> str | None:
    """
    Return the owner of a task: "auto", "process" or None.

    Raises:
        ArgumentError: It is none of these.
    """
    if owner not in ("auto", "process", None):
        raise ArgumentError(f'owner is "auto", "process" or None, not {shown(owner)}')
    return None if owner is None else str(owner)


def checked_progress(done: Any, total: Any, message: Any) -> tuple[float, float | None, str | None]:
    """
    Return the progress that a host reports: done, total and message.

    Raises:
        ArgumentError: A number is negative, not finite or not a number, or the message is not text.
    """
    text = None if message is None else _checked_text(message, "a message")
    return _checked_amount(done), None if total is None else _checked_amount(total), text


# --- shared -------------------------------------------------------------------------


def _checked_amount(value: object) -> float:
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            amount = float(value)
            if 0 <= amount < math.inf:  # also false for NaN
                return amount
    except OverflowError:
        pass  # an int of hundreds of digits
    raise ArgumentError(f"progress is a finite number, 0 or more, not {shown(value)}")


def _checked_status(value: Any) -> Status:
    try:
        return Status(value)
    except (ValueError, TypeError, RecursionError):
        known = ", ".join(Status)
        raise ArgumentError(f"{shown(value)} is not a Status: {known}") from None


def _checked_count(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ArgumentError(f"{what} a whole number, 0 or more, not {shown(value)}")
    return min(value, MOST)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _checked_path(value: object, what: str) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise ArgumentError(f"{what} is a path as text, not {shown(value)}")
    if not path or "\0" in path:
        raise ArgumentError(
            f"{what} is a path, not empty and without NUL bytes, not {shown(value)}"
        )
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{what} is a path that cannot be encoded: {shown(value)}") from error
    return path


def _checked_text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"{what} is text, not {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{what} cannot be stored as text: {shown(value)}") from error
    return value


def _several(value: object, what: str) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise ArgumentError(f"{what} is one, or several of them, not {shown(value)}")
    return list(value)
