"""A host gets SIGKILL: its jobs keep running, and the next manager finds how they ended."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from uuid import UUID

from jobcore import JobManager, Reason, Status
from tests.faults.fork_server import KILL_SELF, Trap
from tests.faults.hosts import host, submit_and_serve
from tests.faults.invariants import check
from tests.faults.plans import carry_out, draw, place, settle_all, survey
from tests.faults.rounds import SEED, in_rounds
from tests.jobfiles import cookie_of
from tests.processes import carrying, until
from tests.programs import PRINTS_UNTIL, python

#: Prints 200,000 numbered lines and exits 7.
NUMBERS = python("""
import sys
for start in range(0, 200000, 1000):
    sys.stdout.write("".join(f"line {n}\\n" for n in range(start, start + 1000)))
    sys.stdout.flush()
sys.exit(7)
""")


def test_a_killed_host_loses_no_line_and_no_exit_code(database):
    """A host SIGKILLed in the middle of 200,000 lines leaves each of them once, in order."""
    print(f"JOBCORE_TEST_SEED={SEED}")
    with host(submit_and_serve, database, NUMBERS) as killed:
        job_id = killed.hear()
        goal = random.Random(SEED).randrange(1, 150_000)
        connection = sqlite3.connect(database)
        until(
            lambda: connection.execute("SELECT next_sequence FROM job").fetchone()[0] >= goal,
            f"line {goal}",
        )
        connection.close()
        killed.kill()

    with JobManager(database) as jobs:
        job = jobs.wait(job_id, timeout=60)
        lines = [line.text for line in jobs.logs(job_id)]

    assert (job.status, job.exit_code, job.reason) == (Status.ERROR, 7, Reason.EXITED)
    assert lines == [f"line {n}" for n in range(200_000)]


def lead_a_group(say, database, command):
    """Be a host that a shell has started: the first of its process group."""
    os.setpgid(0, 0)
    submit_and_serve(say, database, command)


def test_a_host_that_is_killed_with_its_group_is_outlived(database, tmp_path):
    """A signal to the host's whole process group reaches neither its supervisors nor its jobs."""
    go = str(tmp_path / "go")
    with (
        host(lead_a_group, database, [*PRINTS_UNTIL, go]) as killed,
        JobManager(database, slots=0) as jobs,
    ):
        job_id = killed.hear()
        assert next(jobs.follow(job_id, timeout=60)).text == "line 0"
        os.killpg(killed.pid, signal.SIGKILL)
        killed.end()
        open(go, "x").close()
        job = jobs.wait(job_id, timeout=60)
        lines = [line.text for line in jobs.logs(job_id)]

    assert (job.exit_code, job.reason) == (5, Reason.EXITED)
    assert lines == [*(f"line {n}" for n in range(len(lines) - 1)), "last"]


def test_a_time_out_holds_without_any_host(database):
    """A host killed right after the start leaves a time-out that is kept all the same."""
    with host(submit_and_serve, database, ["sleep", "60"], {"timeout": 1}) as killed:
        job_id = killed.hear()
        connection = sqlite3.connect(database)
        until(
            lambda: connection.execute("SELECT status FROM job").fetchone()[0] == "RUNNING",
            "the start",
        )
        connection.close()
        cookie = cookie_of(database, UUID(job_id))
        until(lambda: len(carrying(cookie)) == 1, "the command")
        killed.kill()
    until(lambda: not carrying(cookie), "the end of the command, with no host alive")

    with JobManager(database, slots=0) as jobs:
        job = jobs.get_job(job_id)

    assert (job.status, job.reason) == (Status.STOPPED, Reason.TIMEOUT)
    assert (job.end_time - job.start_time).total_seconds() >= 1


def test_reading_settles_jobs_of_a_killed_host(database):
    """A manager with `slots=0` also finds how the jobs of a killed host ended."""
    with host(submit_and_serve, database, ["sh", "-c", "echo bye; exit 5"]) as killed:
        job_id = killed.hear()
        connection = sqlite3.connect(database)
        until(
            lambda: connection.execute("SELECT status FROM job").fetchone()[0] != "QUEUED",
            "the start",
        )
        connection.close()
        killed.kill()

    with JobManager(database, slots=0) as jobs:
        job = jobs.wait(job_id, timeout=30)
        text = b"".join(jobs.log_text(job_id))

    # Killed between claim and send it never started; there is no third way.
    if job.reason is Reason.NEVER_STARTED:
        assert (job.status, job.exit_code) == (Status.ERROR, None)
    else:
        assert (job.status, job.exit_code, text) == (Status.ERROR, 5, b"bye\n")


@in_rounds(smoke=6, full=1000, long=True)
def test_hosts_killed_at_any_moment_leave_only_the_truth(tmp_path, rounds, fork_server):
    """Hosts SIGKILLed, half of them at failpoints: all lines, codes and statuses are found."""
    life, reached = survey(tmp_path, fork_server.launcher(), draw(rounds.chance()))
    for chance in rounds:
        with place(tmp_path, rounds.number) as where:
            submitted = []
            # A second host is killed on the way that the first one has left.
            for _ in range(chance.choice((1, 1, 2))):
                trap, moment = None, chance.uniform(0, 1.2 * life)
                if chance.random() < 0.5:
                    at = chance.randrange(len(reached))
                    nth = reached[: at + 1].count(reached[at])
                    trap, moment = Trap(reached[at], KILL_SELF, nth), 3 * life
                with host(carry_out, where, draw(chance), fork_server.launcher(), trap) as killed:
                    said = killed.kill_after(moment)
                submitted += [job_id for job_id in said if job_id != "done"]
            with JobManager(where.database, slots=2, launcher=fork_server.launcher()) as jobs:
                settle_all(jobs)
                check(jobs, where.sides)
                known = {str(job.id) for job in jobs.list_jobs()}

            assert set(submitted) <= known
