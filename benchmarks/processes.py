"""Processes: hosts that a benchmark starts, and what these and their supervisors use."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.timing import wait_until

_PR_SET_CHILD_SUBREAPER = 36  # of <sys/prctl.h>
_TICKS = os.sysconf("SC_CLK_TCK")


class Program:
    """A Python program that prints JSON lines, and goes on when it is told to."""

    def __init__(self, source: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", source, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def read(self) -> Any:
        """Return the value of its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a program of a benchmark ended with {self._process.wait()}")
        return json.loads(line)

    def go_on(self) -> None:
        """Let it read a line, for which it waits."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Close its standard input, which ends it, and wait for its end."""
        try:
            with suppress(BrokenPipeError):
                self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@contextmanager
def program(source: str, *arguments: object) -> Iterator[Program]:
    """Run a program until the end of the block."""
    with closing(Program(source, *arguments)) as running:
        yield running


@contextmanager
def inherits_orphans() -> Iterator[None]:
    """Make supervisors that lose their parent in the block children of this process; reap them."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
        wait_until(_all_reaped)
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def waiting(folder: str) -> list[str]:
    """Return a command that adds a byte to a file, for `started`, and runs until `gate` ends."""
    script = 'printf . >> "$1"; exec cat "$2"'
    return ["sh", "-c", script, "sh", os.path.join(folder, "started"), os.path.join(folder, "gate")]


@contextmanager
def gate(folder: str) -> Iterator[None]:
    """Let the commands of `waiting` run until the end of the block."""
    path = os.path.join(folder, "gate")
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(writer)


def started(folder: str) -> int:
    """Return how many commands of `waiting` have begun."""
    try:
        return os.stat(os.path.join(folder, "started")).st_size
    except FileNotFoundError:
        return 0


@dataclass(frozen=True)
class Use:
    """
    What a process uses.

    Attributes:
        pid: Its pid.
        parent: Its parent's.
        name: Its name for the kernel.
        cpu: Seconds of CPU.
        children_cpu: Those of its children that it has waited for.
    """

    pid: int
    parent: int
    name: str
    cpu: float
    children_cpu: float


def descendants() -> list[Use]:
    """Return the processes below this one."""
    found = {use.pid: use for use in map(_use, _pids()) if use is not None}
    below = {os.getpid()}
    while True:
        new = {use.pid for use in found.values() if use.parent in below} - below
        if not new:
            return [found[pid] for pid in below if pid in found and pid != os.getpid()]
        below |= new


def memory(pid: int, what: str) -> float:
    """Return the `Pss` or `Rss` of a process in MB; 0: it has ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as lines:
            return sum(int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{what}:"))
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def _all_reaped() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _use(pid: int) -> Use | None:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            before, _, after = stat.read().rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = after.split()
    times = [int(one) / _TICKS for one in fields[11:15]]
    return Use(pid, int(fields[1]), before.partition("(")[2], sum(times[:2]), sum(times[2:]))
