"""
Migration from schema 6 to 7: job counts are stored instead of computed at each call.

Triggers now keep a job in its workspace, too, because the counts of a pipeline also make up those
of its workspace.

Only `schema` executes the statements, inside the migration's transaction. `counts` generates
most of them, and a test holds the digest of the whole text: a migration must not change. If
`counts` changes, write the statements of schema 7 out here.
"""

from __future__ import annotations

from jobcore.storage import counts


def _table(name: str, owner: str) -> str:
    columns = [
        "batch INTEGER NOT NULL",
        f"{owner} VARCHAR NOT NULL",
        "type VARCHAR NOT NULL",
        *(f"{column} INTEGER NOT NULL" for column in counts.COLUMNS),
        f"PRIMARY KEY (batch, {owner}, type)",
    ]
    return f"CREATE TABLE {name} (\n    " + ",\n    ".join(columns) + "\n)"


STATEMENTS = (
    # The indexes come first, because the counting uses them.
    (
        "CREATE INDEX jobs_of_pipeline_by_type ON job (pipeline_id, deleted_at, type, "
        "status, number) WHERE pipeline_id IS NOT NULL"
    ),
    (
        "CREATE INDEX jobs_of_workspace_by_type ON job "
        "(workspace_id, deleted_at, type, status, number)"
    ),
    *(_table(name, owner) for name, owner in reversed(counts.TABLES.items())),
    *(counts.fill(name) for name in counts.TABLES),
    *counts.triggers(),
    "DROP TRIGGER IF EXISTS job_keeps_its_id",
    (
        "CREATE TRIGGER job_keeps_its_id BEFORE UPDATE ON job "
        "WHEN OLD.number IS NOT NEW.number OR OLD.id IS NOT NEW.id "
        "OR OLD.workspace_id IS NOT NEW.workspace_id OR OLD.pipeline_id IS NOT NEW.pipeline_id "
        "BEGIN SELECT RAISE(ABORT, 'a job keeps its number, id, workspace and pipeline'); END"
    ),
)
