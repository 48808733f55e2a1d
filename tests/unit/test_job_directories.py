"""The job directories as a host sees them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from jobcore.storage import reading
from jobcore.testing.parts import parts


def test_threads_that_list_at_once_each_see_every_directory(jobs, scripted):
    """A directory that a listing misses makes its job `lost`, though it never started."""
    made = {scripted().id.hex for _ in range(3)}
    with ThreadPoolExecutor(4) as threads:
        listings = list(threads.map(lambda _: parts(jobs).directories.names(), range(1000)))

    assert [found for found in listings if set(found) != made] == []


def test_a_root_that_jobcore_closes_during_a_check_is_not_taken_for_a_lost_one(jobs, monkeypatch):
    """Another thread may close it after it was looked up, and before it is looked at."""
    directories = parts(jobs).directories
    looked = []

    def closed_first(held, is_open=reading.is_open):
        if held is directories.held:
            directories.reopen()
            looked.append(held)
        return is_open(held)

    assert directories.root >= 0  # it is open
    monkeypatch.setattr(reading, "is_open", closed_first)
    parts(jobs).database.require_same_file()

    assert len(looked) == 1


def test_threads_use_the_root_while_another_reopens_it(jobs):
    """No thread gets a closed descriptor, or takes one for closed by other code."""
    directories, database = parts(jobs).directories, parts(jobs).database

    def use(number):
        if number % 10 == 0:
            directories.reopen()
        directories.names()
        return database.version()

    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(use, range(1000)))) == 1000
