"""A request that was accepted: it is settled who runs the job."""

from __future__ import annotations

import marshal
import os

from jobcore.embedding import failpoints
from jobcore.supervisor import PROTOCOL_VERSION, NewerProtocol, job_directory
from jobcore.supervisor.spawn import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any

    from jobcore.supervisor.host_channel import Request
else:
    import _signal


class Order:
    """
    What a host wants to be run.

    Attributes:
        token: The run.
        lock: Our own descriptor of the lock file; it holds the byte of the running job.
        directory: The job directory.
        name: What that is called in the directory of all jobs.
        command: What to run.
        timeout: Seconds from the start on, or None.
        grace: Seconds between the first signal of a stop and SIGKILL.
        linger: Seconds between SIGTERM and SIGKILL for what the command has left.
        stop_signal: The first signal of a stop.
        stop_group: Whether all processes of the job get it, not the command alone.
        output_limit: Bytes of output, or None.
        redact: Values to be masked in the output.
        tells_left: Whether the host can read how many processes the command has left.
    """

    __slots__ = (
        "command",
        "directory",
        "grace",
        "linger",
        "lock",
        "name",
        "output_limit",
        "redact",
        "stop_group",
        "stop_signal",
        "tells_left",
        "timeout",
        "token",
    )

    def __init__(self, token: str, lock: int, directory: int, fields: dict[str, Any]) -> None:
        self.token = token
        self.lock = lock
        self.directory = directory
        self.name: str = fields["job"]
        self.command = Command(
            fields["argv"],
            fields["env"],
            fields["cwd"],
            fields["stdin"],
            fields["umask"],
            separate_streams=fields["separate_streams"],
        )
        self.timeout: float | None = fields["timeout"]
        self.grace: float = fields["grace"]
        self.linger: float = fields["linger"]
        # An older host does not know these, nor what the command has left.
        self.tells_left = "stop_signal" in fields
        self.stop_signal: int = fields.get("stop_signal", _signal.SIGTERM)
        self.stop_group: bool = fields.get("stop_group", False)
        self.output_limit: int | None = fields["output_limit"]
        self.redact: list[bytes] = fields["redact"]


def accept(request: Request) -> Order | None:
    """
    Become the one who runs the job; None where somebody already is.

    The lock moves from the byte of the host that prepared it to the byte of
    the supervisor, and is never free in between. What came with the request is
    closed, but for the directory: that is the order's then, or closed on failure.

    Raises:
        NewerProtocol: The request is of a newer jobcore.
        ValueError: It is of another run than its message.
    """
    lock = -1
    try:
        lock = job_directory.open_lock(request.directory)
        if job_directory.try_lock(lock, job_directory.RUNNING):
            failpoints.reach(failpoints.LOCK_TAKEN)
            preparing, running = job_directory.spans_of(request.token)
            job_directory.try_lock(lock, running)
            # For every copy, too, that a fork of the host may have made.
            job_directory.unlock(request.lock, job_directory.PREPARING)
            job_directory.unlock(request.lock, preparing)
            failpoints.reach(failpoints.BYTE_0_RELEASED)
            fields = _read(request.body)
            if fields["version"] > PROTOCOL_VERSION:
                raise NewerProtocol(fields["version"])
            if fields["token"] != request.token:
                raise ValueError("the request is of another run than its message")
            order = Order(request.token, lock, request.directory, fields)
            lock = request.directory = -1
            return order
        return None
    finally:
        for descriptor in (lock, request.lock, request.body, request.directory):
            if descriptor >= 0:
                os.close(descriptor)


def _read(descriptor: int) -> dict[str, Any]:
    size = os.fstat(descriptor).st_size
    data = b""
    # The offset is the host's, behind the last byte.
    while len(data) < size and (chunk := os.pread(descriptor, size - len(data), len(data))):
        data += chunk
    # From our own host, through a socket that only it has.
    fields: dict[str, Any] = marshal.loads(data)  # noqa: S302
    return fields
