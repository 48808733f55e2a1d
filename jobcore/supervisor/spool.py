"""
Appends frames to the files of the job directory; holds them back while the disk is full.

A full or read-only disk never costs a byte: the frame that could not be written
waits, whole or the rest of it, and the pipes must not be read until `flush` has
written it. Where the directory is gone, lines are dropped and counted.
"""

from __future__ import annotations

import errno
import os

from jobcore.embedding import failpoints
from jobcore.supervisor import frames, job_directory, system_calls

#: A file of at least this many bytes is followed by a new one, so that what is
#: imported can be given back to the disk while the job runs.
ROTATE_AT = 8 * 1024 * 1024

#: No space, no quota, a file size limit set meanwhile, or a disk that became read-only: it
#: may pass, however long it takes.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
#: The directory was removed: nothing can be written there any more.
GONE = (errno.ENOENT, errno.ESTALE)
_NOWHERE = -1  # what a write returns then
#: Bytes that are copied at once into a file that is made again.
_COPIED_AT_ONCE = 1024 * 1024

_LARGEST_FRAME = frames.HEADER_SIZE + frames.MAX_PAYLOAD


def rotate_at() -> int:
    """
    Return the bytes from which a file is followed by a new one, under the limit of `ulimit -f`.

    No file may come so near to it that a whole frame does not fit: that never passes.
    """
    largest = system_calls.largest_file()
    return ROTATE_AT if largest is None else max(min(ROTATE_AT, largest - _LARGEST_FRAME), 1)


class Spool:
    """
    The frames of one run.

    Attributes:
        end: Bytes written so far, over all files.
        next_sequence: The number that the next line gets, of whatever stream.
        gone: Whether the directory is gone, and lines are dropped.
        dropped: How many were.
        errno: Why the last write failed; 0: none did since it was held.
    """

    def __init__(self, directory: int) -> None:
        self.end = 0
        self.next_sequence = 0
        self.gone = False
        self.dropped = 0
        self._directory = directory
        self._rotate_at = rotate_at()
        self._file = -1  # made with the first frame: many jobs say nothing
        self._begin = 0
        self._queue: list[bytes] = []
        self.errno = 0
        self._torn = False  # the first of the queue is the rest of a frame

    @property
    def held(self) -> bool:
        """Whether something waits for space."""
        return bool(self._queue)

    def append(self, stream: int, flags: int, count: int, payload: bytes, time_ns: int) -> None:
        """Write `count` lines as one frame, and number them; without space, keep it for `flush`."""
        if self.gone:
            self.dropped += count
            return
        header = frames.encode_header(stream, flags, self.next_sequence, count, time_ns, payload)
        self.next_sequence += count
        if self._queue:
            self._queue.append(header + payload)
            return
        written = self._write([header, payload])
        if written == _NOWHERE:
            self.next_sequence -= count
            self.dropped += count
        elif written < len(header) + len(payload):
            self._torn = written > 0
            self._queue.append((header + payload)[written:])
            self.flush()

    def flush(self) -> bool:
        """Write what waits, as far as there is space; False: some still waits."""
        while self._queue:
            waiting = self._queue[0]
            written = self._write([waiting])
            if written == len(waiting):
                del self._queue[0]
                self._torn = False
            elif written > 0:
                # A short write goes on with the rest of the same frame, in the same file.
                self._queue[0] = waiting[written:]
                self._torn = True
            else:
                return written == _NOWHERE
        return True

    def drop_unwritable(self) -> None:
        """Drop what waits, unless it waits for space. The command has ended."""
        if self.errno not in NO_SPACE:
            self._drop()

    def _drop(self) -> None:
        self.gone = True
        self._queue.clear()
        self._torn = False

    def repair(self) -> None:
        """
        Put what is open into a file of its name where something has unlinked that.

        Raises:
            OSError: That cannot be done now.
        """
        self.gone = False
        if self._file < 0 or os.fstat(self._file).st_nlink > 0:
            return
        name = f"{job_directory.SPOOL}{self._begin}"
        try:
            descriptor = self._make(name)
        except FileExistsError:
            os.close(self._file)
            self._file = -1  # somebody brought it back: go on behind it, in a new file
            return
        try:
            position = 0
            while data := os.pread(self._file, _COPIED_AT_ONCE, position):
                job_directory.write_all(descriptor, data)
                position += len(data)
        except OSError:
            os.close(descriptor)
            os.unlink(name, dir_fd=self._directory)
            raise
        os.close(self._file)
        self._file = descriptor

    def sync(self) -> None:
        """Make what was written survive a power failure: all files that are still there."""
        for begin in job_directory.spool_offsets(self._directory):
            try:
                descriptor = os.open(
                    f"{job_directory.SPOOL}{begin}",
                    os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW,
                    dir_fd=self._directory,
                )
            except FileNotFoundError:
                continue  # imported and dropped in between
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, parts: list[bytes]) -> int:
        """Write once; return how many bytes were taken: 0 without space, or `_NOWHERE`."""
        try:
            if self._file < 0 or (self.end - self._begin >= self._rotate_at and not self._torn):
                self._next_file()
            written = os.writev(self._file, parts)
        except OSError as error:
            self.errno = error.errno or 0
            if error.errno in GONE:
                self._drop()
                return _NOWHERE
            return 0  # whatever it is: a command is held, and never ended, by its output
        self.end += written
        failpoints.reach(failpoints.FRAME_WRITTEN)
        return written

    def _next_file(self) -> None:
        """Begin a new file, named by the offset of its first byte."""
        descriptor = self._make(f"{job_directory.SPOOL}{self.end}")
        self.close()
        self._file = descriptor
        self._begin = self.end

    def _make(self, name: str) -> int:
        # For reading, too: see `repair`.
        return job_directory.make_file(name, os.O_RDWR | os.O_APPEND | os.O_EXCL, self._directory)
