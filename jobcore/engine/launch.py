"""
Prepares everything that a job needs before it is claimed.

Directory, lock and request are made first. If space or descriptors are lacking, that fails
while the job is still QUEUED, and it stays QUEUED.
"""

from __future__ import annotations

import marshal
import math
import os
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from sqlalchemy import Row

from jobcore.clock import Clock
from jobcore.command import Command, encode
from jobcore.embedding import failpoints
from jobcore.embedding.forking import GATE
from jobcore.engine import orphans
from jobcore.engine.executors import Executor
from jobcore.engine.job_directories import Directories, Prepared
from jobcore.functions.call import is_interpreter
from jobcore.lifecycle import Reason
from jobcore.models import ClaimedJob
from jobcore.storage import filesystem
from jobcore.supervisor import PROTOCOL_VERSION, frames, job_directory, system_calls


class Request:
    """A prepared start: everything that the supervisor needs, and the values for the claim."""

    __slots__ = (
        "body", "boot_id", "calls_function", "cookie", "failure", "grace_ms", "has_environment",
        "job_id", "name", "number", "prepared", "timeout_ms", "token",
    )  # fmt: skip

    def __init__(
        self, row: Row[Any], prepared: Prepared, boot_id: str | None, cookie: str, token: str
    ) -> None:
        self.number: int = row.number
        self.has_environment = row.environment is not None  # its submitter's, in the database
        self.job_id = row.id
        self.name = prepared.name
        self.prepared = prepared
        self.boot_id = boot_id
        self.cookie = cookie
        self.token = token
        self.body = -1
        self.grace_ms: int | None = None
        self.timeout_ms: int | None = None
        self.calls_function = False
        self.failure: str | None = None  # why the host must end it after the claim

    def close(self) -> None:
        """Close the descriptors; a supervisor that they were sent to has its own copies."""
        self.prepared.close()
        if self.body >= 0:
            GATE.close(self.body)


class Launch:
    """
    Prepares starts.

    Args:
        directories: Where the job directories are made.
        clock: Tells the time.
        executors: By job type.
        host: Identifies the manager to `failpoints`.
    """

    def __init__(
        self,
        directories: Directories,
        clock: Clock,
        executors: Mapping[str, Executor],
        host: object = None,
    ) -> None:
        self._directories = directories
        self._clock = clock
        self._executors = executors
        self._host = host
        self._boot_id = filesystem.boot_id()

    def prepare(
        self, row: Row[Any], pipeline: Row[Any] | None, base: Mapping[bytes, bytes] | None
    ) -> Request | None:
        """
        Prepare the start of a QUEUED job; None: another process is doing that.

        If its executor fails, the job does not stay QUEUED: it is claimed, and ended with that
        failure.

        Args:
            base: The environment that the command inherits; None: it is missing.

        Raises:
            StoreError, OSError: There is no space or no descriptor, or the row or the directory
                cannot be read. Nothing is held then.
        """
        prepared = self._directories.prepare(row.id.hex)
        if prepared is None:
            return None
        request = Request(row, prepared, self._boot_id, uuid4().hex, uuid4().hex)
        try:
            failpoints.reach(failpoints.DIRECTORY_PREPARED, self._host)
            job_directory.mark_unstarted(prepared.lock, request.token)
            self._fill(request, row, pipeline, base)
            failpoints.reach(failpoints.REQUEST_PREPARED, self._host)
        except BaseException:
            request.close()
            raise
        return request

    def _fill(
        self,
        request: Request,
        row: Row[Any],
        pipeline: Row[Any] | None,
        base: Mapping[bytes, bytes] | None,
    ) -> None:
        """Make the request from the executor's command, or note why that is impossible."""
        if base is None:
            # Another process may just have started the job; then the claim will fail.
            request.failure = "the environment of its submitter is not stored"
            return
        job = ClaimedJob.from_rows(row, pipeline, self._directories.path(request.name))
        try:
            command = self._executors[row.type].command(job)
            if not isinstance(command, Command):
                raise TypeError(f"the executor returned {type(command).__name__}, no Command")
            request.grace_ms = round(command.grace * 1000)
            if command.timeout is not None:
                request.timeout_ms = math.ceil(command.timeout * 1000)
            request.calls_function = is_interpreter(command)
            fields = _fields(row, command, request, base, self._directories.database)
        except BaseException as error:  # noqa: BLE001 - a host's executor may even raise SystemExit
            request.failure = _in_words(error)
            return
        try:
            request.body = encode_request(fields)
        except OSError:
            raise  # no space or no descriptor: the job stays QUEUED
        except Exception as error:  # noqa: BLE001 - a value that cannot be sent
            request.failure = _in_words(error)

    def write_verdict(self, request: Request, reason: Reason, why: str) -> None:
        """
        Write the exit record of a claimed job without a supervisor, with a line that says why.

        Raises:
            OSError: It could not be written; its free lock will show that it never started.
        """
        directory = request.prepared.directory
        now_ns = self._clock.now() * 1000
        payload = f"cannot start: {why}\n".encode("utf-8", "replace")
        data = frames.encode_header(frames.SYSTEM, 0, 0, payload.count(b"\n"), now_ns, payload)
        spool = job_directory.make_file(
            f"{job_directory.SPOOL}0", os.O_WRONLY | os.O_TRUNC, directory
        )
        try:
            job_directory.write_all(spool, data + payload)
        finally:
            os.close(spool)
        job_directory.write_exit(
            directory,
            job_directory.ExitRecord(
                token=request.token,
                reason=str(reason),
                spool_end=len(data) + len(payload),
                next_sequence=payload.count(b"\n"),
                ended_ns=now_ns,
            ),
        )
        failpoints.reach(failpoints.ENDED_HERE, self._host)


def _in_words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - its `__str__` fails, too
        return type(error).__name__


def _fields(
    row: Row[Any],
    command: Command,
    request: Request,
    base: Mapping[bytes, bytes],
    database: str,
) -> dict[str, Any]:
    """Return the request as the supervisor reads it: bytes and numbers, fully evaluated."""
    stdin: tuple[str, bytes] | None = None
    if isinstance(command.stdin, bytes):
        stdin = ("data", command.stdin)
    elif command.stdin is not None:
        stdin = ("file", encode(str(command.stdin)))
    return {
        "version": PROTOCOL_VERSION,
        "token": request.token,
        "job": row.id.hex,
        "argv": [encode(word) for word in command.words],
        "env": _environment(row, command, request.cookie, base, database),
        "cwd": encode(str(command.cwd or "/")),
        "stdin": stdin,
        "timeout": command.timeout,
        "grace": command.grace,
        "linger": command.linger,
        "stop_signal": int(command.stop_signal),
        "stop_group": command.stop_scope == "group",
        "output_limit": command.output_limit,
        "separate_streams": command.separate_streams,
        "redact": [encode(str(value)) for value in command.redact],
        "umask": command.umask,
    }


def _environment(
    row: Row[Any], command: Command, cookie: str, base: Mapping[bytes, bytes], database: str
) -> dict[bytes, bytes]:
    """Return the command's environment: the base, its own variables, then those of the job."""
    environment = dict(base) if command.inherit_env else {}
    # The command's own `env` can override these two.
    environment[b"JOBCORE_DB"] = os.fsencode(database)
    if command.unbuffered:
        environment[b"PYTHONUNBUFFERED"] = b"1"
    else:
        environment.pop(b"PYTHONUNBUFFERED", None)
    environment.update((encode(name), encode(value)) for name, value in command.env.items())
    environment[orphans.COOKIE.encode()] = cookie.encode()
    environment[b"JOBCORE_JOB_ID"] = str(row.id).encode()
    environment[b"JOBCORE_ATTEMPT"] = str(row.attempt).encode()
    environment[b"JOBCORE_WORKSPACE_ID"] = str(row.workspace_id).encode()
    environment.pop(b"JOBCORE_PIPELINE_ID", None)  # it may be that of a job this host runs in
    if row.pipeline_id is not None:
        environment[b"JOBCORE_PIPELINE_ID"] = str(row.pipeline_id).encode()
    return environment


def encode_request(fields: dict[str, Any]) -> int:
    """
    Return a descriptor of a file in memory that holds the request.

    It is registered with `forking.GATE`; close it with that.

    Raises:
        OSError: No descriptor or no memory is left. Nothing stays open.
    """
    data = marshal.dumps(fields, 2)
    with GATE:
        descriptor = system_calls.make_memory_file("jobcore-request")
        GATE.register(descriptor)
    try:
        job_directory.write_all(descriptor, data)
    except BaseException:
        GATE.close(descriptor)
        raise
    return descriptor
