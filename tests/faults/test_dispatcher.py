"""What goes wrong around the dispatcher: it goes on, and no job pays for another one's trouble."""

from __future__ import annotations

import fcntl
import math
import os
import signal
import sys
import threading

import pytest

from jobcore import Command, JobManager, Reason, SpawnError, Status, tuning
from jobcore.embedding import failpoints
from jobcore.engine import orphans
from jobcore.engine.executors import CommandExecutor
from jobcore.engine.recovery import Recovery
from jobcore.engine.scheduler import Scheduler
from jobcore.engine.supervisor_pool import Supervisor
from jobcore.engine.thread_loop import Loop
from jobcore.storage.statement import driver_of
from jobcore.supervisor import job_directory
from jobcore.testing.parts import parts
from tests.processes import PATIENCE, Child, carrying, state, until
from tests.programs import SLEEPS


class Leaves:
    """An executor that does what a command line parser does."""

    def command(self, _job):
        raise SystemExit(2)


def test_an_executor_that_exits_ends_its_job_alone(database):
    """`SystemExit` out of an executor makes that job ERROR; the next one runs."""
    executors = {"COMMAND": CommandExecutor(), "BAD": Leaves()}
    with JobManager(database, slots=1, executors=executors) as jobs:
        bad = jobs.create_job("BAD")
        good = jobs.submit(["true"])

        assert jobs.wait(good.id, timeout=60).status is Status.COMPLETE
        bad = jobs.wait(bad.id, timeout=60)
        (line,) = jobs.logs(bad.id)

    assert (bad.status, bad.exit_code, bad.reason) == (Status.ERROR, None, Reason.SPAWN_FAILED)
    assert (line.stream, line.text) == ("system", "cannot start: SystemExit: 2")


@pytest.mark.usefixtures("quick_failures")
def test_a_round_that_fails_holds_no_job_back(database):
    """A start that fails is tried again, and the others of its round go on meanwhile."""
    failed = []

    def fail_once(point, _host):
        if point == failpoints.DIRECTORY_PREPARED:
            failed.append(point)
            if len(failed) == 2:
                raise RuntimeError("of the second job of a round")

    with JobManager(database, slots=2) as jobs:
        jobs.submit_many([["true"]] * 2)
        jobs.drain(60)
        until(lambda: parts(jobs).pool.ready == 2, "two supervisors that wait for a job")
        failpoints.arm(fail_once)
        try:
            made = jobs.submit_many([["true"]] * 2)
            ended = [jobs.wait(job.id, timeout=60).status for job in made]
        finally:
            failpoints.disarm(fail_once)

    assert ended == [Status.COMPLETE] * 2
    assert len(failed) == 3  # the second one twice


def test_loop_survives_any_exception_of_its_turn(monkeypatch):
    """Nothing but `close` ends the thread."""
    monkeypatch.setattr("jobcore.engine.thread_loop.ERROR_PAUSE", 0.001)
    turns = []
    again = threading.Event()

    def turn():
        turns.append(None)
        if len(turns) == 1:
            raise SystemExit(3)
        again.set()
        loop.wait([], 60)

    loop = Loop("jobcore-test", turn)
    loop.start()
    came = again.wait(60)
    loop.close()

    assert came


def test_a_loop_rests_with_descriptors_beyond_1023():
    """`rest` knows descriptors that `select()` does not."""
    loop = Loop("jobcore-test", lambda: loop.wait([], 60))
    loop.start()
    high = fcntl.fcntl(loop.reader, fcntl.F_DUPFD_CLOEXEC, 1024)
    low, loop.reader = loop.reader, high
    try:
        loop.sleep(0)
    finally:
        loop.reader = low
        os.close(high)
        loop.close()


@pytest.mark.usefixtures("quick_failures")
def test_job_after_one_that_cannot_be_prepared_runs(database):
    """A directory that jobcore must not use keeps only its own job QUEUED."""
    with JobManager(database, slots=0) as jobs:
        first, second = jobs.submit(["true"]), jobs.submit(["true"])
    foreign = os.path.join(database + ".jobs", first.id.hex)
    os.mkdir(foreign, 0o755)
    with JobManager(database, slots=1) as jobs:
        assert jobs.wait(second.id, timeout=60).status is Status.COMPLETE
        assert jobs.get_job(first.id).status is Status.QUEUED
        os.rmdir(foreign)
        assert jobs.wait(first.id, timeout=60).status is Status.COMPLETE


def test_a_supervisor_that_died_idle_costs_no_job(database):
    """With its only supervisor SIGKILLed between two jobs, a manager starts another one."""
    with JobManager(database, slots=1) as jobs:
        assert jobs.wait(jobs.submit(["true"]).id, timeout=60).status is Status.COMPLETE
        (idle,) = parts(jobs).pool.supervisors
        os.kill(idle.pid, signal.SIGKILL)
        # Until then it may be given the next one.
        until(lambda: state(idle.pid) in "ZX", "its death")
        assert jobs.wait(jobs.submit(["true"]).id, timeout=60).status is Status.COMPLETE


def no_room(monkeypatch, times):
    """Have the sockets of all supervisors be full so many times; return who tried."""
    tried = []
    send = Supervisor.send

    def send_later(self, token, *request, **options):
        tried.append(token)
        return "again" if len(tried) <= times else send(self, token, *request, **options)

    monkeypatch.setattr(Supervisor, "send", send_later)
    return tried


def test_a_job_that_no_supervisor_has_room_for_is_sent_later(database, monkeypatch):
    """Between claim and send it waits, and is started once."""
    monkeypatch.setattr(tuning, "CHORES_PAUSE", 10 * PATIENCE)  # the chores wake the thread, too
    tried = no_room(monkeypatch, 3)
    with JobManager(database, slots=1) as jobs:
        job = jobs.wait(jobs.submit(["echo", "once"]).id, PATIENCE)
        lines = [line.text for line in jobs.logs(job.id)]

    assert (job.status, lines) == (Status.COMPLETE, ["once"])
    assert len(tried) == 4
    assert len(set(tried)) == 1


def test_a_job_that_no_supervisor_ever_takes_is_an_error(database, monkeypatch):
    """It is not RUNNING for ever, and says why."""
    no_room(monkeypatch, math.inf)
    monkeypatch.setattr(tuning, "SEND_PATIENCE", 0)
    with JobManager(database, slots=1) as jobs:
        job = jobs.wait(jobs.submit(["true"]).id, PATIENCE)
        lines = [(line.stream, line.text) for line in jobs.logs(job.id)]

    assert (job.status, job.exit_code, job.reason) == (Status.ERROR, None, Reason.SPAWN_FAILED)
    assert lines == [("system", "cannot start: no supervisor took it")]


def test_a_job_that_is_stopped_before_a_supervisor_takes_it_never_starts(
    database, monkeypatch, tmp_path
):
    """Claimed, and not yet sent: a stop ends it without a process."""
    monkeypatch.setattr(tuning, "SEND_PATIENCE", math.inf)
    monkeypatch.setattr(tuning, "CHORES_PAUSE", 10 * PATIENCE)
    tried = no_room(monkeypatch, math.inf)
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(["touch", str(tmp_path / "begun")])
        until(lambda: tried, "the claim")
        jobs.stop_job(job.id)
        job = jobs.wait(job.id, PATIENCE)

    assert (job.status, job.exit_code, job.reason) == (Status.STOPPED, None, Reason.STOPPED)
    assert not (tmp_path / "begun").exists()


def test_a_claim_survives_a_power_failure(database):
    """No command runs of which the disk could say afterwards that it is still in the queue."""
    said = []

    def look(point, host):
        if point == failpoints.CLAIM_WRITTEN:
            (level,) = driver_of(host.writer.connection).execute("PRAGMA synchronous").fetchone()
            said.append(level)

    failpoints.arm(look)
    try:
        with JobManager(database, slots=1) as jobs:
            for _ in range(3):
                jobs.wait(jobs.submit(["true"]).id, timeout=60)
    finally:
        failpoints.disarm(look)

    assert said == [2] * 3  # FULL


@pytest.mark.usefixtures("quick_failures")
def test_claim_whose_commit_raised_but_succeeded_continues(database):
    """Where only the commit's answer is an error the rows say what is so, and the job runs."""
    failed = []

    def fail_once(point, _host):
        if point == failpoints.CLAIMED and not failed:
            failed.append(point)
            raise RuntimeError("just behind the commit")

    failpoints.arm(fail_once)
    try:
        with JobManager(database, slots=1) as jobs:
            job = jobs.wait(jobs.submit(["true"]).id, timeout=60)
            triggers = [str(entry.trigger) for entry in jobs.history(job.id)]
    finally:
        failpoints.disarm(fail_once)

    assert failed == [failpoints.CLAIMED]
    assert (job.status, triggers) == (Status.COMPLETE, ["create", "start", "finish"])


class IsSlow:
    """An executor that takes until it is told to go on."""

    def __init__(self):
        self.asked, self.go = threading.Event(), threading.Event()

    def command(self, _job):
        self.asked.set()
        self.go.wait(60)
        return Command(SLEEPS)


def test_no_job_escapes_a_close_that_stops(database):
    """A job that is being prepared when `close` begins is not left RUNNING."""
    slow = IsSlow()
    jobs = JobManager(database, slots=1, executors={"SLOW": slow}, on_exit="stop")
    job = jobs.create_job("SLOW")
    assert slow.asked.wait(60)
    closing = threading.Thread(target=jobs.close)
    closing.start()
    until(lambda: not parts(jobs).dispatcher._claiming, "the end of claiming")
    slow.go.set()
    closing.join(60)

    with JobManager(database, slots=0) as jobs:
        job = jobs.get_job(job.id)

    assert job.status in (Status.QUEUED, Status.STOPPED)


def test_a_pipelines_grace_is_noted_with_its_claim(database):
    """A stop uses the grace of the command that was started."""
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        pipeline = jobs.create_pipeline("nightly", Command(SLEEPS, grace=120))
        job = jobs.create_job(pipeline_id=pipeline.id)
        assert next(jobs.follow(job.id, timeout=60)).text == "ready"
        (run,) = parts(jobs).dispatcher.running()
        jobs.stop_job(job.id)
        jobs.wait(job.id, timeout=60)

    assert run.grace_ms == 120_000


TOKEN = "0123456789abcdef" * 2


def hold(path, span, say):
    """Have the lock file open, with a lock on `span` and what goes with it, until killed."""
    descriptor = os.open(path, os.O_RDWR)
    if span is not None:
        assert job_directory.try_lock(descriptor, span)
    preparing, running = job_directory.spans_of(TOKEN)
    if span in (job_directory.PREPARING, job_directory.RUNNING):
        assert job_directory.try_lock(
            descriptor, running if span == job_directory.RUNNING else preparing
        )
    os.write(say, b".")
    signal.pause()


@pytest.mark.parametrize(
    ("span", "found"),
    [
        (job_directory.RUNNING, True),
        (job_directory.PREPARING, False),
        (job_directory.WHOLE, False),
        (None, False),
    ],
    ids=["runs it", "prepares it", "resolves it", "probes it"],
)
def test_only_who_runs_a_job_is_its_holder(tmp_path, span, found):
    """A host that probes, prepares or resolves a job is never taken for its supervisor."""
    path = tmp_path / "lock"
    path.touch()
    reader, writer = os.pipe()
    child = Child(hold, path, span, writer)
    try:
        os.read(reader, 1)
        holding = orphans.find_holders(TOKEN)
    finally:
        child.kill()
        os.close(reader)
        os.close(writer)

    assert holding == ([child.pid] if found else [])


@pytest.mark.usefixtures("quick_failures")
def test_waiter_for_another_managers_job_gets_no_spawn_error(database, tmp_path):
    """Supervisors that cannot be started concern whoever waits for a QUEUED job, nobody else."""
    nothing = str(tmp_path / "no-python")
    with (
        JobManager(database, slots=1, on_exit="stop") as runs,
        JobManager(database, slots=1, python=nothing, executors={"X": CommandExecutor()}) as waits,
    ):
        job = runs.submit(["sh", "-c", "echo ready; read line"], stdin=b"\n")
        stuck = waits.submit(["true"], type="X")
        with pytest.raises(SpawnError, match=r"no-python': No such file.*python="):
            waits.wait(stuck.id, timeout=60)
        assert waits.wait(job.id, timeout=60).status in (Status.COMPLETE, Status.ERROR)
        waits.cancel_job(stuck.id)
        waits.drain(timeout=60)


def python_that(folder, does):
    """Return the path of a program that is named as `python`, and marked in its environment."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    return str(program)


ANSWERS = f'case $4 in print*) exec {sys.executable} "$@";; esac'


@pytest.mark.parametrize(
    ("does", "patience"),
    [
        ("exec sleep 300", 0.1),
        ("exec >&-; exec sleep 300", 0.1),
        ("exec yes", 0.1),
        (f"{ANSWERS}; exec sleep 300", PATIENCE),
    ],
    ids=["asked", "silent", "talking", "as-supervisor"],
)
@pytest.mark.usefixtures("quick_failures")
def test_hanging_interpreter_is_reported_and_killed(
    database, clock, tmp_path, monkeypatch, does, patience
):
    """What `python` names but never gets ready is a failure, and leaves no process."""
    monkeypatch.setattr(tuning, "READY_PATIENCE", 0.1)
    monkeypatch.setattr(tuning, "INTERPRETER_PATIENCE", patience)
    monkeypatch.setenv("JOBCORE_TEST_HANGS", str(tmp_path))
    hangs = python_that(tmp_path, does)
    with JobManager(database, slots=1, python=hangs, clock=clock) as jobs:
        job = jobs.submit(["true"])
        failures = parts(jobs).postponed.failures
        until(
            lambda: any(one.times >= 3 or one.error.lasting for one in list(failures().values())),
            "a failure that lasts",
        )
        clock.advance(tuning.PERSISTENT_SECONDS)
        with pytest.raises(SpawnError, match="python="):
            jobs.wait(job.id, timeout=60)

    until(lambda: carrying(f"JOBCORE_TEST_HANGS={tmp_path}") == [], "the end of all interpreters")


def test_manager_keeps_working_while_an_interpreter_hangs(database, clock, tmp_path, monkeypatch):
    """Meanwhile it adopts jobs, imports and settles them, and takes ticks; `close` ends it."""
    monkeypatch.setattr(tuning, "INTERPRETER_PATIENCE", 2 * PATIENCE)
    hangs = python_that(tmp_path, "exec sleep 300")
    with JobManager(database, slots=1, clock=clock) as before:
        running = before.submit(SLEEPS)
        next(before.follow(running.id, timeout=60))
    monkeypatch.setenv("JOBCORE_TEST_HANGS", str(tmp_path))
    with JobManager(database, slots=2, python=hangs, clock=clock) as jobs:
        jobs.submit(["true"])
        until(lambda: carrying(f"JOBCORE_TEST_HANGS={tmp_path}"), "an interpreter that hangs")
        pipeline = jobs.create_pipeline("p", ["true"], schedule="*/15 * * * *")
        clock.advance(100)
        until(lambda: jobs.list_jobs(pipeline_id=pipeline.id), "the job of a tick")
        until(lambda: parts(jobs).adoption.tokens, "the adoption")
        jobs.stop_job(running.id)
        until(lambda: jobs.list_jobs(status=Status.STOPPED), "the stop")
        assert parts(jobs).dispatcher.liveness.failures() == []

    until(lambda: carrying(f"JOBCORE_TEST_HANGS={tmp_path}") == [], "the end of all interpreters")


def test_close_waits_for_no_more_than_the_step_under_way(database, monkeypatch):
    """If each step waits long for the database, the steps after it are left out."""
    entered, goes_on, later = threading.Event(), threading.Event(), []

    def tick(_scheduler):
        entered.set()
        goes_on.wait(PATIENCE)

    monkeypatch.setattr(Scheduler, "tick", tick)
    monkeypatch.setattr(Recovery, "sweep", lambda _recovery: later.append("sweep"))
    jobs = JobManager(database, slots=1)
    closing = threading.Thread(target=jobs.close)
    jobs.submit(["true"])
    assert entered.wait(PATIENCE)
    closing.start()
    until(lambda: parts(jobs).dispatcher._loop.closing, "the close")
    goes_on.set()
    closing.join(PATIENCE)

    assert not closing.is_alive()
    assert later == []


def test_closing_a_manager_that_stops_its_jobs_twice(database):
    """The second call does nothing, also where a job of the first one has not ended in time."""
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        job = jobs.submit(SLEEPS)
        next(jobs.follow(job.id, timeout=60))
        jobs.close()
        jobs.close()

    with JobManager(database, slots=0) as jobs:
        assert jobs.wait(job.id, timeout=60).reason is Reason.STOPPED
