PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
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
	unreaped VARCHAR, 
	deleted_at BIGINT, 
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
INSERT INTO "job" VALUES(1,'c341989830c142539f05380a5204c7f5','e958d344608c4ed1a690c56110241491',NULL,'COMMAND','ended','{"a": 1}','{"argv": ["sh", "-c", "echo extract; echo load; exit 3"], "cwd": "/srv", "env": {}, "inherit_env": true, "stdin": null, "timeout": null, "grace": 10.0, "output_limit": null, "separate_streams": false, "redact": [], "umask": 18, "shell": false}',1,NULL,NULL,1795897699639159,'ERROR',1795897699737941,'e51a30d7e9774f63aac3b0d41206381e','444b76728bbc45c490d9cfd1a36e7302','b72afa96-5d63-4953-a468-bf8e98a29b43',10000,NULL,NULL,NULL,NULL,85,2,0,85,NULL,NULL,NULL,NULL,1795897699756675,3,NULL,'exited',768,NULL,1509,6754304,0,NULL,NULL);
INSERT INTO "job" VALUES(2,'9582cb902b6044bfa2bb2fb5f8b015f2','e958d344608c4ed1a690c56110241491','04e3f89efd9e4a55ba550e9f34a89cec','PIPELINE_RUN',NULL,NULL,NULL,1,NULL,NULL,1795897699795492,'COMPLETE',1795897699799262,'bb45c36f112144a49cdf296630a3ac69','49a0b615ec7c40489a07fd4f5b23ae76','b72afa96-5d63-4953-a468-bf8e98a29b43',10000,NULL,NULL,NULL,NULL,0,0,0,0,NULL,NULL,NULL,NULL,1795897699810306,0,NULL,'exited',0,NULL,1428,6787072,0,NULL,NULL);
INSERT INTO "job" VALUES(3,'2b5b9eab99a34cb79e122a18a19e5e53','e958d344608c4ed1a690c56110241491',NULL,'TASK',NULL,NULL,NULL,1,NULL,NULL,1795897699818174,'RUNNING',1795897699822067,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL);
INSERT INTO "job" VALUES(4,'4cf85b4b566f4301a61b6b53f5993437','e958d344608c4ed1a690c56110241491',NULL,'WAITS',NULL,NULL,NULL,1,NULL,NULL,1795897699849150,'QUEUED',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL);
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
INSERT INTO "log_segment" VALUES(1,1,0,2,85,1,X'7801F3726364644002200E0710F7151F8A2BF47F23B1356AEDDCD48A92A2C4E4122E2FA85A980610CD0AC42E42EFC06A1F674DECC9C94F4CE1020074F011F2');
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
	triggered_by JSON, 
	properties JSON, 
	created BIGINT NOT NULL, 
	last_modified BIGINT NOT NULL, 
	deleted_at BIGINT, 
	PRIMARY KEY (id), 
	CONSTRAINT status_is_known CHECK (status IN ('READY', 'PROVISIONING', 'FAILED')), 
	FOREIGN KEY(workspace_id) REFERENCES workspace (id) ON DELETE CASCADE
);
INSERT INTO "pipeline" VALUES('04e3f89efd9e4a55ba550e9f34a89cec','e958d344608c4ed1a690c56110241491','nightly','READY','{"argv": ["true"], "cwd": "/srv", "env": {}, "inherit_env": true, "stdin": null, "timeout": null, "grace": 10.0, "output_limit": null, "separate_streams": false, "redact": [], "umask": 18, "shell": true}','true',NULL,0,NULL,NULL,NULL,NULL,NULL,1795897699781530,1795897699781530,NULL);
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
INSERT INTO "store" VALUES('b545f00dfa364f4baeb4a8b81982f7aa');
CREATE TABLE transition (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	job BIGINT NOT NULL, 
	at BIGINT NOT NULL, 
	"trigger" VARCHAR NOT NULL, 
	from_status VARCHAR, 
	to_status VARCHAR NOT NULL, 
	reason VARCHAR, 
	actor VARCHAR, 
	FOREIGN KEY(job) REFERENCES job (number) ON DELETE CASCADE
);
INSERT INTO "transition" VALUES(1,1,1795897699639159,'create',NULL,'QUEUED',NULL,'pid 24369');
INSERT INTO "transition" VALUES(2,1,1795897699737941,'start','QUEUED','RUNNING',NULL,'pid 24369');
INSERT INTO "transition" VALUES(3,1,1795897699763282,'finish','RUNNING','ERROR','exited','pid 24369');
INSERT INTO "transition" VALUES(4,2,1795897699795492,'create',NULL,'QUEUED',NULL,'pid 24369');
INSERT INTO "transition" VALUES(5,2,1795897699799262,'start','QUEUED','RUNNING',NULL,'pid 24369');
INSERT INTO "transition" VALUES(6,2,1795897699811326,'finish','RUNNING','COMPLETE','exited','pid 24369');
INSERT INTO "transition" VALUES(7,3,1795897699818174,'create',NULL,'QUEUED',NULL,'pid 24369');
INSERT INTO "transition" VALUES(8,3,1795897699822067,'start','QUEUED','RUNNING',NULL,'pid 24369');
INSERT INTO "transition" VALUES(9,4,1795897699849150,'create',NULL,'QUEUED',NULL,'pid 24369');
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
INSERT INTO "workspace" VALUES('e958d344608c4ed1a690c56110241491','default',1,NULL,1795897699639159,1795897699639159,NULL);
CREATE UNIQUE INDEX one_default_workspace ON workspace (is_default) WHERE is_default;
CREATE INDEX ix_pipeline_next_tick ON pipeline (next_tick);
CREATE INDEX deleted_jobs ON job (number) WHERE deleted_at IS NOT NULL;
CREATE INDEX jobs_by_status ON job (status) WHERE deleted_at IS NULL;
CREATE INDEX jobs_of_pipeline ON job (pipeline_id, number);
CREATE INDEX jobs_of_workspace ON job (workspace_id, number);
CREATE UNIQUE INDEX one_active_job_per_pipeline ON job (pipeline_id) WHERE status IN ('QUEUED', 'RUNNING');
CREATE INDEX queued_jobs ON job (number) WHERE status = 'QUEUED';
CREATE INDEX running_jobs ON job (number) WHERE status = 'RUNNING';
CREATE INDEX skips_of_pipeline ON skip (pipeline_id, id);
CREATE INDEX transitions_of_job ON transition (job, id);
CREATE TRIGGER job_begins_queued BEFORE INSERT ON job WHEN NEW.status <> 'QUEUED' BEGIN SELECT RAISE(ABORT, 'a job is created QUEUED'); END;
CREATE TRIGGER job_moves_by_the_rules BEFORE UPDATE OF status ON job WHEN OLD.status <> NEW.status AND NOT ((OLD.status = 'QUEUED' AND NEW.status = 'RUNNING') OR (OLD.status = 'QUEUED' AND NEW.status = 'STOPPED') OR (OLD.status = 'RUNNING' AND NEW.status = 'COMPLETE') OR (OLD.status = 'RUNNING' AND NEW.status = 'ERROR') OR (OLD.status = 'RUNNING' AND NEW.status = 'STOPPED')) BEGIN SELECT RAISE(ABORT, 'no such transition of a job'); END;
CREATE TRIGGER job_final_stays_final BEFORE UPDATE OF number, id, workspace_id, pipeline_id, type, status, attempt, retry_of, created, start_time, end_time, exit_code, signal, reason, wait_status, errno, cpu_us, max_rss, spool_offset, next_sequence, dropped, token, cookie ON job WHEN OLD.status IN ('COMPLETE', 'ERROR', 'STOPPED') AND (OLD.number IS NOT NEW.number OR OLD.id IS NOT NEW.id OR OLD.workspace_id IS NOT NEW.workspace_id OR OLD.pipeline_id IS NOT NEW.pipeline_id OR OLD.type IS NOT NEW.type OR OLD.status IS NOT NEW.status OR OLD.attempt IS NOT NEW.attempt OR OLD.retry_of IS NOT NEW.retry_of OR OLD.created IS NOT NEW.created OR OLD.start_time IS NOT NEW.start_time OR OLD.end_time IS NOT NEW.end_time OR OLD.exit_code IS NOT NEW.exit_code OR OLD.signal IS NOT NEW.signal OR OLD.reason IS NOT NEW.reason OR OLD.wait_status IS NOT NEW.wait_status OR OLD.errno IS NOT NEW.errno OR OLD.cpu_us IS NOT NEW.cpu_us OR OLD.max_rss IS NOT NEW.max_rss OR OLD.spool_offset IS NOT NEW.spool_offset OR OLD.next_sequence IS NOT NEW.next_sequence OR OLD.dropped IS NOT NEW.dropped OR OLD.token IS NOT NEW.token OR OLD.cookie IS NOT NEW.cookie) BEGIN SELECT RAISE(ABORT, 'a final job does not change'); END;
CREATE TRIGGER job_is_not_replaced BEFORE INSERT ON job WHEN EXISTS (SELECT 1 FROM job WHERE number = NEW.number OR id = NEW.id OR (pipeline_id = NEW.pipeline_id AND status IN ('QUEUED', 'RUNNING'))) BEGIN SELECT RAISE(ABORT, 'a job is not replaced by another'); END;
CREATE TRIGGER job_keeps_its_id BEFORE UPDATE ON job WHEN OLD.number IS NOT NEW.number OR OLD.id IS NOT NEW.id OR OLD.pipeline_id IS NOT NEW.pipeline_id BEGIN SELECT RAISE(ABORT, 'a job keeps its number, its id and its pipeline'); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('job',4);
INSERT INTO "sqlite_sequence" VALUES('transition',9);
COMMIT;
PRAGMA application_id = 1246708291;
PRAGMA user_version = 4;
