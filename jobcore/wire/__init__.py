"""
Wire: jobs, logs and errors in the forms in which a host sends them over a network.

It does no I/O; any web framework can send what these functions return. Services, the manager
and the command line import it. It runs in the thread or event loop that handles a request.

Attributes:
    HAL_TYPE: The media type of the results of the functions `*_to_hal`.
    METRICS_TYPE: The media type of the result of `prometheus`.
"""

from __future__ import annotations

from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any

from jobcore.clock import iso_utc
from jobcore.errors import JobcoreError
from jobcore.lifecycle import Status
from jobcore.models import Job
from jobcore.wire.accept import log_type
from jobcore.wire.hal import HAL_TYPE, job_to_hal, jobs_to_hal, pipeline_to_hal, workspace_to_hal
from jobcore.wire.log_forms import ndjson, sse, text
from jobcore.wire.log_response import (
    AsyncLogResponse,
    Followers,
    LogResponse,
    log_response,
    log_response_async,
)
from jobcore.wire.metrics import METRICS_TYPE, prometheus
from jobcore.wire.parameters import page, unsigned
from jobcore.wire.wsgi import watch_client

__all__ = [
    "HAL_TYPE",
    "METRICS_TYPE",
    "AsyncLogResponse",
    "Followers",
    "LogResponse",
    "error_to_object",
    "job_to_hal",
    "jobs_to_hal",
    "log_response",
    "log_response_async",
    "log_type",
    "ndjson",
    "page",
    "pipeline_to_hal",
    "prometheus",
    "sse",
    "stop_to_object",
    "text",
    "unsigned",
    "watch_client",
    "workspace_to_hal",
]

# --- answers --------------------------------------------------------------------


def stop_to_object(job: Job) -> dict[str, Any]:
    """
    Return the body of a response with status 202: a stop request was accepted.

    Args:
        job: The job, as `JobManager.stop_job` returned it.
    """
    message = (
        f"job {job.id} has been asked to stop"
        if job.status is Status.RUNNING
        else f"job {job.id} is {job.status}"  # it had no process, and has ended
    )
    return {"timestamp": _now(), "status": HTTPStatus.ACCEPTED.value, "message": message}


def error_to_object(error: BaseException, path: str | None = None) -> dict[str, Any]:
    """
    Return an error as an object with `timestamp`, `status`, `error` and `message`.

    `status` is the status of a `JobcoreError`, and 500 for any other exception; `error` is
    its HTTP reason phrase. If the status is 500 or more, the message contains no details,
    because they are about files and processes and not for clients. Log the error yourself.

    Args:
        error: Any exception.
        path: The path of the request. If given, the object has a field `path`.
    """
    status = error.status if isinstance(error, JobcoreError) else 500
    known = status in {member.value for member in HTTPStatus}
    form = {
        "timestamp": _now(),
        "status": status,
        "error": HTTPStatus(status).phrase if known else "Unknown",
        "message": str(error) if status < 500 else _internal_error_text(error),
    }
    if path is not None:
        form["path"] = path
    return form


def _internal_error_text(error: BaseException) -> str:
    if isinstance(error, JobcoreError):
        return f"the request could not be carried out now ({type(error).__name__})"
    return "the request could not be carried out"


def _now() -> str:
    return iso_utc(datetime.now(timezone.utc))
