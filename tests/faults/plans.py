"""Plans: the jobs of one round, drawn by its chances, and the hosts that run them."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing, contextmanager

from jobcore import JobManager
from jobcore.embedding import failpoints
from jobcore.engine import orphans
from jobcore.supervisor import job_directory
from tests.faults.hosts import host
from tests.faults.invariants import living
from tests.faults.witness import ENDS, witness

#: Lines of a job: most are short, some fill the pipe, a few are cut by every kill.
_LINES = (0, 1, 3, 20, 100, 400, 2000)


class Place:
    """
    Where one round happens.

    Attributes:
        database: Its file.
        sides: The directory for what witnesses say.
    """

    def __init__(self, path):
        self.database = str(path / "jobs.db")
        self.sides = str(path / "sides")
        os.makedirs(self.sides)


@contextmanager
def place(parent, number):
    """Give a new place, which is removed where nothing went wrong in it."""
    path = parent / f"round-{number}"
    yield Place(path)
    shutil.rmtree(path)


def draw(chance, jobs=3):
    """Return what to submit: for each job its lines, its end, and how often it pauses."""
    return [
        (chance.choice(_LINES), chance.choice(list(ENDS)), chance.choice((0, 0, 1, 4)))
        for _ in range(jobs)
    ]


def submit(jobs, sides, plan, **options):
    """Submit a plan, one commit each; yields the jobs."""
    for lines, end, pauses in plan:
        command = witness(sides, lines, end, pauses=pauses)
        yield jobs.submit(command, data={"end": end}, **options)


def carry_out(say, where, plan, launcher=None, trap=None):
    """Submit a plan, run it, and stay until killed; say each id, and when all is done."""
    if trap is not None:
        failpoints.arm(trap)
    with JobManager(where.database, slots=2, launcher=launcher) as jobs:
        for job in submit(jobs, where.sides, plan):
            say(str(job.id))
        jobs.drain()
        say("done")
        signal.pause()


def _count(say, where, plan, launcher):
    """Carry out a plan, and say each failpoint that is reached."""
    failpoints.arm(lambda point, _host: say(f"reached {point}"))
    carry_out(say, where, plan, launcher)


def survey(parent, launcher, plan):
    """Carry out a plan undisturbed; return how long it took, and every failpoint in its order."""
    with place(parent, "undisturbed") as where:
        begun = time.monotonic()
        with host(carry_out, where, plan, launcher) as undisturbed:
            while undisturbed.hear() != "done":
                pass
            life = time.monotonic() - begun
    with place(parent, "counted") as where, host(_count, where, plan, launcher) as counted:
        said = list(iter(counted.hear, "done"))
    return life, [line.removeprefix("reached ") for line in said if line.startswith("reached ")]


def settle_all(jobs, patience=60):
    """Run what is queued, and wait until every job is final."""
    jobs.drain(patience)
    for job in jobs.list_jobs():
        jobs.wait(job.id, timeout=patience)


def supervisors(where):
    """Return the pids of the supervisors that run jobs now, by the records that they wrote."""
    root = f"{where.database}.jobs"
    found = []
    for name in os.listdir(root) if os.path.exists(root) else ():
        try:
            directory = os.open(os.path.join(root, name), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue  # no directory, or gone by now
        try:
            record = job_directory.read_record(directory, job_directory.RUN)
            if record is not None and orphans.holds(record["supervisor"], record["token"]):
                found.append(record["supervisor"])
        except FileNotFoundError:
            pass
        finally:
            os.close(directory)
    return found


def commands(where):
    """Return the pids of all processes of jobs of this place."""
    try:
        with closing(sqlite3.connect(f"file:{where.database}?mode=ro", uri=True)) as connection:
            cookies = connection.execute("SELECT cookie FROM job").fetchall()
    except sqlite3.OperationalError:
        return []  # there is no such table yet
    alive = living()
    return [pid for (cookie,) in cookies for pid in alive.get(cookie, ())]
