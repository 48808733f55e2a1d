"""Database: transactions that are all or nothing, typed refusals, and a fork that loses nothing."""

from __future__ import annotations

import codecs
import fcntl
import gc
import logging
import os
import random
import shutil
import sqlite3
import stat
import tempfile
import threading
import time
import weakref
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy

from jobcore import (
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseFull,
    DatabaseGone,
    JobManager,
    NotAJobcoreDatabase,
    ReadOnlyDatabase,
    SchemaTooNew,
    StoreError,
    StoreMismatch,
)
from jobcore.storage import schema
from jobcore.storage.connections import SqliteConnection, keep_forever
from jobcore.storage.database import Database
from jobcore.tuning import CHECKPOINT_BYTES
from tests.faults.rounds import sample
from tests.processes import (
    PATIENCE,
    Child,
    at_once,
    descriptors,
    hear,
    in_child,
    join,
    run_python,
    until,
)
from tests.transactions import transaction

BUSY = 0.1  # seconds: the busy timeout where it is meant to run out


@pytest.fixture
def opened(database):
    """Return an open database with a table to write to."""
    found = Database(database)
    with transaction(found) as connection:
        connection.exec_driver_sql("CREATE TABLE note (text TEXT UNIQUE)")
    yield found
    found.close()


def note(opened, text, **options):
    """Commit one row."""
    with transaction(opened, **options) as connection:
        connection.exec_driver_sql("INSERT INTO note VALUES (?)", (text,))


def notes(opened):
    """Return what is committed."""
    with opened.read() as connection:
        return {text for (text,) in connection.exec_driver_sql("SELECT text FROM note")}


def is_held(lock):
    """Tell whether another thread has a lock."""
    if lock.acquire(blocking=False):
        lock.release()
        return False
    return True


@contextmanager
def foreign(path):
    """Give another program's connection."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)) as connection:
        yield connection


def contents(path):
    """Return the bytes of a file that nobody has open."""
    with open(path, "rb") as file:
        return file.read()


def integrity(path):
    """Return what SQLite's own check says."""
    with foreign(path) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone()[0]


# --- whose file it is ---------------------------------------------------------


def _other_programs(path):
    with foreign(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")


def _other_programs_with_wal(path):
    with foreign(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE theirs (x)")
        connection.execute("INSERT INTO theirs VALUES (1)")


def _other_application(path):
    with foreign(path) as connection:
        connection.execute("PRAGMA application_id = 4711")


def _only_a_version(path):
    with foreign(path) as connection:
        connection.execute("PRAGMA user_version = 1")


def _text(path):
    with open(path, "w", encoding="ascii") as file:
        file.write("id,name\n1,not a database\n" * 100)


def _noise(path):
    with open(path, "wb") as file:
        file.write(random.Random(1).randbytes(100_000))


def _newer(path):
    Database(path).close()
    with foreign(path) as connection:
        connection.execute("PRAGMA user_version = 9999")
    shutil.rmtree(path + ".jobs")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_other_programs, NotAJobcoreDatabase),
        (_other_programs_with_wal, NotAJobcoreDatabase),
        (_other_application, NotAJobcoreDatabase),
        (_only_a_version, NotAJobcoreDatabase),
        (_text, NotAJobcoreDatabase),
        (_noise, NotAJobcoreDatabase),
        (_newer, SchemaTooNew),
    ],
)
def test_foreign_file_is_refused_and_untouched(database, make, error):
    """A file that no older or equal jobcore made is refused, without a changed byte."""
    make(database)
    before = contents(database)

    with pytest.raises(error, match=r"jobs\.db"):
        Database(database)
    assert contents(database) == before
    assert not os.path.exists(database + ".jobs")


def test_empty_file_becomes_a_database(database):
    """An empty file, as `touch` makes it, is used."""
    with open(database, "xb"):
        pass

    Database(database).close()
    assert integrity(database) == "ok"


@pytest.mark.parametrize("content", ["nothing", "no table", None])
def test_file_without_a_database_is_left_as_it_is_without_create(database, content):
    """A program that only reads creates no database and no directory, and changes no mode."""
    if content is not None:
        Path(database).touch(0o644)
    if content == "no table":
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("CREATE TABLE t (a)")
            connection.execute("DROP TABLE t")
        assert Path(database).stat().st_size > 0
    before = content is not None and (Path(database).stat(), Path(database).read_bytes())
    with pytest.raises(NotAJobcoreDatabase, match="no database"):
        Database(database, create=False)

    assert sorted(Path(database).parent.iterdir()) == ([Path(database)] if before else [])
    if before:
        assert (Path(database).read_bytes(), Path(database).stat().st_mode) == (
            before[1], before[0].st_mode,
        )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["a b.db", "100%.db", "q?mode=memory", "x#y.db", "%3f.db", "new\nline", "é\U0001f600",
     "\udcff\udc80.db", "file:x.db", ":memory:", "-", "a&b=c"],
)  # fmt: skip
def test_any_name_is_a_path(tmp_path, name):
    """Whatever a path contains, that very file is opened, and no other."""
    path = tmp_path / name
    opened = Database(path)
    with transaction(opened) as connection:
        connection.exec_driver_sql("CREATE TABLE note (text)")
    opened.close()

    assert sorted(os.listdir(tmp_path)) == sorted([name, name + ".jobs"])
    assert os.path.getsize(path) > 0


def test_path_with_two_slashes_is_a_path(database):
    """Two slashes before a path, which POSIX allows, lead to the same file."""
    Database("/" + database).close()

    assert os.path.getsize(database) > 0


def test_no_descriptor_of_ours_is_ever_on_the_file(tmp_path):
    """Python never opens the database file: closing it would drop SQLite's locks."""
    printed = run_python(
        """
import sys
opened = []
path = sys.argv[1]
def audit(name, args):
    if name == "open" and isinstance(args[0], (str, bytes)):
        opened.append(args[0] if isinstance(args[0], str) else args[0].decode())
import jobcore.storage.database
sys.addaudithook(audit)
database = jobcore.storage.database.Database(path)
database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE x (y)").close())
database.checkpoint()
database.version()
database.close()
with jobcore.JobManager(path, slots=0) as jobs:
    jobs.get_job(jobs.create_job("TASK").id)
    jobs.recover()
print(len(opened) > 0, [name for name in opened if name.endswith((".db", "-wal", "-shm"))])
""",
        tmp_path / "jobs.db",
    )

    assert printed == "True []\n"


def test_errors_and_statement_logs_contain_no_values(database, caplog):
    """Stored values, such as an environment, are in no error and no log of SQLAlchemy."""
    statement = sqlalchemy.text("INSERT INTO note VALUES (:text)")
    with caplog.at_level(logging.DEBUG, logger="sqlalchemy"):
        opened = Database(database)
        with transaction(opened) as connection:
            connection.exec_driver_sql("CREATE TABLE note (text TEXT UNIQUE)")
            connection.execute(statement, {"text": "canary"})
        with pytest.raises(DatabaseCorrupt) as caught, transaction(opened) as connection:
            connection.execute(statement, {"text": "canary"})
        opened.close()

    assert "UNIQUE" in str(caught.value)
    assert "canary" not in str(caught.value) + repr(caught.value)
    assert caplog.text == ""


# --- damage -------------------------------------------------------------------


def test_damaged_file_is_typed_and_untouched(database):
    """Whatever bytes of a database are damaged, the answer is typed, and nothing is repaired."""
    with JobManager(database, slots=0) as jobs:
        for index in range(50):
            job = jobs.create_job("TASK", name=f"job {index}" * 20)
        jobs.start_job(job.id)
        jobs.append_log(job.id, *["line"] * 2000)
    whole = contents(database)
    chance = random.Random(20240506)
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        if chance.random() < 0.3:
            del data[chance.randrange(100, len(data)) :]
        else:
            for _ in range(chance.choice([1, 10, 100])):
                begin = chance.randrange(len(data) - 600)
                data[begin : begin + 500] = chance.randbytes(500)
        with open(database, "wb") as file:
            file.write(data)
        for companion in ("-wal", "-shm"):
            if os.path.exists(database + companion):
                os.unlink(database + companion)
        try:
            with JobManager(database, slots=0) as jobs:
                jobs.list_jobs()
                jobs.get_job(job.id)
                list(jobs.logs(job.id))
                jobs.history(job.id)
            outcomes.add("nothing noticed")
        except (StoreError, LookupError) as error:
            outcomes.add(type(error).__name__)
        except Exception as error:  # noqa: BLE001 - which is what must not be
            outcomes.add(f"untyped {error!r}")
        assert os.path.exists(database)

    assert "DatabaseCorrupt" in outcomes
    assert [outcome for outcome in outcomes if outcome.startswith("untyped")] == []


def test_truncated_file_is_corrupt(database):
    """A database without its second half is reported as damaged, at the latest when read."""
    with JobManager(database, slots=0) as jobs:
        for _ in range(100):
            jobs.create_job("TASK", name="x" * 500)
    os.truncate(database, os.path.getsize(database) // 8192 * 4096)
    before = contents(database)

    with pytest.raises(DatabaseCorrupt), JobManager(database, slots=0) as jobs:
        jobs.list_jobs(limit=1000)
    assert contents(database) == before


# --- transactions -------------------------------------------------------------


def test_pragmas_hold_on_every_connection(opened):
    """Each connection, whatever it is for, has the pragmas that the guarantees need."""
    expected = {
        "foreign_keys": 1,
        "synchronous": 2,
        "journal_mode": "wal",
        "wal_autocheckpoint": 0,
        "mmap_size": 0,
        "journal_size_limit": 16 * 2**20,
        "temp_store": 2,
        "trusted_schema": 0,
        "busy_timeout": 30_000,
    }

    for use in (opened.read, partial(transaction, opened)):
        with use() as connection:
            found = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in expected
            }
        if use != opened.read:
            expected["busy_timeout"] = 0  # it is the writer itself that tries again
        assert found == expected


def test_log_batches_are_synced_less(opened):
    """A write that need not be durable is NORMAL, and the next one is FULL again."""
    found = []
    for durable in (True, False, False, True, False, True):
        with transaction(opened, durable=durable) as connection:
            found.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())

    assert found == [2, 1, 1, 2, 1, 2]


def test_write_takes_the_lock_at_once(opened, database):
    """A write transaction holds the write lock before its first statement; a read never does."""
    with foreign(database) as other:
        other.execute("PRAGMA busy_timeout = 0")
        with transaction(opened), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        with opened.read() as connection:
            connection.exec_driver_sql("SELECT * FROM note").all()
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")


def test_read_is_one_moment(opened):
    """One read transaction sees one state of the file."""
    note(opened, "before")
    with opened.read() as connection:
        first = connection.exec_driver_sql("SELECT count(*) FROM note").scalar()
        note(opened, "meanwhile")
        second = connection.exec_driver_sql("SELECT count(*) FROM note").scalar()

    assert (first, second) == (1, 1)
    assert notes(opened) == {"before", "meanwhile"}


def test_read_is_one_moment_for_the_driver_too(opened):
    """Statements that go to the driver directly are in the same transaction."""
    with opened.read() as connection:
        driver = connection.connection.driver_connection
        first = driver.execute("SELECT count(*) FROM note").fetchone()
        note(opened, "meanwhile")
        second = driver.execute("SELECT count(*) FROM note").fetchone()

    assert (first, second) == ((0,), (0,))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, StoreError, GeneratorExit])
def test_any_error_rolls_back(opened, error):
    """An exception inside a write undoes all of it, and the next write works."""
    with pytest.raises(error), transaction(opened) as connection:  # noqa: PT012 - it is the block that is rolled back
        connection.exec_driver_sql("INSERT INTO note VALUES ('half')")
        raise error

    note(opened, "whole")
    assert notes(opened) == {"whole"}


def test_broken_constraint_raises_database_corrupt(opened):
    """A statement of jobcore that breaks a rule of the schema is rolled back."""
    note(opened, "once")
    with pytest.raises(DatabaseCorrupt, match="jobcore doctor"), transaction(opened) as connection:  # noqa: PT012 - it is the block that is rolled back
        connection.exec_driver_sql("INSERT INTO note VALUES ('other')")
        connection.exec_driver_sql("INSERT INTO note VALUES ('once')")

    assert notes(opened) == {"once"}


def test_savepoint_gives_each_its_own_fate(opened):
    """One of many that fails is rolled back alone; the others are committed."""
    failed = []
    with transaction(opened) as connection:
        for text in ("a", "b", "a", "c"):
            with opened.savepoint(connection, failed, text):
                connection.exec_driver_sql("INSERT INTO note VALUES (?)", (text + " first",))
                connection.exec_driver_sql("INSERT INTO note VALUES (?)", (text,))

    assert notes(opened) == {"a first", "a", "b first", "b", "c first", "c"}
    assert [(text, type(error)) for text, error in failed] == [("a", DatabaseCorrupt)]


def test_savepoint_does_not_hide_the_end_of_the_transaction(opened):
    """An error that ended the whole transaction is raised, and nothing is committed."""
    failed = []
    with pytest.raises(DatabaseCorrupt), transaction(opened) as connection:  # noqa: PT012 - it is the block that is rolled back
        connection.exec_driver_sql("INSERT INTO note VALUES ('a')")
        with opened.savepoint(connection, failed, None):
            connection.exec_driver_sql("INSERT OR ROLLBACK INTO note VALUES ('a')")

    assert (notes(opened), failed) == (set(), [])


def test_threads_write_one_after_the_other(opened):
    """Writers and readers of many threads lose nothing, and see whole transactions only."""
    failures = []

    def work(name):
        try:
            for index in range(25):
                with transaction(opened, durable=False) as connection:
                    for half in ("a", "b"):
                        text = f"{name} {index} {half}"
                        connection.exec_driver_sql("INSERT INTO note VALUES (?)", (text,))
                assert len(notes(opened)) % 2 == 0
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    join(*threads)

    assert failures == []
    assert len(notes(opened)) == 6 * 25 * 2


def test_closed_database_refuses_every_use(opened):
    """After close every use is refused with a typed error; closing again is harmless."""
    opened.close()
    opened.close()

    for use in (opened.read, partial(transaction, opened)):
        with pytest.raises(StoreError, match="is closed"), use():
            pass
    with pytest.raises(StoreError, match="is closed"):
        opened.version()


# --- what the environment does ------------------------------------------------


def test_locked_by_another_program_is_busy(database, opened):
    """During a foreign lock, a write fails after the busy timeout; reads work."""
    impatient = Database(database, busy_timeout=BUSY)
    with foreign(database) as other:
        other.execute("BEGIN IMMEDIATE")
        before = time.monotonic()
        with pytest.raises(DatabaseBusy):
            note(impatient, "never")
        waited = time.monotonic() - before
        assert notes(impatient) == set()
        other.execute("ROLLBACK")

    assert waited >= BUSY
    note(impatient, "now")
    assert notes(opened) == {"now"}
    impatient.close()


def test_busy_writer_waits_for_its_turn(database, opened):
    """A write succeeds as soon as a foreign lock is released."""
    with foreign(database) as other:
        other.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=note, args=(opened, "in time"))
        writer.start()
        until(lambda: opened.writer.taken, "the writer's turn")
        other.execute("COMMIT")
        join(writer)

    assert notes(opened) == {"in time"}


def test_another_thread_that_keeps_writing_is_busy(opened):
    """During another thread's transaction, a write fails after the busy timeout."""
    opened.busy_timeout = BUSY
    failure = []

    def try_it():
        with pytest.raises(DatabaseBusy):
            note(opened, "never")
        failure.append("busy")

    with transaction(opened):
        thread = threading.Thread(target=try_it)
        thread.start()
        join(thread)

    assert failure == ["busy"]
    assert notes(opened) == set()


def test_write_inside_a_write_is_refused(opened):
    """A write in the thread that writes, as of a finaliser, is busy; the outer one goes on."""

    def change(connection):
        connection.exec_driver_sql("INSERT INTO note VALUES ('before')")
        with pytest.raises(DatabaseBusy, match="this thread is in a transaction"):
            opened.write(lambda _: pytest.fail("it was let in"))
        connection.exec_driver_sql("INSERT INTO note VALUES ('after')")

    opened.write(change)

    assert notes(opened) == {"before", "after"}


def test_removed_file_is_gone(database, opened):
    """Nothing is written to a removed file, and nothing is made in its place."""
    note(opened, "before")
    notes(opened)
    os.unlink(database)

    with pytest.raises(DatabaseGone, match="removed"):
        note(opened, "to a ghost")
    with pytest.raises(DatabaseGone), opened.read():
        pass  # by a connection that was there
    with pytest.raises(DatabaseGone):
        opened.version()
    assert not os.path.exists(database)


def test_file_removed_just_after_the_check_raises_database_gone(database, opened, monkeypatch):
    """If the file has just been removed, the error is DatabaseGone."""
    connect = sqlite3.connect

    def lose_and_connect(*arguments, **options):
        os.rename(database, database + ".kept")
        return connect(*arguments, **options)

    with opened.read():  # the connection at hand
        monkeypatch.setattr(sqlite3, "connect", lose_and_connect)
        with pytest.raises(DatabaseGone), opened.read():
            pass
        monkeypatch.undo()
        os.rename(database + ".kept", database)


def test_replaced_file_is_gone(database, opened, tmp_path):
    """Another file in its place is neither written to nor read from."""
    note(opened, "before")
    notes(opened)
    other = Database(tmp_path / "other.db")
    with transaction(other) as connection:
        connection.exec_driver_sql("CREATE TABLE note (text)")
    other.close()
    os.replace(tmp_path / "other.db", database)
    before = contents(database)

    with pytest.raises(DatabaseGone, match="replaced"):
        note(opened, "to a stranger")
    with pytest.raises(DatabaseGone), opened.read():
        pass
    with pytest.raises(DatabaseGone):
        opened.version()
    assert contents(database) == before


def test_migrated_file_is_too_new(database, opened):
    """A process that knows an older schema stops writing once a newer one has migrated the file."""
    note(opened, "before")
    with foreign(database) as other:
        other.execute("PRAGMA user_version = 9999")

    with pytest.raises(SchemaTooNew, match="meanwhile"):
        note(opened, "after")
    assert notes(opened) == {"before"}


def test_full_disk_is_typed_and_rolled_back(opened):
    """Wherever a full disk stops a transaction, all of it fails, with a typed error."""
    with transaction(opened) as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    big = ["x" * 9000 + str(index) for index in range(4)]
    refused = 0
    for limit in range(pages, pages + 100):
        with transaction(opened) as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {limit}")
        try:
            with transaction(opened) as connection:
                for text in big:
                    connection.exec_driver_sql("INSERT INTO note VALUES (?)", (text,))
        except DatabaseFull:
            refused += 1
            assert notes(opened) == set()
        else:
            break

    assert refused > 4
    assert notes(opened) == set(big)


@pytest.fixture
def others_place():
    """Return a directory of a user who is not root, and how to be that user in a child."""
    place = tempfile.mkdtemp(prefix="jobcore-test-")
    user = 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(place, user, user if user == 65534 else -1)

    codecs.lookup("ascii")  # that user may not be able to read where this Python is installed

    def become():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)

    yield os.path.join(place, "jobs.db"), become
    os.chmod(place, 0o700)
    shutil.rmtree(place)


@pytest.mark.parametrize("what", ["file", "file and directory, but others have it open"])
def test_read_only_database_can_be_read(others_place, what):
    """Where nothing can be written reading works, and writing raises ReadOnlyDatabase."""
    path, become = others_place
    place = os.path.dirname(path)

    def prepare():
        become()
        with JobManager(path, slots=0) as jobs:
            return jobs.create_job("TASK", name="there").id

    def read_and_write(job_id):
        become()
        with JobManager(path, slots=0) as jobs:
            found = [jobs.get_job(job_id).name, [job.name for job in jobs.list_jobs()]]
            with pytest.raises(ReadOnlyDatabase):
                jobs.create_job("TASK", name="new")
            with pytest.raises(ReadOnlyDatabase):
                jobs.start_job(job_id)
            return [*found, jobs.get_job(job_id).status]

    job_id = in_child(prepare)
    with foreign(path) if "open" in what else nullcontext() as held:
        if held is not None:
            held.execute("SELECT count(*) FROM job").fetchone()
            for companion in ("-wal", "-shm"):
                os.chown(path + companion, os.stat(path).st_uid, -1)
        os.chmod(path, stat.S_IRUSR)
        if held is not None:
            os.chmod(place, stat.S_IRUSR | stat.S_IXUSR)
        answer = in_child(read_and_write, job_id)

    assert answer == ["there", ["there"], "QUEUED"]


def test_read_only_place_without_a_log_is_refused(others_place):
    """If SQLite cannot make its shared memory, the error says that the place is read-only."""
    path, become = others_place

    def prepare():
        become()
        Database(path).close()
        os.chmod(path, stat.S_IRUSR)
        os.chmod(os.path.dirname(path), stat.S_IRUSR | stat.S_IXUSR)

    def try_it():
        become()
        with pytest.raises(ReadOnlyDatabase):
            Database(path)
        return sorted(os.listdir(os.path.dirname(path)))

    in_child(prepare)
    assert in_child(try_it) == ["jobs.db", "jobs.db.jobs"]


def test_read_only_directory_without_database_is_refused(others_place):
    """Where no database can be made the answer is typed, and nothing is there."""
    path, become = others_place
    os.chmod(os.path.dirname(path), 0o500)

    def try_it():
        become()
        with pytest.raises(StoreError, match="Permission denied"):
            Database(path)
        return os.listdir(os.path.dirname(path))

    assert in_child(try_it) == []


# --- database and job directories ---------------------------------------------


def make_store(path, *, running):
    """Make a database with one job that is RUNNING: in a process, by its host, or not at all."""
    with JobManager(path, slots=0) as jobs:
        job = jobs.create_job("TASK")
    if running:
        with foreign(path) as connection:
            connection.execute(
                "UPDATE job SET status = 'RUNNING', start_time = created, token = ?",
                ("a" * 32 if running == "in a process" else None,),
            )
    return job.id


@pytest.mark.parametrize("running", ["in a process", "by its host", None])
def test_swapped_root_is_a_mismatch(tmp_path, running):
    """The job directories of another database are never looked at."""
    for name in ("a.db", "b.db"):
        make_store(tmp_path / name, running=running)
    os.rename(tmp_path / "a.db.jobs", tmp_path / "x")
    os.rename(tmp_path / "b.db.jobs", tmp_path / "a.db.jobs")
    before = contents(tmp_path / "a.db")

    with pytest.raises(StoreMismatch, match="another database"):
        Database(tmp_path / "a.db")
    assert contents(tmp_path / "a.db") == before
    os.rename(tmp_path / "x", tmp_path / "b.db.jobs")
    with pytest.raises(StoreMismatch):
        Database(tmp_path / "b.db")


def test_missing_root_of_running_jobs_is_a_mismatch(database):
    """Without its job directories, a file with RUNNING jobs is refused and not changed."""
    job_id = make_store(database, running="in a process")
    os.rename(database + ".jobs", database + ".moved")

    for _ in range(3):
        with pytest.raises(StoreMismatch, match="1 jobs are RUNNING"):
            Database(database)
    shutil.rmtree(database + ".jobs", ignore_errors=True)
    os.rename(database + ".moved", database + ".jobs")
    Database(database).close()
    with foreign(database) as connection:
        (status,) = connection.execute("SELECT status FROM job").fetchone()
    assert (status, job_id) == ("RUNNING", job_id)


@pytest.mark.parametrize("running", ["by its host", None])
def test_restored_backup_gets_a_new_root(database, running):
    """A database without directories, and without jobs in processes, gets a root of its own."""
    job_id = make_store(database, running=running)
    with foreign(database) as connection:
        (before,) = connection.execute("SELECT id FROM store").fetchone()
    shutil.rmtree(database + ".jobs")
    with JobManager(database, slots=0) as jobs:
        status = jobs.get_job(job_id).status
    with foreign(database) as connection:
        (after,) = connection.execute("SELECT id FROM store").fetchone()

    assert status == ("RUNNING" if running else "QUEUED")
    assert after != before
    assert contents(database + ".jobs/store").decode().strip() == after


def test_new_database_takes_the_root_that_is_there(database):
    """A database made beside the directories of a removed one takes their id."""
    Database(database).close()
    with foreign(database) as connection:
        (before,) = connection.execute("SELECT id FROM store").fetchone()
    os.unlink(database)
    Database(database).close()
    with foreign(database) as connection:
        (after,) = connection.execute("SELECT id FROM store").fetchone()

    assert after == before


@pytest.mark.parametrize("what", ["link", "open to others", "file"])
def test_invalid_root_is_refused(database, tmp_path, what):
    """A root that is a link, open to others, or no directory is never used."""
    Database(database).close()
    root = database + ".jobs"
    if what == "link":
        os.rename(root, tmp_path / "elsewhere")
        os.symlink(tmp_path / "elsewhere", root)
    elif what == "open to others":
        os.chmod(root, 0o750)
    else:
        shutil.rmtree(root)
        with open(root, "xb"):
            pass

    with pytest.raises(StoreMismatch, match=r"jobs\.db\.jobs"):
        Database(database)


def test_eight_processes_make_one_database(tmp_path):
    """Eight processes that open a new database at once all get the same one, whole."""

    def open_it(path, name):
        with JobManager(path, slots=0) as jobs:
            jobs.create_job("TASK", name=name)
        return "opened"

    for attempt in range(3):
        path = str(tmp_path / f"{attempt}.db")
        answers = at_once(open_it, [(path, str(n)) for n in range(8)])
        with JobManager(path, slots=0) as jobs:
            names = {job.name for job in jobs.list_jobs()}

        assert answers == ["opened"] * 8
        assert names == {str(n) for n in range(8)}
        assert integrity(path) == "ok"
        with foreign(path) as connection:
            assert connection.execute("SELECT count(*) FROM store").fetchone() == (1,)
            assert connection.execute("SELECT count(*) FROM workspace").fetchone() == (1,)


def test_whose_file_it_is_is_asked_at_one_moment(database):
    """A schema that another process makes between two questions is not half of it answered."""
    with open(database, "xb"):
        pass
    made = []

    def make_it_now(statement):
        if "user_version" in statement and not made:
            made.append(statement)
            try:
                Database(database, busy_timeout=BUSY).close()
            except DatabaseBusy:
                pass  # kept out until the answer is given, which is as good

    with foreign(database) as look:
        look.set_trace_callback(make_it_now)
        found = schema.read_identity(look)
        look.set_trace_callback(None)

    assert made
    assert schema.check(database, found) in (True, False)


@pytest.mark.parametrize(
    "most",
    [pytest.param(20, id="smoke"), pytest.param(None, id="full", marks=pytest.mark.faults)],
)
def test_interrupted_creation_leaves_nothing_half(database, monkeypatch, most):
    """A process that dies while it makes the schema leaves an empty file or a whole one."""
    count = len(schema.statements())
    real = schema.statements

    def die_at(index):
        def statements():
            for number, statement in enumerate(real()):
                if number == index:
                    os._exit(9)
                yield statement

        monkeypatch.setattr(schema, "statements", statements)
        Database(database)

    for index in sample(range(count), most):
        child = Child(die_at, index)
        with pytest.raises(AssertionError, match="died without an answer"):
            child.result()
    Database(database).close()

    assert count > 10
    assert integrity(database) == "ok"


def leave_a_journal(database):
    """Die in the middle of the first transaction of a file that is not in WAL mode yet."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")  # what does not fit is written before the commit
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE half (made TEXT)")
    connection.executemany("INSERT INTO half VALUES (?)", [("x" * 4000,)] * 20)
    os._exit(9)


def test_creation_that_left_a_journal_is_taken_back(database):
    """If a process was killed before it set WAL mode, the next one makes the file."""
    with open(database, "xb"):
        pass
    with pytest.raises(AssertionError, match="died without an answer"):
        in_child(leave_a_journal, database)
    assert os.path.getsize(database) > 0
    assert os.path.exists(database + "-journal")

    Database(database).close()

    assert integrity(database) == "ok"
    with foreign(database) as connection:
        assert (
            connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchall() == []
        )


# --- checkpoints --------------------------------------------------------------


def wal_size(path):
    """Return how large the write-ahead log is."""
    return os.stat(path + "-wal").st_size


def test_checkpoint_empties_the_log(database, opened):
    """A checkpoint moves everything into the database and truncates the log."""
    note(opened, "x" * 100_000)

    assert wal_size(database) > 100_000
    assert opened.checkpoint() is True
    assert wal_size(database) == 0
    assert len(notes(opened)) == 1


def test_large_log_is_checkpointed_by_itself(database, opened):
    """A commit that finds the log large truncates it; no other commit does."""
    opened.checkpointer.next_run = 0.0
    note(opened, "small")
    assert wal_size(database) > 0

    opened.checkpointer.next_run = 0.0
    note(opened, "x" * (CHECKPOINT_BYTES + 100_000))
    until(lambda: wal_size(database) == 0, "the checkpoint")


def test_one_checkpointer_at_a_time(database, opened):
    """While another process holds the checkpoint lock, no checkpoint is made."""
    held, release = os.pipe(), os.pipe()

    def hold():
        lock = os.open(database + ".jobs/checkpoint", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(held[1], b"!")
        hear(release[0])

    child = Child(hold)
    hear(held[0])
    note(opened, "x" * 100_000)
    before = wal_size(database)
    answer = opened.checkpoint()
    after = wal_size(database)
    os.write(release[1], b"!")
    child.result()
    for descriptor in (*held, *release):
        os.close(descriptor)

    assert (answer, after) == (False, before)
    assert opened.checkpoint() is True


def test_checkpoint_gives_way_to_a_reader(database, opened):
    """An open reader keeps a checkpoint from finishing; the result says so without raising."""
    with opened.read() as connection:
        connection.exec_driver_sql("SELECT * FROM note").all()
        note(opened, "meanwhile")

        assert opened.checkpoint() is False
    assert opened.checkpoint() is True
    assert wal_size(database) == 0


def test_failed_checkpoint_does_not_fail_the_commit(database, opened):
    """A commit stands though the checkpoint after it cannot be made."""
    opened.checkpointer.next_run = 0.0
    os.rename(database + ".jobs", database + ".moved")
    note(opened, "x" * (CHECKPOINT_BYTES + 100_000))
    os.rename(database + ".moved", database + ".jobs")

    assert len(notes(opened)) == 1


# --- waiting for commits ------------------------------------------------------


def test_version_differs_after_every_commit(database, opened):
    """Commits of this process, of another connection and of another process are all seen."""

    def commit_elsewhere():
        other = Database(database)
        note(other, "from a child")
        other.close()

    seen = [opened.version()]
    note(opened, "ours")
    seen.append(opened.version())
    with foreign(database) as other:
        other.execute("INSERT INTO note VALUES ('foreign')")
    seen.append(opened.version())
    in_child(commit_elsewhere)
    seen.append(opened.version())
    still = opened.version()
    notes(opened)

    assert len(set(seen)) == 4
    assert still == seen[-1] == opened.version()


def test_rolled_back_write_does_not_change_the_version(opened):
    """A rolled-back write does not keep waking waiters."""
    seen = opened.version()
    with pytest.raises(ZeroDivisionError), transaction(opened) as connection:  # noqa: PT012 - it is the block that is rolled back
        connection.exec_driver_sql("INSERT INTO note VALUES ('half')")
        raise ZeroDivisionError

    assert opened.version() == seen
    assert opened.wait_for_change(seen, 0) == seen


def test_commit_of_a_thread_wakes(opened):
    """A waiting thread goes on when another thread commits."""
    seen = opened.version()
    answers = []
    waiter = threading.Thread(target=lambda: answers.append(opened.wait_for_change(seen, PATIENCE)))
    waiter.start()
    note(opened, "now")
    join(waiter)

    assert answers == [opened.version()]
    assert answers != [seen]


def test_commit_of_a_process_wakes(database, opened):
    """A waiting thread goes on when another process commits."""

    def commit():
        other = Database(database)
        note(other, "from a child")
        other.close()

    child = Child(commit, held=True)
    seen = opened.version()
    child.go()
    found = opened.wait_for_change(seen, PATIENCE)
    child.result()

    assert found != seen
    assert notes(opened) == {"from a child"}


# --- forks --------------------------------------------------------------------


def test_child_commits_survive_the_parents_end(database, opened):
    """A forked child's commits stay after the parent closed its last connection."""
    note(opened, "parent before")
    closed = os.pipe()
    wrote = os.pipe()

    def be_child():
        note(opened, "child before")
        os.write(wrote[1], b"!")
        hear(closed[0])
        for index in range(20):
            note(opened, f"child after {index}")
        found = notes(opened)
        opened.close()
        return found

    child = Child(be_child)
    hear(wrote[0])
    notes(opened)
    opened.close()
    os.write(closed[1], b"!")
    seen_by_child = child.result()
    for descriptor in (*closed, *wrote):
        os.close(descriptor)
    expected = {"parent before", "child before", *(f"child after {n}" for n in range(20))}
    again = Database(database)

    assert seen_by_child == expected
    assert notes(again) == expected
    again.close()
    assert integrity(database) == "ok"


def test_parent_commits_survive_the_childs_end(database, opened):
    """The parent's commits stay after a forked child opened and closed the file."""

    def be_child(name):
        note(opened, name)
        opened.close()

    for index in range(5):
        note(opened, f"parent {index}")
        in_child(be_child, f"child {index}")
    expected = {f"{who} {n}" for who in ("parent", "child") for n in range(5)}

    assert notes(opened) == expected
    opened.close()
    assert integrity(database) == "ok"


def test_fork_under_load_loses_nothing(database, opened):
    """A host whose threads write and read may fork at any moment: all commits are there."""
    done = threading.Event()
    written, failures = set(), []

    def write(name):
        index = 0
        try:
            while not done.is_set():
                note(opened, f"{name} {index}", durable=False)
                written.add(f"{name} {index}")
                index += 1
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    def read():
        try:
            while not done.is_set():
                notes(opened)
                opened.version()
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    def be_child(number):
        for index in range(3):
            note(opened, f"child {number} {index}")
        return len(notes(opened))

    threads = [threading.Thread(target=write, args=(f"thread {n}",)) for n in range(2)]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    children = [Child(be_child, number) for number in range(6)]
    counts = [child.result() for child in children]
    done.set()
    join(*threads)
    written |= {f"child {number} {index}" for number in range(6) for index in range(3)}

    assert failures == []
    assert min(counts) >= 3
    assert notes(opened) == written
    opened.close()
    assert integrity(database) == "ok"


def test_no_descriptor_of_the_database_is_in_a_child(database, opened):
    """A forked child has nothing of the database, its log, its memory or its directories open."""
    note(opened, "x")
    notes(opened)
    opened.version()

    def ours():
        return [target for target in descriptors().values() if target.startswith(database)]

    assert in_child(ours) == []
    assert ours() == []  # closed for the fork, and opened again when needed
    assert notes(opened) == {"x"}
    assert ours() != []


def test_fork_inside_a_transaction_is_refused_in_the_child(database, opened):
    """A child forked in a transaction gets an error for each use; the parent goes on."""

    def be_child():
        opened.busy_timeout = BUSY
        for use in (opened.read, partial(transaction, opened)):
            with pytest.raises(StoreError, match="in the middle of a transaction"), use():
                pass
        with pytest.raises(StoreError, match="in the middle of a transaction"):
            Database(database)
        return "refused"

    with transaction(opened) as connection:
        connection.exec_driver_sql("INSERT INTO note VALUES ('parent')")
        opened.busy_timeout = -4.9  # how long the fork waits for it, less 5 s
        child = Child(be_child)
        opened.busy_timeout = 30.0
        answer = child.result()

    assert answer == "refused"
    assert notes(opened) == {"parent"}
    opened.close()
    assert integrity(database) == "ok"


def test_a_child_never_closes_what_its_parent_had_open(opened, monkeypatch):
    """Even unreferenced connections stay open: closing would remove the parent's files."""
    kept = []

    def noted(connections):
        keep_forever(connections)
        kept.extend(weakref.ref(one) for one in connections)

    def be_child():
        connection = sqlite3.connect(":memory:", factory=SqliteConnection)
        noted([connection])
        del connection
        gc.collect()
        return [one() is not None and one().is_open for one in kept]

    monkeypatch.setattr("jobcore.storage.database.keep_forever", noted)
    with transaction(opened):
        opened.busy_timeout = -4.9  # how long the fork waits for it, less 5 s
        child = Child(be_child)
        opened.busy_timeout = 30.0
        answer = child.result()

    assert answer == [True, True]  # the writer's, and the one that nobody refers to


def test_call_in_the_middle_of_a_fork_is_refused(opened, monkeypatch):
    """A signal handler that reads during a fork gets the error that it is busy."""
    close_connections = opened.close_connections
    refusals = []

    def closed_when_the_signal_comes():
        close_connections()
        with pytest.raises(DatabaseBusy, match="in the middle of a fork") as refused, opened.read():
            pytest.fail("it was let in")
        refusals.append(refused)

    with monkeypatch.context() as patched:
        patched.setattr(opened, "close_connections", closed_when_the_signal_comes)
        host = threading.Thread(target=in_child, args=(int,), daemon=True)
        host.start()
        host.join(PATIENCE)

    assert not host.is_alive()
    assert refusals
    note(opened, "behind it")
    assert notes(opened) == {"behind it"}


@pytest.mark.parametrize("slots", [0, 1])
def test_child_that_c_code_has_forked_is_refused(database, slots):
    """Without Python's hooks it has copies of SQLite's connections; the parent goes on."""
    said = run_python(
        """
import ctypes, os, signal, sys, time
from jobcore import JobManager, StoreError
jobs = JobManager(sys.argv[1], slots=int(sys.argv[2]))
job = jobs.create_job("TASK")
for end in ("closes", "exits"):
    # A thread that has requested the GIL does not exist in the child, whose main thread would wait
    # for it for ever. With a long interval, no thread requests it before the main thread waits.
    sys.setswitchinterval(60)
    time.sleep(0.01)  # threads that wait by the old interval get the GIL
    pid = ctypes.PyDLL(None).fork()
    sys.setswitchinterval(0.005)
    if pid == 0:
        signal.alarm(8)  # ends it where it hangs
        for call in (lambda: jobs.create_job("TASK"), jobs.list_jobs, lambda: jobs.get_job(job.id)):
            try:
                call()
            except StoreError as error:
                print("lazy-apps" in str(error), flush=True)
        if end == "closes":
            jobs.close()
        sys.exit(0)
    print(end, os.waitpid(pid, 0)[1], len(jobs.list_jobs()), flush=True)
    print(jobs.create_job("TASK").status, flush=True)
""",
        database,
        slots,
    )

    refused = ["True"] * 3
    assert said.splitlines() == [*refused, "closes 0 1", "QUEUED", *refused, "exits 0 2", "QUEUED"]


def test_close_waits_for_transactions(database, opened):
    """Closing while another thread writes lets that transaction end; it is committed."""
    inside, go_on = threading.Event(), threading.Event()

    def write():
        with transaction(opened) as connection:
            inside.set()
            go_on.wait(PATIENCE)
            connection.exec_driver_sql("INSERT INTO note VALUES ('in time')")

    writer = threading.Thread(target=write)
    closer = threading.Thread(target=opened.close)
    writer.start()
    inside.wait(PATIENCE)
    closer.start()
    until(lambda: opened.closed, "the call of close")
    go_on.set()
    join(writer)
    join(closer)
    again = Database(database)

    assert notes(again) == {"in time"}
    again.close()


def test_close_does_not_wait_for_the_callers_own_read(database, opened):
    """A signal handler that closes leaves the read that it came into to its end."""
    begun = time.monotonic()
    with opened.read() as connection:
        opened.close()
        assert time.monotonic() - begun < opened.busy_timeout
        connection.exec_driver_sql("SELECT * FROM note").all()

    assert os.fspath(database) not in descriptors().values()
    with pytest.raises(StoreError, match="closed"), opened.read():
        pass


def test_close_inside_a_write_leaves_it_to_its_end(database, opened):
    """A finaliser that closes in the thread that writes does not tear the transaction."""

    def change(connection):
        opened.close()
        connection.exec_driver_sql("INSERT INTO note VALUES ('at its end')")

    with opened.read() as connection:  # a connection that waits for the next reader
        connection.exec_driver_sql("SELECT * FROM note").all()
    opened.write(change)
    with pytest.raises(StoreError, match="closed"), opened.read():
        pass

    # Nobody closes it once more.
    until(lambda: os.fspath(database) not in descriptors().values(), "the end of the writer")
    until(lambda: not opened.writer.worker.threads, "the end of its thread")
    again = Database(database)
    assert notes(again) == {"at its end"}
    again.close()


def test_fork_with_a_stored_traceback_is_not_in_a_transaction(database, opened):
    """A connection that was closed, and that only a traceback still refers to, harms no child."""
    with foreign(database) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseBusy) as kept, transaction(opened, patience=0):
            pass
        other.execute("ROLLBACK")

    in_child(lambda: note(opened, "child"))

    assert kept.tb is not None
    assert notes(opened) == {"child"}


def test_fork_is_a_change(opened):
    """A version from before a fork does not come again after later commits."""
    seen = {opened.version()}
    for index in range(5):
        note(opened, f"before {index}")
        in_child(int)
        now = opened.version()
        assert now not in seen
        seen.add(now)


def test_connection_that_cannot_be_set_up_is_not_left_open(database, opened):
    """Repeated reads of a damaged file do not use up descriptors."""
    opened.close()
    damaged = Database(database)
    damaged.close_connections()
    with open(database, "r+b") as file:
        file.write(bytes(4096))
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(NotAJobcoreDatabase), damaged.read():
                pass
        left = [path for path in descriptors().values() if path.startswith(os.fspath(database))]
    finally:
        gc.enable()
        damaged.close()

    assert left == []


def test_failed_open_leaves_nothing_open(database):
    """A database that is refused leaves no open descriptor."""
    _other_programs(database)
    before = descriptors()
    for _ in range(3):
        with pytest.raises(NotAJobcoreDatabase):
            Database(database)

    assert descriptors() == before


def test_lock_that_sqlite_cannot_get_past_is_dropped_with_all_connections(opened, monkeypatch):
    """Where it is this process's own, not to be unlocked, no read would ever begin again."""
    note(opened, "before")
    opened.version()
    before = list(opened._opened)

    def refused():
        raise sqlite3.OperationalError("locking protocol")  # after ten seconds

    monkeypatch.setattr(opened.readers.commits, "look", refused)
    with pytest.raises(DatabaseBusy, match="locking protocol"):
        opened.version()
    monkeypatch.undo()
    opened.version()

    assert before
    assert not any(connection.is_open for connection in before)
    note(opened, "after")


@pytest.mark.parametrize("ask", ["execute", "cursor"])
def test_connection_is_closed_though_a_statement_is_kept(tmp_path, ask):
    """A cursor that is still referenced, as by a traceback, does not keep the file open."""
    path = str(tmp_path / "any.db")
    connection = sqlite3.connect(path, factory=SqliteConnection)
    connection.execute("CREATE TABLE t AS SELECT 1 AS a UNION ALL SELECT 2")
    kept = (connection if ask == "execute" else connection.cursor()).execute("SELECT a FROM t")
    assert kept.fetchone() == (1,)
    connection.close()

    assert path not in descriptors().values()
