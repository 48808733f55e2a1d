BEGIN TRANSACTION;
CREATE TABLE batch (
	id INTEGER NOT NULL, 
	first BIGINT NOT NULL, 
	last BIGINT NOT NULL, 
	owner VARCHAR NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE environment (
	hash VARCHAR NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (hash)
);
CREATE TABLE job (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id CHAR(32) NOT NULL, 
	workspace_id CHAR(32) NOT NULL, 
	pipeline_id CHAR(32), 
	type VARCHAR NOT NULL, 
	name VARCHAR, 
	data JSON, 
	command TEXT, 
	attempt INTEGER NOT NULL, 
	retry_of CHAR(32), 
	not_before BIGINT, 
	created BIGINT NOT NULL, 
	status VARCHAR NOT NULL, 
	start_time BIGINT, 
	token VARCHAR, 
	cookie VARCHAR, 
	boot_id VARCHAR, 
	grace_ms INTEGER, 
	timeout_ms BIGINT, 
	calls_function BOOLEAN, 
	directory_id VARCHAR, 
	stop_requested BIGINT, 
	stop_grace_ms INTEGER, 
	stop_who VARCHAR, 
	stop_why VARCHAR, 
	spool_offset BIGINT NOT NULL, 
	next_sequence BIGINT NOT NULL, 
	loose_sequence BIGINT NOT NULL, 
	loose_bytes BIGINT NOT NULL, 
	progress_done FLOAT, 
	progress_total FLOAT, 
	progress_message TEXT, 
	progress_at BIGINT, 
	end_time BIGINT, 
	exit_code INTEGER, 
	signal INTEGER, 
	reason VARCHAR, 
	wait_status INTEGER, 
	errno INTEGER, 
	cpu_us BIGINT, 
	max_rss BIGINT, 
	dropped BIGINT NOT NULL, 
	left_processes INTEGER, 
	unreaped VARCHAR, 
	unreaped_ignored BOOLEAN, 
	deleted_at BIGINT, 
	owner VARCHAR, 
	env_from VARCHAR, 
	environment VARCHAR, 
	CONSTRAINT status_is_known CHECK (status IN ('QUEUED', 'RUNNING', 'COMPLETE', 'ERROR', 'STOPPED')), 
	CONSTRAINT reason_is_known CHECK (reason IN ('exited', 'signaled', 'timeout', 'stopped', 'cancelled', 'shutdown', 'spawn_failed', 'lost', 'never_started')), 
	CONSTRAINT final_has_reason CHECK ((status IN ('COMPLETE', 'ERROR', 'STOPPED')) = (reason IS NOT NULL)), 
	CONSTRAINT final_has_end CHECK ((status IN ('COMPLETE', 'ERROR', 'STOPPED')) = (end_time IS NOT NULL)), 
	CONSTRAINT complete_is_exit_0 CHECK ((status = 'COMPLETE') = (status <> 'RUNNING' AND coalesce(reason, '') = 'exited' AND coalesce(exit_code, 1) = 0)), 
	CONSTRAINT exit_code_needs_end CHECK (exit_code IS NULL OR status IN ('COMPLETE', 'ERROR', 'STOPPED')), 
	CONSTRAINT exit_code_is_a_byte CHECK (exit_code BETWEEN 0 AND 255), 
	CONSTRAINT halted_is_stopped CHECK (status = 'STOPPED' OR coalesce(reason, '') NOT IN ('cancelled', 'shutdown', 'stopped', 'timeout')), 
	CONSTRAINT stopped_was_halted CHECK (status <> 'STOPPED' OR reason IN ('cancelled', 'lost', 'never_started', 'shutdown', 'stopped', 'timeout')), 
	CONSTRAINT unseen_has_no_exit_code CHECK (exit_code IS NULL OR reason NOT IN ('cancelled', 'lost', 'never_started')), 
	CONSTRAINT queued_has_not_started CHECK (status <> 'QUEUED' OR start_time IS NULL), 
	CONSTRAINT running_has_started CHECK (status <> 'RUNNING' OR start_time IS NOT NULL), 
	CONSTRAINT only_cancelled_never_starts CHECK (status NOT IN ('COMPLETE', 'ERROR', 'STOPPED') OR (start_time IS NULL) = (reason = 'cancelled')), 
	CONSTRAINT ends_after_start CHECK (end_time >= start_time), 
	UNIQUE (id), 
	FOREIGN KEY(workspace_id) REFERENCES workspace (id) ON DELETE CASCADE, 
	FOREIGN KEY(pipeline_id) REFERENCES pipeline (id) ON DELETE CASCADE
);
INSERT INTO "job" VALUES(1,'169feb7a2bfd480787104f7d79f039cd','aa15efd68c3648f4829847ecb2fd9bfc',NULL,'COMMAND','ended','{"a": 1}','{"argv": ["sh", "-c", "echo extract; echo load; exit 3"], "cwd": "/", "env": {}, "inherit_env": true, "stdin": null, "timeout": null, "grace": 10.0, "output_limit": null, "separate_streams": false, "redact": [], "umask": 18, "shell": false}',1,NULL,NULL,1796022170898143,'ERROR',1796022171056791,'546e01b8bdba431b8c1800b021bf6c98','6ea6c6b021b246d7bdb8a4da96bfc4e7','f0309918-0748-4cce-bf65-e0b2ca79b39c',10000,NULL,0,'65024:3186723:3186754',NULL,NULL,NULL,NULL,49,2,0,49,NULL,NULL,NULL,NULL,1796022171079580,3,NULL,'exited',768,NULL,1754,7450624,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "job" VALUES(2,'0eebf9f9a24f4ba2b91afb0404ee01ed','aa15efd68c3648f4829847ecb2fd9bfc','6031b4de7e694165b450958ba7f5c49a','PIPELINE_RUN',NULL,NULL,NULL,1,NULL,NULL,1796022171164593,'COMPLETE',1796022171187320,'5a731aeb3e674ca5bfedd11abfc634b9','9c8d9690735c4f079376fa34ab346eb7','f0309918-0748-4cce-bf65-e0b2ca79b39c',10000,NULL,0,'65024:3186723:3186754',NULL,NULL,NULL,NULL,0,0,0,0,NULL,NULL,NULL,NULL,1796022171192445,0,NULL,'exited',0,NULL,1581,7483392,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "job" VALUES(3,'024c0a7beea34bd59920daa31ad89117','aa15efd68c3648f4829847ecb2fd9bfc',NULL,'TASK',NULL,NULL,NULL,1,NULL,NULL,1796022171203039,'RUNNING',1796022171203995,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "job" VALUES(4,'c266afd0a04349c8ae255360653d38ea','aa15efd68c3648f4829847ecb2fd9bfc',NULL,'WAITS',NULL,NULL,NULL,1,NULL,NULL,1796022171205345,'QUEUED',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE link (
	pipeline_id CHAR(32) NOT NULL, 
	position INTEGER NOT NULL, 
	source_id CHAR(32), 
	name VARCHAR, 
	PRIMARY KEY (pipeline_id, position), 
	FOREIGN KEY(pipeline_id) REFERENCES pipeline (id) ON DELETE CASCADE, 
	FOREIGN KEY(source_id) REFERENCES pipeline (id) ON DELETE CASCADE
);
CREATE TABLE log_segment (
	id INTEGER NOT NULL, 
	job BIGINT NOT NULL, 
	first_sequence BIGINT NOT NULL, 
	line_count INTEGER NOT NULL, 
	raw_bytes INTEGER NOT NULL, 
	compressed BOOLEAN NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (job, first_sequence), 
	FOREIGN KEY(job) REFERENCES job (number) ON DELETE CASCADE
);
INSERT INTO "log_segment" VALUES(1,1,0,2,49,1,X'7801F37263646440024C40362F10FF6B7C24BDECC01B89DB76E7FFA756941425269770E5E427A6700100D9500D1E');
CREATE TABLE pipeline (
	id CHAR(32) NOT NULL, 
	workspace_id CHAR(32) NOT NULL, 
	name VARCHAR NOT NULL, 
	status VARCHAR NOT NULL, 
	command TEXT, 
	script TEXT, 
	timeout FLOAT, 
	max_retries INTEGER NOT NULL, 
	schedule VARCHAR, 
	time_zone VARCHAR, 
	next_tick BIGINT, 
	properties JSON, 
	created BIGINT NOT NULL, 
	last_modified BIGINT NOT NULL, 
	deleted_at BIGINT, 
	folded_name VARCHAR, 
	tick_offset INTEGER, 
	catch_up VARCHAR, 
	late_after FLOAT, 
	PRIMARY KEY (id), 
	CONSTRAINT status_is_known CHECK (status IN ('READY', 'PROVISIONING', 'FAILED')), 
	FOREIGN KEY(workspace_id) REFERENCES workspace (id) ON DELETE CASCADE
);
INSERT INTO "pipeline" VALUES('6031b4de7e694165b450958ba7f5c49a','aa15efd68c3648f4829847ecb2fd9bfc','nightly','READY','{"argv": ["true"], "cwd": "/", "env": {}, "inherit_env": true, "stdin": null, "timeout": null, "grace": 10.0, "output_limit": null, "separate_streams": false, "redact": [], "umask": 18, "shell": false}',NULL,NULL,0,NULL,NULL,NULL,NULL,1796022171098435,1796022171098435,NULL,'nightly',NULL,NULL,NULL);
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
);
INSERT INTO "pipeline_count" VALUES(0,'6031b4de7e694165b450958ba7f5c49a','PIPELINE_RUN',0,0,1,0,0);
CREATE TABLE pipeline_note (
	id INTEGER NOT NULL, 
	pipeline_id CHAR(32) NOT NULL, 
	topic VARCHAR NOT NULL, 
	detail VARCHAR NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(pipeline_id) REFERENCES pipeline (id) ON DELETE CASCADE
);
CREATE TABLE result (
	job BIGINT NOT NULL, 
	encoding VARCHAR NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (job), 
	CONSTRAINT encoding_is_known CHECK (encoding IN ('json', 'pickle')), 
	FOREIGN KEY(job) REFERENCES job (number) ON DELETE CASCADE
);
CREATE TABLE skip (
	id INTEGER NOT NULL, 
	pipeline_id CHAR(32) NOT NULL, 
	due BIGINT NOT NULL, 
	recorded BIGINT NOT NULL, 
	why VARCHAR NOT NULL, 
	count INTEGER NOT NULL, 
	job_id CHAR(32), 
	PRIMARY KEY (id), 
	FOREIGN KEY(pipeline_id) REFERENCES pipeline (id) ON DELETE CASCADE
);
CREATE TABLE store (
	id VARCHAR NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "store" VALUES('903ee8c4480d43ffbcc2dd5a80fe0c29');
CREATE TABLE transition (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	job BIGINT NOT NULL, 
	at BIGINT NOT NULL, 
	"trigger" VARCHAR NOT NULL, 
	from_status VARCHAR, 
	to_status VARCHAR NOT NULL, 
	reason VARCHAR, 
	actor VARCHAR, 
	pipeline_id CHAR(32), 
	FOREIGN KEY(job) REFERENCES job (number) ON DELETE CASCADE
);
INSERT INTO "transition" VALUES(1,1,1796022170898143,'create',NULL,'QUEUED',NULL,'pid 4599',NULL);
INSERT INTO "transition" VALUES(2,1,1796022171056791,'start','QUEUED','RUNNING',NULL,'pid 4599',NULL);
INSERT INTO "transition" VALUES(3,1,1796022171082356,'finish','RUNNING','ERROR','exited','pid 4599',NULL);
INSERT INTO "transition" VALUES(4,2,1796022171164593,'create',NULL,'QUEUED',NULL,'pid 4599','6031b4de7e694165b450958ba7f5c49a');
INSERT INTO "transition" VALUES(5,2,1796022171187320,'start','QUEUED','RUNNING',NULL,'pid 4599','6031b4de7e694165b450958ba7f5c49a');
INSERT INTO "transition" VALUES(6,2,1796022171193574,'finish','RUNNING','COMPLETE','exited','pid 4599','6031b4de7e694165b450958ba7f5c49a');
INSERT INTO "transition" VALUES(7,3,1796022171203039,'create',NULL,'QUEUED',NULL,'pid 4599',NULL);
INSERT INTO "transition" VALUES(8,3,1796022171203995,'start','QUEUED','RUNNING',NULL,'pid 4599',NULL);
INSERT INTO "transition" VALUES(9,4,1796022171205345,'create',NULL,'QUEUED',NULL,'pid 4599',NULL);
CREATE TABLE workspace (
	id CHAR(32) NOT NULL, 
	name VARCHAR NOT NULL, 
	is_default BOOLEAN NOT NULL, 
	properties JSON, 
	created BIGINT NOT NULL, 
	last_modified BIGINT NOT NULL, 
	deleted_at BIGINT, 
	PRIMARY KEY (id)
);
INSERT INTO "workspace" VALUES('aa15efd68c3648f4829847ecb2fd9bfc','default',1,NULL,1796022170898143,1796022170898143,NULL);
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
);
INSERT INTO "workspace_count" VALUES(0,'aa15efd68c3648f4829847ecb2fd9bfc','COMMAND',0,0,0,1,0);
INSERT INTO "workspace_count" VALUES(0,'aa15efd68c3648f4829847ecb2fd9bfc','PIPELINE_RUN',0,0,1,0,0);
INSERT INTO "workspace_count" VALUES(0,'aa15efd68c3648f4829847ecb2fd9bfc','TASK',0,1,0,0,0);
INSERT INTO "workspace_count" VALUES(0,'aa15efd68c3648f4829847ecb2fd9bfc','WAITS',1,0,0,0,0);
CREATE INDEX marked_workspaces ON workspace (id) WHERE deleted_at IS NOT NULL;
CREATE UNIQUE INDEX one_default_workspace ON workspace (is_default) WHERE is_default;
CREATE INDEX marked_pipelines ON pipeline (id) WHERE deleted_at IS NOT NULL;
CREATE UNIQUE INDEX one_pipeline_per_name ON pipeline (workspace_id, folded_name) WHERE deleted_at IS NULL;
CREATE INDEX pipelines_of_workspace ON pipeline (workspace_id, created, id);
CREATE INDEX scheduled_pipelines ON pipeline (next_tick, id) WHERE next_tick IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX delayed_retries ON job (status, not_before, number) WHERE status = 'QUEUED' AND not_before IS NOT NULL AND retry_of IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX deleted_jobs ON job (number) WHERE deleted_at IS NOT NULL;
CREATE INDEX jobs_by_environment ON job (environment) WHERE environment IS NOT NULL;
CREATE INDEX jobs_by_status ON job (status) WHERE deleted_at IS NULL;
CREATE INDEX jobs_of_pipeline ON job (pipeline_id, deleted_at, status, number) WHERE pipeline_id IS NOT NULL;
CREATE INDEX jobs_of_pipeline_by_type ON job (pipeline_id, deleted_at, type, status, number) WHERE pipeline_id IS NOT NULL;
CREATE INDEX jobs_of_type ON job (type, status, number) WHERE deleted_at IS NULL;
CREATE INDEX jobs_of_workspace ON job (workspace_id, deleted_at, status, number);
CREATE INDEX jobs_of_workspace_by_type ON job (workspace_id, deleted_at, type, status, number);
CREATE UNIQUE INDEX one_active_job_per_pipeline ON job (pipeline_id) WHERE status IN ('QUEUED', 'RUNNING');
CREATE INDEX owned_jobs ON job (number) WHERE owner IS NOT NULL;
CREATE INDEX queue ON job (type, status, not_before, number) WHERE status = 'QUEUED' AND deleted_at IS NULL;
CREATE INDEX running_jobs ON job (number) WHERE status = 'RUNNING';
CREATE INDEX links_of_source ON link (source_id);
CREATE INDEX notes_of_pipeline ON pipeline_note (pipeline_id, topic);
CREATE INDEX skips_by_time ON skip (recorded);
CREATE INDEX skips_of_pipeline ON skip (pipeline_id, id);
CREATE INDEX transitions_of_job ON transition (job, id);
CREATE INDEX transitions_of_pipeline ON transition (pipeline_id, id) WHERE pipeline_id IS NOT NULL;
CREATE TRIGGER job_begins_queued BEFORE INSERT ON job WHEN NEW.status <> 'QUEUED' BEGIN SELECT RAISE(ABORT, 'a job is created QUEUED'); END;
CREATE TRIGGER job_moves_by_the_rules BEFORE UPDATE OF status ON job WHEN OLD.status <> NEW.status AND NOT ((OLD.status = 'QUEUED' AND NEW.status = 'RUNNING') OR (OLD.status = 'QUEUED' AND NEW.status = 'STOPPED') OR (OLD.status = 'RUNNING' AND NEW.status = 'COMPLETE') OR (OLD.status = 'RUNNING' AND NEW.status = 'ERROR') OR (OLD.status = 'RUNNING' AND NEW.status = 'STOPPED')) BEGIN SELECT RAISE(ABORT, 'no such transition of a job'); END;
CREATE TRIGGER job_final_stays_final BEFORE UPDATE OF number, id, workspace_id, pipeline_id, type, status, attempt, retry_of, created, start_time, end_time, exit_code, signal, reason, wait_status, errno, cpu_us, max_rss, spool_offset, next_sequence, dropped, token, cookie ON job WHEN OLD.status IN ('COMPLETE', 'ERROR', 'STOPPED') AND (OLD.number IS NOT NEW.number OR OLD.id IS NOT NEW.id OR OLD.workspace_id IS NOT NEW.workspace_id OR OLD.pipeline_id IS NOT NEW.pipeline_id OR OLD.type IS NOT NEW.type OR OLD.status IS NOT NEW.status OR OLD.attempt IS NOT NEW.attempt OR OLD.retry_of IS NOT NEW.retry_of OR OLD.created IS NOT NEW.created OR OLD.start_time IS NOT NEW.start_time OR OLD.end_time IS NOT NEW.end_time OR OLD.exit_code IS NOT NEW.exit_code OR OLD.signal IS NOT NEW.signal OR OLD.reason IS NOT NEW.reason OR OLD.wait_status IS NOT NEW.wait_status OR OLD.errno IS NOT NEW.errno OR OLD.cpu_us IS NOT NEW.cpu_us OR OLD.max_rss IS NOT NEW.max_rss OR OLD.spool_offset IS NOT NEW.spool_offset OR OLD.next_sequence IS NOT NEW.next_sequence OR OLD.dropped IS NOT NEW.dropped OR OLD.token IS NOT NEW.token OR OLD.cookie IS NOT NEW.cookie) BEGIN SELECT RAISE(ABORT, 'a final job does not change'); END;
CREATE TRIGGER job_is_not_replaced BEFORE INSERT ON job WHEN EXISTS (SELECT 1 FROM job WHERE number = NEW.number OR id = NEW.id OR (pipeline_id = NEW.pipeline_id AND status IN ('QUEUED', 'RUNNING'))) BEGIN SELECT RAISE(ABORT, 'a job is not replaced by another'); END;
CREATE TRIGGER job_keeps_its_id BEFORE UPDATE ON job WHEN OLD.number IS NOT NEW.number OR OLD.id IS NOT NEW.id OR OLD.workspace_id IS NOT NEW.workspace_id OR OLD.pipeline_id IS NOT NEW.pipeline_id BEGIN SELECT RAISE(ABORT, 'a job keeps its number, id, workspace and pipeline'); END;
CREATE TRIGGER job_is_counted AFTER INSERT ON job WHEN NEW.deleted_at IS NULL BEGIN INSERT INTO workspace_count (batch, workspace_id, type, queued, running, complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE NEW.number BETWEEN first AND last), 0), NEW.workspace_id, NEW.type, (NEW.status = 'QUEUED'), (NEW.status = 'RUNNING'), (NEW.status = 'COMPLETE'), (NEW.status = 'ERROR'), (NEW.status = 'STOPPED') WHERE NEW.workspace_id IS NOT NULL ON CONFLICT (batch, workspace_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; INSERT INTO pipeline_count (batch, pipeline_id, type, queued, running, complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE NEW.number BETWEEN first AND last), 0), NEW.pipeline_id, NEW.type, (NEW.status = 'QUEUED'), (NEW.status = 'RUNNING'), (NEW.status = 'COMPLETE'), (NEW.status = 'ERROR'), (NEW.status = 'STOPPED') WHERE NEW.pipeline_id IS NOT NULL ON CONFLICT (batch, pipeline_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; END;
CREATE TRIGGER job_counts_by_status AFTER UPDATE OF status ON job WHEN OLD.status IS NOT NEW.status AND NEW.deleted_at IS NULL AND NOT (OLD.type IS NOT NEW.type OR (OLD.deleted_at IS NULL) <> (NEW.deleted_at IS NULL)) BEGIN INSERT INTO workspace_count (batch, workspace_id, type, queued, running, complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE NEW.number BETWEEN first AND last), 0), NEW.workspace_id, NEW.type, (NEW.status = 'QUEUED') - (OLD.status = 'QUEUED'), (NEW.status = 'RUNNING') - (OLD.status = 'RUNNING'), (NEW.status = 'COMPLETE') - (OLD.status = 'COMPLETE'), (NEW.status = 'ERROR') - (OLD.status = 'ERROR'), (NEW.status = 'STOPPED') - (OLD.status = 'STOPPED') WHERE NEW.workspace_id IS NOT NULL ON CONFLICT (batch, workspace_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; INSERT INTO pipeline_count (batch, pipeline_id, type, queued, running, complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE NEW.number BETWEEN first AND last), 0), NEW.pipeline_id, NEW.type, (NEW.status = 'QUEUED') - (OLD.status = 'QUEUED'), (NEW.status = 'RUNNING') - (OLD.status = 'RUNNING'), (NEW.status = 'COMPLETE') - (OLD.status = 'COMPLETE'), (NEW.status = 'ERROR') - (OLD.status = 'ERROR'), (NEW.status = 'STOPPED') - (OLD.status = 'STOPPED') WHERE NEW.pipeline_id IS NOT NULL ON CONFLICT (batch, pipeline_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; END;
CREATE TRIGGER job_counts_elsewhere AFTER UPDATE OF type, deleted_at ON job WHEN OLD.type IS NOT NEW.type OR (OLD.deleted_at IS NULL) <> (NEW.deleted_at IS NULL) BEGIN INSERT INTO workspace_count (batch, workspace_id, type, queued, running, complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0), OLD.workspace_id, OLD.type, -(OLD.status = 'QUEUED'), -(OLD.status = 'RUNNING'), -(OLD.status = 'COMPLETE'), -(OLD.status = 'ERROR'), -(OLD.status = 'STOPPED') WHERE OLD.workspace_id IS NOT NULL AND OLD.deleted_at IS NULL ON CONFLICT (batch, workspace_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; INSERT INTO pipeline_count (batch, pipeline_id, type, queued, running, complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0), OLD.pipeline_id, OLD.type, -(OLD.status = 'QUEUED'), -(OLD.status = 'RUNNING'), -(OLD.status = 'COMPLETE'), -(OLD.status = 'ERROR'), -(OLD.status = 'STOPPED') WHERE OLD.pipeline_id IS NOT NULL AND OLD.deleted_at IS NULL ON CONFLICT (batch, pipeline_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; DELETE FROM workspace_count WHERE batch = coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0) AND workspace_id = OLD.workspace_id AND type = OLD.type AND queued = 0 AND running = 0 AND complete = 0 AND error = 0 AND stopped = 0; DELETE FROM pipeline_count WHERE batch = coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0) AND pipeline_id = OLD.pipeline_id AND type = OLD.type AND queued = 0 AND running = 0 AND complete = 0 AND error = 0 AND stopped = 0; INSERT INTO workspace_count (batch, workspace_id, type, queued, running, complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE NEW.number BETWEEN first AND last), 0), NEW.workspace_id, NEW.type, (NEW.status = 'QUEUED'), (NEW.status = 'RUNNING'), (NEW.status = 'COMPLETE'), (NEW.status = 'ERROR'), (NEW.status = 'STOPPED') WHERE NEW.workspace_id IS NOT NULL AND NEW.deleted_at IS NULL ON CONFLICT (batch, workspace_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; INSERT INTO pipeline_count (batch, pipeline_id, type, queued, running, complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE NEW.number BETWEEN first AND last), 0), NEW.pipeline_id, NEW.type, (NEW.status = 'QUEUED'), (NEW.status = 'RUNNING'), (NEW.status = 'COMPLETE'), (NEW.status = 'ERROR'), (NEW.status = 'STOPPED') WHERE NEW.pipeline_id IS NOT NULL AND NEW.deleted_at IS NULL ON CONFLICT (batch, pipeline_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; END;
CREATE TRIGGER job_counts_no_more AFTER DELETE ON job WHEN OLD.deleted_at IS NULL BEGIN INSERT INTO workspace_count (batch, workspace_id, type, queued, running, complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0), OLD.workspace_id, OLD.type, -(OLD.status = 'QUEUED'), -(OLD.status = 'RUNNING'), -(OLD.status = 'COMPLETE'), -(OLD.status = 'ERROR'), -(OLD.status = 'STOPPED') WHERE OLD.workspace_id IS NOT NULL ON CONFLICT (batch, workspace_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; INSERT INTO pipeline_count (batch, pipeline_id, type, queued, running, complete, error, stopped) SELECT coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0), OLD.pipeline_id, OLD.type, -(OLD.status = 'QUEUED'), -(OLD.status = 'RUNNING'), -(OLD.status = 'COMPLETE'), -(OLD.status = 'ERROR'), -(OLD.status = 'STOPPED') WHERE OLD.pipeline_id IS NOT NULL ON CONFLICT (batch, pipeline_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; DELETE FROM workspace_count WHERE batch = coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0) AND workspace_id = OLD.workspace_id AND type = OLD.type AND queued = 0 AND running = 0 AND complete = 0 AND error = 0 AND stopped = 0; DELETE FROM pipeline_count WHERE batch = coalesce((SELECT id FROM batch WHERE OLD.number BETWEEN first AND last), 0) AND pipeline_id = OLD.pipeline_id AND type = OLD.type AND queued = 0 AND running = 0 AND complete = 0 AND error = 0 AND stopped = 0; END;
CREATE TRIGGER batch_is_counted AFTER DELETE ON batch BEGIN INSERT INTO workspace_count (batch, workspace_id, type, queued, running, complete, error, stopped) SELECT 0, workspace_id, type, queued, running, complete, error, stopped FROM workspace_count WHERE batch = OLD.id ON CONFLICT (batch, workspace_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; DELETE FROM workspace_count WHERE batch = OLD.id; INSERT INTO pipeline_count (batch, pipeline_id, type, queued, running, complete, error, stopped) SELECT 0, pipeline_id, type, queued, running, complete, error, stopped FROM pipeline_count WHERE batch = OLD.id ON CONFLICT (batch, pipeline_id, type) DO UPDATE SET queued = queued + excluded.queued, running = running + excluded.running, complete = complete + excluded.complete, error = error + excluded.error, stopped = stopped + excluded.stopped; DELETE FROM pipeline_count WHERE batch = OLD.id; END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('job',4);
INSERT INTO "sqlite_sequence" VALUES('transition',9);
COMMIT;
PRAGMA application_id = 1246708291;
PRAGMA user_version = 7;
