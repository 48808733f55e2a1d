"""Accepts the request of a host: the supervisor takes the job's lock and reads what to run."""

from __future__ import annotations

import marshal
import os

from jobcore.embedding import failpoints
from jobcore.supervisor import PROTOCOL_VERSION, NewerProtocol, job_directory
from jobcore.supervisor.spawn import Program

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any

    from jobcore.supervisor.messages import Notice
else:
    import _signal


class Request:
    """
    A request that this supervisor has accepted.

    Attributes:
        token: Identifies the run.
        lock: The supervisor's own descriptor of the lock file. It holds the byte that marks
            a running job.
        directory: A descriptor of the job directory.
        name: The name of the job directory in the root.
        program: The program to run.
        timeout: Seconds from the start, or None.
        grace: Seconds between the first signal of a stop and SIGKILL.
        linger: Seconds between SIGTERM and SIGKILL for processes that the command has left.
        stop_signal: The first signal of a stop.
        stop_group: Whether all processes of the job get that signal, or only the command.
        output_limit: Maximum bytes of output, or None.
        redact: Values to mask in the output.
        tells_left: Whether the host's version can read the number of processes that were left.
    """

    def __init__(
        self,
        token: str,
        lock: int,
        directory: int,
        fields: dict[str, Any],
        *,
        warm: bool = False,
    ) -> None:
        self.token = token
        self.lock = lock
        self.directory = directory
        self.name: str = fields["job"]
        self.program = Program(
            fields["argv"],
            fields["env"],
            fields["cwd"],
            fields["stdin"],
            fields["umask"],
            separate_streams=fields["separate_streams"],
            stdout_to=fields.get("stdout_to"),
            pty=fields.get("pty", False),
            hands_over=tuple(fields.get("hands_over", ())),
            warm=fields.get("warm") if warm else None,
        )
        self.timeout: float | None = fields["timeout"]
        self.grace: float = fields["grace"]
        self.linger: float = fields["linger"]
        # An older host does not send these, and cannot read the number of left processes.
        self.tells_left = "stop_signal" in fields
        self.stop_signal: int = fields.get("stop_signal", _signal.SIGTERM)
        self.stop_group: bool = fields.get("stop_group", False)
        self.output_limit: int | None = fields["output_limit"]
        self.redact: list[bytes] = fields["redact"]


def accept(message: Notice, descriptors: list[int]) -> Request | None:
    """
    Take over the job of a received request; None: another process has its lock.

    The lock moves from the byte of the host, which prepared it, to the byte of the
    supervisor, and is never free in between. The descriptors of the request are closed,
    except the directory, which belongs to the result; on failure it is closed, too.

    Raises:
        NewerProtocol: The request is from a newer jobcore.
        ValueError: Request and message are of different runs.
    """
    prepared_lock, directory, body = descriptors
    lock = -1
    try:
        lock = job_directory.open_lock(directory)
        if job_directory.try_lock(lock, job_directory.RUNNING):
            if failpoints.armed:
                failpoints.reach(failpoints.LOCK_TAKEN)
            preparing, running = job_directory.spans_of(message.token)
            job_directory.try_lock(lock, running)
            # Unlock, not just close: forks of the host may have copies of the descriptor.
            job_directory.unlock(prepared_lock, job_directory.PREPARING)
            job_directory.unlock(prepared_lock, preparing)
            if failpoints.armed:
                failpoints.reach(failpoints.BYTE_0_RELEASED)
            fields = _read(body)
            if fields["version"] > PROTOCOL_VERSION:
                raise NewerProtocol(fields["version"])
            if fields["token"] != message.token:
                raise ValueError("the request is of another run than its message")
            request = Request(message.token, lock, directory, fields, warm=message.number != 0)
            lock = directory = -1
            return request
        return None
    finally:
        for descriptor in (lock, prepared_lock, body, directory):
            if descriptor >= 0:
                os.close(descriptor)


def _read(descriptor: int) -> dict[str, Any]:
    size = os.fstat(descriptor).st_size
    data = b""
    # `pread`, because the file offset is shared with the host and at the end of the file.
    while len(data) < size and (chunk := os.pread(descriptor, size - len(data), len(data))):
        data += chunk
    # Safe: it comes from our host, through a socket that no other process has.
    fields: dict[str, Any] = marshal.loads(data)  # noqa: S302
    return fields
