"""
jobcore's log events, written through the host's logging as the host configured it.

A host that has configured structlog gets them from its own processors, as if it
had said `structlog.get_logger("jobcore")` itself. For one that only has handlers
for logging they go to the stdlib logger `jobcore`. jobcore configures neither of
the two, and adds no handler. Only that logger's flag `disabled` it does not accept.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from inspect import CO_COROUTINE
from typing import Any, NamedTuple

_LOGGER = logging.getLogger("jobcore")
#: structlog's loggers all have these; not all of them have `log(level, ...)`.
_METHODS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}


class Event(NamedTuple):
    """What is to be told: the level, what happened, and facts."""

    level: int
    name: str
    fields: dict[str, Any]


class _Collecting(threading.local):
    """Where the events of the calling thread go; None: to the host's log at once."""

    events: list[Event] | None = None


_COLLECTING = _Collecting()


@contextmanager
def collected(events: list[Event]) -> Iterator[None]:
    """
    Append what this thread tells to `events`; another thread logs it later.

    A handler of the host's may do anything, so none is called in a thread that has
    the write lock.
    """
    before = _COLLECTING.events
    _COLLECTING.events = events
    try:
        yield
    finally:
        _COLLECTING.events = before


def event(level: int, name: str, /, **fields: Any) -> None:
    """
    Tell the host's log that something happened. Never raises, and never sees a secret.

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
    """Give an event to the host's log now. Never raises."""
    level, name, fields = happened
    try:
        # dictConfig and fileConfig disable every logger that exists by then, unless they are
        # told otherwise. A host that wants to hear nothing sets the level.
        _LOGGER.disabled = False
        logger = _hosts()
        if logger is not None:
            getattr(logger, _METHODS[level])(name, **fields)
        # Without a handler logging would print warnings to stderr, by its last resort.
        elif _LOGGER.isEnabledFor(level) and _LOGGER.hasHandlers():
            _bound().log(level, name, **fields)
    except Exception:  # noqa: BLE001, S110 - the host's log is what fails, and no job may by that
        pass


def _hosts() -> Any:
    """Return the host's structlog, if it has configured one by now; it may at any time."""
    # Not imported for that: who has configured it has it loaded, and one that
    # another thread is just loading has no `is_configured` yet.
    structlog = sys.modules.get("structlog")
    is_configured = getattr(structlog, "is_configured", None)
    if structlog is None or is_configured is None or not is_configured():
        return None
    if _is_async(structlog.get_config()["wrapper_class"]):
        # It needs a running event loop, which jobcore's threads have not.
        return structlog.wrap_logger(
            None, wrapper_class=structlog.stdlib.BoundLogger, logger_factory_args=("jobcore",)
        )
    return structlog.get_logger("jobcore")


def _is_async(wrapper: Any) -> bool:
    """Tell whether the methods of a logger's class have to be awaited."""
    code = getattr(getattr(wrapper, "info", None), "__code__", None)
    return code is not None and bool(code.co_flags & CO_COROUTINE)


@lru_cache(maxsize=1)
def _bound() -> Any:
    # Imported at the first event that somebody listens to. It wraps the stdlib
    # logger: in a host that has not configured structlog, get_logger() would print.
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
