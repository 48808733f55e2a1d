"""
Protects the files of a running job from cleaners of temporary files, and restores them.

Cleaners remove old files. Some, such as systemd-tmpfiles, skip a directory with a BSD lock.
For the others this keeps the modification times recent. If files are removed nevertheless, it
creates them again: the open descriptors still have their content.
"""

from __future__ import annotations

import os

from jobcore.supervisor import job_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobcore.supervisor.request import Request
    from jobcore.supervisor.spool import Spool, UnfinishedLines
    from jobcore.supervisor.stop_requests import StopRequests

# All in seconds.
_CHECK_EVERY = 5.0  # short, because stop requests do not arrive while the FIFO is missing
_TOUCH_EVERY = 600.0  # cleaners remove files that are hours or days old
#: The root of the job directories is named like the database, with this suffix.
_SUFFIX = ".jobs"


class FileUpkeep:
    """
    Maintains the directory and the files of one run.

    Args:
        request: The run. After a repair, its descriptors of lock and directory have the same
            numbers, but refer to the new files.
        spool: The spool files.
        unfinished: The `tail` file.
        stop_requests: The FIFO and the `stop` file.
        record: The content of the `run` file.

    Attributes:
        due: The monotonic time at which `advance` has something to do.
    """

    def __init__(
        self,
        request: Request,
        spool: Spool,
        unfinished: UnfinishedLines,
        stop_requests: StopRequests,
        record: bytes,
    ) -> None:
        self._request = request
        self._spool = spool
        self._unfinished = unfinished
        self._stop_requests = stop_requests
        self._record = record
        self.due = 0.0
        self._next_touch = 0.0
        self.root = -1
        job_directory.share(request.directory)
        self._open_root()

    def advance(self, now: float) -> None:
        """Do the checks that are due. A check that fails is repeated later."""
        if not self._next_touch:  # first call: the files were just created
            self.due = now + _CHECK_EVERY
            self._next_touch = now + _TOUCH_EVERY
        if now < self.due:
            return
        self.due = now + _CHECK_EVERY
        if self.root < 0:
            self._open_root()
        try:
            self._repair()
            if now >= self._next_touch:
                self._next_touch = now + _TOUCH_EVERY
                self._touch()
        except OSError:
            pass

    def _open_root(self) -> None:
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self.root = os.open("..", flags, dir_fd=self._request.directory)
        except OSError:
            return  # no descriptor is free, or it was moved to where this user cannot open it
        job_directory.share(self.root)

    def repair_output(self) -> None:
        """
        Restore the job directory, the spool and `tail`, if they are missing.

        Raises:
            OSError: They cannot be restored; ENOENT: the root of the job directories is missing.
        """
        if os.fstat(self._request.directory).st_nlink == 0:
            self._repair_directory()
        self._spool.repair()
        self._unfinished.repair()

    def _repair(self) -> None:
        self.repair_output()
        request = self._request
        # The FIFO first, so that stop requests arrive even if other files cannot be restored.
        job_directory.clear_control(request.directory)
        job_directory.make_control(request.directory)
        if not _is_named(job_directory.CONTROL, self._stop_requests.fileno(), request.directory):
            self._stop_requests.reopen()
        if not _is_named(job_directory.LOCK, request.lock, request.directory):
            self._repair_lock()
        if job_directory.RUN not in os.listdir(request.directory):
            run = job_directory.make_file(
                job_directory.RUN, os.O_WRONLY | os.O_EXCL, request.directory
            )
            try:
                job_directory.write_all(run, self._record)
            finally:
                os.close(run)

    def _repair_directory(self) -> None:
        new = job_directory.open_directory(self._request.name, parent=self.root, create=True)
        os.dup2(new, self._request.directory, inheritable=False)
        os.close(new)
        job_directory.share(self._request.directory)

    def _repair_lock(self) -> None:
        new = job_directory.open_lock(self._request.directory, create=True)
        try:
            spans = (job_directory.RUNNING, job_directory.spans_of(self._request.token)[1])
            if all(
                job_directory.try_lock(new, span) for span in spans
            ):  # else another process checks the lock right now: retry soon
                # Only once the new file is locked, because a run without a lock counts as dead.
                os.dup2(new, self._request.lock, inheritable=False)
                job_directory.sign(new)  # after that, because a free signed lock is proof
        finally:
            os.close(new)

    def _touch(self) -> None:
        request = self._request
        for name in os.listdir(request.directory):
            os.utime(name, dir_fd=request.directory, follow_symlinks=False)
        os.utime(request.directory)
        if self.root >= 0:
            os.utime(self.root)
            os.utime(job_directory.STORE, dir_fd=self.root, follow_symlinks=False)
            self._touch_database()

    def _touch_database(self) -> None:
        """Update the database's modification times, too: the end must be stored there."""
        database, suffix, rest = os.readlink(f"/proc/self/fd/{self.root}").rpartition(_SUFFIX)
        if not suffix or rest:
            return
        for name in (database, f"{database}-wal", f"{database}-shm"):
            try:
                os.utime(name, follow_symlinks=False)
            except FileNotFoundError:
                pass

    def close(self) -> None:
        """Close the descriptor that this object has opened."""
        if self.root >= 0:
            os.close(self.root)
            self.root = -1


def _is_named(name: str, descriptor: int, directory: int) -> bool:
    """Tell whether `name` refers to the file that `descriptor` has open."""
    try:
        named = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))
