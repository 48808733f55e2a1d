"""A supervisor's starter: it is killed and reaped by its pidfd, and nobody else ever is."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from jobcore.embedding.locks import GATE
from jobcore.engine.supervisor_pool import Supervisor
from tests.processes import PATIENCE, descriptors, in_child, left_open, state, until

pytestmark = pytest.mark.cold_supervisors

_LIBC = ctypes.CDLL(None)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def _fork(pause, code=0):
    """Start a child that ends at once, or never; return its pid."""
    pid = os.fork()
    if pid == 0:
        _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL)  # nothing is left where a test fails
        while pause and os.getppid() != 1:
            signal.pause()
        os._exit(code)
    return pid


def _end(pid):
    """End a child that is still ours, and tell that it lived until now."""
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0) == (pid, signal.SIGKILL)


class _Started:
    """A supervisor whose starter is a child of this process."""

    def __init__(self, starter):
        self._before = descriptors()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        GATE.register(self._ours.fileno())
        registered = GATE.descriptors()
        self.supervisor = Supervisor(self._ours, starter)
        self.pidfds = GATE.descriptors() - registered
        self.known_by = [descriptors()[pidfd] for pidfd in self.pidfds]
        assert self.supervisor.starting

    def is_over(self):
        """Tell whether it knows no starter any more, and nothing of it is open or registered."""
        over = not self.supervisor.starting and not self.pidfds & GATE.descriptors()
        self.supervisor.close()
        return over and self.known_by == ["anon_inode:[pidfd]"] and left_open(self._before) == {}


def _wait_for_any():
    """Reap every child that ends, as the main loop of some hosts does."""
    until(lambda: os.waitpid(-1, os.WNOHANG)[0], "the end of a child")


def _reaped_by_the_host(ask):
    starter = _fork(pause=True)
    started = _Started(starter)
    other = _fork(pause=True)
    os.kill(starter, signal.SIGKILL)
    _wait_for_any()
    assert started.supervisor.starting  # nobody has looked
    getattr(started.supervisor, ask)()
    return started.is_over(), _end(other)


def _reaped_by_the_kernel(ask):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    starter = _fork(pause=True)
    started = _Started(starter)
    other = _fork(pause=True)
    os.kill(starter, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{starter}"), "the starter's end")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    getattr(started.supervisor, ask)()
    return started.is_over(), _end(other)


def _left_to_the_supervisor(ask):
    starter = _fork(pause=True)
    started = _Started(starter)
    done, other = _fork(pause=False, code=7), _fork(pause=True)
    until(lambda: state(done) == "Z", "the end of a child")
    if ask == "reap":
        assert not started.supervisor.reap()
        os.kill(starter, signal.SIGKILL)
    started.supervisor.kill_starter()
    until(started.supervisor.reap, "the starter's end")
    with pytest.raises(ChildProcessError):
        os.waitpid(starter, 0)
    assert os.waitstatus_to_exitcode(os.waitpid(done, 0)[1]) == 7  # nobody has reaped it
    return started.is_over(), _end(other)


@pytest.mark.parametrize("ask", ["kill_starter", "reap"])
@pytest.mark.parametrize(
    "host", [_reaped_by_the_host, _reaped_by_the_kernel, _left_to_the_supervisor]
)
def test_starter_is_forgotten_whoever_reaps_it(host, ask):
    """Whether it or its host has reaped the starter, nothing is left, and others live on."""
    assert in_child(host, ask) == (True, True)


def _reaped_in_between():
    """Be a host that reaps the starter just before it would be signalled."""
    starter = _fork(pause=True)
    started = _Started(starter)
    send = signal.pidfd_send_signal

    def reap_first(*args):
        os.kill(starter, signal.SIGKILL)
        os.waitpid(starter, 0)
        send(*args)

    signal.pidfd_send_signal = reap_first
    try:
        started.supervisor.kill_starter()
    finally:
        signal.pidfd_send_signal = send
    return started.supervisor.reap() and started.is_over()


def test_starter_reaped_meanwhile_is_not_an_error():
    """A signal to a starter that has just ended, and is nobody's any more, hits nobody."""
    assert in_child(_reaped_in_between)


def _fork_as(pid, *, pause):
    """Return whether a child with this pid could be made; others may be faster now and then."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        LAST_PID.write_text(str(pid - 1))
        made = _fork(pause, code=7)
        if made == pid:
            return True
        os.kill(made, signal.SIGKILL)
        os.waitpid(made, 0)
        if os.path.exists(f"/proc/{pid}"):
            return False
    return False


def _with_its_pid_in_use(ask, pause):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    starter = _fork(pause=True)
    started = _Started(starter)
    os.kill(starter, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{starter}"), "the starter's end")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not _fork_as(starter, pause=pause):
        return None
    if not pause:
        until(lambda: state(starter) == "Z", "the end of the host's child")
    getattr(started.supervisor, ask)()
    started.supervisor.reap()
    ended = _end(starter) if pause else os.waitpid(starter, 0) == (starter, 7 << 8)
    return started.is_over(), ended


@pytest.mark.skipif(not os.access(LAST_PID, os.W_OK), reason="a pid cannot be chosen here")
@pytest.mark.parametrize("ask", ["kill_starter", "reap"])
@pytest.mark.parametrize("pause", [True, False], ids=["running", "ended"])
def test_another_child_with_the_starters_pid_is_left_alone(ask, pause):
    """A child of the host that was given the pid again is neither killed nor reaped."""
    for _ in range(5):
        try:
            answer = in_child(_with_its_pid_in_use, ask, pause)
        except PermissionError as error:
            pytest.skip(f"a pid cannot be chosen here: {error}")
        if answer is not None:
            break
    else:
        pytest.skip("the pid was always somebody else's")

    assert answer == (True, True)


def test_starter_with_a_reusable_pid_is_not_searched():
    """Where it has ended and was reaped by the host, whoever has its pid some day is another's."""
    starter = _fork(pause=False)
    os.waitpid(starter, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        supervisor = Supervisor(ours, starter)

        assert not supervisor.starting
        assert supervisor._unreaped == []
        assert supervisor.reap()
