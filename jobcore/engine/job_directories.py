"""
The host's access to job directories.

Every descriptor is opened and closed inside the gate, so that a forked child never keeps a
copy: a copy of a lock would make a dead job look alive.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from jobcore import tuning
from jobcore.embedding import failpoints
from jobcore.embedding.locks import GATE, ForkAware
from jobcore.embedding.worker import handed_over
from jobcore.errors import DatabaseCorrupt, DatabaseGone, StoreError
from jobcore.storage import filesystem
from jobcore.storage.connections import Held
from jobcore.storage.filesystem import repair_command
from jobcore.storage.reading import is_open
from jobcore.supervisor import job_directory, system_calls

_NAME = re.compile("[0-9a-f]{32}")


class DirectoryId(NamedTuple):
    """
    A job directory and the directory that holds it, by inode.

    Inodes stay the same after a reboot. Device numbers may not.
    """

    device: int
    root: int
    directory: int

    @classmethod
    def of(cls, root: int, directory: int) -> DirectoryId:
        """Return the id for the inode of a root and an open descriptor of a directory in it."""
        facts = os.fstat(directory)
        return cls(facts.st_dev, root, facts.st_ino)

    @classmethod
    def parse(cls, text: str | None) -> DirectoryId | None:
        """Parse the text of a row; None if the row has none, or an invalid one."""
        try:
            return cls(*map(int, (text or "").split(":")))
        except (TypeError, ValueError):
            return None

    def __str__(self) -> str:
        """Return the text that the row stores."""
        return f"{self.device}:{self.root}:{self.directory}"


class Prepared:
    """
    A job directory in which this host prepares a start.

    Attributes:
        path: The path of the directory, for processes without a descriptor of it.
        directory: The descriptor of the directory.
        directory_id: The text for the row; see `DirectoryId`.
        lock: The descriptor that holds the first byte of the lock.
        request: The descriptor of a file in memory, to which the request is written.
        slot: The descriptor that holds the byte that shows whose slot the job takes. It is not
            sent to the supervisor; the host keeps it until the job has ended. -1: the claim has
            taken it over.
    """

    __slots__ = ("directory", "directory_id", "lock", "path", "request", "slot")

    def __init__(self, path: str, directory: int) -> None:
        self.path = path
        self.directory = directory
        self.directory_id = ""
        self.lock = self.request = self.slot = -1

    def close(self) -> None:
        """
        Close the descriptors without unlocking.

        If they were sent to a supervisor, its copies keep the lock. Otherwise closing the last
        copy frees it.
        """
        opened = self.directory, self.lock, self.request, self.slot
        GATE.close(*(one for one in opened if one >= 0))


class TypedErrors:
    """
    Raises an OSError of a `with` block as a StoreError, except FileNotFoundError.

    Args:
        directories: The root.
        name: The name of the directory that the block uses; empty: the root itself.
    """

    __slots__ = ("_directories", "_name")

    def __init__(self, directories: Directories, name: str) -> None:
        self._directories = directories
        self._name = name

    def __enter__(self) -> None:
        """Begin: nothing is needed."""

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """Raise the StoreError."""
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise filesystem.typed(self._directories.path(self._name), error) from error


class OpenDirectory(TypedErrors):
    """Opens a directory in the root for a `with` block; see `Directories.open`."""

    __slots__ = ("_descriptor",)

    def __enter__(self) -> int:  # type: ignore[override]  # it provides the descriptor
        """Open it."""
        self._descriptor = self._directories._descriptor(self._name)  # noqa: SLF001 - a part of it
        return self._descriptor

    def __exit__(self, kind: object, error: BaseException | None, *trace: object) -> None:
        """Close it."""
        GATE.close(self._descriptor)
        if error is not None:
            super().__exit__(kind, error, *trace)


class Directories(ForkAware):
    """
    The job directories of one database.

    Args:
        database: The absolute path of the database.
        host: Identifies the manager to `failpoints`.

    Attributes:
        boot_id: The id of the machine's current boot; None: `/proc` does not provide it.
        held: The directory of all job directories, which is kept open for frequent use;
            forgotten before it is closed. None: it is not open.

    Raises:
        StoreError: `/proc` cannot be read now.
    """

    def __init__(self, database: str, host: object = None) -> None:
        self.boot_id = filesystem.boot_id()
        self._database = database
        self._host = host
        self.held: Held | None = None
        self._closed = False
        self._gone_since: float | None = None  # by the monotonic clock
        GATE.watch(self)

    @property
    def root(self) -> int:
        """The descriptor of the directory of all job directories, which was checked just now."""
        return self._checked()[0]

    def _checked(self) -> Held:
        """Return `held` after checking it. Without the gate: another thread may close it now."""
        held = self.held
        if held is not None and not failpoints.armed and is_open(held) and self._is_in_place(held):
            return held  # the usual case
        with GATE:
            return self._hold()

    def _hold(self) -> Held:
        """Return `held`, opened if needed and checked, to a caller that holds the gate."""
        if failpoints.armed:
            failpoints.reach(failpoints.ENTERED, self._host)
        if self._closed:
            raise StoreError(f"{self._database} is closed")
        if self.held is None:
            self.held = self._open_root()
        elif not self._is_in_place(self.held):
            # A manager that opens the database now would use another directory, where our
            # jobs look dead.
            raise DatabaseGone(
                f"{self._database}.jobs was removed or moved while it was open; {self._remedy}"
            )
        elif not is_open(self.held):
            raise filesystem.closed_by_others(self._database)
        return self.held

    def _open_root(self) -> Held:
        try:
            root = filesystem.open_root(self._database, create=False)
        except FileNotFoundError as error:
            raise DatabaseGone(f"{self._database}.jobs is gone; {self._remedy}") from error
        except OSError as error:
            raise filesystem.typed(f"{self._database}.jobs", error) from error
        GATE.register(root)
        try:
            job_directory.share(root)
            facts = os.fstat(root)
        except BaseException:
            GATE.close(root)
            raise
        return root, facts.st_dev, facts.st_ino

    def reopen(self) -> None:
        """Use the directory that now has the name, after the old one was removed or moved."""
        with GATE:
            self._gone_since = None
            self._close_root()

    def _close_root(self) -> None:
        """Close the descriptor of the root, unless its number is now another file's."""
        held, self.held = self.held, None
        if held is not None:
            GATE.close(held[0]) if is_open(held) else GATE.unregister(held[0])

    @property
    def _remedy(self) -> str:
        if not os.path.exists(self._database):  # `git clean`, for example, removes both
            return "so was the database: put both back"
        return f"put it back, or run `{repair_command(self._database)}` and open it again"

    def require_root(self) -> bool:
        """
        Tell whether the directory of all job directories is in place; raise if it stays missing.

        Raises:
            DatabaseGone: It has been gone for `tuning.MOVED_PATIENCE`.
            StoreError: It cannot be opened.
        """
        try:
            _ = self.root
        except DatabaseGone:
            now = time.monotonic()
            if self._gone_since is None:
                self._gone_since = now
            if now - self._gone_since >= tuning.MOVED_PATIENCE:
                raise
            return False
        self._gone_since = None
        return True

    def _is_in_place(self, held: Held) -> bool:
        try:
            facts = os.stat(self._database + ".jobs", follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise filesystem.typed(f"{self._database}.jobs", error) from error
        return (facts.st_dev, facts.st_ino) == held[1:]

    def is_home_of(self, directory_id: str | None, boot_id: str | None) -> bool:
        """
        Tell whether a run was started here, given the texts of its row.

        Device numbers are compared only within one boot; see `DirectoryId`.

        Raises:
            DatabaseGone: The directory of all job directories is gone.
        """
        started = DirectoryId.parse(directory_id)
        _, device, inode = self._checked()
        if started is None or started.root != inode:
            return False
        return boot_id != self.boot_id or started.device == device

    def is_directory_of(self, directory: int, directory_id: str | None) -> bool:
        """Tell whether a run of this boot was started in this open directory."""
        return str(DirectoryId.of(self._checked()[2], directory)) == directory_id

    def path(self, name: str) -> str:
        """Return the path of a job directory, for processes without a descriptor of it."""
        return f"{self._database}.jobs/{name}"

    @handed_over
    def close(self) -> None:
        """Close the descriptor that is kept open, for good. A second call is harmless."""
        with GATE:
            self._closed = True
            self._close_root()

    def after_fork_in_child(self) -> None:
        """Forget the descriptor: the gate has closed it."""
        self.held = None

    def open(self, name: str) -> OpenDirectory:
        """
        Open a job directory for a `with` block, and provide its descriptor.

        Raises:
            FileNotFoundError: It does not exist.
            StoreError: The system refuses to open it, or an operation in the block.
        """
        _require_name(name)
        return OpenDirectory(self, name)

    def typed(self, name: str = "") -> TypedErrors:
        """Raise an OSError of a `with` block as a StoreError, except FileNotFoundError."""
        return TypedErrors(self, name)

    def _descriptor(self, name: str) -> int:
        """Open a directory in the root and return its registered descriptor."""
        try:
            with GATE:
                directory = job_directory.open_directory(name, parent=self._hold()[0])
                GATE.register(directory)
                return directory
        except FileNotFoundError:
            raise
        except OSError as error:
            raise filesystem.typed(self.path(name), error) from error

    def prepare(self, name: str, token: str) -> Prepared | None:
        """
        Make a job directory with its lock and FIFO, or use an existing one, and lock its start.

        The lock file is marked: the run `token` has not started.

        Returns None if another process prepares, runs or removes it.

        Raises:
            StoreError: There is no space or no descriptor, or it belongs to another user.
                Nothing is held then.
            FileNotFoundError: Another process has just removed it.
        """
        _require_name(name)
        with self.typed(name), GATE:
            root, _, inode = self._hold()
            directory = job_directory.open_directory(name, parent=root, create=True)
            prepared = Prepared(self.path(name), directory)
            try:
                prepared.directory_id = str(DirectoryId.of(inode, directory))
                prepared.lock = lock = job_directory.open_lock(directory, create=True)
                if job_directory.try_lock(
                    lock, job_directory.PREPARING
                ) and job_directory.is_current(name, directory, lock, parent=root):
                    job_directory.make_control(directory)
                    prepared.slot = job_directory.open_lock(directory)
                    # This fails only if C code of an earlier host has forked a copy of the lock.
                    job_directory.try_lock(prepared.slot, job_directory.SLOT)
                    job_directory.mark_unstarted(lock, token)
                    prepared.request = system_calls.make_memory_file("jobcore-request")
                    GATE.register(directory, lock, prepared.slot, prepared.request)
                    return prepared
            except BaseException:
                prepared.close()
                raise
            prepared.close()
            return None

    def adopt(self, name: str) -> int | None:
        """
        Let a running job take a slot of this manager, unless it takes one of another manager.

        Returns:
            A descriptor, registered with `locks.GATE`, that holds the slot until it is
            closed. None: the job has a manager, or no supervisor, so it cannot continue.

        Raises:
            FileNotFoundError: The directory is gone.
            StoreError: The system refuses to open it.
        """
        with self.open(name) as directory, GATE:
            slot = job_directory.open_lock(directory)
            try:
                if job_directory.is_locked(slot) and job_directory.try_lock(
                    slot, job_directory.SLOT
                ):
                    GATE.register(slot)
                    return slot
            except BaseException:
                os.close(slot)
                raise
            os.close(slot)
            return None

    def is_held(self, directory: int, span: tuple[int, int] = job_directory.WHOLE) -> bool:
        """
        Tell whether any process holds the lock; a missing lock file is not held.

        Args:
            span: The bytes to test. `RUNNING` is the byte of a supervisor that took the job.
        """
        return self._test_lock(directory, lambda lock: job_directory.is_locked(lock, span))

    def is_lock_of(self, directory: int, token: str) -> bool:
        """
        Tell whether the lock file is certainly the one that the supervisor of a run would hold.

        A cleaner may have removed that one, or a tool may have replaced it by a copy.
        """
        return self._test_lock(
            directory,
            lambda lock: job_directory.is_signed(lock) or job_directory.is_marked(lock, token),
        )

    def _test_lock(self, directory: int, test: Callable[[int], bool]) -> bool:
        """Return the result of `test` for the descriptor of the lock file; False: it is missing."""
        with GATE:
            try:
                lock = job_directory.open_lock(directory)
            except FileNotFoundError:
                return False
            try:
                return test(lock)
            finally:
                os.close(lock)

    @contextmanager
    def locked(self, name: str) -> Iterator[tuple[int, int] | None]:
        """
        Take the whole lock for a `with` block; provide the descriptors of root and directory.

        It provides None instead if another process holds a part of the lock.

        Raises:
            FileNotFoundError: It does not exist.
            StoreError: The system refuses to open it, or an operation in the block.
        """
        _require_name(name)
        opened: list[int] = []
        try:
            with self.typed(name):
                with GATE:
                    root = self._hold()[0]
                    directory = job_directory.open_directory(name, parent=root)
                    opened.append(directory)
                    try:
                        # If the lock file is missing, the host that prepared the directory died
                        # between two steps: create it, as that host would have.
                        lock = job_directory.open_lock(directory, create=True)
                        opened.append(lock)
                        mine = job_directory.try_lock(lock, job_directory.WHOLE) and (
                            job_directory.is_current(name, directory, lock, parent=root)
                        )
                    finally:
                        GATE.register(*opened)
                if mine and failpoints.armed:
                    failpoints.reach(failpoints.DIRECTORY_TAKEN, self._host)
                yield (root, directory) if mine else None
        finally:
            GATE.close(*opened)

    def remove(self, name: str) -> bool:
        """
        Remove a job directory unless its lock is held; return whether it is gone.

        Raises:
            StoreError: The system refuses.
        """
        try:
            with self.locked(name) as locked:
                if locked is None:
                    return False
                root, directory = locked
                job_directory.remove(name, directory, parent=root, host=self._host)
        except FileNotFoundError:
            pass  # another process has removed it
        return True

    def names(self) -> list[str]:
        """Return the names of the existing job directories."""
        return [name for name in self._listed() if is_name(name)]

    def _listed(self) -> list[str]:
        # Open a new descriptor: listing moves the position of the open file description, so two
        # threads that list a shared one would each miss entries.
        with self.typed():
            with GATE:
                directory = os.open(
                    ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._hold()[0]
                )
                GATE.register(directory)
            try:
                return os.listdir(directory)
            finally:
                GATE.close(directory)

    def leftovers(self) -> list[str]:
        """
        Remove files that a crash left half made; return the names of half-removed directories.

        Raises:
            StoreError: The system refuses.
        """
        names = self._listed()
        with self.typed():
            filesystem.remove_unused_store_ids(self.root, names)
        return [name for name in names if name.startswith(job_directory.GONE)]

    def remove_leftover(self, name: str) -> None:
        """
        Finish removing one of `leftovers`.

        Raises:
            StoreError: The system refuses.
        """
        try:
            with OpenDirectory(self, name) as directory:
                job_directory.empty(directory)
                os.rmdir(name, dir_fd=self.root)
        except FileNotFoundError:
            pass  # another process finished it


def recorded_namespace(directory: int) -> int | None:
    """Return the pid namespace of the supervisor that made a job's record; None: unknown."""
    record = job_directory.read_record(directory, job_directory.RUN)
    namespace = None if record is None else record.get("pid_namespace")
    return namespace if isinstance(namespace, int) else None


def _require_name(name: str) -> None:
    """
    Require a valid name of a job directory: a damaged file may hold any text as an id.

    Raises:
        DatabaseCorrupt: It is not valid.
    """
    if not is_name(name):
        raise DatabaseCorrupt("a stored job ID is not a valid UUID")


def is_name(name: object) -> bool:
    """Tell whether this is the hex form of a UUID; nothing else is ever opened."""
    # A damaged file may hold a number or bytes.
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
