"""
The files through which hosts and a supervisor exchange what concerns one job.

Everything goes through descriptors of the directory, never through paths put
together from strings, so nobody can slip a link under it. Records are small
texts, `key=value` a line, closed by a CRC, so that a torn one counts as none
and an operator can read a whole one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import zlib
from itertools import pairwise

from jobcore.embedding import failpoints
from jobcore.supervisor import PROTOCOL_VERSION, NewerProtocol

LOCK = "lock"
CONTROL = "ctl"
STOP = "stop"
RUN = "run"
EXIT = "exit"
SPOOL = "spool."
TAIL = "tail"  # what has no newline yet
GONE = ".gone-"
STORE = "store"  # beside the job directories: the id of the database that they belong to

#: Bytes of each of the two slots of `TAIL`: the longest unfinished line of two streams, as frames.
TAIL_SLOT = 2 * 68 * 1024

#: Digits of the largest offset that a file can have.
_OFFSET_DIGITS = 19

#: Bytes of the `lock` file. A host that prepares a start holds the first, the
#: supervisor that runs the job the second; everyone who wants to know whether
#: the job is alive, or to remove it, takes both.
PREPARING = (0, 1)
RUNNING = (1, 1)
WHOLE = (0, 2)
#: The manager of which the job takes a slot holds this byte. It is apart from the
#: others: a job lives without a manager, and dies though its manager lives.
SLOT = (2, 1)
ALL = (0, 0)  # to the end of the file, however long it grows: those of a run, too

#: Letters on the FIFO. Any byte means "read `stop` again"; these two are the
#: wish itself, for when no file can be written.
DOORBELL = b"!"
STOP_NOW = b"s"  # with the command's own grace
KILL_NOW = b"k"

#: Where the kernel lists all locks of the machine.
LOCKS = "/proc/locks"
_LOCKS_READ = 65536  # bytes asked for at once; the kernel gives no more than a page
_LOCKS_AT_ONCE = 3072  # bytes that surely are one read: a page is 4096 or more, a line under 200
_LOOKS_AT_LOCKS = 8

_FIONREAD = 0x541B  # of <asm-generic/ioctls.h>, for the reason in `pipes`

# struct flock: type, whence, start, length, pid, padding to 32 bytes. The
# layout of Linux with 64-bit offsets, which CPython is always built with.
_FLOCK = struct.Struct("hhqqi4x")


# --- locks ------------------------------------------------------------------


def try_lock(descriptor: int, span: tuple[int, int]) -> bool:
    """
    Take `span` of the lock file for the open file description behind `descriptor`.

    An OFD lock belongs to the description, not to the process: it travels with
    the descriptor to another process, and it is gone exactly when the last copy
    is closed. Returns False when somebody else holds any byte of the span.
    """
    try:
        fcntl.fcntl(
            descriptor,
            fcntl.F_OFD_SETLK,
            _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, span[0], span[1], 0),
        )
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(descriptor: int, span: tuple[int, int]) -> None:
    """Give `span` back, for every copy of the descriptor that any process has."""
    fcntl.fcntl(
        descriptor,
        fcntl.F_OFD_SETLK,
        _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, span[0], span[1], 0),
    )


def is_locked(descriptor: int, span: tuple[int, int] = WHOLE) -> bool:
    """
    Tell whether anybody prepares or runs the job, or holds `span`, without taking the lock.

    `descriptor` must be freshly opened: through the holder's own description
    the kernel always answers "free".
    """
    answer = fcntl.fcntl(
        descriptor,
        fcntl.F_OFD_GETLK,
        _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, span[0], span[1], 0),
    )
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def open_lock(directory: int, *, create: bool = False) -> int:
    """Open the lock file afresh: a new description, that holds nothing yet."""
    if create:
        return make_file(LOCK, os.O_RDWR, directory)
    return open_file(LOCK, os.O_RDWR, directory)


def spans_of(token: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """
    Return the bytes of the lock file that are those of the run `token` alone.

    A host that prepares it holds the first, its supervisor the second, beside those
    of every run. The file has no such bytes: they are there for `is_run_locked`.
    """
    first = SLOT[0] + 2 + 2 * int(token[:15], 16)
    return (first, 1), (first + 1, 1)


def is_run_locked(token: str) -> bool:
    """
    Tell whether any process of this machine prepares or supervises the run `token`.

    The kernel's list of locks says so where no path leads to the lock file: it was
    unlinked, or its directory moved. False where there is no such list.

    A list of more than a page comes in several reads, and a lock that is released
    between two of them may hide another one. So what is not found is looked for again.
    """
    bytes_ = {str(span[0]).encode() for span in spans_of(token)}
    try:
        for _ in range(_LOOKS_AT_LOCKS):
            with open(LOCKS, "rb", buffering=0) as file:
                reads = [*iter(lambda: file.read(_LOCKS_READ), b"")]
            # 1: OFDLCK ADVISORY  WRITE -1 fe:00:1234 17 17
            if any(
                b"OFDLCK" in line and line.split()[-1] in bytes_
                for line in b"".join(reads).splitlines()
            ):
                return True
            if len(reads) <= 1 and sum(map(len, reads)) < _LOCKS_AT_ONCE:
                break
    except OSError:
        pass
    return False


def mark_unstarted(lock: int, token: str) -> None:
    """
    Write into the lock file that the run `token` has not started. The caller prepares it.

    `never_started` needs this proof: a file that is missing, empty or of another run
    proves nothing, so no loss of files makes a run that started look like one that did not.
    """
    try_lock(lock, spans_of(token)[0])
    os.pwrite(lock, token.encode("ascii"), 0)


def mark_started(lock: int) -> None:
    """Take that back, before the command is started."""
    os.ftruncate(lock, 0)


def is_unstarted(directory: int, token: str) -> bool:
    """Tell whether the lock file says that the run `token` has not started."""
    try:
        lock = open_lock(directory)
    except FileNotFoundError:
        return False
    try:
        return os.pread(lock, 64, 0) == token.encode("ascii")
    finally:
        os.close(lock)


# --- directories, and the files in them ---------------------------------------

#: Of all that is made here, and what a umask may have left of it.
PRIVATE_DIRECTORY, PRIVATE_FILE = 0o700, 0o600


class NotPrivate(PermissionError):
    """A directory belongs to somebody else, or others may enter it."""


class NotRegular(OSError):
    """Where a file of the job directory should be is a directory, a FIFO, a socket or a device."""


def open_file(name: str, flags: int, directory: int) -> int:
    """
    Open a file of the job directory; what is no file is refused, and never waited for.

    Raises:
        FileNotFoundError: It is not there.
        NotRegular: It is a directory, a FIFO, a socket or a device.
        OSError: The system refuses; a link is ELOOP.
    """
    # Non-blocking: to open a FIFO would wait for its other end.
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(name, flags, PRIVATE_FILE, dir_fd=directory)
    except OSError as error:
        # For writing, a directory is EISDIR; a socket, and a FIFO without a reader, are ENXIO.
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise _not_regular(name, error.errno) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(name, errno.EINVAL)
    return descriptor


def _not_regular(name: str, number: int) -> NotRegular:
    return NotRegular(number, f"{name!r} in it is not a regular file: remove it", name)


def make_file(name: str, flags: int, directory: int) -> int:
    """Open a file, mode 0600 under any umask, making it where it is not there."""
    descriptor = open_file(name, flags | os.O_CREAT, directory)
    try:
        # A umask may keep even its owner out, for whom the next open would fail.
        if os.fstat(descriptor).st_mode & 0o777 != PRIVATE_FILE:
            os.fchmod(descriptor, PRIVATE_FILE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_directory(name: str, *, parent: int | None = None, create: bool = False) -> int:
    """
    Open a private directory, making it first if `create`.

    Raises:
        FileNotFoundError: It is not there.
        NotPrivate: It belongs to somebody else, or others may enter it.
        NotADirectoryError: It is a link or a file.
    """
    if create:
        try:
            os.mkdir(name, PRIVATE_DIRECTORY, dir_fd=parent)
            facts = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if facts.st_mode & 0o777 != PRIVATE_DIRECTORY:  # a umask that keeps its owner out
                os.chmod(name, PRIVATE_DIRECTORY, dir_fd=parent)
        except FileExistsError:
            pass
    descriptor = os.open(
        name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
    )
    facts = os.fstat(descriptor)
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        os.close(descriptor)
        why = (
            f"not a private directory of this user, but user {facts.st_uid}'s, mode "
            f"{facts.st_mode & 0o777:o}: it has to be user {os.geteuid()}'s, mode 700"
        )
        raise NotPrivate(errno.EPERM, why, name)
    return descriptor


def open_parent(directory: int) -> int:
    """Open the directory that holds an open directory."""
    return os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)


def share(directory: int) -> None:
    """
    Hold a shared BSD lock on a directory, until the last copy of its descriptor is closed.

    systemd-tmpfiles and other cleaners pass over a directory that is locked so. Nothing
    relies on it.
    """
    try:
        fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pass  # a file system without such locks, or somebody else's lock


def is_current(name: str, directory: int, lock: int, *, parent: int) -> bool:
    """Tell whether `directory` and `lock` still are what the names lead to: nobody removed them."""
    try:
        named = os.stat(name, dir_fd=parent, follow_symlinks=False)
        named_lock = os.stat(LOCK, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    opened, opened_lock = os.fstat(directory), os.fstat(lock)
    return (named.st_dev, named.st_ino, named_lock.st_dev, named_lock.st_ino) == (
        opened.st_dev,
        opened.st_ino,
        opened_lock.st_dev,
        opened_lock.st_ino,
    )


def make_control(directory: int) -> None:
    """Make the FIFO; that it is there already is fine."""
    try:
        os.mkfifo(CONTROL, PRIVATE_FILE, dir_fd=directory)
        facts = os.stat(CONTROL, dir_fd=directory, follow_symlinks=False)
        if facts.st_mode & 0o777 != PRIVATE_FILE:
            os.chmod(CONTROL, PRIVATE_FILE, dir_fd=directory)
    except FileExistsError:
        pass


def clear_control(directory: int) -> None:
    """Remove a file that has the FIFO's name but is no FIFO: no stop is heard through it."""
    try:
        facts = os.stat(CONTROL, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(facts.st_mode):
        _put_aside(CONTROL, directory)
    elif not stat.S_ISFIFO(facts.st_mode):
        os.unlink(CONTROL, dir_fd=directory)


def _put_aside(name: str, directory: int) -> None:
    aside = f"{name}.{os.urandom(4).hex()}"
    os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)


def open_control(directory: int) -> int:
    """
    Open the FIFO, from either side.

    For reading *and* writing: a reader alone would spin on POLLHUP whenever no
    writer is there, a writer alone could meet ENXIO or SIGPIPE.

    Raises:
        FileNotFoundError: It is not there.
        OSError: The system refuses, or it is not a FIFO: a regular file is always readable,
            and whoever polls it would spin.
    """
    descriptor = os.open(
        CONTROL, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory
    )
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{CONTROL!r} in it is not a FIFO: remove it", CONTROL)
    return descriptor


def ring(directory: int, letter: bytes = DOORBELL) -> None:
    """Wake the supervisor; a full FIFO has woken it already, a missing one has nobody to wake."""
    try:
        control = open_control(directory)
    except FileNotFoundError:
        return
    try:
        os.write(control, letter)
    except BlockingIOError:
        pass
    finally:
        os.close(control)


def count_unread(directory: int) -> int | None:
    """Return how many letters on the FIFO were not read; None: there is no FIFO."""
    try:
        control = open_control(directory)
    except FileNotFoundError:
        return None
    try:
        return int.from_bytes(fcntl.ioctl(control, _FIONREAD, b"\0\0\0\0"), "little")
    finally:
        os.close(control)


def remove(name: str, directory: int, *, parent: int, host: object = None) -> None:
    """
    Remove the directory. The caller holds all of its lock.

    It is renamed first: whoever comes by name finds it whole or not at all, and
    what a crash leaves half removed is known by its name.

    Args:
        host: Who removes it, for `failpoints`.
    """
    gone = f"{GONE}{name}-{os.urandom(4).hex()}"
    os.rename(name, gone, src_dir_fd=parent, dst_dir_fd=parent)
    failpoints.reach(failpoints.DIRECTORY_RENAMED, host)
    empty(directory)
    os.rmdir(gone, dir_fd=parent)


def empty(directory: int) -> None:
    """Remove everything in the directory; that it holds directories is not jobcore's doing."""
    for entry in os.listdir(directory):
        try:
            try:
                os.unlink(entry, dir_fd=directory)
            except IsADirectoryError:
                _remove_tree(entry, directory)
        except FileNotFoundError:  # another process sweeps the same leftovers
            pass


def _remove_tree(name: str, parent: int) -> None:
    descriptor = os.open(
        name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
    )
    try:
        empty(descriptor)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=parent)


# --- records ----------------------------------------------------------------


def encode_record(record: dict[str, str | int | None]) -> bytes:
    """Return `record` as text, one `key=value` a line, with version before and CRC behind it."""
    lines = [f"version={PROTOCOL_VERSION}\n"]
    for key, value in record.items():
        if value is None:
            lines.append(f"{key}=\n")
        elif isinstance(value, int):
            lines.append(f"{key}={value}\n")
        else:
            escaped = value.encode("unicode_escape").decode("ascii")
            lines.append(f"{key}='{escaped}'\n")
    body = "".join(lines).encode("ascii")
    return body + b"crc=%08x\n" % zlib.crc32(body)


def decode_record(data: bytes) -> dict[str, str | int | None] | None:
    """
    Return what `encode_record` was given, or None where `data` is torn or damaged.

    Raises:
        NewerProtocol: A newer jobcore wrote it.
    """
    body, mark, crc = data.rpartition(b"crc=")
    if not mark or crc != b"%08x\n" % zlib.crc32(body):
        return None
    record: dict[str, str | int | None] = {}
    for line in body.decode("ascii").splitlines():
        key, _, value = line.partition("=")
        if value.startswith("'"):
            record[key] = value[1:-1].encode("ascii").decode("unicode_escape")
        else:
            record[key] = int(value) if value else None
    version = record.pop("version")
    if isinstance(version, int) and version > PROTOCOL_VERSION:
        raise NewerProtocol(version)
    return record


def read_record(directory: int, name: str) -> dict[str, str | int | None] | None:
    """Return the record in file `name`, or None where it is missing, torn or damaged."""
    try:
        descriptor = open_file(name, os.O_RDONLY, directory)
    except FileNotFoundError:
        return None
    try:
        data = b""
        while chunk := os.read(descriptor, 65536):
            data += chunk
    finally:
        os.close(descriptor)
    return decode_record(data)


def write_record(
    directory: int, name: str, record: dict[str, str | int | None], *, sync: bool = False
) -> None:
    """
    Put the record under `name` in one step: readers find the old one, or all of the new one.

    A directory that has the name is put aside.

    Args:
        sync: Also make it survive a power failure before returning.
    """
    # A random name, not a fixed one: two hosts may write the same wish at once.
    temporary = f"{name}.{os.urandom(4).hex()}"
    descriptor = make_file(temporary, os.O_WRONLY | os.O_EXCL, directory)
    try:
        try:
            write_all(descriptor, encode_record(record))
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except IsADirectoryError:  # any other file is replaced
            _put_aside(name, directory)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        try:
            os.unlink(temporary, dir_fd=directory)
        except OSError:
            pass  # the first error is the one to tell
        raise
    if sync:
        os.fsync(directory)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; a write may take less than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class ExitRecord:
    """
    What became of one run: the one referee of stop, time-out and natural exit.

    Attributes:
        token: The run it speaks of, 32 hex digits.
        reason: Why it ended, one of the lifecycle's reasons.
        wait_status: As the kernel gave it, undecoded; None where nothing was reaped.
        errno: Why a command could not start, else None.
        stage: At which step it could not start (`fork`, `stdin`, `chdir`, `exec`, ...), else None.
        spool_end: How many bytes of frames were written.
        next_sequence: The number that the next line would have had.
        dropped: Lines beyond the output limit.
        spawned_ns, ended_ns: Wall time, the second one the first plus `duration_ns`.
        duration_ns: By the monotonic clock.
        cpu_us: CPU time of the command and what it waited for, microseconds.
        max_rss: The largest resident set of any of its processes, bytes.
        unreaped: Pids that could not be killed, else empty.
        left: How many processes the command had left when it ended by itself; None: nobody saw.
        note: The last line of the log, of a host that wrote the record for a supervisor
            that is dead, else None.
    """

    __slots__ = (
        "cpu_us",
        "dropped",
        "duration_ns",
        "ended_ns",
        "errno",
        "left",
        "max_rss",
        "next_sequence",
        "note",
        "reason",
        "spawned_ns",
        "spool_end",
        "stage",
        "token",
        "unreaped",
        "wait_status",
    )

    def __init__(
        self,
        *,
        token: str,
        reason: str,
        wait_status: int | None = None,
        errno: int | None = None,
        stage: str | None = None,
        spool_end: int = 0,
        next_sequence: int = 0,
        dropped: int = 0,
        spawned_ns: int | None = None,
        ended_ns: int | None = None,
        duration_ns: int | None = None,
        cpu_us: int | None = None,
        max_rss: int | None = None,
        unreaped: tuple[int, ...] = (),
        left: int | None = None,
        note: str | None = None,
    ) -> None:
        self.token = token
        self.reason = reason
        self.wait_status = wait_status
        self.errno = errno
        self.stage = stage
        self.spool_end = spool_end
        self.next_sequence = next_sequence
        self.dropped = dropped
        self.spawned_ns = spawned_ns
        self.ended_ns = ended_ns
        self.duration_ns = duration_ns
        self.cpu_us = cpu_us
        self.max_rss = max_rss
        self.unreaped = unreaped
        self.left = left
        self.note = note


def write_exit(directory: int, record: ExitRecord, *, sync: bool = False) -> None:
    """Write the verdict, in one step. The caller holds the lock: there is one writer at a time."""
    fields: dict[str, str | int | None] = {
        name: getattr(record, name) for name in ExitRecord.__slots__ if name != "unreaped"
    }
    fields["unreaped"] = " ".join(map(str, record.unreaped))
    if record.left is None:
        del fields["left"]  # an older host refuses a field that it does not know
    write_record(directory, EXIT, fields, sync=sync)


def read_exit(directory: int, token: str) -> ExitRecord | None:
    """
    Return the verdict on the run `token`; a torn one, or one of another run, counts as none.

    Raises:
        NewerProtocol: A newer jobcore wrote it.
    """
    fields = read_record(directory, EXIT)
    if fields is None or fields.get("token") != token:
        return None
    unreaped = str(fields.pop("unreaped") or "")
    # A later jobcore may say more.
    known = {name: value for name, value in fields.items() if name in ExitRecord.__slots__}
    return ExitRecord(
        unreaped=tuple(int(pid) for pid in unreaped.split()),
        **known,  # type: ignore[arg-type]  # the CRC says these are the fields that were written
    )


# --- spool ------------------------------------------------------------------


def spool_offsets(directory: int) -> list[int]:
    """Return the offsets at which the spool files there begin, in order."""
    return sorted(
        int(name[len(SPOOL) :])
        for name in os.listdir(directory)
        if name.startswith(SPOOL) and _is_number(name[len(SPOOL) :])
    )


def _is_number(text: str) -> bool:
    """Tell whether this is an offset as jobcore writes it; `isdigit` takes other digits, too."""
    return text.isascii() and text.isdigit() and len(text) <= _OFFSET_DIGITS


def read_spool(directory: int, offset: int, size: int) -> bytes:
    """
    Return up to `size` bytes of frames from `offset` on, out of one file.

    Empty where nothing is there yet, or where the file that held it is gone.
    """
    begin = max((start for start in spool_offsets(directory) if start <= offset), default=None)
    if begin is None:
        return b""
    try:
        descriptor = open_file(f"{SPOOL}{begin}", os.O_RDONLY, directory)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(descriptor, size, offset - begin)
    finally:
        os.close(descriptor)


def spool_end(directory: int) -> int:
    """Return the offset behind the last byte of the spool."""
    offsets = spool_offsets(directory)
    if not offsets:
        return 0
    try:
        size = os.stat(f"{SPOOL}{offsets[-1]}", dir_fd=directory, follow_symlinks=False).st_size
    except FileNotFoundError:
        return offsets[-1]
    return offsets[-1] + size


def append_spool(directory: int, end: int, data: bytes) -> None:
    """
    Append frames to the spool of a run whose supervisor is dead. The caller holds the lock.

    Args:
        end: The offset of the first byte.
    """
    offsets = spool_offsets(directory)
    begin = offsets[-1] if offsets and spool_end(directory) == end else end
    descriptor = make_file(f"{SPOOL}{begin}", os.O_WRONLY | os.O_APPEND, directory)
    try:
        write_all(descriptor, data)
    except OSError:
        os.ftruncate(descriptor, end - begin)  # for whoever tries again
        raise
    finally:
        os.close(descriptor)


def drop_imported(directory: int, imported: int) -> None:
    """Unlink the spool files that end at or before `imported`, never the one still written to."""
    offsets = spool_offsets(directory)
    for begin, successor in pairwise(offsets):
        if successor <= imported:
            try:
                os.unlink(f"{SPOOL}{begin}", dir_fd=directory)
            except FileNotFoundError:
                pass


def read_tail(directory: int) -> tuple[bytes, bytes]:
    """Return what is in the two slots of `TAIL`; each may be torn, or older than the other."""
    try:
        descriptor = open_file(TAIL, os.O_RDONLY, directory)
    except FileNotFoundError:
        return b"", b""
    try:
        return os.pread(descriptor, TAIL_SLOT, 0), os.pread(descriptor, TAIL_SLOT, TAIL_SLOT)
    finally:
        os.close(descriptor)
