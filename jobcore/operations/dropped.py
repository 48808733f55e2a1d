"""Ends the threads of a manager that is garbage-collected without `close()`, and warns."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Protocol


class Closable(Protocol):
    """A part of a manager that must be closed."""

    def close(self) -> None:
        """Close it; a second call is harmless."""


class Threaded(Closable, Protocol):
    """A part of a manager that has a thread."""

    @property
    def has_thread(self) -> bool:
        """Whether the thread runs in this process."""

    def close_without_waiting(self, on_end: Callable[[], None]) -> None:
        """Let the thread finish its current work, call `on_end`, and end; do not wait for it."""


def watch(
    manager: object, path: str, threaded: tuple[Threaded, ...], closables: tuple[Closable, ...]
) -> weakref.finalize:  # type: ignore[type-arg]
    """
    Return a finalizer that ends a manager's threads when it is collected, and warns.

    It does nothing at the interpreter's exit, when everything is dropped. `close` detaches it.

    Args:
        manager: The manager.
        path: The path of its database, for the warning.
        threaded: The parts with threads, in the order in which these must end.
        closables: The parts to close after that.
    """
    finalizer = weakref.finalize(manager, _drop, path, threaded, closables)
    finalizer.atexit = False
    return finalizer


def _drop(path: str, threaded: tuple[Threaded, ...], closables: tuple[Closable, ...]) -> None:
    running = [one for one in threaded if one.has_thread]
    if sys.is_finalizing() or not running:
        return
    # Each step runs in the ending thread: the collector may interrupt any code, so it must
    # not wait.
    on_end = partial(_close, closables)
    for one in reversed(running):
        on_end = partial(one.close_without_waiting, on_end)
    on_end()
    warnings.warn(
        f"a JobManager of {os.path.basename(path)} was garbage-collected without close(): its "
        "running jobs continue, and it starts no more; use `with JobManager(...)`",
        ResourceWarning,
        stacklevel=2,
    )


def _close(closables: tuple[Closable, ...]) -> None:
    for one in closables:
        one.close()
