"""
Wire: the forms in which a host sends jobs, logs and errors over a network.

There is no network in here: what these return, any web framework can send.

Attributes:
    HAL_TYPE: The media type of what the functions `*_to_hal` return.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from jobcore.clock import iso_utc
from jobcore.errors import JobcoreError, JobDeleted, WaitTimeout
from jobcore.fields import object_in
from jobcore.hal import HAL_TYPE, job_to_hal, jobs_to_hal, pipeline_to_hal, workspace_to_hal
from jobcore.lifecycle import Status
from jobcore.models import Job, LogLine
from jobcore.negotiation import TEXT, log_type
from jobcore.query import page, unsigned

__all__ = [
    "HAL_TYPE",
    "LogResponse",
    "error_to_object",
    "job_to_hal",
    "jobs_to_hal",
    "log_response",
    "log_type",
    "ndjson",
    "page",
    "pipeline_to_hal",
    "stop_to_object",
    "text",
    "unsigned",
    "workspace_to_hal",
]

#: Bytes that are sent at once of what is stored already. A guess between a
#: system call for each line and a client that waits for the first one.
CHUNK_BYTES = 64 * 1024
#: `json.dumps` would make one for each line, a sixth of the time.
_ENCODER = json.JSONEncoder(ensure_ascii=False)


# --- logs -----------------------------------------------------------------------


class LogResponse(NamedTuple):
    """
    What a request for a log is answered with.

    Attributes:
        content_type: The media type that was asked for; text says it is UTF-8,
            which most of it is: it is sent as the job wrote it.
        body: The bytes, read from the database as they are taken; every item
            ends at the end of a line or of a piece of one.
    """

    content_type: str
    body: Iterator[bytes]


class _Jobs(Protocol):
    """What is needed of a `JobManager`."""

    def get_job(self, job_id: UUID | str) -> Job: ...

    def logs(self, job_id: UUID | str, sequence: int = 0) -> Iterator[LogLine]: ...

    def follow(
        self, job_id: UUID | str, sequence: int = 0, timeout: float | None = None
    ) -> Iterator[LogLine]: ...


def log_response(
    jobs: _Jobs,
    job_id: UUID | str,
    *,
    sequence: str | int = 0,
    accept: str | None = None,
    follow: bool = False,
    timeout: float | None = None,
) -> LogResponse | None:
    """
    Return a job's log from the line `sequence` on, as a request asks for it.

    None stands for 204: there is no such line, and with `follow` none can come
    any more. So a client that follows in turns of `timeout`, each from the line
    behind the last it got, has the whole log when it gets a 204.

    The body ends when the job is deleted meanwhile, after a whole line.

    Args:
        jobs: The manager.
        job_id: The job.
        sequence: The number of the first line, as text or as a number.
        accept: The Accept header; None: there was none.
        follow: If the job is not final, go on with lines as they come until it
            is. Else the log is what has been written by now.
        timeout: Seconds for which it follows; then the body ends like one that
            is complete. None: as long as it takes, also when the client has
            gone: a server notices that only when it sends the next line.

    Raises:
        NotAcceptable: A log has no form that the header names.
        InvalidParameter: `sequence` is no unsigned integer.
        JobNotFound: No job has this id.
    """
    media_type = log_type(accept)
    first = unsigned(sequence, "sequence")
    form = text if media_type == TEXT else ndjson
    content_type = f"{TEXT}; charset=utf-8" if media_type == TEXT else media_type
    if follow and not jobs.get_job(job_id).status.final:
        return LogResponse(content_type, _until_the_end(form(jobs.follow(job_id, first, timeout))))
    body = _gathered(form(jobs.logs(job_id, first)))
    begin = next(body, None)
    return None if begin is None else LogResponse(content_type, _until_the_end(body, begin))


def text(lines: Iterable[LogLine]) -> Iterator[bytes]:
    """
    Yield every numbered line as it was written, with its terminator.

    A piece of a longer line has none, so that the pieces join up again; the last
    line of a stream without one gets none either. So the text is byte for byte what
    was written, and where two streams are kept apart, or jobcore says something
    itself, a line may begin in the middle of another: `ndjson` tells them apart.

    Args:
        lines: As `JobManager.logs` or `follow` returns them; what these raise is
            raised here.
    """
    for line in lines:
        yield line.raw


def ndjson(lines: Iterable[LogLine]) -> Iterator[bytes]:
    r"""
    Yield one JSON object a line, each ended by `\n`.

    Its fields: `sequence` (number), `timestamp` (ISO 8601 UTC), `stream`
    (`output`, `stdout`, `stderr` or `system`), `message` (text without its
    terminator), `fields` (object), only where the message is a JSON object (see
    `LogLine.fields`), and `partial`, only where it is true.

    Args:
        lines: As `JobManager.logs` or `follow` returns them; what these raise is
            raised here.
    """
    stamped: tuple[datetime | None, str] = (None, "")
    for line in lines:
        timestamp = line.timestamp
        if timestamp != stamped[0]:  # all lines of a frame share one
            stamped = (timestamp, iso_utc(timestamp))
        message = line.text
        entry: dict[str, Any] = {
            "sequence": line.sequence,
            "timestamp": stamped[1],
            "stream": line.stream,
            "message": message,
        }
        if line.partial:
            entry["partial"] = True
        elif (fields := object_in(message)) is not None:
            entry["fields"] = fields
        yield _ENCODER.encode(entry).encode("utf-8") + b"\n"


def _gathered(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in fewer items."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _until_the_end(rest: Iterator[bytes], begin: bytes | None = None) -> Iterator[bytes]:
    """Yield `begin` and the rest, up to the end of the job, of its being or of the time."""
    if begin is not None:
        yield begin
    try:
        yield from rest
    except (JobDeleted, WaitTimeout):
        # The status line has long been sent. What the client has are whole
        # lines; that there are no more, the next request tells it.
        return


# --- answers --------------------------------------------------------------------


def stop_to_object(job: Job) -> dict[str, Any]:
    """
    Return the message for 202: a stop was accepted.

    Args:
        job: What `JobManager.stop_job` returned.
    """
    message = (
        f"job {job.id} has been asked to stop"
        if job.status is Status.RUNNING
        else f"job {job.id} is {job.status}"  # it had no process
    )
    return {"timestamp": _now(), "status": HTTPStatus.ACCEPTED.value, "message": message}


def error_to_object(error: BaseException, path: str | None = None) -> dict[str, Any]:
    """
    Return an error as an object with `timestamp`, `status`, `error` and `message`.

    `status` is that of a `JobcoreError`, and 500 for all others; `error` is its
    name in HTTP. From 500 on the message has no details: they speak of files
    and processes, to the operator and not to the client, so log the error.

    Args:
        error: Anything that was raised.
        path: The path of the request; it is a field where it is given.
    """
    status = error.status if isinstance(error, JobcoreError) else 500
    known = status in {member.value for member in HTTPStatus}
    form = {
        "timestamp": _now(),
        "status": status,
        "error": HTTPStatus(status).phrase if known else "Unknown",
        "message": str(error) if status < 500 else _apology(error),
    }
    if path is not None:
        form["path"] = path
    return form


def _apology(error: BaseException) -> str:
    if isinstance(error, JobcoreError):
        return f"the request could not be carried out now ({type(error).__name__})"
    return "the request could not be carried out"


def _now() -> str:
    return iso_utc(datetime.now(timezone.utc))
