"""
Crashes a manager in this process as if its host had been SIGKILLed.

The process continues, so one test can check what died, what the job did meanwhile, and how
the next manager handles it.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import overload

from jobcore.embedding import failpoints
from jobcore.embedding.failpoints import Crashed
from jobcore.engine.thread_loop import Loop
from jobcore.manager import OPEN, JobManager
from jobcore.storage.database import Database
from jobcore.testing.parts import parts

__all__ = ["Crashed", "crash"]

#: The crashed hosts. No thread of a crashed host passes another failpoint.
_CRASHED: weakref.WeakSet[Database] = weakref.WeakSet()


@overload
def crash(manager: JobManager, at: None = None, *, timeout: float = ...) -> None: ...


@overload
def crash(
    manager: JobManager, at: str, *, timeout: float = ...
) -> AbstractContextManager[None]: ...


def crash(
    manager: JobManager, at: str | None = None, *, timeout: float = 30.0
) -> AbstractContextManager[None] | None:
    """
    Crash a manager as if its process had been SIGKILLed, now or at a failpoint.

    Without `at` it crashes now. With `at` this returns a context manager, and the manager
    crashes when any of its threads reaches the failpoint:

        with crash(jobs, at=failpoints.CLAIMED):
            job = jobs.submit(["true"])

    The thread that reaches the failpoint gets `Crashed`. Nothing in jobcore catches it; the
    `with` block does. So if it is your own thread, the block ends there. Leaving the block
    waits until the failpoint was reached.

    When this returns, the manager writes, sends, removes and settles nothing any more. Open
    transactions were rolled back; descriptors were closed without unlocking, as the kernel
    does; its threads have ended; and its subscribers get no more events. Every further call
    on it raises `Crashed`, except `close()` and the end of its `with` block, which are
    no-ops. Its supervisors see the end of their sockets, as when a host dies, and continue
    their jobs. Tasks that it started are lost, unless another manager of this process has
    tasks in the same file.

    Three things differ from a SIGKILL. Other threads of the manager continue until their
    next failpoint, as they may before a signal arrives. SQLite's connections are closed, so
    the last one moves the write-ahead log into the file. And this process still exists, so
    a program that watches its pid sees no death.

    Args:
        manager: Any open manager of this process. Other managers are not affected.
        at: One of `jobcore.embedding.failpoints.HOST`. None: now.
        timeout: Seconds to wait for the failpoint, and for the manager's threads to end.

    Raises:
        ValueError: Hosts have no such failpoint, or the manager is closed.
        AssertionError: The failpoint was not reached in time, or a thread did not end; the
            message names it. If a thread did not end, the manager has crashed but its
            descriptors are open: call `crash` or `close()` again when it has ended.
        RuntimeError: The manager itself made the call, for example in an executor.
    """
    if at is not None and at not in failpoints.HOST:
        raise ValueError(
            f"{at!r} is not a failpoint of a host: see jobcore.embedding.failpoints.HOST"
        )
    if parts(manager).database.closed:
        raise ValueError("the manager is closed, or has crashed")
    if at is not None:
        return _crash_at(manager, at, timeout)
    if _method_in(manager, sys._getframe()):  # noqa: SLF001 - only CPython is supported anyway
        raise RuntimeError("a manager cannot crash itself: name a failpoint with `at=`")
    _stop_threads(manager)
    _close_descriptors(manager, timeout)
    return None


@contextmanager
def _crash_at(manager: JobManager, point: str, timeout: float) -> Iterator[None]:
    host = parts(manager).database  # failpoints get it as `host`
    reached = threading.Event()

    def strike(where: str, whose: object) -> None:
        if where == point and whose is host:
            _stop_threads(manager)
            reached.set()
            raise Crashed(f"the manager of {host.path} crashed at {point!r}", host)

    failpoints.arm(strike)
    try:
        try:
            yield
        except Crashed as crashed:
            if crashed.host is not host:
                raise
        if not reached.wait(timeout):
            raise AssertionError(f"the point {point!r} was not reached within {timeout:g} s")
    finally:
        failpoints.disarm(strike)
        if reached.is_set():
            _close_descriptors(manager, timeout)


def _stop_threads(manager: JobManager) -> None:
    """Stop every thread of the manager at its next failpoint."""
    failpoints.arm(_stop_crashed_threads)  # never disarmed
    _CRASHED.add(parts(manager).database)
    OPEN.discard(manager)  # so that `close` does not use the database first
    parts(manager).notifier.mute()  # closing it would deliver the remaining events


def _stop_crashed_threads(_: str, host: object) -> None:
    if isinstance(host, Database) and host in _CRASHED:
        raise Crashed(f"the manager of {host.path} has crashed", host)


def _close_descriptors(manager: JobManager, timeout: float) -> None:
    """Wait until no thread is inside a crashed manager, then close its descriptors."""
    deadline = time.monotonic() + timeout
    while inside := _threads_in(manager):
        if time.monotonic() > deadline:
            raise AssertionError(f"still in a crashed manager after {timeout:g} s: {inside}")
        time.sleep(0.001)
    # This only closes. With a thread still inside, that could use a reused descriptor number.
    parts(manager).ownership.abandon()  # its tasks are lost, as if its process had died
    manager._let_go()  # noqa: SLF001 - `close` would stop jobs first


def _threads_in(manager: JobManager) -> list[str]:
    """Return the names of other threads that run code of the manager, each with its location."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way to them
        if ident != threading.get_ident() and (place := _method_in(manager, frame)):
            found.append(f"{names.get(ident, ident)} in {place}")
    return found


def _method_in(manager: JobManager, frame: FrameType | None) -> str | None:
    """Return where a stack runs the manager's code; None: nowhere, or only waiting in its poll."""
    host = parts(manager).database  # all parts of a manager reference it
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("jobcore."):
            part = frame.f_locals.get("self")
            if isinstance(part, Loop) and frame.f_code.co_name in ("wait", "rest"):
                return None  # when it wakes, it reaches a failpoint before it does anything
            if part is host or getattr(part, "_database", None) is host:
                return f"{type(part).__name__}.{frame.f_code.co_name}"
        frame = frame.f_back
    return None
