"""Matrix: every step of the protocol, what happens behind it, and what the job is about then."""

from __future__ import annotations

import itertools
import os
import signal
import time
from contextlib import suppress

from jobcore import InvalidTransition, JobManager, Reason, Status
from jobcore.embedding import failpoints
from jobcore.testing.parts import parts
from tests.faults.fork_server import KILL_HOST, KILL_SELF, PAUSE, Trap
from tests.faults.hosts import EXECUTORS, host
from tests.faults.invariants import check
from tests.faults.plans import place, settle_all
from tests.faults.rounds import in_rounds
from tests.faults.witness import witness

DEEDS = ("the host is killed", "the supervisor is killed", "all wait for it")
KINDS = ("short", "long", "to be stopped", "timed out")
CASES = list(itertools.product((*failpoints.HOST, *failpoints.SUPERVISOR), DEEDS, KINDS))

#: Points that are reached more than once on the way: any of so many times is chosen.
OFTEN = {
    failpoints.ENTERED: 15, failpoints.WRITE_BEGUN: 5, failpoints.CREATED: 3,
    failpoints.FRAME_WRITTEN: 3, failpoints.DIRECTORY_TAKEN: 2, failpoints.DIRECTORY_RENAMED: 2,
}  # fmt: skip

TIMEOUT = 0.2  # seconds
GRACE = 5.0


class Leaping:
    """A clock that can be set forward."""

    leap = 0  # microseconds

    def now(self):
        return time.time_ns() // 1000 + self.leap

    def monotonic(self):
        return time.monotonic()


def command_of(kind, sides):
    """Return the command of a job of this kind, and what else to submit it with."""
    if kind == "short":
        return witness(sides, 3, "9"), {}
    if kind == "long":
        return witness(sides, 2000, "9", pauses=6), {}
    if kind == "to be stopped":
        return witness(sides, 5, "STAY"), {"grace": GRACE}
    return witness(sides, 5, "STAY"), {"grace": GRACE, "timeout": TIMEOUT}


def live(say, where, case, launcher, trap):
    """Be a host that does everything once; the one job of the case's kind is what matters."""
    point, _, kind = case
    clock = Leaping()
    with JobManager(
        where.database, slots=1, launcher=launcher, clock=clock, executors=EXECUTORS
    ) as jobs:
        if trap is not None:
            trap.jobs = jobs
            failpoints.arm(trap)
        task = jobs.create_job("TASK")
        jobs.start_job(task.id)
        command, options = command_of(kind, where.sides)
        end = "STAY" if command[-2] == "STAY" else "9"
        job = jobs.submit(command, data={"end": end}, **options)
        say(str(job.id))
        if kind == "to be stopped":
            for _ in jobs.follow(job.id, timeout=60):
                with suppress(InvalidTransition):
                    jobs.stop_job(job.id)
                break
        jobs.wait(job.id)
        jobs.delete_job(task.id)
        jobs.wait(jobs.create_job("BAD").id)
        if point == failpoints.TICK_TAKEN:
            jobs.create_pipeline("each minute", ["true"], schedule="* * * * *")
            clock.leap = 61_000_000
            while not jobs.list_jobs(type="PIPELINE_RUN"):
                time.sleep(0.01)
        say("done")
        signal.pause()


class KillsSupervisors(Trap):
    """A trap in a host that kills all its supervisors."""

    jobs = None

    def __init__(self, point, nth, mark):
        super().__init__(point, self._kill, nth, mark)

    def _kill(self):
        for supervisor in parts(self.jobs).pool.supervisors:
            if supervisor.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(supervisor.pid, signal.SIGKILL)


class Pauses(Trap):
    """A trap in a host that stands still for a while."""

    jobs = None


def traps(point, deed, mark, nth):
    """Return the trap of the host and the one of its supervisor; None: it has none."""
    if point in failpoints.SUPERVISOR:
        action = dict(zip(DEEDS, (KILL_HOST, KILL_SELF, PAUSE), strict=True))[deed]
        return None, Trap(point, action, nth, mark)
    # There is something to resolve only where a supervisor has died.
    lost = Trap(failpoints.COMMAND_RUNS, KILL_SELF) if point == failpoints.RESOLVED else None
    if deed == "the supervisor is killed":
        return KillsSupervisors(point, nth, mark), lost
    return Pauses(point, KILL_SELF if deed == DEEDS[0] else PAUSE, nth, mark), lost


def possible(kind, point, deed):
    """Return what the job may have come to: status, exit code and reason."""
    if kind in ("short", "long"):
        ends = {(Status.ERROR, 9, Reason.EXITED)}
    elif kind == "timed out":
        ends = {(Status.STOPPED, 143, Reason.TIMEOUT)}
    else:
        ends = {(Status.STOPPED, 143, Reason.STOPPED)}
        if deed != "all wait for it":
            ends |= {
                (Status.STOPPED, None, Reason.CANCELLED),  # by the next host, in the queue
                (Status.STOPPED, None, Reason.STOPPED),  # asked before its command began
            }
    unseen = (Status.ERROR, Status.STOPPED) if kind == "to be stopped" else (Status.ERROR,)
    if deed != "all wait for it":
        ends |= {(status, None, Reason.NEVER_STARTED) for status in unseen}
    if deed == "the supervisor is killed" or point == failpoints.RESOLVED:
        ends |= {(status, None, Reason.LOST) for status in unseen}
    return ends


@in_rounds(smoke=12, full=len(CASES), long=True)
def test_anything_may_happen_after_every_step(tmp_path, rounds, fork_server):
    """At each step host or supervisor die or wait: what comes of the job is one of few truths."""
    cases = rounds.chance().sample(CASES, len(CASES))
    reached = set()
    for chance in rounds:
        case = point, deed, kind = cases[rounds.number % len(cases)]
        with place(tmp_path, rounds.number) as where:
            mark = str(tmp_path / f"mark-{rounds.number}")
            trap, theirs = traps(point, deed, mark, chance.randint(1, OFTEN.get(point, 1)))
            with host(live, where, case, fork_server.launcher(theirs), trap) as living:
                said = living.kill_after(60)
            with JobManager(
                where.database, slots=1, launcher=fork_server.launcher(), executors=EXECUTORS
            ) as jobs:
                for job in jobs.list_jobs():
                    if job.type == "TASK" and job.status is Status.QUEUED:
                        jobs.cancel_job(job.id)  # one that was started is lost with its host
                    elif job.data == {"end": "STAY"} and kind == "to be stopped":
                        jobs.recover()
                        with suppress(InvalidTransition):
                            jobs.cancel_job(job.id)
                settle_all(jobs)
                found = [job for job in jobs.list_jobs() if job.type == "COMMAND"]
                tasks = {job.reason for job in jobs.list_jobs() if job.type == "TASK"}
                assert tasks <= {Reason.CANCELLED, Reason.LOST}, case
                check(jobs, where.sides)
            if os.path.exists(mark):
                reached.add(point)

            assert len(found) == 1 or (found == [] and said == []), case
            assert said in ([], [str(job.id) for job in found]) or said[-1] == "done", case
            for job in found:
                ended = (job.status, job.exit_code, job.reason)
                assert ended in possible(kind, point, deed), (case, ended)
            if deed == "all wait for it":
                assert said[-1] == "done", case
    if rounds.total >= len(CASES):
        assert reached == {*failpoints.HOST, *failpoints.SUPERVISOR}
