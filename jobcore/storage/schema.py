"""Whose file it is, which version it has, and how it becomes the current one."""

from __future__ import annotations

import itertools
import os
import re
import sqlite3
import time
from collections.abc import Callable
from functools import cache

from sqlalchemy.schema import CreateIndex, CreateTable

from jobcore import lifecycle
from jobcore.errors import (
    DatabaseCorrupt,
    NotAJobcoreDatabase,
    ReadOnlyDatabase,
    SchemaTooNew,
    StoreMismatch,
)
from jobcore.storage import filesystem, tables

APPLICATION_ID = 0x4A4F4243  # "JOBC"
#: Tables by which a file of ours is known that does not say so.
_OURS = {"store", "workspace", "pipeline", "job"}
#: Bytes of a write-ahead log without a page.
_LOG_HEADER = 32
VERSION = 7
#: RETURNING came with 3.35; nothing older than this was ever tried.
LEAST_SQLITE = (3, 37, 0)

#: What makes a table, whose own text in a file depends on how it came to be.
_TABLE = re.compile(r"^\s*CREATE TABLE (\w+) \((.*)\)\s*$", re.DOTALL)
#: What makes an index or a trigger.
_NAME = re.compile(r"^CREATE (?:UNIQUE )?(?:INDEX|TRIGGER) (\w+)")

_APPLICATION_AT = slice(68, 72)  # in the first page
_EMPTY = (0, 0, 0)  # application id, user version, objects: a file nobody has used yet


def _keep_counts(connection: sqlite3.Connection) -> None:
    from jobcore.storage import count_migration  # noqa: PLC0415 - loaded for older files alone

    for statement in count_migration.STATEMENTS:
        connection.execute(statement)


def _link_pipelines(connection: sqlite3.Connection) -> None:
    from jobcore.storage import chain_migration  # noqa: PLC0415 - loaded for older files alone

    chain_migration.link_pipelines(connection)


#: By schema version, what makes the next one of it. Written out, not generated
#: from the tables: these move on, and an old file needs what was meant then.
MIGRATIONS: dict[int, tuple[str | Callable[[sqlite3.Connection], None], ...]] = {
    # Results of functions, and the progress that jobs report.
    1: (
        "ALTER TABLE job ADD COLUMN progress_done FLOAT",
        "ALTER TABLE job ADD COLUMN progress_total FLOAT",
        "ALTER TABLE job ADD COLUMN progress_message TEXT",
        "ALTER TABLE job ADD COLUMN progress_at BIGINT",
        """\
CREATE TABLE result (
    job BIGINT NOT NULL PRIMARY KEY REFERENCES job (number) ON DELETE CASCADE,
    encoding VARCHAR NOT NULL,
    data BLOB NOT NULL,
    CONSTRAINT encoding_is_known CHECK (encoding IN ('json', 'pickle'))
)""",
    ),
    2: (
        # Counting jobs by status read all of them: 95 ms of 200,000 jobs, now 20.
        "CREATE INDEX jobs_by_status ON job (status) WHERE deleted_at IS NULL",
        """\
CREATE TRIGGER job_is_not_replaced BEFORE INSERT ON job \
WHEN EXISTS (SELECT 1 FROM job WHERE number = NEW.number OR id = NEW.id \
OR (pipeline_id = NEW.pipeline_id AND status IN ('QUEUED', 'RUNNING'))) \
BEGIN SELECT RAISE(ABORT, 'a job is not replaced by another'); END""",
        """\
CREATE TRIGGER job_keeps_its_id BEFORE UPDATE OF number, id, pipeline_id ON job \
WHEN OLD.number IS NOT NEW.number OR OLD.id IS NOT NEW.id \
OR OLD.pipeline_id IS NOT NEW.pipeline_id \
BEGIN SELECT RAISE(ABORT, 'a job keeps its number, its id and its pipeline'); END""",
    ),
    3: (
        # An update of `rowid` is one of the number, and names no column of the last one.
        "DROP TRIGGER IF EXISTS job_keeps_its_id",
        """\
CREATE TRIGGER job_keeps_its_id BEFORE UPDATE ON job \
WHEN OLD.number IS NOT NEW.number OR OLD.id IS NOT NEW.id \
OR OLD.pipeline_id IS NOT NEW.pipeline_id \
BEGIN SELECT RAISE(ABORT, 'a job keeps its number, its id and its pipeline'); END""",
    ),
    4: (
        # No statement used it: the index of active jobs by status serves the queue.
        "DROP INDEX queued_jobs",
        # Which process does a job itself, or has reserved it.
        "ALTER TABLE job ADD COLUMN owner VARCHAR",
        "CREATE INDEX owned_jobs ON job (number) WHERE owner IS NOT NULL",
        # Chains by id, and names that are unique in a workspace.
        "ALTER TABLE pipeline ADD COLUMN folded_name VARCHAR",
        """\
CREATE TABLE link (
    pipeline_id CHAR(32) NOT NULL REFERENCES pipeline (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    source_id CHAR(32) REFERENCES pipeline (id) ON DELETE CASCADE,
    name VARCHAR,
    PRIMARY KEY (pipeline_id, position)
)""",
        """\
CREATE TABLE pipeline_note (
    id INTEGER NOT NULL PRIMARY KEY,
    pipeline_id CHAR(32) NOT NULL REFERENCES pipeline (id) ON DELETE CASCADE,
    topic VARCHAR NOT NULL,
    detail VARCHAR NOT NULL
)""",
        _link_pipelines,
        "ALTER TABLE pipeline DROP COLUMN triggered_by",
        "CREATE INDEX links_of_source ON link (source_id)",
        "CREATE INDEX notes_of_pipeline ON pipeline_note (pipeline_id, topic)",
        (
            "CREATE UNIQUE INDEX one_pipeline_per_name ON pipeline (workspace_id, folded_name) "
            "WHERE deleted_at IS NULL"
        ),
        # Schedules: the time-zone rules of a tick, and what to do about missed ones.
        "ALTER TABLE pipeline ADD COLUMN tick_offset INTEGER",
        "ALTER TABLE pipeline ADD COLUMN catch_up VARCHAR",
        "ALTER TABLE pipeline ADD COLUMN late_after FLOAT",
        # No statement reads the rows of others, or those of the past.
        "CREATE INDEX marked_workspaces ON workspace (id) WHERE deleted_at IS NOT NULL",
        "CREATE INDEX pipelines_of_workspace ON pipeline (workspace_id, created, id)",
        "DROP INDEX ix_pipeline_next_tick",
        (
            "CREATE INDEX scheduled_pipelines ON pipeline (next_tick, id) "
            "WHERE next_tick IS NOT NULL AND deleted_at IS NULL"
        ),
        "CREATE INDEX marked_pipelines ON pipeline (id) WHERE deleted_at IS NOT NULL",
        "CREATE INDEX skips_by_time ON skip (recorded)",
        "DROP INDEX jobs_of_workspace",
        "CREATE INDEX jobs_of_workspace ON job (workspace_id, deleted_at, status, number)",
        "DROP INDEX jobs_of_pipeline",
        (
            "CREATE INDEX jobs_of_pipeline ON job (pipeline_id, deleted_at, status, number) "
            "WHERE pipeline_id IS NOT NULL"
        ),
        "CREATE INDEX jobs_of_type ON job (type, status, number) WHERE deleted_at IS NULL",
        (
            "CREATE INDEX queue ON job (type, status, not_before, number) "
            "WHERE status = 'QUEUED' AND deleted_at IS NULL"
        ),
        (
            "CREATE INDEX delayed_retries ON job (status, not_before, number) "
            "WHERE status = 'QUEUED' AND not_before IS NOT NULL AND retry_of IS NOT NULL "
            "AND deleted_at IS NULL"
        ),
        "ALTER TABLE transition ADD COLUMN pipeline_id CHAR(32)",
        (
            "UPDATE transition SET pipeline_id = (SELECT pipeline_id FROM job WHERE number = job) "
            "WHERE job IN (SELECT number FROM job WHERE pipeline_id IS NOT NULL)"
        ),
        (
            "CREATE INDEX transitions_of_pipeline ON transition (pipeline_id, id) "
            "WHERE pipeline_id IS NOT NULL"
        ),
        # Jobs that are written in steps, and appear together.
        """\
CREATE TABLE batch (
    id INTEGER NOT NULL PRIMARY KEY,
    first BIGINT NOT NULL,
    last BIGINT NOT NULL,
    owner VARCHAR NOT NULL
)""",
        # Whether what was started leaves a result.
        "ALTER TABLE job ADD COLUMN calls_function BOOLEAN",
        # Environments of the processes that submitted jobs.
        "ALTER TABLE job ADD COLUMN env_from VARCHAR",
        "ALTER TABLE job ADD COLUMN environment VARCHAR",
        "CREATE TABLE environment (hash VARCHAR NOT NULL PRIMARY KEY, data BLOB NOT NULL)",
        """\
CREATE INDEX jobs_by_environment ON job (environment) WHERE environment IS NOT NULL""",
        # A copy of a job directory is told from the directory itself.
        "ALTER TABLE job ADD COLUMN directory_id VARCHAR",
        # By when a supervisor should have ended a job.
        "ALTER TABLE job ADD COLUMN timeout_ms BIGINT",
        # Whether a retry may start beside what an earlier attempt left running.
        "ALTER TABLE job ADD COLUMN unreaped_ignored BOOLEAN",
    ),
    # Whether a command left processes behind.
    5: ("ALTER TABLE job ADD COLUMN left_processes INTEGER",),
    # How many jobs there are, and pages of one type in a workspace or pipeline.
    6: (_keep_counts,),
}


#: The statements in them, as a file shows what they have made.
_MIGRATED = frozenset(itertools.chain.from_iterable(MIGRATIONS.values()))


def too_old(version: str) -> str:
    """Say that this version of SQLite will not do, and which one would."""
    least = ".".join(map(str, LEAST_SQLITE))
    return (
        f"{version} is too old: {least} or later is needed; install it, or a Python that was "
        "built with it"
    )


@cache  # compiling them takes longer than executing them, and a host's tests make a file each
def statements() -> tuple[str, ...]:
    """Return the statements that make the current schema in an empty file."""
    from sqlalchemy.dialects import sqlite  # noqa: PLC0415 - loaded with the first connection, not at import

    from jobcore.storage import counts  # noqa: PLC0415 - likewise

    dialect = sqlite.dialect()
    made = []
    for table in tables.METADATA.sorted_tables:
        table.dialect_kwargs.update(table.info)
        for index in table.indexes:
            index.dialect_kwargs.update(index.info)
        made.append(str(CreateTable(table).compile(dialect=dialect)))
        made += [
            str(CreateIndex(index).compile(dialect=dialect))
            for index in sorted(table.indexes, key=lambda index: str(index.name))
        ]
    made += lifecycle.triggers(tables.FACTS)
    made += counts.triggers()
    return tuple(made)


def read_identity(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Return application id, schema version, and how many objects the schema has."""
    inside = connection.in_transaction
    if not inside:
        # As of one moment: another process may be making the schema just now, and
        # half of the old and half of the new answer would be another program's file.
        connection.execute("BEGIN")
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    finally:
        if not inside and connection.in_transaction:
            connection.execute("ROLLBACK")
    return application, version, objects


def check(path: str, identity: tuple[int, int, int]) -> bool:
    """
    Tell whether the schema is the current one; False: it has to be made, or brought up to it.

    Raises:
        NotAJobcoreDatabase: Another program's file.
        SchemaTooNew: A newer jobcore's file.
        DatabaseCorrupt: A file of no version at all.
    """
    application, version, _ = identity
    if identity == _EMPTY:
        return False
    if application != APPLICATION_ID:
        raise NotAJobcoreDatabase(f"{path} is another program's database")
    if version > VERSION:
        raise SchemaTooNew(
            f"{path} has schema version {version}; this jobcore knows up to {VERSION}"
        )
    if version < 1:
        raise DatabaseCorrupt(f"{path} has schema version {version}, which there never was")
    return version == VERSION


def refuse_half_restored(
    connection: sqlite3.Connection, path: str, identity: tuple[int, int, int]
) -> None:
    """
    Refuse a file that was put back in a way that loses or mixes what is in it.

    Args:
        connection: Has the file open by itself, as an immutable one.
        identity: What `read_identity` has found there.

    Raises:
        NotAJobcoreDatabase: It was read back from a dump, which does not say whose file it is.
        StoreMismatch: Beside it lies the write-ahead log of the file that was there before.
            SQLite would mix the two.
    """
    application, version, objects = identity
    if objects and not application and not version:
        named = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if named >= _OURS:
            raise NotAJobcoreDatabase(
                f"{path} was read back from a dump, which keeps neither application_id nor "
                "user_version: restore a copy that was made by VACUUM INTO or .backup, or set "
                f"both as in the original: PRAGMA application_id = {APPLICATION_ID}, and "
                f"PRAGMA user_version = {VERSION} if this jobcore has written it"
            )
    try:
        has_log = os.path.getsize(f"{path}-wal") > _LOG_HEADER
    except OSError:
        return  # the usual case: there is none
    # A file whose log is in use says so in these bytes, and a copy by VACUUM INTO does not.
    if has_log and _header(path)[18:20] == b"\1\1":
        raise StoreMismatch(
            f"{path} was restored, and {path}-wal belongs to the file that was there before: "
            f"remove {path}-wal and {path}-shm"
        )


def _header(path: str) -> bytes:
    """
    Return the first bytes of an open database; nothing where they cannot be read.

    They are read by a descriptor that SQLite has. To close one of our own would drop the
    locks that this process has on the file.
    """
    try:
        facts = os.stat(path)
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return b""
    for number in numbers:
        try:
            if os.path.samestat(os.fstat(number), facts):
                found = os.pread(number, 100, 0)
                if found.startswith(b"SQLite format 3\0"):
                    return found
        except OSError:
            pass  # another thread has closed it
    return b""


def check_log(path: str) -> None:
    """
    Refuse another program's database of which all is in its write-ahead log.

    Raises:
        NotAJobcoreDatabase: The log has a first page, of another program.
    """
    from jobcore.storage import wal_file  # noqa: PLC0415 - few files have all in their log

    try:
        page = wal_file.first_page(path + "-wal")
    except OSError:
        return  # it is not there, or SQLite says what is wrong with it
    if page is not None and int.from_bytes(page[_APPLICATION_AT], "big") != APPLICATION_ID:
        raise NotAJobcoreDatabase(f"{path} is another program's database")


def differences(connection: sqlite3.Connection) -> list[str]:
    """
    Return the tables, indexes and triggers of a current file that are not as they were made.

    SQLite itself does not tell a reader: it resolves the names in constraints for writers alone.
    """
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
    changed = []
    for statement in statements():
        if table := _TABLE.match(statement):
            name, columns_and_constraints = table.groups()
            # A table that was brought up has its later columns behind the rest, or is one that
            # a migration made.
            text = found.get(name) or ""
            lines = [line.strip(" \t,") for line in columns_and_constraints.splitlines()]
            if not all(line in text for line in lines) and text not in _MIGRATED:
                changed.append(name)
        elif (other := _NAME.match(statement)) and found.get(other[1]) != statement:
            changed.append(other[1])
    return changed


def use_write_ahead_log(connection: sqlite3.Connection, patience: float) -> None:
    """
    Have the file written by way of a write-ahead log, which it then says of itself.

    A backup by VACUUM INTO does not: in it readers would keep writers out.

    Args:
        patience: Seconds to go on trying while others have the file open.
    """
    deadline = time.monotonic() + patience
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            # Takes a lock, without the busy handler.
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def bring_up(
    connection: sqlite3.Connection, path: str, store_id: str | None, patience: float
) -> None:
    """
    Bring the file to the current schema in one transaction: all of it is there, or nothing.

    Args:
        store_id: Of an empty file, which is given the whole schema at once.
        patience: Seconds to go on trying while other processes do the same.
    """
    use_write_ahead_log(connection, patience)
    connection.execute("BEGIN IMMEDIATE")
    try:
        identity = read_identity(connection)  # again: another process may have been faster
        if identity == _EMPTY:
            _make(connection, store_id)
        elif not check(path, identity):
            for version in range(identity[1], VERSION):
                for step in MIGRATIONS[version]:
                    if callable(step):
                        step(connection)
                    else:
                        connection.execute(step)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _make(connection: sqlite3.Connection, store_id: str | None) -> None:
    for statement in statements():
        connection.execute(statement)
    connection.execute("INSERT INTO store (id) VALUES (?)", (store_id,))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def join_root(
    connection: sqlite3.Connection, path: str, *, writable: bool, runs_jobs: bool
) -> None:
    """
    See that database and job directories belong together.

    A database whose root is missing and that has no job in a process (a
    restored backup) gets a new root with a new id. Anything else that does not
    match is never a verdict on a job.

    Args:
        runs_jobs: Refuse a file with running jobs whose root is missing. Else it can be
            looked at.

    Raises:
        StoreMismatch: They do not belong together.
    """
    (stored,) = connection.execute("SELECT id FROM store").fetchone()
    found = _found_id(path)
    if found is None and writable:
        found = _renew(connection, path, stored, runs_jobs=runs_jobs)
    if found not in (None, stored) and found != _settled_id(connection, writable=writable):
        raise StoreMismatch(
            f"{path}.jobs belongs to another database than {path}; "
            "one of the two was copied or moved without the other. Bring them together again, or "
            f"move that directory away and run `{filesystem.repair_command(path)}`"
        )


def _found_id(path: str) -> str | None:
    """Return the id in the root; None where that is missing, or has none yet."""
    try:
        root = filesystem.open_root(path, create=False)
    except FileNotFoundError:
        return None
    try:
        return filesystem.read_store_id(root)
    finally:
        os.close(root)


def _settled_id(connection: sqlite3.Connection, *, writable: bool) -> str:
    """Return the id in the file once nobody is renewing it: the file in the root comes first."""
    if writable:
        connection.execute("BEGIN IMMEDIATE")
    try:
        (stored,) = connection.execute("SELECT id FROM store").fetchone()
        return str(stored)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _renew(connection: sqlite3.Connection, path: str, stored: str, *, runs_jobs: bool) -> str:
    connection.execute("BEGIN IMMEDIATE")
    try:
        (running,) = connection.execute(
            "SELECT count(*) FROM job WHERE status = 'RUNNING' AND token IS NOT NULL"
        ).fetchone()
        if running and runs_jobs:
            raise StoreMismatch(
                f"{path}.jobs is missing, and {running} jobs are RUNNING: they may be alive, and "
                "write to where it was. Put it back, or have them settled as lost by "
                f"`{filesystem.repair_command(path)}`"
            )
        if running:
            connection.execute("ROLLBACK")
            return stored
        found = _new_store_id(path)
        connection.execute("UPDATE store SET id = ? WHERE id = ?", (found, stored))
        connection.execute("COMMIT")
        return found
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def open_or_make(
    connection: sqlite3.Connection, path: str, patience: float, *, runs_jobs: bool
) -> None:
    """
    Bring the file to the current schema, and join it with its root.

    Args:
        runs_jobs: As for `join_root`.

    Raises:
        NotAJobcoreDatabase, SchemaTooNew, StoreMismatch: Not a byte was written.
        ReadOnlyDatabase: It would have to be made or brought up to date, and cannot be.
    """
    writable = os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK)
    identity = read_identity(connection)
    if not check(path, identity):
        if not writable:
            raise ReadOnlyDatabase(f"{path} is empty or out of date, and cannot be written")
        # An older file has its id, and a root that is missing is for `join_root` to judge.
        store_id = _new_store_id(path) if identity == _EMPTY else None
        bring_up(connection, path, store_id, patience)
    elif writable:
        use_write_ahead_log(connection, patience)
    join_root(connection, path, writable=writable, runs_jobs=runs_jobs)
    if writable:
        _drop_statistics(connection)


def _drop_statistics(connection: sqlite3.Connection) -> None:
    """
    Drop what an ANALYZE by hand has left, so that it decides no plan.

    Statistics of one moment, such as an empty queue, make SQLite read the whole history
    for a statement whose index is better. Without any it uses that index. Where the file
    cannot be written now, the next one who opens it does this. The last use of a
    connection: it waits for no lock from here on.
    """
    found = connection.execute(
        "SELECT name FROM sqlite_master WHERE name GLOB 'sqlite_stat[1-4]'"
    ).fetchall()
    if not found:
        return
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        for (name,) in found:
            connection.execute(f"DROP TABLE IF EXISTS {name}")
    except sqlite3.OperationalError:
        pass  # it is locked, full or read-only


def renew_root(connection: sqlite3.Connection, path: str) -> bool:
    """
    Give the file a root where that, or the id in it, is missing; False: it has one.

    Args:
        connection: In a write transaction.

    Raises:
        StoreMismatch: The root belongs to another database.
    """
    (stored,) = connection.execute("SELECT id FROM store").fetchone()
    found = _found_id(path)
    if found == stored:
        return False
    if found is not None:
        raise StoreMismatch(f"{path}.jobs belongs to another database: move it away first")
    connection.execute("UPDATE store SET id = ? WHERE id = ?", (_new_store_id(path), stored))
    return True


def _new_store_id(path: str) -> str:
    root = filesystem.open_root(path, create=True)
    try:
        return filesystem.read_store_id(root) or filesystem.make_store_id(
            root, os.path.dirname(path)
        )
    finally:
        os.close(root)
