"""
Leftovers: processes that a dead supervisor's job left behind.

Only a supervisor that was itself SIGKILLed leaves any. They are known by the
random cookie in their environment, never by a stored pid, which by now may
belong to somebody else.
"""

from __future__ import annotations

import os
import signal
import time

from jobcore import procfs
from jobcore.supervision import pids

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
