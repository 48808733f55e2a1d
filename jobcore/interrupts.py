"""
Interrupts: what an exception at any point may leave behind, and who lets go of it.

A Ctrl-C raises KeyboardInterrupt in the main thread between any two bytecodes:
also just behind the `acquire` of a lock and before the `try` that would release
it, or at the first step of an `__exit__`, a `finally` or a `contextmanager`'s
generator, which then does nothing. In any thread a stack that is full, or a
memory that is, does the same where a function is called. No code in Python can
close that gap from inside, and a host that keeps the exception keeps all frames
that could.

So it is closed from outside. A host's threads enter jobcore through the facade
alone. Whatever a thread still holds when an exception has passed the facade was
left behind, so there all of it is let go: locks know their owner (an RLock
does), and who has more than locks (a transaction) is asked. The signal has been
spent by then. Another one may come meanwhile, and then all of it is done again:
to let go of what is not held is nothing.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from itertools import chain
from signal import getsignal, valid_signals
from sys import _current_frames, _getframe, exc_info, getrecursionlimit, setrecursionlimit
from types import FrameType
from typing import Any, ParamSpec, Protocol, TypeVar, cast

#: How often letting go is begun again: each time takes one more Ctrl-C within microseconds.
TRIES = 10
#: Calls, one inside the other, that a call needs: some 60 with those of SQLAlchemy and logging.
ROOM = 150

P = ParamSpec("P")
T = TypeVar("T")


def is_over(frame: FrameType) -> bool:
    """
    Tell whether a call has ended, though an exception that is kept may still have its frame.

    The local variables of a call that has ended are cleared by that.
    """
    if frame.f_code.co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR):
        return not any(_is_on(frame, top) for top in _current_frames().values())
    try:
        frame.clear()
    except RuntimeError:
        return False  # it is executed, in any thread, or in a greenlet that waits
    return True


def _is_on(frame: FrameType, top: FrameType | None) -> bool:
    while top is not None and top is not frame:
        top = top.f_back
    return top is not None


class Holder(Protocol):
    """Has more than locks to let go of."""

    def let_go(self) -> None:
        """Let go of all that the calling thread was in the middle of; nothing is harmless."""


class _Inside(threading.local):
    """
    Where the calling thread is.

    Attributes:
        frame: The one by which it has entered the facade; a signal handler may enter once
            more. A Ctrl-C may leave it behind: then it is on the stack no longer.
        before: What the host was handling then, which is no reason of what comes later.
    """

    frame: FrameType | None = None
    before: BaseException | None = None


_INSIDE = _Inside()
_LOCKS: weakref.WeakSet[Any] = weakref.WeakSet()
_HOLDERS: weakref.WeakSet[Holder] = weakref.WeakSet()


def lock() -> Any:  # an RLock, which until 3.13 is no type but a function
    """Return a lock that no thread can leave behind; `Condition` takes it, too."""
    made = threading.RLock()
    _LOCKS.add(made)
    return made


def watch(holder: Holder) -> None:
    """Have `holder` let go of what a thread leaves behind; it is referred to weakly."""
    _HOLDERS.add(holder)


def forget() -> None:
    """Begin anew, in a forked child: what it goes on with is no call."""
    _INSIDE.frame = None


def keep() -> None:
    """
    Have the calling thread, one of jobcore's own, keep what it holds for ever from now on.

    What a host's callback calls in it may fail, and that thread is in the middle of
    something then, which it ends itself.
    """
    _INSIDE.frame = _getframe(1)


def is_owner(of: Any) -> bool:
    """Tell whether the calling thread holds this lock, an RLock."""
    return bool(of._is_owned())  # noqa: SLF001 - `threading.Condition` rests on it, too


def release(held: Any) -> None:
    """Release a lock as often as the calling thread holds it."""
    while is_owner(held):
        held.release()


def passed(function: Callable[..., T], /, *args: Any, **options: Any) -> T:
    """Call `function` for a host: whatever ends it, nothing of it is held afterwards."""
    if _is_inside():
        return function(*args, **options)
    _STACK.require()
    _INSIDE.before = exc_info()[1]
    _INSIDE.frame = _getframe()
    try:
        return function(*args, **options)
    except StopIteration:
        raise  # the end of an iterator, by itself
    except BaseException as error:
        interrupt = _let_go()
        meant = raised_by_handler(error) or interrupt
        if meant not in (None, error):
            raise meant from None
        raise
    finally:
        _INSIDE.frame = None
        _INSIDE.before = None


def _is_inside() -> bool:
    """Tell whether the calling thread has entered the facade before, and not left it."""
    entered = _INSIDE.frame
    frame: FrameType | None = None if entered is None else _getframe()
    while frame is not None and frame is not entered:
        frame = frame.f_back
    return frame is not None


def raised_by_handler(error: BaseException) -> BaseException | None:
    """
    Return what a signal handler of the host's has raised, if that is the reason of an error.

    A `with` complains where it hit a `Condition.wait` which had just released the lock,
    SQLAlchemy wraps it where it came in a statement, and who goes on behind any error
    of one job would go on behind a host's time-out by SIGALRM, too.
    """
    handlers = {_code_of(getsignal(number)) for number in valid_signals()} - {None}
    found: BaseException | None = None
    one: BaseException | None = error
    while one is not None and one is not _INSIDE.before:
        if isinstance(one, KeyboardInterrupt) or _passed_through(one, handlers):
            found = one
        one = one.__context__
    return found


def _code_of(handler: object) -> object:
    if not callable(handler):
        return None  # SIG_DFL, or one that was not set by Python
    handler = getattr(handler, "func", handler)  # that of a partial
    called = handler if hasattr(handler, "__code__") else type(handler).__call__
    return getattr(called, "__code__", None)  # a method has that of its function


def _passed_through(error: BaseException, codes: Container[object]) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code not in codes:
        trace = trace.tb_next
    return trace is not None


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


def in_one(parts: Iterable[Iterable[T]]) -> Iterator[T]:
    """
    Return one iterator of what all `parts` have.

    To get the next part is an entrance; to go through it is none, so its steps are to
    take nothing that could be left behind.
    """
    return chain.from_iterable(_Steps(parts) if inspect.isgenerator(parts) else parts)


def _let_go() -> BaseException | None:
    """Let go of all that the calling thread holds; return what has interrupted that."""
    interrupt: BaseException | None = None
    for _ in range(TRIES):
        try:
            for held in members(_LOCKS):
                release(held)
            for holder in members(_HOLDERS):
                holder.let_go()
            for held in members(_LOCKS):  # taken by a holder, when it was interrupted before
                release(held)
        except RecursionError:
            _STACK.extend()
            continue
        except BaseException as error:  # noqa: BLE001 - all is done again, and then it is raised
            interrupt = raised_by_handler(error) or interrupt
            continue
        break
    _STACK.restore()
    return interrupt


class _Stack:
    """
    Room for calls inside of calls, of which Python allows so many.

    Attributes:
        limit: The host's own, while it is extended.
    """

    limit: int | None = None

    def require(self) -> None:
        """
        Refuse a call that would come to the end of the stack in the middle of something.

        Raises:
            RecursionError: There is not enough room.
        """
        if self.limit is not None:
            self.restore()
        try:
            _getframe((self.limit or getrecursionlimit()) - ROOM)
        except ValueError:
            return  # it is not so deep
        raise RecursionError("the stack has no room for a call of jobcore")

    def extend(self) -> None:
        """Make room for letting go: calls in C count too, before 3.12, and `require` sees none."""
        if self.limit is None:
            limit = getrecursionlimit()
            setrecursionlimit(limit + ROOM)
            self.limit = limit

    def restore(self) -> None:
        """Set the host's own limit again; Python refuses while the stack is still as deep."""
        if self.limit is not None:
            with suppress(RecursionError):
                setrecursionlimit(self.limit)
                self.limit = None


_STACK = _Stack()


def members(known: weakref.WeakSet[T]) -> list[T]:
    """Return what is in there now; other threads may add something meanwhile."""
    while True:
        try:
            return list(known)
        except RecursionError:  # a RuntimeError, which would come again
            raise
        except RuntimeError:  # another thread has just added one
            continue
