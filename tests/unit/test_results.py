"""Results: a value is stored with the verdict of its job, by whoever settles it, or not at all."""

from __future__ import annotations

import os

import pytest

from jobcore import NoResult, Status
from jobcore.supervisor import result_file
from tests.jobfiles import sql


def put(scripted, content):
    """Put content where a function leaves its value."""
    descriptor = os.open(f"{scripted.path}/result", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, content)
    os.close(descriptor)


def leave(scripted, encoding="json", data=b'{"a": 1}'):
    result_file.write(scripted.path, result_file.identify(scripted.path), encoding, data)


@pytest.mark.parametrize("what", ["missing", "torn", "other bytes"])
def test_incomplete_result_is_not_stored(jobs, scripted, what):
    """The exit code stays true where a power failure took the value: COMPLETE, with no result."""
    script = scripted()
    if what == "torn":
        leave(script)
        os.truncate(f"{script.path}/result", 25)
    elif what == "other bytes":
        put(script, b"null")
    script.exit()
    script.die()

    assert jobs.get_job(script.id).status is Status.COMPLETE
    with pytest.raises(NoResult):
        jobs.result(script.id)
    assert script.gone()


def test_reading_a_job_stores_its_result(jobs, scripted):
    """Whoever settles the job stores its value, in the same transaction, before the files go."""
    script = scripted()
    script.write(b"hello\n")
    leave(script)
    script.exit()
    script.die()

    assert jobs.result(script.id) == {"a": 1}
    assert script.gone()


@pytest.mark.parametrize(
    ("status", "reason"), [(256, "exited"), (9, "signaled"), (0, "stopped"), (None, "lost")]
)
def test_only_a_complete_job_has_one(jobs, scripted, database, status, reason):
    """A value that was left by a job that then ended otherwise is not stored."""
    script = scripted()
    leave(script)
    script.exit(status, reason)
    script.die()
    jobs.get_job(script.id)

    assert script.row()["status"] != "COMPLETE"
    assert sql(database, "SELECT * FROM result") == []


def test_one_of_a_newer_jobcore_waits_for_it(jobs, scripted):
    """Where a newer jobcore left the value, this one leaves the job alone."""
    script = scripted()
    leave(script)
    with open(f"{script.path}/result", "r+b") as file:
        file.seek(4)
        file.write(b"\x02")
    script.exit()
    script.die()

    assert jobs.get_job(script.id).status is Status.RUNNING
    assert not script.gone()
