"""
The file in the job directory that holds what a function returned.

Written by the job itself, before it exits with 0; read by whoever settles the
job. The header has length and CRC: the file is whole, or it counts as none.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib

from jobcore.supervisor import NewerProtocol, job_directory

RESULT = "result"

#: Bytes of a result. It goes into the database in one transaction, for which every other writer
#: waits: 16 MiB took 0.3 to 2 s there, on a busy disk. What is larger belongs in a file.
LARGEST = 4 * 2**20

#: What opening it fails with where no whole file of ours is there. Anything else, such as a
#: want of descriptors, will pass, and must not make a result be none.
_NONE_THERE = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EACCES)

#: Of the file. Not that of the protocol: the process that writes it was started by the
#: same jobcore as the supervisor, and both may be older than the reader.
_VERSION = 1
_MAGIC = b"jcrs"
_HEADER = struct.Struct("<4sBBxxIQ")  # magic, version, encoding, CRC, length
_ENCODINGS = ("json", "pickle")


def identify(path: str) -> tuple[int, int]:
    """Return what tells the directory from one that comes to have its name later."""
    facts = os.stat(path, follow_symlinks=False)
    return facts.st_dev, facts.st_ino


def write(path: str, identity: tuple[int, int], encoding: str, data: bytes) -> None:
    """
    Put the result into the job directory `path`, durably, in one step.

    Args:
        identity: What `identify` said of it when the job began.

    Raises:
        OSError: It could not be written; nothing of it is there then.
    """
    directory = job_directory.open_directory(path)
    try:
        facts = os.fstat(directory)
        if (facts.st_dev, facts.st_ino) != identity:
            raise FileNotFoundError(errno.ENOENT, "the job's directory was replaced", path)
        kind = _ENCODINGS.index(encoding)
        header = _HEADER.pack(_MAGIC, _VERSION, kind, _crc(kind, data), len(data))
        _replace(directory, header, data)
    finally:
        os.close(directory)


def _replace(directory: int, header: bytes, data: bytes) -> None:
    temporary = f"{RESULT}.{os.urandom(4).hex()}"
    descriptor = os.open(
        temporary,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
        dir_fd=directory,
    )
    try:
        try:
            os.fchmod(descriptor, 0o600)  # the command's umask may forbid even its owner to read
            job_directory.write_all(descriptor, header)
            job_directory.write_all(descriptor, data)
            # Or the name could outlive the bytes in a power failure, and the exit record, which
            # is renamed later in the same directory, would speak of a result that is torn.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, RESULT, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        try:
            os.unlink(temporary, dir_fd=directory)
        except OSError:
            pass  # the first error is the one to tell
        raise


def read(directory: int) -> tuple[str, bytes] | None:
    """
    Return encoding and bytes of the result there, or None where there is none, or no whole one.

    Raises:
        NewerProtocol: A newer jobcore wrote it.
        OSError: It could not be read now.
    """
    try:
        # Non-blocking: a job may have put a FIFO there.
        descriptor = os.open(
            RESULT,
            os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW,
            dir_fd=directory,
        )
    except OSError as error:
        if error.errno in _NONE_THERE:
            return None
        raise
    try:
        facts = os.fstat(descriptor)
        most = _HEADER.size + LARGEST
        if not stat.S_ISREG(facts.st_mode) or not _HEADER.size <= facts.st_size <= most:
            return None
        content = _read_all(descriptor, facts.st_size)
    finally:
        os.close(descriptor)
    return _decode(content)


def _read_all(descriptor: int, size: int) -> bytes:
    content = b""
    while len(content) < size and (chunk := os.read(descriptor, size - len(content))):
        content = content + chunk if content else chunk
    return content


def _decode(content: bytes) -> tuple[str, bytes] | None:
    if len(content) < _HEADER.size:
        return None
    magic, version, kind, crc, length = _HEADER.unpack_from(content)
    if magic != _MAGIC:
        return None
    if version > _VERSION:
        raise NewerProtocol(version)
    data = content[_HEADER.size :]
    if kind >= len(_ENCODINGS) or len(data) != length or crc != _crc(kind, data):
        return None
    return _ENCODINGS[kind], data


def _crc(kind: int, data: bytes) -> int:
    return zlib.crc32(data, kind)
