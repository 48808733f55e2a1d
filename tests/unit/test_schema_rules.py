"""The rules again, as raw SQL of another program: the file itself refuses what is not true."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
from contextlib import closing
from uuid import uuid4

import pytest

from jobcore import JobManager, Reason, Status, lifecycle
from jobcore.storage import tables
from tests.processes import PATIENCE

#: What is true of a row in each status, beyond the status.
FACTS_OF = {
    "QUEUED": {"start_time": None, "end_time": None, "reason": None, "exit_code": None},
    "RUNNING": {"start_time": 20, "end_time": None, "reason": None, "exit_code": None},
    "COMPLETE": {"start_time": 20, "end_time": 30, "reason": "exited", "exit_code": 0},
    "ERROR": {"start_time": 20, "end_time": 30, "reason": "exited", "exit_code": 3},
    "STOPPED": {"start_time": 20, "end_time": 30, "reason": "stopped", "exit_code": 143},
}
#: STOPPED out of QUEUED was cancelled.
CANCELLED = {"start_time": None, "end_time": 30, "reason": "cancelled", "exit_code": None}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a file with one workspace and pipeline, and no process that uses it."""
    path = str(tmp_path_factory.mktemp("made") / "jobs.db")
    with JobManager(path, slots=0) as jobs:
        jobs.create_pipeline("a pipeline", ["true"])
    assert not os.path.exists(path + "-wal")
    return path


@pytest.fixture
def foreign(made, database):
    """Return another program's connection to a real file of its own, made as `made`."""
    shutil.copyfile(made, database)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        yield connection


def insert(connection, status="QUEUED", pipeline=False, **facts):
    """Insert a job by raw SQL, and return its number."""
    (workspace,) = connection.execute("SELECT id FROM workspace").fetchone()
    (its_pipeline,) = connection.execute("SELECT id FROM pipeline").fetchone()
    row = {
        "id": uuid4().hex,
        "workspace_id": workspace,
        "pipeline_id": its_pipeline if pipeline else None,
        "type": "COMMAND",
        "attempt": 1,
        "created": 10,
        "status": status,
        "spool_offset": 0,
        "next_sequence": 0,
        "loose_sequence": 0,
        "loose_bytes": 0,
        "dropped": 0,
        **facts,
    }
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    cursor = connection.execute(f"INSERT INTO job ({names}) VALUES ({marks})", tuple(row.values()))
    return cursor.lastrowid


def move(connection, number, status, **facts):
    """Update status and facts of a job by raw SQL."""
    row = {"status": status, **FACTS_OF.get(status, {}), **facts}
    assignments = ", ".join(f"{name} = ?" for name in row)
    connection.execute(f"UPDATE job SET {assignments} WHERE number = ?", (*row.values(), number))


def make(connection, status, **facts):
    """Return the number of a job that came to `status` by legal moves."""
    number = insert(connection, **facts)
    if status != "QUEUED":
        move(connection, number, "RUNNING")
    if status not in ("QUEUED", "RUNNING"):
        move(connection, number, status)
    return number


def read(connection, number):
    """Return a whole row."""
    return connection.execute("SELECT * FROM job WHERE number = ?", (number,)).fetchone()


@pytest.mark.parametrize("dest", FACTS_OF)
@pytest.mark.parametrize("source", FACTS_OF)
def test_update_of_status_follows_the_rules(foreign, source, dest):
    """Of the 25 pairs of statuses, the file accepts the five arrows and unchanged statuses only."""
    number = make(foreign, source)
    before = read(foreign, number)
    facts = CANCELLED if (source, dest) == ("QUEUED", "STOPPED") else FACTS_OF[dest]
    legal = source == dest or (source, dest) in {(str(a), str(b)) for a, b in lifecycle.arrows()}

    if legal:
        move(foreign, number, dest, **facts)
    else:
        with pytest.raises(sqlite3.IntegrityError):
            move(foreign, number, dest, **facts)
        assert read(foreign, number) == before


@pytest.mark.parametrize(
    ("source", "dest"),
    [
        pair
        for pair in itertools.product(FACTS_OF, FACTS_OF)
        if pair[0] != pair[1] and pair not in {(str(a), str(b)) for a, b in lifecycle.arrows()}
    ],
)
def test_illegal_move_is_named(foreign, source, dest):
    """A move against the rules is refused as such, whatever facts come with it."""
    number = make(foreign, source)

    with pytest.raises(sqlite3.IntegrityError, match=r"no such transition|a final job does not"):
        foreign.execute("UPDATE job SET status = ? WHERE number = ?", (dest, number))


@pytest.mark.parametrize("status", [*FACTS_OF, "DONE", ""])
def test_job_is_created_queued(foreign, status):
    """A row can only begin as QUEUED, even with all the facts of another status."""
    if status == "QUEUED":
        assert insert(foreign, status) > 0
    else:
        with pytest.raises(sqlite3.IntegrityError):
            insert(foreign, status, **FACTS_OF.get(status, {}))


@pytest.mark.parametrize("status", ["COMPLETE", "ERROR", "STOPPED"])
@pytest.mark.parametrize("column", tables.FACTS)
def test_final_fact_never_changes(foreign, status, column):
    """No fact of a final job can be changed, not even into NULL."""
    number = make(foreign, status, token="a", cookie="b")
    before = read(foreign, number)
    (old,) = foreign.execute(f"SELECT {column} FROM job WHERE number = ?", (number,)).fetchone()
    others = [4711 if old is None or isinstance(old, int) else "changed", None]

    for other in others:
        if other != old:
            with pytest.raises(sqlite3.IntegrityError):
                foreign.execute(f"UPDATE job SET {column} = ? WHERE number = ?", (other, number))
    assert read(foreign, number) == before


def test_facts_are_all_that_was_true_at_the_end():
    """A final job's facts cannot change; each new column must be listed as one or not."""
    may_change = {
        # the caller's own words, and what it was to run
        "name", "data", "command", "not_before",
        # whose host claimed it, who asked for its stop
        "boot_id", "grace_ms", "timeout_ms", "calls_function", "stop_requested", "stop_grace_ms",
        "stop_who", "stop_why",
        # what it last said of itself: import moves it, with a guard of its own
        "progress_done", "progress_total", "progress_message", "progress_at",
        # how its log is stored, what it left and could not be killed, and the tombstone
        "loose_sequence", "loose_bytes", "left_processes", "unreaped", "unreaped_ignored",
        "deleted_at",
        # the process that it depended on before
        "owner",
        # whose environment it was to get
        "env_from", "environment",
        # where it was started
        "directory_id",
        # how it waited in the queue, and what follows its end
        "priority", "group_name", "expires", "retries", "hooks", "hook_of", "parameters",
        "run_if", "unmet",
        # a key is held until its time is over
        "held_key", "unique_until",
    }  # fmt: skip

    assert {column.name for column in tables.job.columns} - set(tables.FACTS) == may_change


def replace(connection, number, words):
    """Write a job over that of a number, as an upsert: each named column is what its SQL says."""
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(job)")]
    values = ", ".join(words.get(name, name) for name in columns)
    connection.execute(
        f"INSERT OR REPLACE INTO job ({', '.join(columns)}) "
        f"SELECT {values} FROM job WHERE number = ?",
        (number,),
    )


#: What makes a job that has ended look as if it had not begun.
BEGUN_AGAIN = {
    "status": "'QUEUED'",
    "spool_offset": "0",
    "next_sequence": "0",
    **dict.fromkeys(
        ("start_time", "end_time", "reason", "exit_code", "signal", "wait_status"), "NULL"
    ),
}


@pytest.mark.parametrize("status", FACTS_OF)
@pytest.mark.parametrize(
    "words",
    [{}, {"id": "lower(hex(randomblob(16)))"}, {"number": "NULL"}, {"number": "number + 100"}],
    ids=["by both", "by number", "by id", "by id with a number"],
)
def test_a_job_is_not_replaced_by_an_insert(foreign, status, words):
    """An upsert by another program, by number or id, does not change a job."""
    number = make(foreign, status)
    before = foreign.execute("SELECT * FROM job").fetchall()

    with pytest.raises(sqlite3.IntegrityError, match="a job is not replaced by another"):
        replace(foreign, number, BEGUN_AGAIN | words)

    assert foreign.execute("SELECT * FROM job").fetchall() == before


@pytest.mark.parametrize("status", FACTS_OF)
@pytest.mark.parametrize("column", ["number", "id"])
def test_a_job_is_not_replaced_by_an_update(foreign, status, column):
    """A job that another program gives the number or the id of a second one takes no place."""
    number = make(foreign, status)
    insert(foreign)
    before = foreign.execute("SELECT * FROM job").fetchall()

    for taken, given in (("=", "<>"), ("<>", "=")):
        with pytest.raises(sqlite3.IntegrityError, match="a job keeps its number, id"):
            foreign.execute(
                f"UPDATE OR REPLACE job SET {column} = "
                f"(SELECT {column} FROM job WHERE number {taken} ?) WHERE number {given} ?",
                (number, number),
            )

    assert foreign.execute("SELECT * FROM job").fetchall() == before


@pytest.mark.parametrize("status", FACTS_OF)
@pytest.mark.parametrize("name", ["rowid", "oid", "_rowid_"])
def test_a_job_keeps_its_number_by_whatever_name(foreign, status, name):
    """Updates by SQLite's own names for the number cannot renumber a job."""
    number = make(foreign, status)
    other = insert(foreign)
    before = foreign.execute("SELECT * FROM job").fetchall()

    for given, taken in ((number, other), (other, number), (number, 99)):
        with pytest.raises(sqlite3.IntegrityError, match="a job keeps its number, id"):
            foreign.execute(
                f"UPDATE OR REPLACE job SET {name} = ? WHERE number = ?", (taken, given)
            )

    assert foreign.execute("SELECT * FROM job").fetchall() == before


def test_a_job_that_ended_is_not_run_again_by_an_upsert(database):
    """An upsert of another program that makes an ended job QUEUED again does not start it."""
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        job = jobs.wait(jobs.submit(["sh", "-c", "echo ran; exit 3"]).id, PATIENCE)
        history = jobs.history(job.id)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        (number,) = connection.execute("SELECT number FROM job").fetchone()
        with pytest.raises(sqlite3.IntegrityError):
            replace(connection, number, BEGUN_AGAIN | {"token": "NULL", "cookie": "NULL"})

    with JobManager(database, slots=1, on_exit="stop") as jobs:
        jobs.drain(PATIENCE)
        assert jobs.get_job(job.id) == job
        assert jobs.history(job.id) == history
        assert [line.text for line in jobs.logs(job.id)] == ["ran"]


@pytest.mark.parametrize("status", ["COMPLETE", "ERROR", "STOPPED"])
def test_final_job_can_be_marked_deleted(foreign, status):
    """A tombstone passes on a final row, and so does removing it."""
    number = make(foreign, status)

    foreign.execute("UPDATE job SET deleted_at = 40 WHERE number = ?", (number,))
    assert foreign.execute("SELECT deleted_at FROM job").fetchall() == [(40,)]
    foreign.execute("DELETE FROM job WHERE number = ?", (number,))
    assert read(foreign, number) is None


def test_update_that_changes_nothing_passes(foreign):
    """A final row may be written with its present values."""
    number = make(foreign, "COMPLETE")
    before = read(foreign, number)

    foreign.execute("UPDATE job SET status = 'COMPLETE', exit_code = 0, end_time = 30")

    assert read(foreign, number) == before


def possible_endings():
    """Return each status, reason and exit code that the truth table knows, of a started job."""
    codes = range(256)
    return {
        ("COMPLETE", "exited", 0),
        *(("ERROR", "exited", code) for code in codes if code),
        *(("ERROR", "signaled", code) for code in range(129, 193)),
        *(("ERROR", "spawn_failed", code) for code in (126, 127, None)),
        *(("ERROR", reason, None) for reason in ("lost", "never_started")),
        *(("STOPPED", reason, None) for reason in ("lost", "never_started")),
        *(
            ("STOPPED", reason, code)
            for reason in ("stopped", "timeout", "shutdown")
            for code in (*codes, None)
        ),
    }


def test_file_takes_every_ending_of_the_truth_table(foreign):
    """Every ending that can be true is stored."""
    foreign.execute("BEGIN")
    for status, reason, code in sorted(possible_endings(), key=str):
        number = make(foreign, "RUNNING")
        move(foreign, number, status, reason=reason, exit_code=code)
    foreign.execute("COMMIT")


@pytest.mark.parametrize("reason", [*map(str, Reason), "because", "", None])
@pytest.mark.parametrize("status", [str(status) for status in Status if status.final])
def test_file_refuses_an_ending_that_cannot_be(foreign, status, reason):
    """No row claims a status that its reason and exit code do not have."""
    foreign.execute("BEGIN")
    number = make(foreign, "RUNNING")
    possible = possible_endings()
    for code in (None, -1, 0, 1, 126, 137, 255, 256):
        # Which code goes with these is the kernel's answer, not a rule of the file.
        kernels = status == "ERROR" and reason in ("exited", "signaled", "spawn_failed")
        may_be = kernels and code not in (-1, 256) and (reason, code) != ("exited", 0)
        if may_be or (status, reason, code) in possible:
            continue
        with pytest.raises(sqlite3.IntegrityError):
            move(foreign, number, status, reason=reason, exit_code=code)
    foreign.execute("ROLLBACK")


def test_complete_is_exit_0(foreign):
    """COMPLETE is refused with any exit code but 0."""
    number = make(foreign, "RUNNING")

    for code in (None, -1, *range(1, 257)):
        with pytest.raises(sqlite3.IntegrityError):
            move(foreign, number, "COMPLETE", exit_code=code)


def test_exit_0_by_itself_is_complete(foreign):
    """A job that exited with 0 by itself can be nothing but COMPLETE."""
    number = make(foreign, "RUNNING")

    for status in ("ERROR", "STOPPED"):
        with pytest.raises(sqlite3.IntegrityError):
            move(foreign, number, status, reason="exited", exit_code=0)
    move(foreign, number, "COMPLETE")


@pytest.mark.parametrize("column", ["end_time", "reason", "exit_code"])
@pytest.mark.parametrize("status", ["QUEUED", "RUNNING"])
def test_active_job_has_no_ending(foreign, status, column):
    """A job that is not final has no end, no reason and no exit code."""
    number = make(foreign, status)
    value = {"end_time": 30, "reason": "exited", "exit_code": 1}[column]

    with pytest.raises(sqlite3.IntegrityError):
        foreign.execute(f"UPDATE job SET {column} = ? WHERE number = ?", (value, number))


def test_end_is_not_before_start(foreign):
    """No job ends before it started; at the same moment is fine."""
    number = make(foreign, "RUNNING")

    with pytest.raises(sqlite3.IntegrityError):
        move(foreign, number, "COMPLETE", end_time=19)
    move(foreign, number, "COMPLETE", end_time=20)


def test_queued_job_has_not_started(foreign):
    """A start time comes with RUNNING and not before, and RUNNING not without one."""
    number = make(foreign, "QUEUED")

    with pytest.raises(sqlite3.IntegrityError):
        foreign.execute("UPDATE job SET start_time = 20")
    with pytest.raises(sqlite3.IntegrityError):
        move(foreign, number, "RUNNING", start_time=None)


def test_only_a_cancelled_job_never_started(foreign):
    """STOPPED out of QUEUED is `cancelled` and without a start; nothing else is."""
    number = make(foreign, "QUEUED")

    for facts in (
        {**CANCELLED, "reason": "stopped"},
        {**CANCELLED, "start_time": 20},
        {**CANCELLED, "exit_code": 0},
    ):
        with pytest.raises(sqlite3.IntegrityError):
            move(foreign, number, "STOPPED", **facts)
    move(foreign, number, "STOPPED", **CANCELLED)


@pytest.mark.parametrize("guard", ["index", "trigger"])
@pytest.mark.parametrize("status", ["QUEUED", "RUNNING"])
def test_pipeline_has_one_active_job(foreign, status, guard):
    """A pipeline gets no second job until its first is final; each of two rules ensures it."""
    if guard == "index":
        foreign.execute("DROP TRIGGER job_is_not_replaced")
    else:
        foreign.execute("DROP INDEX one_active_job_per_pipeline")
    first = insert(foreign, pipeline=True)
    if status == "RUNNING":
        move(foreign, first, "RUNNING")

    said = {"index": r"UNIQUE.*pipeline_id", "trigger": "not replaced"}[guard]
    with pytest.raises(sqlite3.IntegrityError, match=said):
        insert(foreign, pipeline=True)
    if status == "QUEUED":
        move(foreign, first, "RUNNING")
    move(foreign, first, "ERROR")
    insert(foreign, pipeline=True)


def test_pipeline_is_held_by_a_job_being_deleted(foreign):
    """A tombstone does not free the pipeline: the job may still run."""
    insert(foreign, pipeline=True, deleted_at=11)

    with pytest.raises(sqlite3.IntegrityError, match="not replaced"):
        insert(foreign, pipeline=True)
    foreign.execute("DROP TRIGGER job_is_not_replaced")
    with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE.*pipeline_id"):
        insert(foreign, pipeline=True)


@pytest.mark.parametrize("status", ["QUEUED", "RUNNING"])
def test_the_active_job_of_a_pipeline_is_not_replaced(foreign, status):
    """Neither a new job nor one of another pipeline takes its place, as an upsert would."""
    number = insert(foreign, pipeline=True)
    if status == "RUNNING":
        move(foreign, number, "RUNNING")
    other = insert(foreign)
    before = foreign.execute("SELECT * FROM job").fetchall()
    new = {"id": "lower(hex(randomblob(16)))", "number": "NULL", **BEGUN_AGAIN}

    with pytest.raises(sqlite3.IntegrityError, match="not replaced"):
        replace(foreign, number, new)
    with pytest.raises(sqlite3.IntegrityError, match="keeps its"):
        foreign.execute(
            "UPDATE OR REPLACE job SET pipeline_id = (SELECT pipeline_id FROM job "
            "WHERE number = ?) WHERE number = ?",
            (number, other),
        )

    assert foreign.execute("SELECT * FROM job").fetchall() == before


def test_jobs_without_pipeline_do_not_exclude_each_other(foreign):
    """Any number of jobs without a pipeline may be active."""
    for _ in range(3):
        insert(foreign)


def test_number_is_never_used_again(foreign):
    """No new job gets the number of a deleted one, even of the newest."""
    first = insert(foreign)
    foreign.execute("DELETE FROM job")

    assert insert(foreign) == first + 1


def test_rules_hold_inside_one_statement(foreign):
    """A statement that breaks a rule for one of many rows changes no row."""
    final, running = make(foreign, "COMPLETE"), make(foreign, "RUNNING")
    before = read(foreign, final), read(foreign, running)

    with pytest.raises(sqlite3.IntegrityError):
        foreign.execute("UPDATE job SET status = 'RUNNING', start_time = 25")
    assert (read(foreign, final), read(foreign, running)) == before
