"""
Unresponsive: supervisors that were stopped or do not answer are woken, and at last ended.

A stopped supervisor (SIGSTOP, by an operator or by its own job) is woken as soon as
it is seen. One that does not answer after a stop or time-out is overdue is killed,
unless a debugger or a frozen cgroup holds it; its job is then resolved like that of
any dead supervisor.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from contextlib import suppress

from jobcore import filesystem, holders, procfs, telemetry
from jobcore.clock import Clock
from jobcore.directories import Directories
from jobcore.errors import StoreError
from jobcore.overdue import Overdue
from jobcore.runs import Run
from jobcore.supervision import NewerProtocol, jobdir, kernel, pids
from jobcore.supervision.pool import STUB

#: Unread letters on a FIFO from which on it tells nothing whether more have come.
MANY = 4096
#: Seconds between two letters, within which a supervisor has the time to read one.
ANSWER_PATIENCE = 0.5
#: Seconds that a supervisor has to take a job before stopped ones are woken.
RECORD_PATIENCE = 2.0


class Unresponsive:
    """
    Looks after the supervisors of running jobs, whoever started them.

    Args:
        directories: Where they are found, by their locks.
        clock: Tells when they are overdue.
    """

    def __init__(self, directories: Directories, clock: Clock) -> None:
        self._directories = directories
        self._clock = clock
        self._boot_id = filesystem.boot_id()
        self._overdue = Overdue()
        self._supervisors: dict[int, int] = {}  # by job number, the pid; 0: not to be seen here
        self._unread: dict[int, int] = {}  # by job number, letters on the FIFO at the last look
        self._pressed: dict[int, float] = {}  # by job number, when that was
        self._unrecorded: dict[int, float] = {}  # by job number, since when there is no record

    def look(self, run: Run) -> None:
        """Wake the supervisor of a running job if it was stopped; end it if it has to be."""
        now = self._clock.monotonic()
        self.wake(run)
        try:
            if self._overdue.is_overdue(run, self._clock.now(), now) and self._has_had_time(run):
                self._press(run)
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
                # The pid may be that of another process by now.
                and holders.signal_holder(pid, run.token or "", signal.SIGCONT)
            ):
                _tell(run, signal.SIGCONT, [pid])
        except (StoreError, OSError, NewerProtocol) as error:
            _pass_over(run, error)

    def keep(self, numbers: set[int]) -> None:
        """Forget all jobs but these."""
        self._overdue.keep(numbers)
        for known in (self._supervisors, self._unread, self._pressed, self._unrecorded):
            for number in set(known) - numbers:
                known.pop(number, None)

    def _wake_before_record(self, run: Run) -> None:
        """
        Wake supervisors that may have been given the job, and were stopped before they took it.

        Only the host that sent the job knows which one. When that is dead any stopped
        supervisor may be it, and to wake one that is not does no harm.
        """
        now = self._clock.monotonic()
        if now - self._unrecorded.setdefault(run.number, now) < RECORD_PATIENCE:
            return
        stopped = [pid for pid in procfs.other_pids() if procfs.is_stopped(pid)]
        for pid in procfs.with_argument(STUB, stopped):
            try:
                with pids.ProcessHandle(pid) as process:
                    if procfs.with_argument(STUB, [pid]):
                        process.signal(signal.SIGCONT)
            except (ProcessLookupError, PermissionError):
                continue
            _tell(run, signal.SIGCONT, [pid])

    def _has_had_time(self, run: Run) -> bool:
        """Tell whether the supervisor has had time to answer since the last letter."""
        now = self._clock.monotonic()
        before = self._pressed.get(run.number)
        if before is not None and now - before < ANSWER_PATIENCE:
            return False
        self._pressed[run.number] = now
        return True

    def _read_supervisor(self, run: Run) -> int | None:
        """Return the pid in the record of the run, 0 where it means nothing; None: no record."""
        try:
            with self._directories.open(run.name) as directory:
                record = jobdir.read_record(directory, jobdir.RUN)
        except StoreError:
            record = None  # something strange has its name
        if record is None:
            return None
        pid = record.get("supervisor")
        here = pids.level() == 1 and (record.get("boot_id"), record.get("pid_namespace")) == (
            self._boot_id,
            kernel.pid_namespace(),
        )
        self._supervisors[run.number] = pid if here and isinstance(pid, int) else 0
        return self._supervisors[run.number]

    def _press(self, run: Run) -> None:
        with self._directories.open(run.name) as directory:
            number = self._overdue.judge(
                run.number, self._clock.monotonic(), answers=self._answers(run, directory)
            )
            with suppress(OSError):  # something strange may have the name of the FIFO
                jobdir.ring(directory)
        if number is None:
            return
        token = run.token or ""
        found = holders.find(token)
        held = [pid for pid in found if procfs.is_held_back(pid)]
        reached = [
            pid for pid in found if pid not in held and holders.signal_holder(pid, token, number)
        ]
        if found:
            _tell(run, number, reached, held)

    def _answers(self, run: Run, directory: int) -> bool:
        """Tell whether the supervisor has read from its FIFO since the last look, at the latest."""
        before = self._unread.get(run.number)
        try:
            unread = jobdir.count_unread(directory)
        except OSError:
            unread = None  # something strange has its name
        if unread is None:
            return False  # there is no FIFO
        self._unread[run.number] = unread
        # One letter more at least was written after the last look.
        return before is None or (before >= unread and unread < MANY)


def _pass_over(run: Run, error: Exception) -> None:
    # What is wrong with the directory the sweep finds out.
    telemetry.event(logging.INFO, "supervisor not seen", job=run.name, error=str(error))


def _tell(run: Run, number: signal.Signals, reached: list[int], held: Sequence[int] = ()) -> None:
    telemetry.event(
        logging.WARNING,
        "supervisor does not react",
        job=str(run.id),
        signal=number.name,
        pids=reached,
        held=list(held),
    )
