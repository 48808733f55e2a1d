"""One script as it plays: its pipes, and the processes that may be signalled."""

from __future__ import annotations

import errno
import itertools
import math
import os
import signal

from jobcore.clock import Clock
from jobcore.supervisor import frames, spawn
from jobcore.supervisor.platform import Machine
from jobcore.supervisor.process_tree import ProcessTree
from jobcore.supervisor.spawn import Child, Command
from jobcore.testing.script import Script

#: Pids of commands that are no processes: beyond the highest that Linux gives to one.
_NO_PID = 2**22
_numbers = itertools.count(1)


class Play(ProcessTree):
    """
    The processes of a script, which are none.

    It writes into real pipes, so what does not fit waits until it is read, as
    a command would.

    Attributes:
        child: What a supervisor gets of a command that it has spawned.
        fatal: The script has come to where the supervisor dies.
        orphaned: What was left behind has ended, and was not reaped yet. No descriptor tells of
            it: a supervisor looks again soon, but by a clock that is moved nothing is soon.
    """

    def __init__(self, script: Script, clock: Clock, *, separate: bool) -> None:
        """
        Args:
            script: What is played.
            clock: Tells when.
            separate: Whether stdout and stderr are a pipe each.

        Raises:
            OSError: There are not as many descriptors.
        """
        super().__init__(_NO_PID + 2 * next(_numbers))  # and one for what it leaves
        self.fatal = False
        self.orphaned = False
        self._script = script
        self._clock = clock
        self._parts = script.parts()
        self._next = clock.monotonic()
        self._unwritten = b""
        self._unwritten_to = -1
        self._grandchild = script.leaves_grandchild
        self._rest_is_told = False
        self._ended: int | None = None  # the wait status of the main process, before it is reaped
        self._open: set[int] = set()
        try:
            self.child = self._begin(separate=separate)
        except OSError:
            self.close()
            raise

    def _begin(self, *, separate: bool) -> Child:
        report, report_writer = self._pipe()
        reports, reports_writer = self._pipe()
        self._life, self._death = self._pipe()
        reader, out = self._pipe()
        outputs = [(reader, frames.STDOUT if separate else frames.OUTPUT)]
        self._writers = {"stdout": out, "stderr": out, "progress": reports_writer}
        if separate:
            reader, self._writers["stderr"] = self._pipe()
            outputs.append((reader, frames.STDERR))
        number = self._script.cannot_start
        if number is not None:
            os.write(report_writer, spawn.encode_report(spawn.EXEC, number))
            self._end_main(spawn.exit_code_of(spawn.EXEC, number) << 8)
        self._close(report_writer)  # as the exec does
        # From here on these are the supervisor's to close.
        self._open -= {report, reports, *(descriptor for descriptor, _ in outputs)}
        return Child(self.main, report, outputs, reports)

    # --- the script -------------------------------------------------------------

    def due(self) -> float | None:
        """Return when it goes on; None: not by the clock."""
        waits = self._ended is not None or self.fatal or self._unwritten or self._next == math.inf
        return None if waits else self._next

    def act(self) -> bool:
        """Do what is due and what there is room for; tell whether there was anything."""
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
                stream, self._unwritten = part
                self._unwritten_to = self._writers[stream]
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
        """Come to the end of the script."""
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
            self._close(self._death)

    # --- as processes -----------------------------------------------------------

    def watch_main(self) -> int:
        """Return a descriptor that becomes readable when the main process ends."""
        self._open.remove(self._life)
        return self._life

    def reap(self) -> bool:
        """Take note of what has ended; return whether the main process was in it."""
        main_ended = self.status is None and self._ended is not None
        if main_ended:
            self.status = self._ended
        self.left = self._ended is None or self._grandchild
        self.orphaned = False
        return main_ended

    def stop(self, number: int, *, group: bool) -> None:
        """Take the first signal of a stop, as the script says."""
        if self._script.ignores_term:
            return
        if group:
            self._end_grandchild()
        self._end_main(number)

    def end_rest(self, *, everyone: bool) -> list[str]:
        """Have what is left take a SIGTERM; all of it has lost its parent."""
        del everyone
        asked = [] if self._rest_is_told else self.survivors()
        self._rest_is_told = True
        if not self._script.ignores_term:
            self._end_grandchild()
        return asked

    def shares_cgroup(self) -> bool:
        """Tell that it is in no service."""
        return False

    def survivors(self) -> list[str]:
        """Return what is left behind and lives."""
        return [f"{self.main + 1} (grandchild)"] if self._grandchild else []

    def kill(self) -> list[str]:
        """Take a SIGKILL."""
        killed = [] if self._ended is not None else [f"{self.main} (command)"]
        killed += self.survivors()
        self._end_grandchild()
        self._end_main(signal.SIGKILL)
        return killed

    # --- its descriptors --------------------------------------------------------

    def close(self) -> None:
        """Close what is not the supervisor's; twice is harmless."""
        for descriptor in list(self._open):
            self._close(descriptor)

    def _pipe(self) -> tuple[int, int]:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._open |= {reader, writer}
        return reader, writer

    def _close(self, descriptor: int) -> None:
        self._open.remove(descriptor)
        os.close(descriptor)


class Stage(Machine):
    """
    The machine that a script is played on: its time is a clock's, its processes are a `Play`.

    Args:
        clock: Tells the time.
        script: What the command does; None: nobody knows, and it cannot start.
    """

    longest_round = blind_round = math.inf  # all that happens here tells so

    def __init__(self, clock: Clock, script: Script | None) -> None:
        self.play: Play | None = None
        self._clock = clock
        self._script = script

    def time_ns(self) -> int:
        """Return wall time in nanoseconds."""
        return self._clock.now() * 1000

    def monotonic(self) -> float:
        """Return seconds from some fixed moment on."""
        return self._clock.monotonic()

    def spawn(self, command: Command, *, directory: int, oom_score: bytes | None) -> Child:
        """
        Begin to play the script in the command's place.

        Raises:
            StartError: There is no script, or there are no descriptors.
        """
        del directory, oom_score  # no process, none to set it for
        if self._script is None:
            raise spawn.StartError("script", errno.ENOENT)
        try:
            self.play = Play(self._script, self._clock, separate=command.separate_streams)
        except OSError as error:
            raise spawn.StartError(spawn.PIPE, error.errno or 0) from error
        return self.play.child

    def tree(self, child: Child) -> Play:
        """Return what is played."""
        assert self.play is not None and self.play.child is child  # noqa: S101, PT018 - spawned
        return self.play
