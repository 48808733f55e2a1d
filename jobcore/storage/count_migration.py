"""
Migration from schema 6 to 7: job counts are stored instead of computed at each call.

The statements are written out, as in every migration. Only `schema` executes them, inside
the migration's transaction. The indexes come first, because the counting uses them.
"""

from __future__ import annotations

STATEMENTS = (
    (
        "CREATE INDEX jobs_of_pipeline_by_type ON job (pipeline_id, deleted_at, type, "
        "status, number) WHERE pipeline_id IS NOT NULL"
    ),
    (
        "CREATE INDEX jobs_of_workspace_by_type ON job (workspace_id, deleted_at, type, "
        "status, number)"
    ),
    """\
CREATE TABLE pipeline_count (
    batch INTEGER NOT NULL,
    pipeline_id VARCHAR NOT NULL,
    type VARCHAR NOT NULL,
    queued INTEGER NOT NULL,
    running INTEGER NOT NULL,
    complete INTEGER NOT NULL,
    error INTEGER NOT NULL,
    stopped INTEGER NOT NULL,
    PRIMARY KEY (batch, pipeline_id, type)
)""",
    """\
CREATE TABLE workspace_count (
    batch INTEGER NOT NULL,
    workspace_id VARCHAR NOT NULL,
    type VARCHAR NOT NULL,
    queued INTEGER NOT NULL,
    running INTEGER NOT NULL,
    complete INTEGER NOT NULL,
    error INTEGER NOT NULL,
    stopped INTEGER NOT NULL,
    PRIMARY KEY (batch, workspace_id, type)
)""",
    (
        "INSERT INTO workspace_count (batch, workspace_id, type, queued, running, complete, "
        "error, stopped) SELECT 0, workspace_id, type, sum(status = 'QUEUED'), sum(status = "
        "'RUNNING'), sum(status = 'COMPLETE'), sum(status = 'ERROR'), sum(status = "
        "'STOPPED') FROM job WHERE +deleted_at IS NULL AND workspace_id IS NOT NULL AND NOT "
        "EXISTS (SELECT 1 FROM batch WHERE number BETWEEN first AND last) GROUP BY "
        "workspace_id, deleted_at, type UNION ALL SELECT batch.id, workspace_id, type, "
        "sum(status = 'QUEUED'), sum(status = 'RUNNING'), sum(status = 'COMPLETE'), "
        "sum(status = 'ERROR'), sum(status = 'STOPPED') FROM batch JOIN job ON number "
        "BETWEEN first AND last WHERE deleted_at IS NULL AND workspace_id IS NOT NULL GROUP "
        "BY batch.id, workspace_id, type"
    ),
    (
        "INSERT INTO pipeline_count (batch, pipeline_id, type, queued, running, complete, "
        "error, stopped) SELECT 0, pipeline_id, type, sum(status = 'QUEUED'), sum(status = "
        "'RUNNING'), sum(status = 'COMPLETE'), sum(status = 'ERROR'), sum(status = "
        "'STOPPED') FROM job WHERE +deleted_at IS NULL AND pipeline_id IS NOT NULL AND NOT "
        "EXISTS (SELECT 1 FROM batch WHERE number BETWEEN first AND last) GROUP BY "
        "pipeline_id, deleted_at, type UNION ALL SELECT batch.id, pipeline_id, type, "
        "sum(status = 'QUEUED'), sum(status = 'RUNNING'), sum(status = 'COMPLETE'), "
        "sum(status = 'ERROR'), sum(status = 'STOPPED') FROM batch JOIN job ON number "
        "BETWEEN first AND last WHERE deleted_at IS NULL AND pipeline_id IS NOT NULL GROUP "
        "BY batch.id, pipeline_id, type"
    ),
    (
        "CREATE TRIGGER job_is_counted AFTER INSERT ON job WHEN NEW.deleted_at IS NULL BEGIN "
        "INSERT INTO workspace_count (batch, workspace_id, type, queued, running, complete, "
        "error, stopped) SELECT coalesce((SELECT id FROM batch WHERE NEW.number BETWEEN "
        "first AND last), 0), NEW.workspace_id, NEW.type, (NEW.status = 'QUEUED'), "
        "(NEW.status = 'RUNNING'), (NEW.status = 'COMPLETE'), (NEW.status = 'ERROR'), "
        "(NEW.status = 'STOPPED') WHERE NEW.workspace_id IS NOT NULL ON CONFLICT (batch, "
        "workspace_id, type) DO UPDATE SET queued = queued + excluded.queued, running = "
        "running + excluded.running, complete = complete + excluded.complete, error = error "
        "+ excluded.error, stopped = stopped + excluded.stopped; INSERT INTO pipeline_count "
        "(batch, pipeline_id, type, queued, running, complete, error, stopped) SELECT "
        "coalesce((SELECT id FROM batch WHERE NEW.number BETWEEN first AND last), 0), "
        "NEW.pipeline_id, NEW.type, (NEW.status = 'QUEUED'), (NEW.status = 'RUNNING'), "
        "(NEW.status = 'COMPLETE'), (NEW.status = 'ERROR'), (NEW.status = 'STOPPED') WHERE "
        "NEW.pipeline_id IS NOT NULL ON CONFLICT (batch, pipeline_id, type) DO UPDATE SET "
        "queued = queued + excluded.queued, running = running + excluded.running, complete = "
        "complete + excluded.complete, error = error + excluded.error, stopped = stopped + "
        "excluded.stopped; END"
    ),
    (
        "CREATE TRIGGER job_counts_by_status AFTER UPDATE OF status ON job WHEN OLD.status "
        "IS NOT NEW.status AND NEW.deleted_at IS NULL AND NOT (OLD.type IS NOT NEW.type OR "
        "OLD.workspace_id IS NOT NEW.workspace_id OR (OLD.deleted_at IS NULL) <> "
        "(NEW.deleted_at IS NULL)) BEGIN INSERT INTO workspace_count (batch, workspace_id, "
        "type, queued, running, complete, error, stopped) SELECT coalesce((SELECT id FROM "
        "batch WHERE NEW.number BETWEEN first AND last), 0), NEW.workspace_id, NEW.type, "
        "(NEW.status = 'QUEUED') - (OLD.status = 'QUEUED'), (NEW.status = 'RUNNING') - "
        "(OLD.status = 'RUNNING'), (NEW.status = 'COMPLETE') - (OLD.status = 'COMPLETE'), "
        "(NEW.status = 'ERROR') - (OLD.status = 'ERROR'), (NEW.status = 'STOPPED') - "
        "(OLD.status = 'STOPPED') WHERE NEW.workspace_id IS NOT NULL ON CONFLICT (batch, "
        "workspace_id, type) DO UPDATE SET queued = queued + excluded.queued, running = "
        "running + excluded.running, complete = complete + excluded.complete, error = error "
        "+ excluded.error, stopped = stopped + excluded.stopped; INSERT INTO pipeline_count "
        "(batch, pipeline_id, type, queued, running, complete, error, stopped) SELECT "
        "coalesce((SELECT id FROM batch WHERE NEW.number BETWEEN first AND last), 0), "
        "NEW.pipeline_id, NEW.type, (NEW.status = 'QUEUED') - (OLD.status = 'QUEUED'), "
        "(NEW.status = 'RUNNING') - (OLD.status = 'RUNNING'), (NEW.status = 'COMPLETE') - "
        "(OLD.status = 'COMPLETE'), (NEW.status = 'ERROR') - (OLD.status = 'ERROR'), "
        "(NEW.status = 'STOPPED') - (OLD.status = 'STOPPED') WHERE NEW.pipeline_id IS NOT "
        "NULL ON CONFLICT (batch, pipeline_id, type) DO UPDATE SET queued = queued + "
        "excluded.queued, running = running + excluded.running, complete = complete + "
        "excluded.complete, error = error + excluded.error, stopped = stopped + "
        "excluded.stopped; END"
    ),
    (
        "CREATE TRIGGER job_counts_elsewhere AFTER UPDATE OF type, workspace_id, deleted_at "
        "ON job WHEN OLD.type IS NOT NEW.type OR OLD.workspace_id IS NOT NEW.workspace_id OR "
        "(OLD.deleted_at IS NULL) <> (NEW.deleted_at IS NULL) BEGIN INSERT INTO "
        "workspace_count (batch, workspace_id, type, queued, running, complete, error, "
        "stopped) SELECT coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND "
        "last), 0), OLD.workspace_id, OLD.type, -(OLD.status = 'QUEUED'), -(OLD.status = "
        "'RUNNING'), -(OLD.status = 'COMPLETE'), -(OLD.status = 'ERROR'), -(OLD.status = "
        "'STOPPED') WHERE OLD.workspace_id IS NOT NULL AND OLD.deleted_at IS NULL ON "
        "CONFLICT (batch, workspace_id, type) DO UPDATE SET queued = queued + "
        "excluded.queued, running = running + excluded.running, complete = complete + "
        "excluded.complete, error = error + excluded.error, stopped = stopped + "
        "excluded.stopped; INSERT INTO pipeline_count (batch, pipeline_id, type, queued, "
        "running, complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE "
        "OLD.number BETWEEN first AND last), 0), OLD.pipeline_id, OLD.type, -(OLD.status = "
        "'QUEUED'), -(OLD.status = 'RUNNING'), -(OLD.status = 'COMPLETE'), -(OLD.status = "
        "'ERROR'), -(OLD.status = 'STOPPED') WHERE OLD.pipeline_id IS NOT NULL AND "
        "OLD.deleted_at IS NULL ON CONFLICT (batch, pipeline_id, type) DO UPDATE SET queued "
        "= queued + excluded.queued, running = running + excluded.running, complete = "
        "complete + excluded.complete, error = error + excluded.error, stopped = stopped + "
        "excluded.stopped; DELETE FROM workspace_count WHERE batch = coalesce((SELECT id "
        "FROM batch WHERE OLD.number BETWEEN first AND last), 0) AND workspace_id = "
        "OLD.workspace_id AND type = OLD.type AND queued = 0 AND running = 0 AND complete = "
        "0 AND error = 0 AND stopped = 0; DELETE FROM pipeline_count WHERE batch = "
        "coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0) AND "
        "pipeline_id = OLD.pipeline_id AND type = OLD.type AND queued = 0 AND running = 0 "
        "AND complete = 0 AND error = 0 AND stopped = 0; INSERT INTO workspace_count (batch, "
        "workspace_id, type, queued, running, complete, error, stopped) SELECT "
        "coalesce((SELECT id FROM batch WHERE NEW.number BETWEEN first AND last), 0), "
        "NEW.workspace_id, NEW.type, (NEW.status = 'QUEUED'), (NEW.status = 'RUNNING'), "
        "(NEW.status = 'COMPLETE'), (NEW.status = 'ERROR'), (NEW.status = 'STOPPED') WHERE "
        "NEW.workspace_id IS NOT NULL AND NEW.deleted_at IS NULL ON CONFLICT (batch, "
        "workspace_id, type) DO UPDATE SET queued = queued + excluded.queued, running = "
        "running + excluded.running, complete = complete + excluded.complete, error = error "
        "+ excluded.error, stopped = stopped + excluded.stopped; INSERT INTO pipeline_count "
        "(batch, pipeline_id, type, queued, running, complete, error, stopped) SELECT "
        "coalesce((SELECT id FROM batch WHERE NEW.number BETWEEN first AND last), 0), "
        "NEW.pipeline_id, NEW.type, (NEW.status = 'QUEUED'), (NEW.status = 'RUNNING'), "
        "(NEW.status = 'COMPLETE'), (NEW.status = 'ERROR'), (NEW.status = 'STOPPED') WHERE "
        "NEW.pipeline_id IS NOT NULL AND NEW.deleted_at IS NULL ON CONFLICT (batch, "
        "pipeline_id, type) DO UPDATE SET queued = queued + excluded.queued, running = "
        "running + excluded.running, complete = complete + excluded.complete, error = error "
        "+ excluded.error, stopped = stopped + excluded.stopped; END"
    ),
    (
        "CREATE TRIGGER job_counts_no_more AFTER DELETE ON job WHEN OLD.deleted_at IS NULL "
        "BEGIN INSERT INTO workspace_count (batch, workspace_id, type, queued, running, "
        "complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE OLD.number "
        "BETWEEN first AND last), 0), OLD.workspace_id, OLD.type, -(OLD.status = 'QUEUED'), "
        "-(OLD.status = 'RUNNING'), -(OLD.status = 'COMPLETE'), -(OLD.status = 'ERROR'), "
        "-(OLD.status = 'STOPPED') WHERE OLD.workspace_id IS NOT NULL ON CONFLICT (batch, "
        "workspace_id, type) DO UPDATE SET queued = queued + excluded.queued, running = "
        "running + excluded.running, complete = complete + excluded.complete, error = error "
        "+ excluded.error, stopped = stopped + excluded.stopped; INSERT INTO pipeline_count "
        "(batch, pipeline_id, type, queued, running, complete, error, stopped) SELECT "
        "coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0), "
        "OLD.pipeline_id, OLD.type, -(OLD.status = 'QUEUED'), -(OLD.status = 'RUNNING'), "
        "-(OLD.status = 'COMPLETE'), -(OLD.status = 'ERROR'), -(OLD.status = 'STOPPED') "
        "WHERE OLD.pipeline_id IS NOT NULL ON CONFLICT (batch, pipeline_id, type) DO UPDATE "
        "SET queued = queued + excluded.queued, running = running + excluded.running, "
        "complete = complete + excluded.complete, error = error + excluded.error, stopped = "
        "stopped + excluded.stopped; DELETE FROM workspace_count WHERE batch = "
        "coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0) AND "
        "workspace_id = OLD.workspace_id AND type = OLD.type AND queued = 0 AND running = 0 "
        "AND complete = 0 AND error = 0 AND stopped = 0; DELETE FROM pipeline_count WHERE "
        "batch = coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0) "
        "AND pipeline_id = OLD.pipeline_id AND type = OLD.type AND queued = 0 AND running = "
        "0 AND complete = 0 AND error = 0 AND stopped = 0; END"
    ),
    (
        "CREATE TRIGGER batch_is_counted AFTER DELETE ON batch BEGIN INSERT INTO "
        "workspace_count (batch, workspace_id, type, queued, running, complete, error, "
        "stopped) SELECT 0, workspace_id, type, queued, running, complete, error, stopped "
        "FROM workspace_count WHERE batch = OLD.id ON CONFLICT (batch, workspace_id, type) "
        "DO UPDATE SET queued = queued + excluded.queued, running = running + "
        "excluded.running, complete = complete + excluded.complete, error = error + "
        "excluded.error, stopped = stopped + excluded.stopped; DELETE FROM workspace_count "
        "WHERE batch = OLD.id; INSERT INTO pipeline_count (batch, pipeline_id, type, queued, "
        "running, complete, error, stopped) SELECT 0, pipeline_id, type, queued, running, "
        "complete, error, stopped FROM pipeline_count WHERE batch = OLD.id ON CONFLICT "
        "(batch, pipeline_id, type) DO UPDATE SET queued = queued + excluded.queued, running "
        "= running + excluded.running, complete = complete + excluded.complete, error = "
        "error + excluded.error, stopped = stopped + excluded.stopped; DELETE FROM "
        "pipeline_count WHERE batch = OLD.id; END"
    ),
)
