"""Recognises jobcore's files, creates the schema, migrates it, and checks the store id."""

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
from jobcore.supervisor import system_calls

APPLICATION_ID = 0x4A4F4243  # "JOBC"
#: Tables that identify a file of jobcore that has lost its application id.
_OURS = {"store", "workspace", "pipeline", "job"}
#: Size in bytes of a write-ahead log without pages.
_LOG_HEADER = 32
VERSION = 8
#: The oldest SQLite that was tested. RETURNING needs 3.35.
LEAST_SQLITE = (3, 37, 0)

#: A statement that creates a table. The file's text of a table may differ after a migration.
_TABLE = re.compile(r"^\s*CREATE TABLE (\w+) \((.*)\)\s*$", re.DOTALL)
#: A statement that creates an index or a trigger.
_NAME = re.compile(r"^CREATE (?:UNIQUE )?(?:INDEX|TRIGGER) (\w+)")

_APPLICATION_AT = slice(68, 72)  # the application id in the first page
EMPTY = (0, 0, 0)  # application id, user version, objects: an unused file


def _keep_counts(connection: sqlite3.Connection) -> None:
    from jobcore.storage import count_migration  # noqa: PLC0415 - loaded for older files alone

    for statement in count_migration.STATEMENTS:
        connection.execute(statement)


def _extend_queue(connection: sqlite3.Connection) -> None:
    from jobcore.storage import queue_migration  # noqa: PLC0415 - loaded for older files alone

    queue_migration.extend(connection)


def _link_pipelines(connection: sqlite3.Connection) -> None:
    from jobcore.storage import chain_migration  # noqa: PLC0415 - loaded for older files alone

    chain_migration.link_pipelines(connection)


#: For each schema version, the steps to the next one. They are written out instead of being
#: generated from the tables, because the tables change and a migration must not.
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
        # Without it, counting jobs by status read every job: 95 ms for 200,000 jobs; now 20 ms.
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
        # An UPDATE of `rowid` changes the number, but does not fire UPDATE OF number.
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
        # The process that does a job itself, or has reserved it.
        "ALTER TABLE job ADD COLUMN owner VARCHAR",
        "CREATE INDEX owned_jobs ON job (number) WHERE owner IS NOT NULL",
        # Chains by id, and names that are unique within a workspace.
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
        # Indexes with which no statement reads rows of other owners, or the history.
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
        # Jobs that are written in steps and become visible together.
        """\
CREATE TABLE batch (
    id INTEGER NOT NULL PRIMARY KEY,
    first BIGINT NOT NULL,
    last BIGINT NOT NULL,
    owner VARCHAR NOT NULL
)""",
        # Whether a started job leaves a result.
        "ALTER TABLE job ADD COLUMN calls_function BOOLEAN",
        # Environments of the submitting processes.
        "ALTER TABLE job ADD COLUMN env_from VARCHAR",
        "ALTER TABLE job ADD COLUMN environment VARCHAR",
        "CREATE TABLE environment (hash VARCHAR NOT NULL PRIMARY KEY, data BLOB NOT NULL)",
        """\
CREATE INDEX jobs_by_environment ON job (environment) WHERE environment IS NOT NULL""",
        # Distinguishes a job directory from a copy of it.
        "ALTER TABLE job ADD COLUMN directory_id VARCHAR",
        # The time after which a supervisor should have ended a job.
        "ALTER TABLE job ADD COLUMN timeout_ms BIGINT",
        # Whether a retry may start while processes of an earlier attempt still run.
        "ALTER TABLE job ADD COLUMN unreaped_ignored BOOLEAN",
    ),
    # Whether a command left processes behind.
    5: ("ALTER TABLE job ADD COLUMN left_processes INTEGER",),
    # Stored job counts, and pages of one type in a workspace or pipeline.
    6: (_keep_counts,),
    # Keys, priorities, groups, dependencies, retries and hooks.
    7: (_extend_queue,),
}


#: All steps of all migrations. A table that a migration created has exactly this text.
_MIGRATED = frozenset(itertools.chain.from_iterable(MIGRATIONS.values()))


def too_old(version: str) -> str:
    """Return the error text for an SQLite that is too old; it names the version needed."""
    least = ".".join(map(str, LEAST_SQLITE))
    return (
        f"{version} is too old: {least} or later is needed; install it, or a Python that was "
        "built with it"
    )


@cache  # compiling takes longer than executing, and each test of a host may create a file
def statements() -> tuple[str, ...]:
    """Return the statements that create the current schema in an empty file."""
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
    """Return the application id, the schema version and the number of objects in the schema."""
    inside = connection.in_transaction
    if not inside:
        # Read all three in one transaction. Another process may be creating the schema now,
        # and a mix of old and new values would look like another program's file.
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
    Tell whether the schema is current; False: it must be created or migrated.

    Raises:
        NotAJobcoreDatabase: The file belongs to another program.
        SchemaTooNew: The file belongs to a newer jobcore.
        DatabaseCorrupt: The schema version is not a valid one.
    """
    application, version, _ = identity
    if identity == EMPTY:
        return False
    if application != APPLICATION_ID:
        raise NotAJobcoreDatabase(f"{path} is another program's database")
    if version > VERSION:
        raise SchemaTooNew(
            f"{path} has schema version {version}; this jobcore knows up to {VERSION}"
        )
    if version < 1:
        raise DatabaseCorrupt(f"{path} has schema version {version}, which no jobcore has written")
    return version == VERSION


def refuse_half_restored(
    connection: sqlite3.Connection, path: str, identity: tuple[int, int, int]
) -> None:
    """
    Refuse a file that was restored in a way that loses or mixes content.

    Args:
        connection: A connection that has opened the file as immutable, so without its log.
        identity: The result of `read_identity` for it.

    Raises:
        NotAJobcoreDatabase: It was restored from a dump, which has lost the application id.
        StoreMismatch: Beside it is the write-ahead log of the file that was there before.
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
        return  # the usual case: there is no log
    # These header bytes are 2 in a file in WAL mode, and 1 in a copy made by VACUUM INTO.
    if has_log and _header(path)[18:20] == b"\1\1":
        raise StoreMismatch(
            f"{path} was restored, and {path}-wal belongs to the file that was there before: "
            f"remove {path}-wal and {path}-shm"
        )


def _header(path: str) -> bytes:
    """
    Return the first 100 bytes of an open database; b"": they cannot be read.

    This reads through a descriptor of SQLite. Closing one of our own would drop the locks
    that this process has on the file.

    Raises:
        StoreError: No file descriptor or memory is free to find it.
    """
    try:
        facts = os.stat(path)
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError as error:
        if error.errno in system_calls.SHORTAGE:
            raise filesystem.typed(path, error) from error
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
    Refuse another program's database whose content is still only in the write-ahead log.

    Raises:
        NotAJobcoreDatabase: The log contains a first page, and it is another program's.
    """
    from jobcore.storage import wal_file  # noqa: PLC0415 - rarely needed

    try:
        page = wal_file.first_page(path + "-wal")
    except OSError as error:
        if error.errno in system_calls.SHORTAGE:
            raise filesystem.typed(f"{path}-wal", error) from error
        return  # there is no log, or SQLite will report what is wrong with it
    if page is not None and int.from_bytes(page[_APPLICATION_AT], "big") != APPLICATION_ID:
        raise NotAJobcoreDatabase(f"{path} is another program's database")


def differences(connection: sqlite3.Connection) -> list[str]:
    """
    Return the tables, indexes and triggers of a current file that differ from the schema.

    SQLite does not report these to a reader: it resolves names in constraints only on writes.
    """
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
    changed = []
    for statement in statements():
        if table := _TABLE.match(statement):
            name, columns_and_constraints = table.groups()
            # After a migration a table has its added columns at the end, or has exactly the
            # text of the migration that created it.
            text = found.get(name) or ""
            lines = [line.strip(" \t,") for line in columns_and_constraints.splitlines()]
            if not all(line in text for line in lines) and text not in _MIGRATED:
                changed.append(name)
        elif (other := _NAME.match(statement)) and found.get(other[1]) != statement:
            changed.append(other[1])
    return changed


def use_write_ahead_log(connection: sqlite3.Connection, patience: float) -> None:
    """
    Switch the file to WAL mode, which is stored in the file.

    A copy made by VACUUM INTO is not in WAL mode, so readers would block writers.

    Args:
        patience: Seconds to keep retrying while other connections have the file open.
    """
    deadline = time.monotonic() + patience
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            # It needs a lock, and SQLite does not call the busy handler for it.
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def bring_up(
    connection: sqlite3.Connection, path: str, store_id: str | None, patience: float
) -> None:
    """
    Create or migrate the schema, in one transaction.

    Args:
        store_id: The store id for an empty file, which gets the current schema at once.
        patience: Seconds to keep retrying while other processes do the same.
    """
    use_write_ahead_log(connection, patience)
    connection.execute("BEGIN IMMEDIATE")
    with connection:  # which ends the transaction
        identity = read_identity(connection)  # again: another process may have done it meanwhile
        if identity == EMPTY:
            _make(connection, store_id)
        elif not check(path, identity):
            for version in range(identity[1], VERSION):
                for step in MIGRATIONS[version]:
                    if callable(step):
                        step(connection)
                    else:
                        connection.execute(step)
            connection.execute(f"PRAGMA user_version = {VERSION}")


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
    Check that the database and the root of the job directories belong together.

    If the root is missing and no job runs in a process, as in a restored backup, the
    database gets a new root with a new id. A mismatch never settles a job.

    Args:
        runs_jobs: Whether to refuse a file that has running jobs while its root is missing.
            If False, the file can still be read.

    Raises:
        StoreMismatch: The two do not belong together.
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
    """Return the store id in the root; None: the root is missing or has no id yet."""
    try:
        root = filesystem.open_root(path, create=False)
    except FileNotFoundError:
        return None
    try:
        return filesystem.read_store_id(root, path)
    finally:
        os.close(root)


def _settled_id(connection: sqlite3.Connection, *, writable: bool) -> str:
    """Return the id in the database, after a concurrent renewal, which writes the root first."""
    if writable:
        connection.execute("BEGIN IMMEDIATE")
    with connection:  # which ends the transaction
        (stored,) = connection.execute("SELECT id FROM store").fetchone()
    return str(stored)


def _renew(connection: sqlite3.Connection, path: str, stored: str, *, runs_jobs: bool) -> str:
    connection.execute("BEGIN IMMEDIATE")
    with connection:  # which ends the transaction
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
            return stored
        found = _new_store_id(path)
        connection.execute("UPDATE store SET id = ? WHERE id = ?", (found, stored))
    return found


def open_or_make(
    connection: sqlite3.Connection, path: str, patience: float, *, runs_jobs: bool
) -> None:
    """
    Create or migrate the schema if needed, and check the root of the job directories.

    Args:
        runs_jobs: As for `join_root`.

    Raises:
        NotAJobcoreDatabase, SchemaTooNew, StoreMismatch: Nothing was written.
        ReadOnlyDatabase: The schema must be created or migrated, and the file is read-only.
    """
    writable = os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK)
    identity = read_identity(connection)
    if not check(path, identity):
        if not writable:
            raise ReadOnlyDatabase(f"{path} is empty or out of date, and cannot be written")
        # An older file has an id already; `join_root` handles a missing root.
        store_id = _new_store_id(path) if identity == EMPTY else None
        bring_up(connection, path, store_id, patience)
    elif writable:
        use_write_ahead_log(connection, patience)
    join_root(connection, path, writable=writable, runs_jobs=runs_jobs)
    if writable:
        _drop_statistics(connection)


def _drop_statistics(connection: sqlite3.Connection) -> None:
    """
    Drop the statistics of a manual ANALYZE, so that they do not influence query plans.

    Statistics that were taken with, say, an empty queue make SQLite read the whole history
    where an index is better. Without statistics SQLite uses the index. If the file cannot be
    written now, the next open does this. This must be the connection's last use, because it
    sets its busy timeout to 0.
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
        pass  # the file is locked, or the disk is full or read-only


def renew_root(connection: sqlite3.Connection, path: str) -> bool:
    """
    Create the root of the job directories, or the id in it, if missing; False: it has both.

    Args:
        connection: A connection in a write transaction.

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
        return filesystem.read_store_id(root, path) or filesystem.make_store_id(root, path)
    finally:
        os.close(root)
