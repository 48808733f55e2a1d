"""A file system that has become read-only: reading works, writing says so, and it passes."""

from __future__ import annotations

import os
import signal
from uuid import uuid4

import pytest

from jobcore import CommandExecutor, JobManager, ReadOnlyDatabase, Reason, Status
from tests.faults.hosts import host
from tests.jobfiles import sql
from tests.mounts import in_own_mounts, mount_tmpfs, remount
from tests.processes import PATIENCE, until
from tests.programs import python

pytestmark = pytest.mark.usefixtures("warm_supervisors")

BUSY = 0.5  # seconds
SIZE = 8 * 2**20  # bytes of the file systems here

PRINTS_1000 = python("""
import os, sys, time
print("begun", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
print("".join(f"line {n}\\n" for n in range(1000)), end="")
sys.exit(6)
""")


def leave(say, database, go):
    """Leave a task, a job that somebody else is to run, and one that runs; and be killed."""
    with JobManager(database, slots=1) as jobs:
        jobs.start_job(jobs.create_job("TASK").id, owner=None)
        jobs.submit(["touch", f"{database}.ran"], type="LATER")
        job = jobs.submit([*PRINTS_1000, go])
        assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "begun"
        say("running")
        signal.pause()


def _read_and_write(folder):
    """Be the host that comes when the disk is read-only, and stays until it is not."""
    mount_tmpfs(folder, SIZE)
    database = f"{folder}/jobs.db"
    go = f"{folder}/go"
    with host(leave, database, go) as killed:
        assert killed.hear() == "running"
    open(go, "x").close()
    (hexed,) = [name for name in os.listdir(f"{database}.jobs") if len(name) == 32]
    until(lambda: os.path.exists(f"{database}.jobs/{hexed}/exit"), "the command's end")
    stale = f"{database}.jobs/{uuid4().hex}"
    os.mkdir(stale, 0o700)
    # The supervisor closes its files behind that: until then nothing can be made read-only.
    until(lambda: _try_remount(folder), "a disk that nobody writes to")

    executors = {"COMMAND": CommandExecutor(), "LATER": CommandExecutor()}
    with JobManager(database, slots=2, executors=executors, busy_timeout=BUSY) as jobs:
        running, queued, task = jobs.list_jobs()
        seen = [str(jobs.get_job(job.id).status) for job in (running, queued, task)]
        read = (
            len(list(jobs.events())),
            len(list(jobs.logs(running.id))),
            len(jobs.history(task.id)),
        )
        for write in (
            lambda: jobs.submit(["true"]),
            lambda: jobs.create_job("TASK"),
            lambda: jobs.finish_job(task.id),
            lambda: jobs.append_log(task.id, "line"),
            lambda: jobs.stop_job(running.id),
            lambda: jobs.cancel_job(queued.id),
            lambda: jobs.delete_job(task.id),
            lambda: jobs.create_workspace("w"),
        ):
            with pytest.raises(ReadOnlyDatabase):
                write()
        jobs.recover()
        still = [str(job.status) for job in jobs.list_jobs()]
        ran = os.path.exists(f"{database}.ran")
        remount(folder, "rw")
        until(lambda: jobs.count_jobs()[Status.QUEUED] == 0, "the start of what is queued")
        ended = [jobs.wait(job.id, PATIENCE) for job in (running, queued)]
        jobs.finish_job(task.id)
        lines = [line.text for line in jobs.logs(running.id)]
        until(lambda: not os.path.exists(stale), "the removal of what nobody needs")
    assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"
    return seen, still, read, ran, ended, lines


def _try_remount(folder):
    os.sync()
    try:
        remount(folder, "ro")
    except Exception:  # noqa: BLE001 - busy still
        return False
    return True


def test_read_only_disk_is_readable_and_work_continues_later(tmp_path):
    """Reads tell what is stored, no write half happens, nothing is started; later all is done."""
    answer = in_own_mounts(_read_and_write, str(tmp_path))
    seen, still, (events, lines_before, entries), ran, (ended, later), lines = answer

    assert seen == still == ["RUNNING", "QUEUED", "RUNNING"]
    assert (events, entries, ran) == (5, 2, False)
    assert lines_before <= 1
    assert (ended.status, ended.exit_code, ended.reason) == (Status.ERROR, 6, Reason.EXITED)
    assert lines == ["begun", *(f"line {n}" for n in range(1000))]
    assert later.status is Status.COMPLETE


def _open_later(folder):
    mount_tmpfs(folder, SIZE)
    with JobManager(f"{folder}/jobs.db", slots=0) as jobs:
        jobs.create_job("TASK")
    remount(folder, "ro")
    with pytest.raises(ReadOnlyDatabase):
        JobManager(f"{folder}/jobs.db", slots=0)
    with pytest.raises(ReadOnlyDatabase):
        JobManager(f"{folder}/new.db", slots=0)
    names = sorted(os.listdir(folder))
    remount(folder, "rw")
    with JobManager(f"{folder}/jobs.db", slots=0) as jobs:
        return names, len(jobs.list_jobs())


def test_a_database_without_a_log_waits_for_a_disk_that_can_be_written(tmp_path):
    """If SQLite cannot make the files it needs, opening fails and leaves nothing."""
    assert in_own_mounts(_open_later, str(tmp_path)) == (["jobs.db", "jobs.db.jobs"], 1)
