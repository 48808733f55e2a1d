"""
Telemetry: jobcore's own events, silent until the host listens.

Events go through structlog to the stdlib logger `jobcore`, which has no handler
of ours: without a configured host nothing is printed, with one they arrive in
its logs. jobcore configures neither of the two.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

_LOGGER = logging.getLogger("jobcore")


@lru_cache(maxsize=1)
def _bound() -> Any:
    # structlog is imported at the first event, not at import time, and wraps
    # the stdlib logger: get_logger() would print in an unconfigured host.
    import structlog  # noqa: PLC0415

    # Without it an unconfigured host would see warnings on stderr, by logging's last resort.
    _LOGGER.addHandler(logging.NullHandler())
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


def event(level: int, name: str, /, **fields: Any) -> None:
    """
    Tell the host's log that something happened. Never raises, and never sees a secret.

    Args:
        level: One of logging's levels.
        name: What happened, in a few lower-case words.
        fields: Facts, as key and value.
    """
    if _LOGGER.isEnabledFor(level):
        _bound().log(level, name, **fields)
