"""
Fork hooks: they quiesce jobcore before a fork and reset it in the child.

A host may fork at any time, such as a preloading web server or `multiprocessing`. The child
then has copies of descriptors whose locks belong to the parent's jobs. Closing the copies
is harmless, because an OFD lock lives on with the parent's descriptor. Unlocking would free
the parent's lock, and a live job would be taken for dead. So the child only closes
descriptors, and every owner resets its state.

Importing this module installs nothing. The first owner installs the hooks.
"""

from __future__ import annotations

import _thread
import os
import sys
import weakref

from jobcore.embedding.interrupts import Lock


class ForkAware:
    """
    An object with state that does not survive a fork; most need nothing but a reset in the child.

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
        self._going_on = False  # the outermost fork is over, and the owners resume
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
        """Do not close these in forked children, because the host has reused the numbers."""
        with self:
            self._descriptors.difference_update(descriptors)

    def close(self, *descriptors: int) -> None:
        """Unregister these descriptors and close them."""
        with self:
            self._descriptors.difference_update(descriptors)
            for descriptor in descriptors:
                os.close(descriptor)

    # A fork is identified by the call that makes it, the frame that calls the hooks. A signal
    # handler may fork while the hooks of an outer fork run, ours or those of other libraries.
    # The owners must then stay quiesced until the outer fork has been made.

    def _before(self) -> None:
        call = sys._getframe().f_back  # noqa: SLF001 - CPython alone has fork hooks of this kind
        self._forks.take(call)
        if self._forks.is_taken_by(call):
            self._going_on = False
        # The owners first: an owner waits for its thread, and the thread may need the gate
        # to finish.
        for owner in self.owners():
            try:
                owner.before_fork()
            except BaseException as error:  # noqa: BLE001 - the fork happens all the same
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
            self._going_on = True
        elif not self._going_on:
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
