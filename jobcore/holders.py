"""
Holders: the process that holds a job's lock but does not react, found and woken, or ended.

A supervisor that was stopped (SIGSTOP, a frozen cgroup) holds its lock for ever.
It is found by the lock file that it has open, not by any stored pid.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def find(device: int, inode: int) -> list[int]:
    """Return the pids of other processes that have the file open."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and int(entry.name) != os.getpid() and _has(entry, device, inode)
    ]


def _has(process: Path, device: int, inode: int) -> bool:
    try:
        for entry in (process / "fd").iterdir():
            try:
                facts = entry.stat()
            except OSError:
                continue  # closed just now
            if (facts.st_dev, facts.st_ino) == (device, inode):
                return True
    except OSError:
        return False  # it ended, or belongs to somebody else
    return False


def signal_all(device: int, inode: int, number: signal.Signals) -> list[int]:
    """Send a signal to every other process that has the file open, and return their pids."""
    reached = []
    for pid in find(device, inode):
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            # Looked at again through a handle that cannot change its meaning: the
            # pid may have been given to another process since.
            if _has(Path("/proc") / str(pid), device, inode):
                signal.pidfd_send_signal(handle, number)
                reached.append(pid)
        except (ProcessLookupError, PermissionError):
            pass
        finally:
            os.close(handle)
    return reached
