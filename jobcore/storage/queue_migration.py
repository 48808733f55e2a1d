"""
Migration from schema 7 to 8: keys, priorities, groups, dependencies, retries and hooks of jobs.

Two new reasons, `upstream` and `expired`, change CHECK constraints of the job table. SQLite
cannot alter a constraint, and copying the table would take minutes for a long history. So the
text of the table is changed in the schema, as SQLite's documentation of ALTER TABLE describes for
changes that do not affect the stored rows.
"""

from __future__ import annotations

import re
import sqlite3

_STATEMENTS = (
    "ALTER TABLE pipeline ADD COLUMN retries TEXT",
    "ALTER TABLE pipeline ADD COLUMN group_name VARCHAR",
    "ALTER TABLE pipeline ADD COLUMN hooks TEXT",
    "ALTER TABLE pipeline ADD COLUMN state TEXT",
    "ALTER TABLE pipeline ADD COLUMN paused BIGINT",
    "ALTER TABLE job ADD COLUMN priority INTEGER DEFAULT 0 NOT NULL",
    "ALTER TABLE job ADD COLUMN group_name VARCHAR",
    "ALTER TABLE job ADD COLUMN expires BIGINT",
    "ALTER TABLE job ADD COLUMN retries TEXT",
    "ALTER TABLE job ADD COLUMN hooks TEXT",
    "ALTER TABLE job ADD COLUMN hook_of CHAR(32)",
    "ALTER TABLE job ADD COLUMN parameters TEXT",
    """ALTER TABLE job ADD COLUMN "key" VARCHAR""",
    "ALTER TABLE job ADD COLUMN held_key VARCHAR",
    "ALTER TABLE job ADD COLUMN unique_until BIGINT",
    "ALTER TABLE job ADD COLUMN run_if VARCHAR",
    "ALTER TABLE job ADD COLUMN unmet INTEGER DEFAULT 0 NOT NULL",
    """\
CREATE TABLE requirement (
    pipeline_id CHAR(32) NOT NULL,
    position INTEGER NOT NULL,
    source_id CHAR(32) NOT NULL,
    met BIGINT,
    PRIMARY KEY (pipeline_id, position),
    FOREIGN KEY(pipeline_id) REFERENCES pipeline (id) ON DELETE CASCADE,
    FOREIGN KEY(source_id) REFERENCES pipeline (id) ON DELETE CASCADE
)""",
    "CREATE INDEX requirements_of_source ON requirement (source_id)",
    """\
CREATE TABLE dependency (
    job BIGINT NOT NULL,
    position INTEGER NOT NULL,
    upstream_id CHAR(32) NOT NULL,
    met BOOLEAN,
    PRIMARY KEY (job, position),
    FOREIGN KEY(job) REFERENCES job (number) ON DELETE CASCADE
)""",
    "CREATE INDEX dependents ON dependency (upstream_id) WHERE met IS NULL",
    """\
CREATE TABLE undecided (
    upstream_id CHAR(32) NOT NULL,
    outcome VARCHAR NOT NULL,
    PRIMARY KEY (upstream_id)
)""",
    """\
CREATE TABLE job_limit (
    scope VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    slots INTEGER,
    paused BIGINT,
    PRIMARY KEY (scope, name)
)""",
    """\
CREATE TABLE setting (
    name VARCHAR NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (name)
)""",
    "DROP INDEX queue",
    (
        "CREATE INDEX queue ON job (type, status, unmet, deleted_at, owner, not_before, "
        "group_name, priority DESC, number) WHERE status = 'QUEUED' AND unmet = 0 AND deleted_at "
        "IS NULL AND not_before IS NULL"
    ),
    (
        "CREATE INDEX delayed_queue ON job (type, status, unmet, deleted_at, owner, group_name, "
        "priority DESC, not_before, number) WHERE status = 'QUEUED' AND unmet = 0 AND deleted_at "
        "IS NULL AND not_before IS NOT NULL"
    ),
    (
        "CREATE INDEX delayed_jobs ON job (type, status, unmet, deleted_at, not_before) WHERE "
        "status = 'QUEUED' AND unmet = 0 AND deleted_at IS NULL AND not_before IS NOT NULL"
    ),
    "DROP INDEX running_jobs",
    "CREATE INDEX running_jobs ON job (type, group_name, number) WHERE status = 'RUNNING'",
    (
        "CREATE UNIQUE INDEX one_job_per_key ON job (workspace_id, held_key) "
        "WHERE held_key IS NOT NULL"
    ),
    'CREATE INDEX jobs_by_key ON job ("key", number) WHERE key IS NOT NULL',
    "CREATE INDEX jobs_by_name ON job (name, number) WHERE name IS NOT NULL",
    ("CREATE INDEX jobs_of_group ON job (group_name, status, number) WHERE group_name IS NOT NULL"),
    (
        "CREATE INDEX expiring_jobs ON job (status, expires) "
        "WHERE status = 'QUEUED' AND expires IS NOT NULL"
    ),
    "CREATE INDEX retries_of_job ON job (retry_of) WHERE retry_of IS NOT NULL",
    "CREATE INDEX jobs_by_end ON job (end_time, number, start_time) WHERE end_time IS NOT NULL",
    "CREATE INDEX jobs_by_creation ON job (created)",
    "DROP TRIGGER job_final_stays_final",
    (
        "CREATE TRIGGER job_final_stays_final BEFORE UPDATE OF number, id, workspace_id, "
        "pipeline_id, type, status, attempt, retry_of, created, start_time, end_time, "
        "exit_code, signal, reason, wait_status, errno, cpu_us, max_rss, spool_offset, "
        "next_sequence, dropped, token, cookie, key ON job WHEN OLD.status IN ('COMPLETE', "
        "'ERROR', 'STOPPED') AND (OLD.number IS NOT NEW.number OR OLD.id IS NOT NEW.id OR "
        "OLD.workspace_id IS NOT NEW.workspace_id OR OLD.pipeline_id IS NOT NEW.pipeline_id "
        "OR OLD.type IS NOT NEW.type OR OLD.status IS NOT NEW.status OR OLD.attempt IS NOT "
        "NEW.attempt OR OLD.retry_of IS NOT NEW.retry_of OR OLD.created IS NOT NEW.created OR"
        " OLD.start_time IS NOT NEW.start_time OR OLD.end_time IS NOT NEW.end_time OR "
        "OLD.exit_code IS NOT NEW.exit_code OR OLD.signal IS NOT NEW.signal OR OLD.reason IS "
        "NOT NEW.reason OR OLD.wait_status IS NOT NEW.wait_status OR OLD.errno IS NOT "
        "NEW.errno OR OLD.cpu_us IS NOT NEW.cpu_us OR OLD.max_rss IS NOT NEW.max_rss OR "
        "OLD.spool_offset IS NOT NEW.spool_offset OR OLD.next_sequence IS NOT "
        "NEW.next_sequence OR OLD.dropped IS NOT NEW.dropped OR OLD.token IS NOT NEW.token OR"
        " OLD.cookie IS NOT NEW.cookie OR OLD.key IS NOT NEW.key) BEGIN SELECT RAISE(ABORT, "
        "'a final job does not change'); END"
    ),
    "DROP TRIGGER job_is_not_replaced",
    (
        "CREATE TRIGGER job_is_not_replaced BEFORE INSERT ON job WHEN EXISTS (SELECT 1 FROM "
        "job WHERE number = NEW.number OR id = NEW.id OR (pipeline_id = NEW.pipeline_id AND "
        "status IN ('QUEUED', 'RUNNING')) OR (workspace_id = NEW.workspace_id AND held_key = "
        "NEW.held_key)) BEGIN SELECT RAISE(ABORT, 'a job is not replaced by another'); END"
    ),
)

#: The constraints of the job table that name reasons, by name.
_CONSTRAINTS = {
    "reason_is_known": (
        "reason IN ('exited', 'signaled', 'timeout', 'stopped', 'cancelled', 'upstream', "
        "'expired', 'shutdown', 'spawn_failed', 'lost', 'never_started')"
    ),
    "halted_is_stopped": (
        "status = 'STOPPED' OR coalesce(reason, '') NOT IN ('cancelled', 'expired', "
        "'shutdown', 'stopped', 'timeout', 'upstream')"
    ),
    "stopped_was_halted": (
        "status <> 'STOPPED' OR reason IN ('cancelled', 'expired', 'lost', 'never_started', "
        "'shutdown', 'stopped', 'timeout', 'upstream')"
    ),
    "unseen_has_no_exit_code": (
        "exit_code IS NULL OR reason NOT IN ('cancelled', 'expired', 'lost', 'never_started',"
        " 'upstream')"
    ),
    "only_cancelled_never_starts": (
        "status NOT IN ('COMPLETE', 'ERROR', 'STOPPED') OR (start_time IS NULL) = (reason IN "
        "('cancelled', 'expired', 'upstream'))"
    ),
}


def extend(connection: sqlite3.Connection) -> None:
    """Add the columns, tables and indexes, and allow the new reasons."""
    for statement in _STATEMENTS:
        connection.execute(statement)
    (text,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'job'").fetchone()
    for name, rule in _CONSTRAINTS.items():
        # In the stored text each constraint has its own line. No rule contains a backslash.
        text, found = re.subn(
            rf"CONSTRAINT {name} CHECK \(.*\)(?=,? *$)",
            f"CONSTRAINT {name} CHECK ({rule})",
            text,
            flags=re.MULTILINE,
        )
        if found != 1:
            raise sqlite3.DatabaseError(f"the job table has no constraint {name}")
    (version,) = connection.execute("PRAGMA schema_version").fetchone()
    connection.execute("PRAGMA writable_schema = ON")
    try:
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'job'", (text,))
        # Every connection then reads the schema again.
        connection.execute(f"PRAGMA schema_version = {version + 1}")
    finally:
        connection.execute("PRAGMA writable_schema = OFF")
