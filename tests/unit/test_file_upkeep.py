"""FileUpkeep: files of a running job are kept fresh, and missing ones are made again."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from jobcore.supervisor import job_directory
from jobcore.supervisor.file_upkeep import FileUpkeep
from jobcore.supervisor.spool import Spool, UnfinishedLines
from jobcore.supervisor.stop_requests import StopRequests

NAME, TOKEN = "a" * 32, "b" * 32
RECORD = b"record"
LONG_AGO = 1_000_000_000


@pytest.fixture
def root(tmp_path):
    """Return the path of a root with its store."""
    path = tmp_path / "jobs.db.jobs"
    path.mkdir()
    (path / "store").write_text("id")
    return path


@pytest.fixture
def upkeep(root):
    """Return the upkeep of a run, its directory, and its lock, as a supervisor has them."""
    os.mkdir(root / NAME, 0o700)
    directory = os.open(root / NAME, os.O_RDONLY | os.O_DIRECTORY)
    lock = job_directory.open_lock(directory, create=True)
    order = SimpleNamespace(directory=directory, lock=lock, name=NAME, token=TOKEN)
    stop_requests = StopRequests(directory, 10.0)
    one = FileUpkeep(
        order, Spool(directory), UnfinishedLines(directory, lambda: b""), stop_requests, RECORD
    )
    one.advance(0.0)
    one.advance(10.0)
    yield one
    one.close()
    stop_requests.close()
    os.close(lock)
    os.close(directory)


def make_old(root):
    """Give all files the times of long ago."""
    for place, _, names in os.walk(root):
        for path in (place, *(os.path.join(place, name) for name in names)):
            os.utime(path, (LONG_AGO, LONG_AGO))


def old(root):
    """Return the names of what is old."""
    return sorted(
        os.path.basename(path)
        for place, _, names in os.walk(root)
        for path in (place, *(os.path.join(place, name) for name in names))
        if os.stat(path).st_mtime == LONG_AGO
    )


def test_files_are_touched_now_and_then(root, upkeep):
    """A cleaner that goes by the age of files finds none that is old."""
    make_old(root)
    upkeep.advance(20.0)
    before = len(old(root))
    upkeep.advance(700.0)

    assert before > 4
    assert old(root) == []


def test_the_database_is_touched_with_them(tmp_path, upkeep):
    """A running job would have nowhere to store its end; another program's file stays old."""
    for name in ("jobs.db", "jobs.db-wal", "jobs.db-shm", "other.db"):
        (tmp_path / name).touch()
    make_old(tmp_path)
    upkeep.advance(700.0)

    assert old(tmp_path) == sorted(["other.db", tmp_path.name])


@pytest.mark.parametrize("name", ["lock", "run", "ctl"])
def test_a_missing_file_is_made_again(root, upkeep, name):
    """The next look makes it, with its lock held."""
    os.unlink(root / NAME / name)
    upkeep.advance(20.0)

    assert (root / NAME / name).exists()
    assert (root / NAME / "run").read_bytes() == RECORD
    assert job_directory.is_run_locked(TOKEN) == (name == "lock")


def test_a_missing_directory_is_made_again_with_its_files(root, upkeep):
    """By its name in the root, which the supervisor has open."""
    for name in os.listdir(root / NAME):
        os.unlink(root / NAME / name)
    os.rmdir(root / NAME)
    upkeep.advance(20.0)

    assert sorted(os.listdir(root / NAME)) == ["ctl", "lock", "run"]
    assert job_directory.is_run_locked(TOKEN)


def test_a_root_that_is_gone_is_looked_for_again(root, upkeep):
    """A missing root is no error; the next look tries again."""
    moved = root.with_name("moved")
    for name in os.listdir(root / NAME):
        os.unlink(root / NAME / name)
    os.rmdir(root / NAME)
    os.rename(root, moved)
    upkeep.advance(20.0)
    os.rename(moved, root)
    upkeep.advance(30.0)

    assert (root / NAME / "lock").exists()


def test_root_that_could_not_be_opened_is_opened_later(upkeep, root):
    """Without it, a removed directory is not made again."""
    os.close(upkeep.root)
    upkeep.root = -1
    upkeep.advance(20.0)
    assert os.fstat(upkeep.root).st_ino == os.stat(root).st_ino
