"""
Interrupts: what an exception out of a signal handler may leave behind, and who lets go of it.

A Ctrl-C raises KeyboardInterrupt in the main thread between any two bytecodes:
also just behind the `acquire` of a lock and before the `try` that would release
it, or at the first step of an `__exit__`, a `finally` or a `contextmanager`'s
generator, which then does nothing. No code in Python can close that gap from
inside, and a host that keeps the exception keeps all frames that could.

So it is closed from outside. Only the main thread is interrupted, and it enters
jobcore through the facade alone. Whatever it still holds when an exception has
passed the facade was left behind, so there all of it is let go: locks know their
owner (an RLock does), and who has more than locks (a transaction) is asked. The
signal has been spent by then. Another one may come meanwhile, and then all of it
is done again: to let go of what is not held is nothing.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from sys import _getframe, exc_info
from threading import get_ident
from types import FrameType
from typing import Any, ParamSpec, Protocol, TypeVar, cast

#: How often letting go is begun again: each time takes one more Ctrl-C within microseconds.
TRIES = 10

P = ParamSpec("P")
T = TypeVar("T")


class Holder(Protocol):
    """Has more than locks to let go of."""

    def let_go(self) -> None:
        """Let go of all that the calling thread was in the middle of; nothing is harmless."""


class _Inside:
    """
    Where the main thread is.

    Attributes:
        frame: The one by which it has entered the facade; a signal handler may enter once
            more. A Ctrl-C may leave it behind: then it is on the stack no longer.
        ident: Of the main thread.
    """

    frame: FrameType | None = None
    ident = threading.main_thread().ident


_LOCKS: weakref.WeakSet[Any] = weakref.WeakSet()
_HOLDERS: weakref.WeakSet[Holder] = weakref.WeakSet()


def lock() -> Any:  # an RLock, which until 3.13 is no type but a function
    """Return a lock that the main thread cannot leave behind; `Condition` takes it, too."""
    made = threading.RLock()
    _LOCKS.add(made)
    return made


def watch(holder: Holder) -> None:
    """Have `holder` let go of what the main thread leaves behind; it is referred to weakly."""
    _Inside.ident = threading.main_thread().ident  # of before a fork that nobody told of
    _HOLDERS.add(holder)


def forget() -> None:
    """Begin anew, in a forked child: its main thread is the one that forked."""
    _Inside.frame = None
    _Inside.ident = threading.get_ident()


def is_owner(of: Any) -> bool:
    """Tell whether the calling thread holds this lock, an RLock."""
    return bool(of._is_owned())  # noqa: SLF001 - `threading.Condition` rests on it, too


def release(held: Any) -> None:
    """Release a lock as often as the calling thread holds it."""
    while is_owner(held):
        held.release()


def passed(function: Callable[..., T], /, *args: Any, **options: Any) -> T:
    """Call `function` for a host: whatever ends it, nothing of it is held afterwards."""
    if get_ident() != _Inside.ident or _is_inside():
        return function(*args, **options)
    before = exc_info()[1]  # what the host is handling
    _Inside.frame = _getframe()
    try:
        return function(*args, **options)
    except BaseException as error:
        _let_go()
        interrupt = _behind(error, before)
        if interrupt is not None:
            raise interrupt from None
        raise
    finally:
        _Inside.frame = None


def _is_inside() -> bool:
    """Tell whether the main thread, which calls this, has entered the facade before."""
    entered = _Inside.frame
    frame: FrameType | None = None if entered is None else _getframe()
    while frame is not None and frame is not entered:
        frame = frame.f_back
    return frame is not None


def _behind(error: BaseException, before: BaseException | None) -> KeyboardInterrupt | None:
    """
    Return the Ctrl-C in whose place an error came.

    A `with` complains where that hit a `Condition.wait` which had just released the
    lock, and an assertion of SQLAlchemy's where a transaction was half ended.
    """
    while isinstance(error, Exception) and error.__context__ not in (None, before):
        error = error.__context__
    return error if isinstance(error, KeyboardInterrupt) else None


def entrance(method: Callable[P, T]) -> Callable[P, T]:
    """
    Return a method as it is called by hosts; an iterator that it returns is passed, too.

    Each that a host calls is marked so.
    """

    @functools.wraps(method)
    def enter(*args: P.args, **options: P.kwargs) -> T:
        returned = passed(method, *args, **options)
        return cast("T", _Steps(returned)) if inspect.isgenerator(returned) else returned

    return enter


class _Steps(Iterator[T]):
    """A generator, each step of which is an entrance."""

    def __init__(self, steps: Any) -> None:
        self._steps = steps
        self._next: Callable[[], T] = steps.__next__

    def __next__(self) -> T:
        return passed(self._next)

    def close(self) -> None:
        """End it."""
        self._steps.close()


def _let_go() -> None:
    for _ in range(TRIES):
        try:
            for held in members(_LOCKS):
                release(held)
            for holder in members(_HOLDERS):
                holder.let_go()
            for held in members(_LOCKS):  # taken by a holder, when it was interrupted before
                release(held)
        except BaseException:  # noqa: BLE001, S112 - the caller raises what came first
            continue
        return


def members(known: weakref.WeakSet[T]) -> list[T]:
    """Return what is in there now; other threads may add something meanwhile."""
    while True:
        try:
            return list(known)
        except RuntimeError:  # another thread has just added one
            continue
