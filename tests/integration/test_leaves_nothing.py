"""A manager that is closed leaves no thread, process, descriptor or directory of ended jobs."""

from __future__ import annotations

import os

import pytest

from jobcore import JobManager, Status, StoreError
from tests.processes import own_threads, run_python

pytestmark = pytest.mark.cold_supervisors

FORKS_AND_LINGERS = ["sh", "-c", "sleep 1000 & sleep 1000 & echo started; exit 3"]
SLEEPS = ["sh", "-c", "echo started; exec sleep 1000"]


def test_ended_jobs_leave_nothing(running_jobs, database):
    """Jobs that ended, whatever they forked, leave neither processes nor directories."""
    made = running_jobs.submit_many([["true"], FORKS_AND_LINGERS, ["false"], ["true"]])
    done = [running_jobs.wait(job.id, timeout=60) for job in made]
    running_jobs.drain(timeout=60)

    assert [job.exit_code for job in done] == [0, 3, 1, 0]
    assert sorted(os.listdir(database + ".jobs")) == ["store"]


def test_closing_with_stop_ends_running_jobs(running_jobs):
    """A manager that stops on exit ends what it runs, with all descendants."""
    job = running_jobs.submit(SLEEPS, grace=1)
    first = next(running_jobs.follow(job.id, timeout=60))

    assert first.text == "started"
    assert running_jobs.get_job(job.id).status is Status.RUNNING


LOOKS_AT_SIGNALS = """
import signal, sys
from jobcore import JobManager

for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_DFL)  # what is ignored would have been inherited

def look():
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return handlers, signal.pthread_sigmask(signal.SIG_BLOCK, ())

seen = [look()]
with JobManager(sys.argv[1], slots=1) as jobs:
    jobs.subscribe(str)
    job = jobs.wait(jobs.submit(["true"]).id, 60)
    seen.append(look())
    jobs.stop_job(jobs.start_job(jobs.create_job("TASK").id).id)
    jobs.delete_job(job.id)
    seen.append(look())
print(seen == [look()] * 3)
"""


def test_a_manager_sets_no_signal_handler(database):
    """A host's signals are its own, whatever a manager does."""
    assert run_python(LOOKS_AT_SIGNALS, database) == "True\n"


def test_a_manager_without_slots_has_no_thread(jobs):
    """It queues, reads, stops and deletes in the threads of its callers."""
    job = jobs.submit(["true"])
    jobs.stop_job(jobs.start_job(jobs.create_job("TASK").id).id)
    jobs.cancel_job(job.id)
    jobs.recover()
    jobs.delete_job(job.id)

    assert own_threads() == []


def test_closing_again_is_harmless(database):
    """A manager that stops on exit can be closed more than once."""
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        jobs.wait(jobs.submit(["true"]).id, timeout=60)
        jobs.close()
        jobs.close()

        with pytest.raises(StoreError, match="closed"):
            jobs.recover()
