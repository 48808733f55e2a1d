"""
Keeps the supervisors of one manager, as many as its jobs need.

Starting a supervisor takes longer than running a short job, so an idle one is kept for the next
job, and dismissed if none comes for a while.
"""

from __future__ import annotations

import logging
import signal
import time

from jobcore.embedding import failpoints, telemetry
from jobcore.engine import procfs
from jobcore.engine.interpreter import Question
from jobcore.engine.launch import Request
from jobcore.engine.postponement import Postponement
from jobcore.engine.supervisor_pool import Supervisor, SupervisorPool
from jobcore.errors import SpawnError
from jobcore.supervisor import messages, pids

#: Seconds that an idle supervisor is kept for the next job.
IDLE = 5.0
#: Seconds within which a new one must be ready: `python` may not be an interpreter.
READY_PATIENCE = 10.0
#: The most seconds until the next try after one could not be started.
LONGEST_REST = 5.0
#: The key of their failures in `Postponement`.
SUPERVISORS = "supervisors"


class Crew:
    """
    Starts supervisors, and sends them jobs.

    Only the dispatcher's thread may use it.

    Args:
        pool: Starts them.
        slots: The most supervisors to keep.
        postponed: Remembers, by `SUPERVISORS`, that one could not be started.
        host: Identifies the manager to `failpoints`.
    """

    def __init__(
        self, pool: SupervisorPool, slots: int, postponed: Postponement, host: object = None
    ) -> None:
        self._postponed = postponed
        self._pool = pool
        self._host = host
        self._slots = slots
        self._idle_since: dict[Supervisor, float] = {}
        self._coming_since: dict[Supervisor, float] = {}
        self._question: Question | None = None
        self.next_start = 0.0  # the earliest time of the next start, by the monotonic clock

    @property
    def members(self) -> list[Supervisor]:
        """All of them, busy or not."""
        return list(self._pool.supervisors)

    @property
    def ready(self) -> int:
        """How many of them wait for a job."""
        return sum(supervisor.ready for supervisor in self._pool.supervisors)

    def start(self, wanted: int) -> None:
        """Start supervisors until `wanted` are ready or starting."""
        coming = sum(
            supervisor.ready or supervisor.pid is None for supervisor in self._pool.supervisors
        )
        wanted = min(wanted - coming, self._slots - len(self._pool.supervisors))
        if wanted <= 0 or not self._may_start():
            return
        for _ in range(wanted):
            try:
                self._coming_since[self._pool.spawn()] = time.monotonic()
                failpoints.reach(failpoints.SUPERVISOR_STARTED, self._host)
            except SpawnError as error:
                self._note_failure(error)
                return

    def _may_start(self) -> bool:
        """Tell whether `python` is known to be an interpreter; if not, test it, without waiting."""
        try:
            if self._question is None:
                self._question = self._pool.prepare()
            if self._question is None:
                return True
            if self._question.has_answered():
                self._question = None
                return True
        except SpawnError as error:
            self._question = None
            self._note_failure(error)
        else:
            self.next_start = self._question.due
        return False

    @property
    def asked(self) -> list[int]:
        """The descriptor through which the tested interpreter answers, if there is one."""
        return (
            []
            if self._question is None or self._question.fileno() < 0
            else [self._question.fileno()]
        )

    def hear_answer(self) -> None:
        """Read the answer of the tested interpreter."""
        if self._question is not None:
            self._question.listen()
            self.next_start = 0.0

    def hear(self, supervisor: Supervisor) -> list[messages.Notice]:
        """Return the notices of a supervisor, and note whether it is ready or idle."""
        heard = supervisor.receive()
        if any(notice.kind == messages.READY for notice in heard):
            self._postponed.succeed(SUPERVISORS)
            self._coming_since.pop(supervisor, None)
        if supervisor.ready:
            self._idle_since[supervisor] = time.monotonic()
        return heard

    def send(self, request: Request) -> Supervisor | None:
        """Send a job to a ready supervisor, and return that; None: no supervisor takes it now."""
        for supervisor in self.members:
            if not supervisor.ready:
                continue
            answer = supervisor.send(
                request.token, request.prepared.lock, request.prepared.directory, request.body
            )
            if answer == "sent":
                self._idle_since.pop(supervisor, None)
                return supervisor
            # "again": the next round tries again. "gone": poll reports its end of file.
        return None

    def wake_stopped(self) -> None:
        """Send SIGCONT to supervisors that were stopped, idle or with a job."""
        if pids.level() != 1:
            return  # the pids in /proc would be those of other processes
        for supervisor in self._pool.supervisors:
            pid = supervisor.pid
            if pid and procfs.is_stopped(pid) and supervisor.signal(signal.SIGCONT):
                telemetry.event(logging.WARNING, "stopped supervisor woken", pid=pid)

    def press(self, supervisor: Supervisor, number: signal.Signals) -> None:
        """Signal a supervisor that does not take its job, unless a debugger or freezer holds it."""
        held = supervisor.pid is None or procfs.is_held_back(supervisor.pid)
        if not held and supervisor.signal(number):
            telemetry.event(
                logging.WARNING,
                "supervisor does not react",
                pid=supervisor.pid,
                signal=number.name,
            )

    def dismiss(self, supervisor: Supervisor) -> None:
        """Forget a supervisor that has gone."""
        if supervisor.pid is None:
            self._note_failure(
                SpawnError(
                    "a supervisor did not get ready: it ended, or does not answer; what is "
                    "named by `python=`, or else `sys.executable`, must be a Python interpreter"
                )
            )
        self._idle_since.pop(supervisor, None)
        self._coming_since.pop(supervisor, None)
        self._pool.discard(supervisor)

    def release(self) -> None:
        """Dismiss supervisors that were idle for a while, or did not get ready in time."""
        now = time.monotonic()
        if self._question is not None and now >= self._question.due:
            self._may_start()  # ends the test even if no supervisor is needed any more
        for supervisor, since in list(self._coming_since.items()):
            if now - since > READY_PATIENCE:
                supervisor.kill_starter()
                self.dismiss(supervisor)
        for supervisor, since in list(self._idle_since.items()):
            if supervisor.ready and now - since > IDLE:
                del self._idle_since[supervisor]
                self._pool.discard(supervisor)
        self._pool.reap()

    def close(self) -> None:
        """Dismiss all of them: an idle one exits, a busy one finishes its job."""
        if self._question is not None:
            self._question.close()
            self._question = None
        for supervisor in self._coming_since:
            supervisor.kill_starter()
        self._coming_since.clear()
        self._idle_since.clear()
        self._pool.close()

    def forget(self) -> None:
        """Begin anew, in a forked child: these supervisors are the parent's."""
        if self._question is not None:
            self._question.forget()
            self._question = None
        self._coming_since.clear()
        self._idle_since.clear()
        self.next_start = 0.0

    def _note_failure(self, error: SpawnError) -> None:
        delay = self._postponed.fail(SUPERVISORS, error, "supervisor not started")
        self.next_start = time.monotonic() + min(delay, LONGEST_REST)
