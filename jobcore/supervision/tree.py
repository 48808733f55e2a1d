"""
Tree: the processes of one job, from the main one to the last orphan: reaped, signalled, counted.

Only processes that cannot have been replaced are ever signalled: direct children
not yet reaped, and the main one's group while the main one is not. Descendants
whose parents die come to the supervisor, which is their subreaper.
"""

from __future__ import annotations

import os

from jobcore.supervision import kernel, pids

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal


class ProcessTree:
    """
    The processes below this one, all of them of one job.

    Attributes:
        main: Pid of the command.
        status: Its wait status, as the kernel gave it; None until it is reaped.
        left: Whether any child is left, as of the last `reap`.
        cpu_us: CPU time of all that was reaped, microseconds.
        max_rss: The largest resident set among them, bytes.
    """

    def __init__(self, main: int) -> None:
        self.main = main
        self.status: int | None = None
        self.left = True
        self.cpu_us = 0
        self.max_rss = 0

    def watch_main(self) -> int:
        """
        Return a descriptor that becomes readable when the main process ends; close it yourself.

        Raises:
            OSError: There is none to be had.
        """
        return kernel.open_process(self.main)

    def reap(self) -> bool:
        """Reap every child that has ended; return whether the main one was among them."""
        main_ended = False
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self.left = False
                return main_ended
            if pid == 0:
                return main_ended
            self.cpu_us += round((usage.ru_utime + usage.ru_stime) * 1_000_000)
            self.max_rss = max(self.max_rss, usage.ru_maxrss * 1024)
            if pid == self.main:
                self.status = status
                main_ended = True

    def terminate(self) -> None:
        """Send SIGTERM, then SIGCONT, for a stopped process cannot act on the first."""
        strays = [pid for pid in children() if pid != self.main and not self._in_group(pid)]
        for number in (_signal.SIGTERM, _signal.SIGCONT):
            self._signal_group(number)
            for pid in strays:
                _signal_child(pid, number)

    def kill(self) -> None:
        """Send SIGKILL to the group and to every child; their own children come to us next."""
        self._signal_group(_signal.SIGKILL)
        for pid in children():
            _signal_child(pid, _signal.SIGKILL)

    def _in_group(self, pid: int) -> bool:
        # Whoever was in the group got its SIGTERM with the group: many programs
        # take a second one for impatience.
        try:
            return os.getpgid(pid) == self.main
        except ProcessLookupError:
            return True

    def _signal_group(self, number: int) -> None:
        if self.status is not None:
            return
        try:
            os.killpg(self.main, number)
        except ProcessLookupError:
            _signal_child(self.main, number)  # it has not come to its setsid yet
        except PermissionError:
            pass  # all of it runs as another user; recorded if it stays


def _signal_child(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended, or changed its user; what stays is recorded as unreaped


def children() -> list[int]:
    """Return the pids of the direct children of this process, which has one thread."""
    try:
        descriptor = os.open("/proc/thread-self/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _children_by_parent()  # a kernel without CONFIG_PROC_CHILDREN
    try:
        data = b""
        while chunk := os.read(descriptor, 65536):
            data += chunk
    finally:
        os.close(descriptor)
    return _pids_of([int(entry) for entry in data.split()])


def _children_by_parent() -> list[int]:
    found = []
    try:
        own = pids.own_entry()
        entries = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []  # no /proc that knows us: the group must do
    for entry in entries:
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == own:
            found.append(entry)
    return _pids_of(found)


def _pids_of(entries: list[int]) -> list[int]:
    """Return the pids of children by their entries in /proc, which may be of an outer namespace."""
    level = pids.level()
    found = [pids.translate(entry, level) for entry in entries]
    return [pid for pid in found if pid is not None]
