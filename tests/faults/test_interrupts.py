"""
Interrupts: a Ctrl-C at any moment of any call leaves nothing held, and nothing half done.

The host keeps each KeyboardInterrupt, and with its traceback all frames that it
passed: what only their end would let go of stays held for ever.
"""

from __future__ import annotations

import faulthandler
import logging
import random
import signal
import sqlite3
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

import jobcore
from jobcore import JobManager
from jobcore.embedding.locks import GATE
from jobcore.testing.parts import parts
from tests.faults.hosts import host
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.opcodes import Opcodes
from tests.processes import PATIENCE, in_child, until
from tests.programs import EXIT_0

#: Seconds that a thread of this process waits: nothing here takes as long.
AT_ONCE = 10.0
#: Seconds within which a second process can always write. Not 0: right after a commit a
#: checkpoint has the write lock for 0.1 to 0.3 s. A lock that is left behind stays.
WITHIN = 1.0
#: A command that an interrupted stop may leave running.
LASTS = ["sleep", "1"]


# --- what hosts call --------------------------------------------------------------


def create(jobs, known):
    """Queue a job."""
    known.append(jobs.create_job().id)


def submit(jobs, known):
    """Submit a command."""
    known.append(jobs.submit(EXIT_0).id)


def run_task(jobs, known):
    """Do a task itself, from its start to its end; no manager that runs jobs takes it."""
    job = jobs.create_job(type="OWN")
    known.append(job.id)
    jobs.start_job(job.id)
    jobs.append_log(job.id, "one", "two")
    jobs.report_progress(job.id, 1, 2)
    jobs.finish_job(job.id)


def stop(jobs, known):
    """Submit a command and stop it, or take it from the queue."""
    job = jobs.submit(LASTS, grace=0)
    known.append(job.id)
    jobs.cancel_job(job.id)


def read(jobs, known):
    """Look at jobs in all ways."""
    for job_id in known[-3:]:
        jobs.get_job(job_id)
        list(jobs.logs(job_id))
        jobs.history(job_id)
    jobs.list_jobs(limit=5)
    list(jobs.events(limit=20))


def wait(jobs, known):
    """Wait for a job that has still some time to go."""
    try:
        jobs.wait(known[-1], timeout=0.02)
    except jobcore.WaitTimeout:
        pass


def delete(jobs, _known):
    """Remove a job, which ends it first."""
    job_id = jobs.submit(LASTS, grace=0).id
    jobs.delete_job(job_id)


def open_another(jobs, known):
    """Open the database once more, listen to it, and close it."""
    with JobManager(parts(jobs).database.path, slots=0) as other:
        other.subscribe(str)
        known.append(other.create_job().id)


CALLS = [create, submit, run_task, stop, read, wait, delete, open_another]


# --- interrupting them ------------------------------------------------------------


def before_a_bytecode(call, chance, usual):
    """Interrupt a call before one of its bytecodes, as if a signal arrived there."""
    with Opcodes(chance.randint(1, usual), (__file__,)) as opcodes:
        try:
            call()
        finally:
            before_a_bytecode.where = opcodes.where


def bytecodes_of(call):
    """Return how many bytecodes a call takes."""
    with Opcodes(never=(__file__,)) as opcodes:
        call()
    return opcodes.number


def after_a_while(call, chance, usual):
    """Interrupt a call with a signal after any part of the time that it takes."""
    try:
        signal.setitimer(signal.ITIMER_REAL, max(chance.uniform(0, usual), 1e-6))
        call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def seconds_of(call):
    """Return how long a call takes."""
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


WAYS = {
    "bytecode": (before_a_bytecode, bytecodes_of),
    "signal": (after_a_while, seconds_of),
    "alarm": (after_a_while, seconds_of),
}


class HostsTimeout(Exception):
    """What a host's own handler of SIGALRM raises; no OSError, which may be taken for a file's."""


class Alarm(logging.Handler):
    """A handler that raises, and notes whether that came to nobody."""

    def __init__(self):
        super().__init__()
        self.rang = None  # where
        self.dropped = False  # by others: jobcore itself hands it on
        sys.unraisablehook = self._note  # Python's, as in a callback of a weak reference
        logging.getLogger("sqlalchemy.pool").addHandler(self)  # what closes connections

    def __call__(self, _number, frame):
        self.rang = "".join(traceback.format_stack(frame, 12))
        raise HostsTimeout

    def _note(self, dropped):
        self.dropped = self.dropped or isinstance(dropped.exc_value, HostsTimeout)

    def emit(self, record):
        """Note an exception that SQLAlchemy has logged instead of raising it."""
        error = (record.exc_info or (None, None))[1]
        self.dropped = self.dropped or isinstance(error, HostsTimeout)


def in_thread(function, *arguments):
    """Return what a function returns, or raise what it raises, in a thread of its own."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(function, *arguments).result(AT_ONCE)
    finally:
        pool.shutdown(wait=False)


def interrupt_calls(say, database, launcher, way, slots, seeds):
    """Interrupt call after call, and look each time at what is held; say what is known to exist."""
    alarm = Alarm()
    # As SIGINT, but for a timer.
    signal.signal(signal.SIGALRM, alarm if way == "alarm" else signal.default_int_handler)
    interrupt, measure = WAYS[way]
    kept, known, usual = [], [], {}
    jobs = JobManager(
        database, slots=slots, launcher=launcher if slots else None, busy_timeout=AT_ONCE / 2
    )
    for call in CALLS:
        call(jobs, known)  # for what is made once
        usual[call] = measure(lambda call=call: call(jobs, known))
    for seed in until_one_hits(seeds, kept):
        chance = random.Random(seed)
        call = chance.choice(CALLS)
        faulthandler.dump_traceback_later(3 * AT_ONCE, exit=True)
        try:
            interrupt(lambda call=call: call(jobs, known), chance, usual[call])
        except (KeyboardInterrupt, HostsTimeout) as error:
            kept.append(error)
            alarm.rang = None
        try:
            assert alarm.dropped or alarm.rang is None, alarm.rang
            alarm.rang, alarm.dropped = None, False
            # Before this process writes again: that would close what was left open.
            require_free(database)
            known.append(in_thread(jobs.create_job).id)
            require_free(database)
            assert in_thread(held_by_others) == []
        except BaseException:
            where = getattr(before_a_bytecode, "where", None)
            say(f"{call.__name__} {seed!r} interrupted at {where}")
            raise
    faulthandler.dump_traceback_later(3 * PATIENCE, exit=True)
    say(f"interrupted {len(kept)}")
    # Whoever forks waits until nobody is inside any more.
    known.append(in_child(lambda: jobs.create_job().id))
    if slots:
        jobs.wait(jobs.submit(EXIT_0).id, timeout=PATIENCE)
    jobs.close()
    for job_id in known:
        say(f"known {job_id}")


def until_one_hits(seeds, kept):
    """Give these seeds, and further ones while no call was interrupted: a call may end before."""
    yield from seeds
    further = random.Random(seeds[-1])
    while not kept:
        yield further.random()


def require_free(database):
    """Raise unless another connection can write, as that of a second process."""
    with closing(sqlite3.connect(database, timeout=WITHIN)) as other:
        other.execute("BEGIN IMMEDIATE")


def held_by_others():
    """Return what another thread holds for longer than a moment."""
    return [lock for lock in (GATE._forks, GATE) if not is_free(lock)]


def is_free(lock):
    """Tell whether a lock can be had."""
    if lock.hold(AT_ONCE / 2):
        lock.release()
        return True
    return False


@pytest.mark.parametrize("slots", [0, 2], ids=["bookkeeping", "running"])
@pytest.mark.parametrize("way", WAYS)
@in_rounds(smoke=5, full=300)
def test_an_interrupt_leaves_nothing_held_and_nothing_half(
    database, rounds, fork_server, way, slots
):
    """After a Ctrl-C anywhere everybody can write at once, and what had returned is there."""
    seeds = [rounds.chance(number).random() for number in rounds.numbers()]
    with host(interrupt_calls, database, fork_server.launcher(), way, slots, seeds) as process:
        told = []
        while line := process.hear():
            told.append(line)
        assert process.end() == 0, "\n".join(told)
    rounds.did(len(seeds))

    interrupted = next(int(line.split()[1]) for line in told if line.startswith("interrupted"))
    known = [line.split()[1] for line in told if line.startswith("known")]
    assert interrupted > 0
    with JobManager(database, slots=0) as jobs:
        for job_id in known:
            jobs.get_job(job_id)
        until(lambda: is_idle(jobs), "the end of what was running")
        check(jobs)


def is_idle(jobs):
    """Tell whether no supervised job runs any more."""
    jobs.recover()
    with closing(sqlite3.connect(parts(jobs).database.path)) as connection:
        query = "SELECT count(*) FROM job WHERE status = 'RUNNING' AND token IS NOT NULL"
        return connection.execute(query).fetchone() == (0,)
