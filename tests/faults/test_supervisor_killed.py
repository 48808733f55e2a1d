"""A supervisor that is SIGKILLed: its job dies with it, and no exit code is made up."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from jobcore import InvalidTransition, JobManager, Reason, Status
from jobcore.embedding import failpoints
from tests.faults.fork_server import KILL_SELF, Trap
from tests.faults.hosts import host, submit_and_serve
from tests.faults.invariants import check
from tests.faults.plans import (
    carry_out,
    commands,
    draw,
    place,
    settle_all,
    supervisors,
    survey,
)
from tests.faults.rounds import in_rounds
from tests.jobfiles import cookie_of
from tests.processes import carrying, until
from tests.programs import SLEEPS, TREE_THAT_IGNORES_SIGTERM


def kill(pids):
    """SIGKILL processes that were there a moment ago."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def stop_those_that_stay(jobs):
    """End the jobs that would stay for ever, and were not lost."""
    for job in jobs.list_jobs():
        if job.data == {"end": "STAY"}:
            with suppress(InvalidTransition):
                jobs.cancel_job(job.id)


def supervisor_of(database, job_id):
    """Return the pid of the supervisor that runs the job, and the job's cookie."""
    cookie = cookie_of(database, job_id)
    main = min(until(lambda: carrying(cookie), "the command"))
    with open(f"/proc/{main}/stat", encoding="ascii") as stat:
        return int(stat.read().rpartition(")")[2].split()[1]), cookie


def test_a_killed_supervisor_makes_its_job_lost(running_jobs, database):
    """The job of a SIGKILLed supervisor is ERROR, `lost`, without an exit code, at once."""
    job = running_jobs.submit(SLEEPS)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    supervisor, cookie = supervisor_of(database, job.id)

    os.kill(supervisor, signal.SIGKILL)
    job = running_jobs.wait(job.id, timeout=30)

    assert (job.status, job.exit_code, job.reason) == (Status.ERROR, None, Reason.LOST)
    assert carrying(cookie) == []
    lines = [(line.stream, line.text) for line in running_jobs.logs(job.id)]
    assert lines[0] == ("output", "ready")
    assert [stream for stream, _ in lines[1:]] == ["system"]


def test_orphans_of_a_killed_supervisor_are_killed(running_jobs, database):
    """Descendants that outlive the supervisor are gone when the job is final."""
    job = running_jobs.submit(TREE_THAT_IGNORES_SIGTERM)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    supervisor, cookie = supervisor_of(database, job.id)
    assert len(carrying(cookie)) > 3

    os.kill(supervisor, signal.SIGKILL)
    job = running_jobs.wait(job.id, timeout=30)

    assert job.reason is Reason.LOST
    assert carrying(cookie) == []


def test_a_lost_job_that_was_to_stop_is_stopped(running_jobs, database):
    """A stop request makes a lost job STOPPED; the exit code stays unknown."""
    job = running_jobs.submit(TREE_THAT_IGNORES_SIGTERM, grace=300)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    supervisor, _ = supervisor_of(database, job.id)
    running_jobs.stop_job(job.id)

    os.kill(supervisor, signal.SIGKILL)
    job = running_jobs.wait(job.id, timeout=30)

    assert (job.status, job.exit_code, job.reason) == (Status.STOPPED, None, Reason.LOST)


def test_a_stopped_supervisor_is_woken_for_a_stop(running_jobs, database):
    """A SIGSTOPped supervisor is woken, and stops its job."""
    job = running_jobs.submit(SLEEPS, grace=0.1)
    assert next(running_jobs.follow(job.id, timeout=30)).text == "ready"
    supervisor, _ = supervisor_of(database, job.id)
    os.kill(supervisor, signal.SIGSTOP)

    running_jobs.stop_job(job.id)
    job = running_jobs.wait(job.id, timeout=30)

    assert (job.status, job.reason, job.signal) == (Status.STOPPED, Reason.STOPPED, 15)


def test_host_and_supervisor_killed_together_resolve_at_the_next_read(database):
    """When everything dies at once, the next manager says so; it waits for no timer."""
    with (
        host(submit_and_serve, database, SLEEPS) as killed,
        JobManager(database, slots=0) as jobs,
    ):
        (job,) = jobs.list_jobs() if killed.hear() else []
        assert next(jobs.follow(job.id, timeout=30)).text == "ready"
        supervisor, cookie = supervisor_of(database, job.id)
        os.kill(killed.pid, signal.SIGSTOP)
        os.kill(supervisor, signal.SIGKILL)
        killed.kill()

        job = jobs.wait(job.id, timeout=30)

        assert (job.status, job.exit_code, job.reason) == (Status.ERROR, None, Reason.LOST)
        assert carrying(cookie) == []
    assert os.listdir(database + ".jobs") == ["store"]


@in_rounds(smoke=8, full=300)
def test_supervisors_killed_at_any_moment_invent_nothing(tmp_path, rounds, fork_server):
    """Supervisors SIGKILLed, half of them at failpoints: what they had written is kept, no more."""
    lost = 0
    for chance in rounds:
        with place(tmp_path, rounds.number) as where:
            trap = None
            if chance.random() < 0.5:
                # The 20th frame of a job that says much; the other points come once a job.
                point = chance.choice(failpoints.SUPERVISOR)
                often = 20 if point == failpoints.FRAME_WRITTEN else 2
                trap = Trap(point, KILL_SELF, chance.randint(1, often))
            plan = draw(chance)
            if trap is None:
                plan[0] = (chance.choice((1, 400, 4000)), "STAY", 0)
            with host(carry_out, where, plan, fork_server.launcher(trap)) as serving:
                while trap is None and not serving.done:
                    serving.live(chance.uniform(0, 0.1))
                    kill(supervisors(where))
                said = serving.kill_after(60)  # it is done when all is settled
            with JobManager(where.database, slots=0) as jobs:
                check(jobs, where.sides)
                found = jobs.list_jobs()
            lost += sum(job.reason is Reason.LOST for job in found)

            assert said[-1] == "done"
            assert {str(job.id) for job in found} == set(said[:-1])
            assert all(job.status.final for job in found)
            assert all(job.exit_code is None for job in found if job.reason is Reason.LOST)
    assert lost


@in_rounds(smoke=8, full=300, long=True)
def test_all_killed_at_once_is_resolved_by_the_next_host(tmp_path, rounds, fork_server):
    """Host, supervisors and commands SIGKILLed together: every RUNNING job is told the truth of."""
    life, _ = survey(tmp_path, fork_server.launcher(), draw(rounds.chance()))
    lost = 0
    for chance in rounds:
        with place(tmp_path, rounds.number) as where:
            plan = draw(chance)
            plan[chance.randrange(3)] = (chance.choice((1, 400, 4000)), "STAY", 0)
            with host(carry_out, where, plan, fork_server.launcher()) as killed:
                killed.live(chance.uniform(0, 2 * life))
                os.kill(killed.pid, signal.SIGSTOP)  # it shall not see the others die
                kill(supervisors(where))
                kill(commands(where))
                submitted = set(killed.kill_after(0)) - {"done"}
            with JobManager(where.database, slots=2, launcher=fork_server.launcher()) as jobs:
                jobs.recover()
                stop_those_that_stay(jobs)
                settle_all(jobs)
                # A supervisor that was just being started has seen its command be killed.
                check(jobs, where.sides, killed=True)
                found = jobs.list_jobs()
            lost += sum(job.reason is Reason.LOST for job in found)

            assert submitted <= {str(job.id) for job in found}
            assert all(job.exit_code is None for job in found if job.reason is Reason.LOST)
    assert lost
