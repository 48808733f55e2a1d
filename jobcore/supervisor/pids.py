"""
Translates the numbers in /proc to pids of this process's namespace.

/proc may be mounted from an outer pid namespace, as in a container that shares the machine's
/proc. A number there then belongs to another process here, and a signal to that number would
hit the wrong process.
"""

from __future__ import annotations

import os

from jobcore.supervisor import system_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

ROOT = "/proc"


def level() -> int:
    """
    Return the position (from 1) of this namespace's pid in the `NSpid` line of a /proc entry.

    1: the entries are pids of this namespace. More: they are pids of an outer namespace.
    0: this process has no entry, so /proc cannot be used.

    Raises:
        OSError: No file descriptor or memory is free to read it, so the answer is unknown.
    """
    try:
        numbers = _numbers("self")
        if numbers is None:  # the kernel does not write `NSpid`
            return 1 if os.readlink(f"{ROOT}/self") == str(os.getpid()) else 0
    except OSError as error:
        system_calls.require_no_shortage(error)
        return 0
    return len(numbers) if numbers[-1] == os.getpid() else 0


def own_entry() -> int:
    """
    Return the number of this process in /proc.

    Raises:
        OSError: It has no entry there.
    """
    return int(os.readlink(f"{ROOT}/self"))


def translate(entry: int, at: int) -> int | None:
    """
    Return the pid of a /proc entry in this namespace; None: it is gone, or not visible here.

    The result is reliable only for children of this process. For other processes use
    `ProcessHandle`, which verifies it.

    Args:
        at: The result of `level`.

    Raises:
        OSError: No file descriptor or memory is free to read the entry.
    """
    if at == 1:
        return entry
    try:
        numbers = _numbers(str(entry)) or []
    except OSError as error:
        system_calls.require_no_shortage(error)
        return None
    return numbers[at - 1] if 0 < at <= len(numbers) else None


class ProcessHandle:
    """
    The process of a /proc entry, to examine and then signal it. A context manager.

    With a pidfd, the signalled process is certainly the examined one. Without pidfds, another
    process could get the same pid in between.
    """

    def __init__(self, entry: int) -> None:
        """
        Open the process.

        Raises:
            ProcessLookupError: It has ended.
            PermissionError: It is in a pid namespace that this process cannot signal; without
                pidfds, also if that cannot be determined.
            OSError: No file descriptor or memory is free.
        """
        at = level()
        pid = translate(entry, at)
        if pid is None and not os.path.exists(f"{ROOT}/{entry}"):
            raise ProcessLookupError
        if pid is None:
            raise PermissionError
        self._pid = pid
        try:
            self._pidfd = system_calls.open_process(pid)
        except system_calls.NoPidfdError as error:
            if at != 1:
                raise PermissionError from error
            self._pidfd = -1
        try:
            # A process of a sibling namespace may have the same number there.
            if at != 1 and _entry_of(self._pidfd) != entry:
                raise PermissionError
        except OSError:
            os.close(self._pidfd)
            raise

    def __enter__(self) -> ProcessHandle:  # noqa: PYI034 - `Self` is not in 3.10's typing
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the pidfd."""
        if self._pidfd >= 0:
            os.close(self._pidfd)

    def signal(self, number: int) -> None:
        """
        Send a signal to the process.

        Raises:
            ProcessLookupError: The process has ended.
            PermissionError: The process belongs to another user.
        """
        if self._pidfd >= 0:
            _signal.pidfd_send_signal(self._pidfd, number)
        else:
            os.kill(self._pid, number)


def _entry_of(handle: int) -> int:
    """Return the number that the process of a pidfd has in /proc."""
    with open(f"{ROOT}/self/fdinfo/{handle}", "rb") as file:
        for line in file:
            name, _, value = line.partition(b":")
            if name == b"Pid":
                return int(value)
    return -1


def _numbers(entry: str) -> list[int] | None:
    with open(f"{ROOT}/{entry}/status", "rb") as file:
        for line in file:
            if line.startswith(b"NSpid:"):
                return [int(number) for number in line.split()[1:]]
    return None
