"""Copies the command's stdout to a file that the user chose, byte for byte."""

from __future__ import annotations

import errno
import os
import stat

from jobcore.supervisor.spool import NO_SPACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Errors that may pass. EFBIG is not among them: a file at the limit of `ulimit -f` stays there.
_PASSING = tuple(number for number in NO_SPACE if number != errno.EFBIG)


class OutputFile:
    """
    A file that is emptied, and then gets all bytes that the command writes to its stdout.

    Attributes:
        held: Whether bytes wait because there is no space. Then the pipe must not be read.
        errno: The errno of the last write that failed; 0: none has failed.
    """

    def __init__(self, path: bytes, umask: int, say: Callable[[str], None]) -> None:
        """
        Open the file; it never blocks, whatever the path leads to.

        Args:
            path: Its absolute path.
            umask: The umask with which the file is created.
            say: Adds a line to the log.

        Raises:
            OSError: It cannot be opened, or is not a regular file.
        """
        self.held = False
        self.errno = 0
        self._path = path
        self._say = say
        self._rest = b""
        # O_NONBLOCK, because the path may lead to a FIFO; truncated only when it is a file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        before = os.umask(umask)
        try:
            self._descriptor = os.open(path, flags, 0o666)
        finally:
            os.umask(before)
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            os.ftruncate(self._descriptor, 0)
        except BaseException:
            os.close(self._descriptor)
            raise

    def write(self, data: bytes) -> None:
        """Write bytes; without space, keep them until `flush`."""
        if self._descriptor >= 0:
            self._rest = self._rest + data if self._rest else data
            self.flush()

    def flush(self) -> bool:
        """Write the bytes that wait, as far as there is space; False: some still wait."""
        view = memoryview(self._rest)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            self.errno = error.errno or 0
            if self.errno not in _PASSING:
                self._fail()
                return True
        self._rest = bytes(view)
        self.held = bool(self._rest)
        return not self.held

    def give_up(self) -> None:
        """Write nothing more, because a caller asked to stop while there was no space."""
        if self.held:
            self._fail()

    def finish(self) -> None:
        """Make the file durable, and close it."""
        if self._descriptor < 0:
            return
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self.errno = error.errno or 0
            if self.errno not in (errno.EINVAL, errno.EROFS):  # these: it cannot be synced at all
                self._fail()
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _fail(self) -> None:
        """Log that the file lacks the rest of the output, and write nothing more."""
        self.close()
        self._rest = b""
        self.held = False
        why = os.strerror(self.errno).lower()
        self._say(f"the output file {os.fsdecode(self._path)!r} is incomplete: {why}")
