"""The doctor: each thing that can be wrong with a database is found, and nothing is changed."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from jobcore import Finding, JobManager, StoreMismatch
from jobcore.operations import doctor
from jobcore.storage import filesystem
from jobcore.testing.parts import parts
from tests.jobfiles import sql
from tests.processes import in_child
from tests.transactions import transaction

#: Every check, in order. Each has a test below that makes it find something.
CHECKS = [
    "SQLite", "system", "file", "file system", "modes", "other users", "write-ahead log", "schema",
    "definitions", "integrity", "rows", "counts", "dependencies", "store", "directories",
    "running jobs", "owned jobs", "left processes", "deletions", "chains", "schedules",
    "limits",
]  # fmt: skip


def examine(database):
    """Return what was found but is not ok, by check; the SQLite of this machine is its own."""
    found = doctor.examine(database)
    return {one.check: one for one in found if one.verdict != "ok" and one.check != "SQLite"}


def snapshot(folder):
    """Return all that is in a folder, with what a change would touch."""
    return {
        path: (facts.st_mode, facts.st_size, facts.st_mtime_ns, facts.st_ino)
        for place, _, names in os.walk(folder)
        for path in (place, *(os.path.join(place, name) for name in names))
        for facts in [os.lstat(path)]
    }


@pytest.fixture
def closed(database, clock):
    """Return the path of a database with one job that nobody has open."""
    with JobManager(database, slots=0, clock=clock) as jobs:
        jobs.create_job("TASK")
    return database


def test_a_healthy_database_has_nothing_but_ok(closed):
    """Every check is made and told, whether the file is open or not."""
    assert [one.check for one in doctor.examine(closed)] == CHECKS
    assert examine(closed) == {}

    with JobManager(closed, slots=0) as jobs:
        jobs.submit(["true"])

        assert [one.check for one in jobs.check()] == CHECKS
        assert examine(closed) == {}


def test_an_examination_changes_nothing(closed, tmp_path):
    """Not even the times of the files, nor a write-ahead log where there was none."""
    before = snapshot(tmp_path)
    doctor.examine(closed)

    assert snapshot(tmp_path) == before


def test_an_examination_of_an_open_database_changes_nothing(jobs, scripted, tmp_path):
    """It sees commits that are only in the write-ahead log, and leaves them there."""
    scripted().die()
    before = snapshot(tmp_path)
    version = parts(jobs).database.version()

    assert "running jobs" in {one.check for one in jobs.check() if one.verdict == "wrong"}
    # The index of the write-ahead log notes its readers; it is memory, not data.
    assert {**snapshot(tmp_path), f"{tmp_path}/jobs.db-shm": None} == {
        **before,
        f"{tmp_path}/jobs.db-shm": None,
    }
    assert parts(jobs).database.version() == version


@pytest.mark.parametrize(
    ("version", "bug"),
    [
        ((3, 6, 23), False), ((3, 7, 0), True), ((3, 40, 1), True), ((3, 44, 5), True),
        ((3, 44, 6), False), ((3, 44, 9), False), ((3, 45, 0), True), ((3, 50, 6), True),
        ((3, 50, 7), False), ((3, 51, 2), True), ((3, 51, 3), False), ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)  # fmt: skip
def test_the_versions_with_the_wal_reset_bug_are_known(version, bug, monkeypatch, closed):
    """They are noted, for it is good to know; jobcore checkpoints around the bug."""
    assert doctor.has_wal_reset_bug(version) is bug

    monkeypatch.setattr(doctor.sqlite3, "sqlite_version_info", version)
    said = doctor.examine(closed)[0]

    assert said.verdict == ("wrong" if version < (3, 37) else "note" if bug else "ok")


def test_no_file_is_wrong_and_the_end(database):
    """A missing file is the only finding, and the file is not created."""
    found = doctor.examine(database)

    assert [one.check for one in found] == CHECKS[:3]
    assert found[-1].verdict == "wrong"
    assert not os.path.exists(database)


def test_a_directory_and_a_second_name_are_wrong(closed, tmp_path):
    """A directory and a file with a hard link are not usable databases."""
    os.link(closed, tmp_path / "other")

    assert "has a second name (a hard link)" in examine(closed)["file"].detail
    assert "remove the other name" in examine(closed)["file"].detail
    assert examine(str(tmp_path))["file"].detail.endswith(
        "is not a file: name the file of a database"
    )


def test_a_file_system_of_several_machines_is_wrong(closed, monkeypatch):
    """NFS is named, as in the error of a manager."""
    monkeypatch.setattr(filesystem, "file_system_of", lambda *_: "nfs4")

    assert "nfs4" in examine(closed)["file system"].detail


@pytest.mark.parametrize("end", ["", ".jobs", ".jobs/store"])
def test_files_readable_by_others_are_wrong(closed, end):
    """A database, its directories and its files are for one user alone."""
    os.chmod(closed + end, os.stat(closed + end).st_mode | 0o040)

    assert examine(closed)["modes"] == Finding(
        check="modes", verdict="wrong", detail=f"others may read or enter {closed}{end}"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_files_of_another_user_are_wrong(closed):
    """Another user's root directory has two findings: its owner, and that it is unusable."""
    os.chown(closed + ".jobs", 12345, -1)
    found = examine(closed)

    assert found["modes"].detail == f"owned by another user: {closed}.jobs"
    assert "not a private directory" in found["store"].detail


def test_a_large_write_ahead_log_is_noted(closed, monkeypatch):
    """The finding says that checkpoints do not succeed."""
    monkeypatch.setattr(doctor, "LARGE_LOG", 1000)
    with JobManager(closed, slots=0) as jobs:
        jobs.create_job("TASK")
        found = examine(closed)["write-ahead log"]

    assert found.verdict == "note"


@pytest.mark.parametrize(
    ("statement", "verdict", "detail"),
    [
        ("PRAGMA user_version = 1", "note", "version 1: the next manager migrates"),
        ("PRAGMA user_version = 999", "wrong", "has schema version 999"),
        ("PRAGMA application_id = 1", "wrong", "another program's database"),
    ],
)
def test_other_schema_versions_are_reported(closed, statement, verdict, detail):
    """An older one is noted; a newer one and another program's file are wrong."""
    sql(closed, statement)
    found = examine(closed)["schema"]

    assert found.verdict == verdict
    assert detail in found.detail


def test_file_that_is_not_a_database_is_wrong(database):
    """An empty file and a text have different findings."""
    open(database, "wb").close()

    assert "empty" in examine(database)["schema"].detail

    with open(database, "w") as file:
        file.write("no database at all, but long enough for a header\n" * 20)

    assert "not a database" in examine(database)["schema"].detail


def test_a_damaged_page_is_found(closed):
    """Whatever page is overwritten, the examination ends with a finding, not a traceback."""
    size = os.path.getsize(closed)
    healthy = closed + ".healthy"
    shutil.copy(closed, healthy)
    silent = []
    for page in range(size // 4096):
        shutil.copy(healthy, closed)
        with open(closed, "r+b") as file:
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)
        if not examine(closed):
            silent.append(page)

    assert silent == []


def test_a_row_without_its_owner_is_found(closed):
    """The finding names the table with the reference that leads nowhere."""
    sql(closed, "DELETE FROM workspace")

    assert examine(closed)["integrity"].detail == "1 rows refer to a missing row, in job"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("DROP TRIGGER job_final_stays_final", "job_final_stays_final"),
        ("DROP INDEX one_active_job_per_pipeline", "one_active_job_per_pipeline"),
        ("ALTER TABLE pipeline RENAME COLUMN timeout TO time_out", "pipeline"),
    ],
)
def test_definitions_that_are_not_ours_are_found(database, change, named):
    """A finding names rules that another program removed from the file."""
    with JobManager(database, slots=0):
        before = {one.check: one for one in doctor.examine(database)}["definitions"]
    sql(database, change)
    after = {one.check: one for one in doctor.examine(database)}["definitions"]

    assert before.verdict == "ok"
    assert (after.verdict, after.detail) == ("wrong", f"not as jobcore made them: {named}")


@pytest.mark.parametrize("damage", ["reison IN (", "reason IN ('gone', "])
def test_foreign_constraint_is_found(database, damage):
    """`doctor` finds it, even one because of which SQLite refuses writers the file."""
    JobManager(database, slots=0).close()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        with connection:
            connection.execute(
                "UPDATE sqlite_master SET sql = replace(sql, 'CHECK (reason IN (', ?)",
                (f"CHECK ({damage}",),
            )
    found = {one.check: one for one in doctor.examine(database)}["definitions"]

    assert (found.verdict, found.detail) == ("wrong", "not as jobcore made them: job")


def test_invalid_stored_id_is_reported(scripted, database):
    """An invalid value does not end the examination."""
    scripted()
    sql(database, "DROP TRIGGER job_keeps_its_id")
    sql(database, "UPDATE job SET id = 'strange'")
    found = examine(database)

    assert found["running jobs"].verdict == "wrong"
    assert doctor.examine(database)[-1].check == CHECKS[-1]


def test_missing_or_foreign_root_is_reported(closed, tmp_path):
    """A missing root means a backup; another database's root is a mistake."""
    shutil.move(closed + ".jobs", tmp_path / "away")

    assert examine(closed).keys() == {"store"}
    assert examine(closed)["store"].verdict == "note"

    with JobManager(tmp_path / "other.db", slots=0):
        pass
    shutil.copytree(tmp_path / "other.db.jobs", closed + ".jobs")

    assert examine(closed)["store"].detail == f"{closed}.jobs belongs to another database"


def test_root_that_is_a_link_is_reported(closed, tmp_path):
    """It may lead anywhere; no manager follows it."""
    shutil.move(closed + ".jobs", tmp_path / "away")
    os.symlink(tmp_path / "away", closed + ".jobs")

    assert examine(closed)["store"].detail.startswith(f"{closed}.jobs is a link: move it away")


def _put(path, content):
    with open(path, "wb") as file:
        file.write(content)


@pytest.mark.parametrize(
    "make",
    [os.mkdir, os.mkfifo, lambda path: os.symlink("x", path), lambda path: _put(path, b"x"),
     lambda path: _put(path, b"")],
    ids=["directory", "FIFO", "link", "garbage", "empty"],
)  # fmt: skip
def test_invalid_store_id_is_reported_with_a_remedy(closed, tmp_path, make):
    """The text names the file. Its remedy makes the database usable again."""
    store = f"{closed}.jobs/store"
    os.unlink(store)
    make(store)
    with pytest.raises(StoreMismatch) as refused:
        JobManager(closed, slots=0)
    shutil.move(store, tmp_path / "away")
    with JobManager(closed, slots=0) as jobs:
        jobs.repair()

    assert str(refused.value) == (
        f"{store} contains no store id: restore it, or move it away and run "
        f"`jobcore --db {closed} doctor --repair`"
    )
    assert "store" not in examine(closed)


def test_directories_without_a_job_are_noted(jobs, database):
    """A queued job may have one; a final or unknown one has it only until the next sweep."""
    queued = jobs.create_job("TASK")
    os.mkdir(f"{database}.jobs/{queued.id.hex}", 0o700)

    assert examine(database) == {}

    jobs.cancel_job(queued.id)
    found = examine(database)["directories"]

    assert found.verdict == "note"
    assert queued.id.hex in found.detail


def test_a_running_job_is_judged_by_its_lock(scripted, database):
    """Held: all is well, or its end has not been settled. Free: its supervisor is dead."""
    one = scripted()
    one.write(b"line\n")

    assert examine(database) == {}

    one.exit()

    assert examine(database) == {}  # it still holds the lock: it is about to be settled

    one.die()

    assert "ended and not settled yet" in examine(database)["running jobs"].detail

    os.unlink(f"{one.path}/exit")

    assert "free lock" in examine(database)["running jobs"].detail
    assert str(one.id) in examine(database)["running jobs"].detail

    shutil.rmtree(one.path)

    assert "without a directory" in examine(database)["running jobs"].detail


def test_a_job_of_a_newer_protocol_is_left_to_it(scripted, database, monkeypatch):
    """Files that this version cannot read are not judged."""
    one = scripted()
    with monkeypatch.context() as newer:
        newer.setattr("jobcore.supervisor.job_directory.PROTOCOL_VERSION", 99)
        one.exit()
    one.die()

    assert examine(database) == {}


def test_a_job_that_ends_meanwhile_is_not_accused(jobs, scripted, database, monkeypatch):
    """A lock that became free because the job was settled is no finding."""
    one = scripted()
    one.exit()
    state_of = doctor.Examination.state_of

    def late(self, running):
        one.die()
        state = state_of(self, running)
        assert state
        jobs.get_job(one.id)
        return state

    monkeypatch.setattr(doctor.Examination, "state_of", late)

    assert examine(database) == {}


def test_a_begun_deletion_is_noted(jobs, database):
    """A manager with slots goes on with it."""
    job = jobs.create_job("TASK")
    with transaction(parts(jobs).database) as connection:
        connection.exec_driver_sql("UPDATE job SET deleted_at = 1 WHERE number = ?", (job.number,))

    assert examine(database)["deletions"].detail.startswith("1 unfinished")


def test_many_are_counted_and_few_named(closed):
    """A finding is a line, however many it is about."""
    for _ in range(5):
        os.mkdir(f"{closed}.jobs/{os.urandom(16).hex()}", 0o700)
    detail = examine(closed)["directories"].detail

    assert detail.endswith(" and 2 more")


def test_a_writer_that_comes_meanwhile_is_seen(closed, monkeypatch):
    """If a writer opens the file during the read, it is read again."""
    opened = []
    put = doctor.Examination.put

    def interrupted(self, mode, question):
        answer = put(self, mode, question)
        if "immutable" in mode and not opened:
            opened.append(JobManager(closed, slots=0))
            opened[0].create_job("TASK")
        return answer

    monkeypatch.setattr(doctor.Examination, "put", interrupted)
    examination = doctor.Examination(closed)
    ((count,),) = examination._ask(doctor._rows("SELECT count(*) FROM job"))

    with closing(opened[0]):
        assert count == 2


def test_schedule_of_an_unknown_time_zone_is_found(jobs, database):
    """A schedule that cannot be understood on this machine never runs, and is named."""
    jobs.create_pipeline("fine", ["true"], schedule="@daily", time_zone="Europe/Berlin")
    for name in ("a", "b"):
        jobs.create_pipeline(name, ["true"], schedule="@daily")
    sql(database, "UPDATE pipeline SET time_zone = 'Mars/Olympus' WHERE name IN ('a', 'b')")
    found = examine(database)["schedules"]

    assert found.verdict == "wrong"
    begins = "cannot run here: 'a', 'b': this system has no time zone 'Mars/Olympus'"
    assert found.detail.startswith(begins)


def start_task(database):
    with JobManager(database, slots=0) as jobs:
        return str(jobs.start_job(jobs.create_job("ELT").id).id)


def test_a_task_of_a_dead_process_is_noted(jobs, database):
    """The doctor names it and changes nothing; the next look ends it."""
    alive = jobs.start_job(jobs.create_job("ELT").id)
    assert "owned jobs" not in examine(database)
    dead = in_child(start_task, database)
    found = examine(database)["owned jobs"]

    assert (found.verdict, dead in found.detail, str(alive.id) in found.detail) == (
        "note", True, False
    )  # fmt: skip
    assert [str(job.id) for job in jobs.recover()] == [dead]
    assert "owned jobs" not in examine(database)
