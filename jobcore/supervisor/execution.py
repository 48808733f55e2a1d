"""
Runs one job, from the accepted request to its exit record, in one loop in one thread.

Exit, stop, timeout and shutdown are all handled in this loop. So the first one that is seen
decides the outcome, which is written once. The loop does not wait itself; it yields the time
of its next step, so that one thread can run several of them.
"""

from __future__ import annotations

import os
import select
import time

from jobcore.embedding import failpoints
from jobcore.supervisor import job_directory, messages, result_file, spawn
from jobcore.supervisor.capture import Capture
from jobcore.supervisor.file_upkeep import FileUpkeep
from jobcore.supervisor.host_channel import Notices
from jobcore.supervisor.process_tree import ProcessTree
from jobcore.supervisor.spool import GONE, NO_SPACE
from jobcore.supervisor.stop_requests import StopRequests
from jobcore.supervisor.termination import Termination
from jobcore.supervisor.values import ValueReader
from jobcore.supervisor.warm import Warm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from jobcore.supervisor.capture import ProgressReader
    from jobcore.supervisor.host_channel import HostChannel
    from jobcore.supervisor.request import Request
    from jobcore.supervisor.spawn import Child, Program
    from jobcore.supervisor.stop_requests import Shutdown

# All in seconds.
_RETRY = 1.0  # between two attempts on a full disk
_RECORD_FOR = 60.0  # attempts to write the exit record, after errors other than a full disk
_RECORD_GONE_FOR = 5.0  # the same, if the directory is gone
_ABANDON_FOR = 10.0  # killing the processes of a job that cannot be recorded


_MOMENT = 0.0001  # seconds; without preemption, reading two clocks takes a microsecond
_READINGS = 10  # attempts; if a busy machine preempts them all, the last one counts


class PollSet:
    """The descriptors that the only thread of a supervisor waits for."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._events: dict[int, int] = {}

    @property
    def events(self) -> dict[int, int]:
        """The events to wait for, by descriptor, so that several sets can be polled at once."""
        return dict(self._events)

    def add(
        self, descriptor: int, handler: Callable[[], None], events: int = select.POLLIN
    ) -> None:
        """Call `handler` when one of `events` occurs or the other end is closed."""
        self._handlers[descriptor] = handler
        self._events[descriptor] = events
        self._poll.register(descriptor, events)

    def change(self, descriptor: int, events: int) -> None:
        """Change the events of a descriptor, if it is watched."""
        if descriptor in self._handlers:
            self._events[descriptor] = events
            self._poll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Stop watching a descriptor, if it is watched."""
        if self._handlers.pop(descriptor, None) is not None:
            del self._events[descriptor]
            self._poll.unregister(descriptor)

    def close(self, descriptor: int) -> None:
        """Stop watching a descriptor and close it; a negative one is ignored."""
        self.forget(descriptor)
        if descriptor >= 0:
            os.close(descriptor)

    def wait(self, milliseconds: int) -> bool:
        """Wait for events, call their handlers, and tell whether there were any."""
        ready = self._poll.poll(milliseconds)
        for descriptor, _ in ready:
            handler = self._handlers.get(descriptor)
            if handler is not None:  # an earlier handler of this round may have removed it
                handler()
        return bool(ready)


class Machine:
    """
    The machine that a job runs on. Tests replace it by one with a manual clock and no processes.

    Attributes:
        longest_round: Seconds after which an execution checks its processes even if nothing
            has woken it. An orphan that ends while the command runs is reaped within this
            time.
        blind_round: The same, when no descriptor reports the awaited end.
    """

    longest_round = 5.0
    blind_round = 0.05

    def time_ns(self) -> int:
        """Return wall time in nanoseconds."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Return seconds since an arbitrary fixed moment."""
        return time.monotonic()

    def spawn(
        self, program: Program, *, directory: int, oom_score: bytes | None, warm: Warm
    ) -> Child:
        """
        Start the command, as `spawn.spawn` does.

        Raises:
            StartError: No process could be created.
        """
        suits = program.warm is not None and program.stdin is not None and not program.pty
        forks = warm.fork_or_start if suits else None
        return spawn.spawn(program, directory=directory, oom_score=oom_score, forks=forks)

    def tree(self, child: Child, others: set[int]) -> ProcessTree:
        """Return the process tree of the child that was spawned last, without these children."""
        return ProcessTree(child.pid, others)


def read_clocks(machine: Machine) -> tuple[float, int]:
    """
    Return the monotonic clock in seconds, and the wall time of the same moment in nanoseconds.

    If the thread is preempted between the two readings, they are of different moments, and
    times that are computed from them are wrong by the length of the pause. A job would seem to
    have ended before its last line was written, or before its grace was over.
    """
    before = machine.monotonic()
    for reading in range(1, _READINGS + 1):
        wall = machine.time_ns()
        after = machine.monotonic()
        # The monotonic clock is read first, so a remaining pause makes an end too late, never
        # earlier than what happened before it.
        if after - before <= _MOMENT or reading == _READINGS:
            break
        before = after
    return before, wall


class Identity:
    """
    Facts about the supervisor that are the same for all jobs.

    Attributes:
        pid, boot_id, pid_namespace: For the `run` record; None: `/proc` does not provide it.
        oom_score: The inherited `oom_score_adj`, which commands get; None: it is unchanged.
        warm: Its warm interpreter.
    """

    __slots__ = ("boot_id", "oom_score", "pid", "pid_namespace", "warm")

    def __init__(
        self, boot_id: str | None, pid_namespace: int | None, oom_score: bytes | None
    ) -> None:
        self.pid = os.getpid()
        self.boot_id = boot_id
        self.pid_namespace = pid_namespace
        self.oom_score = oom_score
        self.warm = Warm()


class Execution:
    """
    One run of one job.

    Attributes:
        clean: Whether the supervisor can run another job: no process is left, none was killed.
        watch: The descriptors that it waits for, in addition to the clock.
    """

    def __init__(
        self,
        request: Request,
        channel: HostChannel,
        shutdown: Shutdown,
        identity: Identity,
        machine: Machine | None = None,
    ) -> None:
        self.clean = False
        self.watch = PollSet()
        self._machine = machine or Machine()
        self._request = request
        self._channel = channel
        self._shutdown = shutdown
        self._identity = identity
        self._notices = Notices(channel, self.watch, request.token, self._machine.monotonic())
        self._stop_requests = StopRequests(request.directory, request.grace)
        self._capture = Capture(
            request.directory,
            limit=request.output_limit,
            redact=request.redact,
            time_ns=self._machine.time_ns,
        )
        self._spool = self._capture.spool
        self._upkeep = FileUpkeep(
            request,
            self._spool,
            self._capture.unfinished,
            self._stop_requests,
            self._run_record(),
        )
        self._tree: ProcessTree | None = None
        self._values: list[ValueReader] = []
        self._pidfd = -1
        self._report = -1
        self._reading = False
        self._next_flush = 0.0

        self._unstarted: str | None = None  # why the command was not started
        self._failure: spawn.StartError | None = None
        self._termination: Termination | None = None

        self._begun = 0.0
        self._spawned_ns: int | None = None

    def run(self) -> bool:
        """
        Run the job to its exit record, report to the host, and return `clean`.

        Raises:
            OSError: As for `rounds`.
        """
        rounds = self.rounds()
        try:
            for due in rounds:
                seconds = due - self._machine.monotonic()
                # Round up: a poll that returns just before the time would spin.
                self.watch.wait(int(seconds * 1000) + 1 if seconds > 0 else 0)
        finally:
            rounds.close()  # a handler of `watch` may have raised
        return self.clean

    def rounds(self) -> Generator[float, None, None]:
        """
        Run the job to its exit record and report to the host, one round at a time.

        Close the generator if a handler of `watch` raised, or to leave the job without an exit
        record, as if the supervisor had died.

        Yields:
            The time of the machine's monotonic clock by which to continue; continue earlier if
            `watch` has called a handler.

        Raises:
            OSError: The job directory cannot be written, and the reason is permanent. All
                processes of the job have been killed, and there is no exit record.
        """
        try:
            self._listen()
            if (yield from self._record_start()):
                self._spawn()
                complete = False
                while not complete:
                    yield self._due()
                    complete = self._round()
            yield from self._conclude()
        except BaseException:
            self._abandon()
            raise
        finally:
            self._close()
        self.clean = self._termination is None or not self._termination.killed
        stays = self.clean and not self._shutdown.requested and not self._channel.dead
        self._channel.post(messages.ENDED, self._request.token, self._identity.pid if stays else 0)
        if failpoints.armed:
            failpoints.reach(failpoints.ENDED_SENT)

    # --- before the command ---

    def _listen(self) -> None:
        self.watch.add(self._stop_requests.fileno(), self._stop_requests.listen)
        self.watch.add(self._shutdown.fileno(), self._shutdown.drain)

    def _record_start(self) -> Generator[float, None, bool]:
        """Record that the command may have started from now on; False: it must not start."""
        request, record = self._request, self._run_record()
        flags = os.O_WRONLY | os.O_EXCL
        opened: list[int] = []

        def write() -> None:
            job_directory.mark_started(request.lock)
            if not opened:
                opened.append(job_directory.make_file(job_directory.RUN, flags, request.directory))
            job_directory.write_all(opened[0], record)

        def rewrite() -> None:
            if opened:
                os.ftruncate(opened[0], 0)
                os.lseek(opened[0], 0, os.SEEK_SET)
            write()

        stopped = self._stopped_unstarted()
        if failpoints.armed:
            failpoints.reach(failpoints.STOP_READ)
        if stopped:
            return False
        try:
            recorded = yield from self._with_space(write, rewrite, give_up=self._stopped_unstarted)
        finally:
            for descriptor in opened:
                os.close(descriptor)
        if recorded and failpoints.armed:
            failpoints.reach(failpoints.RUN_WRITTEN)
        return recorded

    def _run_record(self) -> bytes:
        identity = self._identity
        return job_directory.encode_record(
            {
                "token": self._request.token,
                "supervisor": identity.pid,
                "boot_id": identity.boot_id,
                "pid_namespace": identity.pid_namespace,
            }
        )

    def _stopped_unstarted(self) -> bool:
        """Check for a stop or shutdown before the start; True: the command must not start."""
        stop = self._stop_requests.take()
        if stop is not None:
            self._unstarted = "stopped"
            self._capture.write_system(stop.words)
        elif self._shutdown.requested:
            self._unstarted = "shutdown"
            self._capture.write_system("not started: the supervisor was asked to exit")
        return self._unstarted is not None

    def _spawn(self) -> None:
        self._begun, self._spawned_ns = read_clocks(self._machine)
        program = self._request.program
        if program.stdout_to is not None:
            try:
                self._capture.copy_stdout(program.stdout_to, program.umask)
            except OSError as error:
                self._fail(spawn.StartError(spawn.STDOUT, error.errno or 0))
                return
        try:
            child = self._machine.spawn(
                program,
                directory=self._request.directory,
                oom_score=self._identity.oom_score,
                warm=self._identity.warm,
            )
        except spawn.StartError as error:
            self._fail(error)
            return
        self._explain_fresh(program)
        if failpoints.armed:
            failpoints.reach(failpoints.FORKED)
        self._tree = self._machine.tree(child, self._identity.warm.children)
        self._termination = Termination(
            self._tree,
            self._stop_requests,
            self._shutdown,
            self._capture.write_system,
            grace=self._request.grace,
            linger=self._request.linger,
            stop_signal=self._request.stop_signal,
            stop_group=self._request.stop_group,
        )
        if self._request.timeout is not None:
            self._termination.set_timeout(self._begun, self._request.timeout)
        try:
            self._pidfd = self._tree.watch_main()
        except OSError:
            pass  # no pidfd: the clock wakes the loop instead
        else:
            self.watch.add(self._pidfd, _nothing)  # it only wakes the loop, and every round reaps
        self._report = child.report
        self.watch.add(child.report, self._hear_report)
        self._capture.progress.add(child.reports)
        self._values = [ValueReader(name, one) for name, one in child.values.items()]
        for reader in self._readers_apart():
            self.watch.add(reader.descriptor, lambda one=reader: self._read_apart(one))  # type: ignore[misc]
        for descriptor, stream in child.outputs:
            self._capture.add(descriptor, stream, child.terminal)
        self._read_on()

    def _explain_fresh(self, program: Program) -> None:
        why = "" if program.warm is None else self._identity.warm.reason()
        if why:
            self._capture.write_system(f"called in a fresh interpreter: {why}")

    # --- the loop ---

    def _round(self) -> bool:
        """Handle what has happened; True: the job is complete."""
        # Read the clock after the wait, or a grace would be measured wrongly.
        now = self._machine.monotonic()
        if self._channel.must_look:
            self._channel.look_for_host()
        tree, termination = self._tree, self._termination
        complete = True
        if tree is not None and termination is not None and not termination.complete:
            if tree.reap():
                if failpoints.armed:
                    failpoints.reach(failpoints.MAIN_REAPED)
                self._note_main_end(termination, now)
            if tree.left:
                termination.advance(now)
            complete = termination.complete
        self._tend_spool(now)
        if now >= self._upkeep.due:
            self._upkeep.advance(now)
        self._capture.advance(now)
        if not complete:
            if self._spool.end > self._notices.announced:
                self._notices.announce(self._spool.end, now)
            return False
        return self._drain(now)

    def _drain(self, now: float) -> bool:
        """Read the rest of the output of a command that has ended; False: there is no space."""
        copy, termination = self._capture.copy, self._termination
        if copy is not None and copy.held and termination is not None:
            # Wait for space only for a command that has ended by itself.
            stopped = termination.reason in ("stopped", "timeout", "shutdown")
            if stopped or self._stop_requests.take() is not None:
                copy.give_up()
        if not self._capture.held:
            self._pause_reading(now)
            self._capture.drain()
        return not self._capture.held

    def _due(self) -> float:
        """Return the monotonic time by which the next round is due."""
        now = self._machine.monotonic()
        machine = self._machine
        # The pidfd reports only the main process, not orphans; and there may be none.
        longest = machine.longest_round if self._pidfd >= 0 else machine.blind_round
        due = now
        if self._termination is not None and not self._termination.complete:
            due = self._termination.due(now, longest)
            if self._capture.held:
                due = min(due, self._next_flush)
            if self._spool.end > self._notices.announced:
                untold = self._notices.due()
                due = due if untold is None else min(due, untold)
            due = min(due, self._capture.due())
        elif self._capture.held:
            due = self._next_flush
        return due

    def _note_main_end(self, termination: Termination, now: float) -> None:
        self.watch.close(self._pidfd)
        self._pidfd = -1
        if self._report >= 0:
            self._hear_report()
        if self._failure is not None:
            self._fail(self._failure)
        termination.note_main_end(now, "spawn_failed" if self._failure is not None else None)

    # --- output ---

    def _read(self, descriptor: int) -> None:
        # The output may be held: an earlier pipe of this round may have filled the disk.
        if not self._capture.held and not self._capture.read(descriptor):
            self.watch.forget(descriptor)

    def _readers_apart(self) -> list[ProgressReader | ValueReader]:
        """Return the readers of the pipes that are not its output."""
        return [self._capture.progress, *self._values]

    def _read_apart(self, reader: ProgressReader | ValueReader) -> None:
        # Even while output is held: only the latest report and the values are kept, in memory.
        descriptor = reader.descriptor
        if not reader.read():
            self.watch.forget(descriptor)

    def _read_on(self) -> None:
        self._reading = True
        for descriptor in self._capture.descriptors:
            self.watch.add(descriptor, lambda pipe=descriptor: self._read(pipe))  # type: ignore[misc]

    def _pause_reading(self, now: float) -> None:
        if self._reading:
            self._reading = False
            for descriptor in self._capture.descriptors:
                self.watch.forget(descriptor)
        self._next_flush = now + _RETRY

    def _tend_spool(self, now: float) -> None:
        """Stop reading while the disk is full, and retry every `_RETRY` seconds."""
        if not self._capture.held:
            if self._notices.errno:
                self._notices.held(0)
        elif self._reading:
            self._pause_reading(now)
        elif now >= self._next_flush:
            self._next_flush = now + _RETRY
            if self._capture.flush():
                self._read_on()
            else:  # only now, so that a short lack of space is not reported
                self._notices.held(self._capture.errno)

    # --- the end ---

    def _conclude(self) -> Generator[float, None, None]:
        """Write the exit record, then release the lock."""
        if self._termination is not None:
            self._termination.conclude()
        handed = self._end_output()
        begun = self._machine.monotonic()
        while self._spool.held:
            yield self._machine.monotonic() + _RETRY
            if not self._spool.flush() and self._machine.monotonic() - begun > _RECORD_FOR:
                self._spool.drop_unwritable()
        record = self._verdict()
        if failpoints.armed:
            failpoints.reach(failpoints.BEFORE_EXIT)

        def write() -> None:
            # A living host soon commits all of it to the database, which is durable. Without a
            # host, sync the files.
            if self._channel.dead:
                self._spool.sync()
            for name, value in handed:
                result_file.put(
                    self._request.directory, name, "json", value, sync=self._channel.dead
                )
            job_directory.write_exit(self._request.directory, record, sync=self._channel.dead)

        if (yield from self._record_end(write)) and failpoints.armed:
            failpoints.reach(failpoints.EXIT_WRITTEN)
        # Unlock, not just close: a child may still have a copy of the descriptor.
        job_directory.unlock(self._request.lock, job_directory.ALL)
        if failpoints.armed:
            failpoints.reach(failpoints.UNLOCKED)

    def _end_output(self) -> list[tuple[str, bytes]]:
        """
        Read what is left in the pipes that are not its output.

        Returns:
            The values that a COMPLETE command hands over, by name. Invalid ones are logged.
        """
        for reader in self._readers_apart():
            self.watch.forget(reader.descriptor)
            reader.end()
        if self._capture.copy is not None:
            self._capture.copy.finish()
        tree, termination = self._tree, self._termination
        if tree is None or termination is None:
            return []
        if tree.status != 0 or termination.reason != "exited":
            return []
        handed = []
        for one in self._values:
            try:
                value = one.value()
            except ValueError as error:
                self._capture.write_system(
                    f"what the command wrote to {one.variable} is not stored: {error}"
                )
            else:
                if value is not None:
                    handed.append((one.name, value))
        return handed

    def _verdict(self) -> job_directory.ExitRecord:
        spool = self._spool
        record = job_directory.ExitRecord(
            token=self._request.token,
            reason=self._unstarted or "spawn_failed",
            spool_end=spool.end,
            next_sequence=spool.next_sequence,
            dropped=self._capture.dropped + spool.dropped,
        )
        if self._failure is not None:
            record.errno = self._failure.errno
            record.stage = self._failure.stage
        if self._spawned_ns is None:
            record.ended_ns = self._machine.time_ns()
        else:
            record.spawned_ns = self._spawned_ns
            record.duration_ns = round((self._machine.monotonic() - self._begun) * 1_000_000_000)
            record.ended_ns = self._spawned_ns + record.duration_ns
        if self._tree is not None and self._termination is not None:
            record.reason = self._termination.reason or "stopped"
            record.unreaped = self._termination.unreaped
            record.left = self._termination.left if self._request.tells_left else None
            record.wait_status = self._tree.status
            record.cpu_us = self._tree.cpu_us
            record.max_rss = self._tree.max_rss
        return record

    def _fail(self, error: spawn.StartError) -> None:
        self._failure = error
        request, capture = self._request, self._capture
        capture.write_system(spawn.explain(request.program, error.stage, error.errno, capture.mask))

    def _with_space(
        self,
        action: Callable[[], None],
        again: Callable[[], None],
        *,
        give_up: Callable[[], bool] = lambda: False,
    ) -> Generator[float, None, bool]:
        """Run `action`; while the disk is full, run `again` every second; False: given up."""
        while True:
            try:
                action()
                return True
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
            yield self._machine.monotonic() + _RETRY
            if give_up():
                return False
            action = again

    def _record_end(self, write: Callable[[], None]) -> Generator[float, None, bool]:
        """Write the exit record, and retry while that fails; False: given up."""
        begun = self._machine.monotonic()
        while True:
            try:
                self._upkeep.repair_output()
                write()
                return True
            except OSError as error:
                if error.errno not in NO_SPACE:
                    patience = _RECORD_GONE_FOR if error.errno in GONE else _RECORD_FOR
                    if self._machine.monotonic() - begun > patience:
                        return False
            yield self._machine.monotonic() + _RETRY

    def _abandon(self) -> None:
        """Kill all processes. There is no exit record; a resolver will write one."""
        tree = self._tree
        until = time.monotonic() + _ABANDON_FOR
        while tree is not None and tree.left and time.monotonic() < until:
            try:
                tree.kill()
            except OSError:
                pass  # the processes cannot be listed now: only the group was killed
            tree.reap()
            time.sleep(0.002)

    def _close(self) -> None:
        self._capture.close()
        for value in self._values:
            value.close()
        self._stop_requests.close()
        self._upkeep.close()
        for descriptor in (self._pidfd, self._report, self._request.lock, self._request.directory):
            if descriptor >= 0:
                os.close(descriptor)
        # Break reference cycles, so that this object is freed without the garbage collector.
        del self.watch, self._notices

    def _hear_report(self) -> None:
        """Read the report of the start. The pipe ends when the command has started."""
        try:
            self._failure = spawn.read_report(self._report)
        except BlockingIOError:
            return
        self.watch.close(self._report)
        self._report = -1
        if self._failure is None and self._tree is not None and failpoints.armed:
            failpoints.reach(failpoints.COMMAND_RUNS)


def _nothing() -> None:
    pass
