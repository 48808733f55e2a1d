"""
The supervisors of one manager: how many there are, and the host's end of their sockets.

Starting a supervisor takes longer than running a short job, so an idle one is kept for the next
job, and dismissed if none comes for a while. A supervisor that is dismissed finishes its job.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import logging
import os
import select
import signal
import struct
import time
from contextlib import suppress

from jobcore import tuning
from jobcore.embedding import failpoints, telemetry
from jobcore.embedding.locks import GATE, ForkAware
from jobcore.engine import procfs
from jobcore.engine.launch import Start
from jobcore.engine.launcher import InterpreterCheck, Launcher, ProcessLauncher
from jobcore.engine.postponement import Postponement
from jobcore.errors import SpawnError
from jobcore.supervisor import NewerProtocol, messages, pids, system_calls
from jobcore.supervisor.messages import ENDED, READY, Notice

#: Seconds that a close waits for the starters of supervisors; one usually takes about 50 ms.
STARTER_PATIENCE = 1.0
#: The key of their failures in `Postponement`.
SUPERVISORS = "supervisors"

_STANDARD = 2  # the descriptor of the last standard stream


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


class Supervisor:
    """
    The host's end of one supervisor.

    Attributes:
        pid: The supervisor's pid, once it has sent `READY`; None before.
        ready: Whether it waits for a request.
        since: When it became ready or, before that, when it was started, by the monotonic
            clock.
        token: The run that it was sent, until it sends `ENDED`; else None.
        gone: Whether the other end is closed.
    """

    def __init__(self, connection: _socket.socket, starter: int | None) -> None:
        self.pid: int | None = None
        self.ready = False
        self.since = time.monotonic()
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
            except OSError as error:
                if error.errno in system_calls.SHORTAGE:
                    break  # the next round tries again
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

    def signal_unresponsive(self, number: signal.Signals) -> None:
        """Signal a supervisor that does not take its job, unless a debugger or freezer holds it."""
        try:
            held = self.pid is None or procfs.is_held_back(self.pid)
        except OSError:
            return  # no descriptor is free for the check; the next round tries again
        if not held and self.signal(number):
            telemetry.event(
                logging.WARNING, "supervisor does not react", pid=self.pid, signal=number.name
            )

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to the supervisor; False: it is gone, or that is not possible now."""
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
        if self.ready:
            self.since = time.monotonic()

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


class SupervisorPool(ForkAware):
    """
    Starts supervisors, sends them jobs, and dismisses them.

    Only the dispatcher's thread may use it. It makes no decision about jobs.

    Args:
        launcher: Starts them; None: as processes, with this process's interpreter.
        slots: The most supervisors to keep.
        postponed: Records failed starts, under `SUPERVISORS`; None: a new one.
        host: Identifies the manager to `failpoints`.

    Attributes:
        supervisors: Those that were started and not dismissed, in order of their start.
        next_start: The earliest time of the next start, by the monotonic clock.
        slots: The most supervisors to keep. Any thread may change it.
    """

    def __init__(
        self,
        launcher: Launcher | None = None,
        *,
        slots: int = 0,
        postponed: Postponement | None = None,
        host: object = None,
    ) -> None:
        self.supervisors: list[Supervisor] = []
        self.next_start = 0.0
        self._launcher = launcher or ProcessLauncher()
        self.slots = slots
        self._postponed = postponed or Postponement(time.monotonic)
        self._host = host
        self._check: InterpreterCheck | None = None
        self._leaving: list[Supervisor] = []
        GATE.watch(self)

    @property
    def ready(self) -> int:
        """How many supervisors wait for a job."""
        return sum(supervisor.ready for supervisor in self.supervisors)

    def start(self, wanted: int) -> int:
        """Start supervisors until `wanted` are ready or starting; return how many are ready."""
        ready = self.ready
        coming = ready + sum(supervisor.pid is None for supervisor in self.supervisors)
        wanted = min(wanted - coming, self.slots - len(self.supervisors))
        if wanted > 0 and self._may_start():
            try:
                for _ in range(wanted):
                    self.spawn()
                    if failpoints.armed:
                        failpoints.reach(failpoints.SUPERVISOR_STARTED, self._host)
            except SpawnError as error:
                self._note_failure(error)
        return ready

    def _may_start(self) -> bool:
        """Tell whether `python` is known to be an interpreter; if not, check, without waiting."""
        try:
            if self._check is None:
                # A launcher of the host may have no `prepare`.
                self._check = getattr(self._launcher, "prepare", lambda: None)()
            if self._check is None:
                return True
            if self._check.has_answered():
                self._check = None
                return True
        except SpawnError as error:
            self._check = None
            self._note_failure(error)
        else:
            self.next_start = self._check.due
        return False

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
                raise SpawnError(f"no supervisor could be started: {error}", error.errno) from error
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

    def _note_failure(self, error: SpawnError) -> None:
        delay = self._postponed.fail(SUPERVISORS, error, "supervisor not started")
        self.next_start = time.monotonic() + min(delay, tuning.LONGEST_START_PAUSE)

    def sources(self) -> dict[int, Supervisor | None]:
        """Return the descriptors to poll, each with its supervisor; None: the interpreter check."""
        found: dict[int, Supervisor | None] = {one.fileno(): one for one in self.supervisors}
        if self._check is not None and self._check.fileno() >= 0:
            found[self._check.fileno()] = None
        return found

    def read_check(self) -> None:
        """Read the answer of the interpreter that is checked."""
        if self._check is not None:
            self._check.listen()
            self.next_start = 0.0

    def receive(self, supervisor: Supervisor) -> list[Notice]:
        """Return the notices of a supervisor, and forget past failures once it is ready."""
        notices = supervisor.receive()
        if any(notice.kind == READY for notice in notices):
            self._postponed.succeed(SUPERVISORS)
        return notices

    def send(self, start: Start) -> Supervisor | None:
        """Send a job to a ready supervisor, and return that; None: no supervisor takes it now."""
        for supervisor in self.supervisors:
            if supervisor.ready:
                answer = supervisor.send(
                    start.token, start.prepared.lock, start.prepared.directory, start.body
                )
                if answer == "sent":
                    return supervisor
                # "again": the next round tries again. "gone": poll reports its end of file.
        return None

    def wake_stopped(self) -> None:
        """Send SIGCONT to supervisors that were stopped, idle or with a job."""
        try:
            if pids.level() != 1:
                return  # the pids in /proc would be those of other processes
            known = [one for one in self.supervisors if one.pid is not None]
            stopped = [one for one in known if procfs.is_stopped(one.pid or 0)]
        except OSError:
            return  # no descriptor is free for the check; the next round tries again
        for supervisor in stopped:
            if supervisor.signal(signal.SIGCONT):
                telemetry.event(logging.WARNING, "stopped supervisor woken", pid=supervisor.pid)

    def remove_gone(self, supervisor: Supervisor) -> None:
        """Dismiss a supervisor that has gone. If it never got ready, that is a failure."""
        if supervisor.pid is None:
            self._note_failure(
                SpawnError(
                    "a supervisor did not become ready: it ended, or does not answer; "
                    "`python=`, or else `sys.executable`, must name a Python interpreter"
                )
            )
        self.discard(supervisor)

    def remove_idle(self) -> None:
        """Dismiss supervisors that were idle for a while, or did not get ready in time."""
        now = time.monotonic()
        if self._check is not None and now >= self._check.due:
            self._may_start()  # ends the check even if no supervisor is needed any more
        for supervisor in list(self.supervisors):
            waited = now - supervisor.since
            if supervisor.pid is None and waited > tuning.READY_PATIENCE:
                supervisor.kill_starter()
                self.remove_gone(supervisor)
            elif supervisor.ready and waited > tuning.IDLE_SUPERVISOR:
                self.discard(supervisor)
        self.reap()

    def discard(self, supervisor: Supervisor) -> None:
        """Dismiss a supervisor: it exits, after its job if it has one. Twice is harmless."""
        supervisor.close()
        if supervisor in self.supervisors:
            self.supervisors.remove(supervisor)
            self._leaving.append(supervisor)
        self.reap()

    def close(self) -> None:
        """Dismiss all supervisors: an idle one exits, a busy one finishes its job."""
        if self._check is not None:
            self._check.close()
            self._check = None
        for supervisor in self.supervisors:
            if supervisor.pid is None:
                supervisor.kill_starter()
        # Wait for pids: without one, a supervisor that becomes our child could not be reaped.
        give_up = time.monotonic() + STARTER_PATIENCE
        while self._any_unknown() and time.monotonic() < give_up:
            time.sleep(0.005)
        for supervisor in list(self.supervisors):
            self.discard(supervisor)
        # Wait for starters that have not forked yet, and for idle supervisors, which end at once:
        # nothing would reap them later. The next pool of this process reaps those with a job.
        give_up = time.monotonic() + STARTER_PATIENCE
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

    def after_fork_in_child(self) -> None:
        """Forget them: they are the parent's, and the gate has closed the descriptors."""
        if self._check is not None:
            self._check.forget()
            self._check = None
        for supervisor in self.supervisors:
            supervisor.forget()
        self.supervisors = []
        self._leaving = []
        self.next_start = 0.0

    def reap(self) -> None:
        """Reap the dismissed supervisors that have ended, without waiting for any."""
        self._leaving = [supervisor for supervisor in self._leaving if not supervisor.reap()]
        if _LEFT:
            with GATE:
                # Forget those of the parent that forked this process.
                mine = [each for each in _LEFT if each[0] == os.getpid()]
                _LEFT[:] = [each for each in mine if not each[1].reap()]
