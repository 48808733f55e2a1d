"""Frames: what was encoded is decoded, and nothing else is."""

from __future__ import annotations

import random

import pytest

from jobcore.supervisor import NewerProtocol, frames


def encode(payload, *, stream=frames.OUTPUT, flags=0, first=0, count=None, time_ns=123):
    count = payload.count(b"\n") if count is None else count
    return frames.encode_header(stream, flags, first, count, time_ns, payload) + payload


def test_round_trip():
    """Every fact of a header comes back."""
    data = b"before" + encode(
        b"one\ntwo\n", stream=frames.STDERR, flags=frames.PARTIAL, first=2**40, time_ns=-5
    )

    frame = frames.decode(data, 6)

    assert (frame.stream, frame.flags, frame.first, frame.count, frame.time_ns) == (
        frames.STDERR,
        frames.PARTIAL,
        2**40,
        2,
        -5,
    )
    assert frame.partial
    assert (frame.begin, frame.start, frame.end) == (6, 6 + frames.HEADER_SIZE, len(data))
    assert data[frame.start : frame.end] == b"one\ntwo\n"


def test_a_frame_without_lines_is_legal():
    """A frame with no lines is decoded like any other."""
    data = encode(b"")

    assert frames.decode(data).count == 0
    assert frames.decode(data).end == len(data)


def test_incomplete_frame_is_not_decoded():
    """A frame without its last byte is not returned."""
    data = encode(b"line\n")

    assert [n for n in range(len(data) + 1) if frames.decode(data[:n])] == [len(data)]


def test_every_flipped_bit_is_noticed():
    """A frame with one bit changed anywhere is none."""
    data = encode(b"line\n")

    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert frames.decode(bytes(damaged)) is None


def test_scan_ends_before_damage_and_find_next_skips_it():
    """Frames before damage are read, and the first whole one after it is found."""
    rng = random.Random(1)
    good = [encode(b"%d\n" % n, first=n) for n in range(10)]
    junk = rng.randbytes(50) + frames.MAGIC + rng.randbytes(50)
    data = b"".join(good[:4]) + junk + b"".join(good[4:])

    before = list(frames.scan(data))
    again = frames.find_next(data, before[-1].end)

    assert [frame.first for frame in before] == [0, 1, 2, 3]
    assert [frame.first for frame in frames.scan(data, again)] == [4, 5, 6, 7, 8, 9]
    assert frames.find_next(data, len(data) - 3) == -1


def test_a_newer_version_is_not_damage(monkeypatch):
    """A frame of a newer jobcore raises its own error, not that of damage."""
    with monkeypatch.context() as patch:
        patch.setattr(frames, "PROTOCOL_VERSION", 2)
        data = encode(b"line\n")

    with pytest.raises(NewerProtocol):
        frames.decode(data)
