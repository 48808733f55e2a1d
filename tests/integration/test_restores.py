"""Files that were put back: what is lost or mixed by it is refused, with what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from jobcore import JobManager, NotAJobcoreDatabase, StoreMismatch
from jobcore.operations import doctor
from tests.processes import run_python

LEAVES_A_LOG = """
import os, sys
from jobcore import JobManager
jobs = JobManager(sys.argv[1], slots=0)
for n in range(int(sys.argv[2])):
    jobs.create_job("TASK", name=f"later {n}")
os._exit(0)  # the log stays
"""


@pytest.fixture
def backup(database, tmp_path):
    """Return a backup by VACUUM INTO of a database with one job, which goes on afterwards."""
    with JobManager(database, slots=0) as jobs:
        jobs.create_job("TASK", name="kept")
    path = str(tmp_path / "backup.db")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM INTO ?", (path,))
    run_python(LEAVES_A_LOG, database, "30")
    assert os.path.getsize(f"{database}-wal") > 32
    return path


def names(path):
    with JobManager(path, slots=0) as jobs:
        return [job.name for job in jobs.list_jobs()]


@pytest.mark.parametrize("how", ["over it", "in its place"])
def test_backup_beside_a_stale_log_is_refused_and_kept(backup, database, how):
    """SQLite would mix the two; without the stale files it is the backup, whole."""
    if how == "in its place":
        os.unlink(database)
    shutil.copyfile(backup, database)
    os.chmod(database, 0o600)
    with open(database, "rb") as file:
        before = file.read()

    with pytest.raises(StoreMismatch, match=r"was restored, and .*-wal belongs to .*: remove "):
        JobManager(database, slots=0)
    findings = doctor.examine(database)
    assert any(one.verdict == "wrong" and "was restored" in one.detail for one in findings)
    with open(database, "rb") as file:
        assert file.read() == before

    os.unlink(f"{database}-wal")
    os.unlink(f"{database}-shm")
    assert names(database) == ["kept"]


def test_own_write_ahead_log_is_not_refused(backup, database):
    """A log that a killed process has left is read, and a log without a page is nothing."""
    assert len(names(database)) == 31

    with open(f"{backup}-wal", "wb") as log:
        log.write(b"\0" * 32)
    os.chmod(backup, 0o600)
    os.chmod(f"{backup}-wal", 0o600)
    assert names(backup) == ["kept"]


@pytest.mark.usefixtures("backup")
def test_file_beside_which_it_is_open_keeps_its_locks(database):
    """A look at a file that this process has open takes no lock away from it."""
    with JobManager(database, slots=0) as first, JobManager(database, slots=0) as second:
        first.create_job("TASK", name="one")
        second.create_job("TASK", name="two")
        assert len(first.list_jobs()) == 33


def dumped(database, path):
    with closing(sqlite3.connect(database)) as connection, closing(sqlite3.connect(path)) as copy:
        copy.executescript("\n".join(connection.iterdump()))
    os.chmod(path, 0o600)


@pytest.mark.usefixtures("backup")
def test_dump_that_was_read_back_is_refused_with_the_reason(database, tmp_path):
    """A dump does not say whose file it is; with both numbers set it is the database again."""
    path = str(tmp_path / "read back.db")
    dumped(database, path)

    with pytest.raises(NotAJobcoreDatabase, match="was read back from a dump") as caught:
        JobManager(path, slots=0)
    with closing(sqlite3.connect(path)) as connection:
        for pragma in ("application_id", "user_version"):
            value = str(caught.value).partition(f"PRAGMA {pragma} = ")[2].split()[0].rstrip(",")
            connection.execute(f"PRAGMA {pragma} = {int(value)}")
    assert names(path) == names(database)


def test_other_programs_files_stay_other_programs_files(tmp_path):
    """Tables of other names, or some of ours, are no dump of a database of jobcore's."""
    for number, tables in enumerate((["x"], ["job"], ["job", "store", "pipeline"])):
        path = str(tmp_path / f"{number}.db")
        with closing(sqlite3.connect(path)) as connection:
            for table in tables:
                connection.execute(f"CREATE TABLE {table} (x)")
        with pytest.raises(NotAJobcoreDatabase, match="another program's database"):
            JobManager(path, slots=0)
