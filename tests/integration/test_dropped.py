"""A manager that is dropped without `close()` ends its threads, and says so once."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
import weakref

import pytest

from jobcore import JobManager, Status
from tests.processes import PATIENCE, ROOT, descriptors, own_threads, until


def dropped(database, use=lambda _jobs: None, **options):
    """Make a manager, use it, drop it; return the warnings of that."""
    gc.collect()  # what earlier tests have left, with warnings of its own
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        jobs = JobManager(database, **options)
        use(jobs)
        reference = weakref.ref(jobs)
        del jobs
        gc.collect()
        until(lambda: reference() is None, "the end of the manager")
        until(lambda: not own_threads(), "the end of its threads")
    return [one for one in told if issubclass(one.category, ResourceWarning)]


def test_dropped_manager_ends_its_threads_and_warns(database):
    """Thread, descriptors and supervisors are let go; the warning names file and remedy."""
    before = descriptors()
    (told,) = dropped(database, lambda jobs: jobs.drain(PATIENCE), slots=1)
    gc.collect()

    assert "jobs.db was garbage-collected without close()" in str(told.message)
    until(lambda: descriptors() == before, "the end of all descriptors")


def test_job_of_a_dropped_manager_continues(database):
    """Its supervisor ends the job, and the next manager settles it."""
    made = []

    def use(jobs):
        made.append(jobs.submit(["sh", "-c", "echo ready; read line; exit 3"], stdin=b"\n"))
        next(jobs.follow(made[0].id, timeout=PATIENCE))

    dropped(database, use, slots=1)

    with JobManager(database, slots=0) as jobs:
        assert jobs.wait(made[0].id, PATIENCE).exit_code == 3


def test_manager_with_subscribers_warns_without_slots(database):
    """The thread that delivers events must be closed too; committed events are delivered."""
    got = []

    def use(jobs):
        jobs.subscribe(got.append)
        jobs.submit(["true"])

    assert len(dropped(database, use, slots=0)) == 1
    assert [event.to_status for event in got] == [Status.QUEUED]


def test_manager_without_threads_is_dropped_in_silence(database):
    """With `slots=0` and no subscriber there is nothing to be ended."""
    assert dropped(database, lambda jobs: jobs.submit(["true"]), slots=0) == []


def test_dropped_manager_without_threads_leaves_no_descriptor(database):
    """Its connections are closed, the one that wrote and the one that read."""

    def use(jobs):
        jobs.submit(["true"])
        jobs.list_jobs()

    dropped(database, use, slots=0)

    def closed():
        gc.collect()
        return not any(where.startswith(str(database)) for where in descriptors().values())

    until(closed, "the end of all descriptors")


def test_closed_manager_is_dropped_in_silence(database):
    """Dropping a closed manager raises no warning."""
    assert dropped(database, lambda jobs: jobs.close(), slots=1) == []


def test_iterator_of_lines_keeps_its_manager_alive(database):
    """An iterator of lines is enough to keep its manager, and the job running."""

    def lines():
        jobs = JobManager(database, slots=1)
        return jobs.follow(jobs.submit(["sh", "-c", "echo one; echo two"]).id, timeout=PATIENCE)

    def texts():
        read = lines()
        gc.collect()
        return [line.text for line in read]

    def texts_and_end():
        read = texts()
        gc.collect()
        until(lambda: not own_threads(), "the end of its threads")
        return read

    with pytest.warns(ResourceWarning):
        read = texts_and_end()

    assert read == ["one", "two"]


@pytest.mark.parametrize("place", ["jobs", "[jobs]"])
def test_exit_of_the_interpreter_does_not_warn(database, place):
    """A program that ends without `close()` prints no warning."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from jobcore import JobManager\n"
        "jobs = JobManager(sys.argv[2], slots=1)\n"
        f"kept = {place}\n"
        "jobs.submit(['true']); jobs.drain(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, str(ROOT), database],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
