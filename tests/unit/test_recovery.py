"""Recovery: what is said of a job whose supervisor is gone, out of whatever it left."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
from contextlib import closing

import pytest

from jobcore import DatabaseBusy, JobDeleted, JobManager, Status, StoreError
from jobcore.embedding import failpoints
from jobcore.engine import orphans, procfs, recovery
from jobcore.engine.importer import Importer
from jobcore.engine.recovery import SWEEPS_PER_LOOK
from jobcore.supervisor import job_directory, system_calls
from jobcore.testing.parts import parts
from tests.jobfiles import Scripted, log_of, sql, stored_run
from tests.processes import Child, at_once, in_child, until

OTHER_BOOT = "00000000-0000-0000-0000-000000000000"


def ending(job):
    """Return what is said of its end."""
    return str(job.status), job.exit_code, job.reason and str(job.reason)


# --- what the files say -------------------------------------------------------


def test_start_that_never_happened(jobs, scripted):
    """A directory without a run record and with a free lock: the job never started."""
    run = scripted(held=False)
    job = jobs.get_job(run.id)
    log = log_of(jobs, run.id)

    assert ending(job) == ("ERROR", None, "never_started")
    assert [(sequence, stream) for sequence, stream, _ in log] == [(0, "system")]
    assert b"never started" in log[0][2]
    assert run.gone()


def test_start_of_another_boot_may_have_happened(jobs, scripted):
    """A job claimed under another boot is lost: its run record may be gone."""
    run = scripted(held=False, boot_id=OTHER_BOOT)

    assert ending(jobs.get_job(run.id)) == ("ERROR", None, "lost")


def test_restored_directory_of_a_claim_may_have_run(jobs, scripted):
    """A copy of the files from before the start stands in their place: that proves nothing."""
    run = scripted(held=False)
    subprocess.run(["cp", "-a", run.path, f"{parts(jobs).database.path}.copy"], check=True)
    shutil.rmtree(run.path)
    os.rename(f"{parts(jobs).database.path}.copy", run.path)

    assert ending(jobs.get_job(run.id)) == ("ERROR", None, "lost")


def test_run_without_a_verdict_is_lost(jobs, scripted):
    """A run record, a free lock and no verdict: lost, with all the lines that were written."""
    run = scripted()
    run.started()
    run.write(b"last words\n")
    run.die()
    job = jobs.get_job(run.id)
    log = log_of(jobs, run.id)

    assert ending(job) == ("ERROR", None, "lost")
    assert log[:1] == run.lines_written
    assert (log[1][:2], b"lost" in log[1][2]) == ((1, "system"), True)
    assert len(log) == job.line_count == 2
    assert job.end_time >= job.start_time


def test_missing_directory_is_lost(jobs, scripted):
    """A job whose directory was removed ends as lost, and leaves no directory."""
    run = scripted(created=False)
    job = jobs.get_job(run.id)

    assert ending(job) == ("ERROR", None, "lost")
    assert job.line_count == 1
    assert run.gone()


@pytest.mark.parametrize(
    ("left", "expected"),
    [("run record", "lost"), ("no run record", "never_started"), ("nothing", "lost")],
)
def test_lost_job_with_a_stop_request_is_stopped(jobs, scripted, left, expected):
    """A lost job with a stop request ends STOPPED, without an exit code."""
    run = scripted()
    if left == "run record":
        run.started()
    jobs.stop_job(run.id)
    if left == "nothing":
        shutil.rmtree(run.path)
    run.die()

    assert ending(jobs.get_job(run.id)) == ("STOPPED", None, expected)


@pytest.mark.parametrize(
    "span", [job_directory.PREPARING, job_directory.RUNNING, job_directory.WHOLE]
)
def test_held_lock_is_life(jobs, scripted, span):
    """While anybody holds any byte of the lock nothing is judged, whatever else is missing."""
    run = scripted(held=False, boot_id=OTHER_BOOT)
    run.live(span)
    run.started()
    before = run.files()
    job = jobs.get_job(run.id)
    settled = jobs.recover()

    assert ending(job) == ("RUNNING", None, None)
    assert settled == []
    assert run.files() == before


def test_life_and_death_need_no_timer(jobs, scripted, clock):
    """A job is alive while the lock is held, however late it is, and dead when it is free."""
    run = scripted()
    run.started()
    clock.advance(10 * 365 * 86400)
    alive = jobs.get_job(run.id)
    run.die()

    assert alive.status is Status.RUNNING
    assert ending(jobs.get_job(run.id)) == ("ERROR", None, "lost")


def test_recovery_does_not_hide_that_it_could_not_write(jobs, scripted):
    """A job whose end is known is final when it returns; otherwise it raises."""
    run = scripted()
    run.started()
    run.die()
    with JobManager(parts(jobs).database.path, slots=0, busy_timeout=0.01) as hasty:
        with closing(sqlite3.connect(parts(jobs).database.path)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseBusy):
                hasty.recover()
        settled = hasty.recover()

    assert [job.id for job in settled] == [run.id]
    assert ending(jobs.get_job(run.id)) == ("ERROR", None, "lost")


def test_job_without_a_process_is_never_judged(jobs, clock):
    """A job that its host started itself stays RUNNING, whatever recovery does."""
    job = jobs.create_job("TASK")
    jobs.start_job(job.id)
    clock.advance(86400)

    assert jobs.recover() == []
    assert jobs.get_job(job.id).status is Status.RUNNING


def test_a_torn_run_record_is_a_start(jobs, scripted):
    """A torn run record still means that the command may have started."""
    run = scripted()
    with open(f"{run.path}/run", "wb"):
        pass
    run.die()

    assert ending(jobs.get_job(run.id)) == ("ERROR", None, "lost")


SPOOLS = ("none", "empty", "whole", "zero tail", "garbage tail", "torn tail")
EXITS = ("none", "empty", "torn", "zeroes", "full", "wrong token")
RUNS = ("none", "empty", "full")
LOCKS = ("there", "missing")


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("exit_file", EXITS)
def test_every_state_that_a_crash_leaves_resolves(jobs, scripted, exit_file, lock):
    """For each combination of files, the job gets a final status, and none is guessed."""
    for spool, run_file in itertools.product(SPOOLS, RUNS):
        run = scripted()
        lines = leave_spool(run, spool)
        leave_exit(run, exit_file)
        if run_file == "full":
            run.started()
        elif run_file == "empty":
            with open(f"{run.path}/run", "wb"):
                pass
        if lock == "missing":
            os.unlink(f"{run.path}/lock")
        run.die()
        job = jobs.get_job(run.id)
        log = log_of(jobs, run.id)
        if exit_file == "full":
            expected = ("COMPLETE", 0, "exited")
        else:
            never = run_file == "none" and lock == "there" and spool in ("none", "empty")
            expected = ("ERROR", None, "never_started" if never else "lost")

        state = (spool, exit_file, run_file, lock)
        assert (state, ending(job)) == (state, expected)
        assert log[: len(lines)] == lines
        assert [sequence for sequence, _, _ in log] == list(range(job.line_count))
        assert {stream for _, stream, _ in log[len(lines) :]} <= {"system"}
        assert run.gone()
    assert jobs.recover() == []


def leave_spool(run, spool):
    """Write a spool as a crash may leave it, and return the lines that are whole."""
    if spool == "empty":
        run.append(b"")
    elif spool != "none":
        run.write(b"a\n", b"b\n")
        run.write(b"c\n")
    whole = list(run.lines_written)
    if spool == "zero tail":
        run.append(bytes(5000))
    elif spool == "garbage tail":
        run.append(b"JF\x01garbage" * 400)
    elif spool == "torn tail":
        run.append(run.frame(b"torn\n")[:-2])
    return whole


def leave_exit(run, exit_file):
    """Write an exit record as a crash may leave it."""
    if exit_file == "none":
        return
    run.exit(0, token="f" * 32 if exit_file == "wrong token" else run.token)
    path = f"{run.path}/exit"
    size = os.path.getsize(path)
    if exit_file == "empty":
        os.truncate(path, 0)
    elif exit_file == "torn":
        os.truncate(path, size - 4)
    elif exit_file == "zeroes":
        with open(path, "wb") as file:
            file.write(bytes(size))


@pytest.mark.parametrize("asked", [True, False])
def test_unrenamed_exit_record_is_ignored(jobs, scripted, asked):
    """A temporary file that was never renamed is ignored."""
    run = scripted()
    run.started()
    run.exit(0)
    os.rename(f"{run.path}/exit", f"{run.path}/exit.12ab34cd")
    if asked:
        jobs.stop_job(run.id)
    run.die()

    assert ending(jobs.get_job(run.id)) == ("STOPPED" if asked else "ERROR", None, "lost")


# --- what it left behind ------------------------------------------------------


def test_orphans_are_killed_by_a_recovery(jobs, scripted):
    """A look leaves them alone; a recovery kills every one before the job is final."""
    run = scripted()
    run.started(pid_namespace=os.stat("/proc/self/ns/pid").st_ino)
    environment = {**os.environ, "JOBCORE_RUN": run.cookie}
    left = [subprocess.Popen(["sleep", "1000"], env=environment) for _ in range(3)]
    innocent = subprocess.Popen(
        ["sleep", "1000"], env={**os.environ, "JOBCORE_RUN": run.cookie + "x", "X": run.cookie}
    )
    try:
        for process in (*left, innocent):
            until(lambda p=process: b"sleep" in _command_line(p.pid), "the exec of sleep")
        run.die()
        seen = jobs.get_job(run.id)
        still = [process.poll() for process in left]
        jobs.recover()
        job = jobs.get_job(run.id)
        codes = [process.wait(30) for process in left]

        assert (seen.status, still) == (Status.RUNNING, [None] * 3)

        assert ending(job) == ("ERROR", None, "lost")
        assert codes == [-9] * 3
        assert innocent.poll() is None
        assert run.row()["unreaped"] is None
    finally:
        for process in (*left, innocent):
            process.kill()
            process.wait()


def _command_line(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def test_job_does_not_judge_itself(jobs, scripted, database):
    """A process inside the job reads it without settling it or killing anybody."""
    run = scripted()
    run.started()
    run.die()

    def inside(path, job_id, cookie):
        os.environ["JOBCORE_RUN"] = cookie
        with JobManager(path, slots=0) as mine:
            return str(mine.get_job(job_id).status)

    assert Child(inside, database, run.id, run.cookie).result() == "RUNNING"
    assert ending(jobs.get_job(run.id)) == ("ERROR", None, "lost")


def test_unexaminable_processes_are_named_in_the_log(jobs, scripted, monkeypatch):
    """One that is stuck in the kernel may be the job's: the log names it, and the job ends."""
    run = scripted()
    run.started()
    run.die()
    monkeypatch.setattr(procfs, "unanswered", lambda: [12, 34])
    jobs.recover()

    assert ending(jobs.get_job(run.id)) == ("ERROR", None, "lost")
    assert b"could not be examined: 12, 34" in log_of(jobs, run.id)[-1][-1]


def test_log_says_that_processes_are_in_another_namespace(jobs, scripted):
    """If the run's processes cannot be seen, the log says so, and the job is settled."""
    run = scripted()
    run.started(pid_namespace=1)
    run.die()
    jobs.recover()
    job = jobs.get_job(run.id)

    assert ending(job) == ("ERROR", None, "lost")
    assert b"cannot be seen from this pid namespace" in log_of(jobs, run.id)[-1][-1]


def test_looking_from_another_namespace_gives_no_verdict(jobs, scripted):
    """Its processes may still run there, and a manager there may end it first."""
    run = scripted()
    run.started(pid_namespace=1)
    run.die()

    assert ending(jobs.get_job(run.id)) == ("RUNNING", None, None)


def copy_lock(path):
    """Replace a lock file by a copy, as a tool that restores files does."""
    shutil.copy2(path, f"{path}.copy")
    os.rename(f"{path}.copy", path)


@pytest.mark.usefixtures("quick_failures")
@pytest.mark.parametrize("sweep", [os.unlink, copy_lock])
def test_job_is_not_settled_without_its_lock_file_where_no_lock_can_be_seen(
    jobs, scripted, monkeypatch, caplog, sweep
):
    """Its supervisor may be alive: the error names the remedy, and its lock file decides again."""
    monkeypatch.setattr(job_directory, "LOCKS", "/nowhere/locks")
    run = scripted()
    run.started(pid_namespace=1)
    monkeypatch.setattr(orphans, "_FIRST_NAMESPACE", 0)
    os.rename(f"{run.path}/lock", f"{run.path}/moved")
    shutil.copy2(f"{run.path}/moved", f"{run.path}/lock")
    sweep(f"{run.path}/lock")
    settled = jobs.recover()
    findings = [one.detail for one in jobs.check()]
    with pytest.raises(StoreError, match=r"cannot be seen from here.*doctor --repair"):
        jobs.wait(run.id, 30)
    os.rename(f"{run.path}/moved", f"{run.path}/lock")
    jobs.recover()
    seen = jobs.get_job(run.id)
    run.die()
    jobs.recover()

    assert settled == []
    assert "its supervisor cannot be seen from here" in str(findings)
    assert "cannot be seen from here" in caplog.text
    assert ending(seen) == ("RUNNING", None, None)
    assert ending(jobs.get_job(run.id)) == ("ERROR", None, "lost")


def test_repair_settles_a_job_whose_supervisor_cannot_be_seen(jobs, scripted, monkeypatch):
    """Nothing else could end it, if its supervisor is dead."""
    monkeypatch.setattr(job_directory, "LOCKS", "/nowhere/locks")
    monkeypatch.setattr(orphans, "_FIRST_NAMESPACE", 0)
    run = scripted()
    run.started(pid_namespace=1)
    os.unlink(f"{run.path}/lock")
    run.die()
    before = jobs.recover()
    parts(jobs).recovery.repair()

    assert before == []
    assert ending(jobs.get_job(run.id)) == ("ERROR", None, "lost")


@pytest.mark.parametrize("boot_id", [None, ""])
def test_job_of_an_unknown_boot_may_be_alive_without_its_lock_file(
    jobs, scripted, monkeypatch, boot_id
):
    """Where /proc does not show the boot, the job is not taken for one of an earlier boot."""
    run = scripted()
    run.started()
    if boot_id is None:
        run.update(boot_id=None)
    else:
        monkeypatch.setattr(parts(jobs).directories, "boot_id", None)
    os.unlink(f"{run.path}/lock")
    settled = jobs.recover()
    run.die()

    assert settled == []
    assert [job.id for job in jobs.recover()] == [run.id]


def test_leftovers_in_an_inner_namespace_are_killed(jobs, scripted):
    """Their processes can be seen from outside, and have the job's cookie."""
    run = scripted()
    run.started(pid_namespace=1)
    left = subprocess.Popen(["sleep", "1000"], env={**os.environ, orphans.COOKIE: run.cookie})
    try:
        until(lambda: left.pid in orphans.find(run.cookie), "the exec of sleep")
        run.die()
        jobs.recover()
        assert left.wait(30) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()
    assert ending(jobs.get_job(run.id)) == ("ERROR", None, "lost")
    assert b"cannot be seen" not in log_of(jobs, run.id)[-1][-1]


# --- all jobs -----------------------------------------------------------------


def test_recover_settles_what_has_ended(jobs, scripted):
    """One call imports every job, settles ended and dead ones, and returns these."""
    alive, ended, dead = scripted(), scripted(), scripted()
    for run in (alive, ended, dead):
        run.started()
        run.write(b"line\n")
    ended.exit(3 << 8)
    ended.die()
    dead.die()
    settled = {job.id: ending(job) for job in jobs.recover()}
    again = jobs.recover()
    listed = {job.id: (str(job.status), job.line_count) for job in jobs.list_jobs()}

    assert settled == {ended.id: ("ERROR", 3, "exited"), dead.id: ("ERROR", None, "lost")}
    assert again == []
    assert listed == {alive.id: ("RUNNING", 1), ended.id: ("ERROR", 1), dead.id: ("ERROR", 2)}


def test_job_settled_during_a_look_needs_no_search_of_processes(
    jobs, scripted, database, monkeypatch
):
    """If another manager settles a job and removes its directory, the look returns the row."""
    run = scripted()
    run.started()
    recovery = parts(jobs).recovery
    import_all = Importer.import_all

    def settle_behind(self, found, **options):
        seen = import_all(self, found, **options)
        monkeypatch.undo()
        run.exit(3 << 8)
        run.die()
        with JobManager(database, slots=0) as other:
            assert ending(other.get_job(run.id)) == ("ERROR", 3, "exited")
        monkeypatch.setattr(orphans, "is_supervised", pytest.fail)
        return seen

    monkeypatch.setattr(Importer, "import_all", settle_behind)
    fresh = recovery.reconcile(stored_run(jobs, run))

    assert fresh.final
    assert not recovery.is_dead(fresh)


def test_job_deleted_during_a_recovery_is_left_out(jobs, scripted, database, monkeypatch):
    """If another manager deletes a job right after its end, the caller gets the other jobs."""
    gone, marked, stays = scripted(), scripted(), scripted()
    for run in (gone, marked, stays):
        run.started()
        run.exit(3 << 8)
        run.die()
    sweep = parts(jobs).recovery.sweep

    def delete_behind(**options):
        settled = sweep(**options)
        with JobManager(database, slots=0) as other:
            other.delete_job(gone.id)
        sql(database, "UPDATE job SET deleted_at = created WHERE id = ?", marked.id.hex)
        assert len(settled) == 3
        return settled

    monkeypatch.setattr(parts(jobs).recovery, "sweep", delete_behind)

    assert [job.id for job in jobs.recover()] == [stays.id]


@pytest.mark.parametrize("verb", ["stop", "cancel", "wait"])
def test_job_deleted_during_a_call_is_named_by_its_id(jobs, scripted, database, monkeypatch, verb):
    """If another manager deletes it meanwhile, the error of stop, cancel or wait has its id."""
    run = scripted()
    run.started()
    run.exit(3 << 8)
    run.die()
    owner, name, call = {
        "stop": (parts(jobs).stopper, "stop", jobs.stop_job),
        "cancel": (parts(jobs).stopper, "cancel", jobs.cancel_job),
        "wait": (parts(jobs).waiter, "wait", jobs.wait),
    }[verb]

    def delete_behind(found, *_, **__):
        with JobManager(database, slots=0) as other:
            other.delete_job(run.id)
        return found

    monkeypatch.setattr(owner, name, delete_behind)

    with pytest.raises(JobDeleted, match=str(run.id)):
        call(run.id)


def test_deletion_finished_by_another_manager_succeeds(jobs, scripted, database, monkeypatch):
    """While a deletion waits for the job's end, another manager may remove the job."""
    run = scripted()
    run.started()
    wait = parts(jobs).waiter.wait

    def wait_behind(found, *rest):
        run.exit(9, "stopped")
        run.die()
        with JobManager(database, slots=0) as other:
            other.recover()  # settles it
            other.recover()  # removes it
            assert sql(database, "SELECT id FROM job") == []
        return wait(found, *rest)

    monkeypatch.setattr(parts(jobs).waiter, "wait", wait_behind)
    jobs.delete_job(run.id)

    assert run.gone()
    assert jobs.list_jobs() == []


def test_opening_is_not_judging(database, clock):
    """A list shows jobs as stored; reading one job settles it."""
    with JobManager(database, slots=0, clock=clock) as jobs:
        run = Scripted(jobs, database)
        run.started()
        run.die()
    with JobManager(database, slots=0, clock=clock) as jobs:
        listed = [job.status for job in jobs.list_jobs()]
        got = jobs.get_job(run.id).status

    assert (listed, got) == ([Status.RUNNING], Status.ERROR)


def test_stale_directories_go(jobs, scripted, database):
    """The sweep removes directories of final and unknown jobs, and no file of another program."""
    root = database + ".jobs"
    final = jobs.create_job("TASK")
    jobs.cancel_job(final.id)
    queued = jobs.create_job("TASK")
    running = scripted()
    own = jobs.create_job("TASK")
    jobs.start_job(own.id)
    names = {
        final.id.hex: False,
        "0" * 32: False,
        f".gone-{'1' * 32}-12ab34cd": False,
        queued.id.hex: True,
        own.id.hex: True,
        running.id.hex: True,
        "something else": True,
        "F" * 32: True,
        "0" * 31: True,
    }
    for name in names:
        path = os.path.join(root, name)
        os.makedirs(path, mode=0o700, exist_ok=True)
        with open(os.path.join(path, "spool.0"), "ab"):
            pass
    jobs.recover()

    assert {name: os.path.exists(os.path.join(root, name)) for name in names} == names


def test_store_id_that_was_never_used_goes(jobs, database):
    """The sweep removes the file of a store id that a killed host has left."""
    root = database + ".jobs"
    for name in ("store." + "0" * 32, "store.old"):
        with open(os.path.join(root, name), "xb"):
            pass
    jobs.recover()

    assert sorted(os.listdir(root)) == ["store", "store.old"]


def test_held_directory_of_a_final_job_stays(jobs, scripted):
    """A directory is not taken from under a supervisor that is still about to let go."""
    run = scripted()
    run.exit(0)
    first = ending(jobs.get_job(run.id))
    there = not run.gone()
    run.die()
    jobs.recover()

    assert first == ("COMPLETE", 0, "exited")
    assert there
    assert run.gone()


def test_begun_deletion_is_finished(jobs, scripted, database):
    """A deletion whose process died is finished by the next sweep, whatever it had reached."""
    final = jobs.create_job("TASK")
    jobs.cancel_job(final.id)
    dead = scripted()
    dead.started()
    sql(database, "UPDATE job SET deleted_at = 1")
    dead.die()
    jobs.recover()
    jobs.recover()

    assert sql(database, "SELECT id FROM job") == []
    assert sql(database, "SELECT id FROM transition") == []
    assert dead.gone()


def test_stop_request_without_a_file_is_delivered_again(jobs, scripted):
    """A stored stop is delivered if its sender died before it wrote the file."""
    run = scripted()
    run.started()
    jobs.stop_job(run.id, grace=2.5)
    with run.open() as directory:
        told = job_directory.read_record(directory, job_directory.STOP)
    os.unlink(f"{run.path}/stop")
    jobs.recover()
    with run.open() as directory:
        again = job_directory.read_record(directory, job_directory.STOP)

    assert told == again
    assert told["grace_ms"] == 2500
    assert jobs.get_job(run.id).status is Status.RUNNING


def test_grace_only_shrinks(jobs, scripted):
    """After several stop requests, the row and the file have the shortest grace."""
    run = scripted()
    run.started()
    seen = []
    for grace in (5, 8, 3, None, 0, 7):
        jobs.stop_job(run.id, grace=grace)
        with run.open() as directory:
            record = job_directory.read_record(directory, job_directory.STOP)
        seen.append((record["grace_ms"], run.row()["stop_grace_ms"]))

    assert seen == [(5000, 5000)] * 2 + [(3000, 3000)] * 2 + [(0, 0)] * 2


def test_a_shorter_grace_that_overtakes_stands_in_the_file(jobs, scripted, database):
    """A stop that is written later than a shorter one writes the shorter grace."""
    run = scripted()
    run.started()

    def stop_sooner():
        with JobManager(database, slots=0) as other:
            other.stop_job(run.id, grace=1)

    def overtake(point, _host):
        if point == failpoints.STOP_STORED:
            failpoints.disarm(overtake)
            in_child(stop_sooner)

    failpoints.arm(overtake)
    try:
        jobs.stop_job(run.id, grace=5)
    finally:
        failpoints.disarm(overtake)
    with run.open() as directory:
        record = job_directory.read_record(directory, job_directory.STOP)

    assert (record["grace_ms"], run.row()["stop_grace_ms"]) == (1000, 1000)


def test_first_stop_request_sets_actor_and_reason(jobs, scripted):
    """Later stop requests change neither the actor nor the reason."""
    run = scripted()
    run.started()
    asked = jobs.stop_job(run.id).stop_requested
    in_child(lambda: jobs.cancel_job(run.id))
    with run.open() as directory:
        record = job_directory.read_record(directory, job_directory.STOP)

    assert (record["who"], record["why"]) == (f"pid {os.getpid()}", "stop")
    assert (run.row()["stop_who"], run.row()["stop_why"]) == (record["who"], record["why"])
    assert jobs.get_job(run.id).stop_requested == asked


def test_stop_request_during_settling_counts(jobs, scripted, database):
    """A stop between the check of a lost job and its end makes it STOPPED."""
    run = scripted()
    run.started()
    run.exit(None, reason="lost")

    def ask(point, _host):
        if point == failpoints.IMPORT_READ:
            sql(database, "UPDATE job SET stop_requested = created WHERE stop_requested IS NULL")

    failpoints.arm(ask)
    try:
        job = jobs.get_job(run.id)
    finally:
        failpoints.disarm(ask)

    assert ending(job) == ("STOPPED", None, "lost")


# --- resolvers that race and die ----------------------------------------------


def test_eight_resolvers_give_one_verdict(jobs, scripted, database):
    """Eight processes settle a dead job at once: one result, and one line about it."""
    run = scripted()
    run.started()
    run.write(b"line\n")
    run.die()

    def look(path, job_id):
        with JobManager(path, slots=0) as mine:
            return ending(until(lambda: (j := mine.get_job(job_id)).status.final and j))

    answers = at_once(look, [(database, run.id)] * 8)
    log = log_of(jobs, run.id)

    assert answers == [("ERROR", None, "lost")] * 8
    assert log[:1] == run.lines_written
    assert [stream for _, stream, _ in log] == ["output", "system"]
    assert [entry.trigger for entry in jobs.history(run.id)] == ["create", "start", "finish"]
    assert run.gone()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "point", ["jobdir.write_exit", "jobdir.remove", "jobdir.empty", "jobdir.encode_record"]
)
def test_resolver_that_dies_is_followed_by_the_next(
    jobs, scripted, database, monkeypatch, point, when
):
    """Wherever a resolver dies, the next one ends with the same verdict, and every line once."""
    run = scripted()
    run.started()
    run.write(b"line\n")
    run.die()
    name = point.split(".")[1]
    real = getattr(job_directory, name)

    def die(*args, **options):
        if when == "after":
            real(*args, **options)
        os._exit(9)

    def resolve(path, job_id):
        monkeypatch.setattr(job_directory, name, die)
        with JobManager(path, slots=0) as mine:
            mine.get_job(job_id)

    with pytest.raises(AssertionError, match="without an answer"):
        Child(resolve, database, run.id).result()
    job = jobs.get_job(run.id)
    jobs.recover()
    log = log_of(jobs, run.id)

    assert ending(job) == ("ERROR", None, "lost")
    assert log[:1] == run.lines_written
    assert [stream for _, stream, _ in log[1:]] == ["system"]
    assert run.gone()
    assert [name for name in os.listdir(database + ".jobs") if name.startswith(".gone")] == []


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_settler_that_dies_leaves_it_to_the_next(jobs, scripted, database, monkeypatch, moment):
    """A process that dies around its commit loses no verdict and doubles no line."""
    run = scripted()
    run.started()
    run.write(b"line\n")
    run.exit(5 << 8)
    run.die()

    def die(*_):
        os._exit(9)

    def settle(path, job_id):
        if moment == "after the commit":
            monkeypatch.setattr(Importer, "clean_up", die)
        else:
            real = Importer.apply
            monkeypatch.setattr(
                Importer, "apply", lambda *args, **named: (real(*args, **named), die())
            )
        with JobManager(path, slots=0) as mine:
            mine.get_job(job_id)

    with pytest.raises(AssertionError, match="without an answer"):
        Child(settle, database, run.id).result()
    listed = jobs.list_jobs()[0]
    job = jobs.get_job(run.id)
    jobs.recover()

    assert str(listed.status) == ("ERROR" if moment == "after the commit" else "RUNNING")
    assert ending(job) == ("ERROR", 5, "exited")
    assert log_of(jobs, run.id) == run.lines_written
    assert run.gone()


def test_lock_taken_after_the_check_prevents_resolving(jobs, scripted, monkeypatch):
    """A job that seemed dead stays RUNNING if its lock is held when it is settled."""
    run = scripted()
    run.started()
    monkeypatch.setattr(parts(jobs).recovery, "_is_alive", lambda _: False)
    before = run.files()
    job = jobs.get_job(run.id)

    assert (job.status, job.reason) == (Status.RUNNING, None)
    assert run.files() == before


def test_a_supervisor_that_is_gone_is_not_pressed(jobs, scripted, monkeypatch, caplog):
    """If the directory goes before the signal, no process is signalled or logged."""
    run = scripted()
    run.started()
    jobs.stop_job(run.id, grace=0)
    overdue = parts(jobs).unresponsive._overdue
    judged = []

    def judge_late(*facts, answers):
        del answers
        judged.append(facts)
        shutil.rmtree(run.path)
        run.die()
        return signal.SIGCONT

    monkeypatch.setattr(overdue, "judge", judge_late)
    with caplog.at_level(logging.DEBUG, "jobcore"):
        jobs.recover()

    assert len(judged) == 1
    assert [one for one in caplog.records if "does not react" in one.getMessage()] == []
    assert ending(jobs.get_job(run.id)) == ("STOPPED", None, "lost")


def test_files_of_a_newer_jobcore_are_not_news(jobs, scripted, monkeypatch):
    """A follower of a job of a newer version waits without reading its files."""
    run = scripted()
    run.write(b"line\n")
    assert jobs.get_job(run.id).line_count == 1
    found = stored_run(jobs, run)
    monkeypatch.setattr(job_directory, "PROTOCOL_VERSION", job_directory.PROTOCOL_VERSION + 1)
    run.exit()
    monkeypatch.undo()

    assert not parts(jobs).recovery.has_news(found)


def test_final_job_is_not_reconciled(jobs, scripted, monkeypatch):
    """Its files are not read again."""
    run = scripted()
    run.exit(5 << 8)
    run.die()
    jobs.get_job(run.id)
    final = stored_run(jobs, run)
    monkeypatch.setattr(
        parts(jobs).importer, "import_all", lambda *_, **__: pytest.fail("looked at")
    )

    assert parts(jobs).recovery.reconcile(final) == final


def test_files_of_a_connected_job_are_examined_less_often(jobs, scripted, monkeypatch):
    """One sweep of five opens its directory; each does after a stop, and if all is asked for."""
    run = scripted()
    run.started()
    recovery, directories, examined = parts(jobs).recovery, parts(jobs).directories, []
    is_held = directories.is_held
    monkeypatch.setattr(
        directories, "is_held", lambda opened: examined.append(opened) or is_held(opened)
    )

    def sweeps(count, **how):
        del examined[:]
        for _ in range(count):
            recovery.sweep(**how)
        return len(examined)

    assert sweeps(10) == 10  # it reports to another process, if to any
    recovery.connected = lambda: {stored_run(jobs, run).number}
    assert sweeps(10) == 10 / SWEEPS_PER_LOOK == 2
    assert sweeps(10, everything=True) >= 10
    jobs.stop_job(run.id, grace=1000)
    assert sweeps(10) >= 10


def test_of_many_connected_jobs_a_sweep_examines_a_few(jobs, scripted, monkeypatch):
    """Each has its turn, and the sweep leaves it to the pool to wake their supervisors."""
    monkeypatch.setattr(recovery, "CONNECTED_PER_SWEEP", 1)
    runs = [scripted() for _ in range(8)]
    for run in runs:
        run.started(supervisor=4321)
    sweeper, directories, examined = parts(jobs).recovery, parts(jobs).directories, []
    numbers = {stored_run(jobs, run).number for run in runs}
    sweeper.connected = lambda: numbers
    is_held, asked = directories.is_held, []
    monkeypatch.setattr(
        directories, "is_held", lambda opened: examined.append(opened) or is_held(opened)
    )
    monkeypatch.setattr(procfs, "is_stopped", asked.append)
    counts = []
    for _ in range(8):
        sweeper.sweep()
        counts.append((len(examined), len(asked)))

    assert counts == [(count, 0) for count in range(1, 9)]


# --- a little at a time -------------------------------------------------------


def test_sweep_imports_a_large_spool_in_steps(jobs, scripted, monkeypatch):
    """A sweep leaves the rest of a large import to the next ones, so each job has its turn."""
    monkeypatch.setattr("jobcore.engine.importer.BATCH_BYTES", 400)
    monkeypatch.setattr("jobcore.tuning.SWEEP", -1.0)  # so that one transaction is all
    large, small = scripted(), scripted()
    for run in (large, small):
        run.started()
    for _ in range(20):
        large.write(b"x" * 90 + b"\n")
    small.write(b"short\n")
    counts = []
    for _ in range(60):
        parts(jobs).recovery.sweep()
        counts.append([run.row()["next_sequence"] for run in (large, small)])
    assert parts(jobs).recovery.is_unfinished()  # by this time limit, at every job
    monkeypatch.setattr("jobcore.tuning.SWEEP", 60.0)
    parts(jobs).recovery.sweep()
    assert not parts(jobs).recovery.is_unfinished()

    assert counts[-1] == [20, 1]
    assert [many for many, _ in counts if 0 < many < 20] != []


def test_sweep_does_not_wait_for_left_over_processes(jobs, scripted, monkeypatch):
    """The next sweep looks again for processes that were sent SIGKILL."""
    answers = [(4242,), (4242,), ()]
    asked = []

    def kill(_cookie, patience):
        asked.append(patience)
        return answers.pop(0)

    monkeypatch.setattr("jobcore.engine.orphans.kill", kill)
    run = scripted()
    run.started(pid_namespace=system_calls.pid_namespace())
    run.die()
    statuses = []
    for _ in range(5):
        parts(jobs).recovery.sweep()
        statuses.append(run.row()["status"])

    assert statuses == ["RUNNING", "RUNNING", "ERROR", "ERROR", "ERROR"]
    assert run.row()["unreaped"] is None
    assert all(patience <= 0.25 for patience in asked)
