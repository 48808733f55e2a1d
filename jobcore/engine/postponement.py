"""
Backs off from work that fails, and limits how often it is logged.

A job, a pipeline or a chore that cannot be read or written must not hold up the others, fill the
log, or be retried in a hot loop. This module neither reads a clock nor waits: the caller provides
the time.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from jobcore import tuning
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

#: The key of failures to start supervisors.
SUPERVISORS = "supervisors"
#: The most failures that are listed together.
MOST_LISTED = 20
#: Errors of the machine, not of one job: it ran out of space, descriptors or memory.
SHORTAGES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: Errors of the database that concern all jobs at once.
_DATABASE_ERRORS = (DatabaseBusy, DatabaseFull, DatabaseGone)


class Failure(NamedTuple):
    """
    A failure, and its repetitions since the last success.

    Attributes:
        error: The last error.
        times: How many failures there were in a row.
        since: The time of the first one.
        last: The time of the last one.
        until: The earliest time of the next try.
        logged: When it was last logged.
    """

    error: Exception
    times: int
    since: float
    last: float
    until: float
    logged: float

    @property
    def cause(self) -> str:
        """The type and text of the last error."""
        return in_words(self.error)

    def for_waiter(self, what: str) -> JobcoreError:
        """
        Return a new error for a waiter: `what`, and the cause.

        Each waiter gets its own error, because raising an error changes its traceback.
        """
        error = self.error
        words = str(error) if isinstance(error, JobcoreError) else self.cause
        kind = type(error) if isinstance(error, StoreError) else SpawnError
        raised = kind(f"{what}: {words}", getattr(error, "errno", None))
        if isinstance(error, SpawnError) and isinstance(raised, SpawnError):
            raised.lasting = error.lasting
        raised.__cause__ = error
        return raised


class Postponement:
    """
    Remembers failures by a key that the caller chooses: for a job, a pipeline or a chore.

    Any thread may use it: each entry is one value that is replaced as a whole.

    Attributes:
        now: Returns seconds since some fixed moment.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._failures: dict[Hashable, Failure] = {}

    def fail(self, key: Hashable, error: Exception, event: str, /, **fields: Any) -> float:
        """
        Note a failure. Log it if it is new, has another cause, or was logged an hour ago.

        Args:
            key: The key of what has failed.
            error: The error.
            event: The log event.
            fields: The fields of that event, in addition to the error.

        Returns:
            Seconds until the next try.
        """
        now = self.now()
        before = self._failures.get(key)
        since = now if before is None else before.since
        # Wait as long as it has failed so far, so that the pause does not depend on how many
        # callers try.
        longest = tuning.FIRST_PAUSE if concerns_all_jobs(error) else tuning.LONGEST_PAUSE
        delay = min(max(now - since, tuning.FIRST_PAUSE), longest)
        log = (
            before is None
            or before.cause != in_words(error)
            or now - before.logged >= tuning.LOG_EVERY
        )
        self._failures[key] = Failure(
            error=error,
            times=1 if before is None else before.times + 1,
            since=since,
            last=now,
            until=now + delay,
            logged=now if before is None or log else before.logged,
        )
        if log:
            self._forget_old(now)
            known = isinstance(error, (JobcoreError, OSError))
            level = logging.WARNING if known else logging.ERROR
            telemetry.event(level, event, **fields, error=in_words(error))
        return delay

    def succeed(self, key: Hashable) -> None:
        """Note a success: the next failure is a new one."""
        self._failures.pop(key, None)

    def fails(self, key: Hashable) -> bool:
        """Tell whether it has failed and not succeeded since."""
        return key in self._failures

    def is_due(self, key: Hashable) -> bool:
        """Tell whether it may be tried now."""
        return self.delay(key) <= 0

    def delay(self, key: Hashable) -> float:
        """Return the seconds until it may be tried; 0: now."""
        failure = self._failures.get(key)
        return 0.0 if failure is None else max(failure.until - self.now(), 0.0)

    def waiting(self) -> set[Hashable]:
        """Return the keys of everything that must not be tried yet."""
        if not self._failures:
            return set()
        now = self.now()
        return {key for key, failure in list(self._failures.items()) if failure.until > now}

    def retry_soon(self, key: Hashable) -> None:
        """Allow an early retry: a caller waits for it, and the cause may be gone."""
        failure = self._failures.get(key)
        if failure is not None:
            until = min(failure.until, failure.last + tuning.FIRST_PAUSE)
            self._failures[key] = failure._replace(until=until)

    def persistent(self, key: Hashable, begun: float = 0.0) -> Failure | None:
        """
        Return its failure if it is persistent, so that waiters should get an error; else None.

        It is persistent after several failures in a row over some time, or at once if it cannot
        pass by itself. A busy, full or read-only database is never persistent.

        Args:
            begun: When the waiter began. The last failure must be later.
        """
        failure = self._failures.get(key)
        if failure is None or _is_transient(failure.error):
            return None
        if isinstance(failure.error, SpawnError) and failure.error.lasting:
            return failure
        if failure.times < tuning.PERSISTENT_FAILURES or failure.last < begun:
            return None
        return failure if self.now() - failure.since >= tuning.PERSISTENT_SECONDS else None

    def failures(self) -> dict[Hashable, Failure]:
        """Return all current failures by key, the newest last."""
        return dict(self._failures)

    def in_words(self) -> list[str]:
        """Return a line for each current failure, with its count and cause; at most the last 20."""
        failures = list(self._failures.items())
        lines = [
            f"{_name(key)} failed {failure.times} times in a row: {failure.cause}"
            for key, failure in failures[-MOST_LISTED:]
        ]
        if len(failures) > MOST_LISTED:
            lines.append(f"and {len(failures) - MOST_LISTED} more")
        return lines

    def forget(self) -> None:
        """Start over in a forked child: these failures are the parent's."""
        self._failures.clear()

    def _forget_old(self, now: float) -> None:
        """Forget failures that were not retried for long, for example because the job is gone."""
        for key, failure in list(self._failures.items()):
            if now - failure.until > tuning.LOG_EVERY:
                self._failures.pop(key, None)


def concerns_all_jobs(error: Exception) -> bool:
    """Tell whether an error concerns the database or the machine, not one job."""
    return isinstance(error, _DATABASE_ERRORS) or getattr(error, "errno", None) in SHORTAGES


def _is_transient(error: Exception) -> bool:
    """Tell whether waiters should not get this error: a busy, full or read-only database."""
    return isinstance(error, (DatabaseBusy, DatabaseFull, ReadOnlyDatabase)) or (
        getattr(error, "errno", None) in (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
    )


def in_words(error: BaseException) -> str:
    """Return the type and text of an error, or only the type if its `__str__` fails."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a `__str__` of other code
        return type(error).__name__


def _name(key: Hashable) -> str:
    if isinstance(key, tuple):  # a kind of thing, and its id or number
        kind, what = key
        return f"{kind} number {what}" if isinstance(what, int) else f"{kind} {what}"
    return f"job number {key}" if isinstance(key, int) else str(key)
