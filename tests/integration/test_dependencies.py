"""Dependencies: a job starts when others have ended as it asks, or it is cancelled."""

from __future__ import annotations

import random
import signal
import sqlite3
from contextlib import closing
from itertools import product
from uuid import UUID, uuid4

import pytest

from jobcore import (
    ArgumentError,
    CommandError,
    InvalidTransition,
    JobManager,
    JobNotFound,
    Reason,
    Retries,
    Status,
    Submission,
)
from jobcore.lifecycle import Ending
from jobcore.storage import settlement, transitions
from jobcore.testing.parts import parts
from tests.faults.hosts import host
from tests.jobfiles import damage, sql
from tests.processes import until
from tests.tasks import end, stop

UPSTREAM = (Status.STOPPED, Reason.UPSTREAM)
READY = (Status.QUEUED, None)


def fate(jobs, job):
    """Return status and reason of a job; for one that still waits, what it waits for."""
    now = jobs.get_job(job.id)
    return now.status, now.reason or now.waits_for


def time_out(jobs, job, _):
    """Settle a task as if it had run longer than its time-out, which a task does not have."""
    jobs.start_job(job.id)
    timed_out = Ending(Reason.TIMEOUT)
    parts(jobs).database.write(
        lambda connection: settlement.settle_own(
            connection,
            transitions.find(connection, job.number),
            timed_out,
            now=parts(jobs).clock.now(),
        )
    )


ENDINGS = {
    "complete": lambda jobs, job, _: end(jobs, job, 0),
    "failed": lambda jobs, job, _: end(jobs, job, 3),
    "timed out": time_out,
    "stopped": stop,
    "cancelled": lambda jobs, job, _: jobs.cancel_job(job.id),
    "deleted": lambda jobs, job, _: jobs.delete_job(job.id),
}
MET = {
    "complete": {"complete"},
    "failed": {"failed", "timed out"},
    "ended": {"complete", "failed", "timed out", "stopped", "cancelled"},
}


@pytest.mark.parametrize(("run_if", "ending"), [*product(MET, ENDINGS)])
def test_job_starts_or_is_cancelled_when_the_other_has_ended(jobs, database, run_if, ending):
    """It starts after the endings of `run_if`; after others, it ends STOPPED, `upstream`."""
    first = jobs.create_job("TASK")
    job = jobs.submit(["true"], after=[first.id], run_if=run_if)
    assert fate(jobs, job) == (Status.QUEUED, "dependencies")
    assert (job.run_if, job.waits_for) == (run_if, "dependencies")
    ENDINGS[ending](jobs, first, database)

    assert fate(jobs, job) == (READY if ending in MET[run_if] else UPSTREAM)


@pytest.mark.parametrize(("run_if", "ending"), [*product(MET, [*ENDINGS][:-1])])
def test_ended_job_decides_at_once(jobs, database, run_if, ending):
    """A job that names one which has ended is decided in the call that creates it."""
    first = jobs.create_job("TASK")
    ENDINGS[ending](jobs, first, database)
    job = jobs.submit(["true"], after=first.id, run_if=run_if)

    assert fate(jobs, job) == (READY if ending in MET[run_if] else UPSTREAM)
    assert (job.status, job.reason) == (jobs.get_job(job.id).status, jobs.get_job(job.id).reason)
    assert jobs.history(job.id)[0].trigger == "create"


def test_all_have_to_end_as_asked(jobs):
    """The last of them lets the job start; the first that ends otherwise cancels it."""
    first, second, third = (jobs.create_job("TASK") for _ in range(3))
    good = jobs.submit(["true"], after=[first.id, str(second.id)])
    bad = jobs.submit(["true"], after=[first.id, second.id, third.id])
    end(jobs, second)
    assert fate(jobs, good) == fate(jobs, bad) == (Status.QUEUED, "dependencies")
    end(jobs, first)
    assert (fate(jobs, good), fate(jobs, bad)) == (READY, (Status.QUEUED, "dependencies"))
    end(jobs, third, 1)

    assert (fate(jobs, good), fate(jobs, bad)) == (READY, UPSTREAM)


def test_same_job_may_be_named_twice(jobs):
    """Each mention is met by the same end."""
    first = jobs.create_job("TASK")
    job = jobs.submit(["true"], after=[first.id, str(first.id), first.id])
    end(jobs, first)

    assert fate(jobs, job) == READY


def test_cancellation_cascades_to_those_that_ask_for_more(jobs):
    """A chain ends with the job that asks for `ended` only."""
    first = jobs.create_job("TASK")
    second = jobs.submit(["true"], after=[first.id])
    third = jobs.submit(["true"], after=[second.id])
    cleanup = jobs.submit(["true"], after=[third.id], run_if="ended")
    failed = jobs.submit(["true"], after=[third.id], run_if="failed")
    end(jobs, first, 1)

    assert [fate(jobs, one) for one in (second, third, cleanup, failed)] == [
        UPSTREAM,
        UPSTREAM,
        READY,
        UPSTREAM,
    ]


def test_waiting_job_can_be_cancelled_and_deleted_but_not_started(jobs):
    """Its own end decides those that wait for it; the job it waits for no longer matters."""
    first = jobs.create_job("TASK")
    cancelled, deleted, waiting = (jobs.submit(["true"], after=[first.id]) for _ in range(3))
    after_cancelled = jobs.submit(["true"], after=[cancelled.id])
    after_deleted = jobs.submit(["true"], after=[deleted.id], run_if="ended")
    with pytest.raises(InvalidTransition, match="it waits for other jobs"):
        jobs.start_job(waiting.id)
    jobs.cancel_job(cancelled.id)
    jobs.delete_job(deleted.id)
    assert fate(jobs, after_cancelled) == fate(jobs, after_deleted) == UPSTREAM
    end(jobs, first)

    assert fate(jobs, cancelled) == (Status.STOPPED, Reason.CANCELLED)
    assert fate(jobs, waiting) == READY
    assert [one.verdict for one in jobs.check() if one.check == "dependencies"] == ["ok"]


@pytest.mark.parametrize("wrong", [UUID(int=1), "x", "", str(UUID(int=2))])
def test_unknown_job_is_refused(jobs, wrong):
    """Nothing is created."""
    with pytest.raises(JobNotFound):
        jobs.submit(["true"], after=[jobs.create_job("TASK").id, wrong])

    assert len(jobs.list_jobs()) == 1


@pytest.mark.parametrize("wrong", [3, [3], [None], [b"x"]])
def test_invalid_id_is_refused(jobs, wrong):
    with pytest.raises(ArgumentError, match="after must be"):
        jobs.submit(["true"], after=wrong)


def test_unknown_condition_is_refused(jobs):
    with pytest.raises(CommandError, match="run_if must be one of"):
        jobs.submit(["true"], after=[jobs.create_job("TASK").id], run_if="always")


def test_deleted_job_is_unknown(jobs):
    """An id of a job that was deleted names no job."""
    first = jobs.create_job("TASK")
    jobs.delete_job(first.id)
    with pytest.raises(JobNotFound):
        jobs.submit(["true"], after=[first.id])


# --- retries ------------------------------------------------------------------------


def test_id_stands_for_the_last_attempt(jobs, clock):
    """Those that wait for a job wait for its retries, and so do those that name it later."""
    first = jobs.submit(["true"], retries=Retries(1, delay=5))
    early = jobs.submit(["true"], after=[first.id])
    wants_failure = jobs.submit(["true"], after=[first.id], run_if="failed")
    end(jobs, first, 1)
    late = jobs.submit(["true"], after=[first.id])
    waiting = (early, wants_failure, late)
    assert {fate(jobs, one) for one in waiting} == {(Status.QUEUED, "dependencies")}
    retry = jobs.list_jobs(status=Status.QUEUED)
    (retry,) = [one for one in retry if one.retry_of == first.id]
    assert retry.next_attempt is not None
    clock.advance(5)
    end(jobs, retry, 0)

    assert [fate(jobs, one) for one in waiting] == [READY, UPSTREAM, READY]


def test_last_failure_of_a_chain_decides(jobs):
    """The last attempt has failed for good."""
    first = jobs.submit(["true"], retries=1)
    job = jobs.submit(["true"], after=[first.id])
    for _ in range(2):
        (active,) = [one for one in jobs.list_jobs(status="QUEUED") if one.id != job.id]
        end(jobs, active, 1)

    assert fate(jobs, job) == UPSTREAM


def test_cancelled_retry_decides(jobs):
    first = jobs.submit(["true"], retries=1)
    job = jobs.submit(["true"], after=[first.id])
    end(jobs, first, 1)
    (retry,) = [one for one in jobs.list_jobs(status="QUEUED") if one.id != job.id]
    jobs.cancel_job(retry.id)

    assert fate(jobs, job) == UPSTREAM


def test_retry_of_a_dependent_waits_for_no_one_again(jobs):
    """Its dependencies were met, whatever has become of the other job since."""
    first = jobs.create_job("TASK")
    job = jobs.submit(["true"], after=[first.id], retries=1)
    end(jobs, first)
    end(jobs, job, 1)
    (retry,) = jobs.list_jobs(status=Status.QUEUED)
    assert (retry.retry_of, retry.run_if, retry.waits_for) == (job.id, "complete", "time")
    jobs.delete_job(first.id)
    end(jobs, retry, 1)
    again = jobs.retry_job(retry.id)

    assert fate(jobs, again) == READY


def test_a_graph_that_failed_can_be_retried_job_by_job(jobs):
    """A retry of a cancelled job waits for the retries of the jobs that it had waited for."""
    first = jobs.create_job("TASK")
    second = jobs.submit(["true"], after=[first.id])
    third = jobs.submit(["true"], after=[second.id, first.id])
    end(jobs, first, 1)
    early = jobs.retry_job(third.id)
    assert (early.status, early.reason) == UPSTREAM
    chain = [jobs.retry_job(one.id) for one in (first, second, early)]
    assert [fate(jobs, one) for one in chain[1:]] == [(Status.QUEUED, "dependencies")] * 2
    for one in chain:
        assert fate(jobs, one) == READY
        end(jobs, one)

    assert [jobs.get_job(one.id).attempt for one in chain] == [2, 2, 3]


def test_job_is_retried_once(jobs):
    """A second retry of the same job is refused, and names the job to retry instead."""
    first = jobs.create_job("TASK")
    end(jobs, first, 1)
    second = jobs.retry_job(first.id)

    with pytest.raises(InvalidTransition, match=f"job {second.id} has retried it"):
        jobs.retry_job(first.id)

    jobs.delete_job(second.id)
    assert jobs.retry_job(first.id).attempt == 2


# --- several jobs in one call ---------------------------------------------------------


def test_jobs_of_one_call_can_name_each_other(jobs):
    """In any order, beside ids of jobs that exist."""
    first = jobs.create_job("TASK")
    last, middle, begin = jobs.submit_many(
        [
            Submission(["true"], ref="last", after=["middle", "begin"]),
            Submission(["true"], ref="middle", after=["begin", first.id], run_if="ended"),
            Submission(["true"], ref="begin"),
        ]
    )
    assert [job.waits_for for job in (last, middle, begin)] == ["dependencies"] * 2 + [None]
    end(jobs, first, 1)
    for job in (begin, middle, last):
        assert fate(jobs, job) == READY
        end(jobs, job)


@pytest.mark.parametrize(
    "graph", [{"a": "a"}, {"a": "b", "b": "a"}, {"x": "a", "a": "b", "b": "c", "c": "a"}]
)
def test_cycle_is_refused(jobs, graph):
    """The error names the jobs, and nothing is created."""
    given = [Submission(["true"], ref=ref, after=[other]) for ref, other in graph.items()]
    with pytest.raises(ArgumentError, match=r"in a cycle: \[.*'a'"):
        jobs.submit_many(given)

    assert jobs.list_jobs() == []


def test_ref_is_unique_in_its_call(jobs):
    with pytest.raises(ArgumentError, match="two jobs of this call have the ref 'a'"):
        jobs.submit_many([Submission(["true"], ref="a")] * 2)


def test_key_of_another_job_stands_for_that_job(jobs):
    """Where a job is not created because another holds its key, its dependents wait for that."""
    holder = jobs.submit(["true"], key="k")
    returned, job = jobs.submit_many(
        [Submission(["true"], key="k", ref="a"), Submission(["true"], after=["a"])]
    )
    assert returned.id == holder.id
    assert fate(jobs, job) == (Status.QUEUED, "dependencies")
    end(jobs, holder)

    assert fate(jobs, job) == READY


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("count", [1, 21])
def test_call_whose_keys_are_all_held_creates_nothing(jobs, count):
    """A call with dependencies can be repeated as any other."""
    first = jobs.submit(["true"])
    call = [Submission(["true"], key=f"k {n}", after=[first.id]) for n in range(count)]
    made = [job.id for job in jobs.submit_many(call)]

    assert [job.id for job in jobs.submit_many(call)] == made
    assert jobs.submit(["true"], key="k 0", after=[first.id]).id == made[0]
    assert jobs.count_jobs()[Status.QUEUED] == 1 + count
    end(jobs, first)
    assert fate(jobs, jobs.get_job(made[0])) == READY


@pytest.mark.parametrize("code", [0, 1])
def test_jobs_of_a_large_call_wait_as_those_of_a_small_one(jobs, code, small_batches):
    """Written in steps, they are decided when they are published, or later."""
    ended, running = (jobs.create_job("TASK") for _ in range(2))
    holder = jobs.submit(["true"], key="k")
    end(jobs, ended, code)
    made = jobs.submit_many(
        [
            *[Submission(["true"], ref=str(n), after=[running.id]) for n in range(small_batches)],
            Submission(["true"], key="k", ref="keyed"),
            Submission(["true"], after=["keyed"]),
            Submission(["true"], after=[ended.id], ref="decided"),
            Submission(["true"], after=["decided"], run_if="ended"),
            Submission(["true"], after=["0", str(small_batches - 1)]),
        ]
    )
    some = made[0]
    keyed, of_keyed, of_ended, of_that, of_two = made[small_batches:]
    assert keyed.id == holder.id
    assert fate(jobs, of_ended) == (READY if code == 0 else UPSTREAM)
    assert (of_ended.status, of_ended.reason) == (READY if code == 0 else UPSTREAM)
    assert fate(jobs, of_that) == ((Status.QUEUED, "dependencies") if code == 0 else READY)
    assert [one.trigger for one in jobs.history(of_ended.id)] == ["create", "cancel"][: code + 1]
    end(jobs, holder)
    assert fate(jobs, of_keyed) == READY
    assert fate(jobs, some) == fate(jobs, of_two) == (Status.QUEUED, "dependencies")
    end(jobs, running)
    assert fate(jobs, some) == READY
    for one in (made[0], made[small_batches - 1]):
        end(jobs, one)

    assert fate(jobs, of_two) == READY


# --- very many of them ----------------------------------------------------------------


def left(database):
    """Return how many dependencies are open."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT count(*) FROM dependency WHERE met IS NULL").fetchone()[0]


@pytest.mark.parametrize("code", [0, 1])
def test_very_many_dependents_are_decided_in_steps(jobs, database, code):
    """The settling transaction decides some; any look of any process goes on with the rest."""
    first = jobs.create_job("TASK")
    made = jobs.submit_many([["true"]] * 2100, after=[first.id])
    end(jobs, first, code)
    assert 1000 < left(database) < 2100
    assert fate(jobs, first)[0] is (Status.ERROR if code else Status.COMPLETE)

    steps = 0
    while left(database):
        jobs.get_job(made[-1].id)  # a look at one that waits
        steps += 1
    assert steps > 1
    wanted = {Status.STOPPED: 2100} if code else {Status.QUEUED: 2100}
    assert wanted.items() <= jobs.count_jobs().items()
    assert {fate(jobs, made[0]), fate(jobs, made[-1])} == {UPSTREAM if code else READY}
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM undecided").fetchone() == (0,)


def test_another_manager_decides_the_rest(jobs, database):
    """A manager with slots decides about jobs that nobody reads."""
    first = jobs.create_job("TASK")
    jobs.submit_many([["true"]] * 1200, after=[first.id])
    end(jobs, first, 1)
    with JobManager(database, slots=1) as other:
        until(lambda: left(database) == 0, "all to be decided")
        other.drain(30)

    assert jobs.count_jobs()[Status.STOPPED] == 1200


def test_long_chain_is_cancelled_in_steps(jobs, database):
    """A cascade is cut at any depth, and continued."""
    first = jobs.create_job("TASK")
    given = [Submission(["true"], ref="0", after=[first.id])]
    given += [Submission(["true"], ref=str(n), after=[str(n - 1)]) for n in range(1, 1000)]
    jobs.submit_many(given)
    end(jobs, first, 1)
    assert 0 < left(database) < 1000
    jobs.refresh()

    assert jobs.count_jobs()[Status.STOPPED] == 1000
    assert left(database) == 0


# --- damage -------------------------------------------------------------------------


def test_doctor_finds_and_repairs_wrong_counts(jobs, database):
    """`unmet` is the number of open rows; a job that ended is not waited for."""
    first = jobs.create_job("TASK")
    waits, starves = (jobs.submit(["true"], after=[first.id]) for _ in range(2))
    free = jobs.submit(["true"])
    sql(database, "UPDATE job SET unmet = 2 WHERE id = ?", free.id.hex)
    sql(database, "UPDATE job SET unmet = 0 WHERE id = ?", waits.id.hex)
    sql(
        database,
        "UPDATE dependency SET upstream_id = ? WHERE job = ?",
        uuid4().hex,
        starves.number,
    )
    found = [one.detail for one in jobs.check() if one.check == "dependencies"]
    assert [one.split(":")[0] for one in found] == [
        "wrong number of open dependencies",
        "ended, but other jobs still wait for them",
    ]
    jobs.repair()

    assert [one.verdict for one in jobs.check() if one.check == "dependencies"] == ["ok"]
    assert fate(jobs, free) == READY
    assert fate(jobs, waits) == (Status.QUEUED, "dependencies")
    assert fate(jobs, starves) == UPSTREAM


def test_job_ends_though_a_dependent_is_damaged(jobs, database):
    """The others are decided all the same."""
    first = jobs.create_job("TASK")
    broken, whole = (jobs.submit(["true"], after=[first.id]) for _ in range(2))
    damage(database, "job", broken.id, spool_offset="x")
    ended = end(jobs, first, 1)

    assert ended.status is Status.ERROR
    assert fate(jobs, whole) == UPSTREAM


def test_removed_damaged_job_has_not_ended_as_asked(jobs, database):
    """A job whose row cannot be read is deleted without being settled."""
    first = jobs.create_job("TASK")
    job = jobs.submit(["true"], after=[first.id], run_if="ended")
    damage(database, "job", first.id, status="ODD")
    jobs.delete_job(first.id)

    assert fate(jobs, job) == UPSTREAM


# --- a graph ------------------------------------------------------------------------

WIDTH, DEPTH = 7, 4


def graph_of_30():
    """Return submissions: one, four layers of seven each after two or three of the last, one."""
    chance = random.Random(30)
    layers = [["begin"], *([f"{d}.{w}" for w in range(WIDTH)] for d in range(DEPTH)), ["end"]]
    return {
        name: []
        if depth == 0
        else layers[depth - 1]
        if name == "end"
        else chance.sample(layers[depth - 1], min(len(layers[depth - 1]), chance.choice((2, 3))))
        for depth, layer in enumerate(layers)
        for name in layer
    }


def submitted(jobs, graph, folder, **more):
    """Submit jobs that say on disk that they began and ended; each begins after its own."""
    script = 'echo "begin $0" >> "$1"; sleep 0.0$((RANDOM % 5)) 2>/dev/null; echo "end $0" >> "$1"'
    given = [
        Submission(["bash", "-c", script, name, str(folder / "log")], ref=name, name=name, after=on)
        for name, on in graph.items()
    ]
    return jobs.submit_many(given, **more)


def violations(graph, log):
    """Return what is wrong with the log of a graph of which each job ran once."""
    lines = log.read_text().splitlines()
    wrong = [f"{lines.count(f'begin {name}')} times: {name}" for name in graph
             if lines.count(f"begin {name}") != 1]  # fmt: skip
    for name, upstreams in graph.items():
        wrong += [
            f"{name} began before {one} had ended"
            for one in upstreams
            if lines.index(f"end {one}") > lines.index(f"begin {name}")
        ]
    return wrong


def test_graph_of_30_runs_each_job_once(database, tmp_path):
    """Fan-out and fan-in, in the order that the graph allows."""
    graph = graph_of_30()
    assert len(graph) == 30
    with JobManager(database, slots=3) as jobs:
        made = submitted(jobs, graph, tmp_path)
        ended = jobs.wait_all([job.id for job in made], timeout=60)

    assert {job.status for job in ended} == {Status.COMPLETE}
    assert violations(graph, tmp_path / "log") == []


def run(say, database):
    """Run the queue until the end of this process."""
    with JobManager(database, slots=2):
        say("ready")
        signal.pause()


def test_graph_of_30_survives_the_death_of_a_manager(database, tmp_path):
    """
    Two managers run it; one is killed in the middle, and each job still runs once.

    A job that the killed one had claimed and not started is `never_started`, and retried.
    """
    graph = graph_of_30()
    with JobManager(database, slots=0) as jobs:
        made = submitted(jobs, graph, tmp_path, retries=Retries(3, delay=0, on="lost"))
        with host(run, database) as killed, host(run, database) as other:
            killed.hear()
            other.hear()
            until(lambda: jobs.count_jobs()[Status.COMPLETE] >= 5, "some to end")
            killed.kill()
            ended = jobs.wait_all([job.id for job in made], timeout=60)

        assert {job.status for job in ended} == {Status.COMPLETE}
        assert violations(graph, tmp_path / "log") == []
        assert [one.verdict for one in jobs.check() if one.check == "dependencies"] == ["ok"]
