"""
Opens: what the process of a test must not open.

Closing any descriptor of a database's file drops every lock that SQLite holds on that file in this
process: POSIX locks belong to the process. A blocking open of a FIFO waits until another process
opens its other end, without a deadline; only a thread that jobcore leaves waiting may do that.
"""

from __future__ import annotations

import os
import stat
import sys
import threading

#: SQLite has no locks on the log itself: those of the WAL mode are on the shared memory.
DATABASE_FILES = (".db", "-shm", "-journal")

#: What was refused since a test looked last; the code that was refused may have swallowed it.
refused: list[str] = []


class Refused(AssertionError):
    """A test, or the code that it tests, opens such a file."""


def watch():
    """Refuse these opens from now on, in this process and in its forks."""
    sys.addaudithook(_look)


def _look(event, arguments):
    if event != "open":
        return
    path, _, flags = arguments
    if not isinstance(path, (str, bytes)):
        return
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return  # not there, or named relative to another directory
    why = None
    if stat.S_ISFIFO(facts.st_mode):
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and not flags & (os.O_NONBLOCK | os.O_RDWR | os.O_PATH):
            why = "a blocking open of a FIFO has no deadline"
    elif os.fsdecode(path).endswith(DATABASE_FILES) and _is_open(facts) and not flags & os.O_PATH:
        why = "closing it will drop the locks that SQLite holds on it in this process"
    if why is not None:
        refused.append(f"{os.fsdecode(path)}: {why}")
        raise Refused(refused[-1])


def _is_open(facts):
    """Tell whether this process has the file open already."""
    for name in os.listdir("/proc/self/fd"):
        try:
            other = os.stat(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
        if (other.st_dev, other.st_ino) == (facts.st_dev, facts.st_ino):
            return True
    return False
