"""
The host's end of its keeper, the process from which its supervisors are forked.

A process has at most one keeper, which all its managers share. It has none for the first
supervisor of a manager, so that a program that runs one job starts nothing else, and none for a
while after a failure. Without a keeper, supervisors are started one by one, as `launcher` does.
"""

from __future__ import annotations

import _socket
import os
import struct
import time
import weakref
from typing import TYPE_CHECKING

from jobcore import tuning
from jobcore.embedding import failpoints
from jobcore.embedding.locks import GATE, ForkAware
from jobcore.engine.peer import Peer, leave_to_others, socket_pair
from jobcore.errors import SpawnError
from jobcore.supervisor import inheritance, messages

if TYPE_CHECKING:
    from jobcore.engine.launcher import ProcessLauncher
    from jobcore.engine.supervisor_pool import SupervisorPool

#: The interpreter of a keeper, and the inheritance that it got.
_Kind = tuple[str, bytes]


class Keeper(Peer):
    """
    The host's end of one keeper.

    Attributes:
        kind: What a host must want for this keeper to serve it.
        used: When it was last asked for a supervisor, by the monotonic clock.
    """

    def __init__(self, connection: _socket.socket, starter: int, kind: _Kind) -> None:
        super().__init__(connection, starter)
        self.kind = kind
        self.used = self.since

    @property
    def is_child(self) -> bool:
        """Whether it is a child of this process, which is PID 1 or a subreaper then."""
        if self.pid is None:
            return False
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError:
            return False
        return True

    def ask(self, descriptor: int) -> bool:
        """Ask for a supervisor that uses this end of a socket pair; False: that is impossible."""
        self.receive()
        if self.gone:
            return False
        try:
            self._socket.sendmsg(
                [messages.encode(messages.FORK)],
                [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", descriptor))],
                _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL,
            )
        except OSError:
            return False  # it has just gone, or does not read what it is sent
        self.used = time.monotonic()
        return True


class KeeperOfHost(ForkAware):
    """
    The keeper of this process, if it has one. Every method takes `GATE`.

    Attributes:
        current: The keeper that is asked for the next supervisor.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.current: Keeper | None = None
        self._dismissed: list[Keeper] = []  # not closed before their pids are known
        self._owner = os.getpid()
        self._without = 0  # how many supervisors to start without a keeper
        self._after_failure = 1  # the same after the next failure
        self._users: weakref.WeakSet[SupervisorPool] = weakref.WeakSet()

    def fork(
        self, descriptor: int, user: SupervisorPool, launcher: ProcessLauncher
    ) -> Keeper | None:
        """
        Ask for a supervisor that uses this end of a socket pair. It may not get ready.

        Args:
            descriptor: This end.
            user: The pool that will call `leave`.
            launcher: Starts a keeper, if one is needed.

        Returns:
            The keeper, for `succeed` or `fail`; None: start the supervisor without one.
        """
        with GATE:
            if self._owner != os.getpid():
                if self.current is not None:
                    return (
                        None  # a fork by C code has called no hook, and the keeper is the parent's
                    )
                self._reset()
            if self._without > 0:
                self._without -= 1
                return None
            inherited = inheritance.read()
            if inherited is None:
                return None
            kind = (launcher.python, inherited)
            if self.current is not None and self.current.kind != kind:
                self._dismiss()
            try:
                keeper = self.current or self._start(kind, launcher)
            except (SpawnError, OSError):
                keeper = None
            if keeper is None or not keeper.ask(descriptor):
                self.fail(keeper)
                self._without -= 1  # this one
                return None
            self._users.add(user)
        if failpoints.armed:
            failpoints.reach(failpoints.KEEPER_ASKED)
        return keeper

    def _start(self, kind: _Kind, launcher: ProcessLauncher) -> Keeper:
        GATE.watch(self)
        ours, theirs = socket_pair()
        GATE.register(ours.fileno())
        keeper = None
        try:
            ours.setblocking(False)
            keeper = self.current = Keeper(ours, launcher.start_keeper(theirs.fileno()), kind)
        finally:
            theirs.close()
            if keeper is None:
                GATE.close(ours.detach())
        if failpoints.armed:
            failpoints.reach(failpoints.KEEPER_STARTED)
        return keeper

    def succeed(self) -> None:
        """Note that a supervisor of a keeper has got ready."""
        self._after_failure = 1

    def fail(self, keeper: Keeper | None) -> None:
        """
        Note that a supervisor of this keeper did not get ready, or that none could be started.

        The next supervisors are started without one. If the host is the reason, not the keeper,
        that raises the error that says so.
        """
        with GATE:
            if keeper is None or keeper is self.current:  # else it was noted before
                self._without = self._after_failure
                self._after_failure = min(2 * self._after_failure, tuning.MOST_WITHOUT_KEEPER)
                if keeper is not None and keeper.pid is None:
                    keeper.kill_starter()  # it may never end
                self._dismiss()

    def leave(self, user: SupervisorPool) -> list[Keeper]:
        """Return the keepers, for the caller to close and reap, if no other pool uses them."""
        with GATE:
            self._users.discard(user)
            if self._users:
                return []
            keepers = self._all()
            self.current, self._dismissed = None, []
            return keepers

    def _all(self) -> list[Keeper]:
        return self._dismissed if self.current is None else [*self._dismissed, self.current]

    def remove_idle(self) -> None:
        """Dismiss a keeper that was not used for a while."""
        with GATE:
            self._close_dismissed()
            keeper = self.current
            if keeper is None:
                return
            keeper.receive()
            if keeper.gone or time.monotonic() - keeper.used > tuning.IDLE_KEEPER:
                self._dismiss()

    def _dismiss(self) -> None:
        """Let the keeper go. It still forks the supervisors that it was asked for."""
        if self.current is not None:
            self._dismissed.append(self.current)
            self.current = None
            self._close_dismissed()

    def _close_dismissed(self) -> None:
        """Close dismissed keepers, but wait for their pids: a child of ours must be reaped."""
        waiting = []
        for keeper in self._dismissed:
            keeper.receive()
            if keeper.is_coming and time.monotonic() - keeper.since < tuning.READY_PATIENCE:
                waiting.append(keeper)
            else:
                keeper.close()
                leave_to_others([keeper])
        self._dismissed = waiting

    def after_fork_in_child(self) -> None:
        """Forget the keepers, which are the parent's; the gate has closed their sockets."""
        for keeper in self._all():
            keeper.forget()
        self._reset()


#: The keeper of this process.
KEEPER = KeeperOfHost()
