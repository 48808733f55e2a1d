"""Hooks of a host's own before a fork: what they ask of jobcore is refused, and harms nothing."""

from __future__ import annotations

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
        told.append(GATE._lock.is_mine and GATE.is_forking())

os.register_at_fork(before=last)
os.register_at_fork(before=hook)
from jobcore import DatabaseBusy, JobManager
from jobcore.forking import GATE

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
        held.append(GATE._lock.hold(PATIENCE))
        GATE._lock.release()
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
