"""
Counts: the number of jobs of each status, maintained by triggers in the database.

The statement that changes a job also changes the counts, and a rollback undoes both. So the
counts are right after every commit, even if another program writes to the job table. There
is a row for each job type in each workspace, and for each job type in each pipeline. A job
that is being deleted does not count. The jobs of a batch have rows of their own until the
batch is published.
"""

# ruff: noqa: S608 - the words in these statements are our own

from __future__ import annotations

import sqlite3

from jobcore.lifecycle import Status

#: The columns; each holds the number of jobs of one status.
COLUMNS = tuple(str(status).lower() for status in Status)
#: The tables of counts, each with the column of `job` that it groups by.
TABLES = {"workspace_count": "workspace_id", "pipeline_count": "pipeline_id"}

_COLUMNS = ", ".join(COLUMNS)
_ADDED = ", ".join(f"{one} = {one} + excluded.{one}" for one in COLUMNS)
_ZERO = " AND ".join(f"{one} = 0" for one in COLUMNS)
#: The job moves to another row of counts: its type or its deletion mark changes. Another trigger
#: keeps it in its workspace and pipeline.
_MOVED = "OLD.type IS NOT NEW.type OR (OLD.deleted_at IS NULL) <> (NEW.deleted_at IS NULL)"


def _batch_of(row: str) -> str:
    return f"coalesce((SELECT id FROM batch WHERE {row}.number BETWEEN first AND last), 0)"


def _each(row: str, sign: str = "") -> str:
    return ", ".join(f"{sign}({row}.status = '{status}')" for status in Status)


def _change(row: str, values: str, condition: str = "") -> str:
    """Return the SQL that adds `values` to the counts that a job belongs to."""
    return " ".join(
        f"INSERT INTO {table} (batch, {of}, type, {_COLUMNS}) "
        f"SELECT {_batch_of(row)}, {row}.{of}, {row}.type, {values} "
        f"WHERE {row}.{of} IS NOT NULL{condition} "
        f"ON CONFLICT (batch, {of}, type) DO UPDATE SET {_ADDED};"
        for table, of in TABLES.items()
    )


def _take_away(condition: str = "") -> str:
    """Return the SQL that subtracts a removed job, and deletes rows whose counts are all zero."""
    removed = " ".join(
        f"DELETE FROM {table} WHERE batch = {_batch_of('OLD')} "
        f"AND {of} = OLD.{of} AND type = OLD.type AND {_ZERO};"
        for table, of in TABLES.items()
    )
    return f"{_change('OLD', _each('OLD', '-'), condition)} {removed}"


def triggers() -> tuple[str, ...]:
    """Return the statements that create the triggers."""
    moves = ", ".join(f"(NEW.status = '{one}') - (OLD.status = '{one}')" for one in Status)
    published = " ".join(
        f"INSERT INTO {table} (batch, {of}, type, {_COLUMNS}) "
        f"SELECT 0, {of}, type, {_COLUMNS} FROM {table} WHERE batch = OLD.id "
        f"ON CONFLICT (batch, {of}, type) DO UPDATE SET {_ADDED}; "
        f"DELETE FROM {table} WHERE batch = OLD.id;"
        for table, of in TABLES.items()
    )
    return (
        (
            "CREATE TRIGGER job_is_counted AFTER INSERT ON job WHEN NEW.deleted_at IS NULL "
            f"BEGIN {_change('NEW', _each('NEW'))} END"
        ),
        (
            "CREATE TRIGGER job_counts_by_status AFTER UPDATE OF status ON job "
            "WHEN OLD.status IS NOT NEW.status AND NEW.deleted_at IS NULL "
            f"AND NOT ({_MOVED}) BEGIN {_change('NEW', moves)} END"
        ),
        (
            "CREATE TRIGGER job_counts_elsewhere "
            f"AFTER UPDATE OF type, deleted_at ON job WHEN {_MOVED} "
            f"BEGIN {_take_away(' AND OLD.deleted_at IS NULL')} "
            f"{_change('NEW', _each('NEW'), ' AND NEW.deleted_at IS NULL')} END"
        ),
        (
            "CREATE TRIGGER job_counts_no_more AFTER DELETE ON job WHEN OLD.deleted_at IS NULL "
            f"BEGIN {_take_away()} END"
        ),
        f"CREATE TRIGGER batch_is_counted AFTER DELETE ON batch BEGIN {published} END",
    )


_SUMS = ", ".join(f"sum(status = '{status}')" for status in Status)
#: For each table, a query that computes its correct rows from the jobs. Grouping by `deleted_at`,
#: and the plus before it, make SQLite read the published jobs in index order, without a sort.
TRUE = {
    table: (
        f"SELECT 0, {of}, type, {_SUMS} FROM job WHERE +deleted_at IS NULL AND {of} IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM batch WHERE number BETWEEN first AND last) "
        f"GROUP BY {of}, deleted_at, type "
        f"UNION ALL SELECT batch.id, {of}, type, {_SUMS} FROM batch JOIN job "
        f"ON number BETWEEN first AND last WHERE deleted_at IS NULL AND {of} IS NOT NULL "
        f"GROUP BY batch.id, {of}, type"
    )
    for table, of in TABLES.items()
}


def wrong(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the tables whose counts differ from the jobs in the file."""
    found = []
    for table, of in TABLES.items():
        kept = f"SELECT batch, {of}, type, {_COLUMNS} FROM {table}"
        differences = f"{kept} EXCEPT SELECT * FROM ({TRUE[table]})", f"{TRUE[table]} EXCEPT {kept}"
        if any(connection.execute(one).fetchone() for one in differences):
            found.append(table)
    return found


def fill(table: str) -> str:
    """Return the statement that counts all jobs into an empty table."""
    return f"INSERT INTO {table} (batch, {TABLES[table]}, type, {_COLUMNS}) {TRUE[table]}"


def count_again(connection: sqlite3.Connection) -> None:
    """Count all jobs again and replace the stored counts. Needs a write transaction."""
    for table in TABLES:
        connection.execute(f"DELETE FROM {table}")
        connection.execute(fill(table))
