"""A disk without space: callers are told, jobs are held or go on, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

import pytest

from jobcore import DatabaseFull, JobManager, Reason, Status, StoreError
from jobcore.testing.parts import parts
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.jobfiles import cookie_of, sql
from tests.mounts import in_own_mounts, mount_tmpfs, remount
from tests.processes import PATIENCE, carrying, until
from tests.programs import PRINTS_UNTIL
from tests.transactions import transaction

pytestmark = pytest.mark.usefixtures("warm_supervisors")

PAGE = 4096  # bytes: of memory, of a tmpfs and of a database
BUSY = 1.0  # seconds
LONG = 10 * PATIENCE  # seconds: for many rounds in one child
SIZE = 6 * 2**20  # bytes of the file systems here

#: Python 3.10 does not tell which I/O error it was that a connection found no shared memory.
TOLD = DatabaseFull if sys.version_info >= (3, 11) else (DatabaseFull, StoreError)


def fill(folder, pages):
    """Leave so many pages of space on the file system of `folder`, until `free`."""
    ballast = os.open(f"{folder}/ballast", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    try:
        while True:
            os.write(ballast, bytes(PAGE))
    except OSError:
        os.ftruncate(ballast, max(os.fstat(ballast).st_size - pages * PAGE, 0))
    finally:
        os.close(ballast)


def free(folder):
    """Have space again."""
    os.unlink(f"{folder}/ballast")


def chosen(rounds, most):
    """Return numbers of pages below `most`, as many as there are rounds: both ends, and some."""
    if rounds.total >= most:
        return list(range(most))
    return sorted({0, 1, most - 1, *rounds.chance().sample(range(2, most), rounds.total - 3)})


def _make_databases(folder, pages_left):
    mount_tmpfs(folder, SIZE)
    outcomes = []
    for pages in pages_left:
        database = f"{folder}/{pages}.db"
        fill(folder, pages)
        try:
            with JobManager(database, slots=0, busy_timeout=BUSY) as jobs:
                jobs.submit(["true"], name="first")
            outcomes.append("made")
        except TOLD:
            outcomes.append("full")
        free(folder)
        with JobManager(database, slots=0, busy_timeout=BUSY) as jobs:
            jobs.submit(["true"], name="second")
            names = [job.name for job in jobs.list_jobs()]
        assert names == ["second", "first"][: 1 + (outcomes[-1] == "made")]
        assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    return outcomes


@in_rounds(smoke=8, full=200)
def test_a_database_is_made_whole_or_later(tmp_path, rounds):
    """Wherever the space ends, a new database is there whole, or DatabaseFull and made later."""
    # 200 pages: a new database takes 46, its log a few more, and the schema grows.
    outcomes = in_own_mounts(_make_databases, str(tmp_path), chosen(rounds, 200), patience=LONG)
    rounds.did(len(outcomes))

    assert outcomes == sorted(outcomes)  # full, and from some size on made
    assert (outcomes[0], outcomes[-1]) == ("full", "made")


def _keep_books(folder, pages_left):
    mount_tmpfs(folder, SIZE)
    refused = []
    for pages in pages_left:
        database = f"{folder}/{pages}.db"
        with JobManager(database, slots=0, busy_timeout=BUSY) as jobs:
            task = jobs.start_job(jobs.create_job("TASK").id)
            queued = jobs.create_job("TASK")
            steps = {
                "append": lambda jobs=jobs, task=task: jobs.append_log(task.id, *_noise(300)),
                "many": lambda jobs=jobs: jobs.submit_many([["true", "x" * 500]] * 20),
                "cancel": lambda jobs=jobs, queued=queued: jobs.cancel_job(queued.id),
                "finish": lambda jobs=jobs, task=task: jobs.finish_job(task.id, 3),
            }
            fill(folder, pages)
            failed = []
            for name, step in steps.items():
                before = _state(jobs, task)
                try:
                    step()
                except DatabaseFull:
                    failed.append(name)
                    assert _state(jobs, task) == before
            free(folder)
            refused.append(len(failed))
            for name in failed:
                steps[name]()
            counts, count, events = _state(jobs, task)
            check(jobs)
        assert (counts[Status.QUEUED], counts[Status.STOPPED], counts[Status.ERROR]) == (20, 1, 1)
        assert (count, len(events)) == (300, 3 + 20 + 1 + 1)
        assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"
        for path in (database, database + ".jobs"):
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    return refused


def _noise(count):
    return [os.urandom(40).hex() for _ in range(count)]


def _state(jobs, task):
    return jobs.count_jobs(), jobs.get_job(task.id).line_count, list(jobs.events())


@in_rounds(smoke=6, full=60)
def test_every_change_is_whole_or_told(tmp_path, rounds):
    """Wherever the space ends, what raises DatabaseFull has changed nothing, and works later."""
    refused = in_own_mounts(_keep_books, str(tmp_path), chosen(rounds, 60), patience=LONG)
    rounds.did(len(refused))

    assert (refused[0], refused[-1]) == (4, 0)


def _run_on_a_full_disk(folder, how):
    mount_tmpfs(folder, SIZE)
    timeout = 2.0 if how == "time-out" else None
    with JobManager(f"{folder}/jobs.db", slots=2, busy_timeout=BUSY) as jobs:
        job = jobs.submit([*PRINTS_UNTIL, f"{folder}/go"], timeout=timeout)
        until(lambda: jobs.get_job(job.id).line_count > 100, "some lines")
        fill(folder, 0)
        with pytest.raises(DatabaseFull):
            jobs.submit(["true"])
        assert jobs.get_job(job.id).status is Status.RUNNING
        if how == "stop":
            with pytest.raises(DatabaseFull):
                jobs.stop_job(job.id)
        if how != "exit":
            cookie = cookie_of(f"{folder}/jobs.db", job.id)
            until(lambda: not carrying(cookie), "the end of the command")
        free(folder)
        if how == "exit":
            open(f"{folder}/go", "x").close()
        ended = jobs.wait(job.id, PATIENCE)
        lines = [line.text for line in jobs.logs(job.id)]
        jobs.wait(jobs.submit(["true"]).id, PATIENCE)
    return ended, lines


@pytest.mark.parametrize("how", ["exit", "stop", "time-out"])
def test_a_job_is_held_by_a_full_disk_and_loses_nothing(tmp_path, how):
    """Its command waits for space, a stop and a time-out still end it, and each line is there."""
    ended, lines = in_own_mounts(_run_on_a_full_disk, str(tmp_path), how)
    numbered = [line for line in lines if line.startswith("line ")]

    assert (ended.status, ended.reason) == {
        "exit": (Status.ERROR, Reason.EXITED),
        "stop": (Status.STOPPED, Reason.STOPPED),
        "time-out": (Status.STOPPED, Reason.TIMEOUT),
    }[how]
    assert numbered == [f"line {n}" for n in range(len(numbered))]
    assert len(numbered) > 100
    if how == "exit":
        assert ended.exit_code == 5
        assert lines[-1] == "last"


def _show_on_a_full_disk(path):
    mount_tmpfs(path, "1m")
    process = subprocess.Popen(
        [sys.executable, "-m", "jobcore", "--db", f"{path}/jobs.db", "run", "--", "seq", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    last: list[bytes] = []
    threading.Thread(target=lambda: last.append(process.stdout.read()[-7:]), daemon=True).start()
    said = process.stderr.readline().decode()
    remount(path, "size=100m")
    return process.wait(PATIENCE), said, until(lambda: last, "all output")


def test_run_prints_why_its_command_waits(tmp_path):
    """On a full disk `run` tells so on stderr, and goes on when there is space."""
    code, said, last = in_own_mounts(_show_on_a_full_disk, str(tmp_path), patience=LONG)

    assert said.startswith("jobcore: waiting: ")
    assert code == 0
    assert last == [b"100000\n"]


@in_rounds(smoke=4, full=40)
def test_a_database_that_may_not_grow_catches_up(database, rounds, caplog):
    """With space for the spool alone a job runs to its end; the database has it all later."""

    def limit(jobs, pages):
        with transaction(parts(jobs).database) as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    refusals = 0
    with JobManager(database, slots=1, busy_timeout=BUSY) as jobs:
        for pages in chosen(rounds, 40):
            with parts(jobs).database.read() as connection:
                used = connection.exec_driver_sql("PRAGMA page_count").scalar()
            caplog.clear()
            limit(jobs, used + pages)
            try:
                job = jobs.submit(["seq", "-f", "line %05g of some", "20000"])
            except DatabaseFull:
                limit(jobs, 2**30)
                job = jobs.submit(["seq", "-f", "line %05g of some", "20000"])
                refusals += 1
            until(
                lambda job=job: "DatabaseFull" in caplog.text or jobs.get_job(job.id).status.final,
                "a refusal, or none",
            )
            refusals += "DatabaseFull" in caplog.text
            limit(jobs, 2**30)
            ended = jobs.wait(job.id, PATIENCE)
            lines = [line.text for line in jobs.logs(job.id)]
            rounds.did(1)

            assert (ended.status, ended.exit_code) == (Status.COMPLETE, 0)
            assert lines == [f"line {n:05d} of some" for n in range(1, 20_001)]

        check(jobs)
    assert refusals > 1
    assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"
