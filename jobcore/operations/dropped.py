"""A manager that was dropped without `close()`: its thread ends, with a warning."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Protocol


class Closable(Protocol):
    """Something of a manager's that is to be closed."""

    def close(self) -> None:
        """Close it; again is harmless."""


class Threaded(Closable, Protocol):
    """Something of a manager's with a thread of its own."""

    @property
    def has_thread(self) -> bool:
        """Whether the thread runs in this process."""

    def leave(self, then: Callable[[], None]) -> None:
        """End the thread after what it does now, and call `then` in it; wait for nothing."""


def watch(
    manager: object, path: str, threaded: tuple[Threaded, ...], closables: tuple[Closable, ...]
) -> weakref.finalize:  # type: ignore[type-arg]
    """
    End the threads of a manager when it is dropped, and warn then; `detach` ends the watch.

    Not at the interpreter's exit, where everything is dropped.

    Args:
        manager: The manager.
        path: Of its database, for the warning.
        threaded: What has threads, in the order in which they are to end.
        closables: What is closed after that.
    """
    finalizer = weakref.finalize(manager, _drop, path, threaded, closables)
    finalizer.atexit = False
    return finalizer


def _drop(path: str, threaded: tuple[Threaded, ...], closables: tuple[Closable, ...]) -> None:
    running = [one for one in threaded if one.has_thread]
    if sys.is_finalizing() or not running:
        return
    # In those threads: the collector comes in the middle of anything, and must not wait.
    then = partial(_close, closables)
    for one in reversed(running):
        then = partial(one.leave, then)
    then()
    warnings.warn(
        f"a JobManager of {os.path.basename(path)} was dropped without close(): its running jobs "
        "go on, and nothing more is started by it; use `with JobManager(...)`",
        ResourceWarning,
        stacklevel=2,
    )


def _close(closables: tuple[Closable, ...]) -> None:
    for one in closables:
        one.close()
