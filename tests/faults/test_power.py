"""Power: whatever a failure leaves of files that were being written, nothing is made up of it."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from uuid import uuid4

import pytest

from jobcore import JobManager, Reason, Status
from jobcore.supervisor import frames
from jobcore.testing.parts import parts
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.jobfiles import Scripted, log_of

pytestmark = pytest.mark.usefixtures("warm_supervisors")

#: What the disk has of the spool: all of it, or what was synced and then what was not.
SPOOL = ("whole", "cut in a frame", "zeros", "garbage", "nothing")
IMPORTED = ("nothing imported", "half imported")
EXIT = ("no exit", "empty exit", "torn exit", "flipped exit", "exit of another run", "exit")
RUN = ("no run", "empty run", "run")
BOOT = ("this boot", "another boot")
STOP = ("", "to be stopped")

STATES = list(itertools.product(SPOOL, IMPORTED, EXIT, RUN, BOOT, STOP))
EXITED_3 = 3 << 8


class CrashedJob:
    """A job whose host, supervisor and machine died, and what the disk has of it."""

    def __init__(self, jobs, database, state, chance):
        self.spool, imported, self.exit, self.run, boot, stop = state
        self.boot = boot
        other = None if boot == "this boot" else str(uuid4())
        self.script = Scripted(jobs, database, boot_id=other)
        self.stop = bool(stop)
        if stop:
            jobs.stop_job(self.script.id)  # which imports, too
        self.script.write(b"one\n", b"two\n")
        if imported == "half imported":
            jobs.recover()  # with its supervisor alive
        self.safe = self.script.end if imported == "half imported" else 0
        self.script.write(b"three\n")
        self.script.write(b"four\n", b"five\n", b"six\n")
        self._write_run()
        self._write_exit(chance)
        self.kept = self._break_spool(chance)
        self.spool_left = os.path.getsize(os.path.join(self.script.path, "spool.0"))
        self.script.die()

    def _write_run(self):
        if self.run == "run":
            self.script.started()
        elif self.run == "empty run":
            self._file("run", b"")

    def _write_exit(self, chance):
        if self.exit == "exit":
            self.script.exit(EXITED_3)
        elif self.exit == "exit of another run":
            self.script.exit(0, token=uuid4().hex)
        elif self.exit == "empty exit":
            self._file("exit", b"")
        elif self.exit != "no exit":
            # One that would say COMPLETE, if it could be believed.
            self.script.exit(0)
            whole = self._file("exit")
            at = chance.randrange(len(whole))
            torn = whole[:at]
            if self.exit == "flipped exit":
                torn = _flipped(whole, at, chance)
            self._file("exit", torn)

    def _break_spool(self, chance):
        """Damage what was not imported; return how many lines are still whole."""
        data = self._file("spool.0")
        ends = [frame.end for frame in frames.scan(data)]
        after = [2, 3, 6]  # lines behind each of these ends
        if self.spool == "whole":
            return 6
        # Behind what was imported and synced, anything may be missing.
        cut = chance.randrange(self.safe, len(data))
        tail = b""
        if self.spool == "zeros":
            tail = bytes(len(data) - cut)
        elif self.spool == "garbage":
            tail = chance.randbytes(len(data) - cut)
        elif self.spool == "nothing":
            cut = self.safe
        left = data[:cut] + tail
        self._file("spool.0", left)
        # Garbage, and zeros, may be what was there.
        whole = [lines for end, lines in zip(ends, after, strict=True) if data[:end] == left[:end]]
        return max(whole, default=0)

    def _file(self, name, data=None):
        path = os.path.join(self.script.path, name)
        if data is None:
            with open(path, "rb") as file:
                return file.read()
        with open(path, "wb") as file:
            return file.write(data)

    @property
    def wanted(self):
        """Status, exit code and reason: by a whole exit record, or nobody knows how it ended."""
        if self.exit == "exit":
            return Status.ERROR, 3, Reason.EXITED
        # Output proves that there was a start, though the run record be missing.
        silent = self.spool_left == 0 and self.safe == 0
        never = self.run == "no run" and self.boot == "this boot" and silent
        status = Status.STOPPED if self.stop else Status.ERROR
        return status, None, Reason.NEVER_STARTED if never else Reason.LOST


def _flipped(data, at, chance):
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


@in_rounds(smoke=20, full=len(STATES))
def test_every_wreck_of_a_job_directory_resolves_to_what_is_known(jobs, database, rounds):
    """Spool, exit and run record, each whole or not: no state invents a verdict or a line."""
    states = rounds.chance().sample(STATES, len(STATES))
    for chance in rounds:
        state = states[rounds.number % len(states)]
        crashed = CrashedJob(jobs, database, state, chance)
        job = jobs.get_job(crashed.script.id)
        found = log_of(jobs, job.id)
        of_command = [line for line in found if line[1] == "output"]

        assert (job.status, job.exit_code, job.reason) == crashed.wanted, state
        assert of_command == crashed.script.lines_written[: crashed.kept], state
        # Nothing is renumbered: what is missing is there as lines of jobcore's own.
        assert [sequence for sequence, _, _ in found] == list(range(len(found))), state
        assert len(found) == (6 if crashed.exit == "exit" else crashed.kept + 1), state
        assert crashed.script.gone()
    check(jobs)


# --- the write-ahead log ------------------------------------------------------


def contents(database):
    """Return all rows of all tables."""
    with closing(sqlite3.connect(database)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: sorted(connection.execute(f"SELECT * FROM {name}")) for (name,) in names}


class Disk:
    """
    A database and its job directories, as they were at one moment before the power failed.

    Copied by another program: descriptors on a database that is open here would cost its locks.
    """

    def __init__(self, database, path):
        subprocess.run(["cp", "-a", os.path.dirname(database), path], check=True)
        os.unlink(path / "jobs.db-shm")
        self._path = path
        self._log = (path / "jobs.db-wal").read_bytes()

    def fail(self, path, chance, synced):
        """Put at `path` what a failure leaves of it; return how many bytes of the log are true."""
        shutil.copytree(self._path, path, ignore=shutil.ignore_patterns("ctl"))
        at = chance.randrange(synced, len(self._log))
        left = self._log[:at]
        kind = chance.choice(("cut", "flip", "zeros", "garbage"))
        if kind == "flip":
            left = _flipped(self._log, at, chance)
        elif kind == "zeros":
            left += bytes(len(self._log) - at)
        elif kind == "garbage":
            left += chance.randbytes(len(self._log) - at)
        (path / "jobs.db-wal").write_bytes(left)
        while at < len(left) and left[at] == self._log[at]:
            at += 1  # what was written over may have been the same
        return at


def size_of_log(database):
    return os.stat(database + "-wal").st_size


def write_all_kinds(jobs, chance):
    """Do all that a host does without processes; yields after each commit."""
    pipeline = jobs.create_pipeline("nightly", ["true"], max_retries=1)
    yield
    for _ in range(8):
        job = jobs.create_job("TASK")
        yield
        if chance.random() < 0.2:
            jobs.cancel_job(job.id)
            yield
            continue
        jobs.start_job(job.id)
        yield
        for _ in range(chance.randrange(4)):
            jobs.append_log(job.id, *["a line of a log"] * chance.randrange(1, 200))
            yield
        jobs.finish_job(job.id, chance.choice((0, 0, 1)))
        yield
    job = jobs.create_job(pipeline_id=pipeline.id)
    yield
    jobs.start_job(job.id)
    yield
    jobs.finish_job(job.id, 1)  # which queues another one
    yield


@in_rounds(smoke=6, full=500)
def test_a_damaged_log_gives_the_state_after_some_commit(tmp_path, rounds):
    """If the write-ahead log is cut or damaged, all commits before that place are complete."""
    os.mkdir(tmp_path / "before")
    database = str(tmp_path / "before" / "jobs.db")
    with JobManager(database, slots=0) as jobs:
        parts(jobs).database.checkpoint()
        states = [(0, contents(database))]
        states += [
            (size_of_log(database), contents(database))
            for _ in write_all_kinds(jobs, rounds.chance())
        ]
        disk = Disk(database, tmp_path / "disk")
    for chance in rounds:
        left = tmp_path / "left"
        true = disk.fail(left, chance, 0)
        with JobManager(left / "jobs.db", slots=0) as jobs:
            found = contents(left / "jobs.db")
            check(jobs)

        assert found == [state for end, state in states if end <= true][-1]
        shutil.rmtree(left)


@in_rounds(smoke=6, full=500)
def test_lines_whose_import_was_undone_are_imported_again(tmp_path, rounds):
    """A power failure undoes imports that were not synced; every line is still stored once."""
    os.mkdir(tmp_path / "before")
    database = str(tmp_path / "before" / "jobs.db")
    with JobManager(database, slots=0) as jobs:
        script = Scripted(jobs, database)
        synced, kept = 0, ["spool.0"]
        for number in range(60):
            if number % 20 == 9:
                script.rotate()
            script.write(*(b"line %d of %d\n" % (n, number) for n in range(number)))
            jobs.recover()
            spool = [name for name in script.files() if name.startswith("spool")]
            if number == 0 or spool[0] != kept[0]:
                # What is not in the spool any more must be in the database for good.
                synced = size_of_log(database)
            kept = spool
        assert 0 < synced < size_of_log(database)
        script.exit(EXITED_3)
        disk = Disk(database, tmp_path / "disk")
        script.die()
    for chance in rounds:
        left = tmp_path / "left"
        disk.fail(left, chance, synced)
        with JobManager(left / "jobs.db", slots=0) as jobs:
            jobs.recover()  # as it is a copy, a look leaves it as it is
            job = jobs.get_job(script.id)
            log = log_of(jobs, job.id)
            check(jobs)

        assert (job.status, job.exit_code) == (Status.ERROR, 3)
        assert log == script.lines_written
        shutil.rmtree(left)
