"""Spool: its files end before a file size limit does, so that no frame is stuck for ever."""

from __future__ import annotations

import os
import resource

import pytest

from jobcore.supervision import frames, jobdir, spool
from tests.processes import in_child

LARGEST = frames.HEADER_SIZE + frames.MAX_PAYLOAD


def limited(size, function, *args):
    """Return what `function` returns in a child that may write files of at most `size` bytes."""

    def be_limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return function(*args)

    return in_child(be_limited)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (resource.RLIM_INFINITY, spool.ROTATE_AT),
        (2**40, spool.ROTATE_AT),
        (spool.ROTATE_AT + LARGEST, spool.ROTATE_AT),
        (spool.ROTATE_AT + LARGEST - 1, spool.ROTATE_AT - 1),
        (2**20, 2**20 - LARGEST),
        (LARGEST + 2, 2),
        (LARGEST, 1),
        (0, 1),
    ],
)
def test_a_file_ends_a_frame_before_the_limit(size, expected):
    """Where the next frame might not fit any more, a new file is begun; at the latest as ever."""
    assert limited(size, spool.rotate_at) == expected


def _fill(path, payloads):
    """Write each as a frame; return whether something is held, and how large each file is."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    one = spool.Spool(directory)
    for payload in payloads:
        one.append(frames.OUTPUT, 0, 1, payload, 0)
    one.close()
    sizes = [os.stat(f"{path}/spool.{at}").st_size for at in jobdir.spool_offsets(directory)]
    return one.held, sizes


@pytest.mark.parametrize("size", [LARGEST, 2 * LARGEST, 2 * LARGEST + 1, 2**20])
@pytest.mark.parametrize("length", [1, 1000, frames.MAX_PAYLOAD])
def test_no_frame_is_held_by_a_limit_that_it_fits_below(tmp_path, size, length):
    """Frames of any size find room below the limit, in as many files as it takes."""
    count = 3 * size // (frames.HEADER_SIZE + length) + 2
    held, sizes = limited(size, _fill, str(tmp_path), [bytes(length)] * min(count, 2000))

    assert not held
    assert max(sizes) <= size
    assert sum(sizes) == min(count, 2000) * (frames.HEADER_SIZE + length)
