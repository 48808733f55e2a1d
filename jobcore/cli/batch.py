"""Runs many commands as jobs in the foreground: output, progress bar and summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import UUID

from jobcore.cli import foreground, output
from jobcore.cli.log_printer import LogPrinter, row_of
from jobcore.cli.selection import THREADS
from jobcore.errors import InvalidTransition, JobNotFound
from jobcore.lifecycle import Status
from jobcore.retries import allows, delay_after

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from jobcore.manager import JobManager
    from jobcore.models import Job, LogLine
    from jobcore.retries import Retries
    from jobcore.submission import Submission

#: Number of failed jobs that the summary names.
MOST_NAMED = 20
#: Number of lines that a terminal gets at once, since each time the bar is drawn again.
LINES = 200


class Batch:
    """
    Jobs of one call, which are shown as they end. Those that fail may be tried again, all together.

    Args:
        jobs: The manager that runs them.
        retries: Which of those that have failed are tried again, and when.
        options: Further arguments of `submit_many`.
    """

    def __init__(self, jobs: JobManager, retries: Retries | None, **options: Any) -> None:
        self._jobs = jobs
        self._retries = retries
        self._options = options
        self._round: dict[UUID, Submission] = {}  # the jobs that are shown now
        self._failed: list[Job] = []
        self._began = time.monotonic()
        self.stopped = False

    def submit(self, wanted: Sequence[Submission], pause: float | None = None) -> None:
        """Create the jobs, which start after `pause` seconds at the earliest."""
        # Reserved: they must not run later, unattended.
        made = self._jobs.submit_many(wanted, not_before=pause, reserved=True, **self._options)
        self._round = dict(zip((job.id for job in made), wanted, strict=True))

    def show(self) -> int:
        """Print each job's output once it has ended, and the summary; return the exit code."""
        total = len(self._round)
        with Bar(total) as bar:
            attempt = 1
            while again := self._show_round(bar, attempt):
                self.submit([wanted for wanted, _ in again], max(pause for _, pause in again))
                if self.stopped:  # while they were created
                    self._for_all(self._jobs.cancel_job)
                attempt += 1
        self._summarize(total)
        return 1 if self._failed else 0

    def _show_round(self, bar: Bar, attempt: int) -> list[tuple[Submission, float]]:
        """Show the jobs until all have ended; return those to try again, and after what pause."""
        again: list[tuple[Submission, float]] = []
        for job in self._jobs.as_completed(self._round):
            bar.print(self._jobs.logs(job.id))
            if (pause := self._pause(job, attempt)) is not None:
                again.append((self._round[job.id], pause))
                continue
            if job.status is not Status.COMPLETE:
                self._failed.append(job)
            bar.advance(failed=len(self._failed))
        return again

    def _pause(self, job: Job, attempt: int) -> float | None:
        """Return the seconds after which a job is tried again; None: it is not."""
        policy = self._retries
        if policy is None or job.reason is None or self.stopped or job.id not in self._round:
            return None
        stop_requested = job.stop_requested is not None
        if not allows(
            policy, job.status, job.reason, attempt=attempt, stop_requested=stop_requested
        ):
            return None
        return delay_after(policy, attempt, job.id)

    def _summarize(self, total: int) -> None:
        for job in self._failed[:MOST_NAMED]:
            cause = foreground.cause(job.reason, job.exit_code, job.signal)
            output.say(f"failed: job {job.number}, {cause}: {job.command}")
        if len(self._failed) > MOST_NAMED:
            output.say(f"and {len(self._failed) - MOST_NAMED} more: jobcore list --failed")
        seconds = time.monotonic() - self._began
        output.say(
            f"{total} job{'s' if total != 1 else ''}: {total - len(self._failed)} complete, "
            f"{len(self._failed)} failed, in {output.span(seconds)}"
        )

    def stop(self) -> None:
        """Start no more jobs, and stop those that run."""
        output.say("stopping all jobs; once more kills them")
        self.stopped = True
        self._for_all(self._jobs.cancel_job)

    def kill(self) -> None:
        """Kill the jobs that run."""
        output.say("killing all jobs; once more leaves them to themselves")
        self._for_all(lambda job_id: self._jobs.stop_job(job_id, grace=0))

    def _for_all(self, step: Any) -> None:
        def safe(job_id: UUID) -> None:
            try:
                step(job_id)
            except (InvalidTransition, JobNotFound):
                pass  # it has ended

        # The newest first: if those that start next were stopped first, others would start.
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(safe, reversed(list(self._round))))


class Bar:
    """
    A progress bar on stderr, if that is a terminal, and the output of jobs on stdout.

    Args:
        total: The number of jobs.
    """

    def __init__(self, total: int) -> None:
        self._progress: Any = None
        self._printer = LogPrinter(apart=True)
        if not sys.stderr.isatty():
            return
        from rich.progress import (  # noqa: PLC0415 - not needed for pipes
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]}", style="red"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=output.console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=total, failed="")

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()

    def advance(self, *, failed: int) -> None:
        """Count one more job that has ended."""
        if self._progress is not None:
            self._progress.update(
                self._task, advance=1, failed=f"{failed} failed" if failed else ""
            )

    def print(self, lines: Iterator[LogLine]) -> None:
        """Print the output of a job above the bar."""
        if self._progress is None or not output.on_terminal():
            self._printer.print(lines)
            return
        shown: list[str] = []
        for line in lines:
            shown.append(row_of(line.text))
            if len(shown) == LINES:
                self._print_above(shown)
                shown = []
        self._print_above(shown)

    def _print_above(self, rows: Sequence[str]) -> None:
        if rows:
            self._progress.console.print(
                "\n".join(rows), markup=False, highlight=False, emoji=False, soft_wrap=True
            )
