"""Updates: what waits in the queue can be changed until it starts, and its data at any time."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobcore import Command, CommandError, InvalidTransition, JobManager, JobNotFound, Status
from jobcore.testing.parts import parts
from tests.processes import in_child, until


def test_queued_job_can_be_changed(jobs, clock):
    """Each argument changes its field; what is not given stays."""
    command = Command(["true"], env={"A": "b"}, timeout=5)
    job = jobs.submit(command, name="a", data={"n": 1})
    due = job.created + timedelta(hours=1)

    changed = jobs.update_job(job.id, priority=7)
    assert (changed.priority, changed.name, changed.data) == (7, "a", {"n": 1})
    changed = jobs.update_job(job.id, not_before=due, name="b")
    assert (changed.not_before, changed.name, changed.waits_for) == (due, "b", "time")
    clock.advance(10)
    changed = jobs.update_job(job.id, not_before=30)
    assert changed.not_before == job.created + timedelta(seconds=40)
    changed = jobs.update_job(job.id, not_before=None, name=None, data=2.5, timeout=60)
    assert (changed.not_before, changed.name, changed.data) == (None, None, 2.5)
    assert changed.priority == 7
    assert jobs.update_job(job.id) == changed == jobs.get_job(job.id)
    with parts(jobs).database.read() as connection:
        stored = connection.exec_driver_sql("SELECT command FROM job").scalar_one()
    assert Command.from_json(stored) == Command(["true"], env={"A": "b"}, timeout=60)


@pytest.mark.parametrize("value", [1, 1.0, 10**30, "text", [1], {"a": None}, True, None])
def test_data_is_stored_exactly(jobs, value):
    """It is read back as it was given, with its type."""
    found = jobs.update_job(jobs.submit(["true"]).id, data=value).data

    assert (found, type(found)) == (value, type(value))


def test_data_changes_at_any_time(jobs):
    """A RUNNING and a final job take new data, and nothing else."""
    job = jobs.create_job("TASK", data=1)
    for move, status in (
        (jobs.start_job, Status.RUNNING),
        (jobs.finish_job, Status.COMPLETE),
    ):
        move(job.id)
        assert jobs.update_job(job.id, data={"at": status}).data == {"at": status}
        for change in ({"priority": 1}, {"name": "n"}, {"not_before": None}, {"timeout": 1}):
            with pytest.raises(InvalidTransition, match="only data can be changed") as caught:
                jobs.update_job(job.id, data="no", **change)
            assert caught.value.job_status == status
        assert jobs.get_job(job.id).data == {"at": status}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"priority": None}, "priority must be an integer"),
        ({"priority": "high"}, "priority must be an integer"),
        ({"not_before": -5}, "not_before must be 0 to 1000000000 seconds"),
        ({"name": 5}, "name must be a string"),
        ({"data": object()}, "data is not JSON"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0"),
    ],
)
def test_wrong_values_change_nothing(jobs, change, text):
    """The error names the argument."""
    job = jobs.submit(["true"])
    with pytest.raises(CommandError, match=text):
        jobs.update_job(job.id, **change)

    assert jobs.get_job(job.id) == job


def test_timeout_of_a_run(database):
    """A run of a pipeline can have its own time-out, together with its own arguments."""
    with JobManager(database, slots=0) as jobs:
        line = jobs.create_pipeline("line", script="sleep 600; echo $1")
        job = jobs.create_job(pipeline_id=line.id, args=["a"])
        jobs.update_job(job.id, timeout=600)
        jobs.update_job(job.id, timeout=0.1)
        other = jobs.create_job(pipeline_id=jobs.create_pipeline("other", ["sleep", "9"]).id)
        jobs.update_job(other.id, timeout=0.1)
    with JobManager(database, slots=2) as jobs:
        ended = jobs.wait_all([job.id, other.id], timeout=60)

        assert [job.reason for job in ended] == ["timeout", "timeout"]


def test_timeout_needs_a_command(jobs):
    """A task has none."""
    job = jobs.create_job("TASK")
    with pytest.raises(CommandError, match="has no command whose timeout could change"):
        jobs.update_job(job.id, timeout=5)


def test_unknown_job(jobs):
    """There is nothing to change."""
    with pytest.raises(JobNotFound):
        jobs.update_job("0" * 32, priority=1)


def change_elsewhere(database, job, **change):
    """Change a job from another process."""

    def change_it():
        with JobManager(database, slots=0) as jobs:
            jobs.update_job(job.id, **change)

    in_child(change_it)


def test_running_manager_takes_changes_of_other_processes(database, tmp_path):
    """A job that another process moves to the front starts next, and a delayed one can start."""
    gate, log = tmp_path / "gate", tmp_path / "log"
    waiting = f"until [ -e {gate} ]; do sleep 0.02; done"
    with JobManager(database, slots=1) as jobs:
        first = jobs.submit(Command(waiting, shell=True))
        until(lambda: jobs.get_job(first.id).status == Status.RUNNING)
        queued = [
            jobs.submit(Command(f"echo {n} >> {log}", shell=True), name=str(n)) for n in range(5)
        ]
        far = jobs.submit(
            Command(f"echo far >> {log}", shell=True), not_before=first.created + timedelta(days=1)
        )
        change_elsewhere(database, queued[4], priority=1)
        change_elsewhere(database, queued[0], priority=-1)
        change_elsewhere(database, far, not_before=None, priority=-2)
        gate.touch()
        jobs.wait_all([job.id for job in (*queued, far)], timeout=60)

    assert log.read_text().split() == ["4", "1", "2", "3", "0", "far"]


def test_timeout_that_was_changed_holds(database, tmp_path):
    """The running manager starts the job with the new time-out."""
    gate = tmp_path / "gate"
    with JobManager(database, slots=1) as jobs:
        jobs.submit(Command(f"until [ -e {gate} ]; do sleep 0.02; done", shell=True))
        job = jobs.submit(["sleep", "600"])
        change_elsewhere(database, job, timeout=0.1)
        gate.touch()

        assert jobs.wait(job.id, timeout=60).reason == "timeout"
