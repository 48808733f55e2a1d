"""
Recovery: goes on with jobs whose host died, and says what became of those whose supervisor died.

Nothing here waits for a timer. A supervisor that lives holds its job's lock, so
a RUNNING job with a free lock and no exit record is dead, at once and for sure.
"""

from __future__ import annotations

import logging
import os
from uuid import UUID

from jobcore import (
    environments,
    filesystem,
    holders,
    interrupts,
    leftovers,
    runs,
    settlement,
    store,
    telemetry,
)
from jobcore.clock import Clock
from jobcore.database import Database
from jobcore.directories import Directories
from jobcore.errors import DatabaseCorrupt, StoreError
from jobcore.importer import Importer
from jobcore.lifecycle import Reason
from jobcore.overdue import Overdue
from jobcore.ownership import Ownership
from jobcore.remover import REMOVED_AT_ONCE, Remover
from jobcore.runs import Run
from jobcore.stopper import Stopper
from jobcore.supervision import NewerProtocol, failpoints, frames, jobdir

#: Seconds that a read waits for locks before it returns the row as stored.
READ_PATIENCE = 0.25


class Recovery:
    """
    Brings rows up to what the job directories say.

    Args:
        database: The rows.
        directories: The truth.
        importer: Carries the one into the other.
        stopper: Carries wishes the other way.
        remover: Goes on with begun deletions.
        clock: Tells when.
        ownership: Tells which owners live.
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
    ) -> None:
        self._database = database
        self._ownership = ownership
        self._directories = directories
        self._importer = importer
        self._stopper = stopper
        self._remover = remover
        self._clock = clock
        self._boot_id = filesystem.boot_id()
        self._overdue = Overdue()
        #: By job number, the offset at the last sweep: who moves is being cared for.
        self._offsets: dict[int, int] = {}

    # --- one job ----------------------------------------------------------------

    def reconcile(self, run: Run, *, patience: float | None = None) -> Run | None:
        """
        Import what the job has written, settle it if it has ended, resolve it if it is dead.

        Args:
            patience: Seconds to wait for each write transaction; None: the busy timeout.

        Returns:
            The row as it then is; the same where there was nothing to do; None
            when it has been removed.

        Raises:
            StoreError, OSError: It could not be done now. Nothing is lost by that.
        """
        if run.owned:
            return self._judge_owner(run, patience)
        if not run.supervised:
            return run
        fresh = self._importer.bring_in(run, patience=patience)
        if fresh is None or not fresh.supervised:
            return fresh
        if self._is_alive(fresh):
            if fresh.stop_requested is not None:
                self._stopper.remind(fresh)
            return fresh
        try:
            return self._resolve(fresh, patience)
        except NewerProtocol:
            return fresh  # its own version will know what became of it

    def _judge_owner(self, run: Run, patience: float | None) -> Run | None:
        """End a job whose owner is dead; it has nobody else who would."""
        if self._ownership.lives(run.owner or ""):
            return run
        with self._database.write(patience=patience) as connection:
            ended = settlement.end_abandoned(connection, run, now=self._clock.now())
        if ended is not None and ended.final:
            telemetry.event(
                logging.WARNING, "owner is dead", job=_called(run), owner=run.owner or ""
            )
        return ended

    def reconcile_softly(self, run: Run) -> Run | None:
        """Reconcile inside a read: where it cannot be done now, return the row as stored."""
        try:
            return self.reconcile(run, patience=READ_PATIENCE)
        except Exception as error:  # one job's trouble must not stop a sweep of all
            if interrupts.raised_by_handler(error):
                raise
            is_known = isinstance(error, (StoreError, OSError))
            telemetry.event(
                logging.INFO if is_known else logging.ERROR,
                "reconcile postponed",
                job=_called(run),
                error=repr(error),
            )
        return run

    def has_news(self, run: Run) -> bool:
        """
        Tell whether the files of a job say more than `run` does. No table is touched.

        Of a job with an owner that is the owner's free lock. Of a supervised one it is an
        exit record, output behind what is imported, or a free lock; a wish to stop that is
        not fulfilled counts as well.
        """
        try:
            if run.owned:
                return not self._ownership.lives(run.owner or "")
            return self._says_more(run, output=True)
        except NewerProtocol:
            return False  # its own version cares for it

    def _says_more(self, run: Run, *, output: bool) -> bool:
        try:
            with self._directories.open(run.name) as directory:
                if (
                    jobdir.read_exit(directory, run.token or "") is not None
                    or (output and jobdir.spool_end(directory) > run.spool_offset)
                    or not self._directories.is_held(directory)
                ):
                    return True
            return run.stop_requested is not None  # of which its supervisor is to be reminded
        except (StoreError, OSError):
            return True  # it is gone, or cannot be read: reconciling finds out which

    def _is_alive(self, run: Run) -> bool:
        try:
            with self._directories.open(run.name) as directory:
                return self._directories.is_held(directory)
        except FileNotFoundError:
            return False

    def _resolve(self, run: Run, patience: float | None) -> Run | None:
        if leftovers.is_inside(run.cookie or ""):
            return run
        existed = run.name in self._directories.names()
        with self._directories.taken(run.name, create=True) as directory:
            if directory is None:
                return run  # somebody else does, or it lives after all
            with self._database.read() as connection:
                current = runs.find(connection, run.number)
            if current is None or not current.supervised:
                # Settled meanwhile, and its directory was removed: the one here is ours.
                settled = True
            else:
                settled = jobdir.read_exit(directory, run.token or "") is not None
                if not settled:
                    self._write_verdict(current, directory, existed=existed)
        if current is None or (settled and not current.supervised):
            self._directories.remove(run.name)
            return current
        return self._importer.bring_in(current, patience=patience)

    def _write_verdict(self, run: Run, directory: int, *, existed: bool) -> None:
        """Write the exit record of a job whose supervisor is dead. The whole lock is ours."""
        this_boot = run.boot_id == self._boot_id
        record = jobdir.read_record(directory, jobdir.RUN)
        started = record is not None or jobdir.RUN in os.listdir(directory)
        namespace = None if record is None else record.get("pid_namespace")
        never = existed and not started and this_boot
        notes = []
        unreaped: tuple[int, ...] = ()
        if not never and this_boot:
            if namespace in (None, leftovers.pid_namespace()):
                unreaped = leftovers.kill(run.cookie or "")
            else:
                notes.append("its processes cannot be seen from this pid namespace")
        notes.insert(
            0,
            "never started: its host or its supervisor died before"
            if never
            else "lost: its supervisor died, so nobody knows how it ended",
        )
        sequence = self._importer.count_lines(run, directory)
        end = jobdir.spool_end(directory)
        now_ns = self._clock.now() * 1000
        payload = ("; ".join(notes) + "\n").encode()
        data = frames.encode_header(frames.SYSTEM, 0, sequence, 1, now_ns, payload) + payload
        _append_spool(directory, end, data)
        jobdir.write_exit(
            directory,
            jobdir.ExitRecord(
                token=run.token or "",
                reason=str(Reason.NEVER_STARTED if never else Reason.LOST),
                spool_end=end + len(data),
                next_sequence=sequence + 1,
                unreaped=unreaped,
            ),
        )
        failpoints.reach(failpoints.RESOLVED, self._database)
        telemetry.event(
            logging.WARNING,
            "job resolved",
            job=str(run.id),
            reason="never_started" if never else "lost",
            unreaped=list(unreaped),
        )

    # --- all jobs ---------------------------------------------------------------

    def sweep(self, *, everything: bool = False) -> list[Run]:
        """
        Look at every RUNNING job, at begun deletions and at leftover directories.

        Args:
            everything: Import also for those that another manager cares for.

        Returns:
            The jobs that this settled.
        """
        names = self._directories.names()  # before the rows: one made in between has a row
        with self._database.read() as connection:
            running = runs.supervised(connection)
            owned = runs.owned(connection)
            deleted = runs.being_deleted(connection)
        settled = []
        offsets: dict[int, int] = {}
        for run in running:
            offsets[run.number] = run.spool_offset
            resting = everything or self._offsets.get(run.number) == run.spool_offset
            fresh = self._sweep_one(run, resting=resting)
            if fresh is not None and fresh.final:
                settled.append(fresh)
            if fresh is not None and fresh.supervised and fresh.stop_requested is not None:
                self._press(fresh)
        settled += self._sweep_owned(owned)
        self._remove_environments()
        self._offsets = offsets
        self._overdue.keep({run.number for run in running})
        # Some a sweep: that of a pipeline with many jobs must not keep new ones from starting.
        begun = [run.number for run in deleted if run.final]
        self._remover.remove_jobs(*(begun if everything else begun[:REMOVED_AT_ONCE]))
        self._remover.remove_owners()
        self._remove_stale(names)
        return settled

    def _sweep_one(self, run: Run, *, resting: bool) -> Run | None:
        try:
            return self.reconcile_softly(run) if self._says_more(run, output=resting) else run
        except NewerProtocol:
            return None

    def _sweep_owned(self, owned: list[Run]) -> list[Run]:
        """End what dead owners have left, and remove their locks; return what was ended."""
        owners = {run.owner or "" for run in owned}
        dead = {owner for owner in owners if not self._seems_alive(owner)}
        ended = [self.reconcile_softly(run) for run in owned if run.owner in dead]
        self._ownership.remove_unused(owners)
        return [run for run in ended if run is not None and run.final]

    def _remove_environments(self) -> None:
        """Remove what no job that may still start needs: its last one was deleted, perhaps."""
        with self._database.read() as connection:
            found = environments.has_unused(connection)
        if found:
            with self._database.write() as connection:
                environments.remove_unused(connection)

    def _seems_alive(self, owner: str) -> bool:
        try:
            return self._ownership.lives(owner)
        except StoreError as error:
            # The others are looked at all the same; its own jobs wait.
            telemetry.event(logging.WARNING, "owner not seen", owner=owner, error=str(error))
            return True

    def _press(self, run: Run) -> None:
        """Wake, and at last end, a supervisor that has not reacted to a stop for a long time."""
        grace = run.effective_grace_ms
        if grace is None:
            return  # started by a jobcore that did not note it: its grace may be any
        number = self._overdue.judge(run.number, grace / 1000, self._clock.monotonic())
        if number is None:
            return
        try:
            with self._directories.open(run.name) as directory:
                reached = holders.signal_all(*self._directories.lock_of(directory), number)
        except FileNotFoundError:
            return
        telemetry.event(
            logging.WARNING,
            "supervisor does not react",
            job=str(run.id),
            signal=number.name,
            pids=reached,
        )

    def _remove_stale(self, names: list[str]) -> None:
        ids = {UUID(hex=name) for name in names}
        if ids:
            with self._database.read() as connection:
                active = store.active_ids(connection, ids)
            for stale in ids - active:
                self._remove_softly(stale.hex)
        self._directories.remove_leftovers()

    def _remove_softly(self, name: str) -> None:
        """Remove a directory; one that cannot be removed now stays for a later sweep."""
        try:
            self._directories.remove(name)
        except StoreError as error:
            telemetry.event(logging.INFO, "directory not removed", error=str(error))


def _called(run: Run) -> str:
    try:
        return str(run.id)
    except DatabaseCorrupt:  # what stands there is none, and all others are still to be looked at
        return f"number {run.number}"


def _append_spool(directory: int, offset: int, data: bytes) -> None:
    """Append a frame behind whatever is there, damaged or not, in a file that begins with it."""
    descriptor = jobdir.make_file(f"{jobdir.SPOOL}{offset}", os.O_WRONLY | os.O_APPEND, directory)
    try:
        jobdir.write_all(descriptor, data)
    finally:
        os.close(descriptor)
