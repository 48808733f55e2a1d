"""Writer: changes of several threads are committed together, and each succeeds or fails alone."""

from __future__ import annotations

import logging
import signal
import sqlite3
import threading
from contextlib import closing

import pytest
from sqlalchemy import text

from jobcore import DatabaseBusy, DatabaseCorrupt, DatabaseFull, JobManager, Status, StoreError
from jobcore.embedding import failpoints, telemetry
from jobcore.storage import writer
from jobcore.storage.connections import SqliteConnection
from jobcore.storage.database import Database
from jobcore.storage.reading import discard
from jobcore.storage.statement import Statement, driver_of
from jobcore.storage.writer import Observer
from jobcore.testing.parts import parts
from tests.processes import PATIENCE, Undelayed, until
from tests.transactions import transaction


@pytest.fixture
def opened(database):
    """Return an open database with a table to write to."""
    found = Database(database)
    found.write(lambda connection: run(connection, "CREATE TABLE note (text TEXT UNIQUE)"))
    yield found
    found.close()


def run(connection, statement, *values):
    """Execute a statement."""
    connection.exec_driver_sql(statement, values).close()


def note(opened, text, **options):
    """Commit one row."""
    opened.write(lambda connection: run(connection, "INSERT INTO note VALUES (?)", text), **options)


def test_change_that_goes_on_after_a_rollback_fails(opened):
    """SQLite rolls back by itself after some errors; no caller is told that its rows are stored."""

    def write(connection):
        run(connection, "INSERT INTO note VALUES ('lost')")
        driver_of(connection).rollback()

    with pytest.raises(StoreError, match="rolled back"):
        opened.write(write)
    note(opened, "next")


def test_unreadable_text_leaves_no_statement_open(opened, database):
    """A change may go on after it; the next one sees what others have committed meanwhile."""
    opened.write(
        lambda connection: run(connection, "INSERT INTO note VALUES (CAST(x'ff' AS TEXT))")
    )
    every = Statement(text("SELECT text FROM note"))

    def read(connection):
        with pytest.raises(sqlite3.OperationalError, match="UTF-8"):
            every(connection)

    opened.write(read)
    with closing(sqlite3.connect(database)) as other, other:
        other.execute("INSERT INTO note VALUES ('theirs')")
    opened.write(
        lambda connection: run(connection, "INSERT INTO note VALUES ('ours')"), patience=1.0
    )


def notes(opened):
    """Return what is committed."""
    with opened.read() as connection:
        return {text for (text,) in connection.exec_driver_sql("SELECT text FROM note")}


@pytest.fixture
def together(opened):
    """Return a function that hands over changes in threads, all while another one is written."""
    commits = []

    def count(point, host):
        if point == failpoints.WRITE_BEGUN and host is opened:
            commits.append(point)

    def waiting():
        return opened.writer.worker.queue.qsize()

    def hand_over(*changes):
        outcomes = [None] * len(changes)

        def write(number, change):
            try:
                outcomes[number] = opened.write(change)
            except Exception as error:  # noqa: BLE001 - told to the test
                outcomes[number] = error

        threads = []
        with transaction(opened):
            for number, change in enumerate(changes):
                threads.append(threading.Thread(target=write, args=(number, change)))
                threads[-1].start()
                until(lambda number=number: waiting() == number + 1, "the hand-over")
            commits.clear()
        for thread in threads:
            thread.join(PATIENCE)
        return outcomes, len(commits)

    failpoints.arm(count)
    yield hand_over
    failpoints.disarm(count)


def inserts(text, then=None):
    """Return a change that inserts a row, and then raises or returns something."""

    def change(connection):
        run(connection, "INSERT INTO note VALUES (?)", text)
        if isinstance(then, Exception):
            raise then
        return then

    return change


def test_changes_that_wait_together_are_one_transaction(opened, together):
    """Each caller gets what its own change returned."""
    outcomes, commits = together(*(inserts(str(number), number) for number in range(5)))

    assert outcomes == [0, 1, 2, 3, 4]
    assert commits == 1
    assert notes(opened) == {"0", "1", "2", "3", "4"}


def test_callers_that_come_back_one_by_one_share_a_commit(opened, together, monkeypatch):
    """Their last changes were one transaction, so the writer waits a moment for all of them."""
    together(*map(inserts, "abc"))
    monkeypatch.setattr(writer, "COME_BACK", PATIENCE)
    commits, threads = [], []

    def count(point, host):
        if point == failpoints.WRITE_BEGUN and host is opened:
            commits.append(point)

    failpoints.arm(count)
    try:
        for text in "def":
            threads.append(threading.Thread(target=note, args=(opened, text)))
            threads[-1].start()
            until(opened.writer.worker.queue.empty, "the writer to take it")
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        failpoints.disarm(count)

    assert len(commits) == 1
    assert notes(opened) == set("abcdef")


def test_change_after_a_commit_that_failed_is_stored(database, opened, monkeypatch):
    """After a failed commit, SQLAlchemy keeps its transaction until it is rolled back."""

    def refuse(connection):
        connection.rollback()  # as SQLite itself does
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteConnection, "commit", refuse)
        with pytest.raises(DatabaseFull):
            note(opened, "refused")
    note(opened, "stored")

    with closing(sqlite3.connect(database)) as other:
        assert other.execute("SELECT text FROM note").fetchall() == [("stored",)]


@pytest.fixture
def while_it_begins(opened):
    """Return a function that commits a row, and calls another one in a thread meanwhile."""
    begun, threads = [], []

    def write(call):
        def begin(point, host):
            if point == failpoints.WRITE_BEGUN and host is opened:
                begun.append(point)
                if not threads:
                    threads.append(threading.Thread(target=call))
                    threads[0].start()
                    until(lambda: opened.writer.worker.queue.qsize() == 1, "the hand-over")

        failpoints.arm(begin)
        try:
            note(opened, "first")
            threads[0].join(PATIENCE)
        finally:
            failpoints.disarm(begin)
        return len(begun)

    return write


def test_change_that_comes_while_a_transaction_begins_joins_it(opened, while_it_begins):
    assert while_it_begins(lambda: note(opened, "late")) == 1
    assert notes(opened) == {"first", "late"}


def test_call_that_comes_while_a_transaction_begins_is_made_after_it(opened, while_it_begins):
    """It may close the connection."""
    inside = []

    def look():
        inside.append(driver_of(opened.writer.connection).in_transaction)

    while_it_begins(lambda: opened.writer.between(look, patience=PATIENCE))

    assert inside == [False]


def test_change_that_fails_is_rolled_back_alone(opened, together):
    """The others of its transaction are committed."""
    mistake = ValueError("mine")
    outcomes, commits = together(inserts("a"), inserts("b", mistake), inserts("c"))

    assert outcomes == [None, mistake, None]
    assert commits == 1
    assert notes(opened) == {"a", "c"}


def test_change_that_is_repeated_logs_its_event_once(together, caplog):
    """It is repeated because another change of its transaction failed."""

    def logs(connection):
        telemetry.event(logging.WARNING, "once")
        inserts("a")(connection)

    together(logs, inserts("b", ValueError("mine")))

    assert [one.getMessage() for one in caplog.records] == ["event='once'"]


def test_each_change_that_breaks_a_constraint_gets_its_own_error(opened, together):
    """No two callers get the same exception object."""
    note(opened, "there")
    outcomes, _ = together(inserts("there"), inserts("there"), inserts("new"))

    assert [type(one) for one in outcomes] == [DatabaseCorrupt, DatabaseCorrupt, type(None)]
    assert outcomes[0] is not outcomes[1]
    assert notes(opened) == {"there", "new"}


def test_change_that_ends_the_transaction_takes_no_other_along(opened, together):
    """Those without an outcome are made again, each alone."""
    note(opened, "there")

    def end_all(connection):
        run(connection, "INSERT OR ROLLBACK INTO note VALUES ('there')")

    outcomes, commits = together(inserts("a", 1), end_all, inserts("b", 2))

    assert [outcomes[0], outcomes[2]] == [1, 2]
    assert isinstance(outcomes[1], DatabaseCorrupt)
    assert commits == 3
    assert notes(opened) == {"there", "a", "b"}


def test_commit_that_fails_is_tried_again_for_each_change(opened, together, monkeypatch):
    """The failed transaction is undone, so no change is made twice."""
    commit, failures = SqliteConnection.commit, []

    def fail_once(connection):
        if not failures:
            failures.append(connection)
            raise sqlite3.OperationalError("disk I/O error")
        commit(connection)

    with transaction(opened):
        pass
    monkeypatch.setattr(SqliteConnection, "commit", commit)
    changes = [inserts("a", 1), inserts("b", 2)]

    def first(connection):
        monkeypatch.setattr(SqliteConnection, "commit", fail_once)
        return changes[0](connection)

    outcomes, commits = together(first, changes[1])

    assert outcomes == [1, 2]
    assert len(failures) >= 1
    assert commits >= 2
    assert notes(opened) == {"a", "b"}


def test_observer_that_fails_after_a_commit_has_nothing_made_twice(opened, together):
    """The changes stand, and their callers hear so."""

    class Failing(Observer):
        def committed(self):
            raise RuntimeError("observer")

    opened.observe(Failing())
    run_on = [lambda connection: run(connection, "INSERT INTO note VALUES (NULL)")] * 2
    outcomes, commits = together(*run_on)

    assert outcomes == [None, None]
    assert commits == 1
    with opened.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM note").scalar_one() == 2


@pytest.mark.parametrize("count", [1, 2])
def test_exception_from_outside_just_after_a_commit_has_nothing_made_twice(
    opened, together, monkeypatch, count
):
    """Each caller learns that the outcome is unknown, and each change is made once."""
    commit = SqliteConnection.commit

    def stand_and_fail(connection):
        commit(connection)
        raise SystemExit

    def change(connection):
        monkeypatch.setattr(SqliteConnection, "commit", stand_and_fail)
        run(connection, "INSERT INTO note VALUES (NULL)")

    outcomes, _ = together(*[change] * count)
    monkeypatch.undo()

    assert [type(outcome) for outcome in outcomes] == [StoreError] * count
    assert all("outcome unknown" in str(outcome) for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == count
    with opened.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM note").scalar_one() == count


def test_transaction_that_could_not_be_rolled_back_is_not_left_open(opened, monkeypatch):
    """The next change finds the connection, and closes it."""
    import jobcore.storage.writer as module  # noqa: PLC0415 - its name is that of the attribute

    def strike(_connection):
        raise SystemExit

    def change(connection):
        run(connection, "INSERT INTO note VALUES ('torn')")
        monkeypatch.setattr(module, "discard", strike)
        raise KeyboardInterrupt

    with pytest.raises((StoreError, KeyboardInterrupt)):
        opened.write(change)
    monkeypatch.undo()
    note(opened, "after", patience=5)

    assert notes(opened) == {"after"}


def test_durable_change_makes_its_whole_transaction_durable(together):
    """One that is not durable is synced along with it."""
    levels = []

    def look(connection):
        levels.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())

    together(look, look)

    assert levels == [2, 2]  # FULL


def test_change_that_was_taken_and_not_begun_fails_at_once(database, monkeypatch):
    """An exception from outside into the thread that writes: the change was not made."""
    opened = Database(database, busy_timeout=10 * PATIENCE)

    def fail(*_):
        monkeypatch.undo()
        raise SystemExit

    monkeypatch.setattr(opened.writer, "_sorted", fail)
    with pytest.raises(StoreError, match="not made"):
        opened.write(lambda connection: run(connection, "SELECT 1"))
    opened.write(lambda connection: run(connection, "SELECT 1"))
    opened.close()


def test_other_threads_write_on_while_one_waits_for_a_free_database(database):
    """Patience counts from the call, so a call with little of it does not wait for the others."""
    opened = Database(database, busy_timeout=PATIENCE)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        patient = threading.Thread(
            target=opened.write, args=(lambda connection: run(connection, "SELECT 1"),)
        )
        patient.start()
        until(lambda: opened.writer.taken, "the writer")
        with pytest.raises(DatabaseBusy, match="locked"):
            opened.write(lambda connection: run(connection, "SELECT 1"), patience=0.01)
        other.execute("ROLLBACK")
    patient.join(PATIENCE)
    opened.close()

    assert not patient.is_alive()


def test_reads_work_while_another_process_holds_the_write_lock(jobs, scripted):
    """`get_job` of a running job returns what is stored within half a second."""
    run = scripted()
    run.started()
    database = parts(jobs).database
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        run.write(b"what cannot be stored now\n")
        for _ in range(3):
            with Undelayed() as call:
                assert jobs.get_job(run.id).status is Status.RUNNING
            assert call.seconds < 0.5
        other.execute("ROLLBACK")

    assert [line.text for line in jobs.logs(run.id)] == ["what cannot be stored now"]


def test_reads_work_while_a_writer_waits_for_the_lock(jobs, scripted):
    """The caller that waits with all its patience does not make a read wait."""
    run = scripted()
    run.started()
    with closing(sqlite3.connect(parts(jobs).database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        run.write(b"a line\n")
        waiting = threading.Thread(target=jobs.create_job, args=("TASK",))
        waiting.start()
        until(lambda: parts(jobs).writer.taken, "the writer")
        with Undelayed() as call:
            assert jobs.get_job(run.id).status is Status.RUNNING
        assert call.seconds < 0.5
        other.execute("ROLLBACK")
        waiting.join(PATIENCE)

    assert not waiting.is_alive()


def test_log_handler_of_the_host_is_not_called_by_the_writer(opened, monkeypatch):
    """A handler that calls the manager would wait for itself; its events are logged by callers."""
    places = []

    class Log:
        @staticmethod
        def error(*_, **__):
            places.append(threading.get_ident())

    monkeypatch.setattr(telemetry, "_hosts", Log)

    opened.write(lambda _: telemetry.event(logging.ERROR, "something happened"))

    assert places == [threading.get_ident()]


@pytest.mark.parametrize("round_", range(10))
def test_submit_interrupted_at_any_moment_is_there_or_absent_for_ever(database, round_):
    """After the exception the number of jobs does not change any more."""
    kept = []
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    with JobManager(database, slots=0) as jobs:
        jobs.create_job("TASK")
        try:
            for number in range(30):
                seconds = 0.00005 * (number * 10 + round_ + 1) / 10
                try:
                    signal.setitimer(signal.ITIMER_REAL, seconds)
                    jobs.create_job("TASK")
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt as error:
                    kept.append(error)
                count = sum(jobs.count_jobs().values())
                jobs.create_job("TASK")  # comes after whatever still waited
                assert sum(jobs.count_jobs().values()) == count + 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    assert kept


def test_signal_handler_that_uses_the_manager_neither_tears_nor_hangs(database):
    """In the middle of a call, it creates a job, or gets the error that the database is busy."""
    told = []

    def handler(*_):
        try:
            told.append(jobs.create_job("TASK").status)
        except (DatabaseBusy, StoreError) as error:
            told.append(type(error).__name__)

    before = signal.signal(signal.SIGALRM, handler)
    with JobManager(database, slots=0, busy_timeout=5) as jobs:
        try:
            made = []
            for number in range(100):
                signal.setitimer(signal.ITIMER_REAL, 0.00002 * (number + 1))
                made.append(jobs.create_job("TASK").id)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert sum(jobs.count_jobs().values()) == len(made) + told.count(Status.QUEUED)

    assert told


def test_interrupt_in_a_statement_of_a_closed_connection_is_raised_on(opened):
    """To replace the cursor is impossible then, and that error would hide the interrupt."""

    class Interrupted:
        def execute(self, *_):
            raise KeyboardInterrupt

        def close(self):
            pass

    connection = opened.open_for_writing()
    connection.driver.close()
    connection.cursor = Interrupted()

    with pytest.raises(KeyboardInterrupt):
        Statement(text("SELECT 1"))(connection)
    discard(connection)
