"""Retries: what ended ERROR is tried again as a new job, later, and never once it is to stop."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from jobcore import (
    CommandError,
    Job,
    JobManager,
    Pipeline,
    PipelineAlreadyRunning,
    Reason,
    Retries,
    Status,
)
from jobcore.clock import to_datetime
from jobcore.engine.scheduler import Scheduler
from jobcore.testing.parts import parts
from tests.faults.hosts import host
from tests.jobfiles import row_of, sql
from tests.processes import at_once, until
from tests.programs import WAITS_FOR_A_FILE
from tests.tasks import end, stop


def newest(jobs, pipeline):
    """Return the pipeline's newest job."""
    return jobs.list_jobs(pipeline_id=pipeline.id, limit=1)[0]


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_an_error_is_tried_again_up_to_max_retries(jobs, clock, max_retries):
    """Each failure creates the next attempt as a new job, until the limit."""
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=max_retries)
    first = jobs.create_job(pipeline_id=pipeline.id, name="n", data={"a": [1]}, command=["own"])
    ended = []
    for _ in range(max_retries + 1):
        job = newest(jobs, pipeline)
        if job.not_before is not None:
            clock.advance((job.not_before - ended[-1].end_time).total_seconds())
        ended.append(end(jobs, job, 7))
    chain = jobs.list_jobs(pipeline_id=pipeline.id)[::-1]

    assert chain == ended
    assert [job.attempt for job in chain] == list(range(1, max_retries + 2))
    assert [job.retry_of for job in chain] == [None, *(job.id for job in chain[:-1])]
    assert {(job.type, job.name, job.workspace_id, job.status, job.exit_code) for job in chain} == {
        ("PIPELINE_RUN", "n", first.workspace_id, Status.ERROR, 7)
    }
    assert all(job.data == {"a": [1]} for job in chain)


def test_a_retry_runs_the_command_of_the_job_itself(jobs, database):
    """A job with a command of its own is tried again with that one, not with the pipeline's."""
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=1)
    first = jobs.create_job(pipeline_id=pipeline.id, command=["own", "words"])
    end(jobs, first, 1)

    assert (
        row_of(database, first.id)["command"]
        == row_of(database, newest(jobs, pipeline).id)["command"]
        is not None
    )


def test_back_off_doubles_from_the_end_of_the_attempt(jobs, clock):
    """10, 20, 40 seconds lie between an attempt's end and the moment the next one may start."""
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=3)
    jobs.create_job(pipeline_id=pipeline.id)
    waits = []
    for _ in range(3):
        clock.advance(100)
        job = newest(jobs, pipeline)
        jobs.start_job(job.id)
        clock.advance(1000)
        ended = jobs.finish_job(job.id, 1)
        waits.append(newest(jobs, pipeline).not_before - ended.end_time)

    assert waits == [timedelta(seconds=10), timedelta(seconds=20), timedelta(seconds=40)]


@pytest.mark.parametrize("others", [False, True], ids=["the same manager", "another one"])
@pytest.mark.parametrize(
    ("ahead", "wait"),
    [(0, 10), (30, 40), (60, 70), (61, 10), (3600, 10), (365 * 86400, 10)],
)
def test_a_clock_that_was_wrong_puts_no_retry_off(jobs, clock, ahead, wait, others):
    """What was to come ten seconds later does, once the clock is right again."""
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=1)
    job = jobs.create_job(pipeline_id=pipeline.id)
    taker = Scheduler(parts(jobs).database, parts(jobs).clock)
    taker.tick()
    clock.jump(ahead)
    taker.tick()
    end(jobs, job, 1)
    clock.jump(-ahead)
    (Scheduler(parts(jobs).database, parts(jobs).clock) if others else taker).tick()
    retry = newest(jobs, pipeline)

    assert retry.attempt == 2
    assert retry.not_before == to_datetime(clock.now()) + timedelta(seconds=wait)


@pytest.mark.parametrize("damage", ["not_before = 'soon'", "attempt = 'x'", "attempt = -5"])
def test_a_damaged_retry_keeps_no_other_from_its_time(jobs, clock, database, damage):
    """Whatever one row holds, the look for retries that were put off passes over it."""
    clock.jump(365 * 86400)
    for name in ("p", "q"):
        pipeline = jobs.create_pipeline(name, ["true"], max_retries=1)
        end(jobs, jobs.create_job(pipeline_id=pipeline.id), 1)
    clock.jump(-365 * 86400)
    other, damaged = jobs.list_jobs(status=Status.QUEUED)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(f"UPDATE job SET {damage} WHERE id = ?", (damaged.id.hex,))
    Scheduler(parts(jobs).database, parts(jobs).clock).tick()

    assert jobs.get_job(other.id).not_before == to_datetime(clock.now()) + timedelta(seconds=10)


def test_wrong_clock_does_not_move_explicit_start_times(jobs, clock):
    """A job that is to wait for a year, and is no retry, waits for it."""
    later = to_datetime(clock.now()) + timedelta(days=365)
    job = jobs.submit(["true"], not_before=later)
    clock.jump(-10 * 86400)
    Scheduler(parts(jobs).database, parts(jobs).clock).tick()

    assert jobs.get_job(job.id).not_before == later


def test_pipeline_continues_when_a_wrong_clock_is_corrected(database, clock):
    """It failed a year ahead: the retry runs after its pause, and then the pipeline is free."""
    with JobManager(database, slots=1, clock=clock, on_exit="stop") as jobs:
        pipeline = jobs.create_pipeline("p", ["sh", "-c", "exit 3"], max_retries=1)
        clock.jump(365 * 86400)
        first = jobs.wait(jobs.create_job(pipeline_id=pipeline.id).id, timeout=30)
        clock.jump(-365 * 86400)
        until(
            lambda: newest(jobs, pipeline).not_before <= to_datetime(clock.now() + 10_000_000),
            "the retry to be moved earlier",
        )
        clock.advance(10)
        retry = jobs.wait(newest(jobs, pipeline).id, timeout=30)
        jobs.create_job(pipeline_id=pipeline.id)

    assert (first.attempt, retry.attempt, retry.exit_code) == (1, 2, 3)


def test_no_manager_starts_a_retry_before_its_time(database, clock):
    """A manager with slots leaves the retry QUEUED until the clock has come to `not_before`."""
    with JobManager(database, slots=1, clock=clock, on_exit="stop") as jobs:
        pipeline = jobs.create_pipeline("p", ["sh", "-c", "exit 3"], max_retries=1)
        first = jobs.wait(jobs.create_job(pipeline_id=pipeline.id).id, timeout=30)
        retry = newest(jobs, pipeline)
        clock.advance(9.999)
        jobs.wait(jobs.submit(["true"]).id, timeout=30)  # younger, and run: the queue was looked at
        jobs.drain(30)  # nothing could be claimed now
        early = jobs.get_job(retry.id)
        clock.advance(0.002)
        second = jobs.wait(retry.id, timeout=30)

    assert (first.status, early.status, early.attempt) == (Status.ERROR, Status.QUEUED, 2)
    assert (second.status, second.exit_code, second.attempt) == (Status.ERROR, 3, 2)
    assert second.start_time >= second.not_before


def test_a_retry_that_completes_ends_the_chain(jobs):
    """After a COMPLETE nothing is tried again, though attempts are left."""
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=5)
    end(jobs, jobs.create_job(pipeline_id=pipeline.id), 1)
    end(jobs, newest(jobs, pipeline), 0)

    assert [job.status for job in jobs.list_jobs()] == [Status.COMPLETE, Status.ERROR]


def test_a_new_run_has_all_its_attempts(jobs):
    """Attempts are counted for each run, not for the pipeline."""
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=1)
    for _ in range(2):
        end(jobs, jobs.create_job(pipeline_id=pipeline.id), 1)
        end(jobs, newest(jobs, pipeline), 1)

    assert [job.attempt for job in jobs.list_jobs()] == [2, 1, 2, 1]


def test_max_retries_counts_as_it_stands_at_the_end(jobs):
    """A pipeline's `max_retries` may be changed while its job runs."""
    pipeline = jobs.create_pipeline("p", ["true"])
    job = jobs.create_job(pipeline_id=pipeline.id)
    jobs.update_pipeline(pipeline.id, max_retries=1)
    end(jobs, job, 1)
    jobs.update_pipeline(pipeline.id, max_retries=0)
    end(jobs, newest(jobs, pipeline), 1)

    assert [job.attempt for job in jobs.list_jobs()] == [2, 1]


def cancel(jobs, job, _):
    jobs.cancel_job(job.id)


def fail_while_asked_to_stop(jobs, job, database):
    jobs.start_job(job.id)
    sql(
        database,
        "UPDATE job SET stop_requested = start_time, stop_why = 'stop' WHERE id = ?",
        job.id.hex,
    )
    jobs.finish_job(job.id, 1)


def lose_while_asked_to_stop(jobs, job, database):
    sql(
        database,
        "UPDATE job SET status = 'RUNNING', start_time = created, token = 't', cookie = 'c', "
        "stop_requested = created WHERE id = ?",
        job.id.hex,
    )
    jobs.recover()


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (cancel, Status.STOPPED),
        (stop, Status.STOPPED),
        (fail_while_asked_to_stop, Status.ERROR),
        (lose_while_asked_to_stop, Status.STOPPED),
    ],
)
def test_stopped_job_is_not_retried(jobs, database, ending, status):
    """A STOPPED job, or one that failed after a stop request, is not retried."""
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=5)
    job = jobs.create_job(pipeline_id=pipeline.id)
    ending(jobs, job, database)

    assert [(one.id, one.status) for one in jobs.list_jobs()] == [(job.id, status)]
    assert jobs.create_job(pipeline_id=pipeline.id).attempt == 1


@pytest.mark.parametrize("said", [{"command": ["sleep", "300"]}, {"script": "sleep 300"}])
def test_a_time_out_is_not_tried_again(running_jobs, said):
    """A job that its pipeline's time-out stopped is STOPPED, and has no retry."""
    pipeline = running_jobs.create_pipeline("p", **said, max_retries=5, timeout=0.05)
    job = running_jobs.wait(running_jobs.create_job(pipeline_id=pipeline.id).id, timeout=30)

    assert (job.status, job.reason) == (Status.STOPPED, Reason.TIMEOUT)
    assert running_jobs.list_jobs() == [job]


@pytest.mark.parametrize("started", [False, True])
def test_a_deleted_job_is_not_tried_again(jobs, started):
    """Deleting an active job frees its pipeline and makes no retry."""
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=5)
    job = jobs.create_job(pipeline_id=pipeline.id)
    if started:
        jobs.start_job(job.id)
    jobs.delete_job(job.id)

    assert jobs.list_jobs() == []
    assert jobs.create_job(pipeline_id=pipeline.id).attempt == 1


def test_a_lost_job_is_tried_again(jobs, database):
    """A job whose supervisor died is ERROR like any other, and gets its retry."""
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=1)
    job = jobs.create_job(pipeline_id=pipeline.id)
    sql(
        database,
        "UPDATE job SET status = 'RUNNING', start_time = created, token = 't', cookie = 'c' "
        "WHERE id = ?",
        job.id.hex,
    )
    (lost,) = jobs.recover()

    assert (lost.id, lost.status, lost.reason) == (job.id, Status.ERROR, Reason.LOST)
    assert [(one.attempt, one.retry_of) for one in jobs.list_jobs()] == [(2, job.id), (1, None)]


def test_a_retry_holds_its_pipeline_until_it_is_cancelled(jobs):
    """Waiting for its back-off it is the pipeline's job; cancelled, it frees it and is no retry."""
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=5)
    end(jobs, jobs.create_job(pipeline_id=pipeline.id), 1)
    retry = newest(jobs, pipeline)
    with pytest.raises(PipelineAlreadyRunning) as caught:
        jobs.create_job(pipeline_id=pipeline.id)
    cancelled = jobs.cancel_job(retry.id)
    fresh = jobs.create_job(pipeline_id=pipeline.id)

    assert caught.value.job_id == retry.id
    assert (cancelled.status, cancelled.reason) == (Status.STOPPED, Reason.CANCELLED)
    assert (fresh.attempt, fresh.retry_of, fresh.not_before) == (1, None, None)


def test_a_retry_by_hand_begins_at_once(jobs):
    """`retry_job` makes the next attempt without back-off, and beyond `max_retries`."""
    pipeline = jobs.create_pipeline("p", ["true"])
    first = end(jobs, jobs.create_job(pipeline_id=pipeline.id), 1)
    again = jobs.retry_job(first.id)
    end(jobs, again, 1)

    assert (again.attempt, again.retry_of, again.not_before) == (2, first.id, None)
    assert jobs.count_jobs() == {**dict.fromkeys(Status, 0), Status.ERROR: 2}


def test_jobs_without_retries_have_one_attempt(jobs):
    """`max_retries` belongs to a pipeline: a job without one has one attempt."""
    end(jobs, jobs.submit(["true"]), 1)

    assert len(jobs.list_jobs()) == 1


def test_pipeline_retries_follow_the_policy(jobs, clock):
    """The delays are those of its `retries`, which may change between two attempts."""
    pipeline = jobs.create_pipeline("p", ["true"], retries=Retries(3, delay=2, factor=3))
    jobs.create_job(pipeline_id=pipeline.id)
    waits = []
    for number in range(3):
        if number == 2:
            jobs.update_pipeline(pipeline.id, retries=Retries(3, delay=100, max_delay=100))
        clock.advance(1000)
        ended = end(jobs, newest(jobs, pipeline), 1)
        waits.append((newest(jobs, pipeline).not_before - ended.end_time).total_seconds())
    clock.advance(1000)
    end(jobs, newest(jobs, pipeline), 1)

    assert waits == [2, 6, 100]
    assert len(jobs.list_jobs()) == 4


def test_listed_pauses_are_taken_in_turn(jobs, clock):
    """The last one repeats; JSON has them as a list."""
    job = jobs.submit(["true"], retries=Retries(3, delay=(5, 60)))
    for pause in (5, 60, 60):
        end(jobs, job, 1)
        (job,) = jobs.list_jobs(status=Status.QUEUED)
        assert (job.next_attempt - jobs.get_job(job.retry_of).end_time).total_seconds() == pause
        clock.advance(pause)

    assert json.loads(job.model_dump_json())["retries"]["delay"] == [5, 60]
    assert Job.model_validate_json(job.model_dump_json()).retries == job.retries


def test_retries_and_max_retries_of_a_pipeline_agree(jobs):
    """`max_retries` stays the number that services show; each of both changes the other."""
    policy = Retries(3, delay=5, on="timeout")
    pipeline = jobs.create_pipeline("p", ["true"], retries=policy)
    assert (pipeline.retries, pipeline.max_retries) == (policy, 3)

    more = jobs.update_pipeline(pipeline.id, max_retries=7)
    assert (more.retries, more.max_retries) == (replace(policy, max=7), 7)
    number = jobs.update_pipeline(pipeline.id, retries=2)
    assert (number.retries, number.max_retries) == (Retries(2), 2)
    default = jobs.update_pipeline(pipeline.id, retries=None)
    assert (default.retries, default.max_retries) == (None, 2)
    renamed = jobs.update_pipeline(pipeline.id, name="q")
    assert (renamed.retries, renamed.max_retries) == (None, 2)
    with pytest.raises(CommandError, match="max_retries is 1 and retries allows 3"):
        jobs.update_pipeline(pipeline.id, retries=policy, max_retries=1)
    both = jobs.create_pipeline("both", ["true"], retries=policy, max_retries=3)
    assert both.retries == policy
    assert Pipeline.model_validate_json(both.model_dump_json()).retries == policy


def test_time_out_is_retried_if_retries_name_it(running_jobs):
    """The retry has a pause, and its time-out can be retried, too."""
    pipeline = running_jobs.create_pipeline(
        "p", ["sleep", "300"], retries=Retries(1, delay=0, on="timeout"), timeout=0.05
    )
    running_jobs.create_job(pipeline_id=pipeline.id)
    running_jobs.drain(30)

    assert [(job.attempt, job.reason) for job in running_jobs.list_jobs()] == [
        (2, Reason.TIMEOUT),
        (1, Reason.TIMEOUT),
    ]


@pytest.mark.parametrize("ending", ["error", "lost"])
def test_only_the_named_endings_are_retried(jobs, database, ending):
    """`on` tells an exit code from a death that nothing saw."""
    pipeline = jobs.create_pipeline("p", ["true"], retries=Retries(1, on=ending))
    for lost in (True, False):
        job = jobs.create_job(pipeline_id=pipeline.id)
        if lost:
            sql(
                database,
                "UPDATE job SET status = 'RUNNING', start_time = created, token = 't', "
                "cookie = 'c' WHERE id = ?",
                job.id.hex,
            )
            jobs.recover()
        else:
            end(jobs, job, 1)
        retried = newest(jobs, pipeline).retry_of == job.id
        assert retried is (lost is (ending == "lost"))
        if retried:
            jobs.cancel_job(newest(jobs, pipeline).id)


@pytest.mark.parametrize("kind", ["PIPELINE_CONFIG", "PIPELINE_VERIFY"])
def test_setting_up_is_not_retried(jobs, kind):
    """Neither a configuration nor a check of a pipeline is retried, or triggers anything."""
    pipeline = jobs.create_pipeline("p", ["true"], retries=5)
    jobs.create_pipeline("next", ["true"], triggered_by=["p"])
    for code in (1, 0):
        end(jobs, jobs.create_job(kind, pipeline_id=pipeline.id), code)

    assert len(jobs.list_jobs()) == 2


@pytest.mark.parametrize("damage", ["'x'", "'{\"max\": -1}'"])
def test_a_job_ends_though_its_retries_are_damaged(jobs, database, damage):
    """The job is ERROR without a retry, with the reason in its log."""
    pipeline = jobs.create_pipeline("p", ["true"], retries=5)
    job = jobs.create_job(pipeline_id=pipeline.id)
    sql(database, f"UPDATE pipeline SET retries = {damage}")
    ended = end(jobs, job, 1)

    assert (ended.status, len(jobs.list_jobs())) == (Status.ERROR, 1)


def test_a_failure_and_its_retry_are_one_transaction(jobs, database):
    """No reader ever sees the failed job without the retry that holds its pipeline."""
    pipeline = jobs.create_pipeline("p", ["true"], max_retries=1)
    job = jobs.create_job(pipeline_id=pipeline.id)
    jobs.start_job(job.id)
    sql(
        database,
        "CREATE TRIGGER no_retry BEFORE INSERT ON job BEGIN SELECT RAISE(ABORT, 'no'); END",
    )
    with pytest.raises(Exception, match="no"):
        jobs.finish_job(job.id, 1)
    between = jobs.get_job(job.id)
    sql(database, "DROP TRIGGER no_retry")
    jobs.finish_job(job.id, 1)

    assert between.status is Status.RUNNING
    assert [one.attempt for one in jobs.list_jobs()] == [2, 1]


# --- settled by somebody else -----------------------------------------------------------


def run_pipeline_and_wait(say, database, go):
    """Run a pipeline that waits for a file; say its job's id once the command is there."""
    with JobManager(database, slots=1) as jobs:
        pipeline = jobs.create_pipeline(
            "p", WAITS_FOR_A_FILE, env={"GO": str(go)}, max_retries=2, timeout=300
        )
        jobs.create_pipeline("next", ["true"], triggered_by=["p"])
        job = jobs.create_job(pipeline_id=pipeline.id)
        next(jobs.follow(job.id, timeout=30))
        say(str(job.id))
        signal.pause()


def settle(database, job_id):
    """Bring the job to its end, and return how it ended."""
    with JobManager(database, slots=0) as jobs:
        jobs.recover()
        return jobs.wait(job_id, timeout=30).exit_code


def test_concurrent_settlements_create_one_retry(database, tmp_path):
    """A job that fails after its host was killed, settled by eight at once, has one retry."""
    go = tmp_path / "go"
    with host(run_pipeline_and_wait, database, go) as killed:
        job_id = killed.hear()
        killed.kill()
    Path(go).touch()

    codes = at_once(settle, [(database, job_id)] * 8)

    with JobManager(database, slots=0) as jobs:
        listed = jobs.list_jobs()
    assert codes == [6] * 8
    assert [(job.attempt, job.status) for job in listed] == [(2, Status.QUEUED), (1, Status.ERROR)]
    assert str(listed[0].retry_of) == job_id


def test_the_next_manager_runs_the_retry_of_a_killed_host(database, tmp_path, clock):
    """A manager that comes later settles the failed job, waits for the back-off and runs it."""
    go = tmp_path / "go"
    with host(run_pipeline_and_wait, database, go) as killed:
        job_id = killed.hear()
        killed.kill()
    Path(go).touch()
    clock.advance(10**9)  # far behind what the killed host's clock said
    with JobManager(database, slots=1, clock=clock, on_exit="stop") as jobs:
        jobs.wait(job_id, timeout=30)
        pipeline_id = jobs.get_job(job_id).pipeline_id
        (retry, _) = jobs.list_jobs(pipeline_id=pipeline_id)
        clock.advance(10)
        ended = jobs.wait(retry.id, timeout=30)
        clock.advance(20)
        (last, *_) = jobs.list_jobs(pipeline_id=pipeline_id)
        last = jobs.wait(last.id, timeout=30)
        listed = jobs.list_jobs()

    assert (ended.attempt, ended.exit_code) == (2, 6)
    assert (last.attempt, last.exit_code) == (3, 6)
    assert [job.attempt for job in listed] == [3, 2, 1]


def hold(say, database):
    """Keep the write lock, so that nothing can be settled, until killed."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        say("held")
        signal.pause()


def test_a_settlement_that_could_not_be_written_is_made_later(database, tmp_path):
    """While the file is locked nothing is settled; afterwards verdict and retry come together."""
    go = tmp_path / "go"
    with JobManager(database, slots=1, busy_timeout=0.05, on_exit="stop") as jobs:
        pipeline = jobs.create_pipeline("p", WAITS_FOR_A_FILE, env={"GO": str(go)}, max_retries=1)
        job = jobs.create_job(pipeline_id=pipeline.id)
        next(jobs.follow(job.id, timeout=30))
        with host(hold, database) as locker:
            assert locker.hear() == "held"
            Path(go).touch()
            verdict = os.path.join(database + ".jobs", job.id.hex, "exit")
            until(lambda: os.path.exists(verdict), "the exit record")
            between = [one.status for one in jobs.list_jobs()]
        ended = jobs.wait(job.id, timeout=30)
        listed = jobs.list_jobs()

    assert between == [Status.RUNNING]
    assert (ended.status, ended.exit_code) == (Status.ERROR, 6)
    assert [(one.attempt, one.status) for one in listed] == [(2, Status.QUEUED), (1, Status.ERROR)]
