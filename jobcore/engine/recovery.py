"""
Takes care of jobs whose host died, and resolves jobs whose supervisor died.

No timer is needed to detect that. A live supervisor holds the lock of its job, so a RUNNING job
with a free lock and without an exit record is certainly dead.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from uuid import UUID

from sqlalchemy import Connection

from jobcore import tuning
from jobcore.clock import Clock
from jobcore.embedding import failpoints, telemetry
from jobcore.embedding.worker import DIRECTORY_WORKER, handed_over
from jobcore.engine import orphans, procfs
from jobcore.engine.importer import Importer
from jobcore.engine.job_directories import Directories, recorded_namespace
from jobcore.engine.ownership import Ownership
from jobcore.engine.postponement import Postponement, concerns_all_jobs
from jobcore.engine.remover import Remover, Throttle
from jobcore.engine.stopper import Stopper
from jobcore.engine.unresponsive import Unresponsive
from jobcore.errors import DatabaseBusy, DatabaseGone, StoreError
from jobcore.lifecycle import Reason, Status
from jobcore.storage import (
    batches,
    dependencies,
    environments,
    filesystem,
    job_rows,
    log_segments,
    schema,
    settlement,
    transitions,
)
from jobcore.storage.database import Database
from jobcore.storage.statement import driver_of
from jobcore.storage.transitions import Run, name_of
from jobcore.supervisor import NewerProtocol, job_directory, system_calls

#: If a supervisor is connected to this process, only every fifth sweep examines the files of its
#: job: it reports output and the end itself, and its death closes the connection. Of many such
#: jobs, a sweep examines about `CONNECTED_PER_SWEEP`.
SWEEPS_PER_LOOK, CONNECTED_PER_SWEEP = 5, 10


class _OrphansAlive(Exception):
    """The orphans of a dead supervisor were sent SIGKILL and have not ended yet."""


class Recovery:
    """
    Brings the rows of jobs up to date with the job directories.

    Args:
        ownership: Tells which owners are alive.
        postponed: Remembers failures: of a job, by its number.
    """

    def __init__(
        self,
        database: Database,
        directories: Directories,
        importer: Importer,
        stopper: Stopper,
        remover: Remover,
        clock: Clock,
        ownership: Ownership,
        postponed: Postponement,
    ) -> None:
        self._postponed = postponed
        self._database = database
        self._ownership = ownership
        self._directories = directories
        self._importer = importer
        self._stopper = stopper
        self._remover = remover
        self._clock = clock
        self._unresponsive = Unresponsive(directories, clock)
        #: By job number: the offset at the last sweep. If it moves, another manager imports.
        self._offsets: dict[int, int] = {}
        #: By job number: since when its orphans are being killed, by the monotonic clock.
        self._killing: dict[int, float] = {}
        self._unfinished = False
        self._undecided = False
        self._repairs = False
        self._last_swept = 0  # the number of the last job that a sweep has examined
        self._sweeps = 0
        #: Returns the numbers of the jobs whose supervisors have taken them, and report to this
        #: process; and tells whether that of a job does, without looking at the others.
        self.connected: Callable[[], Collection[int]] = tuple
        self.is_connected: Callable[[Run], bool] = lambda _run: False

    # --- one job ----------------------------------------------------------------

    def reconcile(
        self,
        run: Run,
        *,
        patience: float | None = None,
        kill: bool = False,
        until: float = math.inf,
        most: float = math.inf,
    ) -> Run | None:
        """
        Import what the job has written, settle it if it has ended, resolve it if it is dead.

        Args:
            patience: Seconds to wait for each write transaction; None: the busy timeout.
            kill: Kill the orphans of a dead supervisor, and resolve a job that was started in
                another directory. If false, both stay as they are.
            until: When to leave the rest to a later call, by the monotonic clock.
            most: Bytes of output after which to leave the rest to a later call.

        Returns:
            The row as it is then, or `run` itself if there was nothing to do; None if the row
            has been removed.

        Raises:
            StoreError, OSError: It could not be done now. Nothing is lost by that.
        """
        if run.owned:
            return self._judge_owner(run, patience, kill=kill)
        if not run.supervised or not (kill or self.is_here(run)):
            return self._decide_dependencies(run, patience) if run.status == Status.QUEUED else run
        fresh = self._importer.import_all(run, patience=patience, until=until, most=most)
        if (
            fresh is None
            or not fresh.supervised
            or time.monotonic() >= until
            # Import the rest before judging whether it is alive.
            or fresh.spool_offset - run.spool_offset >= most
        ):
            return fresh
        alive = self._is_alive(fresh)
        if alive is None:
            return self._read(fresh)
        if alive:
            self._remind(fresh)
        else:
            # A newer version of jobcore must judge it. Or a later sweep will, because the start
            # of other jobs must not wait for a process to die.
            with suppress(NewerProtocol, _OrphansAlive):
                return self._resolve(fresh, patience, kill=kill, until=until)
        return fresh

    def _remind(self, run: Run) -> None:
        """Wake the supervisor of a running job if it is stopped, and repeat a stop request."""
        if run.stop_who == transitions.actor():
            self._unresponsive.look(run)  # this process requested the stop, so it enforces it
        else:
            self._unresponsive.wake(run)
        if run.stop_requested is not None:
            self._stopper.redeliver(run)

    def _judge_owner(self, run: Run, patience: float | None, *, kill: bool) -> Run | None:
        """
        End a job whose owner is dead; one of another directory only if `kill` is true.

        Raises:
            StoreError: It cannot be determined whether the owner is dead.
        """
        owner = run.owner or ""
        if not (kill or self._ownership.is_here(owner)):
            return run
        alive = self._ownership.lives(owner)
        if alive is None:
            # Either guess could be wrong, and `lost` could let a retry run beside the live process.
            raise StoreError(
                f"job {name_of(run)}: its process cannot be seen from here (another pid namespace, "
                "user or /proc) and its lock file was removed, so whether it is alive is unknown; "
                "if it has ended, end the job with finish_job or stop_job"
            )
        if alive:
            return run
        end = partial(settlement.end_abandoned, run=run, now=self._clock.now())
        ended = self._database.write(end, patience=patience)
        if ended is not None and ended.final:
            telemetry.event(logging.WARNING, "owner is dead", job=name_of(run), owner=owner)
        return ended

    def try_to_reconcile(
        self, run: Run, *, kill: bool = False, until: float = math.inf
    ) -> Run | None:
        """
        Reconcile within a read: if it cannot be done now, return the row as stored.

        All output of a job that has ended is imported, in parts between which reads of other jobs
        have their turns. Of a job that is alive, up to `READ_BYTES` are imported. To read all of
        it, call this again until the offset reaches that of `written`, or does not change.
        """
        end = None
        while True:
            attempt = partial(
                self._try_to_reconcile,
                run,
                patience=tuning.READ_PATIENCE,
                kill=kill,
                until=until,
                most=tuning.READ_BYTES,
            )
            try:
                fresh = DIRECTORY_WORKER.call(attempt, patience=tuning.READ_PATIENCE)
            except DatabaseBusy as error:
                self._postpone(run, error)
                return run
            if (
                fresh is None
                or fresh is run  # as stored, perhaps with damaged columns
                or not fresh.supervised
                or fresh.spool_offset - run.spool_offset < tuning.READ_BYTES
                or time.monotonic() >= until
                or not self.has_ended(fresh)
            ):
                return fresh
            end = end or self.written(fresh)
            if fresh.spool_offset > end:  # it writes on: only its lock file is gone
                return fresh
            run = fresh

    def _try_to_reconcile(
        self,
        run: Run,
        *,
        patience: float | None,
        kill: bool,
        until: float,
        most: float = math.inf,
    ) -> Run | None:
        try:
            fresh = self.reconcile(run, patience=patience, kill=kill, until=until, most=most)
        except Exception as error:
            if patience is None and isinstance(error, DatabaseBusy):
                raise  # it concerns all jobs, and the busy timeout is over
            self._postpone(run, error)
            if kill and isinstance(error, (StoreError, OSError)) and not concerns_all_jobs(error):
                self._reconcile_without_files(run)
            return run
        self._postponed.succeed(run.number)
        return fresh

    def _reconcile_without_files(self, run: Run) -> None:
        """
        Do what is possible for a job that cannot be reconciled now because of its files.

        If its supervisor is dead, kill the orphans. If it is alive, redeliver a stop request.
        The kernel's lists of locks tell which, without the job directory.
        """
        try:
            if not run.supervised or not self._may_be_of_this_boot(run) or not self.is_here(run):
                return
            if self._is_supervised(run):
                if run.stop_requested is not None:
                    self._stopper.redeliver(run)
            elif orphans.are_visible() and not orphans.is_inside(run.cookie or ""):
                orphans.kill(run.cookie or "", orphans.PAUSE)
        except (StoreError, OSError):
            pass  # the next look tries again

    def _postpone(self, run: Run, error: Exception) -> None:
        if isinstance(error, DatabaseBusy):  # no failure of the job, and it ends by itself
            telemetry.event(logging.INFO, "reconcile postponed", job=name_of(run), error=str(error))
        else:
            self._postponed.fail(
                run.number, error, "job postponed", job=name_of(run), step="reconcile"
            )

    def is_here(self, run: Run) -> bool:
        """
        Tell whether a supervised job was started in this directory, not in one it was copied from.

        Raises:
            DatabaseGone: The directory of all job directories is gone.
        """
        return self._directories.is_home_of(run.directory_id, run.boot_id)

    def _is_of_this_boot(self, run: Run) -> bool:
        return run.boot_id == self._directories.boot_id

    def _may_be_of_this_boot(self, run: Run) -> bool:
        """Tell whether a run is of this boot; true also if that is not known of one of them."""
        boot_id = self._directories.boot_id
        return None in (boot_id, run.boot_id) or boot_id == run.boot_id

    def require_root(self) -> bool:
        """
        Tell whether the directory of all job directories is in place; raise if it stays missing.

        Raises:
            DatabaseGone: The directory has been gone for some seconds.
        """
        return self._directories.require_root()

    @handed_over
    def copied(self) -> list[Run]:
        """Return the supervised jobs that were not started in this directory: this is a copy."""
        with self._database.read() as connection:
            running = transitions.supervised(connection)
        return [run for run in running if not self._is_known_here(run)]

    def _is_known_here(self, run: Run) -> bool:
        try:
            return self.is_here(run)
        except DatabaseGone:
            return False  # only the database file was copied

    @handed_over
    def is_dead(self, run: Run) -> bool:
        """Tell whether a supervised job of this directory has lost its supervisor."""
        try:
            return run.supervised and self.is_here(run) and self._is_alive(run) is False
        except (StoreError, OSError):
            return False  # not known now

    @handed_over
    def has_news(self, run: Run) -> bool:
        """
        Tell whether the files of a job show more than `run` does, without reading any table.

        For an owned job, that is a free lock of the owner. For a supervised job, it is an exit
        record, output that is not imported, or a free lock. A pending stop request counts, too.
        """
        if run.owned:
            try:
                return self._ownership.lives(run.owner or "") is False
            except StoreError as error:
                if error.errno in system_calls.SHORTAGE:
                    return True  # reconciling postpones it
                raise
        try:
            more = self._has_more(run, output=True)
        except NewerProtocol:
            return False  # left to the newer version of jobcore
        if not more:
            self._unresponsive.wake(run)  # no other process may be there to do it
        return more

    @handed_over
    def has_ended(self, run: Run) -> bool:
        """
        Tell whether a job's directory has an exit record, or a lock that no process holds.

        A missing lock counts as the latter, although the supervisor may be alive.
        """
        try:
            with self._directories.open(run.name) as directory:
                ending = job_directory.read_exit(directory, run.token or "")
                return ending is not None or not self._directories.is_held(directory)
        except (StoreError, OSError, NewerProtocol):
            return False

    @handed_over
    def written(self, run: Run) -> int:
        """Return the offset up to which the job has written by now; 0: that cannot be read."""
        try:
            if not run.supervised or not self.is_here(run):
                return 0
            with self._directories.open(run.name) as directory:
                return job_directory.spool_end(directory)
        except (StoreError, OSError, NewerProtocol):
            return 0

    @handed_over
    def look(self, run: Run) -> tuple[log_segments.Unfinished | None, bool]:
        """Return the results of `unfinished` and then of `has_news`."""
        return self.unfinished(run), self.has_news(run)

    @handed_over
    def unfinished(self, run: Run) -> log_segments.Unfinished | None:
        """Return the unfinished lines in the job directory; None: none can be read."""
        try:
            if not run.supervised or not self.is_here(run):
                return None  # a copied directory does not show the job's current lines
            with self._directories.open(run.name) as directory:
                return log_segments.unfinished(job_directory.read_tail(directory))
        except (StoreError, OSError, NewerProtocol):
            return None

    def _has_more(self, run: Run, *, output: bool) -> bool:
        try:
            with self._directories.open(run.name) as directory:
                if (
                    job_directory.read_exit(directory, run.token or "") is not None
                    or (output and job_directory.spool_end(directory) > run.spool_offset)
                    or not self._directories.is_held(directory)
                ):
                    return True
            return run.stop_requested is not None  # reconciling reminds the supervisor
        except NewerProtocol:
            raise
        except Exception:  # noqa: BLE001 - gone or unreadable: reconciling finds out which
            return True

    def _is_alive(self, run: Run) -> bool | None:
        """
        Tell whether the job has a supervisor, by its lock, even if the lock file was removed.

        Returns:
            None: the job was settled meanwhile.

        Raises:
            StoreError: That cannot be seen from here.
        """
        is_certain = False
        try:
            with self._directories.open(run.name) as directory:
                if self._directories.is_held(directory):
                    return True
                is_certain = self._directories.is_lock_of(directory, run.token or "")
        except FileNotFoundError:
            current = self._read(run)
            if current is None or not current.supervised:
                return None  # its directory was removed for that: search no processes
        if not self._may_be_of_this_boot(run) or not self.is_here(run):
            return False
        if is_certain:
            return job_directory.is_run_locked(run.token or "")
        return self._is_supervised(run)

    def _read(self, run: Run) -> Run | None:
        with self._database.read() as connection:
            return transitions.find(connection, run.number)

    def _is_supervised(self, run: Run) -> bool:
        """
        Tell whether a run of this directory has a supervisor, without its lock file.

        Raises:
            StoreError: That cannot be seen from here, and `repair` was not called.
        """
        found = orphans.is_supervised(run.token or "", self._namespace_of(run))
        if found is None and not self._repairs:
            # If the supervisor is alive, it makes its lock file again within seconds.
            repair = f"`jobcore --db {self._database.path} doctor --repair`"
            raise StoreError(
                f"job {name_of(run)}: its lock file was removed or replaced, and whether its "
                f"supervisor is alive cannot be seen from here ({job_directory.LOCKS} cannot be "
                "read, and it may be in another pid namespace); open the database where it can be "
                f"seen, or, if the job has ended, run {repair}"
            )
        return bool(found)

    def _namespace_of(self, run: Run) -> int | None:
        try:
            with self._directories.open(run.name) as directory:
                return recorded_namespace(directory)
        except (StoreError, OSError, NewerProtocol):
            return None  # gone or unreadable

    def _resolve(self, run: Run, patience: float | None, *, kill: bool, until: float) -> Run | None:
        """Settle a job without a supervisor, after its orphans have ended."""
        if orphans.is_inside(run.cookie or ""):
            return run
        if not kill and self._may_be_of_this_boot(run) and self._may_be_left(run):
            return run  # left to a manager, which is allowed to kill them
        try:
            with self._directories.locked(run.name) as locked:
                if locked is None:
                    return run  # another process resolves it, or it is alive after all
                _, directory = locked
                current, verdict = self._judge(run, directory, until)
                if verdict is not None:
                    job_directory.write_exit(directory, verdict)
                    self._log_verdict(run, verdict)
        except FileNotFoundError:
            # Do not make a directory for the exit record: a later look could not trust it. The
            # row is the guard: only the first process settles it.
            current, verdict = self._judge(run, None, until)
            if current is not None and verdict is not None:
                self._log_verdict(run, verdict)
                return self._importer.import_all(current, patience=patience, verdict=verdict)
        if current is None or not current.supervised:
            # It was settled meanwhile and its directory removed, so the one here is stale.
            self._directories.remove(run.name)
            return current
        return self._importer.import_all(current, patience=patience)

    def _may_be_left(self, run: Run) -> bool:
        """Tell whether a job has orphans, or may have some in an invisible pid namespace."""
        if orphans.find(run.cookie or ""):
            return True
        try:
            with self._directories.open(run.name) as directory:
                return orphans.are_visible() and _is_of_other_namespace(directory)
        except FileNotFoundError:
            return False

    def _judge(
        self, run: Run, directory: int | None, until: float
    ) -> tuple[Run | None, job_directory.ExitRecord | None]:
        """
        Return the row as it is now, and the exit record to write for it, or None.

        Args:
            directory: The job directory, whose whole lock the caller holds; None: it is gone.
            until: As for `reconcile`.

        Raises:
            _OrphansAlive: Its processes need more time to die.
        """
        current = self._read(run)
        if current is None or not current.supervised:
            return current, None
        if directory is None:
            return current, self._verdict(current, None, until)
        if job_directory.read_exit(directory, current.token or "") is not None:
            return current, None
        return current, self._verdict(current, directory, until)

    def _verdict(self, run: Run, directory: int | None, until: float) -> job_directory.ExitRecord:
        """Kill the orphans of a job whose supervisor is dead, and return its exit record."""
        never = directory is not None and self._never_started(run, directory)
        notes = []
        unreaped: tuple[int, ...] = ()
        if not never and self._may_be_of_this_boot(run):
            unreaped, note = self._end_leftovers(run, directory, until)
            notes += [note] if note else []
        if never:
            what = "never started: its host or its supervisor died before"
        elif not self.is_here(run):
            what = "lost: it was not started in this directory, so its end is not known here"
        elif directory is None:
            what = "lost: its directory was removed and its supervisor is gone"
        elif self._is_replaced(run, directory):
            what = "lost: its directory was replaced, and does not say how the command ended"
        else:
            what = "lost: its supervisor died before it could record how the command ended"
        end = run.spool_offset
        sequence = run.next_sequence
        if directory is not None:
            self._importer.number_unfinished(run, directory)
            # A restored or truncated directory may lack output that is already imported.
            end = max(end, job_directory.spool_end(directory))
            sequence = self._importer.count_lines(run, directory, end)
        return job_directory.ExitRecord(
            token=run.token or "",
            reason=str(Reason.NEVER_STARTED if never else Reason.LOST),
            spool_end=end,
            next_sequence=sequence,
            unreaped=unreaped,
            note="; ".join([what, *notes]),
        )

    def _is_replaced(self, run: Run, directory: int) -> bool:
        """Tell whether a directory is certainly not the one in which the job was started."""
        return (
            run.directory_id is not None
            and self._is_of_this_boot(run)
            and not self._directories.is_directory_of(directory, run.directory_id)
        )

    def _never_started(self, run: Run, directory: int) -> bool:
        """Tell whether it is proven that the command was not started."""
        if self._directories.boot_id is None:
            return False  # a power failure may have removed the files
        return (
            self._is_of_this_boot(run)
            and self._directories.is_directory_of(directory, run.directory_id)
            and job_directory.is_unstarted(directory, run.token or "")
            and job_directory.RUN not in os.listdir(directory)
            and run.spool_offset == run.next_sequence == job_directory.spool_end(directory) == 0
        )

    def _end_leftovers(
        self, run: Run, directory: int | None, until: float
    ) -> tuple[tuple[int, ...], str]:
        """Kill the orphans of a job of this directory; return the surviving pids, and a note."""
        if not orphans.are_visible():
            where = (
                "without /proc"
                if system_calls.pid_namespace() is None
                else "from this pid namespace"
            )
            return (), f"its processes cannot be seen {where}"
        is_elsewhere = directory is not None and _is_of_other_namespace(directory)
        if is_elsewhere and not orphans.find(run.cookie or ""):
            # Processes in a namespace inside this one would have been found.
            return (), "its processes cannot be seen from this pid namespace"
        if self.is_here(run):
            unreaped = self._kill_leftovers(run, until)
            unexamined = ", ".join(map(str, procfs.unanswered()))
            return unreaped, f"could not be examined: {unexamined}" if unexamined else ""
        # This may be a copy, and the processes may belong to the original: leave them alone.
        left = tuple(orphans.find(run.cookie or ""))
        return left, f"still running, and left alone: {', '.join(map(str, left))}" if left else ""

    def _kill_leftovers(self, run: Run, until: float) -> tuple[int, ...]:
        """Kill the orphans of a job; return the pids of those that could not be killed."""
        began = self._killing.setdefault(run.number, time.monotonic())
        patience = tuning.ORPHAN_PATIENCE - (time.monotonic() - began)
        left = orphans.kill(
            run.cookie or "", max(min(patience, until - time.monotonic()), orphans.PAUSE)
        )
        if left and time.monotonic() - began < tuning.ORPHAN_PATIENCE and until != math.inf:
            raise _OrphansAlive
        self._killing.pop(run.number, None)
        return left

    def _log_verdict(self, run: Run, verdict: job_directory.ExitRecord) -> None:
        if failpoints.armed:
            failpoints.reach(failpoints.RESOLVED, self._database)
        telemetry.event(
            logging.WARNING,
            "job resolved",
            job=str(run.id),
            reason=verdict.reason,
            unreaped=list(verdict.unreaped),
        )

    # --- all jobs ---------------------------------------------------------------

    def is_unfinished(self) -> bool:
        """Tell whether the last sweep ran out of time, so that the next one should come soon."""
        return self._unfinished or self._undecided

    def decide(self, *, everything: bool = False) -> None:
        """
        Decide the dependencies on ended jobs that the settling transactions have left open.

        Args:
            everything: Decide all of them. If false, do a few steps, so that jobs can start.
        """
        until = math.inf if everything else time.monotonic() + tuning.SWEEP
        throttle = Throttle()
        self._undecided = self._is_undecided()
        while self._undecided and time.monotonic() < until:
            with throttle.step():
                self._undecided = self._decide_some(None)

    def _is_undecided(self) -> bool:
        with self._database.read() as connection:
            return bool(dependencies.listed(connection, 1))

    def _decide_dependencies(self, run: Run, patience: float | None) -> Run | None:
        """Decide some of these, because there may be no manager with slots to do it."""
        if not self._is_undecided():
            return run
        self._decide_some(patience)
        return self._read(run)

    def _decide_some(self, patience: float | None) -> bool:
        decide = partial(settlement.decide_listed, now=self._clock.now())
        return self._database.write(decide, patience=patience)

    @handed_over
    def sweep(self, *, everything: bool = False) -> list[Run]:
        """
        Look at every RUNNING job, at unfinished deletions and at stale directories.

        The files of jobs whose supervisors are connected to this process are examined less often.

        Args:
            everything: Also import jobs that another manager is importing, and wait up to the
                busy timeout for each write.

        Returns:
            The jobs that this call settled.

        Raises:
            DatabaseBusy: With `everything`: another process held the write lock too long.
        """
        names = self._directories.names()  # before the rows, so that each new directory has a row
        with self._database.read() as connection:
            running = transitions.supervised(connection, self._postpone_damaged)
            owned = transitions.owned(connection, self._postpone_damaged)
            staging = {batch.owner for batch in batches.find_open(connection)}
        settled = []
        self._unfinished = False
        offsets = {run.number: run.spool_offset for run in running}
        until = math.inf if everything else time.monotonic() + tuning.SWEEP
        patience = None if everything else tuning.READ_PATIENCE
        connected = () if everything else self.connected()
        every = max(SWEEPS_PER_LOOK, len(connected) // CONNECTED_PER_SWEEP)
        self._sweeps += 1
        # Begin after the last job of the previous sweep, so that every job gets its turn.
        for run in sorted(running, key=lambda run: (run.number <= self._last_swept, run.number)):
            if not everything and not self._postponed.is_due(run.number):
                continue
            if run.number in connected and self._is_left_out(run, every):
                self._look_at_supervisor(run, wake=False)  # the pool of this process wakes it
                continue
            resting = everything or self._offsets.get(run.number) == run.spool_offset
            fresh = self._sweep_one(run, patience, resting=resting, until=until)
            if fresh is not None:
                offsets[run.number] = fresh.spool_offset
            if fresh is not None and fresh.final:
                settled.append(fresh)
            if fresh is not None and fresh.supervised:
                self._look_at_supervisor(fresh)
            self._last_swept = run.number
            if time.monotonic() >= until:
                self._unfinished = True
                break  # so that jobs can start; the next sweep continues
        self._killing = {
            number: since for number, since in self._killing.items() if number in offsets
        }
        settled += self._sweep_owned(owned, staging, patience, everything=everything)
        self._remove_environments()
        self._offsets = offsets
        self._unresponsive.keep({run.number for run in running})
        if everything:
            self.decide(everything=True)
        self._remover.continue_deletions(everything=everything)
        self._remove_stale(set(names).difference(run.name for run in running), everything)
        return settled

    def repair(self) -> list[Run]:
        """
        Make a missing directory of job directories again, and settle the jobs that ran in it.

        It also settles jobs whose supervisors cannot be seen from here; see `_is_supervised`.

        Returns:
            The jobs that this call settled.

        Raises:
            StoreMismatch: The existing directory belongs to another database.
            StoreError: The directory cannot be made.
        """
        from jobcore.storage import counts  # noqa: PLC0415 - loaded with the first connection, not at import

        def change(connection: Connection) -> None:
            schema.renew_root(driver_of(connection), self._database.path)
            transitions.ignore_left(connection)
            dependencies.repair(connection)
            counts.count_again(driver_of(connection))

        try:
            self._database.write(change)
        except OSError as error:
            raise filesystem.typed(f"{self._database.path}.jobs", error) from error
        self._directories.reopen()
        self._repairs = True
        try:
            return self.sweep(everything=True)
        finally:
            self._repairs = False

    @handed_over
    def refresh(self) -> None:
        """Import the output of this directory's running jobs, and settle those that have ended."""
        with self._database.read() as connection:
            running = transitions.supervised(connection)
            owned = transitions.owned(connection)
        for run in running:
            with suppress(NewerProtocol):
                if self._has_more(run, output=True):
                    self.try_to_reconcile(run)
        for run in owned:
            self.try_to_reconcile(run)
        self.decide(everything=True)

    def _sweep_one(
        self, run: Run, patience: float | None, *, resting: bool, until: float
    ) -> Run | None:
        try:
            if not self._has_more(run, output=resting):
                return run
            return self._try_to_reconcile(run, patience=patience, kill=True, until=until)
        except NewerProtocol:
            return None

    def _sweep_owned(
        self, owned: list[Run], staging: set[str], patience: float | None, *, everything: bool
    ) -> list[Run]:
        """
        End the jobs of dead owners and remove their locks; return the jobs that it ended.

        Args:
            staging: The owners of unpublished batches, who are judged by their locks later.
        """
        owners = {run.owner or "" for run in owned}
        alive = {owner for owner in owners if self._is_known_alive(owner)}
        ended = [
            self._try_to_reconcile(run, patience=patience, kill=True, until=math.inf)
            for run in owned
            if run.owner not in alive and (everything or self._postponed.is_due(run.number))
        ]
        self._ownership.remove_unused(owners | staging)
        return [run for run in ended if run is not None and run.final]

    def _remove_environments(self) -> None:
        """Remove environments that no job needs any more, for example after deletions."""
        with self._database.read() as connection:
            found = environments.has_unused(connection)
        if found:
            self._database.write(environments.remove_unused)

    def _is_known_alive(self, owner: str) -> bool:
        try:
            return self._ownership.lives(owner) is True
        except StoreError:
            return False  # its jobs are postponed, each with the cause

    def _look_at_supervisor(self, run: Run, *, wake: bool = True) -> None:
        look = self._unresponsive.look if wake else self._unresponsive.end_overdue
        try:
            look(run)
        except Exception as error:  # noqa: BLE001 - the other jobs must be examined all the same
            self._postpone(run, error)

    def _postpone_damaged(self, number: int, error: Exception) -> None:
        self._postponed.fail(number, error, "job postponed", job=f"number {number}", step="read")

    def _is_left_out(self, run: Run, every: int) -> bool:
        """Tell whether this sweep leaves out the files of a job whose supervisor reports."""
        return run.stop_requested is None and (run.number + self._sweeps) % every != 0

    def _remove_stale(self, names: set[str], everything: bool) -> None:
        ids = {UUID(hex=name) for name in names}
        if ids:
            with self._database.read() as connection:
                active = job_rows.active_ids(connection, ids)
            for stale in ids - active:
                self._try_to_remove(stale.hex, self._directories.remove, everything)
        for leftover in self._directories.leftovers():
            self._try_to_remove(leftover, self._directories.remove_leftover, everything)

    def _try_to_remove(self, name: str, remove: Callable[[str], object], everything: bool) -> None:
        """Remove a directory; if that fails, leave it to a later sweep."""
        if not everything and not self._postponed.is_due(name):
            return
        try:
            remove(name)
        except (StoreError, OSError) as error:
            self._postponed.fail(name, error, "directory not removed", directory=name)
        else:
            self._postponed.succeed(name)


def _is_of_other_namespace(directory: int) -> bool:
    """Tell whether a job's record names another pid namespace; False if it names none."""
    return recorded_namespace(directory) not in (None, system_calls.pid_namespace())
