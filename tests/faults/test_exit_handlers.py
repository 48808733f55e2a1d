"""Handlers of `atexit` from before a manager was made: they run when it starts nothing any more."""

from __future__ import annotations

from jobcore import JobManager, Reason, Status
from tests.processes import PATIENCE, end_of_python

#: What is registered first runs last, when jobcore's own handler has ended its thread.
_PROGRAM = f"""
import atexit, sys, time
from pathlib import Path

def bye():
    try:
        HANDLER()
    finally:
        jobs.close()
        with JobManager(sys.argv[1], slots=0) as other:
            for job in other.list_jobs(status="RUNNING"):
                print("left RUNNING")
                other.stop_job(job.id, grace=0)
                other.wait(job.id, PATIENCE)

atexit.register(bye)
from jobcore import JobManager, SpawnError
PATIENCE = {PATIENCE}
jobs = JobManager(sys.argv[1], slots=1, on_exit="stop")
go = Path(sys.argv[1] + ".go")
command = 'echo ready; while [ ! -e "$0" ]; do sleep 0.01; done; exit 4'
running = jobs.submit(["sh", "-c", command, str(go)], grace=0)
queued = jobs.submit(["true"])
next(jobs.follow(running.id, timeout=PATIENCE))
while not jobs._dispatcher.running():
    time.sleep(0.01)

def refused(call):
    try:
        call()
    except SpawnError as error:
        print(error)
"""

REFUSED = "the interpreter is shutting down: this manager starts no more jobs"


def _end(database, handler):
    done = end_of_python(_PROGRAM + handler, database)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_endless_wait_is_refused_during_exit(database):
    """No manager runs a queued job any more, so waiting for one raises an error."""
    said = _end(
        database,
        """
def HANDLER():
    refused(lambda: jobs.wait(queued.id, PATIENCE / 3))
    refused(lambda: jobs.drain(PATIENCE / 3))
    refused(lambda: list(jobs.follow(queued.id, timeout=PATIENCE / 3)))
""",
    )

    assert said == [REFUSED] * 3
    with JobManager(database, slots=0) as jobs:
        assert jobs.count_jobs()[Status.QUEUED] == 1


def test_a_manager_stops_at_exit_what_it_is_to_stop(database):
    """With `on_exit="stop"` the job that runs is stopped by `close` in the very last handler."""
    assert _end(database, "HANDLER = lambda: jobs.close()") == []
    with JobManager(database, slots=0) as jobs:
        queued, running = jobs.list_jobs()
    assert (queued.status, running.status) == (Status.QUEUED, Status.STOPPED)
    assert running.reason is Reason.STOPPED


def test_a_running_job_can_be_waited_for_at_exit(database):
    """A wait for a running job sees its end, because its supervisor needs no host."""
    said = _end(
        database,
        """
def HANDLER():
    go.touch()
    print(jobs.wait(running.id, PATIENCE).exit_code)
""",
    )

    assert said == ["4"]
