"""
Locks that stay usable if an exception interrupts their holder at any bytecode.

A Ctrl-C raises KeyboardInterrupt in the main thread between any two bytecodes, even right
after a lock was taken and before the `try` that would release it. Python code cannot close
that gap. Operations that must not be interrupted therefore run in a thread where nothing is
raised (see `worker`). All other code follows one rule: a call that takes a lock records its
frame. Once that frame is no longer running, the call is over, and the next caller takes the
lock. This also holds if an exception is stored with its traceback, which keeps the frame.
"""

from __future__ import annotations

import _thread
import sys
import time
from collections import deque
from collections.abc import Callable
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import FrameType

#: Seconds between two attempts to get a lock: the first and the longest pause.
TRY_FIRST, TRY_LONGEST = 0.00005, 0.002
#: Seconds; roughly the longest time that `_thread` can wait.
LONGEST = 1e6


def is_over(frame: FrameType) -> bool:
    """
    Tell whether a call has ended, even if a stored exception still references its frame.

    If the call has ended, this clears its local variables.
    """
    if frame.f_code.co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR):
        return not any(_is_on(frame, top) for top in sys._current_frames().values())  # noqa: SLF001 - the documented way to them
    try:
        frame.clear()
    except RuntimeError:
        return False  # it is running, in any thread, or in a suspended greenlet
    return True


def _is_on(frame: FrameType, top: FrameType | None) -> bool:
    while top is not None and top is not frame:
        top = top.f_back
    return top is not None


class _Turn:
    """
    One period for which a lock is held.

    Attributes:
        thread: The thread that holds it.
        frame: The call that holds it; None: it is held until it is released.
        over: Whether it was released.
        next: The turn after this one, once there is one. A dict with the only key "",
            because `setdefault` is atomic.
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
    A re-entrant lock that an interrupted call does not keep.

    Each turn records its call, and the next turn can begin when that call is over. So an
    exception at any bytecode leaves the lock free. Hold it only for a short time, because
    waiters poll.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Free the lock, whoever has it; a call that still holds it then releases nothing."""
        self._known = _Turn(None)  # some turn; the newest is found from it
        self._known.end()

    def _newest(self) -> _Turn:
        turn = self._known
        while (following := turn.next.get("")) is not None:
            turn = following
        return turn

    def take(self, frame: FrameType | None, patience: float = LONGEST) -> bool:
        """Take the lock for a call; False: another thread kept it for `patience` seconds."""
        mine = _Turn(frame)
        deadline = time.monotonic() + patience
        pause = TRY_FIRST
        while True:
            newest = self._newest()
            if newest.has_ended:
                # `setdefault` is atomic, so one of those who find the lock free gets it.
                if newest.next.setdefault("", mine) is mine:
                    self._known = mine
                    return True
            elif newest.thread == mine.thread:
                return True  # re-entrant: the turn ends with the outer call
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(pause)
                pause = min(pause * 2, TRY_LONGEST)

    def __enter__(self) -> None:
        """Take the lock for the calling function."""
        self.take(sys._getframe(1))  # noqa: SLF001 - the call that takes it

    def __exit__(self, *_: object) -> None:
        """Release the lock, unless an outer call of this thread has taken it."""
        self.give_up(sys._getframe(1))  # noqa: SLF001 - as above

    def give_up(self, frame: FrameType | None) -> None:
        """Release the lock if this call has taken it, and not an outer one."""
        turn = self._newest()
        if turn.frame is frame:
            turn.end()

    def is_taken_by(self, frame: FrameType | None) -> bool:
        """Tell whether this call has taken the lock and not released it."""
        turn = self._newest()
        return turn.frame is frame and not turn.over

    def hold(self, patience: float = LONGEST) -> bool:
        """Take the lock until `release`, beyond the end of the calling function."""
        return self.take(None, patience)

    def release(self) -> None:
        """Release the lock if this thread has it. Idempotent."""
        if self.is_mine:
            self._newest().end()

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread has the lock."""
        turn = self._newest()
        return turn.thread == _thread.get_ident() and not turn.has_ended


class Bell:
    """Wakes waiting threads. Each waits for a lock of its own, so an interrupt harms no other."""

    def __init__(self) -> None:
        self._waiting: deque[_thread.LockType] = deque()

    def ring(self) -> None:
        """Wake all threads that wait now."""
        for _ in range(len(self._waiting)):
            try:
                self._waiting.popleft().release()
            except IndexError:
                return  # another thread rings at the same time

    @property
    def is_waited_for(self) -> bool:
        """Whether a thread waits."""
        return bool(self._waiting)

    def wait(self, is_done: Callable[[], bool], seconds: float) -> None:
        """Wait for the next `ring`, for at most `seconds`; return at once if `is_done` is true."""
        mine = _thread.allocate_lock()
        mine.acquire()
        self._waiting.append(mine)
        if not is_done():  # check after registering, or a ring in between would be missed
            mine.acquire(True, min(max(seconds, 0.0), LONGEST))
        try:
            self._waiting.remove(mine)
        except ValueError:
            pass  # it has rung
