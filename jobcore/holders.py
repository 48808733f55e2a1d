"""
Holders: the process that holds a job's lock but does not react, found and woken, or ended.

A supervisor that was stopped (SIGSTOP, a frozen cgroup) holds its lock for ever. It
is found by the byte of the lock that is its run's alone, not by any stored pid, and
not by the lock file, which may have been replaced. The kernel lists the locks of each
descriptor; the files themselves, which may be on a file system that does not answer,
are not touched.
"""

from __future__ import annotations

import os
import signal

from jobcore import procfs
from jobcore.supervision import jobdir, pids


def find(token: str) -> list[int]:
    """Return the pids of other processes that supervise the run `token`."""
    return [pid for pid in procfs.other_pids() if holds(pid, token)]


def holds(pid: int, token: str) -> bool:
    """
    Tell whether the process supervises the run `token`.

    That it has the lock file open is not enough: hosts that probe, prepare or
    resolve have, too. The kernel says of each descriptor what it has locked.
    """
    byte = str(jobdir.spans_of(token)[1][0])
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
    return [pid for pid in find(token) if signal_holder(pid, token, number)]
