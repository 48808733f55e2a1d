"""Limits and pauses, as a manager with slots keeps them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobcore import JobManager, Reason, Status, WaitTimeout, tuning
from jobcore.embedding import failpoints
from jobcore.engine.queue_reader import QueueReader
from jobcore.storage.limits import Room
from jobcore.testing import Crashed, NeverEnds, Script, crash, drain, elapse
from jobcore.testing.parts import parts
from tests.integration.test_scripted import BEGIN, ScriptedSetup
from tests.jobfiles import sql
from tests.processes import PATIENCE, in_child, open_gate, until
from tests.programs import EXIT_0, SLEEPS


@pytest.fixture
def scripted_setup(database):
    """Return what makes managers whose jobs are scripts."""
    made = ScriptedSetup(database)
    yield made
    made.close()


def most_running(database, condition="1"):
    """Return the most jobs that ever ran at once, by the history, of those with a condition."""
    running = most = 0
    for step in sql(
        database,
        "SELECT transition.trigger FROM transition JOIN job ON job.number = transition.job "
        f"WHERE trigger IN ('start', 'finish') AND {condition} ORDER BY transition.id",
    ):
        running += 1 if step["trigger"] == "start" else -1
        most = max(most, running)
    return most


def starts(jobs):
    """Return when each job started, in seconds from the clock's start, by name."""
    return {
        job.name: job.start_time and (job.start_time - BEGIN).total_seconds()
        for job in jobs.list_jobs()
    }


def test_jobs_of_a_full_group_start_as_others_end(scripted_setup):
    jobs, _ = scripted_setup.play(Script([10]), slots=3)
    jobs.set_limit("gpu", 1)
    for name in "abc":
        jobs.submit(["x"], name=name, group="gpu")
    jobs.submit(["x"], name="other")
    drain(jobs)

    assert starts(jobs) == {"a": 0, "b": 10, "c": 20, "other": 0}


def test_jobs_of_higher_priority_start_first(scripted_setup):
    jobs, _ = scripted_setup.play(Script([10]), slots=1)
    jobs.pause()
    for name, priority in [("low", -1), ("first", 0), ("second", 0), ("high", 5)]:
        jobs.submit(["x"], name=name, priority=priority)
    later = BEGIN + timedelta(seconds=15)
    jobs.submit(["x"], name="later", priority=9, not_before=later)
    jobs.resume()
    drain(jobs)

    assert starts(jobs) == {"high": 0, "first": 10, "later": 20, "second": 30, "low": 40}


def test_one_claim_of_several_jobs_keeps_the_limits_exactly(scripted_setup, database):
    """The file, a type and a group are limited; all slots become free at once."""
    jobs, _ = scripted_setup.play(Script([5]), slots=20)
    jobs.set_limit(None, 6)
    jobs.set_limit(None, 4, type="COMMAND")
    jobs.set_limit("gpu", 3)
    jobs.pause()
    for number in range(12):
        jobs.submit(["x"], group="gpu" if number % 2 else None)
        jobs.submit(["x"], type="PIPELINE_RUN", group="gpu" if number % 3 else None)
    jobs.resume()
    drain(jobs)

    assert most_running(database) == 6
    assert most_running(database, "type = 'COMMAND'") == 4
    assert most_running(database, "group_name = 'gpu'") == 3
    assert jobs.count_jobs()[Status.COMPLETE] == 24


def test_claim_refuses_jobs_that_were_read_before_their_limit_was_full(
    scripted_setup, database, monkeypatch
):
    """Managers that share a file read the queue at the same time; the claim decides."""
    found = QueueReader._found
    jobs, _ = scripted_setup.play(Script([5]), slots=4)
    jobs.set_limit("gpu", 2)
    with monkeypatch.context() as patch:
        patch.setattr(
            QueueReader, "_found", lambda self, *args, **options: found(
                self, *args, **{"room": Room({}), **options}
            )
        )  # fmt: skip
        jobs.submit_many([["x"]] * 4, group="gpu")
        until(lambda: jobs.count_jobs()[Status.RUNNING] == 2, "the first two starts")
    drain(jobs)

    assert jobs.count_jobs()[Status.COMPLETE] == 4
    assert most_running(database) == 2


def test_task_of_a_host_counts_though_no_limit_refuses_it(scripted_setup):
    jobs, _ = scripted_setup.play(Script([5]), slots=2)
    jobs.set_limit("gpu", 1)
    task = jobs.create_job("TASK", name="task", group="gpu")
    jobs.start_job(task.id)
    job = jobs.submit(["x"], name="job", group="gpu")
    elapse(jobs, 3)

    assert jobs.get_job(job.id).waits_for == "limit"
    with pytest.raises(NeverEnds, match="queued jobs wait for a limit"):
        drain(jobs)
    jobs.finish_job(task.id)
    drain(jobs)
    assert starts(jobs) == {"task": 0, "job": 3}


def test_pause_keeps_jobs_queued_and_running_ones_running(scripted_setup):
    jobs, _ = scripted_setup.play(Script([5]), slots=2)
    running = jobs.submit(["x"], group="gpu")
    elapse(jobs, 1)
    jobs.pause("gpu")
    paused = jobs.submit(["x"], group="gpu")
    other = jobs.submit(["x"])
    drain(jobs)

    assert jobs.get_job(running.id).status is Status.COMPLETE
    assert jobs.get_job(other.id).status is Status.COMPLETE
    paused = jobs.get_job(paused.id)
    assert (paused.status, paused.waits_for) == (Status.QUEUED, "paused")
    jobs.resume("gpu")
    drain(jobs)
    assert jobs.get_job(paused.id).status is Status.COMPLETE


@pytest.mark.parametrize("scope", [{}, {"group": "gpu"}, {"type": "COMMAND"}], ids=str)
def test_drain_leaves_paused_jobs_and_logs_it(running_jobs, caplog, scope):
    running_jobs.pause(**scope)
    job = running_jobs.submit(EXIT_0, group="gpu")
    running_jobs.drain(PATIENCE)

    assert "paused jobs left in the queue" in caplog.text
    assert running_jobs.get_job(job.id).status is Status.QUEUED
    with pytest.raises(WaitTimeout):
        running_jobs.wait(job.id, 0.05)
    running_jobs.resume(**scope)
    assert running_jobs.wait(job.id, PATIENCE).status is Status.COMPLETE


def test_job_that_waits_for_a_limit_does_not_keep_the_dispatcher_busy(running_jobs, monkeypatch):
    """Without a commit, the queue is read once for each round of chores."""
    looks, chores, look = [], [], QueueReader.look
    monkeypatch.setattr(tuning, "CHORES_PAUSE", 0.02)
    running_jobs.set_limit("gpu", 1)
    running = running_jobs.submit(SLEEPS, group="gpu")
    next(running_jobs.follow(running.id, timeout=PATIENCE))
    job = running_jobs.submit(EXIT_0, group="gpu")
    until(lambda: running_jobs.get_job(job.id).waits_for == "limit", "the limit to be full")

    def counted(self, wanted, rows):
        looks.append(wanted)
        return look(self, wanted, rows)

    monkeypatch.setattr(QueueReader, "look", counted)
    monkeypatch.setitem(parts(running_jobs).dispatcher._chores, "counted", lambda: chores.append(1))
    until(lambda: len(chores) >= 20, "20 rounds of chores")
    seen = len(looks), len(chores)
    running_jobs.stop_job(running.id, grace=0)

    assert running_jobs.wait(job.id, PATIENCE).status is Status.COMPLETE
    assert seen[0] <= 2 * seen[1]


def test_end_of_a_job_of_another_manager_lets_the_next_one_start(running_jobs, database, gate):
    running_jobs.set_limit("gpu", 1)
    running_jobs.slots = 0
    with JobManager(database, slots=1, only_own=True) as other:
        running = other.submit(["sh", "-c", f'read x < "{gate}"'], group="gpu")
        until(lambda: other.get_job(running.id).status is Status.RUNNING, "its start")
        running_jobs.slots = 2
        job = running_jobs.submit(EXIT_0, group="gpu")
        until(lambda: running_jobs.get_job(job.id).waits_for == "limit", "the limit to be full")
        open_gate(gate)

        assert running_jobs.wait(job.id, PATIENCE).status is Status.COMPLETE
    assert most_running(database) == 1


def test_limit_that_another_process_raises_lets_jobs_start(running_jobs, database):
    running_jobs.set_limit("gpu", 1)
    running = running_jobs.submit(SLEEPS, group="gpu")
    next(running_jobs.follow(running.id, timeout=PATIENCE))
    job = running_jobs.submit(EXIT_0, group="gpu")

    def raise_it():
        with JobManager(database, slots=0) as others:
            return others.set_limit("gpu", 2).slots

    assert in_child(raise_it) == 2
    assert running_jobs.wait(job.id, PATIENCE).status is Status.COMPLETE
    running_jobs.stop_job(running.id, grace=0)


def test_job_of_a_closed_manager_counts(running_jobs, database):
    """It counts while it runs without a manager, and when it is adopted."""
    running_jobs.set_limit("gpu", 1)
    running_jobs.slots = 0
    with JobManager(database, slots=1, only_own=True) as other:
        running = other.submit(SLEEPS, group="gpu")
        next(other.follow(running.id, timeout=PATIENCE))
    running_jobs.slots = 2
    job = running_jobs.submit(EXIT_0, group="gpu")
    until(lambda: parts(running_jobs).adoption.tokens, "its adoption")

    assert running_jobs.get_job(job.id).waits_for == "limit"
    running_jobs.stop_job(running.id, grace=0)
    assert running_jobs.wait(job.id, PATIENCE).status is Status.COMPLETE


def test_claim_that_waits_gets_a_job_when_its_limit_has_room(jobs):
    jobs.set_limit("gpu", 1)
    first, second = (jobs.create_job("TASK", group="gpu") for _ in range(2))

    assert jobs.claim_job("TASK").id == first.id
    assert jobs.claim_job("TASK", timeout=0.05) is None
    jobs.finish_job(first.id)
    assert jobs.claim_job("TASK", timeout=PATIENCE).id == second.id


def test_slots_can_be_changed_while_jobs_run(database):
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        made = jobs.submit_many([SLEEPS] * 3)

        def count():
            return jobs.count_jobs()[Status.RUNNING]

        until(lambda: count() == 1, "the first start")
        jobs.slots = 3
        until(lambda: count() == 3, "the others' start")
        jobs.slots = 0
        queued = jobs.submit(EXIT_0)
        for job in made:
            jobs.stop_job(job.id, grace=0)
        jobs.wait_all([job.id for job in made], PATIENCE)

        assert (jobs.slots, jobs.get_job(queued.id).status) == (0, Status.QUEUED)
        jobs.slots = 1
        assert jobs.wait(queued.id, PATIENCE).status is Status.COMPLETE


def test_manager_without_slots_runs_jobs_once_it_has_some(database):
    with JobManager(database, slots=0, on_exit="stop") as jobs:
        job = jobs.submit(EXIT_0)
        jobs.slots = 1

        assert jobs.wait(job.id, PATIENCE).status is Status.COMPLETE


@pytest.mark.parametrize(
    "point",
    [
        failpoints.DIRECTORY_PREPARED, failpoints.CLAIM_WRITTEN, failpoints.CLAIMED,
        failpoints.SENT, failpoints.SETTLE_WRITTEN, failpoints.SETTLED,
    ],
)  # fmt: skip
def test_limit_holds_whatever_step_a_host_crashes_at(scripted_setup, database, point):
    """Claims of a dead host count until they are settled, and no slot is lost."""
    jobs, scripted = scripted_setup.play(Script([5]), slots=3)
    jobs.set_limit("gpu", 2)
    with crash(jobs, at=point):
        try:
            jobs.submit_many([["x"]] * 5, group="gpu")
            elapse(jobs, 0)
            elapse(jobs, 10)
        except Crashed:
            pass
    scripted_setup.clock.advance(10)
    jobs = scripted_setup.manager(scripted, slots=3)
    drain(jobs)

    ends = {job.reason for job in jobs.list_jobs()}
    assert ends <= {Reason.EXITED, Reason.NEVER_STARTED}
    assert most_running(database) == 2
    assert sum(jobs.count_jobs().values()) == 5


def test_lowered_limit_lets_jobs_run_to_their_end(scripted_setup):
    """If a limit is lowered, no job starts until enough have ended."""
    jobs, _ = scripted_setup.play(Script([10]), Script([20]), Script([30]), Script([1]), slots=4)
    for name in "abc":
        jobs.submit(["x"], name=name, group="gpu")
    elapse(jobs, 1)
    jobs.set_limit("gpu", 1)
    jobs.submit(["x"], name="d", group="gpu")
    drain(jobs)

    assert starts(jobs) == {"a": 0, "b": 0, "c": 0, "d": 30}
