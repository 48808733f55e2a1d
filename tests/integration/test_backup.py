"""Backups: complete copies of a file in use, which can be restored."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from contextlib import closing

import pytest

from jobcore import ArgumentError, JobManager, Reason, Status, StoreError
from jobcore.storage.database import Database
from tests.integration.verbs_harness import in_a_pipe
from tests.processes import PATIENCE
from tests.programs import EXIT_3, SLEEPS
from tests.tasks import end


def test_backup_has_everything_and_is_restored_by_moving_two_names(tmp_path):
    """Made while a job runs; that job is lost where it is restored, the queued ones run."""
    database, copy = str(tmp_path / "jobs.db"), str(tmp_path / "copy.db")
    with JobManager(database, slots=1) as jobs:
        ended = jobs.wait(jobs.submit(EXIT_3).id)
        jobs.create_pipeline("p", ["true"])
        running = jobs.submit(SLEEPS)
        assert next(jobs.follow(running.id)).text == "ready"
        queued = jobs.submit(["echo", "later"])
        found = jobs.backup(copy)
        jobs.stop_job(running.id)
        jobs.wait(queued.id)

    assert (found.path, found.size, found.pipelines) == (copy, os.path.getsize(copy), 1)
    assert found.jobs == {**dict.fromkeys(Status, 0), "ERROR": 1, "RUNNING": 1, "QUEUED": 1}
    (tmp_path / "restored").mkdir(mode=0o700)
    for name in ("copy.db", "copy.db.jobs"):
        os.rename(tmp_path / name, tmp_path / "restored" / name)
    with JobManager(tmp_path / "restored" / "copy.db", slots=1) as jobs:
        jobs.drain(PATIENCE)
        assert jobs.get_job(ended.id) == ended
        assert jobs.get_job(running.id).reason is Reason.LOST
        assert [line.raw for line in jobs.logs(queued.id)] == [b"later\n"]
        assert [one for one in jobs.check() if one.verdict == "wrong"] == []


def test_backup_has_what_the_log_has_and_lacks_what_was_deleted(jobs, tmp_path):
    """It is complete without the write-ahead log, and compact."""
    made = [jobs.create_job("TASK") for _ in range(50)]
    for one in made:
        jobs.start_job(one.id)
        jobs.append_log(one.id, os.urandom(25_000).hex())
        jobs.finish_job(one.id)
    jobs.prune(0)
    jobs.create_job("TASK")
    found = jobs.backup(tmp_path / "copy.db")

    assert jobs.statistics().free_size > 1e6
    assert found.size < 1e6
    assert found.jobs[Status.QUEUED] == 1
    with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
        assert connection.execute("SELECT count(*) FROM job").fetchone() == (1,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_backup_is_for_this_user_alone(jobs, tmp_path):
    """It has the same secrets as the original, whatever the umask is."""
    mask = os.umask(0)
    try:
        jobs.backup(tmp_path / "copy.db")
    finally:
        os.umask(mask)

    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in (
        "copy.db", "copy.db.jobs", "copy.db.jobs/store",
    )]  # fmt: skip
    assert modes == [0o600, 0o700, 0o600]


def test_backup_replaces_a_file_only_on_request(jobs, database, tmp_path):
    """Never the database itself, by no name."""
    copy = tmp_path / "copy.db"
    jobs.backup(copy)
    before = copy.read_bytes()
    jobs.create_job("TASK")
    with pytest.raises(ArgumentError, match=r"copy\.db exists: name another file"):
        jobs.backup(copy)
    assert copy.read_bytes() == before
    assert jobs.backup(copy, replace=True).jobs[Status.QUEUED] == 1

    (tmp_path / "link.db").symlink_to(database)
    sides = [f"{database}{end}" for end in ("-wal", "-shm", "-journal")]
    for itself in (database, tmp_path / "link.db", *sides):
        with pytest.raises(ArgumentError, match="is the database itself"):
            jobs.backup(itself, replace=True)
    (tmp_path / "other.db-wal").touch()
    with pytest.raises(ArgumentError, match=r"other\.db-wal exists"):
        jobs.backup(tmp_path / "other.db")
    assert jobs.count_jobs()[Status.QUEUED] == 1


def test_backup_that_fails_leaves_nothing(jobs, tmp_path, monkeypatch):
    """The earlier backup stays, and no half of a new one."""
    jobs.backup(tmp_path / "copy.db")
    before = sorted(os.listdir(tmp_path)), (tmp_path / "copy.db").read_bytes()

    def fail(_self, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise StoreError("the disk is gone")

    monkeypatch.setattr(Database, "copy_into", fail)
    with pytest.raises(StoreError, match="the disk is gone"):
        jobs.backup(tmp_path / "copy.db", replace=True)

    assert (sorted(os.listdir(tmp_path)), (tmp_path / "copy.db").read_bytes()) == before
    with pytest.raises(StoreError):
        jobs.backup(tmp_path / "missing" / "copy.db")


def test_others_write_during_a_backup(jobs, database, tmp_path, monkeypatch):
    """The copy takes no write lock."""
    seen = []
    copy_into = Database.copy_into

    def write_meanwhile(self, path):
        with closing(sqlite3.connect(database, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM job").fetchone()
            copy_into(self, path)
            with JobManager(database, slots=0) as other:
                seen.append(other.create_job("TASK").id)

    monkeypatch.setattr(Database, "copy_into", write_meanwhile)
    assert jobs.backup(tmp_path / "copy.db").jobs[Status.QUEUED] == 0
    assert jobs.get_job(seen[0]).status is Status.QUEUED


def test_backup_command_prints_the_content(jobs, database, tmp_path):
    """The command prints the content of the backup, as fields or as JSON."""
    end(jobs, jobs.create_job("TASK"))
    path = str(tmp_path / "copy.db")
    line, document, err = in_a_pipe(
        database, [["backup", path], ["backup", "--force", path, "--json"]]
    )

    assert line.split() == [path, str(os.path.getsize(path)), "0", "0", "0", "1", "0", "0"]
    assert json.loads(document)["jobs"]["COMPLETE"] == 1
    assert err == ""
