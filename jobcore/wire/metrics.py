"""Statistics as text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jobcore.models import Statistics

#: The media type of the text.
METRICS_TYPE = "text/plain; version=0.0.4"


def prometheus(statistics: Statistics) -> str:
    """
    Return statistics as text for Prometheus, for a service to send or a textfile collector to read.

    Args:
        statistics: What `JobManager.statistics` returned.
    """
    return "".join(f"{line}\n" for line in _lines(statistics))


def _lines(found: Statistics) -> Iterator[str]:
    window = f"{(found.at - found.since).total_seconds():g}"
    for name, about, values in (
        ("jobs_created_total", "Jobs that were ever created.", found.created),
        ("jobs", "Jobs by status.", _labelled("status", found.jobs)),
        ("window_seconds", "The span of the metrics about ended jobs.", window),
        ("ended_jobs", "Jobs that ended in the window.", _labelled("status", found.ended)),
        (
            "ended_jobs_by_reason",
            "Jobs that ended in the window.",
            _labelled("reason", found.reasons),
        ),
        (
            "job_duration_seconds",
            "Time from start to end of jobs that ended in the window.",
            _labelled("quantile", found.durations),
        ),
        (
            "job_wait_seconds",
            "Time for which jobs that ended in the window had waited for their start.",
            _labelled("quantile", found.waits),
        ),
        (
            "queue_age_seconds",
            "How long the oldest job that may start has been waiting.",
            0 if found.queue_age is None else found.queue_age,
        ),
        (
            "running_age_seconds",
            "How long the longest running job has been running.",
            0 if found.running_age is None else found.running_age,
        ),
        ("file_bytes", "Size of the database.", found.file_size),
        ("free_bytes", "Space in the database that is free for new rows.", found.free_size),
        ("log_bytes", "Size of the write-ahead log.", found.log_size),
    ):
        yield from _metric(name, about, values if isinstance(values, dict) else {"": values})


def _labelled(label: str, values: Mapping[Any, Any]) -> dict[str, Any]:
    return {f'{{{label}="{key}"}}': value for key, value in values.items()}


def _metric(name: str, about: str, values: Mapping[str, Any]) -> Iterator[str]:
    if not values:
        return
    kind = "counter" if name.endswith("_total") else "gauge"
    yield f"# HELP jobcore_{name} {about}"
    yield f"# TYPE jobcore_{name} {kind}"
    for labels, value in values.items():
        yield f"jobcore_{name}{labels} {value}"
