"""
Runs one job, from the accepted request to its exit record, in one loop in one thread.

Exit, stop, timeout and shutdown are all handled in this loop. So the first one that is seen
decides the outcome, which is written once. The loop does not wait itself; it yields the time
of its next step, so that one thread can run several of them.
"""

from __future__ import annotations

import os
import time

from jobcore.embedding import failpoints
from jobcore.supervisor import job_directory, messages, spawn
from jobcore.supervisor.capture import Capture
from jobcore.supervisor.file_upkeep import Upkeep
from jobcore.supervisor.notifications import Reporter
from jobcore.supervisor.platform import Machine, read_clocks
from jobcore.supervisor.poll_set import Watch
from jobcore.supervisor.spool import GONE, NO_SPACE
from jobcore.supervisor.stop_requests import Wishes
from jobcore.supervisor.termination import Ending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from jobcore.supervisor.host_channel import HostChannel
    from jobcore.supervisor.process_tree import ProcessTree
    from jobcore.supervisor.request import Order
    from jobcore.supervisor.shutdown import Shutdown

# All in seconds.
_RETRY = 1.0  # between two attempts on a full disk
_RECORD_FOR = 60.0  # attempts to write the exit record, after errors other than a full disk
_RECORD_GONE_FOR = 5.0  # the same, if the directory is gone
_ABANDON_FOR = 10.0  # killing the processes of a job that cannot be recorded


class Identity:
    """
    Facts about the supervisor that are the same for all jobs.

    Attributes:
        pid, boot_id, pid_namespace: For the `run` record; None: `/proc` does not provide it.
        oom_score: The inherited `oom_score_adj`, which commands get; None: it is unchanged.
    """

    __slots__ = ("boot_id", "oom_score", "pid", "pid_namespace")

    def __init__(
        self, boot_id: str | None, pid_namespace: int | None, oom_score: bytes | None
    ) -> None:
        self.pid = os.getpid()
        self.boot_id = boot_id
        self.pid_namespace = pid_namespace
        self.oom_score = oom_score


class Execution:
    """
    One run of one job.

    Attributes:
        clean: Whether the supervisor can run another job: no process is left, none was killed.
        watch: The descriptors that it waits for, in addition to the clock.
    """

    def __init__(
        self,
        order: Order,
        channel: HostChannel,
        shutdown: Shutdown,
        identity: Identity,
        machine: Machine | None = None,
    ) -> None:
        self.clean = False
        self.watch = Watch()
        self._machine = machine or Machine()
        self._order = order
        self._channel = channel
        self._shutdown = shutdown
        self._identity = identity
        self._reporter = Reporter(channel, self.watch, order.token)
        self._wishes = Wishes(order.directory, order.grace)
        self._capture = Capture(
            order.directory,
            limit=order.output_limit,
            redact=order.redact,
            time_ns=self._machine.time_ns,
        )
        self._upkeep = Upkeep(
            order, self._capture.spool, self._capture.tail, self._wishes, self._run_record()
        )
        self._tree: ProcessTree | None = None
        self._pidfd = -1
        self._report = -1
        self._reading = False
        self._next_flush = 0.0

        self._unstarted: str | None = None  # why the command was not started
        self._failure: spawn.StartError | None = None
        self._ending: Ending | None = None

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
        self.clean = self._ending is None or not self._ending.killed
        stays = self.clean and not self._shutdown.requested and not self._channel.dead
        self._channel.post(messages.ENDED, self._order.token, self._identity.pid if stays else 0)
        failpoints.reach(failpoints.ENDED_TOLD)

    # --- before the command ---

    def _listen(self) -> None:
        self.watch.add(self._wishes.fileno(), self._wishes.listen)
        self.watch.add(self._shutdown.fileno(), self._shutdown.drain)

    def _record_start(self) -> Generator[float, None, bool]:
        """Record that the command may have started from now on; False: it must not start."""
        order, record = self._order, self._run_record()
        flags = os.O_WRONLY | os.O_EXCL
        opened: list[int] = []

        def write() -> None:
            job_directory.mark_started(order.lock)
            if not opened:
                opened.append(job_directory.make_file(job_directory.RUN, flags, order.directory))
            job_directory.write_all(opened[0], record)

        def rewrite() -> None:
            if opened:
                os.ftruncate(opened[0], 0)
                os.lseek(opened[0], 0, os.SEEK_SET)
            write()

        stopped = self._stopped_unstarted()
        failpoints.reach(failpoints.STOP_READ)
        if stopped:
            return False
        try:
            recorded = yield from self._with_space(write, rewrite, give_up=self._stopped_unstarted)
        finally:
            for descriptor in opened:
                os.close(descriptor)
        if recorded:
            failpoints.reach(failpoints.RUN_WRITTEN)
        return recorded

    def _run_record(self) -> bytes:
        identity = self._identity
        return job_directory.encode_record(
            {
                "token": self._order.token,
                "supervisor": identity.pid,
                "boot_id": identity.boot_id,
                "pid_namespace": identity.pid_namespace,
            }
        )

    def _stopped_unstarted(self) -> bool:
        """Check for a stop or shutdown before the start; True: the command must not start."""
        wish = self._wishes.take()
        if wish is not None:
            self._unstarted = "stopped"
            self._capture.write_system(wish.words)
        elif self._shutdown.requested:
            self._unstarted = "shutdown"
            self._capture.write_system("not started: the supervisor was asked to go")
        return self._unstarted is not None

    def _spawn(self) -> None:
        self._begun, self._spawned_ns = read_clocks(self._machine)
        try:
            child = self._machine.spawn(
                self._order.command,
                directory=self._order.directory,
                oom_score=self._identity.oom_score,
            )
        except spawn.StartError as error:
            self._fail(error)
            return
        failpoints.reach(failpoints.FORKED)
        self._tree = self._machine.tree(child)
        self._ending = Ending(
            self._tree,
            self._wishes,
            self._shutdown,
            self._capture.write_system,
            grace=self._order.grace,
            linger=self._order.linger,
            stop_signal=self._order.stop_signal,
            stop_group=self._order.stop_group,
        )
        if self._order.timeout is not None:
            self._ending.set_timeout(self._begun, self._order.timeout)
        try:
            self._pidfd = self._tree.watch_main()
        except OSError:
            pass  # no pidfd: the clock wakes the loop instead
        else:
            self.watch.add(self._pidfd, _nothing)  # it only wakes the loop, and every round reaps
        self._report = child.report
        self.watch.add(child.report, self._hear_report)
        self._capture.meter.add(child.reports)
        self.watch.add(child.reports, self._read_progress)
        for descriptor, stream in child.outputs:
            self._capture.add(descriptor, stream)
        self._read_on()

    # --- the loop ---

    def _round(self) -> bool:
        """Handle what has happened; True: the job is complete."""
        # Read the clock after the wait, or a grace would be measured wrongly.
        now = self._machine.monotonic()
        self._channel.look_for_host()
        tree, ending = self._tree, self._ending
        complete = True
        if tree is not None and ending is not None and not ending.complete:
            if tree.reap():
                failpoints.reach(failpoints.MAIN_REAPED)
                self._note_main_end(ending, now)
            if tree.left:
                ending.advance(now)
            complete = ending.complete
        self._tend_spool(now)
        self._upkeep.advance(now)
        self._capture.meter.advance(now)
        self._capture.tail.advance(now)
        if not complete:
            self._reporter.announce(self._capture.spool.end, now)
            return False
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
        if self._ending is not None and not self._ending.complete:
            due = self._ending.due(now, longest)
            if self._capture.held:
                due = min(due, self._next_flush)
            untold = self._reporter.due(self._capture.spool.end)
            if untold is not None:
                due = min(due, untold)
            due = min(due, self._capture.meter.due(), self._capture.tail.due())
        elif self._capture.held:
            due = self._next_flush
        return due

    def _note_main_end(self, ending: Ending, now: float) -> None:
        self.watch.close(self._pidfd)
        self._pidfd = -1
        if self._report >= 0:
            self._hear_report()
        if self._failure is not None:
            self._fail(self._failure)
        ending.note_main_end(now, "spawn_failed" if self._failure is not None else None)

    # --- output ---

    def _read(self, descriptor: int) -> None:
        # The output may be held: an earlier pipe of this round may have filled the disk.
        if not self._capture.held and not self._capture.read(descriptor):
            self.watch.forget(descriptor)

    def _read_progress(self) -> None:
        # Even while output is held: only the latest report is kept, in memory.
        descriptor = self._capture.meter.descriptor
        if not self._capture.meter.read():
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
            self._reporter.held(0)
        elif self._reading:
            self._pause_reading(now)
        elif now >= self._next_flush:
            self._next_flush = now + _RETRY
            if self._capture.spool.flush():
                self._read_on()
            else:  # only now, so that a short lack of space is not reported
                self._reporter.held(self._capture.spool.errno)

    # --- the end ---

    def _conclude(self) -> Generator[float, None, None]:
        """Write the exit record, then release the lock."""
        if self._ending is not None:
            self._ending.conclude()
        self.watch.forget(self._capture.meter.descriptor)
        self._capture.meter.end()
        begun = self._machine.monotonic()
        while self._capture.held:
            yield self._machine.monotonic() + _RETRY
            if not self._capture.spool.flush() and self._machine.monotonic() - begun > _RECORD_FOR:
                self._capture.spool.drop_unwritable()
        record = self._verdict()
        failpoints.reach(failpoints.BEFORE_EXIT)

        def write() -> None:
            # A living host soon commits all of it to the database, which is durable. Without a
            # host, sync the files.
            if self._channel.dead:
                self._capture.spool.sync()
            job_directory.write_exit(self._order.directory, record, sync=self._channel.dead)

        if (yield from self._record_end(write)):
            failpoints.reach(failpoints.EXIT_WRITTEN)
        # Unlock, not just close: a child may still have a copy of the descriptor.
        job_directory.unlock(self._order.lock, job_directory.ALL)
        failpoints.reach(failpoints.UNLOCKED)

    def _verdict(self) -> job_directory.ExitRecord:
        spool = self._capture.spool
        record = job_directory.ExitRecord(
            token=self._order.token,
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
        if self._tree is not None and self._ending is not None:
            record.reason = self._ending.reason or "stopped"
            record.unreaped = self._ending.unreaped
            record.left = self._ending.left if self._order.tells_left else None
            record.wait_status = self._tree.status
            record.cpu_us = self._tree.cpu_us
            record.max_rss = self._tree.max_rss
        return record

    def _fail(self, error: spawn.StartError) -> None:
        self._failure = error
        order, capture = self._order, self._capture
        capture.write_system(spawn.explain(order.command, error.stage, error.errno, capture.mask))

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
            tree.kill()
            tree.reap()
            time.sleep(0.002)

    def _close(self) -> None:
        self._capture.close()
        self._wishes.close()
        self._upkeep.close()
        for descriptor in (self._pidfd, self._report, self._order.lock, self._order.directory):
            if descriptor >= 0:
                os.close(descriptor)
        # Break reference cycles, so that this object is freed without the garbage collector.
        del self.watch, self._reporter

    def _hear_report(self) -> None:
        """Read the report of the start. The pipe ends when the command has started."""
        try:
            self._failure = spawn.read_report(self._report)
        except BlockingIOError:
            return
        self.watch.close(self._report)
        self._report = -1
        if self._failure is None and self._tree is not None:
            self._reporter.started(self._tree.main)
            failpoints.reach(failpoints.STARTED_TOLD)


def _nothing() -> None:
    pass
