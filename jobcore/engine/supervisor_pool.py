"""
The host's end of each supervisor's socket.

A launcher starts supervisors; the pool communicates with them and dismisses them. It makes no
decision about jobs. A supervisor that is dismissed finishes the job that it has.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import marshal
import os
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from typing import Any, Protocol

from jobcore.embedding.forking import GATE
from jobcore.engine import interpreter
from jobcore.errors import SpawnError
from jobcore.supervisor import NewerProtocol, job_directory, messages, pids, system_calls
from jobcore.supervisor.messages import ENDED, OUTPUT, READY, STARTED, Notice

__all__ = [
    "ENDED",
    "OUTPUT",
    "READY",
    "STARTED",
    "Launcher",
    "Notice",
    "ProcessLauncher",
    "Supervisor",
    "SupervisorPool",
    "encode_request",
]

# An empty module replaces the package, because its `__init__` would import all of jobcore.
# Submodules are imported as usual, from .pyc files.
STUB = """\
import sys
package = type(sys)("jobcore")
package.__path__ = [sys.argv[2]]
sys.modules["jobcore"] = package
from jobcore.supervisor.__main__ import main
main(int(sys.argv[1]))
"""

# In a frozen program, jobcore is in no directory. The named interpreter has its own jobcore.
_STUB_ELSEWHERE = (
    """\
import sys
from importlib.util import find_spec
sys.argv[2] = find_spec("jobcore").submodule_search_locations[0]
"""
    + STUB
)

_STANDARD = 2  # the descriptor of the last standard stream
_STARTER_PATIENCE = 1.0  # seconds; it usually takes about 50 ms

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _command(python: str, descriptor: int) -> list[str]:
    """Return the command line of a supervisor."""
    is_there = os.path.isdir(os.path.join(_PACKAGE, "supervisor"))
    stub = ("-S", "-c", STUB) if is_there else ("-c", _STUB_ELSEWHERE)
    return [python, "-I", *stub, str(descriptor), _PACKAGE]


def encode_request(fields: dict[str, Any]) -> int:
    """
    Return a descriptor of a file in memory that holds the request.

    It is registered with `forking.GATE`; close it with that.

    Raises:
        OSError: No descriptor or no memory is left. Nothing stays open.
    """
    data = marshal.dumps(fields, 2)
    with GATE:
        descriptor = system_calls.make_memory_file("jobcore-request")
        GATE.register(descriptor)
    try:
        job_directory.write_all(descriptor, data)
    except BaseException:
        GATE.close(descriptor)
        raise
    return descriptor


class Launcher(Protocol):
    """
    Starts the supervisors that run jobs; tests can replace it.

    The manager that needs a supervisor calls it in its own thread, while no other thread may
    fork: return at once. The supervisor sends a notice when it is ready.
    """

    def start(self, descriptor: int) -> int | None:
        """
        Start a supervisor that uses this end of a socket pair.

        The host has the other end. The protocol is internal to jobcore.

        Args:
            descriptor: This end. The caller closes it when this returns: keep a copy, or pass
                it to a process.

        Returns:
            The pid of a child of this process that only starts the supervisor and ends, for
            the pool to reap; None: there is nothing to reap.

        Raises:
            SpawnError, OSError: No supervisor could be started, and nothing keeps the
                descriptor.
        """


def _socketpair() -> tuple[_socket.socket, _socket.socket]:
    """
    Return both ends of a channel, with descriptors other than those of the standard streams.

    If the host has closed 0, 1 or 2, a new socket would get that number. A program that is
    started would get its own streams there instead, and the host would print to the supervisor.

    This uses the C class, not `socket.socket`, which may have been replaced: by one that refuses,
    as pytest-socket does, or one that switches to other tasks, as gevent's does.
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


class ProcessLauncher:
    """
    Starts each supervisor as a process of its own, which outlives its host.

    Args:
        python: The interpreter for supervisors; None: that of this process.
    """

    def __init__(self, python: str | None = None) -> None:
        self._python = python or sys.executable

    def prepare(self) -> interpreter.Question | None:
        """
        Begin to test whether `python` is an interpreter; None: no test is needed.

        Raises:
            SpawnError: It is not an interpreter, or it cannot be started.
        """
        if not self._python:
            raise SpawnError("no Python interpreter is known here: name one with `python=`")
        return interpreter.ask(self._python)

    def start(self, descriptor: int) -> int:
        """
        Start a supervisor, and return the pid of the process that forks it and ends.

        Raises:
            SpawnError: No process could be started.
        """
        import subprocess  # noqa: PLC0415 - a host that runs nothing need not load it

        try:
            with interpreter.unhooked():
                process = subprocess.Popen(
                    _command(self._python, descriptor),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env=interpreter.marked(),
                    close_fds=True,
                    pass_fds=(descriptor,),
                )
        except OSError as error:
            raise SpawnError(
                f"no supervisor could be started with {self._python!r}: {error}", error.errno
            ) from error
        except (RuntimeError, ValueError) as error:  # interpreter exit, or a NUL in the name
            raise SpawnError(f"no supervisor could be started: {error}") from error
        # The pool reaps it. Without this, its destructor would warn and keep it.
        process.returncode = 0
        return process.pid


class Supervisor:
    """
    The host's end of one supervisor.

    Attributes:
        pid: The supervisor's pid, once it has sent `READY`; None before.
        ready: Whether it waits for a request.
        token: The run that it was sent, until it sends `ENDED`; else None.
        gone: Whether the other end is closed.
    """

    def __init__(self, connection: _socket.socket, starter: int | None) -> None:
        self.pid: int | None = None
        self.ready = False
        self.token: str | None = None
        self.gone = False
        self._socket = connection
        # The process that was started, if any, only forks the supervisor and ends. Refer to it
        # by a pidfd: if SIGCHLD is ignored, another child may soon get its pid.
        self._starter = -1
        self._itself = -1  # a pidfd of the supervisor, from `close` on
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

        At the end of file the supervisor is `gone`: no further notice will arrive, and the job
        directory shows how its job ended.
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
            except OSError:
                data = b""
            try:
                notice = messages.decode(data)
            except NewerProtocol:
                # jobcore was upgraded on disk while this host runs: do not use a supervisor of
                # another version.
                notice = None
            if notice is None:
                self._mark_gone()
            else:
                self._note(notice)
                received.append(notice)
        self.reap()
        return received

    def send(self, token: str, lock: int, directory: int, request: int) -> str:
        """
        Send a run: its lock, its directory and the request made by `encode_request`.

        The caller must close the descriptors in any case.

        Returns:
            `"sent"`: it was sent, together with the lock. `"again"`: the socket had no room, and
            nothing was sent. `"gone"`: the supervisor is gone, and nothing was sent.
        """
        rights = struct.pack("3i", lock, directory, request)
        try:
            self._socket.sendmsg(
                [messages.encode(messages.REQUEST, token)],
                [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)],
                _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL,
            )
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                return "again"
            # EPIPE, ECONNRESET, or EBADF if it is closed. Earlier notices can still be read.
            self.ready = False
            return "gone"
        self.ready = False
        self.token = token
        return "sent"

    def close(self) -> None:
        """Close the socket: an idle supervisor exits, a busy one finishes its job."""
        self._keep_in_sight()
        self.gone = True
        self.ready = False
        with GATE:
            if self._socket.fileno() >= 0:
                GATE.close(self._socket.detach())

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to the supervisor; False: it is gone, or that is not permitted."""
        if self.pid is None or self.gone or self.pid == os.getpid() or pids.level() != 1:
            return False
        try:
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
    def starting(self) -> bool:
        """Whether the process that forks the supervisor has not been reaped yet."""
        return self._starter >= 0

    def kill_starter(self) -> None:
        """SIGKILL the process that forks the supervisor, if it has not ended."""
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
            return False  # while its parent lives, the supervisor is not a child of this process
        if self._itself >= 0 and _has_ended(system_calls.P_PIDFD, self._itself):
            pidfd, self._itself = self._itself, -1
            GATE.close(pidfd)
        return self._itself < 0

    def _note(self, notice: Notice) -> None:
        if notice.kind == READY:
            self.pid = notice.number
            self.ready = True
        elif notice.kind == ENDED:
            if notice.token == self.token:
                self.token = None
            self.ready = notice.number != 0

    def _keep_in_sight(self) -> None:
        """Let it be reaped after its end: it is our child then if we are PID 1 or a subreaper."""
        if not self._is_there() or self.pid is None:
            return
        try:
            pidfd = _pidfd_of(self.pid)
        except system_calls.NoPidfdError:
            self._unreaped.append(self.pid)  # reaped by pid, only while it is a child of ours
            return
        except OSError:
            return  # it has just ended, or no descriptor is left
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


#: Supervisors that had a job when their pool was closed, each with the pid of its host.
_LEFT: list[tuple[int, Supervisor]] = []


class SupervisorPool:
    """
    The supervisors of one host.

    Attributes:
        supervisors: Those that were started and not dismissed, in order of their start.
    """

    def __init__(self, launcher: Launcher | None = None) -> None:
        """
        Args:
            launcher: Starts them; None: as processes, with this process's interpreter.
        """
        self.supervisors: list[Supervisor] = []
        self._launcher = launcher or ProcessLauncher()
        self._leaving: list[Supervisor] = []
        GATE.watch(self)

    def prepare(self) -> interpreter.Question | None:
        """
        Return a test that must succeed before `spawn`; None: there is none.

        Raises:
            SpawnError: No supervisor can be started.
        """
        prepare = getattr(self._launcher, "prepare", None)
        question: interpreter.Question | None = None if prepare is None else prepare()
        return question

    def spawn(self) -> Supervisor:
        """
        Start a supervisor and return at once; it sends a notice when it is ready.

        Raises:
            SpawnError: None could be started. Nothing stays open.
        """
        self.reap()
        # No other thread may fork until our end is registered and the other one is closed.
        with GATE:
            try:
                ours, theirs = _socketpair()
            except OSError as error:
                raise SpawnError(f"no supervisor: {error}", error.errno) from error
            # Do not register the other end: a launcher may fork, and its child needs it.
            GATE.register(ours.fileno())
            supervisor: Supervisor | None = None
            try:
                ours.setblocking(False)
                supervisor = Supervisor(ours, self._launcher.start(theirs.fileno()))
            except SpawnError:
                raise
            except OSError as error:
                raise SpawnError(f"no supervisor could be started: {error}", error.errno) from error
            except Exception as error:  # a launcher may be the host's code
                raise SpawnError(f"no supervisor could be started: {error!r}") from error
            finally:
                theirs.close()
                if supervisor is None:
                    GATE.close(ours.detach())
        self.supervisors.append(supervisor)
        return supervisor

    def discard(self, supervisor: Supervisor) -> None:
        """Dismiss a supervisor: it exits, after its job if it has one. Twice is harmless."""
        supervisor.close()
        if supervisor in self.supervisors:
            self.supervisors.remove(supervisor)
            self._leaving.append(supervisor)
        self.reap()

    def close(self) -> None:
        """Dismiss all supervisors. Running jobs continue."""
        # Wait for pids: without one, a supervisor that becomes our child could not be reaped.
        give_up = time.monotonic() + _STARTER_PATIENCE
        while self._any_unknown() and time.monotonic() < give_up:
            time.sleep(0.005)
        for supervisor in list(self.supervisors):
            self.discard(supervisor)
        # Wait for starters that have not forked yet, and for idle supervisors, which end at once:
        # nothing would reap them later. The next pool of this process reaps those with a job.
        give_up = time.monotonic() + _STARTER_PATIENCE
        while (
            any(each.starting or each.token is None for each in self._leaving)
            and time.monotonic() < give_up
        ):
            time.sleep(0.005)
            self.reap()
        with GATE:
            _LEFT.extend((os.getpid(), each) for each in self._leaving if not each.starting)
        self._leaving = []

    def _any_unknown(self) -> bool:
        """Read notices of supervisors without a known pid; tell whether there still are some."""
        for supervisor in self.supervisors:
            if supervisor.pid is None:
                supervisor.receive()
        return any(one.pid is None and not one.gone for one in self.supervisors)

    def before_fork(self) -> None:
        """Do nothing: the gate allows no fork while a supervisor is being started."""

    def after_fork_in_parent(self) -> None:
        """Do nothing."""

    def after_fork_in_child(self) -> None:
        """Forget them: they are the parent's, and the gate has closed the descriptors."""
        for supervisor in self.supervisors:
            supervisor.forget()
        self.supervisors = []
        self._leaving = []

    def reap(self) -> None:
        """Reap the dismissed supervisors that have ended, without waiting for any."""
        self._leaving = [supervisor for supervisor in self._leaving if not supervisor.reap()]
        if _LEFT:
            with GATE:
                # Forget those of the parent that forked this process.
                mine = [each for each in _LEFT if each[0] == os.getpid()]
                _LEFT[:] = [each for each in mine if not each[1].reap()]
