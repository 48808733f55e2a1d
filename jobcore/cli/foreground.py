"""
Shows a job in the foreground, and handles Ctrl-C and SIGTERM for it.

The signals are blocked in every thread, and one thread waits for them. So no handler runs in
the middle of a transaction, and that thread can call the manager like any other thread.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from jobcore.cli import output
from jobcore.cli.log_printer import LogPrinter
from jobcore.errors import InvalidTransition, JobcoreError, WaitTimeout
from jobcore.lifecycle import Reason, Status

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.models import Job

#: Seconds between two checks whether a job has started.
PAUSE = 0.05
#: What `run` says of a job that does not start, by `Job.waits_for`.
_WAITING = {
    "dependencies": "a job of --after has not ended; see jobcore list",
    "limit": "as many jobs run as a limit allows; see jobcore limit",
    "paused": "the queue is paused, or the group or type of the job; see jobcore limit",
}
#: Signals that ask a foreground process to end. SIGHUP is not included: closing the terminal
#: ends this process, and the job keeps running.
_ENDING = (signal.SIGINT, signal.SIGTERM)
#: Seconds within which two signals count as one, because `timeout` and service managers signal
#: both the process and its group.
ONE_SIGNAL = 1.0


def block_signals() -> set[signal.Signals]:
    """
    Block SIGINT and SIGTERM in this thread and in threads that are started from now on.

    Returns:
        The signals to wait for. Ignored ones are not included; `nohup` and a shell's `&`
        ignore some.
    """
    blocked = {one for one in _ENDING if signal.getsignal(one) is not signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    return blocked


class Interrupts:
    """
    Calls the next step of ending at each signal; two signals within a second count as one.

    Create it before the manager, whose threads inherit the blocked signals. Until `arm`, a
    signal ends this process at once, because there is nothing to lose yet. Afterwards each
    step runs in its own thread, and waits for `expect` and for the step before.
    """

    def __init__(self) -> None:
        self._signals = block_signals()
        self._armed = False
        self._steps: list[Callable[[], None]] = []
        self._count = 0
        self._known = threading.Event()
        self._turn = threading.Lock()
        if self._signals:
            threading.Thread(target=self._serve, name="jobcore-interrupts", daemon=True).start()

    def arm(self) -> None:
        """From now on, let signals wait for `expect`."""
        self._armed = True

    def expect(self, *steps: Callable[[], None]) -> None:
        """Call one step per signal, in order. A signal after the last step ends this process."""
        self._steps.extend(steps)
        self._count = len(steps)
        self._known.set()

    def _serve(self) -> None:
        for taken, number in enumerate(_distinct(self._signals)):
            if not self._armed or (self._known.is_set() and taken >= self._count):
                os._exit(128 + number)
            # In a thread: a step may wait for the database, and later signals must not wait.
            threading.Thread(
                target=self._take_step, args=(number,), name="jobcore-interrupt", daemon=True
            ).start()

    def _take_step(self, number: int) -> None:
        self._known.wait()
        with self._turn:
            if not self._steps:
                os._exit(128 + number)
            try:
                self._steps.pop(0)()
            except Exception as error:  # noqa: BLE001 - the next signal must still be handled
                output.say(str(error))


def _distinct(signals: set[signal.Signals]) -> Iterator[int]:
    """Wait for these blocked signals and yield each; two within a second count as one."""
    last = -math.inf
    while True:
        number = signal.sigwait(signals)
        now = time.monotonic()
        if now - last >= ONE_SIGNAL:
            last = now
            yield number


def end_at_next(signals: set[signal.Signals]) -> None:
    """Let the next of these signals end this process, except those within the next second."""

    def serve() -> None:
        until = time.monotonic() + ONE_SIGNAL
        while (left := until - time.monotonic()) > 0:
            signal.sigtimedwait(signals, left)
        os._exit(128 + signal.sigwait(signals))

    threading.Thread(target=serve, name="jobcore-interrupts", daemon=True).start()


def stop(jobs: JobManager, job_id: UUID) -> None:
    """Stop a QUEUED or RUNNING job, with a message. No-op if the job has ended."""
    output.say(f"stopping job {job_id}; once more kills it")
    try:
        jobs.cancel_job(job_id)
    except InvalidTransition:
        pass  # it has just ended


def kill(jobs: JobManager, job_id: UUID) -> None:
    """Kill a job, with a message. No-op if the job has ended."""
    output.say(f"killing job {job_id}; once more leaves it to itself")
    try:
        jobs.stop_job(job_id, grace=0)
    except InvalidTransition:
        pass  # it has just ended


def hint(argv: Sequence[str]) -> None:
    """Print a hint at a likely mistake in a command that could not be started."""
    program = argv[0]
    if re.fullmatch(r"[A-Za-z_]\w*=.*", program, re.DOTALL):
        output.say(
            f"{program.partition('=')[0]}=... is taken as a program's name; a variable needs --env"
        )
    elif len(argv) == 1 and re.search(r"[\s|&;<>()$`*?~]", program):
        output.say(f"{program[:100]!r} is taken as a program's name; a shell's line needs --shell")


def wait_for_start(jobs: JobManager, job_id: UUID) -> Job:
    """
    Wait until the job is no longer QUEUED, and return it.

    Says what keeps it waiting for over a second.
    """
    began = time.monotonic()
    said = None
    while (job := jobs.get_job(job_id)).status is Status.QUEUED:
        if job.waits_for != said and time.monotonic() - began > 1:
            said = job.waits_for
            if said in _WAITING:
                output.say(f"waiting: {_WAITING[said]}")
        _pause(jobs, job_id)
    return job


class _Delays(logging.Handler):
    """Prints on stderr what keeps a job waiting, each text once."""

    #: The events in jobcore's log that it prints.
    NAMES = ("output held back", "dispatcher waits")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record if it is about a delay."""
        text = record.getMessage()
        is_delay = any(f"event={name!r}" in text for name in self.NAMES)
        if is_delay and "DatabaseGone" not in text and text not in self._said:
            self._said.add(text)
            output.say(f"waiting: {text.removeprefix('event=')}")


def print_delays() -> None:
    """From now on, print on stderr what keeps jobs of this process waiting, e.g. a full disk."""
    logging.getLogger("jobcore").addHandler(_Delays())


def print_state(jobs: JobManager, job_id: UUID) -> None:
    """Print the state of a job that is not shown any more; nothing if it cannot be read."""
    try:
        job = jobs.get_job(job_id)
    except (OSError, JobcoreError):
        return
    if job.status.final:
        output.say(ending(job))
    elif job.status is Status.RUNNING:
        output.say(f"job {job_id} keeps running")


def watch(jobs: JobManager, job_id: UUID, printer: LogPrinter) -> Job:
    """
    Print the job's lines as they come, from the printer's next one on; return the final job.

    They are flushed before each wait.
    """
    job = jobs.get_job(job_id)  # before the lines: if it is final, these are all lines
    if job.status.final:
        printer.print(jobs.logs(job_id, printer.next_sequence))
        return job
    printer.print(jobs.follow(job_id, printer.next_sequence, on_wait=printer.flush))
    return jobs.get_job(job_id)


def _pause(jobs: JobManager, job_id: UUID) -> None:
    try:
        jobs.wait(job_id, PAUSE)
    except WaitTimeout:
        pass  # the usual case: check again


def exit_code(job: Job) -> int:
    """Return 0 for a COMPLETE job; else the job's exit code, or 1 if that is None or 0."""
    return 0 if job.status is Status.COMPLETE else job.exit_code or 1


def ending(job: Job) -> str:
    """Return how the job ended, as text."""
    by = "" if job.signal is None else f", {_signal_name(job.signal)}"
    return f"job {output.label(job)} is {job.status}: {job.reason}{by}"


def cause(reason: Reason | None, exit_code: int | None, number: int | None) -> str:
    """Return in a few words why a job is not COMPLETE, such as `exit code 3` or `SIGKILL`."""
    if reason is Reason.SIGNALED and number is not None:
        return _signal_name(number)
    if reason is Reason.EXITED and exit_code is not None:
        return f"exit code {exit_code}"
    return str(reason)


def _signal_name(number: int) -> str:
    """Return the name of a signal, or its number: most real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
