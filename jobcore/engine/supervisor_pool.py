"""
The supervisors of one manager: how many there are, and the host's end of their sockets.

Starting a supervisor takes longer than running a short job, so an idle one is kept for the next
job, and dismissed if none comes for a while. A supervisor that is dismissed finishes its job.
"""

from __future__ import annotations

import _socket
import errno
import logging
import select
import signal
import struct
import time
from typing import TYPE_CHECKING

from jobcore import tuning
from jobcore.embedding import failpoints, telemetry
from jobcore.embedding.locks import GATE, ForkAware
from jobcore.engine import procfs
from jobcore.engine.launch import Start
from jobcore.engine.launcher import InterpreterCheck, Launcher, ProcessLauncher
from jobcore.engine.peer import Peer, leave_to_others, reap_left, socket_pair
from jobcore.engine.postponement import SUPERVISORS, Postponement
from jobcore.errors import SpawnError
from jobcore.supervisor import messages, pids
from jobcore.supervisor.messages import Notice

if TYPE_CHECKING:
    from jobcore.engine.keeper import Keeper, KeeperOfHost

#: Seconds that a close waits for the starters of supervisors; one usually takes about 50 ms.
STARTER_PATIENCE = 1.0
#: Processes whose state one round reads from /proc, which takes some 15 µs each. Of very many, a
#: round reads so many that each is examined at least every `EXAMINED_WITHIN` rounds.
EXAMINED_AT_ONCE, EXAMINED_WITHIN = 40, 5


class Supervisor(Peer):
    """
    The host's end of one supervisor.

    Attributes:
        token: The run that it was sent, until it sends `ENDED`; else None.
        keeper: The keeper that was asked to fork it; None: it was started without one.
        warm: The command line of the warm interpreter that it may have; None: it has none.
    """

    def __init__(
        self, connection: _socket.socket, starter: int | None, keeper: Keeper | None = None
    ) -> None:
        super().__init__(connection, starter)
        self.token: str | None = None
        self.keeper = keeper
        self.warm: tuple[str, ...] | None = None

    def send(
        self, token: str, lock: int, directory: int, request: int, *, warm: bool = False
    ) -> str:
        """
        Send a run: its lock, its directory and the file with its request.

        The caller must close the descriptors in any case. `warm` tells whether the supervisor may
        have a warm interpreter for it.

        Returns:
            `"sent"`: it was sent, together with the lock. `"again"`: the socket had no room, and
            nothing was sent. `"gone"`: the supervisor is gone, and nothing was sent.
        """
        rights = struct.pack("3i", lock, directory, request)
        try:
            self._socket.sendmsg(
                [messages.encode(messages.REQUEST, token, int(warm))],
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
        self.busy = True
        return "sent"

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

    def _has_itself_ended(self, pidfd: int) -> bool:
        if not super()._has_itself_ended(pidfd):
            return False
        if self.keeper is None or not self.keeper.is_child:
            return True
        # It is the keeper's child. If the keeper dies first, it becomes ours.
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _note_end(self, notice: Notice) -> None:
        if notice.token == self.token:
            self.token = None
            self.busy = False
        self.ready = notice.number != 0
        if self.ready:
            self.since = time.monotonic()


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
        sources: The same, by the descriptor to poll.
        check: The check of `python=`, while it runs.
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
        self.sources: dict[int, Supervisor] = {}
        self.check: InterpreterCheck | None = None
        self.next_start = 0.0
        self._launcher = launcher or ProcessLauncher()
        self.slots = slots
        self._postponed = postponed or Postponement(time.monotonic)
        self._host = host
        self._may_fork = False  # not the first supervisor, which may be the only one
        self._host_keeper: KeeperOfHost | None = None
        self._leaving: list[Peer] = []
        self._next_examined = 0  # the place of the next one whose state is read
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
            if self.check is None:
                # A launcher of the host may have no `prepare`.
                self.check = getattr(self._launcher, "prepare", lambda: None)()
            if self.check is None:
                return True
            if self.check.has_answered():
                self.check = None
                return True
        except SpawnError as error:
            self.check = None
            self._note_failure(error)
        else:
            self.next_start = self.check.due
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
                ours, theirs = socket_pair()
            except OSError as error:
                raise SpawnError(f"no supervisor could be started: {error}", error.errno) from error
            # Do not register the other end: a launcher may fork, and its child needs it.
            GATE.register(ours.fileno())
            supervisor: Supervisor | None = None
            try:
                ours.setblocking(False)
                supervisor = self._start(ours, theirs.fileno())
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
        self.sources[supervisor.fileno()] = supervisor
        return supervisor

    def _start(self, ours: _socket.socket, theirs: int) -> Supervisor:
        keeper = self._ask_keeper(theirs)
        if keeper is not None:
            return Supervisor(ours, None, keeper)
        starter = self._launcher.start(theirs)
        self._may_fork = True
        return Supervisor(ours, starter)

    def _ask_keeper(self, theirs: int) -> Keeper | None:
        if not self._may_fork or type(self._launcher) is not ProcessLauncher:  # one of the host
            return None
        if self._host_keeper is None:
            try:
                from jobcore.engine.keeper import KEEPER  # noqa: PLC0415 - few hosts need one
            except ImportError:
                return None  # jobcore is being replaced on disk, below this host
            self._host_keeper = KEEPER
        return self._host_keeper.fork(theirs, self, self._launcher)

    def _note_failure(self, error: SpawnError) -> None:
        delay = self._postponed.fail(SUPERVISORS, error, "supervisor not started")
        self.next_start = time.monotonic() + min(delay, tuning.LONGEST_START_PAUSE)

    def read_check(self) -> None:
        """Read the answer of the interpreter that is checked."""
        if self.check is not None:
            self.check.listen()
            self.next_start = 0.0

    def receive(self, supervisor: Supervisor) -> list[Notice]:
        """Return the notices of a supervisor, and forget past failures once it is ready."""
        was_coming = supervisor.pid is None
        notices = supervisor.receive()
        if was_coming and supervisor.pid is not None:
            self._postponed.succeed(SUPERVISORS)
            if supervisor.keeper is not None and self._host_keeper is not None:
                self._host_keeper.succeed()
        return notices

    def send(self, start: Start) -> Supervisor | None:
        """Send a job to a ready supervisor, and return that; None: no supervisor takes it now."""
        wanted = start.warm
        ready = [supervisor for supervisor in self.supervisors if supervisor.ready]
        # Prefer one with the warm interpreter that the job needs, then one without any.
        ready.sort(key=lambda one: (one.warm != wanted, one.warm is not None))
        for supervisor in ready:
            warm = wanted is not None and self._may_be_warm(supervisor, start)
            prepared = start.prepared
            answer = supervisor.send(
                start.token, prepared.lock, prepared.directory, prepared.request, warm=warm
            )
            if answer == "sent":
                if warm:
                    supervisor.warm = wanted
                return supervisor
                # "again": the next round tries again. "gone": poll reports its end of file.
        return None

    def _may_be_warm(self, supervisor: Supervisor, start: Start) -> bool:
        """Tell whether a supervisor may have the warm interpreter of a job."""
        if supervisor.warm == start.warm:
            return True
        number = sum(one.warm == start.warm for one in self.supervisors)
        # Another one's place is taken only by the first, so that two do not replace each other.
        return number == 0 or (number < start.most_warm and supervisor.warm is None)

    def wake_stopped(self) -> None:
        """
        Send SIGCONT to supervisors that were stopped, idle or with a job.

        A call reads the state of `EXAMINED_AT_ONCE`; of more, the next calls read the others.
        """
        try:
            if pids.level() != 1:
                return  # the pids in /proc would be those of other processes
            keeper = None if self._host_keeper is None else self._host_keeper.current
            peers = [*self.supervisors, *([] if keeper is None else [keeper])]
            known = [one for one in peers if one.pid is not None]
            begin = self._next_examined if self._next_examined < len(known) else 0
            self._next_examined = begin + max(EXAMINED_AT_ONCE, len(known) // EXAMINED_WITHIN)
            some = known[begin : self._next_examined]
            stopped = [one for one in some if procfs.is_stopped(one.pid or 0)]
        except OSError:
            return  # no descriptor is free for the check; the next round tries again
        for one in stopped:
            with GATE:  # another manager may dismiss the keeper
                woken = one.signal(signal.SIGCONT)
            if woken:
                telemetry.event(logging.WARNING, "stopped supervisor woken", pid=one.pid)

    def remove_gone(self, supervisor: Supervisor) -> None:
        """Dismiss a supervisor that has gone. If it never got ready, that is a failure."""
        if supervisor.pid is None:
            self._note_unready(supervisor)
        self.discard(supervisor)

    def _note_unready(self, supervisor: Supervisor) -> None:
        if supervisor.keeper is not None and self._host_keeper is not None:
            self._host_keeper.fail(supervisor.keeper)  # the next supervisor is started without it
            return
        self._note_failure(
            SpawnError(
                "a supervisor did not become ready: it ended, or does not answer; "
                "`python=`, or else `sys.executable`, must name a Python interpreter"
            )
        )

    def remove_idle(self) -> None:
        """Dismiss supervisors that were idle for a while, or did not get ready in time."""
        now = time.monotonic()
        if self.check is not None and now >= self.check.due:
            self._may_start()  # ends the check even if no supervisor is needed any more
        if self._host_keeper is not None:
            self._host_keeper.remove_idle()
        for supervisor in list(self.supervisors):
            waited = now - supervisor.since
            if supervisor.pid is None and waited > tuning.READY_PATIENCE:
                supervisor.kill_starter()
                self.remove_gone(supervisor)
            elif (
                supervisor.ready and waited > tuning.IDLE_SUPERVISOR and not self._keeps(supervisor)
            ):
                self.discard(supervisor)
        self.reap()

    def _keeps(self, supervisor: Supervisor) -> bool:
        """Tell whether an idle supervisor stays for its warm interpreter; one too many does not."""
        return supervisor.warm is not None and len(self.supervisors) <= self.slots

    def discard(self, supervisor: Supervisor) -> None:
        """Dismiss a supervisor: it exits, after its job if it has one. Twice is harmless."""
        self.sources.pop(supervisor.fileno(), None)
        supervisor.close()
        if supervisor in self.supervisors:
            self.supervisors.remove(supervisor)
            self._leaving.append(supervisor)
        self.reap()

    def close(self) -> None:
        """Dismiss all supervisors: an idle one exits, a busy one finishes its job."""
        if self.check is not None:
            self.check.close()
            self.check = None
        for supervisor in self.supervisors:
            if supervisor.pid is None:
                supervisor.kill_starter()
        self._may_fork = False
        keepers = [] if self._host_keeper is None else self._host_keeper.leave(self)
        for keeper in keepers:
            keeper.busy = any(one.busy for one in self.supervisors)
            if keeper.pid is None:
                keeper.kill_starter()
        # Wait for pids: without one, a process that becomes our child could not be reaped.
        give_up = time.monotonic() + STARTER_PATIENCE
        while self._any_unknown(keepers) and time.monotonic() < give_up:
            time.sleep(0.005)
        for supervisor in list(self.supervisors):
            self.discard(supervisor)
        for keeper in keepers:
            keeper.close()
            self._leaving.append(keeper)
        # Wait for starters that have not forked yet, and for idle supervisors, which end at once:
        # nothing would reap them later. The next pool of this process reaps those with a job.
        give_up = time.monotonic() + STARTER_PATIENCE
        while (
            any(each.starting or not each.busy for each in self._leaving)
            and time.monotonic() < give_up
        ):
            time.sleep(0.005)
            self.reap()
        leave_to_others([each for each in self._leaving if not each.starting])
        self._leaving = []

    def _any_unknown(self, keepers: list[Keeper]) -> bool:
        """Read notices of processes without a known pid; tell whether there still are some."""
        peers: list[Peer] = [*self.supervisors, *keepers]
        for peer in peers:
            if peer.pid is None:
                peer.receive()
        return any(peer.is_coming for peer in peers)

    def after_fork_in_child(self) -> None:
        """Forget them: they are the parent's, and the gate has closed the descriptors."""
        if self.check is not None:
            self.check.forget()
            self.check = None
        for supervisor in self.supervisors:
            supervisor.forget()
        self.supervisors = []
        self.sources = {}
        self._leaving = []
        self._may_fork = False
        self.next_start = 0.0

    def reap(self) -> None:
        """Reap the dismissed supervisors that have ended, without waiting for any."""
        self._leaving = [supervisor for supervisor in self._leaving if not supervisor.reap()]
        reap_left()
