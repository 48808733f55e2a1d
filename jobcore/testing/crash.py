"""
Drops a manager in this process as if its host had been SIGKILLed.

The process lives on, so a test sees in one place what died, what the job did
meanwhile, and what the next manager makes of it.
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

__all__ = ["Crashed", "crash"]

#: The hosts that are dead. A dead one gets past no point any more, whichever thread it is.
_DEAD: weakref.WeakSet[Database] = weakref.WeakSet()


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
    Drop a manager as if its process had been SIGKILLed, now or at a named point.

    Without `at` this happens now. With it this is a context manager, and it
    happens when any thread of that manager comes to the point:

        with crash(jobs, at=failpoints.CLAIMED):
            job = jobs.submit(["true"])

    The thread that comes there gets `Crashed`, which nothing in jobcore swallows
    and the block does: where that is your own thread, the block ends there.
    Leaving the block waits until the point was reached.

    When this returns, nothing of that manager writes, sends, removes or settles
    anything any more: transactions under way were rolled back, descriptors were
    closed and nothing was unlocked (which is what the kernel does), its threads
    have ended, and its subscribers hear nothing more. Every further call on it raises
    `Crashed`, but for `close()` and the end of its `with` block, which do nothing.
    Its supervisors see the end of their sockets, as they do when a host dies, and
    go on with their jobs. Tasks that it started are lost, unless another manager of
    this process has tasks in the same file.

    Three things differ from a SIGKILL. Another thread of the manager that was in
    the middle of something comes to its next point first, as it may do before a
    signal arrives. SQLite's connections are closed, so the last one folds the
    write-ahead log into the file. And this process is still there: what watches
    it by its pid sees no death.

    Args:
        manager: Any that is open in this process; others stay as they are.
        at: One of `jobcore.embedding.failpoints.HOST`. None: now.
        timeout: Seconds to wait for the point, and for the manager's threads to end.

    Raises:
        ValueError: There is no such point of a host, or the manager is closed.
        AssertionError: The point was not reached in time, or a thread did not end;
            the message names it. In the latter case the manager is dead, and what it
            held is open: call `crash` or `close()` again once the thread has ended.
        RuntimeError: It was called by the manager itself, from an executor, say.
    """
    if at is not None and at not in failpoints.HOST:
        raise ValueError(f"{at!r} is no point of a host: see jobcore.embedding.failpoints.HOST")
    if manager._database.closed:  # noqa: SLF001 - see `_crash_at`
        raise ValueError("the manager is closed, or has crashed")
    if at is not None:
        return _crash_at(manager, at, timeout)
    if _stands_in(manager, sys._getframe()):  # noqa: SLF001 - CPython alone has the rest, too
        raise RuntimeError("a manager cannot be dropped from within: name a point with `at=`")
    _kill(manager)
    _bury(manager, timeout)
    return None


@contextmanager
def _crash_at(manager: JobManager, point: str, timeout: float) -> Iterator[None]:
    host = manager._database  # noqa: SLF001 - its points carry it
    reached = threading.Event()

    def strike(where: str, whose: object) -> None:
        if where == point and whose is host:
            _kill(manager)
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
            _bury(manager, timeout)


def _kill(manager: JobManager) -> None:
    """Let no thread of the manager past any point from now on."""
    failpoints.arm(_stop_the_dead)  # for good: the dead stay dead
    _DEAD.add(manager._database)  # noqa: SLF001 - see `_crash_at`
    OPEN.discard(manager)  # so that `close` only closes: it would use the database first
    manager._notifier.mute()  # noqa: SLF001 - closing it would tell them the rest


def _stop_the_dead(_: str, host: object) -> None:
    if isinstance(host, Database) and host in _DEAD:
        raise Crashed(f"the manager of {host.path} has crashed", host)


def _bury(manager: JobManager, timeout: float) -> None:
    """Wait until no thread is inside a dead manager, and close what it held."""
    deadline = time.monotonic() + timeout
    while inside := _threads_in(manager):
        if time.monotonic() > deadline:
            raise AssertionError(f"still in a crashed manager after {timeout:g} s: {inside}")
        time.sleep(0.001)
    # All of it only closes. Done under a thread, a number could be another file's by then.
    manager._ownership.abandon()  # noqa: SLF001 - its tasks are lost, as with its process
    manager._let_go()  # noqa: SLF001 - `close` would stop jobs first


def _threads_in(manager: JobManager) -> list[str]:
    """Return the names of other threads that run code of the manager, each with the place."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way to them
        if ident != threading.get_ident() and (place := _stands_in(manager, frame)):
            found.append(f"{names.get(ident, ident)} in {place}")
    return found


def _stands_in(manager: JobManager, frame: FrameType | None) -> str | None:
    """Return where the manager's code is on a stack; None: nowhere, or asleep in its poll."""
    host = manager._database  # noqa: SLF001 - all its parts have it
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("jobcore."):
            part = frame.f_locals.get("self")
            if isinstance(part, Loop) and frame.f_code.co_name in ("wait", "rest"):
                return None  # whatever wakes it, it comes to a point before it does anything
            if part is host or getattr(part, "_database", None) is host:
                return f"{type(part).__name__}.{frame.f_code.co_name}"
        frame = frame.f_back
    return None
