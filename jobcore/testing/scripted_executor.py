"""An executor and a launcher whose jobs follow scripts, without processes."""

# ruff: noqa: TRY004 - one kind of error for every wrong argument, as everywhere in jobcore

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING
from uuid import UUID

from jobcore.clock import Clock, SystemClock
from jobcore.command import Command
from jobcore.embedding.forking import GATE
from jobcore.engine.executors import PipelineExecutor
from jobcore.errors import CommandError, SpawnError
from jobcore.models import ClaimedJob
from jobcore.storage import filesystem
from jobcore.supervisor import system_calls
from jobcore.supervisor.execution import Identity
from jobcore.testing.script import Script
from jobcore.testing.scripted_supervisor import StandIn

if TYPE_CHECKING:
    from typing_extensions import Self


#: Seconds that the thread sleeps at most: poll cannot sleep for more than 24 days.
LONGEST_SLEEP = 3600.0


class ScriptedExecutor:
    """
    Runs jobs by scripts: no process is started, and no time passes but by the clock.

        clock = ManualClock()
        with (
            ScriptedExecutor(Script(["extract", 90, "load"]), clock=clock) as scripted,
            JobManager(path, executors={"COMMAND": scripted}, launcher=scripted, clock=clock)
            as jobs,
        ):
            job = jobs.submit(["etl"], timeout=60)
            drain(jobs)
            assert_job(job, status="STOPPED", reason="timeout", log=["extract"])

    It stands in for the supervisors, at the other end of the very sockets, and
    only the command is made up: the request with its locks, the job directory,
    the FIFO, how a job is stopped and when it is killed, how lines are cut,
    numbered, masked and limited, the verdict, its import and all that follows from
    it are the product's own code. Stand-ins are in this process, in one thread named
    `jobcore-scripted`, which `close` ends, and outlive the managers that they
    work for, as supervisors do: close or crash one manager, open the next, and
    it settles the job.

    All methods may be called by any thread. A forked child has none of the
    stand-ins, and gets its own if it runs jobs.

    Args:
        scripts: The first job that is started gets the first one, and so on; the last one
            is for all that come behind. None: every job exits with 0 at once. Or one
            callable, which is given each job and returns its script; what it raises makes
            the job ERROR, reason `spawn_failed`.
        clock: The manager's. None: the machine's, so pauses take their time.

    Attributes:
        commands: What each job was to run, by the job's id, in the order of their start.

    Raises:
        ValueError: What was given is no script.
    """

    _casting: threading.Lock
    _ringing: threading.Lock
    _cast: list[StandIn]
    _arrived: deque[int]
    _rests: bool
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
        self._start_afresh()
        attend = getattr(self._clock, "attend", None)
        watch = getattr(self._clock, "watch", None)
        # A clock that goes from one due moment to the next moves us on itself.
        self._attends = attend is not None
        self._end_attendance: Callable[[], None] | None = (
            attend(self) if attend is not None else None if watch is None else watch(self.step)
        )
        GATE.watch(self)

    # --- as an executor ---------------------------------------------------------

    def command(self, job: ClaimedJob) -> Command:
        """
        Return what `PipelineExecutor` would, or `scripted` for a job that says nothing.

        So time-out, grace, output limit and all else that a command says are the job's.

        Args:
            job: The job that is about to be started.

        Raises:
            ValueError: What the callable returned is no script.
        """
        if self._choose is not None and job.id not in self._scripts:
            script = self._choose(job)
            if not isinstance(script, Script):
                raise ValueError(f"a script was wanted, not {script!r}")
            self._scripts[job.id] = script
        self._script_of(job.id)
        try:
            command = PipelineExecutor().command(job)
        except CommandError:
            command = Command(["scripted"])
        self.commands[job.id] = command
        return command

    def _script_of(self, job_id: UUID) -> Script | None:
        """Return the script of a job; None: that is chosen, and another executor was asked."""
        with self._casting:
            if job_id not in self._scripts and self._sequence:
                number = min(len(self._scripts), len(self._sequence) - 1)
                self._scripts[job_id] = self._sequence[number]
            return self._scripts.get(job_id)

    # --- as a launcher ----------------------------------------------------------

    def start(self, descriptor: int) -> None:
        """
        Have a stand-in speak at one end of a socket pair, as `jobcore.Launcher` says.

        Args:
            descriptor: That end; a copy of it is kept.

        Raises:
            SpawnError: It was closed.
        """
        # Called with the gate held, so that no lock may be waited for here under which
        # somebody waits for the gate: the thread takes what has arrived.
        if self._closed:
            raise SpawnError("the scripted executor is closed")
        self._arrived.append(os.dup(descriptor))
        self._ring(begin=True)

    # --- what a test may do to it -----------------------------------------------

    def die(self, job_id: UUID | str | None = None) -> None:
        """
        End a supervisor as by SIGKILL.

        Their locks are free when this returns. The manager finds each job `lost`.

        Args:
            job_id: The job; None: all supervisors, the idle ones, too.

        Raises:
            LookupError: No stand-in runs this job now.
        """
        with self._lock:
            self.step()
            for one in self._find(job_id):
                one.die()
            self.step()

    def shut_down(self, job_id: UUID | str | None = None) -> None:
        """
        Ask a supervisor to go, as its SIGTERM does.

        A job is ended as by a stop, with its own grace and with reason `shutdown`.

        Args:
            job_id: The job; None: all supervisors, the idle ones, too.

        Raises:
            LookupError: No stand-in runs this job now.
        """
        with self._lock:
            self.step()
            for one in self._find(job_id):
                one.shut_down()
            self.step()

    def running(self) -> list[UUID]:
        """Return the jobs that stand-ins run now, in the order of their supervisors' starts."""
        with self._lock:
            return [one.job_id for one in self._cast if one.job_id is not None]

    def close(self) -> None:
        """
        End the thread; stand-ins that still run a job die, and the job is `lost`.

        Close the managers first. Twice is harmless.
        """
        self._closed = True
        end, self._end_attendance = self._end_attendance, None
        if end is not None:
            end()
        self._ring()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._lock:
            self._drop_all()

    def __enter__(self) -> Self:
        """Return the executor itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _find(self, job_id: UUID | str | None) -> list[StandIn]:
        wanted = None if job_id is None else UUID(str(job_id))
        found = [one for one in self._cast if wanted is None or one.job_id == wanted]
        if job_id is not None and not found:
            raise LookupError(f"no stand-in runs job {job_id}")
        return found

    # --- as what waits for a clock ----------------------------------------------

    def due(self) -> float | None:
        """Return when, by the monotonic clock, there is something to do next; None: not ever."""
        with self._lock:
            moments = [one.due for one in self._cast]
        return min((moment for moment in moments if moment is not None), default=None)

    def step(self) -> None:
        """Do all that has come or is due now, of all stand-ins, until each of them waits."""
        with self._lock:
            while self._arrived:
                self._take_on(self._arrived.popleft())
            while self._step_each():
                pass
            self._cast = [one for one in self._cast if not one.gone]
        if threading.current_thread() is not self._thread:
            self._ring()  # it may wait for what is no more, and not for what is new

    def _step_each(self) -> bool:
        acted = False
        for one in self._cast:
            acted = one.step() or acted
        return acted

    def runs(self) -> frozenset[str]:
        """Return the tokens of the runs that stand-ins have in hand."""
        with self._lock:
            return frozenset(one.token for one in self._cast if one.token is not None)

    def _take_on(self, descriptor: int) -> None:
        try:
            stand_in = StandIn(descriptor, self._clock, self._identity, self._script_of)
        except OSError:
            return  # no descriptors: its host sees that it does not get ready
        self._cast.append(stand_in)

    # --- the thread -------------------------------------------------------------

    def _ring(self, *, begin: bool = False) -> None:
        """Wake the thread; `begin` it where there is none yet."""
        with self._ringing:
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
                    pass  # full: it has been rung already

    def _run(self) -> None:
        while not self._closed:
            poller = select.poll()
            poller.register(self._reader, select.POLLIN)
            with self._lock:
                for one in self._cast:
                    for descriptor, events in one.events.items():
                        poller.register(descriptor, events)
                seconds = self._patience()
            if poller.poll(None if seconds is None else int(seconds * 1000) + 1):
                self._empty()
            if not self._closed:
                self.step()

    def _patience(self) -> float | None:
        """Return the seconds until something is due, by a clock that runs by itself."""
        due = None if self._attends else self.due()
        return None if due is None else min(max(due - self._clock.monotonic(), 0), LONGEST_SLEEP)

    def _empty(self) -> None:
        try:
            while len(os.read(self._reader, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def _drop_all(self) -> None:
        """Close all there is."""
        for one in self._cast:
            one.die()
        self._cast.clear()
        while self._arrived:
            os.close(self._arrived.popleft())
        with self._ringing:
            if self._writer >= 0:
                os.close(self._reader)
                os.close(self._writer)
                self._reader = self._writer = -1

    # --- the fork of the host ---------------------------------------------------

    def before_fork(self) -> None:
        """Come to rest: no stand-in may be copied in the middle of a step."""
        if not self._rests:  # it is called more than once for one fork
            self._lock.acquire()
            self._rests = True

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._rests:  # and was not interrupted while it waited for that
            self._rests = False
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Close the copies, which unlocks nothing of the parent's, and begin anew."""
        self._ringing = threading.Lock()
        self._drop_all()
        self._start_afresh()

    def _start_afresh(self) -> None:
        # Held for a step. Never waited for with the gate held, for a fork takes both.
        self._lock = threading.RLock()
        self._casting = threading.Lock()
        self._ringing = threading.Lock()
        self._rests = False
        self._cast = []
        self._arrived = deque()
        self._thread = None
        self._reader = self._writer = -1
        self._identity = Identity(filesystem.boot_id(), system_calls.pid_namespace(), None)


def _checked_scripts(scripts: tuple[object, ...]) -> list[Script]:
    """
    Return the scripts; none of them where there is a callable instead.

    Raises:
        ValueError: One is neither.
    """
    if len(scripts) == 1 and callable(scripts[0]):
        return []
    for script in scripts:
        if not isinstance(script, Script):
            raise ValueError(f"scripts, or one callable, not {script!r}")
    return [script for script in scripts if isinstance(script, Script)] or [Script()]
