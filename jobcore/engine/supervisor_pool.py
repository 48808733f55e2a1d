"""
The host's end of each supervisor's socket.

A launcher starts them; the pool speaks with them and lets them go. It decides
nothing about jobs; a supervisor that is let go finishes the one it has.
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

# A bare module in place of the package: its `__init__` would import all of
# jobcore. What is below is imported as usual, from .pyc files.
STUB = """\
import sys
package = type(sys)("jobcore")
package.__path__ = [sys.argv[2]]
sys.modules["jobcore"] = package
from jobcore.supervisor.__main__ import main
main(int(sys.argv[1]))
"""

# In a frozen program jobcore is in no directory: the interpreter that is named has its own.
_STUB_ELSEWHERE = (
    """\
import sys
from importlib.util import find_spec
sys.argv[2] = find_spec("jobcore").submodule_search_locations[0]
"""
    + STUB
)

_STANDARD = 2  # the last of the standard streams
_STARTER_PATIENCE = 1.0  # seconds; it takes some 50 ms

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _command(python: str, descriptor: int) -> list[str]:
    """Return the command line of a supervisor."""
    is_there = os.path.isdir(os.path.join(_PACKAGE, "supervisor"))
    stub = ("-S", "-c", STUB) if is_there else ("-c", _STUB_ELSEWHERE)
    return [python, "-I", *stub, str(descriptor), _PACKAGE]


def encode_request(fields: dict[str, Any]) -> int:
    """
    Return a descriptor of a file in memory that holds the request.

    It is registered with `forking.GATE`; close it there.

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
    Starts supervisors: how jobs get their processes, or in tests something else.

    Called by the manager that needs one, in its own thread, and while nobody
    may fork: return at once. That the supervisor is ready comes as its notice.
    """

    def start(self, descriptor: int) -> int | None:
        """
        Have a supervisor speak at this end of a socket pair.

        The other end is the host's; what is said is jobcore's own.

        Args:
            descriptor: Of this end. It is closed when this returns: keep a copy, or
                pass it to a process.

        Returns:
            The pid of a child of this process that only starts the supervisor
            and ends, to be reaped by the pool; None: there is nothing to reap.

        Raises:
            SpawnError, OSError: None could be started, and nothing keeps the descriptor.
        """


def _socketpair() -> tuple[_socket.socket, _socket.socket]:
    """
    Return both ends of a channel, under numbers that are no standard streams.

    A host whose 0, 1 or 2 is closed would get those: where a program is started for
    them its streams are put there, and what the host prints would go to the supervisor.

    The class of C, not `socket.socket`: in its place there may be one that refuses, as by
    pytest-socket, or one that waits for others, as gevent's.
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
        python: The interpreter that supervisors run with; None: that of this process.
    """

    def __init__(self, python: str | None = None) -> None:
        self._python = python or sys.executable

    def prepare(self) -> interpreter.Question | None:
        """
        Return the interpreter, being asked whether it is one; None: that is known.

        Raises:
            SpawnError: It is not, or it cannot be started.
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
        except (RuntimeError, ValueError) as error:  # the interpreter ends, or a NUL in the name
            raise SpawnError(f"no supervisor could be started: {error}") from error
        # The pool reaps it; or its destructor would complain, and keep it.
        process.returncode = 0
        return process.pid


class Supervisor:
    """
    The host's end of one supervisor.

    Attributes:
        pid: Of the supervisor, once it has said `READY`.
        ready: It waits for a request.
        token: The run it was given, until that has `ENDED`.
        gone: Nobody is at the other end any more.
    """

    def __init__(self, connection: _socket.socket, starter: int | None) -> None:
        self.pid: int | None = None
        self.ready = False
        self.token: str | None = None
        self.gone = False
        self._socket = connection
        # The process that was started, if any, only forks the supervisor, and ends. It is known
        # by a pidfd: where SIGCHLD is ignored its pid may be another child's a moment later.
        self._starter = -1
        self._itself = -1  # a pidfd, too, from `close` on
        self._unreaped: list[int] = []  # by pid, and never signalled
        if starter is not None:
            try:
                self._starter = _pidfd_of(starter)
            except ProcessLookupError:
                pass  # it has ended, and nobody keeps its pid for us
            except OSError:
                self._unreaped.append(starter)  # no descriptor is left, or there are no pidfds

    def fileno(self) -> int:
        """Return the socket, to be polled for reading; -1 when it was closed."""
        return self._socket.fileno()

    def receive(self) -> list[Notice]:
        """
        Return the notices that have come; never blocks.

        At the end of file the supervisor is `gone`: no further notice will
        come, and what became of its job is in the job directory.
        """
        received: list[Notice] = []
        while not self.gone:
            try:
                data = self._socket.recv(messages.SIZE)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # It ended with a request unread. Told once; notices may follow.
                continue
            except OSError:
                data = b""
            try:
                notice = messages.decode(data)
            except NewerProtocol:
                # jobcore was upgraded on disk below the running host. Whom we
                # do not understand we do not use.
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
        Hand over a run: its lock, its directory and what `encode_request` made.

        The descriptors stay the caller's to close, whatever the answer is.

        Returns:
            `"sent"`: it is on its way, and the lock with it. `"again"`: not now, for lack of
            room; nothing was sent. `"gone"`: not to this supervisor; nothing was sent.
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
            # EPIPE, ECONNRESET, or EBADF of a closed one. What it still said can be read.
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
        """Send a signal to the supervisor; False: it is gone, or this may not be done."""
        if self.pid is None or self.gone or self.pid == os.getpid() or pids.level() != 1:
            return False
        try:
            with pids.ProcessHandle(self.pid) as process:
                # While it is at the other end of the socket the pid is its own.
                poll = select.poll()
                poll.register(self._socket, 0)
                if poll.poll(0):
                    return False
                process.signal(number)
        except OSError:
            return False
        return True

    def forget(self) -> None:
        """Let go of the descriptor without closing it: in a forked child the gate has done that."""
        self.gone = True
        self.ready = False
        self._socket.detach()
        self._starter = self._itself = -1
        self._unreaped.clear()

    @property
    def starting(self) -> bool:
        """Whether the process that was started, and only forks, has not been reaped."""
        return self._starter >= 0

    def kill_starter(self) -> None:
        """SIGKILL the process that was started, if it has not come to its end by itself."""
        self.reap()
        if self.starting:
            with suppress(ProcessLookupError):  # it has just ended, and was reaped by the host
                signal.pidfd_send_signal(self._starter, signal.SIGKILL)

    def reap(self) -> bool:
        """Reap those of its processes that were children of ours; return whether none is left."""
        if self.starting and _has_ended(system_calls.P_PIDFD, self._starter):
            pidfd, self._starter = self._starter, -1
            GATE.close(pidfd)
        self._unreaped = [pid for pid in self._unreaped if not _has_ended(os.P_PID, pid)]
        if self.starting or self._unreaped:
            return False  # and while its parent lives it is no child of ours
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
        """Have it reaped behind its end: it comes to us if we are PID 1 or a subreaper."""
        if not self._is_there() or self.pid is None:
            return
        try:
            pidfd = _pidfd_of(self.pid)
        except system_calls.NoPidfdError:
            self._unreaped.append(self.pid)  # no longer than it is a child of ours
            return
        except OSError:
            return  # it has just ended, or no descriptor is left
        if self._is_there():
            self._itself = pidfd
        else:
            GATE.close(pidfd)  # its pid may have been another's by then

    def _is_there(self) -> bool:
        """Tell whether anybody is at the other end, and note what was said, such as its pid."""
        self.receive()
        return not self.gone

    def _mark_gone(self) -> None:
        self.gone = True
        self.ready = False
        if self.pid is not None:
            # Its parent has ended, so it is a child of ours if we are PID 1 or a subreaper.
            self._unreaped.append(self.pid)


def _pidfd_of(pid: int) -> int:
    """Return a registered descriptor of a process that has not been reaped."""
    with GATE:
        pidfd = system_calls.open_process(pid)
        GATE.register(pidfd)
    return pidfd


def _has_ended(kind: int, process: int) -> bool:
    """Reap a process that may be a child of ours; False: it has not ended."""
    try:
        return os.waitid(kind, process, os.WEXITED | os.WNOHANG) is not None
    except OSError:
        return True  # SIGCHLD is ignored, or somebody waits for every child of this process


#: Those that had a job when their pool was closed, each with the process whose child it is.
_LEFT: list[tuple[int, Supervisor]] = []


class SupervisorPool:
    """
    The supervisors of one host.

    Attributes:
        supervisors: All that were started and not let go, in order of their start.
    """

    def __init__(self, launcher: Launcher | None = None) -> None:
        """
        Args:
            launcher: Starts them; None: as processes, with the interpreter of this one.
        """
        self.supervisors: list[Supervisor] = []
        self._launcher = launcher or ProcessLauncher()
        self._leaving: list[Supervisor] = []
        GATE.watch(self)

    def prepare(self) -> interpreter.Question | None:
        """
        Return what has to be answered before `spawn`; None: nothing.

        Raises:
            SpawnError: None can be started.
        """
        prepare = getattr(self._launcher, "prepare", None)
        question: interpreter.Question | None = None if prepare is None else prepare()
        return question

    def spawn(self) -> Supervisor:
        """
        Start a supervisor and return at once; that it is ready comes as a notice.

        Raises:
            SpawnError: None could be started. Nothing stays open.
        """
        self.reap()
        # Until our end is registered, and the other one closed, no other thread may fork.
        with GATE:
            try:
                ours, theirs = _socketpair()
            except OSError as error:
                raise SpawnError(f"no supervisor: {error}", error.errno) from error
            # Not theirs: a launcher may fork, and its child is the one that needs it.
            GATE.register(ours.fileno())
            supervisor: Supervisor | None = None
            try:
                ours.setblocking(False)
                supervisor = Supervisor(ours, self._launcher.start(theirs.fileno()))
            except SpawnError:
                raise
            except OSError as error:
                raise SpawnError(f"no supervisor could be started: {error}", error.errno) from error
            except Exception as error:  # a launcher is somebody else's code
                raise SpawnError(f"no supervisor could be started: {error!r}") from error
            finally:
                theirs.close()
                if supervisor is None:
                    GATE.close(ours.detach())
        self.supervisors.append(supervisor)
        return supervisor

    def discard(self, supervisor: Supervisor) -> None:
        """Let it go: idle it exits, busy it finishes its job first. Twice is harmless."""
        supervisor.close()
        if supervisor in self.supervisors:
            self.supervisors.remove(supervisor)
            self._leaving.append(supervisor)
        self.reap()

    def close(self) -> None:
        """Let all of them go. Running jobs run on."""
        # One that has not told its pid yet could not be reaped, where it comes to us at its end.
        give_up = time.monotonic() + _STARTER_PATIENCE
        while self._any_unknown() and time.monotonic() < give_up:
            time.sleep(0.005)
        for supervisor in list(self.supervisors):
            self.discard(supervisor)
        # One started a moment ago has not come to its fork, one without a job ends at once:
        # nobody would reap them later. One with a job is left to the next pool of this process.
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
        """Listen to those that have said nothing so far; tell whether one still has not."""
        for supervisor in self.supervisors:
            if supervisor.pid is None:
                supervisor.receive()
        return any(one.pid is None and not one.gone for one in self.supervisors)

    def before_fork(self) -> None:
        """Do nothing: what must not be copied half done, the gate guards."""

    def after_fork_in_parent(self) -> None:
        """Do nothing."""

    def after_fork_in_child(self) -> None:
        """Forget them: they are the parent's, and the gate has closed the descriptors."""
        for supervisor in self.supervisors:
            supervisor.forget()
        self.supervisors = []
        self._leaving = []

    def reap(self) -> None:
        """Reap those let go; each is asked while it is a child of ours, at most once a call."""
        self._leaving = [supervisor for supervisor in self._leaving if not supervisor.reap()]
        if _LEFT:
            with GATE:
                # Not those of a parent that has forked us: they are no longer known here.
                mine = [each for each in _LEFT if each[0] == os.getpid()]
                _LEFT[:] = [each for each in mine if not each[1].reap()]
