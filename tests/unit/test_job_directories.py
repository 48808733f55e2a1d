"""The job directories as a host sees them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from jobcore.testing.parts import parts


def test_threads_that_list_at_once_each_see_every_directory(jobs, scripted):
    """A directory that a listing misses makes its job `lost`, though it never started."""
    made = {scripted().id.hex for _ in range(3)}
    with ThreadPoolExecutor(4) as threads:
        listings = list(threads.map(lambda _: parts(jobs).directories.names(), range(1000)))

    assert [found for found in listings if set(found) != made] == []
