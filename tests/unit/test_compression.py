"""Compression: zlib and ISA-L read what the other has written, and report damage alike."""

from __future__ import annotations

import random
import sys
import zlib
from functools import partial

import pytest

from jobcore import DatabaseCorrupt
from jobcore.storage import compression
from jobcore.supervisor import frames
from jobcore.testing.parts import parts
from tests.jobfiles import log_of, sql, stored_run

CHANCE = random.Random(5)
TEXTS = [
    b"",
    b"one line\n",
    b"2026-12-01T00:00:00Z INFO extract: wrote 17 rows\n" * 5000,
    CHANCE.randbytes(256 * 1024),
]


@pytest.fixture
def isal():
    """Return the library of the extra `fast`."""
    pytest.importorskip("isal", reason="the extra `fast` is not installed")
    compression.fastest.cache_clear()
    library = compression.fastest()
    assert library is not compression.ZLIB
    return library


@pytest.fixture
def without_isal(monkeypatch):
    """Return a function that makes an installed `isal` impossible to import."""

    def hide():
        monkeypatch.setitem(sys.modules, "isal", None)
        monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
        compression.fastest.cache_clear()

    yield hide
    monkeypatch.undo()
    compression.fastest.cache_clear()


def test_each_library_reads_what_the_other_writes(isal):
    """A file can move between machines with and without ISA-L."""
    for text in TEXTS:
        assert zlib.decompress(isal.compress(text, 1)) == text
        assert isal.decompress(zlib.compress(text, 1)) == text


@pytest.mark.usefixtures("isal")
def test_log_of_one_library_is_read_with_the_other(jobs, scripted, database, without_isal):
    """Segments that ISA-L has written are read by zlib, and later ones are stored by it."""
    run = scripted()
    run.write(*[b"line %d\n" % index for index in range(1000)])
    first = log_of(jobs, run.id)
    without_isal()
    run.write(*[b"later line %d\n" % index for index in range(1000)])

    assert compression.fastest() is compression.ZLIB
    assert first == run.lines_written[:1000]
    assert log_of(jobs, run.id) == run.lines_written
    stored = [row["data"] for row in sql(database, "SELECT data FROM log_segment ORDER BY id")]
    assert [len(zlib.decompress(data)) > 0 for data in stored] == [True] * len(stored)
    assert len(stored) == 2


@pytest.mark.parametrize("hidden", [False, True])
def test_damage_is_reported_in_the_same_words(hidden, without_isal):
    """The text of the error does not depend on the library."""
    if hidden:
        without_isal()
    whole = zlib.compress(TEXTS[2])

    for damaged in (b"no zlib", whole[:-6], whole[:40] + b"?" + whole[41:]):
        with pytest.raises(zlib.error) as expected:
            zlib.decompress(damaged)
        with pytest.raises(zlib.error) as found:
            compression.decompress(damaged)
        assert str(found.value) == str(expected.value)
    with pytest.raises(TypeError):
        compression.decompress(None)


def test_damaged_segment_is_corrupt(jobs, scripted, database):
    """A segment that neither library can read raises `DatabaseCorrupt`."""
    run = scripted()
    run.write(*[b"line %d\n" % index for index in range(1000)], stream=frames.STDOUT)
    assert len(log_of(jobs, run.id)) == 1000
    sql(database, "UPDATE log_segment SET data = substr(data, 1, length(data) - 9)")

    with pytest.raises(DatabaseCorrupt, match="the log of job number"):
        log_of(jobs, run.id)


def test_output_that_another_process_has_imported_is_not_compressed(jobs, scripted, monkeypatch):
    """Of two that import the same output, the one that comes too late does not compress it."""
    run = scripted()
    run.write(*[b"x" * 99 + b"\n"] * 600)
    importer = parts(jobs).importer
    late = importer.read(stored_run(jobs, run))
    compress, compressed = compression.compress, []
    monkeypatch.setattr(
        compression, "compress", lambda data: compressed.append(len(data)) or compress(data)
    )
    lines = log_of(jobs, run.id)
    fresh = parts(jobs).database.write(partial(importer.apply, content=late))

    assert compressed == [run.end]
    assert fresh.next_sequence == 600
    assert lines == log_of(jobs, run.id) == run.lines_written
