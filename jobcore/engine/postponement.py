"""
Retries what fails at growing distance, and reports it now and then.

A job, a pipeline or a chore that cannot be read or written must not keep the others
from going on, fill the log, or be tried in a hot loop. Nothing here reads a clock or
waits: the time is what the caller says it is.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from jobcore.embedding import telemetry
from jobcore.errors import (
    DatabaseBusy,
    DatabaseFull,
    DatabaseGone,
    JobcoreError,
    ReadOnlyDatabase,
    SpawnError,
    StoreError,
)

#: Seconds until the next try: at first, and at the most. In between it doubles.
FIRST, LONGEST = 0.5, 30.0
#: Seconds after which a failure that goes on is told again.
TOLD_EVERY = 3600.0
#: Failures that are told at once.
MOST_TOLD = 20
#: A failure is persistent after so many in a row, over so many seconds.
PERSISTENT_FAILURES, PERSISTENT_SECONDS = 3, 10.0
#: Errors of the machine, not of one job: it ran out of space, descriptors or memory.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: What ends by itself, or by what its own message says, for all jobs at once.
_OF_ALL = (DatabaseBusy, DatabaseFull, DatabaseGone)


class Failure(NamedTuple):
    """
    What has failed, again and again, since it last succeeded.

    Attributes:
        error: The last one.
        times: How often, in a row.
        since: When it failed first.
        last: When it failed last.
        until: Not before then it is tried again.
        told: When it was told last.
    """

    error: Exception
    times: int
    since: float
    last: float
    until: float
    told: float

    @property
    def cause(self) -> str:
        """Why, in words."""
        return in_words(self.error)

    def for_waiter(self, what: str) -> JobcoreError:
        """
        Return a new error for one who waits for `what`, with the cause.

        Each waiter gets its own: what raises an error changes its traceback.
        """
        error = self.error
        words = str(error) if isinstance(error, JobcoreError) else self.cause
        kind = type(error) if isinstance(error, StoreError) else SpawnError
        told = kind(f"{what}: {words}", getattr(error, "errno", None))
        if isinstance(error, SpawnError) and isinstance(told, SpawnError):
            told.lasting = error.lasting
        told.__cause__ = error
        return told


class Postponement:
    """
    Remembers what fails, by a key of the caller's: a job, a pipeline, a chore.

    Any thread may call this: each entry is one value, replaced as a whole.

    Args:
        now: Returns seconds from some fixed moment on.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failures: dict[Hashable, Failure] = {}

    def fail(self, key: Hashable, error: Exception, event: str, /, **fields: Any) -> float:
        """
        Note a failure, and tell the log if it is new, has another cause, or an hour is over.

        Args:
            key: Of what has failed.
            error: Why.
            event: The log event.
            fields: Its facts, beside the error.

        Returns:
            Seconds until the next try.
        """
        now = self._now()
        before = self._failures.get(key)
        since = now if before is None else before.since
        # As long as it has failed so far: then it does not matter how many ask.
        longest = FIRST if is_of_all(error) else LONGEST
        delay = min(max(now - since, FIRST), longest)
        tell = before is None or before.cause != in_words(error) or now - before.told >= TOLD_EVERY
        self._failures[key] = Failure(
            error=error,
            times=1 if before is None else before.times + 1,
            since=since,
            last=now,
            until=now + delay,
            told=now if before is None or tell else before.told,
        )
        if tell:
            self._forget_old(now)
            telemetry.event(_level_of(error), event, **fields, error=in_words(error))
        return delay

    def succeed(self, key: Hashable) -> None:
        """Note that it works: the next failure is a new one."""
        self._failures.pop(key, None)

    def fails(self, key: Hashable) -> bool:
        """Tell whether it has failed, and not succeeded since."""
        return key in self._failures

    def is_due(self, key: Hashable) -> bool:
        """Tell whether it may be tried now."""
        return self.delay(key) <= 0

    def delay(self, key: Hashable) -> float:
        """Return the seconds until it may be tried; 0: now."""
        failure = self._failures.get(key)
        return 0.0 if failure is None else max(failure.until - self._now(), 0.0)

    def waiting(self) -> set[Hashable]:
        """Return the keys of all that is not to be tried now."""
        now = self._now()
        return {key for key, failure in list(self._failures.items()) if failure.until > now}

    def now(self) -> float:
        """Return the time, as failures are stamped with it."""
        return self._now()

    def hurry(self, key: Hashable) -> None:
        """Have it tried soon: somebody waits for it, and the reason may be gone."""
        failure = self._failures.get(key)
        if failure is not None:
            until = min(failure.until, failure.last + FIRST)
            self._failures[key] = failure._replace(until=until)

    def persistent(self, key: Hashable, begun: float = 0.0) -> Failure | None:
        """
        Return its failure if waiters are to be told: several in a row, for some time; else None.

        What cannot pass by itself is told at once. What is the database's trouble, and
        passes, is never told: it is busy, full, or cannot be written now.

        Args:
            begun: When the waiter began: it must have failed since, or it is no news.
        """
        failure = self._failures.get(key)
        if failure is None or is_passing(failure.error):
            return None
        if isinstance(failure.error, SpawnError) and failure.error.lasting:
            return failure
        if failure.times < PERSISTENT_FAILURES or failure.last < begun:
            return None
        return failure if self._now() - failure.since >= PERSISTENT_SECONDS else None

    def failures(self) -> dict[Hashable, Failure]:
        """Return what fails at the moment, by its key, the newest last."""
        return dict(self._failures)

    def in_words(self) -> list[str]:
        """Return what fails at the moment, each with how often and why; of very many, the last."""
        failures = list(self._failures.items())
        said = [
            f"{_name(key)} failed {failure.times} times in a row: {failure.cause}"
            for key, failure in failures[-MOST_TOLD:]
        ]
        if len(failures) > MOST_TOLD:
            said.append(f"and {len(failures) - MOST_TOLD} more")
        return said

    def forget(self) -> None:
        """Begin anew, in a forked child: what failed there is the parent's affair."""
        self._failures.clear()

    def _forget_old(self, now: float) -> None:
        """Forget what has not been tried for long: its job is gone, say."""
        for key, failure in list(self._failures.items()):
            if now - failure.until > TOLD_EVERY:
                self._failures.pop(key, None)


def is_of_all(error: Exception) -> bool:
    """Tell whether an error concerns the database or the machine, not one job."""
    return isinstance(error, _OF_ALL) or getattr(error, "errno", None) in NO_ROOM


def is_passing(error: Exception) -> bool:
    """Tell whether an error is one that waiters are never told: a busy, full or read-only disk."""
    return isinstance(error, (DatabaseBusy, DatabaseFull, ReadOnlyDatabase)) or (
        getattr(error, "errno", None) in (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
    )


def in_words(error: BaseException) -> str:
    """Return what an error says, with its type; an exception may not even be able to say that."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - somebody else's `__str__`
        return type(error).__name__


def _name(key: Hashable) -> str:
    if isinstance(key, tuple):  # a kind of thing, and its id or number
        kind, what = key
        return f"{kind} number {what}" if isinstance(what, int) else f"{kind} {what}"
    return f"job number {key}" if isinstance(key, int) else str(key)


def _level_of(error: Exception) -> int:
    known = isinstance(error, (JobcoreError, OSError))
    return logging.WARNING if known else logging.ERROR
