"""The command that prints logs: of one job byte for byte, of several with marks."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from jobcore.cli import foreground, output, selection
from jobcore.cli.app import app, open_manager
from jobcore.cli.log_printer import LogPrinter, row_of
from jobcore.cli.selection import Filter
from jobcore.cli.values import count, past
from jobcore.clock import iso_utc
from jobcore.errors import CommandError, JobcoreError

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.models import Job, LogLine


#: Number of lines that are printed at once.
LINES_AT_ONCE = 500


class LogFormat(str, Enum):
    """The formats of a log."""

    TEXT = "text"
    NDJSON = "ndjson"


class Stream(str, Enum):
    """The streams of a log."""

    OUTPUT = "output"
    STDOUT = "stdout"
    STDERR = "stderr"
    SYSTEM = "system"


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise typer.BadParameter(f"{text!r} is not a regular expression: {error}") from None


@app.command()
@selection.filters("status", "failed", *selection.BY_NAME)
def logs(
    ctx: typer.Context,
    job_ids: selection.JobIds = None,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more lines until the jobs have ended.")
    ] = False,
    sequence: Annotated[
        int | None,
        typer.Option(parser=count, metavar="N", help="Begin with line N. [0]"),
    ] = None,
    tail: Annotated[
        int | None,
        typer.Option(
            parser=count, metavar="N", help="Begin with the last N lines; a long line counts once."
        ),
    ] = None,
    times: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Print the time of each line before it.")
    ] = False,
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=past,
            metavar="WHEN",
            help="Only lines since then: 5m, 18:30, or '2026-12-01 18:30'.",
        ),
    ] = None,
    grep: Annotated[
        re.Pattern[str] | None,
        typer.Option(
            parser=_pattern, metavar="REGEX", help="Only lines that match this regular expression."
        ),
    ] = None,
    stream: Annotated[
        list[Stream] | None,
        typer.Option(
            metavar="NAME",
            help="Only output, stdout, stderr or system lines; may be given again.",
        ),
    ] = None,
    form: Annotated[
        LogFormat,
        typer.Option(
            "--format",
            case_sensitive=False,
            metavar="FORMAT",
            help="text, or ndjson: one JSON object per line. [text]",
        ),
    ] = LogFormat.TEXT,
    every: Annotated[bool, typer.Option("--all", help="The logs of all jobs.")] = False,
    wanted: Filter,
) -> None:
    """
    Print the logs of jobs.

    A log has the job's output and jobcore's own lines, all on stdout. Several logs
    come one after the other, each under a title; with --follow, each line has the
    number of its job.

    \b
    Examples:
      jobcore logs -f --tail 10 3f2a
      jobcore logs --failed --grep 'Error|Traceback'
      jobcore logs --format ndjson --sequence 200 3f2a
    """  # noqa: D301
    if sequence is not None and tail is not None:
        raise CommandError("--sequence and --tail cannot be combined: give one of them")
    kept = _LineFilter(since, grep, None if not stream else {one.value for one in stream})
    with open_manager(ctx) as jobs:
        ids = selection.chosen(jobs, job_ids, wanted, every=every, verb="logs")
        if ids is None:
            found = list(selection.listed(jobs, wanted))[::-1]
        else:
            found = [jobs.get_job(one) for one in ids]
        shown = _Logs(jobs, kept, form is LogFormat.NDJSON, times, sequence or 0, tail)
        if len(found) == 1 and job_ids:
            shown.one(found[0], follow=follow)
        elif follow:
            shown.print_merged(found)
        else:
            shown.print_each(found)


class _LineFilter:
    """The lines that are printed."""

    def __init__(
        self, since: datetime | None, grep: re.Pattern[str] | None, streams: set[str] | None
    ) -> None:
        self._since_ns = None if since is None else int(since.timestamp() * 1e9)
        self._grep = grep
        self._streams = streams
        self.all = since is None and grep is None and streams is None

    def __call__(self, line: LogLine) -> bool:
        """Tell whether a line is printed."""
        return (
            (self._since_ns is None or line.time_ns >= self._since_ns)
            and (self._streams is None or line.stream in self._streams)
            and (self._grep is None or self._grep.search(line.text) is not None)
        )


@dataclass(eq=False)
class _Logs:
    """
    Prints logs as the options of `logs` say.

    Args:
        jobs: The manager that reads them.
        kept: The lines to print.
        ndjson: Print JSON objects.
        times: Print the time of each line.
        sequence: The number of the first line.
        tail: Print only this many lines, the last ones; None: all.
    """

    jobs: JobManager
    kept: _LineFilter
    ndjson: bool
    times: bool
    sequence: int
    tail: int | None
    titles: int = 0  # printed so far
    lock: threading.Lock = field(default_factory=threading.Lock)

    def one(
        self, job: Job, *, follow: bool = False, title: Callable[[], None] | None = None
    ) -> None:
        """
        Print one log: byte for byte, unless lines are chosen or have marks.

        Args:
            job: The job.
            follow: Wait for more lines until the job has ended.
            title: Prints what comes before the log. If lines are chosen, it is called only if
                the log has one.
        """
        if title is not None and self.kept.all:
            title()
            title = None
        if self.kept.all and not (self.times and not self.ndjson):
            printer = LogPrinter(self.sequence, ndjson=self.ndjson)
            if self.tail is not None:
                _print_tail(self.jobs, job.id, self.tail, printer)
        else:
            printer = _MarkedPrinter(self, title=title)
            self._print_last(job, printer)
        if follow:
            foreground.watch(self.jobs, job.id, printer)
        elif self.tail is None:
            printer.print(self.jobs.logs(job.id, printer.next_sequence))

    def print_each(self, found: Iterable[Job]) -> None:
        """Print several logs, each under a title."""
        for job in found:
            if self.ndjson:
                printer = _MarkedPrinter(self, job=job)
                self._print_last(job, printer)
                if self.tail is None:
                    printer.print(self.jobs.logs(job.id, printer.next_sequence))
            else:
                self.one(job, title=partial(self._print_title, job))

    def _print_title(self, job: Job) -> None:
        what = output.what(job)
        title = f"==> #{job.number}{f' {what}' if what else ''} <=="
        lines = [*([""] if self.titles else []), *title.split("\n")]
        output.print_lines(map(output.without_controls, lines))
        self.titles += 1

    def print_merged(self, found: list[Job]) -> None:
        """Print the lines of several jobs as they come, until all have ended."""
        width = max((len(str(job.number)) for job in found), default=0)
        errors: list[BaseException] = []

        def show(job: Job) -> None:
            printer = _MarkedPrinter(self, f"#{job.number:<{width}} | ", job=job)
            try:
                self._print_last(job, printer)
                foreground.watch(self.jobs, job.id, printer)
            except (JobcoreError, OSError) as error:
                errors.append(error)

        threads = [threading.Thread(target=show, args=(job,), daemon=True) for job in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _print_last(self, job: Job, printer: _MarkedPrinter) -> None:
        """Print the last lines of those that are kept, if only these are wanted."""
        if self.tail is None:
            return
        end = self.jobs.get_job(job.id).line_count
        lines = self.jobs.logs(job.id, self.sequence, unfinished=False)
        last = deque(filter(self.kept, itertools.islice(lines, end)), self.tail)
        printer.print(last)
        printer.next_sequence = end


class _MarkedPrinter(LogPrinter):
    """
    Prints lines that have ended, each with its marks.

    Args:
        logs: The logs that it belongs to. Their lock is held while printing.
        mark: What comes before each line.
        job: The job, for JSON; None: it is not named.
        title: Prints what comes before the first of these lines.
    """

    def __init__(
        self,
        logs: _Logs,
        mark: str = "",
        *,
        job: Job | None = None,
        title: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(logs.sequence)
        self._logs = logs
        self._mark = mark
        self._job = {} if job is None else {"job": str(job.id)}
        self._title = title
        self._texts: list[str] = []

    def print(self, lines: Iterable[LogLine]) -> None:
        """Print lines, and flush them before returning; unfinished ones once they have ended."""
        for line in self._noted(lines):
            if not line.unfinished and self._logs.kept(line):
                self._texts.append(self._text(line))
                if len(self._texts) == LINES_AT_ONCE:
                    self.flush()
        self.flush()

    def flush(self) -> None:
        """Print what has been collected."""
        texts, self._texts = self._texts, []
        if texts:
            with self._logs.lock:
                if self._title is not None:
                    self._title()
                    self._title = None
                output.print_lines(texts)

    def _text(self, line: LogLine) -> str:
        if self._logs.ndjson:
            return json.dumps({**self._job, **line.to_object()}, ensure_ascii=output.on_terminal())
        terminal = output.on_terminal()
        time = ""
        if self._logs.times:
            time = (output.local if terminal else iso_utc)(line.timestamp) + "  "
        return f"{self._mark}{time}{row_of(line.text) if terminal else line.text}"


def _print_tail(jobs: JobManager, job_id: UUID, count: int, printer: LogPrinter) -> None:
    """Print the last `count` lines, and set the printer to the number after them."""
    while True:
        printer.next_sequence = jobs.get_job(job_id).line_count
        lines = jobs.tail(job_id, count)
        first = next(lines, None)
        if first is not None and not first.unfinished:
            printer.print(itertools.chain([first], lines))
            return
        # No numbered line shows the number after it, so the log must not have grown.
        if jobs.get_job(job_id).line_count == printer.next_sequence:
            printer.print([] if first is None else [first, *lines])
            return
