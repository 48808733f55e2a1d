"""
Locks that an exception at any bytecode cannot leave held for good.

A Ctrl-C raises KeyboardInterrupt in the main thread between any two bytecodes: also
right after a lock was taken, before the `try` that would release it. Code in
Python cannot close that gap from inside. What must not be torn therefore runs in a
thread where nothing is raised (see `worker`). For the rest there is one rule: a
call that takes something notes its frame. When that frame is no longer executed,
the call is over, whatever it has left behind, and whoever needs it next takes it.
Nothing is lost by an exception that is kept with its traceback.
"""

from __future__ import annotations

import _thread
import sys
import time
from collections import deque
from collections.abc import Callable
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import FrameType

#: Seconds between two tries to get a lock: first and longest.
TRY_FIRST, TRY_LONGEST = 0.00005, 0.002
#: The longest time that `_thread` can wait, more or less.
LONGEST = 1e6


def is_over(frame: FrameType) -> bool:
    """
    Tell whether a call has ended, though an exception that is kept may still have its frame.

    The local variables of a call that has ended are cleared by that.
    """
    if frame.f_code.co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR):
        return not any(_is_on(frame, top) for top in sys._current_frames().values())  # noqa: SLF001 - the documented way to them
    try:
        frame.clear()
    except RuntimeError:
        return False  # it is executed, in any thread, or in a greenlet that waits
    return True


def _is_on(frame: FrameType, top: FrameType | None) -> bool:
    while top is not None and top is not frame:
        top = top.f_back
    return top is not None


class _Turn:
    """
    One time that a lock is held.

    Attributes:
        thread: Whose it is.
        frame: The call that holds it; None: it is held until it is given up.
        over: Whether it was given up.
        next: The turn after it, once there is one.
    """

    __slots__ = ("frame", "next", "over", "thread")

    def __init__(self, frame: FrameType | None) -> None:
        self.thread = _thread.get_ident()
        self.frame = frame
        self.over = False
        self.next: dict[str, _Turn] = {}

    @property
    def has_ended(self) -> bool:
        return self.over or (self.frame is not None and is_over(self.frame))

    def end(self) -> None:
        self.over = True
        self.frame = None


class Lock:
    """
    A lock that an interrupted call does not keep. A thread that has it may take it again.

    Each turn names its call. The next turn begins when that call is over, so an
    exception at any bytecode leaves the lock free. Meant for short calls: who
    waits tries again and again.
    """

    def __init__(self) -> None:
        self._known = _Turn(None)  # some turn; the newest is found from it
        self._known.end()

    def _newest(self) -> _Turn:
        turn = self._known
        while (following := turn.next.get("")) is not None:
            turn = following
        return turn

    def take(self, frame: FrameType | None, patience: float = LONGEST) -> bool:
        """Take it for a call; False: another thread has kept it for so many seconds."""
        mine = _Turn(frame)
        deadline = time.monotonic() + patience
        pause = TRY_FIRST
        while True:
            newest = self._newest()
            if newest.has_ended:
                # Atomic: of those who find it free one is next.
                if newest.next.setdefault("", mine) is mine:
                    self._known = mine
                    return True
            elif newest.thread == mine.thread:
                return True  # this thread has it: the turn ends with its call
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(pause)
                pause = min(pause * 2, TRY_LONGEST)

    def __enter__(self) -> None:
        """Take it for the calling function."""
        self.take(sys._getframe(1))  # noqa: SLF001 - the call that is to have it

    def __exit__(self, *_: object) -> None:
        """Give it up, unless an outer call of this thread has taken it."""
        self.give_up(sys._getframe(1))  # noqa: SLF001 - as above

    def give_up(self, frame: FrameType | None) -> None:
        """Give it up if this call has taken it, and not an outer one."""
        turn = self._newest()
        if turn.frame is frame:
            turn.end()

    def is_taken_by(self, frame: FrameType | None) -> bool:
        """Tell whether this call has taken it, and has not given it up."""
        turn = self._newest()
        return turn.frame is frame and not turn.over

    def hold(self, patience: float = LONGEST) -> bool:
        """Take it until `release`, beyond the end of the calling function."""
        return self.take(None, patience)

    def release(self) -> None:
        """Give it up if this thread has it; again is harmless."""
        if self.is_mine:
            self._newest().end()

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread has it."""
        turn = self._newest()
        return turn.thread == _thread.get_ident() and not turn.has_ended


class Bell:
    """Wakes threads that wait; each waits for a lock of its own, which nobody else needs."""

    def __init__(self) -> None:
        self._waiting: deque[_thread.LockType] = deque()

    def ring(self) -> None:
        """Wake all that wait now."""
        for _ in range(len(self._waiting)):
            try:
                self._waiting.popleft().release()
            except IndexError:
                return  # another thread rings, too

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def wait(self, is_done: Callable[[], bool], seconds: float) -> None:
        """Wait until it rings, so long at most; not at all if `is_done` is true by now."""
        mine = _thread.allocate_lock()
        mine.acquire()
        self._waiting.append(mine)
        if not is_done():  # or the one to wake us came just before
            mine.acquire(True, min(max(seconds, 0.0), LONGEST))
        try:
            self._waiting.remove(mine)
        except ValueError:
            pass  # it has rung
