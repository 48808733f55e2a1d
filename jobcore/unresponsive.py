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

from jobcore import filesystem, holders, leftovers, procfs, telemetry
from jobcore.clock import Clock
from jobcore.directories import Directories
from jobcore.errors import StoreError
from jobcore.overdue import Overdue
from jobcore.runs import Run
from jobcore.supervision import NewerProtocol, jobdir, pids

#: Unread letters on a FIFO from which on it tells nothing whether more have come.
MANY = 4096


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

    def look(self, run: Run) -> None:
        """Wake or end the supervisor of a running job, if it has to be. Called once a sweep."""
        try:
            self._wake_if_stopped(run)
            if self._overdue.is_overdue(run, self._clock.now(), self._clock.monotonic()):
                self._press(run)
        except (StoreError, OSError, NewerProtocol) as error:
            # The sweep finds out what is wrong with the directory.
            telemetry.event(logging.INFO, "supervisor not seen", job=run.name, error=str(error))

    def keep(self, numbers: set[int]) -> None:
        """Forget all jobs but these."""
        self._overdue.keep(numbers)
        for known in (self._supervisors, self._unread):
            for number in known.keys() - numbers:
                del known[number]

    def _wake_if_stopped(self, run: Run) -> None:
        pid = self._supervisors.get(run.number)
        if pid is None:
            pid = self._read_supervisor(run)
        if pid and procfs.is_stopped(pid):
            with self._directories.open(run.name) as directory:
                lock = self._directories.lock_of(directory)
                # The pid may be that of another process by now.
                if holders.signal_holder(pid, *lock, signal.SIGCONT):
                    _tell(run, signal.SIGCONT, [pid])

    def _read_supervisor(self, run: Run) -> int | None:
        """Return the pid in the record of the run, 0 where it means nothing; None: no record."""
        with self._directories.open(run.name) as directory:
            record = jobdir.read_record(directory, jobdir.RUN)
        if record is None:
            return None
        pid = record.get("supervisor")
        here = pids.level() == 1 and (record.get("boot_id"), record.get("pid_namespace")) == (
            self._boot_id,
            leftovers.pid_namespace(),
        )
        self._supervisors[run.number] = pid if here and isinstance(pid, int) else 0
        return self._supervisors[run.number]

    def _press(self, run: Run) -> None:
        with self._directories.open(run.name) as directory:
            number = self._overdue.judge(
                run.number, self._clock.monotonic(), answers=self._answers(run, directory)
            )
            jobdir.ring(directory)
            if number is None:
                return
            lock = self._directories.lock_of(directory)
        found = holders.find(*lock)
        held = [pid for pid in found if procfs.is_held_back(pid)]
        reached = [
            pid for pid in found if pid not in held and holders.signal_holder(pid, *lock, number)
        ]
        _tell(run, number, reached, held)

    def _answers(self, run: Run, directory: int) -> bool:
        """Tell whether the supervisor has read from its FIFO since the last look, at the latest."""
        before = self._unread.get(run.number)
        unread = jobdir.count_unread(directory)
        if unread is None:
            return False  # there is no FIFO
        self._unread[run.number] = unread
        # One letter more at least was written after the last look.
        return before is None or (before >= unread and unread < MANY)


def _tell(run: Run, number: signal.Signals, reached: list[int], held: Sequence[int] = ()) -> None:
    telemetry.event(
        logging.WARNING,
        "supervisor does not react",
        job=str(run.id),
        signal=number.name,
        pids=reached,
        held=list(held),
    )
