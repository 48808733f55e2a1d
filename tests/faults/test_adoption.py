"""Jobs whose manager is gone take the slots of another one, each of them of one alone."""

from __future__ import annotations

import contextlib

import pytest

from jobcore import JobManager, Reason, Status
from jobcore.storage import transitions
from jobcore.testing import ManualClock, Script, ScriptedExecutor, crash, drain
from jobcore.testing.parts import parts
from tests.faults.hosts import host, serve
from tests.processes import Child, until
from tests.programs import SLEEPS

pytestmark = pytest.mark.usefixtures("warm_supervisors")


@pytest.fixture
def scripted(clock):
    """Return an executor whose jobs take ten seconds each; it outlives its managers."""
    with ScriptedExecutor(Script([10]), clock=clock) as executor:
        yield executor


@pytest.fixture
def manager(database, clock, scripted):
    """Return a maker of managers of one database, which are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(slots, **options):
            return stack.enter_context(
                JobManager(
                    database, slots=slots, executors={"COMMAND": scripted}, launcher=scripted,
                    clock=clock, **options,
                )
            )  # fmt: skip

        yield make


def most_at_once(jobs):
    """Return how many of these jobs, all ended, ran at one moment."""
    return max(
        sum(one.start_time <= each.start_time < one.end_time for one in jobs) for each in jobs
    )


def adopted(manager):
    return len(parts(manager).adoption.slots)


def run(manager, number):
    """Submit so many jobs, and return them when `manager` runs all of them."""
    made = manager.submit_many([["work"]] * number)
    until(lambda: manager.count_jobs()[Status.RUNNING] == number, "all of them run")
    return made


@pytest.mark.parametrize("end", [JobManager.close, crash])
def test_manager_that_is_opened_again_and_again_keeps_within_its_slots(manager, scripted, end):
    """However often it is closed or dies, no more jobs run at once than it has slots."""
    with_queue = manager(2)
    made = with_queue.submit_many([["work"]] * 7)
    until(lambda: len(scripted.running()) == 2, "two jobs run")
    end(with_queue)
    for _ in range(3):
        restarted = manager(2)
        until(lambda: adopted(restarted) == 2, "both are adopted")  # noqa: B023
        end(restarted)
    last = manager(2)
    drain(last)

    assert most_at_once([last.get_job(job.id) for job in made]) == 2


def test_killed_hosts_leave_their_jobs_in_the_next_ones_slots(database):
    """With real processes and SIGKILLs, too, two slots run two jobs at once."""
    with JobManager(database, slots=0) as jobs:
        made = jobs.submit_many([["sleep", "0.3"]] * 8)
        for number in range(1, 4):
            with host(serve, database) as one:
                until(
                    lambda: jobs.count_jobs()[Status.QUEUED] <= 8 - 2 * number,  # noqa: B023
                    "two more jobs start",
                )
                one.kill()
        with JobManager(database, slots=2) as last:
            last.drain(60)
        ended = [jobs.get_job(job.id) for job in made]

    # A host may have been killed between the claim of a job and its start.
    ran = [job for job in ended if job.reason is not Reason.NEVER_STARTED]
    assert {job.status for job in ran} == {Status.COMPLETE}
    assert most_at_once(ran) == 2


def test_job_is_adopted_by_one_manager_alone(manager):
    """Four jobs fill the slots of two managers, and neither starts a queued one."""
    first = manager(4)
    run(first, 4)
    first.close()
    second, third = manager(2), manager(2)
    until(lambda: adopted(second) + adopted(third) == 4, "all are adopted")
    made = second.submit_many([["work"]] * 4)
    drain(second)
    drain(third)

    assert most_at_once(second.list_jobs()) == 4
    assert {second.get_job(job.id).status for job in made} == {Status.COMPLETE}


def test_full_manager_takes_jobs_without_a_manager_before_it_starts_others(manager, scripted):
    """A manager without a free slot adopts when one gets free, and starts nothing meanwhile."""
    second = manager(2)
    run(second, 2)
    first = manager(2)
    first.submit_many([["work"]] * 2)
    until(lambda: len(scripted.running()) == 4, "four jobs run")
    first.submit_many([["work"]] * 4)
    first.close()
    until(lambda: parts(second).adoption.remaining, "the second has seen them")
    drain(second)

    # Those of the first run with its own to their end, and after that two at a time.
    ended = sorted(second.list_jobs(), key=lambda job: job.number)
    assert most_at_once(ended[4:]) == 2
    assert min(job.start_time for job in ended[4:]) >= max(job.end_time for job in ended[:4])


def test_jobs_of_a_living_manager_take_no_slots_of_another(manager, scripted):
    """Each manager has its own slots while both live."""
    first, second = manager(2), manager(1)
    run(first, 2)
    second.submit(["work"])

    until(lambda: len(scripted.running()) == 3, "the third job runs")
    assert (adopted(first), adopted(second)) == (0, 0)


def test_manager_with_only_own_adopts_no_job(manager):
    """What `jobcore run` starts is not held back by jobs of others."""
    first = manager(2)
    run(first, 2)
    first.close()
    own = manager(1, only_own=True)

    job = own.submit(["work"])

    until(lambda: own.get_job(job.id).status is Status.RUNNING, "it runs")
    assert adopted(own) == 0


def test_job_is_not_adopted_from_within(manager, monkeypatch):
    """A manager in a job does not fill its slots with that job, which may wait for another one."""
    first = manager(1)
    (job,) = run(first, 1)
    with parts(first).database.read() as connection:
        cookie = transitions.find(connection, job.number).cookie
    first.close()
    monkeypatch.setenv("JOBCORE_RUN", cookie)
    inner = manager(1)
    made = inner.submit(["work"])

    until(lambda: inner.get_job(made.id).status is Status.RUNNING, "it runs")


def test_forked_child_of_a_host_keeps_no_slot(database):
    """A child that outlives its host does not hide from others that the host is gone."""
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(SLEEPS)
        until(lambda: jobs.get_job(job.id).status is Status.RUNNING, "it runs")
        child = Child(int, held=True)
    with JobManager(database, slots=1) as jobs:
        parts(jobs).dispatcher.start()
        until(lambda: adopted(jobs) == 1, "it is adopted")
        jobs.stop_job(job.id, grace=0)
        jobs.wait(job.id, 60)
        until(lambda: adopted(jobs) == 0, "its slot is free")
    assert child.result() == 0


def test_clock_that_stands_still_does_not_keep_a_slot(manager, clock):
    """An adopted job frees its slot when it is settled, without any time passing."""
    assert isinstance(clock, ManualClock)
    first = manager(1)
    (job,) = run(first, 1)
    first.close()
    second = manager(1)
    until(lambda: adopted(second) == 1, "it is adopted")
    next_one = second.submit(["work"])
    second.stop_job(job.id, grace=0)

    until(lambda: second.get_job(next_one.id).status is Status.RUNNING, "the next one runs")
