"""
The keeper: a process of one host from which supervisors are forked, and the subreaper above them.

It has loaded all that a supervisor needs, so that a supervisor starts in less than a millisecond
and shares its memory. If a supervisor is killed, its processes become children of the keeper,
which kills them. See the steps in the guide "internals".
"""

from __future__ import annotations

import gc
import os
import select

from jobcore.embedding import failpoints
from jobcore.supervisor import inheritance, messages, pids, process_tree, spawn, system_calls
from jobcore.supervisor.__main__ import run_detached, supervise
from jobcore.supervisor.host_channel import HostChannel
from jobcore.supervisor.stop_requests import Shutdown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import NoReturn
else:
    import _signal

_UMASK = 0o077
_RETRY_MS = 1000  # milliseconds until orphans that have not ended are killed again
_SIGNALS_SIZE = 4096  # bytes; more than the kernel has of one signal


def main(descriptor: int) -> NoReturn:
    """Run the keeper of the host at the other end of the socket `descriptor`. Never returns."""
    run_detached(descriptor, _keep)


def _keep(descriptor: int) -> None:
    os.umask(_UMASK)
    if spawn.make_subreaper() and pids.level() > 0:
        Keeper(HostChannel(descriptor)).run()


class Keeper:
    """Forks supervisors, reaps them, and kills what those that were killed leave."""

    def __init__(self, channel: HostChannel) -> None:
        """
        Get ready, without reporting it.

        Raises:
            OSError: No descriptor is free, or a filter forbids a system call.
        """
        self._channel = channel
        self._shutdown = Shutdown()
        self._shutdown.request_by_sigterm()
        _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGCHLD,))
        self._ends = system_calls.open_signal(_signal.SIGCHLD)
        self._supervisors: set[int] = set()
        self._orphans = False  # whether some may not have ended, as of the last look
        self._inheritance = inheritance.read()
        self._library = _library()

    def run(self) -> None:
        """Serve the host until it is gone, then wait for the end of all supervisors."""
        if self._inheritance is None:
            return
        # Supervisors share this memory as long as the garbage collector does not write to it.
        gc.collect()
        gc.freeze()
        channel = self._channel
        channel.post(messages.READY, number=os.getpid())
        poll = select.poll()
        poll.register(self._ends, select.POLLIN)
        poll.register(self._shutdown.fileno(), select.POLLIN)
        poll.register(channel.fileno(), select.POLLIN)
        if channel.pidfd is not None:
            poll.register(channel.pidfd, select.POLLIN)
        serves = True
        while serves:
            ready = {descriptor for descriptor, _ in poll.poll(self._patience())}
            channel.look_for_host()
            if channel.pidfd in ready or self._shutdown.requested:
                serves = False  # the host needs no further supervisors
            elif channel.fileno() in ready or channel.dead:
                serves = self._take_request()
            self._look_after(ready)
        poll.unregister(channel.fileno())
        poll.unregister(self._shutdown.fileno())
        if channel.pidfd is not None:
            poll.unregister(channel.pidfd)
        channel.close()
        while self._supervisors or self._orphans:
            self._look_after({descriptor for descriptor, _ in poll.poll(self._patience())})

    def _patience(self) -> int | None:
        return _RETRY_MS if self._orphans or self._channel.must_look else None

    def _take_request(self) -> bool:
        """Fork a supervisor, if one was asked for; False: the host has gone, or must go."""
        received = self._channel.receive_descriptors(messages.FORK, 1)
        if received is None:
            return not self._channel.dead
        (descriptor,) = received[1]
        try:
            if (inheritance.read(), _library()) != (self._inheritance, self._library):
                return False  # the host starts another keeper
            pid = os.fork()
            if pid == 0:
                _run_supervisor(descriptor)
        except OSError:
            return True  # no process could be created; the host sees that its socket is closed
        finally:
            os.close(descriptor)
        self._supervisors.add(pid)
        if failpoints.armed:
            failpoints.reach(failpoints.SUPERVISOR_FORKED)
        return True

    def _look_after(self, ready: set[int]) -> None:
        """Reap children that have ended, and kill those that are not supervisors."""
        if self._ends in ready:
            os.read(self._ends, _SIGNALS_SIZE)
        elif not self._orphans:
            return
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if pid == 0:
                break
            if pid in self._supervisors:
                self._supervisors.remove(pid)
                if failpoints.armed:
                    failpoints.reach(failpoints.SUPERVISOR_REAPED)
        self._orphans = self._kill_orphans()

    def _kill_orphans(self) -> bool:
        """
        SIGKILL the children that were not forked here; tell whether some have yet to end.

        They are not reaped, so their pids cannot belong to other processes.
        """
        try:
            found = [pid for pid in process_tree.children() if pid not in self._supervisors]
        except OSError:
            return True  # they cannot be listed now
        left = False
        for pid in found:
            try:
                os.kill(pid, _signal.SIGKILL)
                left = True
            except PermissionError:
                pass  # it has changed its user: do not wait for its end
        return left


def _library() -> tuple[int, int, int] | None:
    """
    Identify the Python library; None: it is gone, or in an archive.

    Supervisors import from it for some jobs, and must not if it was replaced or removed.
    """
    try:
        facts = os.stat(os.__file__)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns


def _run_supervisor(descriptor: int) -> NoReturn:
    """Run a supervisor in the child. It never returns, so the child runs no other code."""
    code = 1
    try:
        os.setsid()
        # SIGTERM stays blocked until the supervisor can be told of it.
        _signal.pthread_sigmask(_signal.SIG_SETMASK, (_signal.SIGTERM,))
        spawn.close_others(0, 1, 2, descriptor)
        supervise(descriptor)
        code = 0
    finally:
        os._exit(code)
