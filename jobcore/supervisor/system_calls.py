"""
System calls that an old kernel, a container or a build of Python may lack.

pidfds need Linux 5.4, `memfd_create` a C library of 2018; a seccomp profile may
forbid either, and `/proc` may be hidden in part or missing. What is lost then:
an end is seen by the clock instead of at once, and a signal goes to a pid that
was looked at a moment before (see `pids`).
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

#: What a call fails with that this kernel does not have, or that a filter forbids.
_REFUSED = (errno.ENOSYS, errno.EPERM, errno.EACCES)
#: Of this process, or of the whole system, for a while: says nothing of the kernel.
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: Where a file without a name can be made in place of one in memory, the best place first.
_TEMPORARY = ("/dev/shm", "/tmp", "/var/tmp")  # noqa: S108 - a file without a name
#: Descriptors that are closed one by one where the open ones cannot be listed.
_MOST_DESCRIPTORS = 65536

_SIGNAL_SET = 128  # bytes of a `sigset_t`, of which Linux has use for the first eight

P_PIDFD = 3  #: For `os.waitid`. Of linux/wait.h: a build of Python may lack the name.


class NoPidfdError(OSError):
    """No pidfds can be had in this process."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSYS, os.strerror(errno.ENOSYS))


def lacking() -> list[str]:
    """Return what this process does without, in words."""
    found = []
    try:
        os.close(open_process(os.getpid()))
    except NoPidfdError:
        found.append("pidfds")
    try:
        os.close(os.memfd_create("probe", os.MFD_CLOEXEC))
    except (AttributeError, OSError):
        found.append("memfd_create")
    if pid_namespace() is None:
        found.append("/proc")
    elif boot_id() is None:
        found.append("the boot id in /proc/sys")
    return found


# --- processes ------------------------------------------------------------------

_has_pidfds: list[bool] = []  # the answer, once it is known


def open_process(pid: int) -> int:
    """
    Return a pidfd, which becomes readable when the process ends.

    Raises:
        NoPidfdError: There are none here: use the pid and the clock.
        ProcessLookupError: No process has this pid.
        OSError: No descriptor is left.
    """
    if not _has_pidfds:
        _has_pidfds.append(_try_pidfds())
    if not _has_pidfds[0]:
        raise NoPidfdError
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _REFUSED:  # a filter that came later
            _has_pidfds[0] = False
            raise NoPidfdError from error
        raise


def _try_pidfds() -> bool:
    """Tell whether all that is done with pidfds works here."""
    try:
        own = os.pidfd_open(os.getpid())
    except AttributeError:
        return False
    except OSError as error:
        if error.errno in _SHORTAGE:
            raise
        return False
    try:
        _signal.pidfd_send_signal(own, 0)
        os.waitid(P_PIDFD, own, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return True  # no child of itself, which is the answer to a question understood
    except (AttributeError, OSError):
        pass
    finally:
        os.close(own)
    return False


def open_signal(number: int) -> int:
    """
    Return a descriptor that tells of a signal and of its sender; the signal must be blocked.

    Raises:
        OSError: There is none to be had.
    """
    import ctypes  # noqa: PLC0415 - a host has no use for it

    libc = ctypes.CDLL(None, use_errno=True)
    mask = (1 << (number - 1)).to_bytes(_SIGNAL_SET, sys.byteorder)
    descriptor: int = libc.signalfd(-1, mask, os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def is_alive(pid: int) -> bool:
    """Tell whether a process has this pid, which may be another one's by now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True


# --- descriptors ----------------------------------------------------------------


def make_memory_file(name: str) -> int:
    """
    Return a descriptor of an empty file that has no name: in memory, or else a temporary one.

    Raises:
        OSError: There is no descriptor, or no place for it.
    """
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC)
    except AttributeError:
        pass
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
    refusal: OSError | None = None
    for place in _TEMPORARY:
        try:
            return os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in _SHORTAGE:
                raise
            refusal = error
    why = f"no memfd_create, and no temporary file in {', '.join(_TEMPORARY)}"
    raise OSError(errno.ENOSYS, why) from refusal


def close_all_but(keep: tuple[int, ...]) -> None:
    """Close every descriptor but those to `keep`, one by one."""
    try:
        listed = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        # Without /proc: all that there can be, as far as that is a bearable number.
        listed = list(range(min(os.sysconf("SC_OPEN_MAX"), _MOST_DESCRIPTORS)))
    for descriptor in listed:
        if descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                pass  # not open, or the one that listed them


# --- what /proc says ------------------------------------------------------------


def boot_id() -> str | None:
    """
    Return the id of this boot of the machine; None: `/proc` does not tell it.

    Raises:
        OSError: No descriptor is left.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().decode("ascii").strip()
    except OSError as error:
        if error.errno in _SHORTAGE:
            raise
        return None  # hidden, as by `ProcSubset=pid`


def pid_namespace() -> int | None:
    """
    Return the inode of the pid namespace; None: `/proc` does not tell it.

    Raises:
        OSError: No memory is left.
    """
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError as error:
        if error.errno in _SHORTAGE:
            raise
        return None


def largest_file() -> int | None:
    """Return the bytes that `ulimit -f` allows a file; None: any number, or `/proc` is missing."""
    # Not by `resource`, which is one more library to be loaded for each supervisor.
    try:
        with open("/proc/self/limits", "rb") as limits:
            (line,) = (one for one in limits if one.startswith(b"Max file size"))
    except FileNotFoundError:
        return None
    soft = line.split()[3]
    return None if soft == b"unlimited" else int(soft)
