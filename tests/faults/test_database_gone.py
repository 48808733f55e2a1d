"""A database that is moved, removed or replaced under its users: all are told, jobs go on."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import threading
import time
from contextlib import closing

import pytest

from jobcore import DatabaseGone, JobManager, Status, StoreError, StoreMismatch
from tests.faults.hosts import host
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.jobfiles import cookie_of, sql
from tests.processes import PATIENCE, carrying, until
from tests.programs import PRINTS_UNTIL, SLEEPS

pytestmark = pytest.mark.usefixtures("warm_supervisors")

BUSY = 0.5  # seconds


def submit_printing(jobs, go):
    """Return a job that has printed some lines, and goes on until the file `go` is there."""
    job = jobs.submit([*PRINTS_UNTIL, go])
    until(lambda: jobs.get_job(job.id).line_count > 100, "some lines")
    return job


def take_away(database, how, other):
    """Have the database gone, as `how` says; return what puts it back as it was."""
    kept = f"{database}.kept"
    if how == "root moved":
        os.rename(f"{database}.jobs", kept)
        return lambda: os.rename(kept, f"{database}.jobs")
    os.link(database, kept)
    if how == "removed":
        os.unlink(database)
    elif how == "replaced":
        os.replace(other, database)  # in one step: at no moment is there no file
    return lambda: os.replace(kept, database)


class Load:
    """Threads that wait for jobs, follow them, and create more; each ends with its first error."""

    def __init__(self, jobs, job):
        self.came = {}
        work = {
            "wait": lambda: jobs.wait(job.id, 10 * PATIENCE),
            "follow": lambda: list(jobs.follow(job.id, timeout=10 * PATIENCE)),
            "events": lambda: list(jobs.events(follow=True, timeout=10 * PATIENCE)),
            "create": lambda: self._again(lambda: jobs.create_job("TASK")),
            "list": lambda: self._again(jobs.list_jobs),
        }
        self._threads = [
            threading.Thread(target=self._run, args=(name, one)) for name, one in work.items()
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _again(call):
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            call()
            time.sleep(0.005)  # many a second are load enough

    def _run(self, name, work):
        try:
            self.came[name] = work()
        except BaseException as error:  # noqa: BLE001 - it is looked at
            self.came[name] = error

    def end(self):
        """Let them end, and return what each came to."""
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads), self.came
        return {name: type(one) for name, one in self.came.items()}


def spool_of(database, job):
    """Return the bytes that a job has written by now, wherever its directory is."""
    for root in (f"{database}.jobs", f"{database}.kept"):
        folder = f"{root}/{job.id.hex}"
        if os.path.isdir(folder):
            names = [name for name in os.listdir(folder) if name.startswith("spool.")]
            return sum(os.path.getsize(f"{folder}/{name}") for name in names)
    return 0


def types_in(database):
    """Return the types of all jobs in a file that nobody has open, whatever is beside it."""
    uri = f"file:{database}?immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        return [kind for (kind,) in connection.execute("SELECT type FROM job")]


@pytest.mark.parametrize("how", ["removed", "replaced"])
@in_rounds(smoke=1, full=20)
def test_user_of_a_missing_file_gets_an_error_and_jobs_go_on(tmp_path, rounds, how):
    """Without its file every call raises DatabaseGone; with the file back, the jobs are settled."""
    for chance in rounds:
        folder = tmp_path / str(rounds.number)
        folder.mkdir()
        other = str(folder / "other.db")
        with JobManager(other, slots=0) as strangers:
            strangers.create_job("STRANGE")
        lose_and_find_again(str(folder / "jobs.db"), other, str(folder / "go"), how, chance)


def lose_and_find_again(database, other, go, how, chance):
    """Run three jobs, have the database gone in the middle, put it back, and see what came."""
    with JobManager(database, slots=3, busy_timeout=BUSY) as jobs:
        running = [submit_printing(jobs, go) for _ in range(3)]
        load = Load(jobs, running[0])
        time.sleep(chance.uniform(0, 0.1))  # the instant, not a wait
        put_back = take_away(database, how, other)
        ends = load.end()
        for call in (
            lambda: jobs.submit(["true"]),
            lambda: jobs.get_job(running[0].id),
            jobs.list_jobs,
            lambda: jobs.stop_job(running[0].id),
            lambda: jobs.wait(running[0].id),
            lambda: jobs.follow(running[0].id),
            jobs.drain,
            jobs.recover,
            lambda: jobs.delete_job(running[0].id),
        ):
            begun = time.monotonic()
            with pytest.raises(DatabaseGone):
                call()
            assert time.monotonic() - begun < PATIENCE
        for job in running:
            size = spool_of(database, job)
            until(lambda job=job, size=size: spool_of(database, job) > size + 1000, "more output")
        seen = types_in(database) if how == "replaced" else os.path.exists(database)
        open(go, "x").close()
        put_back()
        # Nobody asks: the manager sees by itself that it can go on.
        until(
            lambda: (
                sql(database, "SELECT 1 FROM job WHERE type = 'COMMAND' AND status <> 'ERROR'")
                == []
            ),
            "the end of all jobs",
        )
        logs = [[line.text for line in jobs.logs(job.id)] for job in running]
        codes = [jobs.get_job(job.id).exit_code for job in running]
        check(jobs)

    assert ends == dict.fromkeys(("wait", "follow", "events", "create", "list"), DatabaseGone)
    assert seen == (["STRANGE"] if how == "replaced" else False)
    assert codes == [5, 5, 5]
    for log in logs:
        assert log == [*(f"line {n}" for n in range(len(log) - 1)), "last"]
    assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"


def test_directories_that_are_moved_are_missed_and_used_again(tmp_path):
    """Without them nobody stops, starts or judges a job; put back, all of it is done."""
    database, go = str(tmp_path / "jobs.db"), str(tmp_path / "go")
    with JobManager(database, slots=2, busy_timeout=BUSY) as jobs:
        job = submit_printing(jobs, go)
        put_back = take_away(database, "root moved", None)
        queued = jobs.submit(["true"])
        with pytest.raises(DatabaseGone):
            jobs.recover()
        with pytest.raises(StoreMismatch, match="1 jobs are RUNNING"):
            JobManager(database, slots=2)
        assert not os.path.exists(f"{database}.jobs")  # nor has that one made any
        before = spool_of(database, job)
        until(lambda: spool_of(database, job) > before + 1000, "more output")
        seen = [one.status for one in jobs.list_jobs()]
        put_back()
        ended = jobs.wait(queued.id, PATIENCE)
        open(go, "x").close()
        settled = jobs.wait(job.id, PATIENCE)
        log = [line.text for line in jobs.logs(job.id)]

    assert seen == [Status.QUEUED, Status.RUNNING]
    assert ended.status is Status.COMPLETE
    assert settled.exit_code == 5
    assert log == [*(f"line {n}" for n in range(len(log) - 1)), "last"]


def test_recreated_root_does_not_make_running_jobs_look_dead(tmp_path):
    """A manager that finds a root without a job's directory does not settle the job."""
    database, go = str(tmp_path / "jobs.db"), str(tmp_path / "go")
    with JobManager(database, slots=1, busy_timeout=BUSY) as jobs:
        job = submit_printing(jobs, go)
        put_back = take_away(database, "root moved", None)
        os.mkdir(f"{database}.jobs", 0o700)
        shutil.copy(f"{database}.kept/store", f"{database}.jobs/store")
        for call in (jobs.recover, lambda: jobs.stop_job(job.id)):
            with pytest.raises(DatabaseGone):
                call()
        assert jobs.get_job(job.id).status is Status.RUNNING
        shutil.rmtree(f"{database}.jobs")
        put_back()

        assert jobs.wait(job.id, PATIENCE).status is Status.STOPPED


def remove(path):
    """Remove a directory in which others make and remove files meanwhile."""
    while os.path.exists(path):
        shutil.rmtree(path, ignore_errors=True)


def test_directories_that_are_removed_take_no_command_along(tmp_path):
    """The command goes on to its end. Waiting ends with a remedy, which makes the file usable."""
    database, go, done = (str(tmp_path / name) for name in ("jobs.db", "go", "done"))
    with JobManager(database, slots=1, busy_timeout=BUSY) as jobs:
        job = jobs.submit(["sh", "-c", f"{shlex.join([*PRINTS_UNTIL, go])}; touch {done}"])
        until(lambda: jobs.get_job(job.id).line_count > 100, "some lines")
        cookie = cookie_of(database, job.id)
        remove(f"{database}.jobs")
        for call in (
            lambda: jobs.wait(job.id),
            lambda: list(jobs.follow(job.id)),
            lambda: jobs.stop_job(job.id),
        ):
            with pytest.raises(DatabaseGone, match=r"jobs\.db\.jobs .* doctor --repair"):
                call()
        stored = jobs.list_jobs()[0].status
    with pytest.raises(StoreMismatch, match=r"1 jobs are RUNNING.* doctor --repair"):
        JobManager(database, slots=1)
    with JobManager(database, slots=0) as jobs:
        seen = jobs.get_job(job.id), [one.id for one in jobs.list_copied_jobs()]
        (settled,) = jobs.repair()
        alive = carrying(cookie)
        last = list(jobs.logs(job.id))[-1].text
    with JobManager(database, slots=1) as jobs:
        code = jobs.wait(jobs.submit(["true"]).id, PATIENCE).exit_code
    open(go, "x").close()
    until(lambda: not carrying(cookie), "the end of the command")

    assert stored is Status.RUNNING
    assert (seen[0].status, seen[1]) == (Status.RUNNING, [job.id])
    assert (settled.id, settled.status, settled.reason) == (job.id, Status.STOPPED, "lost")
    assert alive
    assert all(str(pid) in last for pid in alive), last
    assert code == 0
    assert os.path.exists(done)


def test_a_manager_repairs_its_own_directories(database):
    """One that was open when they were removed goes on with new ones."""
    with JobManager(database, slots=1, busy_timeout=BUSY) as jobs:
        jobs.wait(jobs.submit(["true"]).id, PATIENCE)
        remove(f"{database}.jobs")
        repaired = jobs.repair()
        ended = jobs.wait(jobs.submit(["true"]).id, PATIENCE)

    assert repaired == []
    assert ended.status is Status.COMPLETE


def serve_new(say, database, go):
    """Make a database where another was, write to it before and after the old one's end."""
    with JobManager(database, slots=0) as jobs:
        jobs.submit_many([["true"]] * 5)
        say("made")
        until(lambda: os.path.exists(go), "the old one's end")
        jobs.submit_many([["true"]] * 5)
        say(str(len(jobs.list_jobs())))


def test_closing_a_manager_of_a_moved_file_keeps_the_new_log(tmp_path):
    """A manager whose file was moved away closes without taking the log of the new one's along."""
    database, closed = str(tmp_path / "jobs.db"), str(tmp_path / "closed")
    jobs = JobManager(database, slots=1, busy_timeout=BUSY)
    jobs.wait(jobs.submit(["true"]).id, PATIENCE)
    (tmp_path / "old").mkdir()
    for end in ("", "-wal", "-shm", ".jobs"):
        os.rename(database + end, tmp_path / "old" / f"jobs.db{end}")
    with host(serve_new, database, closed) as new:
        assert new.hear() == "made"
        with pytest.raises(StoreError):
            jobs.submit(["true"])
        jobs.close()
        open(closed, "x").close()
        assert new.hear() == "10"
        assert new.end() == 0
    with JobManager(database, slots=0) as jobs:
        count = len(jobs.list_jobs())
    with JobManager(tmp_path / "old" / "jobs.db", slots=0) as jobs:
        old = jobs.list_jobs()

    assert count == 10
    assert [job.status for job in old] == [Status.COMPLETE]


def test_a_manager_of_a_removed_file_can_be_closed(tmp_path):
    """With `on_exit="stop"`, too: it waits for nothing that cannot come, and makes no file."""
    database = str(tmp_path / "jobs.db")
    with JobManager(database, slots=1, busy_timeout=BUSY, on_exit="stop") as jobs:
        job = jobs.submit(SLEEPS, timeout=2)
        assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        cookie = cookie_of(database, job.id)
        os.unlink(database)
    until(lambda: not carrying(cookie), "the time-out, for which no database is needed")

    assert not os.path.exists(database)


@pytest.mark.parametrize("slots", [0, 1])
def test_waiting_for_a_queued_job_ends_where_the_directories_are_gone(database, slots):
    """No manager can start it, so nothing would come."""
    with JobManager(database, slots=slots, executors={}, busy_timeout=BUSY) as jobs:
        job = jobs.submit(["true"])
        remove(f"{database}.jobs")
        with pytest.raises(DatabaseGone, match="doctor --repair"):
            jobs.wait(job.id, PATIENCE)
        assert jobs.get_job(job.id).status is Status.QUEUED
