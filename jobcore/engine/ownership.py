"""
Shows that a process is alive, by a kernel lock.

A process that owns jobs holds the lock on one file in the directory of job directories, and its
jobs name that file. The kernel frees the lock when the process ends, however it ends. The name
also identifies the process. That decides when the lock cannot: if the file was removed or
replaced, or if C code forked a child that inherited the descriptor.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from jobcore.embedding.locks import GATE, ForkAware
from jobcore.embedding.worker import handed_over
from jobcore.engine.job_directories import Directories
from jobcore.errors import DatabaseCorrupt
from jobcore.storage import filesystem
from jobcore.supervisor import job_directory, pids, system_calls

#: The prefix of the names of these files.
PREFIX = ".owner-"
#: Stands for the boot id in the name of a process that could not read it.
_NO_BOOT = "0" * 32


class _Process(NamedTuple):
    """
    A process, as the name of its lock file describes it.

    `pid` is valid in `boot` and `namespace`. `started` distinguishes it from a later process
    with the same pid; 0 if the system does not provide it. `device` and `root` identify the
    directory of the lock file: a copy on the same file system has another inode, and a copy on
    another file system may have the same inode.
    """

    boot: str
    namespace: int
    pid: int
    started: int
    device: int
    root: int

    @classmethod
    def this(cls, root: int) -> _Process:
        """
        Return this process, for lock files in the open directory `root`.

        Raises:
            StoreError, OSError: /proc cannot be read now, because no descriptor is free.
        """
        boot = (filesystem.boot_id() or _NO_BOOT).replace("-", "")
        namespace = system_calls.pid_namespace() or 0
        return cls(boot, namespace, os.getpid(), _start_of(os.getpid()) or 0, *_identity(root))

    @classmethod
    def of(cls, name: str) -> _Process | None:
        """Return the process that an owner's name describes; None if it describes none."""
        try:
            boot, *numbers, rest = name.split(".")
            int(boot + rest, 16)  # so that no name is a path
            namespace, pid, started, device, root = map(int, numbers)
            return cls(boot, namespace, pid, started, device, root)
        except (AttributeError, TypeError, ValueError):
            return None  # a damaged file may hold a number or bytes

    def is_in(self, here: _Process) -> bool:
        """Tell whether its lock file is in the directory of `here`, which is this process."""
        # Compare devices only within one boot: their numbers may change after that.
        return self.root == here.root and (self.boot != here.boot or self.device == here.device)

    def lives(self, here: _Process) -> bool | None:
        """Tell whether it is alive; None if this process, `here`, cannot know that."""
        if _NO_BOOT in (self.boot, here.boot):
            return None
        if self.boot != here.boot:
            return False
        if not self.started or not here.started or self.namespace != here.namespace:
            return None
        started = _start_of(self.pid)
        return None if started is None else started == self.started


def _start_of(pid: int) -> int | None:
    """
    Return when a process started, in ticks since the boot.

    0: it does not exist. None: /proc does not show it, for example because /proc is mounted
    with `hidepid` and the process belongs to another user.

    Raises:
        OSError: No descriptor is free to read it.
    """
    if pids.level() != 1:
        return None  # in that /proc, this pid belongs to another process
    try:
        facts = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError as error:
        if _is_gone(pid):
            return 0
        system_calls.require_no_shortage(error)
        return None
    fields = facts.rpartition(b")")[2].split()  # the command name before it may hold anything
    state, started = fields[0], fields[19]
    return 0 if state in b"ZX" else int(started)


def _is_gone(pid: int) -> bool:
    """Tell whether no process has this pid. The kernel knows that without /proc."""
    try:
        if pid > 0:  # 0 and below are process groups
            os.kill(pid, 0)
            return False
    except PermissionError:
        return False  # it belongs to another user
    except (ProcessLookupError, OverflowError):
        pass
    return True


class _Lock:
    """A lock that this process holds, and the `Ownership` objects that rely on it."""

    __slots__ = ("descriptor", "identity", "name", "pid", "users")

    def __init__(self, root: int) -> None:
        process = _Process.this(root)
        self.name = ".".join([*map(str, process), uuid4().hex[:8]])
        self.pid = process.pid
        self.descriptor = -1
        self.identity = (0, 0)  # of the file, by device and inode
        self.users: set[int] = set()


class _Locks(ForkAware):
    """The locks of this process, by device and inode of the directory of each."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], _Lock] = {}

    def __bool__(self) -> bool:
        """Tell whether there is any lock."""
        return bool(self._held)

    def after_fork_in_child(self) -> None:
        """Forget all of them: they are the parent's, and the gate has closed the descriptors."""
        self._held.clear()

    def find(self, root: int) -> _Lock | None:
        """Return the lock of this process in a directory."""
        lock = self._held.get(_identity(root))
        return lock if lock is not None and lock.pid == os.getpid() else None

    def take(self, root: int) -> _Lock:
        """Return the lock of this process in a directory, and take it first if necessary."""
        GATE.watch(self)
        lock = self.find(root)
        if lock is None:  # also after a fork by C code, which leaves a copy of the parent's lock
            lock = self._held[_identity(root)] = _Lock(root)
        while not _is_in_place(lock, root):
            _close(lock)
            lock.descriptor = job_directory.make_file(PREFIX + lock.name, os.O_RDWR, root)
            GATE.register(lock.descriptor)
            lock.identity = _identity(lock.descriptor)
            # On a full disk the file stays empty and counts as a copy: the process decides.
            with contextlib.suppress(OSError):
                job_directory.sign(lock.descriptor)
            # This fails only if another process is about to remove the file; then try again.
            job_directory.try_lock(lock.descriptor, job_directory.WHOLE)
        return lock

    def drop(self, lock: _Lock, root: int) -> None:
        """Remove a lock that is no longer needed, with its file."""
        _remove(lock.name, root)
        self._held.pop(_identity(root), None)
        _close(lock)

    def forget_of(self, user: int) -> None:
        """Free the locks that only `user` relies on, and leave their files."""
        for key, lock in list(self._held.items()):
            if lock.users == {user}:
                del self._held[key]
                _close(lock)


def _identity(root: int) -> tuple[int, int]:
    facts = os.fstat(root)
    return facts.st_dev, facts.st_ino


def _is_in_place(lock: _Lock, root: int) -> bool:
    """Tell whether the file with this name is the open one, and locked by this process."""
    if lock.descriptor < 0:
        return False
    try:
        named = os.stat(PREFIX + lock.name, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    is_same = _is_open(lock) and (named.st_dev, named.st_ino) == lock.identity
    return is_same and job_directory.try_lock(lock.descriptor, job_directory.WHOLE)


def _is_open(lock: _Lock) -> bool:
    """Tell whether the descriptor is still the lock's: a host may close descriptors by number."""
    try:
        return lock.descriptor >= 0 and _identity(lock.descriptor) == lock.identity
    except OSError:
        return False


def _close(lock: _Lock) -> None:
    if _is_open(lock):
        GATE.close(lock.descriptor)
    else:
        GATE.unregister(lock.descriptor)
    lock.descriptor = -1


def _open(name: str, root: int) -> int:
    return os.open(PREFIX + name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=root)


def _remove(name: str, root: int) -> None:
    try:
        os.unlink(PREFIX + name, dir_fd=root)
    except FileNotFoundError:
        pass


_LOCKS = _Locks()


class Ownership:
    """Names this process as an owner of jobs, and tells whether other owners are alive."""

    def __init__(self, directories: Directories) -> None:
        self.directories = directories

    @handed_over
    def claim(self) -> str:
        """
        Return the name of this process, after taking its lock if necessary.

        Raises:
            StoreError: The lock file cannot be made.
        """
        with self.directories.typed(), GATE:
            lock = _LOCKS.take(self.directories.root)
            lock.users.add(id(self))
            return lock.name

    @property
    def current(self) -> str | None:
        """The name of this process if it is an owner, else None."""
        if not _LOCKS:
            return None  # most processes own nothing
        with GATE:
            lock = _LOCKS.find(self.directories.root)
            return None if lock is None else lock.name

    @handed_over
    def lives(self, name: str) -> bool | None:
        """
        Tell whether an owner is alive.

        Returns:
            None if this process cannot find out: the lock file is gone or not the owner's, and the
            owner is not visible, for example because it is in another pid namespace.

        Raises:
            StoreError: The lock file cannot be opened, or /proc cannot be read now.
            DatabaseCorrupt: The name is not a text, because the file is damaged.
        """
        if name == self.current:
            return True
        process = _Process.of(name)
        if not isinstance(name, str):
            raise DatabaseCorrupt("a stored owner is invalid")
        if process is None:
            return False
        with self.directories.typed():
            here = _Process.this(self.directories.root)
            alive = process.lives(here)
        if alive is False:
            return False  # even if a child that C code forked holds a copy of the lock
        is_here = process.is_in(here)
        if alive is None and not is_here:
            alive = False  # this is a copy of its directory: the owner does not know it
        locked = self._is_locked(name, signed=is_here)
        return alive if locked is None else locked

    def _is_locked(self, name: str, *, signed: bool) -> bool | None:
        """
        Tell whether an owner holds its lock; None: the lock file cannot show it.

        Args:
            signed: Whether the file must be the one that the owner made.
        """
        with self.directories.typed(), GATE:
            try:
                descriptor = _open(name, self.directories.root)
            except FileNotFoundError:
                return None  # for example, a cleaner of old files has removed it
            try:
                if job_directory.is_locked(descriptor):
                    return True
                # A tool may have replaced the file; then no process locks the new one.
                return None if signed and not job_directory.is_signed(descriptor) else False
            finally:
                os.close(descriptor)

    @handed_over
    def is_here(self, name: str) -> bool:
        """
        Tell whether an owner has its lock in this directory, and not in one it was copied from.

        Raises:
            DatabaseGone: The directory is gone.
            StoreError: /proc cannot be read now.
        """
        process = _Process.of(name)
        with self.directories.typed():
            return process is not None and process.is_in(_Process.this(self.directories.root))

    @handed_over
    def remove_unused(self, names: Collection[str]) -> None:
        """
        Remove the files of dead owners.

        Args:
            names: Owners that jobs still name; their files are kept.

        Raises:
            StoreError: The system refuses.
        """
        with self.directories.typed():
            found = os.listdir(self.directories.root)
        for file in found:
            name = file.removeprefix(PREFIX)
            if name != file and name not in names:
                self._remove_if_free(name)

    def _remove_if_free(self, name: str) -> None:
        with self.directories.typed(), GATE:
            root = self.directories.root
            lock = _LOCKS.find(root)
            if lock is not None and lock.name == name:
                return
            try:
                descriptor = _open(name, root)
            except FileNotFoundError:
                return
            try:
                if job_directory.try_lock(descriptor, job_directory.WHOLE):
                    _remove(name, root)
            finally:
                os.close(descriptor)

    def abandon(self) -> None:
        """
        Free the lock and leave its file, as the death of this process would. For tests.

        It does nothing if another manager of this process relies on the lock.
        """
        with GATE:
            _LOCKS.forget_of(id(self))

    @handed_over
    def release(self, *, is_used: bool) -> None:
        """
        Release the lock, unless a job or another manager of this process needs it.

        Args:
            is_used: Whether jobs still name this process.
        """
        with self.directories.typed(), GATE:
            root = self.directories.root
            lock = _LOCKS.find(root)
            if lock is None:
                return
            lock.users.discard(id(self))
            if not lock.users and not is_used:
                _LOCKS.drop(lock, root)
