"""WAL file: the first page is the one that SQLite would read, or none."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import pytest

from jobcore.storage import wal_file
from tests.processes import in_child

#: Connections that are not to be closed in the child that made them.
KEPT = []


@pytest.fixture
def copy_of_log(tmp_path):
    """Return a database with three commits, each with its own application id, and its log."""
    path = str(tmp_path / "copy.db")
    in_child(leave_log, path)
    return path


def leave_log(path):
    """Make the database in a process that ends without closing it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE x (y)")
    for number in (1, 2, 3):
        connection.execute(f"PRAGMA application_id = {number}")
        connection.execute("INSERT INTO x VALUES (?)", ("z" * 10_000,))
    KEPT.append(connection)


def application_id(page):
    """Return the number that a first page holds for the program."""
    return None if page is None else int.from_bytes(page[68:72], "big")


def test_the_page_of_the_last_commit_is_found(copy_of_log):
    """It is the one that SQLite reads from database and log."""
    assert application_id(wal_file.first_page(copy_of_log + "-wal")) == 3


def test_a_torn_log_gives_the_commit_before(copy_of_log):
    """At whatever byte a log ends or is damaged, the answer is that of SQLite itself."""
    log = copy_of_log + "-wal"
    with open(log, "rb") as file:
        whole = file.read()
    for length in (*range(0, len(whole), 3001), len(whole) - 1):
        for damaged in (whole[:length], whole[:length] + b"\0" * (len(whole) - length)):
            with open(log, "wb") as file:
                file.write(damaged)
            found = application_id(wal_file.first_page(log))
            shutil.copy(copy_of_log, copy_of_log + "2")
            shutil.copy(log, copy_of_log + "2-wal")
            with closing(sqlite3.connect(copy_of_log + "2")) as connection:
                (said,) = connection.execute("PRAGMA application_id").fetchone()

            assert (found or 0) == said


@pytest.mark.parametrize("content", [b"", b"\0" * 32, bytes(range(32)), b"<!doctype html>" * 100])
def test_file_that_is_not_a_log_has_no_page(tmp_path, content):
    """Other bytes contain no page."""
    (tmp_path / "x-wal").write_bytes(content)

    assert wal_file.first_page(str(tmp_path / "x-wal")) is None
