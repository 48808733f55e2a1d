"""
The files in the job directory that contain values: results, and the state of a pipeline.

A function writes its result itself, before it exits with 0. The supervisor of a command writes what
the command has handed over, before the exit record. The process that settles the job reads the
files. The header contains length and CRC, and an incomplete file counts as no file.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib

from jobcore.supervisor import NewerProtocol, job_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The names of the files: of a result, and of the state for the next run of a pipeline.
RESULT, STATE = "result", "next-state"

#: Maximum bytes of a result. It is stored in one transaction, for which all other writers
#: wait: 16 MiB took 0.3 to 2 s on a busy disk. Larger results belong in a file.
LARGEST = 4 * 2**20

#: Maximum bytes of the JSON texts that a command hands over. A result is for facts about the job,
#: not for its payload. The state of a pipeline may have an entry for each of many tables.
MOST_HANDED = {RESULT: 64 * 1024, STATE: 1024 * 1024}
#: The deepest nesting. A reader may have less of its stack left than the process that checked.
_DEEPEST = 100

#: Errors of `open` that mean that there is no result. Other errors, such as a lack of
#: descriptors, are temporary, and must not be taken for a missing result.
_MISSING_ERRORS = (errno.ENOENT, errno.ELOOP, errno.EACCES)

#: Version of this file's format, separate from the protocol's. The writing process was started
#: by the same jobcore as the supervisor, and both may be older than the reader.
_VERSION = 1
_MAGIC = b"jcrs"
_HEADER = struct.Struct("<4sBBxxIQ")  # magic, version, encoding, CRC, length
_ENCODINGS = ("json", "pickle")


def identify(path: str) -> tuple[int, int]:
    """Return device and inode, which distinguish a directory from a later one of that name."""
    facts = os.stat(path, follow_symlinks=False)
    return facts.st_dev, facts.st_ino


def write(path: str, identity: tuple[int, int], encoding: str, data: bytes) -> None:
    """
    Write the result into the job directory `path`, durably and atomically.

    Args:
        identity: The result of `identify` for the directory when the job began.

    Raises:
        OSError: The result could not be written, and nothing of it is there.
    """
    directory = job_directory.open_directory(path)
    try:
        facts = os.fstat(directory)
        if (facts.st_dev, facts.st_ino) != identity:
            raise FileNotFoundError(errno.ENOENT, "the job's directory was replaced", path)
        # Synced, because the exit record comes later in the same directory, and would vouch for an
        # incomplete result.
        put(directory, RESULT, encoding, data, sync=True)
    finally:
        os.close(directory)


def put(directory: int, name: str, encoding: str, data: bytes, *, sync: bool) -> None:
    """
    Write a value into a job directory, atomically.

    Args:
        directory: A descriptor of the job directory.
        name: The name of the file.
        sync: Also make it durable.

    Raises:
        OSError: It could not be written, and nothing of it is there.
    """
    kind = _ENCODINGS.index(encoding)
    header = _HEADER.pack(_MAGIC, _VERSION, kind, _crc(kind, data), len(data))
    job_directory.replace_file(directory, name, header, data, sync=sync)


def read(directory: int, name: str = RESULT) -> tuple[str, bytes] | None:
    """
    Return encoding and bytes of a value in a directory; None: no value, or incomplete.

    Args:
        directory: A descriptor of the job directory.
        name: The name of the file.

    Raises:
        NewerProtocol: A newer jobcore wrote the file.
        OSError: The file cannot be read at the moment.
    """
    try:
        descriptor = job_directory.open_file(name, os.O_RDONLY, directory)
    except job_directory.NotRegular:
        return None  # the job has put something else there
    except OSError as error:
        if error.errno in _MISSING_ERRORS:
            return None
        raise
    content = b""
    try:
        size = os.fstat(descriptor).st_size
        if size > _HEADER.size + LARGEST:
            return None
        while len(content) < size and (chunk := os.read(descriptor, size - len(content))):
            content = content + chunk if content else chunk
    finally:
        os.close(descriptor)
    return _decode(content)


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


def parse(data: bytes) -> Any:
    """
    Return the value of a JSON text.

    Raises:
        ValueError: It is not valid JSON in UTF-8, or nested too deeply.
    """
    import json  # noqa: PLC0415 - only for jobs that hand something over

    def refuse(constant: str) -> None:
        raise ValueError(f"it is not valid JSON: {constant} is not a JSON value")

    try:
        value = json.loads(data.decode("utf-8"), parse_constant=refuse)
        if b"\\u" in data:  # half of a surrogate pair cannot be stored
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels") from None
    except UnicodeError:
        raise ValueError("it is not UTF-8") from None
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
        level = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
    return value
