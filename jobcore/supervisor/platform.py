"""What a job runs on, behind one seam: the clocks, and where processes come from."""

from __future__ import annotations

import time

from jobcore.supervisor import spawn as spawning
from jobcore.supervisor.process_tree import ProcessTree
from jobcore.supervisor.spawn import Child, Command

_MOMENT = 0.0001  # seconds; read undisturbed, two clocks are a microsecond apart
_READINGS = 10  # on a machine so busy that none of them is undisturbed, the last one is taken


class Machine:
    """
    What a job runs on. A test's stand-in has a clock that it moves, and no processes.

    Attributes:
        longest_round: Seconds after which an execution looks at its processes though
            nothing has woken it: an orphan that ends while the command runs is reaped
            no later.
        blind_round: The same where no descriptor tells of the end that it waits for.
    """

    longest_round = 5.0
    blind_round = 0.05

    def time_ns(self) -> int:
        """Return wall time in nanoseconds."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Return seconds from some fixed moment on."""
        return time.monotonic()

    def spawn(self, command: Command, *, directory: int, oom_score: bytes | None) -> Child:
        """
        Start the command; what is true then, `spawn.spawn` says.

        Raises:
            StartError: It came not as far as having a process.
        """
        return spawning.spawn(command, directory=directory, oom_score=oom_score)

    def tree(self, child: Child) -> ProcessTree:
        """Return the processes that come from the child that was spawned last."""
        return ProcessTree(child.pid)


def read_clocks(machine: Machine) -> tuple[float, int]:
    """
    Return the monotonic clock in seconds, and the wall time of that moment in nanoseconds.

    Whoever is preempted between the two has the times of two moments, and what is added
    to them tells a lie as long as the pause: a job that ended before its last line was
    written, or before its grace was over.
    """
    before = machine.monotonic()
    for reading in range(1, _READINGS + 1):
        wall = machine.time_ns()
        after = machine.monotonic()
        # The monotonic one is the earlier of the two: what is left of the pause makes
        # an end later than it was, and never earlier than what was before it.
        if after - before <= _MOMENT or reading == _READINGS:
            break
        before = after
    return before, wall
