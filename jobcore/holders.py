"""
Holders: the process that holds a job's lock but does not react, found and woken, or ended.

A supervisor that was stopped (SIGSTOP, a frozen cgroup) holds its lock for ever.
It is found by the lock file that it has open, not by any stored pid.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from jobcore.supervision import jobdir


def find(device: int, inode: int) -> list[int]:
    """Return the pids of other processes that hold the lock of a running job."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and int(entry.name) != os.getpid() and _holds(entry, device, inode)
    ]


def _holds(process: Path, device: int, inode: int) -> bool:
    """
    Tell whether the process runs the job whose lock file this is.

    That it has the file open is not enough: hosts that probe, prepare or
    resolve have, too. The kernel says of each descriptor what it has locked.
    """
    try:
        for entry in (process / "fd").iterdir():
            try:
                facts = entry.stat()
                if (facts.st_dev, facts.st_ino) != (device, inode):
                    continue
                told = (process / "fdinfo" / entry.name).read_text(encoding="ascii")
            except OSError:
                continue  # closed just now
            if any(_is_running_lock(line) for line in told.splitlines()):
                return True
    except OSError:
        return False  # it ended, or belongs to somebody else
    return False


def _is_running_lock(line: str) -> bool:
    # lock:  1: OFDLCK  ADVISORY  WRITE -1 fe:00:1234 1 1
    fields = line.split()
    first, length = jobdir.RUNNING
    return (
        fields[:1] == ["lock:"]
        and "OFDLCK" in fields
        and fields[-2:] == [str(first), str(first + length - 1)]
    )


def signal_all(device: int, inode: int, number: signal.Signals) -> list[int]:
    """Send a signal to every other process that holds the lock, and return their pids."""
    reached = []
    for pid in find(device, inode):
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            # Looked at again through a handle that cannot change its meaning: the
            # pid may have been given to another process since.
            if _holds(Path("/proc") / str(pid), device, inode):
                signal.pidfd_send_signal(handle, number)
                reached.append(pid)
        except (ProcessLookupError, PermissionError):
            pass
        finally:
            os.close(handle)
    return reached
