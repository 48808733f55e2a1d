"""
Forks: a host may fork while its threads write; all that any process wrote is there.

The parent's threads are in the middle of something at nearly every fork. The
children write at once, and together, through the manager that was open.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
import threading
import warnings
from datetime import datetime, timezone
from uuid import UUID

import pytest
from pydantic import BaseModel

from jobcore import Job, JobManager, Progress, models
from jobcore.embedding.locks import GATE
from tests.faults.hosts import host
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.processes import PATIENCE, Child
from tests.programs import EXIT_0

CHILDREN = 4
PROGRESS = {"done": 1, "total": None, "message": None, "at": datetime.now(timezone.utc)}
#: What the parent's threads do in a round: it begins with the forks, and takes as long as they.
WRITES = 6


def run_task(jobs, lines):
    """Do a task with so many lines, from its start to its end, and return its id."""
    job = jobs.create_job()
    jobs.start_job(job.id)
    for number in range(lines):
        jobs.append_log(job.id, f"line {number}")
    jobs.finish_job(job.id)
    return str(job.id)


def be_child(jobs, seed):
    """Write in a forked child, in its main thread and in one of its own; return what it wrote."""
    signal.alarm(int(PATIENCE))  # the parent's was not inherited
    chance = random.Random(seed)
    written = []
    thread = threading.Thread(target=lambda: written.append(run_task(jobs, chance.randint(0, 2))))
    thread.start()
    written.append(str(jobs.submit(EXIT_0).id))
    thread.join(PATIENCE)
    assert len(written) == 2, "a thread of the child did not come back"
    return written


def answer(way, jobs, seed):
    """Do the same in a child of `multiprocessing`, whose answer goes through a pipe."""
    way.send(be_child(jobs, seed))


class ProcessChild:
    """A child as `multiprocessing` forks it."""

    def __init__(self, jobs, seed):
        context = multiprocessing.get_context("fork")
        self._reader, writer = context.Pipe(duplex=False)
        self._process = context.Process(target=answer, args=(writer, jobs, seed))
        with warnings.catch_warnings():
            # A host with threads may fork; that we do so here is the point.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        writer.close()

    def result(self):
        """Return what it has written."""
        assert self._reader.poll(PATIENCE), "a child of multiprocessing did not answer"
        written = self._reader.recv()
        self._process.join(PATIENCE)
        assert self._process.exitcode == 0
        self._reader.close()
        return written


def fork_again_and_again(say, database, seeds):
    """Fork children while two threads write; say everything that was written, and by whom."""
    jobs = JobManager(database, slots=0)
    turns = threading.Semaphore(0)  # so that a slow machine does not make more to be checked
    ending = threading.Event()
    written = []

    def work():
        while turns.acquire(timeout=PATIENCE) and not ending.is_set():
            written.append(run_task(jobs, 2))
            written.append(str(jobs.submit(EXIT_0).id))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for seed in seeds:
        signal.alarm(int(2 * PATIENCE))  # a deadlock ends it
        turns.release(WRITES)
        children = [Child(be_child, jobs, f"{seed} {number}") for number in range(CHILDREN - 1)]
        children.append(ProcessChild(jobs, seed))
        written.append(run_task(jobs, 1))
        for child in children:
            written.extend(child.result())
    ending.set()
    turns.release(2)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread of the parent does not come back"
    jobs.close()
    for one in written:
        say(one)


@in_rounds(smoke=2, full=200, long=True)
def test_all_concurrent_writes_of_parent_and_children_are_kept(database, rounds):
    """Forks in the middle of other threads' transactions neither lose nor block anything."""
    seeds = [rounds.chance(number).random() for number in rounds.numbers()]
    with host(fork_again_and_again, database, seeds) as process:
        written = []
        while line := process.hear():
            written.append(line)
        assert process.end() == 0
    rounds.did(len(seeds))

    assert len(written) > len(seeds) * (2 * CHILDREN + 1)
    assert len(set(written)) == len(written)
    with JobManager(database, slots=0) as jobs:
        for one in written:
            job = jobs.get_job(UUID(one))
            lines = [line.text for line in jobs.logs(job.id)]
            assert lines == [f"line {number}" for number in range(len(lines))]
        assert sum(jobs.count_jobs().values()) == len(written)
        check(jobs)


@pytest.mark.parametrize(
    ("step", "use"),
    [
        ("model_rebuild", Job.model_rebuild),
        ("model_validate", lambda: Job._checked({})),
        ("model_dump", lambda: Progress._checked(PROGRESS)),
        ("model_dump_json", lambda: Progress._checked(PROGRESS)),
    ],
)
def test_no_fork_comes_while_a_model_is_made_ready(monkeypatch, step, use):
    """A child would wait for ever for the thread that builds, checks or writes the first one."""
    begun, go_on = threading.Event(), threading.Event()

    def make_ready(*_args, **_options):
        begun.set()
        assert go_on.wait(PATIENCE)
        return Progress.model_construct()

    monkeypatch.setattr(models, "_used", set())
    monkeypatch.setattr(BaseModel, step, make_ready)
    builder = threading.Thread(target=use)
    builder.start()
    assert begun.wait(PATIENCE)
    kept_out = not GATE.hold(0)  # which every fork waits for
    go_on.set()
    builder.join(PATIENCE)

    assert kept_out
    assert GATE.hold(0)
    GATE.release()
