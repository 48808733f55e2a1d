"""
Processes of a job that its supervisor does not look after any more.

What a SIGKILLed supervisor leaves is known by the random cookie in its environment.
A supervisor that was stopped (SIGSTOP, a frozen cgroup) holds its lock for ever. It is
found by the byte of the lock that is its run's alone, and not by the lock file, which
may have been replaced. The kernel lists the locks of each descriptor; the files
themselves, which may be on a file system that does not answer, are not touched. No
stored pid is trusted: by now it may belong to another process.
"""

from __future__ import annotations

import os
import signal
import time

from jobcore.engine import procfs
from jobcore.supervisor import job_directory, pids

#: The variable that carries the cookie.
COOKIE = "JOBCORE_RUN"
#: Seconds to go on killing: a process in an uninterruptible sleep does not die.
PATIENCE = 10.0
#: Seconds between two looks at /proc.
PAUSE = 0.01
#: Times that processes are listed anew in one look, as long as there are new ones among them.
_LISTS = 20


def is_inside(cookie: str) -> bool:
    """Tell whether this very process runs inside the job: it must not judge itself."""
    return os.environ.get(COOKIE) == cookie


def are_visible() -> bool:
    """Tell whether processes of this pid namespace can be found in /proc."""
    return pids.level() > 0


def find(cookie: str) -> list[int]:
    """
    Return the pids of processes with exactly this cookie, ours excepted.

    Raises:
        OSError: There are no descriptors to look with, so nothing can be said.
    """
    found: list[int] = []
    seen: set[int] = set()
    for _ in range(_LISTS):
        # A process that was listed may have forked and ended before it was looked at.
        new = [pid for pid in procfs.other_pids() if pid not in seen]
        if not new:
            break
        seen.update(new)
        found += procfs.with_variable(f"{COOKIE}={cookie}", new)
    return found


def unexamined() -> list[int]:
    """Return the pids of processes that do not answer whose they are, as of the last look."""
    return procfs.unanswered()


def kill(cookie: str, patience: float = PATIENCE) -> tuple[int, ...]:
    """
    SIGKILL every process with this cookie until none is left.

    Args:
        patience: Seconds to go on.

    Returns:
        The pids that were still there after that, or could not be signalled.
    """
    deadline = time.monotonic() + patience
    empty = 0  # looks in a row that found nothing
    killed = False
    while True:
        found = find(cookie)
        empty = 0 if found else empty + 1
        # What was killed may have forked in that moment: such a child is easily missed once.
        if empty > killed:
            return ()
        unkillable = [pid for pid in found if not _kill_one(pid, cookie)]
        if found and (time.monotonic() >= deadline or len(unkillable) == len(found)):
            return tuple(found)
        killed = True
        time.sleep(PAUSE)


def _kill_one(pid: int, cookie: str) -> bool:
    """Kill `pid` if it still is the process that was found; False: we may not."""
    try:
        with pids.ProcessHandle(pid) as process:
            # The pid may have been given to another process before the handle was
            # open; from here on the handle cannot change its meaning.
            if procfs.with_variable(f"{COOKIE}={cookie}", [pid]):
                process.signal(signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def find_holders(token: str) -> list[int]:
    """Return the pids of other processes that supervise the run `token`."""
    return [pid for pid in procfs.other_pids() if holds(pid, token)]


def holds(pid: int, token: str) -> bool:
    """
    Tell whether the process supervises the run `token`.

    That it has the lock file open is not enough: hosts that probe, prepare or
    resolve have, too. The kernel says of each descriptor what it has locked.
    """
    byte = str(job_directory.spans_of(token)[1][0])
    try:
        descriptors = os.listdir(f"{procfs.ROOT}/{pid}/fdinfo")
    except OSError:
        return False  # it ended, or belongs to another user
    return any(byte in _locked(pid, descriptor) for descriptor in descriptors)


def _locked(pid: int, descriptor: str) -> list[str]:
    """Return the first bytes of what a descriptor has locked; it may be closed by now."""
    try:
        with open(f"{procfs.ROOT}/{pid}/fdinfo/{descriptor}", encoding="latin-1") as file:
            # lock:   1: OFDLCK  ADVISORY  WRITE -1 fe:00:1234 17 17
            return [line.split()[-2] for line in file if "OFDLCK" in line]
    except OSError:
        return []


def signal_holder(pid: int, token: str, number: signal.Signals) -> bool:
    """Send a signal to a process if it supervises the run; False: it does not, or we may not."""
    try:
        with pids.ProcessHandle(pid) as process:
            # Looked at by a handle that cannot change its meaning: the pid may have
            # been given to another process since it was found.
            if not holds(pid, token):
                return False
            process.signal(number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def signal_all(token: str, number: signal.Signals) -> list[int]:
    """Send a signal to whatever supervises the run; return the pids."""
    return [pid for pid in find_holders(token) if signal_holder(pid, token, number)]
