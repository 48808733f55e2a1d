"""Threads that share one manager, and call whatever there is to be called, all at once."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from jobcore import InvalidTransition, JobManager, JobNotFound, JobNotRunning
from tests.faults.invariants import check
from tests.faults.plans import draw, place, settle_all, submit
from tests.faults.rounds import in_rounds
from tests.faults.witness import expected

pytestmark = pytest.mark.usefixtures("warm_supervisors")

THREADS = 8
#: Calls of each of them.
CALLS = 12
#: What any call may come to, where another thread was faster.
TOO_LATE = (InvalidTransition, JobNotFound, JobNotRunning)  # JobDeleted is a JobNotFound


def create(jobs, where, chance):
    """Submit a command, and keep another job without one."""
    yield from submit(jobs, where.sides, draw(chance, 1))
    own = jobs.create_job("TASK")
    yield own
    jobs.start_job(own.id)
    said = expected(2)
    jobs.append_log(own.id, *said.splitlines(keepends=True))
    Path(where.sides, str(own.id)).write_bytes(said)  # its own witness
    jobs.finish_job(own.id, chance.choice((0, 3)))


def act(jobs, where, chance, known):
    """Do one thing, with one of the jobs that any thread has made."""
    job = chance.choice(known) if known else None
    if job is None or chance.random() < 0.3:
        for made in create(jobs, where, chance):
            known.append(made)  # at once: the others may do with it what they like
        return
    verb = chance.choice(
        [
            lambda: jobs.wait(job.id, timeout=60),
            lambda: [line.sequence for line in jobs.follow(job.id, timeout=60, unfinished=False)],
            lambda: list(jobs.logs(job.id, limit=10)),
            lambda: jobs.stop_job(job.id, grace=0),
            lambda: jobs.cancel_job(job.id),
            lambda: jobs.delete_job(job.id),
            lambda: jobs.history(job.id),
            lambda: jobs.list_jobs(limit=5),
            jobs.recover,
            jobs.count_jobs,
        ]
    )
    verb()


@in_rounds(smoke=1, full=20)
def test_threads_that_do_anything_at_once_leave_only_the_truth(tmp_path, rounds, fork_server):
    """Eight threads on one manager: each call works or is told why, and all invariants hold."""
    for chance in rounds:
        with (
            place(tmp_path, rounds.number) as where,
            JobManager(where.database, slots=2, launcher=fork_server.launcher()) as jobs,
        ):
            known, failures = [], []

            def run(seed, jobs=jobs, where=where, known=known, failures=failures):
                own = random.Random(seed)
                try:
                    for _ in range(CALLS):
                        with suppress(*TOO_LATE):
                            act(jobs, where, own, known)
                except BaseException as error:  # noqa: BLE001 - told below, whatever it is
                    failures.append(error)

            threads = [
                threading.Thread(target=run, args=(chance.random(),)) for _ in range(THREADS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)

            assert failures == []
            assert not any(thread.is_alive() for thread in threads)
            settle_all(jobs)
            check(jobs, where.sides)
