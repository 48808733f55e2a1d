"""
Holders: the process that holds a job's lock but does not react, found and woken, or ended.

A supervisor that was stopped (SIGSTOP, a frozen cgroup) holds its lock for ever.
It is found by that lock, not by any stored pid. The kernel lists the locks of each
descriptor; the files themselves, which may be on a file system that does not
answer, are not touched.
"""

from __future__ import annotations

import os
import signal

from jobcore import procfs
from jobcore.supervision import jobdir, pids


def identify(descriptor: int) -> tuple[int, int]:
    """
    Return device and inode of an open file as the kernel names them in its lists of locks.

    On btrfs and overlayfs the device is another one than `stat` returns.
    """
    facts = os.fstat(descriptor)
    told = dict(_read_fields("self", descriptor))
    inode = int(told.get("ino", facts.st_ino))
    device = procfs.device_of_mount(told.get("mnt_id", ""))
    return facts.st_dev if device is None else device, inode


def find(device: int, inode: int) -> list[int]:
    """
    Return the pids of other processes that hold the lock of a running job.

    Args:
        device: Of the lock file, as `identify` returns it.
        inode: Likewise.
    """
    return [pid for pid in procfs.other_pids() if holds(pid, device, inode)]


def holds(pid: int, device: int, inode: int) -> bool:
    """
    Tell whether the process runs the job whose lock file this is.

    That it has the file open is not enough: hosts that probe, prepare or
    resolve have, too. The kernel says of each descriptor what it has locked.
    """
    file = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    try:
        descriptors = os.listdir(f"{procfs.ROOT}/{pid}/fdinfo")
    except OSError:
        return False  # it ended, or belongs to another user
    return any(
        name == "lock" and _is_running_lock(value.split(), file)
        for descriptor in descriptors
        for name, value in _read_fields(pid, descriptor)
    )


def _read_fields(pid: int | str, descriptor: int | str) -> list[tuple[str, str]]:
    """Return what the kernel says of a descriptor, by name; nothing if it was closed just now."""
    try:
        with open(f"{procfs.ROOT}/{pid}/fdinfo/{descriptor}", encoding="latin-1") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return []
    return [(name, value.strip()) for name, _, value in lines]


def _is_running_lock(fields: list[str], file: str) -> bool:
    # 1: OFDLCK  ADVISORY  WRITE -1 fe:00:1234 1 1
    first, length = jobdir.RUNNING
    return "OFDLCK" in fields and fields[-3:] == [file, str(first), str(first + length - 1)]


def signal_holder(pid: int, device: int, inode: int, number: signal.Signals) -> bool:
    """Send a signal to a process if it holds the lock; False: it does not, or we may not."""
    try:
        with pids.ProcessHandle(pid) as process:
            # Looked at by a handle that cannot change its meaning: the pid may have
            # been given to another process since it was found.
            if not holds(pid, device, inode):
                return False
            process.signal(number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
