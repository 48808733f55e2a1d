"""Hooks of a host's own before a fork: what they ask of jobcore is refused, and harms nothing."""

from __future__ import annotations

import pytest

from tests.processes import PATIENCE, run_python

#: `hook` and `last` are registered before jobcore's hooks, so they run behind those.
_HOST = f"""
import os, sys, threading
told, asked = [], []

def hook():
    if asked:
        try:
            asked[0]()
        except DatabaseBusy as error:
            told.append("refused")

def last():
    if asked:
        told.append(GATE.is_mine and GATE.is_forking())

os.register_at_fork(before=last)
os.register_at_fork(before=hook)
from jobcore import DatabaseBusy, JobManager
from jobcore.embedding.locks import GATE

PATIENCE = {PATIENCE}
jobs = JobManager(sys.argv[1], slots=0)
job = jobs.create_job("TASK")
"""


def test_a_hook_that_is_refused_does_not_open_the_gate(database):
    """Whatever a hook asks for in the middle of a fork, no descriptor comes in between."""
    said = run_python(
        _HOST
        + """
for call in (
    lambda: jobs.get_job(job.id),
    lambda: jobs.create_job("TASK"),
    lambda: list(jobs.logs(job.id)),
    lambda: jobs.delete_job(job.id),
):
    told[:], asked[:] = [], [call]
    pid = os.fork()
    if pid == 0:
        asked.clear()
        jobs.start_job(jobs.create_job("TASK").id)
        os._exit(0)
    asked.clear()
    print(*told, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    held = []
    def enter():
        held.append(GATE.hold(PATIENCE))
        GATE.release()
    other = threading.Thread(target=enter)
    other.start()
    other.join()
    print(*held)  # the fork is over: whoever wants in comes in
print(jobs.get_job(job.id).status, sum(jobs.count_jobs().values()))
jobs.close()
""",
        database,
    )

    assert said.splitlines() == ["refused True 0", "True"] * 4 + ["QUEUED 5"]


def test_no_thread_of_a_manager_without_slots_is_there_at_a_fork(database):
    """Python counts threads at a fork, and warns of them from 3.12 on."""
    said = run_python(
        """
import os, sys, warnings
warnings.simplefilter("error")
seen = []
os.register_at_fork(before=lambda: seen.append(len(os.listdir("/proc/self/task"))))  # the last one
from jobcore import JobManager
jobs = JobManager(sys.argv[1], slots=0)
for _ in range(20):
    job = jobs.create_job("TASK")
    jobs.get_job(job.id)
    pid = os.fork()
    if pid == 0:
        jobs.create_job("TASK")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print(set(seen), sum(jobs.count_jobs().values()))
jobs.close()
""",
        database,
    )

    assert said.split("\n")[0] == "{1} 40"


def test_fork_in_a_hook_of_a_fork_leaves_the_outer_fork_its_rest(database):
    """Where hooks of other libraries run, before and after jobcore's, nothing is let go early."""
    said = run_python(
        """
import os, signal, sys
told, nested = [], []

def fork():
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            jobs.create_job("TASK")
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def interrupt(place):
    if place in nested:
        nested.remove(place)
        signal.raise_signal(signal.SIGUSR1)

def last():
    told.append(GATE.is_mine and GATE.is_forking() and jobs._database.readers.fork_pending)

class Owner:
    def before_fork(self):
        interrupt("owner before")
    def after_fork_in_parent(self):
        interrupt("owner after")
    def after_fork_in_child(self):
        pass

signal.signal(signal.SIGUSR1, lambda *_: fork())
os.register_at_fork(before=last)
os.register_at_fork(
    before=lambda: interrupt("before"), after_in_parent=lambda: interrupt("after")
)
from jobcore import JobManager
from jobcore.embedding.locks import GATE
jobs = JobManager(sys.argv[1], slots=0)
owner = Owner()
GATE.watch(owner)
for places in (["before"], ["after"], ["owner before"], ["owner after"], ["before", "after"]):
    told[:], nested[:] = [], places
    fork()
    jobs.create_job("TASK")
    print(*told, nested, GATE.is_mine, GATE._forks.is_mine)
print(sum(jobs.count_jobs().values()))
jobs.close()
""",
        database,
    )

    assert said.splitlines() == [
        *["True True [] False False"] * 4,
        "True True True [] False False",
        str(4 * 3 + 4),
    ]


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(24, id="smoke"),  # twice at each moment
        pytest.param(120, id="full", marks=pytest.mark.faults),
    ],
)
def test_signal_handler_that_forks_neither_tears_nor_hangs(database, count):
    """A signal handler may fork in the middle of any call; later writes of both are all stored."""
    said = run_python(
        f"""
import faulthandler, os, signal, sys
from jobcore import JobManager, StoreError
made, codes = [], []

def handler(*_):
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm({int(PATIENCE)})  # ends it where it hangs
        try:
            with JobManager(sys.argv[1], slots=0) as own:
                own.create_job("TASK")
            os._exit(0)
        except StoreError as error:
            # In the middle of a read of this thread: the child is to open a process of its own.
            os._exit(3 if "forked in the middle of a transaction" in str(error) else 4)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

signal.signal(signal.SIGALRM, handler)
jobs = JobManager(sys.argv[1], slots=0)
for number in range({count}):
    # Each fork alone has a limit: all of them take as long as the machine is slow.
    faulthandler.dump_traceback_later({2 * int(PATIENCE)}, exit=True)
    signal.setitimer(signal.ITIMER_REAL, 0.0001 * (number % 12 + 1))
    made.append(jobs.create_job("TASK").id)
    jobs.get_job(made[-1])
signal.setitimer(signal.ITIMER_REAL, 0)
assert set(codes) <= {{0, 3}}, codes
assert sum(jobs.count_jobs().values()) == len(made) + codes.count(0), codes
jobs.close()
print("whole", len(codes) > 0)
""",
        database,
        patience=8 * PATIENCE,  # it ends itself where one of the forks hangs
    )

    assert said == "whole True\n"


def test_fork_in_the_middle_of_a_read_does_not_wait_for_those_who_wait_for_it(database):
    """A signal handler forks in a look for commits, and another thread is next to look."""
    said = run_python(
        """
import os, sys, threading
from jobcore import JobManager
from jobcore.storage.reading import ChangeCounter
from tests.processes import until

jobs = JobManager(sys.argv[1], slots=0, busy_timeout=1000)
database = jobs._database
look = ChangeCounter.look
other = threading.Thread(target=lambda: database.version(0))

def look_and_be_interrupted(self):
    if threading.current_thread() is other:
        return look(self)
    with self._looking:
        other.start()
        until(database.readers.others, "the other thread")
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
    return look(self)

ChangeCounter.look = look_and_be_interrupted
database.version(0)
other.join()
jobs.close()
""",
        database,
    )

    assert said == "0\n"
