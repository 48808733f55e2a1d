"""
One job that runs while its caller watches, and what Ctrl-C and SIGTERM do to it.

The signals are blocked in every thread, and one thread waits for them. So no
handler ever runs in the middle of a transaction, and that thread may call the
manager like any other.
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
from jobcore.errors import InvalidTransition, JobcoreError, WaitTimeout
from jobcore.lifecycle import Status

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.models import Job

#: Seconds between two looks at a job that is to start at once.
PAUSE = 0.05
#: What asks a foreground process to end. SIGHUP is not among them: a closed
#: terminal ends this process, and the job lives on.
_ENDING = (signal.SIGINT, signal.SIGTERM)
#: Seconds within which two signals are one: `timeout` and service managers send theirs to the
#: process and to its group.
ONE_SIGNAL = 1.0


def block_signals() -> set[signal.Signals]:
    """
    Keep SIGINT and SIGTERM waiting, here and in threads started from now on.

    Returns:
        Those to be waited for: not the ones that were ignored, as `nohup` and a
        shell's `&` do.
    """
    blocked = {one for one in _ENDING if signal.getsignal(one) is not signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    return blocked


class Interrupts:
    """
    Calls one step of ending a signal, each in a thread of its own; two within a second are one.

    Make it before the manager, whose threads inherit what is blocked. Until
    `arm` a signal ends this process at once: there is nothing to lose yet.
    From then on a step waits for `expect`, and for the step before.
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
        """Have signals wait for `expect` from now on."""
        self._armed = True

    def expect(self, *steps: Callable[[], None]) -> None:
        """Call the first step at the first signal, and so on; one beyond the last ends us."""
        self._steps.extend(steps)
        self._count = len(steps)
        self._known.set()

    def _serve(self) -> None:
        for taken, number in enumerate(_distinct(self._signals)):
            if not self._armed or (self._known.is_set() and taken >= self._count):
                os._exit(128 + number)
            # A step may wait for the database, and the next signal is to be timed all the same.
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
            except Exception as error:  # noqa: BLE001 - the next signal must be served, too
                output.say(str(error))


def _distinct(signals: set[signal.Signals]) -> Iterator[int]:
    """Wait for these signals, which are blocked, and yield each; two within a second are one."""
    last = -math.inf
    while True:
        number = signal.sigwait(signals)
        now = time.monotonic()
        if now - last >= ONE_SIGNAL:
            last = now
            yield number


def end_at_next(signals: set[signal.Signals]) -> None:
    """Have the next of these signals end this process, unless it belongs to one that just came."""

    def serve() -> None:
        until = time.monotonic() + ONE_SIGNAL
        while (left := until - time.monotonic()) > 0:
            signal.sigtimedwait(signals, left)
        os._exit(128 + signal.sigwait(signals))

    threading.Thread(target=serve, name="jobcore-interrupts", daemon=True).start()


def stop(jobs: JobManager, job_id: UUID) -> None:
    """Stop the job, QUEUED or RUNNING; say so. Harmless when it is over."""
    output.say(f"stopping job {job_id}; once more kills it")
    try:
        jobs.cancel_job(job_id)
    except InvalidTransition:
        pass  # it has just ended


def kill(jobs: JobManager, job_id: UUID) -> None:
    """Kill the job; say so. Harmless when it is over."""
    output.say(f"killing job {job_id}; once more leaves it to itself")
    try:
        jobs.stop_job(job_id, grace=0)
    except InvalidTransition:
        pass  # it has just ended


def hint(argv: Sequence[str]) -> None:
    """Say what may have been meant by a command that could not be started."""
    program = argv[0]
    if re.fullmatch(r"[A-Za-z_]\w*=.*", program, re.DOTALL):
        output.say(
            f"{program.partition('=')[0]}=... is taken as a program's name; a variable needs --env"
        )
    elif len(argv) == 1 and re.search(r"[\s|&;<>()$`*?~]", program):
        output.say(f"{program[:100]!r} is taken as a program's name; a shell's line needs --shell")


def wait_for_start(jobs: JobManager, job_id: UUID) -> None:
    """
    Return when the job is no longer QUEUED.

    Raises:
        SpawnError: Supervisors cannot be started here for it.
    """
    while jobs.get_job(job_id).status is Status.QUEUED:
        _pause(jobs, job_id)


class _Delays(logging.Handler):
    """Says on stderr, once each, what keeps a job waiting."""

    #: The events that it tells of, in jobcore's log.
    NAMES = ("output held back", "dispatcher waits")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        text = record.getMessage()
        is_delay = any(f"event={name!r}" in text for name in self.NAMES)
        if is_delay and "DatabaseGone" not in text and text not in self._said:
            self._said.add(text)
            output.say(f"waiting: {text.removeprefix('event=')}")


def tell_delays() -> None:
    """Say on stderr from now on what keeps jobs of this process waiting, such as a full disk."""
    logging.getLogger("jobcore").addHandler(_Delays())


def take_leave(jobs: JobManager, job_id: UUID) -> None:
    """Say what is true of a job that is not watched any more; nothing where that is not known."""
    try:
        job = jobs.get_job(job_id)
    except (OSError, JobcoreError):
        return
    if job.status.final:
        output.say(ending(job))
    elif job.status is Status.RUNNING:
        output.say(f"job {job_id} keeps running")


def watch(jobs: JobManager, job_id: UUID, printer: output.LogPrinter) -> Job:
    """
    Print the job's lines from the printer's next one on as they come, and return the final job.

    What is there is printed in one go and flushed before any waiting; what a
    follower waits for is only when to look again.

    Raises:
        JobDeleted: It was deleted meanwhile.
    """
    while True:
        job = jobs.get_job(job_id)  # before the lines: if it is final, these are all
        printer.print(jobs.logs(job_id, printer.next_sequence))
        if job.status.final:
            return job
        for line in jobs.follow(job_id, printer.next_sequence):
            if line not in printer.unfinished:
                break  # a line more, or more of one; without any the job has ended


def _pause(jobs: JobManager, job_id: UUID) -> None:
    try:
        jobs.wait(job_id, PAUSE)
    except WaitTimeout:
        pass  # the usual case: time for another look


def exit_code(job: Job) -> int:
    """Return the exit code of a process that stands for the job: its own, 1 where that lies."""
    return 0 if job.status is Status.COMPLETE else job.exit_code or 1


def ending(job: Job) -> str:
    """Return how the job ended, in words."""
    by = "" if job.signal is None else f", {_signal_name(job.signal)}"
    return f"job {job.id} is {job.status}: {job.reason}{by}"


def _signal_name(number: int) -> str:
    """Return the name of a signal; most real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
