"""A host goes on while the package below it is replaced: what it starts by old names still runs."""

from __future__ import annotations

import pytest

from jobcore import JobManager, Status
from jobcore.engine import launcher
from jobcore.functions import call
from tests import functions

pytestmark = pytest.mark.cold_supervisors


@pytest.fixture
def running(tmp_path):
    """Return a manager that runs jobs."""
    with JobManager(tmp_path / "jobs.db") as jobs:
        yield jobs


def test_supervisor_of_the_former_name_runs_a_job(running, monkeypatch):
    """A host of before starts its supervisors as `jobcore.supervision.supervisor`."""
    former = launcher.STUB.replace("jobcore.supervisor.__main__", "jobcore.supervision.supervisor")
    assert former != launcher.STUB
    monkeypatch.setattr(launcher, "STUB", former)

    job = running.submit(["echo", "hello"])

    assert running.wait(job.id).status is Status.COMPLETE
    assert [line.text for line in running.logs(job.id)] == ["hello"]


def test_function_interpreter_of_the_former_name_calls(running, monkeypatch):
    """Such a host starts what calls functions as `jobcore.caller`."""
    former = call._STUB.replace("jobcore.functions.__main__", "jobcore.caller")
    assert former != call._STUB
    monkeypatch.setattr(call, "_STUB", former)

    job = running.submit_function(functions.adds, 2, 3)

    assert running.wait(job.id).status is Status.COMPLETE
    assert running.result(job.id) == 5
