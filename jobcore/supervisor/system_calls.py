"""
System calls that an old kernel, a container or a build of Python may not support.

pidfds need Linux 5.4, and `memfd_create` needs a C library from 2018. A seccomp profile may
forbid either, and `/proc` may be incomplete or missing. Without them, the end of a process
is noticed by polling instead of at once, and a signal goes to a pid that was checked a moment
before (see `pids`).
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

#: Errors of a call that the kernel does not support or a filter forbids.
_REFUSED = (errno.ENOSYS, errno.EPERM, errno.EACCES)
#: A temporary shortage in the process or the system, which says nothing about the kernel.
SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: Directories for an unnamed temporary file, if there is no `memfd_create`; the best one first.
_TEMPORARY = ("/dev/shm", "/tmp", "/var/tmp")  # noqa: S108 - a file without a name
#: How many descriptor numbers to close one by one if the open ones cannot be listed.
_MOST_DESCRIPTORS = 65536

_SIGNAL_SET = 128  # bytes of a `sigset_t`; Linux uses the first eight

P_PIDFD = 3  #: For `os.waitid`, from linux/wait.h. Some builds of Python lack the name.


class NoPidfdError(OSError):
    """Raised where pidfds are not available."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSYS, os.strerror(errno.ENOSYS))


def require_no_shortage(error: OSError) -> None:
    """Raise an error again that says only that no descriptor or memory is free."""
    if error.errno in SHORTAGE:
        raise error


def lacking() -> list[str]:
    """
    Return the names of the features that are not available to this process.

    Raises:
        OSError: No file descriptor or memory is free for the check.
    """
    found = []
    try:
        os.close(open_process(os.getpid()))
    except NoPidfdError:
        found.append("pidfds")
    try:
        os.close(os.memfd_create("probe", os.MFD_CLOEXEC))
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError):
            require_no_shortage(error)
        found.append("memfd_create")
    if pid_namespace() is None:
        found.append("/proc")
    elif boot_id() is None:
        found.append("the boot id in /proc/sys")
    return found


# --- processes ------------------------------------------------------------------

known_pidfds: list[bool] = []  # the result of `_try_pidfds`, once it is known


def open_process(pid: int) -> int:
    """
    Return a pidfd, which becomes readable when the process ends.

    Raises:
        NoPidfdError: This process cannot use pidfds: use the pid, and poll.
        ProcessLookupError: No process has this pid.
        OSError: No file descriptor is free.
    """
    if not known_pidfds:
        known_pidfds.append(_try_pidfds())
    if not known_pidfds[0]:
        raise NoPidfdError
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _REFUSED:  # a filter was installed later
            known_pidfds[0] = False
            raise NoPidfdError from error
        raise


def _try_pidfds() -> bool:
    """Tell whether all uses of pidfds work here: open, signal and wait."""
    try:
        own = os.pidfd_open(os.getpid())
    except AttributeError:
        return False
    except OSError as error:
        require_no_shortage(error)
        return False
    try:
        _signal.pidfd_send_signal(own, 0)
        os.waitid(P_PIDFD, own, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return True  # we are not our own child; the error shows that the call is supported
    except (AttributeError, OSError):
        pass
    finally:
        os.close(own)
    return False


def open_signal(number: int) -> int:
    """
    Return a signalfd, which reports a signal and its sender. The signal must be blocked.

    Raises:
        OSError: It cannot be created.
    """
    import ctypes  # noqa: PLC0415 - hosts do not need it

    libc = ctypes.CDLL(None, use_errno=True)
    mask = (1 << (number - 1)).to_bytes(_SIGNAL_SET, sys.byteorder)
    descriptor: int = libc.signalfd(-1, mask, os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def is_alive(pid: int) -> bool:
    """Tell whether a process has this pid. It may be another process than before."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it belongs to another user
    return True


# --- descriptors ----------------------------------------------------------------


def make_memory_file(name: str) -> int:
    """
    Return a descriptor of an empty unnamed file: in memory, or else in a temporary directory.

    Raises:
        OSError: No file descriptor is free, or no directory supports it.
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
            require_no_shortage(error)
            refusal = error
    why = f"no memfd_create, and no temporary file in {', '.join(_TEMPORARY)}"
    raise OSError(errno.ENOSYS, why) from refusal


def close_all_but(keep: tuple[int, ...]) -> None:
    """Close all descriptors except those in `keep`, one by one."""
    try:
        listed = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        # Without /proc, try all possible numbers up to a reasonable maximum.
        listed = list(range(min(os.sysconf("SC_OPEN_MAX"), _MOST_DESCRIPTORS)))
    for descriptor in listed:
        if descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                pass  # not open, or the descriptor that `listdir` used


# --- what /proc says ------------------------------------------------------------


def boot_id() -> str | None:
    """
    Return the id of the machine's current boot; None: `/proc` does not provide it.

    Raises:
        OSError: No file descriptor or memory is free.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().decode("ascii").strip()
    except OSError as error:
        require_no_shortage(error)
        return None  # hidden, for example by systemd's `ProcSubset=pid`


def pid_namespace() -> int | None:
    """
    Return the inode of the pid namespace; None: `/proc` does not provide it.

    Raises:
        OSError: No memory is free.
    """
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError as error:
        require_no_shortage(error)
        return None


def largest_file() -> int | None:
    """
    Return the limit of `ulimit -f` in bytes; None: unlimited, or `/proc` does not provide it.

    Raises:
        OSError: No file descriptor or memory is free.
    """
    # Not by `resource`, which would be one more library to load for each supervisor.
    try:
        with open("/proc/self/limits", "rb") as limits:
            found = [line.split()[3] for line in limits if line.startswith(b"Max file size")]
    except OSError as error:
        require_no_shortage(error)
        return None
    return None if found in ([], [b"unlimited"]) else int(found[0])
