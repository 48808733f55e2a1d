"""
Keeps the files of a running job from cleaners, and makes removed ones again.

Cleaners of temporary files take what is old. Some of them respect a BSD lock on
a directory (systemd-tmpfiles does); for the others the files are kept fresh.
What they take all the same is made again, as the open descriptors still have it.
"""

from __future__ import annotations

import os

from jobcore.supervisor import job_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobcore.supervisor.request import Order
    from jobcore.supervisor.spool import Spool
    from jobcore.supervisor.stop_requests import Wishes
    from jobcore.supervisor.unfinished_line import Tail

# All in seconds.
_CHECK_EVERY = 5.0  # a stop is not heard while the FIFO is gone
_TOUCH_EVERY = 600.0  # cleaners count in hours or days
#: The directory of the job directories has the database's name and this.
_SUFFIX = ".jobs"


class Upkeep:
    """
    Looks after the directory and the files of one run.

    Args:
        order: The run. Its descriptors of lock and directory keep their numbers,
            though they lead to new files after a repair.
        spool: Its output.
        tail: Its unfinished lines.
        wishes: Its FIFO.
        record: The content of `run`.
    """

    def __init__(
        self, order: Order, spool: Spool, tail: Tail, wishes: Wishes, record: bytes
    ) -> None:
        self._order = order
        self._spool = spool
        self._tail = tail
        self._wishes = wishes
        self._record = record
        self._next_check: float | None = None
        self._next_touch = 0.0
        self._root = -1
        try:
            self._root = job_directory.open_parent(order.directory)
        except OSError:
            pass  # moved to where this user may not look: then there is nothing to make again
        for directory in (self._root, order.directory):
            job_directory.share(directory)

    def advance(self, now: float) -> None:
        """Do what is due. What cannot be done now is tried again later."""
        if self._next_check is None:  # all of it was made a moment ago
            self._next_check = now + _CHECK_EVERY
            self._next_touch = now + _TOUCH_EVERY
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_EVERY
        try:
            self._repair()
            if now >= self._next_touch:
                self._next_touch = now + _TOUCH_EVERY
                self._touch()
        except OSError:
            pass

    def repair_output(self) -> None:
        """
        Make again what is missing of the directory and the output in it.

        Raises:
            OSError: That cannot be done; ENOENT where the directory of all jobs is gone, too.
        """
        if os.fstat(self._order.directory).st_nlink == 0:
            self._repair_directory()
        self._spool.repair()
        self._tail.repair()

    def _repair(self) -> None:
        self.repair_output()
        order = self._order
        # First, so that a stop is heard whatever has become of the other files.
        job_directory.clear_control(order.directory)
        job_directory.make_control(order.directory)
        if not _is_named(job_directory.CONTROL, self._wishes.fileno(), order.directory):
            self._wishes.reopen()
        if not _is_named(job_directory.LOCK, order.lock, order.directory):
            self._repair_lock()
        if job_directory.RUN not in os.listdir(order.directory):
            run = job_directory.make_file(
                job_directory.RUN, os.O_WRONLY | os.O_EXCL, order.directory
            )
            try:
                job_directory.write_all(run, self._record)
            finally:
                os.close(run)

    def _repair_directory(self) -> None:
        new = job_directory.open_directory(self._order.name, parent=self._root, create=True)
        os.dup2(new, self._order.directory, inheritable=False)
        os.close(new)
        job_directory.share(self._order.directory)

    def _repair_lock(self) -> None:
        new = job_directory.open_lock(self._order.directory, create=True)
        try:
            spans = (job_directory.RUNNING, job_directory.spans_of(self._order.token)[1])
            if all(
                job_directory.try_lock(new, span) for span in spans
            ):  # else: held for a look, again soon
                # Not before the new one is held: a run without a lock is dead.
                os.dup2(new, self._order.lock, inheritable=False)
        finally:
            os.close(new)

    def _touch(self) -> None:
        order = self._order
        for name in os.listdir(order.directory):
            os.utime(name, dir_fd=order.directory, follow_symlinks=False)
        os.utime(order.directory)
        if self._root >= 0:
            os.utime(self._root)
            os.utime(job_directory.STORE, dir_fd=self._root, follow_symlinks=False)
            self._touch_database()

    def _touch_database(self) -> None:
        """Keep the database's files fresh, too: without them the end could not be stored."""
        database, suffix, rest = os.readlink(f"/proc/self/fd/{self._root}").rpartition(_SUFFIX)
        if not suffix or rest:
            return
        for name in (database, f"{database}-wal", f"{database}-shm"):
            try:
                os.utime(name, follow_symlinks=False)
            except FileNotFoundError:
                pass

    def close(self) -> None:
        """Close what was opened here."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1


def _is_named(name: str, descriptor: int, directory: int) -> bool:
    """Tell whether `name` leads to what `descriptor` has open."""
    try:
        named = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
