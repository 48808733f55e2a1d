"""
Bursts: several interrupts within milliseconds leave nothing held, and nothing half done.

A terminal signals its whole process group, and npm, make or a CI runner forwards its own signal.
The host is a console: it catches what is raised, keeps it in `sys.last_value`, and goes on. The
test is the second process, which must always be able to write.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import random
import re
import select
import signal
import sqlite3
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import thread as futures
from contextlib import ExitStack, closing, suppress
from functools import partial

import pytest

from jobcore import JobcoreError, JobManager, Status, WaitTimeout
from jobcore.supervisor import job_directory
from jobcore.tuning import SPARE_CONNECTIONS
from tests.faults.hosts import host, serve
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.processes import PATIENCE, descriptors, join, until
from tests.programs import EXIT_0

#: Interrupts of a burst at most, and seconds between two of them at most.
MOST, APART = 5, 0.07
#: Objects that a host of the full rounds has: what walks all of them takes long enough to be hit.
CROWD = 2_000_000
#: Seconds that the second process waits until it can write. SQLite counts the delays that it
#: asks for, not those that it gets, so a slow machine does not make it less.
AT_ONCE = 1.0
#: Seconds after which a host that does not go on prints the stacks of its threads, and ends.
STUCK = 3 * PATIENCE

SPEAKS = ["sh", "-c", "echo one; sleep 0.05; echo two"]


class HostsCancel(BaseException):
    """What a thread of the host raises in another one."""


RAISED = (KeyboardInterrupt, SystemExit, HostsCancel)


class Console:
    """
    Calls a manager again and again, and goes on after whatever a call raises.

    Attributes:
        known: The ids of jobs that a call returned.
        tried: The names of jobs that a call was to submit.
        strange: What calls raised that is neither an interrupt nor jobcore's.
    """

    def __init__(self, jobs, chance):
        self.jobs = jobs
        self.known, self.tried, self.strange = [], [], []
        self._calls = [
            self._submit, self._keep_books, self._stop, self._read, self._follow, self._delete,
            jobs.recover,
        ]  # fmt: skip
        self._chance = chance

    def call_each(self):
        """Make each call once, for what is made once."""
        for call in self._calls:
            call()

    def go_on_until(self, ended, depth=MOST):
        """Call until `ended`; what hits the handler of one level is caught by the next."""
        while True:
            try:
                if depth:
                    self.go_on_until(ended, depth - 1)
                else:
                    while not ended():
                        self._call()
                return
            except BaseException as error:  # noqa: BLE001 - as a console
                sys.last_value = error
                if not isinstance(error, RAISED):
                    self.strange.append("".join(traceback.format_exception(error)))

    def _call(self):
        with suppress(JobcoreError):  # a job of an interrupted call may be in any state
            self._chance.choice(self._calls)()

    def _submit(self):
        self.tried.append(f"job {len(self.tried)}")
        self.known.append(self.jobs.submit(SPEAKS, name=self.tried[-1]).id)

    def _keep_books(self):
        job = self.jobs.create_job("OWN")
        self.jobs.start_job(job.id)
        self.jobs.append_log(job.id, "one", "two")
        self.jobs.finish_job(job.id)

    def _stop(self):
        self.jobs.cancel_job(self.jobs.submit(["sleep", "1"], grace=0).id)

    def _read(self):
        for job_id in self.known[-3:]:
            self.jobs.get_job(job_id)
            list(self.jobs.tail(job_id, 2))
            self.jobs.history(job_id)
        self.jobs.list_jobs(limit=5)

    def _follow(self):
        with suppress(WaitTimeout):
            list(self.jobs.follow(self.known[-1], timeout=0.05))

    def _delete(self):
        self.jobs.delete_job(self.jobs.submit(EXIT_0).id)


# --- who interrupts it ------------------------------------------------------------


def burst(chance):
    """Return the seconds before each interrupt of a burst: some are as good as at once."""
    gaps = [chance.choice((0.0, 0.003, APART)) * chance.random() for _ in range(MOST - 1)]
    return [chance.uniform(0, 0.1), *gaps[: chance.randrange(MOST)]]


def be_signalled(console, told, _chance, begin):
    """Make calls in the main thread until the other process says that its signals are over."""
    begun = []

    def ended():
        if not begun:
            # Here, where they are caught: the first signal may come before this returns.
            begun.append(True)
            begin()
        return select.select([told], [], [], 0)[0]

    console.go_on_until(ended)
    os.read(told, 1)


def be_raised_in(console, _told, chance, begin):
    """Make calls in a thread in which this one raises exceptions."""
    begin()
    over = threading.Event()

    def work():
        with suppress(*RAISED):  # one that comes after the last call
            console.go_on_until(over.is_set)

    thread = threading.Thread(target=work)
    thread.start()
    for pause in burst(chance):
        time.sleep(pause)
        raise_in(thread, chance.choice(RAISED))
    over.set()
    join(thread)


def raise_in(thread, kind):
    """Raise an exception in another thread, before any of its next bytecodes."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(kind))


def interrupt(_console):
    """Handle SIGINT as Python does."""
    return signal.default_int_handler


def fork(console):
    """
    Handle SIGINT by a fork, whose child calls the manager.

    Between the hooks of a fork CPython holds a lock of `concurrent.futures` that is not
    reentrant: a second fork of the same thread, from a signal handler, waits for it for ever.
    """

    def handle(*_):
        if futures._global_shutdown_lock.locked():
            return
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(int(PATIENCE))  # ends it where it hangs
                with suppress(JobcoreError):  # it may be in the middle of another call
                    console.jobs.create_job("FORKED")
                code = 0
            finally:
                os._exit(code)
        ended = until(lambda: os.waitpid(pid, os.WNOHANG), "the end of a forked child", STUCK)
        if ended != (0, 0) and ended[1] != 0:
            console.strange.append(f"a forked child ended with {ended[1]}")

    return handle


def call(console):
    """Handle SIGINT by calls of the manager."""

    def handle(*_):
        with suppress(JobcoreError):  # DatabaseBusy, say, in the middle of another call
            job = console.jobs.create_job("HANDLED")
            console.known.append(job.id)
            list(console.jobs.logs(job.id))
            console.jobs.get_job(console.known[0])

    return handle


# --- the host -----------------------------------------------------------------


def converse(say, database, launcher, slots, crowd, told, work, handler, seeds):
    """Be interrupted in each round, and see after it that nothing is left of that."""
    keep = [[] for _ in range(crowd)]
    warnings.simplefilter("ignore")  # of forks beside threads, and of managers dropped half made
    jobs = JobManager(database, slots=slots, launcher=launcher, busy_timeout=PATIENCE)
    console = Console(jobs, random.Random(seeds[0]))
    console.call_each()
    come_to_rest(jobs)
    before = opened(database)
    there = {}
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, handler(console))
    for number, seed in enumerate(seeds):
        faulthandler.dump_traceback_later(STUCK, exit=True)
        work(console, told, random.Random(seed), partial(say, f"round {number}"))
        come_to_rest(jobs)
        assert console.strange == [], "\n".join(console.strange)
        assert left_open(database, before) == {}
        stored = names(database)
        for name in console.tried:
            # Absent for ever, or there for ever.
            assert there.setdefault(name, name in stored) == (name in stored), name
        say(f"rest {number}")
        os.read(told, 1)  # when the other process has looked
    faulthandler.dump_traceback_later(STUCK, exit=True)
    jobs.close()
    for job_id in console.known:
        say(f"known {job_id}")
    say(f"interrupted {hasattr(sys, 'last_value')}")
    assert len(keep) == crowd


def come_to_rest(jobs):
    """Wait until another thread has written and nothing runs any more."""
    made = []
    thread = threading.Thread(target=lambda: made.append(jobs.create_job("LOOK")))
    thread.start()
    join(thread)
    assert made
    for job in jobs.list_jobs(type="OWN", status=Status.RUNNING):
        jobs.finish_job(job.id)  # a call was interrupted before it did
    until(lambda: is_done(jobs), "the end of all commands")


def is_done(jobs):
    """Tell whether no command is queued or runs."""
    jobs.recover()
    counted = jobs.count_jobs(type="COMMAND")
    return not counted[Status.QUEUED] and not counted[Status.RUNNING]


def opened(database):
    """Return how many descriptors lead to each kind of place."""
    return Counter(re.sub(r"\d+", "n", to.removeprefix(database)) for to in descriptors().values())


def left_open(database, before):
    """Return what is open and was not before, once other threads have had time to close it."""
    # Connections wait for threads that read at once; SQLite keeps the descriptor of a file.
    allowed = before + Counter(
        {"": SPARE_CONNECTIONS, "-wal": SPARE_CONNECTIONS, "-shm": SPARE_CONNECTIONS}
    )
    give_up = time.monotonic() + PATIENCE
    while (left := opened(database) - allowed) and time.monotonic() < give_up:
        time.sleep(0.01)
    return left


def names(database):
    """Return the names of all jobs that are stored."""
    with closing(sqlite3.connect(database)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM job")}


# --- the second process -------------------------------------------------------


def write(database):
    """Write, as another program may at any time."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=AT_ONCE)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")


def held_locks(database):
    """Return the jobs whose directories are locked."""
    held = []
    for name in os.listdir(database + ".jobs"):
        path = os.path.join(database + ".jobs", name, job_directory.LOCK)
        with suppress(FileNotFoundError, NotADirectoryError):
            descriptor = os.open(path, os.O_RDWR)
            if job_directory.is_locked(descriptor):
                held.append(name)
            os.close(descriptor)
    return held


def converse_with(database, rounds, fork_server, slots, work, handler):
    """Interrupt a host in each round, and return the lines that it says at its end."""
    full = rounds.facts["full"]
    seeds = [rounds.chance(number).random() for number in rounds.numbers()]
    told, tell = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, told)
        stack.callback(os.close, tell)
        launcher = fork_server.launcher()
        if not slots:  # another host runs the jobs that it looks at
            JobManager(database, slots=0).close()
            server = stack.enter_context(host(serve, database))
            assert server.hear() == "serving"
        crowd = CROWD if full else CROWD // 20
        process = stack.enter_context(
            host(converse, database, launcher if slots else None, slots, crowd, told,
                 work, handler, seeds)
        )  # fmt: skip
        for number, seed in enumerate(seeds):
            assert process.hear() == f"round {number}"
            if work is be_signalled:
                for pause in burst(random.Random(seed)):
                    time.sleep(pause)
                    os.kill(process.pid, signal.SIGINT)
                os.write(tell, b"!")
            while not select.select([process.fileno()], [], [], 0.02)[0]:
                write(database)
            assert process.hear() == f"rest {number}"
            write(database)
            # A supervisor lets go a moment after its verdict.
            until(lambda: not held_locks(database), f"the release of {held_locks(database)}")
            os.write(tell, b"!")
            rounds.did(1)
        said = []
        while line := process.hear():
            said.append(line)
        assert process.end() == 0, "\n".join(said)
    return said


def check_all(database, said):
    """See that all that had returned is there, and that the invariants hold."""
    with JobManager(database, slots=0) as jobs:
        for line in said:
            if line.startswith("known"):
                jobs.get_job(line.split()[1])
        check(jobs)


@pytest.mark.parametrize("slots", [0, 2], ids=["bookkeeping", "running"])
@pytest.mark.parametrize("work", [be_signalled, be_raised_in], ids=["signals", "exceptions"])
@in_rounds(smoke=4, full=100)
def test_a_burst_of_interrupts_leaves_nothing_held(database, rounds, fork_server, work, slots):
    """The second process can write, descriptors and locks are let go, and no call is half done."""
    said = converse_with(database, rounds, fork_server, slots, work, interrupt)

    assert said[-1] == "interrupted True"
    check_all(database, said)


@pytest.mark.parametrize("slots", [0, 2], ids=["bookkeeping", "running"])
@pytest.mark.parametrize("handler", [fork, call], ids=["forks", "calls"])
@in_rounds(smoke=4, full=50)
def test_a_signal_handler_that_forks_or_calls_tears_nothing(
    database, rounds, fork_server, handler, slots
):
    """Neither it nor the call that it interrupts waits for ever, and the forked child ends, too."""
    said = converse_with(database, rounds, fork_server, slots, be_signalled, handler)

    assert said[-1] == "interrupted False"
    check_all(database, said)
