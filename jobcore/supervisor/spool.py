"""
Writes output into a job directory: frames to the spool, unfinished lines to the file `tail`.

A full or read-only disk loses no output. A frame that could not be written, or the rest of
it, waits in memory, and the pipes must not be read until `flush` has written it. If the
directory is gone, lines are dropped and counted.

An unfinished line has no number. It gets one when the line ends, when a line of jobcore
follows it, or when its supervisor dies. Until then its text is in the file `tail`, as the frames
that would be appended to the spool now. After them may come a frame without lines for each stream.
Its first number is the one after the last line of its stream, and in place of the time it has the
first number of the frames before it. Older readers stop there. The file has two slots, which are
overwritten in turn. So while one slot is being written, or if SIGKILL interrupts the write, the
previous text is intact in the other slot.
"""

from __future__ import annotations

import errno
import os

from jobcore.embedding import failpoints
from jobcore.supervisor import frames, job_directory, system_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: After so many bytes a new file is started, so that imported files can be deleted while the
#: job runs.
ROTATE_AT = 8 * 1024 * 1024

#: No space, no quota, a file size limit that was set later, or a disk that became read-only.
#: These may pass at any time, so waiting for them has no limit.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
#: The directory was removed, so nothing can be written there any more.
GONE = (errno.ENOENT, errno.ESTALE)
_REMOVED = -1  # the result of a write in that case
#: Bytes copied at once when a removed file is restored.
_COPIED_AT_ONCE = 1024 * 1024

#: Seconds between a change of unfinished lines and its write, and between two writes.
TAIL_EVERY = 0.25
_TAIL_RETRY = 1.0  # seconds until the next attempt after an error such as a full disk
_NEVER = float("inf")

_LARGEST_FRAME = frames.HEADER_SIZE + frames.MAX_PAYLOAD


def rotate_at() -> int:
    """
    Return the size in bytes from which a new file is started, within the limit of `ulimit -f`.

    A file must never get so near to that limit that a frame does not fit, because that error
    would not pass.
    """
    largest = system_calls.largest_file()
    return ROTATE_AT if largest is None else max(min(ROTATE_AT, largest - _LARGEST_FRAME), 1)


class Spool:
    """
    The frames of one run.

    Attributes:
        end: Bytes written so far, in all files.
        next_sequence: The number of the next line, of any stream.
        held: Whether frames wait to be written, because there is no space. Then the pipes must
            not be read.
        gone: Whether the directory is gone, so that lines are dropped.
        dropped: Number of lines dropped for that reason.
        errno: The errno of the last write that failed; 0: none has failed.
    """

    def __init__(self, directory: int) -> None:
        self.end = 0
        self.next_sequence = 0
        self.held = False
        self.gone = False
        self.dropped = 0
        self._directory = directory
        # Both are set with the first frame, because many jobs have no output.
        self._rotate_at = 0
        self._file = -1
        self._begin = 0
        self._queue: list[bytes] = []
        self.errno = 0
        self._torn = False  # whether the first item of the queue is the rest of a frame

    def append(self, stream: int, flags: int, count: int, payload: bytes, time_ns: int) -> None:
        """Write `count` lines, numbered, as one frame; without space, queue the frame."""
        if self.gone:
            self.dropped += count
            return
        header = frames.encode_header(stream, flags, self.next_sequence, count, time_ns, payload)
        self.next_sequence += count
        if self._queue:
            self._queue.append(header + payload)
            return
        written = self._write([header, payload])
        if written == _REMOVED:
            self.next_sequence -= count
            self.dropped += count
        elif written < len(header) + len(payload):
            self._torn = written > 0
            self._queue.append((header + payload)[written:])
            self.flush()

    def flush(self) -> bool:
        """Write queued frames, as far as there is space; False: some still wait."""
        while self._queue:
            self.held = True
            waiting = self._queue[0]
            written = self._write([waiting])
            if written == len(waiting):
                del self._queue[0]
                self._torn = False
            elif written > 0:
                # After a short write, the rest of the frame must go into the same file.
                self._queue[0] = waiting[written:]
                self._torn = True
            else:
                return written == _REMOVED
        self.held = False
        return True

    def drop_unwritable(self) -> None:
        """After the command has ended: drop queued frames, unless they only wait for space."""
        if self.errno not in NO_SPACE:
            self._drop()

    def _drop(self) -> None:
        self.gone = True
        self._queue.clear()
        self.held = self._torn = False

    def repair(self) -> None:
        """
        If the current file was unlinked, copy its content into a new file with its name.

        Raises:
            OSError: This is not possible at the moment.
        """
        self.gone = False
        if self._file < 0 or os.fstat(self._file).st_nlink > 0:
            return
        name = f"{job_directory.SPOOL}{self._begin}"
        try:
            descriptor = self._make(name)
        except FileExistsError:
            os.close(self._file)
            self._file = -1  # the file was put back: continue in a new one
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
        """Fsync all existing spool files, so that their content survives a power failure."""
        for begin in job_directory.spool_offsets(self._directory):
            try:
                descriptor = os.open(
                    f"{job_directory.SPOOL}{begin}",
                    os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW,
                    dir_fd=self._directory,
                )
            except FileNotFoundError:
                continue  # imported and deleted in the meantime
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
        """Write once; return the number of bytes written, 0 on failure, or `_REMOVED`."""
        try:
            if self._file < 0 or (self.end - self._begin >= self._rotate_at and not self._torn):
                self._next_file()
            written = os.writev(self._file, parts)
        except OSError as error:
            self.errno = error.errno or 0
            if error.errno in GONE:
                self._drop()
                return _REMOVED
            return 0  # any other error: hold the output; never end a command because of it
        self.end += written
        if failpoints.armed:
            failpoints.reach(failpoints.FRAME_WRITTEN)
        return written

    def _next_file(self) -> None:
        """Start a new file, named by the offset of its first byte."""
        self._rotate_at = rotate_at()
        descriptor = self._make(f"{job_directory.SPOOL}{self.end}")
        self.close()
        self._file = descriptor
        self._begin = self.end

    def _make(self, name: str) -> int:
        # O_RDWR, because `repair` reads it.
        return job_directory.make_file(name, os.O_RDWR | os.O_APPEND | os.O_EXCL, self._directory)


class UnfinishedLines:
    """
    Writes the unfinished lines of one run.

    Attributes:
        changed: Whether there may be text that is not written yet.
        due: The monotonic time at which `advance` has something to write.
    """

    def __init__(self, directory: int, frames_now: Callable[[], bytes]) -> None:
        """
        Args:
            directory: The job directory.
            frames_now: Returns the unfinished lines as frames; b"": there are none.
        """
        self.changed = False
        self._directory = directory
        self._frames_now = frames_now
        self._file = -1  # created with the first text, because most jobs need none
        self._slot = 0
        self._written = b""
        self.due = _NEVER

    def advance(self, now: float) -> None:
        """Write changed text, `TAIL_EVERY` seconds after the change."""
        if not self.changed:
            self.due = _NEVER
        elif self.due == _NEVER:
            self.due = now + TAIL_EVERY
        elif now >= self.due:
            self.changed = False
            self.due = _NEVER
            try:
                self._write(self._frames_now())
            except OSError:
                # Retry later: the text is in memory, and the job does not need the file.
                self.changed = True
                self.due = now + _TAIL_RETRY

    def repair(self) -> None:
        """If the file was removed, write the text again into a new one."""
        if self._file >= 0 and os.fstat(self._file).st_nlink == 0:
            self.close()
            self._written = b""
            self.changed = True

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, data: bytes) -> None:
        if not data or data == self._written:
            return
        if self._file < 0:
            self._file = job_directory.make_file(job_directory.TAIL, os.O_WRONLY, self._directory)
        # After a short write the slot is invalid, and is written again; the other one is intact.
        slot = 1 - self._slot
        if os.pwrite(self._file, data, slot * job_directory.TAIL_SLOT) < len(data):
            raise OSError(errno.ENOSPC, "a short write")
        self._slot = slot
        self._written = data
