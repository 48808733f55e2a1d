"""
What a process inherits from the one that starts it, and does not reset: its inheritance.

A keeper was started a while ago, so a supervisor that it forks has the inheritance of that
moment. Host and keeper compare theirs with what it was then: if neither has changed, a
supervisor that is forked is like one that the host would start now.
"""

from __future__ import annotations

import os

_TASK = "/proc/thread-self"  # several of these belong to a thread, and a child gets its parent's
#: The lines of `status` that count. The others change all the time, or are reset.
_STATUS = (
    b"Uid", b"Gid", b"Groups", b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb", b"NoNewPrivs",
    b"Seccomp", b"Seccomp_filters", b"Speculation_Store_Bypass", b"SpeculationIndirectBranch",
    b"THP_enabled", b"Cpus_allowed", b"Mems_allowed",
)  # fmt: skip
#: The fields of `stat`, from the state on: nice, real-time priority, and policy.
_SCHEDULING = (16, 37, 38)
_NAMESPACES = (
    "user", "mnt", "net", "ipc", "uts", "cgroup", "pid_for_children", "time_for_children",
)  # fmt: skip
#: Files that some kernels do not have.
_OPTIONAL = (
    "cgroup", "attr/current", "oom_score_adj", "coredump_filter", "loginuid", "timerslack_ns",
)  # fmt: skip


def read() -> bytes | None:
    """Return the inheritance of a child of this thread; None: it cannot be read here, or now."""
    try:
        lines = _content("status").splitlines()
        scheduling = _content("stat").rpartition(b")")[2].split()
        found = [line for line in lines if line.partition(b":")[0] in _STATUS]
        found += [scheduling[number] for number in _SCHEDULING]
        found.append(_content("limits"))
        root = os.stat("/")
        found.append(b"%d %d" % (root.st_dev, root.st_ino))
    except (OSError, IndexError):
        return None
    for name in _NAMESPACES:
        try:
            found.append(os.fsencode(os.readlink(f"{_TASK}/ns/{name}")))
        except OSError:
            found.append(b"")
    for name in _OPTIONAL:
        try:
            found.append(_content(name))
        except OSError:
            found.append(b"")
    return b"\n".join(found)


def _content(name: str) -> bytes:
    descriptor = os.open(f"{_TASK}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = content = os.read(descriptor, 65536)
        while data:
            data = os.read(descriptor, 65536)
            content += data
        return content
    finally:
        os.close(descriptor)
