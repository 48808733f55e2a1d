"""Retries: how often a job is tried again, after which endings, and after what pause."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar
from uuid import UUID

from jobcore import checks
from jobcore.errors import ArgumentError, DatabaseCorrupt, shown
from jobcore.lifecycle import UNOBSERVED, Reason, Status
from jobcore.tuning import MOST_RETRIES

#: The words of `Retries.on`.
ENDINGS = ("error", "timeout", "lost")
#: The largest `factor`. A larger one would reach `max_delay` at once.
_LARGEST_FACTOR = 1000.0
#: Further attempts no longer lengthen the delay, so that the power cannot overflow.
_MOST_POWER = 100


@dataclass(frozen=True)
class Retries:
    """
    How often a job is tried again, after which endings, and after what pause.

    A retry is a new job. A job that someone asked to stop is not retried.

    Args:
        max: The largest number of retries, up to 1,000.
        delay: Seconds between the end of the first attempt and the first retry. Or the delays
            before each retry, such as `(10, 60, 300)`, of which the last one repeats; `factor`
            and `max_delay` do not matter then.
        factor: How many times as long each delay is as the one before; 1: all are the same.
        max_delay: The longest delay, in seconds.
        jitter: Which part of each delay is random, from 0 to 1, so that jobs that failed together
            are not retried together: 0.2 turns 10 s into 8 to 12 s.
        on: The endings that are retried. `error`: status ERROR. `timeout`: STOPPED by its
            time-out. `lost`: the process that ran it died, so nothing saw how it ended, or it
            never started.

    Raises:
        ArgumentError: A value is of the wrong type or out of range.
    """

    max: int
    delay: float | tuple[float, ...] = 10.0
    factor: float = 2.0
    max_delay: float = 3600.0
    jitter: float = 0.0
    on: tuple[str, ...] = ("error", "lost")

    #: For models with such a field: their JSON has camelCase names.
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "alias_generator": lambda name: {"max_delay": "maxDelay"}.get(name, name),
        "populate_by_name": True,
        "serialize_by_alias": True,
    }

    def __post_init__(self) -> None:
        """Check all values."""
        words = checks.several(self.on, "on")
        kept = {
            "max": checks.integer(self.max, "max", 0, MOST_RETRIES),
            "delay": _delays(self.delay),
            "factor": _number(self.factor, "factor", 1.0, _LARGEST_FACTOR),
            "max_delay": checks.seconds(self.max_delay, "max_delay"),
            "jitter": _number(self.jitter, "jitter", 0.0, 1.0),
            "on": tuple(checks.one_of(word, "on", ENDINGS) for word in words),
        }
        if not words:
            raise ArgumentError(f"on must name at least one of {', '.join(ENDINGS)}")
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    def to_json(self) -> str:
        """Return the form in which it is stored."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Retries:
        """
        Return what `to_json` stored.

        Args:
            text: A text that `to_json` returned.

        Raises:
            DatabaseCorrupt: `text` is not a stored value.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError, LookupError) as error:
            raise DatabaseCorrupt(f"stored retries are invalid: {type(error).__name__}") from error


def allows(
    retries: Retries,
    status: Status,
    reason: Reason | None,
    *,
    attempt: int,
    stop_requested: bool = False,
) -> bool:
    """Tell whether attempt number `attempt`, from 1, is retried after it has ended so."""
    if attempt > retries.max or stop_requested:
        return False
    if status is Status.ERROR:
        return ("lost" if reason in UNOBSERVED else "error") in retries.on
    return status is Status.STOPPED and reason is Reason.TIMEOUT and "timeout" in retries.on


def delay_after(retries: Retries, attempt: int, job_id: UUID) -> float:
    """
    Return the seconds between the end of an attempt and the next one.

    Args:
        attempt: The number of the attempt that has ended, from 1.
        job_id: The job that has ended. Its random digits are the source of the jitter, so the
            same job always has the same delay.
    """
    before, delay = max(attempt, 1) - 1, retries.delay
    if isinstance(delay, tuple):
        pause = delay[min(before, len(delay) - 1)]
    else:
        pause = min(delay * retries.factor ** min(before, _MOST_POWER), retries.max_delay)
    chance = (job_id.int & 0xFFFF_FFFF) / 2**32
    return pause * (1 + retries.jitter * (2 * chance - 1))


def checked_retries(value: Retries | int | None) -> Retries | None:
    """Return the argument `retries`; a number becomes `Retries(number)`."""
    if value is None or isinstance(value, Retries):
        return value
    given: object = value  # callers may pass anything
    if not checks.is_integer(given):
        raise ArgumentError(f"retries must be a number or Retries, not {type(given).__name__}")
    return Retries(value)


def _delays(given: Any) -> float | tuple[float, ...]:
    if not isinstance(given, (list, tuple)):
        return checks.seconds(given, "delay")
    if not 1 <= len(given) <= MOST_RETRIES:
        raise ArgumentError(f"delay must have 1 to {MOST_RETRIES} values, not {len(given)}")
    return tuple(checks.seconds(one, "delay") for one in given)


def _number(value: Any, what: str, least: float, most: float) -> float:
    if not checks.is_number(value) or not least <= value <= most:
        raise ArgumentError(
            f"{what} must be a number from {least:g} to {most:g}, not {shown(value)}"
        )
    return float(value)
