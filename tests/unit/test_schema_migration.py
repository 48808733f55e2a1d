"""Migration: a file of every earlier schema becomes a current one, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing

import pytest

from jobcore import JobManager, PipelineExists, Reason, SchemaTooNew, Status
from jobcore.operations import doctor
from jobcore.storage import count_migration, schema
from jobcore.storage.database import Database
from tests.faults.rounds import sample
from tests.processes import ROOT, Child, at_once


def make_old(path, version):
    """Make the file as a jobcore of schema `version` left it: four jobs, one of each kind."""
    source = (ROOT / "tests" / "data" / f"schema_{version}.sql").read_text()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(source)
        connection.execute("PRAGMA journal_mode = WAL")
    os.chmod(path, 0o600)


def shape(path):
    """Return what a file's schema consists of, however it came to be."""
    with closing(sqlite3.connect(path)) as connection:
        tables = {name for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )}  # fmt: skip
        columns = {
            table: sorted(
                (name, kind, notnull, default, key)
                for _, name, kind, notnull, default, key in connection.execute(
                    f"PRAGMA table_info({table})"
                )
            )
            for table in tables
        }
        keys = {
            table: sorted(
                row[2:] for row in connection.execute(f"PRAGMA foreign_key_list({table})")
            )
            for table in tables
        }
        others = sorted(
            connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type IN ('index', 'trigger')"
            ),
            key=lambda row: row[0],
        )
        return columns, keys, others


def version_of(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


@pytest.fixture(params=sorted(schema.MIGRATIONS))
def old(request, database):
    """Return a file of an earlier schema."""
    make_old(database, request.param)
    return database


def test_there_is_a_step_and_a_file_for_every_earlier_version():
    """Each version has a step, and a file that it made as a test."""
    assert sorted(schema.MIGRATIONS) == list(range(1, schema.VERSION))


def test_generated_migration_has_not_changed():
    """The statements that lead to schema 7 are those that migrated the files in use."""
    text = "\n".join(count_migration.STATEMENTS).encode()

    assert hashlib.sha256(text).hexdigest() == (
        "ffdbd4cfe4d90bbd32ddf9d419f2c4615c7ac60ba796782db97100d78603c74b"
    )


def test_a_migrated_file_is_like_a_new_one(old, tmp_path):
    """Migration leads to the very tables, keys, indexes and triggers of a file made today."""
    Database(old).close()
    new = str(tmp_path / "new.db")
    Database(new).close()

    assert version_of(old) == schema.VERSION
    assert shape(old) == shape(new)
    for path in (old, new):
        found = {one.check: one for one in doctor.examine(path)}["definitions"]
        assert (found.verdict, found.detail) == (
            "ok", "every table, index and trigger is as jobcore made it"
        )  # fmt: skip


def test_migrated_file_keeps_its_content(old):
    """Jobs, logs, history and pipelines of an earlier jobcore read as they did."""
    with JobManager(old, slots=0) as jobs:
        waits, task, nightly, ended = jobs.list_jobs()
        log = [(line.sequence, line.text) for line in jobs.logs(ended.id)]
        triggers = [str(entry.trigger) for entry in jobs.history(ended.id)]
        pipeline = jobs.get_pipeline(nightly.pipeline_id)
        counted = {one.check: one for one in jobs.check()}["counts"].verdict, jobs.count_jobs()
        of_nightly = jobs.count_jobs(pipeline_id=pipeline.id)
        task = jobs.finish_job(task.id)

    assert (ended.name, ended.data, ended.status) == ("ended", {"a": 1}, Status.ERROR)
    assert (ended.exit_code, ended.reason) == (3, Reason.EXITED)
    assert log == [(0, "extract"), (1, "load")]
    assert triggers == ["create", "start", "finish"]
    assert (pipeline.name, nightly.status) == ("nightly", Status.COMPLETE)
    once = dict.fromkeys(("QUEUED", "RUNNING", "COMPLETE", "ERROR"), 1)
    assert counted == ("ok", {**once, "STOPPED": 0})
    assert of_nightly == {**dict.fromkeys(once, 0), "COMPLETE": 1, "STOPPED": 0}
    assert (waits.status, task.status) == (Status.QUEUED, Status.COMPLETE)


@pytest.mark.parametrize(
    "most",
    [pytest.param(12, id="smoke"), pytest.param(None, id="full", marks=pytest.mark.faults)],
)
def test_an_interrupted_migration_leaves_the_old_file(old, monkeypatch, most):
    """A process that dies at any statement of a step leaves the old file unchanged."""
    before = version_of(old)
    count = len(schema.MIGRATIONS[before])

    def die_at(index):
        statements = schema.MIGRATIONS[before]

        def cut_short():
            yield from statements[:index]
            os._exit(9)

        monkeypatch.setitem(schema.MIGRATIONS, before, cut_short())
        Database(old)

    for index in [*sample(range(count), most), count]:  # the last one: before the commit
        with pytest.raises(AssertionError, match="died without an answer"):
            Child(die_at, index).result()
        assert version_of(old) == before
    Database(old).close()

    assert version_of(old) == schema.VERSION


#: Pipelines of a file of schema 4: name, what triggered it, and whether its deletion was begun.
OLD_PIPELINES = [
    ("load", None, 0),
    ("LOAD", None, 0),
    ("load (2)", None, 0),
    ("Load", None, 0),
    ("gone", None, 1),
    ("gone", None, 0),
    ("report", '["Load", "load", "LOAD (2)", "nowhere", "Deploy"]', 0),
    ("publish", '["REPORT", "gone"]', 0),
    ("damaged", "[1, {", 0),
    ("a number", "5", 0),
]


def make_old_chains(path):
    """Make a file of schema 4 whose pipelines are `OLD_PIPELINES`, each older than the next."""
    make_old(path, 4)
    with closing(sqlite3.connect(path)) as connection, connection:
        (place,) = connection.execute("SELECT id FROM workspace").fetchone()
        connection.execute(
            "INSERT INTO workspace VALUES ('00000000000040008000000000000000', 'w', 0, NULL, 1, 1, "
            "NULL)"
        )
        for number, (name, by, deleted) in enumerate(
            [*OLD_PIPELINES, ("other", '["load"]', 0)], start=1
        ):
            place = place if name != "other" else "00000000000040008000000000000000"
            connection.execute(
                "INSERT INTO pipeline (id, workspace_id, name, status, script, max_retries, "
                "triggered_by, created, last_modified, deleted_at) "
                "VALUES (?, ?, ?, 'READY', 'true', 0, ?, ?, ?, ?)",
                (f"{number:032x}", place, name, by, number, number, deleted or None),
            )


def test_chains_by_name_become_chains_by_id(database):
    """A chain refers to each pipeline that its names matched; names without one are reported."""
    make_old_chains(database)
    with JobManager(database, slots=0) as jobs:
        found = {one.name: one for one in jobs.list_pipelines()}
        notes = [one for one in jobs.check() if one.check == "chains"]
        triggered = {}
        for source in ("load", "LOAD (3)", "Load (4)", "load (2)", "gone", "report"):
            before = {job.id for job in jobs.list_jobs()}
            job = jobs.create_job(pipeline_id=found[source].id)
            jobs.start_job(job.id)
            jobs.finish_job(job.id)
            new = [one for one in jobs.list_jobs() if one.id not in {job.id, *before}]
            triggered[source] = [jobs.get_pipeline(one.pipeline_id).name for one in new]
            for one in new:
                jobs.cancel_job(one.id)
        with pytest.raises(PipelineExists):
            jobs.create_pipeline("REPORT", script="true")
        again = jobs.update_pipeline(found["report"].id, triggered_by=["NOWHERE", "load"])

    assert [one.name for one in found.values() if one.name != "nightly"] == [
        "load", "LOAD (3)", "load (2)", "Load (4)", "gone", "report", "publish", "damaged",
        "a number", "other",
    ]  # fmt: skip
    assert found["report"].triggered_by == [
        "load", "LOAD (3)", "Load (4)", "load (2)", "nowhere", "Deploy",
    ]  # fmt: skip
    assert found["publish"].triggered_by == ["report", "gone"]
    assert found["other"].triggered_by == ["load"]  # another workspace's: it has never fired
    assert found["damaged"].triggered_by is found["a number"].triggered_by is None
    assert triggered == {
        "load": ["report"], "LOAD (3)": ["report"], "Load (4)": ["report"], "load (2)": ["report"],
        "gone": ["publish"], "report": ["publish"],
    }  # fmt: skip
    assert {(one.verdict, one.detail.partition(",")[0]) for one in notes} == {
        ("note", "pipeline 'LOAD (3)': was called 'LOAD'"),
        ("note", "pipeline 'Load (4)': was called 'Load'"),
        ("note", "pipeline 'report': triggered_by names 'nowhere'"),
        ("note", "pipeline 'other': triggered_by names 'load'"),
        ("note", "pipeline 'damaged': triggered_by was damaged: it runs after no pipeline"),
        ("note", "pipeline 'a number': triggered_by was damaged: it runs after no pipeline"),
    }
    assert again.triggered_by == ["NOWHERE", "load"]  # that name was there before


@pytest.mark.parametrize(
    ("stored", "shown"),
    [(rb'["\ud800", "load"]', r"\ud800"), (b'["\xff\x80", "load"]', r"\udcff\udc80")],
)
def test_names_that_are_not_text_are_migrated(database, stored, shown):
    """A lone surrogate, or bytes that are not UTF-8, are escaped, and doctor reports them."""
    make_old_chains(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        for column, value, name in (
            ("triggered_by", stored, "report"), ("name", b"broken \xed\xa0\x80", "gone"),
            ("script", b"\xff", "publish"), ("id", b"\xff", "load"),
        ):  # fmt: skip
            connection.execute(
                f"UPDATE pipeline SET {column} = CAST(? AS TEXT) WHERE name = ?", (value, name)
            )
    with JobManager(database, slots=0) as jobs:
        found = {one.name: one for one in jobs.list_pipelines()}
        notes = [one.detail for one in jobs.check() if one.check == "chains"]

    assert found["report"].triggered_by[0] == shown
    assert "LOAD" in found["report"].triggered_by
    assert r"broken \udced\udca0\udc80" in found
    assert any("its name was not UTF-8" in note for note in notes)
    assert any(note.startswith("pipeline 'report': triggered_by names ") for note in notes)


def test_events_of_a_migrated_pipeline_are_found(old):
    """The history of an earlier jobcore is read by pipeline, too."""
    with JobManager(old, slots=0) as jobs:
        (pipeline,) = jobs.list_pipelines()
        seen = [event.id for event in jobs.events(pipeline_id=pipeline.id)]
        (of_it,) = jobs.list_jobs(pipeline_id=pipeline.id)
        every = [event.id for event in jobs.events() if event.job_id == of_it.id]

    assert seen == every != []


def test_many_processes_migrate_it_once(old):
    """Eight processes that open an old file together all get the current one."""

    def open_it(name):
        with JobManager(old, slots=0) as jobs:
            return str(jobs.submit(["true"], name=name).number)

    numbers = at_once(open_it, [(str(n),) for n in range(8)])

    assert len(set(numbers)) == 8
    assert version_of(old) == schema.VERSION


def test_an_old_file_without_a_root_gets_one(old):
    """A backup of an earlier jobcore, restored alone, opens: nothing of it runs in a process."""
    assert not os.path.exists(old + ".jobs")
    with JobManager(old, slots=0) as jobs:
        assert len(jobs.list_jobs()) == 4


def test_a_manager_of_the_old_schema_stops_writing(database, monkeypatch):
    """A process whose jobcore is older writes nothing once a newer one has migrated the file."""
    newest = schema.VERSION
    monkeypatch.setattr(schema, "VERSION", 1)
    make_old(database, 1)
    with JobManager(database, slots=0) as jobs:
        monkeypatch.undo()
        Child(lambda: Database(database).close()).result()
        monkeypatch.setattr(schema, "VERSION", 1)

        with pytest.raises(SchemaTooNew, match=f"version {newest} meanwhile"):
            jobs.submit(["true"])
