"""
Reads /proc about other processes, without ever waiting long for one of them.

Reading the environment or the arguments of a process takes a lock on its memory, which a
process that is stuck in the kernel may hold for ever. So a separate thread reads them. If it
blocks, it is abandoned.

Each function raises OSError if there is no /proc, or if no descriptor or memory is free for the
read: the answer is unknown then, so do not kill a process.
"""

from __future__ import annotations

import _thread
import logging
import os
import threading
import time
from collections.abc import Sequence

from jobcore.embedding import telemetry
from jobcore.supervisor import pids, system_calls

ROOT = "/proc"
CGROUPS = "/sys/fs/cgroup"
#: Seconds to wait for a read about one process.
PATIENCE = 1.0

#: By pid: the abandoned thread that still waits for that process.
waiting: dict[int, threading.Thread] = {}


def other_pids() -> list[int]:
    """
    Return the entries in /proc of all other processes; see `supervisor.pids`.

    Empty if /proc belongs to a pid namespace that this process is not in.
    """
    if not pids.level():
        return []
    own = pids.own_entry()
    return [int(name) for name in os.listdir(ROOT) if name.isdigit() and int(name) != own]


def is_stopped(pid: int) -> bool:
    """Tell whether a process was stopped by a signal, and not by a debugger."""
    state = _read(f"{pid}/stat").rpartition(b")")[2].split()[:1]
    return state == [b"T"] and not _is_traced(pid)


def is_held_back(pid: int) -> bool:
    """Tell whether a debugger holds a process, or its cgroup is frozen."""
    return _is_traced(pid) or _is_frozen(pid)


def _is_traced(pid: int) -> bool:
    for line in _read(f"{pid}/status").splitlines():
        name, _, value = line.partition(b":")
        if name == b"TracerPid":
            return value.strip() != b"0"
    return False


def _is_frozen(pid: int) -> bool:
    """Tell whether its cgroup is frozen; False if that cannot be read."""
    for line in os.fsdecode(_read(f"{pid}/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # cgroup version 2, perhaps mounted beside version 1
            events = [_read(f"{CGROUPS}{at}{path}/cgroup.events") for at in ("", "/unified")]
            if any(b"frozen 1" in one for one in events):
                return True
        elif "freezer" in controllers.split(","):
            state = _read(f"{CGROUPS}/freezer{path}/freezer.state").strip()
            if state in (b"FROZEN", b"FREEZING"):
                return True
    return False


def _read(path: str) -> bytes:
    """Return the content of a file, relative to /proc; empty if this process may not read it."""
    try:
        with open(os.path.join(ROOT, path), "rb") as file:
            return file.read()
    except OSError as error:
        system_calls.require_no_shortage(error)
        return b""


def with_variable(entry: str, pids: Sequence[int]) -> list[int]:
    """
    Return those of `pids` whose environment holds exactly this entry.

    A process whose environment cannot be read within `PATIENCE` is left out and logged. It is
    not examined again while that read is blocked.

    Args:
        entry: `NAME=value`.
        pids: Processes, some of which may have ended.
    """
    found, empty = _with("environ", entry.encode(), pids)
    # Look again at empty ones: during an exec, a process has no environment for a moment.
    return found + _with("environ", entry.encode(), empty)[0]


def with_argument(argument: str, pids: Sequence[int]) -> list[int]:
    """Return those of `pids` started with exactly this argument, as `with_variable` does."""
    return _with("cmdline", argument.encode(), pids)[0]


def _with(file: str, entry: bytes, pids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return those of `pids` whose file holds the entry, and those whose file is empty."""
    found: list[int] = []
    empty: list[int] = []
    left = [pid for pid in pids if not is_waiting(pid)]
    while left:
        search = _Search(file, entry, left)
        found += search.run()
        empty += search.empty
        left = left[search.position :]
        if left:
            waiting[left[0]] = search.thread
            telemetry.event(logging.WARNING, "process cannot be read", pid=left.pop(0))
    return found, empty


def unanswered() -> list[int]:
    """Return the pids of processes that abandoned threads still wait for."""
    return [pid for pid in list(waiting) if is_waiting(pid)]


def is_waiting(pid: int) -> bool:
    """Tell whether an abandoned thread still waits for this process."""
    thread = waiting.get(pid)
    if thread is None:
        return False
    if thread.is_alive():
        return True
    waiting.pop(pid, None)
    return False


class _Search:
    """
    A search through several processes, in a thread that may have to be abandoned.

    Attributes:
        position: How many processes have been examined.
        empty: The pids of those whose file was empty.
        thread: The searching thread.
    """

    def __init__(self, file: str, entry: bytes, pids: list[int]) -> None:
        self.position = 0
        self.empty: list[int] = []
        self._file = file
        self._entry = entry
        self._pids = pids
        self._found: list[int] = []
        self._error: OSError | None = None
        self._abandoned = False
        self._ended = _thread.allocate_lock()
        self._ended.acquire()
        self.thread = threading.Thread(target=self._look, name="jobcore-procfs", daemon=True)

    def run(self) -> list[int]:
        """Return the pids that were found, up to the end or to a process that is stuck."""
        self.thread.start()
        seen = -1
        while seen != self.position:
            seen = self.position
            # Not `join`: if `threading` did not start the calling thread, it would be listed
            # as a thread that never ends.
            if self._ended.acquire(timeout=PATIENCE):
                while self.thread.is_alive():
                    time.sleep(0)
                break
        self._abandoned = True
        if self._error is not None:
            raise self._error
        return self._found[:]

    def _look(self) -> None:
        try:
            for pid in self._pids:
                entries = read_entries(pid, self._file)
                if self._abandoned:
                    return
                if self._entry in entries:
                    self._found.append(pid)
                elif entries == [b""]:
                    self.empty.append(pid)
                self.position += 1
        except OSError as error:
            self._error = error
        finally:
            self._ended.release()


def read_entries(pid: int, name: str) -> list[bytes]:
    """Return the entries of a file of a process that end with NUL, such as its variables."""
    try:
        with open(f"{ROOT}/{pid}/{name}", "rb") as file:
            return file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []  # it ended, or belongs to another user
