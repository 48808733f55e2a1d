"""
Locks that stay usable when the host raises an exception or forks at any moment.

A Ctrl-C raises KeyboardInterrupt in the main thread between any two bytecodes, even right
after a lock was taken and before the `try` that would release it. Python code cannot close
that gap. Operations that must not be interrupted therefore run in a thread where nothing is
raised (see `worker`). All other code follows one rule: a call that takes a lock records its
frame. Once that frame is no longer running, the call is over, and the next caller takes the
lock. This also holds if an exception is stored with its traceback, which keeps the frame.

A host may fork at any time, such as a preloading web server or `multiprocessing`. The child
then has copies of descriptors whose locks belong to the parent's jobs. Closing the copies
is harmless, because the parent's descriptor keeps the OFD lock. Unlocking would free the
parent's lock, and a live job would look dead. So the child only closes
descriptors, and every owner resets its state. Importing this module installs nothing. The
first owner installs the hooks.
"""

from __future__ import annotations

import _thread
import errno
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import FrameType

#: Seconds between two attempts to get a lock: the first and the longest pause.
TRY_FIRST, TRY_LONGEST = 0.00005, 0.002
#: Seconds; roughly the longest time that `_thread` can wait.
LONGEST_WAIT = 1e6


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


class _Hold:
    """
    One period for which a lock is held.

    Attributes:
        thread: The thread that holds it.
        frame: The call that holds it; None: it is held until `release`.
        over: Whether it was released.
        next: The hold after this one, once there is one. A dict with the only key "",
            because `setdefault` is atomic.
    """

    __slots__ = ("frame", "next", "over", "thread")

    def __init__(self, frame: FrameType | None) -> None:
        self.thread = _thread.get_ident()
        self.frame = frame
        self.over = False
        self.next: dict[str, _Hold] = {}

    @property
    def has_ended(self) -> bool:
        return self.over or (self.frame is not None and is_over(self.frame))

    def end(self) -> None:
        self.over = True
        self.frame = None


class Lock:
    """
    A re-entrant lock that becomes free when its call is interrupted.

    Each hold records its call, and the next hold can begin when that call is over. So an
    exception at any bytecode leaves the lock free. Hold it only for a short time, because
    waiters poll.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Free the lock, even if a call holds it. When that call ends, it releases nothing."""
        self._known = _Hold(None)  # some hold; the newest is found from it
        self._known.end()

    def _newest(self) -> _Hold:
        hold = self._known
        while (following := hold.next.get("")) is not None:
            hold = following
        return hold

    def take(self, frame: FrameType | None, patience: float = LONGEST_WAIT) -> bool:
        """Take the lock for a call; False: another thread kept it for `patience` seconds."""
        mine = _Hold(frame)
        newest = self._newest()
        if newest.over and newest.next.setdefault("", mine) is mine:
            self._known = mine  # the usual case, in few steps
            return True
        deadline = time.monotonic() + patience
        pause = TRY_FIRST
        while True:
            newest = self._newest()
            if newest.has_ended:
                # `setdefault` is atomic: of the threads that see a free lock, one gets it.
                if newest.next.setdefault("", mine) is mine:
                    self._known = mine
                    return True
            elif newest.thread == mine.thread:
                return True  # re-entrant: the hold ends with the outer call
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
        hold = self._newest()
        if hold.frame is frame:
            hold.end()

    def is_taken_by(self, frame: FrameType | None) -> bool:
        """Tell whether this call has taken the lock and not released it."""
        hold = self._newest()
        return hold.frame is frame and not hold.over

    def hold(self, patience: float = LONGEST_WAIT) -> bool:
        """Take the lock until `release`, beyond the end of the calling function."""
        return self.take(None, patience)

    def release(self) -> None:
        """Release the lock if this thread has it. Idempotent."""
        if self.is_mine:
            self._newest().end()

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread has the lock."""
        hold = self._newest()
        return hold.thread == _thread.get_ident() and not hold.has_ended


class Condition:
    """Wakes waiting threads. Each waits for its own lock, so an interrupt harms no other."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[_thread.LockType, Callable[[], bool]]] = deque()

    def notify_all(self) -> None:
        """Wake all threads that wait now."""
        for _ in range(len(self.waiting)):
            try:
                self.waiting.popleft()[0].release()
            except IndexError:
                return  # another thread wakes it

    def notify_done(self) -> None:
        """
        Wake the threads whose `is_done` is true now. Call it after each change of the result.

        No wake-up is lost: a thread that begins to wait later calls `is_done` itself.
        """
        for waiting in self.waiting.copy():
            lock, is_done = waiting
            if is_done():
                try:
                    self.waiting.remove(waiting)
                except ValueError:
                    continue  # another thread wakes it, or it has given up
                lock.release()

    @property
    def is_waited_for(self) -> bool:
        """Whether a thread waits."""
        return bool(self.waiting)

    def wait(self, is_done: Callable[[], bool], seconds: float) -> None:
        """
        Wait until notified, for at most `seconds`; return at once if `is_done` is true.

        Args:
            is_done: Tells whether there is nothing to wait for. The notifying threads call it, too.
            seconds: The longest wait.
        """
        lock = _thread.allocate_lock()
        lock.acquire()
        mine = lock, is_done
        self.waiting.append(mine)
        try:
            if not is_done():  # checked after registering, or a wake-up would be missed
                lock.acquire(True, min(max(seconds, 0.0), LONGEST_WAIT))
        finally:
            try:
                self.waiting.remove(mine)
            except ValueError:
                pass  # a notification has removed it


class ForkAware:
    """
    An object with state that does not survive a fork. Most only need a reset in the child.

    Each method may be called more than once per fork, because a signal handler may fork
    while the hooks run.
    """

    def before_fork(self) -> None:
        """Quiesce, unless the gate already keeps the fork out of every operation."""

    def after_fork_in_parent(self) -> None:
        """Resume what `before_fork` has stopped."""

    def after_fork_in_child(self) -> None:
        """Forget inherited connections, threads and locks; unlock nothing."""


class _Gate(Lock):
    """
    Keeps forks out while a descriptor is open but not registered.

    It is held around every open+register, unregister+close and socketpair+Popen, and never
    around a database call, which may last as long as the busy timeout.
    """

    def __init__(self) -> None:
        super().__init__()
        self._forks = Lock()  # two threads may fork at once; their hooks run one after the other
        self._descriptors: set[int] = set()
        self._owners: list[weakref.ref[ForkAware]] = []
        self._installed = False
        self._resuming = False  # the outermost fork is over, so the owners resume
        self._interrupted = False  # KeyboardInterrupt came during the hooks; raised after the fork

    def watch(self, owner: ForkAware) -> None:
        """Call the methods of `owner` before and after every fork; keep only a weak reference."""
        with self:
            self._owners = [one for one in self._owners if one() is not None]
            if not any(one() is owner for one in self._owners):
                self._owners.append(weakref.ref(owner))
            if not self._installed:
                self._installed = True
                # Twice, because a KeyboardInterrupt may end a hook early or skip it: Python
                # prints the exception and continues. The second hook completes the work.
                for _ in range(2):
                    os.register_at_fork(
                        before=self._before,
                        after_in_parent=self._after_in_parent,
                        after_in_child=self._after_in_child,
                    )

    def register(self, *descriptors: int) -> None:
        """Close these descriptors in forked children. Call it while holding the gate."""
        self._descriptors.update(descriptors)

    def is_forking(self) -> bool:
        """Tell whether the calling thread is in the middle of a fork, as in a signal handler."""
        return self._forks.is_mine

    def owners(self) -> list[ForkAware]:
        """Return all owners that are watched now."""
        return [owner for one in list(self._owners) if (owner := one()) is not None]

    def descriptors(self) -> set[int]:
        """Return all registered descriptors."""
        with self:
            return set(self._descriptors)

    def unregister(self, *descriptors: int) -> None:
        """Do not close these in forked children: the host has reused the numbers."""
        with self:
            self._descriptors.difference_update(descriptors)

    def close(self, *descriptors: int) -> None:
        """Unregister these descriptors and close them."""
        with self:
            self._descriptors.difference_update(descriptors)
            for descriptor in descriptors:
                try:
                    os.close(descriptor)
                except OSError as error:
                    if error.errno != errno.EBADF:  # the host has closed it by its number
                        raise

    def call_quiesced(self, action: Callable[[], object]) -> None:
        """Call `action` while every owner is quiesced, as during a fork: no transaction is open."""
        self._before()
        try:
            action()
        finally:
            self._after_in_parent()

    # A fork is identified by the call that makes it, the frame that calls the hooks. A signal
    # handler may fork while the hooks of an outer fork run, ours or those of other libraries.
    # The owners must then stay quiesced until the outer fork has been made.

    def _before(self) -> None:
        call = sys._getframe().f_back  # noqa: SLF001 - CPython alone has fork hooks of this kind
        self._forks.take(call)
        if self._forks.is_taken_by(call):
            self._resuming = False
        # The owners first: an owner waits for its thread, and the thread may need the gate
        # to finish.
        for owner in self.owners():
            try:
                owner.before_fork()
            except BaseException as error:  # noqa: BLE001 - the fork happens anyway
                # If it were raised on, Python would print it and fork, and the hooks after the
                # fork would undo steps that were never done.
                self._interrupted = self._interrupted or isinstance(error, KeyboardInterrupt)
        self.take(call)

    def _after_in_parent(self) -> None:
        call = sys._getframe().f_back  # noqa: SLF001 - as above
        if not self._forks.is_mine:
            return  # the first hook did everything; another thread may be forking by now
        is_outermost = self._forks.is_taken_by(call)
        self.give_up(call)
        if is_outermost:
            self._resuming = True
        elif not self._resuming:
            return  # the outer fork is not made yet; the owners resume after it
        for owner in self.owners():
            owner.after_fork_in_parent()
        if not is_outermost:
            return
        self._forks.give_up(call)
        if self._interrupted:
            self._interrupted = False
            _thread.interrupt_main()

    def _after_in_child(self) -> None:
        for descriptor in self._descriptors:
            try:
                os.close(descriptor)
            except OSError:
                pass  # the host has closed it by its number
        self._descriptors.clear()
        # An outer fork, or a launcher that forks, may hold the gate, and its call continues only
        # after the signal handler that forked has returned.
        self.reset()
        for owner in self.owners():
            owner.after_fork_in_child()
        self._forks.reset()


GATE = _Gate()
