"""Plays a script in place of a command: its pipes, and processes that can be signalled."""

from __future__ import annotations

import errno
import itertools
import math
import os
import signal

from jobcore.clock import Clock
from jobcore.supervisor import frames, result_file, spawn
from jobcore.supervisor.execution import Machine
from jobcore.supervisor.process_tree import ProcessTree
from jobcore.supervisor.spawn import Child, Program
from jobcore.supervisor.warm import Warm
from jobcore.testing.script import Script

#: Base of the pids of scripted commands: above the highest pid of Linux.
_NO_PID = 2**22
_numbers = itertools.count(1)
#: The parts of a script for the values that a command hands over, by their names.
_PARTS = {result_file.RESULT: "result", result_file.STATE: "state"}


class ScriptedProcesses(ProcessTree):
    """
    The simulated processes of a script.

    It writes into real pipes. If a pipe is full it waits until the pipe is read, as a command
    would.

    Attributes:
        child: The child, as a supervisor gets it when it spawns a command.
        fatal: Whether the script has reached the point at which the supervisor dies.
        orphaned: Whether the process that was left has ended and is not reaped yet. No
            descriptor reports this. A real supervisor polls for it, but with a manual clock
            no time passes.
    """

    def __init__(self, script: Script, clock: Clock, program: Program) -> None:
        """
        Args:
            script: The script.
            clock: The clock for its pauses.
            program: The program that the script replaces. It determines the pipes.

        Raises:
            OSError: Too few file descriptors are free.
        """
        super().__init__(_NO_PID + 2 * next(_numbers))  # the next pid is the grandchild's
        self.fatal = False
        self.orphaned = False
        self._script = script
        self._clock = clock
        self._parts = script.parts()
        self._next = clock.monotonic()
        self._unwritten = b""
        self._unwritten_to = -1
        self._grandchild = script.leaves_grandchild
        self._rest_is_signalled = False
        self._ended: int | None = None  # the main process's wait status, set before it is reaped
        self._open: set[int] = set()
        try:
            self.child = self._begin(program)
        except OSError:
            self.close()
            raise

    def _begin(self, program: Program) -> Child:
        separate = program.separate_streams
        report, report_writer = self._pipe()
        reports, reports_writer = self._pipe()
        self._liveness_reader, self._liveness_writer = self._pipe()
        reader, out = self._pipe()
        outputs = [(reader, frames.STDOUT if separate else frames.OUTPUT)]
        self._writers = {"stdout": out, "stderr": out, "progress": reports_writer}
        if separate:
            reader, self._writers["stderr"] = self._pipe()
            outputs.append((reader, frames.STDERR))
        handed = {}
        for name in program.hands_over:
            handed[name], self._writers[_PARTS[name]] = self._pipe()
        number = self._script.cannot_start
        if number is not None:
            os.write(report_writer, spawn.encode_report(spawn.EXEC, number))
            self._end_main(spawn.exit_code_of(spawn.EXEC, number) << 8)
        self._close(report_writer)  # as the exec does
        # From here on, the supervisor owns these descriptors.
        self._open -= {report, reports, *handed.values(), *(one for one, _ in outputs)}
        return Child(self.main, report, outputs, reports, values=handed)

    # --- the script -------------------------------------------------------------

    def due(self) -> float | None:
        """Return the monotonic time at which the script continues; None: not by the clock."""
        waits = self._ended is not None or self.fatal or self._unwritten or self._next == math.inf
        return None if waits else self._next

    def act(self) -> bool:
        """Do everything that is due and fits into the pipes; tell whether there was anything."""
        acted = False
        while self._ended is None and not self.fatal:
            if self._unwritten:
                acted = self._write() or acted
                if self._unwritten:
                    break
            if self._clock.monotonic() < self._next:
                break
            acted = True
            part = next(self._parts, None)
            if part is None:
                self._finish()
                break
            if isinstance(part, tuple):
                stream, data = part
                if stream in self._writers:  # not every job hands over a result or a state
                    self._unwritten, self._unwritten_to = data, self._writers[stream]
            else:
                self._next = self._clock.monotonic() + part
        return acted

    def _write(self) -> bool:
        try:
            written = os.write(self._unwritten_to, self._unwritten)
        except BlockingIOError:
            return False
        self._unwritten = self._unwritten[written:]
        return True

    def _finish(self) -> None:
        """Do what the script says about its end."""
        script = self._script
        if script.hangs:
            self._next = math.inf
        elif script.dies:
            self.fatal = True
        else:
            self._end_main(script.signal or script.exit_code << 8)

    def _end_grandchild(self) -> None:
        self.orphaned = self.orphaned or self._grandchild
        self._grandchild = False

    def _end_main(self, status: int) -> None:
        if self._ended is None:
            self._ended = status
            self._close(self._liveness_writer)

    # --- as processes -----------------------------------------------------------

    def watch_main(self) -> int:
        """Return a descriptor that becomes readable when the main process ends."""
        self._open.remove(self._liveness_reader)
        return self._liveness_reader

    def reap(self) -> bool:
        """Note the processes that have ended; return whether the main one is among them."""
        main_ended = self.status is None and self._ended is not None
        if main_ended:
            self.status = self._ended
        self.left = self._ended is None or self._grandchild
        self.orphaned = False
        return main_ended

    def stop(self, number: int, *, group: bool) -> None:
        """React to the first signal of a stop as the script says."""
        if self._script.ignores_term:
            return
        if group:
            self._end_grandchild()
        self._end_main(number)

    def end_rest(self, *, everyone: bool) -> list[str]:
        """React to SIGTERM for the process that was left, whose parent is gone."""
        del everyone
        asked = [] if self._rest_is_signalled else self.survivors()
        self._rest_is_signalled = True
        if not self._script.ignores_term:
            self._end_grandchild()
        return asked

    def shares_cgroup(self) -> bool:
        """Return False: it is not in a service."""
        return False

    def survivors(self) -> list[str]:
        """Return the living process that was left, as pid and name."""
        return [f"{self.main + 1} (grandchild)"] if self._grandchild else []

    def kill(self) -> list[str]:
        """React to SIGKILL."""
        killed = [] if self._ended is not None else [f"{self.main} (command)"]
        killed += self.survivors()
        self._end_grandchild()
        self._end_main(signal.SIGKILL)
        return killed

    # --- its descriptors --------------------------------------------------------

    def close(self) -> None:
        """Close the descriptors that the supervisor does not own. Idempotent."""
        for descriptor in list(self._open):
            self._close(descriptor)

    def _pipe(self) -> tuple[int, int]:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._open |= {reader, writer}
        return reader, writer

    def _close(self, descriptor: int) -> None:
        self._open.remove(descriptor)
        os.close(descriptor)


class ScriptedMachine(Machine):
    """
    The machine on which a script is played, with a given clock and simulated processes.

    Args:
        clock: The clock for all times.
        script: What the command does; None: it is unknown, and the command cannot start.
    """

    longest_round = blind_round = math.inf  # no polling: descriptors report every event here

    def __init__(self, clock: Clock, script: Script | None) -> None:
        self.processes: ScriptedProcesses | None = None
        self._clock = clock
        self._script = script

    def time_ns(self) -> int:
        """Return wall time in nanoseconds."""
        return self._clock.now() * 1000

    def monotonic(self) -> float:
        """Return seconds since an arbitrary fixed moment."""
        return self._clock.monotonic()

    def spawn(
        self, program: Program, *, directory: int, oom_score: bytes | None, warm: Warm
    ) -> Child:
        """
        Start the script in place of the command.

        Raises:
            StartError: There is no script, or too few file descriptors are free.
        """
        del directory, oom_score, warm  # there is no process that needs them
        if self._script is None:
            raise spawn.StartError("script", errno.ENOENT)
        try:
            self.processes = ScriptedProcesses(self._script, self._clock, program)
        except OSError as error:
            raise spawn.StartError(spawn.PIPE, error.errno or 0) from error
        return self.processes.child

    def tree(self, child: Child, others: set[int]) -> ScriptedProcesses:
        """Return the processes that `spawn` has begun."""
        del others
        assert self.processes is not None and self.processes.child is child  # noqa: S101, PT018 - spawned
        return self.processes
