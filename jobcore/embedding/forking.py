"""
What a forked child of the host drops, and must never unlock.

A host may fork at any moment (a preloading web server, `multiprocessing`). The
child then has copies of descriptors whose locks belong to the parent's jobs.
Closing them there is right and harmless: an OFD lock lives on in the parent's
copy. Unlocking there would free the parent's lock, and a live job would be
taken for dead. So the child only closes, and every owner starts afresh.

Nothing is installed at import: the hooks come with the first owner.
"""

from __future__ import annotations

import _thread
import os
import sys
import weakref
from typing import Protocol

from jobcore.embedding.interrupts import Lock


class ForkAware(Protocol):
    """
    An object that holds what does not survive a fork.

    Each of these may be called more than once for one fork: a signal handler may fork in
    the middle of the hooks.
    """

    def before_fork(self) -> None:
        """Come to rest: nothing half done may be copied."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Forget inherited connections, threads and locks; unlock nothing."""


class _Gate:
    """
    Keeps a fork out while a descriptor is open but not yet in the register.

    Held around every open+register, unregister+close and socketpair+Popen, and
    never around a database call, which may take the busy timeout.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._forks = Lock()  # two threads may fork at once; one comes to rest at a time
        self._descriptors: set[int] = set()
        self._owners: list[weakref.ref[ForkAware]] = []
        self._installed = False
        self._going_on = False  # the fork is over, and the owners are being told
        self._interrupted = False  # by a Ctrl-C while it waited; told after the fork

    def __enter__(self) -> None:
        self._lock.take(sys._getframe(1))  # noqa: SLF001 - the call that is to be in it

    def __exit__(self, *_: object) -> None:
        self._lock.give_up(sys._getframe(1))  # noqa: SLF001 - as above

    def watch(self, owner: ForkAware) -> None:
        """Tell `owner` before and after every fork from now on; it is only referred to weakly."""
        with self._lock:
            self._owners = [one for one in self._owners if one() is not None]
            if not any(one() is owner for one in self._owners):
                self._owners.append(weakref.ref(owner))
            if not self._installed:
                self._installed = True
                # Twice, for a Ctrl-C may have Python skip one of them, or leave it half way:
                # it prints that, and goes on. Each goes on where the one before it ended.
                for _ in range(2):
                    os.register_at_fork(
                        before=self._before,
                        after_in_parent=self._after_in_parent,
                        after_in_child=self._after_in_child,
                    )

    def register(self, *descriptors: int) -> None:
        """Have these closed in a forked child. Call inside the gate that opened them."""
        self._descriptors.update(descriptors)

    def is_forking(self) -> bool:
        """Tell whether the calling thread is in the middle of a fork; who asks came between."""
        return self._forks.is_mine

    def owners(self) -> list[ForkAware]:
        """Return all that are watched now."""
        return [owner for one in list(self._owners) if (owner := one()) is not None]

    def descriptors(self) -> set[int]:
        """Return all that are registered now."""
        with self._lock:
            return set(self._descriptors)

    def unregister(self, *descriptors: int) -> None:
        """Leave these open in a forked child: the host has closed and reused the numbers."""
        with self._lock:
            self._descriptors.difference_update(descriptors)

    def close(self, *descriptors: int) -> None:
        """Close these here, and no more in a forked child."""
        with self._lock:
            self._descriptors.difference_update(descriptors)
            for descriptor in descriptors:
                os.close(descriptor)

    # A fork is known by the call that makes it: the frame below a hook. A signal handler may
    # fork in the middle of a fork's hooks, those of other libraries too. What the outer fork
    # has brought to rest must then rest until that one has been made.

    def _before(self) -> None:
        call = sys._getframe().f_back  # noqa: SLF001 - CPython alone has fork hooks of this kind
        self._forks.take(call)
        if self._forks.is_taken_by(call):
            self._going_on = False
        # The owners first: one that waits for its thread must not hold the gate
        # that the thread may need to come to an end.
        for owner in self.owners():
            try:
                owner.before_fork()
            except BaseException as error:  # noqa: BLE001 - the fork comes all the same
                # Python would print it and go on to the fork, and the hooks after
                # it would undo what was not done.
                self._interrupted = self._interrupted or isinstance(error, KeyboardInterrupt)
        self._lock.take(call)

    def _after_in_parent(self) -> None:
        call = sys._getframe().f_back  # noqa: SLF001 - as above
        if not self._forks.is_mine:
            return  # it was all done, and another thread may be forking by now
        is_outermost = self._forks.is_taken_by(call)
        self._lock.give_up(call)
        if is_outermost:
            self._going_on = True
        elif not self._going_on:
            return  # the outer fork is yet to be made; its owners go on after that
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
                pass  # the host closed it by number behind our back
        self._descriptors.clear()
        # New ones: an outer fork, or a launcher that forks, may have these, and its call will
        # not go on before the signal handler that forked is over.
        self._lock = Lock()
        for owner in self.owners():
            owner.after_fork_in_child()
        self._forks = Lock()


GATE = _Gate()
