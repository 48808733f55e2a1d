"""
Log events of jobcore, written through the logging that the host has configured.

If the host has configured structlog, events go through its processors, as if it called
`structlog.get_logger("jobcore")`. Otherwise they go to the standard library's logger
`jobcore`, if that has a handler. Jobcore configures neither of the two and adds no handler.
It only resets that logger's flag `disabled`.
"""

from __future__ import annotations

import logging
import sys
import threading
from functools import lru_cache
from inspect import CO_COROUTINE
from typing import Any, NamedTuple

_LOGGER = logging.getLogger("jobcore")
#: All loggers of structlog have these methods; not all have `log(level, ...)`.
_METHODS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}


class Event(NamedTuple):
    """A log event: its level, what happened, and facts."""

    level: int
    name: str
    fields: dict[str, Any]


class _Collecting(threading.local):
    """The list that collects the events of the calling thread; None: log them at once."""

    events: list[Event] | None = None


_COLLECTING = _Collecting()


class Collected:
    """
    A context manager that appends the events of this thread to a list, to be logged later.

    A logging handler of the host may do anything, so none must be called in a thread that
    holds the write lock.

    Args:
        events: The list. Another thread may log its events.
    """

    __slots__ = ("_before", "_events")

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def __enter__(self) -> None:
        """Begin to collect."""
        self._before = _COLLECTING.events
        _COLLECTING.events = self._events

    def __exit__(self, *_: object) -> None:
        """Do with later events what was done before."""
        _COLLECTING.events = self._before


def event(level: int, name: str, /, **fields: Any) -> None:
    """
    Log an event, or collect it. Never raises. Callers must not pass secrets.

    Args:
        level: One of logging's five levels.
        name: What happened, in a few lower-case words.
        fields: Facts, as key and value.
    """
    happened = Event(level, name, fields)
    collecting = _COLLECTING.events
    if collecting is None:
        log(happened)
    else:
        collecting.append(happened)


def log(happened: Event) -> None:
    """Write an event to the host's log now. Never raises."""
    level, name, fields = happened
    try:
        # By default, dictConfig and fileConfig disable all existing loggers. A host that wants
        # no events from jobcore sets the level instead.
        _LOGGER.disabled = False
        logger = _hosts()
        if logger is not None:
            getattr(logger, _METHODS[level])(name, **fields)
        # Without a handler, `logging.lastResort` would print warnings to stderr.
        elif _LOGGER.isEnabledFor(level) and _LOGGER.hasHandlers():
            _bound().log(level, name, **fields)
    except Exception:  # noqa: BLE001, S110 - a failure of the host's logging must not fail a job
        pass


def _hosts() -> Any:
    """Return a logger of the host's structlog; None: the host has not configured it so far."""
    # Do not import it here: a host that has configured structlog has imported it. While
    # another thread imports it, the module may not have `is_configured` yet.
    structlog = sys.modules.get("structlog")
    is_configured = getattr(structlog, "is_configured", None)
    if structlog is None or is_configured is None or not is_configured():
        return None
    if _is_async(structlog.get_config()["wrapper_class"]):
        # An async logger needs a running event loop, which jobcore's threads do not have.
        return structlog.wrap_logger(
            None, wrapper_class=structlog.stdlib.BoundLogger, logger_factory_args=("jobcore",)
        )
    return structlog.get_logger("jobcore")


def _is_async(wrapper: Any) -> bool:
    """Tell whether the methods of a logger class must be awaited."""
    code = getattr(getattr(wrapper, "info", None), "__code__", None)
    return code is not None and bool(code.co_flags & CO_COROUTINE)


@lru_cache(maxsize=1)
def _bound() -> Any:
    # Imported with the first event that is logged. It wraps the stdlib logger, because an
    # unconfigured `structlog.get_logger()` would print to stdout.
    import structlog  # noqa: PLC0415

    return structlog.wrap_logger(
        _LOGGER,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
