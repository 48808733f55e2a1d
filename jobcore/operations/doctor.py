"""
Examines a database and its directories without a manager, and reports what it finds.

It changes nothing: it opens the file read-only, and neither makes directories, nor migrates
the schema, nor settles jobs. So it can examine a file that no manager would open.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import UUID

from jobcore.clock import to_datetime
from jobcore.engine import orphans
from jobcore.engine.job_directories import Directories, DirectoryId, recorded_namespace
from jobcore.engine.ownership import Ownership
from jobcore.errors import DatabaseGone, JobcoreError, ScheduleError
from jobcore.models import Finding
from jobcore.operations import row_checks
from jobcore.schedule import Schedule
from jobcore.storage import counts, dependencies, filesystem, permissions, schema
from jobcore.storage.connections import uri_of
from jobcore.supervisor import NewerProtocol, job_directory, system_calls
from jobcore.tuning import LARGE_LOG

_Answer = TypeVar("_Answer")
#: A verdict, and what was found.
_Result = tuple[Literal["ok", "note", "wrong"], str]

#: The errors that reading raises if a damaged file holds something other than an id, a number
#: or a text.
PARSE_ERRORS = (ValueError, TypeError, AttributeError, OverflowError)
#: In these versions, SQLite can lose commits if one checkpoint follows another while a third
#: connection resets the log. Version 3.51.3 has a fix.
BUG_FROM, BUG_UNTIL = (3, 7, 0), (3, 51, 3)
#: The patch releases of two older minor versions that have the fix, too.
FIXED_IN = ((3, 44, 6), (3, 50, 7))
#: The checks that know the current schema only.
NEED_CURRENT = (
    "definitions", "rows", "counts", "dependencies", "owned jobs", "left processes", "chains",
    "limits",
)  # fmt: skip


def has_wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Tell whether this SQLite has the WAL-reset bug."""
    fixed = any(version[:2] == patch[:2] and version >= patch for patch in FIXED_IN)
    return BUG_FROM <= version < BUG_UNTIL and not fixed


def examine(path: str | os.PathLike[str], *, trust_directory: bool = False) -> list[Finding]:
    """
    Check a database and its directories, and return the findings in the order of the checks.

    If a check finds that the next ones are impossible, it is the last one.

    Args:
        path: The path of the database.
        trust_directory: Accept that other users can create files in its directory.
    """
    examination = Examination(os.path.realpath(os.fspath(path)), trust_directory=trust_directory)
    return list(examination.findings())


def findings_of(failures: list[str]) -> list[Finding]:
    """Return the current failures of a manager as findings."""
    return [Finding(check="this manager", verdict="wrong", detail=one) for one in failures]


class _Running(NamedTuple):
    """A RUNNING job with a process."""

    number: int
    id: UUID
    token: str
    directory_id: str | None


class Examination:
    """One examination of a database; `findings` does it."""

    def __init__(self, path: str, *, trust_directory: bool = False) -> None:
        self._path = path
        self._trust_directory = trust_directory

    def findings(self) -> Iterator[Finding]:
        """Return what each check has found."""
        for check, look, all_well in (
            ("SQLite", self._sqlite, None),
            ("system", self._system, "kernel and /proc have every feature that jobcore uses"),
            ("file", self._file, None),
            ("file system", self._file_system, None),
            ("modes", self._modes, "private to this user"),
            ("other users", self._other_users, None),
            ("write-ahead log", self._write_ahead_log, None),
            ("schema", self._schema, None),
            (
                "definitions",
                self._definitions,
                "every table, index and trigger is as jobcore made it",
            ),
            ("integrity", self._integrity, "every page and every reference is in order"),
            ("rows", self._rows, "every row can be read"),
            ("counts", self._counts, "the counts match the jobs"),
            (
                "dependencies",
                self._dependencies,
                "each waiting job waits for one that has not ended",
            ),
            ("store", self._store, None),
            ("directories", self._directories, None),
            ("running jobs", self._running_jobs, None),
            ("owned jobs", self._owned_jobs, None),
            ("left processes", self._left_processes, "no ended job has left a process"),
            ("deletions", self._deletions, "no unfinished deletion"),
            ("chains", self._chains, "no pipeline has lost a trigger"),
            ("schedules", self._schedules, "every schedule and time zone is valid here"),
            ("limits", self._limits, "nothing is limited or paused"),
        ):
            try:
                if check in NEED_CURRENT and not self._is_current():
                    continue
                found = list(look())
            except (JobcoreError, OSError, sqlite3.Error, *PARSE_ERRORS) as error:
                found = [_wrong(str(error))]
            if not found and all_well is not None:
                found = [_ok(all_well)]
            for verdict, detail in found:
                yield Finding(check=check, verdict=verdict, detail=detail)
            # The other checks make no sense for a file that is not a jobcore database.
            if check in ("file", "schema") and found[-1][0] == "wrong":
                return

    # --- the machine and the files ----------------------------------------------

    def _sqlite(self) -> Iterator[_Result]:
        version = sqlite3.sqlite_version_info
        if version < schema.LEAST_SQLITE:
            yield _wrong(schema.too_old(sqlite3.sqlite_version))
        elif has_wal_reset_bug(version):
            yield _note(
                f"{sqlite3.sqlite_version} has the WAL-reset bug: jobcore checkpoints around it, "
                "other programs that write to the file may not; 3.51.3 has the fix",
            )
        else:
            yield _ok(sqlite3.sqlite_version)

    def _system(self) -> Iterator[_Result]:
        lacking = system_calls.lacking()
        if lacking:
            yield _note(
                f"without {', '.join(lacking)}: jobcore works with less, as README says under "
                '"Old kernels and containers"',
            )

    def _file(self) -> Iterator[_Result]:
        facts = os.stat(self._path)
        if not stat.S_ISREG(facts.st_mode):
            yield _wrong(permissions.not_a_file(self._path, self._path))
        elif facts.st_nlink > 1:
            yield _wrong(permissions.second_name(self._path))
        elif odd := permissions.odd_side_file(self._path):
            # SQLite might block on a FIFO for ever.
            yield _wrong(permissions.not_a_file(odd, self._path))
        else:
            yield _ok(f"{self._path}, {facts.st_size} bytes")

    def _file_system(self) -> Iterator[_Result]:
        filesystem.require_local(self._path)
        kind = filesystem.kind_of(self._path)
        if kind:
            yield _ok(kind)
        else:
            yield _note(f"unknown: there is no {filesystem.MOUNTINFO}")

    def _modes(self) -> Iterator[_Result]:
        names = [self._path + end for end in ("", *permissions.SIDE_FILES, ".jobs")]
        try:
            with os.scandir(self._path + ".jobs") as entries:
                names += [entry.path for entry in entries]
        except OSError:
            pass  # it is missing or cannot be entered; other checks report that
        open_to_others, foreign = [], []
        for name in names:
            try:
                facts = os.lstat(name)
            except FileNotFoundError:
                continue
            if facts.st_mode & 0o077:
                open_to_others.append(name)
            if facts.st_uid != os.geteuid():
                foreign.append(name)
        if open_to_others:
            yield _wrong(f"others may read or enter {_some(open_to_others)}")
        if foreign:
            yield _wrong(f"owned by another user: {_some(foreign)}")

    def _other_users(self) -> Iterator[_Result]:
        directory = os.path.dirname(self._path)
        permissions.require_private_directory(directory, trusted=self._trust_directory)
        yield _ok(f"no other user can create a file in {directory}, or they are trusted")

    def _write_ahead_log(self) -> Iterator[_Result]:
        try:
            size = os.stat(self._path + "-wal").st_size
        except FileNotFoundError:
            size = 0
        if size > LARGE_LOG:
            yield _note(f"{size} bytes: a long read keeps it from being truncated")
        else:
            yield _ok(f"{size} bytes")

    # --- the database -------------------------------------------------------------

    def _ask(self, question: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Call `question` with a connection that sees one snapshot of the file."""
        # If no process has the file open, there is no write-ahead log, and even a read-only
        # connection would create one and leave it there. So read such a file as immutable,
        # and read it again if a process opened it meanwhile.
        before = self._file_state()
        if before[0]:
            return self.put("ro", question)
        try:
            answer = self.put("ro&immutable=1", question)
        except sqlite3.Error:
            if self._file_state() == before:
                raise
        else:
            if self._file_state() == before:
                return answer
        return self.put("ro", question)

    def _file_state(self) -> tuple[bool, int, int]:
        facts = os.stat(self._path)
        return os.path.exists(self._path + "-wal"), facts.st_mtime_ns, facts.st_size

    def put(self, mode: str, question: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Return the answer to a question that a new connection is asked."""
        uri = uri_of(self._path, mode)
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute("PRAGMA mmap_size = 0")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.text_factory = _as_text
            connection.execute("BEGIN")
            return question(connection)

    def _schema(self) -> Iterator[_Result]:
        try:
            # Read the file alone: if the log beside it belongs to another file, SQLite applies it.
            self.put("ro&immutable=1", self._refuse_half_restored)
        except sqlite3.Error:
            pass  # another process is writing to it
        identity = self._ask(schema.read_identity)
        current = schema.check(self._path, identity)
        version = identity[1]
        if current:
            yield _ok(f"version {version}")
        elif version:
            yield _note(f"version {version}: the next manager migrates it to {schema.VERSION}")
        else:
            yield _wrong("empty: the next manager creates the schema")

    def _refuse_half_restored(self, connection: sqlite3.Connection) -> None:
        schema.refuse_half_restored(connection, self._path, schema.read_identity(connection))

    def _definitions(self) -> Iterator[_Result]:
        changed = self._ask(schema.differences)
        if changed:
            yield _wrong(f"not as jobcore made them: {_some(changed)}")

    def _integrity(self) -> Iterator[_Result]:
        answer = self._ask(_rows("PRAGMA integrity_check(5)"))
        orphans = self._ask(_rows("PRAGMA foreign_key_check"))
        if answer != [("ok",)]:
            yield _wrong("; ".join(text for (text,) in answer))
        if orphans:
            yield _wrong(f"{len(orphans)} rows refer to a missing row, in {orphans[0][0]}")

    def _rows(self) -> Iterator[_Result]:
        """Look for rows with invalid values, which listings leave out."""
        found = [
            row for table in row_checks.LISTED for row in self._ask(row_checks.damaged_rows(table))
        ]
        if found:
            yield _wrong(f"damaged: {_some(found)}; restore them from a backup")

    def _counts(self) -> Iterator[_Result]:
        wrong = self._ask(counts.wrong)
        if wrong:
            yield _wrong(
                f"the counts do not match the jobs: {_some(wrong)}; --repair counts them again"
            )

    def _dependencies(self) -> Iterator[_Result]:
        """Look for jobs that would wait for ever, or start too early."""
        wrong = self._ask(dependencies.miscounted)
        forgotten = self._ask(dependencies.forgotten)
        if wrong:
            told = f"wrong number of open dependencies: {_some(wrong)}"
            yield _wrong(f"{told}; --repair counts them again")
        if forgotten:
            told = f"ended, but other jobs still wait for them: {_some(forgotten)}"
            yield _wrong(f"{told}; --repair decides whether the waiting jobs start")

    def _store(self) -> Iterator[_Result]:
        ((stored,),) = self._ask(_rows("SELECT id FROM store"))
        try:
            root = filesystem.open_root(self._path, create=False)
        except FileNotFoundError:
            yield _note(f"{self._path}.jobs is missing, as in a backup")
            return
        try:
            found = filesystem.read_store_id(root, self._path)
        finally:
            os.close(root)
        if found == stored:
            yield _ok("file and directories belong together")
        else:
            yield _wrong(f"{self._path}.jobs belongs to another database")

    # --- rows and directories -------------------------------------------------------

    def _directories(self) -> Iterator[_Result]:
        names = self._names()  # before the rows, so that each new directory has a row
        active = {
            name
            for (name,) in self._ask(
                _rows("SELECT id FROM job WHERE status IN ('QUEUED', 'RUNNING')")
            )
        }
        stale = sorted(set(names) - active)
        if stale:
            yield _note(f"of jobs that have ended; a manager removes them: {_some(stale)}")
        else:
            yield _ok(f"{len(names)}, each of a queued or running job")

    def _running_jobs(self) -> Iterator[_Result]:
        running = self._running()
        looked = [(one, self.state_of(one)) for one in running]
        # Read again: a job that ended meanwhile has rightly lost its lock and its directory.
        still = {one.number for one in self._running()} if looked else set()
        states: dict[str, list[str]] = {}
        for one, state in looked:
            if one.number in still:
                states.setdefault(state, []).append(str(one.id))
        alive = len(states.pop("", ()))
        for state, ids in states.items():
            yield _wrong(f"{state}: {_some(ids)}; `jobcore work` settles them, or --repair")
        if not states:
            yield _ok(f"{alive}, each with a supervisor")

    def _owned_jobs(self) -> Iterator[_Result]:
        """Look at tasks that processes own, and at reserved jobs."""
        rows = self._ask(_rows("SELECT id, owner FROM job WHERE owner IS NOT NULL"))
        with closing(Directories(self._path)) as directories:
            ownership = Ownership(directories)
            alive = {str(UUID(hex=name)): ownership.lives(owner) for name, owner in rows}
        dead = [job for job, lives in alive.items() if lives is False]
        unknown = [job for job, lives in alive.items() if lives is None]
        if dead:
            yield _note(f"their process is dead, and the next sweep ends them: {_some(dead)}")
        if unknown:
            yield _note(
                "their process cannot be seen from here and its lock file was removed, so it may "
                f"be alive or dead; if it has ended, end them: {_some(unknown)}",
            )
        if not (dead or unknown):
            yield _ok(f"{len(rows)}, each of a live process")

    def _running(self) -> list[_Running]:
        column = "directory_id" if self._is_current() else "NULL"
        rows = self._ask(
            _rows(
                f"SELECT number, id, token, {column} FROM job "  # noqa: S608 - two constants
                "WHERE status = 'RUNNING' AND token IS NOT NULL"
            )
        )
        return [_Running(number, UUID(hex=name), *facts) for number, name, *facts in rows]

    def state_of(self, running: _Running) -> str:
        """Return what is wrong with a RUNNING job; empty if it has a supervisor."""
        is_certain, namespace = False, None
        try:
            with (
                closing(Directories(self._path)) as directories,
                directories.open(running.id.hex) as directory,
            ):
                held = directories.is_held(directory)  # first: the record is written under the lock
                if held or job_directory.read_exit(directory, running.token) is not None:
                    return "" if held else "ended and not settled yet"
                is_certain = directories.is_lock_of(directory, running.token)
                with suppress(OSError):  # something else has its name
                    namespace = recorded_namespace(directory)
                what = "RUNNING with a free lock: the supervisor is dead"
        except (FileNotFoundError, DatabaseGone):
            what = "RUNNING without a directory"
        except NewerProtocol:
            return ""  # only the newer version can judge it
        known = DirectoryId.parse(running.directory_id)
        if known is not None and known.root != self._root():
            return "RUNNING, but not here: its directory was removed, or this is a copy"
        if known is None or is_certain:
            return what
        # The lock file of a live supervisor may have been removed: search for the supervisor.
        found = orphans.is_supervised(running.token, namespace)
        if found is None:
            return "RUNNING without its lock file, and its supervisor cannot be seen from here"
        return "" if found else what

    def _root(self) -> int | None:
        """Return the inode of the directory of job directories; None if it is missing."""
        try:
            return os.stat(self._path + ".jobs").st_ino
        except FileNotFoundError:
            return None

    def _left_processes(self) -> Iterator[_Result]:
        rows = self._ask(
            _rows(
                "SELECT id, cookie FROM job WHERE unreaped IS NOT NULL AND cookie IS NOT NULL "
                "AND unreaped_ignored IS NULL"
            )
        )
        found = [(UUID(hex=name), orphans.find(cookie)) for name, cookie in rows]
        alive = [(job, pids) for job, pids in found if pids]
        for job, pids in alive:
            yield _wrong(
                f"{_some(map(str, pids))} of job {job}, which has ended, still run: end them. A "
                "retry waits for them, or for --repair",
            )

    def _deletions(self) -> Iterator[_Result]:
        ((begun,),) = self._ask(_rows("SELECT count(*) FROM job WHERE deleted_at IS NOT NULL"))
        if begun:
            yield _note(f"{begun} unfinished: a manager with slots will finish them")

    def _chains(self) -> Iterator[_Result]:
        notes = self._ask(
            _rows(
                "SELECT name, detail FROM pipeline_note JOIN pipeline ON pipeline.id = pipeline_id "
                "WHERE deleted_at IS NULL ORDER BY pipeline_note.id"
            )
        )
        for name, detail in notes:
            yield _note(f"pipeline {name!r}: {detail}")

    def _schedules(self) -> Iterator[_Result]:
        scheduled: dict[tuple[str, str], list[str]] = {}
        for name, *schedule in self._ask(
            _rows(
                "SELECT name, schedule, coalesce(time_zone, 'UTC') FROM pipeline "
                "WHERE schedule IS NOT NULL AND deleted_at IS NULL ORDER BY name"
            )
        ):
            scheduled.setdefault((str(schedule[0]), str(schedule[1])), []).append(repr(name))
        for (expression, zone), names in scheduled.items():
            try:
                Schedule(expression, zone)
            except ScheduleError as error:
                yield _wrong(f"cannot run here: {_some(names)}: {_short(error)}")

    def _limits(self) -> Iterator[_Result]:
        limits = self._ask(
            _rows("SELECT scope, name, slots, paused FROM job_limit ORDER BY scope, name")
        )
        for scope, name, slots, paused in limits:
            what = f"{scope} {name!r}" if name else str(scope)
            if not all(isinstance(value, int | None) for value in (slots, paused)):
                yield _wrong(f"{what}: damaged, so no job of it starts: set the limit again")
                continue
            if paused is not None:
                yield _note(f"{what}: paused since {to_datetime(paused):%Y-%m-%d %H:%M} UTC")
            if slots is not None:
                yield _note(f"{what}: at most {slots} jobs run at once")

    def _is_current(self) -> bool:
        return self._ask(schema.read_identity)[1] == schema.VERSION

    def _names(self) -> list[str]:
        try:
            with closing(Directories(self._path)) as directories:
                return directories.names()
        except DatabaseGone:
            return []  # the directory is missing; the check "store" reports that


def _as_text(raw: bytes) -> str:
    """Return a stored text, with bytes that are not UTF-8 escaped so that the rest is readable."""
    return raw.decode("utf-8", "backslashreplace")


def _short(error: Exception) -> str:
    """Return the text of an error, cut, because it may quote a long damaged value."""
    text = ascii(str(error))[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}..."


def _rows(statement: str) -> Callable[[sqlite3.Connection], list[tuple[Any, ...]]]:
    return lambda connection: connection.execute(statement).fetchall()


def _ok(detail: str) -> _Result:
    return "ok", detail


def _note(detail: str) -> _Result:
    return "note", detail


def _wrong(detail: str) -> _Result:
    return "wrong", detail


def _some(names: Iterable[str]) -> str:
    """Return the first three names, and how many more there are."""
    named = list(names)
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(named[:3]) + more
