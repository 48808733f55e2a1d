"""
The host's end of a process that outlives it: a socket, and who reaps the process.

A starter forks the process and ends, so that the process is no child of the host. But if the
host is PID 1 or a subreaper, the process becomes its child then, and the host must reap it.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import select
import signal
import time
from contextlib import suppress

from jobcore.embedding.locks import GATE
from jobcore.supervisor import NewerProtocol, messages, pids, system_calls
from jobcore.supervisor.messages import ENDED, READY, Notice

_STANDARD = 2  # the descriptor of the last standard stream


def socket_pair() -> tuple[_socket.socket, _socket.socket]:
    """
    Return both ends of a channel, with descriptors other than those of the standard streams.

    If the host has closed 0, 1 or 2, a new socket would get that number. A program that is
    started would get its own streams there instead, and the host would print to the other end.

    This uses the C class, not `socket.socket`, which may have been replaced: by one that refuses,
    as pytest-socket does, or one that switches to other tasks, as gevent's does.

    Raises:
        OSError: No descriptor is free. Nothing stays open.
    """
    pair = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    if min(one.fileno() for one in pair) > _STANDARD:
        return pair
    moved: list[_socket.socket] = []
    try:
        for one in pair:
            number = fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, _STANDARD + 1)
            moved.append(_socket.socket(fileno=number))
    except OSError:
        for one in moved:
            one.close()
        raise
    finally:
        for one in pair:
            one.close()
    return moved[0], moved[1]


class Peer:
    """
    The host's end of one such process.

    Attributes:
        pid: Its pid, once it has sent `READY`; None before.
        ready: Whether it waits for a request.
        since: When it became ready or, before that, when it was started, by the monotonic
            clock.
        gone: Whether the other end is closed.
        busy: Whether it goes on for a while after `close`: a supervisor has a job, or a keeper
            waits for supervisors that have one.
    """

    def __init__(self, connection: _socket.socket, starter: int | None) -> None:
        self.pid: int | None = None
        self.ready = False
        self.since = time.monotonic()
        self.gone = False
        self.busy = False
        self._socket = connection
        # The process that was started, if any, only forks the other one and ends. Refer to it
        # by a pidfd: if SIGCHLD is ignored, another child may soon get its pid.
        self._starter = -1
        self._itself = -1  # a pidfd of the other process, from `close` on
        self._unreaped: list[int] = []  # pids, which are never signalled
        if starter is not None:
            try:
                self._starter = _pidfd_of(starter)
            except ProcessLookupError:
                pass  # it has ended, and was reaped by someone else
            except OSError:
                self._unreaped.append(starter)  # no descriptor is left, or no pidfds are supported

    def fileno(self) -> int:
        """Return the socket's descriptor, to poll for reading; -1 if it is closed."""
        return self._socket.fileno()

    def receive(self) -> list[Notice]:
        """
        Return the notices that have arrived, without blocking.

        At the end of file the process is `gone`: no further notice will arrive.
        """
        received: list[Notice] = []
        while not self.gone:
            try:
                data = self._socket.recv(messages.SIZE)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # It ended without reading a request. This is reported once; notices may follow.
                continue
            except OSError as error:
                if error.errno in system_calls.SHORTAGE:
                    break  # the next round tries again
                data = b""
            try:
                notice = messages.decode(data)
            except NewerProtocol:
                # jobcore was upgraded on disk while this host runs: do not use a process of
                # another version.
                notice = None
            if notice is None:
                self._mark_gone()
            else:
                self._note(notice)
                received.append(notice)
        self.reap()
        return received

    def close(self) -> None:
        """Close the socket: the process ends, once it has nothing left to do."""
        self._keep_in_sight()
        self.gone = True
        self.ready = False
        with GATE:
            if self._socket.fileno() >= 0:
                GATE.close(self._socket.detach())

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to the process; False: it is gone, or that is not possible now."""
        if self.pid is None or self.gone or self.pid == os.getpid():
            return False
        try:
            if pids.level() != 1:
                return False
            with pids.ProcessHandle(self.pid) as process:
                # While it holds the other end of the socket, it is alive and the pid is its own.
                poll = select.poll()
                poll.register(self._socket, 0)
                if poll.poll(0):
                    return False
                process.signal(number)
        except OSError:
            return False
        return True

    def forget(self) -> None:
        """Drop the descriptors, in a forked child, where the gate has closed them already."""
        self.gone = True
        self.ready = False
        self._socket.detach()
        self._starter = self._itself = -1
        self._unreaped.clear()

    @property
    def is_coming(self) -> bool:
        """Whether its pid may still become known."""
        return self.pid is None and not self.gone

    @property
    def starting(self) -> bool:
        """Whether its starter has not been reaped yet."""
        return self._starter >= 0

    def kill_starter(self) -> None:
        """SIGKILL its starter, if that has not ended."""
        self.reap()
        if self.starting:
            with suppress(ProcessLookupError):  # it has just ended, and the host has reaped it
                signal.pidfd_send_signal(self._starter, signal.SIGKILL)

    def reap(self) -> bool:
        """Reap its processes that are children of this one; return whether none is left."""
        if self.starting and _has_ended(system_calls.P_PIDFD, self._starter):
            pidfd, self._starter = self._starter, -1
            GATE.close(pidfd)
        self._unreaped = [pid for pid in self._unreaped if not _has_ended(os.P_PID, pid)]
        if self.starting or self._unreaped:
            return False  # while its parent lives, the process is not a child of this one
        if self._itself >= 0 and self._has_itself_ended(self._itself):
            pidfd, self._itself = self._itself, -1
            GATE.close(pidfd)
        return self._itself < 0

    def _note(self, notice: Notice) -> None:
        if notice.kind == READY:
            self.pid = notice.number
            self.ready = True
            self.since = time.monotonic()
        elif notice.kind == ENDED:
            self._note_end(notice)

    def _note_end(self, notice: Notice) -> None:
        """Handle the end of a job; only a supervisor has one."""

    def _has_itself_ended(self, pidfd: int) -> bool:
        """Reap the process if it is an ended child of ours; False: it may still have to be."""
        return _has_ended(system_calls.P_PIDFD, pidfd)

    def _keep_in_sight(self) -> None:
        """Let it be reaped after its end: it is our child then if we are PID 1 or a subreaper."""
        if not self._is_there() or self.pid is None:
            return
        try:
            pidfd = _pidfd_of(self.pid)
        except ProcessLookupError:
            return  # it has just ended
        except OSError:  # no descriptor is left, or no pidfds are supported
            self._unreaped.append(self.pid)  # reaped by pid, only while it is a child of ours
            return
        if self._is_there():
            self._itself = pidfd
        else:
            GATE.close(pidfd)  # it ended first, so the pidfd may be of another process

    def _is_there(self) -> bool:
        """Tell whether the other end is open, after reading notices, which may have its pid."""
        self.receive()
        return not self.gone

    def _mark_gone(self) -> None:
        self.gone = True
        self.ready = False
        if self.pid is not None:
            # Its parent has ended, so it is our child now if we are PID 1 or a subreaper.
            self._unreaped.append(self.pid)


#: Processes that were still busy when they were dismissed, each with the pid of its host.
_LEFT: list[tuple[int, Peer]] = []


def leave_to_others(peers: list[Peer]) -> None:
    """Leave it to `reap_left`, which every pool of this process calls, to reap these."""
    with GATE:
        _LEFT.extend((os.getpid(), each) for each in peers if not each.reap())


def reap_left() -> None:
    """Reap those of them that have ended, without waiting for any."""
    if _LEFT:
        with GATE:
            # Forget those of the parent that forked this process.
            mine = [each for each in _LEFT if each[0] == os.getpid()]
            _LEFT[:] = [each for each in mine if not each[1].reap()]


def _pidfd_of(pid: int) -> int:
    """Return a registered descriptor of a process that has not been reaped."""
    with GATE:
        pidfd = system_calls.open_process(pid)
        GATE.register(pidfd)
    return pidfd


def _has_ended(kind: int, process: int) -> bool:
    """Reap a process if it is an ended child of ours; False: it is a child that still runs."""
    try:
        return os.waitid(kind, process, os.WEXITED | os.WNOHANG) is not None
    except OSError:
        return True  # not our child, SIGCHLD is ignored, or other code has reaped it
