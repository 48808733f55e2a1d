"""An executor and a launcher whose jobs follow scripts, without processes."""

# ruff: noqa: TRY004 - one error class for every wrong argument, as everywhere in jobcore

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from jobcore.clock import Clock, SystemClock
from jobcore.command import Command
from jobcore.embedding.locks import GATE, ForkAware
from jobcore.engine.executors import PipelineExecutor
from jobcore.errors import CommandError, SpawnError
from jobcore.models import ClaimedJob, Job
from jobcore.operations.lookup import Id
from jobcore.storage import filesystem
from jobcore.supervisor import system_calls
from jobcore.supervisor.execution import Identity
from jobcore.testing.script import Script
from jobcore.testing.scripted_supervisor import ScriptedSupervisor

if TYPE_CHECKING:
    from typing_extensions import Self


#: Maximum seconds that the thread sleeps. `poll` cannot sleep for more than 24 days.
LONGEST_SLEEP = 3600.0


class ScriptedExecutor(ForkAware):
    """
    Runs jobs by scripts, without processes; time passes only by the clock.

        clock = ManualClock()
        with (
            ScriptedExecutor(Script(["extract", 90, "load"]), clock=clock) as scripted,
            JobManager(path, executors={"COMMAND": scripted}, launcher=scripted, clock=clock)
            as jobs,
        ):
            job = jobs.submit(["etl"], timeout=60)
            drain(jobs)
            assert_job(job, status="STOPPED", reason="timeout", log=["extract"])

    It replaces the supervisor processes by scripted ones at the other end of the same sockets.
    Only the command is simulated. Everything else is the real code: the request with its
    locks, the job directory, the FIFO, stopping and killing, cutting, numbering, masking and
    limiting lines, the exit record, its import, and all consequences. They run in this
    process, in one thread named `jobcore-scripted`, which `close` ends. They outlive the
    managers that they work for, as supervisors do: close or crash a manager, open the next
    one, and it settles the job.

    Any thread can call all methods. A forked child does not inherit the scripted supervisors, and
    gets its own if it runs jobs.

    Args:
        scripts: The scripts, in the order in which jobs start; all further jobs get the last
            one. No script: every job exits with 0 at once. Or one callable, which is called
            with each job and returns its script; if it raises, the job ends in ERROR with
            reason `spawn_failed`.
        clock: The manager's clock. None: the machine's, so that pauses take real time.

    Attributes:
        commands: The command of each job, by the job's id, in the order of their starts.

    Raises:
        ValueError: An argument is not a script.
    """

    _choice_lock: threading.Lock
    _wake_lock: threading.Lock
    _supervisors: list[ScriptedSupervisor]
    _arrived: deque[int]
    _held_for_fork: bool
    _thread: threading.Thread | None

    def __init__(
        self, *scripts: Script | Callable[[ClaimedJob], Script], clock: Clock | None = None
    ) -> None:
        self._choose: Callable[[ClaimedJob], Script] | None = None
        self._sequence = _checked_scripts(scripts)
        if len(scripts) == 1 and not isinstance(scripts[0], Script):
            self._choose = scripts[0]
        self.commands: dict[UUID, Command] = {}
        self._scripts: dict[UUID, Script] = {}
        self._clock = clock or SystemClock()
        self._closed = False
        self._reset()
        drive = getattr(self._clock, "drive", None)
        watch = getattr(self._clock, "watch", None)
        # A clock with `drive` calls `step` itself at each due time.
        self._is_driven = drive is not None
        self._leave_clock: Callable[[], None] | None = (
            drive(self) if drive is not None else None if watch is None else watch(self.step)
        )
        GATE.watch(self)

    # --- as an executor ---------------------------------------------------------

    def command(self, job: ClaimedJob) -> Command:
        """
        Return the command of `PipelineExecutor`, or `scripted` for a job without a command.

        So the job has the timeout, grace, output limit and other settings of its command.

        Args:
            job: The job that is about to be started.

        Raises:
            ValueError: The callable did not return a script.
        """
        if self._choose is not None and job.id not in self._scripts:
            script = self._choose(job)
            if not isinstance(script, Script):
                raise ValueError(f"the callable must return a Script, not {script!r}")
            self._scripts[job.id] = script
        self._script_of(job.id)
        try:
            command = PipelineExecutor().command(job)
        except CommandError:
            command = Command(["scripted"])
        self.commands[job.id] = command
        return command

    def _script_of(self, job_id: UUID) -> Script | None:
        """Return a job's script; None: the callable that chooses scripts was not asked for it."""
        with self._choice_lock:
            if job_id not in self._scripts and self._sequence:
                number = min(len(self._scripts), len(self._sequence) - 1)
                self._scripts[job_id] = self._sequence[number]
            return self._scripts.get(job_id)

    # --- as a launcher ----------------------------------------------------------

    def start(self, descriptor: int) -> None:
        """
        Start a scripted supervisor at one end of a socket pair, as `jobcore.Launcher` specifies.

        Args:
            descriptor: That end. The scripted supervisor uses a copy of it.

        Raises:
            SpawnError: This executor is closed.
        """
        # The caller holds the fork gate. Waiting here for a lock under which another thread
        # waits for the gate would be a deadlock. So the thread creates it later.
        if self._closed:
            raise SpawnError("the scripted executor is closed")
        self._arrived.append(os.dup(descriptor))
        self._wake(begin=True)

    # --- for tests --------------------------------------------------------------

    def die(self, job_id: Id | None = None) -> None:
        """
        End a supervisor as by SIGKILL.

        When this returns, its locks are released. The manager settles its job as `lost`.

        Args:
            job_id: The job; None: all supervisors, including idle ones.

        Raises:
            LookupError: No scripted supervisor runs this job now.
        """
        self._each(job_id, ScriptedSupervisor.die)

    def shut_down(self, job_id: Id | None = None) -> None:
        """
        Ask a supervisor to shut down, as SIGTERM does.

        Its job is ended as by a stop, with the job's own grace and with reason `shutdown`.

        Args:
            job_id: The job; None: all supervisors, including idle ones.

        Raises:
            LookupError: No scripted supervisor runs this job now.
        """
        self._each(job_id, ScriptedSupervisor.shut_down)

    def _each(self, job_id: Id | None, end: Callable[[ScriptedSupervisor], None]) -> None:
        with self._lock:
            self.step()
            for one in self._find(job_id):
                end(one)
            self.step()

    def running(self) -> list[UUID]:
        """Return the jobs that run now, in the order of their supervisors' starts."""
        with self._lock:
            return [one.job_id for one in self._supervisors if one.job_id is not None]

    def close(self) -> None:
        """
        End the thread. Supervisors that still run a job die, and their jobs are `lost`.

        Close the managers first. Idempotent.
        """
        self._closed = True
        end, self._leave_clock = self._leave_clock, None
        if end is not None:
            end()
        self._wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._lock:
            self._drop_all()

    def __enter__(self) -> Self:
        """Return this executor."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _find(self, job_id: Id | None) -> list[ScriptedSupervisor]:
        given = job_id.id if isinstance(job_id, Job) else job_id
        wanted = None if given is None else UUID(str(given))
        found = [one for one in self._supervisors if wanted is None or one.job_id == wanted]
        if job_id is not None and not found:
            raise LookupError(f"no scripted supervisor runs job {given}")
        return found

    # --- driven by a clock ------------------------------------------------------

    def due(self) -> float | None:
        """Return the monotonic time at which something is due next; None: nothing is."""
        with self._lock:
            moments = [one.due for one in self._supervisors]
        return min((moment for moment in moments if moment is not None), default=None)

    def step(self) -> None:
        """Do everything that has arrived or is due, until every scripted supervisor waits."""
        with self._lock:
            while self._arrived:
                self._accept(self._arrived.popleft())
            while self._step_each():
                pass
            self._supervisors = [one for one in self._supervisors if not one.gone]
        if threading.current_thread() is not self._thread:
            self._wake()  # so that the thread polls the current descriptors

    def _step_each(self) -> bool:
        acted = False
        for one in self._supervisors:
            acted = one.step() or acted
        return acted

    def runs(self) -> frozenset[str]:
        """Return the tokens of the runs of all scripted supervisors."""
        with self._lock:
            return frozenset(one.token for one in self._supervisors if one.token is not None)

    def _accept(self, descriptor: int) -> None:
        try:
            supervisor = ScriptedSupervisor(
                descriptor, self._clock, self._identity, self._script_of
            )
        except OSError:
            return  # no descriptors are free: the host notices that it does not get ready
        self._supervisors.append(supervisor)

    # --- the thread -------------------------------------------------------------

    def _wake(self, *, begin: bool = False) -> None:
        """Wake the thread; with `begin`, start it if there is none yet."""
        with self._wake_lock:
            if self._thread is None:
                if not begin:
                    return
                self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                self._thread = threading.Thread(
                    target=self._run, name="jobcore-scripted", daemon=True
                )
                self._thread.start()
            if self._writer >= 0:
                try:
                    os.write(self._writer, b"!")
                except BlockingIOError:
                    pass  # the pipe is full, so it wakes anyway

    def _run(self) -> None:
        while not self._closed:
            poller = select.poll()
            poller.register(self._reader, select.POLLIN)
            with self._lock:
                for one in self._supervisors:
                    for descriptor, events in one.events.items():
                        poller.register(descriptor, events)
                seconds = self._patience()
            if poller.poll(None if seconds is None else int(seconds * 1000) + 1):
                self._empty()
            if not self._closed:
                self.step()

    def _patience(self) -> float | None:
        """Return the seconds until something is due; None: a clock with `drive` calls `step`."""
        due = None if self._is_driven else self.due()
        return None if due is None else min(max(due - self._clock.monotonic(), 0), LONGEST_SLEEP)

    def _empty(self) -> None:
        try:
            while len(os.read(self._reader, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def _drop_all(self) -> None:
        """Close all scripted supervisors and descriptors."""
        for one in self._supervisors:
            one.die()
        self._supervisors.clear()
        while self._arrived:
            os.close(self._arrived.popleft())
        with self._wake_lock:
            if self._writer >= 0:
                os.close(self._reader)
                os.close(self._writer)
                self._reader = self._writer = -1

    # --- the fork of the host ---------------------------------------------------

    def before_fork(self) -> None:
        """Quiesce: no scripted supervisor may be in the middle of a step during the fork."""
        if not self._held_for_fork:  # this may be called more than once per fork
            self._lock.acquire()
            self._held_for_fork = True

    def after_fork_in_parent(self) -> None:
        """Resume."""
        if self._held_for_fork:  # False if `before_fork` was interrupted before it had the lock
            self._held_for_fork = False
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Close the copied descriptors, which unlocks nothing of the parent, and reset."""
        self._wake_lock = threading.Lock()
        self._drop_all()
        self._reset()

    def _reset(self) -> None:
        # Held during a step. Never wait for it while holding the gate: a fork takes both.
        self._lock = threading.RLock()
        self._choice_lock = threading.Lock()
        self._wake_lock = threading.Lock()
        self._held_for_fork = False
        self._supervisors = []
        self._arrived = deque()
        self._thread = None
        self._reader = self._writer = -1
        self._identity = Identity(filesystem.boot_id(), system_calls.pid_namespace(), None)


def _checked_scripts(scripts: tuple[object, ...]) -> list[Script]:
    """
    Return the scripts; an empty list if there is a callable instead.

    Raises:
        ValueError: An argument is neither a script nor a single callable.
    """
    if len(scripts) == 1 and callable(scripts[0]):
        return []
    for script in scripts:
        if not isinstance(script, Script):
            raise ValueError(f"a ScriptedExecutor takes scripts or one callable, not {script!r}")
    return [script for script in scripts if isinstance(script, Script)] or [Script()]
