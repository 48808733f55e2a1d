"""A host that is the first process of its pid namespace, as in a container: all dies with it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys

import pytest

from jobcore import JobManager, Reason, Status, crew
from jobcore.supervision.pool import SupervisorPool
from tests.faults.invariants import check
from tests.processes import PATIENCE, ROOT, children, in_child, until

_ADOPT = 36  # PR_SET_CHILD_SUBREAPER: orphans come to us, as to the first of a namespace

#: Has a job running, says so, and waits to be killed.
HOST = """
import os, sys
from jobcore import JobManager

assert os.getpid() == 1
jobs = JobManager(sys.argv[1], slots=1)
for _ in range(3):  # nobody but us can reap here
    assert jobs.wait(jobs.submit(["sh", "-c", "sleep 0 & exit 3"]).id).exit_code == 3
job = jobs.submit(["sh", "-c", "echo ready; trap '' TERM; while :; do sleep 1; done"])
assert next(jobs.follow(job.id)).text == "ready"
zombies = [
    name
    for name in os.listdir("/proc")
    if name.isdigit() and open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[0] == "Z"
]
print("ready", len(zombies), flush=True)
sys.stdin.read()
"""


def in_container(*argv):
    """Start a command as the first process of a pid namespace, or skip the test."""
    unshare = shutil.which("unshare")
    options = ["--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        options.append("--map-root-user")
    if (
        unshare is None
        or subprocess.run([unshare, *options, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no pid namespace of one's own here")
    return subprocess.Popen(
        [unshare, *options, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_container_that_ends_is_resolved_by_the_next_one(database):
    """Host, supervisor and command die together: locks are free, and the job is lost, not stuck."""
    container = in_container(sys.executable, "-c", HOST, database)
    with container:
        try:
            # No zombie after three jobs that left children: the host reaps what comes to it.
            assert container.stdout.readline() == "ready 0\n"
        finally:
            container.kill()
        container.wait(PATIENCE)

    with JobManager(database, slots=1) as jobs:
        job = until(lambda: lost(jobs), "the resolving of the job")

        assert (job.exit_code, job.reason) == (None, Reason.LOST)
        assert jobs.count_jobs()[Status.ERROR] == 4
        words = [line.text for line in jobs.logs(job.id)]
        assert words[0] == "ready"
        assert words[-1].endswith("its processes cannot be seen from this pid namespace")
        check(jobs)


def lost(jobs):
    """Return the newest job once it is final."""
    job = jobs.get_job(jobs.list_jobs(limit=1)[0].id)
    return job if job.status is Status.ERROR else None


def _idle_is_let_go(database):
    crew.IDLE = 0.1
    ctypes.CDLL(None).prctl(_ADOPT, 1)
    with JobManager(database, slots=2) as jobs:
        for _ in range(3):
            job = jobs.submit(["true"])
            assert jobs.wait(job.id).exit_code == 0
            until(lambda: not children(), "the reaping of what was let go")
    return children()


def _closed_again_and_again(database):
    ctypes.CDLL(None).prctl(_ADOPT, 1)
    left = []
    for _ in range(3):
        with JobManager(database, slots=2) as jobs:
            for job in jobs.submit_many([["true"]] * 2):
                jobs.wait(job.id)
        left.append(children())
    return left


def _closed_at_once(_database):
    ctypes.CDLL(None).prctl(_ADOPT, 1)
    pool = SupervisorPool()
    for _ in range(3):
        pool.spawn()
    pool.close()
    return children()


def _closed_with_a_job(database):
    ctypes.CDLL(None).prctl(_ADOPT, 1)
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(["sh", "-c", "echo ready; sleep 0.2"])
        next(jobs.follow(job.id))
    running = len(children())
    until(lambda: "Z" in children().values(), "the end of the supervisor that was left")
    with JobManager(database, slots=1) as jobs:
        assert jobs.wait(job.id).exit_code == 0
        until(lambda: not children(), "its reaping by the next manager")
    return running


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (_idle_is_let_go, {}),
        (_closed_again_and_again, [{}] * 3),
        (_closed_at_once, {}),
        (_closed_with_a_job, 1),
    ],
)
def test_a_host_to_whom_orphans_come_keeps_no_zombie(database, host, expected):
    """The first process of a container gets the supervisors that end, and reaps each of them."""
    assert in_child(host, database) == expected
