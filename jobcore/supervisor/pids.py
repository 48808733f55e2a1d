"""
What the numbers in /proc mean to this process.

/proc may have been mounted in an outer pid namespace, as in a container that
shares the machine's. A number there then names another process here, and a
signal to it would reach a stranger.
"""

from __future__ import annotations

import os

from jobcore.supervisor import system_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import TracebackType
else:
    import _signal

ROOT = "/proc"


def level() -> int:
    """
    Return the place of a pid of this namespace among the `NSpid` of an entry of /proc.

    1: the entries are pids of this namespace. More: they are those of an outer one.
    0: this process has no entry, so nothing in /proc can be relied on.
    """
    try:
        numbers = _numbers("self")
        if numbers is None:  # a kernel that does not tell
            return 1 if os.readlink(f"{ROOT}/self") == str(os.getpid()) else 0
    except OSError:
        return 0
    return len(numbers) if numbers[-1] == os.getpid() else 0


def own_entry() -> int:
    """
    Return the number of this process in /proc.

    Raises:
        OSError: It has none.
    """
    return int(os.readlink(f"{ROOT}/self"))


def translate(entry: int, at: int) -> int | None:
    """
    Return the pid that an entry of /proc would have here; None: it is gone, or not seen here.

    It is certain of this process's own children alone. `ProcessHandle` makes it certain.

    Args:
        at: What `level` returned.
    """
    if at == 1:
        return entry
    try:
        numbers = _numbers(str(entry)) or []
    except OSError:
        return None
    return numbers[at - 1] if 0 < at <= len(numbers) else None


class ProcessHandle:
    """
    The process that an entry of /proc names, to be looked at and then signalled; a context.

    With a pidfd the one that is signalled is certainly the one that was looked at.
    Without pidfds it is so unless its pid is given to another process in between.
    """

    def __init__(self, entry: int) -> None:
        """
        Take hold of the process.

        Raises:
            ProcessLookupError: It has ended.
            PermissionError: It is in a pid namespace that cannot be reached from this one, or
                may be: without pidfds nothing tells.
            OSError: No descriptor is left.
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
        # A process of a namespace beside this one may have the same number there.
        if at != 1 and _entry_of(self._pidfd) != entry:
            os.close(self._pidfd)
            raise PermissionError

    def __enter__(self) -> ProcessHandle:  # noqa: PYI034 - `Self` is not in 3.10's typing
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the process."""
        if self._pidfd >= 0:
            os.close(self._pidfd)

    def signal(self, number: int) -> None:
        """
        Send it a signal.

        Raises:
            ProcessLookupError: It has ended.
            PermissionError: It belongs to another user.
        """
        if self._pidfd >= 0:
            _signal.pidfd_send_signal(self._pidfd, number)
        else:
            os.kill(self._pid, number)


def _entry_of(handle: int) -> int:
    """Return the number in /proc of the process behind a pidfd."""
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
