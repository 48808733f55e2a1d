"""
The job directory: the files through which hosts and a supervisor exchange data about one job.

All access uses descriptors of the directory, and never paths built from strings, so a link
cannot redirect it. Records are small texts with one `key=value` per line and a CRC at the
end. So an incomplete record is recognised, and an operator can read a record.
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
TAIL = "tail"  # output that has no newline yet
GONE = ".gone-"
STORE = "store"  # in the root, beside the job directories: the id of their database

#: Bytes of each of the two slots of `TAIL`: the longest unfinished lines of two streams, as
#: frames.
TAIL_SLOT = 2 * 68 * 1024

#: Digits of the largest possible file offset.
_OFFSET_DIGITS = 19

#: Spans (offset, length) of the `lock` file. A host that prepares a start holds the first
#: byte, the supervisor that runs the job the second. To check whether the job is alive, or to
#: remove it, a process takes both.
PREPARING = (0, 1)
RUNNING = (1, 1)
WHOLE = (0, 2)
#: Held by the manager in which the job occupies a slot. It is a separate byte, because a job can
#: live without a manager, and can die while its manager lives.
SLOT = (2, 1)
ALL = (0, 0)  # up to any length of the file, including the bytes of a run

#: What a byte on the FIFO means. Any byte means "read `stop` again". The last two are stop requests
#: themselves, for the case that no file can be written.
READ_STOP = b"!"
STOP_NOW = b"s"  # with the command's own grace
KILL_NOW = b"k"

#: The kernel's list of all locks of the machine.
LOCKS = "/proc/locks"
_LOCKS_READ = 65536  # bytes requested at once; the kernel returns at most a page
_LOCKS_AT_ONCE = 3072  # a list this short is surely one read: pages have 4096, lines under 200
_LOOKS_AT_LOCKS = 8

_FIONREAD = 0x541B  # from <asm-generic/ioctls.h>, which saves importing `termios`

# struct flock: type, whence, start, length, pid, padding to 32 bytes. This is the layout of
# Linux with 64-bit offsets, with which CPython is always built.
_FLOCK = struct.Struct("hhqqi4x")


# --- locks ------------------------------------------------------------------


def try_lock(descriptor: int, span: tuple[int, int]) -> bool:
    """
    Lock `span` of the lock file for the open file description of `descriptor`.

    An OFD lock belongs to the open file description, not to the process. It moves with the
    descriptor to another process, and is released when the last copy is closed.

    Returns:
        False: another open file description holds a byte of the span.
    """
    try:
        _lock_call(descriptor, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, span)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(descriptor: int, span: tuple[int, int]) -> None:
    """Unlock `span`, also for every copy of the descriptor in any process."""
    _lock_call(descriptor, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, span)


def is_locked(descriptor: int, span: tuple[int, int] = WHOLE) -> bool:
    """
    Tell whether a process prepares or runs the job, or holds `span`, without taking the lock.

    `descriptor` must be newly opened: for the holder's own open file description the kernel
    always reports that the span is free.
    """
    return _lock_call(descriptor, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, span) != fcntl.F_UNLCK


def _lock_call(descriptor: int, command: int, kind: int, span: tuple[int, int]) -> int:
    """Return the kind of lock that the kernel answers."""
    answer = fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, os.SEEK_SET, *span, 0))
    answered: int = _FLOCK.unpack(answer)[0]
    return answered


def open_lock(directory: int, *, create: bool = False) -> int:
    """Open the lock file; the new open file description holds no lock yet."""
    if create:
        return make_file(LOCK, os.O_RDWR, directory)
    return open_file(LOCK, os.O_RDWR, directory)


def spans_of(token: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """
    Return the two spans of the lock file that belong to the run `token` only.

    A host that prepares the run holds the first, its supervisor the second, in addition to
    `PREPARING` and `RUNNING`. They are beyond the end of the file. `is_run_locked` needs them.
    """
    first = SLOT[0] + 2 + 2 * int(token[:15], 16)
    return (first, 1), (first + 1, 1)


def is_run_locked(token: str) -> bool:
    """
    Tell whether any process of this machine prepares or supervises the run `token`.

    It reads the kernel's list of locks, which works even if the lock file was unlinked or its
    directory was moved. False also if there is no such list, or this user may not read it.

    A list longer than a page takes several reads, and a lock that is released between two of
    them may hide another one. So a long list is read several times.

    Raises:
        OSError: The list cannot be read now, for example because no descriptor is free.
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
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    return False


def mark_unstarted(lock: int, token: str) -> None:
    """
    Write into the lock file that the run `token` has not started. The caller prepares the run.

    This is the proof that a run has never started. A file that is missing, empty or of another
    run proves nothing. So if files are lost, a started run never looks like an unstarted one.
    """
    try_lock(lock, spans_of(token)[0])
    os.pwrite(lock, token.encode("ascii"), 0)


def mark_started(lock: int) -> None:
    """Replace the mark of `mark_unstarted` by `sign`. Call it before the command is started."""
    sign(lock)


def is_unstarted(directory: int, token: str) -> bool:
    """Tell whether the lock file proves that the run `token` has not started."""
    try:
        lock = open_lock(directory)
    except FileNotFoundError:
        return False
    try:
        return is_marked(lock, token)
    finally:
        os.close(lock)


def is_marked(lock: int, token: str) -> bool:
    """Tell whether the lock file has the mark of `mark_unstarted`."""
    return os.pread(lock, 64, 0) == token.encode("ascii")


def sign(lock: int) -> None:
    """
    Write the inode of a lock file into it, which distinguishes the file from a copy.

    Raises:
        OSError: It cannot be written, for lack of space for example.
    """
    signature = _signature(lock)
    # Write first: on a full disk, an emptied file could not be written again.
    os.pwrite(lock, signature, 0)
    os.ftruncate(lock, len(signature))


def is_signed(lock: int) -> bool:
    """Tell whether a lock file is the one that its owner made, and not a copy."""
    expected = _signature(lock)
    try:
        return os.pread(lock, len(expected) + 1, 0) == expected
    except OSError:
        return False  # for example, it is a FIFO


def _signature(lock: int) -> bytes:
    return b"%d\n" % os.fstat(lock).st_ino


# --- directories, and the files in them ---------------------------------------

#: The modes of everything that is created here, under any umask.
PRIVATE_DIRECTORY, PRIVATE_FILE = 0o700, 0o600


class NotPrivate(PermissionError):
    """A directory belongs to another user, or other users have permissions on it."""


class NotRegular(OSError):
    """A file of the job directory is really a directory, a FIFO, a socket or a device."""


def open_file(name: str, flags: int, directory: int) -> int:
    """
    Open a regular file of the job directory. Never blocks.

    Raises:
        FileNotFoundError: The file does not exist.
        NotRegular: It is a directory, a FIFO, a socket or a device.
        OSError: The system refuses; ELOOP: it is a link.
    """
    # Non-blocking, because opening a FIFO would wait for the other end.
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(name, flags, PRIVATE_FILE, dir_fd=directory)
    except OSError as error:
        # EISDIR: a directory, opened for writing. ENXIO: a socket, or a FIFO without a reader.
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise _not_regular(name, error.errno) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _not_regular(name, errno.EINVAL)
    # A umask may even exclude the owner, and the next open would fail.
    if flags & os.O_CREAT and mode & 0o777 != PRIVATE_FILE:
        try:
            os.fchmod(descriptor, PRIVATE_FILE)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def _not_regular(name: str, number: int) -> NotRegular:
    return NotRegular(number, f"{name!r} in it is not a regular file: remove it", name)


def make_file(name: str, flags: int, directory: int) -> int:
    """Open a file, and create it if needed, with mode 0600 under any umask."""
    return open_file(name, flags | os.O_CREAT, directory)


def open_directory(name: str, *, parent: int | None = None, create: bool = False) -> int:
    """
    Open a private directory and return its descriptor; `create`: create it if needed.

    Raises:
        FileNotFoundError: The directory does not exist.
        NotPrivate: It belongs to another user, or other users have permissions on it.
        NotADirectoryError: It is a link or a file.
    """
    if create:
        try:
            os.mkdir(name, PRIVATE_DIRECTORY, dir_fd=parent)
            facts = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if facts.st_mode & 0o777 != PRIVATE_DIRECTORY:  # a umask may even exclude the owner
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


def share(directory: int) -> None:
    """
    Take a shared BSD lock on a directory, until the last copy of its descriptor is closed.

    systemd-tmpfiles and some other cleaners skip a directory with such a lock. Nothing else
    depends on it.
    """
    try:
        fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pass  # the file system has no such locks, or another process has an exclusive one


def is_current(name: str, directory: int, lock: int, *, parent: int) -> bool:
    """Tell whether `directory` and `lock` are still the ones at their names, and not removed."""
    try:
        named = os.stat(name, dir_fd=parent, follow_symlinks=False)
        named_lock = os.stat(LOCK, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(directory)) and os.path.samestat(
        named_lock, os.fstat(lock)
    )


def make_control(directory: int) -> None:
    """Create the FIFO, if it does not exist."""
    try:
        os.mkfifo(CONTROL, PRIVATE_FILE, dir_fd=directory)
        facts = os.stat(CONTROL, dir_fd=directory, follow_symlinks=False)
        if facts.st_mode & 0o777 != PRIVATE_FILE:
            os.chmod(CONTROL, PRIVATE_FILE, dir_fd=directory)
    except FileExistsError:
        pass


def clear_control(directory: int) -> None:
    """Remove a file with the FIFO's name that is not a FIFO: it would block stop requests."""
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
    Open the FIFO; hosts and supervisors both use this.

    It is opened for reading *and* writing. With a read end only, poll would spin on POLLHUP
    while there is no writer; with a write end only, ENXIO or SIGPIPE could occur.

    Raises:
        FileNotFoundError: The FIFO does not exist.
        OSError: The system refuses, or it is not a FIFO. A regular file is always readable, so
            polling it would spin.
    """
    descriptor = os.open(
        CONTROL, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory
    )
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{CONTROL!r} in it is not a FIFO: remove it", CONTROL)
    return descriptor


def send_control(directory: int, byte: bytes = READ_STOP) -> None:
    """Write a byte to the FIFO; no-op if it is missing, or full (as good as written)."""
    try:
        control = open_control(directory)
    except FileNotFoundError:
        return
    try:
        os.write(control, byte)
    except BlockingIOError:
        pass
    finally:
        os.close(control)


def count_unread(directory: int) -> int | None:
    """Return the number of unread bytes on the FIFO; None: there is no FIFO."""
    try:
        control = open_control(directory)
    except FileNotFoundError:
        return None
    try:
        return count_bytes(control)
    finally:
        os.close(control)


def count_bytes(pipe: int) -> int:
    """Return the number of bytes that a pipe or FIFO contains now."""
    return int.from_bytes(fcntl.ioctl(pipe, _FIONREAD, b"\0\0\0\0"), "little")


def remove(name: str, directory: int, *, parent: int, host: object = None) -> None:
    """
    Remove the job directory. The caller has locked the whole lock file.

    The directory is renamed first. So under its name it is either complete or missing, and
    after a crash a partly removed directory is recognised by its new name.

    Args:
        host: The host that removes it, for `failpoints`.
    """
    gone = f"{GONE}{name}-{os.urandom(4).hex()}"
    os.rename(name, gone, src_dir_fd=parent, dst_dir_fd=parent)
    if failpoints.armed:
        failpoints.reach(failpoints.DIRECTORY_RENAMED, host)
    empty(directory)
    os.rmdir(gone, dir_fd=parent)


def empty(directory: int) -> None:
    """Remove everything in the directory, including directories, which jobcore never creates."""
    for entry in os.listdir(directory):
        try:
            try:
                os.unlink(entry, dir_fd=directory)
            except IsADirectoryError:
                _remove_tree(entry, directory)
        except FileNotFoundError:  # another process removes the same files
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
    """Return `record` as text: the version, one `key=value` per line, and a CRC at the end."""
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
    Return the record that was encoded; None: `data` is incomplete or damaged.

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
            text = value[1:-1]
            if "\\" in text:  # few have escapes, and the codec takes long
                text = text.encode("ascii").decode("unicode_escape")
            record[key] = text
        else:
            record[key] = int(value) if value else None
    version = record.pop("version")
    if isinstance(version, int) and version > PROTOCOL_VERSION:
        raise NewerProtocol(version)
    return record


def read_record(directory: int, name: str) -> dict[str, str | int | None] | None:
    """Return the record in file `name`; None: it is missing, incomplete or damaged."""
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
    Write the record under `name`, as `replace_file` does.

    Args:
        sync: Also fsync file and directory, so that it survives a power failure.
    """
    replace_file(directory, name, encode_record(record), sync=sync)
    if sync:
        os.fsync(directory)


def replace_file(directory: int, name: str, *parts: bytes, sync: bool) -> None:
    """
    Write a file atomically: readers see the old one or the complete new one.

    A directory with that name is renamed.

    Args:
        sync: Also fsync the file, so that no power failure keeps the name and loses the bytes.
    """
    # A random name, because two hosts may write the same stop request at once.
    temporary = f"{name}.{os.urandom(4).hex()}"
    descriptor = make_file(temporary, os.O_WRONLY | os.O_EXCL, directory)
    try:
        try:
            for part in parts:
                write_all(descriptor, part)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except IsADirectoryError:  # any other file is replaced
            _put_aside(name, directory)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        try:
            os.unlink(temporary, dir_fd=directory)
        except OSError:
            pass  # raise the first error
        raise


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, also after short writes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class ExitRecord:
    """
    The outcome of one run. It alone decides between stop, timeout and natural exit.

    Attributes:
        token: The run, 32 hex digits.
        reason: Why it ended, one of the lifecycle's reasons.
        wait_status: The kernel's wait status, undecoded; None: nothing was reaped.
        errno: Why the command could not start, else None.
        stage: The step at which it could not start (`fork`, `stdin`, `chdir`, `exec`, ...),
            else None.
        spool_end: Number of bytes of frames that were written.
        next_sequence: The number that the next line would have had.
        dropped: Number of lines that were dropped, for the output limit or a missing directory.
        spawned_ns, ended_ns: Wall time in nanoseconds; the second is the first plus
            `duration_ns`.
        duration_ns: Nanoseconds by the monotonic clock.
        cpu_us: CPU time of all reaped processes, in microseconds.
        max_rss: The largest resident set of any of its processes, in bytes.
        unreaped: Pids that could not be killed, else empty.
        left: Number of processes left when the command ended by itself; None: unknown.
        note: The last line of the log, if a host wrote the record for a dead supervisor,
            else None.
    """

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
    """Write the exit record atomically. The caller holds the lock, so it is the only writer."""
    fields = {**vars(record), "unreaped": " ".join(map(str, record.unreaped))}
    if record.left is None:
        del fields["left"]  # an older host refuses unknown fields
    write_record(directory, EXIT, fields, sync=sync)


def read_exit(directory: int, token: str) -> ExitRecord | None:
    """
    Return the exit record of the run `token`; None: missing, incomplete, or of another run.

    Raises:
        NewerProtocol: A newer jobcore wrote it.
    """
    fields = read_record(directory, EXIT)
    if fields is None or fields.get("token") != token:
        return None
    record = ExitRecord(token=token, reason=str(fields["reason"]))
    for name, value in fields.items():
        if name in vars(record):  # else a later jobcore has written it
            setattr(record, name, value)
    record.unreaped = tuple(int(pid) for pid in str(fields["unreaped"] or "").split())
    return record


# --- spool ------------------------------------------------------------------


def spool_offsets(directory: int) -> list[int]:
    """Return the offsets at which the spool files begin, in order."""
    return sorted(
        int(name[len(SPOOL) :])
        for name in os.listdir(directory)
        if name.startswith(SPOOL) and _is_number(name[len(SPOOL) :])
    )


def _is_number(text: str) -> bool:
    """Tell whether this is an offset as jobcore writes it. `isdigit` alone accepts other digits."""
    return text.isascii() and text.isdigit() and len(text) <= _OFFSET_DIGITS


def read_spool(directory: int, offset: int, size: int) -> bytes:
    """
    Return up to `size` bytes of frames from `offset` on, from one spool file.

    The result is empty if nothing is there yet, or if the file has been removed.
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
    """Return the offset after the last byte of the spool."""
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
        os.ftruncate(descriptor, end - begin)  # so that the call can be repeated
        raise
    finally:
        os.close(descriptor)


def drop_imported(directory: int, imported: int) -> None:
    """Unlink the spool files that end at or before `imported`, but never the newest one."""
    offsets = spool_offsets(directory)
    for begin, successor in pairwise(offsets):
        if successor <= imported:
            try:
                os.unlink(f"{SPOOL}{begin}", dir_fd=directory)
            except FileNotFoundError:
                pass


def read_tail(directory: int) -> tuple[bytes, bytes]:
    """Return the content of the two slots of `TAIL`. Each may be incomplete or outdated."""
    try:
        descriptor = open_file(TAIL, os.O_RDONLY, directory)
    except FileNotFoundError:
        return b"", b""
    try:
        return os.pread(descriptor, TAIL_SLOT, 0), os.pread(descriptor, TAIL_SLOT, TAIL_SLOT)
    finally:
        os.close(descriptor)
