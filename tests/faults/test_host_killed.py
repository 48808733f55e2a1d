"""A host that is SIGKILLed: its jobs live on, and the next manager tells the truth of them."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path

from jobcore import JobManager, Reason, Status
from tests.faults.hosts import host, serve, submit_and_serve
from tests.faults.rounds import SEED, in_rounds
from tests.processes import carrying, until
from tests.programs import python

#: Prints 200,000 numbered lines and exits 7.
NUMBERS = python("""
import sys
for start in range(0, 200000, 1000):
    sys.stdout.write("".join(f"line {n}\\n" for n in range(start, start + 1000)))
    sys.stdout.flush()
sys.exit(7)
""")


def cookie_of(database, job_id):
    connection = sqlite3.connect(database)
    try:
        query = "SELECT cookie FROM job WHERE id = ?"
        return connection.execute(query, (job_id.replace("-", ""),)).fetchone()[0]
    finally:
        connection.close()


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
        cookie = cookie_of(database, job_id)
        until(lambda: len(carrying(cookie)) == 1, "the command")
        killed.kill()
    until(lambda: not carrying(cookie), "the end of the command, with no host alive")

    with JobManager(database, slots=0) as jobs:
        job = jobs.get_job(job_id)

    assert (job.status, job.reason) == (Status.STOPPED, Reason.TIMEOUT)
    assert (job.end_time - job.start_time).total_seconds() >= 1


def test_jobs_of_a_killed_host_settle_by_a_mere_read(database):
    """A manager without a thread tells how a job ended whose host died."""
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


@in_rounds(smoke=30, full=300)
def test_kills_at_random_moments_leave_only_the_truth(database, rounds):
    """Hosts killed at random instants: every job ends once, with what it really did."""
    side = database + ".side"
    # Its own witness: a line for each start, in a file that jobcore knows nothing of.
    script = f'echo "$JOBCORE_JOB_ID" >> {side}; for i in 1 2 3; do echo $i; done; exit 9'
    command = ["sh", "-c", script]
    with JobManager(database, slots=0) as jobs:
        submitted = [jobs.submit(command).id for _ in range(rounds.total)]
    for chance in rounds:
        with host(serve, database) as killed:
            killed.hear()
            time.sleep(chance.random() * 0.05)  # the instant of death, not a wait for anything
    with JobManager(database, slots=2) as jobs:
        jobs.drain(60)
        ended = [jobs.wait(job_id, timeout=60) for job_id in submitted]
        logs = {job.id: b"".join(jobs.log_text(job.id)) for job in ended}
    started = Path(side).read_text(encoding="utf-8").split()

    assert len(started) == len(set(started))
    for job in ended:
        if job.reason is Reason.EXITED:
            assert (job.status, job.exit_code) == (Status.ERROR, 9)
            assert logs[job.id] == b"1\n2\n3\n"
        else:
            assert (job.status, job.exit_code, job.reason) == (
                Status.ERROR, None, Reason.NEVER_STARTED,
            )  # fmt: skip
            assert str(job.id) not in started
