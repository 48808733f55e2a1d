"""CPU time and memory of a running job, from /proc."""

from __future__ import annotations

import os

import pytest

from jobcore import JobManager, JobNotFound, Status, Usage
from jobcore.engine import orphans
from jobcore.testing.parts import parts
from tests.processes import PATIENCE, until
from tests.programs import python
from tests.transactions import transaction

#: Has a child, from which the two take CPU time and memory until they are told to stop.
WORKS = python("""
import os, signal
held = b"x" * 50_000_000
child = os.fork()
if child == 0:
    while True:
        pass
os.write(1, b"ready\\n")
signal.pause()
""")


@pytest.fixture
def running(running_jobs):
    """Return a job of two processes that work."""
    job = running_jobs.submit(WORKS)
    assert next(running_jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
    yield job
    if running_jobs.get_job(job.id).status is Status.RUNNING:
        running_jobs.stop_job(job.id, grace=0)
    running_jobs.wait(job.id, PATIENCE)


def test_usage_is_that_of_all_processes_of_the_job(running_jobs, running):
    """CPU time grows, memory is what the command holds, and its supervisor is not counted."""
    first = running_jobs.usage(running.id)
    assert isinstance(first, Usage)
    until(lambda: running_jobs.usage(running.id).cpu_seconds > first.cpu_seconds + 0.05, "work")

    assert first.processes == 2
    assert 50_000_000 < first.rss < 2_000_000_000
    assert Usage.model_validate_json(first.model_dump_json()) == first


def test_any_manager_of_the_machine_sees_it(running, database):
    """One without slots reads the same, and while another process writes."""
    with JobManager(database, slots=0) as jobs, transaction(parts(jobs).database):
        assert jobs.usage(str(running.id)).processes == 2


def test_job_that_does_not_run_has_no_usage(running_jobs, jobs):
    """A task has no usage either; an unknown job is an error."""
    ended = running_jobs.wait(running_jobs.submit(["true"]).id, PATIENCE)
    queued, own = jobs.create_job("TASK"), jobs.create_job("TASK")
    jobs.start_job(own.id, owner=None)

    assert running_jobs.usage(ended.id) is None
    assert jobs.usage(queued.id) is jobs.usage(own.id) is None
    with pytest.raises(JobNotFound):
        jobs.usage("unknown")


def test_processes_of_others_are_never_taken_for_the_job(running_jobs, running, monkeypatch):
    """The stored pid counts only while its process holds the lock of the run."""
    monkeypatch.setattr(orphans, "holds", lambda pid, token: False)  # noqa: ARG005
    assert running_jobs.usage(running.id) is None
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr("jobcore.supervisor.system_calls.pid_namespace", lambda: 1)
        assert running_jobs.usage(running.id) is None
    with monkeypatch.context() as patch:
        patch.setattr(parts(running_jobs).directories, "boot_id", "another")
        assert running_jobs.usage(running.id) is None
    assert running_jobs.usage(running.id) is not None


def test_kernel_that_lists_no_children_is_searched(running_jobs, running, monkeypatch):
    """Where the kernel does not list children, all processes are read, with the same sums."""
    exists = os.path.exists
    monkeypatch.setattr(
        os.path, "exists", lambda path: not str(path).endswith("/children") and exists(path)
    )
    assert running_jobs.usage(running.id).processes == 2
