"""What `work` reports: each start and end, to people or as JSON; its own state, to systemd."""

from __future__ import annotations

import logging
import os
import socket
import sys
from abc import ABC, abstractmethod
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from jobcore.cli import foreground, output
from jobcore.lifecycle import FINAL, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobcore.manager import JobManager
    from jobcore.models import Event


class Report(ABC):
    """Tells about the starts and ends of this process's jobs, and knows which run."""

    def __init__(self) -> None:
        self._started: dict[UUID, datetime] = {}  # changed by the manager's thread alone

    def listen(self, jobs: JobManager) -> None:
        """Tell what happens through this manager."""
        jobs.subscribe(self._report)

    def _report(self, event: Event) -> None:
        if event.to_status is Status.RUNNING and event.from_status is Status.QUEUED:
            self._started[event.job_id] = event.at
            self.started(event)
        elif event.to_status in FINAL:
            began = self._started.pop(event.job_id, None)
            self.ended(event, None if began is None else _seconds(began, event.at))

    @property
    def running(self) -> list[UUID]:
        """The jobs that were started here and have not ended; read it when none can start."""
        return list(self._started)

    @abstractmethod
    def started(self, event: Event) -> None:
        """Tell that a job has started."""

    @abstractmethod
    def ended(self, event: Event, seconds: float | None) -> None:
        """Tell how a job has ended, and how long it took."""


class ForPeople(Report):
    """
    Prints a line for each start and end, and for each warning.

    Args:
        what: Returns the name or the command of an event's job.
    """

    def __init__(self, what: Callable[[Event], str]) -> None:
        super().__init__()
        self._what = what
        logging.getLogger("jobcore").addHandler(_Warnings())

    def started(self, event: Event) -> None:
        """Print that a job has started."""
        self._print(event, "started")

    def ended(self, event: Event, seconds: float | None) -> None:
        """Print how a job has ended, and how long it took."""
        words = str(event.to_status)
        if seconds is not None:
            words += f" in {output.span(seconds)}"
        if event.to_status is not Status.COMPLETE:
            words += f", {foreground.cause(event.reason, event.exit_code, event.signal)}"
        self._print(event, words)

    def _print(self, event: Event, words: str) -> None:
        at = output.clock(event.at)
        what = self._what(event)
        line = f"{at}  #{event.job_number} {words}{f': {what}' if what else ''}"
        output.print_lines([output.without_controls(line)])


class _Warnings(logging.Handler):
    """Prints warnings of jobcore on stderr."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        output.say(f"{record.levelname.lower()}: {record.getMessage().removeprefix('event=')}")


class ForLogs(Report):
    """Writes JSON lines to stderr: each start and end, and what jobcore itself logs."""

    def __init__(self) -> None:
        super().__init__()
        import structlog  # noqa: PLC0415 - not needed on a terminal

        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                _in_order,
                structlog.processors.JSONRenderer(default=str),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
        self._log = structlog.get_logger("jobcore")

    def started(self, event: Event) -> None:
        """Log that a job has started."""
        self._log.info("job started", **self._facts(event))

    def ended(self, event: Event, seconds: float | None) -> None:
        """Log how a job has ended."""
        log = self._log.info if event.to_status is Status.COMPLETE else self._log.warning
        log(
            "job ended",
            **self._facts(event),
            status=str(event.to_status),
            reason=str(event.reason),
            exit_code=event.exit_code,
            signal=event.signal,
            seconds=seconds,
        )

    @staticmethod
    def _facts(event: Event) -> dict[str, Any]:
        return {"job": str(event.job_id), "number": event.job_number, "name": event.name}


def _in_order(_logger: Any, _method: str, entry: Any) -> dict[str, Any]:
    """Put the time, the level and the event first."""
    first = ("timestamp", "level", "event")
    return {**{name: entry.pop(name, None) for name in first}, **entry}


def _seconds(start: datetime, end: datetime) -> float:
    return round(max((end - start).total_seconds(), 0), 3)


def notify(state: str) -> None:
    """
    Tell the service manager, if there is one, about the state of this process.

    Args:
        state: `READY=1`, `STOPPING=1` and so on, as `sd_notify` documents.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError as error:
        output.say(f"cannot send {state} to the service manager: {error.strerror or error}")
