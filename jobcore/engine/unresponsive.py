"""
Wakes supervisors that were stopped or do not answer, and kills them as a last resort.

A stopped supervisor (SIGSTOP, from an operator or its own job) is woken as soon as it is seen. If
a stop or time-out is overdue and the supervisor does not answer, it is killed, unless a debugger
or a frozen cgroup holds it. Its job is then resolved like that of any dead supervisor. A stop
request is timed from the moment when this process first saw it, because the wall clock in the row
may have jumped. A supervisor that answers is never killed: it may be waiting for space on a full
disk.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from contextlib import suppress

from jobcore import tuning
from jobcore.clock import Clock
from jobcore.embedding import telemetry
from jobcore.engine import orphans, procfs
from jobcore.engine.job_directories import Directories
from jobcore.engine.launcher import STUBS
from jobcore.errors import StoreError
from jobcore.storage.transitions import Run
from jobcore.supervisor import NewerProtocol, job_directory, pids, system_calls

#: With this many unread bytes or more, a FIFO may be full, and does not show new ones.
MANY = 4096


class Unresponsive:
    """
    Watches the supervisors of running jobs, whichever process started them.

    Args:
        clock: Tells when they are overdue.
    """

    def __init__(self, directories: Directories, clock: Clock) -> None:
        self._directories = directories
        self._clock = clock
        self._overdue = Overdue()
        self._supervisors: dict[int, int] = {}  # by job number: the pid; 0: not visible here
        self._unread: dict[int, int] = {}  # by job number: bytes on the FIFO at the last look
        self._last_asked: dict[int, float] = {}  # by job number: when a byte was last sent
        self._unrecorded: dict[int, float] = {}  # by job number: since when there is no record

    def look(self, run: Run) -> None:
        """Wake the supervisor of a running job if it was stopped; kill it if it is overdue."""
        self.wake(run)
        self.end_overdue(run)

    def end_overdue(self, run: Run) -> None:
        """Ask the supervisor of a running job for an answer if it is overdue, and then kill it."""
        now = self._clock.monotonic()
        try:
            if self._overdue.is_overdue(run, self._clock.now(), now) and self._has_had_time(run):
                self._request_answer(run)
        except (StoreError, OSError) as error:
            _pass_over(run, error)

    def wake(self, run: Run) -> None:
        """Wake the supervisor of a running job if it was stopped."""
        try:
            pid = self._supervisors.get(run.number)
            if pid is None:
                pid = self._read_supervisor(run)
            if pid is None:
                self._wake_before_record(run)
            elif (
                pid
                and procfs.is_stopped(pid)
                # `signal_holder` checks the pid, which may belong to another process by now.
                and orphans.signal_holder(pid, run.token or "", signal.SIGCONT)
            ):
                _log_signal(run, signal.SIGCONT, [pid])
        except (StoreError, OSError, NewerProtocol) as error:
            _pass_over(run, error)

    def keep(self, numbers: set[int]) -> None:
        """Forget all jobs but these."""
        self._overdue.keep(numbers)
        for known in (self._supervisors, self._unread, self._last_asked, self._unrecorded):
            for number in set(known) - numbers:
                known.pop(number, None)

    def _wake_before_record(self, run: Run) -> None:
        """
        Wake all stopped supervisors: one may have been sent the job, and stopped before it took it.

        Only the host that sent the job knows which one it is, and that host may be dead. Waking
        another supervisor does no harm.
        """
        now = self._clock.monotonic()
        if now - self._unrecorded.setdefault(run.number, now) < tuning.RECORD_PATIENCE:
            return
        stopped = [pid for pid in procfs.other_pids() if procfs.is_stopped(pid)]
        for stub in STUBS:
            for pid in procfs.with_argument(stub, stopped):
                try:
                    with pids.ProcessHandle(pid) as process:
                        if procfs.with_argument(stub, [pid]):
                            process.signal(signal.SIGCONT)
                except (ProcessLookupError, PermissionError):
                    continue
                _log_signal(run, signal.SIGCONT, [pid])

    def _has_had_time(self, run: Run) -> bool:
        """Tell whether the supervisor has had time to answer since it was last asked."""
        now = self._clock.monotonic()
        before = self._last_asked.get(run.number)
        if before is not None and now - before < tuning.ANSWER_PATIENCE:
            return False
        self._last_asked[run.number] = now
        return True

    def _read_supervisor(self, run: Run) -> int | None:
        """Return the pid in the record of the run; 0: it is not valid here; None: no record."""
        try:
            with self._directories.open(run.name) as directory:
                record = job_directory.read_record(directory, job_directory.RUN)
        except StoreError as error:
            if error.errno in system_calls.SHORTAGE:
                raise
            record = None  # something other than a record has this name
        if record is None:
            return None
        pid = record.get("supervisor")
        here = pids.level() == 1 and (record.get("boot_id"), record.get("pid_namespace")) == (
            self._directories.boot_id,
            system_calls.pid_namespace(),
        )
        self._supervisors[run.number] = pid if here and isinstance(pid, int) else 0
        return self._supervisors[run.number]

    def _request_answer(self, run: Run) -> None:
        with self._directories.open(run.name) as directory:
            number = self._overdue.judge(
                run.number, self._clock.monotonic(), answers=self._answers(run, directory)
            )
            with suppress(OSError):  # something other than a FIFO may have this name
                job_directory.send_control(directory)
        if number is None:
            return
        token = run.token or ""
        found = orphans.find_holders(token)
        held = [pid for pid in found if procfs.is_held_back(pid)]
        reached = [
            pid for pid in found if pid not in held and orphans.signal_holder(pid, token, number)
        ]
        if found:
            _log_signal(run, number, reached, held)

    def _answers(self, run: Run, directory: int) -> bool:
        """Tell whether the supervisor has read from its FIFO since the last look."""
        before = self._unread.get(run.number)
        try:
            unread = job_directory.count_unread(directory)
        except OSError as error:
            system_calls.require_no_shortage(error)
            unread = None  # something other than a FIFO has this name
        if unread is None:
            return False  # there is no FIFO
        self._unread[run.number] = unread
        # At least one byte was written after the last look, so as many or fewer means it read.
        return before is None or (before >= unread and unread < MANY)


def _pass_over(run: Run, error: Exception) -> None:
    # The sweep will deal with whatever is wrong with the directory.
    telemetry.event(logging.INFO, "supervisor not examined", job=run.name, error=str(error))


def _log_signal(
    run: Run, number: signal.Signals, reached: list[int], held: Sequence[int] = ()
) -> None:
    telemetry.event(
        logging.WARNING,
        "supervisor does not react",
        job=str(run.id),
        signal=number.name,
        pids=reached,
        held=list(held),
    )


class Overdue:
    """Remembers since when each job is overdue. It reads no clock: callers pass the time."""

    def __init__(self) -> None:
        self._asked: dict[int, float] = {}  # when a stop request was first seen
        self._since: dict[int, float] = {}  # when the job was first seen to be overdue
        self._silent: dict[int, float] = {}  # since when its supervisor has not answered
        self._woken: dict[int, float] = {}  # when it was first sent SIGCONT

    def is_overdue(self, run: Run, wall: int, now: float) -> bool:
        """
        Tell whether the job should have ended: a stop or its time-out, and its grace are over.

        Args:
            run: The job as it is now.
            wall: Wall time in microseconds.
            now: The time by the monotonic clock, as for `judge`.
        """
        grace = run.effective_grace_ms
        if grace is None:
            return False  # an old version of jobcore, which did not store it, started the job
        stopped = (
            run.stop_requested is not None
            and now >= self._asked.setdefault(run.number, now) + grace / 1000
        )
        timed_out = (
            run.timeout_ms is not None
            and run.start_time is not None
            and wall >= run.start_time + (run.timeout_ms + grace) * 1000
        )
        return stopped or timed_out

    def judge(self, number: int, now: float, *, answers: bool) -> signal.Signals | None:
        """
        Return the signal to send now to the supervisor of an overdue job, or None.

        Args:
            number: The number of the job.
            now: The time by the monotonic clock.
            answers: Whether the supervisor has answered since the last call.
        """
        waited = now - self._since.setdefault(number, now)
        if answers:
            self._silent.pop(number, None)
            self._woken.pop(number, None)
            return None
        silent = now - self._silent.setdefault(number, now)
        if waited < tuning.WAKE_AFTER:
            return None
        # Give it time to answer after it was woken, even if this process was stopped or frozen
        # with it, so that all other times have long passed.
        woken = now - self._woken.setdefault(number, now)
        return signal.SIGKILL if min(woken, silent) >= tuning.KILL_AFTER else signal.SIGCONT

    def keep(self, numbers: set[int]) -> None:
        """Forget all jobs but these."""
        for moments in (self._asked, self._since, self._silent, self._woken):
            for number in set(moments) - numbers:
                moments.pop(number, None)
