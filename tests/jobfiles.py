"""Job directories written by hand: what a supervisor would have left, whole or not."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from uuid import uuid4

from jobcore.engine.job_directories import DirectoryId
from jobcore.storage import filesystem, transitions
from jobcore.supervisor import frames, job_directory
from jobcore.testing.parts import parts


def sql(database, statement, *args):
    """Execute a statement as another program would, and return its rows."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=60)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(statement, args).fetchall()


#: A text that is not UTF-8, for `damage`.
UNDECODABLE = object()


def damage(database, table, row_id, **values):
    """Write what no rule of the schema lets in, into the columns of one row."""
    damage_rows(database, table, [(row_id, column, value) for column, value in values.items()])


def damage_rows(database, table, damaged):
    """Do so in many rows; each is given by its id, with a column and a value."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=60)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("BEGIN IMMEDIATE")
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? "
            "AND name NOT LIKE '%count%'",  # these refuse nothing
            (table,),
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f'DROP TRIGGER "{name}"')
        for row_id, column, value in damaged:
            undecodable = value is UNDECODABLE
            what = "CAST(? AS TEXT)" if undecodable else "?"
            connection.execute(
                f'UPDATE "{table}" SET "{column}" = {what} WHERE id = ?',
                (b"\x80\xff" if undecodable else value, row_id.hex),
            )
        for _, definition in triggers:
            connection.execute(definition)
        connection.execute("COMMIT")


def row_of(database, job_id):
    """Return the stored row of a job."""
    (row,) = sql(database, "SELECT * FROM job WHERE id = ?", job_id.hex)
    return row


def cookie_of(database, job_id):
    """Return what every process of a job's run carries in its environment."""
    return row_of(database, job_id)["cookie"]


def stored_pipelines(database):
    """Return all that is stored of pipelines, to see that nothing was written."""
    return [tuple(row) for row in sql(database, "SELECT * FROM pipeline ORDER BY id")]


def run_of(jobs, job):
    """Return a job as what works on runs is given it."""
    with parts(jobs).database.read() as connection:
        return transitions.find(connection, job.number)


def stored_run(jobs, run):
    """Return the run of a scripted job as what works on runs is given it."""
    with parts(jobs).database.read() as connection:
        return transitions.find(connection, run.row()["number"])


class Scripted:
    """
    A job that is RUNNING, and its supervisor: this object, as long as it holds the lock.

    `frames_written` is what the log must say, as sequence, stream and bytes.
    """

    def __init__(self, jobs, database, *, boot_id=None, held=True, created=True, **options):
        self.database = database
        self.job = jobs.submit(["true"], **options)
        self.id = self.job.id
        self.token, self.cookie = uuid4().hex, uuid4().hex
        with closing(sqlite3.connect(database, isolation_level=None, timeout=60)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "UPDATE job SET status = 'RUNNING', start_time = created, token = ?, cookie = ?, "
                "boot_id = ? WHERE id = ?",
                (self.token, self.cookie, boot_id or filesystem.boot_id(), self.id.hex),
            )
            connection.execute(
                "INSERT INTO transition (job, at, trigger, from_status, to_status) "
                "SELECT number, start_time, 'start', 'QUEUED', 'RUNNING' FROM job WHERE id = ?",
                (self.id.hex,),
            )
            connection.execute("COMMIT")
        self.path = os.path.join(database + ".jobs", self.id.hex)
        self.end = 0
        self.next_sequence = 0
        self.begin = 0
        self.lines_written = []
        self._held = -1
        if created:
            os.mkdir(self.path, 0o700)
            with self.open() as directory:
                os.close(job_directory.open_lock(directory, create=True))
                job_directory.make_control(directory)
            self._note_claim()
            if held:
                self.live()
        else:
            root = os.stat(database + ".jobs")
            self.update(directory_id=f"{root.st_dev}:{root.st_ino}:1")

    def _note_claim(self):
        """Store what a claim stores, and note in the lock file that nothing was started yet."""
        root = os.stat(self.database + ".jobs").st_ino
        with self.open() as directory:
            lock = job_directory.open_lock(directory)
            self.update(directory_id=str(DirectoryId.of(root, directory)))
            job_directory.mark_unstarted(lock, self.token)
            os.close(lock)

    def update(self, **columns):
        """Write columns of the row, as another program would."""
        names = ", ".join(f"{name} = ?" for name in columns)
        sql(self.database, f"UPDATE job SET {names} WHERE id = ?", *columns.values(), self.id.hex)

    def open(self):
        """Give a descriptor of the directory."""
        return _Open(self.path)

    def live(self, span=job_directory.RUNNING):
        """Hold the lock, as a supervisor that runs the job."""
        with self.open() as directory:
            self._held = job_directory.open_lock(directory)
        assert job_directory.try_lock(self._held, span)
        assert job_directory.try_lock(self._held, job_directory.spans_of(self.token)[1])

    def die(self):
        """Let go of the lock, as the kernel does when a supervisor dies."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def frame(self, *lines, stream=frames.OUTPUT, flags=0, time_ns=1_700_000_000_000_000_000):
        """Return the next frame, not yet written."""
        payload = b"".join(lines)
        header = frames.encode_header(
            stream, flags, self.next_sequence, len(lines), time_ns, payload
        )
        for line in lines:
            self.lines_written.append((self.next_sequence, frames.STREAM_NAMES[stream], line))
            self.next_sequence += 1
        return header + payload

    def append(self, data):
        """Append bytes to the current spool file."""
        with open(f"{self.path}/spool.{self.begin}", "ab") as file:
            file.write(data)
        self.end += len(data)

    def write(self, *lines, **options):
        """Append one frame."""
        self.append(self.frame(*lines, **options))

    def rotate(self):
        """Begin a new spool file."""
        self.begin = self.end

    def started(self, **facts):
        """Write the run record."""
        with self.open() as directory:
            lock = job_directory.open_lock(directory)
            job_directory.mark_started(lock)
            os.close(lock)
            job_directory.write_record(directory, job_directory.RUN, {"pid": 1, **facts})

    def exit(self, wait_status=0, reason="exited", **facts):
        """Write the verdict."""
        record = job_directory.ExitRecord(
            **{
                "token": self.token,
                "reason": reason,
                "wait_status": wait_status,
                "spool_end": self.end,
                "next_sequence": self.next_sequence,
                **facts,
            }
        )
        with self.open() as directory:
            job_directory.write_exit(directory, record)

    def row(self):
        """Return the stored row."""
        return row_of(self.database, self.id)

    def files(self):
        """Return the names in the directory."""
        return sorted(os.listdir(self.path))

    def gone(self):
        """Tell whether the directory is."""
        return not os.path.exists(self.path)


class _Open:
    def __init__(self, path):
        self._path = path

    def __enter__(self):
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        return self._descriptor

    def __exit__(self, *_):
        os.close(self._descriptor)


def log_of(jobs, job_id, sequence=0):
    """Return the stored log as sequence, stream and bytes."""
    return [(line.sequence, line.stream, line.raw) for line in jobs.logs(job_id, sequence)]
