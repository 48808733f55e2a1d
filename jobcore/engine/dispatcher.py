"""
The thread of a manager that starts, watches and ends its jobs.

It sends queued jobs to idle supervisors, and imports what these write. A round is one transaction
for everything that is ready at that moment, followed by the sends. So a hundred jobs that end
together do not cost a hundred fsyncs.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Container, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, Row

from jobcore import tuning
from jobcore.clock import Clock
from jobcore.embedding import failpoints, telemetry
from jobcore.embedding.locks import GATE, ForkAware, Lock
from jobcore.engine import postponement
from jobcore.engine.adoption import Adoption
from jobcore.engine.executors import Executor
from jobcore.engine.importer import Importer, NewContent
from jobcore.engine.job_directories import Directories
from jobcore.engine.launch import RETRY, Claim, Environments, Launch, Start
from jobcore.engine.liveness import ROUND, Liveness
from jobcore.engine.ownership import Ownership
from jobcore.engine.postponement import Postponement
from jobcore.engine.queue_reader import QueueReader
from jobcore.engine.thread_loop import Loop
from jobcore.engine.unresponsive import Overdue
from jobcore.errors import StoreError
from jobcore.lifecycle import Reason
from jobcore.storage import environments, limits, queue, transitions
from jobcore.storage.database import Database
from jobcore.storage.limits import Room
from jobcore.storage.transitions import Run
from jobcore.supervisor import job_directory

if TYPE_CHECKING:
    from jobcore.engine.supervisor_pool import Supervisor, SupervisorPool

#: Seconds that `is_idle` and `waits_only_for` wait for the current round.
IDLE_PATIENCE = 0.25
#: The key in `Postponement` of failures to adopt jobs.
ADOPTION = "adoption"


class _Round(NamedTuple):
    """What one transaction of the dispatcher has written, and what was rolled back alone."""

    written: list[tuple[Claim, NewContent, Run | None]]
    claimed: list[tuple[Start, Run | None]]
    failed: list[tuple[Claim | Start, Exception]]
    queued: bool = False  # whether an end may let another job start, and any is queued


class Dispatcher(ForkAware):
    """
    Runs queued jobs in its own thread, those of the highest priority first.

    Other threads may call the methods under "for other threads". Only the dispatcher's own
    thread may call the others.

    Args:
        executors: By job type; jobs of other types are not touched.
        slots: The most jobs at once, including those that it has adopted.
        only_own: Claim only jobs that `make_own` was called for.
        ownership: Names this process, whose reserved jobs it may claim.
        reconcile: Resolves a job whose supervisor is gone; it raises nothing.
        chores: Functions to call once a second, by name.
        in_steps: Tells whether a chore was interrupted and should continue soon.
        postponed: Remembers failures: of a job, by its number; of a chore, by its name; and
            `ROUND` and `ADOPTION`.

    Attributes:
        liveness: Tells callers that wait for jobs whether these can go on.
    """

    _lock: Lock  # held during each change of the claims
    _seen_queued: int  # the version of the file at which the queue was last seen not empty

    def __init__(
        self,
        *,
        database: Database,
        directories: Directories,
        importer: Importer,
        pool: SupervisorPool,
        clock: Clock,
        executors: Mapping[str, Executor],
        slots: int,
        only_own: bool,
        ownership: Ownership,
        reconcile: Callable[[Run], Run | None],
        chores: Mapping[str, Callable[[], Any]],
        in_steps: Callable[[], bool],
        postponed: Postponement,
    ) -> None:
        self._database = database
        self._importer = importer
        self._pool = pool
        self._clock = clock
        self._ownership = ownership
        self._postponed = postponed
        self._queue = QueueReader(
            database, clock, executors, ownership, postponed, only_own=only_own
        )
        self._slots = slots
        self._reconcile = reconcile
        self._chores = {**chores, "starts": self._look_after_starts}
        self._in_steps = in_steps
        self._directories = directories
        self._launch = Launch(database, directories, clock, executors)
        self._adoption = Adoption(database, directories, enabled=not only_own)
        self._on_end: Callable[[], None] | None = None  # called at the end of the thread
        self._loop = Loop("jobcore-dispatcher", self._turn, self._finish)
        self.liveness = Liveness(self, directories, ownership, self._queue, postponed)
        self._reset()
        # Only a clock that is moved by hand has `watch`.
        watch = getattr(clock, "watch", None)
        self._unwatch: Callable[[], None] | None = (
            None if watch is None else watch(self._on_clock_moved)
        )
        GATE.watch(self)

    # --- for other threads ------------------------------------------------------

    def start(self) -> None:
        """Start the thread unless it runs; a forked child starts its own."""
        self._loop.start()

    def wake(self) -> None:
        """Make the thread look at the queue now."""
        self._look = True
        self._loop.wake()

    def set_slots(self, slots: int) -> None:
        """Change how many jobs run at once; running jobs go on."""
        self._slots = slots
        self._pool.slots = slots
        self.wake()

    def _on_clock_moved(self) -> None:
        """Make the thread do its chores now as well, because the clock was moved."""
        self._clock_moves += 1
        self.wake()

    def make_own(self, number: int) -> None:
        """Let a manager that claims only its own jobs claim this one."""
        self._queue.make_own(number)

    def running(self) -> list[Run]:
        """Return the jobs that this manager has claimed and not settled."""
        with self._lock:  # wait for a claim that is committed but not recorded yet
            return [*self._unsettled, *(claim.run for claim in self._claims.values())]

    def connected(self) -> set[int]:
        """Return the numbers of the jobs whose supervisors have taken them, and report here."""
        claims = list(self._claims.values())  # at once: another thread may close this manager
        return {one.run.number for one in claims if one.is_connected}

    def is_connected(self, run: Run) -> bool:
        """Tell whether the supervisor of this job has taken it, and reports here."""
        claim = self._claims.get(run.token or "")
        return claim is not None and claim.is_connected

    def is_idle(self) -> bool:
        """
        Tell whether this manager runs no job, and could claim none now.

        A manager with slots is not idle before it has first checked schedules and dead
        processes, because both may add jobs to the queue.

        The queue is read only if no job runs. If it was not empty, it is not read again before
        the next commit, because no job leaves it without one.
        """
        if self._is_busy() or self._is_yet_to_look():
            return False
        version = self._database.version()
        if version == self._seen_queued:
            return False
        if self._slots > 0 and self._in_steps():
            return False  # a chore goes on, which may add jobs to the queue
        if not self._queue.is_empty(counted=False):  # a full limit will have room again
            self._seen_queued = version
            return False
        return not self._is_busy()  # again: a job may have been claimed before the queue was read

    def _is_yet_to_look(self) -> bool:
        """Tell whether it has yet to check schedules and dead processes for the first time."""
        return self._slots > 0 and not self._loop.closing and not self._has_looked

    def _is_busy(self) -> bool:
        """Tell whether a claimed job is not settled; also True if a round takes long."""
        frame = sys._getframe()  # noqa: SLF001 - the lock is kept as long as this call
        if not self._lock.take(frame, IDLE_PATIENCE):
            return True
        try:
            return bool(self._claims or self._unsettled)
        finally:
            self._lock.give_up(frame)

    def waits_only_for(self, runs: Container[str]) -> bool:
        """
        Tell whether nothing can happen here until one of these runs or the clock moves on.

        Args:
            runs: Tokens of runs that wait themselves. It returns False if this manager has
                claimed or adopted any other job.
        """
        if self._is_yet_to_look() or self._clock_moves_seen != self._clock_moves:
            return False  # the clock was moved, and the chores have yet to look at what is due
        if self._in_steps():
            return False  # a chore goes on, which may add jobs to the queue
        claims, free = self._claims_made, self._free_slots_besides(runs)
        if free is None or (free > 0 and not self._queue.is_empty()):
            return False
        # Check again after reading the queue: a job may have moved from there to the claimed ones,
        # and may even have ended since then, and let another job start.
        return self._free_slots_besides(runs) == free and self._claims_made == claims

    def _free_slots_besides(self, runs: Container[str]) -> int | None:
        """Return the free slots if all claimed and adopted jobs are among `runs`, else None."""
        frame = sys._getframe()  # noqa: SLF001 - the lock is kept as long as this call
        if not self._lock.take(frame, IDLE_PATIENCE):
            return None
        try:
            waiting = all(token in runs for token in self._adoption.tokens) and all(
                token in runs and one.start is None and not one.ended
                for token, one in self._claims.items()
            )
            return self._free_slots() if waiting else None
        finally:
            self._lock.give_up(frame)

    def next_start(self) -> int | None:
        """Return when the next job in the queue is due, in wall time; None: there is none."""
        return self._queue.next_due()

    def stop_claiming(self) -> None:
        """Claim no more jobs; continue to manage the running ones."""
        with self._lock:  # wait for a claim that is being written: its jobs count as running
            self._claiming = False

    @property
    def exiting(self) -> bool:
        """Whether the interpreter's exit has ended the thread, which then settles no more jobs."""
        return self._loop.exiting

    def wait_until_settled(self, numbers: Collection[int], timeout: float) -> None:
        """
        Return when this manager has settled all of these jobs, or after `timeout` seconds.

        Return at once if the database is gone, because nothing can be settled then.
        """
        deadline = time.monotonic() + timeout
        try:
            seen = self._database.version()
            while time.monotonic() < deadline and any(
                run.number in numbers for run in self.running()
            ):
                seen = self._database.wait_for_change(seen, RETRY)
        except StoreError as error:
            telemetry.event(logging.WARNING, "end of jobs not awaited", error=str(error))

    def close(self) -> None:
        """
        Claim no more jobs, finish the current round, and dismiss the supervisors.

        Running jobs continue under their supervisors. A second call is harmless.
        """
        self._claiming = False
        unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:
            unwatch()
        self._loop.close()

    @property
    def has_thread(self) -> bool:
        """Whether the thread runs in this process."""
        return self._loop.runs

    def close_without_waiting(self, on_end: Callable[[], None]) -> None:
        """Close without waiting for the current round, for a finalizer; then call `on_end`."""
        self._claiming = False
        self._on_end = on_end
        self._loop.end_without_waiting()

    def _finish(self) -> None:
        try:
            self._release_jobs()
        finally:
            on_end, self._on_end = self._on_end, None
            if on_end is not None:
                self.close()  # ends the watch of the clock
                on_end()

    def _release_jobs(self) -> None:
        for claim in self._claims.values():
            claim.release()
        with self._lock:
            if self._loop.exiting:
                self._unsettled += [claim.run for claim in self._claims.values()]
            self._claims.clear()
        self._adoption.close()
        self._pool.close()

    # --- the fork of the host ---------------------------------------------------

    def after_fork_in_child(self) -> None:
        """Leave thread and jobs to the parent; the child starts its own thread when needed."""
        self._loop.forget()
        self._reset()

    def _reset(self) -> None:
        self._claiming = True
        self._has_failed = False  # whether the last round failed
        self._look = True  # whether the next round looks at the queue
        self._more_wait = True  # whether the last look may have left jobs there
        self._clock_moves = 0
        self._clock_moves_seen = 0  # by the last chores
        self._postponed.forget()
        self._lock = Lock()
        self._claims: dict[str, Claim] = {}  # by token
        self._claims_made = 0
        self._unsettled: list[Run] = []  # when the interpreter's exit ended the thread
        self._overdue = Overdue()
        self._adoption.forget()
        self._next_adoption = 0.0
        self._next_look = 0.0
        self._next_chores = 0.0
        self._has_looked = False  # whether each chore has been done once
        self._next_start = 0.0
        self._seen = -1
        self._seen_queued = -1

    # --- the thread -------------------------------------------------------------

    def _turn(self) -> None:
        try:
            self._wait()
            self._round()
        except Exception as error:  # noqa: BLE001 - rest, and retry: running jobs do not need this thread
            self._pause_after(error)
        else:
            if self._has_failed:
                self._has_failed = False
                self._postponed.succeed(ROUND)
        if self._clock_moves != self._clock_moves_seen or time.monotonic() >= self._next_chores:
            self._do_chores()

    def _pause_after(self, error: Exception) -> None:
        known = isinstance(error, (StoreError, OSError))  # such as a busy or a full database
        self._postponed.fail(ROUND, error, "dispatcher waits" if known else "dispatcher failed")
        self._has_failed = self._look = True
        # `wait`, not `sleep`: it empties the pipe. Otherwise old wake-ups would end each pause.
        self._loop.wait((), tuning.BACK_OFF)

    def _do_chores(self) -> None:
        """Do each chore, even if others fail, until the manager is being closed."""
        moves = self._clock_moves  # before the chores, because the clock may be moved meanwhile
        for name, chore in self._chores.items():
            if self._loop.closing:
                return  # a chore may wait for database locks, and `close` would wait with it
            try:
                chore()
            except Exception as error:  # noqa: BLE001 - it is tried again in a second
                self._postponed.fail(name, error, "chore postponed", chore=name)
            else:
                self._postponed.succeed(name)
        pause = (
            min(tuning.STEP_PAUSE, tuning.CHORES_PAUSE) if self._in_steps() else tuning.CHORES_PAUSE
        )
        self._next_chores = time.monotonic() + pause
        self._look = True  # a delayed job becomes due without any commit
        self._has_looked = True
        self._clock_moves_seen = moves  # last: `waits_only_for` then knows that the chores are done

    def _wait(self) -> None:
        """Wait for a notice, a call from another thread, or the next due time."""
        pause = self._next_moment() - time.monotonic()
        sources, check = self._pool.sources, self._pool.check
        others = () if check is None or check.fileno() < 0 else (check.fileno(),)
        for descriptor in self._loop.wait((*sources, *others), pause):
            supervisor = sources.get(descriptor)
            if supervisor is not None:
                self._handle_notices(supervisor)
            elif descriptor in others:
                self._pool.read_check()
                self._look = True

    def _next_moment(self) -> float:
        moments = [self._next_chores, *(one.due for one in self._claims.values())]
        if self._claiming and self._free_slots() > 0:
            start = max(self._next_start, self._pool.next_start)
            moments.append(start if self._look else self._next_look)
        elif self._adoption.slots:
            moments.append(self._next_look)  # another process may settle an adopted job
        return min(moments)

    def _handle_notices(self, supervisor: Supervisor) -> None:
        for notice in self._pool.receive(supervisor):
            claim = self._claims.get(notice.token)
            if claim is not None:
                claim.note(notice)
        if supervisor.gone:
            for claim in self._claims.values():
                if claim.supervisor is supervisor:
                    claim.end()
            self._pool.remove_gone(supervisor)
        # It can take a job that waits, or another supervisor must replace it.
        if (supervisor.ready and self._more_wait) or supervisor.gone:
            self._look = True

    def _look_after_starts(self) -> None:
        """Wake stopped supervisors, and dismiss or end those that are idle or do not react."""
        self._pool.remove_idle()
        self._pool.wake_stopped()
        starting = [
            one
            for one in self._claims.values()
            if one.supervisor is not None and not one.accepted and not self._is_accepted(one)
        ]
        self._overdue.keep({one.run.number for one in starting})
        for claim in starting:
            with self._database.read() as connection:
                run = transitions.find(connection, claim.run.number)
            now = self._clock.monotonic()
            if run is None or not self._overdue.is_overdue(run, self._clock.now(), now):
                continue
            number = self._overdue.judge(run.number, now, answers=False)
            if number is not None and claim.supervisor is not None:
                claim.supervisor.signal_unresponsive(number)

    def _is_accepted(self, claim: Claim) -> bool:
        """Tell whether the supervisor has taken the job; then `Recovery.sweep` watches it."""
        try:
            with self._directories.open(claim.run.name) as directory:
                claim.accepted = self._directories.is_held(directory, job_directory.RUNNING)
        except FileNotFoundError:
            claim.accepted = True  # it has ended
        except (StoreError, OSError):
            return True  # unreadable: its import will postpone it
        return claim.accepted

    # --- a round ----------------------------------------------------------------

    def _round(self) -> None:
        now = time.monotonic()
        contents = self._gather(now)
        starts = [] if self._loop.closing else self._prepare(now)
        if contents or starts:
            self._commit(contents, starts)
        self._send()

    def _gather(self, now: float) -> list[tuple[Claim, NewContent]]:
        """Read what the due jobs have written; reconcile those that ended without a record."""
        contents = []
        for claim in list(self._claims.values()):
            if claim.due > now or claim.start is not None:
                continue
            claim.begin_import(now)
            try:
                content = self._importer.read(claim.run)
            except Exception as error:  # noqa: BLE001 - it concerns this job only
                if claim.ended:
                    # Its supervisor may have died: still kill the orphans.
                    self._reconcile_ended(claim)
                else:
                    self._postpone(claim, error, "import")
                continue
            if claim.ended and (content is None or content.exit is None):
                self._reconcile_ended(claim)
            elif content is not None and not content.empty:
                contents.append((claim, content))
        return contents

    def _reconcile_ended(self, claim: Claim) -> None:
        self._update(claim, self._reconcile(claim.run))
        self._database.committed()  # another process may have settled it: wake those who wait
        self._look = True
        claim.postpone(self._postponed.delay(claim.run.number))

    def _postpone(self, claim: Claim, error: Exception, step: str) -> None:
        run = claim.run
        delay = self._postponed.fail(
            run.number, error, "job postponed", job=transitions.name_of(run), step=step
        )
        claim.postpone(delay)

    def _prepare(self, now: float) -> list[Start]:
        """Prepare as many queued jobs as there are idle supervisors; start more supervisors."""
        if now >= self._next_look:  # `wake` and `_update` report this manager's own commits
            self._note_commits()
            self._next_look = now + tuning.QUEUE_PAUSE
        self._adopt(now)
        if now < self._pool.next_start:
            return []
        unsent = sum(_needs_supervisor(one) for one in self._claims.values())
        if unsent:
            self._pool.start(unsent)  # supervisors may have died before they took these jobs
        free = self._free_slots()
        if not (self._look and self._claiming) or free <= 0 or now < self._next_start:
            return []
        # A free slot, or a supervisor that gets ready, will cause another look.
        self._look = False
        if not self._adoption.slots:
            self._next_look = now + tuning.QUEUE_PAUSE  # it sees other processes' jobs, too
        idle = max(self._pool.ready - unsent, 0)
        waiting, jobs = self._queue.look(free, idle)
        self._more_wait = waiting >= free or waiting > idle
        if not waiting:
            return []
        if waiting > idle:
            self._pool.start(waiting + unsent)
        if now < self._pool.next_start:  # one could not be started
            self._look = True  # never set to False here: another thread may have asked for a look
        if len(jobs) < min(waiting, idle):
            self._look = True  # at the jobs after those that could not be read
        return self._prepare_each(jobs, now)

    def _prepare_each(
        self, jobs: list[tuple[Row[Any], Row[Any] | None]], now: float
    ) -> list[Start]:
        found: Environments = {}
        starts: list[Start] = []
        try:
            for row, pipeline in jobs:
                try:
                    start = self._launch.prepare(row, pipeline, found)
                except Exception as error:  # noqa: BLE001 - this job stays QUEUED, others may start
                    self._postpone_start(row.number, row.id, error)
                    if postponement.concerns_all_jobs(error):
                        self._next_start = now + tuning.BACK_OFF
                        break
                    continue
                if start is None:
                    self._queue.pass_over(row.number)
                    self._look = True  # at the jobs after it
                else:
                    starts.append(start)
        except BaseException:
            # Release their locks, which would otherwise keep these jobs QUEUED for ever.
            for start in starts:
                start.prepared.close()
            raise
        return starts

    def _note_commits(self) -> None:
        version = self._database.version()
        if version != self._seen:
            self._seen = version
            self._look = True
            if self._adoption.slots:
                self._next_adoption = 0.0  # an adopted job may have been settled

    def _adopt(self, now: float) -> None:
        """Adopt running jobs without a manager, before queued jobs take the slots."""
        if now >= self._next_adoption or (self._adoption.remaining and self._free_slots() > 0):
            self._next_adoption = now + tuning.CHORES_PAUSE
            try:
                self._adoption.update(self._claims.keys(), self._slots - self._unended())
            except Exception as error:  # noqa: BLE001 - queued jobs must start all the same
                self._postponed.fail(ADOPTION, error, "chore postponed", chore=ADOPTION)
            else:
                self._postponed.succeed(ADOPTION)

    def _postpone_start(self, number: int, job_id: object, error: Exception) -> None:
        """Skip a job for a while, so that it does not hold up the jobs after it."""
        self._postponed.fail(number, error, "start postponed", job=str(job_id))
        self._look = True

    def _commit(self, contents: list[tuple[Claim, NewContent]], starts: list[Start]) -> None:
        with self._lock:
            if not self._claiming:  # `stop_claiming` or `close` was called meanwhile
                for start in starts:
                    start.prepared.close()
                starts = []
            written = self._write(contents, starts)
        for claim, content, after in written:
            self._postponed.succeed(claim.run.number)
            self._clean_up(claim, content, after)
            self._update(claim, after)

    def _clean_up(self, claim: Claim, content: NewContent, after: Run | None) -> None:
        try:
            self._importer.clean_up(content, after)
        except Exception as error:  # noqa: BLE001 - a later import, or the sweep, tries again
            telemetry.event(
                logging.WARNING,
                "directory not removed",
                job=transitions.name_of(claim.run),
                error=postponement.in_words(error),
            )

    def _write(
        self, contents: list[tuple[Claim, NewContent]], starts: list[Start]
    ) -> list[tuple[Claim, NewContent, Run | None]]:
        """Write a round in one transaction; return each imported job as it is then."""
        durable = bool(starts) or any(content.durable for _, content in contents)

        def write(connection: Connection) -> _Round:
            round_ = _Round([], [], [])
            for claim, content in contents:
                with self._database.savepoint(connection, round_.failed, claim):
                    after = self._importer.apply(connection, content)
                    round_.written.append((claim, content, after))
            if starts:
                self._claim_each(connection, starts, round_)
            # An end may create the job that follows, meet a dependency, or make room in a limit.
            ends = any(content.exit is not None for _, content in contents)
            return round_._replace(queued=ends and queue.has_any(connection))

        try:
            round_ = self._database.write(write, durable=durable)
            if starts and failpoints.armed:
                failpoints.reach(failpoints.CLAIMED, self._database)
        except BaseException:
            # A COMMIT that failed may still have committed: read the rows.
            self._read_again(starts)
            raise
        for start, run in round_.claimed:
            self._take(start, run)
        for of, error in round_.failed:
            self._postpone_written(of, error)
        if round_.queued:
            self._look = True
        return round_.written

    def _postpone_written(self, of: Claim | Start, error: Exception) -> None:
        """Postpone a job whose savepoint was rolled back."""
        if isinstance(of, Start):
            of.prepared.close()
            self._postpone_start(of.number, of.job_id, error)
        else:
            self._postpone(of, error, "settle")

    def _claim_each(self, connection: Connection, starts: list[Start], round_: _Round) -> None:
        # After the imports, so that jobs that they have settled do not count.
        room = limits.room(connection)
        for start in starts:
            with self._database.savepoint(connection, round_.failed, start):
                round_.claimed.append((start, self._claim(connection, start, room)))
        if any(start.has_environment for start in starts):
            environments.remove_unused(connection)
        if failpoints.armed:
            failpoints.reach(failpoints.CLAIM_WRITTEN, self._database)

    def _claim(self, connection: Connection, start: Start, room: Room) -> Run | None:
        """Claim a job; None: it has changed, or no more jobs of its group or type may run."""
        if not room.admits(start.type, start.group):
            return None
        run = transitions.start_if_queued(
            connection,
            start.number,
            now=self._clock.now(),
            token=start.token,
            cookie=start.cookie,
            boot_id=start.boot_id,
            grace_ms=start.grace_ms,
            timeout_ms=start.timeout_ms,
            calls_function=start.calls_function,
            claimant=self._ownership.current,
            directory_id=start.prepared.directory_id,
            from_queue=(start.command, start.parameters),
        )
        if run is None:
            self._queue.pass_over(start.number)
        else:
            room.take(start.type, start.group)
        return run

    def _read_again(self, starts: list[Start]) -> None:
        for start in starts:
            try:
                with self._database.read() as connection:
                    run = transitions.find(connection, start.number)
            except BaseException:  # noqa: BLE001 - the caller raises the first error
                # It is unknown whether the job is claimed, so do not send it. If it is, its free
                # lock shows that it never started, which is true.
                start.prepared.close()
                continue
            self._take(start, run if run is not None and run.token == start.token else None)

    def _take(self, start: Start, run: Run | None) -> None:
        """Note a claimed job; None: it may not start now, or was changed, cancelled or started."""
        if run is None:
            # Keep the directory: another manager may have claimed and run the job, and not
            # imported it yet. The sweep removes the directory once the row is final.
            start.prepared.close()
            self._look = True
        else:
            self._claims[start.token] = Claim(run, start)
            self._claims_made += 1

    def _update(self, claim: Claim, run: Run | None) -> None:
        if run is None or run.final:
            with self._lock:
                del self._claims[claim.token]
            claim.release()
        else:
            claim.run = run

    def _send(self) -> None:
        """Send claimed jobs to idle supervisors; end those here that can never be sent."""
        for claim in self._claims.values():
            start = claim.start
            if start is None or not self._postponed.is_due(claim.run.number):
                continue
            try:
                self._send_one(claim, start)
            except Exception as error:  # noqa: BLE001 - the jobs after it must be sent all the same
                self._postpone(claim, error, "start")

    def _send_one(self, claim: Claim, start: Start) -> None:
        if start.failure is not None:
            self._end_here(claim, start, Reason.SPAWN_FAILED, start.failure)
            return
        if failpoints.armed:
            failpoints.reach(failpoints.BEFORE_SEND, self._database)
        claim.supervisor = self._pool.send(start)
        if claim.supervisor is not None:
            if failpoints.armed:
                failpoints.reach(failpoints.SENT, self._database)
            claim.start = None
            start.prepared.close()
        elif time.monotonic() - claim.claimed > tuning.SEND_PATIENCE:
            self._end_here(claim, start, Reason.SPAWN_FAILED, "no supervisor took it")
        elif self._is_stopped(claim.run):
            self._end_here(claim, start, Reason.STOPPED, "stopped before its start")
        else:
            # Poll, because nothing reports when a full socket has room again.
            claim.due = time.monotonic() + RETRY
            self._look = True

    def _is_stopped(self, run: Run) -> bool:
        with self._database.read() as connection:
            fresh = transitions.find(connection, run.number)
        return fresh is not None and fresh.stop_requested is not None

    def _end_here(self, claim: Claim, start: Start, reason: Reason, why: str) -> None:
        """Write the exit record, as the holder of the lock; the next round settles the job."""
        self._launch.write_verdict(start, reason, why)
        claim.start = None
        start.prepared.close()
        claim.end()

    def _free_slots(self) -> int:
        return self._slots - self._unended() - len(self._adoption.slots)

    def _unended(self) -> int:
        """Return how many claimed jobs use a slot; those that are to be ended here do not."""
        return sum(
            not one.ended and (one.start is None or _needs_supervisor(one))
            for one in self._claims.values()
        )


def _needs_supervisor(claim: Claim) -> bool:
    """Tell whether a job must still be sent; the host itself ends one that cannot be started."""
    return claim.start is not None and claim.start.failure is None
