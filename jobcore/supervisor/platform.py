"""The interface to the machine: the clocks, and starting processes. Tests replace it."""

from __future__ import annotations

import time

from jobcore.supervisor import spawn as spawning
from jobcore.supervisor.process_tree import ProcessTree
from jobcore.supervisor.spawn import Child, Command

_MOMENT = 0.0001  # seconds; without preemption, reading two clocks takes a microsecond
_READINGS = 10  # attempts; on a machine so busy that all are preempted, the last one counts


class Machine:
    """
    The machine that a job runs on. Tests replace it by one with a manual clock and no processes.

    Attributes:
        longest_round: Seconds after which an execution checks its processes even if nothing
            has woken it. An orphan that ends while the command runs is reaped within this
            time.
        blind_round: The same, when no descriptor reports the end that is waited for.
    """

    longest_round = 5.0
    blind_round = 0.05

    def time_ns(self) -> int:
        """Return wall time in nanoseconds."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Return seconds since an arbitrary fixed moment."""
        return time.monotonic()

    def spawn(self, command: Command, *, directory: int, oom_score: bytes | None) -> Child:
        """
        Start the command, as `spawn.spawn` does.

        Raises:
            StartError: No process could be created.
        """
        return spawning.spawn(command, directory=directory, oom_score=oom_score)

    def tree(self, child: Child) -> ProcessTree:
        """Return the process tree of the child that was spawned last."""
        return ProcessTree(child.pid)


def read_clocks(machine: Machine) -> tuple[float, int]:
    """
    Return the monotonic clock in seconds, and the wall time of the same moment in nanoseconds.

    If the thread is preempted between the two readings, they are of different moments, and
    times that are computed from them are wrong by the length of the pause. A job would seem to
    have ended before its last line was written, or before its grace was over.
    """
    before = machine.monotonic()
    for reading in range(1, _READINGS + 1):
        wall = machine.time_ns()
        after = machine.monotonic()
        # The monotonic clock is read first, so a remaining pause makes an end too late, never
        # earlier than what happened before it.
        if after - before <= _MOMENT or reading == _READINGS:
            break
        before = after
    return before, wall
