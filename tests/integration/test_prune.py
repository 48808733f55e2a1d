"""Retention: old final jobs go, with all that belongs to them, and nothing else does."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from jobcore import JobDeleted, JobManager, JobNotFound, PipelineNotFound, Status, WorkspaceNotFound
from jobcore.engine import remover
from jobcore.operations import prune
from jobcore.storage import log_segments, settlement
from jobcore.storage.job_rows import JobFilter
from jobcore.testing.parts import parts
from tests.jobfiles import sql
from tests.processes import Child, at_once
from tests.transactions import transaction

DAY = 86_400.0  # seconds


def ended(jobs, exit_code=0, *lines, **fields):
    """Return a job that has just ended."""
    job = jobs.create_job("TASK", **fields)
    jobs.start_job(job.id)
    jobs.append_log(job.id, *lines)
    return jobs.finish_job(job.id, exit_code)


def ids(found):
    return [job.id for job in found]


def left(database):
    """Return how many rows each table has that belongs to jobs."""
    tables = ("job", "log_segment", "transition", "result")
    return {table: sql(database, f"SELECT count(*) FROM {table}")[0][0] for table in tables}


def test_jobs_that_ended_long_ago_are_pruned(jobs, clock):
    """The moment of the end decides, to the microsecond and by the manager's clock."""
    old = ended(jobs)
    clock.advance(1)
    young = ended(jobs)
    clock.advance(DAY - 1)

    assert jobs.prune(DAY) == 1
    assert ids(jobs.list_jobs()) == [young.id]
    with pytest.raises(JobNotFound):
        jobs.get_job(old.id)

    clock.advance(1 - 1e-6)

    assert jobs.prune(DAY) == 0

    clock.advance(1e-6)

    assert jobs.prune(DAY) == 1
    assert jobs.list_jobs() == []


def test_all_that_belongs_to_a_job_goes(jobs, database):
    """Row, lines, history, result and directory are gone when it returns."""
    job = ended(jobs, 0, "line\n" * 10)
    sql(
        database,
        "INSERT INTO result (job, encoding, data) VALUES (?, 'json', ?)",
        job.number,
        b"1",
    )
    directory = f"{database}.jobs/{job.id.hex}"  # a crash after its end has left it
    os.mkdir(directory, 0o700)

    assert jobs.prune(0) == 1
    assert left(database) == dict.fromkeys(("job", "log_segment", "transition", "result"), 0)
    assert not os.path.exists(directory)


def test_active_jobs_are_not_pruned(jobs, scripted, clock):
    """No age makes a QUEUED or RUNNING job go, with a process or without."""
    jobs.create_job("TASK")
    jobs.start_job(jobs.create_job("TASK").id)
    scripted()
    clock.advance(1000 * DAY)

    assert jobs.prune(0) == 0
    assert jobs.prune(0, dry_run=True) == []
    assert len(jobs.list_jobs()) == 3


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, list(Status)])
def test_to_prune_what_is_not_final_is_refused(jobs, status):
    """A status that is not final raises an error before anything is deleted."""
    job = ended(jobs)
    with pytest.raises(ValueError, match="COMPLETE, ERROR and STOPPED jobs only"):
        jobs.prune(0, status=status)

    assert ids(jobs.list_jobs()) == [job.id]


def test_the_guard_is_in_the_statement(jobs, scripted, clock):
    """Numbers of jobs that are not final are not marked, whoever hands them in."""
    queued, running, final = jobs.create_job("TASK"), scripted().job, ended(jobs)
    expired = prune.Pruner(parts(jobs).database, parts(jobs).remover, clock).choose(
        0, JobFilter(statuses=frozenset(Status)), None
    )
    numbers = [queued.number, running.number, final.number]
    with transaction(parts(jobs).database) as connection:
        marked = prune.retention.mark_deleted_if_expired(
            connection, expired, numbers, now=clock.now()
        )

    assert marked == [final.number]


def test_status_workspace_and_pipeline_narrow_it(jobs):
    """Each filter leaves the others' jobs alone."""
    workspace = jobs.create_workspace("w")
    pipeline = jobs.create_pipeline("p", ["true"], workspace_id=workspace.id)
    good, bad = ended(jobs), ended(jobs, 1)
    there = ended(jobs, workspace_id=workspace.id)
    of_pipeline = ended(jobs, pipeline_id=pipeline.id)

    assert ids(jobs.prune(0, status="ERROR", dry_run=True)) == [bad.id]
    assert ids(jobs.prune(0, pipeline_id=pipeline.id, dry_run=True)) == [of_pipeline.id]
    assert ids(jobs.prune(0, workspace_id=workspace.id, dry_run=True)) == [there.id, of_pipeline.id]
    assert jobs.prune(0, status=[Status.ERROR, Status.STOPPED]) == 1
    assert jobs.prune(0, pipeline_id=str(pipeline.id)) == 1
    assert jobs.prune(0, workspace_id=workspace.id) == 1
    assert ids(jobs.list_jobs()) == [good.id]


def test_the_newest_stay_on_request(jobs, clock):
    """`keep` counts the newest of those that the filters name; others do not count."""
    made = [ended(jobs, code) for code in (1, 0, 1, 0, 1)]
    clock.advance(DAY)

    assert ids(jobs.prune(0, keep=2, dry_run=True)) == ids(made[:3])
    assert ids(jobs.prune(0, status="ERROR", keep=2, dry_run=True)) == [made[0].id]
    assert jobs.prune(0, keep=5) == 0
    assert jobs.prune(0, keep=9) == 0
    assert jobs.prune(0, status="ERROR", keep=1) == 2
    assert jobs.prune(0, keep=0) == 3


def test_a_dry_run_changes_nothing(jobs, database):
    """It returns the jobs that would go, oldest first, and writes nothing."""
    made = [ended(jobs, 0, "a line") for _ in range(3)]
    seen = parts(jobs).database.version()

    assert jobs.prune(0, dry_run=True) == made
    assert parts(jobs).database.version() == seen
    assert left(database) == {"job": 3, "log_segment": 3, "transition": 9, "result": 0}


@pytest.mark.parametrize("age", [-1, float("nan"), float("inf"), True, "30d", None, 1e300, 10**400])
def test_an_age_is_a_number_of_seconds(jobs, age):
    """Any other value is refused."""
    with pytest.raises(ValueError, match="older_than must be 0 to"):
        jobs.prune(age)


def test_other_arguments_are_checked(jobs):
    """A negative `keep`, an unknown status and unknown owners are refused."""
    with pytest.raises(ValueError, match="keep must be"):
        jobs.prune(0, keep=-1)
    with pytest.raises(ValueError, match="LATE"):
        jobs.prune(0, status="LATE")
    with pytest.raises(WorkspaceNotFound):
        jobs.prune(0, workspace_id="none")
    with pytest.raises(PipelineNotFound):
        jobs.prune(0, pipeline_id="none")


def test_a_clock_that_was_set_back_keeps_jobs(jobs, clock):
    """A job whose end lies ahead is not over yet, by this clock."""
    ended(jobs)
    clock.jump(-1)

    assert jobs.prune(0) == 0


def test_reader_of_a_pruned_job_gets_job_deleted(jobs):
    """An iterator that has begun raises JobDeleted; it never ends as if that were all."""
    # More than is read at once: what is in hand by then is still given.
    job = ended(
        jobs,
        0,
        *([b"x" * 300] * log_segments.LINES_OF_FRAME * 2 * log_segments.SEGMENTS_READ_AT_ONCE),
    )
    lines = jobs.follow(job.id)
    next(lines)
    jobs.prune(0)
    with pytest.raises(JobDeleted):
        list(lines)


def test_many_go_a_few_at_a_time(jobs, monkeypatch):
    """No transaction has more than its share of jobs or of log segments."""
    monkeypatch.setattr(prune, "REMOVED_AT_ONCE", 3)
    monkeypatch.setattr(remover, "REMOVED_AT_ONCE", 3)
    monkeypatch.setattr(remover, "SEGMENTS_AT_ONCE", 2)
    monkeypatch.setattr(prune, "PRUNED_FROM_AT_ONCE", 5)
    for number in range(16):
        ended(jobs, 0, *([os.urandom(log_segments.SEGMENT_BYTES)] * (number % 4)))
    database, most = parts(jobs).database, {"job": 0, "log_segment": 0}
    write = type(database).write

    def counts(connection):
        driver = connection.connection.driver_connection
        return {
            table: driver.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in most
        }

    def counting(self, change, **options):
        def counted(connection):
            before = counts(connection)
            made = change(connection)
            for table, count in counts(connection).items():
                most[table] = max(most[table], before[table] - count)
            return made

        return write(self, counted, **options)

    monkeypatch.setattr(type(database), "write", counting)

    assert jobs.prune(0) == 16
    assert most == {"job": 3, "log_segment": 2}
    assert jobs.list_jobs() == []


def test_large_log_is_deleted_with_few_syncs(jobs, monkeypatch):
    """The steps that remove a large log are not durable one by one; the last one is."""
    monkeypatch.setattr(remover, "SEGMENTS_AT_ONCE", 2)
    job = ended(jobs, 0, *([os.urandom(log_segments.SEGMENT_BYTES)] * 9))
    write, durable = type(parts(jobs).database).write, []

    def noting(self, change, **options):
        def noted(connection):
            before = connection.connection.driver_connection.total_changes
            made = change(connection)
            if connection.connection.driver_connection.total_changes > before:
                durable.append(options.get("durable", True))
            return made

        return write(self, noted, **options)

    monkeypatch.setattr(type(parts(jobs).database), "write", noting)
    jobs.delete_job(job.id)

    assert durable == [True, True, *[False] * 4, True]


def test_pages_of_a_deleted_log_are_not_written(jobs, database):
    """Deleting a log writes far less than the log, also where SQLite would overwrite free pages."""
    size = 32 * log_segments.SEGMENT_BYTES
    job = ended(jobs, 0, *([os.urandom(log_segments.SEGMENT_BYTES)] * 32))
    sql(database, "PRAGMA wal_checkpoint(TRUNCATE)")
    jobs.delete_job(job.id)

    assert left(database)["log_segment"] == 0
    assert os.stat(f"{database}-wal").st_size < size / 4


def test_the_end_of_a_pruning_is_left_to_the_next_manager(database, clock, monkeypatch):
    """If a process dies between hiding and removing, the next manager removes the rest."""

    def die(*_, **__):
        os._exit(0)

    def prune_and_die():
        with JobManager(database, slots=0, clock=clock) as jobs:
            monkeypatch.setattr(parts(jobs).remover, "remove_jobs", die)
            jobs.prune(0)

    with JobManager(database, slots=0, clock=clock) as jobs:
        for _ in range(3):
            ended(jobs, 0, "a line")
    child = Child(prune_and_die)
    with pytest.raises(AssertionError, match="without an answer"):
        child.result()

    with JobManager(database, slots=0, clock=clock) as jobs:
        assert jobs.list_jobs() == []
        assert left(database)["job"] == 3

        jobs.recover()

        assert left(database) == dict.fromkeys(("job", "log_segment", "transition", "result"), 0)


def test_pruned_at_once_each_job_goes_once(database, clock):
    """Of several processes that prune at once, each job is one's; the counts add up."""
    with JobManager(database, slots=0, clock=clock) as jobs:
        for _ in range(300):
            ended(jobs, 0, "a line")
        stays = jobs.create_job("TASK")

        def prune(_):
            with JobManager(database, slots=0, clock=clock) as own:
                return own.prune(0)

        counts = at_once(prune, [(number,) for number in range(4)])

        assert sum(counts) == 300
        assert ids(jobs.list_jobs()) == [stays.id]


def test_between_two_transactions_others_have_as_long_as_one_took(monkeypatch):
    """A rest is as long as the turn before it, up to the longest; the first turn comes at once."""
    now, rests = [0.0], []
    monkeypatch.setattr(remover.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        remover, "time", SimpleNamespace(sleep=rests.append, monotonic=time.monotonic)
    )
    pace = remover.Throttle()
    for took in (0.02, 5.0, 0.0):
        with pace.step():
            now[0] += took

    assert rests == [0.0, 0.02, remover.LONGEST_PAUSE]


def test_a_pruning_takes_turns(jobs, monkeypatch):
    """Every transaction of a pruning but the first comes after a rest."""
    monkeypatch.setattr(prune, "REMOVED_AT_ONCE", 1)
    rests = []
    for _ in range(3):
        ended(jobs)
    monkeypatch.setattr(
        remover, "time", SimpleNamespace(sleep=rests.append, monotonic=time.monotonic)
    )
    jobs.prune(0)

    assert len(rests) == 6
    assert rests[0] == 0
    assert min(rests[1:]) > 0


def skipped(jobs, pipeline_id):
    """Record one run of a pipeline that was skipped; return its record."""
    job = jobs.create_job(pipeline_id=pipeline_id)
    now = parts(jobs).clock.now()
    parts(jobs).database.write(
        lambda connection: settlement.run_now(
            connection, pipeline_id, job.workspace_id, now, why="triggered"
        )
    )
    jobs.cancel_job(job.id)
    return jobs.skips(pipeline_id)[0]


def test_records_of_skipped_runs_go_likewise(jobs, clock, monkeypatch):
    """Old records go with the jobs, of the named pipeline or workspace alone, in short steps."""
    monkeypatch.setattr(prune, "SKIPS_AT_ONCE", 2)
    elsewhere = jobs.create_workspace("elsewhere")
    one, other = (jobs.create_pipeline(name, ["true"]).id for name in "ab")
    there = jobs.create_pipeline("a", ["true"], workspace_id=elsewhere.id).id
    for _ in range(5):
        for pipeline in (one, other, there):
            skipped(jobs, pipeline)
    clock.advance(DAY)
    young = skipped(jobs, one)

    def count():
        return [len(jobs.skips(pipeline)) for pipeline in (one, other, there)]

    counts = [count()]
    for filters in (
        {"status": Status.ERROR}, {"pipeline_id": one}, {"workspace_id": elsewhere.id}, {},
    ):  # fmt: skip
        jobs.prune(DAY, **filters)
        counts.append(count())

    assert counts == [[6, 5, 5], [6, 5, 5], [1, 5, 5], [1, 5, 0], [1, 0, 0]]
    assert jobs.skips(one) == [young]
