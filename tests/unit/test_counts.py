"""Counts: what `count_jobs` says is what counting the rows says, after whatever was written."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from jobcore import FINAL, JobManager, Status
from jobcore.operations import doctor
from jobcore.operations.doctor import examine
from jobcore.storage import batches, counts, job_rows
from jobcore.testing.parts import parts
from tests.jobfiles import sql
from tests.unit.test_schema_rules import CANCELLED, FACTS_OF

TYPES = ("COMMAND", "TASK", "")
#: What another program may write before INSERT and UPDATE.
OR = ("", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ABORT")


def naive(connection, **filters):
    """Count the rows that reads show."""
    columns = {"workspace_id": "workspace_id", "pipeline_id": "pipeline_id", "type": "type"}
    where = " AND ".join(f"{columns[name]} = :{name}" for name in filters) or "true"
    rows = connection.execute(
        f"SELECT status, count(*) FROM job WHERE deleted_at IS NULL AND {where} "
        "AND NOT EXISTS (SELECT 1 FROM batch WHERE number BETWEEN first AND last) GROUP BY 1",
        filters,
    )
    return {**dict.fromkeys(Status, 0), **dict(rows.fetchall())}


def assert_true(jobs, connection):
    """Compare every count that can be asked for, and what doctor compares."""
    places = [(None, None)]
    places += [(one, None) for (one,) in connection.execute("SELECT id FROM workspace")]
    places += connection.execute("SELECT workspace_id, id FROM pipeline").fetchall()
    for workspace_id, pipeline_id in places:
        for kind in (None, *TYPES):
            asked = {"workspace_id": workspace_id, "pipeline_id": pipeline_id, "type": kind}
            asked = {name: value for name, value in asked.items() if value is not None}
            assert jobs.count_jobs(**asked) == naive(connection, **asked), asked
    assert counts.wrong(connection) == []


def insert(connection, word, number, workspace_id, pipeline_id, kind):
    """Insert a job; as an upsert, perhaps over one that is there."""
    connection.execute(
        f"INSERT {word} INTO job (number, id, workspace_id, pipeline_id, type, attempt, created, "
        "status, spool_offset, next_sequence, loose_sequence, loose_bytes, dropped) "
        "VALUES (?, ?, ?, ?, ?, 1, 10, 'QUEUED', 0, 0, 0, 0, 0)",
        (number, uuid4().hex, workspace_id, pipeline_id, kind),
    )


def update(connection, word, number, **facts):
    """Update a job."""
    assignments = ", ".join(f"{name} = ?" for name in facts)
    connection.execute(
        f"UPDATE {word} job SET {assignments} WHERE number = ?", (*facts.values(), number)
    )


_NUMBERS = st.integers(1, 8)
_ONE_OF_TWO = st.integers(0, 1)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("insert"), st.sampled_from(OR), st.none() | _NUMBERS, _ONE_OF_TWO,
            st.booleans(), st.sampled_from(TYPES),
        ),
        st.tuples(st.just("status"), st.sampled_from(OR), _NUMBERS, st.sampled_from(Status)),
        st.tuples(st.just("type"), st.sampled_from(OR), _NUMBERS, st.sampled_from(TYPES)),
        st.tuples(st.just("workspace_id"), st.sampled_from(OR), _NUMBERS, _ONE_OF_TWO),
        st.tuples(st.just("mark"), _NUMBERS, st.booleans()),
        st.tuples(st.just("delete"), _NUMBERS, _NUMBERS),
        st.tuples(st.just("delete pipeline"), _ONE_OF_TWO),
        st.tuples(st.just("stage"), st.integers(1, 4), st.sampled_from(TYPES)),
        st.tuples(st.just("PRAGMA foreign_keys"), st.booleans()),
        st.tuples(st.just("PRAGMA recursive_triggers"), st.booleans()),
        st.tuples(
            st.sampled_from(
                ("everything", "publish", "abandon", "OR REPLACE", "BEGIN", "ROLLBACK", "COMMIT")
            )
        ),
    ),
    max_size=30,
)  # fmt: skip


def change_job(connection, word, number, places, **facts):
    """Give a job another status, type or workspace, as far as the file lets it."""
    if "status" in facts:
        row = connection.execute("SELECT status FROM job WHERE number = ?", (number,)).fetchone()
        cancelled = row == ("QUEUED",) and facts["status"] is Status.STOPPED
        facts |= CANCELLED if cancelled else FACTS_OF[facts["status"]]
        facts["status"] = str(facts["status"])
    if "workspace_id" in facts:
        facts["workspace_id"] = places[facts["workspace_id"]]
    update(connection, word, number, **facts)


def stage(connection, place, count, kind):
    """Write a batch that is not published."""
    (first,) = connection.execute(
        "SELECT 1 + max((SELECT coalesce(max(number), 0) FROM job), "
        "coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'job'), 0))"
    ).fetchone()
    connection.execute(
        "INSERT INTO batch (first, last, owner) VALUES (?, ?, 'x')", (first, first + count)
    )
    for number in range(first, first + count + 1):
        insert(connection, "", number, place, None, kind)


STAGED = "EXISTS (SELECT 1 FROM batch WHERE number BETWEEN first AND last)"
#: By the words of an operation, what another program executes.
STATEMENTS = {
    "everything": ["DELETE FROM job"],
    "publish": ["DELETE FROM batch"],
    "abandon": [f"DELETE FROM job WHERE {STAGED}", "DELETE FROM batch"],
    "OR REPLACE": ["INSERT OR REPLACE INTO pipeline SELECT * FROM pipeline"],
    **{word: [word] for word in ("BEGIN", "ROLLBACK", "COMMIT")},
}


def apply(connection, operation, places, pipelines):
    """Do one thing that another program may do, or that jobcore does."""
    verb, *values = operation
    if verb == "insert":
        word, number, place, of_pipeline, kind = values
        line = pipelines[place] if of_pipeline else None
        insert(connection, word, number, places[place], line, kind)
    elif verb in ("status", "type", "workspace_id"):
        change_job(connection, *values[:2], places, **{verb: values[2]})
    elif verb == "mark":
        update(connection, "", values[0], deleted_at=5 if values[1] else None)
    elif verb == "delete":
        connection.execute("DELETE FROM job WHERE number BETWEEN ? AND ?", values)
    elif verb == "delete pipeline":
        connection.execute("DELETE FROM pipeline WHERE id = ?", (pipelines[values[0]],))
    elif verb == "stage":
        stage(connection, places[0], *values)
    elif verb.startswith("PRAGMA"):
        connection.execute(f"{verb} = {int(values[0])}")
    else:
        for statement in STATEMENTS[verb]:
            connection.execute(statement)


@settings(suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS)
@example([("insert", "", None, 1, True, "COMMAND"), ("workspace_id", "", 1, 0)])
def test_counts_are_those_of_the_rows(tmp_path_factory, operations):
    """Whatever is written, by whomever, inside a transaction or not: every count is true."""
    path = str(tmp_path_factory.mktemp("counts") / "jobs.db")
    with (
        JobManager(path, slots=0) as jobs,
        closing(sqlite3.connect(path, isolation_level=None)) as connection,
    ):
        places = [jobs.create_workspace(name).id.hex for name in "ab"]
        pipelines = [
            jobs.create_pipeline("p", ["true"], workspace_id=UUID(place)).id.hex for place in places
        ]
        for operation in operations:
            with suppress(sqlite3.Error):
                apply(connection, operation, places, pipelines)
            if not connection.in_transaction:
                assert counts.wrong(connection) == []
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        assert_true(jobs, connection)


def test_counts_follow_what_a_manager_does(database):
    """Each verb that makes, moves, hides or removes jobs leaves counts that are true."""
    with JobManager(database, slots=0) as jobs, closing(sqlite3.connect(database)) as connection:

        def check():
            assert_true(jobs, connection)

        place = jobs.create_workspace("a")
        pipeline = jobs.create_pipeline("p", ["true"], max_retries=1, workspace_id=place.id)
        for exit_code in (0, 1, 0):
            job = jobs.create_job(pipeline_id=pipeline.id)
            check()
            jobs.start_job(job.id)
            check()
            jobs.finish_job(job.id, exit_code)
            check()
            for one in jobs.list_jobs(status="QUEUED"):
                jobs.cancel_job(one.id)
                check()
        many = jobs.submit_many([["true"]] * 1500)
        check()
        assert jobs.count_jobs(type="COMMAND")[Status.QUEUED] == 1500
        jobs.delete_job(many[0].id)
        check()
        jobs.prune(0)
        check()
        assert sum(jobs.count_jobs(status=FINAL).values()) == 0
        jobs.delete_pipeline(pipeline.id)
        check()
        jobs.delete_workspace(place.id)
        check()
        assert connection.execute("SELECT count(*) FROM pipeline_count").fetchone() == (0,)
        assert connection.execute("SELECT type FROM workspace_count").fetchall() == [("COMMAND",)]


def test_a_batch_counts_when_it_is_published(database):
    """Jobs that are being written in steps count all at once, or not at all."""
    with JobManager(database, slots=0) as jobs, closing(sqlite3.connect(database)) as connection:
        jobs.create_job("TASK")
        place = UUID(sql(database, "SELECT id FROM workspace")[0][0])

        def stage(connection):
            batch = batches.begin(connection, 2, "nobody")
            rows = [
                job_rows.new_job(now=1, number=number, type="COMMAND", workspace_id=place)
                for number in (batch.first, batch.last)
            ]
            batches.stage(connection, rows)
            return batch

        batch = parts(jobs).database.write(stage)
        assert jobs.count_jobs()[Status.QUEUED] == 1
        assert_true(jobs, connection)
        parts(jobs).database.write(lambda connection: batches.publish(connection, batch, now=1))
        assert jobs.count_jobs()[Status.QUEUED] == 3
        assert_true(jobs, connection)


def test_a_job_that_is_refused_does_not_count(database):
    """A failure in the middle of a transaction also undoes the counts."""
    with JobManager(database, slots=0) as jobs, closing(sqlite3.connect(database)) as connection:
        jobs.create_job("TASK")

        def fail(connection):
            place = UUID(sql(database, "SELECT id FROM workspace")[0][0])
            job_rows.insert_job(connection, now=1, type="TASK", workspace_id=place)
            job_rows.insert_job(connection, now=1, type="TASK", workspace_id=uuid4())

        with pytest.raises(Exception, match="FOREIGN KEY") as caught:
            parts(jobs).database.write(fail)
        assert not isinstance(caught.value, IntegrityError)
        assert jobs.count_jobs()[Status.QUEUED] == 1
        assert_true(jobs, connection)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE workspace_count SET queued = queued + 1",
        "DELETE FROM pipeline_count",
        "INSERT INTO workspace_count VALUES (0, 'x', 'TASK', 1, 0, 0, 0, 0)",
    ],
)
def test_changed_counts_are_found_and_repaired(database, statement):
    """Doctor compares the counts with the jobs, and a repair counts them again."""
    with JobManager(database, slots=0) as jobs:
        pipeline = jobs.create_pipeline("p", ["true"])
        jobs.create_job(pipeline_id=pipeline.id)
        found = {one.check: one for one in examine(database)}["counts"]
        assert (found.verdict, found.detail) == ("ok", "the counts match the jobs")

        sql(database, statement)
        found = {one.check: one for one in examine(database)}["counts"]
        assert found.verdict == "wrong"
        assert "--repair counts them again" in found.detail

        jobs.repair()
        assert {one.check: one for one in doctor.examine(database)}["counts"].verdict == "ok"
        assert jobs.count_jobs()[Status.QUEUED] == 1
