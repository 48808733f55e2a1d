"""A host that dies behind any step of the protocol: the next one ends its job with the truth."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from uuid import UUID

import pytest

from jobcore import JobManager, JobNotFound, Reason, Status
from jobcore.embedding import failpoints
from jobcore.supervisor import job_directory
from jobcore.testing import Crashed, crash
from jobcore.testing.crash import _CRASHED, _threads_in
from jobcore.testing.parts import parts
from tests.faults.hosts import EXECUTORS
from tests.faults.rounds import SEED
from tests.jobfiles import sql
from tests.processes import carrying, descriptors, left_open, own_threads, until
from tests.tasks import task


class World:
    """
    A database with one job, its witness, and what the host that is crashed did to both.

    `go` lets the command, which says `ready`, go on to say `done` and to exit with 6.
    """

    def __init__(self, database, clock):
        self.database = database
        self.clock = clock
        self.witness = Path(database + ".witness")
        self.go = Path(database + ".go")
        self.before = descriptors()
        self.seen = None  # rows and the host's files as they were at the point
        self.cookies = set()
        script = (
            f'echo "$JOBCORE_JOB_ID" >> {self.witness}; echo ready; '
            f"while [ ! -e {self.go} ]; do sleep 0.01; done; echo done; exit 6"
        )
        self.command = ["sh", "-c", script]

    def manager(self, slots=1, **options):
        return JobManager(
            self.database, slots=slots, clock=self.clock, executors=EXECUTORS, **options
        )

    def queue(self, **options):
        """Queue the job by a host that ends in peace."""
        with self.manager(slots=0) as jobs:
            return jobs.submit(self.command, **options).id

    def run(self, **options):
        """Have the job running, with its `ready` imported, and no host alive."""
        with self.manager() as jobs:
            job_id = jobs.submit(self.command, **options).id
            assert next(jobs.follow(job_id, timeout=60)).text == "ready"
        return job_id

    def finish(self):
        """Have the job end by a host that lives."""
        self.go.touch()
        with self.manager() as jobs:
            jobs.drain(60)
            for job in jobs.list_jobs():  # also those that run without this one having started them
                jobs.wait(job.id, timeout=60)
            jobs.recover()

    def rows(self, table):
        """Return all rows of a table."""
        return [tuple(row) for row in sql(self.database, f"SELECT * FROM {table} ORDER BY 1")]

    def only_job(self):
        """Return the id of the one job there is."""
        ((job_id,),) = sql(self.database, "SELECT id FROM job")
        return UUID(hex=job_id)

    def cookie(self):
        """Return the cookie of the one job there is."""
        ((cookie,),) = sql(self.database, "SELECT cookie FROM job")
        return cookie

    def job_file(self, job_id, name):
        """Return the path of a file in a job's directory."""
        return Path(f"{self.database}.jobs/{job_id.hex}/{name}")

    def starts(self):
        """Return how often the command has begun."""
        return len(self.witness.read_text().split()) if self.witness.exists() else 0

    def state(self):
        """Return what the database says, and which files of hosts there are."""
        tables = ("job", "transition", "log_segment", "pipeline", "skip")
        rows = {name: self.rows(name) for name in tables}
        files = {
            path.relative_to(self.database + ".jobs")
            for path in Path(self.database + ".jobs").rglob("*")
            # What a supervisor writes goes on, whatever becomes of its host.
            if not path.name.startswith(("run", "spool.", "exit"))
        }
        return rows, files

    def crash(self, jobs, point, act=lambda: None):
        """Crash a manager at a point that `act` leads to, and hold that nothing came behind."""

        def look(where, whose):
            if where == point and whose is parts(jobs).database and self.seen is None:
                self.seen = self.state()

        failpoints.arm(look)
        try:
            with crash(jobs, at=point):
                act()
        finally:
            failpoints.disarm(look)
        self.cookies = {row[0] for row in sql(self.database, "SELECT cookie FROM job") if row[0]}
        assert self.state() == self.seen


@pytest.fixture
def world(database, clock):
    """Return a world in which nothing of jobcore is left when the test is over."""
    made = World(database, clock)
    yield made
    made.go.touch()
    cookies = {cookie for (cookie,) in sql(database, "SELECT cookie FROM job") if cookie}
    for cookie in cookies | made.cookies:
        until(lambda cookie=cookie: not carrying(cookie), f"the end of all of job {cookie}")
    assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"
    assert own_threads() == []
    assert left_open(made.before) == {}
    assert set(os.listdir(database + ".jobs")) <= {"store", "checkpoint"}


# --- how a host gets to each point ----------------------------------------------


def at_a_use(world, point):
    """Somebody was about to cancel a queued job."""
    job_id = world.queue()
    jobs = world.manager(slots=0)
    world.crash(jobs, point, lambda: jobs.cancel_job(job_id))
    return job_id


def at_the_creation(world, point):
    """The caller never hears of the job that it created."""
    jobs = world.manager(slots=0)
    world.crash(jobs, point, lambda: jobs.submit(world.command))
    return world.only_job()


def at_a_tick(world, point):
    """A tick of a schedule is due."""
    with world.manager(slots=0) as jobs:
        jobs.create_pipeline("each minute", world.command, schedule="* * * * *")
    world.crash(world.manager(), point, lambda: world.clock.advance(60))
    return world.only_job()


def at_the_start(world, point):
    """A job that another host queued is started, up to its first line."""
    world.crash(world.manager(), point, world.queue)
    return world.only_job()


def at_a_refusal(world, point):
    """The executor failed, so the host itself writes the verdict."""
    world.crash(world.manager(), point, lambda: world.queue(type="BAD"))
    return world.only_job()


def at_its_end(world, point):
    """The job has ended, and somebody looks at it."""
    job_id = world.run()
    world.go.touch()
    until(world.job_file(job_id, "exit").exists, "the exit record")
    jobs = world.manager(slots=0)
    world.crash(jobs, point, lambda: jobs.get_job(job_id))
    return job_id


def at_a_resolution(world, point):
    """The job's supervisor was killed, and somebody looks at it."""
    job_id = world.run()
    record = job_directory.decode_record(world.job_file(job_id, "run").read_bytes())
    os.kill(record["supervisor"], signal.SIGKILL)
    until(lambda: not carrying(world.cookie()), "the end of the command with its supervisor")
    jobs = world.manager(slots=0)
    world.crash(jobs, point, lambda: jobs.get_job(job_id))
    return job_id


def at_a_stop(world, point):
    """Somebody asks the running job to stop."""
    job_id = world.run()
    jobs = world.manager(slots=0)
    world.crash(jobs, point, lambda: jobs.stop_job(job_id))
    return job_id


def at_a_deletion(world, point):
    """Somebody deletes the running job."""
    job_id = world.run()
    jobs = world.manager(slots=0)
    world.crash(jobs, point, lambda: jobs.delete_job(job_id))
    return job_id


# --- what is true then ------------------------------------------------------------


def finished(status, code, reason, *lines, asked=False, runs=1):
    """Return what a job must have come to: its ending, its history, its lines, its starts."""
    history = [("create", None, "QUEUED", None), ("start", "QUEUED", "RUNNING", None)]
    if asked:
        history.append(("stop", "RUNNING", "RUNNING", None))
    history.append(("finish", "RUNNING", status, reason))
    return (status, code, reason), history, list(lines), runs


RAN = finished("ERROR", 6, "exited", "output ready", "output done")
NEVER = finished(
    "ERROR",
    None,
    "never_started",
    "system never started: its host or its supervisor died before",
    runs=0,
)
FAILED = finished("ERROR", None, "spawn_failed", "system cannot start: ValueError: no", runs=0)
LOST = finished(
    "ERROR", None, "lost", "output ready",
    "system lost: its supervisor died before it could record how the command ended",
)  # fmt: skip
STOPPED = finished(
    "STOPPED", 143, "stopped", "output ready", f"system stopping: asked by pid {os.getpid()}: stop",
    asked=True,
)  # fmt: skip
DELETED = None

#: By point: how a host gets there, and what then becomes of the job.
TRUTH = {
    failpoints.ENTERED: (at_a_use, RAN),
    failpoints.WRITE_BEGUN: (at_a_use, RAN),
    failpoints.CREATED: (at_the_creation, RAN),
    failpoints.TICK_TAKEN: (at_a_tick, RAN),
    failpoints.SUPERVISOR_STARTED: (at_the_start, RAN),
    failpoints.DIRECTORY_PREPARED: (at_the_start, RAN),
    failpoints.REQUEST_PREPARED: (at_the_start, RAN),
    failpoints.CLAIM_WRITTEN: (at_the_start, RAN),
    # Claimed and not sent: the lock is free and there is no `run`, so it never started.
    failpoints.CLAIMED: (at_the_start, NEVER),
    failpoints.BEFORE_SEND: (at_the_start, NEVER),
    # The message holds the lock, and the supervisor takes it, host or no host.
    failpoints.SENT: (at_the_start, RAN),
    failpoints.ENDED_HERE: (at_a_refusal, FAILED),
    failpoints.IMPORT_READ: (at_the_start, RAN),
    failpoints.IMPORT_WRITTEN: (at_the_start, RAN),
    failpoints.IMPORTED: (at_the_start, RAN),
    failpoints.SETTLE_WRITTEN: (at_its_end, RAN),
    failpoints.SETTLED: (at_its_end, RAN),
    failpoints.DIRECTORY_TAKEN: (at_its_end, RAN),
    failpoints.DIRECTORY_RENAMED: (at_its_end, RAN),
    failpoints.RESOLVED: (at_a_resolution, LOST),
    failpoints.STOP_STORED: (at_a_stop, STOPPED),
    failpoints.STOP_WRITTEN: (at_a_stop, STOPPED),
    failpoints.STOP_SENT: (at_a_stop, STOPPED),
    failpoints.MARKED_DELETED: (at_a_deletion, DELETED),
    failpoints.ROWS_REMOVED: (at_a_deletion, DELETED),
}


def test_the_truth_is_known_of_every_point():
    """Each failpoint of a host has an entry that says what must be true after it."""
    assert tuple(TRUTH) == failpoints.HOST


@pytest.mark.parametrize("point", TRUTH)
def test_host_crash_at_any_failpoint_leaves_a_true_state(world, point):
    """Nothing changes after the point, and the next host ends the job correctly."""
    lead, truth = TRUTH[point]
    job_id = lead(world, point)

    if truth is RAN:
        world.go.touch()
    with world.manager() as jobs:
        if truth is DELETED:
            with pytest.raises(JobNotFound):
                jobs.get_job(job_id)
            until(lambda: world.rows("job") == [], "the end of the deletion")
        else:
            job = jobs.wait(job_id, timeout=60)
            history = [
                (entry.trigger, entry.from_status, entry.to_status, entry.reason)
                for entry in jobs.history(job_id)
            ]
            lines = [f"{line.stream} {line.text}" for line in jobs.logs(job_id)]
            ending = (job.status, job.exit_code, job.reason)
            assert (ending, history, lines, world.starts()) == truth
        jobs.drain(60)
        jobs.recover()


# --- a dead manager ---------------------------------------------------------------


def test_a_dead_manager_does_nothing_any_more(world):
    """Every call on it raises, and its end, however often it comes, does nothing."""
    with world.manager(on_exit="stop") as jobs:
        job_id = jobs.submit(world.command).id
        assert next(jobs.follow(job_id, timeout=60)).text == "ready"
        crash(jobs)
        before = world.state()
        for call in (
            lambda: jobs.get_job(job_id),
            lambda: jobs.stop_job(job_id),
            lambda: jobs.delete_job(job_id),
            lambda: jobs.submit(["true"]),
            lambda: jobs.wait(job_id),
            lambda: next(jobs.follow(job_id)),
            jobs.drain,
            jobs.recover,
            lambda: jobs.create_workspace("w"),
        ):
            with pytest.raises(Crashed, match=r"manager of .* has crashed"):
                call()
        jobs.close()

    assert world.state() == before
    world.go.touch()
    with world.manager() as jobs:
        assert jobs.wait(job_id, timeout=60).exit_code == 6


def test_other_managers_of_the_process_live_on(world):
    """One of two managers of a file dies; the other one ends its job."""
    with world.manager() as lives:
        dies = world.manager(slots=0)
        with crash(dies, at=failpoints.CREATED):
            dies.submit(world.command)
        world.go.touch()

        assert lives.wait(world.only_job(), timeout=60).exit_code == 6


def test_a_waiting_thread_of_a_dead_manager_is_thrown_out(world):
    """A thread that waits for a job is not left waiting; nor is it inside when `crash` returns."""
    job_id = world.run()
    jobs = world.manager(slots=0)
    ended = []

    def wait():
        try:
            jobs.wait(job_id)
        except Crashed as crashed:
            ended.append(crashed)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: _threads_in(jobs), "the waiting")
    crash(jobs)

    assert _threads_in(jobs) == []
    thread.join(60)
    assert [crashed.host for crashed in ended] == [parts(jobs).database]
    world.finish()


def test_subscribers_of_a_dead_manager_hear_nothing_more(world):
    """Events that were committed but not delivered are not delivered later."""
    told = []
    jobs = world.manager(slots=0)

    def listen(event):
        told.append(event.job_id)
        until(lambda: parts(jobs).database in _CRASHED, "the death of its manager")

    jobs.subscribe(listen)
    jobs.subscribe(listen, status="QUEUED")
    first = jobs.submit(["true"])
    jobs.submit(["true"])
    crash(jobs)
    jobs.close()

    assert told in ([], [first.id])
    with world.manager() as after:
        after.drain(60)
        after.recover()


class Stays:
    """An executor inside which the dispatcher's thread stays until it is let `out`."""

    def __init__(self):
        self.inside, self.out = threading.Event(), threading.Event()

    def command(self, _job):
        self.inside.set()
        assert self.out.wait(60)
        raise ValueError("too late")


@pytest.fixture
def stays(monkeypatch):
    """Return the executor of the type STAYS."""
    executor = Stays()
    monkeypatch.setitem(EXECUTORS, "STAYS", executor)
    yield executor
    executor.out.set()


@pytest.mark.parametrize("let_go", [JobManager.close, crash])
def test_a_thread_that_does_not_end_is_named(world, stays, let_go):
    """Where a thread stays inside, `crash` says which and where, and closes nothing under it."""
    jobs = world.manager()
    job_id = jobs.create_job("STAYS").id
    assert stays.inside.wait(60)
    with pytest.raises(AssertionError, match=r"jobcore-dispatcher in Launch\._fill"):
        crash(jobs, timeout=0.01)
    assert not parts(jobs).database.closed
    stays.out.set()
    let_go(jobs)
    with world.manager(slots=0) as after:
        assert after.cancel_job(job_id).reason is Reason.CANCELLED
        after.recover()


@pytest.mark.parametrize("let_go", [JobManager.close, crash])
def test_manager_with_a_thread_inside_is_closed_later(world, stays, let_go):
    """It closes what is open and no more, beside a task of this process, and stops no job."""
    with world.manager(slots=0) as lives:
        own = task(lives)
        jobs = world.manager(slots=2, on_exit="stop")
        running = jobs.submit(world.command)
        assert next(jobs.follow(running.id, timeout=60)).text == "ready"
        queued = jobs.create_job("STAYS")
        assert stays.inside.wait(60)
        with pytest.raises(AssertionError, match="still in a crashed manager"):
            crash(jobs, timeout=0.01)
        before = world.state()
        stays.out.set()
        let_go(jobs)

        assert parts(jobs).database.closed
        assert world.state() == before
        assert lives.cancel_job(queued.id).status is Status.STOPPED
        assert lives.finish_job(own.id, 0).status is Status.COMPLETE
        world.go.touch()
        assert lives.wait(running.id, timeout=60).exit_code == 6
        lives.recover()


def test_invalid_crash_is_refused(world):
    """`crash` refuses an unknown failpoint, one of a supervisor, and a closed manager."""
    said = []

    class Crashes:
        def command(self, _job):
            crash(jobs)

    executors = {"BAD": Crashes()}
    with JobManager(world.database, slots=1, executors=executors) as jobs:
        for point in ("somewhere", failpoints.UNLOCKED):
            with pytest.raises(ValueError, match="not a failpoint of a host"):
                crash(jobs, at=point)
        job = jobs.wait(jobs.create_job("BAD").id, timeout=60)
        said += [line.text for line in jobs.logs(job.id)]
    with pytest.raises(ValueError, match="closed"):
        crash(jobs)

    assert job.reason is Reason.SPAWN_FAILED
    assert "cannot crash itself" in said[0]


def test_a_point_that_is_not_reached_is_named(world):
    """The block fails with the point's name, and the manager lives on."""
    with world.manager(slots=0) as jobs:
        with (
            pytest.raises(AssertionError, match="'claimed' was not reached within"),
            crash(jobs, at=failpoints.CLAIMED, timeout=0.01),
        ):
            job = jobs.submit(world.command)

        assert jobs.cancel_job(job.id).status is Status.STOPPED


def test_an_error_in_the_block_is_the_callers(world):
    """What else is raised in the block goes on, and nothing crashes later."""
    with world.manager(slots=0) as jobs:
        with pytest.raises(KeyError), crash(jobs, at=failpoints.CREATED):
            raise KeyError
        job = jobs.submit(world.command)

        assert jobs.cancel_job(job.id).status is Status.STOPPED


@pytest.mark.parametrize("rounds", [20])
def test_crashes_at_random_moments_leave_only_the_truth(world, rounds):
    """Managers dropped at random instants, one after the other: every job ends once, in truth."""
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    world.go.touch()
    with world.manager(slots=0) as jobs:
        submitted = [job.id for job in jobs.submit_many([world.command] * rounds)]
    for _ in range(rounds):
        jobs = world.manager(slots=2)
        time.sleep(chance.random() * 0.1)  # the instant of death, not a wait for anything
        crash(jobs)
        before = world.state()
        assert world.state() == before
    with world.manager(slots=2) as jobs:
        jobs.drain(60)
        ended = [jobs.wait(job_id, timeout=60) for job_id in submitted]
        texts = {job.id: b"".join(jobs.log_text(job.id)) for job in ended}
        histories = {job.id: [entry.trigger for entry in jobs.history(job.id)] for job in ended}
        jobs.recover()
    started = world.witness.read_text().split()

    assert len(started) == len(set(started))
    for job in ended:
        assert histories[job.id] == ["create", "start", "finish"]
        if job.reason is Reason.EXITED:
            assert (job.status, job.exit_code) == (Status.ERROR, 6)
            assert texts[job.id] == b"ready\ndone\n"
            assert str(job.id) in started
        else:
            assert (job.exit_code, job.reason) == (None, Reason.NEVER_STARTED)
            assert str(job.id) not in started
