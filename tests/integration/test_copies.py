"""Copies and backups of a database: its jobs are those of another directory, and are let alone."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
from contextlib import closing

import pytest

from jobcore import DatabaseGone, JobManager, JobNotFound, Reason, Status, StoreMismatch
from jobcore.engine import orphans
from jobcore.operations import doctor
from jobcore.storage import transitions
from jobcore.supervisor import job_directory
from jobcore.testing.parts import parts
from tests.integration.verbs_harness import in_a_pipe
from tests.jobfiles import cookie_of, damage, log_of, sql
from tests.mounts import in_own_mounts, mount_tmpfs
from tests.processes import carrying, open_gate, until


@pytest.fixture
def running(database, tmp_path):
    """Give a manager and a job that has said `begun`, and waits for `gate`."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(["sh", "-c", f"echo begun; read line < {gate}; exit 3"])
        assert next(jobs.follow(job.id)).text == "begun"
        cookie = cookie_of(database, job.id)
        yield jobs, job
        for pid in carrying(cookie):
            os.kill(pid, signal.SIGKILL)


def copy_all(database, tmp_path):
    """Copy database and directories, as `cp -a` does of a file that nobody writes; return it."""
    os.mkdir(tmp_path / "copy", 0o700)
    copy = str(tmp_path / "copy" / "jobs.db")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM INTO ?", (copy,))
    subprocess.run(["cp", "-a", f"{database}.jobs", f"{copy}.jobs"], check=True)
    return copy


def jobcore(database, *words):
    """Return what the command line prints, in stdout and stderr."""
    out, err = in_a_pipe(database, [words])
    return out, err


def test_looking_at_a_copy_changes_nothing(running, database, tmp_path):
    """`list`, `show`, `logs` and `history` show the stored row, and that it is a copy."""
    jobs, job = running
    copy = copy_all(database, tmp_path)
    files = sorted(os.listdir(f"{copy}.jobs/{job.id.hex}"))
    said = [jobcore(copy, "list"), jobcore(copy, "show", str(job.id))]
    shown = [jobcore(copy, "logs", str(job.id))[0], jobcore(copy, "history", str(job.id))[0]]
    with JobManager(copy, slots=0) as copied:
        (listed,) = copied.list_jobs()

    assert all(f"{job.id} is shown as stored" in err for _, err in said)
    assert all("RUNNING" in out for out, _ in said)
    assert shown[0] == "begun\n"
    assert "finish" not in shown[1]
    assert listed.status is Status.RUNNING
    assert sorted(os.listdir(f"{copy}.jobs/{job.id.hex}")) == files
    assert jobs.get_job(job.id).status is Status.RUNNING
    open_gate(str(tmp_path / "gate"))
    assert jobs.wait(job.id, 30).exit_code == 3


@pytest.mark.parametrize("lacks", ["the directory", "all directories"])
def test_stop_in_a_copy_does_not_reach_the_original(running, database, tmp_path, lacks):
    """Without a directory it would signal the lock's holder: the original's supervisor."""
    jobs, job = running
    copy = copy_all(database, tmp_path)
    with JobManager(copy, slots=0) as copied:
        with parts(copied).database.read() as connection:
            (run,) = transitions.supervised(connection)
        if lacks == "the directory":
            shutil.rmtree(f"{copy}.jobs/{job.id.hex}")
            parts(copied).stopper.deliver(run)
        else:
            shutil.rmtree(f"{copy}.jobs")
            with pytest.raises(DatabaseGone):
                parts(copied).stopper.deliver(run)
    open_gate(str(tmp_path / "gate"))

    assert jobs.wait(job.id, 30).exit_code == 3


def test_deleting_a_damaged_job_of_a_copy_lets_the_original_be(running, database, tmp_path):
    """Its processes carry the same cookie, and have no supervisor in the copy."""
    jobs, job = running
    copy = copy_all(database, tmp_path)
    damage(copy, "job", job.id, status="odd")
    with JobManager(copy, slots=0) as copied:
        copied.delete_job(job.id)
        with pytest.raises(JobNotFound):
            copied.get_job(job.id)
    open_gate(str(tmp_path / "gate"))

    assert jobs.wait(job.id, 30).exit_code == 3


def look_at_task_in_copy(path):
    """Copy to a file system on which the directory has the inode that it has on the first one."""
    for name in ("one", "other"):
        (path / name).mkdir()
        mount_tmpfs(path / name, 2**24)
    for number in range(50):
        (path / "one" / f"filler-{number}").mkdir()
    with JobManager(path / "one" / "jobs.db", slots=0) as jobs:
        job = jobs.start_job(jobs.create_job("ELT").id)
        with closing(sqlite3.connect(path / "one" / "jobs.db")) as connection:
            connection.execute("VACUUM INTO ?", (str(path / "other" / "jobs.db"),))
        wanted = (path / "one" / "jobs.db.jobs").stat().st_ino
        while True:  # tmpfs counts its inodes
            (path / "other" / "new").mkdir(0o700)
            found = (path / "other" / "new").stat().st_ino
            (path / "other" / "new").rename(path / "other" / f"{found}")
            if found >= wanted:
                break
        copy = path / "other" / "jobs.db"
        (path / "other" / f"{found}").rename(f"{copy}.jobs")
        subprocess.run(["cp", "-a", f"{path}/one/jobs.db.jobs/.", f"{copy}.jobs"], check=True)
        with JobManager(copy, slots=0) as copied:
            return found == wanted, str(copied.get_job(job.id).status)


def test_looking_at_a_copy_brings_nothing_in(jobs, scripted, database, tmp_path):
    """The job files of a copy are not imported for the original's jobs."""
    run = scripted()
    run.started()
    run.write(b"a line\n")
    copy = copy_all(database, tmp_path)
    with JobManager(copy, slots=0) as copied:
        seen = copied.get_job(run.id)

    assert (seen.status, seen.line_count) == (Status.RUNNING, 0)
    assert jobs.get_job(run.id).line_count == 1


def test_looking_ends_no_task_in_a_copy_with_the_same_inode(tmp_path):
    """Two new file systems give the same numbers; the task is that of the first one."""
    same, status = in_own_mounts(look_at_task_in_copy, tmp_path)
    if not same:
        pytest.skip("this kernel gives no inode twice")
    assert status == "RUNNING"


def test_waiting_for_a_job_of_another_directory_ends(running, database, tmp_path, monkeypatch):
    """It raises, because the copy never gets the end of such a job."""
    monkeypatch.setattr("jobcore.operations.waiting.COPIED_PATIENCE", 0.1)
    _, job = running
    with JobManager(copy_all(database, tmp_path), slots=0) as copied:
        with pytest.raises(StoreMismatch, match="of which this is a copy"):
            copied.wait(job.id)
        with pytest.raises(StoreMismatch, match="of which this is a copy"):
            list(copied.follow(job.id))


@pytest.mark.parametrize("how", ["recover", "work"])
def test_a_job_of_another_directory_ends_lost_in_the_copy_alone(running, database, tmp_path, how):
    """Its processes live on; its last line and the doctor name them, and a retry waits for them."""
    jobs, job = running
    copy = copy_all(database, tmp_path)
    alive = carrying(cookie_of(database, job.id))
    if how == "recover":
        with JobManager(copy, slots=0) as copied:
            (lost,) = copied.recover()
    with JobManager(copy, slots=1) as copied:
        lost = copied.wait(job.id, 30)
        last = list(copied.logs(job.id))[-1].text
        told = {one.check: one for one in doctor.examine(copy)}["left processes"]
        retry = copied.retry_job(job.id)
        sure = copied.submit(["true"])  # behind it in the queue
        copied.wait(sure.id, 30)
        waiting = copied.get_job(retry.id).status
        original = jobs.get_job(job.id).status
        copied.repair()
        until(lambda: copied.get_job(retry.id).status is Status.RUNNING, "the start of the retry")
        copied.stop_job(retry.id, grace=0)
        copied.wait(retry.id, 30)
    open_gate(str(tmp_path / "gate"))

    assert (lost.status, lost.reason) == (Status.ERROR, Reason.LOST)
    assert all(str(pid) in last and str(pid) in told.detail for pid in alive)
    assert told.verdict == "wrong"
    assert waiting is Status.QUEUED
    assert original is Status.RUNNING
    assert jobs.wait(job.id, 30).exit_code == 3


def test_a_retry_starts_when_what_was_left_is_gone(running, database, tmp_path):
    """It starts without a call when the leftover processes are gone."""
    jobs, job = running
    copy = copy_all(database, tmp_path)
    with JobManager(copy, slots=1) as copied:
        copied.wait(job.id, 30)
        retry = copied.retry_job(job.id)
        open_gate(str(tmp_path / "gate"))
        jobs.wait(job.id, 30)
        until(lambda: copied.get_job(retry.id).status is Status.RUNNING, "the start of the retry")
        copied.stop_job(retry.id, grace=0)
        copied.wait(retry.id, 30)


@pytest.mark.parametrize("with_directories", [True, False])
def test_the_last_line_after_a_restore_is_true_and_there_once(
    running, database, tmp_path, with_directories
):
    """Lines that are imported are not called lost, and the verdict is one line."""
    jobs, job = running
    copy = copy_all(database, tmp_path)
    if with_directories:
        shutil.rmtree(f"{copy}.jobs/{job.id.hex}")
        os.mkdir(f"{copy}.jobs/{job.id.hex}", 0o700)  # as a resolver that had no space left it
    else:
        shutil.rmtree(f"{copy}.jobs/{job.id.hex}")
    with JobManager(copy, slots=0) as copied:
        copied.recover()
        copied.recover()
        ended = copied.get_job(job.id)
        log = log_of(copied, job.id)
    assert (ended.status, ended.reason) == (Status.ERROR, Reason.LOST)
    assert [raw for _, _, raw in log[:-1]] == [b"begun\n"]
    assert log[-1][1] == "system"
    assert log[-1][2].startswith(b"lost: ")
    assert b"spool is damaged" not in log[-1][2]
    assert jobs.get_job(job.id).status is Status.RUNNING


def test_a_detached_job_is_settled_by_a_list(tmp_path):
    """`run --detach -- true; list` shows COMPLETE without any worker."""
    database = str(tmp_path / "jobs.db")
    job = jobcore(database, "run", "--detach", "--", "true")[0].strip()
    until(
        lambda: (
            not os.path.exists(f"{database}.jobs/{job.replace('-', '')}/lock")
            or "COMPLETE" in jobcore(database, "list")[0]
        ),
        "its end",
    )

    assert "COMPLETE" in jobcore(database, "list")[0]


def test_looking_kills_nothing_and_a_recovery_does(running, database):
    """Until the process of a dead supervisor is gone, the job is shown as RUNNING."""
    jobs, job = running
    directory = os.open(f"{database}.jobs/{job.id.hex}", os.O_RDONLY)
    supervisor = job_directory.read_record(directory, job_directory.RUN)["supervisor"]
    os.close(directory)
    jobs.close()
    cookie = cookie_of(database, job.id)
    left = subprocess.Popen(["sleep", "1000"], env={**os.environ, orphans.COOKIE: cookie})
    try:
        until(lambda: left.pid in orphans.find(cookie), "the exec of sleep")
        os.kill(supervisor, signal.SIGKILL)
        until(lambda: orphans.find(cookie) == [left.pid], "the end of the command")
        looks = ("list",), ("show", str(job.id)), ("logs", str(job.id)), ("history", str(job.id))
        shown = [jobcore(database, *words)[0] for words in looks]
        status = sql(database, "SELECT status FROM job")[0][0]
        alive = left.poll()
        with JobManager(database, slots=0) as again:
            (ended,) = again.recover()
        code = left.wait(30)
    finally:
        left.kill()
        left.wait()

    assert "RUNNING" in shown[0]
    assert (status, alive) == ("RUNNING", None)
    assert (ended.status, ended.reason, code) == (Status.ERROR, Reason.LOST, -signal.SIGKILL)


@pytest.mark.parametrize("waits", ["wait", "follow"])
def test_waiting_ends_what_no_manager_ends(running, database, monkeypatch, waits):
    """Without a worker nothing else would end the wait for a job whose supervisor is dead."""
    monkeypatch.setattr("jobcore.operations.waiting.LEFT_PATIENCE", 0.1)
    jobs, job = running
    directory = os.open(f"{database}.jobs/{job.id.hex}", os.O_RDONLY)
    supervisor = job_directory.read_record(directory, job_directory.RUN)["supervisor"]
    os.close(directory)
    jobs.close()
    cookie = cookie_of(database, job.id)
    left = subprocess.Popen(["sleep", "1000"], env={**os.environ, orphans.COOKIE: cookie})
    try:
        until(lambda: left.pid in orphans.find(cookie), "the exec of sleep")
        with JobManager(database, slots=0) as looker:
            waiting = looker.follow(job.id, timeout=60)
            assert next(waiting).text == "begun"
            os.kill(supervisor, signal.SIGKILL)
            if waits == "wait":
                looker.wait(job.id, timeout=60)
            assert [line.stream for line in waiting] == ["system"]
            assert looker.get_job(job.id).reason is Reason.LOST
        assert left.wait(30) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()
