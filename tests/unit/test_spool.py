"""Spool: its files end before a file size limit does, so that no frame is stuck for ever."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from jobcore.supervisor import frames, job_directory, spool
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
    sizes = [os.stat(f"{path}/spool.{at}").st_size for at in job_directory.spool_offsets(directory)]
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


# --- what cannot be written -----------------------------------------------------


def _spool(path):
    return spool.Spool(os.open(path, os.O_RDONLY | os.O_DIRECTORY))


def _refuse(monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(spool.os, "writev", refuse)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_output_that_cannot_be_written_is_held(tmp_path, monkeypatch, number):
    """It is written when writing works again, without a loss."""
    one = _spool(tmp_path)
    with monkeypatch.context() as patched:
        _refuse(patched, number)
        one.append(frames.OUTPUT, 0, 1, b"line\n", 0)
        held = one.held, one.errno, one.flush()
    flushed = one.flush()
    one.close()

    assert held == (True, number, False)
    assert flushed
    assert (tmp_path / "spool.0").read_bytes().endswith(b"line\n")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_output_for_a_directory_that_is_gone_is_dropped_and_counted(tmp_path, monkeypatch, number):
    """The command goes on, and its lines get no numbers."""
    one = _spool(tmp_path)
    one.append(frames.OUTPUT, 0, 2, b"a\nb\n", 0)
    _refuse(monkeypatch, number)
    one.append(frames.OUTPUT, 0, 3, b"c\nd\ne\n", 0)
    one.append(frames.OUTPUT, 0, 1, b"f\n", 0)
    one.close()

    assert (one.held, one.dropped, one.next_sequence) == (False, 4, 2)


def test_a_file_that_was_unlinked_is_made_again_with_what_it_held(tmp_path):
    """What is open is not lost: it is copied into a file of the same name."""
    one = _spool(tmp_path)
    one.append(frames.OUTPUT, 0, 1, b"first\n", 0)
    before = (tmp_path / "spool.0").read_bytes()
    os.unlink(tmp_path / "spool.0")
    one.repair()
    copied = (tmp_path / "spool.0").read_bytes()
    one.append(frames.OUTPUT, 0, 1, b"second\n", 0)
    one.close()

    assert copied == before
    assert (tmp_path / "spool.0").read_bytes()[len(before) :].endswith(b"second\n")


def test_a_file_that_was_brought_back_is_left_as_it_is(tmp_path):
    """Later output goes to a new file."""
    one = _spool(tmp_path)
    one.append(frames.OUTPUT, 0, 1, b"first\n", 0)
    data = (tmp_path / "spool.0").read_bytes()
    os.unlink(tmp_path / "spool.0")
    (tmp_path / "spool.0").write_bytes(data)
    one.repair()
    one.append(frames.OUTPUT, 0, 1, b"second\n", 0)
    one.close()

    assert (tmp_path / "spool.0").read_bytes() == data
    assert (tmp_path / f"spool.{len(data)}").read_bytes().endswith(b"second\n")
