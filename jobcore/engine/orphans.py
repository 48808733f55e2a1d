"""
Finds and ends orphans: processes of a job whose supervisor is dead or does not react.

Processes that a SIGKILLed supervisor left running are recognized by a random cookie in their
environment. A supervisor that was stopped (SIGSTOP, a frozen cgroup) holds its lock for ever. It
is found by the locked byte, which is unique to its run, and not by the lock file, which may have
been replaced. The kernel lists the locks of each descriptor, so the files themselves are not
touched; they may be on a file system that does not respond. Stored pids are never trusted: by
now they may belong to other processes.

Every function that looks at other processes raises OSError if no descriptor is free for that:
the answer is unknown then.
"""

from __future__ import annotations

import os
import signal
import time

from jobcore import tuning
from jobcore.engine import procfs
from jobcore.supervisor import job_directory, pids, system_calls

#: The variable that carries the cookie.
COOKIE = "JOBCORE_RUN"
#: Seconds between two looks at /proc.
PAUSE = 0.01
#: The process has ended, or belongs to another user.
_UNREADABLE = (FileNotFoundError, ProcessLookupError, PermissionError)
#: The inode of the machine's first pid namespace, from linux/proc_ns.h: it sees all processes.
_FIRST_NAMESPACE = 0xEFFFFFFC
#: How often one look lists the processes again, as long as it finds new ones.
_LISTS = 20


def is_inside(cookie: str) -> bool:
    """Tell whether this process itself runs inside the job, which it must not resolve then."""
    return os.environ.get(COOKIE) == cookie


def are_visible() -> bool:
    """Tell whether /proc shows the processes of this pid namespace."""
    return pids.level() > 0


def find(cookie: str) -> list[int]:
    """Return the pids of all other processes with exactly this cookie."""
    found: list[int] = []
    seen: set[int] = set()
    for _ in range(_LISTS):
        # List again: a listed process may have forked and ended before it was examined.
        new = [pid for pid in procfs.other_pids() if pid not in seen]
        if not new:
            break
        seen.update(new)
        found += procfs.with_variable(f"{COOKIE}={cookie}", new)
    return found


def kill(cookie: str, patience: float = tuning.ORPHAN_PATIENCE) -> tuple[int, ...]:
    """
    SIGKILL every process with this cookie until none is left.

    Args:
        patience: Seconds to keep killing.

    Returns:
        The pids that still exist after that, or cannot be signalled.
    """
    deadline = time.monotonic() + patience
    empty = 0  # looks in a row that found nothing
    killed = False
    while True:
        found = find(cookie)
        empty = 0 if found else empty + 1
        # A killed process may have forked at that moment, and one look can miss the child. So
        # after a kill, require two looks that find nothing.
        if empty > killed:
            return ()
        unkillable = [pid for pid in found if not _kill_one(pid, cookie)]
        if found and (time.monotonic() >= deadline or len(unkillable) == len(found)):
            return tuple(found)
        killed = True
        time.sleep(PAUSE)


def _kill_one(pid: int, cookie: str) -> bool:
    """Kill `pid` if it still is the process that was found; False: permission denied."""
    try:
        with pids.ProcessHandle(pid) as process:
            # Check again: the pid may have been reused before the handle was opened. From here
            # on, the handle refers to one process.
            if procfs.with_variable(f"{COOKIE}={cookie}", [pid]):
                process.signal(signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def is_supervised(token: str, namespace: int | None) -> bool | None:
    """
    Tell whether a run of this boot has a supervisor, without its lock file.

    The kernel's list of all locks covers every pid namespace, but may miss a lock. Its lists per
    process are certain, but only cover visible processes. So use both.

    Args:
        namespace: The pid namespace of the supervisor; None: it is not known.

    Returns:
        None: it cannot be seen from here. Do not settle the job then.
    """
    if job_directory.is_run_locked(token) or find_holders(token):
        return True
    if os.access(job_directory.LOCKS, os.R_OK):
        return False
    own = system_calls.pid_namespace()
    is_visible = are_visible() and own in (namespace, _FIRST_NAMESPACE)
    return False if is_visible else None


def find_holders(token: str) -> list[int]:
    """Return the pids of other processes that supervise the run `token`."""
    return [pid for pid in procfs.other_pids() if holds(pid, token)]


def holds(pid: int, token: str) -> bool:
    """
    Tell whether the process supervises the run `token`.

    An open lock file is not enough: hosts that probe, prepare or resolve the job have it open
    too. The kernel shows which bytes each descriptor has locked.
    """
    byte = str(job_directory.spans_of(token)[1][0])
    try:
        descriptors = os.listdir(f"{procfs.ROOT}/{pid}/fdinfo")
    except _UNREADABLE:
        return False
    return any(byte in _locked(pid, descriptor) for descriptor in descriptors)


def _locked(pid: int, descriptor: str) -> list[str]:
    """Return the first byte of each range that a descriptor has locked, if it is still open."""
    try:
        with open(f"{procfs.ROOT}/{pid}/fdinfo/{descriptor}", encoding="latin-1") as file:
            # lock:   1: OFDLCK  ADVISORY  WRITE -1 fe:00:1234 17 17
            return [line.split()[-2] for line in file if "OFDLCK" in line]
    except _UNREADABLE:
        return []


def signal_holder(pid: int, token: str, number: signal.Signals) -> bool:
    """Signal a process if it supervises the run; False: it does not, or permission denied."""
    try:
        with pids.ProcessHandle(pid) as process:
            # Check again with an open handle: the pid may have been reused since it was found.
            if not holds(pid, token):
                return False
            process.signal(number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def signal_all(token: str, number: signal.Signals) -> list[int]:
    """Signal every process that supervises the run; return the pids."""
    return [pid for pid in find_holders(token) if signal_holder(pid, token, number)]
