"""Checks where a database may live, and creates its private files."""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from jobcore.errors import (
    DatabaseFull,
    ReadOnlyDatabase,
    StoreError,
    StoreMismatch,
    UnsupportedFileSystem,
)
from jobcore.supervisor import job_directory, system_calls

#: SQLite's WAL needs shared memory and reliable locks between all users of the file.
#: Clients of these file systems have neither.
_SHARED_BETWEEN_MACHINES = frozenset(
    {"9p", "afs", "ceph", "cifs", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
     "smb3", "smbfs", "vboxsf", "virtiofs"}
)  # fmt: skip

#: File systems of the kernel. Their entries are no stored files; writing to some does harm.
_NO_STORAGE = frozenset(
    {"binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "efivarfs",
     "mqueue", "proc", "pstore", "securityfs", "sysfs", "tracefs"}
)  # fmt: skip

MOUNTINFO = "/proc/self/mountinfo"
_ESCAPE = re.compile(r"\\([0-7]{3})")  # mountinfo writes a space as \040

STORE = job_directory.STORE
_UNUSED_STORE_ID = re.compile(rf"{STORE}\.[0-9a-f]{{32}}")


def file_system_of(path: str, mountinfo: str) -> str:
    """
    Return the type of the file system that `path` is on; "": the table does not show it.

    Args:
        path: An absolute path without links.
        mountinfo: The text of `/proc/self/mountinfo`; empty where there is no `/proc`.
    """
    found, longest = "", -1
    for mount_point, kind in _mounts(mountinfo):
        inside = path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
        # A later mount over the same point hides the earlier one.
        if inside and len(mount_point) >= longest:
            found, longest = kind, len(mount_point)
    return found


def is_mount_point(path: str, mountinfo: str) -> bool:
    """Tell whether something is mounted at `path` itself. Arguments as for `file_system_of`."""
    return any(path == point for point, _ in _mounts(mountinfo))


def _mounts(mountinfo: str) -> Iterator[tuple[str, str]]:
    """Yield each mount point, with the type of the file system there."""
    # Not `splitlines`: the kernel escapes space, tab and newline, but no other white space.
    for line in filter(None, mountinfo.rstrip("\n").split("\n")):
        fields = line.split(" ")
        point = _ESCAPE.sub(lambda found: chr(int(found[1], 8)), fields[4])
        yield point, fields[fields.index("-") + 1]


def kind_of(path: str) -> str:
    """Return the type of the file system that `path`, absolute and without links, is on."""
    return file_system_of(path, _read_mountinfo())


def _read_mountinfo() -> str:
    try:
        return os.fsdecode(Path(MOUNTINFO).read_bytes())
    except FileNotFoundError:
        return ""  # no /proc: mounts are unknown


def require_local(path: str) -> None:
    """
    Refuse a path on a file system on which SQLite cannot work safely.

    Raises:
        UnsupportedFileSystem: The file system may be shared between machines, or is one of
            the kernel's own, or the file itself is a mount point.
    """
    mountinfo = _read_mountinfo()
    if is_mount_point(path, mountinfo):
        # As with `docker -v jobs.db:/data/jobs.db`. The file has a write-ahead log under each
        # of its two names, and commits in one of them are lost.
        raise UnsupportedFileSystem(f"{path} is mounted by itself: mount its directory instead")
    kind = file_system_of(path, mountinfo)
    if kind in _NO_STORAGE:
        raise UnsupportedFileSystem(f"{path} is on a {kind} file system, which stores no files")
    if kind in _SHARED_BETWEEN_MACHINES or kind.startswith("fuse."):
        raise UnsupportedFileSystem(
            f"{path} is on a {kind} file system, where SQLite's locks and shared memory do not "
            "hold; put the database on a local disk"
        )


def repair_command(database: str) -> str:
    """Return the command that makes a database usable whose job directories are gone."""
    import shlex  # noqa: PLC0415 - for an error text alone

    return f"jobcore --db {shlex.quote(database)} doctor --repair"


def closed_by_others(database: str) -> StoreError:
    """Return the error for a process whose other code closed descriptors by their numbers."""
    return StoreError(
        f"{database}: other code of this process closed jobcore's file descriptors, as "
        "os.closerange does; restart the process, and open the manager after that call"
    )


def typed(what: str, error: OSError) -> StoreError:
    """Return jobcore's exception for an OSError; `what` begins its text."""
    kind = StoreError
    if isinstance(error, job_directory.NotPrivate) or error.errno in (errno.ELOOP, errno.ENOTDIR):
        kind = StoreMismatch  # jobcore did not create it: another user did, or it is a link
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        kind = DatabaseFull
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        kind = ReadOnlyDatabase
    return kind(f"{what}: {error.strerror or error}", error.errno)


def make_database_file(path: str) -> None:
    """
    Create the empty file with mode 0600 under any umask; leave an existing file unchanged.

    It uses `mknod`, which opens no descriptor. Closing a descriptor of a database file would
    drop the locks of all SQLite connections that this process has to it.

    Raises:
        StoreError: The file cannot be created.
    """
    try:
        os.mknod(path, job_directory.PRIVATE_FILE | stat.S_IFREG)
        if (
            os.stat(path).st_mode & 0o777 != job_directory.PRIVATE_FILE
        ):  # a umask that keeps its owner out
            os.chmod(path, job_directory.PRIVATE_FILE)
    except FileExistsError:
        pass
    except OSError as error:
        raise typed(f"cannot make {path}", error) from error


def open_root(database: str, *, create: bool) -> int:
    """
    Open the root of the job directories, `<database>.jobs`, and return its descriptor.

    Raises:
        StoreMismatch: It is a link, or is not private to this user.
        FileNotFoundError: It does not exist, and `create` is False.
    """
    path = database + ".jobs"
    try:
        return job_directory.open_directory(path, create=create)
    except NotADirectoryError as error:  # O_DIRECTORY raises this for a link, too
        what = "a link" if os.path.islink(path) else "not a directory"
        raise StoreMismatch(
            f"{path} is {what}: move it away, or put back the directory that was there",
            error.errno,
        ) from error
    except PermissionError as error:
        raise StoreMismatch(f"{path}: {error.strerror or error}", error.errno) from error


def read_store_id(root: int, database: str) -> str | None:
    """
    Return the store id in the root; None: there is none yet.

    Raises:
        StoreMismatch: The file for the id is not a file, or contains no id.
    """
    try:
        descriptor = job_directory.open_file(STORE, os.O_RDONLY, root)
        try:
            found = os.read(descriptor, 64)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        if isinstance(error, job_directory.NotRegular) or error.errno == errno.ELOOP:
            raise _no_store_id(database) from error
        raise typed(f"{database}.jobs/{STORE}", error) from error
    if not re.fullmatch(rb"[0-9a-f]{32}\s*", found):
        raise _no_store_id(database)
    return found.decode("ascii").strip()


def _no_store_id(database: str) -> StoreMismatch:
    return StoreMismatch(
        f"{database}.jobs/{STORE} contains no store id: restore it, or move it away and run "
        f"`{repair_command(database)}`"
    )


def make_store_id(root: int, database: str) -> str:
    """
    Write a store id into the root, durably, and return the id that is there afterwards.

    Several processes may do this at once. The first link wins, and all return its id.
    """
    temporary = f"{STORE}.{uuid.uuid4().hex}"
    descriptor = job_directory.make_file(temporary, os.O_WRONLY | os.O_EXCL, root)
    try:
        os.write(descriptor, uuid.uuid4().hex.encode("ascii") + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(temporary, STORE, src_dir_fd=root, dst_dir_fd=root)
    except (FileExistsError, FileNotFoundError):
        pass  # another id is there already, or a sweep removed our temporary file
    _unlink(temporary, root)
    os.fsync(root)
    parent = os.path.dirname(database)
    directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # the root's own name
    finally:
        os.close(directory)
    store_id = read_store_id(root, database)
    if store_id is None:
        raise StoreMismatch("the store id was removed while it was being created")
    return store_id


def remove_unused_store_ids(root: int, names: Iterable[str]) -> None:
    """Remove temporary files of hosts that were killed while they created the store id."""
    for name in names:
        if _UNUSED_STORE_ID.fullmatch(name):
            _unlink(name, root)


def _unlink(name: str, root: int) -> None:
    try:
        os.unlink(name, dir_fd=root)
    except FileNotFoundError:
        pass  # another process removed it first


def boot_id() -> str | None:
    """
    Return the id of the machine's current boot; None: `/proc` does not provide it.

    Processes that were started under another boot id are certainly gone.

    Raises:
        StoreError: `/proc` cannot be read, because no file descriptor is free.
    """
    try:
        return system_calls.boot_id()
    except OSError as error:
        raise StoreError(f"the boot id: {error.strerror or error}", error.errno) from error
